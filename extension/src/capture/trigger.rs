//! The capture trigger: what runs inside every statement that writes a captured table.
//!
//! It must not fail the application's statement, with one exception (see `fence`). It takes no lock that
//! anybody else keeps, and shares nothing with other writers but the segment that they all append to.

use super::append::Appender;
use super::{fence, log};
use crate::raise;
use migrator_core::failure::{Failure, code};
use pgrx::{pg_guard, pg_sys};
use std::cell::Cell;
use std::ffi::{CStr, CString};

pgrx::extension_sql!(
    r#"
create function migrator._capture() returns trigger
    language c as 'MODULE_PATHNAME', 'migrator_capture';
-- Who could put it on a table of his own could fill a log. The extension's owner needs no grant, and who restores a
-- dump as another role goes without this trigger: there is no change to capture for.
revoke execute on function migrator._capture() from public;
comment on function migrator._capture() is
    'Internal: appends the keys of written rows to the key log of a change. Put on tables by migrator.start_sync and migrator.swap only.';
"#,
    name = "capture",
    requires = ["tables"]
);

#[unsafe(no_mangle)]
#[doc(hidden)]
pub extern "C" fn pg_finfo_migrator_capture() -> &'static pg_sys::Pg_finfo_record {
    static V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

/// `migrator._capture(change id, direction, numbers of the key's columns, full id of the swap or nothing)`
///
/// # Safety
/// Called by PostgreSQL's function manager.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn migrator_capture(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: fcinfo is valid for the call; its context is a TriggerData where the function is called as a trigger.
    unsafe {
        if !pgrx::trigger_support::called_as_trigger(fcinfo) {
            raise::raise(Failure::new("39P01", "function migrator._capture was not called as a trigger"));
        }
        capture(&*(*fcinfo).context.cast::<pg_sys::TriggerData>());
        (*fcinfo).isnull = false;
        pg_sys::Datum::from(0_usize)
    }
}

/// What the trigger was created with.
struct Arguments {
    change: i64,
    letter: char,
    key: Vec<i16>,
    swap: Option<u64>,
}

impl Arguments {
    unsafe fn read(trigger: *const pg_sys::Trigger) -> Option<Self> {
        // SAFETY: the relation cache keeps tgnargs strings in tgargs while the relation is open.
        let arguments: Vec<&str> = unsafe {
            let count = usize::try_from((*trigger).tgnargs).ok()?;
            let read = |place| CStr::from_ptr(*(*trigger).tgargs.add(place)).to_str().ok();
            (0..count).map(read).collect::<Option<_>>()?
        };
        let [change, letter, key, swap] = arguments.as_slice() else { return None };
        Some(Self {
            change: change.parse().ok()?,
            letter: letter.chars().next()?,
            key: key.split(',').map(|number| number.parse().ok()).collect::<Option<_>>()?,
            swap: if swap.is_empty() { None } else { Some(swap.parse().ok()?) },
        })
    }

    /// The segment that is written now, if there is a log.
    ///
    /// By the clock and not by the start of the statement: a procedure may run for hours, and should not
    /// append all that time to what its readers believe to be at rest.
    fn segment(&self) -> Option<pg_sys::Oid> {
        const FROM_1970_TO_2000: i64 = 946_684_800;
        // SAFETY: a reading of the clock.
        let now = unsafe { pg_sys::GetCurrentTimestamp() }.div_euclid(1_000_000) + FROM_1970_TO_2000;
        Self::find(log::segment_name(self.change, self.letter, log::segment_at(now)))
    }

    /// Where it is written that the table was truncated, if there is a log.
    fn marker(&self) -> Option<pg_sys::Oid> {
        Self::find(log::marker_name(self.change, self.letter))
    }

    fn find(name: String) -> Option<pg_sys::Oid> {
        // SAFETY: look-ups by name in the system caches.
        unsafe {
            let schema = pg_sys::get_namespace_oid(c"migrator".as_ptr(), true);
            if schema == pg_sys::InvalidOid {
                return None;
            }
            let name = CString::new(name).ok()?;
            let segment = pg_sys::get_relname_relid(name.as_ptr(), schema);
            (segment != pg_sys::InvalidOid).then_some(segment)
        }
    }
}

unsafe fn capture(data: &pg_sys::TriggerData) {
    // SAFETY: PostgreSQL fills TriggerData before it calls a trigger (commands/trigger.h).
    unsafe {
        let Some(arguments) = Arguments::read(data.tg_trigger) else { return uncaptured() };
        let truncated = data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK == pg_sys::TRIGGER_EVENT_TRUNCATE;
        let segment = if truncated { arguments.marker() } else { arguments.segment() };
        let Some(segment) = segment else { return uncaptured() };
        if arguments.swap.is_some_and(fence::hides) {
            raise::raise(fence::refusal(data.tg_relation));
        }
        if data.tg_event & pg_sys::TRIGGER_EVENT_ROW != 0 {
            row(data, segment, arguments.key);
        } else if truncated {
            if let Some(mut log) = Appender::open(segment, data.tg_relation, arguments.key) {
                log.mark();
                log.close();
            }
        } else {
            statement(data, segment, arguments.key);
        }
    }
}

/// One row that logical replication applied.
unsafe fn row(data: &pg_sys::TriggerData, segment: pg_sys::Oid, key: Vec<i16>) {
    let Some(mut log) = Appender::open(segment, data.tg_relation, key) else { return };
    // SAFETY: an AFTER ROW trigger has the old row, or the inserted one, in tg_trigslot, and the updated one in tg_newslot.
    unsafe {
        for slot in [data.tg_trigslot, data.tg_newslot] {
            if !slot.is_null() && (*slot).tts_flags & TTS_FLAG_EMPTY == 0 {
                log.decode(slot);
                log.key(slot);
            }
        }
    }
    log.close();
}

/// TTS_FLAG_EMPTY of executor/tuptable.h
const TTS_FLAG_EMPTY: u16 = 1 << 1;

/// The rows of one statement.
unsafe fn statement(data: &pg_sys::TriggerData, segment: pg_sys::Oid, key: Vec<i16>) {
    // SAFETY: the transition tables hold rows of the relation's type and live until the trigger returns.
    unsafe {
        let mut old = Rows::of(data.tg_oldtable, data.tg_relation);
        let mut new = Rows::of(data.tg_newtable, data.tg_relation);
        let first = (Rows::next(&mut old), Rows::next(&mut new));
        if first != (None, None)
            && let Some(mut log) = Appender::open(segment, data.tg_relation, key)
        {
            append(&mut log, first, &mut old, &mut new);
            log.close();
        }
        for rows in [old, new].into_iter().flatten() {
            pg_sys::ExecDropSingleTupleTableSlot(rows.slot);
        }
    }
}

/// Walks old and new rows in step. Nothing depends on their being in the same order, or equally many (a
/// trigger can swallow a row on its way to another partition): a key is left out only where it equals one
/// that is logged.
unsafe fn append(log: &mut Appender, first: (Row, Row), old: &mut Option<Rows>, new: &mut Option<Rows>) {
    let mut rows = first;
    // SAFETY: each slot is filled until the next row of its table is asked for.
    unsafe {
        loop {
            pgrx::check_for_interrupts!();
            match rows {
                (Some(before), Some(after)) => {
                    log.decode(before);
                    log.decode(after);
                    log.key(after);
                    if !log.same_key(before, after) {
                        log.key(before);
                    }
                }
                (Some(only), None) | (None, Some(only)) => {
                    log.decode(only);
                    log.key(only);
                }
                (None, None) => return,
            }
            rows = (Rows::next(old), Rows::next(new));
        }
    }
}

type Row = Option<*mut pg_sys::TupleTableSlot>;

/// A transition table that is being read.
struct Rows {
    store: *mut pg_sys::Tuplestorestate,
    slot: *mut pg_sys::TupleTableSlot,
}

impl Rows {
    unsafe fn of(store: *mut pg_sys::Tuplestorestate, table: pg_sys::Relation) -> Option<Self> {
        if store.is_null() {
            return None;
        }
        // SAFETY: read pointer 0 always exists and can be rewound; other triggers of the statement, which
        // read the same table, have pointers of their own or rewind like this one.
        unsafe {
            pg_sys::tuplestore_select_read_pointer(store, 0);
            pg_sys::tuplestore_rescan(store);
            let slot = pg_sys::MakeSingleTupleTableSlot((*table).rd_att, &raw const pg_sys::TTSOpsMinimalTuple);
            Some(Self { store, slot })
        }
    }

    /// The next row, valid until the one after it is asked for.
    #[inline]
    unsafe fn next(rows: &mut Option<Self>) -> Row {
        let Rows { store, slot } = rows.as_ref()?;
        // SAFETY: both live until the trigger returns; at the end of the table the slot is cleared.
        unsafe { pg_sys::tuplestore_gettupleslot(*store, true, false, *slot).then_some(*slot) }
    }
}

thread_local! {
    static TOLD: Cell<bool> = const { Cell::new(false) };
}

/// The log is not there: this database is a copy of the one in which the change was begun. The application
/// goes on; it hears of it once in a session.
fn uncaptured() {
    if TOLD.replace(true) {
        return;
    }
    raise::warn(
        Failure::new(
            code::UNDEFINED_OBJECT,
            "a table is captured for a change of migrator whose key log does not exist",
        )
        .detail("Writes are not affected, and not logged.")
        .hint("Call migrator.doctor() to see which triggers were left behind, for instance by restoring a dump."),
    );
}
