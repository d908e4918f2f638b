//! `migrator upgrade run` and `verify`: a table's upgrades in the foreground.

use super::select::{Pick, Picked};
use super::{order, shown};
use crate::cli::Outcome;
use crate::cli::context::Context;
use crate::cli::output::{self, Output};
use crate::cli::progress::{Look, Progress};
use crate::cli::run::default_jobs;
use crate::db::Limits;
use crate::engine::{Changes, End, Goal, UpgradeGoal, Upgrades, interruptible};
use crate::store::{Selector, Upgrade, UpgradeFilter, UpgradeOrder, UpgradeStep, pick};
use anyhow::bail;
use clap::Args;
use serde_json::json;
use std::time::Instant;

/// Bring all rows of a table up, in batches over several connections
///
/// Stop it or kill it at any time and run it again: each row is upgraded once. A paused table is waited for. Exit status 1
/// when something is left that only people or application code can do: rows set aside, a blocked upgrade. Where an upgrade
/// is done by writing the table anew (strategy rewrite), that change is driven first, until it has swapped.
///
/// Example: migrator upgrade run article --workers 4
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    pick: Pick,
    /// Until this upgrade is complete, whatever the others need
    #[arg(long)]
    name: Option<String>,
    /// Connections for batches; VACUUM runs on one of its own
    #[arg(long, visible_alias = "jobs", value_name = "N")]
    workers: Option<usize>,
    /// Show what there is to do; write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub(super) output: Output,
}

/// Look at every row of a table again, and bring up those that lack something
///
/// Exit status as for `migrator upgrade run`.
///
/// Example: migrator upgrade verify article
#[derive(Debug, Args)]
pub struct Verify {
    #[command(flatten)]
    pick: Pick,
    /// Connections for batches
    #[arg(long, visible_alias = "jobs", value_name = "N")]
    workers: Option<usize>,
    /// Show for which upgrades that would be; write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub(super) output: Output,
}

impl Run {
    pub(super) async fn run(self, context: Context) -> anyhow::Result<Outcome> {
        let store = context.store("upgrade", Limits::Short).await?;
        let mut picked = self.pick.picked(&store).await?;
        drop(store);
        if let Some(name) = &self.name {
            picked.named(name)?;
        }
        if self.dry_run {
            if let Some(name) = &self.name {
                picked.upgrades.retain(|upgrade| upgrade.name == *name);
            }
            return Ok(foresee(&picked, &self.output));
        }
        to_the_end(&context, &picked, self.name, self.workers, &self.output).await
    }
}

impl Verify {
    pub(super) async fn run(self, context: Context) -> anyhow::Result<Outcome> {
        let store = context.store("upgrade", Limits::Work).await?;
        let picked = self.pick.picked(&store).await?;
        if self.dry_run {
            order::foresee(&picked, "would have every row looked at again", &self.output);
            return Ok(Outcome::Done);
        }
        let call = store.upgrade_order(UpgradeOrder::Verify, picked.table);
        interruptible(&context.signals, &store, call).await?;
        drop(store);
        to_the_end(&context, &picked, None, self.workers, &self.output).await
    }
}

fn foresee(picked: &Picked, output: &Output) -> Outcome {
    let open: Vec<&Upgrade> = picked.upgrades.iter().filter(|upgrade| upgrade.is_open()).collect();
    if output.json {
        output::document(&json!({ "dry_run": true, "relation": picked.relation, "upgrades": open }));
    } else if open.is_empty() {
        output::line(&format!("upgrades of {} are complete", picked.relation));
    } else {
        shown::stand(&open.into_iter().cloned().collect::<Vec<_>>());
    }
    Outcome::Done
}

/// Drives a table's upgrades until no step can do more, and says where they stand then.
async fn to_the_end(
    context: &Context,
    picked: &Picked,
    name: Option<String>,
    workers: Option<usize>,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let workers = workers.or(context.jobs).unwrap_or_else(default_jobs).max(1);
    for change in picked.upgrades.iter().filter_map(|upgrade| upgrade.change) {
        through_change(context, &picked.relation, change, workers, output).await?;
    }
    let mut progress = Progress::new(output.json || context.quiet, &context.log);
    let goal = UpgradeGoal::Table { relation: picked.relation.clone(), name: name.clone() };
    let end = Upgrades::drive(context.target.clone(), goal, workers, context.signals.clone())
        .run(|upgrades, reason| {
            if let Some(look) = shown::looked(upgrades, reason) {
                progress.show(look, Instant::now());
            }
        })
        .await;
    progress.end();
    let step = match end {
        End::Done(step) => step,
        End::Failed(unfit) => return Err(unfit.into()),
        End::Interrupted => bail!(
            "interrupted; nothing is lost: go on with `migrator upgrade run {}`, or leave it to an agent",
            picked.relation
        ),
    };
    let store = context.store("look", Limits::Short).await?;
    let mut now = store.upgrades(UpgradeFilter { table: None, name: name.as_deref() }).await?;
    now.retain(|upgrade| upgrade.relation == picked.relation);
    Ok(conclude(&picked.relation, &now, &step, output.json))
}

/// Drives the change that writes the table anew for an upgrade, to its end: it swaps by itself.
async fn through_change(
    context: &Context,
    relation: &str,
    change: i64,
    workers: usize,
    output: &Output,
) -> anyhow::Result<()> {
    let mut progress = Progress::new(output.json || context.quiet, &context.log);
    let end = Changes::drive(context.target.clone(), Goal::Change(change), workers, context.signals.clone())
        .run(|changes, reason| {
            if let Some(change) = changes.first() {
                progress.show(Look::at_change(change, reason), Instant::now());
            }
        })
        .await;
    progress.end();
    match end {
        End::Failed(unfit) => return Err(unfit.into()),
        End::Interrupted => {
            bail!("interrupted; nothing is lost: go on with `migrator upgrade run {relation}`, or leave it to an agent")
        }
        End::Done(_) => {}
    }
    let store = context.store("look", Limits::Short).await?;
    let now = pick(&store.changes(true).await?, &Selector::Change(change))?.clone();
    if !output.json {
        let next = output::or_dash(now.next_step.as_deref());
        output::line(&format!("change {change}, which wrote {relation} anew, is {}; next: {next}", now.state));
    }
    Ok(())
}

fn conclude(relation: &str, now: &[Upgrade], step: &UpgradeStep, json: bool) -> Outcome {
    let complete = step.state == "complete";
    // What the database says is to be done next: for the first that needs somebody, else for the first that is not complete.
    let needs_somebody = |upgrade: &&Upgrade| upgrade.state == "blocked" || upgrade.failed.unwrap_or(0) > 0;
    let open = || now.iter().filter(|upgrade| !complete && upgrade.is_open());
    let hint = open().find(needs_somebody).or_else(|| open().next()).and_then(|upgrade| upgrade.next_step.clone());
    if json {
        output::document(&json!({"relation": relation, "state": step.state, "reason": step.reason, "hint": hint,
            "upgrades": now}));
    } else if complete {
        let names: Vec<&str> = now.iter().map(|upgrade| upgrade.name.as_str()).collect();
        let names = if names.is_empty() { String::new() } else { format!(": {}", names.join(", ")) };
        output::line(&format!("upgrades of {relation} are complete{names}"));
    } else {
        let reason = output::or_dash(step.reason.as_deref());
        output::line(&format!("upgrades of {relation} are not complete, {}: {reason}", step.state));
        if let Some(hint) = hint.filter(|hint| !reason.contains(hint.as_str())) {
            output::line(&format!("HINT: {hint}"));
        }
    }
    if complete { Outcome::Done } else { Outcome::Negative }
}
