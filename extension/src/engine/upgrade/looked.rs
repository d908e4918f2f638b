//! How many rows a batch's statement looked at, counted where it looks.
//!
//! Rows that lack something and were neither locked nor written are in other hands, and are done later: so they have to be
//! counted. A count by SQL would read each row of the batch a second time.

use crate::crash;
use std::cell::Cell;

/// Rows that a statement looked at.
#[derive(Debug, Default, Clone, Copy)]
pub struct Looked {
    /// All in its range.
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

/// Counts a row, and tells again whether it lacks something.
pub fn count(lacks: bool) -> bool {
    // Within the statement, which has its snapshot, and has not locked this row.
    crash::point("step.looked");
    let before = LOOKED.get();
    LOOKED.set(Looked { rows: before.rows + 1, lacking: before.lacking + i64::from(lacks) });
    lacks
}
