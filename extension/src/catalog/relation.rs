//! What the catalog says of a relation.

use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Ident, Name, literal};
use pgrx::pg_sys;
use std::ffi::{CStr, CString, c_char};

const RELOID: i32 = pg_sys::SysCacheIdentifier::RELOID as i32;

/// A table as it is now. Names change under us (a swap moves tables), oids do not.
#[derive(Debug, Clone)]
pub struct Relation {
    /// pg_class.oid
    pub oid: u32,
    /// Current schema and name.
    pub name: Name,
    /// Owner's oid.
    pub owner: u32,
    /// relkind
    pub kind: String,
    /// relpersistence
    pub persistence: String,
    /// relfilenode: changes when the table is rewritten or truncated; 0 for a partitioned table, which has no file.
    pub filenode: u32,
}

impl Relation {
    /// The relation with this oid.
    pub fn get(oid: u32) -> Result<Relation, Failure> {
        Self::find(oid)?.ok_or_else(|| {
            Failure::new(code::UNDEFINED_OBJECT, format!("there is no relation with oid {oid}"))
                .hint("It was dropped meanwhile. Call migrator.cancel for its change; select * from migrator.status shows it.")
        })
    }

    /// The relation with this oid, if it exists.
    ///
    /// From the system cache, brought up to date first: this is asked at every turn, under the lock of a swap too.
    pub fn find(oid: u32) -> Result<Option<Relation>, Failure> {
        let key = pg_sys::Datum::from(pg_sys::Oid::from(oid));
        // SAFETY: SearchSysCache1() and what it returns, as lsyscache.c uses them; strings are copied before the
        // tuple is released.
        unsafe {
            pg_sys::AcceptInvalidationMessages();
            let tuple = pg_sys::SearchSysCache1(RELOID, key);
            if tuple.is_null() {
                return Ok(None);
            }
            let class = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>();
            let schema = pg_sys::get_namespace_name(class.relnamespace);
            let found = (!schema.is_null()).then(|| Relation {
                oid,
                name: Name::new(text(schema), text(class.relname.data.as_ptr())),
                owner: class.relowner.to_u32(),
                kind: letter(class.relkind),
                persistence: letter(class.relpersistence),
                filenode: class.relfilenode.to_u32(),
            });
            pg_sys::ReleaseSysCache(tuple);
            Ok(found)
        }
    }

    /// Its name as the views of upgrades have it, as a literal to compare with: keywords are quoted there.
    pub fn as_shown(&self) -> String {
        let quoted = |name: &Ident| {
            let name = CString::new(name.as_str()).expect("a name of the catalog has no NUL");
            // SAFETY: returns its argument, or a string of the current memory context; copied at once.
            unsafe { CStr::from_ptr(pg_sys::quote_identifier(name.as_ptr())) }.to_string_lossy().into_owned()
        };
        literal(&format!("{}.{}", quoted(&self.name.schema), quoted(&self.name.name)))
    }

    /// Owner as PostgreSQL's type.
    pub fn owner(&self) -> pg_sys::Oid {
        pg_sys::Oid::from(self.owner)
    }
}

unsafe fn text(name: *const c_char) -> String {
    // SAFETY: the caller's: a NUL-terminated string. Names are UTF-8 in the databases that the extension runs in.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

fn letter(code: c_char) -> String {
    char::from(code.to_ne_bytes()[0]).to_string()
}
