//! Whether a batch takes longer when most of its table is done.
//!
//! The last quarter of a sweep is minutes after its first, in which a machine that others use as well becomes slower or faster by more
//! than what is asked. So the last quarter of one table and the first of another are done in turn, batch by batch.

use super::sweep::Worker;
use super::upgrades::{articles, blocks};
use super::{Line, median};
use migrator_tests::*;

/// A row of late batches against one of early ones.
pub async fn measure(database: &Database, session: &Session, rows: i64) -> Result<Line> {
    const OTHER: &str = "article_too";
    let mut workers = Vec::new();
    for table in ["article", OTHER] {
        articles(session, table, rows).await?;
        blocks(session, table).await?;
        workers.push(Worker::new(database, table, "worker", &Default::default()).await?);
    }
    let [late, early] = &mut workers[..] else { bail!("two tables") };
    for (worker, part) in [(&mut *late, 0.75), (&mut *early, 0.025)] {
        // The first batches look for their size.
        let mut written = 0.0;
        while written < rows as f64 * part {
            written += worker.batch().await?.context("there are rows left")?.1;
        }
    }
    let (mut late_costs, mut early_costs) = (vec![], vec![]);
    while let Some((seconds, rows)) = late.batch().await? {
        late_costs.push(seconds / rows * 1e6);
        let (seconds, rows) = early.batch().await?.context("most of the other table is left")?;
        early_costs.push(seconds / rows * 1e6);
    }
    for worker in workers {
        worker.end().await?;
    }
    session.run(&format!("drop table {OTHER} cascade")).await?;
    Ok(Line {
        name: "last batch / first batch, a row",
        ours: median(&late_costs),
        theirs: Some(median(&early_costs)),
        unit: "µs",
        limit: 1.2,
        note:
            "the last quarter of one table and the first of another of the same size, batch by batch in turn; medians"
                .into(),
    })
}
