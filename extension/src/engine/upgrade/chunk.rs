//! What a step does with the chunk that it has: it writes the next of its rows, or counts them.

use super::batch::{self as written, Batch};
use super::bound::{self, Within};
use super::keyset::Keyset;
use super::step::{Step, another};
use super::sweep::{self, Chunk, Progress};
use super::table::Upgraded;
use super::{complete, looked};
use crate::catalog::cost::Meter;
use crate::catalog::spi;
use migrator_core::batch::{self, Aim, Pace};
use migrator_core::failure::{Failure, code};
use migrator_core::ident::literal;
use migrator_core::sqlstate;
use migrator_core::upgrade::Definition;
use migrator_core::upgrade::sweep::Range;
use pgrx::{JsonB, pg_sys};
use serde::Deserialize;
use serde_json::json;
use std::time::{Duration, Instant};

/// The most rows of a batch.
const MOST: i32 = 20_000;
/// Where other sessions hold so many rows of a chunk, these come first: their list is written with every batch.
const HELD_MOST: usize = 10_000;

/// Brings up the rows of the next batch, or those that were in other hands before.
pub fn upgrade(
    table: &Upgraded,
    definition: &Definition,
    keyset: &Keyset<'_>,
    chunk: &Chunk,
    factor: i32,
    batch: &Batch<'_>,
) -> Result<Step, Failure> {
    let meter = Meter::start();
    let aim = aim(table);
    let wanted = if only_cleans(table, definition)? { table.state.cleanup_batch_size } else { table.state.batch_size };
    let size = wanted.unwrap_or(i32::MAX).min(chunk.pace.size);
    let rows = batch::divided(size, factor);
    let held = chunk.passed || chunk.skipped.len() >= HELD_MOST;
    let (outcome, until) = if held {
        (batch.keys(chunk.skipped.clone(), usize::try_from(rows).unwrap_or(1)), chunk.key_after.clone())
    } else {
        let end = boundary(keyset, &chunk.range(), rows)?;
        let until = end.or_else(|| chunk.key_until.clone());
        (batch.range(&Range { after: chunk.key_after.clone(), until: until.clone() }), until)
    };
    let done = match outcome {
        Ok(done) => done,
        Err(failure) if sqlstate::belongs_to_program(&failure.code) => {
            if !written::block(table, definition, &failure)? {
                return Ok(another());
            }
            return Ok(Step { done: true, ..Step::wait("blocked", 1000, failure.message) });
        }
        Err(failure) => return Err(failure),
    };
    // A batch that was cut short has not passed its range: the next one begins with what is left.
    let cut = done.cut && !held;
    let (after, scanned) = if cut {
        passed(definition, keyset, &Range { after: chunk.key_after.clone(), until }, &done.aside)?
    } else {
        (until, if held { 0 } else { done.scanned })
    };
    let mut skipped = if held { vec![] } else { chunk.skipped.clone() };
    if !cut {
        skipped.extend(done.skipped.iter().cloned());
    }
    let took = meter.batch(i32::try_from(done.scanned.max(scanned)).unwrap_or(rows));
    let pace = match wanted {
        _ if held => chunk.pace,
        _ if cut => chunk.pace.cut(aim, took, rows),
        Some(wanted) => Pace { size: chunk.pace.size.saturating_mul(2).min(wanted), ..chunk.pace },
        None => chunk.pace.after(aim, took),
    };
    let passed = after.is_some() && after == chunk.key_until;
    sweep::progress(
        table,
        chunk,
        &Progress {
            after: after.as_deref(),
            rows: scanned,
            written: done.written,
            pending: 0,
            counts: None,
            skipped: &skipped,
            pace,
            done: passed && skipped.is_empty(),
        },
    )?;
    let mut step = Step { rows: done.written, failed: done.failed, ..Step::new("upgrading") };
    if held && !skipped.is_empty() && done.written == 0 {
        step.wait_ms = 200;
        step.reason =
            Some(format!("{} row(s) are locked by other sessions, and done when they are free", skipped.len()));
    }
    if done.failed > 0
        && let Some(why) = over_budget(table)?
    {
        step.state = "blocked";
        step.reason = Some(why);
        step.done = true;
    }
    step.statement = vacuum(table)?;
    Ok(step)
}

/// The key up to which no row of a range lacks anything any more but those that were just set aside, and how many rows there are up to it; what was written mostly lies in the order of the
/// key. A batch that began with the range once more would look at all that was done, in which each row has two entries in each index by now.
fn passed(
    definition: &Definition,
    keyset: &Keyset<'_>,
    range: &Range,
    aside: &[written::Key],
) -> Result<(Option<Vec<String>>, i64), Failure> {
    #[derive(Deserialize)]
    struct Until {
        before: Option<Vec<String>>,
        rows: i64,
    }
    let table = keyset.table();
    let until: Vec<Until> = keyset.query(&table.done_until(definition, range), &[JsonB(json!(aside)).into()])?;
    if let Some(until) = until.into_iter().next() {
        return Ok((until.before.or_else(|| range.after.clone()), until.rows));
    }
    #[derive(Deserialize)]
    struct Rows {
        n: i64,
    }
    let all: Vec<Rows> = keyset.query(&table.rows_in(range), &[])?;
    Ok((range.until.clone(), all.first().map_or(0, |all| all.n)))
}

/// Whether nothing but retired names is left to take off: everything else that batches do is complete.
fn only_cleans(table: &Upgraded, definition: &Definition) -> Result<bool, Failure> {
    if definition.retired.is_empty() {
        return Ok(false);
    }
    let registered = table.registered()?;
    Ok(!registered.iter().any(|upgrade| upgrade.state == "running" && upgrade.kind != "application"))
}

/// Counts what the next rows lack.
pub fn verify(
    table: &Upgraded,
    definition: &Definition,
    keyset: &Keyset<'_>,
    chunk: &Chunk,
    factor: i32,
    begun: Instant,
) -> Result<Step, Failure> {
    #[derive(Deserialize)]
    struct Counted {
        scanned: i64,
        pending: i64,
        counts: Vec<i64>,
    }
    let looks = Aim { most: batch::COMPARE_ROWS.most, ..aim(table) };
    let rows = batch::divided(chunk.pace.size, factor);
    // What has to come from the disk does so in the look for the end, which stops when its part of the time is over.
    let within = Within::begin(begun, target(table));
    let end = boundary(keyset, &chunk.range(), rows)?;
    drop(within);
    let after = end.or_else(|| chunk.key_until.clone());
    let range = Range { after: chunk.key_after.clone(), until: after.clone() };
    let counted: Vec<Counted> = keyset.query(&keyset.table().count(definition, &range), &[])?;
    let Some(counted) = counted.into_iter().next() else {
        return Err(Failure::new(code::INTERNAL, "a count has no row"));
    };
    let looked = i32::try_from(counted.scanned).unwrap_or(rows).min(rows);
    sweep::progress(
        table,
        chunk,
        &Progress {
            after: after.as_deref(),
            rows: counted.scanned,
            written: 0,
            pending: counted.pending,
            counts: Some(counted.counts),
            skipped: &[],
            pace: Pace::of(looks.next(chunk.pace.size, looked, begun.elapsed())),
            done: after == chunk.key_until,
        },
    )?;
    Ok(Step { rows: counted.scanned, ..Step::new("verifying") })
}

#[derive(Deserialize)]
struct Found {
    key: Vec<String>,
}

fn boundary(keyset: &Keyset<'_>, range: &Range, rows: i32) -> Result<Option<Vec<String>>, Failure> {
    let sql = keyset.table().boundary(range, i64::from(rows));
    let found: Vec<Found> = looked::for_its_end(|| keyset.query(&sql, &[]))?;
    Ok(found.into_iter().next().map(|found| found.key))
}

/// What a batch of this table should take.
fn aim(table: &Upgraded) -> Aim {
    Aim { time: target(table).mul_f64(bound::USUAL), most: MOST }
}

/// How long a transaction may take.
pub fn target(table: &Upgraded) -> Duration {
    Duration::from_millis(u64::try_from(table.state.target_ms).unwrap_or(200))
}

/// The run stops when more rows fail than the larger of 100 and a thousandth of those that it has passed: why.
fn over_budget(table: &Upgraded) -> Result<Option<String>, Failure> {
    let aside = complete::failed_in_sweep(table)?;
    // A batch that was cut short has not passed its range, and what failed in it counts: so does what it wrote.
    let sum = sweep::sum(table)?;
    let budget = (sum.rows.max(sum.written) / 1000).max(100);
    if aside <= budget {
        return Ok(None);
    }
    let name = literal(&table.relation.name.plain());
    let why = format!("{aside} rows failed, more than the {budget} that may");
    let hint = format!(
        "select sqlstate, message, count(*) from migrator.upgrade_failures where relation = {} group by 1, 2; shows why. Then retire the upgrade and register a better one, or go on: select migrator.resume_upgrades({name});",
        table.relation.as_shown()
    );
    // Who has the row may be waiting for the table, which this batch holds: the next one in which a row fails looks again.
    let taken = spi::execute(
        "update migrator.upgraded set blocked = $2, blocked_hint = $3 where relation = $1 \
           and relation in (select u.relation from migrator.upgraded u where u.relation = $1 for no key update skip locked)",
        &[pg_sys::Oid::from(table.relation.oid).into(), why.clone().into(), hint.into()],
    )?;
    if taken == 0 {
        return Ok(None);
    }
    table.event("blocked", &why, json!({"failed": aside, "budget": budget}))?;
    Ok(Some(why))
}

/// After every tenth of the table: room in it for the versions of rows that come next, without which it would double.
fn vacuum(table: &Upgraded) -> Result<Option<String>, Failure> {
    let written = sweep::sum(table)?.written;
    let enough = (table.state.rows_total / 10).max(10_000);
    if written - table.state.rows_vacuumed < enough {
        return Ok(None);
    }
    let mine = spi::execute(
        "update migrator.upgraded set rows_vacuumed = $2, vacuum_asked_at = pg_catalog.clock_timestamp() where relation = $1 and $2 - rows_vacuumed >= $3 \
         and relation in (select u.relation from migrator.upgraded u where u.relation = $1 for no key update skip locked)",
        &[pg_sys::Oid::from(table.relation.oid).into(), written.into(), enough.into()],
    )?;
    Ok((mine == 1).then(|| format!("vacuum {}", table.relation.name)))
}
