//! What a batch cost: its time with that of its commit, and the WAL that it wrote.

use migrator_core::batch::Batch;
use pgrx::pg_sys;
use pgrx::{PgXactCallbackEvent, register_xact_callback};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Microseconds that a commit of this session takes: a moving average. It waits for the disk, and for synchronous standbys.
static COMMIT: AtomicU64 = AtomicU64::new(0);

/// Measures from its start.
pub struct Meter {
    begun: Instant,
    wal: u64,
}

impl Meter {
    /// Begins.
    pub fn start() -> Meter {
        Meter { begun: Instant::now(), wal: wal_written() }
    }

    /// Bytes of WAL that were written since.
    pub fn bytes(&self) -> u64 {
        wal_written().saturating_sub(self.wal)
    }

    /// What it took until now. The commit of this transaction lies ahead, so the usual one counts; and this one is measured.
    pub fn batch(&self, done: i32) -> Batch {
        measure_commit();
        let commit = Duration::from_micros(COMMIT.load(Ordering::Relaxed));
        Batch { done, bytes: self.bytes(), took: self.begun.elapsed() + commit }
    }
}

/// Bytes of WAL that this backend has written so far.
pub fn wal_written() -> u64 {
    // SAFETY: a counter of this process (executor/instrument.h).
    unsafe { pg_sys::pgWalUsage.wal_bytes }
}

/// Takes the time from just before the commit record is written until the commit is done (xact.c, CommitTransaction).
fn measure_commit() {
    static BEGUN: AtomicU64 = AtomicU64::new(0);
    register_xact_callback(PgXactCallbackEvent::PreCommit, || BEGUN.store(micros(), Ordering::Relaxed));
    register_xact_callback(PgXactCallbackEvent::Commit, || {
        let took = micros().saturating_sub(BEGUN.load(Ordering::Relaxed));
        let before = COMMIT.load(Ordering::Relaxed);
        let now = if before == 0 { took } else { (before * 7 + took * 3) / 10 };
        COMMIT.store(now, Ordering::Relaxed);
    });
}

fn micros() -> u64 {
    // SAFETY: a time stamp without side effects.
    unsafe { pg_sys::GetCurrentTimestamp() }.unsigned_abs()
}

/// Lets the transaction in hand commit without waiting for the disk or for standbys, outside a transaction block, where all
/// that it wrote is ours to judge. Called at the end of an outermost function, when all settings of ours are undone.
pub fn commit_at_once() {
    // SAFETY: reads backend-local state, and sets a parameter of this transaction by constant strings; GUC_ACTION_LOCAL is
    // undone at its end.
    unsafe {
        if pg_sys::IsTransactionBlock() {
            return;
        }
        pg_sys::set_config_option(
            c"synchronous_commit".as_ptr(),
            c"off".as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_LOCAL,
            true,
            0,
            false,
        );
    }
}
