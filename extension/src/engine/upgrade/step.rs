//! One bounded step of a table's upgrades: a batch, or whatever has to happen between batches.

use super::batch::{self as written, Batch};
use super::bound::{self, Within};
use super::keyset::Keyset;
use super::retire::Clean;
use super::sweep::{self, Chunk, Kind, Progress};
use super::table::{self, Upgraded};
use super::{complete, install, look, looked, numbers, repeat, retire, rewrite};
use crate::catalog::attempt::attempt;
use crate::catalog::cost::Meter;
use crate::catalog::{lock, spi};
use crate::crash;
use crate::engine::{guard, load};
use migrator_core::batch::{self, Aim, Pace};
use migrator_core::failure::{Failure, code};
use migrator_core::ident::literal;
use migrator_core::load::Verdict;
use migrator_core::sqlstate;
use migrator_core::upgrade::Definition;
use migrator_core::upgrade::sweep::Range;
use pgrx::{JsonB, pg_sys};
use serde::Deserialize;
use serde_json::json;
use std::time::{Duration, Instant};

/// What a step did, and what the caller does next.
#[derive(Debug)]
pub struct Step {
    pub state: &'static str,
    pub rows: i64,
    pub failed: i64,
    /// Nothing is left that a step could do.
    pub done: bool,
    pub wait_ms: i32,
    pub reason: Option<String>,
    /// The server's load is why nothing was done.
    pub held: bool,
    /// To be run outside a transaction before the next call.
    pub statement: Option<String>,
    /// How long the sweep under way will take, in seconds, at the speed that it had so far.
    pub eta: Option<f64>,
}

impl Step {
    fn new(state: &'static str) -> Self {
        Self {
            state,
            rows: 0,
            failed: 0,
            done: false,
            wait_ms: 0,
            reason: None,
            held: false,
            statement: None,
            eta: None,
        }
    }

    pub(super) fn wait(state: &'static str, wait_ms: i32, reason: impl Into<String>) -> Self {
        Self { wait_ms, reason: Some(reason.into()), ..Self::new(state) }
    }
}

/// Rows of a table's first batch.
const FIRST: i32 = 500;
/// The most rows of a batch.
const MOST: i32 = 20_000;
/// Where other sessions hold so many rows of a chunk, these come first: their list is written with every batch.
const HELD_MOST: usize = 10_000;

/// Does one step. Each call is its own transaction.
pub fn step(table: &Upgraded, worker: &str) -> Result<Step, Failure> {
    guard::outside_transaction("migrator.step")?;
    one(table, worker, false)
}

/// The same inside a transaction: rows stay locked until its end. `hurried`: somebody waits for that.
pub fn one(table: &Upgraded, worker: &str, hurried: bool) -> Result<Step, Failure> {
    guard::fresh_snapshots("migrator.step")?;
    let begun = Instant::now();
    if table.state.paused {
        return Ok(Step { done: true, ..Step::wait("paused", 1000, "somebody has to resume it") });
    }
    if let Some(why) = &table.state.blocked {
        let hint = table.state.blocked_hint.as_deref().unwrap_or_default();
        return Ok(Step { done: true, ..Step::wait("blocked", 1000, format!("{why}. {hint}").trim()) });
    }
    if let Some(why) = install::is_unguarded(table)? {
        for (upgrade, _) in numbers::added_again(table)? {
            complete::not_any_more(upgrade)?;
        }
        return blocked(table, why);
    }
    if let Some(change) = rewrite::under_way(table)? {
        let reason = format!(
            "change {change} writes the table anew: call migrator.prepare(change => {change}) or run the agent"
        );
        return Ok(Step { done: true, ..Step::wait("waiting", 5000, reason) });
    }
    let verdict = load::verdict(|| load::work_on_rows(table.relation.oid))?;
    if let Verdict::Hold(reason) = verdict {
        note(table, Some(&reason))?;
        load::upgrades_held(table, Some(&reason))?;
        return Ok(Step { held: true, ..Step::wait("waiting", 1000, reason) });
    }
    load::upgrades_held(table, None)?;
    let factor = if let Verdict::Slow(factor, _) = &verdict { *factor } else { 1 };
    let pace = if table.state.sweep_kind.is_some() { load::pace::in_force()? } else { None };
    if let Some((pace, rest_ms)) = pace.as_ref().and_then(|pace| Some((pace, pace.rest_ms()?))) {
        let reason = pace.reason();
        note(table, Some(&reason))?;
        return Ok(Step { held: true, ..Step::wait("waiting", rest_ms, reason) });
    }
    let meter = Meter::start();
    let mut step = match kind(table) {
        Some(_) if table.state.sweep_generation != Some(table.state.generation) => begin(table, Kind::Upgrade)?,
        Some(kind) => work(table, kind, worker, factor, begun)?,
        None => decide(table, hurried)?,
    };
    if let Verdict::Slow(_, reason) = verdict {
        step.reason.get_or_insert(reason);
    }
    // The work fills its share of the time, whatever the size of its batches.
    if factor > 1 && step.wait_ms == 0 && !step.done {
        step.wait_ms = load::rest_ms(factor);
    }
    let paced = pace.as_ref().map(load::pace::Pace::reason);
    if let Some(pace) = pace.filter(|_| step.rows > 0 && !step.done) {
        let pace = pace.put_down(meter.bytes())?;
        if let Some(rest_ms) = pace.rest_ms() {
            step.wait_ms = step.wait_ms.max(rest_ms);
            step.reason.get_or_insert(pace.reason());
        }
    }
    // The same words while it rests and while it works, so that the row is written once and not at each turn.
    let why = step.reason.as_ref().filter(|_| step.wait_ms > 0).or(paced.as_ref()).filter(|_| !step.done);
    note(table, why.map(String::as_str))?;
    step.eta = eta(table, &step)?;
    Ok(step)
}

/// As migrator.upgrades reckons it.
fn eta(table: &Upgraded, step: &Step) -> Result<Option<f64>, Failure> {
    #[derive(Deserialize)]
    struct Eta {
        seconds: Option<f64>,
    }
    if step.rows == 0 || step.done {
        return Ok(None);
    }
    let eta: Option<Eta> = spi::fetch_optional(
        "select greatest(0, u.rows_total - k.passed) * extract(epoch from pg_catalog.clock_timestamp() - u.sweep_began)::pg_catalog.float8 / nullif(k.passed, 0) as seconds \
         from migrator.upgraded u, lateral (select sum(x.rows)::pg_catalog.float8 as passed from migrator.sweep_chunk x where x.relation = u.relation and x.sweep = u.sweep) k \
         where u.relation = $1 and u.sweep_kind is not null and u.rows_total > 0",
        &[pg_sys::Oid::from(table.relation.oid).into()],
    )?;
    Ok(eta.and_then(|eta| eta.seconds))
}

fn kind(table: &Upgraded) -> Option<Kind> {
    match table.state.sweep_kind.as_deref() {
        Some("upgrade") => Some(Kind::Upgrade),
        Some(_) => Some(Kind::Verify),
        None => None,
    }
}

/// Shows why nothing goes on, or that it does.
fn note(table: &Upgraded, reason: Option<&str>) -> Result<(), Failure> {
    spi::execute(
        "update migrator.upgraded set waiting = $2, waiting_since = case when $2 is not null then pg_catalog.clock_timestamp() end \
         where relation = $1 and waiting is distinct from $2 \
           and relation in (select u.relation from migrator.upgraded u where u.relation = $1 for no key update skip locked)",
        &[pg_sys::Oid::from(table.relation.oid).into(), reason.into()],
    )
    .map(|_| ())
}

fn blocked(table: &Upgraded, why: Failure) -> Result<Step, Failure> {
    if !written::block(table, &table.definition()?, &why)? {
        return Ok(another());
    }
    Ok(Step { done: true, ..Step::wait("blocked", 1000, why.message) })
}

fn another() -> Step {
    Step::wait("waiting", 50, "another worker's turn")
}

fn begin(table: &Upgraded, kind: Kind) -> Result<Step, Failure> {
    begin_and(table, kind, |_| Ok(()))
}

/// Begins a sweep, and does something more in the same moment; or finds that somebody else has.
pub(super) fn begin_and(
    table: &Upgraded,
    kind: Kind,
    also: impl FnOnce(&Upgraded) -> Result<(), Failure>,
) -> Result<Step, Failure> {
    if !table.alone()? {
        return Ok(another());
    }
    let now = table.again()?;
    if now.state.sweep != table.state.sweep
        || now.state.sweep_kind != table.state.sweep_kind
        || now.state.generation != table.state.generation
    {
        return Ok(Step::new("upgrading"));
    }
    if let Some(why) = table::unsweepable(&now)? {
        return blocked(&now, why);
    }
    sweep::begin(&now, kind, now.state.batch_size.unwrap_or(FIRST))?;
    also(&now)?;
    Ok(Step::new(state(kind)))
}

fn state(kind: Kind) -> &'static str {
    match kind {
        Kind::Upgrade => "upgrading",
        Kind::Verify => "verifying",
    }
}

/// Between two sweeps: is there anything to do?
fn decide(table: &Upgraded, hurried: bool) -> Result<Step, Failure> {
    if table.relation.kind == "p" {
        if !table.alone()? {
            return Ok(another());
        }
        if table.state.verified && look::attached(table)? {
            return Ok(Step::new("upgrading"));
        }
    }
    // First: an upgrade is complete again when the last of its rows is mended.
    let aside = if table.state.verified { complete::still_aside(table)? } else { 0 };
    let registered = table.registered()?;
    numbers::learn(table, &registered)?;
    let running: Vec<_> = registered.iter().filter(|upgrade| upgrade.state == "running").collect();
    let retiring = registered.iter().any(|upgrade| upgrade.state == "retiring");
    // Rows can come, or lose the name, without it: what only batches derive, and what application code does.
    let may_come = registered.iter().any(|upgrade| upgrade.kind == "application") || may_be_left(table)?;
    if running.is_empty() && !retiring && !(table.state.verify_due && may_come) {
        return Ok(Step { done: true, ..Step::new("complete") });
    }
    if !table.state.verified || complete::unnoted(table)? {
        let batches = retiring || running.iter().any(|upgrade| upgrade.kind != "application");
        return begin(table, if batches { Kind::Upgrade } else { Kind::Verify });
    }
    let lacking = table.state.lacking.unwrap_or(0) - aside;
    if lacking > 0 {
        return repeat::upgrade(table, lacking, hurried);
    }
    let clean = match if retiring { attempt(|| retire::clean(table)) } else { Ok(Clean::NotYet) } {
        // Somebody has the table: another turn. What was done for it is undone.
        Err(busy) if busy.code == code::LOCK_NOT_AVAILABLE => return Ok(Step::wait("cleaning", 1000, busy.message)),
        clean => clean?,
    };
    if matches!(clean, Clean::Done) {
        return Ok(Step::new("cleaning"));
    }
    if table.state.verify_due {
        return begin(table, Kind::Verify);
    }
    let name = table.relation.name.plain();
    let reason = if let Clean::Born(what) = clean {
        what
    } else if aside > 0 {
        format!(
            "{aside} row(s) are set aside: select * from migrator.upgrade_failures; then migrator.retry_failed or waive_failed"
        )
    } else {
        format!("application code has rows of {name} to upgrade: migrator.select_batch hands them out")
    };
    Ok(Step { done: true, ..Step::wait("waiting", 5000, reason) })
}

/// Whether the guard leaves rows to batches, or did since the last look at all rows began: what it left is there when its reason is gone.
fn may_be_left(table: &Upgraded) -> Result<bool, Failure> {
    if table.state.may_be_left {
        return Ok(true);
    }
    let leaves = table::leaves_rows(table)?;
    if leaves {
        spi::execute(
            "update migrator.upgraded set may_be_left = true where relation in (select u.relation from migrator.upgraded u where u.relation = $1 for no key update skip locked)",
            &[pg_sys::Oid::from(table.relation.oid).into()],
        )?;
    }
    Ok(leaves)
}

fn work(table: &Upgraded, kind: Kind, worker: &str, factor: i32, begun: Instant) -> Result<Step, Failure> {
    let lease_ms = lease()?;
    let Some(chunk) = sweep::claim(table, worker, lease_ms)? else {
        return nothing_to_claim(table, kind, lease_ms);
    };
    lock::upgrading(table.relation.oid);
    crash::point("step.claimed");
    let definition = table.definition()?;
    let keyset = Keyset::of(table)?;
    let step = match kind {
        Kind::Upgrade => {
            let batch = Batch::within(begun, target(table), table, &definition, &keyset);
            upgrade(table, &definition, &keyset, &chunk, factor, &batch)
        }
        Kind::Verify => verify(table, &definition, &keyset, &chunk, factor, begun),
    }?;
    crash::point("step.done");
    Ok(step)
}

/// Everything is done, or in other hands; who holds a chunk for longer than a lease is ended, so that his transaction cannot commit.
fn nothing_to_claim(table: &Upgraded, kind: Kind, lease_ms: i32) -> Result<Step, Failure> {
    let sum = sweep::sum(table)?;
    if sum.done < sum.chunks {
        for holder in sweep::overdue(table, lease_ms)? {
            // One ends it and tells of it, whoever has the table's row: that may be the session itself. Who comes behind looks once more.
            let is_left = || {
                let all = sweep::overdue(table, lease_ms)?;
                let same = all.into_iter().find(|other| (other.pid, other.number) == (holder.pid, holder.number));
                Ok::<_, Failure>(same)
            };
            if !lock::try_ending(holder.pid) {
                continue;
            }
            let Some(holder) = is_left()? else { continue };
            spi::execute("select pg_catalog.pg_terminate_backend($1)", &[holder.pid.into()])?;
            if holder.told {
                continue;
            }
            table.event(
                "overtaken",
                &format!("session {} held chunk {} for longer than its lease and was ended", holder.pid, holder.number),
                json!({"pid": holder.pid, "chunk": holder.number}),
            )?;
        }
        return Ok(Step::wait(state(kind), 100, "what is left is in the hands of other workers"));
    }
    crash::point("step.alone");
    if !table.alone()? {
        return Ok(another());
    }
    // Nobody registers or retires while we hold the row. Whoever did so since this sweep began has rows that it did not look for.
    let now = table.again()?;
    if now.state.sweep != table.state.sweep
        || now.state.sweep_kind != table.state.sweep_kind
        || now.state.sweep_generation != Some(now.state.generation)
    {
        return Ok(Step::new(state(kind)));
    }
    // A dump has the sweep and not its chunks: then nobody has looked at the rows that are there.
    let looks = sum.chunks == 0 || kind == Kind::Upgrade;
    if let Some(why) = if looks { table::unsweepable(&now)? } else { None } {
        return blocked(&now, why);
    }
    if sum.chunks == 0 && !sweep::is_empty(&now)? {
        return begin(&now, Kind::Upgrade);
    }
    if look::attached(&now)? {
        return Ok(Step::new(state(kind)));
    }
    match kind {
        Kind::Upgrade => sweep::begin(&now, Kind::Verify, FIRST * 10)?,
        Kind::Verify => complete::ended(&now)?,
    }
    Ok(Step::new("verifying"))
}

/// How long a worker may hold a chunk in one transaction.
fn lease() -> Result<i32, Failure> {
    #[derive(Deserialize)]
    struct Lease {
        ms: i32,
    }
    let lease: Lease = spi::fetch_one(
        "select (extract(epoch from coalesce(nullif(pg_catalog.current_setting('migrator.lease', true), ''), '30 s')::interval) * 1000)::int as ms",
        &[],
    )?;
    Ok(lease.ms.max(1))
}

fn upgrade(
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

fn verify(
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

fn target(table: &Upgraded) -> Duration {
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
