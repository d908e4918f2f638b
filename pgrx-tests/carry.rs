//! Carry-over, driven by hand: two tables, gathered statements around two SET SCHEMA, and the description of
//! everything that hangs on the table before and after, in both directions.

use pgrx::prelude::*;

/// The driver: what the swap does around the carry-over, as SQL functions so that golden tests can call it.
#[pg_schema]
mod tests {
    use crate::catalog::relation::Relation;
    use crate::catalog::{dependants, lock, role, spi};
    use crate::engine::carry::{self, Direction, Statement, Swap};
    use crate::raise::raise;
    use migrator_core::failure::Failure;
    use migrator_core::ident::Ident;
    use migrator_core::plan::{NewColumn, OldColumn, Plan, Source};
    use pgrx::JsonB;
    use pgrx::prelude::*;
    use serde::Deserialize;
    use serde_json::json;
    use std::collections::BTreeMap;
    use std::time::Instant;

    #[derive(Deserialize)]
    struct Column {
        name: Ident,
        type_name: String,
    }

    fn columns(table: pg_sys::Oid) -> Result<Vec<Column>, Failure> {
        spi::fetch(
            "select a.attname as name, pg_catalog.format_type(a.atttypid, a.atttypmod) as type_name from pg_catalog.pg_attribute a \
             where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped order by a.attnum",
            &[table.into()],
        )
    }

    /// A plan that matches columns by name, but for `renames` (old name -> new name).
    fn plan(old: pg_sys::Oid, new: pg_sys::Oid, renames: &BTreeMap<String, String>) -> Result<Plan, Failure> {
        let new_columns = columns(new)?;
        let old_columns = columns(old)?.into_iter().map(|column| {
            let wanted = renames.get(column.name.as_str()).map_or(column.name.as_str(), String::as_str);
            let new = new_columns.iter().find(|new| new.name.as_str() == wanted).map(|new| new.name.clone());
            OldColumn {
                name: column.name,
                type_name: column.type_name,
                bare_type: None,
                generated: false,
                new,
                reverse: None,
                otherwise: "NULL".into(),
            }
        });
        Ok(Plan {
            old_columns: old_columns.collect(),
            new_columns: new_columns
                .iter()
                .map(|column| NewColumn {
                    name: column.name.clone(),
                    type_name: column.type_name.clone(),
                    bare_type: None,
                    generated: false,
                    old: None,
                    source: Source::Same,
                    upgraded: false,
                })
                .collect(),
            key: vec![],
            settings: vec![],
            builds: vec![],
            structure: String::new(),
            definitions: String::new(),
            unvalidated: vec![],
        })
    }

    fn run(statements: &[Statement]) -> Result<(), Failure> {
        for statement in statements {
            match statement.role {
                None => spi::execute(&statement.sql, &[])?,
                Some(role) => role::as_owner(pg_sys::Oid::from(role), &[], || spi::execute(&statement.sql, &[]))?,
            };
        }
        Ok(())
    }

    /// Exchanges `old_shape` and `new_shape`, in the direction in which they stand, and moves the front to `away`.
    /// Hands back what the next exchange needs, with the locks and statements.
    #[pg_extern]
    fn exchange(
        old_shape: pg_sys::Oid,
        new_shape: pg_sys::Oid,
        forward: bool,
        away: &str,
        renames: JsonB,
        kept: Option<JsonB>,
    ) -> JsonB {
        let renames: BTreeMap<String, String> = serde_json::from_value(renames.0).expect("an object of strings");
        role::as_extension(|| {
            let plan = plan(old_shape, new_shape, &renames)?;
            let old = Relation::get(old_shape.to_u32())?;
            let new = Relation::get(new_shape.to_u32())?;
            let (front, rear) = if forward { (&old, &new) } else { (&new, &old) };
            let direction = if forward { Direction::Forward } else { Direction::Reverse };
            let swap = Swap { front, rear, plan: &plan, direction, kept: kept.as_ref().map(|kept| &kept.0), front_backup_schema: away };
            let before = carry::fingerprint(front.oid)?;
            let start = Instant::now();
            let carryover = carry::gather(&swap)?;
            let gathered = start.elapsed();
            run(&carryover.before_lock)?;
            let start = Instant::now();
            for wanted in &carryover.locks {
                lock::relation(*wanted);
            }
            assert_eq!(before, carry::fingerprint(front.oid)?, "neither gathering nor work on the rear changes the fingerprint");
            run(&carryover.before_move)?;
            spi::execute(&format!("alter table {} set schema {}", front.name, Ident::new(away)), &[])?;
            spi::execute(&format!("alter table {} set schema {}", rear.name, front.name.schema), &[])?;
            run(&carryover.after_move)?;
            let held = start.elapsed();
            assert_ne!(before, carry::fingerprint(front.oid)?, "an exchange does");
            let texts = |statements: &[Statement]| statements.iter().map(|statement| statement.sql.clone()).collect::<Vec<_>>();
            Ok(JsonB(json!({
                "kept": carryover.kept,
                "gathered in ms": gathered.as_secs_f64() * 1000.0,
                "held for ms": held.as_secs_f64() * 1000.0,
                "unvalidated": carryover.unvalidated,
                "locks": carryover.locks.iter().map(|wanted| format!("{} {:?}", wanted.relation, wanted.mode)).collect::<Vec<_>>(),
                "before lock": texts(&carryover.before_lock),
                "before move": texts(&carryover.before_move),
                "after move": texts(&carryover.after_move),
            })))
        })
        .unwrap_or_else(|failure| raise(failure))
    }

    /// What `create_shadow` asks before it does anything.
    #[pg_extern]
    fn preflight(old_shape: pg_sys::Oid, new_shape: pg_sys::Oid, renames: default!(JsonB, "'{}'")) {
        let renames: BTreeMap<String, String> = serde_json::from_value(renames.0).expect("an object of strings");
        role::as_extension(|| dependants::preflight(old_shape.to_u32(), &plan(old_shape, new_shape, &renames)?))
            .unwrap_or_else(|failure| raise(failure))
    }

    const TABLE: &str = r#"shop."Order Items; --""#;

    fn sql(text: &str) {
        Spi::run(text).expect("a statement of the test runs");
    }

    fn one<T: FromDatum + IntoDatum>(text: &str) -> T {
        Spi::get_one(text).expect("a query of the test runs").expect("it finds a value")
    }

    /// The fixture, with nothing pending that would forbid DDL in the same transaction.
    fn build() {
        sql(include_str!("carry_fixture.sql"));
        sql(include_str!("describe.sql"));
        sql(include_str!("carry_rear.sql"));
        sql("set constraints all immediate");
    }

    fn make_rear(actions: &str) {
        Spi::run_with_args(
            "create temp table pair as select $1::regclass::oid as old, pg_temp.migrator_rear($1::regclass, nullif($2, ''))::oid as new, null::jsonb as kept, jsonb '{}' as renames",
            &[TABLE.into(), actions.into()],
        )
        .expect("the rear can be made");
    }

    fn describe(into: &str) {
        sql(&format!(
            "drop table if exists {into}; create temp table {into} as select * from pg_temp.migrator_describe('{TABLE}')"
        ));
    }

    /// Every fact that is in one description and not in the other.
    fn difference(one_name: &str, other: &str) -> String {
        Spi::get_one(&format!(
            "select coalesce(string_agg(concat_ws(' ', q.sign, q.kind, q.name, q.facts), E'\\n' order by q.name, q.kind, q.sign), '') from ( \
             select '-' as sign, x.* from (select * from {one_name} except select * from {other}) x \
             union all select '+', x.* from (select * from {other} except select * from {one_name}) x) q"
        ))
        .expect("descriptions can be compared")
        .expect("a text")
    }

    fn go(forward: bool) {
        let away = if forward { "migrator_backup_1" } else { "migrator_shadow_1" };
        sql(&format!(
            "create temp table outcome as select tests.exchange(old, new, {forward}, '{away}', renames, kept) as r from pair; \
             update pair set kept = (select r -> 'kept' from outcome); \
             do $$ declare x jsonb; begin \
                 for x in select jsonb_array_elements(r -> 'unvalidated') from outcome loop execute format('alter table %s validate constraint %I', x ->> 0, x ->> 1); end loop; \
             end $$; drop table outcome"
        ));
    }

    /// The message of the failure that `work` ends with; everything it did is undone.
    fn failure_of(work: impl FnOnce()) -> String {
        let outcome = crate::catalog::attempt::attempt(|| {
            work();
            Ok(())
        });
        outcome.err().map_or_else(|| "no failure".to_owned(), |failure| format!("{} {}", failure.code, failure.message))
    }

    #[pg_test]
    fn everything_follows_a_swap_and_its_rollback() {
        build();
        make_rear("");
        describe("at_first");
        for _ in 0..2 {
            go(true);
            describe("swapped");
            assert_eq!(difference("at_first", "swapped"), "");
            go(false);
            describe("back");
            assert_eq!(difference("at_first", "back"), "");
        }
    }

    #[pg_test]
    fn the_table_that_left_keeps_no_key_and_no_enabled_trigger() {
        build();
        make_rear("");
        for (forward, left) in [(true, "old"), (false, "new")] {
            go(forward);
            let keys: i64 = one(&format!(
                "select count(*) from pg_constraint k, pair where k.contype = 'f' and {left} in (k.conrelid, k.confrelid)"
            ));
            let enabled: i64 = one(&format!(
                "select count(*) from pg_trigger t, pair where t.tgrelid = {left} and t.tgenabled <> 'D'"
            ));
            assert_eq!((keys, enabled), (0, 0));
        }
    }

    #[pg_test]
    fn values_go_on_where_they_stood() {
        build();
        make_rear("");
        let last: i64 = one(&format!("insert into {TABLE} (state) values ('x') returning id"));
        sql("set constraints all immediate");
        go(true);
        let next: i64 = one(&format!("insert into {TABLE} (state) values ('y') returning id"));
        assert!(next > last, "{next} after {last}");
        sql("set constraints all immediate");
        go(false);
        let third: i64 = one(&format!("insert into {TABLE} (state) values ('z') returning id"));
        assert!(third > next, "{third} after {next}");
        assert_eq!(
            one::<i32>("select nextval('shop.\"Order Items; --_number_seq\"')::int"),
            14,
            "10 rows, and one each time"
        );
    }

    #[pg_test]
    fn views_whose_columns_change_types_are_made_again_and_others_replaced() {
        build();
        make_rear("alter column state type varchar(50)");
        for (blocker, remedy) in [
            ("function shop.of_view", "drop function shop.of_view"),
            ("rule redirect", "drop rule redirect on shop.cheaper"),
            ("trigger instead", "drop trigger instead on shop.cheaper"),
            ("materialized view shop.counted", "drop materialized view shop.counted"),
        ] {
            let message = failure_of(|| go(true));
            assert!(
                message.starts_with("2BP01") && message.contains("has to be dropped and created again"),
                "{message}"
            );
            assert!(message.contains(blocker), "{message} should name {blocker}");
            sql(remedy);
        }
        sql("comment on column shop.far.how_many is 'kept'");
        sql("alter default privileges grant select on tables to public");
        describe("at_first");
        go(true);
        describe("swapped");
        let changes = difference("at_first", "swapped");
        for line in changes.lines().filter(|line| line.starts_with('+')) {
            assert!(line.contains("state"), "only what concerns the state changes: {line}");
        }
        assert!(changes.contains("+ column shop.cheap.state"), "{changes}");
        go(false);
        describe("back");
        assert_eq!(difference("at_first", "back"), "");
    }

    #[pg_test]
    fn what_is_changed_meanwhile_goes_along_and_what_the_change_asked_for_does_not() {
        build();
        make_rear("alter column tenant set statistics 500, set (fillfactor = 70), add column note text");
        describe("at_first");
        go(true);
        sql(&format!(
            "comment on column {TABLE}.price is 'changed meanwhile'; alter table {TABLE} alter column state set statistics 99; \
             alter table {TABLE} set (autovacuum_enabled = false); grant truncate on {TABLE} to carry_reader; \
             drop trigger on_truncate on {TABLE}; drop policy strict on {TABLE}; alter table {TABLE} set without cluster; \
             drop statistics shop.items_stats; alter table {TABLE} drop constraint items_tenant"
        ));
        go(false);
        describe("back");
        let changes = difference("at_first", "back");
        for expected in [
            "changed meanwhile",
            "\"target\": 99",
            "autovacuum_enabled=false",
            "TRUNCATE to carry_reader",
            "- trigger shop.\"Order Items; --\" on_truncate",
            "- policy shop.\"Order Items; --\" strict",
            "- statistics shop.items_stats",
            "- constraint shop.\"Order Items; --\" items_tenant",
        ] {
            assert!(changes.contains(expected), "{expected} is missing in {changes}");
        }
        assert!(!changes.contains("500") && !changes.contains("fillfactor"), "{changes}");
    }

    #[pg_test]
    fn a_shared_sequence_of_a_dropped_column_stays_where_it_is() {
        build();
        make_rear("drop column number");
        sql(&format!(
            "alter table shop.line drop constraint line_number; drop view shop.cheaper cascade; drop view \"Order Schema\".\"all of it\"; \
             alter table {TABLE} replica identity default, set without cluster"
        ));
        describe("at_first");
        go(true);
        assert_eq!(one::<String>("select nextval('shop.\"Order Items; --_number_seq\"')::text"), "11");
        sql("insert into shop.sibling default values");
        go(false);
        describe("back");
        let changes = difference("at_first", "back");
        assert!(changes.lines().all(|line| line.contains("sequence value")), "{changes}");
    }

    #[pg_test]
    fn renamed_columns_are_followed_by_keys_and_grants() {
        sql("create role renamer; create schema shop; create table shop.other (id int primary key); \
             create table shop.\"Order Items; --\" (id int primary key, parent int references shop.\"Order Items; --\", other int references shop.other on delete set null (other)); \
             create table shop.line (item int references shop.\"Order Items; --\"); grant select (id, parent) on shop.\"Order Items; --\" to renamer; \
             create statistics shop.s on id, parent from shop.\"Order Items; --\"; comment on column shop.\"Order Items; --\".id is 'the id'");
        sql(include_str!("describe.sql"));
        sql(include_str!("carry_rear.sql"));
        make_rear("alter column id type bigint");
        sql("alter table migrator_shadow_1.\"Order Items; --\" rename column id to ident");
        sql("alter table migrator_shadow_1.\"Order Items; --\" rename column other to another");
        sql("update pair set renames = '{\"id\": \"ident\", \"other\": \"another\"}'");
        describe("at_first");
        go(true);
        describe("swapped");
        let changes = difference("at_first", "swapped");
        for expected in [
            "+ column privilege shop.\"Order Items; --\".ident: SELECT to renamer",
            "REFERENCES shop.\\\"Order Items; --\\\"(ident)",
            "FOREIGN KEY (another) REFERENCES shop.other(id) ON DELETE SET NULL (another)",
            "ON ident, parent FROM",
            "\"the id\"",
        ] {
            assert!(changes.contains(expected), "{expected} is missing in {changes}");
        }
        go(false);
        describe("back");
        assert_eq!(difference("at_first", "back"), "");
    }

    #[pg_test]
    fn a_value_that_the_other_sequence_cannot_hold_is_told_before() {
        sql(
            "create schema shop; create table shop.\"Order Items; --\" (id int generated always as identity primary key)",
        );
        sql(include_str!("carry_rear.sql"));
        make_rear("alter column id type bigint");
        sql("alter sequence migrator_shadow_1.\"Order Items; --_id_seq\" as bigint maxvalue 9223372036854775807");
        go(true);
        sql("select setval('shop.\"Order Items; --_id_seq\"', 3000000000)");
        let message = failure_of(|| go(false));
        assert!(message.starts_with("55000") && message.contains("stands at 3000000000"), "{message}");
    }

    #[pg_test]
    fn what_cannot_be_carried_is_refused_by_name() {
        build();
        make_rear("");
        sql("create role other_role; create table shop.elsewhere (id bigint, state text)");
        let t = TABLE;
        for (made, code, named) in [
            (format!("create materialized view shop.mv as select id from {t}"), "2BP01", "materialized view shop.mv"),
            (format!("create rule r as on delete to {t} do also select 1"), "2BP01", "rule r on table"),
            (
                format!("create rule r as on insert to shop.elsewhere do also delete from {t}"),
                "2BP01",
                "rule r on table shop.elsewhere",
            ),
            (
                format!("create function shop.f({t}) returns int language sql as 'select 1'"),
                "2BP01",
                "function shop.f(",
            ),
            (
                format!("create function shop.f() returns setof {t} language sql as 'select * from {}'", t),
                "2BP01",
                "function shop.f()",
            ),
            (
                format!("create function shop.f() returns bigint begin atomic select max(id) from {t}; end"),
                "2BP01",
                "function shop.f()",
            ),
            (
                format!(
                    "create policy p on shop.elsewhere using (exists (select from {t} i where i.id = elsewhere.id))"
                ),
                "2BP01",
                "policy p on table shop.elsewhere",
            ),
            (format!("create table shop.holder (item {t})"), "2BP01", "column item of table shop.holder"),
            (format!("create table shop.holder (items {t}[])"), "2BP01", "column items of table shop.holder"),
            (format!("create type shop.pair as (a {t}, b int)"), "2BP01", "column a of composite type shop.pair"),
            (format!("create domain shop.d as {t}"), "2BP01", "type shop.d"),
            (format!("create temp view temporary as select id from {t}"), "2BP01", "temporary"),
            (format!("create publication p for table {t} (id, number)"), "0A000", "publication p"),
            ("create publication p for all tables".to_owned(), "0A000", "publication p"),
            ("create publication p for tables in schema shop".to_owned(), "0A000", "publication p"),
            (format!("create table shop.child () inherits ({t})"), "0A000", "shop.child"),
            (
                format!(
                    "create constraint trigger c after insert on shop.elsewhere from {t} for each row execute function shop.note_change()"
                ),
                "2BP01",
                "trigger c on table shop.elsewhere",
            ),
            (format!("alter extension migrator add table {t}"), "0A000", "extension migrator"),
            (format!("alter table {t} force row level security"), "0A000", "row-level security"),
            (
                "create table shop.borrower (id bigint default nextval('shop.\"items id\"'))".to_owned(),
                "2BP01",
                "column id of table shop.borrower",
            ),
            (format!("alter table {t} disable trigger all"), "0A000", "has triggers that somebody disabled"),
            (format!("create statistics \"Order Schema\".items_stats on id, price from {t}"), "0A000", "items_stats"),
            (format!("grant usage on type {t} to other_role"), "0A000", "row type"),
        ] {
            let message = failure_of(|| {
                sql(&made);
                sql("select tests.preflight(old, new) from pair");
            });
            assert!(message.starts_with(code), "{made}: {message}");
            assert!(
                message.contains("Order Items; --") && message.contains(named),
                "{made}: {message} should name {named}"
            );
            let message = failure_of(|| {
                sql(&made);
                go(true);
            });
            assert!(message.starts_with(code), "the swap refuses too: {made}: {message}");
        }
        assert_eq!(failure_of(|| sql("select tests.preflight(old, new) from pair")), "no failure");
    }

    #[pg_test]
    fn what_rests_on_a_column_that_goes_is_refused_by_name() {
        sql(
            "create schema shop; create table shop.other (id int primary key, kind text); create function shop.f() returns trigger language plpgsql as 'begin return new; end'",
        );
        sql("create table shop.\"Order Items; --\" (id int primary key, a text, b int unique, c int)");
        sql(include_str!("carry_rear.sql"));
        let t = TABLE;
        for (made, actions, named) in [
            (format!("create view shop.v as select a from {t}"), "drop column a", "view shop.v uses column a"),
            (
                format!("create view shop.v as select id from {t} where a > ''"),
                "rename column a to z",
                "view shop.v uses column a",
            ),
            (
                format!("create trigger g before update of a on {t} for each row execute function shop.f()"),
                "drop column a",
                "trigger g on table",
            ),
            (
                format!(
                    "create trigger g before update on {t} for each row when (old.a <> new.a) execute function shop.f()"
                ),
                "drop column a",
                "trigger g on table",
            ),
            (format!("create policy p on {t} using (a > '')"), "drop column a", "policy p on table"),
            (format!("alter table {t} add foreign key (c) references shop.other"), "drop column c", "uses column c"),
            (
                format!("create table shop.line (b int references {t} (b))"),
                "drop column b",
                "on table shop.line uses column b",
            ),
            (
                format!("create table shop.line (b int references {t} (b))"),
                "alter column b type text",
                "compares column b",
            ),
            (
                format!("create view shop.v as select p, q from {t} as x (p, q)"),
                "add column n int",
                "view shop.v names columns by their place",
            ),
            (
                format!("create view shop.v as select j.k from ({t} i join shop.other o on true) as j (k, l, m, n, o)"),
                "add column n int",
                "by their place",
            ),
            (
                format!("create statistics shop.s on (lower(a)) from {t}"),
                "rename column a to z",
                "statistics object shop.s",
            ),
        ] {
            let renames = if actions.starts_with("rename") { r#"{"a": "z"}"# } else { "{}" };
            let message = failure_of(|| {
                sql(&made);
                make_rear(actions);
                sql(&format!("update pair set renames = '{renames}'"));
                go(true);
            });
            assert!(message.contains(named), "{made}: {message} should name {named}");
        }
    }
}
