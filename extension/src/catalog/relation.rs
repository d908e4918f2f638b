//! What the catalog says of a relation.

use crate::catalog::spi;
use migrator_core::failure::{Failure, code};
use migrator_core::ident::Name;
use pgrx::pg_sys;
use serde::Deserialize;

/// A table as it is now. Names change under us (a swap moves tables), oids do not.
#[derive(Debug, Clone, Deserialize)]
pub struct Relation {
    /// pg_class.oid
    pub oid: u32,
    /// Current schema and name.
    #[serde(flatten)]
    pub name: Name,
    /// Owner's oid.
    pub owner: u32,
    /// relkind
    pub kind: String,
    /// relpersistence
    pub persistence: String,
    /// relfilenode: changes when the table is rewritten or truncated; 0 for a partitioned table.
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
    pub fn find(oid: u32) -> Result<Option<Relation>, Failure> {
        spi::fetch_optional(
            "select c.oid::pg_catalog.int8 as oid, n.nspname as schema, c.relname as name, c.relowner::pg_catalog.int8 as owner, \
             c.relkind as kind, c.relpersistence as persistence, coalesce(pg_catalog.pg_relation_filenode(c.oid), 0)::pg_catalog.int8 as filenode \
             from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.oid = $1",
            &[pg_sys::Oid::from(oid).into()],
        )
    }

    /// Owner as PostgreSQL's type.
    pub fn owner(&self) -> pg_sys::Oid {
        pg_sys::Oid::from(self.owner)
    }
}
