//! What a change does to each column and key, worked out once by `create_shadow` and stored with it.
//!
//! Two shapes of one row appear in every expression, under fixed aliases: `l`, the row as the live table
//! had it when the change was created (the old shape), and `s`, the row as the shadow has it (the new
//! shape). After a swap the *old shape* lives in the backup; the aliases stay with the shapes, so one text
//! serves both directions.

use crate::ident::Ident;
use serde::{Deserialize, Serialize};

/// Everything that the later steps need to know of a change. Stored as jsonb in `migrator.change.plan`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The columns of the shadow, generated ones included, in attribute order.
    pub new_columns: Vec<NewColumn>,
    /// The columns of the live table at `create_shadow`, generated ones included, in attribute order.
    pub old_columns: Vec<OldColumn>,
    /// The key by which rows of both shapes are matched.
    pub key: Vec<KeyColumn>,
    /// Settings that were in force when the change was created and are set for every statement that
    /// evaluates its expressions (TimeZone, DateStyle, search_path, …).
    pub settings: Vec<(String, String)>,
    /// Indexes and constraints of the shadow, in the order in which they are made after the copy.
    pub builds: Vec<Build>,
    /// CHECK (and, from 18, NOT NULL) constraints that rows of the live table may break: not on the shadow while rows
    /// are copied, added NOT VALID by the swap.
    #[serde(default)]
    pub unvalidated: Vec<Unvalidated>,
    /// What capture and the copy rely on: a fingerprint of the live table's columns; compared before each batch.
    pub structure: String,
    /// A fingerprint of the live table's indexes, constraints and defaults; compared before the swap, which would
    /// otherwise lose what was added meanwhile.
    #[serde(default)]
    pub definitions: String,
}

/// A constraint that was NOT VALID and stays so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unvalidated {
    /// Its name.
    pub name: Ident,
    /// What follows `add constraint NAME`: columns under their names in the shadow, ending in NOT VALID.
    pub definition: String,
    /// COMMENT ON CONSTRAINT
    pub comment: Option<String>,
}

/// One column of the shadow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewColumn {
    /// Name in the shadow.
    pub name: Ident,
    /// Type with modifier, qualified, as `format_type` gives it under an empty search_path.
    pub type_name: String,
    /// The type under all domains, without a modifier: a cast to it cuts nothing. None where each cast could, and in plans that were made before it was written down.
    #[serde(default)]
    pub bare_type: Option<String>,
    /// Stored or virtual generated: never written, by nobody.
    pub generated: bool,
    /// The column of the live table with the same history (matched by attnum), if any.
    pub old: Option<Ident>,
    /// Where its value comes from.
    pub source: Source,
    /// Whether the change brings it an upgrade of rows: one of its outputs, or the names of what a row has. These columns belong
    /// together, row by row, so their values are never put together from two rows.
    #[serde(default)]
    pub upgraded: bool,
}

/// Where the value of a column of the shadow comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum Source {
    /// The old column, unchanged in type: the same bytes.
    Same,
    /// An expression over `l`, not yet coerced to the column's type (INSERT does that by assignment,
    /// so that a value that does not fit fails instead of being cut). `given` is true where the user wrote it.
    Expression {
        /// Deparsed SQL, every column as `l."name"`, everything qualified.
        sql: String,
        /// Whether it was written by the user (`transform` or USING) rather than derived from a type change or a default.
        given: bool,
    },
    /// Only the shadow has it, with a constant for rows that exist (a default, frozen when the change was created; NULL without one).
    Constant {
        /// Deparsed SQL of the constant, `NULL` without a default.
        sql: String,
    },
    /// Generated from the other columns.
    Generated,
}

/// One column of the live table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OldColumn {
    /// Name in the live table.
    pub name: Ident,
    /// Type with modifier, qualified.
    pub type_name: String,
    /// As that of [`NewColumn`].
    #[serde(default)]
    pub bare_type: Option<String>,
    /// Stored or virtual generated.
    pub generated: bool,
    /// The column of the shadow with the same history, if any.
    pub new: Option<Ident>,
    /// The way back: an expression over `s`, not yet coerced to the column's type. None where the shadow
    /// has no such column and `reverse` names none.
    pub reverse: Option<String>,
    /// What a row that was inserted after the swap gets where `reverse` is None: the column's default, or `NULL`.
    pub otherwise: String,
}

impl OldColumn {
    /// Whether a row that goes back has in it what it has in the shadow's column.
    #[must_use]
    pub fn goes_back_as_it_is(&self) -> bool {
        self.new.as_ref().is_some_and(|new| self.reverse.as_deref() == Some(format!("s.{new}").as_str()))
    }
}

/// One column of the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyColumn {
    /// Name in the live table.
    pub old: Ident,
    /// Type there.
    pub old_type: String,
    /// Name in the shadow.
    pub new: Ident,
    /// Type there.
    pub new_type: String,
    /// Whether old and new values sort alike, so that a range of one is a range of the other.
    pub same_order: bool,
    /// Schema of the type's btree operators (`pg_catalog`, or where citext and the like live).
    #[serde(default = "pg_catalog")]
    pub operators: Ident,
}

fn pg_catalog() -> Ident {
    Ident::new("pg_catalog")
}

/// One index or constraint to be made on the shadow once its rows are there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// Name of the index, or of the constraint where there is no index.
    pub name: Ident,
    /// `create index …` (qualified), or the whole `alter table … add constraint …` for what cannot be made from an index.
    pub sql: String,
    /// `alter table … add constraint … using index …`, once the index is there.
    pub attach: Option<String>,
    /// Whether this build carries the key, without which catch-up would scan.
    pub is_key: bool,
    /// What hangs on it, to be run once it is there: comments, statistics targets, CLUSTER ON.
    #[serde(default)]
    pub also: Vec<String>,
}
