//! Work that may fail without failing the transaction: an internal subtransaction around it.

use crate::raise;
use migrator_core::failure::Failure;
use pgrx::PgTryBuilder;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::CaughtError;
use std::panic::AssertUnwindSafe;

/// Runs `work` in a subtransaction of its own. A PostgreSQL error or an `Err` rolls back everything that
/// `work` did, locks included, and comes back as a `Failure` with its SQLSTATE.
///
/// Cancellation is never swallowed: 57014 and 57P01 are rethrown.
pub fn attempt<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    attempt_unless(work, || false)
}

/// The same, where a cancellation may be one of our own making: `ours` is asked, and where it says so, it comes back as a
/// `Failure` like any other error.
pub fn attempt_unless<T>(work: impl FnOnce() -> Result<T, Failure>, ours: impl Fn() -> bool) -> Result<T, Failure> {
    // SAFETY: the pattern of PL/pgSQL's exec_stmt_block (pl_exec.c): memory context and resource owner are
    // saved before the subtransaction and restored after its end, whichever way it ends.
    unsafe {
        let context = pg_sys::CurrentMemoryContext;
        let owner = pg_sys::CurrentResourceOwner;
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(context);
        let work = AssertUnwindSafe(work);
        let outcome = PgTryBuilder::new(AssertUnwindSafe(move || {
            let work = work;
            (work.0)().map_err(Ended::Failed)
        }))
        .catch_others(|caught| Err(Ended::Thrown(Box::new(caught))))
        .execute();
        match &outcome {
            Ok(_) => pg_sys::ReleaseCurrentSubTransaction(),
            Err(_) => pg_sys::RollbackAndReleaseCurrentSubTransaction(),
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        outcome.map_err(|ended| match ended {
            Ended::Failed(failure) => failure,
            // Only now: an error that leaves the subtransaction open would leave the session in an aborted one.
            Ended::Thrown(caught) => failure_of(*caught, ours),
        })
    }
}

/// How work ended that did not succeed.
enum Ended {
    Failed(Failure),
    Thrown(Box<CaughtError>),
}

fn failure_of(caught: CaughtError, ours: impl Fn() -> bool) -> Failure {
    match caught {
        CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => {
            let failure = raise::caught(&report);
            if (failure.code == "57014" && !ours()) || failure.code == "57P01" {
                CaughtError::PostgresError(report).rethrow()
            }
            failure
        }
        rust_panic => rust_panic.rethrow(),
    }
}

/// Runs `work` in a subtransaction that is always rolled back: what it found out stays, what it did does not.
pub fn rehearse<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let mut found = None;
    let ended = attempt(|| {
        found = Some(work()?);
        Err::<(), _>(Failure::new("00000", "rehearsed"))
    });
    match (found, ended) {
        (Some(found), _) => Ok(found),
        (None, Err(failure)) => Err(failure),
        (None, Ok(())) => unreachable!("the work above never ends well without a result"),
    }
}
