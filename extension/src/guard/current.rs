//! A row as it will be when all its upgrades are done: for readers who do not wait for that.

use super::known;
use super::row::{Applier, Row, Values};
use crate::catalog::{role, spi};
use crate::raise;
use migrator_core::failure::{Failure, code};
use migrator_core::ident::Ident;
use migrator_core::upgrade::{COLUMN, Marks};
use pgrx::{IntoDatum, pg_guard, pg_sys};

pgrx::extension_sql!(
    r#"
-- STABLE: what it gives follows the definitions. Not for parallel workers: what fails is undone by a subtransaction.
create function migrator.current("row" anyelement) returns anyelement
    stable strict parallel unsafe
    language c as 'MODULE_PATHNAME', 'migrator_current';
create function migrator.pending("row" anyelement) returns text[]
    stable strict parallel safe
    language c as 'MODULE_PATHNAME', 'migrator_pending';
"#,
    name = "current",
    requires = ["tables"]
);

#[unsafe(no_mangle)]
#[doc(hidden)]
pub extern "C" fn pg_finfo_migrator_current() -> &'static pg_sys::Pg_finfo_record {
    static V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

#[unsafe(no_mangle)]
#[doc(hidden)]
pub extern "C" fn pg_finfo_migrator_pending() -> &'static pg_sys::Pg_finfo_record {
    static V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

/// `migrator.current(row)`: the row with every pending upgrade applied, up to the first that fails or is left to application
/// code. Nothing is written.
///
/// # Safety
/// Called by PostgreSQL's function manager.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn migrator_current(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: one argument, which is not null, of a row type: rows() looks.
    unsafe {
        let argument = (*fcinfo).args.as_slice(1)[0].value;
        (*fcinfo).isnull = false;
        with_row(fcinfo, argument, |row, descriptor| {
            may_read(row.table())?;
            // A reader has nothing that was there before: the row stands for itself.
            row.apply()?;
            if row.changed.is_empty() {
                return Ok(argument);
            }
            let new = &mut row.new;
            let tuple = pg_sys::heap_form_tuple(descriptor, new.values.as_mut_ptr(), new.nulls.as_mut_ptr());
            Ok(pg_sys::heap_copy_tuple_as_datum(tuple, descriptor))
        })
        .unwrap_or_else(|failure| raise::raise(failure))
    }
}

/// `migrator.pending(row)`: the names of the upgrades that the row has not got, in order.
///
/// # Safety
/// Called by PostgreSQL's function manager.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn migrator_pending(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: as above.
    unsafe {
        let argument = (*fcinfo).args.as_slice(1)[0].value;
        (*fcinfo).isnull = false;
        with_row(fcinfo, argument, |row, _| {
            let marks: Marks = row.marks();
            let names: Vec<String> = row.names().filter(|name| !marks.has(name)).map(str::to_owned).collect();
            Ok(names.into_datum().expect("an array of names, perhaps empty"))
        })
        .unwrap_or_else(|failure| raise::raise(failure))
    }
}

unsafe fn with_row(
    fcinfo: pg_sys::FunctionCallInfo,
    argument: pg_sys::Datum,
    work: impl FnOnce(&mut Row<'_>, pg_sys::TupleDesc) -> Result<pg_sys::Datum, Failure>,
) -> Result<pg_sys::Datum, Failure> {
    // SAFETY: the argument's type is looked at before it is taken for a row; the relation is open, and locked as the query that
    // the row comes from has it locked, while it is used.
    unsafe {
        let of = pg_sys::get_fn_expr_argtype((*fcinfo).flinfo, 0);
        let table = pg_sys::get_typ_typrelid(of);
        if table == pg_sys::InvalidOid {
            raise::raise(not_a_row(of));
        }
        let mode = i32::try_from(pg_sys::AccessShareLock).expect("a small number");
        let table = pg_sys::relation_open(table, mode);
        let guard = known::trigger_of(table);
        let found = guard.and_then(|trigger| known::of(table, trigger));
        let name = || pgrx::name_data_to_str(&(*(*table).rd_rel).relname).to_owned();
        let Some(known) = found else { return Err(unregistered(&name(), guard.is_some())) };
        if !known.fits {
            return Err(Failure::new(code::UNDEFINED_COLUMN, format!("upgrades of table {} name a column that is not there", name()))
                .hint("Where it was renamed, give it its name back; or retire the upgrade. Rows that have all upgrades can be read, and the table itself."));
        }
        let header = pg_sys::pg_detoast_datum(argument.cast_mut_ptr()).cast::<pg_sys::HeapTupleHeaderData>();
        let mut tuple = pg_sys::HeapTupleData {
            t_len: u32::try_from(pgrx::varsize_4b(header.cast())).expect("a row is smaller than 1 GB"),
            t_self: pg_sys::ItemPointerData::default(),
            t_tableOid: (*table).rd_id,
            t_data: header,
        };
        let descriptor = (*table).rd_att;
        let values = Values::of(&raw mut tuple, descriptor);
        let before = Values { values: values.values.clone(), nulls: values.nulls.clone() };
        let mut row = Row::new(table, &known, Applier::Reader, Some(before), values);
        let outcome = work(&mut row, descriptor);
        pg_sys::relation_close(table, mode);
        outcome
    }
}

/// Expressions run as the table's owner, on whatever the caller passes: he has to be one of those who may read the table. The view
/// of the table is one of the invoker's rights: whoever may select from it what has to be computed may select the whole row.
///
/// # Safety
/// The relation is open.
unsafe fn may_read(table: pg_sys::Relation) -> Result<(), Failure> {
    // SAFETY: look-ups by oid in the system caches.
    unsafe {
        let (oid, caller) = ((*table).rd_id, pg_sys::GetUserId());
        let select = pg_sys::AclMode::from(pg_sys::ACL_SELECT);
        let granted = pg_sys::AclResult::ACLCHECK_OK;
        let all = pg_sys::AclMaskHow::ACLMASK_ALL;
        if pg_sys::pg_class_aclcheck(oid, caller, select) == granted
            || pg_sys::pg_attribute_aclcheck_all(oid, caller, select, all) == granted
        {
            return Ok(());
        }
        // PostgreSQL 14 has no views of the invoker's rights: there the right to the view is what its readers have.
        if cfg!(feature = "pg14") && may_read_view(oid, caller)? {
            return Ok(());
        }
        let name = pgrx::name_data_to_str(&(*(*table).rd_rel).relname).to_owned();
        Err(Failure::new(code::INSUFFICIENT_PRIVILEGE, format!("permission denied for table {name}"))
            .detail("migrator.current runs the expressions of upgrades as the table's owner, for those who may read all columns of the table.")
            .hint(format!(
                "Its owner can grant that: grant select on {} to …;",
                Ident::new(name.as_str())
            )))
    }
}

fn may_read_view(table: pg_sys::Oid, caller: pg_sys::Oid) -> Result<bool, Failure> {
    #[derive(serde::Deserialize)]
    struct View {
        may: bool,
    }
    let views: Vec<View> = role::as_extension(|| {
        spi::fetch_read_only(
            "select pg_catalog.has_table_privilege($2, c.oid, 'select') as may from migrator.upgraded u \
             join pg_catalog.pg_namespace n on n.nspname = u.view_schema join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = u.view_name \
               and c.relkind = 'v' and c.relowner = (select t.relowner from pg_catalog.pg_class t where t.oid = u.relation) \
             where u.relation = $1",
            &[table.into(), caller.into()],
        )
    })?;
    Ok(views.iter().any(|view| view.may))
}

fn not_a_row(of: pg_sys::Oid) -> Failure {
    let name = crate::catalog::expression::type_text(of.to_u32(), -1);
    Failure::new(code::WRONG_OBJECT_TYPE, format!("a value of type {name} is not a row of a table"))
        .hint("Pass the row itself: select migrator.current(t) from some_table t;")
}

fn unregistered(table: &str, guarded: bool) -> Failure {
    if guarded {
        return Failure::new(
            code::UNDEFINED_COLUMN,
            format!("table {table} has not the column {COLUMN} any more, of type text[], in which its upgrades' names were"),
        )
        .hint("Where it was renamed, give it its name back; where it was dropped, one that is added does not tell which rows are upgraded. select * from migrator.upgrades; says what to do.");
    }
    Failure::new(code::UNDEFINED_OBJECT, format!("table {table} has no upgrades"))
        .hint("Register one with migrator.register_upgrade; select * from migrator.upgrades; lists what there is.")
}
