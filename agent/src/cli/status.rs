//! `migrator status`

use super::Outcome;
use super::context::Context;
use super::output::{self, Output, moment, or_dash};
use super::selector::Select;
use crate::db::Limits;
use crate::store::{Change, SelectorError, Upgrade, UpgradeFilter};
use clap::Args;
use serde_json::json;

/// Show open changes and upgrades of rows: state, progress, time to go, what each waits for, what to do next
///
/// With a selector: everything about one change, be it over; with TABLE its upgrades too. Exit status 1 when there is none.
#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    select: Select,
    #[command(flatten)]
    pub(super) output: Output,
}

impl Status {
    pub(super) async fn run(self, context: Context) -> anyhow::Result<Outcome> {
        let store = context.store("status", Limits::Short).await?;
        let (changes, upgrades) = if self.select.is_given() {
            let upgrades = match self.select.table(&store).await? {
                None => vec![],
                table => store.upgrades(UpgradeFilter { table, name: None }).await?,
            };
            match self.select.any_change(&store).await {
                // A table may have upgrades and no change.
                Err(error) if error.is::<SelectorError>() && !upgrades.is_empty() => (vec![], upgrades),
                change => (vec![change?], upgrades),
            }
        } else {
            let mut upgrades = store.upgrades(UpgradeFilter::default()).await?;
            upgrades.retain(Upgrade::is_open);
            (store.changes(false).await?, upgrades)
        };
        match (&changes[..], &upgrades[..], self.output.json) {
            (_, _, true) => output::document(&json!({ "changes": changes, "upgrades": upgrades })),
            ([], [], false) => output::line("no open change"),
            ([one], upgrades, false) if self.select.is_given() => {
                in_full(one);
                if !upgrades.is_empty() {
                    output::line("");
                    output::changes(&[], upgrades);
                }
            }
            (changes, upgrades, false) => output::changes(changes, upgrades),
        }
        Ok(if changes.is_empty() && upgrades.is_empty() { Outcome::Negative } else { Outcome::Done })
    }
}

fn in_full(change: &Change) {
    output::facts(&[
        ("change", change.change.to_string()),
        ("kind", change.kind.clone()),
        ("table", change.relation.clone()),
        ("state", change.state.clone()),
        ("phase", change.phase.clone()),
        ("since", moment(change.state_since.as_deref())),
        ("started", moment(change.created_at.as_deref())),
        ("timestamp", change.started_ms.to_string()),
        ("done", output::percent(change)),
        ("rows", format!("{} of {}", output::count(change.rows_done), output::count(change.rows_total))),
        ("backlog", output::count(change.backlog)),
        ("time to go", output::eta(change)),
        ("when ready", or_dash(change.on_ready.as_deref())),
        ("swapped", moment(change.swapped_at.as_deref())),
        ("bad rows", output::count(change.bad_rows)),
        ("does not fit back", or_dash(change.unfit.as_deref())),
        ("waits for", or_dash(change.waits_for.as_deref())),
        ("next step", or_dash(change.next_step.as_deref())),
    ]);
}
