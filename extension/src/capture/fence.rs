//! The fence of a swap: a transaction that would write a table whose rows it cannot see has to start anew.
//!
//! A swap is not MVCC-safe. Under a snapshot that is older, the table that now has the name looks empty: an
//! UPDATE changes 0 rows, silently. The application must hear of it, in the way that it knows: 40001.

use migrator_core::failure::{Failure, code};
use migrator_core::ident::Name;
use pgrx::pg_sys;
use std::ffi::CStr;

/// Whether this transaction's snapshot was taken before the transaction `swap` (a full id) committed.
///
/// READ COMMITTED is never behind the fence: the executor takes a statement's snapshot after it has locked
/// the tables that the statement writes, and the swap held the strongest lock on them until its commit. Only
/// the rows that a foreign key cascades to are reached later, and under a snapshot of their own; but their
/// triggers fire under the first one, which must therefore not be asked.
pub fn hides(swap: u64) -> bool {
    // SAFETY: reads of backend-local variables and of shared memory through the functions made for it. An
    // AFTER trigger runs under the snapshot of the statement that fired it (ExecutorFinish, execMain.c).
    unsafe {
        let whole_transaction =
            u32::try_from(pg_sys::XactIsoLevel).is_ok_and(|level| level >= pg_sys::XACT_REPEATABLE_READ);
        if !whole_transaction || !pg_sys::ActiveSnapshotSet() {
            return false;
        }
        let next = pg_sys::ReadNextFullTransactionId().value;
        // An id of the future comes from another cluster: the trigger was restored with a dump. One that is
        // 2^31 behind is older than any snapshot can be, and would compare as younger.
        if swap >= next || next - swap >= 1 << 31 {
            return false;
        }
        let xid = pg_sys::TransactionId::from_inner(u32::try_from(swap & 0xffff_ffff).expect("masked to 32 bits"));
        !pg_sys::TransactionIdIsCurrentTransactionId(xid) && pg_sys::XidInMVCCSnapshot(xid, pg_sys::GetActiveSnapshot())
    }
}

/// What the writer of `table` hears who is behind the fence.
pub fn refusal(table: pg_sys::Relation) -> Failure {
    // SAFETY: the relation is open; its name is a NUL-terminated array, and get_namespace_name returns NULL
    // or a string that lives in the current memory context.
    let name = unsafe {
        let form = (*table).rd_rel;
        let schema = pg_sys::get_namespace_name((*form).relnamespace);
        let schema = if schema.is_null() { c"?" } else { CStr::from_ptr(schema) };
        Name::new(schema.to_string_lossy(), CStr::from_ptr((*form).relname.data.as_ptr()).to_string_lossy())
    };
    Failure::new(
        code::SERIALIZATION,
        format!(
            "could not serialize access: table {} was swapped by migrator after this transaction's snapshot was taken",
            name.plain()
        ),
    )
    .detail("Its rows were written by transactions that this snapshot does not see.")
    .hint("Retry the transaction.")
}
