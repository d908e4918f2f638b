//! `migrator.ensure_upgraded`: an application migration that depends on an upgrade waits for it here, or does it itself.

use super::look;
use super::rewrite;
use super::step;
use super::table::Upgraded;
use crate::catalog::attempt::rehearse;
use crate::catalog::lock;
use crate::catalog::relation::Relation;
use crate::catalog::spi;
use crate::engine::guard;
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{literal, plain};
use pgrx::pg_sys;
use serde::Deserialize;
use std::time::{Duration, Instant};

/// A step that asks for so long a pause does not know when it can go on.
const HELD: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
struct Last {
    id: i64,
    relation: u32,
    state: String,
    completed: bool,
    waits_for: Option<String>,
    next_step: Option<String>,
    progress: Option<f64>,
}

/// Waits until every row has an upgrade. Looks five times a second, each time under a new snapshot; with `drive` does the work
/// meanwhile that batches do. One that was complete when it was retired counts.
pub fn upgraded(relation: u32, name: &str, wait: Duration, drive: bool) -> Result<(), Failure> {
    guard::fresh_snapshots("migrator.ensure_upgraded")?;
    let end = Instant::now() + wait;
    let table = Relation::get(relation)?.name.plain();
    let (mut marked, mut awaited) = (None, vec![]);
    let mut known = None;
    loop {
        // From the second look on by its number: it moves on to another table with a swap, which this may be waiting for.
        let looked = match known {
            None => last(relation, name)?,
            Some(id) => again(id)?,
        };
        let Some(last) = looked else {
            if known.is_some() {
                return Err(forgotten(&table, name));
            }
            return Err(Failure::new(code::UNDEFINED_OBJECT, format!("table {table} has no upgrade {}", plain(name)))
                .detail("It was never registered, so there is nothing to wait for.")
                .hint(format!(
                    "Register it in an earlier migration: select migrator.register_upgrade({}, {}, …);",
                    literal(&table),
                    literal(name)
                )));
        };
        known = Some(last.id);
        let looked = Instant::now();
        let stale = if last.completed && last.state == "complete" { stale(&last, name, drive)? } else { None };
        if last.completed && stale.is_none() {
            // What comes next in this transaction waits for nothing, and its snapshots count again. An error takes the marks away by itself.
            awaited.into_iter().for_each(lock::awaited);
            return Ok(());
        }
        if ["retiring", "retired"].contains(&last.state.as_str()) {
            return Err(Failure::new(
                code::NOT_IN_STATE,
                format!("upgrade {} of table {table} was retired before it was complete", plain(name)),
            )
            .detail("Rows that lack it will not get it any more. Nothing was changed by this call.")
            .hint("Register what this migration needs under another name."));
        }
        let relation = last.relation;
        // Where the table is written anew nothing is to be driven here, and whoever holds the table or works on it keeps the swap
        // from coming: then this one waits, too.
        let drive = if drive {
            // Swapped since the look above: the next one knows where it is.
            let Some(upgraded) = Upgraded::find(relation)? else { continue };
            rewrite::under_way(&upgraded)?.is_none()
        } else {
            false
        };
        if marked.replace((relation, drive)) != Some((relation, drive)) {
            if drive {
                lock::driving(relation);
            } else {
                lock::awaiting(relation);
                awaited.push(relation);
            }
        }
        // A look at all rows is not had five times a second.
        let mut pause =
            if stale.is_some() { looked.elapsed() * 20 } else { Duration::ZERO }.max(Duration::from_millis(200));
        if drive {
            Upgraded::hold(relation);
            let Some(upgraded) = Upgraded::find(relation)? else { continue };
            let step = step::one(&upgraded, &worker(), true)?;
            let rest = Duration::from_millis(u64::try_from(step.wait_ms).unwrap_or(0));
            // Unless a time was asked for, an end was: it is on its way, by our batches or by somebody else's.
            let in_time = wait.is_zero() || Instant::now() < end;
            if !step.done && rest < HELD && in_time {
                lock::pause(rest);
                pgrx::check_for_interrupts!();
                continue;
            }
            pause = pause.min(rest.max(Duration::from_millis(1)));
        }
        if Instant::now() >= end {
            return Err(match stale {
                Some(why) => outdated(&table, name, &why),
                None => not_yet(&table, name, &last, drive),
            });
        }
        lock::pause(pause.min(end.saturating_duration_since(Instant::now())));
    }
}

/// Why an upgrade that was complete is not taken for it. With `drive` every row is then looked at again, by the steps that follow.
fn stale(last: &Last, name: &str, drive: bool) -> Result<Option<String>, Failure> {
    // With the subtransaction ends the lock of the look: a swap that this may be waiting for needs the table.
    let why = rehearse(|| {
        Upgraded::hold(last.relation);
        // Swapped since: the next look knows where it is.
        let Some(table) = Upgraded::find(last.relation)? else { return Ok(Some("the table was exchanged".to_owned())) };
        look::is_stale(&table, &table.named(name)?, false)
    })?;
    if why.is_some() && drive {
        // A row of its own, for which nobody is waited for; the next step looks at all rows because of it.
        spi::execute(
            "insert into migrator.upgrade_unnoted (relation, upgrade) values ($1, $2)",
            &[pg_sys::Oid::from(last.relation).into(), last.id.into()],
        )?;
    }
    Ok(why)
}

/// It was complete, and is not.
fn outdated(table: &str, name: &str, why: &str) -> Failure {
    let quoted = literal(table);
    Failure::new(code::NOT_IN_STATE, format!("upgrade {} of table {table} is not complete any more", plain(name)))
        .detail(format!("It was, but {why}."))
        .hint(format!(
            "The agent finds such rows after a while; or at once: select migrator.verify_upgrades({quoted}); call migrator.run_upgrades({quoted}); As long as a running version writes rows without it, that comes again."
        ))
}

fn worker() -> String {
    // SAFETY: reads a backend-local variable.
    format!("backend {}", unsafe { pg_sys::MyProcPid })
}

fn not_yet(table: &str, name: &str, last: &Last, drive: bool) -> Failure {
    let waits = last.waits_for.clone().unwrap_or_else(|| "the agent".to_owned());
    let next = last.next_step.clone().unwrap_or_default();
    let again = format!(
        "Run this migration again later, or wait longer: migrator.ensure_upgraded({}, {}, wait => '1 hour').",
        literal(table),
        literal(name)
    );
    let way = if drive {
        format!("What has to happen first: {next}")
    } else {
        format!("Without an agent, drive it yourself: {next}")
    };
    let progress = last.progress.map(|part| format!(" It is at {:.0} %.", part * 100.0)).unwrap_or_default();
    Failure::new(code::NOT_IN_STATE, format!("upgrade {} of table {table} is not complete", plain(name)))
        .detail(format!("It waits for: {waits}.{progress}"))
        .hint(format!("{again} {way}"))
}

fn forgotten(table: &str, name: &str) -> Failure {
    Failure::new(code::UNDEFINED_OBJECT, format!("upgrade {} of table {table} is gone", plain(name)))
        .detail("Its table was made one without upgrades while this call waited. Nothing was changed by this call.")
        .hint(format!(
            "Register it anew if it is needed: select migrator.register_upgrade({}, {}, …);",
            literal(table),
            literal(name)
        ))
}

// One that was complete is not while a row is known that lacks it; what is retired was asked then.
const LAST: &str = "select g.id, g.relation::pg_catalog.int8 as relation, g.state, g.state = 'complete' \
     and not exists (select from migrator.upgrade_failure f where f.relation = g.relation and f.upgrade = g.id) \
     and not exists (select from migrator.upgrade_unnoted n where n.upgrade = g.id) \
   or (g.state in ('retiring', 'retired') and g.completed_at is not null) as completed, v.waits_for, v.next_step, v.progress \
 from migrator.upgrade g left join migrator.upgrades v on v.id = g.id where";

fn last(relation: u32, name: &str) -> Result<Option<Last>, Failure> {
    spi::fetch_optional(
        &format!("{LAST} g.relation = $1 and g.name = $2 order by g.id desc limit 1"),
        &[pg_sys::Oid::from(relation).into(), name.into()],
    )
}

fn again(id: i64) -> Result<Option<Last>, Failure> {
    spi::fetch_optional(&format!("{LAST} g.id = $1"), &[id.into()])
}
