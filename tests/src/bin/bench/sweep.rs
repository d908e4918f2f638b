//! Sweeps, driven as the agent drives them: step by step, VACUUM where it is asked for on a connection of its own.

use super::beside::Beside;
use super::timed;
use migrator_tests::*;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

/// Of one table, by one worker.
pub struct Worker {
    database: Database,
    session: Session,
    sql: String,
    /// One VACUUM of a table at a time.
    vacuums: Arc<Mutex<()>>,
    cleaning: Vec<JoinHandle<Result<()>>>,
}

/// What a call did.
pub struct Step {
    pub begun: Instant,
    pub took: Duration,
    pub state: String,
    pub rows: f64,
    pub done: bool,
    pub wait: Duration,
}

impl Step {
    /// Whether it wrote rows.
    pub fn is_batch(&self) -> bool {
        self.state == "upgrading" && self.rows > 0.0
    }
}

impl Worker {
    pub async fn new(database: &Database, table: &str, name: &str, vacuums: &Arc<Mutex<()>>) -> Result<Worker> {
        let session = database.connect_as("postgres", "bench:upgrade").await?;
        let sql = format!(
            "select state, rows, done, wait_ms, coalesce(statement, '') from migrator.step('{table}', '{name}')"
        );
        Ok(Worker { database: database.clone(), session, sql, vacuums: vacuums.clone(), cleaning: vec![] })
    }

    /// One call, and what it asks for; not the wait after it.
    pub async fn step(&mut self) -> Result<Step> {
        let begun = Instant::now();
        let (seconds, row) = timed(async { Ok(self.session.row(&self.sql).await?) }).await?;
        if !row[4].is_empty() {
            let (database, vacuums, statement) = (self.database.clone(), self.vacuums.clone(), row[4].clone());
            self.cleaning.push(tokio::spawn(async move {
                let _one = vacuums.lock().await;
                database.connect_as("postgres", "bench:vacuum").await?.run(&statement).await?;
                Ok(())
            }));
        }
        Ok(Step {
            begun,
            took: Duration::from_secs_f64(seconds),
            state: row[0].clone(),
            rows: row[1].parse()?,
            done: row[2] == "t",
            wait: Duration::from_millis(row[3].parse()?),
        })
    }

    /// Calls until rows were written, or until there is nothing left to write: the seconds and rows of that batch.
    pub async fn batch(&mut self) -> Result<Option<(f64, f64)>> {
        loop {
            let step = self.step().await?;
            if step.is_batch() {
                return Ok(Some((step.took.as_secs_f64(), step.rows)));
            }
            if step.done || step.state != "upgrading" {
                return Ok(None);
            }
            tokio::time::sleep(step.wait).await;
        }
    }

    /// When all that it asked for is done.
    pub async fn end(self) -> Result<()> {
        for vacuum in self.cleaning {
            vacuum.await??;
        }
        Ok(())
    }
}

/// What a whole sweep did.
#[derive(Default)]
pub struct Swept {
    /// Seconds until the last row was written.
    pub seconds: f64,
    /// Seconds of the look at all rows after that.
    pub verified: f64,
    pub longest: Longest,
}

/// The longest transaction, in seconds.
#[derive(Default, Clone)]
pub struct Longest {
    /// But for what somebody who wrote one row beside it waited within its time.
    pub alone: f64,
    /// What it did.
    pub what: String,
    /// The longest with that.
    pub whole: f64,
    /// The longest of those other writes, and what all but one in a thousand took.
    pub beside: f64,
    pub usual: f64,
}

impl Longest {
    #[must_use]
    pub fn or(self, other: Longest) -> Longest {
        let (whole, beside, usual) =
            (self.whole.max(other.whole), self.beside.max(other.beside), self.usual.max(other.usual));
        let longer = if other.alone > self.alone { other } else { self };
        Longest { whole, beside, usual, ..longer }
    }
}

/// A table's sweep from some connections, to its end.
pub async fn sweep(database: &Database, table: &str, workers: usize) -> Result<Swept> {
    let beside = Beside::begin(database).await?;
    let begun = Instant::now();
    let vacuums = Arc::new(Mutex::new(()));
    let mut tasks = Vec::new();
    for number in 0..workers {
        let mut worker = Worker::new(database, table, &format!("w{number}"), &vacuums).await?;
        tasks.push(tokio::spawn(async move {
            let mut steps = Vec::new();
            loop {
                let step = worker.step().await?;
                let (done, wait) = (step.done, step.wait);
                steps.push(step);
                if done {
                    break;
                }
                tokio::time::sleep(wait).await;
            }
            worker.end().await?;
            Ok::<Vec<Step>, anyhow::Error>(steps)
        }));
    }
    let mut steps = Vec::new();
    for task in tasks {
        steps.extend(task.await??);
    }
    let whole = begun.elapsed().as_secs_f64();
    let written =
        steps.iter().filter(|step| step.is_batch()).map(|step| (step.begun + step.took - begun).as_secs_f64());
    let seconds = written.fold(0.0, f64::max);
    let writes = beside.end().await?;
    let mut longest = Longest { beside: writes.longest(), usual: writes.usual(), ..Longest::default() };
    for step in steps {
        let whole = step.took.as_secs_f64();
        let alone = whole - writes.waited(step.begun, step.took);
        longest = longest.or(Longest { alone, whole, what: step.state, ..Longest::default() });
    }
    Ok(Swept { seconds, verified: whole - seconds, longest })
}
