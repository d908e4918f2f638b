//! Upgrades of a table that is changed: they go on with the table that the application uses.

use super::table::{self, Upgraded};
use super::{complete, install, numbers};
use crate::catalog::relation::Relation;
use crate::catalog::spi;
use migrator_core::failure::Failure;
use pgrx::pg_sys;

/// After a swap or a rollback, in its transaction. The guard and the view are carried over like other triggers and views.
pub fn follow(from: u32, to: u32) -> Result<(), Failure> {
    spi::execute(
        // Keys of another type may sort otherwise: a sweep that is under way begins anew.
        "update migrator.upgraded set relation = $2, sweep_kind = null, verified_at = null, lacking = null, repeated = 0, strangers = null where relation = $1",
        &[pg_sys::Oid::from(from).into(), pg_sys::Oid::from(to).into()],
    )?;
    // The rows are others: a rollback brings back those of before, which an upgrade by rewriting was never applied to.
    for upgrade in table::registered(to)?.iter().filter(|upgrade| upgrade.state != "retiring") {
        complete::not_any_more(upgrade.id)?;
    }
    let table = Relation::get(to)?;
    if numbers::renew(&table)? {
        // The exchange holds the table exclusively.
        for statement in install::trigger(&table, &Upgraded::get(to)?.definition()?) {
            spi::execute(&statement, &[])?;
        }
    }
    spi::execute(
        "update migrator.upgrade_event set relation = $2 where relation = $1",
        &[pg_sys::Oid::from(from).into(), pg_sys::Oid::from(to).into()],
    )
    .map(|_| ())
}
