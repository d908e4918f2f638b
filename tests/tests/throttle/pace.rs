//! WAL is written at the rate that a DBA set: who has written his share rests, and so do all others, until it is paid off or the
//! rate is another one.

use crate::watched::Watched;
use migrator_tests::*;

const RESTS: &str = "rests so that batches write no more than";

pub async fn wal_is_written_at_a_rate(server: Server) -> Result<()> {
    let cluster = server.cluster(&[("autovacuum", "off")]).await?;
    for watched in [Watched::of(&cluster).await?, Watched::of_upgrades(&cluster).await?] {
        let session = &watched.session;
        let batch = watched.look().await?;
        ensure!(batch.rows > 0 && batch.wait.is_zero(), "{batch:?}");

        // A batch of a row writes more than a byte, and more than these an hour takes.
        watched.limit("'wal_rate', '1'").await?;
        let batch = watched.look().await?;
        ensure!(batch.rows > 0 && batch.reason.contains(RESTS) && !batch.wait.is_zero(), "{batch:?}");
        for _ in 0..3 {
            let rest = watched.look().await?;
            ensure!(
                rest.rows == 0 && rest.reason.contains("1 bytes of WAL a second") && !rest.wait.is_zero(),
                "{rest:?}"
            );
        }
        let status = watched.waits_for().await?;
        ensure!(status.contains(RESTS) && status.contains("(since "), "{status}");
        let ahead = "select extract(epoch from paid_at - clock_timestamp())::int from migrator.wal_pace";
        ensure!(
            session.number(ahead).await? > 30,
            "what it wrote is paid off already: {}",
            session.value(ahead).await?
        );
        // The session that wrote is not the one that owes it.
        let other = if watched.upgrades() {
            "select rows from migrator.step('busy', 'other')"
        } else {
            "select rows from migrator.copy_batch('busy')"
        };
        ensure!(session.number(other).await? == 0, "another worker does not rest");

        // What was put down at another rate is forgotten.
        watched.limit("'wal_rate', '100 TB'").await?;
        for _ in 0..3 {
            let batch = watched.look().await?;
            ensure!(batch.rows > 0, "{batch:?}");
        }
        let shown = session.row("select verdict, enter from migrator.signals where signal = 'wal_rate'").await?;
        ensure!(shown == ["go", "100 TB"], "{shown:?}");
        watched.limit("'wal_rate'").await?;
        let shown = session.row("select verdict, enter from migrator.signals where signal = 'wal_rate'").await?;
        ensure!(shown == ["go", "off"], "{shown:?}");
        watched.until_over("wal_rate").await?;
    }
    Ok(())
}
