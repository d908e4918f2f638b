//! The guard's trigger, and the batches that work through it.

use super::known::{self, Known};
use super::row::{Applier, Row, Values};
use super::{failed, run};
use crate::raise;
use migrator_core::failure::{Failure, code};
use migrator_core::upgrade::COLUMN;
use pgrx::{pg_guard, pg_sys};
use std::cell::{Cell, RefCell};
use std::collections::HashSet;

pgrx::extension_sql!(
    r#"
create function migrator._guard() returns trigger
    language c as 'MODULE_PATHNAME', 'migrator_guard';
-- Its argument is evaluated as the owner of the table: only registration may write one.
revoke execute on function migrator._guard() from public;
comment on function migrator._guard() is
    'Internal: applies the upgrades of a table to each row that is written, and keeps derived columns in step with their inputs. Put on tables by migrator.register_upgrade only.';
"#,
    name = "guard",
    requires = ["tables"]
);

#[unsafe(no_mangle)]
#[doc(hidden)]
pub extern "C" fn pg_finfo_migrator_guard() -> &'static pg_sys::Pg_finfo_record {
    static V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

thread_local! {
    /// The batch that is running: the id of the table's first upgrade, and how many upgrades it applies to a row.
    static BATCH: Cell<Option<(i64, usize)>> = const { Cell::new(None) };
    /// The upgrade that a batch was at.
    static AT: Cell<i64> = const { Cell::new(0) };
}

/// Remembers which upgrade is evaluated, for the batch that fails in it.
pub(super) fn begins(upgrade: i64) {
    AT.set(upgrade);
}

/// The upgrade that was evaluated last in a batch: the one to blame where a batch of one row failed.
pub fn at() -> i64 {
    AT.get()
}

/// Runs a batch's UPDATE: the guard applies at most `limit` expressions to each row and lets errors through. The first upgrade's id
/// says which table is meant: triggers of the batch's rows may write others.
///
/// The caller is in a subtransaction of its own, and has the statement run as the table's owner.
pub fn in_batch<T>(first: i64, limit: usize, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    struct Ended;
    impl Drop for Ended {
        fn drop(&mut self) {
            BATCH.set(None);
        }
    }
    // What a batch that failed left half done.
    run::forget();
    AT.set(0);
    let _ended = Ended;
    BATCH.set(Some((first, limit)));
    work()
}

/// # Safety
/// Called by PostgreSQL's function manager.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn migrator_guard(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: fcinfo is valid for the call; its context is a TriggerData where the function is called as a trigger.
    unsafe {
        let as_trigger = pgrx::trigger_support::called_as_trigger(fcinfo);
        let event = if as_trigger { (*(*fcinfo).context.cast::<pg_sys::TriggerData>()).tg_event } else { 0 };
        let before_row = pg_sys::TRIGGER_EVENT_ROW | pg_sys::TRIGGER_EVENT_BEFORE;
        let fits = event & before_row == before_row
            && [pg_sys::TRIGGER_EVENT_INSERT, pg_sys::TRIGGER_EVENT_UPDATE]
                .contains(&(event & pg_sys::TRIGGER_EVENT_OPMASK));
        if !fits {
            raise::raise(Failure::new(
                "39P01",
                "function migrator._guard was not called as a BEFORE INSERT OR UPDATE trigger of rows",
            ));
        }
        (*fcinfo).isnull = false;
        let data = &*(*fcinfo).context.cast::<pg_sys::TriggerData>();
        pg_sys::Datum::from(guard(data).unwrap_or_else(|failure| raise::raise(failure)))
    }
}

unsafe fn guard(data: &pg_sys::TriggerData) -> Result<pg_sys::HeapTuple, Failure> {
    // SAFETY: PostgreSQL fills TriggerData before it calls a trigger (commands/trigger.h).
    unsafe {
        let inserts = data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK == pg_sys::TRIGGER_EVENT_INSERT;
        let tuple = if inserts { data.tg_trigtuple } else { data.tg_newtuple };
        let Some(known) = known::of(data.tg_relation, data.tg_trigger) else {
            unguarded(data.tg_relation, &|table| {
                let what = format!(
                    "column {COLUMN} of table {table} is not the one any more that has the names of its upgrades"
                );
                (what, "select * from migrator.doctor(); says what to do.")
            });
            return Ok(tuple);
        };
        if !known.fits {
            unguarded(data.tg_relation, &|table| {
                let what = format!("upgrades of table {table} name a column that is not there");
                (what, "Call migrator.doctor() to see which; give the column its name back, or retire the upgrade.")
            });
        }
        let row = (*data.tg_relation).rd_att;
        let old = (!inserts).then(|| Values::of(data.tg_trigtuple, row));
        let applier = applier(&known);
        let mut row_in_hand = Row::new(data.tg_relation, &known, applier, old, Values::of(tuple, row));
        row_in_hand.apply()?;
        let mut written = tuple;
        if !row_in_hand.changed.is_empty() {
            let mut replace = vec![false; row_in_hand.new.values.len()];
            for place in &row_in_hand.changed {
                replace[*place] = true;
            }
            let Values { values, nulls } = &mut row_in_hand.new;
            written =
                pg_sys::heap_modify_tuple(tuple, row, values.as_mut_ptr(), nulls.as_mut_ptr(), replace.as_mut_ptr());
        }
        // Only now that nothing is used any more of what the row in hand shares with others: a note runs casts of users' types, which
        // may write to this table.
        if let Some(failed) = &row_in_hand.failed {
            failed::note(data.tg_relation, &known, failed, tuple);
        }
        if !known.fits {
            failed::note_lacking(data.tg_relation, &known, &row_in_hand.marks());
        }
        Ok(written)
    }
}

fn applier(known: &Known) -> Applier {
    let first = known.definition.upgrades.first().map(|upgrade| upgrade.id);
    match BATCH.get() {
        Some((of, limit)) if Some(of) == first => Applier::Batch { limit },
        _ => Applier::Writer,
    }
}

/// Tables of which a session hears.
const TOLD_MOST: usize = 10;

thread_local! {
    static TOLD: RefCell<HashSet<pg_sys::Oid>> = RefCell::new(HashSet::new());
}

/// The definition does not fit the table any more. The application goes on, and hears of it once in a session and of each table. Rows lose the names of
/// upgrades whose inputs may have changed, so that they are upgraded when the column is back.
unsafe fn unguarded(table: pg_sys::Relation, what: &dyn Fn(&str) -> (String, &'static str)) {
    // SAFETY: an open relation has its oid and its name.
    let (oid, name) = unsafe { ((*table).rd_id, pgrx::name_data_to_str(&(*(*table).rd_rel).relname).to_owned()) };
    // A table may have any number of partitions.
    if !TOLD.with_borrow_mut(|told| told.len() < TOLD_MOST && told.insert(oid)) {
        return;
    }
    let (message, hint) = what(&name);
    raise::warn(
        Failure::new(code::UNDEFINED_COLUMN, message).detail("Writes are not affected, and not upgraded.").hint(hint),
    );
}
