//! Where somebody goes on writing rows that only batches upgrade, the passes over all rows take a part of the time only.

use migrator_tests::upgrades::{Worker, states};
use migrator_tests::*;

for_each_server!(rows_that_come_while_all_are_passed);

const REPEATED: &str = "select repeated from migrator.upgraded";
const SWEEP: &str = "select sweep from migrator.upgraded";

/// Steps until an upgrade sweep has ended, and then has an old version write a row, which the look that follows finds. The next step
/// decides.
async fn left_behind(session: &Session, worker: &mut Worker) -> Result<()> {
    worker.until(|step| step.state == "verifying").await?;
    session.run("update page set title = title || '!' where id = 5").await?;
    let sweep = session.number(SWEEP).await?;
    while session.value("select sweep_kind is null from migrator.upgraded").await? == "f" {
        worker.step().await?;
    }
    ensure!(session.number(SWEEP).await? == sweep, "another sweep has begun");
    ensure!(session.number("select lacking from migrator.upgraded").await? == 1, "it was not found");
    // As if the table had taken that long.
    session.run("update migrator.upgraded set verify_took = '2 minutes'").await?;
    Ok(())
}

async fn rows_that_come_while_all_are_passed(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    // The guard leaves what stands in a unique key to batches.
    session
        .run("create table page (id int primary key, title text, slug text unique); insert into page select g, 'T' || g from generate_series(1, 100) g; \
              select migrator.register_upgrade('page', 'slug', '{\"slug\": \"lower(title)\"}')")
        .await?;
    let mut worker = Worker::new(&database, "page", "w").await?;

    // The first time at once.
    left_behind(&session, &mut worker).await?;
    let step = worker.step().await?;
    ensure!(step.state == "upgrading" && step.wait == 0, "{step:?}");
    ensure!(session.number(REPEATED).await? == 1, "it was not counted");

    // Then for as long as the look took, and twice as long.
    for (times, ago) in [(1, "1 minute"), (2, "3 minutes")] {
        left_behind(&session, &mut worker).await?;
        let sweep = session.number(SWEEP).await?;
        for _ in 0..2 {
            let step = worker.step().await?;
            ensure!(step.state == "waiting" && !step.done && step.wait == 60_000, "{step:?}");
            ensure!(step.reason.starts_with("1 row(s) were left to batches"), "{step:?}");
        }
        session
            .run(&format!("update migrator.upgraded set verified_at = clock_timestamp() - interval '{ago}'"))
            .await?;
        ensure!(worker.step().await?.state == "waiting", "it did not wait for {times} times as long");
        ensure!(session.number(SWEEP).await? == sweep, "a sweep has begun");
        session.run("update migrator.upgraded set verified_at = verified_at - interval '2 minutes'").await?;
        ensure!(worker.step().await?.state == "upgrading", "it waited for more than {times} times as long");
        ensure!(session.number(REPEATED).await? == times + 1, "it was not counted");
    }

    // At most 20 times as long, and no longer than an hour: a look that was held took as long as the hold.
    for (took, ago) in [("2 minutes", "39 minutes"), ("10 hours", "59 minutes")] {
        left_behind(&session, &mut worker).await?;
        session
            .run(&format!("update migrator.upgraded set repeated = 100, verify_took = '{took}', verified_at = clock_timestamp() - interval '{ago}'"))
            .await?;
        ensure!(worker.step().await?.state == "waiting", "it did not wait after {took}");
        let shown = session.row("select state, waits_for from migrator.upgrades").await?;
        ensure!(shown[0] == "running" && shown[1].contains("left to batches"), "{shown:?}");
        session.run("update migrator.upgraded set verified_at = verified_at - interval '2 minutes'").await?;
        ensure!(worker.step().await?.state == "upgrading", "it waited for longer after {took}");
    }

    // A migration that does the work itself does not wait.
    left_behind(&session, &mut worker).await?;
    ensure!(worker.step().await?.state == "waiting", "it did not wait");
    session.run("select migrator.ensure_upgraded('page', 'slug', drive => true)").await?;
    ensure!(
        session.number("select count(*) from page where slug is distinct from lower(title)").await? == 0,
        "rows lack it"
    );
    ensure!(session.number(REPEATED).await? == 0, "a look that finds nothing ends it");

    // Whoever resumes has it begin at once.
    session.run("select migrator.verify_upgrades('page')").await?;
    for _ in 0..2 {
        left_behind(&session, &mut worker).await?;
        session.run("update migrator.upgraded set repeated = 3").await?;
        ensure!(worker.step().await?.state == "waiting", "it did not wait");
        session.run("select migrator.resume_upgrades('page')").await?;
        ensure!(worker.step().await?.state == "upgrading", "it waits still");
    }
    worker.complete(&session).await?;
    ensure!(states(&session, "page").await? == "slug=complete", "{}", states(&session, "page").await?);
    Ok(())
}
