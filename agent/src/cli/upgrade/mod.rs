//! `migrator upgrade …`: upgrades of rows, a file for each kind of command.

mod failures;
mod list;
mod order;
mod retire;
mod run;
mod select;
mod shown;

pub use select::PickError;

use super::Outcome;
use super::context::Context;
use clap::Subcommand;

/// Bring the rows of tables up to what is registered, and look after that
///
/// An upgrade is registered in SQL (migrator.register_upgrade), usually by an application's migration. From then on written
/// rows get it by themselves, and these commands, or the agent, bring the others in batches. TABLE may be left out where
/// only one table has upgrades that are not complete.
#[derive(Debug, Subcommand)]
pub enum Upgrade {
    List(list::List),
    Run(run::Run),
    /// Let a table's batches rest; rows that are written go on getting their upgrades
    Pause(order::Order),
    /// Let a table's paused or blocked batches go on
    Resume(order::Order),
    Status(list::Status),
    Retry(failures::Retry),
    Waive(failures::Waive),
    Retire(retire::Retire),
    Verify(run::Verify),
}

impl Upgrade {
    pub(super) fn wants_json(&self) -> bool {
        match self {
            Upgrade::List(it) => it.output.json,
            Upgrade::Run(it) => it.output.json,
            Upgrade::Pause(it) | Upgrade::Resume(it) => it.output.json,
            Upgrade::Status(it) => it.output.json,
            Upgrade::Retry(it) => it.output.json,
            Upgrade::Waive(it) => it.output.json,
            Upgrade::Retire(it) => it.output.json,
            Upgrade::Verify(it) => it.output.json,
        }
    }

    pub(super) async fn run(self, context: Context) -> anyhow::Result<Outcome> {
        match self {
            Upgrade::List(it) => it.run(context).await,
            Upgrade::Run(it) => it.run(context).await,
            Upgrade::Pause(it) => it.pause(context).await,
            Upgrade::Resume(it) => it.resume(context).await,
            Upgrade::Status(it) => it.run(context).await,
            Upgrade::Retry(it) => it.run(context).await,
            Upgrade::Waive(it) => it.run(context).await,
            Upgrade::Retire(it) => it.run(context).await,
            Upgrade::Verify(it) => it.run(context).await,
        }
    }
}
