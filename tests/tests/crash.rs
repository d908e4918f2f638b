//! Death at every point: of the backend that does the work, of the whole server, and of the program that drives it.
//! Clients write all the time and know what they were told; afterwards the change goes on or can be given up.

use migrator_tests::ledger::Ledger;
use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::story::seconds;
use migrator_tests::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::time::{Duration, Instant};

for_each_server!(a_backend_dies_at_every_point);
for_oldest_and_newest_server!(
    an_error_at_every_point_changes_nothing,
    alter_table_dies_between_its_steps,
    the_server_dies_at_any_time,
);

/// Points that the way to ready passes, in its order.
const ON_THE_WAY: [&str; 5] = ["copy", "first_reconcile", "build", "reconcile", "verify"];

/// Lets the change under way replay what was written.
async fn replay(database: &Database) -> Result<()> {
    let session = database.connect_as("postgres", "test:replay").await?;
    for _ in 0..20 {
        let done = session.rows("select a.done from migrator.status s, lateral migrator.advance(s.change) a").await;
        if done.is_ok_and(|rows| rows.iter().flatten().any(|done| done.as_deref() == Some("t"))) {
            break;
        }
    }
    Ok(())
}

/// Calls `sql` over and over until the crash point has struck.
async fn until_struck(database: &Database, point: &str, action: &str, sql: &str, code: &[&str]) -> Result<()> {
    let deadline = Instant::now() + change::PATIENCE;
    let witness = database.connect_as("postgres", "test:witness").await?;
    loop {
        let session = match database.connect_as("postgres", "test:crash").await {
            Ok(session) => session,
            Err(error) if error.is_lost() && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        session.run(&format!("set migrator.crash_at = '{point}:{action}'")).await?;
        match session.rows(sql).await {
            Ok(_) => {}
            Err(error) if code.contains(&error.code.as_str()) => break,
            // Much was written meanwhile, and an exchange does not replay that itself.
            Err(error) if error.code == "55006" => replay(database).await?,
            Err(error) if error.is_worth_retrying() => {}
            Err(error) => return Err(error).with_context(|| format!("waiting for the crash at {point}")),
        }
        ensure!(Instant::now() < deadline, "the crash point {point} is never passed by: {sql}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The server may still accept connections, until it has noticed: then it ends them all.
    while action == "kill" && witness.run("select 1").await.is_ok() {
        ensure!(Instant::now() < deadline, "the server did not notice that a backend died at {point}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

async fn a_backend_dies_at_every_point(server: Server) -> Result<()> {
    let cluster = server.cluster(&cluster::DURABLE).await?;
    let database = Database::create(&cluster, true).await?;
    let mut ledger = Ledger::lay_out(&database, 2, 300, 10_000).await?;
    ledger.expect_crashes();
    ledger.start();
    ledger.more(10).await?;

    let change = Change::create(&database, "public.orders", "alter column id type bigint").await?;
    let lost = ["08006", "57P01", "57P02", "57P03"];
    let advance = format!("select * from migrator.advance({})", change.id);
    for point in ON_THE_WAY {
        until_struck(&database, point, "kill", &advance, &lost).await?;
        cluster.wait_until_up().await?;
        ledger.more(5).await?;
        ledger.check(async || Ok(())).await.with_context(|| format!("after the crash at {point}"))?;
    }
    for (verb, points) in [("swap", ["swap_locked", "swap"]), ("rollback", ["swap_locked", "rollback"])] {
        let call = format!("select * from migrator.{verb}(change => {})", change.id);
        if verb == "swap" {
            change.until_ready().await?;
        }
        for point in points {
            until_struck(&database, point, "kill", &call, &lost).await?;
            cluster.wait_until_up().await?;
            ledger.more(5).await?;
            let here = if verb == "swap" { "ready" } else { "swapped" };
            ensure!(change.state().await? == here, "{point} in {verb}: half a {verb}: {}", change.told().await?);
            ledger.check(async || Ok(())).await.with_context(|| format!("after the crash at {point} in {verb}"))?;
        }
        if verb == "swap" {
            change.swap().await?;
        } else {
            change.rollback().await?;
        }
        ledger.more(5).await?;
    }
    change.until_ready().await?;
    change.swap().await?;
    database.connect().await?.run(&format!("select migrator.validate(change => {})", change.id)).await?;
    let finish = format!("select migrator.finish(change => {})", change.id);
    until_struck(&database, "finish", "kill", &finish, &lost).await?;
    cluster.wait_until_up().await?;
    ledger.more(5).await?;
    change.finish().await?;
    ledger.check(async || nothing_left_behind(&database).await).await?;

    let change = Change::create(&database, "public.orders", "add column w text").await?;
    change.until(|advance| advance.state == "copying").await?;
    let cancel = format!("select migrator.cancel(change => {})", change.id);
    until_struck(&database, "cancel", "kill", &cancel, &lost).await?;
    cluster.wait_until_up().await?;
    change.cancel().await?;
    ledger.check(async || nothing_left_behind(&database).await).await?;
    ledger.stop().await?;
    Ok(())
}

async fn the_server_dies_at_any_time(server: Server) -> Result<()> {
    let cluster = server.cluster(&cluster::DURABLE).await?;
    let database = Database::create(&cluster, true).await?;
    let mut ledger = Ledger::lay_out(&database, 2, 300, 15_000).await?;
    ledger.expect_crashes();
    ledger.start();
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.subsec_nanos() as u64;
    println!("seed of the crashes: {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let end = Instant::now() + seconds(8, 120);
    let mut crashes = 0;
    while Instant::now() < end || crashes < 3 {
        let change =
            Change::create(&database, "public.orders", "alter column amount type numeric(14,2), add column w text")
                .await?;
        let driver = change.keep_going(2);
        // Somewhere on the way, then in the middle of the decisions.
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..700))).await;
            cluster.crash().await?;
            crashes += 1;
        }
        change.wait_for("ready").await?;
        let swapping = change.clone();
        let swap = tokio::spawn(async move { swapping.swap().await });
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..150))).await;
        cluster.crash().await?;
        crashes += 1;
        // The answer may have been lost: look.
        let _ = swap.await?;
        if change.state().await? != "swapped" {
            change.wait_for("ready").await?;
            change.swap().await?;
        }
        ledger.more(5).await?;
        ledger.check(async || Ok(())).await?;
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..300))).await;
        cluster.crash().await?;
        change.rollback().await?;
        ledger.check(async || Ok(())).await?;
        driver.stop().await?;
        change.cancel().await?;
        ledger.check(async || nothing_left_behind(&database).await).await?;
    }
    ledger.stop().await?;
    Ok(())
}

/// An error instead of a death: the transaction is undone, and the same call works the next time.
async fn an_error_at_every_point_changes_nothing(server: Server) -> Result<()> {
    let database = server.database().await?;
    let mut ledger = Ledger::lay_out(&database, 2, 200, 2_000).await?;
    ledger.start();
    let begin = "select migrator.create_shadow('public.orders', 'alter column id type bigint')";
    until_struck(&database, "create_shadow.recorded", "error", begin, &["XX000"]).await?;
    nothing_left_behind(&database).await?;
    let change = Change::create(&database, "public.orders", "alter column id type bigint").await?;
    let advance = format!("select * from migrator.advance({})", change.id);
    for point in ON_THE_WAY {
        until_struck(&database, point, "error", &advance, &["XX000"]).await?;
        ledger.more(3).await?;
    }
    change.until_ready().await?;
    for (verb, points) in [("swap", ["swap_locked", "swap"]), ("rollback", ["swap_locked", "rollback"])] {
        let call = format!("select * from migrator.{verb}(change => {})", change.id);
        for point in points {
            until_struck(&database, point, "error", &call, &["XX000"]).await?;
            ledger.more(3).await?;
        }
        if verb == "swap" {
            change.swap().await?
        } else {
            change.rollback().await?
        }
        ledger.check(async || Ok(())).await?;
    }
    change.until_done().await?;
    until_struck(&database, "cancel", "error", &format!("select migrator.cancel(change => {})", change.id), &["XX000"])
        .await?;
    change.cancel().await?;
    ledger.stop().await?;
    nothing_left_behind(&database).await
}

/// Each step is a transaction: the first undone, nothing was changed; the second undone, the same call goes on with it.
async fn alter_table_dies_between_its_steps(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run("create table parts (id int primary key, v int); insert into parts select g, g from generate_series(1, 100) g").await?;
    let alter = "call migrator.alter_table('parts', 'add column w int, add constraint positive check (v > 0)')";
    let now = "select concat_ws(' ', (select attname from pg_attribute where attrelid = 'parts'::regclass and attname = 'w'), \
               (select case when convalidated then 'valid' else 'not valid' end from pg_constraint where conname = 'positive'))";
    until_struck(&database, "alter_step", "error", alter, &["XX000"]).await?;
    ensure!(session.value(now).await?.is_empty(), "after the first step: {}", session.value(now).await?);

    session.run("select pg_advisory_lock(7331)").await?;
    let caller = database.connect_as("postgres", "test:caller").await?;
    let pid = caller.pid;
    caller.run("set migrator.crash_at = 'alter_step:wait'").await?;
    let calling = tokio::spawn(async move { caller.run(alter).await });
    let deadline = Instant::now() + change::PATIENCE;
    let waits = format!("select count(*) from pg_locks where pid = {pid} and locktype = 'advisory' and not granted");
    for step in ["", "w not valid"] {
        while session.value(now).await? != step || session.number(&waits).await? == 0 {
            ensure!(!calling.is_finished() && Instant::now() < deadline, "never here: {step}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if step.is_empty() {
            // The caller has it first, then the test again.
            session.run("select pg_advisory_unlock(7331); select pg_advisory_lock(7331)").await?;
        }
    }
    session.run(&format!("select pg_terminate_backend({pid})")).await?;
    ensure!(calling.await?.is_err(), "the call should have been ended");
    session.run("select pg_advisory_unlock(7331)").await?;
    ensure!(session.value(now).await? == "w not valid", "after the second: {}", session.value(now).await?);
    session.run(alter).await?;
    ensure!(session.value(now).await? == "w valid", "not gone on with: {}", session.value(now).await?);
    nothing_left_behind(&database).await
}
