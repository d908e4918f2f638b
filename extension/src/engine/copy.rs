//! The copy: block ranges of the live table into the index-less shadow, cursor and rows in one commit.

use crate::catalog::attempt::attempt;
use crate::catalog::cost::Meter;
use crate::catalog::lock::{self, Hold, Mode, Wanted};
use crate::catalog::{bulk, spi};
use crate::crash;
use crate::engine::change::Change;
use crate::engine::{bad_row, guard, sync};
use migrator_core::batch::{self, Pace};
use migrator_core::failure::Failure;
use migrator_core::sql::{self, Direction};
use migrator_core::sqlstate;
use migrator_core::state::State;
use pgrx::pg_sys;
use serde::Deserialize;
use serde_json::Value;

/// What a call of the copy did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// A batch of so many rows.
    Rows(i64),
    /// Nothing: every chunk that is not done is in other hands.
    Busy,
    /// Nothing: every chunk is done.
    Done,
    /// Nothing: the live table got a new file (VACUUM FULL, CLUSTER, a rewrite, TRUNCATE), so that block ranges mean nothing any more.
    Void,
}

#[derive(Deserialize)]
struct Chunk {
    number: i32,
    block_from: u64,
    block_until: u64,
    batch_blocks: i32,
    rate: Option<f64>,
    weight: Option<f64>,
}

/// Copies one batch of one chunk that nobody else holds, divided by `factor`. The caller holds the change `Shared`.
///
/// The chunk's row lock lives as long as the transaction, so no two workers ever copy the same blocks, and
/// a worker that dies gives its chunk back with its rows undone.
pub fn batch(change: &Change, factor: i32) -> Result<Copied, Failure> {
    guard::fresh_snapshots("the copy")?;
    sync::not_in_sync_transaction(change)?;
    let Some(chunk) = spi::fetch_optional::<Chunk>(
        "with c as (select number, block_from, block_until, batch_blocks, rate, weight from migrator.chunk \
                    where change = $1 and step = 'copy' and done_at is null order by number limit 1 for update skip locked) \
         select pg_catalog.to_jsonb(c) from c",
        &[change.id.into()],
    )?
    else {
        return Ok(if all_done(change)? { Copied::Done } else { Copied::Busy });
    };
    lock::relation(Wanted { relation: change.live, mode: Mode::AccessShare });
    sync::check_ground(change)?;
    if Some(change.table(change.live)?.filenode) != change.filenode {
        return Ok(Copied::Void);
    }
    let pace = Pace { size: chunk.batch_blocks, rate: chunk.rate, weight: chunk.weight };
    let blocks = u64::try_from(batch::divided(pace.size, factor)).unwrap_or(1);
    let until = chunk.block_until.min(chunk.block_from + blocks);
    let meter = Meter::start();
    let rows = range(change, chunk.block_from, until)?;
    crash::point("copy");
    let next = pace.after(batch::COPY, meter.batch(i32::try_from(until - chunk.block_from).unwrap_or(i32::MAX)));
    spi::execute(
        "update migrator.chunk set block_from = $3, rows = rows + $4, batch_blocks = $5, rate = $6, weight = $7, \
         done_at = case when $3 >= block_until then pg_catalog.clock_timestamp() end where change = $1 and step = 'copy' and number = $2",
        &[
            change.id.into(),
            chunk.number.into(),
            i64::try_from(until).unwrap_or(i64::MAX).into(),
            rows.into(),
            next.size.into(),
            next.rate.into(),
            next.weight.into(),
        ],
    )?;
    Ok(Copied::Rows(rows))
}

/// Whether the copy has come to its end. The caller holds the change `Alone`, so no batch is on its way.
pub fn all_done(change: &Change) -> Result<bool, Failure> {
    #[derive(Deserialize)]
    struct Left {
        n: i64,
    }
    let left: Left = spi::fetch_one(
        "select count(*) as n from migrator.chunk where change = $1 and step = 'copy' and done_at is null",
        &[change.id.into()],
    )?;
    Ok(left.n == 0)
}

/// Copies a range of blocks; where a row is refused, halves the range until the row stands alone, and sets it aside.
fn range(change: &Change, from: u64, until: u64) -> Result<i64, Failure> {
    let statement = change.with_tables(|tables| Ok(sql::copy(&change.plan, tables, from, until)))?;
    let shadow = pg_sys::Oid::from(change.shadow);
    match attempt(|| change.as_owner(&[], || bulk::insert(shadow, &statement))) {
        Ok(rows) => Ok(i64::try_from(rows).unwrap_or(i64::MAX)),
        Err(failure) if !sqlstate::belongs_to_row(&failure.code) => Err(failure),
        Err(_) if until - from > 1 => {
            let middle = from + (until - from) / 2;
            Ok(range(change, from, middle)? + range(change, middle, until)?)
        }
        Err(_) => block(change, from),
    }
}

fn block(change: &Change, block: u64) -> Result<i64, Failure> {
    #[derive(Deserialize)]
    struct Row {
        offset: u64,
        key: Value,
    }
    let query = change.with_tables(|tables| Ok(sql::rows_of_block(&change.plan, tables, block)))?;
    let rows: Vec<Row> = change.as_owner(&[], || spi::fetch(&query, &[]))?;
    let mut copied = 0;
    for row in rows {
        let statement = change.with_tables(|tables| Ok(sql::copy_row(&change.plan, tables, block, row.offset)))?;
        match attempt(|| change.as_owner(&[], || spi::execute(&statement, &[]))) {
            Ok(rows) => copied += i64::try_from(rows).unwrap_or(0),
            Err(failure) if sqlstate::belongs_to_row(&failure.code) => {
                bad_row::record(change, Direction::Forward, &row.key, &failure)?;
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(copied)
}

/// `migrator.copy_batch`: one batch, divided by `factor`, laying the copy out first where that is still to do.
pub fn copy_batch(mut change: Change, factor: i32) -> Result<Copied, Failure> {
    change.check_open()?;
    guard::may_go_on(&change)?;
    if change.state == State::Syncing || (change.state == State::Copying && change.filenode.is_none()) {
        lock::change(change.id, Hold::Alone);
        change = change.again()?;
        if change.state == State::Copying && change.filenode.is_none() {
            sync::start_over(&mut change, "the live table was rewritten")?;
        }
        if change.state == State::Syncing {
            sync::lay_out(&mut change)?;
            change = change.again()?;
        }
    } else {
        lock::change(change.id, Hold::Shared);
        change = change.again()?;
    }
    match change.state {
        State::Copying => {
            let copied = batch(&change, factor)?;
            if copied == Copied::Void {
                mark_void(&change)?;
            }
            Ok(copied)
        }
        State::Created => {
            Err(change.not_now("capture is not on").hint(format!("First: {}", change.call("start_sync"))))
        }
        State::Syncing => Ok(Copied::Busy),
        State::Indexing | State::CatchingUp | State::Verifying | State::Ready | State::Swapped => Ok(Copied::Done),
        State::Finished | State::Cancelled => change.check_open().map(|()| Copied::Done),
    }
}

/// Leaves word that the copy must begin anew; who next holds the change alone does it.
pub fn mark_void(change: &Change) -> Result<(), Failure> {
    spi::execute("update migrator.change set filenode = null where id = $1", &[change.id.into()]).map(|_| ())
}
