//! What people decide about a table's upgrades while they run.

use super::table::Upgraded;
use super::{complete, install};
use crate::catalog::spi;
use migrator_core::failure::Failure;
use pgrx::pg_sys;
use serde_json::json;

/// Stops batches; the guard goes on.
pub fn pause(table: &Upgraded) -> Result<(), Failure> {
    let table = &table.held()?;
    spi::execute(
        "update migrator.upgraded set paused_at = coalesce(paused_at, pg_catalog.clock_timestamp()) where relation = $1",
        &[pg_sys::Oid::from(table.relation.oid).into()],
    )?;
    table.event("paused", "batches were paused", json!({}))
}

/// Lets a paused or blocked table go on. Rows that failed before do not count against what may fail from now on.
///
/// Where the guard is not as it should be, it is put back, and every row is looked at again. Which rows were written without it nobody
/// can tell: one whose inputs changed then keeps its outputs until they change again.
pub fn resume(table: &Upgraded) -> Result<(), Failure> {
    let table = &table.held()?;
    if install::reinstall(table)? {
        complete_no_more(table)?;
        table.event(
            "guard_restored",
            "the guard was put back; rows that were written without it may have outputs that do not fit their inputs",
            json!({}),
        )?;
    }
    spi::execute(
        "update migrator.upgraded set paused_at = null, blocked = null, blocked_hint = null, repeated = 0, forgiven = case when blocked is null then forgiven else $2 end \
         where relation = $1",
        &[pg_sys::Oid::from(table.relation.oid).into(), complete::set_aside(table)?.into()],
    )?;
    table.event("resumed", "batches go on", json!({}))
}

fn complete_no_more(table: &Upgraded) -> Result<(), Failure> {
    for upgrade in table.registered()? {
        complete::not_any_more(upgrade.id)?;
    }
    Ok(())
}

/// Has every row looked at again.
pub fn verify(table: &Upgraded) -> Result<(), Failure> {
    let table = &table.held()?;
    spi::execute(
        "update migrator.upgraded set verified_at = null, lacking = null, repeated = 0, strangers = null where relation = $1",
        &[pg_sys::Oid::from(table.relation.oid).into()],
    )?;
    complete_no_more(table)?;
    table.event("verify", "every row is to be looked at again", json!({}))
}
