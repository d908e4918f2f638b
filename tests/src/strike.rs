//! Death of a worker at a named place: `migrator.crash_at`, in servers that were built with crash points.

use crate::{Cluster, Database, Result, Session, change};
use anyhow::ensure;
use std::time::{Duration, Instant};

/// Steps of a table's upgrades until the point has struck: `error`, or `kill`, after which the server is up again.
pub async fn strike(cluster: &Cluster, database: &Database, table: &str, point: &str, action: &str) -> Result<()> {
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
        match session.row(&format!("select done from migrator.step('{table}', 'one')")).await {
            Ok(row) if row[0] == "t" => {
                session.run(&format!("set migrator.crash_at = ''; select migrator.verify_upgrades('{table}')")).await?;
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    if action == "kill" {
        noticed(&witness).await?;
        cluster.wait_until_up().await?;
    }
    Ok(())
}

/// The server may still accept connections, until it has noticed that a backend died: then it ends them all.
pub async fn noticed(witness: &Session) -> Result<()> {
    let deadline = Instant::now() + change::PATIENCE;
    while witness.run("select 1").await.is_ok() {
        ensure!(Instant::now() < deadline, "the server did not notice that a backend died");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
