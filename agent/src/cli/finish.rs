//! `migrator finish`

use super::context::Context;
use super::output::Output;
use super::selector::Select;
use super::{Outcome, order};
use crate::store::Order;
use clap::Args;
use migrator_core::state::State;

/// Keep a swapped change: its backup is dropped, and there is no way back afterwards
///
/// Example: migrator finish orders --dry-run
#[derive(Debug, Args)]
pub struct Finish {
    #[command(flatten)]
    select: Select,
    /// Show what would be dropped; write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub(super) output: Output,
}

impl Finish {
    pub(super) async fn run(self, context: Context) -> anyhow::Result<Outcome> {
        if !self.dry_run {
            return order::give(&context, &self.select, Order::Finish, &self.output).await;
        }
        order::show(
            &context,
            &self.select,
            Order::Finish,
            |change| change.phase() == Some(State::Swapped),
            |change| {
                format!(
                    "change {} of {} would be finished: its backup in schema migrator_backup_{} would be dropped, \
                     and it could not be rolled back any more",
                    change.change, change.relation, change.change
                )
            },
            &self.output,
        )
        .await
    }
}
