//! One client: transactions of all kinds, one after the other, and what the server said to each.

use super::Shared;
use super::model::Model;
use super::writes::{self, Space, Write};
use crate::{Result, Session, SqlError};
use anyhow::ensure;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Commit,
    Rollback,
    CommitPrepared,
    RollbackPrepared,
}

pub struct Client {
    shared: Arc<Shared>,
    rng: StdRng,
    space: Space,
    session: Option<Session>,
}

impl Client {
    pub fn new(shared: Arc<Shared>, number: i64) -> Client {
        let rng = StdRng::seed_from_u64(shared.seed.wrapping_mul(1000).wrapping_add(number as u64));
        let space = Space { client: number, clients: shared.clients, half: 150 };
        Client { shared, rng, space, session: None }
    }

    /// Writes until told to stop; ends with an error at the first answer that it should not have got.
    pub async fn live(mut self) -> Result<()> {
        let shared = self.shared.clone();
        while !shared.stop.load(Ordering::Relaxed) {
            // TRUNCATE takes everybody's rows, so everybody rests; the change does not.
            if self.rng.random_ratio(1, 700) {
                let _alone = shared.gate.write().await;
                self.transaction(true).await?;
            } else {
                let _guard = shared.gate.read().await;
                self.transaction(false).await?;
            }
            let pause = self.rng.random_range(0..4);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        Ok(())
    }

    async fn transaction(&mut self, truncate: bool) -> Result<()> {
        let number = self.space.client as usize;
        let mut draft = self.shared.models[number].lock().await.clone();
        draft.mark += 1;
        let ending = match self.rng.random_range(0..100) {
            0..10 => Ending::Rollback,
            10..13 => Ending::CommitPrepared,
            13..14 => Ending::RollbackPrepared,
            _ => Ending::Commit,
        };
        let repeatable = self.rng.random_ratio(1, 8);
        let gid = format!("ledger_{number}_{}", draft.mark);

        let outcome = self.say(&mut draft, ending, repeatable, truncate, &gid).await;
        let after = match outcome {
            Ok(()) if matches!(ending, Ending::Commit | Ending::CommitPrepared) => Some(draft),
            Ok(()) => None,
            // Older than a swap, it does not see the row that `lines` refer to as the new table has it.
            Err(error) if repeatable && ["40001", "23503"].contains(&&*error.code) => {
                self.shared.retries.fetch_add(1, Ordering::Relaxed);
                self.session()?.run("rollback").await?;
                None
            }
            Err(error) if error.is_lost() && self.shared.crashes.load(Ordering::Relaxed) => {
                self.look(draft.mark, ending, &gid).await?.then_some(draft)
            }
            Err(error) if repeatable => return Err(anyhow::Error::from(error).context("in REPEATABLE READ")),
            Err(error) => return Err(error.into()),
        };
        self.shared.transactions.fetch_add(1, Ordering::Relaxed);
        if let Some(after) = after {
            if truncate {
                for model in &self.shared.models {
                    model.lock().await.truncate();
                }
                *self.shared.cold.lock().await = super::NOTHING_COLD.to_owned();
            }
            *self.shared.models[number].lock().await = after;
        }
        Ok(())
    }

    /// Says a whole transaction to the server; the draft becomes what the rows are if it commits.
    async fn say(
        &mut self,
        draft: &mut Model,
        ending: Ending,
        repeatable: bool,
        truncate: bool,
        gid: &str,
    ) -> Result<(), SqlError> {
        if self.session.is_none() {
            let name = format!("ledger:{}", self.space.client);
            self.session = Some(self.shared.database.connect_as("postgres", &name).await?);
        }
        self.send(if repeatable { "begin isolation level repeatable read" } else { "begin" }).await?;
        self.send(&format!("update mark set transaction = {} where client = {}", draft.mark, self.space.client))
            .await?;
        if truncate {
            self.send("truncate orders, lines").await?;
            draft.truncate();
            for _ in 0..self.rng.random_range(0..4) {
                let writes = writes::insert(&mut self.rng, draft, self.space);
                self.send_all(writes).await?;
            }
        }
        for _ in 0..self.rng.random_range(1..5) {
            match self.rng.random_range(0..100) {
                0..12 => self.savepoint(draft).await?,
                12 => self.many_savepoints(draft).await?,
                _ => {
                    let writes = writes::random(&mut self.rng, draft, self.space);
                    self.send_all(writes).await?;
                }
            }
            if repeatable || self.rng.random_ratio(1, 10) {
                let pause = self.rng.random_range(0..20);
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
        }
        match ending {
            Ending::Commit => self.send("commit").await,
            Ending::Rollback => self.send("rollback").await,
            Ending::CommitPrepared | Ending::RollbackPrepared => {
                self.send(&format!("prepare transaction '{gid}'")).await?;
                let pause = self.rng.random_range(0..40);
                tokio::time::sleep(Duration::from_millis(pause)).await;
                let verb = if ending == Ending::CommitPrepared { "commit" } else { "rollback" };
                self.send(&format!("{verb} prepared '{gid}'")).await
            }
        }
    }

    async fn savepoint(&mut self, draft: &mut Model) -> Result<(), SqlError> {
        self.send("savepoint s").await?;
        let kept = draft.clone();
        for _ in 0..self.rng.random_range(1..4) {
            let writes = writes::random(&mut self.rng, draft, self.space);
            self.send_all(writes).await?;
        }
        if self.rng.random_ratio(1, 2) {
            *draft = kept;
            self.send("rollback to s").await?;
        }
        self.send("release s").await
    }

    /// More subtransactions than a backend shows to others without spilling (64).
    async fn many_savepoints(&mut self, draft: &mut Model) -> Result<(), SqlError> {
        for _ in 0..70 {
            self.send("savepoint many").await?;
            let writes = writes::update(&mut self.rng, draft, self.space);
            self.send_all(writes).await?;
            self.send("release many").await?;
        }
        Ok(())
    }

    fn session(&self) -> Result<&Session, SqlError> {
        self.session.as_ref().ok_or_else(SqlError::lost)
    }

    async fn send(&self, sql: &str) -> Result<(), SqlError> {
        self.session()?.run(sql).await.map(|_| ())
    }

    async fn send_all(&self, writes: Vec<Write>) -> Result<(), SqlError> {
        for write in writes {
            self.shared.statements.fetch_add(1, Ordering::Relaxed);
            match write {
                Write::Sql(sql, rows) => {
                    let touched = self.session()?.run(&sql).await?;
                    if rows.is_some_and(|rows| rows != touched) {
                        return Err(SqlError {
                            code: "P0004".into(),
                            message: format!("touched {touched} rows, expected {rows:?}"),
                            hint: None,
                            detail: format!("\n  in: {sql}"),
                        });
                    }
                }
                Write::Copy(data) => {
                    self.session()?.copy_in("copy orders (id, code, slot, amount) from stdin", data).await?
                }
            }
        }
        Ok(())
    }

    /// After a lost connection: whether the transaction with this mark was committed. A prepared one is ended as meant.
    async fn look(&mut self, mark: i64, ending: Ending, gid: &str) -> Result<bool> {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            match self.look_once(ending, gid).await {
                Ok(found) => return Ok(found == mark.to_string()),
                Err(error) => {
                    ensure!(error.is_lost() && Instant::now() < deadline, error);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn look_once(&mut self, ending: Ending, gid: &str) -> Result<String, SqlError> {
        let name = format!("ledger:{}", self.space.client);
        let session = self.shared.database.connect_as("postgres", &name).await?;
        let prepared = session.value(&format!("select count(*) from pg_prepared_xacts where gid = '{gid}'")).await?;
        if prepared == "1" {
            let verb = if ending == Ending::RollbackPrepared { "rollback" } else { "commit" };
            session.run(&format!("{verb} prepared '{gid}'")).await?;
        }
        // FOR UPDATE waits for a transaction of the lost session that still runs.
        let sql = format!("select transaction from mark where client = {} for update", self.space.client);
        let mark = session.value(&sql).await?;
        self.session = Some(session);
        Ok(mark)
    }
}
