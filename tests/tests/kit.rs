//! The kit itself: a ledger that nobody disturbs agrees with the tables, and one that somebody disturbs does not.

use migrator_tests::ledger::Ledger;
use migrator_tests::story::seconds;
use migrator_tests::*;
use std::time::Duration;

for_oldest_and_newest_server!(
    a_ledger_agrees_with_tables_that_nobody_changes,
    a_ledger_notices_a_wrong_row,
    a_ledger_outlives_crashes,
);

async fn a_ledger_agrees_with_tables_that_nobody_changes(server: Server) -> Result<()> {
    let database = Database::create(&server.shared().await?, false).await?;
    let mut ledger = Ledger::lay_out(&database, 4, 400, 3000).await?;
    ledger.start();
    ledger.live(seconds(3, 30)).await?;
    ledger.check(async || Ok(())).await?;
    ledger.more(20).await?;
    let counts = ledger.stop().await?;
    ensure!(counts.statements > 100, "too little was written: {counts:?}");
    Ok(())
}

async fn a_ledger_notices_a_wrong_row(server: Server) -> Result<()> {
    for disturbance in [
        "delete from orders where id = (select max(id) from orders where id < 100)",
        "alter table orders disable trigger user; update orders set note = '' where id = 5",
        "update orders set amount = 0 where id = 1000003",
        "insert into audit values (0, 'forged')",
    ] {
        let database = Database::create(&server.shared().await?, false).await?;
        let mut ledger = Ledger::lay_out(&database, 2, 100, 100).await?;
        ledger.check(async || Ok(())).await?;
        database.connect().await?.run(disturbance).await?;
        ensure!(ledger.check(async || Ok(())).await.is_err(), "not noticed: {disturbance}");
    }
    Ok(())
}

async fn a_ledger_outlives_crashes(server: Server) -> Result<()> {
    let cluster = server.cluster(&cluster::DURABLE).await?;
    let database = Database::create(&cluster, false).await?;
    let mut ledger = Ledger::lay_out(&database, 3, 300, 100).await?;
    ledger.expect_crashes();
    ledger.start();
    for _ in 0..2 {
        ledger.live(Duration::from_millis(400)).await?;
        cluster.crash().await?;
        ledger.more(10).await?;
        ledger.check(async || Ok(())).await?;
    }
    ledger.stop().await?;
    Ok(())
}
