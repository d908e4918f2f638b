//! INSERT … SELECT by the page: the rows of a query go into a table in bulk, as COPY writes them.
//!
//! PostgreSQL's own INSERT writes, locks and logs each row by itself. Here the statement is parsed, checked and
//! planned as the INSERT it is, so that rights, assignment casts, column order and row security mean the same; then
//! only the part of the plan below the insertion runs, and its rows are written a thousand at a time.

use crate::catalog::spi;
use migrator_core::failure::Failure;
use pgrx::prelude::*;
use pgrx::{PgList, PgMemoryContexts, pg_sys};
use std::ffi::CString;

/// Rows and bytes after which the waiting rows are written, as COPY FROM does.
const ROWS: usize = 1000;
const BYTES: usize = 1 << 16;

/// Runs an `INSERT INTO table … SELECT …` under a new snapshot and returns the number of rows.
///
/// Where the table has what only the executor's own way can serve (indexes, triggers, rules, generated columns,
/// partitions), or the plan is not the one expected, the statement runs that way. A PostgreSQL error unwinds as such.
pub fn insert(table: pg_sys::Oid, statement: &str) -> Result<u64, Failure> {
    // SAFETY: prepare → plan → run as SPI itself does (spi.c), inside its connection; what is pushed, opened or pinned
    // here is popped, closed and released here, or by the abort of the (sub)transaction when an error unwinds.
    let written = unsafe {
        let table = pg_sys::table_open(table, lock_mode());
        let written = if is_plain(table) { Spi::connect_mut(|_| select_into(table, statement)) } else { None };
        pg_sys::table_close(table, pg_sys::NoLock as pg_sys::LOCKMODE);
        written
    };
    match written {
        Some(rows) => Ok(rows),
        None => spi::execute(statement, &[]),
    }
}

fn lock_mode() -> pg_sys::LOCKMODE {
    pg_sys::RowExclusiveLock as pg_sys::LOCKMODE
}

/// Whether nothing but rows has to be written. Asked of the lists themselves: pg_class.relhasindex and its like stay
/// true when the last index is dropped.
unsafe fn is_plain(table: pg_sys::Relation) -> bool {
    // SAFETY: the caller's open relation.
    unsafe {
        let class = &*(*table).rd_rel;
        let constraints = (*(*table).rd_att).constr;
        class.relkind == pg_sys::RELKIND_RELATION as std::ffi::c_char
            && !class.relispartition
            // The contract of other access methods asks for more than is done here.
            && (*table).rd_tableam == pg_sys::GetHeapamTableAmRoutine()
            && (*table).trigdesc.is_null()
            && (*table).rd_rules.is_null()
            && pg_sys::RelationGetIndexList(table).is_null()
            && (constraints.is_null() || !has_generated(&*constraints))
    }
}

fn has_generated(constraints: &pg_sys::TupleConstr) -> bool {
    #[cfg(feature = "pg18")]
    if constraints.has_generated_virtual {
        return true;
    }
    constraints.has_generated_stored
}

/// None, and nothing done, where the plan is not an insertion of rows that are ready to be written.
unsafe fn select_into(table: pg_sys::Relation, statement: &str) -> Option<u64> {
    let text = CString::new(statement).expect("a statement has no NUL");
    // SAFETY: see insert(). The plan and its structures live until SPI_freeplan().
    unsafe {
        let plan = pg_sys::SPI_prepare(text.as_ptr(), 0, std::ptr::null_mut());
        if plan.is_null() {
            return None;
        }
        let cached = pg_sys::SPI_plan_get_cached_plan(plan);
        let rows = match source(cached, (*table).rd_id) {
            None => None,
            Some(mut source) => {
                pg_sys::CommandCounterIncrement();
                pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
                let mut writer = Writer::new(table);
                let query = pg_sys::CreateQueryDesc(
                    &raw mut source,
                    text.as_ptr(),
                    pg_sys::GetActiveSnapshot(),
                    std::ptr::null_mut(),
                    (&raw mut writer).cast(),
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                    0,
                );
                pg_sys::ExecutorStart(query, 0);
                let fits = same_row_type((*query).tupDesc, (*table).rd_att);
                if fits {
                    writer.begin((*query).estate);
                    run(query);
                    writer.end();
                }
                pg_sys::ExecutorFinish(query);
                pg_sys::ExecutorEnd(query);
                pg_sys::FreeQueryDesc(query);
                pg_sys::PopActiveSnapshot();
                fits.then_some(writer.rows)
            }
        };
        if !cached.is_null() {
            pg_sys::ReleaseCachedPlan(cached, std::ptr::null_mut());
        }
        pg_sys::SPI_freeplan(plan);
        pg_sys::CommandCounterIncrement();
        rows
    }
}

unsafe fn run(query: *mut pg_sys::QueryDesc) {
    let forward = pg_sys::ScanDirection::ForwardScanDirection;
    // SAFETY: a started query.
    unsafe {
        #[cfg(feature = "pg18")]
        pg_sys::ExecutorRun(query, forward, 0);
        #[cfg(not(feature = "pg18"))]
        pg_sys::ExecutorRun(query, forward, 0, true);
    }
}

/// The plan of the rows that a planned INSERT would write, as a query of its own. The range table stays, and with it
/// the check that the role may insert.
unsafe fn source(cached: *mut pg_sys::CachedPlan, table: pg_sys::Oid) -> Option<pg_sys::PlannedStmt> {
    // SAFETY: a cached plan holds a list of planned statements; the tag says which node is on top.
    unsafe {
        let statements = PgList::<pg_sys::PlannedStmt>::from_pg(cached.as_ref()?.stmt_list);
        if statements.len() != 1 {
            return None;
        }
        let mut planned = *statements.get_ptr(0)?;
        let top = planned.planTree.as_ref()?;
        let rows = top.lefttree;
        let expected = planned.commandType == pg_sys::CmdType::CMD_INSERT
            && top.type_ == pg_sys::NodeTag::T_ModifyTable
            && top.initPlan.is_null()
            && !rows.is_null()
            && !planned.hasReturning
            && !planned.hasModifyingCTE;
        if !expected {
            return None;
        }
        let insert = &*planned.planTree.cast::<pg_sys::ModifyTable>();
        let range = PgList::<pg_sys::RangeTblEntry>::from_pg(planned.rtable);
        let target = range.get_ptr(usize::try_from(insert.nominalRelation).ok()?.checked_sub(1)?)?;
        let plain = insert.withCheckOptionLists.is_null()
            && insert.returningLists.is_null()
            && insert.onConflictAction == pg_sys::OnConflictAction::ONCONFLICT_NONE
            && (*target).relid == table;
        if !plain {
            return None;
        }
        planned.commandType = pg_sys::CmdType::CMD_SELECT;
        planned.planTree = rows;
        planned.resultRelations = std::ptr::null_mut();
        Some(planned)
    }
}

/// Whether rows of one type can be written as rows of the other: column by column the same type, except where the
/// table's was dropped (the plan has NULL there).
unsafe fn same_row_type(rows: pg_sys::TupleDesc, table: pg_sys::TupleDesc) -> bool {
    // SAFETY: descriptors of a started query and of an open relation.
    unsafe {
        (*rows).natts == (*table).natts
            && (0..usize::try_from((*table).natts).expect("a table's columns")).all(|place| {
                let (row, column) = (attribute(rows, place), attribute(table, place));
                (*column).attisdropped || (*row).atttypid == (*column).atttypid
            })
    }
}

/// A column's row of pg_attribute, as far as a descriptor holds it. `place` must lie within it.
pub unsafe fn attribute(descriptor: pg_sys::TupleDesc, place: usize) -> *const pg_sys::FormData_pg_attribute {
    // SAFETY: the caller's. From 18 on the array lies behind that of the compact ones: TupleDescAttr(), tupdesc.h.
    unsafe {
        #[cfg(feature = "pg18")]
        let first = {
            let count = usize::try_from((*descriptor).natts).expect("a table's columns");
            (*descriptor).compact_attrs.as_ptr().add(count).cast::<pg_sys::FormData_pg_attribute>()
        };
        #[cfg(not(feature = "pg18"))]
        let first = (*descriptor).attrs.as_ptr();
        first.add(place)
    }
}

/// Where the executor sends the rows. PostgreSQL sees only the first field.
#[repr(C)]
struct Writer {
    receiver: pg_sys::DestReceiver,
    table: pg_sys::Relation,
    /// What ExecConstraints() needs; none where the table has neither NOT NULL nor CHECK.
    checks: *mut pg_sys::ResultRelInfo,
    estate: *mut pg_sys::EState,
    bulk: pg_sys::BulkInsertState,
    slots: Vec<*mut pg_sys::TupleTableSlot>,
    waiting: usize,
    bytes: usize,
    rows: u64,
    /// For what a write leaves behind: compressed and detoasted values.
    scratch: PgMemoryContexts,
}

impl Writer {
    fn new(table: pg_sys::Relation) -> Self {
        let receiver = pg_sys::DestReceiver {
            receiveSlot: Some(receive),
            rStartup: Some(startup),
            rShutdown: Some(nothing),
            rDestroy: Some(nothing),
            mydest: pg_sys::CommandDest::DestNone,
        };
        Self {
            receiver,
            table,
            checks: std::ptr::null_mut(),
            estate: std::ptr::null_mut(),
            bulk: std::ptr::null_mut(),
            slots: Vec::new(),
            waiting: 0,
            bytes: 0,
            rows: 0,
            scratch: PgMemoryContexts::new("migrator bulk insert"),
        }
    }

    unsafe fn begin(&mut self, estate: *mut pg_sys::EState) {
        // SAFETY: a started query's state, which outlives the run; number 0 says that the relation has no place in the
        // range table under that name, which ExecConstraints() only asks for its error text.
        unsafe {
            self.estate = estate;
            self.bulk = pg_sys::GetBulkInsertState();
            if !(*(*self.table).rd_att).constr.is_null() {
                let size = size_of::<pg_sys::ResultRelInfo>();
                let checks: *mut pg_sys::ResultRelInfo =
                    pg_sys::MemoryContextAllocZero((*estate).es_query_cxt, size).cast();
                (*checks).type_ = pg_sys::NodeTag::T_ResultRelInfo;
                pg_sys::InitResultRelInfo(checks, self.table, 0, std::ptr::null_mut(), 0);
                self.checks = checks;
            }
        }
    }

    unsafe fn push(&mut self, row: *mut pg_sys::TupleTableSlot) {
        // SAFETY: a filled slot of the table's row type (same_row_type()); our slots are of the table's own kind.
        unsafe {
            if self.waiting == self.slots.len() {
                self.slots.push(pg_sys::table_slot_create(self.table, std::ptr::null_mut()));
            }
            let slot = self.slots[self.waiting];
            pg_sys::ExecCopySlot(slot, row);
            // Where the rows are taken as they are, the copy is a pin on the page they come from.
            pg_sys::ExecMaterializeSlot(slot);
            (*slot).tts_tableOid = (*self.table).rd_id;
            if !self.checks.is_null() {
                pg_sys::ExecConstraints(self.checks, slot, self.estate);
            }
            self.waiting += 1;
            self.bytes += length(slot);
        }
        if self.waiting == ROWS || self.bytes >= BYTES {
            // SAFETY: the slots that wait are filled.
            unsafe { self.write() }
        }
    }

    unsafe fn write(&mut self) {
        let count = i32::try_from(self.waiting).expect("a thousand at most");
        // SAFETY: the first `waiting` slots hold rows of the table's type; nothing that is allocated while writing is
        // used afterwards.
        unsafe {
            let (table, slots, bulk) = (self.table, self.slots.as_mut_ptr(), self.bulk);
            self.scratch.switch_to(|_| {
                pg_sys::table_multi_insert(table, slots, count, pg_sys::GetCurrentCommandId(true), 0, bulk);
            });
            self.scratch.reset();
            for &slot in &self.slots[..self.waiting] {
                pg_sys::ExecClearTuple(slot);
            }
        }
        self.rows += u64::try_from(count).expect("not negative");
        (self.waiting, self.bytes) = (0, 0);
    }

    unsafe fn end(&mut self) {
        // SAFETY: begin() was called; slots are dropped before the relation is closed.
        unsafe {
            if self.waiting > 0 {
                self.write();
            }
            for &slot in &self.slots {
                pg_sys::ExecDropSingleTupleTableSlot(slot);
            }
            pg_sys::FreeBulkInsertState(self.bulk);
        }
    }
}

/// The bytes of a row in a slot of a heap; of another access method's row we know nothing.
unsafe fn length(slot: *mut pg_sys::TupleTableSlot) -> usize {
    // SAFETY: the slot's operations say of what kind it is; all slots of a heap begin with HeapTupleTableSlot.
    unsafe {
        if (*slot).tts_ops != &raw const pg_sys::TTSOpsBufferHeapTuple {
            return BYTES / 64;
        }
        let tuple = (*slot.cast::<pg_sys::HeapTupleTableSlot>()).tuple;
        if tuple.is_null() { 0 } else { (*tuple).t_len as usize }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn receive(slot: *mut pg_sys::TupleTableSlot, writer: *mut pg_sys::DestReceiver) -> bool {
    // SAFETY: the executor gives back the receiver that it was given, which is the first field of a Writer.
    unsafe { (*writer.cast::<Writer>()).push(slot) };
    true
}

#[pg_guard]
unsafe extern "C-unwind" fn startup(_w: *mut pg_sys::DestReceiver, _o: std::ffi::c_int, _t: pg_sys::TupleDesc) {}

#[pg_guard]
unsafe extern "C-unwind" fn nothing(_w: *mut pg_sys::DestReceiver) {}
