//! Comparing live and shadow by the hash of each row's stored image, chunk by chunk.
//!
//! A chunk is a range of keys with a cursor; each batch of it is one statement, hence one snapshot over both
//! tables and the log: a key that the log holds is on its way and not counted, every other difference is.
//! Keys that differ go back to the log. Batches hold the change `Shared`, so nothing is reconciled meanwhile.
//!
//! A batch keeps its snapshot for as long as it takes, so its size follows the time that the last one took.

use crate::capture::log;
use crate::catalog::attempt::attempt;
use crate::catalog::spi;
use crate::crash;
use crate::engine::change::Change;
use crate::engine::{bad_row, guard};
use migrator_core::batch;
use migrator_core::failure::Failure;
use migrator_core::sql::{self, Direction, KeyRange, Put, Walk};
use migrator_core::sqlstate;
use pgrx::JsonB;
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Instant;

/// What a call did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verified {
    /// So many rows compared, so many of them put back into the log.
    Rows(i64, i64),
    /// Nothing: what is left is in other hands.
    Busy,
    /// Nothing: all chunks are done.
    Done,
}

#[derive(Deserialize)]
struct Chunk {
    number: i32,
    block_from: Option<u64>,
    block_until: Option<u64>,
    key_from: Option<Vec<String>>,
    key_until: Option<Vec<String>>,
    batch_blocks: i32,
    batch_rows: Option<i32>,
}

/// Bytes of rows that one batch reads on each side.
const BATCH_BYTES: i64 = 64 << 20;
/// Rows of the first batch: 10 ms may be spent on each before it takes too long.
const FIRST_ROWS: i32 = 500;
/// Chunks that a table is cut into, so that several workers find something to do.
const CHUNKS: i64 = 32;

fn by_range(change: &Change) -> bool {
    change.plan.key.iter().all(|column| column.same_order)
}

/// Cuts the keys into chunks, along the histogram that ANALYZE made of the shadow. The caller holds the change `Alone`.
pub fn lay_out(change: &Change) -> Result<(), Failure> {
    spi::execute("delete from migrator.chunk where change = $1 and step = 'verify'", &[change.id.into()])?;
    spi::execute("update migrator.change set rows_verified = 0 where id = $1", &[change.id.into()])?;
    let bounds = if by_range(change) { histogram(change)? } else { vec![] };
    let mut from: Option<Vec<String>> = None;
    let mut number = 0;
    for until in bounds.into_iter().map(Some).chain([None]) {
        spi::execute(
            "insert into migrator.chunk (change, step, number, key_from, key_until) values ($1, 'verify', $2, $3, $4)",
            &[change.id.into(), number.into(), from.clone().into(), until.clone().into()],
        )?;
        from = until;
        number += 1;
    }
    if !by_range(change) {
        // Old and new keys sort differently, so rows that only the new shape has are looked for by blocks.
        spi::execute(
            "insert into migrator.chunk (change, step, number, block_from, block_until) \
             select $1, 'verify', $2, 0, pg_catalog.pg_relation_size($3::pg_catalog.oid, 'main') / pg_catalog.current_setting('block_size')::bigint",
            &[change.id.into(), number.into(), pgrx::pg_sys::Oid::from(change.shadow).into()],
        )?;
    }
    Ok(())
}

fn histogram(change: &Change) -> Result<Vec<Vec<String>>, Failure> {
    #[derive(Deserialize)]
    struct Bounds {
        bounds: Vec<String>,
    }
    let Some(key) = change.plan.key.first() else { return Ok(vec![]) };
    let found: Option<Bounds> = change.as_owner(&[], || {
        spi::fetch_optional(
            "select s.histogram_bounds::text::text[] as bounds from pg_catalog.pg_stats s \
             join pg_catalog.pg_class c on c.relname = s.tablename join pg_catalog.pg_namespace n on n.oid = c.relnamespace and n.nspname = s.schemaname \
             where c.oid = $1 and s.attname = $2 and s.histogram_bounds is not null",
            &[pgrx::pg_sys::Oid::from(change.shadow).into(), key.new.as_str().into()],
        )
    })?;
    let Some(found) = found else { return Ok(vec![]) };
    let inner = found.bounds.len().saturating_sub(2);
    let step = (inner / usize::try_from(CHUNKS).unwrap_or(1)).max(1);
    Ok(found.bounds.into_iter().skip(1).take(inner).step_by(step).map(|bound| vec![bound]).collect())
}

/// Compares one batch of one chunk that nobody else holds, divided by `factor`. The caller holds the change `Shared`.
pub fn batch(change: &Change, factor: i32) -> Result<Verified, Failure> {
    guard::fresh_snapshots("verify")?;
    let Some(chunk) = spi::fetch_optional::<Chunk>(
        "with c as (select number, block_from, block_until, key_from, key_until, batch_blocks, batch_rows from migrator.chunk \
                    where change = $1 and step = 'verify' and done_at is null order by number limit 1 for update skip locked) \
         select pg_catalog.to_jsonb(c) from c",
        &[change.id.into()],
    )?
    else {
        return Ok(if left(change)? == 0 { Verified::Done } else { Verified::Busy });
    };
    let begun = Instant::now();
    let (compared, next, size) = match (chunk.block_from, chunk.block_until) {
        (Some(from), Some(until)) => {
            let blocks = batch::divided(chunk.batch_blocks, factor);
            let end = until.min(from + u64::try_from(blocks).unwrap_or(1));
            let compared = find(change, Walk::New { from, until: end })?;
            let done = i32::try_from(end - from).unwrap_or(i32::MAX);
            let size = batch::COMPARE_BLOCKS.next(chunk.batch_blocks, done, begun.elapsed());
            (compared, if end >= until { None } else { Some(Next::Block(end)) }, (size, None))
        }
        _ => {
            let wanted = match chunk.batch_rows {
                Some(rows) => rows,
                None => last_rows(change)?.unwrap_or(FIRST_ROWS),
            };
            let range = KeyRange { from: chunk.key_from, until: chunk.key_until };
            let rows = u64::try_from(batch::divided(wanted, factor)).unwrap_or(1).min(rows_of(change, BATCH_BYTES)?);
            let boundary = boundary(change, &range, rows)?;
            let part = KeyRange { from: range.from, until: boundary.clone().or(range.until) };
            let compared = if !by_range(change) {
                find(change, Walk::Old(&part))?
            } else if change.put() == Put::Plain {
                match same(change, &part)? {
                    Some(rows) => (rows, 0),
                    None => find(change, Walk::Both(&part))?,
                }
            } else {
                find(change, Walk::Both(&part))?
            };
            let done = i32::try_from(compared.0).unwrap_or(i32::MAX);
            let size = batch::COMPARE_ROWS.next(wanted, done, begun.elapsed());
            (compared, boundary.map(Next::Key), (chunk.batch_blocks, Some(size)))
        }
    };
    crash::point("verify");
    let (block, key) = match &next {
        Some(Next::Block(block)) => (i64::try_from(*block).ok(), None),
        Some(Next::Key(key)) => (None, Some(key.clone())),
        None => (None, None),
    };
    spi::execute(
        "update migrator.chunk set rows = rows + $3, mismatched = mismatched + $4, block_from = coalesce($5, block_from), key_from = coalesce($6, key_from), \
         done_at = case when $7 then pg_catalog.clock_timestamp() end, batch_blocks = $8, batch_rows = $9 \
         where change = $1 and step = 'verify' and number = $2",
        &[
            change.id.into(),
            chunk.number.into(),
            compared.0.into(),
            compared.1.into(),
            block.into(),
            key.into(),
            next.is_none().into(),
            size.0.into(),
            size.1.into(),
        ],
    )?;
    Ok(Verified::Rows(compared.0, compared.1))
}

/// What batches of the chunk before have come to: chunks are taken in their order.
fn last_rows(change: &Change) -> Result<Option<i32>, Failure> {
    #[derive(Deserialize)]
    struct Last {
        rows: i32,
    }
    let last: Option<Last> = spi::fetch_optional(
        "select k.batch_rows as rows from migrator.chunk k \
         where k.change = $1 and k.step = 'verify' and k.batch_rows is not null order by k.number desc limit 1",
        &[change.id.into()],
    )?;
    Ok(last.map(|last| last.rows))
}

enum Next {
    Block(u64),
    Key(Vec<String>),
}

fn left(change: &Change) -> Result<i64, Failure> {
    #[derive(Deserialize)]
    struct Left {
        n: i64,
    }
    let left: Left = spi::fetch_one(
        "select count(*) as n from migrator.chunk where change = $1 and step = 'verify' and done_at is null",
        &[change.id.into()],
    )?;
    Ok(left.n)
}

/// Rows of the shadow in so many bytes, as far as anybody has counted them.
fn rows_of(change: &Change, bytes: i64) -> Result<u64, Failure> {
    #[derive(Deserialize)]
    struct Rows {
        n: Option<i64>,
    }
    let rows: Rows = spi::fetch_one(
        "select case when c.reltuples > 0 then greatest(1, $2 / greatest(1, pg_catalog.pg_table_size(c.oid) / greatest(1, c.reltuples::bigint))) end as n \
         from pg_catalog.pg_class c where c.oid = $1",
        &[pgrx::pg_sys::Oid::from(change.shadow).into(), bytes.into()],
    )?;
    Ok(rows.n.map_or(u64::MAX, i64::unsigned_abs))
}

fn boundary(change: &Change, range: &KeyRange, rows: u64) -> Result<Option<Vec<String>>, Failure> {
    #[derive(Deserialize)]
    struct Key {
        key: Vec<String>,
    }
    let query = change.with_tables(|tables| Ok(sql::boundary(&change.plan, tables, range, rows)))?;
    let found: Option<Key> =
        change.as_owner(&[("enable_sort", "off"), ("enable_seqscan", "off")], || spi::fetch_optional(&query, &[]))?;
    Ok(found.map(|found| found.key))
}

/// The number of rows where both sides of the range are alike as wholes.
fn same(change: &Change, range: &KeyRange) -> Result<Option<i64>, Failure> {
    #[derive(Deserialize)]
    struct Whole {
        rows: i64,
        same: bool,
    }
    let query = change.with_tables(|tables| Ok(sql::compare(&change.plan, tables, range)))?;
    match attempt(|| change.as_owner(&[], || spi::fetch_one::<Whole>(&query, &[]))) {
        Ok(whole) => Ok(whole.same.then_some(whole.rows)),
        // An expression failed for a row that is set aside, or will be: the search leaves those out.
        Err(failure) if sqlstate::belongs_to_row(&failure.code) => Ok(None),
        Err(failure) => Err(failure),
    }
}

fn find(change: &Change, walk: Walk<'_>) -> Result<(i64, i64), Failure> {
    #[derive(Deserialize)]
    struct Found {
        rows: i64,
        mismatched: i64,
        examples: Option<Value>,
    }
    let segments = log::segments(change.id, Direction::Forward);
    let aside = bad_row::keys(change, Direction::Forward)?;
    let some = aside.as_array().is_some_and(|keys| !keys.is_empty());
    let query =
        change.with_tables(|tables| Ok(sql::mismatches(&change.plan, tables, change.put(), walk, &segments, some)))?;
    let found: Found = change.as_owner(&[], || spi::fetch_one(&query, &[JsonB(aside).into()]))?;
    if found.mismatched > 0 {
        change.event(
            "mismatch",
            &format!("{} row(s) differ and go back to the key log", found.mismatched),
            json!({"examples": found.examples}),
        )?;
    }
    Ok((found.rows, found.mismatched))
}

/// What the whole verify found: rows compared and rows that differed. The caller holds the change `Alone`.
pub fn total(change: &Change) -> Result<(i64, i64), Failure> {
    #[derive(Deserialize)]
    struct Total {
        rows: i64,
        mismatched: i64,
    }
    let total: Total = spi::fetch_one(
        "select coalesce(sum(rows), 0)::bigint as rows, coalesce(sum(mismatched), 0)::bigint as mismatched \
         from migrator.chunk where change = $1 and step = 'verify'",
        &[change.id.into()],
    )?;
    spi::execute(
        "update migrator.change set rows_verified = $2, rows_mismatched = rows_mismatched + $3 where id = $1",
        &[change.id.into(), total.rows.into(), total.mismatched.into()],
    )?;
    Ok((total.rows, total.mismatched))
}
