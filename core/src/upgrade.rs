//! Upgrades of rows: what the guard knows of a table's upgrades, and what it does with a row that is written.
//!
//! The definitions travel in the arguments of the guard's trigger. So whoever has a table open has them, in every session
//! and for every role, as of its own transaction, and no table is read while rows are written.

pub mod choose;
mod decide;
mod marks;
mod select;
pub mod sweep;

pub use decide::{Act, Row, Written, decide};
pub use marks::{Marks, OUTDATED};
pub use select::{all_marked, pending};

use crate::ident::Ident;
use serde::{Deserialize, Serialize};

/// The column in which a row remembers its upgrades.
pub const COLUMN: &str = "applied_upgrades";

/// What the guard of one table knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// The table's key, by which rows that fail are named.
    pub key: Vec<Ident>,
    /// The live upgrades, in order.
    pub upgrades: Vec<Upgrade>,
    /// Names that are taken off a row when it is written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<String>,
    /// Where the column of names is in the table, as it was noted of the live upgrades (`pg_attribute.attnum`): one that comes
    /// behind it when it was dropped says nothing of the rows that were there. None where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names_at: Option<i16>,
    /// Lists of settings (name, value) under which expressions are evaluated; an upgrade names its list by number.
    pub settings: Vec<Vec<(String, String)>>,
}

/// One upgrade of a table's rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgrade {
    /// `migrator.upgrade.id`
    pub id: i64,
    /// What a row remembers.
    pub name: String,
    /// Column → expression over the row `l`, in the order of the columns; empty for an upgrade by application code.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<(Ident, String)>,
    /// Columns that the outputs are made from.
    pub inputs: Vec<Ident>,
    /// Columns that application code writes; those of an expression are in `set`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<Ident>,
    /// Its place in `Definition::settings`.
    #[serde(default)]
    pub settings: usize,
    /// An output is among its own inputs, and whoever registered it says that nobody writes the old shape any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_place: bool,
    /// Of one in place, where its outputs are in the row (`pg_attribute.attnum`), in their order: what is written to one while it has
    /// another name is in the new shape all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub numbers: Vec<i16>,
    /// A derived value could make an application's write fail (a unique key, a foreign key, a policy): only batches derive it.
    /// Not part of what is registered: it follows from the table as it is when a row is written.
    #[serde(skip)]
    pub deferred: bool,
}

impl Upgrade {
    /// Application code does it; nothing behind it is applied to a row before its name is there.
    pub fn is_application(&self) -> bool {
        self.set.is_empty()
    }

    /// Its outputs are made anew from their inputs, so that nothing is lost with those that are there.
    pub fn is_derived(&self) -> bool {
        !self.is_application() && !self.in_place
    }

    /// The columns that it writes.
    pub fn outputs(&self) -> impl Iterator<Item = &Ident> {
        self.set.iter().map(|(column, _)| column).chain(&self.outputs)
    }
}
