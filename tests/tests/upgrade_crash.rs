//! Death at every point while rows are upgraded by something that must not be done twice: each row exactly once.

use migrator_tests::counted::{Application, UNFIT, WRONG, go_into_the_middle, lay_out};
use migrator_tests::strike::{noticed, strike};
use migrator_tests::upgrades::{Worker, states};
use migrator_tests::*;
use std::time::{Duration, Instant};

for_each_server!(
    each_row_once_whoever_dies,
    a_registration_that_dies,
    application_code_when_the_server_dies,
    a_worker_that_was_overtaken_cannot_commit,
    answers_that_are_lost,
);

const ROWS: i64 = 4000;

async fn each_row_once_whoever_dies(server: Server) -> Result<()> {
    let cluster = server.cluster(&cluster::DURABLE).await?;
    let database = Database::create(&cluster, true).await?;
    lay_out(&database.connect().await?, ROWS, 150).await?;
    let application = Application::start(&database, ROWS);
    for point in ["step.claimed", "step.written", "step.done", "step.alone", "step.verified"] {
        for action in ["error", "kill"] {
            let batch = !["step.alone", "step.verified"].contains(&point);
            if batch {
                go_into_the_middle(&database).await?;
            }
            strike(&cluster, &database, "counted", point, action).await?;
            let session = database.connect().await?;
            let unfit = session.number(UNFIT).await?;
            ensure!(unfit == 0, "after {action} at {point}: {unfit} rows and their names do not fit");
            let left = "select count(*) from counted where not applied_upgrades @> '{twice}'";
            ensure!(!batch || session.number(left).await? > 0, "{point}:{action}: it did not strike in the middle");
        }
    }
    let mut worker = Worker::new(&database, "counted", "last").await?;
    let step = worker.run().await?;
    ensure!(step.state == "complete", "{step:?}");
    let session = database.connect().await?;
    application.more(20).await?;
    application.end(&session).await?;
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

/// A worker hangs in the middle of its batch for longer than its lease; another takes the chunk over; the first wakes up.
async fn a_worker_that_was_overtaken_cannot_commit(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    lay_out(&session, ROWS, 150).await?;
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
    // Somebody has the table's row meanwhile; the worker itself may have it.
    let holder = database.connect().await?;
    holder.run("begin; select from migrator.upgraded for no key update").await?;
    let events = "select count(*) from migrator.upgrade_event where kind = 'overtaken'";
    while session.number(events).await? == 0 {
        ensure!(Instant::now() < deadline, "nobody ends the worker that hangs");
        other.step().await?;
    }
    holder.run("commit").await?;
    let step = other.run().await?;
    ensure!(step.state == "complete", "{step:?}");
    session.run("select pg_advisory_unlock(7331)").await?;
    let told = hanging.await?;
    ensure!(told.is_lost() || told.code == "57P01", "the worker that was overtaken was told: {told}");
    let wrong = session.number(WRONG).await?;
    ensure!(wrong == 0, "{wrong} rows were not upgraded exactly once");
    let told = session.number(events).await?;
    ensure!(told == 1, "{told} events tell of it");
    Ok(())
}

/// Whoever did not hear the answer of a commit calls again: what is seen to be committed while its session is thrown away.
async fn answers_that_are_lost(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    lay_out(&session, ROWS, 150).await?;
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
