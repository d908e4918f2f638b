//! `migrator rollback`

use super::Outcome;
use super::context::Context;
use super::output::Output;
use super::selector::Select;
use super::swap::{look_first, show};
use crate::db::{Limits, Trouble};
use crate::engine::interruptible;
use anyhow::Context as _;
use clap::Args;

/// Take a swapped change back: the old table is live again, with every write since that it can hold
///
/// The change stays prepared and may be swapped again. Exit status 1 when it was not taken back.
///
/// Example: migrator rollback orders
#[derive(Debug, Args)]
pub struct Rollback {
    #[command(flatten)]
    select: Select,
    /// Show what would be taken back; write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub(super) output: Output,
}

impl Rollback {
    pub(super) async fn run(self, context: Context) -> anyhow::Result<Outcome> {
        let store = context.store("rollback", Limits::Work).await?;
        let change = self.select.open_change(&store).await?.change;
        let turned = match interruptible(&context.signals, &store, store.rollback(change, self.dry_run)).await {
            Err(lost @ Trouble::Lost(_)) => {
                return Err(lost).context(look_first(&context, Some(change), "taken back").await);
            }
            turned => turned?,
        };
        Ok(show(&turned, "rolled_back", self.dry_run, self.output.json))
    }
}
