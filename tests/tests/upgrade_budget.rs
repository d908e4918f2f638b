//! How many rows may fail before a run stops: a hundred, or a thousandth of the rows that it has passed, if that is more.

use migrator_tests::upgrades::Worker;
use migrator_tests::*;

for_each_server!(a_thousandth_of_many_rows, tried_again_in_a_young_sweep);

/// 150,000 rows, of which those with these ids do not fit.
async fn lay_out(server: &Server, bad: &str) -> Result<(Session, Worker)> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(&format!(
            "create table reading (id int primary key, a text, b int) with (autovacuum_enabled = off);
             insert into reading select g, case when {bad} then 'bad' else '1' end from generate_series(1, 150000) g; analyze reading;
             select migrator.register_upgrade('reading', 'b', '{{\"b\": \"a::int\"}}')"
        ))
        .await?;
    let worker = Worker::new(&database, "reading", "w").await?;
    Ok((session, worker))
}

const FAILED: &str = "select count(*) from migrator.upgrade_failures";
const ATTEMPTS: &str = "select sum(attempts) from migrator.upgrade_failures";

async fn a_thousandth_of_many_rows(server: Server) -> Result<()> {
    // 130 of 150,000, evenly: at no time more than a hundred or a thousandth.
    let (session, mut worker) = lay_out(&server, "g % 1150 = 0").await?;
    let step = worker.run().await?;
    ensure!(step.state == "waiting" && step.reason.starts_with("130 row(s) are set aside"), "{step:?}");
    ensure!(session.number(FAILED).await? == 130, "{} rows are set aside", session.number(FAILED).await?);
    let done = session.number("select count(*) from reading where b = 1 and applied_upgrades = '{b}'").await?;
    ensure!(done == 149_870, "{done} rows are done");

    // They fail again in the next sweep, from its beginning.
    session
        .run(
            "alter table reading add column c int; select migrator.register_upgrade('reading', 'c', '{\"c\": \"id\"}')",
        )
        .await?;
    let step = worker.run().await?;
    ensure!(step.state == "waiting" && step.reason.starts_with("130 row(s) are set aside"), "the next sweep: {step:?}");

    // 280 of the last 2,800: when the 150th or so has failed, it is over.
    let (session, mut worker) = lay_out(&server, "g > 147200 and g % 10 = 0").await?;
    let step = worker.run().await?;
    ensure!(step.state == "blocked" && step.reason.contains(" rows failed, more than the 14"), "{step:?}");
    let failed = session.number(FAILED).await?;
    ensure!((140..280).contains(&failed), "{failed} rows failed before it stopped");
    // Those may, somebody says: the 130 that are left at most are not too many.
    session.run("select migrator.resume_upgrades('reading')").await?;
    let step = worker.run().await?;
    ensure!(step.state == "waiting" && step.reason.starts_with("280 row(s) are set aside"), "{step:?}");
    Ok(())
}

/// What failed before counts when the sweep comes to it: not when somebody tries it again, nor by the hand of a writer.
async fn tried_again_in_a_young_sweep(server: Server) -> Result<()> {
    let (session, mut worker) = lay_out(&server, "g % 1150 = 0").await?;
    worker.run().await?;
    ensure!(session.number(FAILED).await? == 130, "{} rows are set aside", session.number(FAILED).await?);

    session
        .run("alter table reading add column c int; select migrator.register_upgrade('reading', 'c', '{\"c\": \"id\"}', batch_size => 2000)")
        .await?;
    worker.step().await?;
    let before = session.number(ATTEMPTS).await?;
    session.run("select migrator.retry_failed('reading')").await?;
    let again = session.number(ATTEMPTS).await? - before;
    ensure!(again == 130, "{again} of them have failed again");
    session.run("update reading set c = 0 where a = 'bad' and id > 75000").await?;
    let written = session.number(ATTEMPTS).await? - before - again;
    ensure!(written == 65, "{written} of them have failed by a writer's hand");
    // One of the first rows, so that it is looked whether that are too many.
    let step = worker.until(|step| step.failed >= 1 || step.done).await?;
    ensure!(step.state == "upgrading", "{step:?}");
    let step = worker.run().await?;
    ensure!(step.state == "waiting" && step.reason.starts_with("130 row(s) are set aside"), "{step:?}");
    Ok(())
}
