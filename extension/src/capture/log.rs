//! The key log: the tables that capture appends to, three segments for each change and direction.
//!
//! A row holds the key of a row that was written, in columns of the types that the written table has; a
//! row of NULLs says that rows were written whose keys could not be told; one in the marker table, that the table was truncated. There is no
//! index, no order and no duplicate elimination.

use crate::catalog::relation::Relation;
use crate::catalog::spi;
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Ident, Name};
use serde::Deserialize;

pub use migrator_core::sql::Direction;

/// How many segments a log has.
pub const SEGMENTS: u32 = 3;

/// How many seconds writers append to one segment before they go on to the next.
pub const PERIOD: i64 = 10;

/// The segment that writers append to at this moment (seconds since 1970). The one after it in the cycle
/// is next; the remaining one is at rest, and can be emptied by TRUNCATE.
///
/// Rotation by the clock needs nothing that writers share. Only efficiency depends on it: a reader reads
/// all segments, whichever a row is in, so that a late writer or a clock that is set back costs nothing
/// but a TRUNCATE that has to wait for its next turn, or a write that waits until a TRUNCATE commits.
pub fn segment_at(epoch_seconds: i64) -> u32 {
    let turn = epoch_seconds.div_euclid(PERIOD).rem_euclid(i64::from(SEGMENTS));
    u32::try_from(turn).expect("the remainder of a division by three")
}

/// The tables of a change's log, in the order of their numbers, whether they exist or not.
pub fn segments(change: i64, direction: Direction) -> Vec<Name> {
    (0..SEGMENTS).map(|number| Name::new("migrator", segment_name(change, direction.letter(), number))).collect()
}

/// A segment's name within the schema `migrator`.
pub(super) fn segment_name(change: i64, letter: char, number: u32) -> String {
    format!("log_{change}_{letter}_{number}")
}

/// The table in which a row says that the written table was truncated: apart from the segments, so that looking for
/// it costs nothing however long the log is.
pub fn marker(change: i64, direction: Direction) -> Name {
    Name::new("migrator", marker_name(change, direction.letter()))
}

/// The marker's name within the schema `migrator`.
pub(super) fn marker_name(change: i64, letter: char) -> String {
    format!("log_{change}_{letter}_truncated")
}

/// Makes the segments of a log for the keys of `table`, which is the table that will be written: names,
/// types and collations of the columns `key` are taken from it. Its owner may read, add and delete.
///
/// The segments become members of the extension: a dump leaves them out, so that in a restored database
/// capture finds no log and keeps quiet, instead of filling one that nobody reads.
pub fn create_log(change: i64, direction: Direction, table: &Relation, key: &[Ident]) -> Result<(), Failure> {
    let columns = key.iter().map(Ident::to_string).collect::<Vec<_>>().join(", ");
    let owner = owner(table)?;
    for segment in segments(change, direction).into_iter().chain([marker(change, direction)]) {
        // Rows leave by DELETE and the file is truncated in its turn, so autovacuum has work only when a
        // long transaction keeps a segment from being truncated.
        spi::execute(
            &format!(
                "create table {segment} using heap with (autovacuum_vacuum_scale_factor = 0, \
                 autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_insert_threshold = -1, \
                 autovacuum_analyze_scale_factor = 1, autovacuum_analyze_threshold = 20000) \
                 as select {columns} from only {} with no data",
                table.name
            ),
            &[],
        )?;
        spi::execute(&format!("alter extension migrator add table {segment}"), &[])?;
        spi::execute(&format!("grant select, insert, delete on {segment} to {owner}"), &[])?;
    }
    Ok(())
}

/// Whether a log is there, with all its segments.
pub fn is_there(change: i64, direction: Direction) -> Result<bool, Failure> {
    #[derive(Deserialize)]
    struct There {
        there: bool,
    }
    let names: Vec<String> = segments(change, direction)
        .into_iter()
        .chain([marker(change, direction)])
        .map(|name| name.to_string())
        .collect();
    let all: There = spi::fetch_one(
        "select coalesce(pg_catalog.bool_and(pg_catalog.to_regclass(s) is not null), false) as there from pg_catalog.unnest($1) s",
        &[names.into()],
    )?;
    Ok(all.there)
}

/// The tables of both logs of a change, those that are there.
pub fn tables(change: i64) -> Result<Vec<u32>, Failure> {
    #[derive(Deserialize)]
    struct Table {
        oid: u32,
    }
    let names: Vec<String> = [Direction::Forward, Direction::Reverse]
        .into_iter()
        .flat_map(|direction| segments(change, direction).into_iter().chain([marker(change, direction)]))
        .map(|name| name.to_string())
        .collect();
    let found: Vec<Table> = spi::fetch(
        "select pg_catalog.to_regclass(n)::pg_catalog.oid::pg_catalog.int8 as oid from pg_catalog.unnest($1) n where pg_catalog.to_regclass(n) is not null",
        &[names.into()],
    )?;
    Ok(found.into_iter().map(|table| table.oid).collect())
}

/// Drops the segments of a log, those that are there.
pub fn drop_log(change: i64, direction: Direction) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Found {
        member: bool,
    }
    for segment in segments(change, direction).into_iter().chain([marker(change, direction)]) {
        let found: Option<Found> = spi::fetch_optional(
            "select exists (select from pg_catalog.pg_depend d where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass \
             and d.objid = c.oid and d.deptype = 'e') as member \
             from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
             where n.nspname = $1 and c.relname = $2 and c.relkind = 'r'",
            &[segment.schema.as_str().into(), segment.name.as_str().into()],
        )?;
        let Some(found) = found else { continue };
        if found.member {
            spi::execute(&format!("alter extension migrator drop table {segment}"), &[])?;
        }
        spi::execute(&format!("drop table {segment}"), &[])?;
    }
    Ok(())
}

fn owner(table: &Relation) -> Result<Ident, Failure> {
    #[derive(Deserialize)]
    struct Owner {
        name: Ident,
    }
    spi::fetch_optional::<Owner>(
        "select r.rolname as name from pg_catalog.pg_roles r where r.oid = $1",
        &[table.owner().into()],
    )?
    .map(|owner| owner.name)
    .ok_or_else(|| Failure::new(code::UNDEFINED_OBJECT, format!("the owner of {} does not exist", table.name.plain())))
}
