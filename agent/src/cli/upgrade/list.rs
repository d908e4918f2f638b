//! `migrator upgrade list` and `status`

use super::select::Pick;
use super::shown;
use crate::cli::Outcome;
use crate::cli::context::Context;
use crate::cli::output::{self, Output};
use crate::db::Limits;
use crate::store::{UpgradeFailure, UpgradeFilter};
use clap::Args;
use serde_json::json;

/// List what is registered, complete or not
#[derive(Debug, Args)]
pub struct List {
    /// Of this table; quote the name as in SQL
    table: Option<String>,
    /// Of this name
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    pub(super) output: Output,
}

impl List {
    pub(super) async fn run(self, context: Context) -> anyhow::Result<Outcome> {
        let store = context.store("list", Limits::Short).await?;
        let table = match &self.table {
            Some(name) => Some(store.table(name).await?),
            None => None,
        };
        let filter = UpgradeFilter { table, name: self.name.as_deref() };
        let upgrades = store.upgrades(filter).await?;
        if self.output.json {
            output::document(&json!({ "upgrades": upgrades }));
        } else if upgrades.is_empty() {
            output::line("no upgrade");
        } else {
            shown::listed(&upgrades);
        }
        Ok(Outcome::Done)
    }
}

/// Show how upgrades stand: progress, time to go, what each waits for, what to do next
///
/// Without TABLE those of all tables that are not complete. With it those of the table, and the rows that are set aside.
/// Exit status 1 when there is none.
///
/// Example: migrator upgrade status article --name words
#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    pick: Pick,
    /// Of this name
    #[arg(long, requires = "table")]
    name: Option<String>,
    #[command(flatten)]
    pub(super) output: Output,
}

/// Rows set aside that a person is shown.
const FEW: usize = 10;

impl Status {
    pub(super) async fn run(self, context: Context) -> anyhow::Result<Outcome> {
        let store = context.store("status", Limits::Short).await?;
        if self.pick.table.is_none() {
            let mut upgrades = store.upgrades(UpgradeFilter::default()).await?;
            upgrades.retain(crate::store::Upgrade::is_open);
            match (&upgrades[..], self.output.json) {
                (_, true) => output::document(&json!({ "upgrades": upgrades })),
                ([], false) => output::line("no upgrade is under way"),
                (several, false) => shown::stand(several),
            }
            return Ok(if upgrades.is_empty() { Outcome::Negative } else { Outcome::Done });
        }
        let mut picked = self.pick.picked(&store).await?;
        if let Some(name) = &self.name {
            let one = picked.named(name)?.clone();
            picked.upgrades = vec![one];
        }
        let filter = UpgradeFilter { table: Some(picked.table), name: self.name.as_deref() };
        let (_, failures) = store.upgrade_failures(filter, None).await?;
        match (&picked.upgrades[..], self.output.json) {
            (upgrades, true) => output::document(&json!({ "upgrades": upgrades, "failures": failures })),
            ([one], false) => shown::in_full(one),
            (several, false) => shown::stand(several),
        }
        if !self.output.json && !failures.is_empty() {
            output::line("");
            set_aside(&failures);
        }
        Ok(Outcome::Done)
    }
}

/// Shows rows that are set aside: which, and why.
pub fn set_aside(failures: &[UpgradeFailure]) {
    let row = |failure: &UpgradeFailure| {
        vec![failure.upgrade.clone(), failure.key.to_string(), failure.sqlstate.clone(), failure.message.clone()]
    };
    output::table(&["SET ASIDE BY", "KEY", "SQLSTATE", "MESSAGE"], failures.iter().take(FEW).map(row));
    if failures.len() > FEW {
        output::line("… and more: select * from migrator.upgrade_failures;");
    }
}
