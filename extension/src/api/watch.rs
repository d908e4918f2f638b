//! Looking: events, version.

use crate::api::answer::{DECIDE, LOOK, answer};
use crate::api::arguments::RegClass;
use crate::api::change::oid;
use crate::catalog::relation::Relation;
use crate::catalog::{role, spi, timeout};
use crate::engine::{doctor, ensure, guard};
use migrator_core::failure::{Failure, code};
use pgrx::prelude::*;
use serde::Deserialize;
use std::time::Duration;

/// The version of the library that is loaded.
#[pg_extern(immutable, parallel_safe)]
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Leaves a line in the log of a change, as the agent does about its runs.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
fn note_event(change: i64, kind: &str, message: &str, detail: default!(pgrx::JsonB, "'{}'")) -> i64 {
    #[derive(Deserialize)]
    struct Id {
        id: i64,
    }
    answer(LOOK, || {
        guard::enter(None, Some(change), |change| {
            let row: Id = spi::fetch_one(
                "with i as (insert into migrator.event (change, kind, message, detail) values ($1, $2, $3, $4) returning id) select pg_catalog.to_jsonb(i) from i",
                &[change.id.into(), kind.into(), message.into(), detail.into()],
            )?;
            Ok(row.id)
        })
    })
}

/// The id of the change that a table or an id names, after the check of the caller's rights; how a procedure begins.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
fn _change_id(relation: default!(Option<RegClass>, "NULL"), change: default!(Option<i64>, "NULL")) -> i64 {
    let id = answer(DECIDE, || {
        guard::commits("migrator.prepare")?;
        guard::enter(oid(relation), change, |change| Ok(change.id))
    });
    timeout::outlast_call();
    id
}

/// Waits until the last change of a table is swapped; raises what to do when it is not in time.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
fn ensure_changed(relation: RegClass, wait: default!(Interval, "'0'")) -> bool {
    let caller = role::caller();
    answer(DECIDE, || {
        role::as_extension(|| {
            if !may_change(relation.0, caller)? {
                let name = Relation::get(relation.0)?.name.plain();
                return Err(Failure::new(
                    code::INSUFFICIENT_PRIVILEGE,
                    format!("must be owner of table {name} to wait for its change"),
                )
                .hint("Call it as the table's owner or as a member of that role."));
            }
            let micros = wait.as_micros().clamp(0, 86_400_000_000 * 30);
            ensure::changed(relation.0, Duration::from_micros(u64::try_from(micros).unwrap_or(0)))
        })
    })
}

fn may_change(relation: u32, caller: pgrx::pg_sys::Oid) -> Result<bool, Failure> {
    #[derive(Deserialize)]
    struct May {
        may: bool,
    }
    let answer: May = spi::fetch_one(
        "select coalesce((select pg_catalog.pg_has_role($1, c.relowner, 'usage') from pg_catalog.pg_class c where c.oid = $2), true) as may",
        &[caller.into(), pgrx::pg_sys::Oid::from(relation).into()],
    )?;
    Ok(answer.may)
}

/// What is wrong with this server, worst first, and the call that mends it.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
#[allow(clippy::type_complexity)]
fn doctor() -> TableIterator<
    'static,
    (name!(severity, String), name!(subject, String), name!(problem, String), name!(remedy, String)),
> {
    let caller = role::caller();
    let found = answer(LOOK, || role::as_extension(|| doctor::examine(caller)));
    TableIterator::new(found.into_iter().map(|f| (f.severity, f.subject, f.problem, f.remedy)))
}
