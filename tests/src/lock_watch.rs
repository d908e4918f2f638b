//! How long the lock of a swap lasts, seen by a second session.
//!
//! The session asks `pg_locks` every millisecond, in statements of their own: one long statement would hold a
//! snapshot, and a swap waits for old snapshots. Not more often: each look takes all partitions of the lock table, and
//! a session that does nothing else makes what it measures wait. A hold counts from the last look that did not see the lock to the
//! first look that no longer sees it, so what is reported is never too short; the gap between two looks is the error.

use crate::{Database, Result, Session};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

/// Looks at the locks until it is stopped.
pub struct LockWatch {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<Holds>>,
}

/// What was seen.
#[derive(Debug, Clone, Default)]
pub struct Holds {
    /// How long ACCESS EXCLUSIVE was held, each time, in order.
    pub each: Vec<Duration>,
    /// The longest time between two looks.
    pub widest_gap: Duration,
}

impl Holds {
    /// The longest hold; nothing when none was seen.
    pub fn longest(&self) -> Duration {
        self.each.iter().max().copied().unwrap_or_default()
    }
}

impl LockWatch {
    /// Starts to watch a table: the one that has the name now, whatever it will be called.
    pub async fn start(database: &Database, table: &str) -> Result<LockWatch> {
        let session = database.connect_as("postgres", "test:lock watch").await?;
        let table = session.value(&format!("select '{table}'::regclass::oid")).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move { look(&session, &table, &stopped).await });
        Ok(LockWatch { stop, task })
    }

    /// Ends it.
    pub async fn stop(self) -> Result<Holds> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

async fn look(session: &Session, table: &str, stop: &AtomicBool) -> Result<Holds> {
    let sql = format!(
        "select (extract(epoch from clock_timestamp()) * 1e6)::bigint, exists (select from pg_locks \
         where locktype = 'relation' and database = (select oid from pg_database where datname = current_database()) \
         and relation = {table} and mode = 'AccessExclusiveLock' and granted)"
    );
    let statement = session.client().prepare(&sql).await?;
    let mut holds = Holds::default();
    let (mut before, mut free) = (0_i64, 0_i64);
    let mut held = false;
    while !stop.load(Ordering::Relaxed) || held {
        let row = session.client().query_one(&statement, &[]).await?;
        let (now, locked): (i64, bool) = (row.get(0), row.get(1));
        if before != 0 {
            holds.widest_gap = holds.widest_gap.max(Duration::from_micros((now - before).unsigned_abs()));
        }
        match (held, locked) {
            (false, false) => free = now,
            (false, true) => held = true,
            (true, true) => {}
            (true, false) => {
                holds.each.push(Duration::from_micros((now - free).unsigned_abs()));
                (held, free) = (false, now);
            }
        }
        before = now;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(holds)
}
