//! What this session knows of a table's guard: the definition, read once, and where its columns are.

use super::defaults::{self, Unwritten};
use super::marks::Written;
use super::refuses::{self, Refusals};
use crate::catalog::bulk::attribute;
use crate::catalog::expression::{self, Type};
use migrator_core::failure::Failure;
use migrator_core::ident::Ident;
use migrator_core::upgrade::{COLUMN, Definition, Marks};
use pgrx::{pg_guard, pg_sys};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CStr, c_char};
use std::rc::Rc;

/// A definition and the table it is for, as both are now.
pub struct Known {
    pub definition: Definition,
    /// Whether the table has all columns that it names. Where one was renamed or dropped nothing can be derived; one that is upgraded in
    /// place is known by its number then, to see what is written to it.
    pub fits: bool,
    /// Place of `applied_upgrades` in the row, from 0.
    pub marks: usize,
    /// Whether a CHECK or an index of the table looks at that column: then a row is tried with the names that it gets.
    pub tries_marks: bool,
    /// Whether anything may refuse a row for its names: then none is set but with values that were tried.
    pub refuses_marks: bool,
    /// Whether the guard is a partition's, and the other partitions have it too.
    pub is_clone: bool,
    /// For each upgrade.
    pub columns: Vec<Columns>,
    /// For each upgrade, its expressions, prepared at first use.
    trees: RefCell<Vec<Option<Vec<*mut pg_sys::Expr>>>>,
    /// The names that a row got last.
    written: Written,
    /// The tables that this one is a partition of: what they refuse counts in `Columns::refusals`, and their defaults in
    /// `Columns::defaults`.
    above: Vec<pg_sys::Oid>,
    /// Where the trees and the array of those names are.
    context: pg_sys::MemoryContext,
    text: String,
}

/// Where the columns of an upgrade are, from 0.
pub struct Columns {
    pub inputs: Vec<usize>,
    /// An input is not there: nobody can tell whether it changed.
    pub lost: bool,
    pub outputs: Vec<usize>,
    /// What an output has when nobody gives it a value.
    pub defaults: Vec<Unwritten>,
    /// What may refuse its outputs. The relation cache's entry changes with indexes and constraints, and with it this.
    pub refusals: Refusals,
}

impl Drop for Known {
    fn drop(&mut self) {
        // SAFETY: reads a variable of the process, at whose end thread-locals go.
        if !std::thread::panicking() && unsafe { !pg_sys::proc_exit_inprogress } {
            // SAFETY: made by `read`, and nobody else's; no statement uses the trees any more, for it holds this value.
            unsafe { pg_sys::MemoryContextDelete(self.context) }
        }
    }
}

thread_local! {
    static KNOWN: RefCell<HashMap<u32, Rc<Known>>> = RefCell::new(HashMap::new());
    /// Something has changed that a definition, or what was made from it, may depend on.
    static STALE: Cell<bool> = const { Cell::new(false) };
    static LISTENING: Cell<bool> = const { Cell::new(false) };
    /// A table is being read, and other tables with it, of which it is not known yet that they matter.
    static READING: Cell<bool> = const { Cell::new(false) };
}

/// For as long as a table is read: whatever changes meanwhile, it is read again the next time.
struct Reading;

impl Reading {
    fn begin() -> Self {
        READING.set(true);
        Self
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        READING.set(false);
    }
}

/// What is known of an open table by the arguments of its guard's trigger. None where they cannot be read, or the table has not the
/// `applied_upgrades` any more in which its rows' names were.
///
/// # Safety
/// The relation is open and the trigger one of its own.
pub unsafe fn of(table: pg_sys::Relation, trigger: *const pg_sys::Trigger) -> Option<Rc<Known>> {
    listen();
    if STALE.replace(false) {
        KNOWN.with_borrow_mut(HashMap::clear);
    }
    // SAFETY: the relation cache keeps the arguments as long as the relation is open.
    unsafe {
        if (*trigger).tgnargs < 1 {
            return None;
        }
        let text = CStr::from_ptr(*(*trigger).tgargs);
        let oid = (*table).rd_id.to_u32();
        let found = KNOWN.with_borrow(|known| known.get(&oid).cloned());
        if let Some(known) = found.filter(|known| known.text.as_bytes() == text.to_bytes()) {
            return Some(known);
        }
        let reading = Reading::begin();
        let known = Rc::new(read(table, text, (*trigger).tgisclone)?);
        drop(reading);
        KNOWN.with_borrow_mut(|all| all.insert(oid, known.clone()));
        Some(known)
    }
}

/// The guard's trigger on an open table, if it has one.
///
/// # Safety
/// The relation is open.
pub unsafe fn trigger_of(table: pg_sys::Relation) -> Option<*const pg_sys::Trigger> {
    // SAFETY: the relation cache's own list.
    unsafe {
        let triggers = (*table).trigdesc.as_ref()?;
        let count = usize::try_from(triggers.numtriggers).ok()?;
        (0..count)
            .map(|place| triggers.triggers.add(place).cast_const())
            .find(|trigger| CStr::from_ptr((**trigger).tgname).to_bytes() == super::TRIGGER.as_bytes())
    }
}

unsafe fn read(table: pg_sys::Relation, text: &CStr, is_clone: bool) -> Option<Known> {
    let text = text.to_str().ok()?.to_owned();
    let mut definition: Definition = serde_json::from_str(&text).ok()?;
    // SAFETY: the caller's open relation.
    unsafe {
        let row = (*table).rd_att;
        let place = |name: &Ident| place(row, name);
        let marks = place(&Ident::from(COLUMN)).filter(|marks| {
            // Somebody may have put another column in its place since the registration: its values are no array of names.
            let column = &*attribute(row, *marks);
            column.atttypid == pg_sys::TEXTARRAYOID && column.attgenerated == 0
        })?;
        let above = refuses::above(table);
        // Partitions count their columns by themselves, and the table that has upgrades may be a partition by now.
        let is_guarded = |table: &&pg_sys::Oid| {
            let name = std::ffi::CString::new(super::TRIGGER).expect("a name has no NUL");
            pg_sys::get_trigger_oid(**table, name.as_ptr(), true) != pg_sys::InvalidOid
        };
        let counted = if is_clone { above.iter().rev().find(is_guarded).copied() } else { Some((*table).rd_id) };
        if counted.zip(definition.names_at).is_some_and(|(counted, number)| came_again(counted, number)) {
            return None;
        }
        let there = |column: &Ident| place(column).is_some();
        let fits =
            definition.upgrades.iter().all(|upgrade| upgrade.inputs.iter().all(there) && upgrade.outputs().all(there));
        let context = pg_sys::AllocSetContextCreateInternal(
            pg_sys::CacheMemoryContext,
            c"migrator guard".as_ptr(),
            pg_sys::ALLOCSET_SMALL_MINSIZE as pg_sys::Size,
            pg_sys::ALLOCSET_SMALL_INITSIZE as pg_sys::Size,
            pg_sys::ALLOCSET_DEFAULT_MAXSIZE as pg_sys::Size,
        );
        let columns = definition
            .upgrades
            .iter()
            .map(|upgrade| {
                let outputs: Vec<usize> = upgrade
                    .outputs()
                    .enumerate()
                    .filter_map(|(number, name)| {
                        place(name).or_else(|| renamed(row, *upgrade.numbers.get(number)?, &definition))
                    })
                    .collect();
                Columns {
                    inputs: upgrade.inputs.iter().filter_map(place).collect(),
                    lost: !upgrade.inputs.iter().all(there),
                    defaults: outputs.iter().map(|output| defaults::of(table, &above, *output, context)).collect(),
                    refusals: refuses::of(table, &outputs),
                    outputs,
                }
            })
            .collect::<Vec<Columns>>();
        for (upgrade, columns) in definition.upgrades.iter_mut().zip(&columns) {
            upgrade.deferred = columns.refusals.any || !fits;
        }
        let trees = RefCell::new(vec![None; definition.upgrades.len()]);
        let indexed = columns.iter().any(|columns| columns.refusals.long.iter().flatten().any(|place| *place == marks));
        let tries_marks = indexed || refuses::is_checked(table, marks);
        let of_marks = refuses::of(table, &[]);
        let refuses_marks = tries_marks || of_marks.any || !of_marks.long.is_empty();
        Some(Known {
            definition,
            fits,
            marks,
            tries_marks,
            refuses_marks,
            is_clone,
            columns,
            trees,
            written: Written::default(),
            above,
            context,
            text,
        })
    }
}

/// The place of a column, from 0.
///
/// # Safety
/// A descriptor of the relation cache.
pub unsafe fn place(row: pg_sys::TupleDesc, name: &Ident) -> Option<usize> {
    // SAFETY: the caller's.
    unsafe {
        (0..usize::try_from((*row).natts).ok()?).find(|place| {
            let column = &*attribute(row, *place);
            !column.attisdropped && text(column.attname.data.as_ptr()) == name.as_str().as_bytes()
        })
    }
}

/// Whether the column of names, which had this number, was dropped, and another one came behind it: its rows' names say nothing.
///
/// A number that is too high, as in a restored table, in which columns move up, does no harm: what comes later has a higher one only
/// where it was added anew.
unsafe fn came_again(table: pg_sys::Oid, number: i16) -> bool {
    let name = std::ffi::CString::new(COLUMN).expect("a name has no NUL");
    // SAFETY: look-ups in the system cache, whose tuple is released after its form was read.
    unsafe {
        if pg_sys::get_attnum(table, name.as_ptr()) <= number {
            return false;
        }
        let (by_number, table) = (pg_sys::SysCacheIdentifier::ATTNUM as i32, pg_sys::Datum::from(table));
        let tuple = pg_sys::SearchSysCache2(by_number, table, pg_sys::Datum::from(number));
        if tuple.is_null() {
            return false;
        }
        let dropped = (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_attribute>()).attisdropped;
        pg_sys::ReleaseSysCache(tuple);
        dropped
    }
}

/// The place of a column that had this number, and has a name by now that no upgrade knows.
unsafe fn renamed(row: pg_sys::TupleDesc, number: i16, definition: &Definition) -> Option<usize> {
    let place = usize::try_from(number).ok()?.checked_sub(1)?;
    // SAFETY: the caller's descriptor; the place is one of its columns.
    unsafe {
        if place >= usize::try_from((*row).natts).ok()? {
            return None;
        }
        let column = &*attribute(row, place);
        let name = text(column.attname.data.as_ptr());
        let is_known = |known: &Ident| known.as_str().as_bytes() == name;
        let mut known = definition.upgrades.iter().flat_map(|upgrade| upgrade.inputs.iter().chain(upgrade.outputs()));
        (!column.attisdropped && !known.any(is_known) && !is_known(&Ident::from(COLUMN))).then_some(place)
    }
}

unsafe fn text<'a>(name: *const c_char) -> &'a [u8] {
    // SAFETY: a NUL-terminated name of the catalog.
    unsafe { CStr::from_ptr(name) }.to_bytes()
}

impl Known {
    /// An array of these names, until it is asked for that of others.
    pub fn array(&self, marks: Marks) -> pg_sys::Datum {
        self.written.array(self.context, marks)
    }

    /// The expressions of an upgrade, ready for the executor, in the order of its outputs. Runs under the role and settings
    /// of the evaluation: literals are read while parsing.
    ///
    /// # Safety
    /// The relation is the one that this was read for, and open.
    pub unsafe fn trees(&self, table: pg_sys::Relation, upgrade: usize) -> Result<Vec<*mut pg_sys::Expr>, Failure> {
        if let Some(trees) = &self.trees.borrow()[upgrade] {
            return Ok(trees.clone());
        }
        // SAFETY: copyObject() copies a whole tree into the context, which lives as long as `self`.
        let trees = unsafe {
            self.definition.upgrades[upgrade]
                .set
                .iter()
                .zip(&self.columns[upgrade].outputs)
                .map(|((_, text), place)| {
                    let column = &*attribute((*table).rd_att, *place);
                    let target = Type { oid: column.atttypid.to_u32(), modifier: column.atttypmod };
                    let tree = expression::prepare(table, text, target)?;
                    let previous = pg_sys::MemoryContextSwitchTo(self.context);
                    let kept = pg_sys::copyObjectImpl(tree.cast()).cast::<pg_sys::Expr>();
                    pg_sys::MemoryContextSwitchTo(previous);
                    Ok(kept)
                })
                .collect::<Result<Vec<_>, Failure>>()?
        };
        self.trees.borrow_mut()[upgrade] = Some(trees.clone());
        Ok(trees)
    }
}

/// Asks to be told of every change of a table, a function, an operator or a type, once in a session.
fn listen() {
    if LISTENING.replace(true) {
        return;
    }
    // SAFETY: inval.c keeps function and argument for the session; there is room for as many as extensions need.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(table_changed), pg_sys::Datum::from(0_usize));
        for cache in [
            pg_sys::SysCacheIdentifier::PROCOID,
            pg_sys::SysCacheIdentifier::TYPEOID,
            pg_sys::SysCacheIdentifier::OPEROID,
        ] {
            pg_sys::CacheRegisterSyscacheCallback(cache as i32, Some(object_changed), pg_sys::Datum::from(0_usize));
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn table_changed(_argument: pg_sys::Datum, table: pg_sys::Oid) {
    // Nothing may be freed here: a statement may be in the middle of it.
    if STALE.get() {
        return;
    }
    let matters = |all: &HashMap<u32, Rc<Known>>| {
        all.contains_key(&table.to_u32()) || all.values().any(|known| known.above.contains(&table))
    };
    if table == pg_sys::InvalidOid
        || READING.get()
        || KNOWN.with(|known| known.try_borrow().is_ok_and(|all| matters(&all)))
    {
        STALE.set(true);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn object_changed(_argument: pg_sys::Datum, _cache: i32, _hash: u32) {
    STALE.set(true);
}
