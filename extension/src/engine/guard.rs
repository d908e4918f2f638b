//! What every step asks before it does anything.

use crate::catalog::role;
use crate::engine::change::Change;
use migrator_core::failure::{Failure, code};
use pgrx::pg_sys;

/// Refuses REPEATABLE READ and SERIALIZABLE: such a transaction's snapshot may be older than the log that it would take away.
pub fn fresh_snapshots(what: &str) -> Result<(), Failure> {
    // SAFETY: reads a backend-local variable; the macro IsolationUsesXactSnapshot() is the same comparison (xact.h).
    let isolation = unsafe { pg_sys::XactIsoLevel };
    if isolation >= i32::try_from(pg_sys::XACT_REPEATABLE_READ).expect("a small number") {
        return Err(Failure::new(
            code::ACTIVE_TRANSACTION,
            format!("{what} needs a transaction of isolation level READ COMMITTED"),
        )
        .detail("With its older snapshot it would miss what others have written since. Nothing was changed.")
        .hint("Call it outside BEGIN, or after SET TRANSACTION ISOLATION LEVEL READ COMMITTED."));
    }
    Ok(())
}

/// Whether a BEGIN is open around us, so that our locks would last until its COMMIT.
pub fn in_transaction_block() -> bool {
    // SAFETY: reads backend-local transaction state.
    unsafe { pg_sys::IsTransactionBlock() }
}

/// Refuses to run inside BEGIN: the locks would last until COMMIT.
pub fn outside_transaction(what: &str) -> Result<(), Failure> {
    if in_transaction_block() {
        return Err(Failure::new(code::ACTIVE_TRANSACTION, format!("{what} cannot run inside a transaction block"))
            .detail("Its lock on the table would last until COMMIT, and everybody would wait. Nothing was changed.")
            .hint("Call it outside BEGIN … COMMIT."));
    }
    Ok(())
}

/// Refuses to run where a procedure cannot commit, before it has done anything.
pub fn commits(what: &str) -> Result<(), Failure> {
    // SAFETY: reads backend-local state of SPI, which is that of the procedure that calls us: we are not connected.
    if unsafe { pg_sys::SPI_inside_nonatomic_context() } {
        return Ok(());
    }
    Err(Failure::new(
        code::ACTIVE_TRANSACTION,
        format!("{what} cannot run inside a transaction block, a function, or a block with EXCEPTION"),
    )
    .detail("It commits after each of its steps, so that no lock lasts.")
    .hint(format!(
        "Call it in a statement of its own: call {what}(…); Several statements in one psql -c are a transaction block, too."
    )))
}

/// Refuses a change that is paused or blocked.
pub fn may_go_on(change: &Change) -> Result<(), Failure> {
    if change.paused {
        return Err(change.not_now("it is paused").hint(format!("Let it go on: {}", change.call("resume"))));
    }
    not_blocked(change)
}

/// Refuses a change that is blocked. For what a person decides: a pause stops the work that goes on by itself, no more.
pub fn not_blocked(change: &Change) -> Result<(), Failure> {
    if let Some(why) = &change.blocked {
        let hint = change.blocked_hint.clone().unwrap_or_else(|| change.mended());
        return Err(change.not_now(&format!("it is blocked: {why}")).hint(hint));
    }
    Ok(())
}

/// The change that the caller means, after a check of the caller's rights; the rest of the call runs as the extension's owner.
pub fn enter<T>(
    relation: Option<u32>,
    id: Option<i64>,
    work: impl FnOnce(Change) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let caller = role::caller();
    role::as_extension(|| {
        let change = Change::select(relation, id)?;
        change.check_rights(caller)?;
        work(change)
    })
}
