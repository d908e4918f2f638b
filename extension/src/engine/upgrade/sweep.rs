//! A sweep: every row that was there when it began is passed once, in chunks that workers share.
//!
//! The guard stood before the sweep began, so rows that are written meanwhile are right by themselves, wherever their keys go;
//! the end of the last chunk is fixed at the beginning, so inserts do not keep it from ending.

use super::keyset::Keyset;
use super::look;
use super::table::{self, Upgraded};
use crate::catalog::spi;
use migrator_core::batch::Pace;
use migrator_core::failure::Failure;
use migrator_core::upgrade::sweep::Range;
use pgrx::{JsonB, pg_sys};
use serde::Deserialize;
use serde_json::json;

/// What a sweep does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Writes rows that lack something.
    Upgrade,
    /// Counts them.
    Verify,
}

impl Kind {
    /// As the table has it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Upgrade => "upgrade",
            Kind::Verify => "verify",
        }
    }
}

/// Chunks that a table is cut into, so that several workers find something to do; none smaller than a few batches.
const CHUNKS: usize = 32;
const ROWS_OF_A_CHUNK: i64 = 20_000;

/// A chunk in hand.
#[derive(Debug, Deserialize)]
pub struct Chunk {
    pub number: i32,
    pub key_after: Option<Vec<String>>,
    pub key_until: Option<Vec<String>>,
    pub pace: Pace,
    pub skipped: Vec<Vec<String>>,
    /// Whether its range has been passed: only skipped rows are left.
    pub passed: bool,
}

impl Chunk {
    pub fn range(&self) -> Range {
        Range { after: self.key_after.clone(), until: self.key_until.clone() }
    }
}

/// Begins a sweep. The caller holds the table's row in `migrator.upgraded`.
pub fn begin(table: &Upgraded, kind: Kind, first_batch: i32) -> Result<(), Failure> {
    let keyset = Keyset::of(table)?;
    let oid = pg_sys::Oid::from(table.relation.oid);
    let sweep = table.state.sweep + 1;
    spi::execute("delete from migrator.sweep_chunk where relation = $1", &[oid.into()])?;
    // Who notes one of these commits it with its row: this sweep, whose snapshots come later, sees every row that is forgotten here.
    // Until it does, the upgrade is one that is not complete; where somebody writes that he is not waited for, and the note stays.
    spi::execute(
        "with l as (select g.id from migrator.upgrade g where g.relation = $1 \
               and exists (select from migrator.upgrade_unnoted n where n.upgrade = g.id) for no key update skip locked), \
           u as (update migrator.upgrade g set state = 'running', completed_at = null from l where g.id = l.id and g.state = 'complete') \
         delete from migrator.upgrade_unnoted n using l where n.upgrade = l.id",
        &[oid.into()],
    )?;
    spi::execute(
        "update migrator.upgraded set sweep = $2, sweep_kind = $3, sweep_generation = generation, sweep_began = pg_catalog.clock_timestamp(), \
         rows_vacuumed = 0, rows_total = greatest(0, (select case when c.relkind = 'p' then (select sum(greatest(0, m.reltuples)) \
             from pg_catalog.pg_partition_tree(c.oid) t join pg_catalog.pg_class m on m.oid = t.relid where t.isleaf) else c.reltuples end \
             from pg_catalog.pg_class c where c.oid = $1))::bigint where relation = $1",
        &[oid.into(), sweep.into(), kind.name().into()],
    )?;
    if kind == Kind::Verify {
        // This look finds what was left until now.
        spi::execute(
            "update migrator.upgraded set may_be_left = $2 where relation = $1",
            &[oid.into(), table::leaves_rows(table)?.into()],
        )?;
    }
    // Before the last key is looked for: what is attached later is found by the step that looks for it.
    look::know_partitions(table)?;
    let Some(last) = last(&keyset)? else { return Ok(()) };
    let mut after: Option<Vec<String>> = None;
    let bounds = bounds(table, &keyset)?.into_iter().chain([last]);
    for (number, until) in (0_i32..).zip(bounds) {
        spi::execute(
            "insert into migrator.sweep_chunk (relation, sweep, number, key_after, key_until, batch_rows) values ($1, $2, $3, $4, $5, $6)",
            &[oid.into(), sweep.into(), number.into(), after.clone().into(), until.clone().into(), first_batch.into()],
        )?;
        after = Some(until);
    }
    Ok(())
}

/// Whether there is no row to pass.
pub fn is_empty(table: &Upgraded) -> Result<bool, Failure> {
    Ok(last(&Keyset::of(table)?)?.is_none())
}

fn last(keyset: &Keyset<'_>) -> Result<Option<Vec<String>>, Failure> {
    #[derive(Deserialize)]
    struct Key {
        key: Vec<String>,
    }
    let last: Vec<Key> = keyset.query(&keyset.table().last(), &[])?;
    Ok(last.into_iter().next().map(|last| last.key))
}

/// Blocks that are looked at for the bounds of chunks. Each may have to come from the disk, within one transaction.
const SAMPLE: f64 = 100.0;

/// Keys between which there are about equally many rows. What the sample stands for is the table's size where nobody has
/// counted it yet.
fn bounds(table: &Upgraded, keyset: &Keyset<'_>) -> Result<Vec<Vec<String>>, Failure> {
    #[derive(Deserialize)]
    struct Size {
        blocks: f64,
    }
    #[derive(Deserialize)]
    struct Bound {
        key: Vec<String>,
        rows: i64,
    }
    let oid = pg_sys::Oid::from(table.relation.oid);
    let size: Size = spi::fetch_one(
        "select coalesce(sum(pg_catalog.pg_relation_size(m.oid) / pg_catalog.current_setting('block_size')::bigint), 0)::float8 as blocks \
         from pg_catalog.pg_class c join pg_catalog.pg_class m on m.oid = c.oid \
           or c.relkind = 'p' and m.oid in (select t.relid from pg_catalog.pg_partition_tree(c.oid) t where t.isleaf) where c.oid = $1",
        &[oid.into()],
    )?;
    let percent = (100.0 * SAMPLE / size.blocks.max(SAMPLE)).clamp(0.001, 100.0);
    let bounds: Vec<Bound> = keyset.query(&keyset.table().bounds(percent, ROWS_OF_A_CHUNK, CHUNKS), &[])?;
    if let Some(bound) = bounds.first() {
        spi::execute(
            "update migrator.upgraded set rows_total = $2 where relation = $1 and rows_total = 0",
            &[oid.into(), bound.rows.into()],
        )?;
    }
    Ok(bounds.into_iter().map(|bound| bound.key).collect())
}

/// A chunk for this worker: the one it had, or the first that nobody has. A chunk begins at the pace to which the one that
/// was finished last had come. Its row is held until the end of the transaction,
/// and with it goes the lease: who is overtaken cannot commit, for he is ended first (see `overtaken`).
pub fn claim(table: &Upgraded, worker: &str, lease_ms: i32) -> Result<Option<Chunk>, Failure> {
    spi::fetch_optional(
        "with c as (select k.relation, k.sweep, k.number from migrator.sweep_chunk k where k.relation = $1 and k.sweep = $2 and k.done_at is null \
               and (k.worker is null or k.worker = $3 or k.lease_until < pg_catalog.clock_timestamp()) \
             order by k.key_after is not null and k.key_after = k.key_until, k.worker is not distinct from $3 desc, k.number limit 1 for update skip locked), \
         p as materialized (select k.batch_rows, k.rate, k.weight from migrator.sweep_chunk k where k.relation = $1 and k.sweep = $2 and k.rate is not null \
             order by k.done_at desc nulls last limit 1), \
         u as (update migrator.sweep_chunk k set worker = $3, \
                 lease_until = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $4 / 1000.0), \
                 batch_rows = case when k.rate is null then coalesce((select p.batch_rows from p), k.batch_rows) else k.batch_rows end, \
                 rate = coalesce(k.rate, (select p.rate from p)), weight = coalesce(k.weight, (select p.weight from p)) \
               from c where k.relation = c.relation and k.sweep = c.sweep and k.number = c.number returning k.*) \
         select pg_catalog.jsonb_build_object('number', u.number, 'key_after', u.key_after, 'key_until', u.key_until, 'pace', pg_catalog.jsonb_build_object('size', u.batch_rows, 'rate', u.rate, 'weight', u.weight), \
             'skipped', u.skipped, 'passed', u.key_after is not null and u.key_after = u.key_until) from u",
        &[pg_sys::Oid::from(table.relation.oid).into(), table.state.sweep.into(), worker.into(), lease_ms.into()],
    )
}

/// Where a chunk is after a batch.
pub struct Progress<'a> {
    pub after: Option<&'a [String]>,
    pub rows: i64,
    pub written: i64,
    pub pending: i64,
    pub counts: Option<Vec<i64>>,
    pub skipped: &'a [Vec<String>],
    pub pace: Pace,
    pub done: bool,
}

/// Notes it, in the transaction that wrote the rows.
pub fn progress(table: &Upgraded, chunk: &Chunk, progress: &Progress<'_>) -> Result<(), Failure> {
    spi::execute(
        "update migrator.sweep_chunk k set key_after = $4, rows = k.rows + $5, written = k.written + $6, pending = k.pending + $7, \
           counts = case when $8 is null then k.counts when k.counts is null then $8 \
                    else (select pg_catalog.array_agg(coalesce(a, 0) + coalesce(b, 0)) from rows from (pg_catalog.unnest(k.counts), pg_catalog.unnest($8)) as p (a, b)) end, \
           skipped = $9, batch_rows = $10, rate = $12, weight = $13, worker = case when $4 = k.key_until then null else k.worker end, done_at = case when $11 then pg_catalog.clock_timestamp() end \
         where k.relation = $1 and k.sweep = $2 and k.number = $3",
        &[
            pg_sys::Oid::from(table.relation.oid).into(),
            table.state.sweep.into(),
            chunk.number.into(),
            progress.after.map(<[String]>::to_vec).into(),
            progress.rows.into(),
            progress.written.into(),
            progress.pending.into(),
            progress.counts.clone().into(),
            JsonB(json!(progress.skipped)).into(),
            progress.pace.size.into(),
            progress.done.into(),
            progress.pace.rate.into(),
            progress.pace.weight.into(),
        ],
    )
    .map(|_| ())
}

/// Sums over the chunks of the sweep.
#[derive(Debug, Deserialize)]
pub struct Sum {
    pub chunks: i64,
    pub done: i64,
    pub rows: i64,
    pub written: i64,
    pub pending: i64,
}

pub fn sum(table: &Upgraded) -> Result<Sum, Failure> {
    spi::fetch_one(
        "select count(*) as chunks, count(k.done_at) as done, coalesce(sum(k.rows), 0)::bigint as rows, \
           coalesce(sum(k.written), 0)::bigint as written, coalesce(sum(k.pending), 0)::bigint as pending \
         from migrator.sweep_chunk k where k.relation = $1 and k.sweep = $2",
        &[pg_sys::Oid::from(table.relation.oid).into(), table.state.sweep.into()],
    )
}

/// What a verify sweep counted, place by place: rows that lack each upgrade, then rows that still have each retired name, then rows
/// with a name that is neither.
pub fn counts(table: &Upgraded) -> Result<Vec<i64>, Failure> {
    #[derive(Deserialize)]
    struct Count {
        n: i64,
    }
    let counts: Vec<Count> = spi::fetch(
        "select sum(c.n)::bigint as n from migrator.sweep_chunk k, pg_catalog.unnest(k.counts) with ordinality c (n, place) \
         where k.relation = $1 and k.sweep = $2 group by c.place order by c.place",
        &[pg_sys::Oid::from(table.relation.oid).into(), table.state.sweep.into()],
    )?;
    Ok(counts.into_iter().map(|count| count.n).collect())
}
