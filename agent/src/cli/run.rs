//! Driving one change in the foreground, for `alter` and `prepare`.

use super::Outcome;
use super::context::Context;
use super::output::{self, Output};
use super::progress::{Look, Progress};
use crate::db::Limits;
use crate::engine::{Changes, End, Goal};
use crate::store::{Change, Selector, pick};
use anyhow::bail;
use migrator_core::state::State;
use serde_json::json;
use std::time::Instant;

/// Only a person can help.
#[derive(Debug, thiserror::Error)]
#[error("change {id} of {table} is blocked: {reason}")]
pub struct Blocked {
    id: i64,
    table: String,
    reason: String,
    /// What to do, in the database's words.
    pub remedy: Option<String>,
}

/// Connections for work, where nobody says how many.
pub fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 4))
}

/// Drives a change until somebody must decide, and says where it stands then.
pub async fn to_the_end(
    context: &Context,
    change: i64,
    jobs: Option<usize>,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let jobs = jobs.or(context.jobs).unwrap_or_else(default_jobs).max(1);
    let mut progress = Progress::new(output.json || context.quiet, &context.log);
    let drive = Changes::drive(context.target.clone(), Goal::Change(change), jobs, context.signals.clone());
    let end = drive
        .run(|changes, reason| {
            if let Some(change) = changes.first() {
                progress.show(Look::at_change(change, reason), Instant::now());
            }
        })
        .await;
    progress.end();
    match end {
        End::Failed(unfit) => return Err(unfit.into()),
        End::Interrupted => bail!(
            "interrupted; nothing is lost: go on with `migrator prepare --change {change}`, or leave it to an agent"
        ),
        End::Done(_) => {}
    }
    let store = context.store("look", Limits::Short).await?;
    let now = pick(&store.changes(true).await?, &Selector::Change(change))?.clone();
    if output.json {
        output::document(&json!({ "change": now }));
    }
    conclude(&now, output.json)
}

fn conclude(change: &Change, json: bool) -> anyhow::Result<Outcome> {
    let (id, table) = (change.change, &change.relation);
    let say = |text: String| {
        if !json {
            output::line(&text);
        }
    };
    if change.state == "blocked" {
        let (reason, remedy) = (output::or_dash(change.waits_for.as_deref()), change.next_step.clone());
        return Err(Blocked { id, table: table.clone(), reason, remedy }.into());
    }
    match change.phase() {
        Some(State::Ready) => {
            say(format!("change {id} of {table} is ready; go over to it with: migrator swap --change {id}"))
        }
        Some(State::Swapped) => say(format!(
            "change {id} of {table} is swapped; keep it with: migrator finish --change {id}, \
             or take it back with: migrator rollback --change {id}"
        )),
        Some(State::Finished) => say(format!("change {id} of {table} is finished")),
        Some(State::Cancelled) => {
            say(format!("change {id} of {table} was cancelled"));
            return Ok(Outcome::Negative);
        }
        Some(
            State::Created | State::Syncing | State::Copying | State::Indexing | State::CatchingUp | State::Verifying,
        )
        | None => {
            say(format!("change {id} of {table} is {}", change.state));
            return Ok(Outcome::Negative);
        }
    }
    Ok(Outcome::Done)
}
