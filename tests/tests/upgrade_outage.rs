//! The server goes down in the middle of upgrades: batches that were acknowledged and never reached the disk, a cleanup, rows
//! that were set aside.

use migrator_tests::cluster::DURABLE;
use migrator_tests::counted::{Application, UNFIT, WRITTEN, WRONG, go_into_the_middle, lay_out};
use migrator_tests::strike::{noticed, strike};
use migrator_tests::upgrades::{Worker, states};
use migrator_tests::*;
use std::process::Command;
use std::time::{Duration, Instant};

for_each_server!(batches_behind_a_crash, a_cleanup_whoever_dies, rows_set_aside_whoever_dies);

const ROWS: i64 = 16_000;
/// Rows that were there and lack the name.
const LEFT: &str = "select count(*) from counted where not applied_upgrades @> '{twice}'";
/// Of these, those that the sweep has passed, and does not remember as skipped.
const FORGOTTEN: &str = "select count(*) from migrator.sweep_chunk k join counted c \
    on c.id <= k.key_until[1]::bigint and c.id <= k.key_after[1]::bigint \
    where k.relation = 'counted'::regclass and not c.applied_upgrades @> '{twice}' and not k.skipped @> jsonb_build_array(jsonb_build_array(c.id::text))";

/// Every row is as its name says, and the sweep remembers whatever it has not done.
async fn fits(session: &Session, when: &str) -> Result<()> {
    let unfit = session.number(UNFIT).await?;
    ensure!(unfit == 0, "{when}: {unfit} rows and their names do not fit");
    let chunks = session.number("select count(*) from migrator.sweep_chunk").await?;
    ensure!(chunks == 1, "{when}: {chunks} chunks");
    let forgotten = session.number(FORGOTTEN).await?;
    ensure!(forgotten == 0, "{when}: the sweep has passed {forgotten} rows that lack the name");
    Ok(())
}

/// Batches commit without waiting for the disk, applications do. What a crash takes of batches it takes with their progress.
async fn batches_behind_a_crash(server: Server) -> Result<()> {
    // Nothing but commits that wait for it, and the WAL writer, brings anything to the disk.
    let settings = [DURABLE.as_slice(), &[("autovacuum", "off"), ("bgwriter_lru_maxpages", "0")]].concat();
    let cluster = server.cluster(&settings).await?;
    let database = Database::create(&cluster, true).await?;
    let session = database.connect().await?;
    lay_out(&session, ROWS, 100).await?;

    // Three batches that are acknowledged and lost for sure.
    let walwriter = session.value("select pid from pg_stat_activity where backend_type = 'walwriter'").await?;
    let mut worker = Worker::new(&database, "counted", "one").await?;
    worker.until(|step| step.rows == 0).await?;
    ensure!(Command::new("kill").args(["-STOP", &walwriter]).status()?.success(), "the WAL writer cannot be stopped");
    for _ in 0..3 {
        worker.until(|step| step.rows > 0).await?;
    }
    ensure!(session.number(WRITTEN).await? == 300, "three batches did not write 300 rows");
    cluster.crash().await?;
    let session = database.connect().await?;
    fits(&session, "after a crash that took batches").await?;
    let kept = session.number(WRITTEN).await?;
    ensure!(kept < 300, "the crash took no batch: this test shows nothing");

    // In the middle of whatever it does.
    let application = Application::start(&database, ROWS);
    for crash in 1..=5 {
        application.more(5).await?;
        let session = database.connect().await?;
        let before = session.number(WRITTEN).await?;
        let mut worker = Worker::new(&database, "counted", "one").await?;
        let working = tokio::spawn(async move { worker.run().await });
        let deadline = Instant::now() + change::PATIENCE;
        while session.number(WRITTEN).await? < before + 1000 {
            ensure!(Instant::now() < deadline && !working.is_finished(), "crash {crash}: no batches are written");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        ensure!(session.number(LEFT).await? > 0, "it was too fast to be killed {crash} times");
        cluster.crash().await?;
        working.abort();
        let session = database.connect().await?;
        fits(&session, &format!("after crash {crash}")).await?;
        ensure!(session.number(LEFT).await? > 0, "crash {crash} came after the last batch");
    }
    // By the name of the one that died, whose lease need not be waited for.
    let mut worker = Worker::new(&database, "counted", "one").await?;
    let session = database.connect().await?;
    worker.complete(&session).await?;
    application.end(&session).await?;
    let wrong = session.number(WRONG).await?;
    ensure!(wrong == 0, "{wrong} rows were not upgraded exactly once");
    Ok(())
}

/// A retired name is taken off in batches, for there is another upgrade: no value changes, and the name is free only when it is off all rows.
async fn a_cleanup_whoever_dies(server: Server) -> Result<()> {
    let cluster = server.cluster(&DURABLE).await?;
    let database = Database::create(&cluster, true).await?;
    let session = database.connect().await?;
    lay_out(&session, 4000, 150).await?;
    session
        .run("alter table counted add column half bigint; select migrator.register_upgrade('counted', 'half', '{\"half\": \"x / 2\"}')")
        .await?;
    Worker::new(&database, "counted", "first").await?.complete(&session).await?;
    let how = session.value("select migrator.retire_upgrade('counted', 'twice')").await?;
    ensure!(how == "in batches", "it was retired {how}");
    let application = Application::start(&database, 4000);
    let wrong = "select count(*) from counted where x <> 2 * id or half is distinct from id or not applied_upgrades @> '{half}' or not applied_upgrades <@ '{twice,half}'";
    let named = "select count(*) from counted where applied_upgrades @> '{twice}'";
    let strikes = [
        ("step.claimed", "kill"),
        ("step.written", "error"),
        ("step.written", "kill"),
        ("step.done", "kill"),
        ("step.alone", "kill"),
        ("step.verified", "kill"),
        ("step.forgotten", "error"),
        ("step.forgotten", "kill"),
    ];
    for (point, action) in strikes {
        let batch = ["step.claimed", "step.written", "step.done"].contains(&point);
        if batch {
            go_into_the_middle(&database).await?;
        }
        strike(&cluster, &database, "counted", point, action).await?;
        let session = database.connect().await?;
        let rows = session.number(wrong).await?;
        ensure!(rows == 0, "after {action} at {point}: {rows} rows are wrong");
        let state = states(&session, "counted").await?;
        ensure!(state == "twice=retiring half=complete", "after {action} at {point}: {state}");
        let again = "select migrator.register_upgrade('counted', 'twice', '{\"x\": \"x * 2\"}', safe_in_place => true)";
        let refusal = session.refusal(again).await?;
        ensure!(refusal.code == "42710", "after {action} at {point} its name can be used: {refusal}");
        ensure!(!batch || session.number(named).await? > 0, "{point}:{action}: it did not strike in the middle");
    }
    let session = database.connect().await?;
    Worker::new(&database, "counted", "last").await?.complete(&session).await?;
    application.more(20).await?;
    application.end(&session).await?;
    ensure!(session.number(wrong).await? == 0, "rows are wrong");
    ensure!(session.number(named).await? == 0, "rows have the name still");
    ensure!(states(&session, "counted").await? == "half=complete", "{}", states(&session, "counted").await?);
    Ok(())
}

/// Rows that were set aside are tried again, or let be: all of it or nothing.
async fn rows_set_aside_whoever_dies(server: Server) -> Result<()> {
    let cluster = server.cluster(&DURABLE).await?;
    let database = Database::create(&cluster, true).await?;
    let session = database.connect().await?;
    let function = |bad: &str| {
        format!(
            "create or replace function doubled(x bigint) returns bigint immutable language plpgsql as \
             $$ begin if x = any ('{bad}') then raise exception 'not % yet', x using errcode = '22023'; end if; return x * 2; end $$"
        )
    };
    session.run(&function("{3,150,299}")).await?;
    session
        .run(
            "create table counted (id bigint primary key, x bigint not null);
             insert into counted select g, g from generate_series(1, 300) g;
             select migrator.register_upgrade('counted', 'twice', '{\"x\": \"doubled(x)\"}', safe_in_place => true)",
        )
        .await?;
    let step = Worker::new(&database, "counted", "w").await?.run().await?;
    ensure!(step.state == "waiting" && step.reason.contains("3 row(s) are set aside"), "{step:?}");
    let set_aside = "select count(*) from migrator.upgrade_failures";
    let waived = "select count(*) from migrator.upgrade_event where kind in ('waived', 'retried')";
    // One of them will do the next time.
    session.run(&function("{3,299}")).await?;
    for (call, point, found, left) in [
        ("migrator.retry_failed('counted')", "retry_failed.written", "1", 2),
        ("migrator.waive_failed('counted', 'twice')", "waive_failed.written", "2", 0),
    ] {
        let before = database.connect().await?.number(set_aside).await?;
        let told = database.connect().await?.number(waived).await?;
        for action in ["error", "kill"] {
            let witness = database.connect_as("postgres", "test:witness").await?;
            let dying = database.connect().await?;
            dying.run(&format!("set migrator.crash_at = '{point}:{action}'")).await?;
            ensure!(dying.rows(&format!("select {call}")).await.is_err(), "the crash point {point} was not passed");
            if action == "kill" {
                noticed(&witness).await?;
                cluster.wait_until_up().await?;
            }
            let session = database.connect().await?;
            ensure!(session.number(UNFIT).await? == 0, "{point}:{action}: rows and names do not fit");
            ensure!(session.number(LEFT).await? == before, "{point}:{action}: rows have the name");
            ensure!(session.number(set_aside).await? == before, "{point}:{action}: rows are not set aside any more");
            ensure!(session.number(waived).await? == told, "{point}:{action}: it is told of");
        }
        let session = database.connect().await?;
        let done = session.value(&format!("select {call}")).await?;
        ensure!(done == found && session.number(set_aside).await? == left, "{call} did {done}");
    }
    let session = database.connect().await?;
    Worker::new(&database, "counted", "last").await?.complete(&session).await?;
    let rows = "select string_agg(id || ' ' || x, ', ' order by id) from counted where x <> 2 * id or applied_upgrades <> '{twice}'";
    let rows = session.value(rows).await?;
    ensure!(rows == "3 3, 299 299", "rows that were waived are as they were, all others were upgraded once: {rows}");
    Ok(())
}
