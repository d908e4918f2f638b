//! `migrator prepare`

use super::context::Context;
use super::output::Output;
use super::selector::Select;
use super::{Outcome, run};
use crate::db::Limits;
use clap::Args;

/// Drive an existing change until it is ready to be swapped
///
/// The change was begun by `migrator alter`, by an application migration, or in psql with migrator.create_shadow.
///
/// Example: migrator prepare orders --jobs 4
#[derive(Debug, Args)]
pub struct Prepare {
    #[command(flatten)]
    select: Select,
    /// Connections for work
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    #[command(flatten)]
    pub(super) output: Output,
}

impl Prepare {
    pub(super) async fn run(self, context: Context) -> anyhow::Result<Outcome> {
        let store = context.store("prepare", Limits::Short).await?;
        let change = self.select.open_change(&store).await?.change;
        drop(store);
        run::to_the_end(&context, change, self.jobs, &self.output).await
    }
}
