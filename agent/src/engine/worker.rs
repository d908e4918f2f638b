//! One of several connections that call `advance`: takes a turn, calls, and does what `decide` says.

use super::board::{Board, Turn};
use super::decide::{Action, Observation, decide};
use super::drive::{End, Goal};
use crate::db::{Canceller, Limits, Target, Trouble};
use crate::store::{Advance, Store, Unfit};
use serde_json::json;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

/// What all workers of a drive share.
pub struct Shared {
    pub(super) target: Target,
    pub(super) goal: Goal,
    pub(super) board: Mutex<Board>,
    /// Somebody changed the board.
    pub(super) wake: Notify,
    /// Finish what is in hand.
    pub(super) stop: CancellationToken,
    /// Of the calls under way, by worker.
    pub(super) under_way: Mutex<HashMap<usize, Canceller>>,
    /// How the drive ended; the first one counts.
    pub(super) end: Mutex<Option<End>>,
}

/// A panic of one task leaves plain data behind that the others can go on with.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Ends the drive, if it has not ended.
    pub(super) fn finish(&self, end: End) {
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
    store: Option<Store>,
    /// Whether its commits do not wait for the disk.
    relaxed: bool,
    /// Since when no connection works.
    away_since: Option<Instant>,
}

impl Worker {
    /// A worker without a connection; it opens one when there is something to do.
    pub fn new(shared: Arc<Shared>, number: usize) -> Worker {
        Worker { shared, number, store: None, relaxed: false, away_since: None }
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
                self.shared.wake.notify_waiters();
                continue;
            }
            let now = Instant::now();
            // A due time that has passed belongs to a change that somebody is at: its end wakes us.
            let due = next.filter(|due| *due > now).unwrap_or(now + IDLE);
            tokio::select! {
                () = shared.stop.cancelled() => break,
                () = &mut woken => {}
                () = tokio::time::sleep_until(due.into()) => {}
                () = tokio::time::sleep(IDLE), if self.store.is_some() => self.store = None,
            }
        }
    }

    async fn take_turn(&mut self, turn: Turn) {
        let change = turn.change;
        let outcome = self.advance(&turn).await;
        let action = match &outcome {
            Ok(advance) => decide(&Observation::Advanced(advance)),
            Err(unfit) => decide(&Observation::Failed(class_of(unfit))),
        };
        let rest = locked(&self.shared.board).give_back(change, outcome.as_ref().ok(), action, Instant::now());
        match outcome {
            Ok(advance) => {
                self.away_since = None;
                debug!(change, state = advance.state, step = advance.step, rows = advance.rows, wait = ?rest,
                    reason = advance.reason, "advanced");
                self.after_success(change, action, &advance).await;
            }
            Err(unfit) => self.after_failure(change, action, rest, unfit).await,
        }
    }

    async fn advance(&mut self, turn: &Turn) -> Result<Advance, Unfit> {
        let store = match &mut self.store {
            Some(store) => {
                store.rename(&turn.name).await?;
                store
            }
            none => {
                self.relaxed = false;
                none.insert(Store::open(&self.shared.target, &turn.name, Limits::Work).await?)
            }
        };
        // A batch of the copy whose commit a crash takes back takes back its cursor too, and is done again. So does the step
        // that ends the copy. All else is committed as the server wants it, for people and programs go by it.
        let relaxed = turn.name.starts_with("copy");
        if relaxed != self.relaxed {
            let setting = if relaxed { "set synchronous_commit = off" } else { "reset synchronous_commit" };
            store.run(setting).await?;
            self.relaxed = relaxed;
        }
        locked(&self.shared.under_way).insert(self.number, store.canceller());
        let advanced = store.advance(turn.change).await;
        let advanced = match advanced {
            Ok(advance) => {
                if let Some(statement) = &advance.statement {
                    let started = Instant::now();
                    match store.run(statement).await {
                        Ok(()) => {
                            let seconds = started.elapsed().as_secs_f64();
                            info!(change = turn.change, statement, seconds, "ran a statement");
                            let detail = json!({"statement": statement, "seconds": seconds});
                            note(
                                store,
                                turn.change,
                                "agent_statement",
                                "ran a statement outside a transaction",
                                detail,
                            )
                            .await;
                        }
                        // The change goes on without it; a lost connection shows in the next call.
                        Err(trouble) => {
                            warn!(change = turn.change, statement, %trouble, "statement failed; the change goes on without it");
                        }
                    }
                }
                Ok(advance)
            }
            Err(trouble) => Err(trouble.into()),
        };
        locked(&self.shared.under_way).remove(&self.number);
        advanced
    }

    async fn after_success(&mut self, change: i64, action: Action, advance: &Advance) {
        let settled = matches!(action, Action::Rest(_) | Action::Over);
        if settled && self.shared.goal == Goal::Change(change) {
            self.shared.finish(End::Settled);
        }
        if action == Action::Over {
            info!(change, state = advance.state, "change is over");
        }
    }

    async fn after_failure(&mut self, change: i64, action: Action, rest: Duration, unfit: Unfit) {
        let sqlstate = match &unfit {
            Unfit::Trouble(trouble) => trouble.sqlstate().unwrap_or_default().to_owned(),
            _ => String::new(),
        };
        match action {
            Action::Reconnect => {
                self.store = None;
                let since = *self.away_since.get_or_insert_with(Instant::now);
                warn!(change, sqlstate, error = %unfit, retry_in = ?rest, "no connection");
                let in_foreground = self.shared.goal != Goal::Every;
                if in_foreground && since.elapsed() > PATIENCE {
                    self.shared.finish(End::Failed(unfit));
                }
            }
            Action::BackOff | Action::Retry => {
                info!(change, sqlstate, error = %unfit, retry_in = ?rest, "call will be repeated");
            }
            Action::Stop => {
                let (detail, hint) = match &unfit {
                    Unfit::Trouble(trouble) => {
                        let answer = trouble.answer();
                        (answer.and_then(|a| a.detail.clone()), answer.and_then(|a| a.hint.clone()))
                    }
                    _ => (None, unfit.hint()),
                };
                error!(change, sqlstate, error = %unfit, detail, hint, "change stopped; other changes go on");
                let detail = match &unfit {
                    Unfit::Trouble(trouble) => json!({"sqlstate": sqlstate, "answer": trouble.answer()}),
                    _ => json!({"hint": unfit.hint()}),
                };
                if let Some(store) = &mut self.store {
                    note(store, change, "agent_error", &unfit.to_string(), detail).await;
                }
                if self.shared.goal == Goal::Change(change) {
                    self.shared.finish(End::Failed(unfit));
                }
            }
            Action::Again | Action::Wait(_) | Action::Rest(_) | Action::Over => {
                unreachable!("decide answers a failure with none of these")
            }
        }
    }
}

pub(super) fn class_of(unfit: &Unfit) -> crate::db::Class {
    match unfit {
        Unfit::Trouble(trouble) => trouble.class(),
        // The extension is being updated or the program was left behind: a person must look.
        Unfit::Missing { .. } | Unfit::Library { .. } | Unfit::Objects { .. } => crate::db::Class::Stop,
    }
}

/// Writes an event into the change's log. It is only a note: where it cannot be written the work goes on.
pub(super) async fn note(store: &mut Store, change: i64, kind: &str, message: &str, detail: serde_json::Value) {
    let written = async {
        store.rename(&format!("agent:{change}")).await?;
        store.note(change, kind, message, &detail).await
    };
    let written: Result<(), Trouble> = written.await;
    if let Err(trouble) = written {
        debug!(change, kind, %trouble, "event not written");
    }
}
