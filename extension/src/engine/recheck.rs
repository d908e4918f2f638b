//! `migrator.verify`: the whole comparison in one call, for somebody who wants to know now. A function cannot commit, so it
//! is one transaction, with a snapshot that lasts until its end.

use crate::engine::change::Change;
use crate::engine::{guard, owner, reconcile, sync, verify};
use migrator_core::failure::Failure;
use migrator_core::state::State;

/// Catches up, compares everything, mends what differs and compares again. Returns rows compared in the last round,
/// rows that differed in all rounds, and the rounds. The caller holds the change `Alone`.
pub fn whole(mut change: Change) -> Result<(i64, i64, i32), Failure> {
    guard::may_go_on(&change)?;
    guard::fresh_snapshots("migrator.verify")?;
    match change.state {
        State::CatchingUp | State::Verifying | State::Ready => {}
        State::Created | State::Syncing | State::Copying | State::Indexing => {
            return Err(change.not_now(&format!("it is {}, and there is nothing to compare yet", change.state)));
        }
        State::Swapped | State::Finished | State::Cancelled => {
            return Err(change.not_now(&format!("it is {}, and verify compares before a swap", change.state)));
        }
    }
    sync::check_ground(&change)?;
    owner::follow(&change)?;
    let mut differed = 0;
    for round in 1..=3 {
        loop {
            let taken = reconcile::batch(&change, 1)?;
            if taken.taken == 0 && !taken.truncated {
                break;
            }
        }
        if change.state != State::CatchingUp {
            change.set_state(State::CatchingUp)?;
        }
        verify::lay_out(&change)?;
        change.set_state(State::Verifying)?;
        while let verify::Verified::Rows(..) = verify::batch(&change, 1)? {
            pgrx::check_for_interrupts!();
        }
        let (rows, mismatched) = verify::total(&change)?;
        differed += mismatched;
        if mismatched == 0 {
            change.set_state(State::Ready)?;
            return Ok((rows, differed, round));
        }
    }
    let (rows, _) = verify::total(&change)?;
    change.set_state(State::CatchingUp)?;
    Ok((rows, differed, 3))
}
