//! When is an upgrade complete?
//!
//! The guard stood before the sweep; every chunk was passed up to an end that was fixed after that; then every row was looked at
//! again and none lacked the name, none is set aside and none is in the hands of application code.

use super::keyset::Keyset;
use super::sweep;
use super::table::Upgraded;
use crate::catalog::spi;
use crate::crash;
use migrator_core::failure::Failure;
use pgrx::{JsonB, pg_sys};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Count {
    n: i64,
}

/// The failures of batches: those of application code are not theirs to count, unless they are to take its name off.
const OF_BATCHES: &str = "(g.kind <> 'application' or g.state = 'retiring')";

/// Rows that batches have set aside, each counted once.
pub fn set_aside(table: &Upgraded) -> Result<i64, Failure> {
    let count: Count = spi::fetch_one(
        &format!(
            "select count(distinct f.key) as n from migrator.upgrade_failure f join migrator.upgrade g on g.id = f.upgrade \
             where f.relation = $1 and {OF_BATCHES}"
        ),
        &[pg_sys::Oid::from(table.relation.oid).into()],
    )?;
    Ok(count.n)
}

/// The same, after a look at those rows: somebody may have mended them.
pub fn still_aside(table: &Upgraded) -> Result<i64, Failure> {
    if set_aside(table)? > 0 {
        forget_what_is_mended(table)?;
    }
    set_aside(table)
}

/// Of the rows that are set aside those that failed in a batch of the sweep under way, without those of which somebody said that they may. Who
/// failed before, or by a writer's hand, or when he was tried again, counts when the sweep comes to him: with what it will have passed
/// then. He is the first of those that may.
pub fn failed_in_sweep(table: &Upgraded) -> Result<i64, Failure> {
    let count: Count = spi::fetch_one(
        &format!(
            "select count(distinct f.key) filter (where f.sweep = u.sweep) \
                 - greatest(0, u.forgiven - count(distinct f.key) filter (where f.sweep is distinct from u.sweep)) as n \
             from migrator.upgraded u left join (migrator.upgrade_failure f join migrator.upgrade g on g.id = f.upgrade and {OF_BATCHES}) \
               on f.relation = u.relation where u.relation = $1 group by u.forgiven"
        ),
        &[pg_sys::Oid::from(table.relation.oid).into()],
    )?;
    Ok(count.n)
}

/// Whether failures are known of which nobody knows the row: every row has to be looked at again.
pub fn unnoted(table: &Upgraded) -> Result<bool, Failure> {
    let count: Count = spi::fetch_one(
        "select count(*) as n from migrator.upgrade_unnoted n join migrator.upgrade g on g.id = n.upgrade where g.relation = $1",
        &[pg_sys::Oid::from(table.relation.oid).into()],
    )?;
    Ok(count.n > 0)
}

/// It was complete, and is not any more. A writer in whose statement it fails may be saying so, and is not waited for, until his
/// transaction ends: should he roll back, the note that is left in a row of its own says it still.
pub fn not_any_more(upgrade: i64) -> Result<(), Failure> {
    spi::execute(
        "with l as (select g.id from migrator.upgrade g where g.id = $1 and g.state = 'complete' for no key update skip locked), \
           u as (update migrator.upgrade g set state = 'running', completed_at = null from l where g.id = l.id) \
         insert into migrator.upgrade_unnoted (relation, upgrade) select g.relation, g.id from migrator.upgrade g \
           where g.id = $1 and g.state = 'complete' and not exists (select from l)",
        &[upgrade.into()],
    )
    .map(|_| ())
}

/// Ends a verify sweep: what it found decides what is complete. The caller holds the table's row.
///
/// Between its look at a row and this moment only the guard can have changed the row, and where an upgrade failed there the failure
/// commits together with the row: what is not yet to be seen here makes the upgrade incomplete when it commits, for nothing with
/// a failure counts as complete, whatever is written here (`table::registered`).
pub fn ended(table: &Upgraded) -> Result<(), Failure> {
    let oid = pg_sys::Oid::from(table.relation.oid);
    forget_what_is_mended(table)?;
    let sum = sweep::sum(table)?;
    let counts = sweep::counts(table)?;
    let registered = table.registered()?;
    // Behind the counts of all that is registered; an empty table has none.
    let strangers = counts.get(registered.len()).copied().unwrap_or(0);
    spi::execute(
        "update migrator.upgraded set sweep_kind = null, verified_at = pg_catalog.clock_timestamp(), \
         verify_took = pg_catalog.clock_timestamp() - sweep_began, lacking = $2, strangers = $3, \
         repeated = case when $2 > $4 then repeated else 0 end where relation = $1",
        &[oid.into(), sum.pending.into(), strangers.into(), set_aside(table)?.into()],
    )?;
    spi::execute("delete from migrator.sweep_chunk where relation = $1", &[oid.into()])?;
    crash::point("step.verified");
    let live = registered.iter().filter(|upgrade| upgrade.state != "retiring");
    for (place, upgrade) in live.enumerate() {
        let lacking = counts.get(place).copied().unwrap_or(0);
        if lacking > 0 {
            not_any_more(upgrade.id)?;
            continue;
        }
        let completed = spi::execute(
            "update migrator.upgrade g set state = 'complete', completed_at = pg_catalog.clock_timestamp() where g.id = $1 and g.state = 'running' \
               and not exists (select from migrator.upgrade_failure f where f.relation = g.relation and f.upgrade = g.id) \
               and not exists (select from migrator.upgrade_unnoted n where n.upgrade = g.id) \
               and not exists (select from migrator.upgrade_lease l where l.upgrade = g.id and not l.applied and l.until > pg_catalog.clock_timestamp())",
            &[upgrade.id.into()],
        )?;
        if completed == 1 {
            table.event(
                "complete",
                &format!("upgrade {} is complete: every row was looked at and has it", upgrade.name),
                json!({"upgrade": upgrade.name, "rows": sum.rows}),
            )?;
        }
    }
    Ok(())
}

/// Forgets rows that have got the name since they were set aside, or have lost it, if it is a retired one, or are not there any more.
pub fn forget_what_is_mended(table: &Upgraded) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Failed {
        upgrade: i64,
        name: String,
        live: bool,
        failures: Vec<Noted>,
    }
    #[derive(Deserialize, Serialize)]
    struct Noted {
        key: Value,
        seen_at: String,
    }
    #[derive(Deserialize)]
    struct Found {
        key: Vec<String>,
    }
    let failed: Vec<Failed> = spi::fetch(
        "select f.upgrade, g.name, g.state not in ('retiring', 'retired') as live, pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('key', f.key, 'seen_at', f.seen_at)) as failures from migrator.upgrade_failure f \
         join migrator.upgrade g on g.id = f.upgrade where f.relation = $1 group by 1, 2, 3",
        &[pg_sys::Oid::from(table.relation.oid).into()],
    )?;
    let keyset = Keyset::of(table)?;
    for Failed { upgrade, name, live, failures } in failed {
        let texts = |key: &Value| -> Vec<String> {
            table.key.iter().map(|column| key[column.as_str()].as_str().unwrap_or_default().to_owned()).collect()
        };
        let all: Vec<Vec<String>> = failures.iter().map(|failure| texts(&failure.key)).collect();
        let sql = keyset.table().by_name(&name, !live);
        let as_before: Vec<Found> = keyset.query(&sql, &[JsonB(json!(all)).into()])?;
        let mended: Vec<&Noted> =
            failures.iter().filter(|failure| !as_before.iter().any(|found| found.key == texts(&failure.key))).collect();
        // Those that were read before the rows were: what a writer has noted since is another failure, and one that he is just
        // noting is his. Nobody is waited for.
        spi::execute(
            "delete from migrator.upgrade_failure f where (f.relation, f.upgrade, f.key) in (select x.relation, x.upgrade, x.key \
             from migrator.upgrade_failure x join pg_catalog.jsonb_to_recordset($3) as w (key jsonb, seen_at timestamptz) on w.key = x.key and w.seen_at = x.seen_at \
             where x.relation = $1 and x.upgrade = $2 for update of x skip locked)",
            &[pg_sys::Oid::from(table.relation.oid).into(), upgrade.into(), JsonB(json!(mended)).into()],
        )?;
    }
    Ok(())
}
