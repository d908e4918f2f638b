//! What the extension says of upgrades of rows.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A row of `migrator.upgrades`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Upgrade {
    /// The table, as a person writes it.
    pub relation: String,
    /// Its name; unique within the table.
    pub name: String,
    /// Its place among the table's upgrades.
    pub ordinal: i64,
    /// `expression`, `function` or `application`.
    pub kind: String,
    /// `running`, `complete`, `retiring`, `retired`, or why it does not run: `paused`, `blocked`.
    pub state: String,
    /// 0 to 1.
    pub progress: Option<f64>,
    /// Rows that got it.
    pub rows_done: Option<i64>,
    /// Rows that lack it, estimated.
    pub rows_pending: Option<i64>,
    /// Rows that are set aside.
    pub failed: Option<i64>,
    /// How fast it goes.
    pub rows_per_second: Option<f64>,
    /// Time to go, as PostgreSQL writes it.
    pub eta: Option<String>,
    /// The same in seconds.
    pub eta_seconds: Option<f64>,
    /// Why nothing goes on just now.
    pub waits_for: Option<String>,
    /// What somebody should do next.
    pub next_step: Option<String>,
    /// When it was registered.
    pub registered_at: Option<String>,
    /// When every row had it.
    pub completed_at: Option<String>,
    /// The table change that brings it to the rows, while it does.
    #[serde(default)]
    pub change: Option<i64>,
    /// What else there is, and what a later version adds.
    #[serde(flatten)]
    pub more: Map<String, Value>,
    /// The oid that `relation` names now.
    #[serde(default, rename = "relation_oid", skip_serializing)]
    pub relation_oid: Option<i64>,
}

impl Upgrade {
    /// Whether somebody or something still has to do something for it.
    pub fn is_open(&self) -> bool {
        !matches!(self.state.as_str(), "complete" | "retired")
    }

    /// Rows that have it or will get it.
    pub fn rows_total(&self) -> Option<i64> {
        Some(self.rows_done?.saturating_add(self.rows_pending?))
    }

    /// All by which one notices that somebody decided something: registered, retired, paused, mended.
    pub fn mark(&self) -> Mark {
        (self.name.clone(), self.ordinal, self.state.clone(), self.registered_at.clone(), self.failed)
    }
}

/// See [`Upgrade::mark`].
pub type Mark = (String, i64, String, Option<String>, Option<i64>);

/// What one call of `migrator.step` did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeStep {
    /// `upgrading`, `verifying`, `cleaning`, `complete`, `paused`, `blocked` or `waiting`.
    pub state: String,
    /// Rows that it wrote, or looked at.
    pub rows: i64,
    /// Rows that it set aside.
    pub failed: i64,
    /// Nothing is left that a step could do.
    pub done: bool,
    /// How long to sleep before the next call.
    pub wait_ms: Option<i64>,
    /// Why.
    pub reason: Option<String>,
    /// SQL to run outside a transaction, beside the next calls.
    pub statement: Option<String>,
}

/// A row of `migrator.upgrade_failures`.
#[derive(Debug, Serialize, Deserialize)]
pub struct UpgradeFailure {
    /// The table.
    pub relation: String,
    /// The upgrade's name.
    pub upgrade: String,
    /// Column of the key → its value as text.
    pub key: Value,
    /// Why it failed.
    pub sqlstate: String,
    /// The server's words.
    pub message: String,
    /// The row as it was.
    pub row: Option<Value>,
    /// When it failed last.
    pub seen_at: Option<String>,
    /// How often.
    pub attempts: Option<i64>,
}

/// Which of a table's upgrades are meant.
#[derive(Debug, Clone, Copy, Default)]
pub struct UpgradeFilter<'a> {
    /// Of this table only.
    pub table: Option<i64>,
    /// Of this name only.
    pub name: Option<&'a str>,
}

/// A call that something is done for all upgrades of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpgradeOrder {
    /// Batches rest; writes go on being guarded.
    Pause,
    /// Batches go on.
    Resume,
    /// Every row is to be looked at again.
    Verify,
}

impl UpgradeOrder {
    /// The function's name.
    pub fn as_str(self) -> &'static str {
        match self {
            UpgradeOrder::Pause => "pause_upgrades",
            UpgradeOrder::Resume => "resume_upgrades",
            UpgradeOrder::Verify => "verify_upgrades",
        }
    }
}

/// Tables in the order in which they come, each with its upgrades. Those of a table that is gone are left out.
pub fn by_table(upgrades: &[Upgrade]) -> Vec<(i64, Vec<&Upgrade>)> {
    let mut tables: Vec<(i64, Vec<&Upgrade>)> = Vec::new();
    for upgrade in upgrades {
        let Some(oid) = upgrade.relation_oid else { continue };
        match tables.iter_mut().find(|(table, _)| *table == oid) {
            Some((_, of_table)) => of_table.push(upgrade),
            None => tables.push((oid, vec![upgrade])),
        }
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn upgrades_are_sorted_by_table_and_keep_what_is_not_known_of_them() {
        let upgrade = |name: &str, oid: Option<i64>| -> Upgrade {
            serde_json::from_value(json!({"relation": "t", "name": name, "ordinal": 1, "kind": "expression",
                "state": "running", "relation_oid": oid, "surprise": [1]}))
            .unwrap()
        };
        let all = [upgrade("a", Some(7)), upgrade("b", Some(8)), upgrade("c", Some(7)), upgrade("d", None)];
        let tables = by_table(&all);
        let names: Vec<(i64, Vec<&str>)> =
            tables.iter().map(|(oid, of)| (*oid, of.iter().map(|one| one.name.as_str()).collect())).collect();
        assert_eq!(names, [(7, vec!["a", "c"]), (8, vec!["b"])]);
        let text = serde_json::to_value(&all[0]).unwrap();
        assert_eq!(text["surprise"], json!([1]));
        assert_eq!(text.get("relation_oid"), None);
    }
}
