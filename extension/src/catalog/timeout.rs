//! Timeouts of the caller's that would end a long step, or a CALL that consists of many, again and again.
//!
//! They are settings that every role may change for itself, as pg_dump does; so nobody's limit is broken who could not
//! lift it. Ctrl-C, pg_cancel_backend and pg_terminate_backend work as ever.

use crate::catalog::attempt::attempt_unless;
use crate::catalog::role;
use migrator_core::failure::{Failure, code};
use pgrx::pg_sys;
use std::time::{Duration, Instant};

// pgrx does not bind them (utils/timeout.h). The numbers of the first timeouts are the same in PostgreSQL 14 to 18.
unsafe extern "C-unwind" {
    fn disable_timeout(id: core::ffi::c_uint, keep_indicator: bool);
    fn enable_timeout_after(id: core::ffi::c_uint, delay_ms: core::ffi::c_int);
    fn enable_timeout_at(id: core::ffi::c_uint, finish: pg_sys::TimestampTz);
    fn get_timeout_active(id: core::ffi::c_uint) -> bool;
    fn get_timeout_indicator(id: core::ffi::c_uint, reset: bool) -> bool;
    fn get_timeout_finish_time(id: core::ffi::c_uint) -> pg_sys::TimestampTz;
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

/// Runs work of somebody else's making in a subtransaction, for no longer than `limit`: then it fails with 57014, and the
/// statement in hand goes on. A statement_timeout of the caller's that ends sooner ends the statement as ever.
pub fn within<T>(limit: Duration, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let begun = Instant::now();
    let timer = Timer::set(limit);
    let ours = timer.is_some();
    let timed = || {
        let done = work();
        drop(timer);
        done
    };
    match attempt_unless(timed, || ours && begun.elapsed() >= limit) {
        Err(failure) if ours && failure.code == "57014" => {
            Err(Failure::new(code::QUERY_CANCELED, format!("it takes longer than {} ms", limit.as_millis())))
        }
        outcome => outcome,
    }
}

/// The timer of statement_timeout, set to something else for a while.
struct Timer {
    /// When it would have ended the statement.
    before: Option<pg_sys::TimestampTz>,
}

impl Timer {
    /// None where the statement ends sooner anyway.
    fn set(limit: Duration) -> Option<Timer> {
        let ms = core::ffi::c_int::try_from(limit.as_millis()).unwrap_or(core::ffi::c_int::MAX).max(1);
        // SAFETY: reads and sets a timer of this process, registered since its start (utils/init/postinit.c); what it does
        // is StatementTimeoutHandler's, as for any statement_timeout.
        unsafe {
            let before = get_timeout_active(STATEMENT_TIMEOUT).then(|| get_timeout_finish_time(STATEMENT_TIMEOUT));
            if before.is_some_and(|finish| finish <= pg_sys::GetCurrentTimestamp() + i64::from(ms) * 1000) {
                return None;
            }
            enable_timeout_after(STATEMENT_TIMEOUT, ms);
            Some(Timer { before })
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: as above. If the timer struck when the work had just ended, nobody has acted on it yet, and the statement
        // must not be ended for it: PostgresMain clears the flag in the same way when a timer is too late (postgres.c).
        unsafe {
            disable_timeout(STATEMENT_TIMEOUT, true);
            if get_timeout_indicator(STATEMENT_TIMEOUT, true) {
                pg_sys::QueryCancelPending = 0;
            }
            if let Some(finish) = self.before {
                enable_timeout_at(STATEMENT_TIMEOUT, finish);
            }
        }
    }
}
