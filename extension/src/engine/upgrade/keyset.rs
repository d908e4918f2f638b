//! Walking a table by its key: types and operators of the key's columns, and under which settings keys become text.

use super::table::Upgraded;
use crate::catalog::settings::AS_TEXT;
use crate::catalog::{definition, role, spi};
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Name, plain};
use migrator_core::upgrade::sweep::{Key, Table};
use pgrx::JsonB;
use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::time::Duration;

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
    /// Tables whose checks may be put off by these: each that a constraint of one of these names is about.
    checked: Vec<pg_sys::Oid>,
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
        let deferrable = deferrable(table)?;
        let checked = if deferrable.is_empty() { vec![] } else { checked(&deferrable)? };
        Ok(Self { table, key, deferrable, checked })
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
    ///
    /// Who waits for a value that another session has written, or for a row that it refers to, holds rows that this session may
    /// come for. It would look for the deadlock when it has waited for `deadlock_timeout`, and be its victim: so we have given up by then.
    pub fn write_within<T: DeserializeOwned>(
        &self,
        patience: Duration,
        settings: &[(String, String)],
        sql: &str,
        args: &[DatumWithOid<'_>],
    ) -> Result<T, Failure> {
        // SAFETY: reads a setting of this process, in milliseconds.
        let timeout = u64::try_from(unsafe { pg_sys::DeadlockTimeout }).unwrap_or(0);
        let patience = patience.min(Duration::from_millis(timeout / 2)).max(Duration::from_millis(1));
        let lock_timeout = format!("{}ms", patience.as_millis());
        self.checked_at_once(|| {
            self.table.as_owner(settings, || {
                role::with_settings(&[("lock_timeout", &lock_timeout)], || {
                    role::with_settings(&BY_INDEX, || spi::fetch_one(sql, args))
                })
            })
        })
    }

    /// Runs a statement with none of the table's constraints deferred. "cannot fire deferred trigger within security-restricted
    /// operation" (trigger.c): as the owner nothing can be put off to the end of the transaction; and a row that breaks a
    /// constraint is found in its batch, and not when everything is to be committed.
    ///
    /// SET CONSTRAINTS runs at once what was put off before, as the current user, which is the extension's owner: the trigger
    /// functions of whoever calls us inside his transaction. And what it finds would be blamed on our rows. So nothing may be pending.
    fn checked_at_once<T>(&self, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        let set = |names: Vec<String>, when: &str| match names.as_slice() {
            [] => Ok(0),
            names => spi::execute(&format!("set constraints {} {when}", names.join(", ")), &[]),
        };
        // SAFETY: looks through the queue of this backend.
        if self.checked.iter().any(|table| unsafe { pg_sys::AfterTriggerPendingOnRel(*table) }) {
            return Err(self.pending());
        }
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

impl Keyset<'_> {
    fn pending(&self) -> Failure {
        let name = self.table.relation.name.plain();
        Failure::new(
            code::ACTIVE_TRANSACTION,
            format!("checks of table {name}, or of one beside it, were put off to the end of this transaction"),
        )
        .detail("What fails in them could not be told from what fails here. Nothing was changed.")
        .hint("Call it in a transaction of its own; or have them done first: set constraints all immediate;")
    }
}

/// SET CONSTRAINTS takes all constraints of a name in a schema, with those of partitions that belong to them.
fn checked(deferrable: &[Deferrable]) -> Result<Vec<pg_sys::Oid>, Failure> {
    #[derive(Deserialize)]
    struct Table {
        oid: u32,
    }
    let names: Vec<&Name> = deferrable.iter().map(|constraint| &constraint.name).collect();
    let tables: Vec<Table> = spi::fetch(
        "select distinct t.oid::pg_catalog.int8 as oid from (with recursive c as (select k.oid, k.conrelid, k.confrelid from pg_catalog.pg_constraint k \
             join pg_catalog.pg_namespace n on n.oid = k.connamespace \
             join pg_catalog.jsonb_to_recordset($1) as w (schema text, name text) on w.schema = n.nspname and w.name = k.conname \
           union select k.oid, k.conrelid, k.confrelid from pg_catalog.pg_constraint k join c on k.conparentid = c.oid) \
           select c.conrelid, c.confrelid from c) c, lateral (values (c.conrelid), (c.confrelid)) t (oid) where t.oid <> 0",
        &[JsonB(json!(names)).into()],
    )?;
    Ok(tables.into_iter().map(|table| pg_sys::Oid::from(table.oid)).collect())
}

fn deferrable(table: &Upgraded) -> Result<Vec<Deferrable>, Failure> {
    spi::fetch(
        "select distinct n.nspname as schema, k.conname as name, k.condeferred as deferred \
         from pg_catalog.pg_constraint k join pg_catalog.pg_namespace n on n.oid = k.connamespace \
         where k.condeferrable and (k.conrelid = $1 or k.confrelid = $1 \
           or k.conrelid in (select t.relid from pg_catalog.pg_partition_tree($1::pg_catalog.oid::pg_catalog.regclass) t))",
        &[pg_sys::Oid::from(table.relation.oid).into()],
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
