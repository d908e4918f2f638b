//! A table change, driven through the SQL functions as an agent drives it.

use crate::session::literal;
use crate::{Database, Result, Session, SqlError};
use anyhow::{bail, ensure};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// How long a step may need at most before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// An open change.
#[derive(Clone)]
pub struct Change {
    database: Database,
    /// Its number.
    pub id: i64,
}

/// One answer of `advance`.
#[derive(Debug, Clone)]
pub struct Advance {
    /// The change's state afterwards.
    pub state: String,
    /// What was done.
    pub step: String,
    /// Rows that the step handled.
    pub rows: i64,
    /// Nothing more to do before a decision.
    pub done: bool,
    /// How long to wait before the next call.
    pub wait: Duration,
    /// Why it waits.
    pub reason: String,
    /// What the caller runs outside a transaction before the next call.
    pub statement: String,
}

/// The optional arguments of `create_shadow`, as SQL: `transform => '…'`.
pub fn arguments(transform: &str, reverse: &str) -> String {
    format!("transform => {}, reverse => {}", literal(transform), literal(reverse))
}

impl Change {
    /// Starts a change with ALTER TABLE actions.
    pub async fn create(database: &Database, table: &str, actions: &str) -> Result<Change> {
        Change::create_with(database, table, &format!("actions => {}", literal(actions))).await
    }

    /// Starts a change with arguments as SQL.
    pub async fn create_with(database: &Database, table: &str, arguments: &str) -> Result<Change> {
        let session = database.connect_as("postgres", "test:change").await?;
        Change::create_in(database, &session, table, arguments).await
    }

    /// Starts a change in a session that exists: with its role and its settings.
    pub async fn create_in(database: &Database, session: &Session, table: &str, arguments: &str) -> Result<Change> {
        let sql = format!("select migrator.create_shadow({}, {arguments})", literal(table));
        Ok(Change { database: database.clone(), id: session.number(&sql).await? })
    }

    /// A change that exists.
    pub fn of(database: &Database, id: i64) -> Change {
        Change { database: database.clone(), id }
    }

    /// A session for driving it.
    pub async fn session(&self) -> Result<Session, SqlError> {
        self.database.connect_as("postgres", "test:change").await
    }

    /// One step. The statement that it asks for, if any, is run as well.
    pub async fn advance(&self, session: &Session) -> Result<Advance, SqlError> {
        let sql = format!(
            "select state, step, coalesce(rows, 0), done, coalesce(wait_ms, 0), coalesce(reason, ''), \
             coalesce(statement, '') from migrator.advance({})",
            self.id
        );
        let rows = session.rows(&sql).await?;
        let mut row = rows.into_iter().next().unwrap_or_default().into_iter().map(Option::unwrap_or_default);
        let mut next = || row.next().unwrap_or_default();
        let advance = Advance {
            state: next(),
            step: next(),
            rows: next().parse().unwrap_or(0),
            done: next() == "t",
            wait: Duration::from_millis(next().parse().unwrap_or(0)),
            reason: next(),
            statement: next(),
        };
        if !advance.statement.is_empty() {
            session.run(&advance.statement).await?;
        }
        Ok(advance)
    }

    /// Steps until nothing is left to do before a decision, and returns the state. Errors worth a retry are retried.
    pub async fn until_done(&self) -> Result<String> {
        self.until(|advance| advance.done).await.map(|advance| advance.state)
    }

    /// Steps until an answer satisfies.
    pub async fn until(&self, enough: impl Fn(&Advance) -> bool) -> Result<Advance> {
        let session = self.session().await?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let last = match self.advance(&session).await {
                Ok(advance) if enough(&advance) => return Ok(advance),
                Ok(advance) => {
                    tokio::time::sleep(advance.wait.min(Duration::from_secs(1))).await;
                    format!("{advance:?}")
                }
                Err(error) if error.is_worth_retrying() => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    error.to_string()
                }
                Err(error) => return Err(error.into()),
            };
            ensure!(Instant::now() < deadline, "change {} does not get there; last: {last}", self.id);
        }
    }

    /// Steps until the change is ready to be swapped.
    pub async fn until_ready(&self) -> Result<()> {
        let state = self.until(|advance| advance.done || advance.state == "ready").await?.state;
        ensure!(state == "ready", "the change should be ready and is {state}: {}", self.told().await?);
        Ok(())
    }

    /// Prepares, swaps and finishes.
    pub async fn through(&self) -> Result<()> {
        self.until_ready().await?;
        self.swap().await?;
        self.until_in_step().await?;
        self.finish().await
    }

    /// The table that is not in use: the shadow before the swap, the backup after it.
    pub async fn rear(&self) -> Result<String> {
        let sql = format!("select relation from migrator.history where change = {}", self.id);
        let relation = self.session().await?.value(&sql).await?;
        let schema = if self.state().await? == "swapped" { "backup" } else { "shadow" };
        let name = relation.split_once('.').map_or(relation.as_str(), |(_, name)| name);
        Ok(format!("migrator_{schema}_{}.{name}", self.id))
    }

    /// Steps until the table that is not in use holds everything committed before the call, as far as
    /// the change itself says so. Clients must be at rest.
    pub async fn until_in_step(&self) -> Result<()> {
        self.until(|advance| advance.done && advance.rows == 0).await.map(|_| ())
    }

    /// Keeps the change going in the background, with so many connections, as an agent does.
    pub fn keep_going(&self, connections: usize) -> Driver {
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = (0..connections)
            .map(|_| {
                let (change, stop) = (self.clone(), stop.clone());
                tokio::spawn(async move { change.drive(&stop).await })
            })
            .collect();
        Driver { stop, tasks }
    }

    async fn drive(&self, stop: &AtomicBool) -> Result<()> {
        let mut session = None;
        let mut lost_since = None;
        while !stop.load(Ordering::Relaxed) {
            if session.is_none() {
                session = self.session().await.ok();
            }
            let outcome = match &session {
                Some(session) => self.advance(session).await,
                None => Err(SqlError::lost()),
            };
            match outcome {
                Ok(advance) if matches!(advance.state.as_str(), "finished" | "cancelled") => return Ok(()),
                Ok(advance) => {
                    lost_since = None;
                    let wait = if advance.done { advance.wait.max(Duration::from_millis(50)) } else { advance.wait };
                    tokio::time::sleep(wait.min(Duration::from_millis(500))).await;
                }
                Err(error) if error.is_lost() => {
                    session = None;
                    let since = *lost_since.get_or_insert_with(Instant::now);
                    ensure!(since.elapsed() < PATIENCE, error);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) if error.is_worth_retrying() => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Where the change stands, as `status` tells it.
    pub async fn state(&self) -> Result<String> {
        let sql = format!("select state from migrator.history where change = {}", self.id);
        Ok(self.session().await?.value(&sql).await?)
    }

    /// The whole line of `status`, for messages.
    pub async fn told(&self) -> Result<String> {
        let sql = format!("select row_to_json(h) from migrator.history h where change = {}", self.id);
        Ok(self.session().await?.value(&sql).await?)
    }

    /// Waits, while somebody else drives, until the state is this one.
    pub async fn wait_for(&self, state: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // A server that was just killed does not answer for a moment.
            let now = self.state().await.unwrap_or_default();
            if now == state {
                return Ok(());
            }
            ensure!(now != "blocked", "blocked on its way to {state}: {}", self.told().await?);
            ensure!(Instant::now() < deadline, "not {state} in time: {}", self.told().await?);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Swaps. A swap that says why it cannot be now is asked for again, and so is one that was disturbed.
    pub async fn swap(&self) -> Result<()> {
        self.decide("swap", "swapped").await
    }

    /// Takes the swap back.
    pub async fn rollback(&self) -> Result<()> {
        self.decide("rollback", "rolled_back").await
    }

    async fn decide(&self, verb: &str, column: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let sql = format!("select {column}, coalesce(reason, '') from migrator.{verb}(change => {})", self.id);
        loop {
            let session = self.session().await?;
            let why = match session.row(&sql).await {
                Ok(row) if row[0] == "t" => return Ok(()),
                Ok(row) => row[1].clone(),
                Err(error) => match error.downcast_ref::<SqlError>() {
                    // 55006: a session with an old snapshot is in the way, for now
                    Some(refusal) if refusal.is_worth_retrying() || refusal.code == "55006" => {
                        // Or much was written meanwhile, which an exchange does not replay itself.
                        let told = refusal.to_string();
                        let _ = self.advance(&session).await;
                        told
                    }
                    _ => return Err(error),
                },
            };
            if Instant::now() > deadline {
                bail!("no {verb} in time: {why}; {}", self.told().await?);
            }
            // What was written meanwhile is replayed, as an agent would, before the next try.
            let _ = self.advance(&session).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends it after the swap, once the foreign keys that the swap made are validated.
    pub async fn finish(&self) -> Result<()> {
        self.retried(&format!("select migrator.validate(change => {})", self.id)).await?;
        self.end("finish", "finished").await
    }

    /// Gives it up before the swap.
    pub async fn cancel(&self) -> Result<()> {
        self.end("cancel", "cancelled").await
    }

    async fn end(&self, verb: &str, state: &str) -> Result<()> {
        let now = self.retried(&format!("select migrator.{verb}(change => {})", self.id)).await?;
        ensure!(now == state, "{verb} left the change {now}");
        Ok(())
    }

    /// Asks for a value until no lock is in the way.
    async fn retried(&self, sql: &str) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.session().await?.value(sql).await {
                Ok(value) => return Ok(value),
                // 55006: a session with an old snapshot is in the way, for now
                Err(error) if (error.is_worth_retrying() || error.code == "55006") && Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Verifies, and insists on no difference.
    pub async fn verify(&self) -> Result<i64> {
        let sql = format!("select compared, mismatched from migrator.verify(change => {})", self.id);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.session().await?.row(&sql).await {
                Ok(row) => {
                    ensure!(row[1] == "0", "verify finds {} different rows of {}", row[1], row[0]);
                    return Ok(row[0].parse()?);
                }
                Err(error) => match error.downcast_ref::<SqlError>() {
                    Some(refusal) if refusal.is_worth_retrying() && Instant::now() < deadline => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    _ => return Err(error),
                },
            }
        }
    }
}

/// Connections that keep a change going until they are told to stop.
pub struct Driver {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Result<()>>>,
}

impl Driver {
    /// Ends them, and says what went wrong meanwhile.
    pub async fn stop(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks.drain(..) {
            task.await??;
        }
        Ok(())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
