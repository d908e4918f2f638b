//! `migrator cleanup`

use super::Outcome;
use super::context::Context;
use super::output::{self, Output, moment};
use crate::db::Limits;
use crate::engine::interruptible;
use crate::store::Order;
use clap::Args;
use serde_json::json;

/// Finish every change that was swapped before a date: their backups are dropped
///
/// Example: migrator cleanup --before 2026-01-31 --dry-run
#[derive(Debug, Args)]
pub struct Cleanup {
    /// A date or a time, as PostgreSQL reads it ("2026-01-31", "yesterday")
    #[arg(long, value_name = "DATE")]
    before: String,
    /// Show what would be finished; write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub(super) output: Output,
}

impl Cleanup {
    pub(super) async fn run(self, context: Context) -> anyhow::Result<Outcome> {
        let store = context.store("cleanup", Limits::Work).await?;
        let changes = store.swapped_before(&self.before).await?;
        let mut finished = Vec::new();
        let mut failures = Vec::new();
        for change in &changes {
            if context.signals.stop.is_cancelled() {
                break;
            }
            let done = async {
                match self.dry_run {
                    true => store.foresee(Order::Finish, change.change).await,
                    false => store.order(Order::Finish, change.change).await,
                }
            };
            // One that cannot be finished now does not keep the others from it.
            if let Err(trouble) = interruptible(&context.signals, &store, done).await {
                if trouble.answer().is_none() {
                    return Err(trouble.into());
                }
                failures.push((change, trouble));
                continue;
            }
            finished.push(change);
        }
        if self.output.json {
            let failed: Vec<_> = failures
                .iter()
                .map(|(change, trouble)| json!({"change": change.change, "error": trouble.answer()}))
                .collect();
            output::document(&json!({"dry_run": self.dry_run, "finished": finished, "failed": failed}));
        } else if changes.is_empty() {
            output::line("no change was swapped before then");
        } else {
            let outcome = if self.dry_run { "would be finished" } else { "finished" };
            let rows = finished.iter().map(|change| (*change, outcome.to_owned()));
            let failed = failures.iter().map(|(change, trouble)| (*change, trouble.to_string()));
            output::table(
                &["CHANGE", "TABLE", "SWAPPED", "OUTCOME"],
                rows.chain(failed).map(|(change, outcome)| {
                    let swapped = moment(change.swapped_at.as_deref());
                    vec![change.change.to_string(), change.relation.clone(), swapped, outcome]
                }),
            );
        }
        match failures.into_iter().next() {
            None => Ok(Outcome::Done),
            Some((_, trouble)) => Err(trouble.into()),
        }
    }
}
