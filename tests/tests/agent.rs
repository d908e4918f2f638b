//! The daemon `migrator agent`: whoever kills it, or the server, at any time costs nothing, two of them do not get in each
//! other's way, it decides nothing that is left to people, and its memory does not grow with the table.

use migrator_tests::ledger::Ledger;
use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::program::{daemon, terminate};
use migrator_tests::*;
use std::time::{Duration, Instant};

for_each_server!(a_daemon_that_is_killed_again_and_again, two_daemons, a_daemon_that_is_told_to_stop);
for_oldest_and_newest_server!(a_daemon_that_is_killed_in_each_phase);
for_newest_server!(a_daemon_whose_server_crashes, a_daemon_that_is_told_twice);
#[cfg(feature = "full")]
for_newest_server!(a_daemon_with_nothing_to_do);

async fn a_daemon_that_is_killed_again_and_again(server: Server) -> Result<()> {
    let database = server.database().await?;
    let mut ledger = Ledger::lay_out(&database, 2, 400, 30_000).await?;
    ledger.start();
    let session = database.connect().await?;
    session
        .run("select migrator.create_shadow('public.orders', 'alter column id type bigint, add column w text', on_ready => 'swap')")
        .await?;
    let change = Change::of(&database, session.number("select change from migrator.status").await?);
    let deadline = Instant::now() + Duration::from_secs(300);
    let mut kills = 0;
    let mut longer = 100;
    while change.state().await? != "swapped" {
        let mut child = daemon(&database, &[])?;
        ledger.live(Duration::from_millis(longer)).await?;
        child.start_kill()?;
        child.wait().await?;
        kills += 1;
        // The longest step has to fit in the end, however slow the machine is.
        longer += longer / 4;
        ensure!(Instant::now() < deadline, "killed {kills} times and not done: {}", change.told().await?);
    }
    ensure!(kills > 1, "the daemon was too fast to be killed: make the table longer");
    ledger.check(async || Ok(())).await?;
    let mut child = daemon(&database, &[])?;
    ledger.more(10).await?;
    change.rollback().await?;
    ledger.check(async || Ok(())).await?;
    // Who took it back decides when it is swapped again, however often the daemon looks.
    change.wait_for("ready").await?;
    for _ in 0..2 {
        advanced_again(&session, &change).await?;
    }
    ensure!(change.state().await? == "ready", "the daemon undid a rollback: {}", change.told().await?);
    child.start_kill()?;
    child.wait().await?;
    ledger.check(async || Ok(())).await?;
    change.cancel().await?;
    ledger.stop().await?;
    nothing_left_behind(&database).await
}

/// Waits until a daemon has called `advance` for the change once more.
async fn advanced_again(session: &Session, change: &Change) -> Result<()> {
    let now = session.value("select clock_timestamp()").await?;
    let since = format!(
        "select count(*) from pg_stat_activity where application_name like 'migrator:%:{}' and query_start > '{now}'
         and query like '%migrator.advance(%' and datname = current_database()",
        change.id
    );
    until(session, &since, "the daemon does not look after the change").await
}

/// Waits until a count is not 0.
async fn until(session: &Session, sql: &str, or_else: &str) -> Result<()> {
    let deadline = Instant::now() + change::PATIENCE;
    while session.number(sql).await? == 0 {
        ensure!(Instant::now() < deadline, "{or_else}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Everybody who comes to a crash point waits there until the session that this returns is dropped.
async fn stop_at(database: &Database, point: &str) -> Result<Session> {
    let holder = database.connect_as("postgres", "holder").await?;
    holder.run("select pg_advisory_lock(7331)").await?;
    holder.run(&format!("alter database {} set migrator.crash_at = '{point}:wait'", database.name)).await?;
    Ok(holder)
}

const COPIED: &str = "select count(*) from migrator.status where phase <> 'created' and rows_done > 0";
const WAITING: &str = "select count(*) from pg_stat_activity where application_name like 'migrator:%'
                       and wait_event = 'advisory' and datname = current_database()";
const NO_SESSION: &str = "select 1 - least(1, count(*)) from pg_stat_activity
                          where application_name like 'migrator:%' and datname = current_database()";

/// A call that is under way when its agent is killed is the server's alone: it comes to its end or is undone, and the next
/// agent finds what is so.
async fn a_daemon_that_is_killed_in_each_phase(server: Server) -> Result<()> {
    let database = server.database().await?;
    let mut ledger = Ledger::lay_out(&database, 2, 300, 5_000).await?;
    ledger.start();
    let session = database.connect().await?;
    let change = Change::create_with(
        &database,
        "public.orders",
        "actions => 'alter column id type bigint, add column w text', on_ready => 'swap'",
    )
    .await?;
    for (point, phase) in [("copy", "copying"), ("build", "indexing"), ("reconcile", "catching_up"), ("swap", "ready")]
    {
        let holder = stop_at(&database, point).await?;
        let mut child = daemon(&database, &[])?;
        until(&session, WAITING, &format!("the daemon does not come to {point}")).await?;
        ensure!(change.state().await? == phase, "at {point}: {}", change.told().await?);
        child.start_kill()?;
        child.wait().await?;
        session.run(&format!("alter database {} reset migrator.crash_at", database.name)).await?;
        // A swap has the table's lock; all else is in nobody's way.
        if point != "swap" {
            ledger.more(3).await?;
        }
        drop(holder);
        until(&session, NO_SESSION, &format!("calls of an agent that was killed at {point} do not end")).await?;
        ledger.more(3).await?;
        ledger.check(async || Ok(())).await.with_context(|| format!("after the death at {point}"))?;
    }
    let child = daemon(&database, &[])?;
    change.wait_for("swapped").await?;
    ledger.more(3).await?;
    ledger.check(async || Ok(())).await?;
    drop(child);
    change.finish().await?;
    ledger.stop().await?;
    nothing_left_behind(&database).await
}

/// One and the same process sees its server die and come back, and goes on.
async fn a_daemon_whose_server_crashes(server: Server) -> Result<()> {
    let cluster = server.cluster(&cluster::DURABLE).await?;
    let database = Database::create(&cluster, true).await?;
    let mut ledger = Ledger::lay_out(&database, 2, 300, 15_000).await?;
    ledger.expect_crashes();
    ledger.start();
    let mut child = daemon(&database, &[])?;
    let change = Change::create(&database, "public.orders", "alter column id type bigint, add column w text").await?;
    let session = database.connect().await?;
    until(&session, COPIED, "nothing is copied").await?;
    cluster.crash().await?;
    ledger.more(3).await?;
    change.wait_for("ready").await?;
    advanced_again(&database.connect().await?, &change).await?;
    ensure!(child.try_wait()?.is_none(), "the daemon ended with its server");
    drop(child);
    ledger.check(async || Ok(())).await?;
    change.cancel().await?;
    ledger.stop().await?;
    nothing_left_behind(&database).await
}

/// The most memory that any of these processes has had so far.
fn peak_kilobytes(children: &[tokio::process::Child]) -> Result<i64> {
    let mut most = 0;
    for child in children {
        let pid = child.id().context("a daemon ended by itself")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        most = most.max(peak.trim().trim_end_matches(" kB").parse()?);
    }
    Ok(most)
}

async fn two_daemons(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table twin1 (id int primary key, v text); insert into twin1 select g, repeat('x', 100) from generate_series(1, 50000) g;
             create table twin2 (id int primary key, v text); insert into twin2 select g, repeat('x', 100) from generate_series(1, 50000) g",
        )
        .await?;
    let daemons = [daemon(&database, &[])?, daemon(&database, &[])?];
    let looks = "select count(*) / 2 from pg_stat_activity where application_name = 'migrator:look' and datname = current_database()";
    until(&session, looks, "the daemons do not look").await?;
    let before = peak_kilobytes(&daemons)?;
    let one = Change::create(&database, "public.twin1", "alter column id type bigint").await?;
    let two =
        Change::create_with(&database, "public.twin2", "actions => 'alter column id type bigint', on_ready => 'swap'")
            .await?;
    one.wait_for("ready").await?;
    two.wait_for("swapped").await?;
    one.swap().await?;
    session.run("update twin1 set v = 'y' where id % 100 = 0; update twin2 set v = 'y' where id % 100 = 0").await?;
    one.rollback().await?;
    two.rollback().await?;
    for table in ["twin1", "twin2"] {
        let sql = format!("select count(*) filter (where v = 'y') || ' of ' || count(*) from {table}");
        ensure!(session.value(&sql).await? == "500 of 50000", "{table}: {}", session.value(&sql).await?);
    }
    // The tables have 5 MB of text each; what the agent needs for its own calls is far less.
    let grown = peak_kilobytes(&daemons)? - before;
    ensure!(grown < 2_000, "the daemons grew by {grown} kB");
    drop(daemons);
    for change in [one, two] {
        if change.state().await? == "swapped" { change.finish().await? } else { change.cancel().await? }
    }
    nothing_left_behind(&database).await
}

async fn a_daemon_that_is_told_to_stop(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run("create table long (id int primary key, v text); insert into long select g, repeat('x', 300) from generate_series(1, 200000) g").await?;
    let mut child = daemon(&database, &[])?;
    let change = Change::create(&database, "public.long", "alter column id type bigint").await?;
    until(&session, COPIED, "nothing is copied").await?;
    let pid = child.id();
    terminate(&child).await?;
    let status =
        tokio::time::timeout(Duration::from_secs(20), child.wait()).await.context("SIGTERM does not end it")??;
    ensure!(status.code() == Some(0), "it ended with {status}");
    let open = "select count(*) from pg_stat_activity where application_name like 'migrator%' and state <> 'idle'";
    ensure!(session.number(open).await? == 0, "its sessions are still at work");
    // Who asks next morning finds when it began and when it ended.
    let runs = format!(
        "select string_agg(kind || ' ' || (detail ->> 'pid'), ', ' order by id) from migrator.log(change => {})
         where kind like 'agent%' and kind <> 'agent_statement'",
        change.id
    );
    let pid = pid.context("the daemon ended by itself")?;
    let runs = session.value(&runs).await?;
    ensure!(runs == format!("agent_started {pid}, agent_stopped {pid}"), "the log tells of: {runs}");
    change.cancel().await?;
    nothing_left_behind(&database).await
}

/// The first signal lets the call in hand come to its end, and the second ends it.
async fn a_daemon_that_is_told_twice(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run("create table held (id int primary key); insert into held select generate_series(1, 1000)").await?;
    let holder = stop_at(&database, "copy").await?;
    let change = Change::create(&database, "public.held", "alter column id type bigint").await?;
    let mut child = daemon(&database, &[])?;
    until(&session, WAITING, "the daemon does not copy").await?;
    terminate(&child).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    ensure!(child.try_wait()?.is_none(), "it does not finish what is in hand");
    ensure!(session.number(WAITING).await? > 0, "the call in hand is gone");
    terminate(&child).await?;
    // Less than the ten seconds after which the call itself gives up.
    let ended = tokio::time::timeout(Duration::from_secs(8), child.wait()).await;
    let status = ended.context("the second SIGTERM does not end it")??;
    ensure!(status.code() == Some(0), "it ended with {status}");
    until(&session, NO_SESSION, "its calls go on").await?;
    drop(holder);
    ensure!(session.number(COPIED).await? == 0, "the call was not ended");
    session.run(&format!("alter database {} reset migrator.crash_at", database.name)).await?;
    change.cancel().await?;
    nothing_left_behind(&database).await
}

/// Its workers give their connections back, and take new ones when there is work. Half a minute goes by before they do.
#[cfg(feature = "full")]
async fn a_daemon_with_nothing_to_do(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run("create table rests (id int primary key); insert into rests select generate_series(1, 1000)").await?;
    let change = Change::create(&database, "public.rests", "alter column id type bigint").await?;
    let child = daemon(&database, &[])?;
    change.wait_for("ready").await?;
    advanced_again(&session, &change).await?;
    session.run(&format!("select migrator.pause(change => {})", change.id)).await?;
    let only_looks = "select (bool_and(application_name = 'migrator:look') and count(*) > 0)::int from pg_stat_activity
                      where application_name like 'migrator:%' and datname = current_database()";
    until(&session, only_looks, "workers keep connections that nobody uses").await?;
    session.run(&format!("select migrator.resume(change => {})", change.id)).await?;
    advanced_again(&session, &change).await?;
    drop(child);
    change.cancel().await?;
    nothing_left_behind(&database).await
}
