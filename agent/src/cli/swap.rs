//! `migrator swap`

use super::Outcome;
use super::context::Context;
use super::output::{self, Output, or_dash};
use super::selector::Select;
use crate::db::{Limits, Trouble};
use crate::engine::interruptible;
use crate::store::Turned;
use anyhow::Context as _;
use clap::Args;
use serde_json::json;

/// Put the shadow in the live table's place, atomically: one change, or every one that is ready
///
/// Without a selector every change that is ready and neither postponed nor paused is swapped in one transaction; the
/// others are shown with the reason. Exit status 1 when nothing was swapped.
///
/// Example: migrator swap orders
#[derive(Debug, Args)]
pub struct Swap {
    #[command(flatten)]
    select: Select,
    /// Show what would be swapped; write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub(super) output: Output,
}

impl Swap {
    pub(super) async fn run(self, context: Context) -> anyhow::Result<Outcome> {
        let store = context.store("swap", Limits::Work).await?;
        let change = match self.select.is_given() {
            true => Some(self.select.open_change(&store).await?.change),
            false => None,
        };
        let turned = match interruptible(&context.signals, &store, store.swap(change, self.dry_run)).await {
            Err(lost @ Trouble::Lost(_)) => {
                return Err(lost).context(look_first(&context, change, "swapped").await);
            }
            turned => turned?,
        };
        Ok(show(&turned, "swapped", self.dry_run, self.output.json))
    }
}

/// Shows what was turned and what was not, under the word for it.
pub(super) fn show(turned: &[Turned], word: &str, dry_run: bool, json: bool) -> Outcome {
    let any = turned.iter().any(|row| row.done);
    if json {
        let rows: Vec<_> = turned
            .iter()
            .map(|row| json!({"change": row.change, "relation": row.relation, word: row.done, "reason": row.reason}))
            .collect();
        output::document(&json!({ "dry_run": dry_run, "changes": rows }));
    } else if turned.is_empty() {
        output::line(&format!("nothing is ready to be {word}"));
    } else {
        let column = if dry_run { format!("WOULD BE {}", word.to_uppercase()) } else { word.to_uppercase() };
        let rows = turned.iter().map(|row| {
            vec![
                row.change.to_string(),
                or_dash(row.relation.as_deref()),
                (if row.done { "yes" } else { "no" }).to_owned(),
                or_dash(row.reason.as_deref()),
            ]
        });
        output::table(&["CHANGE", "TABLE", &column, "REASON"], rows);
    }
    if any { Outcome::Done } else { Outcome::Negative }
}

/// The connection broke before the answer came: whether the transaction was committed can only be looked up.
pub(super) async fn look_first(context: &Context, change: Option<i64>, word: &str) -> String {
    let changes = async {
        let store = context.store("look", Limits::Short).await.ok()?;
        store.changes(true).await.ok()
    };
    match changes.await {
        Some(changes) => {
            let states = changes
                .iter()
                .filter(|row| change.map_or(row.is_open(), |change| row.change == change))
                .map(|row| format!("change {} of {} is {} now", row.change, row.relation, row.state));
            states.collect::<Vec<_>>().join(", ")
        }
        None => format!("whether it was {word} is not known; look with `migrator status`"),
    }
}
