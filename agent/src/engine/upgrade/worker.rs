//! One of several connections that call `step`: takes a turn, calls, and does what the board says follows.

use super::board::{Board, Turn, after};
use super::drive::{UpgradeEnd, UpgradeGoal};
use super::vacuum::Vacuums;
use crate::db::{Canceller, Limits, Target};
use crate::engine::decide::Action;
use crate::engine::worker::{class_of, locked};
use crate::store::{Store, Unfit, UpgradeStep};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

/// What all workers of a drive share.
pub struct Shared {
    pub(super) target: Target,
    pub(super) goal: UpgradeGoal,
    pub(super) board: Mutex<Board>,
    /// Somebody changed the board.
    pub(super) wake: Notify,
    /// Finish what is in hand.
    pub(super) stop: CancellationToken,
    /// Of the calls under way, by worker.
    pub(super) under_way: Mutex<HashMap<usize, Canceller>>,
    /// How the drive ended; the first one counts.
    pub(super) end: Mutex<Option<UpgradeEnd>>,
    pub(super) vacuums: Vacuums,
    /// What was logged last of a table that rests, so that it is logged once.
    pub(super) told: Mutex<BTreeMap<i64, String>>,
}

impl Shared {
    /// Ends the drive, if it has not ended.
    pub(super) fn finish(&self, end: UpgradeEnd) {
        locked(&self.end).get_or_insert(end);
        self.stop.cancel();
    }
}

/// A connection that nobody used for so long is closed.
const IDLE: Duration = Duration::from_secs(30);
/// A command in the foreground gives up after so much time without a connection; the daemon never does.
const PATIENCE: Duration = Duration::from_secs(300);

/// A worker.
pub struct Worker {
    shared: Arc<Shared>,
    number: usize,
    /// What the database knows it by. The same on every connection and after a restart, so that it goes on with the chunk
    /// it had instead of waiting until the lease is over.
    name: String,
    store: Option<Store>,
    /// When it took its last turn.
    used: Instant,
    /// Since when no connection works.
    away_since: Option<Instant>,
}

impl Worker {
    /// A worker without a connection; it opens one when there is something to do.
    pub fn new(shared: Arc<Shared>, number: usize, host: &str) -> Worker {
        Worker { shared, number, name: format!("{host}:{number}"), store: None, used: Instant::now(), away_since: None }
    }

    /// Takes turns until the drive stops.
    pub async fn run(mut self) {
        while !self.shared.stop.is_cancelled() {
            // Registered before the look at the board, so that no wake-up between the two is lost.
            let shared = Arc::clone(&self.shared);
            let woken = shared.wake.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            let (turn, next) = {
                let mut board = locked(&shared.board);
                (board.take(Instant::now()), board.next_due())
            };
            if let Some(turn) = turn {
                self.take_turn(turn).await;
                self.used = Instant::now();
                self.shared.wake.notify_waiters();
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

    async fn take_turn(&mut self, turn: Turn) {
        let outcome = self.step(&turn).await;
        let action = after(outcome.as_ref().map_err(class_of));
        let rest = locked(&self.shared.board).give_back(turn.table, outcome.as_ref().ok(), action, Instant::now());
        match outcome {
            Ok(step) => {
                self.away_since = None;
                debug!(relation = turn.relation, state = step.state, rows = step.rows, failed = step.failed,
                    wait = ?rest, reason = step.reason, "stepped");
                self.after_success(&turn, step);
            }
            Err(unfit) => self.after_failure(&turn, action, rest, unfit),
        }
    }

    async fn step(&mut self, turn: &Turn) -> Result<UpgradeStep, Unfit> {
        let store = match &mut self.store {
            Some(store) => store,
            none => {
                let name = format!("upgrade:{}", self.number);
                none.insert(Store::open(&self.shared.target, &name, Limits::Work).await?)
            }
        };
        locked(&self.shared.under_way).insert(self.number, store.canceller());
        let stepped = store.step(turn.table, &self.name).await;
        locked(&self.shared.under_way).remove(&self.number);
        Ok(stepped?)
    }

    fn after_success(&self, turn: &Turn, mut step: UpgradeStep) {
        if let Some(statement) = step.statement.take() {
            self.shared.vacuums.start(turn.table, &turn.relation, statement);
        }
        if step.failed > 0 {
            warn!(relation = turn.relation, failed = step.failed, "rows were set aside");
        }
        if !step.done {
            locked(&self.shared.told).remove(&turn.table);
            return;
        }
        // A paused table is waited for, like a paused change: somebody wants to go on later.
        if self.shared.goal.is_table(turn.table) && step.state != "paused" {
            self.shared.finish(UpgradeEnd::Done(step));
        } else {
            self.tell_that_it_rests(turn, &step);
        }
    }

    /// Logs it once.
    fn tell_that_it_rests(&self, turn: &Turn, step: &UpgradeStep) {
        let (relation, state, reason) = (&turn.relation, &step.state, &step.reason);
        let words = format!("{state} {}", reason.as_deref().unwrap_or_default());
        if locked(&self.shared.told).insert(turn.table, words.clone()) == Some(words) {
            return;
        }
        match state.as_str() {
            "blocked" | "waiting" => warn!(relation, state, reason, "upgrades wait for somebody"),
            _ => info!(relation, state, reason, "upgrades rest"),
        }
    }

    fn after_failure(&mut self, turn: &Turn, action: Action, rest: Duration, unfit: Unfit) {
        let relation = &turn.relation;
        let (answer, sqlstate) = match &unfit {
            Unfit::Trouble(trouble) => (trouble.answer(), trouble.sqlstate().unwrap_or_default().to_owned()),
            _ => (None, String::new()),
        };
        match action {
            Action::Reconnect => {
                self.store = None;
                let since = *self.away_since.get_or_insert_with(Instant::now);
                warn!(relation, sqlstate, error = %unfit, retry_in = ?rest, "no connection");
                if self.shared.goal != UpgradeGoal::Every && since.elapsed() > PATIENCE {
                    self.shared.finish(UpgradeEnd::Failed(unfit));
                }
            }
            Action::BackOff | Action::Retry => {
                info!(relation, sqlstate, error = %unfit, retry_in = ?rest, "step will be repeated");
            }
            Action::Stop => {
                let detail = answer.and_then(|answer| answer.detail.clone());
                let hint = answer.and_then(|answer| answer.hint.clone()).or_else(|| unfit.hint());
                error!(relation, sqlstate, error = %unfit, detail, hint, "upgrades of this table stopped; others go on");
                if self.shared.goal.is_table(turn.table) {
                    self.shared.finish(UpgradeEnd::Failed(unfit));
                }
            }
            Action::Again | Action::Wait(_) | Action::Rest(_) | Action::Over => {
                unreachable!("decide answers a failure with none of these")
            }
        }
    }
}
