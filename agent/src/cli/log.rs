//! `migrator log`

use super::Outcome;
use super::context::Context;
use super::output::{self, Output, moment, or_dash};
use super::selector::Select;
use crate::db::Limits;
use crate::store::Event;
use clap::Args;
use serde_json::{Value, json};
use std::time::Duration;

/// Show everything that happened to a change
///
/// With --follow new events are shown as they come, until the change is over; with --json each is a line of its own then.
#[derive(Debug, Args)]
pub struct Log {
    #[command(flatten)]
    select: Select,
    /// Wait for more
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    pub(super) output: Output,
}

impl Log {
    pub(super) async fn run(self, context: Context) -> anyhow::Result<Outcome> {
        let store = context.store("log", Limits::Short).await?;
        let change = self.select.any_change(&store).await?.change;
        let mut last = 0;
        loop {
            // Looked up before the events, so that those of the end are still shown.
            let over = !store.changes(false).await?.iter().any(|open| open.change == change);
            let events = store.log(change, last).await?;
            last = events.last().map_or(last, |event| event.id);
            if self.output.json && !self.follow {
                output::document(&json!({ "events": events }));
            } else {
                events.iter().for_each(|event| self.show(event));
            }
            if !self.follow || over {
                return Ok(Outcome::Done);
            }
            tokio::select! {
                () = context.signals.stop.cancelled() => return Ok(Outcome::Done),
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    }

    fn show(&self, event: &Event) {
        if self.output.json {
            output::document(&json!({ "event": event }));
            return;
        }
        let facts = match &event.detail {
            Value::Object(facts) if !facts.is_empty() => format!("  {}", event.detail),
            _ => String::new(),
        };
        output::line(&format!(
            "{}  {}  {:<16} {}{facts}",
            moment(Some(&event.at)),
            or_dash(event.source.as_deref()),
            event.kind,
            event.message
        ));
    }
}
