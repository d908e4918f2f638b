//! `migrator cancel`

use super::context::Context;
use super::output::Output;
use super::selector::Select;
use super::{Outcome, order};
use crate::store::Order;
use clap::Args;
use migrator_core::state::State;

/// Give a change up before its swap: its shadow is dropped, the live table stays as it is
#[derive(Debug, Args)]
pub struct Cancel {
    #[command(flatten)]
    select: Select,
    /// Show what would be dropped; write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub(super) output: Output,
}

impl Cancel {
    pub(super) async fn run(self, context: Context) -> anyhow::Result<Outcome> {
        if !self.dry_run {
            return order::give(&context, &self.select, Order::Cancel, &self.output).await;
        }
        order::show(
            &context,
            &self.select,
            Order::Cancel,
            |change| change.phase().is_some_and(|phase| phase.may_become(State::Cancelled)),
            |change| {
                format!(
                    "change {} of {} would be cancelled: its shadow in schema migrator_shadow_{} would be dropped",
                    change.change, change.relation, change.change
                )
            },
            &self.output,
        )
        .await
    }
}
