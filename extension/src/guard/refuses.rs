//! What may refuse a derived value behind the guard's back: indexes, foreign keys and policies, as the table has them now. The guard
//! can try CHECK and NOT NULL beforehand; these it cannot, so where one of them may refuse a value, batches derive it, which may
//! fail. Nor does a new row move to another partition once triggers were fired; a partition key is part of every unique key.

use super::known;
use crate::catalog::bulk::attribute;
use crate::catalog::walk::Found;
use migrator_core::ident::Ident;
use migrator_core::upgrade::COLUMN;
use pgrx::{PgList, pg_sys};

/// Bytes of the columns of one index, up to which every row fits: btree and GIN take a third of a page, 2704 bytes with all that
/// belongs to the entry.
const FITS: usize = 2000;
/// pg_am.oid
const HASH: u32 = 405;
const GIN: u32 = 2742;
/// pg_opfamily.oid of GIN's array_ops.
const ARRAY_OPS: u32 = 2745;
/// pg_proc.oid of what finds names in an array: array_eq, array_ne, arrayoverlap, arraycontains, arraycontained, cardinality, texteq,
/// textne; boolne and booleq for those who compare the answer.
const OF_NAMES: [u32; 10] = [744, 390, 2747, 2748, 2749, 3179, 67, 157, 84, 60];
/// FirstNormalObjectId (access/transam.h): below it is what PostgreSQL itself brings.
pub const FIRST_OF_OTHERS: u32 = 16_384;

// pgrx does not bind it (catalog/partition.h). The same in PostgreSQL 14 to 18.
unsafe extern "C-unwind" {
    fn get_partition_ancestors(table: pg_sys::Oid) -> *mut pg_sys::List;
}

/// What a table may refuse of an upgrade's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// Nothing that the guard cannot try.
    None,
    /// Values that are too long.
    Long,
    /// Values, whatever they are like.
    Any,
}

/// What a table, if it is still there, may refuse of the columns of these names.
pub fn refusal(table: pg_sys::Oid, columns: &[&Ident]) -> Refusal {
    let mode = i32::try_from(pg_sys::AccessShareLock).expect("a small number");
    // SAFETY: opened and closed here; an error ends the transaction and with it the lock.
    unsafe {
        let table = pg_sys::try_relation_open(table, mode);
        if table.is_null() {
            return Refusal::None;
        }
        let row = (*table).rd_att;
        let places: Vec<usize> = columns.iter().filter_map(|column| known::place(row, column)).collect();
        let found = of(table, &places);
        pg_sys::relation_close(table, mode);
        match found {
            Refusals { any: true, .. } => Refusal::Any,
            Refusals { long, .. } if long.is_empty() => Refusal::None,
            _ => Refusal::Long,
        }
    }
}

/// What a table's indexes, foreign keys and policies say of some of its columns.
pub struct Refusals {
    /// A value may be refused, whatever it is like.
    pub any: bool,
    /// Lists of columns of which too long values are refused; places from 0.
    pub long: Vec<Vec<usize>>,
}

/// Of the columns at these places, of the column of names, which is written with them, and of generated columns that are computed
/// from any of these.
///
/// # Safety
/// The relation is open and locked, at least as a query locks it.
pub unsafe fn of(table: pg_sys::Relation, outputs: &[usize]) -> Refusals {
    let mut found = Refusals { any: false, long: vec![] };
    // SAFETY: the lists are copies of the relation cache's; an index of a locked table cannot be dropped.
    unsafe {
        let names = known::place((*table).rd_att, &Ident::from(COLUMN));
        let outputs = Outputs::of(table, &outputs.iter().copied().chain(names).collect::<Vec<_>>());
        if outputs.all.is_empty() {
            return found;
        }
        if by_policy(table, &outputs) || above(table).into_iter().any(|parent| by_policy_of(parent, table, &outputs)) {
            found.any = true;
            return found;
        }
        let keys = PgList::<pg_sys::ForeignKeyCacheInfo>::from_pg(pg_sys::RelationGetFKeyList(table));
        found.any = keys.iter_ptr().any(|key| {
            let columns = &(&(*key).conkey)[..usize::try_from((*key).nkeys).unwrap_or(0)];
            columns.iter().any(|number| outputs.have(*number))
        });
        let indexes = PgList::<pg_sys::Oid>::from_pg(pg_sys::RelationGetIndexList(table));
        let mode = i32::try_from(pg_sys::AccessShareLock).expect("a small number");
        for index in indexes.iter_oid() {
            let index = pg_sys::index_open(index, mode);
            look(table, index, &outputs, &mut found);
            pg_sys::index_close(index, mode);
        }
    }
    found
}

unsafe fn look(table: pg_sys::Relation, index: pg_sys::Relation, outputs: &Outputs, found: &mut Refusals) {
    // SAFETY: an open index; pg_index as the relation cache keeps it, whose indkey has indnatts places.
    unsafe {
        let form = &*(*index).rd_index;
        let numbers = form.indkey.values.as_slice(usize::try_from(form.indnatts).unwrap_or(0));
        let keys = &numbers[..usize::try_from(form.indnkeyatts).unwrap_or(0)];
        let expressions = pg_sys::RelationGetIndexExpressions(index).cast::<pg_sys::Node>();
        let predicate = pg_sys::RelationGetIndexPredicate(index).cast::<pg_sys::Node>();
        let families = std::slice::from_raw_parts((*index).rd_opfamily, keys.len());
        if mentions(expressions, &outputs.all) || mentions(predicate, &outputs.all) {
            // One by which rows are found that lack an upgrade. A row that comes into it has to fit it.
            let by_names = [expressions, predicate].into_iter().all(|tree| asks_for_names(tree, outputs));
            let short = |place| (*attribute((*index).rd_att, place)).attlen > 0;
            let plain = !form.indisunique
                && !form.indisexclusion
                && families.iter().all(|family| family.to_u32() < FIRST_OF_OTHERS)
                && (0..numbers.len()).all(short);
            found.any |= !(by_names && plain);
            return;
        }
        if !numbers.iter().any(|number| outputs.have(*number)) {
            return;
        }
        let in_key = keys.iter().any(|number| outputs.have(*number));
        if in_key && (form.indisunique || form.indisexclusion) {
            found.any = true;
            return;
        }
        if families.iter().any(|family| family.to_u32() >= FIRST_OF_OTHERS) {
            found.any = true;
            return;
        }
        // A hash is a number; GIN cuts json and text searches into short pieces, arrays into their elements, and our names are short.
        let (method, row) = ((*(*index).rd_rel).relam.to_u32(), (*table).rd_att);
        let counts = |at: usize, place: usize| match method {
            HASH => false,
            GIN => families.get(at).is_some_and(|family| family.to_u32() == ARRAY_OPS) && Some(place) != outputs.names,
            _ => true,
        };
        let places =
            numbers.iter().enumerate().filter_map(|(at, number)| Some((at, usize::try_from(*number - 1).ok()?)));
        let long: Vec<usize> = places
            .filter(|(at, place)| (*attribute(row, *place)).attlen < 0 && counts(*at, *place))
            .map(|(_, place)| place)
            .collect();
        if !long.iter().any(|place| outputs.all.contains(place)) {
            return;
        }
        // How long a generated value is shows only when it is there, which is after the guard.
        if long.iter().any(|place| is_generated(table, *place)) {
            found.any = true;
            return;
        }
        found.long.push(long);
    }
}

/// Whether a CHECK, or NOT NULL of a generated column, looks at the column at this place.
///
/// # Safety
/// The relation is open.
pub unsafe fn is_checked(table: pg_sys::Relation, place: usize) -> bool {
    // SAFETY: the relation cache's own entry, whose constraints are trees as text.
    unsafe {
        let Some(constraints) = (*(*table).rd_att).constr.as_ref() else { return false };
        let all = Outputs::of(table, &[place]).all;
        let checks = (0..usize::from(constraints.num_check)).map(|number| &*constraints.check.add(number));
        all.len() > 1 || checks.into_iter().any(|check| mentions(pg_sys::stringToNode(check.ccbin).cast(), &all))
    }
}

/// A row that a policy does not let its writer write, or see again, fails his statement. Whom a policy is for does not count: who
/// will write is not known.
unsafe fn by_policy(table: pg_sys::Relation, outputs: &Outputs) -> bool {
    // SAFETY: the relation cache's own list; it has one only while row-level security is on.
    unsafe {
        let Some(security) = (*table).rd_rsdesc.as_ref() else { return false };
        let policies = PgList::<pg_sys::RowSecurityPolicy>::from_pg(security.policies);
        policies.iter_ptr().any(|policy| {
            let policy = &*policy;
            // What a subquery reads is not seen from outside.
            policy.hassublinks
                || mentions(policy.qual.cast(), &outputs.all)
                || mentions(policy.with_check_qual.cast(), &outputs.all)
        })
    }
}

/// Whether an expression reads no output but the column of names, and that with functions only which fail for no array of texts.
unsafe fn asks_for_names(tree: *mut pg_sys::Node, outputs: &Outputs) -> bool {
    let values: Vec<usize> = outputs.all.iter().copied().filter(|place| Some(*place) != outputs.names).collect();
    let mut found = Found::default();
    found.walk(tree);
    // SAFETY: the caller's tree.
    let of_names = unsafe { !mentions(tree, &values) };
    of_names && found.refused.is_none() && found.functions.iter().all(|function| OF_NAMES.contains(function))
}

/// The tables that a table is a partition of, the nearest first. Whoever writes a row through one of them, as nearly everybody does,
/// is subject to that one's policies; they are tried on the partition's row, behind the guard, and are not the partition's own.
///
/// # Safety
/// The relation is open.
pub unsafe fn above(table: pg_sys::Relation) -> Vec<pg_sys::Oid> {
    // SAFETY: the relation cache's own entry; the list is made for us.
    unsafe {
        if !(*(*table).rd_rel).relispartition {
            return vec![];
        }
        let oid = (*table).rd_id;
        let parents = pg_sys::ffi::pg_guard_ffi_boundary(|| get_partition_ancestors(oid));
        PgList::<pg_sys::Oid>::from_pg(parents).iter_oid().collect()
    }
}

fn has_row_security(table: pg_sys::Oid) -> bool {
    // SAFETY: a tuple of the system cache, released after its form was read.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::RELOID as i32, pg_sys::Datum::from(table));
        if tuple.is_null() {
            return false;
        }
        let has = (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>()).relrowsecurity;
        pg_sys::ReleaseSysCache(tuple);
        has
    }
}

/// Likewise of a table above, whose columns of the same names are meant.
///
/// Whoever writes through it has it locked already. One who writes to the partition itself has not, and would wait for somebody who
/// is changing it: so it is opened only if there may be policies, which is seen without a lock. Row-level security that is switched on
/// makes everything be read again when it is committed.
unsafe fn by_policy_of(parent: pg_sys::Oid, table: pg_sys::Relation, outputs: &Outputs) -> bool {
    let mode = i32::try_from(pg_sys::AccessShareLock).expect("a small number");
    // SAFETY: opened and closed here; places of columns of the caller's relation.
    unsafe {
        if !has_row_security(parent) {
            return false;
        }
        let parent = pg_sys::try_relation_open(parent, mode);
        if parent.is_null() {
            return false;
        }
        let name = |place: &usize| Ident::from(pgrx::name_data_to_str(&(*attribute((*table).rd_att, *place)).attname));
        let places: Vec<usize> =
            outputs.all.iter().filter_map(|place| known::place((*parent).rd_att, &name(place))).collect();
        let found = by_policy(parent, &Outputs::of(parent, &places));
        pg_sys::relation_close(parent, mode);
        found
    }
}

/// Whether an expression, or a list of them, reads one of the columns, or the whole row.
///
/// # Safety
/// A tree over one table, or NULL.
pub unsafe fn mentions(tree: *mut pg_sys::Node, outputs: &[usize]) -> bool {
    // SAFETY: pull_varattnos() walks any tree, NULL included; an index's expressions are over range table entry 1.
    unsafe {
        let mut numbers: *mut pg_sys::Bitmapset = std::ptr::null_mut();
        pg_sys::pull_varattnos(tree, 1, &raw mut numbers);
        let has = |number: i32| pg_sys::bms_is_member(number - pg_sys::FirstLowInvalidHeapAttributeNumber, numbers);
        has(0) || outputs.iter().any(|place| i32::try_from(*place).is_ok_and(|place| has(place + 1)))
    }
}

/// Places of columns, from 0: outputs, and what is generated from them.
struct Outputs {
    all: Vec<usize>,
    /// The column of names.
    names: Option<usize>,
}

impl Outputs {
    unsafe fn of(table: pg_sys::Relation, outputs: &[usize]) -> Self {
        let mut all = outputs.to_vec();
        // SAFETY: the descriptor of an open relation; build_column_default() gives a new tree of the column's own expression, over range
        // table entry 1 as an index's. Nothing of it is run.
        unsafe {
            let count = usize::try_from((*(*table).rd_att).natts).unwrap_or(0);
            for place in (0..count).filter(|place| is_generated(table, *place)) {
                let number = i32::try_from(place).expect("a table's columns") + 1;
                if mentions(pg_sys::build_column_default(table, number), outputs) {
                    all.push(place);
                }
            }
        }
        // SAFETY: the caller's open relation.
        let names = unsafe { known::place((*table).rd_att, &Ident::from(COLUMN)) };
        Self { all, names }
    }

    fn have(&self, number: i16) -> bool {
        usize::try_from(number - 1).is_ok_and(|place| self.all.contains(&place))
    }
}

/// Whether the column at this place is computed from others.
///
/// # Safety
/// The relation is open.
pub unsafe fn is_generated(table: pg_sys::Relation, place: usize) -> bool {
    // SAFETY: a column of an open relation.
    unsafe {
        let column = &*attribute((*table).rd_att, place);
        !column.attisdropped && column.attgenerated != 0
    }
}

impl Refusals {
    /// Whether an index may find these values too long.
    ///
    /// # Safety
    /// The values of a row of the table.
    pub unsafe fn too_long(&self, values: &[pg_sys::Datum], nulls: &[bool]) -> bool {
        let length = |place: &usize| {
            if nulls[*place] {
                return 0;
            }
            // SAFETY: a value of a column of variable length; its length is told by the header, nothing is fetched.
            unsafe { pg_sys::toast_raw_datum_size(values[*place]) }
        };
        self.long.iter().any(|places| places.iter().map(length).sum::<usize>() > FITS)
    }
}
