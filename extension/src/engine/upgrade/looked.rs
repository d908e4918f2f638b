//! How many rows a batch's statement looked at, counted where it looks, and how far it may look.
//!
//! Rows that lack something and were neither locked nor written are in other hands, and are done later: so they have to be
//! counted. A count by SQL would read each row of the batch a second time.

use super::bound;
use crate::crash;
use std::cell::Cell;

/// Rows that a statement looked at.
#[derive(Debug, Default, Clone, Copy)]
pub struct Looked {
    /// All in its range, or those that there was time for.
    pub rows: i64,
    /// Those that a batch has something to do for. One that somebody changes in the same moment may count twice: then it is
    /// looked for by its key, and found.
    pub lacking: i64,
}

thread_local! {
    static LOOKED: Cell<Looked> = Cell::new(Looked::default());
}

/// Runs a statement, and tells what `migrator._counts()` was asked in it.
pub fn at<T>(statement: impl FnOnce() -> T) -> (T, Looked) {
    LOOKED.set(Looked::default());
    let done = statement();
    (done, LOOKED.get())
}

/// Counts a row, and tells again whether it lacks something; no row lacks anything any more, where time is up.
pub fn count(lacks: bool) -> bool {
    // Within the statement, which has its snapshot, and has not locked this row.
    crash::point("step.looked");
    let before = LOOKED.get();
    if before.rows > 0 && !bound::may_lock() {
        return false;
    }
    LOOKED.set(Looked { rows: before.rows + 1, lacking: before.lacking + i64::from(lacks) });
    lacks
}

thread_local! {
    static PASSED: Cell<i64> = const { Cell::new(0) };
}

/// Looks for the row with which a batch ends.
pub fn for_its_end<T>(search: impl FnOnce() -> T) -> T {
    PASSED.set(0);
    search()
}

/// Whether the row that is asked about, in the order of the key, is the last that a batch of so many takes, or the last that there
/// is time for.
pub fn ends(rows: i64) -> bool {
    crash::point("step.passed");
    PASSED.set(PASSED.get() + 1);
    PASSED.get() >= rows || bound::has_looked_enough()
}
