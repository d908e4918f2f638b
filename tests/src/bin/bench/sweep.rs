//! Sweeps, driven as the agent drives them: step by step, VACUUM where it is asked for on a connection of its own.

use super::beside::Writes;
use super::timed;
use super::turns::{TURN, Turns};
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
    done: bool,
}

/// What a call did.
pub struct Step {
    begun: Instant,
    took: Duration,
    state: String,
    rows: f64,
    wait: Duration,
}

impl Step {
    /// Whether it wrote rows.
    fn is_batch(&self) -> bool {
        self.state == "upgrading" && self.rows > 0.0
    }
}

impl Worker {
    pub async fn new(database: &Database, table: &str, name: &str, vacuums: &Arc<Mutex<()>>) -> Result<Worker> {
        let session = database.connect_as("postgres", "bench:upgrade").await?;
        let sql = format!(
            "select state, rows, done, wait_ms, coalesce(statement, '') from migrator.step('{table}', '{name}')"
        );
        let vacuums = vacuums.clone();
        Ok(Worker { database: database.clone(), session, sql, vacuums, cleaning: vec![], done: false })
    }

    /// One call, and what it asks for; not the wait after it.
    async fn step(&mut self) -> Result<Step> {
        let begun = Instant::now();
        let (seconds, row) = timed(self.session.row(&self.sql)).await?;
        if !row[4].is_empty() {
            let (database, vacuums, statement) = (self.database.clone(), self.vacuums.clone(), row[4].clone());
            self.cleaning.push(tokio::spawn(async move {
                let _one = vacuums.lock().await;
                database.connect_as("postgres", "bench:vacuum").await?.run(&statement).await?;
                Ok(())
            }));
        }
        self.done = row[2] == "t";
        Ok(Step {
            begun,
            took: Duration::from_secs_f64(seconds),
            state: row[0].clone(),
            rows: row[1].parse()?,
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
            if self.done || step.state != "upgrading" {
                return Ok(None);
            }
            tokio::time::sleep(step.wait).await;
        }
    }

    /// Calls until then, and for as long as a VACUUM runs that it asked for.
    async fn until(mut self, end: Instant) -> Result<(Worker, Vec<Step>)> {
        let mut steps = vec![];
        while !self.done && (Instant::now() < end || self.cleaning.iter().any(|vacuum| !vacuum.is_finished())) {
            let step = self.step().await?;
            let wait = step.wait;
            steps.push(step);
            if !self.done {
                tokio::time::sleep(wait).await;
            }
        }
        Ok((self, steps))
    }

    /// When all that it asked for is done.
    pub async fn end(self) -> Result<()> {
        for vacuum in self.cleaning {
            vacuum.await??;
        }
        Ok(())
    }
}

/// A table's sweep from some connections.
pub struct Sweep {
    workers: Vec<Worker>,
    steps: Vec<Step>,
    turns: Vec<(Instant, Instant)>,
    /// Seconds of its turns, and of those until the last row was written.
    whole: f64,
    seconds: f64,
}

/// What a whole sweep did.
pub struct Swept {
    /// Seconds until the last row was written.
    pub seconds: f64,
    /// Seconds of the look at all rows after that.
    pub verified: f64,
    pub longest: Longest,
}

impl Sweep {
    pub async fn new(database: &Database, table: &str, workers: usize) -> Result<Sweep> {
        let vacuums = Arc::new(Mutex::new(()));
        let mut all = vec![];
        for number in 0..workers {
            all.push(Worker::new(database, table, &format!("w{number}"), &vacuums).await?);
        }
        Ok(Sweep { workers: all, steps: vec![], turns: vec![], whole: 0.0, seconds: 0.0 })
    }

    /// When it has had its last turn. `writes` went on beside it.
    pub async fn end(self, writes: &Writes) -> Result<Swept> {
        for worker in self.workers {
            worker.end().await?;
        }
        let mine = writes.within(&self.turns);
        let mut longest = Longest { beside: mine.longest(), usual: mine.usual(), ..Longest::default() };
        for step in self.steps {
            let whole = step.took.as_secs_f64();
            let alone = whole - writes.waited(step.begun, step.took);
            longest = longest.or(Longest { alone, whole, what: step.state, ..Longest::default() });
        }
        Ok(Swept { seconds: self.seconds, verified: self.whole - self.seconds, longest })
    }
}

impl Turns for Sweep {
    async fn turn(&mut self) -> Result<bool> {
        if self.workers.iter().all(|worker| worker.done) {
            return Ok(false);
        }
        let begun = Instant::now();
        let tasks: Vec<_> = self.workers.drain(..).map(|worker| tokio::spawn(worker.until(begun + TURN))).collect();
        for task in tasks {
            let (worker, steps) = task.await??;
            self.workers.push(worker);
            for step in &steps {
                if step.is_batch() {
                    self.seconds = self.seconds.max(self.whole + (step.begun + step.took - begun).as_secs_f64());
                }
            }
            self.steps.extend(steps);
        }
        self.turns.push((begun, Instant::now()));
        self.whole += begun.elapsed().as_secs_f64();
        Ok(self.workers.iter().any(|worker| !worker.done))
    }
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
