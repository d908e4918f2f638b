//! One bounded step of whatever is next. Whoever drives a change (psql, the agent, several at once) calls only this.
//!
//! Copy batches, index builds and verify batches hold the change `Shared` and run side by side; every
//! transition and every reconcile holds it `Alone`. Both are tried, never waited for: a caller whose turn it is
//! not is told how long to sleep.

use crate::catalog::cost::Meter;
use crate::catalog::lock::{self, Hold};
use crate::catalog::spi;
use crate::engine::change::Change;
use crate::engine::drain;
use crate::engine::{bad_row, build, copy, guard, load, owner, reconcile, settle, swap, sync, verify};
use migrator_core::failure::{Failure, code};
use migrator_core::load::Verdict;
use migrator_core::state::State;
use serde::Deserialize;
use serde_json::json;
use std::time::Instant;

/// What one call did and what its caller does next.
#[derive(Debug, Clone, Default)]
pub struct Advanced {
    /// The state after it.
    pub state: Option<State>,
    /// What was done, one word.
    pub step: &'static str,
    /// Rows it touched.
    pub rows: i64,
    /// Nothing more to do before somebody decides.
    pub done: bool,
    /// Milliseconds to sleep before the next call.
    pub wait_ms: i32,
    /// Why it waits.
    pub reason: Option<String>,
    /// SQL to run outside a transaction before the next call.
    pub statement: Option<String>,
    /// Nothing was done but to note why: nobody needs to wait for the disk, or for a standby, until that is committed.
    pub held: bool,
}

/// Log rows below which catching up has caught up.
const NEARLY: i64 = 500;
/// Rounds of verify and mending before a person is asked.
const ROUNDS: i32 = 5;
/// Log size beyond which it is worth counting the keys that wait, and how many of them make verify give way to catching up.
const LOG_BYTES: i64 = 4 << 20;
const LOG_KEYS: i64 = 50_000;
/// How long an idle or waiting caller sleeps.
const TURN_MS: i32 = 20;
const IDLE_MS: i32 = 250;
const HOLD_MS: i32 = 1000;

fn step(change: &Change, step: &'static str, rows: i64) -> Result<Advanced, Failure> {
    Ok(Advanced { state: Some(change.state), step, rows, ..Advanced::default() })
}

fn wait(change: &Change, wait_ms: i32, reason: impl Into<String>) -> Result<Advanced, Failure> {
    Ok(Advanced {
        state: Some(change.state),
        step: "wait",
        wait_ms,
        reason: Some(reason.into()),
        ..Advanced::default()
    })
}

fn turn(change: &Change) -> Result<Advanced, Failure> {
    wait(change, TURN_MS, "another worker's turn")
}

/// Does the next step of a change. Where the ground has gone (capture switched off, columns changed), the change is
/// blocked, so that `status` says why, and the next call fails with the same words.
pub fn advance(change: Change) -> Result<Advanced, Failure> {
    guard::fresh_snapshots("migrator.advance")?;
    if change.blocked.is_some() && !change.paused {
        guard::may_go_on(&change)?;
    }
    match next(change.clone()) {
        Err(failure) if failure.code == code::NOT_IN_STATE => {
            // Somebody else took the step between our look and our turn: no reason to block.
            let now = change.again()?;
            if now.state != change.state {
                return turn(&now);
            }
            let hint = failure.hint.clone().unwrap_or_else(|| change.mended());
            change.block(&failure.message, &hint)?;
            wait(&change, HOLD_MS, failure.message)
        }
        outcome => outcome,
    }
}

fn next(change: Change) -> Result<Advanced, Failure> {
    if !change.state.is_open() {
        return Ok(Advanced { done: true, ..step(&change, "idle", 0)? });
    }
    // Keeping in step goes on whatever the load: a log that grows helps nobody.
    let in_step = matches!(change.state, State::Ready | State::Swapped);
    if change.paused {
        return wait(&change, HOLD_MS, "paused");
    }
    if owner::changed(&change)? {
        return alone(&change, |change| match owner::follow(change) {
            Err(failure) if failure.code == code::LOCK_NOT_AVAILABLE => {
                load::note(change, Some(&failure.message))?;
                wait(change, HOLD_MS, failure.message)
            }
            outcome => outcome.and_then(|()| step(change, "wait", 0)),
        });
    }
    let mut slow = None;
    let writes = matches!(change.state, State::Copying | State::CatchingUp);
    let pace = if writes { load::pace::in_force()? } else { None };
    if !in_step {
        match load::verdict(|| load::work(&change))? {
            Verdict::Go => {}
            Verdict::Slow(factor, reason) => slow = Some((factor, reason)),
            Verdict::Hold(reason) => {
                load::note(&change, Some(&reason))?;
                load::change_held(&change, Some(&reason))?;
                return Ok(Advanced { held: true, ..wait(&change, HOLD_MS, reason)? });
            }
        }
        load::change_held(&change, None)?;
        // The same words while it rests and while it works, so that the row is written once and not at each turn.
        let paced = pace.as_ref().map(load::pace::Pace::reason);
        let news = load::note(&change, slow.as_ref().map(|(_, reason)| reason).or(paced.as_ref()).map(String::as_str))?;
        if news && change.state == State::Indexing {
            // A build may last for hours, and somebody may want to pause the change meanwhile.
            return step(&change, "wait", 0);
        }
        if let Some((rest_ms, reason)) = pace.as_ref().and_then(load::pace::Pace::rest_ms).zip(paced) {
            return Ok(Advanced { held: true, ..wait(&change, rest_ms, reason)? });
        }
    }
    let factor = slow.as_ref().map_or(1, |(factor, _)| *factor);
    let meter = Meter::start();
    let begun = Instant::now();
    let mut done = match change.state {
        State::Created => alone(&change, |change| {
            change.state = sync::start(change.clone())?;
            step(change, "sync", 0)
        }),
        State::Syncing => alone(&change, |change| {
            sync::lay_out(change)?;
            step(change, "layout", 0)
        }),
        State::Copying => copying(&change, factor),
        State::Indexing => indexing(&change),
        State::CatchingUp => alone(&change, |change| catching_up(change, factor)),
        State::Verifying => verifying(&change, factor),
        State::Ready => ready(&change),
        State::Swapped => swapped(&change),
        State::Finished | State::Cancelled => step(&change, "idle", 0),
    }?;
    if let Some(pace) = pace {
        let pace = pace.put_down(meter.bytes())?;
        if let Some(rest_ms) = pace.rest_ms() {
            done.wait_ms = done.wait_ms.max(rest_ms);
            done.reason.get_or_insert(pace.reason());
        }
    }
    if let Some((factor, reason)) = slow {
        done.wait_ms = done.wait_ms.max(load::rest_ms_after(factor, begun.elapsed()));
        done.reason.get_or_insert(reason);
    }
    Ok(done)
}

/// Runs `work` on the change as it is once we hold it alone, or says that it is not our turn.
fn alone(change: &Change, work: impl FnOnce(&mut Change) -> Result<Advanced, Failure>) -> Result<Advanced, Failure> {
    if !lock::try_change(change.id, Hold::Alone) {
        return turn(change);
    }
    let mut now = change.again()?;
    if now.state != change.state {
        return step(&now, "wait", 0);
    }
    work(&mut now)
}

/// The same for work that runs side by side.
fn shared(change: &Change, work: impl FnOnce(&mut Change) -> Result<Advanced, Failure>) -> Result<Advanced, Failure> {
    if !lock::try_change(change.id, Hold::Shared) {
        return turn(change);
    }
    let mut now = change.again()?;
    if now.state != change.state || now.paused || now.blocked.is_some() {
        return step(&now, "wait", 0);
    }
    work(&mut now)
}

fn copying(change: &Change, factor: i32) -> Result<Advanced, Failure> {
    if change.filenode.is_none() {
        return alone(change, |change| {
            sync::start_over(change, "the live table was rewritten")?;
            step(change, "layout", 0)
        });
    }
    if copy::all_done(change)? {
        return alone(change, |change| {
            if change.filenode.is_none() || !copy::all_done(change)? {
                return step(change, "wait", 0);
            }
            sync::check_ground(change)?;
            let taken = reconcile::first(change)?;
            if taken.truncated || change.again()?.blocked.is_some() {
                // So many rows do not fit, or another TRUNCATE came, that the rest was left in the log: no index can be built yet.
                return step(change, "reconcile", taken.inserted);
            }
            spi::execute(
                "update migrator.change set rows_copied = (select coalesce(sum(rows), 0) from migrator.chunk where change = $1 and step = 'copy') where id = $1",
                &[change.id.into()],
            )?;
            change.set_state(State::Indexing)?;
            step(change, "reconcile", taken.inserted)
        });
    }
    shared(change, |change| match copy::batch(change, factor)? {
        copy::Copied::Rows(rows) => step(change, "copy", rows),
        copy::Copied::Busy => turn(change),
        copy::Copied::Done => step(change, "copy", 0),
        copy::Copied::Void => {
            copy::mark_void(change)?;
            step(change, "copy", 0)
        }
    })
}

fn indexing(change: &Change) -> Result<Advanced, Failure> {
    if build::left(change)? == 0 {
        return alone(change, |change| {
            build::attach(change)?;
            change.set_state(State::CatchingUp)?;
            let mut done = step(change, "attach", 0)?;
            done.statement = Some(build::vacuum(change)?);
            Ok(done)
        });
    }
    if build::was_refused(change)? {
        return alone(change, |change| {
            sync::check_ground(change)?;
            let taken = reconcile::first(change)?;
            if !taken.truncated && change.again()?.blocked.is_none() {
                build::try_again(change)?;
            }
            step(change, "reconcile", taken.inserted)
        });
    }
    shared(change, |change| match build::one(change)? {
        build::Built::One(_) => step(change, "build", 0),
        build::Built::Busy => turn(change),
        build::Built::Done => step(change, "build", 0),
    })
}

fn catching_up(change: &mut Change, factor: i32) -> Result<Advanced, Failure> {
    sync::check_ground(change)?;
    let taken = reconcile::batch(change, factor)?;
    if taken.taken <= NEARLY && !taken.truncated && reconcile::backlog(change)? <= NEARLY {
        verify::lay_out(change)?;
        change.set_state(State::Verifying)?;
    }
    reconcile::rotate(change)?;
    step(change, "catch_up", taken.inserted)
}

fn verifying(change: &Change, factor: i32) -> Result<Advanced, Failure> {
    // Keys that wait, not bytes: a drained log may keep its pages for as long as somebody writes to them.
    let much = drain::bytes(change.id, change.direction())? > LOG_BYTES && reconcile::backlog(change)? > LOG_KEYS;
    if much && lock::try_change(change.id, Hold::Alone) {
        let now = change.again()?;
        if now.state == State::Verifying {
            sync::check_ground(&now)?;
            let taken = reconcile::batch(&now, factor)?;
            // After a rotation nothing else: its lock on a segment lasts as long as the transaction.
            if reconcile::rotate(&now)? || taken.taken > 0 {
                return step(&now, "catch_up", taken.inserted);
            }
        }
    }
    let done = shared(change, |change| match verify::batch(change, factor)? {
        verify::Verified::Rows(rows, _) => step(change, "verify", rows),
        verify::Verified::Busy => turn(change),
        verify::Verified::Done => Ok(Advanced { done: true, ..step(change, "verify", 0)? }),
    })?;
    if !done.done {
        return Ok(done);
    }
    // Our own shared hold does not keep us from holding it alone; another worker's does.
    alone(change, |change| {
        let (rows, mismatched) = verify::total(change)?;
        if mismatched == 0 {
            change.set_state(State::Ready)?;
            return step(change, "ready", rows);
        }
        if change.verify_rounds + 1 >= ROUNDS {
            change.block(
                &format!("{mismatched} row(s) still differ after {ROUNDS} rounds of mending"),
                "Look at migrator.log(…) for their keys. An expression that is not a function of its row alone, or writes to the shadow, would do that.",
            )?;
            return step(change, "verify", rows);
        }
        spi::execute(
            "update migrator.change set verify_rounds = verify_rounds + 1 where id = $1",
            &[change.id.into()],
        )?;
        change.set_state(State::CatchingUp)?;
        step(change, "verify", rows)
    })
}

fn ready(change: &Change) -> Result<Advanced, Failure> {
    // Of several workers one swaps; the others must not find it swapped and take that for a fault.
    alone(change, |change| {
        let fits = bad_row::count(change, change.direction())? == 0;
        let swaps = change.on_ready == "swap" && fits && !change.postponed && !guard::in_transaction_block();
        // Caught up first, and in a transaction of its own while there is much: a swap that has to wait must not let the log grow.
        let done = keep_in_step(change, !swaps)?;
        if swaps && done.done { swap_now(change) } else { Ok(done) }
    })
}

/// Replays a batch; where nothing is left to replay, what else a change in step has to do. `done` when little or nothing was left.
fn keep_in_step(change: &mut Change, rotate: bool) -> Result<Advanced, Failure> {
    sync::check_ground(change)?;
    let taken = reconcile::batch(change, 1)?;
    let mut done = if taken.taken > 0 || taken.everything {
        // After a comparison of everything a swap would be invisible to each snapshot of now: not in this transaction.
        let few = taken.taken <= NEARLY && !taken.everything;
        Advanced { done: few, wait_ms: if few { TURN_MS } else { 0 }, ..step(change, "catch_up", taken.inserted)? }
    } else if validate(change)? {
        return step(change, "validate", 0);
    } else {
        retry_bad_rows(change)?;
        // Nothing was taken, so nothing waits: without this the last count would stand for ever.
        spi::execute("update migrator.change set backlog = 0 where id = $1 and backlog <> 0", &[change.id.into()])?;
        Advanced { done: true, wait_ms: IDLE_MS, ..step(change, "idle", 0)? }
    };
    // Last of all: its lock on a segment lasts as long as the transaction.
    if rotate && reconcile::rotate(change)? {
        done.wait_ms = done.wait_ms.min(TURN_MS);
    }
    Ok(done)
}

/// Validates one foreign key. Where somebody holds one of its tables it is for the next time, and no reason not to keep in step.
fn validate(change: &Change) -> Result<bool, Failure> {
    match settle::validate_one(change, settle::Patience::Moment) {
        Err(failure) if failure.code == code::LOCK_NOT_AVAILABLE => Ok(false),
        outcome => outcome,
    }
}

fn swap_now(change: &Change) -> Result<Advanced, Failure> {
    let wants = swap::Wants { in_transaction: false, dry_run: false };
    match swap::exchange(vec![change.clone()], swap::Way::Swap, wants) {
        Ok(_) => {
            let now = change.again()?;
            step(&now, "swap", 0)
        }
        // A row that came last does not fit, or something was hung on the table that a swap cannot carry over: that is for
        // somebody to mend, and no reason to stop keeping in step. `status` says what it is.
        Err(failure) => {
            load::note(change, Some(&failure.message))?;
            wait(change, HOLD_MS, failure.message)
        }
    }
}

fn swapped(change: &Change) -> Result<Advanced, Failure> {
    alone(change, |change| keep_in_step(change, true))
}

/// Every half minute: what was in a row's way may be gone without the row itself having been written.
fn retry_bad_rows(change: &Change) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Due {
        due: bool,
    }
    let due: Due = spi::fetch_one(
        "select coalesce(max(b.seen_at) < pg_catalog.clock_timestamp() - interval '30 s', false) as due from migrator.bad_row b where b.change = $1 and b.direction = $2",
        &[change.id.into(), change.direction().as_str().into()],
    )?;
    if due.due {
        let rows = bad_row::retry(change, change.direction())?;
        change.event("retry", &format!("{rows} row(s) that did not fit are tried again"), json!({}))?;
    }
    Ok(())
}
