//! Timeouts of the caller's that would end a long step, or a CALL that consists of many, again and again.
//!
//! They are settings that every role may change for itself, as pg_dump does; so nobody's limit is broken who could not
//! lift it. Ctrl-C, pg_cancel_backend and pg_terminate_backend work as ever.

use crate::catalog::role;
use pgrx::pg_sys;

// pgrx does not bind it (utils/timeout.h). The numbers of the first timeouts are the same in PostgreSQL 14 to 18.
unsafe extern "C-unwind" {
    fn disable_timeout(id: core::ffi::c_uint, keep_indicator: bool);
}
const STATEMENT_TIMEOUT: core::ffi::c_uint = 3;

/// Lets the statement in hand last as long as it takes: the timer runs since its start, so that setting
/// statement_timeout within it would come too late. The next statement has its timer again (postgres.c, start_xact_command).
fn outlast() {
    // SAFETY: stops a timer of this process; one that does not run is no error (utils/misc/timeout.c).
    unsafe { disable_timeout(STATEMENT_TIMEOUT, false) }
}

/// Runs a step whose length depends on the size of a table.
pub fn unbounded<T>(work: impl FnOnce() -> T) -> T {
    outlast();
    // Its timer follows the setting even within a transaction (assign_transaction_timeout, since PostgreSQL 17).
    if cfg!(any(feature = "pg17", feature = "pg18")) {
        role::with_settings(&[("transaction_timeout", "0")], work)
    } else {
        work()
    }
}

/// At the start of a procedure that commits: the timer counts the whole CALL, however short its steps are.
pub fn outlast_call() {
    // SAFETY: reads a backend-local variable, the setting in milliseconds.
    let limit = unsafe { pg_sys::StatementTimeout };
    if limit > 0 {
        outlast();
        pgrx::notice!("statement_timeout ({limit} ms) does not end this call, which commits after each of its steps");
    }
}
