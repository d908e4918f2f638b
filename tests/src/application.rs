//! An application with statements of one kind each, and how long the slowest of them took.

use crate::{Database, Result};
use anyhow::ensure;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// An attempt lasts 50 ms; the rest is for a machine that has other things to do.
const LONGEST: Duration = Duration::from_millis(400);

/// Statements of an application, one after the other, each timed.
pub struct Application {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Result<(Duration, String, u32)>>>,
}

impl Application {
    /// Starts a session for each statement, which runs it over and over.
    pub async fn start(database: &Database, statements: &[&'static str]) -> Result<Application> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for statement in statements {
            let (session, stop) = (database.connect_as("postgres", "application").await?, stop.clone());
            let statement = *statement;
            tasks.push(tokio::spawn(async move {
                let (mut longest, mut count) = (Duration::ZERO, 0);
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    session.run(statement).await?;
                    longest = longest.max(begun.elapsed());
                    count += 1;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                Ok((longest, statement.to_owned(), count))
            }));
        }
        Ok(Application { stop, tasks })
    }

    /// Ends it, and insists that no statement waited longer than an attempt at the locks.
    pub async fn never_waited(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            let (longest, statement, count) = task.await??;
            ensure!(count > 10, "the application hardly ran: {count} × {statement}");
            ensure!(longest < LONGEST, "an application waited {longest:?} for: {statement}");
        }
        Ok(())
    }
}
