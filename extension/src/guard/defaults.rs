//! What a column has where an INSERT leaves it out: so what was written can be told from what was not.

use super::image;
use super::refuses::FIRST_OF_OTHERS;
use crate::catalog::attempt::attempt;
use crate::catalog::bulk::attribute;
use crate::catalog::walk::Found;
use pgrx::{FromDatum, pg_sys};

/// The values that a column may have that nobody wrote; NULL always is one.
pub enum Unwritten {
    /// These, and no others. A row that comes through the parent has the parent's default, one that comes directly the partition's.
    Constants(Vec<pg_sys::Datum>),
    /// There is an expression among them: what was not written cannot be told from what was.
    Unknown,
}

/// pg_attrdef, its index by table and column, and the places of its columns (catalog/pg_attrdef.h).
const DEFAULTS: u32 = 2604;
const BY_COLUMN: u32 = 2656;
const TABLE: i16 = 2;
const NUMBER: i16 = 3;
const TREE: i32 = 4;
/// pg_proc.oid of oideq and int2eq.
const SAME_OID: u32 = 184;
const SAME_INT2: u32 = 63;

/// Of the column at this place of a table, which is a partition of those `above` it. Values lie in the context.
///
/// # Safety
/// The relation is open.
pub unsafe fn of(
    table: pg_sys::Relation,
    above: &[pg_sys::Oid],
    place: usize,
    context: pg_sys::MemoryContext,
) -> Unwritten {
    // SAFETY: build_column_default() (rewriteHandler.c) gives a new tree, or NULL where there is no default.
    unsafe {
        let number = i32::try_from(place).expect("a table's columns") + 1;
        let own = pg_sys::build_column_default(table, number);
        let name = &raw const (*attribute((*table).rd_att, place)).attname.data;
        // A table above may be in the hands of somebody who changes it, and is not opened: what it has by a change that is committed
        // later is read again then.
        let inherited = above.iter().map(|parent| stored(*parent, pg_sys::get_attnum(*parent, name.cast())));
        let mut constants = vec![];
        for tree in std::iter::once(own).chain(inherited).filter(|tree| !tree.is_null()) {
            let Some(constant) = constant(tree) else { return Unwritten::Unknown };
            if !constant.constisnull {
                let previous = pg_sys::MemoryContextSwitchTo(context);
                let length = i32::from(constant.constlen as i16);
                constants.push(image::copy(constant.constvalue, constant.constbyval, length));
                pg_sys::MemoryContextSwitchTo(previous);
            }
        }
        Unwritten::Constants(constants)
    }
}

/// The value of a default, if it is the same for all rows. `bigint default 0` is a cast of an int.
unsafe fn constant<'a>(tree: *mut pg_sys::Node) -> Option<&'a pg_sys::Const> {
    // SAFETY: the caller's tree, over no table; casts follow the tag.
    unsafe {
        let mut tree = tree;
        if (*tree).type_ != pg_sys::NodeTag::T_Const {
            let mut found = Found::default();
            found.walk(tree);
            // What PostgreSQL itself brings may be run by whoever writes the row, and nothing else.
            let own = found.refused.is_none() && found.functions.iter().all(|function| *function < FIRST_OF_OTHERS);
            if !own || pg_sys::contain_mutable_functions(tree) {
                return None;
            }
            // A default that does not fit its column fails each statement that needs it.
            tree = attempt(|| Ok(pg_sys::eval_const_expressions(std::ptr::null_mut(), tree))).ok()?;
        }
        // A domain's value is one of its type below.
        while (*tree).type_ == pg_sys::NodeTag::T_CoerceToDomain {
            tree = (*tree.cast::<pg_sys::CoerceToDomain>()).arg.cast();
        }
        ((*tree).type_ == pg_sys::NodeTag::T_Const).then(|| &*tree.cast::<pg_sys::Const>())
    }
}

/// The default of a column as the catalog has it now; NULL where it has none.
unsafe fn stored(table: pg_sys::Oid, number: i16) -> *mut pg_sys::Node {
    let mode = i32::try_from(pg_sys::AccessShareLock).expect("a small number");
    let equal = u16::try_from(pg_sys::BTEqualStrategyNumber).expect("a small number");
    // SAFETY: a catalog, opened and closed here; the tuple is read while the scan stands on it.
    unsafe {
        let defaults = pg_sys::table_open(pg_sys::Oid::from(DEFAULTS), mode);
        let mut keys = [pg_sys::ScanKeyData::default(); 2];
        let [first, second] = &mut keys;
        pg_sys::ScanKeyInit(first, TABLE, equal, pg_sys::Oid::from(SAME_OID), pg_sys::Datum::from(table));
        pg_sys::ScanKeyInit(second, NUMBER, equal, pg_sys::Oid::from(SAME_INT2), pg_sys::Datum::from(number));
        let (index, now) = (pg_sys::Oid::from(BY_COLUMN), std::ptr::null_mut());
        let scan = pg_sys::systable_beginscan(defaults, index, true, now, 2, keys.as_mut_ptr());
        let tuple = pg_sys::systable_getnext(scan);
        let mut tree = std::ptr::null_mut();
        if !tuple.is_null() {
            let mut null = false;
            let text = pg_sys::heap_getattr(tuple, TREE, (*defaults).rd_att, &mut null);
            if let Some(text) = String::from_datum(text, null) {
                let text = std::ffi::CString::new(text).expect("a tree as text has no NUL");
                tree = pg_sys::stringToNode(text.as_ptr()).cast();
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(defaults, mode);
        tree
    }
}
