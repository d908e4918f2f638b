//! `migrator upgrade retire`

use super::select::Pick;
use crate::cli::Outcome;
use crate::cli::context::Context;
use crate::cli::output::{self, Output};
use crate::db::Limits;
use crate::engine::interruptible;
use clap::Args;
use serde_json::json;

/// Retire an upgrade that every row has: its name means nothing from now on, and rows lose it
///
/// The names go at once where the table has no other upgrade, else in batches, which the agent or `migrator upgrade run`
/// does. What the upgrade wrote stays.
///
/// Example: migrator upgrade retire article --name words
#[derive(Debug, Args)]
pub struct Retire {
    #[command(flatten)]
    pick: Pick,
    /// The upgrade
    #[arg(long)]
    name: String,
    /// Even if rows lack it, which will never get it then: for one that was registered by mistake
    #[arg(long)]
    incomplete: bool,
    /// Show whether it can be retired; write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub(super) output: Output,
}

impl Retire {
    pub(super) async fn run(self, context: Context) -> anyhow::Result<Outcome> {
        let store = context.store("upgrade", Limits::Work).await?;
        let picked = self.pick.picked(&store).await?;
        let upgrade = picked.named(&self.name)?;
        let (name, relation) = (&self.name, &picked.relation);
        if self.dry_run {
            let possible = upgrade.state != "retiring" && (self.incomplete || upgrade.completed_at.is_some());
            let text = match (possible, upgrade.state.as_str()) {
                (true, _) => format!("upgrade {name} of {relation} would be retired"),
                (false, "retiring") => format!("upgrade {name} of {relation} is retired already"),
                (false, state) => format!("upgrade {name} of {relation} is {state}: it cannot be retired yet"),
            };
            if self.output.json {
                output::document(&json!({"dry_run": true, "upgrade": upgrade, "possible": possible, "text": text}));
            } else {
                output::line(&text);
            }
            return Ok(if possible { Outcome::Done } else { Outcome::Negative });
        }
        let call = store.retire_upgrade(picked.table, name, self.incomplete);
        let how = interruptible(&context.signals, &store, call).await?;
        if self.output.json {
            output::document(&json!({"dry_run": false, "relation": relation, "name": name, "rows_lose_it": how}));
        } else {
            output::line(&format!("upgrade {name} of {relation} is retired; rows lose its name {how}"));
        }
        Ok(Outcome::Done)
    }
}
