//! A change as a whole: capture on, advance, pause, end.

use crate::api::answer::{DECIDE, STEP, answer};
use crate::api::arguments::RegClass;
use crate::catalog::cost;
use crate::engine::{advance, guard, settle, sync};
use pgrx::prelude::*;

/// Switches capture on for a created change.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
fn start_sync(relation: default!(Option<RegClass>, "NULL"), change: default!(Option<i64>, "NULL")) -> String {
    answer(DECIDE, || guard::enter(oid(relation), change, |change| sync::start(change).map(|state| state.to_string())))
}

/// Does one bounded step of whatever is next for a change.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
#[allow(clippy::type_complexity)]
fn advance(
    change: i64,
) -> TableIterator<
    'static,
    (
        name!(state, String),
        name!(step, String),
        name!(rows, i64),
        name!(done, bool),
        name!(wait_ms, i32),
        name!(reason, Option<String>),
        name!(statement, Option<String>),
    ),
> {
    let done = answer(STEP, || guard::enter(None, Some(change), advance::advance));
    if done.held {
        cost::commit_at_once();
    }
    let state = done.state.map_or_else(String::new, |state| state.to_string());
    TableIterator::once((state, done.step.to_owned(), done.rows, done.done, done.wait_ms, done.reason, done.statement))
}

/// Stops all work on a change except capture.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
fn pause(relation: default!(Option<RegClass>, "NULL"), change: default!(Option<i64>, "NULL")) -> String {
    answer(DECIDE, || {
        guard::enter(oid(relation), change, |change| settle::pause(&change).map(|()| "paused".to_owned()))
    })
}

/// Lets a paused or blocked change go on.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
fn resume(relation: default!(Option<RegClass>, "NULL"), change: default!(Option<i64>, "NULL")) -> String {
    answer(DECIDE, || {
        guard::enter(oid(relation), change, |change| settle::resume(&change).map(|()| change.state.to_string()))
    })
}

/// Keeps a change from being swapped before a time.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
fn postpone(
    relation: default!(Option<RegClass>, "NULL"),
    change: default!(Option<i64>, "NULL"),
    until: default!(Option<TimestampWithTimeZone>, "NULL"),
) -> String {
    answer(DECIDE, || {
        guard::enter(oid(relation), change, |change| {
            settle::postpone(&change, until).map(|()| change.state.to_string())
        })
    })
}

/// Validates the foreign keys that a swap added NOT VALID.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
fn validate(relation: default!(Option<RegClass>, "NULL"), change: default!(Option<i64>, "NULL")) -> i64 {
    answer(DECIDE, || guard::enter(oid(relation), change, |change| settle::validate(&change)))
}

/// Ends a swapped change: the backup is dropped.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
fn finish(
    relation: default!(Option<RegClass>, "NULL"),
    change: default!(Option<i64>, "NULL"),
    dry_run: default!(bool, "false"),
) -> String {
    answer(DECIDE, || {
        guard::enter(oid(relation), change, |change| settle::finish(change, dry_run).map(|state| state.to_string()))
    })
}

/// Gives a change up before its swap: the shadow is dropped.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
fn cancel(
    relation: default!(Option<RegClass>, "NULL"),
    change: default!(Option<i64>, "NULL"),
    dry_run: default!(bool, "false"),
) -> String {
    answer(DECIDE, || {
        guard::enter(oid(relation), change, |change| settle::cancel(change, dry_run).map(|state| state.to_string()))
    })
}

pub(super) fn oid(relation: Option<RegClass>) -> Option<u32> {
    relation.map(|relation| relation.0)
}
