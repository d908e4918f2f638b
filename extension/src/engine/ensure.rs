//! `migrator.ensure_changed`: an application migration that depends on an earlier change waits for it here.

use crate::catalog::lock;
use crate::catalog::relation::Relation;
use crate::catalog::spi;
use crate::engine::guard;
use migrator_core::failure::{Failure, code};
use migrator_core::state::State;
use serde::Deserialize;
use std::time::{Duration, Instant};

#[derive(Deserialize)]
struct Last {
    id: i64,
    state: State,
    on_ready: String,
    waits_for: Option<String>,
    next_step: Option<String>,
}

/// Waits until the last change of a table is swapped or finished. Looks five times a second, each time under a new snapshot.
pub fn changed(relation: u32, wait: Duration) -> Result<bool, Failure> {
    guard::fresh_snapshots("migrator.ensure_changed")?;
    let end = Instant::now() + wait;
    let name = Relation::get(relation)?.name.plain();
    loop {
        let Some(last) = last(relation)? else {
            return Err(Failure::new(code::UNDEFINED_OBJECT, format!("table {name} has no change"))
                .detail("Nothing was ever begun for it, so there is nothing to wait for.")
                .hint(format!("Begin one: select migrator.create_shadow('{name}', 'alter …', on_ready => 'swap');")));
        };
        match last.state {
            State::Swapped | State::Finished => return Ok(true),
            State::Cancelled => {
                return Err(Failure::new(
                    code::NOT_IN_STATE,
                    format!("change {} of table {name} was cancelled", last.id),
                )
                .hint(format!(
                    "Begin it anew: select migrator.create_shadow('{name}', 'alter …', on_ready => 'swap');"
                )));
            }
            State::Created
            | State::Syncing
            | State::Copying
            | State::Indexing
            | State::CatchingUp
            | State::Verifying
            | State::Ready => {}
        }
        if Instant::now() >= end {
            let waits = last.waits_for.unwrap_or_else(|| "the agent".to_owned());
            let hint = match (last.state, last.on_ready.as_str()) {
                (State::Ready, "wait") => format!("Swap it: select * from migrator.swap(change => {});", last.id),
                _ => format!(
                    "Run this migration again later, or wait longer: migrator.ensure_changed('{name}', wait => '1 hour'). Without an agent, drive it yourself: {}",
                    last.next_step.unwrap_or_default()
                ),
            };
            return Err(Failure::new(
                code::NOT_IN_STATE,
                format!("change {} of table {name} is {}, not yet swapped", last.id, last.state),
            )
            .detail(format!("It waits for: {waits}. Nothing was changed by this call."))
            .hint(hint));
        }
        // Seen by the swap, so that it does not wait for the snapshot of one who waits for it.
        lock::watch(last.id);
        lock::pause(Duration::from_millis(200).min(end.saturating_duration_since(Instant::now())));
    }
}

fn last(relation: u32) -> Result<Option<Last>, Failure> {
    spi::fetch_optional(
        "select c.id, c.state, c.on_ready, h.waits_for, h.next_step from migrator.change c left join migrator.history h on h.change = c.id \
         where $1 in (c.live, c.shadow) order by c.id desc limit 1",
        &[pgrx::pg_sys::Oid::from(relation).into()],
    )
}
