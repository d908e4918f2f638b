//! What the loops of a drive (`drive`, `worker`) have to know of what they drive: changes or upgrades of rows.

use super::decide::Action;
use crate::db::{Class, Trouble};
use crate::store::{Store, Unfit};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How a drive ended.
#[derive(Debug)]
pub enum End<D> {
    /// There is nothing more to do before somebody decides.
    Done(D),
    /// A signal came.
    Interrupted,
    /// Something that trying again does not mend.
    Failed(Unfit),
}

/// What a look brought.
#[derive(Debug)]
pub struct Seen<D> {
    /// Changes, or tables, that were not driven before.
    pub new: Vec<i64>,
    /// Why the first one does not go on just now, if it does not.
    pub reason: Option<String>,
    /// The goal is reached.
    pub done: Option<D>,
}

/// What is driven, and whose turn it is. All workers of a drive share it.
pub trait Work: Send + Sync + Sized + 'static {
    /// For the log.
    const NAME: &'static str;
    /// What a look at the database brings.
    type Row;
    /// A worker's turn.
    type Turn: Send + Sync;
    /// What a call brings.
    type Answer: Send + Sync;
    /// How a drive in the foreground ends well.
    type Done: Send;

    /// Whether somebody waits for one thing, and nothing else is driven; else everything is, for ever.
    fn in_foreground(&self) -> bool;

    /// Asks what there is to drive.
    fn look(&self, store: &Store) -> impl Future<Output = Result<Vec<Self::Row>, Trouble>> + Send;
    /// Takes over what a look brought.
    fn take_over(&self, rows: &[Self::Row], now: Instant) -> Seen<Self::Done>;
    /// Says of what is new that it is driven.
    fn welcome(&self, store: &mut Store, rows: &[Self::Row], new: &[i64]) -> impl Future<Output = ()>;
    /// What is left to do when every worker has finished. `store` is the connection for looking, if there is one.
    fn close(&self, store: Option<Store>, end: &End<Self::Done>) -> impl Future<Output = ()>;

    /// A turn, if something is due, and when something is due next.
    fn take(&self, now: Instant) -> (Option<Self::Turn>, Option<Instant>);
    /// What the connection is called while a worker of this number takes the turn.
    fn connection(&self, turn: &Self::Turn, worker: usize) -> String;
    /// Takes the turn.
    fn call(
        &self,
        store: &mut Store,
        turn: &Self::Turn,
        worker: usize,
    ) -> impl Future<Output = Result<Self::Answer, Trouble>> + Send;
    /// A turn is over. Returns what to do and for how long to wait with it.
    fn give_back(&self, turn: &Self::Turn, answer: Result<&Self::Answer, Class>, now: Instant) -> (Action, Duration);
    /// What follows from a call that worked, beside the next turn. Something where the goal is reached.
    fn conclude(&self, turn: &Self::Turn, answer: Self::Answer, action: Action, rest: Duration) -> Option<Self::Done>;
    /// Whether a failure that only a person can mend is another than the last one there, so that the log need not have it each time
    /// that it is tried.
    fn is_news(&self, turn: &Self::Turn, unfit: &Unfit) -> bool;
    /// Leaves word of such a failure.
    fn report(&self, store: &mut Store, turn: &Self::Turn, unfit: &Unfit) -> impl Future<Output = ()> + Send;
    /// For the log: the number of a change, the name of a table.
    fn subject(turn: &Self::Turn) -> (Option<i64>, Option<&str>);
}

/// A panic of one task leaves plain data behind that the others can go on with.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
