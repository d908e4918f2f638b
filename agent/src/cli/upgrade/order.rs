//! `migrator upgrade pause` and `resume`

use super::select::{Pick, Picked};
use crate::cli::Outcome;
use crate::cli::context::Context;
use crate::cli::output::{self, Output};
use crate::db::Limits;
use crate::engine::interruptible;
use crate::store::{UpgradeFilter, UpgradeOrder};
use clap::Args;
use serde_json::json;

/// What both of them take.
#[derive(Debug, Args)]
pub struct Order {
    #[command(flatten)]
    pick: Pick,
    /// Show for which upgrades that would be; write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub(super) output: Output,
}

impl Order {
    pub(super) async fn pause(self, context: Context) -> anyhow::Result<Outcome> {
        self.give(context, UpgradeOrder::Pause, ["are paused", "would be paused"]).await
    }

    pub(super) async fn resume(self, context: Context) -> anyhow::Result<Outcome> {
        self.give(context, UpgradeOrder::Resume, ["go on", "would go on"]).await
    }

    async fn give(self, context: Context, order: UpgradeOrder, [words, would]: [&str; 2]) -> anyhow::Result<Outcome> {
        let store = context.store("upgrade", Limits::Work).await?;
        let picked = self.pick.picked(&store).await?;
        if self.dry_run {
            foresee(&picked, would, &self.output);
            return Ok(Outcome::Done);
        }
        interruptible(&context.signals, &store, store.upgrade_order(order, picked.table)).await?;
        if self.output.json {
            let filter = UpgradeFilter { table: Some(picked.table), name: None };
            let now = store.upgrades(filter).await?;
            output::document(&json!({ "relation": picked.relation, "upgrades": now }));
        } else {
            output::line(&format!("upgrades of {} {words}", picked.relation));
        }
        Ok(Outcome::Done)
    }
}

/// What an order would be about: the upgrades that are open.
pub(super) fn foresee(picked: &Picked, would: &str, output: &Output) {
    let open: Vec<_> = picked.upgrades.iter().filter(|upgrade| upgrade.is_open()).collect();
    if output.json {
        output::document(&json!({ "dry_run": true, "relation": picked.relation, "upgrades": open }));
        return;
    }
    let names: Vec<&str> = open.iter().map(|upgrade| upgrade.name.as_str()).collect();
    let names = if names.is_empty() { String::new() } else { format!(": {}", names.join(", ")) };
    output::line(&format!("upgrades of {} {would}{names}", picked.relation));
}
