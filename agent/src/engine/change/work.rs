//! Changes as something that is driven: the calls of `advance`, and what is noted in a change's log.

use super::board::{Board, Turn};
use crate::db::{Class, Target, Trouble};
use crate::engine::decide::{Action, Observation, decide};
use crate::engine::drive::Drive;
use crate::engine::signals::Signals;
use crate::engine::work::{End, Seen, Work, locked};
use crate::store::{Advance, Change, Store, Unfit};
use serde_json::{Value, json};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};

/// Which changes are driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Every open change, for ever.
    Every,
    /// One change, until there is nothing more to do before somebody decides.
    Change(i64),
}

/// Where a change stands that is driven no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stand {
    /// It is ready, swapped or over.
    Settled,
    /// It waits for a person, by its own word.
    Blocked,
}

/// Changes.
pub struct Changes {
    goal: Goal,
    jobs: usize,
    board: Mutex<Board>,
}

impl Changes {
    /// Prepares a run with so many connections for work, beside one for looking.
    pub fn drive(target: Target, goal: Goal, jobs: usize, signals: Signals) -> Drive<Changes> {
        Drive::new(target, Changes { goal, jobs, board: Mutex::default() }, jobs, signals)
    }
}

impl Work for Changes {
    const NAME: &'static str = "changes";
    type Row = Change;
    type Turn = Turn;
    type Answer = Advance;
    type Done = Stand;

    fn in_foreground(&self) -> bool {
        self.goal != Goal::Every
    }

    async fn look(&self, store: &Store) -> Result<Vec<Change>, Trouble> {
        let mut changes = store.changes(false).await?;
        if let Goal::Change(id) = self.goal {
            changes.retain(|change| change.change == id);
        }
        Ok(changes)
    }

    fn take_over(&self, changes: &[Change], now: Instant) -> Seen<Stand> {
        let mut board = locked(&self.board);
        let new = board.refresh(changes, now);
        let first = changes.first().filter(|change| change.can_advance());
        let reason = first.and_then(|change| board.reason(change.change).map(str::to_owned));
        let done = match (self.goal, changes.first()) {
            (Goal::Every, _) => None,
            (Goal::Change(_), None) => Some(Stand::Settled),
            (Goal::Change(_), Some(change)) => (change.state == "blocked").then_some(Stand::Blocked),
        };
        Seen { new, reason, done }
    }

    async fn welcome(&self, store: &mut Store, changes: &[Change], new: &[i64]) {
        for change in changes.iter().filter(|change| new.contains(&change.change)) {
            info!(change = change.change, relation = change.relation, state = change.state, "driving a change");
            let detail = json!({"jobs": self.jobs, "pid": std::process::id(), "state": change.state});
            note(store, change.change, "agent_started", "an agent drives this change", detail).await;
        }
    }

    /// Says in the log of each change that nobody here drives it any more, and why.
    async fn close(&self, store: Option<Store>, end: &End<Stand>) {
        let Some(mut store) = store else { return };
        let why = match end {
            End::Interrupted => "an agent was stopped by a signal",
            End::Done(Stand::Settled) => "an agent stopped: there is nothing to do before somebody decides",
            End::Done(Stand::Blocked) => "an agent stopped: the change is blocked",
            End::Failed(_) => "an agent gave up",
        };
        let driven = locked(&self.board).open();
        for change in driven {
            note(&mut store, change, "agent_stopped", why, json!({"pid": std::process::id()})).await;
        }
    }

    fn take(&self, now: Instant) -> (Option<Turn>, Option<Instant>) {
        let mut board = locked(&self.board);
        (board.take(now), board.next_due())
    }

    fn connection(&self, turn: &Turn, _: usize) -> String {
        turn.name.clone()
    }

    async fn call(&self, store: &mut Store, turn: &Turn, _: usize) -> Result<Advance, Trouble> {
        // A batch of the copy whose commit a crash takes back takes back its cursor too, and is done again. So does the step
        // that ends the copy. All else is committed as the server wants it, for people and programs go by it.
        store.relax(turn.name.starts_with("copy")).await?;
        let advance = store.advance(turn.change).await?;
        if let Some(statement) = &advance.statement {
            run(store, turn.change, statement).await;
        }
        Ok(advance)
    }

    fn give_back(&self, turn: &Turn, answer: Result<&Advance, Class>, now: Instant) -> (Action, Duration) {
        let action = decide(&answer.map_or_else(Observation::Failed, Observation::Advanced));
        (action, locked(&self.board).give_back(turn.change, answer.ok(), action, now))
    }

    fn conclude(&self, turn: &Turn, advance: Advance, action: Action, rest: Duration) -> Option<Stand> {
        let change = turn.change;
        debug!(change, state = advance.state, step = advance.step, rows = advance.rows, wait = ?rest,
            reason = advance.reason, "advanced");
        if action == Action::Over {
            info!(change, state = advance.state, "change is over");
        }
        let settled = matches!(action, Action::Rest(_) | Action::Over);
        (settled && self.in_foreground()).then_some(Stand::Settled)
    }

    /// A change that is stopped is not tried again before its state changes.
    fn is_news(&self, _: &Turn, _: &Unfit) -> bool {
        true
    }

    async fn report(&self, store: &mut Store, turn: &Turn, unfit: &Unfit) {
        let detail = match unfit {
            Unfit::Trouble(trouble) => {
                json!({"sqlstate": trouble.sqlstate().unwrap_or_default(), "answer": trouble.answer()})
            }
            Unfit::Missing { .. } | Unfit::Library { .. } | Unfit::Objects { .. } => json!({"hint": unfit.hint()}),
        };
        note(store, turn.change, "agent_error", &unfit.to_string(), detail).await;
    }

    fn subject(turn: &Turn) -> (Option<i64>, Option<&str>) {
        (Some(turn.change), None)
    }
}

/// Runs a statement that a call handed out. The change goes on without it; a lost connection shows in the next call.
async fn run(store: &mut Store, change: i64, statement: &str) {
    let started = Instant::now();
    match store.run(statement).await {
        Ok(()) => {
            let seconds = started.elapsed().as_secs_f64();
            info!(change, statement, seconds, "ran a statement");
            let detail = json!({"statement": statement, "seconds": seconds});
            note(store, change, "agent_statement", "ran a statement outside a transaction", detail).await;
        }
        Err(trouble) => warn!(change, statement, %trouble, "statement failed; the change goes on without it"),
    }
}

/// Writes an event into the change's log. It is only a note: where it cannot be written the work goes on.
async fn note(store: &mut Store, change: i64, kind: &str, message: &str, detail: Value) {
    let written = async {
        store.rename(&format!("agent:{change}")).await?;
        store.note(change, kind, message, &detail).await
    };
    let written: Result<(), Trouble> = written.await;
    if let Err(trouble) = written {
        debug!(change, kind, %trouble, "event not written");
    }
}
