//! What to do after a call of `advance`. Pure: the clock and chance are the caller's.

use crate::db::Class;
use crate::store::Advance;
use migrator_core::state::State;
use std::time::Duration;

/// What a call brought.
#[derive(Debug)]
pub enum Observation<'a> {
    /// It returned.
    Advanced(&'a Advance),
    /// It failed.
    Failed(Class),
}

/// What to do with the change now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Call again at once; others may call too. Ends when a call says otherwise.
    Again,
    /// Leave it alone for so long.
    Wait(Duration),
    /// Nothing to do before somebody decides; keep it in step by a call now and then.
    Rest(Duration),
    /// It is finished or cancelled. Nobody calls again.
    Over,
    /// The connection is worth nothing; a new one, later each time.
    Reconnect,
    /// A lock or a resource was not to be had; the same, later each time.
    BackOff,
    /// The transaction lost a race; the same, soon.
    Retry,
    /// Only a person can help; other changes go on. Ends when the change's state changes.
    Stop,
}

/// A call that did nothing and names no time is not repeated faster than this.
const LEAST_WAIT: Duration = Duration::from_millis(50);
/// How often a change that rests is looked after.
const STEP_IN: Duration = Duration::from_secs(1);
/// A longer sleep than this is not believed: somebody may resume the change meanwhile.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The action that follows from an observation.
pub fn decide(observation: &Observation<'_>) -> Action {
    let advance = match observation {
        Observation::Advanced(advance) => advance,
        Observation::Failed(Class::Reconnect) => return Action::Reconnect,
        Observation::Failed(Class::BackOff) => return Action::BackOff,
        Observation::Failed(Class::Retry) => return Action::Retry,
        Observation::Failed(Class::Stop) => return Action::Stop,
    };
    let wait = Duration::from_millis(advance.wait_ms.unwrap_or(0).max(0).unsigned_abs()).min(LONGEST_WAIT);
    if State::parse(&advance.state).is_some_and(|state| !state.is_open()) {
        Action::Over
    } else if advance.done {
        Action::Rest(wait.max(STEP_IN))
    } else if !wait.is_zero() {
        Action::Wait(wait)
    } else if !advance.is_work() {
        Action::Wait(LEAST_WAIT)
    } else {
        Action::Again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(state: &str, step: &str, done: bool, wait_ms: Option<i64>) -> Action {
        let advance = Advance { state: state.into(), step: step.into(), done, wait_ms, ..Advance::default() };
        decide(&Observation::Advanced(&advance))
    }

    #[test]
    fn what_follows_a_call() {
        let ms = Duration::from_millis;
        assert_eq!(after("copying", "copy", false, Some(0)), Action::Again);
        assert_eq!(after("copying", "copy", false, None), Action::Again);
        assert_eq!(after("copying", "copy", false, Some(-5)), Action::Again);
        assert_eq!(after("copying", "copy", false, Some(400)), Action::Wait(ms(400)), "a hold is obeyed");
        assert_eq!(after("indexing", "wait", false, Some(0)), Action::Wait(LEAST_WAIT), "no spinning");
        assert_eq!(after("indexing", "wait", false, Some(9_000_000)), Action::Wait(LONGEST_WAIT));
        assert_eq!(after("ready", "ready", true, Some(0)), Action::Rest(STEP_IN));
        assert_eq!(after("swapped", "idle", true, Some(5000)), Action::Rest(ms(5000)));
        assert_eq!(after("finished", "idle", true, Some(0)), Action::Over);
        assert_eq!(after("cancelled", "wait", false, Some(100)), Action::Over);
        assert_eq!(after("a_later_phase", "copy", false, Some(0)), Action::Again, "a later version knows what it does");
    }

    #[test]
    fn what_follows_a_failure() {
        for (class, action) in [
            (Class::Reconnect, Action::Reconnect),
            (Class::BackOff, Action::BackOff),
            (Class::Retry, Action::Retry),
            (Class::Stop, Action::Stop),
        ] {
            assert_eq!(decide(&Observation::Failed(class)), action);
        }
    }
}
