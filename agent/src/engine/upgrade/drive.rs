//! A run of workers over upgrades: as a daemon for every table, or in the foreground for one.

use super::board::Board;
use super::vacuum::Vacuums;
use super::worker::{Shared, Worker};
use crate::db::{Class, Limits, Target};
use crate::engine::Signals;
use crate::engine::worker::locked;
use crate::store::{Store, Unfit, Upgrade, UpgradeFilter, UpgradeStep, by_table};
use backon::{BackoffBuilder, ExponentialBuilder};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::{info, warn};

/// What is driven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpgradeGoal {
    /// The upgrades of every table, for ever.
    Every,
    /// Those of one table, until there is nothing left that a step could do.
    Table {
        /// The table.
        table: i64,
        /// Until this one is complete, whatever the others need.
        name: Option<String>,
    },
}

impl UpgradeGoal {
    /// Whether just this table is driven.
    pub fn is_table(&self, oid: i64) -> bool {
        matches!(self, UpgradeGoal::Table { table, .. } if *table == oid)
    }
}

/// How a drive ended.
#[derive(Debug)]
pub enum UpgradeEnd {
    /// By the word of this step, no step can do more.
    Done(UpgradeStep),
    /// A signal came.
    Interrupted,
    /// Something that trying again does not mend.
    Failed(Unfit),
}

/// How often the database is asked what is registered.
const LOOK: Duration = Duration::from_secs(1);

/// A run of workers.
pub struct UpgradeDrive {
    shared: Arc<Shared>,
    jobs: usize,
    signals: Signals,
}

impl UpgradeDrive {
    /// Prepares a run with so many connections for batches, beside one for looking and those for VACUUM.
    pub fn new(target: Target, goal: UpgradeGoal, jobs: usize, signals: Signals) -> UpgradeDrive {
        let shared = Shared {
            vacuums: Vacuums::new(target.clone(), jobs, signals.stop.clone()),
            target,
            goal,
            board: Mutex::new(Board::default()),
            wake: Notify::new(),
            stop: signals.stop.child_token(),
            under_way: Mutex::new(HashMap::new()),
            end: Mutex::new(None),
            told: Mutex::default(),
        };
        UpgradeDrive { shared: Arc::new(shared), jobs, signals }
    }

    /// Works until the goal is reached or somebody stops it. `show` sees what is registered once a second, and why nothing
    /// goes on for the first table just now, if nothing does.
    pub async fn run(self, mut show: impl FnMut(&[Upgrade], Option<&str>)) -> UpgradeEnd {
        let host = whoami::hostname().unwrap_or_else(|_| "agent".to_owned());
        let mut workers = JoinSet::new();
        for number in 0..self.jobs {
            workers.spawn(Worker::new(Arc::clone(&self.shared), number, &host).run());
        }
        let now = self.signals.now.clone();
        tokio::select! {
            () = self.look(&mut show) => {}
            () = now.cancelled() => {}
        }
        let last_batches = async {
            while workers.join_next().await.is_some() {}
            self.shared.vacuums.finish().await;
        };
        let abandoned = tokio::select! {
            () = last_batches => false,
            () = now.cancelled() => true,
        };
        if abandoned {
            self.end_calls().await;
            workers.abort_all();
        }
        locked(&self.shared.end).take().unwrap_or(UpgradeEnd::Interrupted)
    }

    /// Asks the server to end every call under way, for at most a second.
    async fn end_calls(&self) {
        let calls: Vec<_> = locked(&self.shared.under_way).values().cloned().collect();
        let cancel_all = async {
            for call in &calls {
                call.cancel().await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(1), cancel_all).await.is_err() {
            warn!("the server did not take the cancel requests in time");
        }
    }

    /// Keeps the board up to date until the drive stops.
    async fn look(&self, show: &mut impl FnMut(&[Upgrade], Option<&str>)) {
        let delays = ExponentialBuilder::new().with_min_delay(LOOK).with_max_delay(Duration::from_secs(30));
        let delays = delays.without_max_times().with_jitter();
        let mut waits = delays.build();
        let mut store = None;
        while !self.shared.stop.is_cancelled() {
            let pause = match self.look_once(&mut store, show).await {
                Ok(()) => {
                    waits = delays.build();
                    LOOK
                }
                Err(unfit) => {
                    let hopeless = !matches!(&unfit, Unfit::Trouble(trouble) if trouble.class() != Class::Stop);
                    let pause = waits.next().unwrap_or(Duration::from_secs(30));
                    store = None;
                    if hopeless && self.shared.goal != UpgradeGoal::Every {
                        self.shared.finish(UpgradeEnd::Failed(unfit));
                    } else {
                        warn!(error = %unfit, retry_in = ?pause, "cannot see which upgrades are registered");
                    }
                    pause
                }
            };
            tokio::select! {
                () = self.shared.stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn look_once(
        &self,
        store: &mut Option<Store>,
        show: &mut impl FnMut(&[Upgrade], Option<&str>),
    ) -> Result<(), Unfit> {
        let store = match store {
            Some(store) => store,
            none => none.insert(Store::open(&self.shared.target, "look", Limits::Short).await?),
        };
        let table = match &self.shared.goal {
            UpgradeGoal::Every => None,
            UpgradeGoal::Table { table, .. } => Some(*table),
        };
        let upgrades = store.upgrades(UpgradeFilter { table, name: None }).await?;
        let tables = by_table(&upgrades);
        let (new, reason) = {
            let mut board = locked(&self.shared.board);
            let new = board.refresh(&tables, Instant::now());
            (new, tables.first().and_then(|(table, _)| board.reason(*table).map(str::to_owned)))
        };
        self.shared.wake.notify_waiters();
        show(&upgrades, reason.as_deref());
        if let UpgradeGoal::Table { name, .. } = &self.shared.goal {
            self.end_if_reached(&upgrades, name.as_deref());
        }
        for (table, upgrades) in &tables {
            if new.contains(table) {
                let names: Vec<&str> = upgrades.iter().map(|upgrade| upgrade.name.as_str()).collect();
                info!(relation = upgrades[0].relation, upgrades = ?names, "driving upgrades of a table");
            }
        }
        Ok(())
    }

    /// Whoever waits for one upgrade need not wait for the others. Where nothing is registered any more, the last retired
    /// name is gone.
    fn end_if_reached(&self, upgrades: &[Upgrade], name: Option<&str>) {
        let reached = match name {
            None => upgrades.is_empty(),
            Some(name) => upgrades.iter().find(|upgrade| upgrade.name == name).is_none_or(|upgrade| !upgrade.is_open()),
        };
        if reached {
            let step = UpgradeStep { state: "complete".to_owned(), done: true, ..UpgradeStep::default() };
            self.shared.finish(UpgradeEnd::Done(step));
        }
    }
}
