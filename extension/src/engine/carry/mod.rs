//! What hangs on a table's identity and has to hang on another table after a swap or a rollback.
//!
//! `gather` reads the catalog and writes nothing: it hands back the locks and the statements. The swap runs
//! them around its two SET SCHEMA. Both directions are the same work with front and rear exchanged.
//!
//! | what | how |
//! |---|---|
//! | views, rules of views | text read before the move, run again after it; dropped and created where column types change |
//! | foreign keys | dropped, added NOT VALID on the new front, validated after the commit |
//! | triggers | created on the new front, disabled on the old one |
//! | policies | created on the new front |
//! | owner, privileges | brought into line on the rear beforehand |
//! | comments, statistics targets, row security, replica identity, CLUSTER ON | on the rear beforehand, see `settings` |
//! | sequences of serial columns | the same object changes hands |
//! | sequences of identity columns | the value is handed over under the lock |
//! | statistics objects | a twin on the rear, exchanged by SET SCHEMA |

mod grants;
mod keys;
mod policies;
mod rights;
mod sequences;
mod settings;
mod statistics;
mod triggers;
mod views;

use crate::catalog::lock::{Mode, Wanted};
use crate::catalog::relation::Relation;
use crate::catalog::{dependants, fingerprint as digest};
use migrator_core::columns::Columns;
use migrator_core::failure::Failure;
use migrator_core::ident::{Ident, Name};
use migrator_core::plan::Plan;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

pub use migrator_core::sql::Direction;

/// One exchange of two tables, as it is about to happen.
#[derive(Debug, Clone, Copy)]
pub struct Swap<'a> {
    /// The table that the application uses now.
    pub front: &'a Relation,
    /// The table that it will use.
    pub rear: &'a Relation,
    /// What the change does to columns.
    pub plan: &'a Plan,
    /// Which of the two has the old shape.
    pub direction: Direction,
    /// `Carryover::kept` of the change's last swap or rollback.
    pub kept: Option<&'a Value>,
    /// The schema into which the front will be moved. The rear is moved into the front's.
    pub front_backup_schema: &'a str,
}

impl Swap<'_> {
    /// The name under which the application knows the table: the front's now, the rear's after the move.
    fn public_name(&self) -> &Name {
        &self.front.name
    }
}

/// One statement of the carry-over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Every name in it is qualified and quoted.
    pub sql: String,
    /// Who runs it: None for the extension's owner, otherwise this role, security-restricted.
    pub role: Option<u32>,
}

impl Statement {
    /// A statement of the extension's owner.
    pub fn new(sql: impl Into<String>) -> Self {
        Self { sql: sql.into(), role: None }
    }
}

/// Everything that a swap has to do besides moving the two tables.
#[derive(Debug, Clone, Default)]
pub struct Carryover {
    /// In the order in which they are taken: views outermost first, other tables by oid, front and rear, sequences.
    pub locks: Vec<Wanted>,
    /// On the rear, before any lock. May be run earlier too: what is done already is not gathered again.
    pub before_lock: Vec<Statement>,
    /// Under the locks, names as before the move.
    pub before_move: Vec<Statement>,
    /// Under the locks, with the rear under the front's name.
    pub after_move: Vec<Statement>,
    /// What the next swap or rollback of this change needs and cannot read from the catalog. To be stored with the change.
    pub kept: Value,
    /// Foreign keys that were valid and were added NOT VALID: (table, constraint), to be validated after the commit.
    /// The table as quoted, qualified SQL text, the constraint as its bare name.
    pub unvalidated: Vec<(String, String)>,
}

/// What one swap leaves for the next.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    /// Settings of the table that became the front, as they were then: what differs later was changed by somebody meanwhile.
    settings: BTreeMap<String, Option<String>>,
    /// Foreign keys that we added NOT VALID and that were valid before.
    pending: Vec<(String, String)>,
    /// Sequences that the front owned by a column that the rear has not, and that others use: (oid, column).
    unowned: Vec<(u32, Ident)>,
    /// Schemas of statistics objects that stayed behind with their table, by name.
    statistics: BTreeMap<String, Ident>,
}

/// The work in progress: what the parts of the carry-over add to.
struct Gathering<'a> {
    swap: &'a Swap<'a>,
    columns: Columns,
    /// What the last swap of this change left; None at the first.
    last: Option<Kept>,
    kept: Kept,
    views: Vec<Wanted>,
    tables: BTreeMap<u32, Mode>,
    sequences: BTreeMap<u32, Mode>,
    out: Carryover,
}

impl Gathering<'_> {
    fn before_lock(&mut self, sql: impl Into<String>) {
        self.out.before_lock.push(Statement::new(sql));
    }
    fn before_move(&mut self, sql: impl Into<String>) {
        self.out.before_move.push(Statement::new(sql));
    }
    fn after_move(&mut self, sql: impl Into<String>) {
        self.out.after_move.push(Statement::new(sql));
    }
    /// Whether this change was swapped before, so that the rear once was the front.
    fn again(&self) -> bool {
        self.last.is_some()
    }
    fn lock_table(&mut self, relation: u32, mode: Mode) {
        let held = self.tables.entry(relation).or_insert(mode);
        *held = (*held).max(mode);
    }
    fn lock_sequence(&mut self, relation: u32, mode: Mode) {
        let held = self.sequences.entry(relation).or_insert(mode);
        *held = (*held).max(mode);
    }
}

/// Reads the catalog and works out the carry-over. Fails, before anything is changed, where something cannot be
/// carried. Writes nothing, and keeps no lock.
///
/// Before the shadow has its indexes the statements would not run yet, but every refusal is already made: a call
/// right after the shadow was created is a full rehearsal.
pub fn gather(swap: &Swap<'_>) -> Result<Carryover, Failure> {
    let columns = match swap.direction {
        Direction::Forward => Columns::forward(swap.plan),
        Direction::Reverse => Columns::reverse(swap.plan),
    };
    dependants::inspect(swap.front, &columns)?;
    let last = swap.kept.and_then(|kept| serde_json::from_value(kept.clone()).ok());
    let mut gathering = Gathering {
        swap,
        columns,
        last,
        kept: Kept::default(),
        views: vec![],
        tables: BTreeMap::new(),
        sequences: BTreeMap::new(),
        out: Carryover::default(),
    };
    grants::gather(&mut gathering)?;
    settings::gather(&mut gathering)?;
    sequences::gather(&mut gathering)?;
    statistics::gather(&mut gathering)?;
    views::gather(&mut gathering)?;
    keys::gather(&mut gathering)?;
    triggers::gather(&mut gathering)?;
    policies::gather(&mut gathering)?;
    Ok(finish(gathering))
}

fn finish(gathering: Gathering<'_>) -> Carryover {
    let Gathering { swap, kept, views, mut tables, sequences, mut out, .. } = gathering;
    let ends = [swap.front.oid, swap.rear.oid];
    for end in ends {
        tables.remove(&end);
    }
    out.locks = views;
    let locked: Vec<u32> = out.locks.iter().map(|wanted| wanted.relation).collect();
    out.locks.extend(
        tables
            .into_iter()
            .filter(|(relation, _)| !locked.contains(relation))
            .map(|(relation, mode)| Wanted { relation, mode }),
    );
    out.locks.extend(ends.map(|relation| Wanted { relation, mode: Mode::AccessExclusive }));
    // After the table, as an INSERT takes them.
    out.locks.extend(sequences.into_iter().map(|(relation, mode)| Wanted { relation, mode }));
    out.kept = serde_json::to_value(kept).expect("strings and numbers are JSON");
    out
}

/// A digest of everything that `gather` reads of the front and its dependants. Equal digests before and after
/// the locks were granted mean that the gathered statements still say the truth.
pub fn fingerprint(front: u32) -> Result<String, Failure> {
    digest::of(front)
}
