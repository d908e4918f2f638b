//! Rows that only batches upgrade are written while all rows are passed: the look that follows finds them, and all rows are passed
//! again. Where somebody goes on writing such rows that has no end, so the passes take a part of the time only.

use super::step::{self, Step};
use super::sweep::Kind;
use super::table::Upgraded;
use crate::catalog::spi;
use migrator_core::failure::Failure;
use pgrx::pg_sys;
use serde::Deserialize;

/// The longest that a caller is asked to wait: somebody may do something meanwhile.
const LONGEST_WAIT: i64 = 60_000;

/// Passes all rows once more because so many lacked something in the last look at them. The first time at once; then it waits, from the
/// end of that look, for as long as the look took, for twice as long, and so on up to 20 times, until a look finds none; an hour at most, for a look
/// that was held lasts as long as the hold. Who is `hurried`
/// waits for the end of it and for nothing else.
pub fn upgrade(table: &Upgraded, lacking: i64, hurried: bool) -> Result<Step, Failure> {
    let Rest { ms, until } = rest(table)?;
    if ms > 0 && !hurried {
        let wait_ms = i32::try_from(ms.min(LONGEST_WAIT)).expect("a minute");
        let reason = format!(
            "{lacking} row(s) were left to batches while all rows were passed: they are passed again from {until} on"
        );
        return Ok(Step::wait("waiting", wait_ms, reason));
    }
    step::begin_and(table, Kind::Upgrade, |table| {
        spi::execute(
            "update migrator.upgraded set repeated = repeated + 1 where relation = $1",
            &[pg_sys::Oid::from(table.relation.oid).into()],
        )
        .map(|_| ())
    })
}

#[derive(Deserialize)]
struct Rest {
    /// Milliseconds; 0: none.
    ms: i64,
    until: String,
}

// The same words until it is over, whoever asks: they are noted.
fn rest(table: &Upgraded) -> Result<Rest, Failure> {
    spi::fetch_one(
        "select coalesce(greatest(0, pg_catalog.ceil(extract(epoch from w.until - pg_catalog.clock_timestamp()) * 1000)), 0)::bigint as ms, \
           coalesce(pg_catalog.to_char(pg_catalog.timezone('UTC', w.until), 'YYYY-MM-DD HH24:MI:SS \"UTC\"'), '') as until \
         from (select case when u.repeated > 0 and pg_catalog.isfinite(u.verified_at) \
             then u.verified_at + least(interval '1 hour', u.verify_took * least(20, 2 ^ least(10, u.repeated - 1))::float8) end as until \
           from migrator.upgraded u where u.relation = $1) w",
        &[pg_sys::Oid::from(table.relation.oid).into()],
    )
}
