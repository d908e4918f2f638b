//! Upgrades of rows, driven as somebody in psql would drive them: one step after the other.

use crate::change::PATIENCE;
use crate::{Database, Result, Session};
use anyhow::ensure;
use std::time::{Duration, Instant};

/// A worker with a connection of its own.
pub struct Worker {
    database: Database,
    session: Session,
    table: String,
    name: String,
}

/// What a step said.
#[derive(Debug, Clone)]
pub struct Step {
    /// The word for what goes on.
    pub state: String,
    /// Rows that it wrote, or looked at.
    pub rows: i64,
    /// Rows that it set aside.
    pub failed: i64,
    /// Nothing is left to do.
    pub done: bool,
    /// Milliseconds to wait before the next one.
    pub wait: u64,
    /// Why.
    pub reason: String,
}

impl Worker {
    /// A worker for a table.
    pub async fn new(database: &Database, table: &str, name: &str) -> Result<Worker> {
        let session = database.connect_as("postgres", &format!("test:{name}")).await?;
        Ok(Worker { database: database.clone(), session, table: table.to_owned(), name: name.to_owned() })
    }

    /// Where it works.
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Its session, for settings.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// One step; a lost connection or a conflict is tried again on a new connection.
    pub async fn step(&mut self) -> Result<Step> {
        let deadline = Instant::now() + PATIENCE;
        let sql = format!(
            "select state, rows, failed, done, wait_ms, coalesce(reason, '') from migrator.step('{}', '{}')",
            self.table, self.name
        );
        loop {
            match self.session.row(&sql).await {
                Ok(row) => {
                    return Ok(Step {
                        state: row[0].clone(),
                        rows: row[1].parse()?,
                        failed: row[2].parse()?,
                        done: row[3] == "t",
                        wait: row[4].parse()?,
                        reason: row[5].clone(),
                    });
                }
                Err(error) => {
                    let worth = error
                        .downcast_ref::<crate::SqlError>()
                        .is_some_and(|error| error.is_worth_retrying() || error.is_lost());
                    ensure!(worth && Instant::now() < deadline, "{error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    if let Ok(session) = self.database.connect_as("postgres", &format!("test:{}", self.name)).await {
                        self.session = session;
                    }
                }
            }
        }
    }

    /// Steps until everything that is registered is complete.
    pub async fn complete(&mut self, session: &Session) -> Result<()> {
        let step = self.run().await?;
        ensure!(step.state == "complete", "{step:?}, {}", states(session, &self.table).await?);
        Ok(())
    }

    /// Steps until nothing is left to do; the last one.
    pub async fn run(&mut self) -> Result<Step> {
        self.until(|step| step.done).await
    }

    /// Steps until one is as it should be.
    pub async fn until(&mut self, enough: impl Fn(&Step) -> bool) -> Result<Step> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let step = self.step().await?;
            if enough(&step) {
                return Ok(step);
            }
            ensure!(Instant::now() < deadline, "still not there: {step:?}");
            tokio::time::sleep(Duration::from_millis(step.wait.min(200))).await;
        }
    }
}

/// The state of each upgrade of a table, in order: `name=state`.
pub async fn states(session: &Session, table: &str) -> Result<String> {
    Ok(session
        .value(&format!(
            "select coalesce(string_agg(name || '=' || state, ' ' order by ordinal), '') from migrator.upgrade where relation = '{table}'::regclass and state <> 'retired'"
        ))
        .await?)
}
