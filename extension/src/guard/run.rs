//! The executor's side of evaluating upgrades, made once for each statement and table: a row to put values in, a memory
//! context for what comes of them, compiled expressions.
//!
//! Nothing of it outlives its statement: functions keep state with their expression that may belong to the transaction.

use super::known::Known;
use super::{image, marks, refuses};
use crate::catalog::bulk::attribute;
use migrator_core::failure::{Failure, code};
use pgrx::pg_sys;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

// pgrx does not bind it (executor/nodeModifyTable.h). The same in PostgreSQL 14 to 18.
unsafe extern "C-unwind" {
    fn ExecComputeStoredGenerated(
        result: *mut pg_sys::ResultRelInfo,
        estate: *mut pg_sys::EState,
        slot: *mut pg_sys::TupleTableSlot,
        command: pg_sys::CmdType::Type,
    );
}

/// A statement: of which transaction, subtransaction and command.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Statement(u32, u32, u32);

impl Statement {
    fn now() -> Self {
        // SAFETY: reads backend-local state; MyProc is set in every backend.
        unsafe {
            #[cfg(any(feature = "pg17", feature = "pg18"))]
            let transaction = (*pg_sys::MyProc).vxid.lxid;
            #[cfg(not(any(feature = "pg17", feature = "pg18")))]
            let transaction = (*pg_sys::MyProc).lxid;
            Self(transaction, pg_sys::GetCurrentSubTransactionId(), pg_sys::GetCurrentCommandId(false))
        }
    }
}

/// The compiled expressions of an upgrade.
#[derive(Clone)]
struct States {
    all: Rc<[*mut pg_sys::ExprState]>,
    /// Whether one of them reads a generated column, which a function from row to row may do.
    generated: bool,
}

/// The statement that is running, as numbers.
pub fn statement() -> (u32, u32, u32) {
    let Statement(transaction, subtransaction, command) = Statement::now();
    (transaction, subtransaction, command)
}

/// What a statement evaluates with.
pub struct Run {
    statement: Statement,
    table: u32,
    known: Rc<Known>,
    context: pg_sys::MemoryContext,
    estate: *mut pg_sys::EState,
    econtext: *mut pg_sys::ExprContext,
    slot: *mut pg_sys::TupleTableSlot,
    result: *mut pg_sys::ResultRelInfo,
    states: RefCell<Vec<Option<States>>>,
    /// Between `reset` and the end of its row. A function that an expression calls may come here again.
    busy: Cell<bool>,
}

thread_local! {
    /// Those of the last statement: rows that come through a partitioned table are of one partition and another.
    static RUNS: RefCell<Vec<Rc<Run>>> = const { RefCell::new(Vec::new()) };
}

/// Partitions for which a statement keeps what it evaluates with.
const KEPT: usize = 64;

/// The run of this statement for this table.
///
/// # Safety
/// The relation is open, and `known` what is known of it.
pub unsafe fn of(table: pg_sys::Relation, known: &Rc<Known>) -> Rc<Run> {
    let statement = Statement::now();
    // SAFETY: the caller's relation.
    let oid = unsafe { (*table).rd_id.to_u32() };
    let fits = |run: &&Rc<Run>| run.table == oid && Rc::ptr_eq(&run.known, known);
    let is_old = RUNS.with_borrow(|runs| runs.iter().any(|run| run.statement != statement));
    if is_old {
        // Dropped only when they are borrowed no more: a busy one stays with its row.
        forget();
    }
    let found = RUNS.with_borrow(|runs| runs.iter().find(fits).cloned());
    if let Some(run) = found.as_ref().filter(|run| !run.busy.get()) {
        return run.clone();
    }
    // SAFETY: see Run::begin(). Where the other one is busy, this one lives for one row.
    let run = Rc::new(unsafe { Run::begin(statement, table, known.clone()) });
    if found.is_none() {
        let oldest = RUNS.with_borrow_mut(|runs| {
            runs.push(run.clone());
            (runs.len() > KEPT).then(|| runs.remove(0))
        });
        drop(oldest);
    }
    run
}

/// Forgets the compiled expressions: one of them ended in the middle of something.
pub fn forget() {
    drop(RUNS.take());
}

/// A row in the hands of a run.
pub struct Busy(Rc<Run>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.set(false);
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // At the process's end, when thread-locals go, much of the server's own state has gone already.
        // SAFETY: reads a variable of the process.
        if std::thread::panicking() || unsafe { pg_sys::proc_exit_inprogress } {
            return;
        }
        // The context hangs on the transaction's: when that is over, so is it.
        let same = Statement::now().0 == self.statement.0;
        // SAFETY: IsTransactionState() says whether there still is a transaction of that number; the context is ours alone.
        unsafe {
            if same && pg_sys::IsTransactionState() {
                pg_sys::MemoryContextDelete(self.context);
            }
        }
    }
}

impl Run {
    unsafe fn begin(statement: Statement, table: pg_sys::Relation, known: Rc<Known>) -> Self {
        // SAFETY: all that is made lies in a context of its own below the transaction's. CreateExecutorState() makes a
        // child of the current context; the slot's descriptor is a copy, on which nobody counts references.
        unsafe {
            let context = pg_sys::AllocSetContextCreateInternal(
                pg_sys::TopTransactionContext,
                c"migrator guard, one statement".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as pg_sys::Size,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as pg_sys::Size,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as pg_sys::Size,
            );
            let previous = pg_sys::MemoryContextSwitchTo(context);
            let estate = pg_sys::CreateExecutorState();
            let econtext = pg_sys::CreateExprContext(estate);
            let row = pg_sys::CreateTupleDescCopyConstr((*table).rd_att);
            let slot = pg_sys::MakeSingleTupleTableSlot(row, &raw const pg_sys::TTSOpsVirtual);
            let result: *mut pg_sys::ResultRelInfo = pg_sys::palloc0(size_of::<pg_sys::ResultRelInfo>()).cast();
            (*result).type_ = pg_sys::NodeTag::T_ResultRelInfo;
            pg_sys::InitResultRelInfo(result, table, 0, std::ptr::null_mut(), 0);
            pg_sys::MemoryContextSwitchTo(previous);
            let states = RefCell::new(vec![None; known.columns.len()]);
            Self {
                statement,
                table: (*table).rd_id.to_u32(),
                known,
                context,
                estate,
                econtext,
                slot,
                result,
                states,
                busy: Cell::new(false),
            }
        }
    }

    /// Begins with a row: frees what the one before left behind. Its end is the end of the value that is returned.
    pub unsafe fn reset(self: &Rc<Self>) -> Busy {
        self.busy.set(true);
        // SAFETY: nobody uses values of the row before any more.
        unsafe {
            pg_sys::MemoryContextReset((*self.econtext).ecxt_per_tuple_memory);
            let checks = (*self.estate).es_per_tuple_exprcontext;
            if !checks.is_null() {
                pg_sys::MemoryContextReset((*checks).ecxt_per_tuple_memory);
            }
        }
        Busy(self.clone())
    }

    /// The values of an upgrade's outputs for this row, in their order. They live until `reset`. Runs as the table's owner
    /// under the upgrade's settings. A PostgreSQL error unwinds.
    pub unsafe fn evaluate(
        &self,
        table: pg_sys::Relation,
        upgrade: usize,
        values: &[pg_sys::Datum],
        nulls: &[bool],
    ) -> Result<Vec<(pg_sys::Datum, bool)>, Failure> {
        // SAFETY: the slot has as many places as the row has columns; the states are of this statement.
        unsafe {
            let states = self.states(table, upgrade)?;
            if states.generated {
                self.fill_all(table, values, nulls);
            } else {
                self.fill(values, nulls);
            }
            (*self.econtext).ecxt_scantuple = self.slot;
            let previous = pg_sys::MemoryContextSwitchTo((*self.econtext).ecxt_per_tuple_memory);
            let outputs = states
                .all
                .iter()
                .zip(&self.known.columns[upgrade].outputs)
                .map(|(state, place)| {
                    let mut null = false;
                    let evaluate = (**state).evalfunc.expect("a compiled expression has its function");
                    let value = pg_sys::ffi::pg_guard_ffi_boundary(|| evaluate(*state, self.econtext, &raw mut null));
                    let length = (*attribute((*self.slot).tts_tupleDescriptor, *place)).attlen;
                    // An expanded value that somebody else may change is no value of a row.
                    let value = if !null && length == -1 && !marks::is_plain(value.cast_mut_ptr()) {
                        pg_sys::Datum::from(pg_sys::pg_detoast_datum_packed(value.cast_mut_ptr()))
                    } else {
                        value
                    };
                    (value, null)
                })
                .collect();
            pg_sys::MemoryContextSwitchTo(previous);
            Ok(outputs)
        }
    }

    unsafe fn states(&self, table: pg_sys::Relation, upgrade: usize) -> Result<States, Failure> {
        if let Some(states) = &self.states.borrow()[upgrade] {
            return Ok(states.clone());
        }
        // SAFETY: planned trees; the states lie with the statement.
        let states = unsafe {
            let trees = self.known.trees(table, upgrade)?;
            let places: Vec<usize> = (0..usize::try_from((*(*table).rd_att).natts).unwrap_or(0))
                .filter(|place| refuses::is_generated(table, *place))
                .collect();
            let generated =
                !places.is_empty() && trees.iter().any(|tree| refuses::mentions(tree.cast::<pg_sys::Node>(), &places));
            if generated && places.iter().any(|place| is_virtual(table, *place)) {
                return Err(with_virtual(table));
            }
            let previous = pg_sys::MemoryContextSwitchTo(self.context);
            let all = trees.into_iter().map(|tree| pg_sys::ExecInitExpr(tree, std::ptr::null_mut())).collect();
            pg_sys::MemoryContextSwitchTo(previous);
            States { all, generated }
        };
        self.states.borrow_mut()[upgrade] = Some(states.clone());
        Ok(states)
    }

    unsafe fn fill(&self, values: &[pg_sys::Datum], nulls: &[bool]) {
        // SAFETY: as many values as the slot's descriptor has columns.
        unsafe {
            pg_sys::ExecClearTuple(self.slot);
            std::ptr::copy_nonoverlapping(values.as_ptr(), (*self.slot).tts_values, values.len());
            std::ptr::copy_nonoverlapping(nulls.as_ptr(), (*self.slot).tts_isnull, nulls.len());
            pg_sys::ExecStoreVirtualTuple(self.slot);
        }
    }

    /// The same with generated columns as they follow from the others: PostgreSQL computes them behind all BEFORE triggers.
    unsafe fn fill_all(&self, table: pg_sys::Relation, values: &[pg_sys::Datum], nulls: &[bool]) {
        let (mut values, mut nulls) = (values.to_vec(), nulls.to_vec());
        // SAFETY: the slot has as many places as the row has columns. What is computed lies with the slot, which is filled again:
        // copies of it live until `reset`. As for an INSERT, which leaves out none.
        unsafe {
            self.fill(&values, &nulls);
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                ExecComputeStoredGenerated(self.result, self.estate, self.slot, pg_sys::CmdType::CMD_INSERT);
            });
            let previous = pg_sys::MemoryContextSwitchTo((*self.econtext).ecxt_per_tuple_memory);
            for place in (0..values.len()).filter(|place| refuses::is_generated(table, *place)) {
                nulls[place] = *(*self.slot).tts_isnull.add(place);
                if !nulls[place] {
                    let column = &*attribute((*table).rd_att, place);
                    let value = *(*self.slot).tts_values.add(place);
                    values[place] = image::copy(value, column.attbyval, i32::from(column.attlen));
                }
            }
            pg_sys::MemoryContextSwitchTo(previous);
            self.fill(&values, &nulls);
        }
    }

    /// Whether a row belongs into this partition, and is not about to move to another. An error unwinds.
    pub unsafe fn stays(&self, values: &[pg_sys::Datum], nulls: &[bool]) -> bool {
        // SAFETY: the slot and the result relation are of the table that the row is of.
        unsafe {
            self.fill(values, nulls);
            pg_sys::ExecPartitionCheck(self.result, self.slot, self.estate, false)
        }
    }

    /// Tries the table's NOT NULL and CHECK constraints on a row, as the statement itself will. An error unwinds.
    pub unsafe fn check(&self, table: pg_sys::Relation, values: &[pg_sys::Datum], nulls: &[bool], inserts: bool) {
        // SAFETY: the result relation was made for this table; number 0 says that it has no place in a range table, which only
        // error texts ask for.
        unsafe {
            let constraints = (*(*table).rd_att).constr;
            if constraints.is_null() {
                return;
            }
            self.fill(values, nulls);
            (*self.slot).tts_tableOid = (*table).rd_id;
            if (*constraints).has_generated_stored {
                let command = if inserts { pg_sys::CmdType::CMD_INSERT } else { pg_sys::CmdType::CMD_UPDATE };
                pg_sys::ffi::pg_guard_ffi_boundary(|| {
                    ExecComputeStoredGenerated(self.result, self.estate, self.slot, command);
                });
            }
            pg_sys::ExecConstraints(self.result, self.slot, self.estate);
        }
    }
}

unsafe fn is_virtual(table: pg_sys::Relation, place: usize) -> bool {
    // SAFETY: a column of the caller's open relation.
    unsafe { (*attribute((*table).rd_att, place)).attgenerated.cast_unsigned() == b'v' }
}

/// Registration refuses it; the column came later. A virtual column is in no row that a function is given.
unsafe fn with_virtual(table: pg_sys::Relation) -> Failure {
    // SAFETY: an open relation has its name.
    let name = unsafe { pgrx::name_data_to_str(&(*(*table).rd_rel).relname).to_owned() };
    Failure::new(
        code::NOT_SUPPORTED,
        format!("table {name} has a virtual generated column, which a function of the whole row would find empty"),
    )
}
