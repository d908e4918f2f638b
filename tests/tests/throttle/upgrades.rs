//! What is no reason to hold upgrades of rows, or to go slow with them: that somebody waits for them, and their own VACUUM. And
//! what a hold is for those who work by hand.

use crate::watched::{Watched, until};
use migrator_tests::*;
use std::time::Instant;

const BY_APPLICATION: &str = "create table article (id int primary key, headline text, words int);
    insert into article select g, 'a headline' from generate_series(1, 40) g;
    select migrator.register_upgrade('article', 'words', inputs => '{headline}', outputs => '{words}')";

/// An application migration waits for longer than a snapshot may be old.
pub async fn who_waits_for_upgrades_does_not_hold_them(server: Server) -> Result<()> {
    let cluster = server.cluster(&[("autovacuum", "off")]).await?;
    let watched = Watched::of_upgrades(&cluster).await?;
    let session = &watched.session;
    session.run("delete from busy where id > 60").await?;
    watched.limit("'snapshot_age', '100 ms'").await?;
    let migration = watched.database.connect_as("postgres", "migration").await?;
    let waits = tokio::spawn(async move {
        migration.run("select migrator.ensure_upgraded('busy', 'length', wait => '1 hour')").await
    });
    until(
        session,
        "select count(*) from pg_stat_activity where application_name = 'migration' and query like '%ensure_upgraded%' and backend_xmin is not null and xact_start < clock_timestamp() - interval '300 ms'",
    )
    .await?;
    let advance = watched.look().await?;
    ensure!(advance.reason.is_empty() && advance.rows == 1, "held by who waits for it: {advance:?}");
    let deadline = Instant::now() + change::PATIENCE;
    loop {
        let step = watched.step().await?;
        if step.done {
            ensure!(step.state == "complete", "{step:?}");
            break;
        }
        ensure!(Instant::now() < deadline, "never complete: {step:?}");
    }
    waits.await??;

    // A session that had rows handed out, and idles in its transaction, does keep VACUUM back.
    session.run(BY_APPLICATION).await?;
    let idle = watched.database.connect_as("postgres", "idle").await?;
    idle.run("begin; select * from migrator.select_batch('article', 'words', 1)").await?;
    // Its open transaction may hold what all share: then each looks for itself.
    let words = format!("session {} (idle) has been in a transaction", idle.pid);
    let deadline = Instant::now() + change::PATIENCE;
    while !session.value("select reason from migrator.step('article')").await?.contains(&words) {
        ensure!(Instant::now() < deadline, "nobody sees who is idle in a transaction");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    idle.run("commit").await?;
    Ok(())
}

/// The VACUUM that a step asks for is of the upgrades' own making: they go on beside it at full pace.
pub async fn a_vacuum_that_was_asked_for_slows_nothing(server: Server) -> Result<()> {
    let cluster = server.cluster(&[("autovacuum", "off")]).await?;
    let watched = Watched::of_upgrades(&cluster).await?;
    let session = &watched.session;
    session.run("insert into busy (id, v) select g, repeat('x', 700) from generate_series(4001, 4100) g").await?;
    let vacuum = |statement: String| {
        let database = watched.database.clone();
        async move {
            let vacuum = database.connect_as("postgres", "vacuum").await?;
            vacuum.run("set vacuum_cost_delay = 100; set vacuum_cost_limit = 1").await?;
            anyhow::Ok(tokio::spawn(async move { vacuum.run(&statement).await }))
        }
    };
    const UNDER_WAY: &str = "select count(*) from pg_stat_progress_vacuum where relid = 'busy'::regclass";
    const CANCEL: &str = "select pg_cancel_backend(pid) from pg_stat_activity where application_name = 'vacuum'";
    let task = vacuum("vacuum busy".to_owned()).await?;
    until(session, UNDER_WAY).await?;
    let advance = watched.look().await?;
    ensure!(advance.reason.contains("is being vacuumed"), "one that nobody asked for: {advance:?}");
    session.run(CANCEL).await?;
    ensure!(task.await?.is_err(), "the vacuum was over by itself: this tests nothing");

    // A tenth of the table, and at least 10,000 rows, later: nearly there.
    session.run("update migrator.sweep_chunk set written = 9999 where done_at is null").await?;
    let statement = watched.look().await?.statement;
    ensure!(statement == r#"vacuum "public"."busy""#, "{statement}");
    let task = vacuum(statement).await?;
    until(session, UNDER_WAY).await?;
    let advance = watched.look().await?;
    ensure!(advance.reason.is_empty() && advance.wait.is_zero() && advance.rows == 1, "{advance:?}");
    ensure!(session.number(UNDER_WAY).await? == 1, "the vacuum was over by itself: this tests nothing");
    session.run(CANCEL).await?;
    ensure!(task.await?.is_err(), "the vacuum was over by itself: this tests nothing");
    Ok(())
}

/// Rows are handed out to application code as the load allows, and batches take a part.
pub async fn a_slowed_batch_of_rows_is_a_part(server: Server) -> Result<()> {
    let cluster = server.cluster(&[("autovacuum", "off")]).await?;
    let database = Database::create(&cluster, true).await?;
    let session = database.connect().await?;
    session.run("create table gauge as select 0 as level; create table many (id int primary key, v int); insert into many select generate_series(1, 100)").await?;
    session.run("select migrator.set_own_query('select level from public.gauge')").await?;
    session.run(r#"select migrator.register_upgrade('many', 'one', set => '{"v": "1"}')"#).await?;
    session.run(BY_APPLICATION).await?;
    session.run("select * from migrator.step('many')").await?;
    let look = "update migrator.load set sampled_at = '-infinity'";
    let batch = "update migrator.sweep_chunk set batch_rows = 20, rate = null, weight = null";
    let step = "select rows, wait_ms > 0 from migrator.step('many')";
    let hand_out = "select count(*) from migrator.select_batch('article', 'words', 8)";
    for (rename, rows, handed) in [("", "20", 8), ("alter table gauge rename to gone;", "10", 4)] {
        session.run(&format!("{rename} {look}; {batch}")).await?;
        let step = session.row(step).await?;
        ensure!(step == [rows, if rows == "20" { "f" } else { "t" }], "{rename}: {step:?}");
        ensure!(session.number(hand_out).await? == handed, "{rename}");
    }
    session.run(&format!("alter table gone rename to gauge; update gauge set level = 1; {look}")).await?;
    ensure!(session.number(hand_out).await? == 0, "handed out though it is held");
    let held = "select string_agg(kind, ' ' order by id) from migrator.upgrade_events where relation = 'public.article' and kind in ('held', 'released')";
    ensure!(session.value(held).await? == "held", "{}", session.value(held).await?);
    session.run(&format!("update gauge set level = 0; {look}")).await?;
    ensure!(session.number(hand_out).await? == 8, "nothing is handed out though it is over");
    ensure!(session.value(held).await? == "held released", "{}", session.value(held).await?);
    Ok(())
}
