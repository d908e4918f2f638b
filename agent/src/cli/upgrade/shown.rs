//! How upgrades look on a terminal.

use crate::cli::output::{self, count, duration, moment, or_dash, rate, share};
use crate::cli::progress::Look;
use crate::store::Upgrade;

/// What begins every line.
const HEADER: [&str; 8] = ["TABLE", "NAME", "KIND", "STATE", "DONE", "ROWS", "TO DO", "ASIDE"];

/// A line each, which ends with these columns.
fn lines<const N: usize>(upgrades: &[Upgrade], header: [&str; N], end: impl Fn(&Upgrade) -> [String; N]) {
    let row = |upgrade: &Upgrade| {
        let begin = [
            upgrade.relation.clone(),
            upgrade.name.clone(),
            upgrade.kind.clone(),
            upgrade.state.clone(),
            share(upgrade.progress),
            count(upgrade.rows_done),
            count(upgrade.rows_pending),
            count(upgrade.failed),
        ];
        begin.into_iter().chain(end(upgrade)).collect()
    };
    output::table(&[&HEADER[..], &header].concat(), upgrades.iter().map(row));
}

/// What is registered, a line each.
pub fn listed(upgrades: &[Upgrade]) {
    lines(upgrades, ["REGISTERED", "COMPLETE"], |upgrade| {
        [moment(upgrade.registered_at.as_deref()), moment(upgrade.completed_at.as_deref())]
    });
}

/// How each stands and what it needs, a line each.
pub fn stand(upgrades: &[Upgrade]) {
    lines(upgrades, ["ROWS/S", "ETA", "WAITS FOR", "NEXT STEP"], |upgrade| {
        [
            rate(upgrade.rows_per_second),
            duration(upgrade.eta_seconds),
            or_dash(upgrade.waits_for.as_deref()),
            or_dash(upgrade.next_step.as_deref()),
        ]
    });
}

/// Everything about one.
pub fn in_full(upgrade: &Upgrade) {
    let more = |name: &str| match upgrade.more.get(name) {
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(serde_json::Value::Null) | None => "-".to_owned(),
        Some(value) => value.to_string(),
    };
    output::facts(&[
        ("upgrade", upgrade.name.clone()),
        ("kind", upgrade.kind.clone()),
        ("table", upgrade.relation.clone()),
        ("state", upgrade.state.clone()),
        ("place", upgrade.ordinal.to_string()),
        ("reads", more("inputs")),
        ("writes", more("outputs")),
        ("registered", moment(upgrade.registered_at.as_deref())),
        ("complete", moment(upgrade.completed_at.as_deref())),
        ("done", share(upgrade.progress)),
        ("rows", count(upgrade.rows_done)),
        ("to do", count(upgrade.rows_pending)),
        ("set aside", count(upgrade.failed)),
        ("rows a second", rate(upgrade.rows_per_second)),
        ("time to go", duration(upgrade.eta_seconds)),
        ("waits for", or_dash(upgrade.waits_for.as_deref())),
        ("next step", or_dash(upgrade.next_step.as_deref())),
    ]);
}

/// Where the upgrades of one table stand together: all that a row lacks it gets at once.
pub fn looked(upgrades: &[Upgrade], reason: Option<&str>) -> Option<Look> {
    let open: Vec<&Upgrade> = upgrades.iter().filter(|upgrade| upgrade.is_open()).collect();
    let first = open.first().copied().or_else(|| upgrades.first())?;
    let by_itself = !matches!(first.state.as_str(), "paused" | "blocked");
    Some(Look {
        title: first.relation.clone(),
        state: first.state.clone(),
        phase: None,
        progress: open.iter().filter_map(|upgrade| upgrade.progress).reduce(f64::min),
        rows_done: open.iter().filter_map(|upgrade| upgrade.rows_done).max(),
        rows_total: open.iter().filter_map(|upgrade| upgrade.rows_total()).max(),
        rate: open.iter().filter_map(|upgrade| upgrade.rows_per_second).reduce(f64::max),
        eta_seconds: open.iter().filter_map(|upgrade| upgrade.eta_seconds).reduce(f64::max),
        reason: (if by_itself { reason } else { first.waits_for.as_deref() }).map(str::to_owned),
    })
}
