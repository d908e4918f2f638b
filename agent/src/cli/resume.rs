//! `migrator resume`

use super::context::Context;
use super::output::Output;
use super::selector::Select;
use super::{Outcome, order};
use crate::store::Order;
use clap::Args;

/// Let a paused or blocked change go on
#[derive(Debug, Args)]
pub struct Resume {
    #[command(flatten)]
    select: Select,
    #[command(flatten)]
    pub(super) output: Output,
}

impl Resume {
    pub(super) async fn run(self, context: Context) -> anyhow::Result<Outcome> {
        order::give(&context, &self.select, Order::Resume, &self.output).await
    }
}
