//! All that hangs on a table: after a change, pg_dump says of the database what it says where ALTER TABLE did the work;
//! after a rollback, what it said before.

use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::program::{self, postgresql};
use migrator_tests::*;

for_each_server!(the_schema_is_what_alter_table_makes_it, what_is_not_known_is_refused);

const SCHEMA: &str = r#"
    create table above (id int primary key, k text unique);
    create type mood as enum ('a', 'b');
    create table thing (
        id serial primary key, ref int references above on delete set null, self int references thing, code varchar(20) not null,
        n numeric(10,2) default 0.5, m mood default 'a', big text, twice numeric generated always as (n * 2) stored,
        always int generated always as identity (start 100 increment 7), during int4range,
        constraint positive check (n >= 0), constraint code_once unique (code) deferrable initially deferred,
        constraint apart exclude using gist (during with &&));
    alter table thing add constraint checked_later check (n < 1000000) not valid;
    alter table thing alter column big set storage external, alter column code set statistics 500, alter column n set (n_distinct = 100);
    alter table thing set (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.3, toast.autovacuum_enabled = false);
    alter table thing replica identity full;
    create index thing_upper on thing (upper(code) text_pattern_ops) include (n) where n > 0;
    create index thing_gin on thing using gin (to_tsvector('simple', big));
    create unique index thing_pair on thing (ref, code) nulls not distinct;
    alter table thing cluster on thing_pair;
    create statistics thing_stats (ndistinct, dependencies) on code, n from thing;
    create statistics thing_expressions on (lower(code)) from thing;
    create table below (id int primary key, thing int references thing on update cascade on delete cascade deferrable);
    alter table below add constraint later foreign key (id) references thing not valid;
    create view seen as select id, code, n from thing where n > 0;
    create view seen_more with (security_barrier) as select s.*, upper(s.code) as shout from seen s join thing t using (id);
    create view seen_checked as select id, code from thing where n > 0 with local check option;
    create view seen_simple with (security_invoker) as select code from thing;
    create function touch() returns trigger language plpgsql as $$ begin return new; end $$;
    create trigger a_first before update on thing for each row when (old.n is distinct from new.n) execute function touch();
    create trigger b_columns before update of code, n on thing for each row execute function touch();
    create trigger c_statement after insert on thing referencing new table as fresh for each statement execute function touch();
    create constraint trigger d_late after insert on thing deferrable initially deferred for each row execute function touch();
    create trigger e_off after delete on thing for each row execute function touch();
    alter table thing disable trigger e_off; alter table thing enable always trigger b_columns;
    create trigger on_view instead of insert on seen_simple for each row execute function touch();
    create policy mine on thing for select using (code = current_user);
    create policy write on thing as restrictive for update to public using (n > 0) with check (n > 1);
    alter table thing enable row level security;
    comment on table thing is 'a ''thing''; --'; comment on column thing.code is 'its code'; comment on constraint positive on thing is 'why';
    comment on index thing_upper is 'fast'; comment on trigger a_first on thing is 'first'; comment on policy mine on thing is 'whose';
    comment on view seen is 'what is seen'; comment on statistics thing_stats is 'counts'; comment on sequence thing_id_seq is 'ids';
    comment on constraint thing_ref_fkey on thing is 'up';
    grant select, insert on thing to ROLE with grant option; grant update (code, n) on thing to ROLE; grant select on seen to ROLE;
    grant usage on sequence thing_id_seq to ROLE; revoke delete on thing from postgres;
    insert into above select g, g from generate_series(1, 20) g;
    insert into thing (ref, code, big, during) select g % 20 + 1, 'c' || g, repeat('x', g), int4range(g, g + 1) from generate_series(1, 300) g;
    insert into below select g, g from generate_series(1, 100) g;
"#;

const ACTIONS: &str = "add column extra text default 'e', add constraint short check (length(code) < 20), \
                       alter column big set not null, drop constraint apart";

async fn dump(database: &Database) -> Result<String> {
    let mut command = postgresql(database, "pg_dump");
    command.args(["--schema-only", "--exclude-extension=migrator", "--restrict-key=same"]);
    let mut outcome = program::run(&mut command).await?;
    if outcome.code != 0 {
        // Older versions know fewer options.
        let mut command = postgresql(database, "pg_dump");
        outcome = program::run(command.arg("--schema-only")).await?;
    }
    let text = outcome.fine()?;
    Ok(text
        .lines()
        .filter(|line| {
            !line.starts_with("--")
                && !line.trim().is_empty()
                && !line.starts_with(r"\restrict")
                && !line.starts_with(r"\unrestrict")
        })
        .filter(|line| !line.contains("EXTENSION") && !line.contains("SCHEMA migrator"))
        .collect::<Vec<_>>()
        .join("\n"))
}

/// What stands in one and not in the other, as people read differences.
fn difference(left: &str, right: &str) -> String {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (left, right) = (lines(left), lines(right));
    let mut only: Vec<String> =
        left.iter().filter(|line| !right.contains(line)).map(|line| format!("  - {line}")).collect();
    only.extend(right.iter().filter(|line| !left.contains(line)).map(|line| format!("  + {line}")));
    only.join("\n")
}

fn same(expected: &str, found: &str, when: &str) -> Result<()> {
    let mut sorted: (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    sorted.0.sort_unstable();
    sorted.1.sort_unstable();
    ensure!(sorted.0 == sorted.1, "{when} (-: expected, +: found)\n{}", difference(expected, found));
    Ok(())
}

async fn the_schema_is_what_alter_table_makes_it(server: Server) -> Result<()> {
    let database = server.database().await?;
    let altered = Database::create(&server.shared().await?, true).await?;
    let session = database.connect().await?;
    let role = format!("granted_{}", database.name);
    session.run(&format!("drop role if exists {role}; create role {role}")).await?;
    for each in [&database, &altered] {
        each.connect().await?.run(&SCHEMA.replace("ROLE", &role)).await?;
    }
    // New tables get more than the old one has; the one that takes its place must not.
    for each in [&database, &altered] {
        each.connect().await?.run(&format!("alter default privileges grant all on tables to {role}; alter default privileges grant all on sequences to public")).await?;
    }
    let before = dump(&database).await?;
    same(&before, &dump(&altered).await?, "two databases of one script differ")?;
    let actions = ACTIONS;
    let change = Change::create(&database, "public.thing", actions).await?;
    change.until_ready().await?;
    change.swap().await?;
    change.until_in_step().await?;
    change.rollback().await?;
    change.until_ready().await?;
    change.until_in_step().await?;
    // While the change is open there is more, but nothing may be missing.
    let rolled_back = dump(&database).await?;
    let missing = difference(&before, &rolled_back);
    let missing: Vec<&str> = missing.lines().filter(|line| line.starts_with("  - ")).collect();
    ensure!(missing.is_empty(), "gone after a rollback:\n{}", missing.join("\n"));
    change.swap().await?;
    change.until_in_step().await?;
    change.finish().await?;
    nothing_left_behind(&database).await?;

    altered.connect().await?.run(&format!("alter table thing {actions}")).await?;
    same(&dump(&altered).await?, &dump(&database).await?, "the schema is not what ALTER TABLE makes it")?;

    // And it works: inserts, keys, triggers.
    session
        .run("insert into thing (ref, code, big) values (1, 'after', 'b'); insert into below select max(id), max(id) from thing")
        .await?;
    let sequence = session.number("select max(id) from thing").await?;
    ensure!(sequence == 301, "the sequence goes on at {sequence}");

    let back = Change::create(&database, "public.thing", "add column y int").await?;
    back.until_ready().await?;
    back.cancel().await?;
    same(&dump(&altered).await?, &dump(&database).await?, "a cancelled change left a trace")?;
    for each in [&database, &altered] {
        each.connect().await?.run(&format!("drop owned by {role}")).await?;
    }
    session.run(&format!("drop role {role}")).await?;
    Ok(())
}

async fn what_is_not_known_is_refused(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    for (hang, code, says) in [
        ("create publication all_of_it for all tables", "0A000", "publication all_of_it"),
        ("create publication part_of_it for table odd", "0A000", "publication part_of_it"),
        ("create table child () inherits (odd)", "0A000", "table inheritance"),
        ("create materialized view kept as select * from odd", "2BP01", "materialized view public.kept"),
        ("create rule aside as on insert to odd do also notify x", "2BP01", "rule aside"),
        ("create function row_of(o odd) returns int language sql as 'select o.id'", "2BP01", "function public.row_of"),
        ("create table holder (o odd)", "2BP01", "table public.holder"),
        ("create temporary view passing as select * from odd", "2BP01", "passing"),
        (
            "create table other (id int); create policy asks on other using (exists (select from odd))",
            "2BP01",
            "policy asks",
        ),
    ] {
        session
            .run(
                "create table odd (id int primary key, v text); insert into odd select g from generate_series(1, 50) g",
            )
            .await?;
        session.run(hang).await?;
        let refusal = session.refusal("select migrator.create_shadow('odd', 'alter column id type bigint')").await?;
        ensure!(refusal.code == code && refusal.message.contains(says), "{hang}: not {code} {says}: {refusal}");
        ensure!(refusal.detail.contains("Nothing was changed."), "{hang}: {refusal}");
        ensure!(refusal.hint.is_some(), "{hang}: no way round it: {refusal}");
        nothing_left_behind(&database).await.context(hang)?;
        session
            .run(
                "drop publication if exists all_of_it, part_of_it; drop table odd cascade; drop table if exists holder, other",
            )
            .await?;
    }
    Ok(())
}
