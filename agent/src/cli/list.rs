//! `migrator list`

use super::Outcome;
use super::context::Context;
use super::output::{self, Output, moment, or_dash};
use crate::db::Limits;
use crate::store::UpgradeFilter;
use clap::Args;
use serde_json::json;

/// List open changes and upgrades of rows, with --all finished, cancelled and complete ones too
#[derive(Debug, Args)]
pub struct List {
    /// Finished, cancelled and complete ones too
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    pub(super) output: Output,
}

impl List {
    pub(super) async fn run(self, context: Context) -> anyhow::Result<Outcome> {
        let store = context.store("list", Limits::Short).await?;
        let changes = store.changes(self.all).await?;
        let mut upgrades = store.upgrades(UpgradeFilter::default()).await?;
        upgrades.retain(|upgrade| self.all || upgrade.is_open());
        if self.output.json {
            output::document(&json!({ "changes": changes, "upgrades": upgrades }));
        } else if changes.is_empty() && upgrades.is_empty() {
            output::line(if self.all { "no change" } else { "no open change" });
        } else {
            let header = ["CHANGE", "KIND", "TABLE", "STATE", "STARTED", "TIMESTAMP", "SWAPPED", "WHEN READY"];
            let rows = changes.iter().map(|change| {
                vec![
                    change.change.to_string(),
                    change.kind.clone(),
                    change.relation.clone(),
                    change.state.clone(),
                    moment(change.created_at.as_deref()),
                    change.started_ms.to_string(),
                    moment(change.swapped_at.as_deref()),
                    or_dash(change.on_ready.as_deref()),
                ]
            });
            let upgrades = upgrades.iter().map(|upgrade| {
                vec![
                    upgrade.name.clone(),
                    output::UPGRADE.to_owned(),
                    upgrade.relation.clone(),
                    upgrade.state.clone(),
                    moment(upgrade.registered_at.as_deref()),
                    "-".to_owned(),
                    "-".to_owned(),
                    "-".to_owned(),
                ]
            });
            output::table(&header, rows.chain(upgrades));
        }
        Ok(Outcome::Done)
    }
}
