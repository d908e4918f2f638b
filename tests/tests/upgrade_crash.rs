//! Death at every point while rows are upgraded by something that must not be done twice: each row exactly once.

use migrator_tests::upgrades::{Worker, states};
use migrator_tests::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

for_each_server!(
    each_row_once_whoever_dies,
    a_registration_that_dies,
    application_code_when_the_server_dies,
    a_worker_that_was_overtaken_cannot_commit,
    answers_that_are_lost,
);

/// Rows that were there have twice their number; rows that came meanwhile were written as new ones.
const WRONG: &str = "select count(*) from counted where x <> 2 * id or not applied_upgrades @> '{twice}'";

async fn lay_out(session: &Session) -> Result<()> {
    session
        .run(
            "create table counted (id bigint primary key, x bigint not null, touched int not null default 0);
             insert into counted (id, x) select g, g from generate_series(1, 4000) g",
        )
        .await?;
    session
        .run("select migrator.register_upgrade('counted', 'twice', '{\"x\": \"x * 2\"}', safe_in_place => true, batch_size => 150)")
        .await?;
    Ok(())
}

/// Writers touch other columns and insert rows of the new shape; what they were told is committed stays.
async fn write(database: Database, seed: u64, stop: Arc<AtomicBool>) -> Result<i64> {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut next, mut session, mut written) = (10_000 + i64::try_from(seed % 1000)? * 100_000, None, 0);
    while !stop.load(Ordering::Relaxed) {
        if session.is_none() {
            session = database.connect_as("postgres", "writer").await.ok();
        }
        let Some(open) = &session else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let sql = if random.random_bool(0.5) {
            next += 1;
            format!("insert into counted (id, x) values ({next}, {})", 2 * next)
        } else {
            format!("update counted set touched = touched + 1 where id = {}", random.random_range(1..4000))
        };
        match open.run(&sql).await {
            Ok(_) => written += 1,
            Err(error) if error.is_lost() || error.code.starts_with("57P") => session = None,
            Err(error) if error.is_worth_retrying() => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(written)
}

async fn each_row_once_whoever_dies(server: Server) -> Result<()> {
    let cluster = server.cluster(&cluster::DURABLE).await?;
    let database = Database::create(&cluster, true).await?;
    lay_out(&database.connect().await?).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (1..3).map(|seed| tokio::spawn(write(database.clone(), seed, stop.clone()))).collect();
    for point in ["step.claimed", "step.written", "step.done", "step.alone", "step.verified"] {
        for action in ["error", "kill"] {
            strike(&database, point, action).await?;
            cluster.wait_until_up().await?;
        }
    }
    // And at any time, the server itself.
    for _ in 0..2 {
        let session = database.connect().await?;
        session.run("select migrator.verify_upgrades('counted')").await?;
        cluster.crash().await?;
        cluster.wait_until_up().await?;
    }
    let mut worker = Worker::new(&database, "counted", "last").await?;
    let step = worker.run().await?;
    ensure!(step.state == "complete", "{step:?}");
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        ensure!(writer.await?? > 20, "a writer hardly wrote");
    }
    let session = database.connect().await?;
    let wrong = session.number(WRONG).await?;
    ensure!(wrong == 0, "{wrong} rows were not upgraded exactly once");
    ensure!(states(&session, "counted").await? == "twice=complete", "{}", states(&session, "counted").await?);
    let retire = "select migrator.retire_upgrade('counted', 'twice')";
    let witness = database.connect_as("postgres", "test:witness").await?;
    session.run("set migrator.crash_at = 'retire:kill'").await?;
    ensure!(session.rows(retire).await.is_err(), "the crash point retire was not passed");
    noticed(&witness).await?;
    cluster.wait_until_up().await?;
    let session = database.connect().await?;
    ensure!(session.number(WRONG).await? == 0, "half of it was retired");
    session.run(retire).await?;
    ensure!(session.number("select count(*) from counted where x <> 2 * id").await? == 0, "rows changed");
    Ok(())
}

/// The server may still accept connections, until it has noticed that a backend died: then it ends them all.
async fn noticed(witness: &Session) -> Result<()> {
    let deadline = Instant::now() + change::PATIENCE;
    while witness.run("select 1").await.is_ok() {
        ensure!(Instant::now() < deadline, "the server did not notice that a backend died");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Steps until the point has struck. Every row is as it should be at that time, with or without its name.
async fn strike(database: &Database, point: &str, action: &str) -> Result<()> {
    let deadline = Instant::now() + change::PATIENCE;
    let witness = database.connect_as("postgres", "test:witness").await?;
    loop {
        ensure!(Instant::now() < deadline, "the crash point {point} is never passed");
        let Ok(session) = database.connect_as("postgres", "test:crash").await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        if session
            .run(&format!("set migrator.lease = '300 ms'; set migrator.crash_at = '{point}:{action}'"))
            .await
            .is_err()
        {
            continue;
        }
        // A worker's name outlives its session, so what a dead one held is not waited for.
        match session.row("select done, state from migrator.step('counted', 'one')").await {
            Ok(row) if row[0] == "t" => {
                session.run("set migrator.crash_at = ''; select migrator.verify_upgrades('counted')").await?;
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    if action == "kill" {
        noticed(&witness).await?;
    }
    if action == "error" {
        let wrong =
            "select count(*) from counted where x <> case when applied_upgrades @> '{twice}' then 2 * id else id end";
        ensure!(witness.number(wrong).await? == 0, "after an error at {point}: rows and names do not fit");
    }
    Ok(())
}

/// A worker hangs in the middle of its batch for longer than its lease; another takes the chunk over; the first wakes up.
async fn a_worker_that_was_overtaken_cannot_commit(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    lay_out(&session).await?;
    session.run("select pg_advisory_lock(7331)").await?;
    let stopped = database.connect_as("postgres", "stopped").await?;
    stopped.run("set migrator.crash_at = 'step.done:wait'").await?;
    let hanging = tokio::spawn(async move {
        loop {
            // The first steps only begin the sweep.
            if let Err(error) = stopped.rows("select * from migrator.step('counted', 'stopped')").await {
                return error;
            }
        }
    });
    let deadline = Instant::now() + change::PATIENCE;
    let waits = "select count(*) from pg_locks where locktype = 'advisory' and not granted";
    while session.number(waits).await? == 0 {
        ensure!(Instant::now() < deadline, "the worker never came to its batch");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut other = Worker::new(&database, "counted", "other").await?;
    other.session().run("set migrator.lease = '300 ms'").await?;
    let step = other.run().await?;
    ensure!(step.state == "complete", "{step:?}");
    session.run("select pg_advisory_unlock(7331)").await?;
    let told = hanging.await?;
    ensure!(told.is_lost() || told.code == "57P01", "the worker that was overtaken was told: {told}");
    let wrong = session.number(WRONG).await?;
    ensure!(wrong == 0, "{wrong} rows were not upgraded exactly once");
    let told = session.number("select count(*) from migrator.upgrade_event where kind = 'overtaken'").await?;
    ensure!(told == 1, "{told} events tell of it");
    Ok(())
}

/// Whoever did not hear the answer of a commit calls again: what is seen to be committed while its session is thrown away.
async fn answers_that_are_lost(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    lay_out(&session).await?;
    let marked = "select count(*) from counted where applied_upgrades @> '{twice}'";
    let mut lost = 0;
    let deadline = Instant::now() + change::PATIENCE;
    while lost < 8 {
        ensure!(Instant::now() < deadline, "no step writes rows");
        let before = session.number(marked).await?;
        let worker = database.connect_as("postgres", "forgetful").await?;
        worker.run("set migrator.lease = '300 ms'").await?;
        let pid = worker.pid;
        let step =
            tokio::spawn(async move { worker.rows("select done from migrator.step('counted', 'forgetful')").await });
        // It is not asked what it heard. The first steps only begin the sweep.
        while session.number(marked).await? == before && !step.is_finished() {
            ensure!(Instant::now() < deadline, "a step does not end");
        }
        lost += i32::from(session.number(marked).await? > before);
        step.abort();
        session.run(&format!("select pg_terminate_backend({pid})")).await?;
    }
    let mut worker = Worker::new(&database, "counted", "last").await?;
    worker.session().run("set migrator.lease = '300 ms'").await?;
    ensure!(worker.run().await?.state == "complete", "{}", states(&session, "counted").await?);
    let wrong = session.number(WRONG).await?;
    ensure!(wrong == 0, "{wrong} rows were not upgraded exactly once");
    Ok(())
}

/// An upgrade is registered, or it is not: neither its guard nor its column is there without it.
async fn a_registration_that_dies(server: Server) -> Result<()> {
    let cluster = server.cluster(&cluster::DURABLE).await?;
    let database = Database::create(&cluster, true).await?;
    let session = database.connect().await?;
    session
        .run("create table article (id int primary key, content text, size int); insert into article values (1, 'abc')")
        .await?;
    let register = "select migrator.register_upgrade('article', 'size', '{\"size\": \"length(content)\"}')";
    for action in ["error", "kill"] {
        let witness = database.connect_as("postgres", "test:witness").await?;
        let dying = database.connect().await?;
        dying.run(&format!("set migrator.crash_at = 'register.installed:{action}'")).await?;
        ensure!(dying.rows(register).await.is_err(), "the crash point register.installed was not passed");
        if action == "kill" {
            noticed(&witness).await?;
            cluster.wait_until_up().await?;
        }
        let session = database.connect().await?;
        let left = "select (select count(*) from migrator.upgraded) + (select count(*) from migrator.upgrade) + (select count(*) from migrator.upgrade_event) \
                      + (select count(*) from pg_trigger where tgrelid = 'article'::regclass) + (select count(*) from pg_views where viewname = 'article__current') \
                      + (select count(*) from pg_attribute where attrelid = 'article'::regclass and attname = 'applied_upgrades' and not attisdropped)";
        ensure!(session.number(left).await? == 0, "after {action}: something of it is left");
    }
    let session = database.connect().await?;
    session.run(register).await?;
    ensure!(Worker::new(&database, "article", "w").await?.run().await?.state == "complete", "not complete");
    Ok(())
}

/// What was not handed out is handed out again, and what was not taken back can be given back again: each row once.
async fn application_code_when_the_server_dies(server: Server) -> Result<()> {
    let cluster = server.cluster(&cluster::DURABLE).await?;
    let database = Database::create(&cluster, true).await?;
    let session = database.connect().await?;
    session
        .run("create table article (id int primary key, content text, times int not null default 0); insert into article select g, 'c' from generate_series(1, 40) g")
        .await?;
    session
        .run("select migrator.register_upgrade('article', 'code', inputs => '{content}', outputs => '{times}')")
        .await?;
    let take = "select jsonb_agg(jsonb_build_object('key', key, 'token', token, 'values', jsonb_build_object('times', (\"row\" ->> 'times')::int + 1)) order by (key ->> 'id')::int) \
                from migrator.select_batch('article', 'code', 10, lease => '1 hour')";
    for action in ["error", "kill"] {
        for point in ["select_batch.lent", "mark_applied.written"] {
            let witness = database.connect_as("postgres", "test:witness").await?;
            let session = database.connect().await?;
            let taken = if point.starts_with("mark") { session.value(take).await? } else { String::new() };
            let give = format!(
                "select count(*) filter (where applied) from migrator.mark_applied('article', 'code', {})",
                session::literal(&taken)
            );
            session.run(&format!("set migrator.crash_at = '{point}:{action}'")).await?;
            let call = if taken.is_empty() { take } else { give.as_str() };
            ensure!(session.rows(call).await.is_err(), "the crash point {point} was not passed");
            if action == "kill" {
                noticed(&witness).await?;
                cluster.wait_until_up().await?;
            }
            let again = database.connect().await?;
            ensure!(
                again.number("select count(*) from migrator.upgrade_lease where not applied").await?
                    == if taken.is_empty() { 0 } else { 10 },
                "{point}:{action}: leases"
            );
            if taken.is_empty() {
                // The same ten are the next, though the lease would have lasted for an hour.
                let taken = again.value(take).await?;
                let first = format!(
                    "select min((k ->> 'id')::int) from jsonb_path_query({}, '$[*].key') k",
                    session::literal(&taken)
                );
                let undone = again.number("select min(id) from article where not applied_upgrades @> '{code}'").await?;
                ensure!(again.number(&first).await? == undone, "{point}:{action}: others were handed out");
                let give = give.replace("''", &session::literal(&taken));
                ensure!(again.number(&give).await? == 10, "{point}:{action}: not taken back");
            } else {
                ensure!(again.number(&give).await? == 10, "{point}:{action}: not taken back the second time");
                ensure!(again.number(&give).await? == 10, "{point}:{action}: not told of it the third time");
            }
        }
    }
    let session = database.connect().await?;
    let wrong = session.number("select count(*) from article where times <> 1 or applied_upgrades <> '{code}'").await?;
    ensure!(wrong == 0, "{wrong} rows were not upgraded exactly once");
    Ok(())
}
