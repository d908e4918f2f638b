//! Upgrades of rows of every kind: keys, sizes, partitions, rights, and rows that an expression does not fit.

use migrator_tests::upgrades::Worker;
use migrator_tests::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

for_each_server!(
    keys_of_every_kind,
    bad_rows_wherever_they_are,
    triggers_and_row_security,
    partitions_with_rows_moving,
    rows_of_five_megabytes,
    outputs_of_half_a_megabyte,
    the_upgrade_that_fails_is_blamed,
    rows_that_move_under_a_batch,
    conflicts_of_an_expression_s_own,
);

/// Gaps, extremes, several columns, equal values, text in another order: the sweep meets every row once.
async fn keys_of_every_kind(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run("create type mood as enum ('sad', 'so so', 'happy'); alter type mood add value 'worse' before 'sad'")
        .await?;
    let mut kinds = vec![
        (
            "a bigint primary key",
            "values (-9223372036854775808), (-5), (0), (1), (1000000000), (3000000000), (9223372036854775807)",
        ),
        ("a uuid primary key", "select gen_random_uuid() from generate_series(1, 3000)"),
        ("a int, b text, primary key (a, b)", "select g % 3, 'k' || g || ' \"'' \\' from generate_series(1, 3000) g"),
        ("a int not null, b int not null, unique (a, b)", "select 7, g from generate_series(1, 10000) g"),
        ("a text collate \"C\" primary key", "select chr(33 + g % 90) || g from generate_series(1, 3000) g"),
        (
            "a timestamptz primary key",
            "select '2000-01-01 00:00Z'::timestamptz + g * interval '1.000001 s' from generate_series(1, 3000) g",
        ),
        ("a numeric primary key", "select g / 7.0 from generate_series(1, 3000) g"),
        (
            "a float8 primary key",
            "select sqrt(g) from generate_series(1, 2000) g union all values ('-infinity'::float8), ('nan')",
        ),
        (
            "a date, b bytea, primary key (a, b)",
            "select date '2020-01-01' + g % 50, sha256(g::text::bytea) from generate_series(1, 3000) g",
        ),
        ("a bool, b char(7), primary key (b, a)", "select g % 2 = 0, 'x' || g from generate_series(1, 3000) g"),
        (
            "a mood, b int, primary key (a, b)",
            "select m, g from unnest(enum_range(null::mood)) m, generate_series(1, 600) g",
        ),
    ];
    // Equal in their own way, and in another order than their bytes; where the build knows them.
    const CASES: &str =
        "select case g % 3 when 0 then 'Über' when 1 then 'ZOË ' else 'a_b' end || g from generate_series(1, 3000) g";
    if session.number("select count(*) from pg_available_extensions where name = 'citext'").await? == 1 {
        session.run("create extension citext").await?;
        kinds.push(("a citext primary key", CASES));
        kinds.push((
            "a citext, b int, primary key (a, b)",
            "select (array['x', 'Y', 'y'])[1 + g % 3] || g / 30, g from generate_series(1, 3000) g",
        ));
    }
    let soft = "create collation soft (provider = icu, locale = 'und-u-ks-level2', deterministic = false)";
    if session.run(soft).await.is_ok() {
        kinds.push(("a text collate \"de-x-icu\" primary key", CASES));
        kinds.push(("a text collate soft primary key", CASES));
    }
    for (number, (columns, rows)) in kinds.iter().enumerate() {
        let table = format!("\"Order Items; -- {number}\"");
        session.run(&format!("create table {table} ({columns})")).await?;
        session.run(&format!("alter table {table} add column done int")).await?;
        let names = if columns.contains(", b ") { "a, b" } else { "a" };
        session.run(&format!("insert into {table} ({names}) {rows}")).await?;
        session.run(&format!("analyze {table}")).await?;
        session
            .run(&format!("select migrator.register_upgrade('{table}', 'once', '{{\"done\": \"coalesce(done, 0) + 1\"}}', safe_in_place => true, batch_size => 700)"))
            .await?;
        // In another session with other settings than the keys were written with.
        let mut worker = Worker::new(&database, &table.replace('\'', "''"), "w").await?;
        worker
            .session()
            .run("set DateStyle = 'German'; set TimeZone = 'Asia/Tokyo'; set extra_float_digits = -15")
            .await?;
        let step = worker.run().await?;
        ensure!(step.state == "complete", "{columns}: {step:?}");
        let wrong = session.number(&format!("select count(*) from {table} where done is distinct from 1")).await?;
        ensure!(wrong == 0, "{columns}: {wrong} rows were not upgraded exactly once");
    }
    Ok(())
}

/// First, last, sixty in a row, one in the middle: the others are done, these are named with what they were.
async fn bad_rows_wherever_they_are(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run("create table article (id bigint generated always as identity primary key, headline text not null, content text, size int, summary text, n int)")
        .await?;
    session.run("insert into article (headline, content) select 'h', case when g in (1, 1500, 3000) or g between 700 and 759 then 'bad' else g::text end from generate_series(1, 3000) g").await?;
    session
        .run("select migrator.register_upgrade('article', 'n', '{\"n\": \"coalesce(length(headline), 0)\"}')")
        .await?;
    session.run("select migrator.register_upgrade('article', 'size', '{\"size\": \"content::int\"}')").await?;
    session.run("select migrator.register_upgrade('article', 'summary', '{\"summary\": \"upper(headline)\"}')").await?;
    let mut worker = Worker::new(&database, "article", "w").await?;
    let step = worker.run().await?;
    ensure!(step.state == "waiting" && step.reason.contains("63 row(s) are set aside"), "{step:?}");
    let good = session.number("select count(*) from article where content <> 'bad' and size::text = content and summary = 'H' and applied_upgrades = '{n,size,summary}'").await?;
    ensure!(good == 2937, "{good} good rows are done of 2,937");
    let bad = session.number("select count(*) from article where content = 'bad' and n = 1 and size is null and summary is null and applied_upgrades = '{n}'").await?;
    ensure!(bad == 63, "{bad} bad rows have what comes before the failing upgrade, and no later one");
    let told = session.row("select count(*), min(sqlstate), bool_and(message like '%bad%'), bool_and(\"row\" ->> 'content' = 'bad') from migrator.upgrade_failure").await?;
    ensure!(told == ["63", "22P02", "t", "t"], "{told:?}");
    // An application mends some, and some go.
    session.run("update article set content = '5' where content = 'bad' and id <> 1500; delete from article where id = 1500").await?;
    worker.complete(&session).await?;
    ensure!(
        session.number("select count(*) from migrator.upgrade_failure").await? == 0,
        "mended rows are still told of"
    );

    // All of them bad: the run stops at its budget.
    session.run("create table worse (id int primary key, v text, w int); insert into worse select g, 'bad' from generate_series(1, 5000) g").await?;
    session.run("select migrator.register_upgrade('worse', 'w', '{\"w\": \"v::int\"}', batch_size => 200)").await?;
    let mut worker = Worker::new(&database, "worse", "w").await?;
    let step = worker.run().await?;
    ensure!(step.state == "blocked" && step.reason.contains("rows failed, more than the 100 that may"), "{step:?}");
    let failed =
        session.number("select count(*) from migrator.upgrade_failure where relation = 'worse'::regclass").await?;
    ensure!((100..=400).contains(&failed), "{failed} rows failed before it stopped");
    // What is wrong is the program: it stops at once.
    session.run("create table other (id int primary key, v text, w int); insert into other select g, 'bad' from generate_series(1, 500) g").await?;
    session.run("create function broken(text) returns int immutable language plpgsql as 'begin return (select x from nowhere); end'").await?;
    session.run("select migrator.register_upgrade('other', 'w', '{\"w\": \"broken(v)\"}')").await?;
    let mut worker = Worker::new(&database, "other", "w").await?;
    let step = worker.run().await?;
    ensure!(step.state == "blocked" && step.reason.contains("nowhere"), "{step:?}");
    ensure!(
        session.number("select count(*) from migrator.upgrade_failure where relation = 'other'::regclass").await? == 0,
        "rows were blamed"
    );
    // Writers go on: what cannot be derived is left for later.
    ensure!(session.run("update other set v = 'new' where id = 1").await? == 1, "an application's statement failed");
    session
        .run("create or replace function broken(text) returns int immutable language sql as 'select length($1)'")
        .await?;
    session.run("select migrator.resume_upgrades('other')").await?;
    worker.complete(&session).await?;
    Ok(())
}

async fn triggers_and_row_security(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create role writer_of_rows; create role owner_of_rows; grant create, usage on schema public to owner_of_rows;
             set role owner_of_rows;
             create table rows_of_all (id int primary key, tenant int not null, v text, w int, touched int not null default 0);
             insert into rows_of_all select g, g % 2, g::text from generate_series(1, 1000) g;
             alter table rows_of_all enable row level security;
             create policy mine on rows_of_all using (tenant = 1) with check (tenant = 1);
             grant all on rows_of_all to writer_of_rows;
             create function touch() returns trigger language plpgsql as 'begin new.touched := old.touched + 1; return new; end';
             create trigger touch before update on rows_of_all for each row execute function touch();
             create function swallow() returns trigger language plpgsql as 'begin if old.id = 500 then return null; end if; return new; end';
             create trigger swallow before update on rows_of_all for each row execute function swallow();
             reset role",
        )
        .await?;
    session.run("select migrator.register_upgrade('rows_of_all', 'w', '{\"w\": \"length(v)\"}')").await?;
    let mut worker = Worker::new(&database, "rows_of_all", "w").await?;
    let step = worker.run().await?;
    ensure!(step.state == "waiting" && step.reason.starts_with("1 row(s)"), "{step:?}");
    let told = session.row("select key ->> 'id', message from migrator.upgrade_failure").await?;
    ensure!(told[0] == "500" && told[1].contains("trigger"), "{told:?}");
    let done = session
        .row("select count(*) filter (where w = length(v)), count(*) filter (where touched = 1) from rows_of_all")
        .await?;
    ensure!(done == ["999", "999"], "rows of all tenants are done, and other triggers fire once: {done:?}");
    // Whoever reads and writes sees and touches what the policy lets him, upgraded or not.
    session.run("set role writer_of_rows").await?;
    let seen = session.row("select count(*), count(w) from rows_of_all__current").await?;
    ensure!(seen == ["500", "500"], "{seen:?}");
    session.run("update rows_of_all set v = 'four' where id = 1").await?;
    ensure!(
        session.value("select w from rows_of_all where id = 1").await? == "4",
        "derived for a writer with few rights"
    );
    session.run("reset role").await?;
    session.run("drop owned by writer_of_rows; drop role writer_of_rows").await?;
    session.run("drop table rows_of_all cascade; drop owned by owner_of_rows cascade; drop role owner_of_rows").await?;
    Ok(())
}

async fn partitions_with_rows_moving(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table parted (id int, part int, v text, w int, primary key (id, part)) partition by list (part);
             create table parted_1 partition of parted for values in (1);
             create table parted_2 (w int, v text, part int not null, id int not null);
             alter table parted attach partition parted_2 for values in (2);
             insert into parted select g, 1 + g % 2, g::text from generate_series(1, 3000) g",
        )
        .await?;
    session.run("select migrator.register_upgrade('parted', 'w', '{\"w\": \"length(v)\"}', batch_size => 200)").await?;
    let mut worker = Worker::new(&database, "parted", "w").await?;
    worker.until(|step| step.rows > 0).await?;
    // Rows move behind and before the sweep, with and without their names.
    session.run("update parted set part = 3 - part where id % 3 = 0").await?;
    session.run("set session_replication_role = replica; update parted set v = v || '0' where id % 5 = 0; reset session_replication_role").await?;
    session
        .run("create table parted_3 partition of parted for values in (3); insert into parted values (5000, 3, 'abc')")
        .await?;
    worker.complete(&session).await?;
    let wrong = session
        .number("select count(*) from parted where w is distinct from length(v) or applied_upgrades <> '{w}'")
        .await?;
    ensure!(wrong == 0, "{wrong} rows are wrong");
    ensure!(session.number("select count(*) from parted__current").await? == 3001, "the view misses rows");
    Ok(())
}

async fn rows_of_five_megabytes(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run("create table big (id int primary key, v text, w int); alter table big alter v set storage external")
        .await?;
    session
        .run("insert into big select g, repeat(g::text, 5000000 / length(g::text)) from generate_series(1, 12) g")
        .await?;
    session.run("select migrator.register_upgrade('big', 'w', '{\"w\": \"length(v)\"}')").await?;
    let before = session.value("select pg_current_wal_insert_lsn()").await?;
    let mut worker = Worker::new(&database, "big", "w").await?;
    worker.complete(&session).await?;
    ensure!(session.number("select count(*) from big where w < 4999998 or w is null").await? == 0, "rows are wrong");
    // What the upgrade does not touch is not written again.
    let wal =
        session.number(&format!("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '{before}')::bigint")).await?;
    ensure!(wal < 5_000_000, "{wal} bytes of WAL for twelve numbers");
    Ok(())
}

/// What a batch writes is bounded, however few its rows are and however little was read for them.
async fn outputs_of_half_a_megabyte(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table wide (id int primary key, v text, w text); alter table wide alter w set storage external;
             insert into wide select g, md5(g::text) from generate_series(1, 200) g; analyze wide",
        )
        .await?;
    session.run("select migrator.register_upgrade('wide', 'w', '{\"w\": \"repeat(v, 16000)\"}')").await?;
    let mut worker = Worker::new(&database, "wide", "w").await?;
    let (mut most, mut all) = (0, 0);
    loop {
        let before = session.value("select pg_current_wal_insert_lsn()").await?;
        let step = worker.step().await?;
        let lsn = format!("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '{before}')::bigint");
        let wal = session.number(&lsn).await?;
        (most, all) = (most.max(wal), all + wal);
        if step.done {
            ensure!(step.state == "complete", "{step:?}");
            break;
        }
    }
    ensure!(
        session.number("select count(*) from wide where w is distinct from repeat(v, 16000)").await? == 0,
        "rows are wrong"
    );
    ensure!(all > 100_000_000, "only {all} bytes of WAL were written in all: this test shows nothing");
    ensure!(most < 30_000_000, "one transaction wrote {most} bytes of WAL");
    Ok(())
}

/// Of several that a row lacks: those before it are the row's, those behind it wait, whether its expression fails or its value is refused.
async fn the_upgrade_that_fails_is_blamed(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table t (id int primary key, a text, u1 text, u2 text, u3 int, u4 text);
             create unique index on t (u2) where u2 is not null;
             insert into t select g, g::text from generate_series(1, 300) g;
             update t set a = 'no number' where id = 5;
             update t set a = '7' where id = 250;
             select migrator.register_upgrade('t', 'one', '{\"u1\": \"a\"}');
             select migrator.register_upgrade('t', 'two', '{\"u2\": \"a\"}');
             select migrator.register_upgrade('t', 'three', '{\"u3\": \"a::int\"}');
             select migrator.register_upgrade('t', 'four', '{\"u4\": \"a\"}')",
        )
        .await?;
    let mut worker = Worker::new(&database, "t", "w").await?;
    let step = worker.run().await?;
    ensure!(step.state == "waiting" && step.reason.contains("2 row(s) are set aside"), "{step:?}");
    let told = session
        .value("select string_agg(key ->> 'id' || ' ' || upgrade || ' ' || sqlstate, ', ' order by upgrade) from migrator.upgrade_failures")
        .await?;
    let blamed = told.replace("250 two", "7 two");
    ensure!(blamed == "5 three 22P02, 7 two 23505", "{told}");
    let rows = session
        .value("select string_agg(coalesce(u1, '-') || ' ' || coalesce(u2, '-') || ' ' || coalesce(u3::text, '-') || ' ' || coalesce(u4, '-') || ' ' || applied_upgrades::text, ', ' order by applied_upgrades) from t where not applied_upgrades @> '{four}'")
        .await?;
    ensure!(rows == "7 - - - {one}, no number no number - - {one,two}", "{rows}");
    Ok(())
}

/// PostgreSQL fails a statement that comes to lock a row which has just moved to another partition, though it skips those that are
/// locked. Nobody tries again for whoever calls it in psql.
async fn rows_that_move_under_a_batch(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table parted (id int, part int, v text, w int, primary key (id, part)) partition by list (part);
             create table parted_1 partition of parted for values in (1);
             create table parted_2 partition of parted for values in (2);
             insert into parted select g, 1 + g % 2, g::text from generate_series(1, 30000) g;
             select migrator.register_upgrade('parted', 'w', '{\"w\": \"length(v)\"}')",
        )
        .await?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut movers = vec![];
    for number in 0..3 {
        let (mover, stopped) = (database.connect().await?, Arc::clone(&stop));
        movers.push(tokio::spawn(async move {
            let (mut moved, mut at) = (0, number * 10_000);
            while !stopped.load(Ordering::Relaxed) {
                at = (at + 40) % 30_000;
                let rows = format!("id > {at} and id <= {at} + 40");
                match mover.run(&format!("update parted set part = 3 - part where {rows}")).await {
                    Ok(rows) => moved += rows,
                    Err(error) if error.is_worth_retrying() => {}
                    Err(error) => return Err(error),
                }
            }
            Ok::<_, SqlError>(moved)
        }));
    }
    for _ in 0..5 {
        session.run("begin; lock table parted in share row exclusive mode; set local session_replication_role = replica; alter table parted disable trigger \"~migrator_guard\"; update parted set applied_upgrades = '{}', w = null; alter table parted enable always trigger \"~migrator_guard\"; commit").await?;
        session.run("select migrator.verify_upgrades('parted')").await?;
        session.run("call migrator.run_upgrades('parted')").await?;
    }
    stop.store(true, Ordering::Relaxed);
    for mover in movers {
        ensure!(mover.await?? > 50, "hardly a row was moved");
    }
    let wrong = session
        .number("select count(*) from parted where w is distinct from length(v) or applied_upgrades <> '{w}'")
        .await?;
    ensure!(wrong == 0, "{wrong} rows are wrong");
    Ok(())
}

/// An expression that says of itself that it conflicts with somebody would be tried for ever.
async fn conflicts_of_an_expression_s_own(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create function touchy(int) returns int immutable language plpgsql as
             $$ begin if $1 % 100 = 7 then raise 'not now' using errcode = '40001'; end if; return $1; end $$;
             create table touchy (id int primary key, n int); insert into touchy select g from generate_series(1, 1000) g;
             select migrator.register_upgrade('touchy', 'n', '{\"n\": \"touchy(id)\"}', batch_size => 300)",
        )
        .await?;
    let mut worker = Worker::new(&database, "touchy", "w").await?;
    let step = worker.run().await?;
    ensure!(step.reason.contains("10 row(s) are set aside"), "{step:?}");
    let failed = session.row("select count(*), min(sqlstate), max(sqlstate) from migrator.upgrade_failures").await?;
    ensure!(failed == ["10", "40001", "40001"], "{failed:?}");
    ensure!(session.number("select count(*) from touchy where n = id").await? == 990, "other rows are not done");
    Ok(())
}
