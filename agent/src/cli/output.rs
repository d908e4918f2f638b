//! stdout: tables for people, one JSON document for machines.

use crate::store::{Change, Upgrade};
use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{FormattedDuration, HumanCount};
use serde_json::Value;
use std::io::Write;
use std::time::Duration;

/// How a command's result is written.
#[derive(Debug, Args)]
pub struct Output {
    /// Write one JSON document: {"version": 1, …}
    #[arg(long)]
    pub json: bool,
}

/// Writes a line of data. A reader that has gone away ends the program quietly, as it does any filter.
pub fn line(text: &str) {
    if writeln!(std::io::stdout(), "{text}").is_err() {
        std::process::exit(2);
    }
}

/// Writes a document with the version of its form. Keys may be added without a new version.
pub fn document(content: &Value) {
    line(&versioned(content).to_string());
}

fn versioned(content: &Value) -> Value {
    let mut document = serde_json::json!({ "version": 1 });
    if let (Value::Object(document), Value::Object(content)) = (&mut document, content) {
        document.extend(content.clone());
    }
    document
}

/// Writes a table as wide as the terminal allows, or as wide as it needs to be where there is none.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING.to_owned()).set_header(header.to_vec());
    if let Some((_, width)) = console::Term::stdout().size_checked() {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    }
    table.add_rows(rows);
    line(table.to_string().trim_end());
}

/// Writes everything about one thing: what each is and what it says, a line each.
pub fn facts(facts: &[(&str, String)]) {
    for (name, value) in facts {
        line(&format!("{name:<18} {value}"));
    }
}

/// The kind of an upgrade of rows, beside those of changes.
pub const UPGRADE: &str = "upgrade";

/// What a person reads instead of nothing.
pub fn or_dash(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or("-").to_owned()
}

/// `2026-01-31 12:00:00+00`, without the fraction.
pub fn moment(text: Option<&str>) -> String {
    let Some(text) = text else { return "-".to_owned() };
    let text = text.replacen('T', " ", 1);
    match text.split_once('.') {
        Some((seconds, rest)) => {
            let zone = rest.trim_start_matches(|c: char| c.is_ascii_digit());
            format!("{seconds}{zone}")
        }
        None => text,
    }
}

/// `41 %`.
pub fn share(progress: Option<f64>) -> String {
    progress.map_or_else(|| "-".to_owned(), |progress| format!("{:.0} %", progress.clamp(0.0, 1.0) * 100.0))
}

/// Time to go.
pub fn duration(seconds: Option<f64>) -> String {
    let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.map_or_else(|| "-".to_owned(), |time| FormattedDuration(time).to_string())
}

/// Of a change.
pub fn percent(change: &Change) -> String {
    share(change.progress)
}

/// Of a change.
pub fn eta(change: &Change) -> String {
    duration(change.eta_seconds)
}

/// `1,234,567`.
pub fn count(number: Option<i64>) -> String {
    number.and_then(|number| u64::try_from(number).ok()).map_or_else(|| "-".to_owned(), |n| HumanCount(n).to_string())
}

/// Rows a second.
pub fn rate(rows: Option<f64>) -> String {
    // A rate of rows is far below what an i64 holds.
    #[allow(clippy::cast_possible_truncation)]
    count(rows.map(|rows| rows.round() as i64))
}

/// Changes and upgrades in one table: where each stands and what somebody should do.
pub fn changes(changes: &[Change], upgrades: &[Upgrade]) {
    let rows = |done: Option<i64>, total: Option<i64>| match (done, total) {
        (None, None) => "-".to_owned(),
        (done, total) => format!("{} / {}", count(done), count(total)),
    };
    let change = |change: &Change| {
        vec![
            change.change.to_string(),
            change.kind.clone(),
            change.relation.clone(),
            change.state.clone(),
            percent(change),
            rows(change.rows_done, change.rows_total),
            count(change.backlog),
            eta(change),
            or_dash(change.waits_for.as_deref()),
            or_dash(change.next_step.as_deref()),
        ]
    };
    let upgrade = |upgrade: &Upgrade| {
        vec![
            upgrade.name.clone(),
            UPGRADE.to_owned(),
            upgrade.relation.clone(),
            upgrade.state.clone(),
            share(upgrade.progress),
            rows(upgrade.rows_done, upgrade.rows_total()),
            "-".to_owned(),
            duration(upgrade.eta_seconds),
            or_dash(upgrade.waits_for.as_deref()),
            or_dash(upgrade.next_step.as_deref()),
        ]
    };
    let header = ["CHANGE", "KIND", "TABLE", "STATE", "DONE", "ROWS", "BACKLOG", "ETA", "WAITS FOR", "NEXT STEP"];
    table(&header, changes.iter().map(change).chain(upgrades.iter().map(upgrade)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_document_begins_with_its_version() {
        assert_eq!(versioned(&json!({"changes": []})), json!({"version": 1, "changes": []}));
    }

    #[test]
    fn moments_lose_their_fraction() {
        assert_eq!(moment(Some("2026-01-31T12:00:00.123456+00:00")), "2026-01-31 12:00:00+00:00");
        assert_eq!(moment(Some("2026-01-31T12:00:00+00:00")), "2026-01-31 12:00:00+00:00");
        assert_eq!(moment(None), "-");
    }
}
