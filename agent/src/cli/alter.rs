//! `migrator alter`

use super::context::Context;
use super::output::{self, Output, or_dash};
use super::{Outcome, run};
use crate::db::Limits;
use crate::engine::interruptible;
use crate::store::{Store, Wish};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tracing::info;

/// Change a table: in place where that is quick and safe, else by a shadow that is filled while applications go on
///
/// A change by a shadow is driven until it is ready, or with --swap until the table is changed; stop it at any time
/// and go on with `migrator prepare`. A change in place takes effect at once.
///
/// Example: migrator alter orders 'alter column id type bigint, add column note text'
#[derive(Debug, Args)]
pub struct Alter {
    /// The table; quote the name as in SQL
    table: String,
    /// Actions of ALTER TABLE, separated by commas
    actions: Option<String>,
    /// New column → SQL expression over the old row, as a JSON object
    #[arg(long, value_name = "JSON", value_parser = object)]
    transform: Option<Value>,
    /// Old column → SQL expression over the new row, for the way back
    #[arg(long, value_name = "JSON", value_parser = object)]
    reverse: Option<Value>,
    /// A table that you made, to be filled instead of a copy of the old one
    #[arg(long, value_name = "TABLE", conflicts_with_all = ["actions", "strategy"])]
    shadow: Option<String>,
    /// How: in place, by a shadow, or whichever is right
    #[arg(long, value_enum, default_value_t = Strategy::Auto)]
    strategy: Strategy,
    /// Swap as soon as it is ready
    #[arg(long, overrides_with = "no_swap")]
    swap: bool,
    /// Stop when it is ready; `migrator swap` does the rest (the default)
    #[arg(long, overrides_with = "swap")]
    no_swap: bool,
    /// Connections for work
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Show what would be done, each statement with its lock, and leave everything as it is
    ///
    /// To find out, the new shape is made in a transaction that is rolled back: the server writes some WAL, and the table
    /// is only read.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub(super) output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Strategy {
    Auto,
    InPlace,
    Shadow,
}

fn object(text: &str) -> Result<Value, String> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err("not a JSON object, like {\"note\": \"lower(old_note)\"}".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

impl Alter {
    pub(super) async fn run(self, context: Context) -> anyhow::Result<Outcome> {
        let store = context.store("alter", Limits::Work).await?;
        let nothing = json!({});
        let wish = Wish {
            table: &self.table,
            actions: self.actions.as_deref(),
            transform: self.transform.as_ref().unwrap_or(&nothing),
            reverse: self.reverse.as_ref().unwrap_or(&nothing),
            shadow: self.shadow.as_deref(),
        };
        // A name that is wrong gets a better answer here than inside a call.
        for name in [Some(self.table.as_str()), wish.shadow].into_iter().flatten() {
            store.table(name).await?;
        }
        let in_place = self.is_in_place(&context, &store, &wish).await?;
        if self.dry_run {
            return self.explain(&context, &store, &wish, in_place).await;
        }
        if in_place {
            interruptible(&context.signals, &store, store.alter_in_place(&wish)).await?;
            if self.output.json {
                output::document(&json!({ "altered": "in_place" }));
            } else {
                output::line(&format!("{} is changed, in place", self.table));
            }
            return Ok(Outcome::Done);
        }
        let on_ready = if self.swap { "swap" } else { "wait" };
        let change = interruptible(&context.signals, &store, store.create_shadow(&wish, on_ready)).await?;
        info!(change, "change created");
        drop(store);
        run::to_the_end(&context, change, self.jobs, &self.output).await
    }

    /// Whether the way without a shadow is the right one. Of itself this program never chooses what the server would not:
    /// in place a small table may be rewritten under a lock, but only for somebody who asked for just that.
    async fn is_in_place(&self, context: &Context, store: &Store, wish: &Wish<'_>) -> anyhow::Result<bool> {
        let needs_shadow = wish.actions.is_none() || self.shadow.is_some();
        Ok(match self.strategy {
            Strategy::Shadow => false,
            Strategy::InPlace => true,
            Strategy::Auto if needs_shadow => false,
            Strategy::Auto => !interruptible(&context.signals, store, store.takes_shadow(wish)).await?,
        })
    }

    async fn explain(
        &self,
        context: &Context,
        store: &Store,
        wish: &Wish<'_>,
        in_place: bool,
    ) -> anyhow::Result<Outcome> {
        let steps = if in_place {
            interruptible(&context.signals, store, store.explain_in_place(wish)).await?
        } else {
            interruptible(&context.signals, store, store.explain(wish)).await?
        };
        if self.output.json {
            output::document(&json!({ "dry_run": true, "steps": steps }));
        } else {
            let row = |step: crate::store::PlanStep| {
                vec![
                    step.ordinal.to_string(),
                    or_dash(step.step.as_deref()),
                    or_dash(step.object.as_deref()),
                    or_dash(step.statement.as_deref()),
                    or_dash(step.lock.as_deref()),
                    or_dash(step.held.as_deref()),
                    or_dash(step.bytes.map(|bytes| bytes.to_string()).as_deref()),
                    or_dash(step.seconds.map(|seconds| seconds.to_string()).as_deref()),
                    or_dash(step.note.as_deref()),
                ]
            };
            output::table(
                &["", "STEP", "OBJECT", "STATEMENT", "LOCK", "HELD", "BYTES", "SECONDS", "NOTE"],
                steps.into_iter().map(row),
            );
        }
        Ok(Outcome::Done)
    }
}
