//! How every call ends: with its answer, or with an error that has all that its reader needs.

use crate::raise;
use migrator_core::failure::{Ending, Failure, NOTHING_CHANGED};
use pgrx::PgTryBuilder;
use pgrx::pg_sys::panic::CaughtError;
use std::panic::AssertUnwindSafe;

/// A call that begins a change.
pub const BEGIN: Ending = Ending {
    left: NOTHING_CHANGED,
    next: "Correct that and call it again; migrator.explain with the same arguments tries it without leaving anything behind.",
};

/// A call that only looks.
pub const LOOK: Ending = Ending { left: NOTHING_CHANGED, next: "Correct that and call it again." };

/// alter_table, until its first step is done.
pub const ALTER: Ending = Ending {
    left: NOTHING_CHANGED,
    next: "Correct that and call it again; migrator.alter_plan with the same arguments shows the way without going it.",
};

/// A later step of alter_table.
pub const ALTER_ON: Ending = Ending {
    left: "What the steps before did is done, and stays.",
    next: "Mend that and call it again: it goes on from here.",
};

/// One of many steps of a change.
pub const STEP: Ending = Ending {
    left: "This step changed nothing; what was committed before it stays.",
    next: "Mend that and call it again; select * from migrator.status; shows where the change stands.",
};

/// A decision about a change.
pub const DECIDE: Ending = Ending {
    left: NOTHING_CHANGED,
    next: "Mend that and call it again; select * from migrator.status; shows where the change stands, and its next call.",
};

/// What `work` gives, or its failure raised as an ERROR. An error that PostgreSQL raised within comes with its own words, but
/// not with what it means for the call: that is added here.
///
/// Nothing is undone here, and nothing is asked of the catalog: the ERROR does the first, and forbids the second. Ctrl-C and
/// shutdown stay what they are.
pub fn answer<T>(ending: Ending, work: impl FnOnce() -> Result<T, Failure>) -> T {
    let work = AssertUnwindSafe(work);
    let outcome = PgTryBuilder::new(AssertUnwindSafe(move || {
        let work = work;
        (work.0)()
    }))
    .catch_others(|error| match error {
        CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => {
            let failure = raise::caught(&report);
            if failure.code.starts_with("57") {
                CaughtError::PostgresError(report).rethrow()
            }
            Err(failure)
        }
        rust_panic => rust_panic.rethrow(),
    })
    .execute();
    outcome.unwrap_or_else(|failure| raise::raise(failure.ended(ending)))
}
