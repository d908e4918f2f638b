//! VACUUM beside the batches: on a connection of its own, never two at once for one table.

use crate::db::{Limits, Target, Trouble};
use crate::engine::work::locked;
use crate::store::{Store, Unfit};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Whoever sits before a command hears after so long why it does not end.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is being vacuumed.
pub struct Vacuums {
    target: Target,
    /// Tables.
    under_way: Arc<Mutex<BTreeSet<i64>>>,
    tasks: Mutex<JoinSet<()>>,
    /// So that many tables at once do not take more connections than batches do.
    places: Arc<Semaphore>,
    /// Somebody asked for the end: what is under way is broken off, and loses nothing but the time that it took.
    end: CancellationToken,
}

impl Vacuums {
    /// None yet; so many at once at most.
    pub fn new(target: Target, most: usize, end: CancellationToken) -> Vacuums {
        let places = Arc::new(Semaphore::new(most));
        Vacuums { target, under_way: Arc::default(), tasks: Mutex::default(), places, end }
    }

    /// Runs the statement that a step handed out, and does not wait for it. While one is under way for the table, another
    /// is left out: the next tenth of the table brings the next one.
    pub fn start(&self, table: i64, relation: &str, statement: String) {
        if !locked(&self.under_way).insert(table) {
            debug!(relation, statement, "the last one is still under way");
            return;
        }
        let (target, under_way) = (self.target.clone(), Arc::clone(&self.under_way));
        let (places, end, relation) = (Arc::clone(&self.places), self.end.clone(), relation.to_owned());
        let mut tasks = locked(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            let started = Instant::now();
            let done = async {
                let _place = places.acquire().await;
                run(&target, &statement, &end).await
            };
            match done.await {
                Ok(()) => info!(relation, statement, seconds = started.elapsed().as_secs_f64(), "ran a statement"),
                Err(unfit) => {
                    warn!(relation, statement, error = %unfit, "statement failed; the upgrade goes on without it")
                }
            }
            locked(&under_way).remove(&table);
        });
    }

    /// Waits for those under way, and says so where it takes long.
    pub async fn finish(&self) {
        let mut tasks = std::mem::take(&mut *locked(&self.tasks));
        let all = async { while tasks.join_next().await.is_some() {} };
        tokio::pin!(all);
        if tokio::time::timeout(PATIENCE, &mut all).await.is_err() {
            warn!("waiting for VACUUM; a signal ends it");
            all.await;
        }
    }
}

async fn run(target: &Target, statement: &str, end: &CancellationToken) -> Result<(), Unfit> {
    let store = tokio::select! {
        store = Store::open(target, "upgrade:vacuum", Limits::Work) => store?,
        () = end.cancelled() => return Err(Trouble::Unexpected("not begun: a signal came first".to_owned()).into()),
    };
    let canceller = store.canceller();
    let call = store.run(statement);
    tokio::pin!(call);
    tokio::select! {
        done = &mut call => return Ok(done?),
        () = end.cancelled() => canceller.cancel().await,
    }
    Ok(call.await?)
}
