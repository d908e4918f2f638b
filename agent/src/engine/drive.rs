//! A run of workers: as a daemon for all that there is to do, or in the foreground for one thing.

use super::signals::Signals;
use super::work::{End, Work, locked};
use super::worker::{Shared, Worker};
use crate::db::{Class, Limits, Target};
use crate::store::{Store, Unfit};
use backon::{BackoffBuilder, ExponentialBuilder};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::warn;

/// How often the database is asked what there is to do.
const LOOK: Duration = Duration::from_secs(1);

/// A run of workers.
pub struct Drive<W: Work> {
    shared: Arc<Shared<W>>,
    jobs: usize,
    signals: Signals,
}

impl<W: Work> Drive<W> {
    /// Prepares a run with so many connections for work, beside one for looking.
    pub(super) fn new(target: Target, work: W, jobs: usize, signals: Signals) -> Drive<W> {
        let shared = Shared {
            target,
            work,
            wake: Notify::new(),
            stop: signals.stop.child_token(),
            under_way: Mutex::new(HashMap::new()),
            end: Mutex::new(None),
        };
        Drive { shared: Arc::new(shared), jobs, signals }
    }

    /// Works until the goal is reached or somebody stops it. `show` sees what there is once a second, and why the first
    /// of it does not go on just now, if it does not.
    pub async fn run(self, mut show: impl FnMut(&[W::Row], Option<&str>)) -> End<W::Done> {
        let mut workers = JoinSet::new();
        for number in 0..self.jobs {
            workers.spawn(Worker::new(Arc::clone(&self.shared), number).run());
        }
        let now = &self.signals.now;
        let store = now.run_until_cancelled(self.look(&mut show)).await.flatten();
        let last_calls = async { while workers.join_next().await.is_some() {} };
        let mut in_peace = now.run_until_cancelled(last_calls).await.is_some();
        let end = locked(&self.shared.end).take().unwrap_or(End::Interrupted);
        if in_peace {
            in_peace = now.run_until_cancelled(self.shared.work.close(store, &end)).await.is_some();
        }
        if !in_peace {
            self.end_calls().await;
            workers.abort_all();
        }
        end
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

    /// Keeps the work up to date until the drive stops. Returns its connection, if it has one.
    async fn look(&self, show: &mut impl FnMut(&[W::Row], Option<&str>)) -> Option<Store> {
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
                    let pause = waits.next().unwrap_or(Duration::from_secs(30));
                    store = None;
                    if unfit.class() == Class::Stop && self.shared.work.in_foreground() {
                        self.shared.finish(End::Failed(unfit));
                    } else {
                        warn!(of = W::NAME, error = %unfit, retry_in = ?pause, "cannot see what there is to do");
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
        show: &mut impl FnMut(&[W::Row], Option<&str>),
    ) -> Result<(), Unfit> {
        let store = match store {
            Some(store) => store,
            none => none.insert(Store::open(&self.shared.target, "look", Limits::Short).await?),
        };
        let work = &self.shared.work;
        let rows = work.look(store).await?;
        let seen = work.take_over(&rows, Instant::now());
        self.shared.wake.notify_waiters();
        show(&rows, seen.reason.as_deref());
        if let Some(done) = seen.done {
            self.shared.finish(End::Done(done));
        }
        work.welcome(store, &rows, &seen.new).await;
        Ok(store.rename("look").await?)
    }
}
