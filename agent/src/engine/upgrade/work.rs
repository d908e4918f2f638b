//! Upgrades of rows as something that is driven: the calls of `step`.

use super::board::{Board, Turn, after};
use super::vacuum::Vacuums;
use crate::db::{Class, Target, Trouble};
use crate::engine::decide::Action;
use crate::engine::drive::Drive;
use crate::engine::signals::Signals;
use crate::engine::work::{End, Seen, Work, locked};
use crate::store::{Store, Unfit, Upgrade, UpgradeFilter, UpgradeStep, by_table};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};

/// Which upgrades are driven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpgradeGoal {
    /// Those of every table, for ever.
    Every,
    /// Those of one table, until there is nothing left that a step could do.
    Table {
        /// The table, as the views name it: after the swap of a change the name means another table, and they go on with that.
        relation: String,
        /// Until this one is complete, whatever the others need.
        name: Option<String>,
    },
}

/// Upgrades of rows.
pub struct Upgrades {
    goal: UpgradeGoal,
    board: Mutex<Board>,
    /// The tables that had the name of the one that is driven: a swap gives it to another, and somebody may rename that.
    seen: Mutex<BTreeSet<i64>>,
    vacuums: Vacuums,
    /// What was logged last of a table that rests or is stopped, so that it is logged once.
    told: Mutex<BTreeMap<i64, String>>,
    /// With a worker's number what the database knows the worker by. The same on every connection and after a restart, so
    /// that it goes on with the chunk it had instead of waiting until the lease is over.
    host: String,
}

impl Upgrades {
    /// Prepares a run with so many connections for batches, beside one for looking and those for VACUUM.
    pub fn drive(target: Target, goal: UpgradeGoal, jobs: usize, signals: Signals) -> Drive<Upgrades> {
        let work = Upgrades {
            goal,
            board: Mutex::default(),
            seen: Mutex::default(),
            vacuums: Vacuums::new(target.clone(), jobs, signals.stop.clone()),
            told: Mutex::default(),
            host: whoami::hostname().unwrap_or_else(|_| "agent".to_owned()),
        };
        Drive::new(target, work, jobs, signals)
    }

    /// Whoever waits for one upgrade need not wait for the others. Where nothing is registered any more, the last retired
    /// name is gone.
    fn is_reached(&self, upgrades: &[Upgrade]) -> bool {
        match &self.goal {
            UpgradeGoal::Every => false,
            UpgradeGoal::Table { name: None, .. } => upgrades.is_empty(),
            UpgradeGoal::Table { name: Some(name), .. } => {
                upgrades.iter().find(|upgrade| upgrade.name == *name).is_none_or(|upgrade| !upgrade.is_open())
            }
        }
    }

    /// Logs it once.
    fn tell_that_it_rests(&self, turn: &Turn, step: &UpgradeStep) {
        let (relation, state, reason) = (&turn.relation, &step.state, &step.reason);
        let words = format!("{state} {}", reason.as_deref().unwrap_or_default());
        if locked(&self.told).insert(turn.table, words.clone()) == Some(words) {
            return;
        }
        match state.as_str() {
            "blocked" | "waiting" => warn!(relation, state, reason, "upgrades wait for somebody"),
            _ => info!(relation, state, reason, "upgrades rest"),
        }
    }
}

impl Work for Upgrades {
    const NAME: &'static str = "upgrades";
    type Row = Upgrade;
    type Turn = Turn;
    type Answer = UpgradeStep;
    type Done = UpgradeStep;

    fn in_foreground(&self) -> bool {
        self.goal != UpgradeGoal::Every
    }

    async fn look(&self, store: &Store) -> Result<Vec<Upgrade>, Trouble> {
        let mut upgrades = store.upgrades(UpgradeFilter { table: None, name: None }).await?;
        if let UpgradeGoal::Table { relation, .. } = &self.goal {
            let mut seen = locked(&self.seen);
            upgrades.retain(|upgrade| {
                upgrade.relation == *relation || upgrade.relation_oid.is_some_and(|oid| seen.contains(&oid))
            });
            seen.extend(upgrades.iter().filter_map(|upgrade| upgrade.relation_oid));
        }
        Ok(upgrades)
    }

    fn take_over(&self, upgrades: &[Upgrade], now: Instant) -> Seen<UpgradeStep> {
        let tables = by_table(upgrades);
        let mut board = locked(&self.board);
        let new = board.refresh(&tables, now);
        let reason = tables.first().and_then(|(table, _)| board.reason(*table).map(str::to_owned));
        let complete = || UpgradeStep { state: "complete".to_owned(), done: true, ..UpgradeStep::default() };
        Seen { new, reason, done: self.is_reached(upgrades).then(complete) }
    }

    async fn welcome(&self, _: &mut Store, upgrades: &[Upgrade], new: &[i64]) {
        for (_, upgrades) in by_table(upgrades).iter().filter(|(table, _)| new.contains(table)) {
            let names: Vec<&str> = upgrades.iter().map(|upgrade| upgrade.name.as_str()).collect();
            info!(relation = upgrades[0].relation, upgrades = ?names, "driving upgrades of a table");
        }
    }

    async fn close(&self, _: Option<Store>, _: &End<UpgradeStep>) {
        self.vacuums.finish().await;
    }

    fn take(&self, now: Instant) -> (Option<Turn>, Option<Instant>) {
        let mut board = locked(&self.board);
        (board.take(now), board.next_due())
    }

    fn connection(&self, _: &Turn, worker: usize) -> String {
        format!("upgrade:{worker}")
    }

    async fn call(&self, store: &mut Store, turn: &Turn, worker: usize) -> Result<UpgradeStep, Trouble> {
        store.step(turn.table, &format!("{}:{worker}", self.host)).await
    }

    fn give_back(&self, turn: &Turn, answer: Result<&UpgradeStep, Class>, now: Instant) -> (Action, Duration) {
        let action = after(answer);
        (action, locked(&self.board).give_back(turn.table, answer.ok(), action, now))
    }

    fn conclude(&self, turn: &Turn, mut step: UpgradeStep, _: Action, rest: Duration) -> Option<UpgradeStep> {
        debug!(relation = turn.relation, state = step.state, rows = step.rows, failed = step.failed, wait = ?rest,
            reason = step.reason, "stepped");
        if let Some(statement) = step.statement.take() {
            self.vacuums.start(turn.table, &turn.relation, statement);
        }
        if step.failed > 0 {
            warn!(relation = turn.relation, failed = step.failed, "rows were set aside");
        }
        if !step.done {
            locked(&self.told).remove(&turn.table);
            return None;
        }
        // A paused table is waited for, like a paused change: somebody wants to go on later.
        if self.in_foreground() && step.state != "paused" {
            return Some(step);
        }
        self.tell_that_it_rests(turn, &step);
        None
    }

    fn is_news(&self, turn: &Turn, unfit: &Unfit) -> bool {
        let words = unfit.to_string();
        locked(&self.told).insert(turn.table, words.clone()) != Some(words)
    }

    /// This program's log is enough: nobody looks for it in that of the table.
    async fn report(&self, _: &mut Store, _: &Turn, _: &Unfit) {}

    fn subject(turn: &Turn) -> (Option<i64>, Option<&str>) {
        (None, Some(&turn.relation))
    }
}
