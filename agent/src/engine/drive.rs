//! A run of workers: as a daemon for every open change, or in the foreground for one.

use super::board::Board;
use super::signals::Signals;
use super::worker::{Shared, Worker, locked, note};
use crate::db::{Class, Limits, Target, Trouble};
use crate::store::{Change, Store, Unfit};
use backon::{BackoffBuilder, ExponentialBuilder};
use serde_json::json;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::{info, warn};

/// What is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Every open change, for ever.
    Every,
    /// One change, until there is nothing more to do before somebody decides.
    Change(i64),
}

/// How a drive ended.
#[derive(Debug)]
pub enum End {
    /// The change is ready, swapped or over.
    Settled,
    /// The change waits for a person, by its own word.
    Blocked,
    /// A signal came.
    Interrupted,
    /// Something that trying again does not mend.
    Failed(Unfit),
}

/// How often the database is asked which changes are open.
const LOOK: Duration = Duration::from_secs(1);

/// A run of workers.
pub struct Drive {
    shared: Arc<Shared>,
    jobs: usize,
    signals: Signals,
}

impl Drive {
    /// Prepares a run with so many connections for work, beside one for looking.
    pub fn new(target: Target, goal: Goal, jobs: usize, signals: Signals) -> Drive {
        let shared = Shared {
            target,
            goal,
            board: Mutex::new(Board::default()),
            wake: Notify::new(),
            stop: signals.stop.child_token(),
            under_way: Mutex::new(HashMap::new()),
            end: Mutex::new(None),
        };
        Drive { shared: Arc::new(shared), jobs, signals }
    }

    /// Works until the goal is reached or somebody stops it. `show` sees the changes once a second,
    /// and why the first of them does not go on just now, if it does not.
    pub async fn run(self, mut show: impl FnMut(&[Change], Option<&str>)) -> End {
        let mut workers = JoinSet::new();
        for number in 0..self.jobs {
            workers.spawn(Worker::new(Arc::clone(&self.shared), number).run());
        }
        let now = self.signals.now.clone();
        let store = tokio::select! {
            store = self.look(&mut show) => store,
            () = now.cancelled() => None,
        };
        let last_batches = async {
            while workers.join_next().await.is_some() {}
            self.say_goodbye(store).await;
        };
        let abandoned = tokio::select! {
            () = last_batches => false,
            () = now.cancelled() => true,
        };
        if abandoned {
            self.end_calls().await;
            workers.abort_all();
        }
        locked(&self.shared.end).take().unwrap_or(End::Interrupted)
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

    /// Keeps the board up to date until the drive stops. Returns its connection, if it has one.
    async fn look(&self, show: &mut impl FnMut(&[Change], Option<&str>)) -> Option<Store> {
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
                    if hopeless && self.shared.goal != Goal::Every {
                        self.shared.finish(End::Failed(unfit));
                    } else {
                        warn!(error = %unfit, retry_in = ?pause, "cannot see which changes are open");
                    }
                    pause
                }
            };
            tokio::select! {
                () = self.shared.stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        store
    }

    async fn look_once(
        &self,
        store: &mut Option<Store>,
        show: &mut impl FnMut(&[Change], Option<&str>),
    ) -> Result<(), Unfit> {
        let store = match store {
            Some(store) => store,
            none => none.insert(Store::open(&self.shared.target, "look", Limits::Short).await?),
        };
        let mut changes = store.changes(false).await?;
        if let Goal::Change(id) = self.shared.goal {
            changes.retain(|change| change.change == id);
            match changes.first() {
                None => self.shared.finish(End::Settled),
                Some(change) if change.state == "blocked" => self.shared.finish(End::Blocked),
                Some(_) => {}
            }
        }
        let (new, reason) = {
            let mut board = locked(&self.shared.board);
            let new = board.refresh(&changes, Instant::now());
            let first = changes.first().filter(|change| change.can_advance());
            (new, first.and_then(|change| board.reason(change.change).map(str::to_owned)))
        };
        self.shared.wake.notify_waiters();
        show(&changes, reason.as_deref());
        for change in changes.iter().filter(|change| new.contains(&change.change)) {
            info!(change = change.change, relation = change.relation, state = change.state, "driving a change");
            let detail = json!({"jobs": self.jobs, "pid": std::process::id(), "state": change.state});
            note(store, change.change, "agent_started", "an agent drives this change", detail).await;
            store.rename("look").await?;
        }
        Ok(())
    }

    /// Says in the log of each change that nobody here drives it any more, and why.
    async fn say_goodbye(&self, store: Option<Store>) {
        let Some(mut store) = store else { return };
        let why = match &*locked(&self.shared.end) {
            None | Some(End::Interrupted) => "an agent was stopped by a signal",
            Some(End::Settled) => "an agent stopped: there is nothing to do before somebody decides",
            Some(End::Blocked) => "an agent stopped: the change is blocked",
            Some(End::Failed(_)) => "an agent gave up",
        };
        let driven = locked(&self.shared.board).open();
        for change in driven {
            note(&mut store, change, "agent_stopped", why, json!({"pid": std::process::id()})).await;
        }
    }
}

/// Runs a single call, which a first signal asks the server to end and a second one abandons.
pub async fn interruptible<T>(
    signals: &Signals,
    store: &Store,
    call: impl Future<Output = Result<T, Trouble>>,
) -> Result<T, Trouble> {
    let canceller = store.canceller();
    tokio::pin!(call);
    tokio::select! {
        done = &mut call => return done,
        () = signals.stop.cancelled() => canceller.cancel().await,
    }
    tokio::select! {
        done = &mut call => done,
        () = signals.now.cancelled() => Err(Trouble::Unexpected("abandoned by a signal; see migrator status".to_owned())),
    }
}
