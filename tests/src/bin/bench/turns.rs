//! Who is compared works in turns of some seconds, until each has done its work.
//!
//! A machine that others use as well becomes slower or faster by half within minutes. What one does after the other is compared with
//! that; what is done in turns meets the same machine.

use super::beside::Writes;
use migrator_tests::session::Row;
use migrator_tests::*;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// How long a turn is.
pub const TURN: Duration = Duration::from_secs(2);

/// Somebody who can stop and go on.
pub trait Turns {
    /// Works for the time of a turn. Whether there is more to do.
    async fn turn(&mut self) -> Result<bool>;
}

/// Two or more of them, one after the other, until none has anything left to do.
macro_rules! in_turns {
    ($($who:expr),+) => {
        loop {
            let mut more = false;
            $(more |= $who.turn().await?;)+
            if !more {
                break;
            }
        }
    };
}
pub(crate) use in_turns;

/// Work in SQL that asks `gate()` now and then, and waits there while it is the turn of others. In a server of its own: its transaction
/// keeps no VACUUM of others from removing what they leave behind.
pub struct Gated {
    /// Has the lock of the gate while that is shut.
    holder: Session,
    work: JoinHandle<Result<Vec<Row>>>,
    pid: i32,
    over: bool,
    turns: Vec<(Instant, Instant)>,
    done: Done,
}

/// What it did.
#[derive(Default)]
pub struct Done {
    /// Seconds of its turns.
    pub seconds: f64,
    /// Bytes of WAL in its turns.
    pub wal: f64,
    /// What the statement returned.
    pub rows: Vec<Row>,
    /// The longest write of one row beside it, and what all but one in a thousand took; in seconds.
    pub beside: f64,
    pub usual: f64,
}

impl Gated {
    /// Work that waits for its first turn. `prepare`: what its session does before; `gate()` is there.
    pub async fn new(database: &Database, prepare: &str, sql: &str) -> Result<Gated> {
        let holder = database.connect_as("postgres", "bench:gate").await?;
        holder
            .run(
                "create or replace function gate() returns boolean language plpgsql as
                 $$ begin perform pg_advisory_lock_shared(7331), pg_advisory_unlock_shared(7331); return true; end $$",
            )
            .await?;
        let session = database.connect_as("postgres", "bench:gated").await?;
        session.run(prepare).await?;
        holder.run("select pg_advisory_lock(7331)").await?;
        let (pid, sql) = (session.pid, sql.to_string());
        let work = tokio::spawn(async move { Ok(session.rows(&sql).await?) });
        Ok(Gated { holder, work, pid, over: false, turns: vec![], done: Done::default() })
    }

    /// When it has had its last turn. `writes` went on beside it.
    pub async fn end(self, writes: &Writes) -> Result<Done> {
        let mine = writes.within(&self.turns);
        Ok(Done { rows: self.work.await??, beside: mine.longest(), usual: mine.usual(), ..self.done })
    }

    async fn written(&self) -> Result<f64> {
        Ok(self.holder.value("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')").await?.parse()?)
    }

    /// Shuts the gate, and waits until the work stands there.
    async fn stop(&self) -> Result<()> {
        self.holder.run("select pg_advisory_lock(7331)").await?;
        let stands =
            format!("select count(*) from pg_locks where locktype = 'advisory' and not granted and pid = {}", self.pid);
        while !self.work.is_finished() && self.holder.number(&stands).await? == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}

impl Turns for Gated {
    async fn turn(&mut self) -> Result<bool> {
        if self.over {
            return Ok(false);
        }
        let written = self.written().await?;
        let begun = Instant::now();
        self.holder.run("select pg_advisory_unlock(7331)").await?;
        while !self.work.is_finished() && begun.elapsed() < TURN {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.over = self.work.is_finished();
        if !self.over {
            self.stop().await?;
        }
        let end = Instant::now();
        self.turns.push((begun, end));
        self.done.seconds += (end - begun).as_secs_f64();
        self.done.wal += self.written().await? - written;
        Ok(!self.over)
    }
}
