//! What people decide about a table's upgrades while they run.

use super::table::Upgraded;
use crate::catalog::spi;
use migrator_core::failure::Failure;
use pgrx::pg_sys;
use serde_json::json;

/// Stops batches; the guard goes on.
pub fn pause(table: &Upgraded) -> Result<(), Failure> {
    spi::execute(
        "update migrator.upgraded set paused_at = coalesce(paused_at, pg_catalog.clock_timestamp()) where relation = $1",
        &[pg_sys::Oid::from(table.relation.oid).into()],
    )?;
    table.event("paused", "batches were paused", json!({}))
}

/// Lets a paused or blocked table go on.
pub fn resume(table: &Upgraded) -> Result<(), Failure> {
    spi::execute(
        "update migrator.upgraded set paused_at = null, blocked = null, blocked_hint = null where relation = $1",
        &[pg_sys::Oid::from(table.relation.oid).into()],
    )?;
    table.event("resumed", "batches go on", json!({}))
}

/// Has every row looked at again.
pub fn verify(table: &Upgraded) -> Result<(), Failure> {
    spi::execute(
        "update migrator.upgraded set verified_at = null, lacking = null where relation = $1",
        &[pg_sys::Oid::from(table.relation.oid).into()],
    )?;
    spi::execute(
        "update migrator.upgrade set state = 'running', completed_at = null where relation = $1 and state = 'complete'",
        &[pg_sys::Oid::from(table.relation.oid).into()],
    )?;
    table.event("verify", "every row is to be looked at again", json!({}))
}
