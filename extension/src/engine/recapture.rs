//! Capture on again where the tables must stay as they are: after a swap, and after a rollback.
//!
//! Whatever was written while it was off is found by comparing all rows of both tables, as after a TRUNCATE. The rear keeps
//! what only its shape has, which a copy begun anew would throw away.

use crate::capture::{log, switch};
use crate::catalog::lock::{self, Mode, Wanted};
use crate::catalog::spi;
use crate::engine::change::Change;
use crate::engine::owner;
use migrator_core::failure::{Failure, code};
use migrator_core::ident::Ident;
use migrator_core::sql::Direction;
use migrator_core::state::State;
use serde_json::json;

/// Whether the capture triggers are not those that were put on the front.
pub fn is_broken(change: &Change) -> Result<bool, Failure> {
    let (front, _) = change.front_and_rear()?;
    Ok(change.capture.as_deref() != Some(switch::fingerprint(change.id, &front)?.as_str()))
}

/// Puts the triggers on the front anew and says in the log that all has to be compared. The caller holds the change `Alone`.
///
/// The lock proves that every writer that went unseen has ended; so each snapshot after our commit sees their rows, and
/// the mark with them.
pub fn again(change: &mut Change) -> Result<State, Failure> {
    owner::follow(change)?;
    let direction = change.direction();
    let (front, _) = change.front_and_rear()?;
    let key: Vec<Ident> = change
        .plan
        .key
        .iter()
        .map(|column| if direction == Direction::Forward { column.old.clone() } else { column.new.clone() })
        .collect();
    let exchanged: Option<u64> = change
        .swap_xid
        .as_ref()
        .map(|xid| xid.parse().map_err(|_| Failure::new(code::INTERNAL, "a transaction id is not a number")))
        .transpose()?;
    let what = format!("capture could not be switched on for table {}", change.name().plain());
    lock::settle(&what, &[front.oid])?;
    lock::series(
        &what,
        lock::ATTEMPTS,
        // Dropping the triggers of before takes the strongest lock.
        || Ok(vec![Wanted { relation: front.oid, mode: Mode::AccessExclusive }]),
        || Ok(()),
        || {
            switch::switch_off(change.id, &front)?;
            switch::switch_on(change.id, direction, &front, &key, exchanged)
        },
    )?;
    spi::execute(&format!("insert into {} default values", log::marker(change.id, direction)), &[])?;
    let fingerprint = switch::fingerprint(change.id, &front)?;
    spi::execute(
        "update migrator.change set sync_xid = pg_catalog.pg_current_xact_id(), capture = $2, verify_rounds = 0, blocked = null, blocked_hint = null where id = $1",
        &[change.id.into(), fingerprint.into()],
    )?;
    change.event("capture", "capture switched on again; all rows of both tables will be compared", json!({}))?;
    if matches!(change.state, State::Verifying | State::Ready) {
        change.set_state(State::CatchingUp)?;
    }
    Ok(change.state)
}
