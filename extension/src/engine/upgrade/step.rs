//! One bounded step of a table's upgrades: a batch, or whatever has to happen between batches.

use super::batch::{self as written, Batch};
use super::keyset::Keyset;
use super::retire::Clean;
use super::sweep::{self, Kind};
use super::table::{self, Upgraded};
use super::{chunk, complete, install, look, numbers, overtaken, repeat, retire, rewrite};
use crate::catalog::attempt::attempt;
use crate::catalog::cost::Meter;
use crate::catalog::{lock, spi};
use crate::crash;
use crate::engine::{guard, load};
use migrator_core::failure::{Failure, code};
use migrator_core::load::Verdict;
use pgrx::pg_sys;
use serde::Deserialize;
use std::time::Instant;

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
    pub(super) fn new(state: &'static str) -> Self {
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

pub(super) fn another() -> Step {
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
    let lease_ms = overtaken::lease()?;
    let Some(claimed) = sweep::claim(table, worker, lease_ms)? else {
        return nothing_to_claim(table, kind, lease_ms);
    };
    lock::upgrading(table.relation.oid);
    crash::point("step.claimed");
    let definition = table.definition()?;
    let keyset = Keyset::of(table)?;
    let step = match kind {
        Kind::Upgrade => {
            let batch = Batch::within(begun, chunk::target(table), table, &definition, &keyset);
            chunk::upgrade(table, &definition, &keyset, &claimed, factor, &batch)
        }
        Kind::Verify => chunk::verify(table, &definition, &keyset, &claimed, factor, begun),
    }?;
    crash::point("step.done");
    Ok(step)
}

/// Everything is done, or in other hands; who holds a chunk for longer than a lease is ended, so that his transaction cannot commit.
fn nothing_to_claim(table: &Upgraded, kind: Kind, lease_ms: i32) -> Result<Step, Failure> {
    let sum = sweep::sum(table)?;
    if sum.done < sum.chunks {
        overtaken::end(table, lease_ms)?;
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
