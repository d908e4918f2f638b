//! One of several connections of a drive: takes a turn, calls, and does what follows. What the calls are and whose turn it
//! is, `Work` says.

use super::decide::Action;
use super::work::{End, Work, locked};
use crate::db::{Canceller, Limits, Target};
use crate::store::{Store, Unfit};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::field::debug as debug_value;
use tracing::{debug, error, info, warn};

/// What all workers of a drive share.
pub struct Shared<W: Work> {
    pub(super) target: Target,
    pub(super) work: W,
    /// Somebody changed whose turn it is.
    pub(super) wake: Notify,
    /// Finish what is in hand.
    pub(super) stop: CancellationToken,
    /// Of the calls under way, by worker.
    pub(super) under_way: Mutex<HashMap<usize, Canceller>>,
    /// How the drive ended; the first one counts.
    pub(super) end: Mutex<Option<End<W::Done>>>,
}

impl<W: Work> Shared<W> {
    /// Ends the drive, if it has not ended.
    pub(super) fn finish(&self, end: End<W::Done>) {
        locked(&self.end).get_or_insert(end);
        self.stop.cancel();
    }
}

/// A connection that nobody used for so long is closed: a server has places for a hundred by default, and an agent with
/// nothing to do, of which there may be one for each database, should keep none beside the one that looks. Shorter pauses,
/// a hold or a lock that somebody else has, cost no new connection.
const IDLE: Duration = Duration::from_secs(30);
/// A command in the foreground gives up after so much time without a connection; the daemon never does.
const PATIENCE: Duration = Duration::from_secs(300);

/// A worker.
pub struct Worker<W: Work> {
    shared: Arc<Shared<W>>,
    number: usize,
    store: Option<Store>,
    /// When it took its last turn.
    used: Instant,
    /// Since when no connection works.
    away_since: Option<Instant>,
}

impl<W: Work> Worker<W> {
    /// A worker without a connection; it opens one when there is something to do.
    pub fn new(shared: Arc<Shared<W>>, number: usize) -> Worker<W> {
        Worker { shared, number, store: None, used: Instant::now(), away_since: None }
    }

    /// Takes turns until the drive stops.
    pub async fn run(mut self) {
        while !self.shared.stop.is_cancelled() {
            // Registered before the look at the board, so that no wake-up between the two is lost.
            let shared = Arc::clone(&self.shared);
            let woken = shared.wake.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            let (turn, next) = shared.work.take(Instant::now());
            if let Some(turn) = turn {
                self.take_turn(&turn).await;
                self.used = Instant::now();
                shared.wake.notify_waiters();
                continue;
            }
            let due = next.unwrap_or_else(|| Instant::now() + IDLE);
            tokio::select! {
                () = shared.stop.cancelled() => break,
                () = &mut woken => {}
                () = tokio::time::sleep_until(due.into()) => {}
                () = tokio::time::sleep_until((self.used + IDLE).into()), if self.store.is_some() => self.store = None,
            }
        }
    }

    async fn take_turn(&mut self, turn: &W::Turn) {
        let outcome = self.call(turn).await;
        let answer = outcome.as_ref().map_err(Unfit::class);
        let (action, rest) = self.shared.work.give_back(turn, answer, Instant::now());
        match outcome {
            Ok(answer) => {
                self.away_since = None;
                if let Some(done) = self.shared.work.conclude(turn, answer, action, rest) {
                    self.shared.finish(End::Done(done));
                }
            }
            Err(unfit) => self.after_failure(turn, action, rest, unfit).await,
        }
    }

    async fn call(&mut self, turn: &W::Turn) -> Result<W::Answer, Unfit> {
        let work = &self.shared.work;
        let name = work.connection(turn, self.number);
        let store = match &mut self.store {
            Some(store) => {
                store.rename(&name).await?;
                store
            }
            none => none.insert(Store::open(&self.shared.target, &name, Limits::Work).await?),
        };
        locked(&self.shared.under_way).insert(self.number, store.canceller());
        let answer = work.call(store, turn, self.number).await;
        locked(&self.shared.under_way).remove(&self.number);
        Ok(answer?)
    }

    async fn after_failure(&mut self, turn: &W::Turn, action: Action, rest: Duration, unfit: Unfit) {
        let (change, relation) = W::subject(turn);
        let answer = match &unfit {
            Unfit::Trouble(trouble) => trouble.answer(),
            Unfit::Missing { .. } | Unfit::Library { .. } | Unfit::Objects { .. } => None,
        };
        let sqlstate = answer.map_or("", |answer| answer.sqlstate.as_str());
        let in_foreground = self.shared.work.in_foreground();
        match action {
            Action::Reconnect => {
                self.store = None;
                let since = *self.away_since.get_or_insert_with(Instant::now);
                warn!(change, relation, sqlstate, error = %unfit, retry_in = ?rest, "no connection");
                if in_foreground && since.elapsed() > PATIENCE {
                    self.shared.finish(End::Failed(unfit));
                }
            }
            Action::BackOff | Action::Retry => {
                info!(change, relation, sqlstate, error = %unfit, retry_in = ?rest, "call will be repeated");
            }
            Action::Stop if !self.shared.work.is_news(turn, &unfit) => {
                debug!(change, relation, sqlstate, error = %unfit, retry_in = ?rest, "still stopped");
            }
            Action::Stop => {
                let retry_in = (!rest.is_zero()).then(|| debug_value(rest));
                let detail = answer.and_then(|answer| answer.detail.clone());
                let hint = answer.and_then(|answer| answer.hint.clone()).or_else(|| unfit.hint());
                error!(change, relation, sqlstate, error = %unfit, detail, hint, retry_in, "stopped; others go on");
                if let Some(store) = &mut self.store {
                    self.shared.work.report(store, turn, &unfit).await;
                }
                if in_foreground {
                    self.shared.finish(End::Failed(unfit));
                }
            }
            Action::Again | Action::Wait(_) | Action::Rest(_) | Action::Over => {
                unreachable!("decide answers a failure with none of these")
            }
        }
    }
}
