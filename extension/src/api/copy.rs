//! Copying by hand, and verifying.

use crate::api::answer::{DECIDE, answer};
use crate::api::arguments::RegClass;
use crate::api::change::oid;
use crate::catalog::cost::{self, Meter};
use crate::catalog::lock::{self, Hold};
use crate::catalog::{spi, timeout};
use crate::engine::change::Change;
use crate::engine::{copy, guard, load, owner, recheck};
use migrator_core::failure::Failure;
use migrator_core::load::Verdict;
use migrator_core::state::State;
use pgrx::prelude::*;
use serde::Deserialize;

/// Copies one bounded batch.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
#[allow(clippy::type_complexity)]
fn copy_batch(
    relation: default!(Option<RegClass>, "NULL"),
    change: default!(Option<i64>, "NULL"),
) -> TableIterator<
    'static,
    (
        name!(rows, i64),
        name!(blocks_done, i64),
        name!(blocks_total, i64),
        name!(done, bool),
        name!(wait_ms, i32),
        name!(reason, Option<String>),
    ),
> {
    let (batch, held) = answer(DECIDE, || guard::enter(oid(relation), change, one_batch));
    if held {
        cost::commit_at_once();
    }
    TableIterator::once(batch)
}

type Batch = (i64, i64, i64, bool, i32, Option<String>);

/// How long a caller sleeps who is held.
const HOLD_MS: i32 = 1000;

/// What came of it, and whether that is nothing, for the load held it.
fn one_batch(change: Change) -> Result<(Batch, bool), Failure> {
    guard::fresh_snapshots("migrator.copy_batch")?;
    change.check_open()?;
    let copies = matches!(change.state, State::Syncing | State::Copying);
    let note = |reason: Option<&str>| if copies { load::note(&change, reason).map(|_| ()) } else { Ok(()) };
    let (factor, reason) = match load::verdict(|| load::work(&change))? {
        Verdict::Go => (1, None),
        Verdict::Slow(factor, reason) => (factor, Some(reason)),
        Verdict::Hold(reason) => {
            note(Some(&reason))?;
            load::change_held(&change, Some(&reason))?;
            let (done, total) = blocks(&change)?;
            return Ok(((0, done, total, false, HOLD_MS, Some(reason)), true));
        }
    };
    load::change_held(&change, None)?;
    note(reason.as_deref())?;
    if owner::changed(&change)? {
        // Tried, not waited for: whoever waits alone keeps all the others from sharing.
        if !lock::try_change(change.id, Hold::Alone) {
            let (done, total) = blocks(&change)?;
            return Ok(((0, done, total, false, 100, Some("another worker's turn".to_owned())), false));
        }
        owner::follow(&change.again()?)?;
    }
    let pace = load::pace::in_force()?;
    if let Some((pace, rest_ms)) = pace.as_ref().and_then(|pace| Some((pace, pace.rest_ms()?))) {
        let (done, total) = blocks(&change)?;
        return Ok(((0, done, total, false, rest_ms, Some(pace.reason())), true));
    }
    let meter = Meter::start();
    let copied = copy::copy_batch(change.clone(), factor)?;
    let (done, total) = blocks(&change)?;
    let rest_ms = match pace {
        Some(pace) => pace.put_down(meter.bytes())?.rest_ms().unwrap_or(0),
        None => 0,
    };
    let (rows, over) = match copied {
        copy::Copied::Rows(rows) => (rows, done >= total),
        copy::Copied::Done => (0, true),
        copy::Copied::Busy | copy::Copied::Void => (0, false),
    };
    Ok(((rows, done, total, over, load::rest_ms(factor).max(rest_ms), reason), false))
}

fn blocks(change: &Change) -> Result<(i64, i64), Failure> {
    #[derive(Deserialize)]
    struct Blocks {
        done: i64,
        total: i64,
    }
    let blocks: Blocks = spi::fetch_one(
        "select c.blocks_total - coalesce((select sum(k.block_until - k.block_from) from migrator.chunk k where k.change = c.id and k.step = 'copy'), 0)::bigint as done, \
         c.blocks_total as total from migrator.change c where c.id = $1",
        &[change.id.into()],
    )?;
    Ok((blocks.done, blocks.total))
}

/// Compares live and shadow from the first row to the last.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
fn verify(
    relation: default!(Option<RegClass>, "NULL"),
    change: default!(Option<i64>, "NULL"),
) -> TableIterator<'static, (name!(compared, i64), name!(mismatched, i64), name!(rounds, i32))> {
    let found = answer(DECIDE, || {
        guard::enter(oid(relation), change, |change| {
            lock::change(change.id, Hold::Alone);
            timeout::unbounded(|| recheck::whole(change.again()?))
        })
    });
    TableIterator::once(found)
}
