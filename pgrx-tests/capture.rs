//! Capture: whatever writes a row, its key is in the log.

#![allow(clippy::unwrap_used)]

#[pgrx::pg_schema]
mod tests {
    use crate::capture::log::{self, Direction};
    use crate::capture::switch;
    use crate::catalog::relation::Relation;
    use migrator_core::ident::Ident;
    use pgrx::prelude::*;

    const CHANGE: i64 = 77;

    fn run(sql: &str) {
        Spi::run(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    fn table(name: &str) -> Relation {
        let oid = Spi::get_one::<pg_sys::Oid>(&format!("select '{name}'::regclass::oid")).unwrap().unwrap();
        Relation::get(u32::from(oid)).unwrap()
    }

    fn idents(names: &[&str]) -> Vec<Ident> {
        names.iter().map(|name| Ident::from(*name)).collect()
    }

    /// A log for the keys of this table, and capture on.
    fn watch(name: &str, key: &[&str]) {
        log::create_log(CHANGE, Direction::Forward, &table(name), &idents(key)).unwrap();
        switch_on(name, key);
    }

    fn switch_on(name: &str, key: &[&str]) {
        switch::switch_on(CHANGE, Direction::Forward, &table(name), &idents(key), None).unwrap();
    }

    /// The distinct rows of the log, sorted, and the log is empty again. `-` is the marker of a key of one column.
    fn taken() -> String {
        let mut rows = Vec::new();
        for segment in
            log::segments(CHANGE, Direction::Forward).into_iter().chain([log::marker(CHANGE, Direction::Forward)])
        {
            let found = Spi::get_one::<Vec<String>>(&format!(
                "with gone as (delete from {segment} returning *) select array_agg(coalesce(nullif(g::text, '()'), '-')) from gone g"
            ));
            rows.extend(found.unwrap().unwrap_or_default());
        }
        rows.sort();
        rows.dedup();
        rows.join(" ")
    }

    #[track_caller]
    fn logs(sql: &str, expected: &str) {
        run(sql);
        assert_eq!(taken(), expected, "after {sql}");
    }

    #[pg_test]
    fn capture_logs_every_kind_of_write() {
        run("create table public.t (id int primary key, v text)");
        watch("public.t", &["id"]);
        logs("insert into public.t select i, 'a' from generate_series(1, 5) i", "(1) (2) (3) (4) (5)");
        logs("update public.t set v = 'b' where id > 3", "(4) (5)");
        logs("update public.t set id = 10 where id = 1", "(1) (10)");
        logs("delete from public.t where id = 2", "(2)");
        logs("update public.t set v = 'c' where false", "");
        logs("insert into public.t values (3, 'x'), (6, 'x') on conflict (id) do update set v = excluded.v", "(3) (6)");
        logs("insert into public.t values (3, 'y'), (7, 'y') on conflict do nothing", "(7)");
        logs("copy public.t from program 'printf \"20\\tx\\n21\\tx\\n\"'", "(20) (21)");
        logs(
            "with gone as (delete from public.t where id = 20 returning id), moved as (update public.t set id = 22 where id = 21 returning id) \
             insert into public.t select id + 100, 'w' from gone",
            "(120) (20) (21) (22)",
        );
        logs("update public.t a set v = b.v from public.t b where a.id = 10 and b.id = 3", "(10)");
        logs("truncate public.t", "-");
        assert_eq!(taken(), "");
    }

    #[cfg(not(feature = "pg14"))]
    #[pg_test]
    fn capture_logs_merge() {
        run("create table public.t (id int primary key, v text); insert into public.t values (1, 'a'), (2, 'b')");
        watch("public.t", &["id"]);
        logs(
            "merge into public.t using (values (1), (2), (3)) s(id) on s.id = t.id when matched and t.id = 1 then delete \
             when matched then update set id = 12 when not matched then insert values (s.id, 'n')",
            "(1) (12) (2) (3)",
        );
    }

    #[pg_test]
    fn capture_logs_what_triggers_and_foreign_keys_write() {
        run("create table public.parent (id int primary key); \
             create table public.t (id int primary key, p int references public.parent on update cascade on delete cascade); \
             insert into public.parent values (1), (2); insert into public.t values (10, 1), (11, 1), (20, 2), (21, null)");
        watch("public.t", &["id"]);
        logs("update public.parent set id = id + 5", "(10) (11) (20)");
        logs("delete from public.parent", "(10) (11) (20)");

        run("create function public.before() returns trigger language plpgsql as \
             $$ begin if new.id < 0 then return null; end if; new.id := new.id * 2; return new; end $$; \
             create trigger b before insert or update on public.t for each row execute function public.before()");
        logs("insert into public.t values (30), (-1)", "(60)");
        logs("update public.t set id = 31 where id = 60", "(60) (62)");
        logs("update public.t set id = -1 where id = 62", "");

        run("create function public.after() returns trigger language plpgsql as \
             $$ begin if new.id < 1000 then insert into public.t values (new.id + 500); end if; return null; end $$; \
             create trigger a after insert on public.t for each row execute function public.after()");
        logs("insert into public.t values (200)", "(1800) (400)");
        run("drop trigger a on public.t; \
             create function public.reader() returns trigger language plpgsql as \
             $$ begin perform count(*) from old_rows; perform id from new_rows limit 1; return null; end $$; \
             create trigger a after update on public.t referencing old table as old_rows new table as new_rows \
             for each statement execute function public.reader(); drop trigger b on public.t");
        logs("update public.t set p = null", "(1800) (21) (400) (62)");
    }

    #[pg_test]
    fn capture_takes_part_in_subtransactions() {
        run("create table public.t (id int primary key)");
        watch("public.t", &["id"]);
        logs(
            "do $$ begin insert into public.t values (1); \
             begin insert into public.t values (2); raise exception 'no'; exception when raise_exception then null; end; \
             for i in 3 .. 80 loop begin insert into public.t values (i); if i > 4 then raise exception 'no'; end if; \
             exception when raise_exception then null; end; end loop; end $$",
            "(1) (3) (4)",
        );
    }

    #[pg_test]
    fn capture_copies_keys_of_every_shape() {
        run(
            "create domain public.code as text not null check (value <> ''); create collation public.nocase (provider = libc, locale = 'C'); \
             create table public.\"Order Items; --\" (dropped int, \"the \"\"key\" public.code collate public.nocase, gone text, \
             twice int generated always as (n * 2) stored, v text, n int, c char(4), u uuid); \
             alter table public.\"Order Items; --\" drop column dropped, drop column gone, alter \"the \"\"key\" set storage external",
        );
        watch("public.\"Order Items; --\"", &["the \"key", "twice", "c", "u"]);
        logs(
            "insert into public.\"Order Items; --\" values ('k', default, 'v', 21, 'ab', '00000000-0000-0000-0000-000000000001')",
            "(k,42,\"ab  \",00000000-0000-0000-0000-000000000001)",
        );
        logs(
            "update public.\"Order Items; --\" set v = 'w', u = null",
            "(k,42,\"ab  \",) (k,42,\"ab  \",00000000-0000-0000-0000-000000000001)",
        );
        run(
            "update public.\"Order Items; --\" set \"the \"\"key\" = (select string_agg(md5(i::text), '') from generate_series(1, 1000) i)",
        );
        taken();
        run("update public.\"Order Items; --\" set v = 'x'");
        for segment in log::segments(CHANGE, Direction::Forward) {
            run(&format!(
                "create table if not exists public.found (k text); insert into public.found select \"the \"\"key\" from {segment}"
            ));
        }
        let same = Spi::get_one::<bool>(
            "select count(*) = 1 and bool_and(f.k = i.\"the \"\"key\") from public.found f, public.\"Order Items; --\" i",
        );
        assert_eq!(same, Ok(Some(true)), "a key in TOAST is copied whole, and once where it did not change");
    }

    #[pg_test]
    fn capture_keeps_keys_right_when_transition_tables_spill() {
        run("create table public.t (id text primary key, v text); set local work_mem = '64kB'");
        watch("public.t", &["id"]);
        run("insert into public.t select 'key number ' || i, repeat('x', 200) from generate_series(1, 5003) i");
        run("create table public.seen (id text, n int)");
        let gather = || {
            for segment in log::segments(CHANGE, Direction::Forward) {
                run(&format!(
                    "insert into public.seen select id, count(*) from {segment} group by id; delete from {segment}"
                ));
            }
        };
        gather();
        let matching = "select (select count(*) from public.seen s join public.t using (id) where n = 1)::int8";
        assert_eq!(Spi::get_one::<i64>(matching), Ok(Some(5003)));
        run("truncate public.seen; update public.t set v = 'y'");
        gather();
        assert_eq!(Spi::get_one::<i64>(matching), Ok(Some(5003)));
        run("truncate public.seen; update public.t set id = id || '!'");
        gather();
        assert_eq!(Spi::get_one::<i64>("select count(distinct id) from public.seen"), Ok(Some(10006)));
    }

    #[pg_test]
    fn capture_follows_rows_between_partitions() {
        run("create table public.t (id int, p int, primary key (id, p)) partition by list (p); \
             create table public.one partition of public.t for values in (1); \
             create table public.two (junk int, p int not null, id int not null); alter table public.two drop column junk; \
             alter table public.t attach partition public.two for values in (2)");
        watch("public.t", &["id", "p"]);
        switch_on("public.one", &["id", "p"]);
        switch_on("public.two", &["id", "p"]);
        logs("insert into public.t values (1, 1), (2, 2)", "(1,1) (2,2)");
        logs("insert into public.two (id, p) values (3, 2)", "(3,2)");
        logs("update public.t set p = 3 - p", "(1,1) (1,2) (2,1) (2,2) (3,1) (3,2)");
        logs("delete from public.one where id = 2", "(2,1)");
        logs("truncate public.two", "(,)");
        run("create function public.never() returns trigger language plpgsql as $$ begin return null; end $$; \
             create trigger n before insert on public.two for each row when (new.id = 3) execute function public.never(); \
             insert into public.one values (4, 1), (5, 1)");
        taken();
        logs("update public.t set p = 2", "(3,1) (4,1) (4,2) (5,1) (5,2)");
    }

    #[pg_test]
    fn capture_needs_no_right_of_the_writer_and_no_role_escapes_it() {
        run(
            "create table public.t (id int primary key); create role writer; grant insert, update, select on public.t to writer",
        );
        watch("public.t", &["id"]);
        run("set local role writer");
        run("insert into public.t values (1)");
        run("reset role; set local session_replication_role = replica");
        run("insert into public.t values (2)");
        run("update public.t set id = 3 where id = 2");
        assert_eq!(taken(), "(1) (2) (3)");
    }

    #[pg_test]
    fn capture_marks_the_log_when_the_key_changed_its_type() {
        run("create table public.t (id int primary key, v text)");
        watch("public.t", &["id"]);
        run("alter table public.t alter id type bigint");
        logs("insert into public.t values (1), (2)", "-");
        run("alter table public.t drop column id");
        logs("update public.t set v = 'x'", "-");
    }

    #[pg_test]
    fn capture_without_a_log_lets_the_application_write() {
        run("create table public.t (id int primary key)");
        watch("public.t", &["id"]);
        let before = switch::fingerprint(CHANGE, &table("public.t")).unwrap();
        log::drop_log(CHANGE, Direction::Forward).unwrap();
        run("insert into public.t values (1)");
        run("truncate public.t");
        assert_eq!(before, switch::fingerprint(CHANGE, &table("public.t")).unwrap());
        log::drop_log(CHANGE, Direction::Forward).unwrap();
    }

    #[pg_test]
    fn capture_triggers_that_somebody_touched_are_noticed() {
        run("create table public.t (id int primary key)");
        watch("public.t", &["id"]);
        let mut last = switch::fingerprint(CHANGE, &table("public.t")).unwrap();
        for touch in [
            "alter table public.t disable trigger user; alter table public.t enable trigger user",
            "alter table public.t enable always trigger migrator_capture_77_update",
            "alter trigger migrator_capture_77_delete on public.t rename to d",
            "alter trigger d on public.t rename to migrator_capture_77_delete",
            "drop trigger migrator_capture_77_truncate on public.t",
        ] {
            run(touch);
            let now = switch::fingerprint(CHANGE, &table("public.t")).unwrap();
            assert_ne!(last, now, "after {touch}");
            last = now;
        }
        assert!(last.contains("missing"));
        switch::switch_off(CHANGE, &table("public.t")).unwrap();
        assert_eq!(
            Spi::get_one::<i64>("select count(*) from pg_trigger where tgrelid = 'public.t'::regclass"),
            Ok(Some(0))
        );
        assert!(switch::switch_on(CHANGE, Direction::Forward, &table("public.t"), &idents(&["no"]), None).is_err());
    }

    #[pg_test]
    fn capture_fences_nobody_for_a_swap_that_is_visible_or_of_another_cluster() {
        run("create table public.t (id int primary key)");
        log::create_log(CHANGE, Direction::Reverse, &table("public.t"), &idents(&["id"])).unwrap();
        let own = Spi::get_one::<i64>("select pg_current_xact_id()::text::int8").unwrap().unwrap().unsigned_abs();
        for swap in [3, own - 1, own, own + 1_000_000] {
            switch::switch_on(CHANGE, Direction::Reverse, &table("public.t"), &idents(&["id"]), Some(swap)).unwrap();
            run(&format!("insert into public.t values ({})", swap % 1_000_000_007));
            run("truncate public.t");
            switch::switch_off(CHANGE, &table("public.t")).unwrap();
        }
    }

    #[pg_test]
    fn capture_segments_turn_with_the_clock() {
        assert_eq!([0, 9, 10, 29, 30, -1].map(log::segment_at), [0, 0, 1, 2, 0, 2]);
    }

    #[pg_test(error = "function migrator._capture was not called as a trigger")]
    fn capture_is_a_trigger_only() {
        run(
            "create function public.f() returns int language c as '$libdir/migrator', 'migrator_capture'; select public.f()",
        );
    }
}
