//! INSERT by the page: the same rows and the same refusals as PostgreSQL's own INSERT, or that one itself.

#![allow(clippy::unwrap_used)]

#[pgrx::pg_schema]
mod tests {
    use crate::catalog::attempt::attempt;
    use crate::catalog::bulk;
    use pgrx::prelude::*;

    fn oid(table: &str) -> pgrx::pg_sys::Oid {
        Spi::get_one(&format!("select '{table}'::regclass::oid")).unwrap().unwrap()
    }

    fn number(query: &str) -> i64 {
        Spi::get_one(query).unwrap().unwrap()
    }

    fn logged() -> i64 {
        number("select (pg_current_wal_insert_lsn() - '0/0')::bigint")
    }

    /// Runs the statement both ways, into `paged` and into `plain`, and compares what is there. Returns the rows, and
    /// how much was logged by either way.
    #[track_caller]
    fn same(columns: &str, query: &str) -> (u64, i64, i64) {
        let (table, before) = (oid("paged"), logged());
        let rows =
            bulk::insert(table, &format!("insert into paged ({columns}) overriding system value {query}")).unwrap();
        let between = logged();
        Spi::run(&format!("insert into plain ({columns}) overriding system value {query}")).unwrap();
        let after = logged();
        let different = "select count(*) from (select p::text from paged p except all select p::text from plain p) q";
        assert_eq!(number(different), 0, "{query}");
        assert_eq!(number("select count(*) from paged"), number("select count(*) from plain"));
        (rows, between - before, after - between)
    }

    #[pg_test]
    fn bulk_writes_what_insert_writes() {
        Spi::run(
            "create table source as select g as id, g % 7 as v, case when g % 50 = 0 then repeat(md5(g::text), 4000) end as big, \
                 'x' as word from generate_series(1, 3500) g; \
             create table paged (gone int, word varchar(3), id bigint not null check (id > 0), d numeric(6, 2) default 4, big text, twice int); \
             alter table paged drop column gone; \
             create table plain (like paged including all)",
        )
        .unwrap();
        assert_eq!(same("id, big, word, twice", "select id, big, word, v * 2 from source").0, 3500);
        assert_eq!(number("select count(*) from paged where length(big) = 128000"), 70);
        // Other tests write to the same log meanwhile: what is least is the table's own.
        let (mut by_page, mut by_row) = (i64::MAX, i64::MAX);
        for _ in 0..5 {
            let (_, page, row) = same("id, word", "select g + 5000, 'a' from generate_series(1, 5000) g");
            (by_page, by_row) = (by_page.min(page), by_row.min(row));
        }
        assert!(by_page * 3 < by_row * 2, "{by_page} bytes were logged by the page, {by_row} by the row");
        assert_eq!(same("id, word", "select 1, 'a' where false").0, 0);
    }

    #[pg_test]
    fn bulk_refuses_what_insert_refuses() {
        Spi::run("create table paged (id int not null check (id > 0), word varchar(3), part bit(3))").unwrap();
        let table = oid("paged");
        for (code, columns, query) in [
            ("22001", "id, word", "select g, 'four' from generate_series(1, 2000) g"),
            ("22026", "id, part", "select 1, '10101'::varbit"),
            ("23502", "id", "select nullif(g, 1500) from generate_series(1, 2000) g"),
            ("23514", "id", "select g - 1500 from generate_series(1, 2000) g"),
            ("22012", "id", "select 1 / (g - 1500) + 10 from generate_series(1, 2000) g"),
        ] {
            let statement = format!("insert into paged ({columns}) {query}");
            let refused = attempt(|| bulk::insert(table, &statement)).unwrap_err();
            assert_eq!(refused.code, code, "{statement}: {}", refused.message);
            assert_eq!(number("select count(*) from paged"), 0, "{statement}");
        }
        Spi::run("create role bulk_stranger; grant usage on schema public to bulk_stranger").unwrap();
        Spi::run("set local role bulk_stranger").unwrap();
        let refused = attempt(|| bulk::insert(table, "insert into paged (id) select 1")).unwrap_err();
        assert_eq!(refused.code, "42501");
    }

    #[pg_test]
    fn bulk_leaves_to_insert_what_it_cannot_do() {
        Spi::run(
            "create table paged (id int primary key, v int, twice int generated always as (v * 2) stored); \
             create table plain (like paged including all)",
        )
        .unwrap();
        assert_eq!(same("id, v", "select g, g from generate_series(1, 50) g").0, 50);
        assert_eq!(number("select sum(twice) from paged"), 2550);
        Spi::run("set local enable_seqscan = off").unwrap();
        assert_eq!(number("select count(*) from paged where id = 7"), 1);

        Spi::run("create table parted (id int) partition by range (id); create table parted_1 partition of parted for values from (0) to (10)")
            .unwrap();
        assert_eq!(bulk::insert(oid("parted"), "insert into parted select 3").unwrap(), 1);
        assert_eq!(
            attempt(|| bulk::insert(oid("parted_1"), "insert into parted_1 select 30")).unwrap_err().code,
            "23514"
        );

        Spi::run(
            "create table heard (id int); create table ears (n bigint); \
             create function hear() returns trigger language plpgsql as 'begin insert into ears values (new.id); return new; end'; \
             create trigger hears before insert on heard for each row execute function hear()",
        )
        .unwrap();
        assert_eq!(bulk::insert(oid("heard"), "insert into heard select 8").unwrap(), 1);
        assert_eq!(number("select sum(n)::bigint from ears"), 8);
    }
}
