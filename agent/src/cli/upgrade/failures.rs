//! `migrator upgrade retry` and `waive`: what becomes of rows that were set aside.

use super::list::set_aside;
use super::select::{Pick, Picked};
use crate::cli::Outcome;
use crate::cli::context::Context;
use crate::cli::output::{self, Output, count};
use crate::db::Limits;
use crate::engine::interruptible;
use crate::store::{Store, UpgradeFilter};
use clap::Args;
use serde_json::{Value, json};

/// Try rows that were set aside again
///
/// Whatever was in their way should be gone: a value mended, a function replaced. Rows that application code upgrades are
/// handed out again. Exit status 1 when some are still set aside.
///
/// Example: migrator upgrade retry article --name words --key '{"id": "4711"}'
#[derive(Debug, Args)]
pub struct Retry {
    #[command(flatten)]
    pick: Pick,
    /// Those of this upgrade
    #[arg(long)]
    name: Option<String>,
    /// The row with this key, as `upgrade status` shows it
    #[arg(long, value_name = "JSON", value_parser = key)]
    key: Option<Value>,
    /// Show which rows; write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub(super) output: Output,
}

/// Let rows that were set aside stay as they are: they count as upgraded
///
/// Exit status 1 when some are still set aside, because somebody has locked them, say.
///
/// Example: migrator upgrade waive article --name words --reason 'withdrawn in 2009'
#[derive(Debug, Args)]
pub struct Waive {
    #[command(flatten)]
    pick: Pick,
    /// Those of this upgrade
    #[arg(long)]
    name: String,
    /// The row with this key, as `upgrade status` shows it
    #[arg(long, value_name = "JSON", value_parser = key)]
    key: Option<Value>,
    /// Why, for the log
    #[arg(long)]
    reason: Option<String>,
    /// Show which rows; write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub(super) output: Output,
}

fn key(text: &str) -> Result<Value, String> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err("not a JSON object, like {\"id\": \"4711\"}".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

impl Retry {
    pub(super) async fn run(self, context: Context) -> anyhow::Result<Outcome> {
        let store = context.store("upgrade", Limits::Work).await?;
        let picked = self.pick.picked(&store).await?;
        let (name, key) = (self.name.as_deref(), self.key.as_ref().map(Value::to_string));
        if let Some(name) = name {
            picked.named(name)?;
        }
        if self.dry_run {
            return foresee(&store, &picked, name, key.as_deref(), "tried again", &self.output).await;
        }
        let call = store.retry_failed(picked.table, name, key.as_deref());
        let rows = interruptible(&context.signals, &store, call).await?;
        told(&store, &picked, name, key.as_deref(), rows, "are not set aside any more", &self.output).await
    }
}

impl Waive {
    pub(super) async fn run(self, context: Context) -> anyhow::Result<Outcome> {
        let store = context.store("upgrade", Limits::Work).await?;
        let picked = self.pick.picked(&store).await?;
        picked.named(&self.name)?;
        let key = self.key.as_ref().map(Value::to_string);
        if self.dry_run {
            return foresee(&store, &picked, Some(&self.name), key.as_deref(), "waived", &self.output).await;
        }
        let call = store.waive_failed(picked.table, &self.name, key.as_deref(), self.reason.as_deref());
        let rows = interruptible(&context.signals, &store, call).await?;
        told(&store, &picked, Some(&self.name), key.as_deref(), rows, "were waived", &self.output).await
    }
}

async fn foresee(
    store: &Store,
    picked: &Picked,
    name: Option<&str>,
    key: Option<&str>,
    word: &str,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let filter = UpgradeFilter { table: Some(picked.table), name };
    let (rows, failures) = store.upgrade_failures(filter, key).await?;
    if output.json {
        output::document(&json!({"dry_run": true, "relation": picked.relation, "name": name, "rows": rows,
            "failures": failures}));
    } else {
        output::line(&format!("{} row(s) of {} would be {word}", count(Some(rows)), picked.relation));
        if !failures.is_empty() {
            set_aside(&failures);
        }
    }
    Ok(if failures.is_empty() && key.is_some() { Outcome::Negative } else { Outcome::Done })
}

async fn told(
    store: &Store,
    picked: &Picked,
    name: Option<&str>,
    key: Option<&str>,
    rows: i64,
    words: &str,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let filter = UpgradeFilter { table: Some(picked.table), name };
    let (_, left) = store.upgrade_failures(filter, key).await?;
    if output.json {
        output::document(&json!({"dry_run": false, "relation": picked.relation, "name": name, "rows": rows,
            "failures": left}));
    } else {
        output::line(&format!("{} row(s) of {} {words}", count(Some(rows)), picked.relation));
        if !left.is_empty() {
            set_aside(&left);
        }
    }
    Ok(if left.is_empty() { Outcome::Done } else { Outcome::Negative })
}
