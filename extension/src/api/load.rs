//! The signals of the server's load: their limits, and what they say.

use crate::api::answer::{LOOK, answer};
use crate::catalog::role;
use crate::engine::load;
use pgrx::datum::Interval;
use pgrx::prelude::*;
use std::time::Duration;

/// Sets the thresholds of a signal.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
fn set_limit(
    signal: &str,
    enter: default!(Option<&str>, "NULL"),
    leave: default!(Option<&str>, "NULL"),
    ignoring: default!(Vec<String>, "'{}'"),
) -> TableIterator<'static, (name!(enter, String), name!(leave, String))> {
    let caller = role::caller();
    TableIterator::once(answer(LOOK, || role::as_extension(|| load::set_limit(caller, signal, enter, leave, ignoring))))
}

/// Sets a query of one's own, or takes it away.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
fn set_own_query(query: default!(Option<&str>, "NULL"), timeout: default!(Interval, "'1 s'")) -> Option<f64> {
    let caller = role::caller();
    let timeout = Duration::from_micros(u64::try_from(timeout.as_micros()).unwrap_or(0));
    answer(LOOK, || role::as_extension(|| load::set_own_query(caller, query, timeout)))
}

/// Notes what a check by HTTP said; agents call it.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
fn report_check(address: &str, said: default!(Option<&str>, "NULL"), stands: default!(Interval, "'10 s'")) {
    let stands = Duration::from_micros(u64::try_from(stands.as_micros()).unwrap_or(0));
    answer(LOOK, || role::as_extension(|| load::report_check(address, said, stands)));
}

/// What migrator.signals shows to the caller.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
#[allow(clippy::type_complexity)]
fn _signals() -> TableIterator<
    'static,
    (
        name!(signal, String),
        name!(verdict, String),
        name!(factor, i32),
        name!(reason, Option<String>),
        name!(since, Option<TimestampWithTimeZone>),
        name!(value, Option<String>),
        name!(enter, String),
        name!(leave, Option<String>),
        name!(ignoring, Vec<String>),
        name!(sampled_at, Option<TimestampWithTimeZone>),
        name!(set_by, Option<String>),
        name!(set_at, Option<TimestampWithTimeZone>),
        name!(remedy, Option<String>),
    ),
> {
    let caller = role::caller();
    let rows = answer(LOOK, || role::as_extension(|| load::shown(caller)));
    TableIterator::new(rows.into_iter().map(|row| {
        (
            row.signal.to_owned(),
            row.verdict.to_owned(),
            row.factor,
            row.reason,
            row.since.map(at),
            row.value,
            row.enter,
            row.leave,
            row.ignoring,
            row.sampled_at.map(at),
            row.set_by,
            row.set_at.map(at),
            row.remedy.map(str::to_owned),
        )
    }))
}

fn at(epoch: f64) -> TimestampWithTimeZone {
    pgrx::datum::to_timestamp(epoch)
}
