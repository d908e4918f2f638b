//! `migrator upgrade pause` and `resume`

use super::select::Pick;
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
    #[command(flatten)]
    pub(super) output: Output,
}

impl Order {
    pub(super) async fn pause(self, context: Context) -> anyhow::Result<Outcome> {
        self.give(context, UpgradeOrder::Pause, "are paused").await
    }

    pub(super) async fn resume(self, context: Context) -> anyhow::Result<Outcome> {
        self.give(context, UpgradeOrder::Resume, "go on").await
    }

    async fn give(self, context: Context, order: UpgradeOrder, words: &str) -> anyhow::Result<Outcome> {
        let store = context.store("upgrade", Limits::Work).await?;
        let picked = self.pick.picked(&store).await?;
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
