//! What one batch may take, whatever its rows cost.
//!
//! The size of a batch follows from what those before it took, and rows that cost a thousand times as much come unannounced:
//! a slow function, a value of 5 MB. So the statement that writes asks before each row whether there is time and room left,
//! and leaves the rest alone when there is not. Its first row is always written: a row that takes longer than any batch may
//! is a batch of its own.

use crate::catalog::cost::wal_written;
use migrator_core::batch::WAL_BYTES;
use pgrx::pg_sys;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Beyond these parts of what batches aim at one is cut short: in time it ends below 250 ms with its commit, where 200 are aimed at. A batch
/// that is only somewhat heavier than the last is not cut.
const TIME: f64 = 1.0;
const WAL: f64 = 1.5;

#[derive(Clone, Copy)]
struct Bound {
    until: Instant,
    wal: u64,
    /// No row of the statement has asked yet.
    first: bool,
    cut: bool,
}

thread_local! {
    static BOUND: Cell<Option<Bound>> = const { Cell::new(None) };
}

/// The batch in hand; its bound ends with this.
pub struct Within(());

impl Within {
    /// Begins a batch that aims at this time. A statement_timeout comes first where it is shorter: the batch has to end before.
    pub fn begin(aim: Duration) -> Within {
        // SAFETY: reads a backend-local variable.
        let timeout = u64::try_from(unsafe { pg_sys::StatementTimeout }).unwrap_or(0);
        let aim = if timeout == 0 { aim } else { aim.min(Duration::from_millis(timeout) / 2) };
        let wal = wal_written() + (WAL_BYTES as f64 * WAL) as u64;
        BOUND.set(Some(Bound { until: Instant::now() + aim.mul_f64(TIME), wal, first: true, cut: false }));
        Within(())
    }

    /// The next statement begins.
    pub fn statement(&self) {
        BOUND.set(BOUND.get().map(|bound| Bound { first: true, ..bound }));
    }

    /// Whether a statement left rows alone.
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
    fn is_over(&self) -> bool {
        Instant::now() >= self.until || wal_written() >= self.wal
    }
}

/// Whether the batch in hand may write one more row; true where there is none.
pub fn is_in_time() -> bool {
    let Some(bound) = BOUND.get() else { return true };
    let goes_on = bound.first || !(bound.cut || bound.is_over());
    BOUND.set(Some(Bound { first: false, cut: !goes_on, ..bound }));
    goes_on
}
