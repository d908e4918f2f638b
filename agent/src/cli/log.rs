//! `migrator log`

use super::Outcome;
use super::context::Context;
use super::output::{self, Output, moment, or_dash};
use super::selector::Select;
use crate::db::Limits;
use crate::store::{Event, SelectorError, Upgrade, UpgradeFilter};
use clap::Args;
use serde_json::{Value, json};
use std::time::Duration;

/// Show everything that happened to a change, or to a table: its last change and its upgrades of rows
///
/// With --follow new events are shown as they come, until the change is over and no upgrade is under way; with --json each is a line of its own then.
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
        let table = self.select.table(&store).await?;
        let upgrades = UpgradeFilter { table, name: None };
        let change = match self.select.any_change(&store).await {
            Ok(change) => Some(change.change),
            Err(error) => match table {
                // A table may have, or have had, upgrades and no change.
                Some(table) if error.is::<SelectorError>() && !store.upgrade_log(table, 0).await?.is_empty() => None,
                _ => return Err(error),
            },
        };
        let (mut last, mut last_of_upgrades) = (0, 0);
        loop {
            // Looked up before the events, so that those of the end are still shown.
            let mut over = !store.changes(false).await?.iter().any(|open| Some(open.change) == change);
            let mut events = match change {
                Some(change) => store.log(change, last).await?,
                None => vec![],
            };
            last = events.last().map_or(last, |event| event.id);
            if let Some(table) = table {
                over = over && !store.upgrades(upgrades).await?.iter().any(Upgrade::is_open);
                let of_upgrades = store.upgrade_log(table, last_of_upgrades).await?;
                last_of_upgrades = of_upgrades.last().map_or(last_of_upgrades, |event| event.id);
                events = by_time(events, of_upgrades);
            }
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

/// Two lists, each in the order in which it was written, as one.
fn by_time(one: Vec<Event>, other: Vec<Event>) -> Vec<Event> {
    let mut both = Vec::with_capacity(one.len() + other.len());
    let (mut one, mut other) = (one.into_iter().peekable(), other.into_iter().peekable());
    loop {
        let next = match (one.peek(), other.peek()) {
            // Of one session, so in one time zone: in text form, too, the earlier one comes first.
            (Some(a), Some(b)) if b.at < a.at => other.next(),
            (Some(_), _) => one.next(),
            (None, _) => other.next(),
        };
        match next {
            Some(event) => both.push(event),
            None => return both,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_logs_are_told_by_time() {
        let event = |id: i64, at: &str| -> Event {
            serde_json::from_value(json!({"id": id, "at": at, "kind": "k", "message": "m"})).unwrap()
        };
        let one = vec![event(1, "2026-01-31T12:00:00+00:00"), event(2, "2026-01-31T12:00:02.5+00:00")];
        let other = vec![event(7, "2026-01-31T12:00:00.000001+00:00"), event(8, "2026-01-31T12:00:02.51+00:00")];
        let ids: Vec<i64> = by_time(one, other).iter().map(|event| event.id).collect();
        assert_eq!(ids, [1, 7, 2, 8]);
        assert!(by_time(vec![], vec![]).is_empty());
    }
}
