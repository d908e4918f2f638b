//! The states of a change: who sets each, who waits on it, what a restart does with it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a change stands. The text form is what the database stores and users see.
///
/// Paused and blocked are not states of their own: they are marks on top of a state
/// (`change.paused_at`, `change.blocked`), so that resuming needs no memory of where it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The shadow exists and is empty. Set by `create_shadow`. A restart finds nothing to mend.
    Created,
    /// Capture is on, the copy is not yet laid out. Set by `start_sync`.
    Syncing,
    /// Block ranges are being copied. Each batch commits rows and cursor together, so a restart goes on at the cursor.
    Copying,
    /// The first reconcile is done; indexes are being built, one transaction each. A restart builds the missing ones.
    Indexing,
    /// The key log is being replayed. A restart goes on with what the log still holds.
    CatchingUp,
    /// Chunks are being compared. A restart goes on with the chunks that are not done.
    Verifying,
    /// Verified, and kept in step until `swap`.
    Ready,
    /// The shadow is the live table; the backup is kept in step until `rollback` or `finish`.
    Swapped,
    /// The backup is gone. Final.
    Finished,
    /// Given up before the swap; the shadow is gone. Final.
    Cancelled,
}

impl State {
    /// All states, in the order in which a change passes through them.
    pub const ALL: [State; 10] = [
        State::Created,
        State::Syncing,
        State::Copying,
        State::Indexing,
        State::CatchingUp,
        State::Verifying,
        State::Ready,
        State::Swapped,
        State::Finished,
        State::Cancelled,
    ];

    /// The stored text.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Created => "created",
            State::Syncing => "syncing",
            State::Copying => "copying",
            State::Indexing => "indexing",
            State::CatchingUp => "catching_up",
            State::Verifying => "verifying",
            State::Ready => "ready",
            State::Swapped => "swapped",
            State::Finished => "finished",
            State::Cancelled => "cancelled",
        }
    }

    /// The state that a stored text names.
    pub fn parse(text: &str) -> Option<State> {
        State::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// Whether a change in this state still owns objects in the database.
    pub fn is_open(self) -> bool {
        !matches!(self, State::Finished | State::Cancelled)
    }

    /// Whether a change may go from `self` to `next`.
    pub fn may_become(self, next: State) -> bool {
        use State::*;
        match (self, next) {
            (Created, Syncing)
            | (Syncing, Copying)
            | (Copying, Indexing)
            | (Indexing, CatchingUp)
            | (CatchingUp, Verifying)
            | (Verifying, Ready)
            | (Ready, Swapped)
            | (Swapped, Finished) => true,
            // verify found rows to mend, or was asked for again
            (Verifying | Ready, CatchingUp) | (Ready, Verifying) => true,
            // rollback: the old table is live again and the new one is kept in step
            (Swapped, CatchingUp) => true,
            // the copy was voided (rewritten table, capture switched off): begin again
            (Syncing | Copying | Indexing | CatchingUp | Verifying | Ready, Syncing) => true,
            (Created | Syncing | Copying | Indexing | CatchingUp | Verifying | Ready, Cancelled) => true,
            _ => false,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_state_are_one_to_one() {
        for state in State::ALL {
            assert_eq!(State::parse(state.as_str()), Some(state));
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
        assert_eq!(State::parse("done"), None);
    }

    #[test]
    fn what_is_over_stays_over() {
        for over in [State::Finished, State::Cancelled] {
            assert!(State::ALL.into_iter().all(|next| !over.may_become(next)));
        }
        assert!(!State::Swapped.may_become(State::Cancelled), "after the swap only rollback or finish");
    }
}
