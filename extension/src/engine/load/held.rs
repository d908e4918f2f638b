//! A hold in the log of what it holds: when it begins, with its reason, and when it ends. One line each, however many workers
//! and steps are held.

use crate::catalog::spi;
use crate::engine::change::Change;
use crate::engine::upgrade::table::Upgraded;
use migrator_core::failure::Failure;
use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use serde::Deserialize;
use serde_json::json;

/// Notes that a change is held, and why, or that it goes on.
pub fn change(change: &Change, reason: Option<&str>) -> Result<(), Failure> {
    if change.held == reason.is_some() {
        return Ok(());
    }
    match turn("migrator.change", "id", change.id.into(), reason.is_some())? {
        None => Ok(()),
        Some(seconds) => {
            let (kind, message) = words(reason, seconds);
            change.event(kind, &message, json!({}))
        }
    }
}

/// The same for the upgrades of a table.
pub fn upgrades(table: &Upgraded, reason: Option<&str>) -> Result<(), Failure> {
    if table.state.held == reason.is_some() {
        return Ok(());
    }
    match turn("migrator.upgraded", "relation", pg_sys::Oid::from(table.relation.oid).into(), reason.is_some())? {
        None => Ok(()),
        Some(seconds) => {
            let (kind, message) = words(reason, seconds);
            table.event(kind, &message, json!({}))
        }
    }
}

fn words(reason: Option<&str>, seconds: f64) -> (&'static str, String) {
    match reason {
        Some(reason) => ("held", format!("held by the load of the server: {reason}")),
        None => ("released", format!("goes on after {seconds:.0} s")),
    }
}

/// Turns it, where nobody has and nobody is at it: so one of several workers writes the line. How long it was held.
fn turn(table: &str, key: &str, id: DatumWithOid<'_>, held: bool) -> Result<Option<f64>, Failure> {
    #[derive(Deserialize)]
    struct Since {
        seconds: f64,
    }
    let since: Option<Since> = spi::fetch_optional(
        &format!(
            "with b as (select x.{key}, x.held_since from {table} x where x.{key} = $1 and (x.held_since is not null) <> $2 for no key update skip locked), \
             u as (update {table} x set held_since = case when $2 then pg_catalog.clock_timestamp() end from b where x.{key} = b.{key} \
                   returning coalesce(extract(epoch from pg_catalog.clock_timestamp() - b.held_since), 0)::pg_catalog.float8 as seconds) \
             select pg_catalog.jsonb_build_object('seconds', u.seconds) from u"
        ),
        &[id, held.into()],
    )?;
    Ok(since.map(|since| since.seconds))
}
