//! Walking a table by its key: types and operators of the key's columns, and under which settings keys become text.

use super::table::Upgraded;
use crate::catalog::settings::AS_TEXT;
use crate::catalog::{definition, role, spi};
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Name, plain};
use migrator_core::upgrade::sweep::{Key, Table};
use pgrx::datum::DatumWithOid;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Plans that go by the index, whatever the statistics of a table say that is being rewritten.
const BY_INDEX: [(&str, &str); 5] = [
    ("enable_seqscan", "off"),
    ("enable_sort", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("enable_bitmapscan", "off"),
];

/// The key of a table, ready for SQL text.
pub struct Keyset<'a> {
    table: &'a Upgraded,
    pub key: Vec<Key>,
    deferrable: Vec<Deferrable>,
}

/// A constraint, or a constraint trigger, that may be checked at the end of the transaction.
#[derive(Deserialize)]
struct Deferrable {
    #[serde(flatten)]
    name: Name,
    deferred: bool,
}

impl<'a> Keyset<'a> {
    /// The key as the table has it now.
    pub fn of(table: &'a Upgraded) -> Result<Self, Failure> {
        let columns = definition::columns(table.relation.oid)?;
        let key = table
            .key
            .iter()
            .map(|name| {
                let column = columns.iter().find(|column| column.name == *name);
                column
                    .map(|column| Key {
                        name: column.name.clone(),
                        type_name: column.type_name.clone(),
                        operators: column.operators.clone(),
                    })
                    .ok_or_else(|| gone(table, name.as_str()))
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { table, key, deferrable: deferrable(table)? })
    }

    /// For the texts of `core`.
    pub fn table(&self) -> Table<'_> {
        let one_heap = self.table.relation.kind == "r";
        Table { name: &self.table.relation.name, key: &self.key, one_heap }
    }

    /// Runs a query by the index as the table's owner, with keys as text.
    pub fn query<T: DeserializeOwned>(&self, sql: &str, args: &[DatumWithOid<'_>]) -> Result<Vec<T>, Failure> {
        self.table.as_owner(&[], || {
            role::with_settings(&AS_TEXT, || role::with_settings(&BY_INDEX, || spi::fetch(sql, args)))
        })
    }

    /// Runs a batch's statement as the owner, under the settings of the expressions that it applies, with so much time for each lock.
    pub fn write_within<T: DeserializeOwned>(
        &self,
        lock_timeout: &str,
        settings: &[(String, String)],
        sql: &str,
        args: &[DatumWithOid<'_>],
    ) -> Result<T, Failure> {
        self.checked_at_once(|| {
            self.table.as_owner(settings, || {
                role::with_settings(&[("lock_timeout", lock_timeout)], || {
                    role::with_settings(&BY_INDEX, || spi::fetch_one(sql, args))
                })
            })
        })
    }

    /// Runs a statement with none of the table's constraints deferred. "cannot fire deferred trigger within security-restricted
    /// operation" (trigger.c): as the owner nothing can be put off to the end of the transaction; and a row that breaks a
    /// constraint is found in its batch, and not when everything is to be committed.
    fn checked_at_once<T>(&self, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        let set = |names: Vec<String>, when: &str| match names.as_slice() {
            [] => Ok(0),
            names => spi::execute(&format!("set constraints {} {when}", names.join(", ")), &[]),
        };
        let all = self.deferrable.iter();
        set(all.clone().map(|constraint| constraint.name.to_string()).collect(), "immediate")?;
        let done = work()?;
        set(
            all.filter(|constraint| constraint.deferred).map(|constraint| constraint.name.to_string()).collect(),
            "deferred",
        )?;
        Ok(done)
    }
}

fn deferrable(table: &Upgraded) -> Result<Vec<Deferrable>, Failure> {
    spi::fetch(
        "select distinct n.nspname as schema, k.conname as name, k.condeferred as deferred \
         from pg_catalog.pg_constraint k join pg_catalog.pg_namespace n on n.oid = k.connamespace \
         where k.condeferrable and (k.conrelid = $1 or k.confrelid = $1 \
           or k.conrelid in (select t.relid from pg_catalog.pg_partition_tree($1::pg_catalog.oid::pg_catalog.regclass) t))",
        &[pgrx::pg_sys::Oid::from(table.relation.oid).into()],
    )
}

fn gone(table: &Upgraded, column: &str) -> Failure {
    Failure::new(
        code::UNDEFINED_COLUMN,
        format!("key column {} of table {} is not there any more", plain(column), table.relation.name.plain()),
    )
    .detail("Rows cannot be found by their key. Nothing was changed.")
    .hint("Bring the column back; or retire the table's upgrades and register them anew.")
}
