//! What the extension says of a change, and how a person names one.

use migrator_core::state::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A row of `migrator.status` or `migrator.history`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Change {
    /// Its number.
    pub change: i64,
    /// `table`, for now.
    pub kind: String,
    /// The table, as a person writes it.
    pub relation: String,
    /// What to show: the phase, or `paused`, or `blocked`.
    pub state: String,
    /// Where it stands, paused or not.
    pub phase: String,
    /// 0 to 1 of the whole way to the swap.
    pub progress: Option<f64>,
    /// Rows done in the phase.
    pub rows_done: Option<i64>,
    /// Rows to do in the phase, estimated.
    pub rows_total: Option<i64>,
    /// Keys in the log.
    pub backlog: Option<i64>,
    /// Time to go, as PostgreSQL writes it.
    pub eta: Option<String>,
    /// The same in seconds.
    pub eta_seconds: Option<f64>,
    /// Why nothing goes on just now.
    pub waits_for: Option<String>,
    /// What somebody should do next.
    pub next_step: Option<String>,
    /// Milliseconds since 1970 of its start; unique.
    pub started_ms: i64,
    /// When it was made.
    pub created_at: Option<String>,
    /// Since when it is in this phase.
    pub state_since: Option<String>,
    /// `wait` or `swap`.
    pub on_ready: Option<String>,
    /// Rows that the other shape refuses.
    pub bad_rows: Option<i64>,
    /// The first row that does not fit back.
    pub unfit: Option<String>,
    /// When it was swapped.
    pub swapped_at: Option<String>,
    /// What a later version adds.
    #[serde(flatten)]
    pub more: Map<String, Value>,
    /// The oid that `relation` names now.
    #[serde(default, rename = "relation_oid", skip_serializing)]
    pub relation_oid: Option<i64>,
}

impl Change {
    /// Where it stands; none if a later version of the extension has a phase that this program does not know.
    pub fn phase(&self) -> Option<State> {
        State::parse(&self.phase)
    }
    /// Whether it still owns objects in the database.
    pub fn is_open(&self) -> bool {
        self.phase().is_none_or(State::is_open)
    }
    /// Whether a call of `advance` can do anything for it.
    pub fn can_advance(&self) -> bool {
        self.is_open() && !matches!(self.state.as_str(), "paused" | "blocked")
    }
}

/// What one call of `migrator.advance` did.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Advance {
    /// The phase after it.
    pub state: String,
    /// What was done: copy, build, wait …
    pub step: String,
    /// Rows it did.
    pub rows: Option<i64>,
    /// Nothing more to do before somebody decides.
    pub done: bool,
    /// How long to sleep before the next call.
    pub wait_ms: Option<i64>,
    /// Why.
    pub reason: Option<String>,
    /// SQL to run outside a transaction first.
    pub statement: Option<String>,
}

impl Advance {
    /// Whether the call did something.
    pub fn is_work(&self) -> bool {
        !matches!(self.step.as_str(), "wait" | "idle")
    }
}

/// A row of `migrator.explain`.
#[derive(Debug, Serialize, Deserialize)]
pub struct PlanStep {
    /// Its place.
    pub ordinal: i64,
    /// The step it belongs to.
    pub step: Option<String>,
    /// What it touches.
    pub object: Option<String>,
    /// What would be run.
    pub statement: Option<String>,
    /// The strongest lock.
    pub lock: Option<String>,
    /// For how long.
    pub held: Option<String>,
    /// Rows that it touches.
    pub rows: Option<i64>,
    /// Bytes that it writes, or, of the disk, that are needed or free.
    pub bytes: Option<i64>,
    /// Bytes of WAL.
    pub wal_bytes: Option<i64>,
    /// How long it takes, estimated.
    pub seconds: Option<f64>,
    /// More.
    pub note: Option<String>,
}

/// A row of `migrator.swap` or `migrator.rollback`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Turned {
    /// The change.
    pub change: i64,
    /// Its table.
    pub relation: Option<String>,
    /// Whether it was (or, in a dry run, would be) turned.
    #[serde(alias = "swapped", alias = "rolled_back")]
    pub done: bool,
    /// Why not.
    pub reason: Option<String>,
}

/// The row of `migrator.verify`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Verified {
    /// Rows compared.
    pub compared: i64,
    /// Rows that differed at the end.
    pub mismatched: i64,
    /// How often differing rows were mended and compared again.
    pub rounds: Option<i64>,
}

/// A row of `migrator.log`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Event {
    /// Ascending, among those of changes, and among those of upgrades.
    pub id: i64,
    /// The change, if it is one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<i64>,
    /// The table, where it is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relation: Option<String>,
    /// When.
    pub at: String,
    /// Who.
    pub role: Option<String>,
    /// Which program.
    pub source: Option<String>,
    /// What kind of event.
    pub kind: String,
    /// What happened.
    pub message: String,
    /// Facts.
    #[serde(default)]
    pub detail: Value,
}

/// A row of `migrator.doctor`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Finding {
    /// `error`, `warning`, …
    pub severity: String,
    /// What it is about.
    pub subject: Option<String>,
    /// What is wrong.
    pub problem: Option<String>,
    /// The call that mends it.
    pub remedy: Option<String>,
}

/// How a person names a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// Not at all.
    None,
    /// By its table: as it was written, and the oid that the server found.
    Table(String, i64),
    /// By its number.
    Change(i64),
    /// By the millisecond of its start.
    Timestamp(i64),
    /// The one that was started last.
    Latest,
}

/// Why no change was picked.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SelectorError {
    /// Nothing fits.
    #[error("{0}")]
    Nothing(String),
    /// More than one fits.
    #[error("there are {} open changes; name one with TABLE or --change: {}", .0.len(), .0.join(", "))]
    Several(Vec<String>),
}

/// The change that the selector means. Without a selector: the only open one.
pub fn pick<'a>(changes: &'a [Change], selector: &Selector) -> Result<&'a Change, SelectorError> {
    let nothing = |what: String| Err(SelectorError::Nothing(what));
    match selector {
        Selector::None => match changes.iter().filter(|change| change.is_open()).collect::<Vec<_>>()[..] {
            [] => nothing("there is no open change".to_owned()),
            [only] => Ok(only),
            ref several => Err(SelectorError::Several(
                several.iter().map(|change| format!("{} ({})", change.change, change.relation)).collect(),
            )),
        },
        Selector::Table(name, oid) => {
            let mut of_table = changes.iter().filter(|change| change.relation_oid == Some(*oid));
            let open = of_table.clone().find(|change| change.is_open());
            match open.or_else(|| of_table.by_ref().max_by_key(|change| change.started_ms)) {
                Some(change) => Ok(change),
                None => nothing(format!("table {name} has no open change")),
            }
        }
        Selector::Change(id) => match changes.iter().find(|change| change.change == *id) {
            Some(change) => Ok(change),
            None => nothing(format!("there is no open change {id}")),
        },
        Selector::Timestamp(ms) => match changes.iter().find(|change| change.started_ms == *ms) {
            Some(change) => Ok(change),
            None => nothing(format!("no open change was started at {ms}")),
        },
        Selector::Latest => match changes.iter().max_by_key(|change| change.started_ms) {
            Some(change) => Ok(change),
            None => nothing("there is no open change".to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn change(id: i64, relation: &str, oid: i64, state: &str) -> Change {
        serde_json::from_value(json!({
            "change": id, "kind": "table", "relation": relation, "state": state, "phase": state,
            "started_ms": 1000 + id, "relation_oid": oid, "surprise": [1]
        }))
        .unwrap()
    }

    #[test]
    fn each_selector_finds_its_change() {
        let changes = [change(1, "a", 10, "finished"), change(2, "a", 10, "copying"), change(3, "b", 11, "ready")];
        let picked = |selector| pick(&changes, &selector).map(|change| change.change);
        assert_eq!(picked(Selector::Change(1)), Ok(1));
        assert_eq!(picked(Selector::Timestamp(1003)), Ok(3));
        assert_eq!(picked(Selector::Latest), Ok(3));
        assert_eq!(picked(Selector::Table("a".into(), 10)), Ok(2), "the open one first");
        assert_eq!(picked(Selector::None), Err(SelectorError::Several(vec!["2 (a)".into(), "3 (b)".into()])));
        assert!(matches!(picked(Selector::Change(9)), Err(SelectorError::Nothing(_))));
        assert_eq!(pick(&changes[..2], &Selector::None).unwrap().change, 2);
        assert!(pick(&changes[..1], &Selector::None).is_err());
    }

    #[test]
    fn what_a_later_version_adds_is_passed_on() {
        let text = serde_json::to_value(change(1, "a", 10, "ready")).unwrap();
        assert_eq!(text["surprise"], json!([1]));
        assert_eq!(text.get("relation_oid"), None);
    }
}
