//! What a change costs: sizes as the catalog has them, time from a sample that is read and computed, disk that is free.
//! Reads only.

use crate::catalog::attempt::attempt;
use crate::catalog::relation::Relation;
use crate::catalog::{files, role, spi};
use crate::engine::change;
use migrator_core::failure::Failure;
use migrator_core::plan::Plan;
use migrator_core::sql::{self, Tables};
use pgrx::pg_sys;
use serde::Deserialize;
use std::time::{Duration, Instant};

/// Sizes of the live table.
#[derive(Debug, Deserialize)]
pub struct Size {
    /// Rows, as the last ANALYZE or VACUUM counted them; None where there was none.
    pub rows: Option<i64>,
    /// Blocks of its main file.
    pub blocks: u64,
    /// Bytes without indexes, TOAST included.
    pub table: i64,
    /// Bytes of its indexes.
    pub indexes: i64,
    /// Number of its indexes.
    pub index_count: i64,
    /// The same two, for people.
    pub table_text: String,
    pub indexes_text: String,
}

impl Size {
    /// Reads them.
    pub fn of(live: &Relation) -> Result<Size, Failure> {
        spi::fetch_one(
            "select case when c.reltuples >= 0 then c.reltuples::pg_catalog.int8 end as rows, \
               pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::pg_catalog.int8 as blocks, \
               pg_catalog.pg_table_size(c.oid) as table, pg_catalog.pg_indexes_size(c.oid) as indexes, \
               (select count(*) from pg_catalog.pg_index i where i.indrelid = c.oid) as index_count, \
               pg_catalog.pg_size_pretty(pg_catalog.pg_table_size(c.oid)) as table_text, \
               pg_catalog.pg_size_pretty(pg_catalog.pg_indexes_size(c.oid)) as indexes_text \
             from pg_catalog.pg_class c where c.oid = $1",
            &[pg_sys::Oid::from(live.oid).into()],
        )
    }
}

/// Bytes of the live table's index of this name, where the new one has a forerunner.
pub fn index_bytes(live: &Relation, name: &str) -> Result<Option<i64>, Failure> {
    #[derive(Deserialize)]
    struct Index {
        bytes: i64,
    }
    let index: Option<Index> = spi::fetch_optional(
        "select pg_catalog.pg_relation_size(c.oid) as bytes from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indexrelid \
         where i.indrelid = $1 and c.relname = $2",
        &[pg_sys::Oid::from(live.oid).into(), name.into()],
    )?;
    Ok(index.map(|index| index.bytes))
}

/// How long reading and computing all rows would take one connection.
pub struct Estimate {
    /// Rows of the whole table; None where nothing could be read.
    pub rows: Option<i64>,
    /// None where nothing could be measured.
    pub seconds: Option<f64>,
    /// From what, or why not.
    pub note: String,
}

/// How long the sample may take; the block in hand is read to its end.
const BUDGET: Duration = Duration::from_millis(200);
/// Places of a big table that are looked at; a prime, so that a fixed stride comes by all of them.
const PLACES: u64 = 61;
const STRIDE: u64 = 38;

/// Reads blocks all over the table as the copy does, with the owner's rights, and writes nothing.
pub fn sample(live: &Relation, plan: &Plan, tables: Tables<'_>, blocks: u64) -> Result<Estimate, Failure> {
    #[derive(Deserialize)]
    struct Read {
        rows: i64,
    }
    if blocks == 0 {
        return Ok(Estimate { rows: Some(0), seconds: Some(0.0), note: String::new() });
    }
    let places = blocks.min(PLACES);
    let (mut step, mut read, mut rows) = (1, 0, 0);
    let begun = Instant::now();
    for number in 0..places {
        let place = if places == PLACES { number * STRIDE % PLACES } else { number };
        let (from, next) = (place * blocks / places, (place + 1) * blocks / places);
        let until = next.min(from + step);
        let statement = sql::sample(plan, tables, from, until);
        let chunk = Instant::now();
        let found = attempt(|| {
            role::as_owner(live.owner(), &change::settings(plan), || spi::fetch_read_only::<Read>(&statement, &[]))
        });
        match found {
            Ok(found) => rows += found.iter().map(|read| read.rows).sum::<i64>(),
            Err(failure) => {
                let note = format!("No time was measured: a row of the sample is refused: {}", failure.message);
                return Ok(Estimate { rows: None, seconds: None, note });
            }
        }
        read += until - from;
        if chunk.elapsed() < BUDGET / 16 {
            step *= 2;
        }
        if begun.elapsed() > BUDGET {
            break;
        }
    }
    let took = begun.elapsed();
    let share = blocks as f64 / read as f64;
    let seconds = (took.as_secs_f64() * share * 1000.0).round() / 1000.0;
    let note = format!(
        "The time is an estimate: {rows} rows in {read} of {blocks} blocks were read and computed by one connection in {} ms; writing them comes on top.",
        took.as_millis()
    );
    Ok(Estimate { rows: Some((rows as f64 * share).round() as i64), seconds: Some(seconds), note })
}

/// Free bytes where the table's files are, and where the WAL is; None where the server's user cannot tell.
pub fn free(live: &Relation) -> Result<(Option<i64>, Option<i64>), Failure> {
    #[derive(Deserialize)]
    struct Place {
        tablespace: String,
    }
    let place: Place = spi::fetch_one(
        "select pg_catalog.pg_tablespace_location(coalesce(nullif(c.reltablespace, 0), d.dattablespace)) as tablespace \
         from pg_catalog.pg_class c, pg_catalog.pg_database d where c.oid = $1 and d.datname = pg_catalog.current_database()",
        &[pg_sys::Oid::from(live.oid).into()],
    )?;
    Ok((files::free(&files::of_tablespace(&place.tablespace)).ok(), files::free(&files::in_data("pg_wal")).ok()))
}
