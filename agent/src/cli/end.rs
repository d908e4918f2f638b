//! `migrator finish` and `migrator cancel`: the two ways in which a change ends.

use super::context::Context;
use super::output::Output;
use super::selector::Select;
use super::{Outcome, order};
use crate::store::{Change, Order};
use clap::Args;
use migrator_core::state::State;

/// What both of them take.
#[derive(Debug, Args)]
pub struct End {
    #[command(flatten)]
    select: Select,
    /// Show what would be dropped; write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub(super) output: Output,
}

impl End {
    /// Drops the backup of a swapped change.
    pub(super) async fn finish(self, context: Context) -> anyhow::Result<Outcome> {
        let would = |change: &Change| {
            format!(
                "change {} of {} would be finished: its backup in schema migrator_backup_{} would be dropped, \
                 and it could not be rolled back any more",
                change.change, change.relation, change.change
            )
        };
        self.run(context, Order::Finish, |change| change.phase() == Some(State::Swapped), would).await
    }

    /// Drops the shadow of a change that was not swapped.
    pub(super) async fn cancel(self, context: Context) -> anyhow::Result<Outcome> {
        let would = |change: &Change| {
            format!(
                "change {} of {} would be cancelled: its shadow in schema migrator_shadow_{} would be dropped",
                change.change, change.relation, change.change
            )
        };
        let possible = |change: &Change| change.phase().is_some_and(|phase| phase.may_become(State::Cancelled));
        self.run(context, Order::Cancel, possible, would).await
    }

    async fn run(
        self,
        context: Context,
        order: Order,
        possible: impl Fn(&Change) -> bool,
        would: impl Fn(&Change) -> String,
    ) -> anyhow::Result<Outcome> {
        if self.dry_run {
            return order::show(&context, &self.select, order, possible, would, &self.output).await;
        }
        order::give(&context, &self.select, order, &self.output).await
    }
}
