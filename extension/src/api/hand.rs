//! Upgrades by application code, rows that are set aside, and waiting for an upgrade.

use crate::api::answer::answer;
use crate::api::arguments::{Json, RegClass};
use crate::api::upgrade::DECIDE;
use crate::catalog::role;
use crate::engine::upgrade::hand::{self, Answer, Desk, Handed};
use crate::engine::upgrade::table::{self, Upgraded};
use crate::engine::upgrade::{ensure, failures};
use migrator_core::failure::{Ending, Failure, code};
use pgrx::datum::Uuid;
use pgrx::prelude::*;
use std::time::Duration;

const TAKE_BACK: Ending =
    Ending { left: "No row was written, and all leases stay.", next: "Correct that and call it again." };

/// Hands out rows that application code is to upgrade, or rows that have the upgrade.
#[pg_extern(volatile, parallel_unsafe, requires = ["upgrades"])]
#[search_path(pg_catalog, pg_temp)]
fn select_batch(
    relation: Option<RegClass>,
    upgrade: Option<&str>,
    limit: default!(i32, 100),
    applied: default!(bool, "false"),
    lease: default!(Interval, "'30 seconds'"),
) -> TableIterator<
    'static,
    (name!(key, Json), name!(row, Json), name!(token, Uuid), name!(lease_until, TimestampWithTimeZone)),
> {
    let handed = answer(DECIDE, || {
        let oid = table::given(relation.map(|relation| relation.0))?;
        hand::enter(oid, |table| hand::select(&Desk::of(&table, named(upgrade)?)?, limit, applied, duration(&lease)))
    });
    let rows: Vec<_> = handed
        .into_iter()
        .map(|Handed { key, row, token, until }| (Json(key), Json(row), uuid(&token), until))
        .collect();
    TableIterator::new(rows)
}

/// Takes back what application code made of rows.
#[pg_extern(volatile, parallel_unsafe, requires = ["upgrades"])]
#[search_path(pg_catalog, pg_temp)]
fn mark_applied(
    relation: Option<RegClass>,
    upgrade: Option<&str>,
    rows: Option<Json>,
) -> TableIterator<
    'static,
    (name!(key, Json), name!(applied, bool), name!(reason, Option<String>), name!(row, Option<Json>)),
> {
    let answers = answer(TAKE_BACK, || {
        let oid = table::given(relation.map(|relation| relation.0))?;
        let rows = rows.map_or_else(String::new, |rows| rows.0);
        hand::enter(oid, |table| hand::mark(&Desk::of(&table, named(upgrade)?)?, &rows))
    });
    let answers: Vec<_> = answers
        .into_iter()
        .map(|Answer { key, applied, reason, row }| (Json(key), applied, reason, row.map(Json)))
        .collect();
    TableIterator::new(answers)
}

/// Waits until every row has an upgrade, or brings that about; raises what to do when it is not in time.
#[pg_extern(volatile, parallel_unsafe, requires = ["upgrades"])]
#[search_path(pg_catalog, pg_temp)]
fn ensure_upgraded(
    relation: Option<RegClass>,
    name: Option<&str>,
    wait: default!(Interval, "'0'"),
    drive: default!(bool, "false"),
) {
    let caller = role::caller();
    answer(DECIDE, || {
        role::as_extension(|| {
            let oid = table::given(relation.map(|relation| relation.0))?;
            table::check_owner(&crate::catalog::relation::Relation::get(oid)?, caller)?;
            ensure::upgraded(oid, named(name)?, duration(&wait), drive)
        })
    });
}

/// Tries rows again that were set aside.
#[pg_extern(volatile, parallel_unsafe, requires = ["upgrades"])]
#[search_path(pg_catalog, pg_temp)]
fn retry_failed(
    relation: Option<RegClass>,
    name: default!(Option<&str>, "NULL"),
    key: default!(Option<Json>, "NULL"),
) -> i64 {
    answer(DECIDE, || {
        let oid = table::given(relation.map(|relation| relation.0))?;
        Upgraded::hold(oid);
        Upgraded::enter(oid, |table| failures::retry(&table, name, key.as_ref().map(|key| key.0.as_str())))
    })
}

/// Lets rows that were set aside be as they are.
#[pg_extern(volatile, parallel_unsafe, requires = ["upgrades"])]
#[search_path(pg_catalog, pg_temp)]
fn waive_failed(
    relation: Option<RegClass>,
    name: Option<&str>,
    key: default!(Option<Json>, "NULL"),
    reason: default!(Option<&str>, "NULL"),
) -> i64 {
    let caller = role::caller();
    answer(DECIDE, || {
        let oid = table::given(relation.map(|relation| relation.0))?;
        Upgraded::hold(oid);
        Upgraded::enter(oid, |table| {
            let by = role::name(caller)?;
            let key = key.as_ref().map(|key| key.0.as_str());
            failures::waive(&table, named(name)?, key, reason, by.as_str())
        })
    })
}

fn named(name: Option<&str>) -> Result<&str, Failure> {
    name.ok_or_else(|| {
        Failure::new(code::INVALID_PARAMETER, "no upgrade is named")
            .detail("Nothing was changed.")
            .hint("select relation, name from migrator.upgrades; lists what is registered.")
    })
}

/// At most a month; nothing for a negative one.
fn duration(interval: &Interval) -> Duration {
    let micros = interval.as_micros().clamp(0, 86_400_000_000 * 31);
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// A UUID as PostgreSQL writes it.
fn uuid(text: &str) -> Uuid {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        let pair = std::str::from_utf8(pair).unwrap_or("00");
        *byte = u8::from_str_radix(pair, 16).expect("a uuid is written in hexadecimal digits");
    }
    Uuid::from_bytes(bytes)
}
