//! Upgrades by application code: rows are handed out with a lease, and what comes back is written.
//!
//! Between the two nothing is held: no lock, no transaction, no session. The token is all that a worker needs, so it works through
//! any driver and any pooler; and a worker that dies leaves a lease that runs out.

mod lease;
mod mark;
mod select;

pub use mark::{Answer, mark};
pub use select::{Handed, select};

use super::install;
use super::keyset::Keyset;
use super::table::{self, Registered, Upgraded};
use crate::catalog::relation::Relation;
use crate::catalog::{role, spi};
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{literal, plain};
use migrator_core::upgrade::Upgrade;
use migrator_core::upgrade::sweep::Wanted;
use pgrx::pg_sys;
use serde::Deserialize;
use serde_json::{Map, Value};

/// A row's key, as texts in the order of the key's columns.
pub type Key = Vec<String>;

/// One upgrade of a table, as application code works on it.
pub struct Desk<'a> {
    table: &'a Upgraded,
    registered: Registered,
    upgrade: Upgrade,
    earlier: Vec<Upgrade>,
    keyset: Keyset<'a>,
}

impl<'a> Desk<'a> {
    /// The upgrade of this name that is not gone.
    pub fn of(table: &'a Upgraded, name: &str) -> Result<Self, Failure> {
        let registered = table.named(name)?;
        let live = table.definition()?.upgrades;
        let place = live.iter().position(|upgrade| upgrade.id == registered.id);
        let upgrade = Upgrade { id: registered.id, ..registered.definition.clone() };
        let earlier = place.map_or_else(Vec::new, |place| live[..place].to_vec());
        Ok(Self { table, registered, upgrade, earlier, keyset: Keyset::of(table)? })
    }

    fn wanted(&self, applied: bool) -> Wanted<'_> {
        Wanted { upgrade: &self.upgrade, earlier: &self.earlier, applied }
    }

    fn relation(&self) -> pg_sys::Oid {
        pg_sys::Oid::from(self.table.relation.oid)
    }

    /// As everywhere: an object of column → text.
    fn name(&self, key: &[String]) -> Value {
        let columns = self.table.key.iter().map(|column| column.as_str().to_owned());
        Value::Object(columns.zip(key.iter().cloned().map(Value::String)).collect::<Map<_, _>>())
    }

    fn key(&self, name: &Value) -> Key {
        let text = |column: &str| name[column].as_str().unwrap_or_default().to_owned();
        self.table.key.iter().map(|column| text(column.as_str())).collect()
    }

    /// Refuses to work where writes escape the guard: what was handed out could be written over unseen, and a row would keep
    /// the name of an upgrade that its values do not fit.
    fn guarded(&self) -> Result<(), Failure> {
        let Some(failure) = install::is_unguarded(self.table)? else { return Ok(()) };
        let call = format!("select migrator.resume_upgrades({});", literal(&self.table.relation.name.plain()));
        let hint = failure.hint.clone().unwrap_or_default();
        Err(failure
            .detail("No row is handed out or taken back until it is mended. Nothing was changed.")
            .hint(format!("{hint} {call}").trim()))
    }

    /// Refuses an upgrade that is retired: rows lose its name.
    fn live(&self) -> Result<(), Failure> {
        if self.registered.state != "retiring" {
            return Ok(());
        }
        let (name, table) = (plain(&self.registered.name), self.table.relation.name.plain());
        Err(Failure::new(code::NOT_IN_STATE, format!("upgrade {name} of table {table} is retired"))
            .detail("Rows lose its name. Nothing was changed.")
            .hint(format!(
                "Nothing is left to do for it; select * from migrator.upgrades where relation = {}; lists the others.",
                self.table.relation.as_shown()
            )))
    }
}

/// The table for a caller who may work on its rows. `work` runs as the extension.
pub fn enter<T>(oid: u32, work: impl FnOnce(Upgraded) -> Result<T, Failure>) -> Result<T, Failure> {
    let caller = role::caller();
    Upgraded::hold(oid);
    role::as_extension(|| {
        let table = Upgraded::get(oid)?;
        check_rights(&table.relation, caller)?;
        work(table)
    })
}

/// Whoever may read and write every row of the table himself may do so here: its owner, and a role that was granted SELECT and
/// UPDATE, unless policies hide rows from it.
fn check_rights(relation: &Relation, caller: pg_sys::Oid) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Facts {
        granted: bool,
        policies: bool,
    }
    let Err(refusal) = table::check_owner(relation, caller) else { return Ok(()) };
    let facts: Facts = spi::fetch_one(
        "select pg_catalog.has_table_privilege($2, c.oid, 'SELECT') and pg_catalog.has_table_privilege($2, c.oid, 'UPDATE') as granted, \
         c.relrowsecurity as policies from pg_catalog.pg_class c where c.oid = $1",
        &[pg_sys::Oid::from(relation.oid).into(), caller.into()],
    )?;
    match facts {
        Facts { granted: true, policies: false } => Ok(()),
        Facts { granted: true, policies: true } => Err(refusal.detail(
            "Row-level security may hide rows of it from the caller, and here all are handed out. Nothing was changed.",
        )),
        Facts { granted: false, .. } => Err(Failure::new(
            code::INSUFFICIENT_PRIVILEGE,
            format!("must be owner of table {0}, or have SELECT and UPDATE on {0}", relation.name.plain()),
        )
        .detail("Nothing was changed.")
        .hint(format!("grant select, update on {} to {};", relation.name, role::name(caller)?))),
    }
}
