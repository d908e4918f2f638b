//! What one batch may take, whatever its rows cost.
//!
//! The size of a batch follows from what those before it took, and rows that cost a thousand times as much come unannounced:
//! a slow function, a value of 5 MB, a part of the table that has to come from the disk. So whatever goes from row to row asks
//! before each whether there is time left, and leaves the rest alone when there is not: the look for the key that ends the batch,
//! the scan that locks rows, the UPDATE that writes them, each with a part of the time, for what was looked at has still to be
//! locked, and what was locked to be written. Each takes its first row in any case: a row that takes longer than any batch may is
//! a batch of its own.

use crate::catalog::cost::wal_written;
use migrator_core::batch::WAL_BYTES;
use pgrx::pg_sys;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// The parts of the target beyond which no further row is looked at, locked, written. Where the target is 200 ms, the row that is begun
/// last may wait almost 100 ms for the disk before the step takes 250. Rows that are in memory are looked at
/// and locked in a fifth of what it takes to write them: only the disk is so slow.
const LOOK: f64 = 0.35;
const LOCK: f64 = 0.55;
const WRITE: f64 = 0.75;
/// The part that the size of batches aims at: one that is only somewhat slower than those before it is not cut.
pub const USUAL: f64 = 0.65;
/// The part of the WAL aimed at. A batch that is only somewhat heavier than the last is not cut.
const WAL: f64 = 1.5;

#[derive(Clone, Copy)]
struct Bound {
    begun: Instant,
    target: Duration,
    wal: u64,
    /// No row of the statement has been written yet.
    first: bool,
    /// The statement left rows alone.
    cut: bool,
}

thread_local! {
    static BOUND: Cell<Option<Bound>> = const { Cell::new(None) };
}

/// The batch in hand; its bound ends with this.
pub struct Within(());

impl Within {
    /// Begins the batch of a step with this target. What came before it counts, but for no more than an eighth of the time, or
    /// a step that has much to do before would be rows one by one. A statement_timeout comes first where it is shorter: the batch has to
    /// end before.
    pub fn begin(step: Instant, target: Duration) -> Within {
        // SAFETY: reads a backend-local variable.
        let timeout = u64::try_from(unsafe { pg_sys::StatementTimeout }).unwrap_or(0);
        let target = if timeout == 0 { target } else { target.min(Duration::from_millis(timeout) / 2) };
        let wal = wal_written() + (WAL_BYTES as f64 * WAL) as u64;
        BOUND.set(Some(Bound {
            begun: Instant::now() - step.elapsed().min(target / 8),
            target,
            wal,
            first: true,
            cut: false,
        }));
        Within(())
    }

    /// The next statement begins.
    pub fn statement(&self) {
        BOUND.set(BOUND.get().map(|bound| Bound { first: true, cut: false, ..bound }));
    }

    /// Whether the last statement left rows alone.
    pub fn was_cut(&self) -> bool {
        BOUND.get().is_some_and(|bound| bound.cut)
    }

    /// Whether nothing more should be begun.
    pub fn is_over(&self) -> bool {
        BOUND.get().is_some_and(|bound| bound.cut || bound.is_over())
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        BOUND.set(None);
    }
}

impl Bound {
    fn is_past(&self, part: f64) -> bool {
        self.begun.elapsed() >= self.target.mul_f64(part)
    }

    fn is_over(&self) -> bool {
        self.is_past(WRITE) || wal_written() >= self.wal
    }
}

/// Whether no further row should be looked at for this batch.
pub fn has_looked_enough() -> bool {
    BOUND.get().is_some_and(|bound| bound.is_past(LOOK))
}

/// Whether the statement of the batch in hand may look at one more row in order to lock it; true where there is no batch.
pub fn may_lock() -> bool {
    let Some(bound) = BOUND.get() else { return true };
    let goes_on = !(bound.cut || bound.is_past(LOCK));
    BOUND.set(Some(Bound { cut: !goes_on, ..bound }));
    goes_on
}

/// Whether the batch in hand may write one more row; true where there is none.
pub fn is_in_time() -> bool {
    let Some(bound) = BOUND.get() else { return true };
    let goes_on = bound.first || !bound.is_over();
    BOUND.set(Some(Bound { first: false, cut: bound.cut || !goes_on, ..bound }));
    goes_on
}
