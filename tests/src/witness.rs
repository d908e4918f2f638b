//! A client that writes rows of its own into a table with the columns of pgbench_accounts, remembers what it was told,
//! and compares.

use crate::{Database, Result, Session, SqlError};
use anyhow::ensure;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

/// Its rows begin here.
const FIRST: i64 = 1_500_000_000;

/// What the witness knows.
#[derive(Debug, Default, Clone)]
pub struct Testimony {
    /// Statements sent.
    pub statements: u64,
    /// Statements that failed, with the server's words.
    pub failed: Vec<String>,
    /// The longest statement.
    pub longest: Duration,
    /// Rows that were not as they should be, each time it looked.
    pub mismatches: u64,
    rows: BTreeMap<i64, i64>,
}

/// A witness at work.
pub struct Witness {
    database: Database,
    table: String,
    known: Arc<Mutex<Testimony>>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<(), SqlError>>,
}

impl Witness {
    /// Starts to write into a table.
    pub async fn start(database: &Database, table: &str, seed: u64) -> Result<Witness> {
        let session = database.connect_as("postgres", "witness").await?;
        let known = Arc::new(Mutex::new(Testimony::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(write(session, table.to_owned(), known.clone(), stop.clone(), seed));
        Ok(Witness { database: database.clone(), table: table.to_owned(), known, stop, task })
    }

    /// Compares its rows in the table with what it was told; returns what it knows.
    pub async fn check(&self) -> Result<Testimony> {
        let session = self.database.connect().await?;
        let mut known = self.known.lock().await;
        let mut found = BTreeMap::new();
        for row in session.rows(&format!("select aid, abalance from {} where aid >= {FIRST}", self.table)).await? {
            let mut row = row.into_iter().flatten();
            let (id, balance) = (row.next().unwrap_or_default(), row.next().unwrap_or_default());
            found.insert(id.parse::<i64>()?, balance.parse::<i64>()?);
        }
        let wrong = known.rows.iter().filter(|(id, balance)| found.get(id) != Some(balance)).count()
            + found.keys().filter(|id| !known.rows.contains_key(id)).count();
        known.mismatches += wrong as u64;
        Ok(known.clone())
    }

    /// Ends it after a last look.
    pub async fn stop(self) -> Result<Testimony> {
        self.stop.store(true, Ordering::Relaxed);
        let testimony = self.check().await?;
        self.task.await??;
        ensure!(testimony.statements > 0, "the witness did nothing");
        Ok(testimony)
    }
}

async fn write(
    session: Session,
    table: String,
    known: Arc<Mutex<Testimony>>,
    stop: Arc<AtomicBool>,
    seed: u64,
) -> Result<(), SqlError> {
    let mut rng = StdRng::seed_from_u64(seed);
    while !stop.load(Ordering::Relaxed) {
        {
            // Whoever compares waits for the answer to this statement, and the next statement for the comparison.
            let mut known = known.lock().await;
            let some = known.rows.keys().choose(&mut rng).copied();
            let balance = rng.random_range(-1_000_000..1_000_000);
            let new = FIRST + rng.random_range(0..100_000);
            let (sql, after) = match (rng.random_range(0..10), some) {
                (0, Some(id)) => (format!("delete from {table} where aid = {id}"), vec![(id, None)]),
                (1, Some(id)) if !known.rows.contains_key(&new) => (
                    format!("update {table} set aid = {new} where aid = {id}"),
                    vec![(id, None), (new, Some(known.rows[&id]))],
                ),
                (2..6, Some(id)) => {
                    (format!("update {table} set abalance = {balance} where aid = {id}"), vec![(id, Some(balance))])
                }
                _ if !known.rows.contains_key(&new) => (
                    format!("insert into {table} (aid, bid, abalance, filler) values ({new}, 1, {balance}, 'witness')"),
                    vec![(new, Some(balance))],
                ),
                _ => continue,
            };
            let begun = Instant::now();
            let answer = session.run(&sql).await;
            known.statements += 1;
            known.longest = known.longest.max(begun.elapsed());
            match answer {
                Ok(1) => {
                    for (id, balance) in after {
                        match balance {
                            Some(balance) => known.rows.insert(id, balance),
                            None => known.rows.remove(&id),
                        };
                    }
                }
                Ok(touched) => known.failed.push(format!("touched {touched} rows: {sql}")),
                Err(error) if error.is_lost() => return Err(error),
                Err(error) => known.failed.push(error.to_string()),
            }
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    Ok(())
}
