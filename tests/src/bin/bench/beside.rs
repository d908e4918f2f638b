//! A bystander who writes one row, over and over, while others are measured.
//!
//! Where the disk stands still for a moment every write waits for it: a batch as well as the smallest transaction beside it. What the
//! bystander waited in the same moment is no part of how long a batch is.

use migrator_tests::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// The bystander at work.
pub struct Beside {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<Writes>>,
}

/// When each write began, and how long it took.
#[derive(Default, Clone)]
pub struct Writes(Vec<(Instant, Duration)>);

impl Beside {
    /// Begins, in a table of its own; commits do not wait for the disk, as those of batches do not.
    pub async fn begin(database: &Database) -> Result<Beside> {
        let session = database.connect_as("postgres", "bench:beside").await?;
        session
            .run("create table if not exists beside (n int); truncate beside; insert into beside values (0); set synchronous_commit = off")
            .await?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut writes = Writes::default();
            while !stopped.load(Ordering::Relaxed) {
                let begun = Instant::now();
                session.run("update beside set n = n + 1").await?;
                writes.0.push((begun, begun.elapsed()));
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(writes)
        });
        Ok(Beside { stop, task })
    }

    /// Ends, and tells.
    pub async fn end(mut self) -> Result<Writes> {
        self.stop.store(true, Ordering::Relaxed);
        (&mut self.task).await?
    }
}

impl Drop for Beside {
    /// Where what was measured failed, nobody asks for the writes.
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Writes {
    /// Those that began at such a time.
    pub fn within(&self, times: &[(Instant, Instant)]) -> Writes {
        let fits = |(begun, _): &&(Instant, Duration)| times.iter().any(|(from, to)| from <= begun && begun < to);
        Writes(self.0.iter().filter(fits).copied().collect())
    }

    /// The longest write, in seconds.
    pub fn longest(&self) -> f64 {
        self.0.iter().map(|(_, took)| took.as_secs_f64()).fold(0.0, f64::max)
    }

    /// What all but one write in a thousand took at most, in seconds: the longest alone is one moment of one machine.
    pub fn usual(&self) -> f64 {
        let mut took: Vec<f64> = self.0.iter().map(|(_, took)| took.as_secs_f64()).collect();
        took.sort_by(f64::total_cmp);
        took.get(took.len().saturating_sub(1) * 999 / 1000).copied().unwrap_or(0.0)
    }

    /// How much of a call was over while one and the same write waited, in seconds.
    pub fn waited(&self, begun: Instant, took: Duration) -> f64 {
        let end = begun + took;
        let within = |(from, wait): &(Instant, Duration)| {
            (*from + *wait).min(end).saturating_duration_since(begun.max(*from)).as_secs_f64()
        };
        self.0.iter().map(within).fold(0.0, f64::max)
    }
}
