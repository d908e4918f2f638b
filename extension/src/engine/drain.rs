//! Giving a drained log its space back.

use crate::capture::log::{self, PERIOD, SEGMENTS};
use crate::catalog::attempt::attempt;
use crate::catalog::spi;
use migrator_core::failure::{Failure, code};
use migrator_core::sql::Direction;
use serde::Deserialize;

/// Bytes of a log on disk, drained or not.
pub fn bytes(change: i64, direction: Direction) -> Result<i64, Failure> {
    #[derive(Deserialize)]
    struct Bytes {
        n: i64,
    }
    let names: Vec<String> = log::segments(change, direction).iter().map(ToString::to_string).collect();
    let bytes: Bytes = spi::fetch_one(
        "select coalesce(sum(pg_catalog.pg_relation_size(pg_catalog.to_regclass(s))), 0)::bigint as n from pg_catalog.unnest($1) s",
        &[names.into()],
    )?;
    Ok(bytes.n)
}

/// Truncates the segment that writers come to last, if it holds pages, no visible row, and nobody writes to it just now.
///
/// Under the lock no writer is left whose rows a later snapshot could bring, and the check runs under a snapshot
/// taken after the lock, so an empty segment is empty for good. The lock ends with the caller's statement. Returns whether it was taken.
pub fn truncate_drained(change: i64, direction: Direction) -> Result<bool, Failure> {
    #[derive(Deserialize)]
    struct State {
        now: i64,
        bytes: i64,
    }
    #[derive(Deserialize)]
    struct Found {
        any: bool,
    }
    let clock: State = spi::fetch_one(
        "select extract(epoch from pg_catalog.clock_timestamp())::bigint as now, 0::bigint as bytes",
        &[],
    )?;
    let resting = log::segment_at(clock.now + PERIOD * i64::from(SEGMENTS - 1));
    let segments = log::segments(change, direction);
    let segment = segments.get(usize::try_from(resting).unwrap_or(0)).expect("a log has this segment");
    let size: State = spi::fetch_one(
        "select 0::bigint as now, coalesce(pg_catalog.pg_relation_size(pg_catalog.to_regclass($1)), 0) as bytes",
        &[segment.to_string().into()],
    )?;
    if size.bytes == 0 {
        return Ok(false);
    }
    let outcome = attempt(|| {
        spi::execute(&format!("lock table {segment} in access exclusive mode nowait"), &[])?;
        let found: Found = spi::fetch_one(&format!("select exists (select from {segment}) as any"), &[])?;
        if !found.any {
            spi::execute(&format!("truncate table {segment}"), &[])?;
        }
        Ok(true)
    });
    match outcome {
        Err(failure) if failure.code == code::LOCK_NOT_AVAILABLE => Ok(false),
        other => other,
    }
}
