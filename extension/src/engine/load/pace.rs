//! Keeping the WAL that batches write at a rate: what one has written is rested for before the next one begins, whoever does it.
//!
//! All workers draw on one row, `migrator.wal_pace`: the time at which what was written is paid off. A batch puts it off by
//! what it wrote, at its very end, so that the row is held for a commit only. Where another commits just then, what is owed stays
//! with the session and is paid with its next batch; nobody waits for that row.

use crate::catalog::spi;
use migrator_core::failure::Failure;
use migrator_core::load::{Signal, Unit};
use serde::Deserialize;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that this session has written and not put down, and since when (microseconds): it rests for them all the same.
static OWED: AtomicU64 = AtomicU64::new(0);
static SINCE: AtomicU64 = AtomicU64::new(0);

/// The longest that a caller is told to rest: then he asks again, and hears of a rate that was changed.
const LONGEST_MS: f64 = 1000.0;

/// The rate in force, and how it stands with it.
#[derive(Debug, Deserialize)]
pub struct Pace {
    /// Bytes a second.
    rate: f64,
    /// Seconds until what was written is paid off.
    ahead: f64,
}

/// The rate, where a DBA set one.
pub fn in_force() -> Result<Option<Pace>, Failure> {
    // What was put down at another rate is forgotten: who raises it does not want to wait for what the old one asked.
    spi::fetch_optional(
        "select l.enter as rate, coalesce(extract(epoch from p.paid_at - pg_catalog.clock_timestamp()), 0)::pg_catalog.float8 as ahead \
         from migrator.signal_limit l left join migrator.wal_pace p on p.rate = l.enter where l.signal = $1 and not l.off",
        &[Signal::WalRate.as_str().into()],
    )
}

impl Pace {
    /// How long to rest now, in milliseconds; nothing where a batch may begin.
    pub fn rest_ms(&self) -> Option<i32> {
        (self.ahead > 0.0).then(|| (self.ahead * 1000.0).clamp(1.0, LONGEST_MS) as i32)
    }

    /// Why, for people.
    pub fn reason(&self) -> String {
        format!("rests so that batches write no more than {} of WAL a second", Unit::Bytes.text(self.rate))
    }

    /// Puts down what a batch wrote.
    pub fn put_down(self, bytes: u64) -> Result<Pace, Failure> {
        #[derive(Deserialize)]
        struct Ahead {
            ahead: f64,
        }
        let now = micros();
        let rested = now.saturating_sub(SINCE.load(Ordering::Relaxed)) as f64 / 1e6 * self.rate;
        let owed = OWED.swap(0, Ordering::Relaxed).saturating_sub(rested as u64).saturating_add(bytes);
        let seconds = owed as f64 / self.rate;
        let ahead: Option<Ahead> = spi::fetch_optional(
            "with b as (select p.rate, p.paid_at from migrator.wal_pace p for update skip locked), \
             u as (update migrator.wal_pace p set rate = $1, paid_at = pg_catalog.make_interval(secs => $2) \
                 + case when b.rate = $1 then greatest(b.paid_at, pg_catalog.clock_timestamp()) else pg_catalog.clock_timestamp() end from b returning p.paid_at) \
             select pg_catalog.jsonb_build_object('ahead', extract(epoch from u.paid_at - pg_catalog.clock_timestamp())::pg_catalog.float8) from u",
            &[self.rate.into(), seconds.into()],
        )?;
        if ahead.is_none() {
            OWED.store(owed, Ordering::Relaxed);
            SINCE.store(now, Ordering::Relaxed);
        }
        Ok(Pace { ahead: ahead.map_or(seconds, |found| found.ahead), ..self })
    }
}

fn micros() -> u64 {
    // SAFETY: a time stamp without side effects.
    unsafe { pgrx::pg_sys::GetCurrentTimestamp() }.unsigned_abs()
}
