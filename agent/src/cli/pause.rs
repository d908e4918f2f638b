//! `migrator pause`

use super::context::Context;
use super::output::Output;
use super::selector::Select;
use super::{Outcome, order};
use crate::store::Order;
use clap::Args;

/// Let a change rest: nothing is copied or compared, its capture of writes goes on
#[derive(Debug, Args)]
pub struct Pause {
    #[command(flatten)]
    select: Select,
    #[command(flatten)]
    pub(super) output: Output,
}

impl Pause {
    pub(super) async fn run(self, context: Context) -> anyhow::Result<Outcome> {
        order::give(&context, &self.select, Order::Pause, &self.output).await
    }
}
