//! Upgrades of rows.

use crate::api::answer::{LOOK, answer};
use crate::api::arguments::{RegClass, RegProcedure};
use crate::catalog::{cost, kept, role, settings};
use crate::engine::guard;
use crate::engine::upgrade::register::Request;
use crate::engine::upgrade::table::{self, Upgraded};
use crate::engine::upgrade::{bound, explain, forget, install, looked, retire, settle, step};
use migrator_core::failure::{Ending, Failure, NOTHING_CHANGED};
use pgrx::JsonB;
use pgrx::prelude::*;

const REGISTER: Ending = Ending {
    left: NOTHING_CHANGED,
    next: "Correct that and call it again; migrator.explain_upgrade with the same arguments tries it without leaving anything behind.",
};

const STEP: Ending = Ending {
    left: "This step changed nothing; what was committed before it stays.",
    next: "Mend that and call it again; select * from migrator.upgrades; shows where the upgrades stand.",
};

pub(super) const DECIDE: Ending = Ending {
    left: NOTHING_CHANGED,
    next: "Mend that and call it again; select * from migrator.upgrades; shows what is registered.",
};

/// Registers an upgrade of a table's rows, behind those that there are.
// No `set search_path`: the caller's is recorded with the upgrade, and pinned within.
#[pg_extern(volatile, parallel_unsafe, requires = ["upgrades"])]
#[allow(clippy::too_many_arguments)]
fn register_upgrade(
    relation: Option<RegClass>,
    name: Option<&str>,
    set: default!(Option<JsonB>, "NULL"),
    function: default!(Option<RegProcedure>, "NULL"),
    inputs: default!(Option<Vec<String>>, "NULL"),
    outputs: default!(Option<Vec<String>>, "NULL"),
    ordinal: default!(Option<i32>, "NULL"),
    safe_in_place: default!(bool, "false"),
    batch_size: default!(Option<i32>, "NULL"),
    cleanup_batch_size: default!(Option<i32>, "NULL"),
    target: default!(Option<Interval>, "NULL"),
    view_name: default!(Option<&str>, "NULL"),
    strategy: default!(Option<&str>, "'rows'"),
) -> i64 {
    let request =
        request(relation, name, set, function, inputs, outputs, safe_in_place, strategy).map(|request| Request {
            ordinal,
            batch_size,
            cleanup_batch_size,
            target_ms: target.map(milliseconds),
            view_name: view_name.map(str::to_owned),
            ..request
        });
    answer(REGISTER, || role::as_extension(|| install::register(&request?)))
}

/// What register_upgrade would do: each statement, its lock and for how long. Leaves nothing behind.
#[pg_extern(volatile, parallel_unsafe, requires = ["upgrades"])]
#[allow(clippy::type_complexity, clippy::too_many_arguments)]
fn explain_upgrade(
    relation: Option<RegClass>,
    name: Option<&str>,
    set: default!(Option<JsonB>, "NULL"),
    function: default!(Option<RegProcedure>, "NULL"),
    inputs: default!(Option<Vec<String>>, "NULL"),
    outputs: default!(Option<Vec<String>>, "NULL"),
    ordinal: default!(Option<i32>, "NULL"),
    safe_in_place: default!(bool, "false"),
    batch_size: default!(Option<i32>, "NULL"),
    cleanup_batch_size: default!(Option<i32>, "NULL"),
    target: default!(Option<Interval>, "NULL"),
    view_name: default!(Option<&str>, "NULL"),
    strategy: default!(Option<&str>, "'rows'"),
) -> TableIterator<
    'static,
    (
        name!(ordinal, i32),
        name!(step, String),
        name!(object, String),
        name!(statement, Option<String>),
        name!(lock, Option<String>),
        name!(held, Option<String>),
        name!(rows, Option<i64>),
        name!(bytes, Option<i64>),
        name!(wal_bytes, Option<i64>),
        name!(seconds, Option<f64>),
        name!(note, Option<String>),
    ),
> {
    let request =
        request(relation, name, set, function, inputs, outputs, safe_in_place, strategy).map(|request| Request {
            ordinal,
            batch_size,
            cleanup_batch_size,
            target_ms: target.map(milliseconds),
            view_name: view_name.map(str::to_owned),
            ..request
        });
    let rows = answer(LOOK, || role::as_extension(|| explain::rows(&request?)));
    TableIterator::new((1..).zip(rows).map(|(ordinal, row)| {
        let explain::Row { step, object, statement, lock, held, cost, note } = row;
        let explain::Cost { rows, bytes, wal_bytes, seconds } = cost;
        let lock = lock.map(str::to_owned);
        (ordinal, step.to_owned(), object, statement, lock, held, rows, bytes, wal_bytes, seconds, note)
    }))
}

/// What both of them take; all else as where it is left out.
#[allow(clippy::too_many_arguments)]
fn request(
    relation: Option<RegClass>,
    name: Option<&str>,
    set: Option<JsonB>,
    function: Option<RegProcedure>,
    inputs: Option<Vec<String>>,
    outputs: Option<Vec<String>>,
    safe_in_place: bool,
    strategy: Option<&str>,
) -> Result<Request, Failure> {
    Ok(Request {
        relation: table::given(relation.map(|relation| relation.0))?,
        name: name.unwrap_or_default().to_owned(),
        set: set.map(|set| set.0),
        function: function.map(|function| function.0),
        inputs,
        outputs,
        ordinal: None,
        safe_in_place,
        batch_size: None,
        cleanup_batch_size: None,
        target_ms: None,
        view_name: None,
        strategy: strategy.unwrap_or("rows").to_owned(),
        caller: role::caller(),
        settings: settings::of_session(),
    })
}

/// Whole milliseconds; -1 for what no batch could take.
fn milliseconds(interval: Interval) -> i32 {
    i32::try_from(interval.as_micros() / 1000).unwrap_or(-1)
}

/// Does one bounded batch of everything pending, or whatever has to happen between batches.
// No `set search_path`: it would undo what a batch says of its commit. Nothing is resolved before the path is pinned within.
#[pg_extern(volatile, parallel_unsafe, requires = ["upgrades"])]
#[allow(clippy::type_complexity)]
fn step(
    relation: Option<RegClass>,
    worker: default!(Option<&str>, "NULL"),
) -> TableIterator<
    'static,
    (
        name!(state, String),
        name!(rows, i64),
        name!(failed, i64),
        name!(done, bool),
        name!(wait_ms, i32),
        name!(reason, Option<String>),
        name!(statement, Option<String>),
        name!(eta, Option<Interval>),
    ),
> {
    // SAFETY: reads a backend-local variable.
    let own = || format!("backend {}", unsafe { pgrx::pg_sys::MyProcPid });
    let worker = worker.map_or_else(own, str::to_owned);
    let step = answer(STEP, || {
        let oid = table::given(relation.map(|relation| relation.0))?;
        Upgraded::hold(oid);
        kept::plans(|| Upgraded::enter(oid, |table| step::step(&table, &worker)))
    });
    // Rows and where they end are lost together, if they are; what says that an upgrade is complete waits for the disk, and
    // with it for all before it. And nobody would hear of a hold whose own commit waits for the standby that it is about.
    if step.held || (step.rows > 0 && !step.done) {
        cost::commit_at_once();
    }
    let step::Step { state, rows, failed, done, wait_ms, reason, statement, eta, .. } = step;
    let eta = eta.map(|seconds| Interval::from_seconds(seconds.round()));
    TableIterator::once((state.to_owned(), rows, failed, done, wait_ms, reason, statement, eta))
}

/// How the procedure begins: refused where it cannot commit.
#[pg_extern(volatile, parallel_unsafe, requires = ["upgrades"])]
fn _run_upgrades() {
    answer(DECIDE, || guard::commits("migrator.run_upgrades"));
}

/// Whether the batch in hand may write one more row.
#[pg_extern(volatile, parallel_unsafe, requires = ["upgrades"])]
fn _in_time() -> bool {
    bound::is_in_time()
}

/// Whether a batch of so many rows ends with the row at this place, which is asked for so that the row is read.
#[pg_extern(volatile, parallel_unsafe, requires = ["upgrades"])]
fn _ends(rows: i64, _place: pgrx::pg_sys::ItemPointerData) -> bool {
    looked::ends(rows)
}

/// Counts a row that the batch in hand looks at. Its cost has it asked after everything else, of the rows of the batch only.
#[pg_extern(volatile, parallel_unsafe, cost = 1000000, requires = ["upgrades"])]
fn _counts(lacks: bool) -> bool {
    looked::count(lacks)
}

/// Makes an upgrade's name mean nothing, and rows lose it.
#[pg_extern(volatile, parallel_unsafe, requires = ["upgrades"])]
#[search_path(pg_catalog, pg_temp)]
fn retire_upgrade(relation: Option<RegClass>, name: Option<&str>, incomplete: default!(bool, "false")) -> String {
    let name = name.unwrap_or_default();
    answer(DECIDE, || table(relation, |table| retire::retire(&table, name, incomplete).map(str::to_owned)))
}

/// Makes a table whose upgrades are all retired one that never had any.
#[pg_extern(volatile, parallel_unsafe, requires = ["upgrades"])]
#[search_path(pg_catalog, pg_temp)]
fn forget_upgrades(relation: Option<RegClass>) -> bool {
    answer(DECIDE, || forget::forget(table::given(relation.map(|relation| relation.0))?))
}

/// Stops a table's batches; writes go on being guarded.
#[pg_extern(volatile, parallel_unsafe, requires = ["upgrades"])]
#[search_path(pg_catalog, pg_temp)]
fn pause_upgrades(relation: Option<RegClass>) {
    answer(DECIDE, || table(relation, |table| settle::pause(&table)));
}

/// Lets a table's paused or blocked batches go on.
#[pg_extern(volatile, parallel_unsafe, requires = ["upgrades"])]
#[search_path(pg_catalog, pg_temp)]
fn resume_upgrades(relation: Option<RegClass>) {
    answer(DECIDE, || table(relation, |table| settle::resume(&table)));
}

/// Has every row of a table looked at again.
#[pg_extern(volatile, parallel_unsafe, requires = ["upgrades"])]
#[search_path(pg_catalog, pg_temp)]
fn verify_upgrades(relation: Option<RegClass>) {
    answer(DECIDE, || table(relation, |table| settle::verify(&table)));
}

fn table<T>(relation: Option<RegClass>, work: impl FnOnce(Upgraded) -> Result<T, Failure>) -> Result<T, Failure> {
    Upgraded::enter(table::given(relation.map(|relation| relation.0))?, work)
}
