//! Work that may fail without failing the transaction: an internal subtransaction around it.

use crate::raise;
use migrator_core::failure::{Failure, code};
use pgrx::pg_sys::panic::CaughtError;
use pgrx::{PgTryBuilder, pg_guard, pg_sys};
use std::cell::RefCell;
use std::ffi::{CStr, CString};
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
        // A link of the chain that errfinish (elog.c) follows; taken out again below, whichever way the work ends.
        let before = pg_sys::error_context_stack;
        let mut link =
            pg_sys::ErrorContextCallback { previous: before, callback: Some(remember_code), arg: std::ptr::null_mut() };
        RAISED.set(None);
        pg_sys::error_context_stack = &raw mut link;
        let outcome = PgTryBuilder::new(AssertUnwindSafe(move || {
            let work = work;
            (work.0)().map_err(Ended::Failed)
        }))
        .catch_others(|caught| Err(Ended::Thrown(Box::new(caught))))
        .execute();
        pg_sys::error_context_stack = before;
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

/// The SQLSTATE of an error, as PostgreSQL packs it, and its message.
type Raised = (i32, Option<CString>);

thread_local! {
    /// The error that was raised last. The reports of pgrx know only the codes that PostgreSQL itself defines, and call any
    /// other, which a user's trigger or function chose, an internal error (XX000).
    static RAISED: RefCell<Option<Raised>> = const { RefCell::new(None) };
}

/// Called for each message before it is thrown or sent. An error that passes through a function of ours is raised there a
/// second time, as the internal error that pgrx took it for: the first code is its own. An internal error of other words
/// is one, and what was raised before it was caught by somebody.
#[pg_guard]
unsafe extern "C-unwind" fn remember_code(_argument: *mut std::ffi::c_void) {
    // SAFETY: geterrcode and CopyErrorData are made for error callbacks (elog.c); the copy must not be made in the context of
    // errors, where errfinish has us, and is freed here.
    unsafe {
        let raised = pg_sys::geterrcode();
        // The classes of success and of warnings are those of messages, which are told and not thrown.
        if [raise::pack("00"), raise::pack("01")].contains(&(raised & 0xfff)) {
            return;
        }
        let before = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        let error = pg_sys::CopyErrorData();
        let message = (!(*error).message.is_null()).then(|| CStr::from_ptr((*error).message).to_owned());
        pg_sys::FreeErrorData(error);
        pg_sys::MemoryContextSwitchTo(before);
        RAISED.with_borrow_mut(|last| match last {
            Some((_, words)) if raised == raise::pack(code::INTERNAL) && *words == message => {}
            _ => *last = Some((raised, message)),
        });
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
            let mut failure = raise::caught(&report);
            if let Some((raised, _)) = RAISED.take().filter(|_| failure.code == code::INTERNAL) {
                failure.code = raise::unpack(raised).into();
            }
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
