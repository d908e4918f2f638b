//! Workers of one table that share its chunks, and one of them is stopped, as a machine does that swaps or migrates: it wakes up when
//! the others have gone on to the end.

use migrator_tests::change::PATIENCE;
use migrator_tests::counted::{Application, UNFIT, WRONG, lay_out};
use migrator_tests::program::{agent, say, terminate};
use migrator_tests::upgrades::{Worker, states};
use migrator_tests::*;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

for_each_server!(two_workers_and_a_stopped_one);
for_newest_server!(two_programs_and_a_stopped_one, two_daemons_share_a_table);

/// A chunk is 20,000 rows, by a sample which may be wrong by a quarter: so many rows are three chunks at least, and so many two.
const THREE_CHUNKS: i64 = 100_000;
const TWO_CHUNKS: i64 = 60_000;

const SHORT: &str = "-c migrator.lease=300ms";

async fn signal(pid: impl ToString, name: &str) -> Result<()> {
    let sent = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().await?;
    ensure!(sent.success(), "{name} cannot be sent");
    Ok(())
}

async fn until(session: &Session, condition: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while session.value(&format!("select {condition}")).await? != "t" {
        ensure!(Instant::now() < deadline, "never so: {condition}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// The program with some settings. It is killed with the value.
fn program(database: &Database, options: &str, arguments: &[&str]) -> Result<Child> {
    let mut command = agent(database)?;
    command.args(arguments).env("PGOPTIONS", options);
    Ok(command.kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
}

async fn done_once(session: &Session) -> Result<()> {
    ensure!(states(session, "counted").await? == "twice=complete", "{}", states(session, "counted").await?);
    let wrong = session.number(WRONG).await?;
    ensure!(wrong == 0, "{wrong} rows were not upgraded exactly once");
    Ok(())
}

/// A session is stopped when it has written its batch and not committed. The others do all that is not in its hands, end it, and do
/// the rest; what keeps it from committing when it wakes up is nothing but that.
async fn two_workers_and_a_stopped_one(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    lay_out(&session, THREE_CHUNKS, 2000).await?;
    session.run("select pg_advisory_lock(7331)").await?;
    let stopped = database.connect_as("postgres", "stopped").await?;
    let pid = stopped.pid;
    stopped.run("set migrator.crash_at = 'step.done:wait'").await?;
    let hanging = tokio::spawn(async move {
        loop {
            // The first steps only begin the sweep.
            match stopped.rows("select rows from migrator.step('counted', 'stopped') where rows > 0").await {
                Ok(rows) if rows.is_empty() => {}
                other => return other,
            }
        }
    });
    until(
        &session,
        &format!("exists (select from pg_locks where locktype = 'advisory' and not granted and pid = {pid})"),
    )
    .await?;
    signal(pid, "STOP").await?;
    session.run("select pg_advisory_unlock(7331)").await?;
    let mut others = vec![];
    for name in ["second", "third"] {
        let mut other = Worker::new(&database, "counted", name).await?;
        others.push(tokio::spawn(async move {
            other.session().run("set migrator.lease = '300 ms'").await?;
            let step = other.until(|step| step.reason.contains("in the hands of other workers")).await?;
            ensure!(step.rows == 0, "{step:?}");
            Ok(other)
        }));
    }
    let mut workers = vec![];
    for other in others {
        workers.push(other.await??);
    }
    let chunks = session.row("select count(*) >= 3, count(*) - count(done_at) from migrator.sweep_chunk").await?;
    ensure!(chunks == ["t", "1"], "three chunks or more, and how many are not done: {chunks:?}");
    ensure!(session.number(UNFIT).await? == 0, "rows and names do not fit");
    let overtaken = "from migrator.upgrade_event where kind = 'overtaken'";
    let deadline = Instant::now() + PATIENCE;
    while session.number(&format!("select count(*) {overtaken}")).await? == 0 {
        ensure!(Instant::now() < deadline, "nobody ends the session that is stopped");
        workers[0].step().await?;
    }
    // It cannot end while it is stopped, and is told so again when it has had twice as long: people are told once.
    until(&session, &format!("clock_timestamp() - xact_start > '1 s' from pg_stat_activity where pid = {pid}")).await?;
    for worker in &mut workers {
        worker.step().await?;
    }
    let whom = session.value(&format!("select string_agg(detail ->> 'pid', ' ') {overtaken}")).await?;
    ensure!(whom == pid.to_string(), "ended were {whom}, and not once {pid}");
    signal(pid, "CONT").await?;
    match hanging.await? {
        Err(error) => ensure!(error.is_lost(), "the worker that was stopped was told: {error}"),
        Ok(rows) => bail!("the worker that was stopped could commit its batch: {rows:?}"),
    }
    for mut worker in workers {
        worker.complete(&session).await?;
    }
    done_once(&session).await
}

/// The program does not hear the answer of its last batch until others have done all rows and every lease of its own is over.
async fn two_programs_and_a_stopped_one(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    lay_out(&session, 8000, 100).await?;
    let application = Application::start(&database, 8000);
    let mut stopped = program(&database, SHORT, &["upgrade", "run", "counted", "--workers", "2"])?;
    until(&session, "exists (select from migrator.upgrades where rows_done > 1000)").await?;
    signal(stopped.id().context("it ended by itself")?, "STOP").await?;
    until(&session, "not exists (select from pg_stat_activity where application_name ~ '^migrator:upgrade:[0-9]' and state <> 'idle')")
        .await?;
    until(
        &session,
        "not exists (select from migrator.sweep_chunk where worker is not null and lease_until >= clock_timestamp())",
    )
    .await?;
    ensure!(session.number(UNFIT).await? == 0, "rows and names do not fit");
    ensure!(states(&session, "counted").await? == "twice=running", "it was too fast to be stopped");
    let others = [(); 2].map(|()| program(&database, SHORT, &["upgrade", "run", "counted", "--workers", "1"]));
    for other in others {
        let ended = other?.wait().await?;
        ensure!(ended.code() == Some(0), "a program that goes on to the end ended with {ended}");
    }
    done_once(&session).await?;
    signal(stopped.id().context("it ended while it was stopped")?, "CONT").await?;
    let ended = tokio::time::timeout(PATIENCE, stopped.wait()).await.context("it does not end")??;
    ensure!(ended.code() == Some(0), "the program that was stopped ended with {ended}");
    application.more(20).await?;
    application.end(&session).await?;
    done_once(&session).await
}

/// A trigger holds the first batch of each until both are in the middle of one, and notes whose batch it is, in the batch's transaction.
async fn two_daemons_share_a_table(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    lay_out(&session, TWO_CHUNKS, 2000).await?;
    session
        .run(
            "create table drove (program text);
             create function gate() returns trigger language plpgsql set lock_timeout = 0 as $$ begin
                 perform pg_advisory_lock_shared(7400), pg_advisory_unlock_shared(7400);
                 insert into public.drove values (current_setting('test.program'));
                 return null;
             end $$;
             create trigger gate before update on counted for each statement execute function gate();
             select pg_advisory_lock(7400)",
        )
        .await?;
    let daemons = [
        program(&database, "-c test.program=one", &["agent", "--jobs", "1"])?,
        program(&database, "-c test.program=two", &["agent", "--jobs", "1"])?,
    ];
    until(&session, "count(*) = 2 from pg_locks where locktype = 'advisory' and objid = 7400 and not granted").await?;
    session.run("select pg_advisory_unlock(7400)").await?;
    until(&session, "bool_and(state = 'complete') from migrator.upgrades").await?;
    let drove = session.value("select string_agg(distinct program, ' ' order by program) from drove").await?;
    ensure!(drove == "one two", "batches were done by: {drove}");
    done_once(&session).await?;
    for mut child in daemons {
        terminate(&child).await?;
        let ended = tokio::time::timeout(PATIENCE, child.wait()).await.context("SIGTERM does not end it")??;
        ensure!(ended.code() == Some(0), "a daemon ended with {ended}");
    }
    let said = say(&database, &["upgrade", "run"]).await?.fine()?;
    ensure!(said == "upgrades of public.counted are complete: twice\n", "{said}");
    Ok(())
}
