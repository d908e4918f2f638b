//! Whose turn it is. Pure: every moment is passed in.
//!
//! A change that has work is open to every worker; one whose last call found nothing to do is called by one worker at a
//! time, when it is due.

use crate::engine::decide::Action;
use crate::engine::delays::Delays;
use crate::store::{Advance, Change};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Changes and when each is due.
#[derive(Debug, Default)]
pub struct Board {
    cards: BTreeMap<i64, Card>,
}

#[derive(Debug)]
struct Card {
    change: Change,
    /// What was done last, for the connection's name.
    step: String,
    due: Instant,
    /// The last call found nothing to do.
    quiet: bool,
    /// Workers that are at it.
    active: usize,
    stopped: Stopped,
    delays: Delays,
    /// Why the last call did nothing.
    reason: Option<String>,
}

/// Whether only a person can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    /// No.
    No,
    /// Yes; what the change's state is now will be known at the next look.
    Just,
    /// Yes, and a change of its state since then means that somebody did something.
    Seen,
}

/// A worker's turn.
#[derive(Debug, PartialEq, Eq)]
pub struct Turn {
    /// The change to advance.
    pub change: i64,
    /// `copy:42`: what is probably next, for the connection's name.
    pub name: String,
}

impl Board {
    /// Takes over what the database says: new changes come on, those that are over go, and one that was stopped is
    /// tried again when its state has changed. Returns the changes that are new.
    pub fn refresh(&mut self, changes: &[Change], now: Instant) -> Vec<i64> {
        let mut new = Vec::new();
        self.cards.retain(|id, card| card.active > 0 || changes.iter().any(|change| change.change == *id));
        for change in changes {
            match self.cards.get_mut(&change.change) {
                Some(card) => {
                    let before = (&card.change.state, &card.change.phase, &card.change.state_since);
                    if card.stopped == Stopped::Just {
                        card.stopped = Stopped::Seen;
                    } else if before != (&change.state, &change.phase, &change.state_since) {
                        card.stopped = Stopped::No;
                        // Somebody decided something: a resting change may have work now.
                        card.due = card.due.min(now);
                    }
                    card.change = change.clone();
                }
                None => {
                    new.push(change.change);
                    let card = Card {
                        change: change.clone(),
                        step: change.phase.clone(),
                        due: now,
                        quiet: false,
                        active: 0,
                        stopped: Stopped::No,
                        delays: Delays::default(),
                        reason: None,
                    };
                    self.cards.insert(change.change, card);
                }
            }
        }
        new
    }

    /// The change that needs a worker most: due, and with the fewest workers.
    pub fn take(&mut self, now: Instant) -> Option<Turn> {
        let (id, card) = self
            .cards
            .iter_mut()
            .filter(|(_, card)| card.is_open() && card.due <= now)
            .min_by_key(|(_, card)| (card.active, card.due))?;
        card.active += 1;
        Some(Turn { change: *id, name: format!("{}:{id}", card.step) })
    }

    /// A worker's turn is over. Returns how long the change now rests, for the log.
    pub fn give_back(&mut self, change: i64, call: Option<&Advance>, action: Action, now: Instant) -> Duration {
        let Some(card) = self.cards.get_mut(&change) else { return Duration::ZERO };
        card.active -= 1;
        if let Some(call) = call {
            if call.is_work() {
                card.step.clone_from(&call.step);
            }
            card.reason = call.reason.clone().filter(|reason| !call.done && !reason.is_empty());
        }
        card.quiet = !matches!(action, Action::Again);
        let rest = match action {
            Action::Again => {
                card.delays.reset();
                Duration::ZERO
            }
            Action::Wait(time) | Action::Rest(time) => {
                card.delays.reset();
                time
            }
            Action::Retry | Action::BackOff | Action::Reconnect => card.delays.next(action),
            Action::Over | Action::Stop => {
                card.stopped = Stopped::Just;
                Duration::ZERO
            }
        };
        card.due = now + rest;
        rest
    }

    /// The changes that are not over, as far as is known.
    pub fn open(&self) -> Vec<i64> {
        self.cards
            .values()
            .map(|card| &card.change)
            .filter(|change| change.is_open())
            .map(|change| change.change)
            .collect()
    }

    /// Why the last call for a change did nothing, if it did nothing and nobody else is at it.
    pub fn reason(&self, change: i64) -> Option<&str> {
        self.cards.get(&change).filter(|card| card.active == 0).and_then(|card| card.reason.as_deref())
    }

    /// When the next change is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.cards.values().filter(|card| card.is_open()).map(|card| card.due).min()
    }
}

impl Card {
    /// Whether a worker may take it when it is due.
    fn is_open(&self) -> bool {
        self.change.can_advance() && self.stopped == Stopped::No && !(self.quiet && self.active > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn change(id: i64, state: &str) -> Change {
        let value = json!({"change": id, "kind": "table", "relation": "t", "state": state,
            "phase": if state == "paused" || state == "blocked" { "copying" } else { state }, "started_ms": id});
        serde_json::from_value(value).unwrap()
    }

    fn call(step: &str, reason: Option<&str>) -> Advance {
        Advance { step: step.into(), reason: reason.map(str::to_owned), ..Advance::default() }
    }

    fn taken(board: &mut Board, now: Instant) -> Option<i64> {
        board.take(now).map(|turn| turn.change)
    }

    #[test]
    fn workers_spread_over_changes() {
        let (mut board, now) = (Board::default(), Instant::now());
        assert_eq!(board.refresh(&[change(1, "copying"), change(2, "copying"), change(3, "paused")], now), [1, 2, 3]);
        let turns: Vec<_> = (0..4).filter_map(|_| taken(&mut board, now)).collect();
        assert_eq!(turns.iter().filter(|id| **id == 1).count(), 2);
        assert_eq!(turns.iter().filter(|id| **id == 2).count(), 2);
    }

    #[test]
    fn a_quiet_change_has_one_worker_when_it_is_due() {
        let (mut board, now) = (Board::default(), Instant::now());
        board.refresh(&[change(1, "indexing")], now);
        assert_eq!(board.take(now), Some(Turn { change: 1, name: "indexing:1".to_owned() }));
        taken(&mut board, now).unwrap();
        board.give_back(1, Some(&call("wait", Some("a hold"))), Action::Wait(Duration::from_secs(1)), now);
        assert_eq!(board.reason(1), None, "somebody is still at it");
        assert_eq!(taken(&mut board, now), None, "not due");
        assert_eq!(taken(&mut board, now + Duration::from_secs(1)), None, "somebody is still at it");
        board.give_back(1, Some(&call("build", None)), Action::Again, now);
        assert_eq!(board.reason(1), None);
        assert_eq!(board.take(now).unwrap().name, "build:1");
        assert_eq!(taken(&mut board, now), Some(1), "there is work again, so for everybody");
        for _ in 0..2 {
            board.give_back(1, Some(&call("wait", Some("a hold"))), Action::Wait(Duration::from_secs(1)), now);
        }
        assert_eq!(board.reason(1), Some("a hold"));
    }

    #[test]
    fn what_is_stopped_waits_for_a_change_of_state() {
        let (mut board, now) = (Board::default(), Instant::now());
        board.refresh(&[change(1, "copying"), change(2, "copying")], now);
        assert_eq!(taken(&mut board, now), Some(1));
        board.give_back(1, None, Action::Stop, now);
        assert_eq!(taken(&mut board, now), Some(2), "others go on");
        board.give_back(2, None, Action::Rest(Duration::from_secs(9)), now);
        board.refresh(&[change(1, "copying")], now);
        assert_eq!(taken(&mut board, now), None);
        board.refresh(&[change(1, "blocked")], now);
        assert_eq!(taken(&mut board, now), None);
        board.refresh(&[change(1, "copying")], now);
        assert_eq!(taken(&mut board, now), Some(1));
    }

    #[test]
    fn failures_wait_longer_each_time_until_one_call_works() {
        let (mut board, now) = (Board::default(), Instant::now());
        board.refresh(&[change(1, "copying")], now);
        let mut delay = |action| {
            board.take(now + Duration::from_secs(3600)).unwrap();
            board.give_back(1, None, action, now)
        };
        let delays: Vec<_> = (0..10).map(|_| delay(Action::BackOff)).collect();
        assert!(delays[0] < Duration::from_secs(1) && delays[9] >= Duration::from_secs(30), "{delays:?}");
        delay(Action::Again);
        assert!(delay(Action::BackOff) < Duration::from_secs(1));
        assert!(delay(Action::Retry) < Duration::from_millis(100));
    }

    #[test]
    fn a_change_that_vanished_leaves_when_its_workers_have() {
        let (mut board, now) = (Board::default(), Instant::now());
        board.refresh(&[change(1, "ready")], now);
        taken(&mut board, now).unwrap();
        board.refresh(&[], now);
        board.give_back(1, None, Action::Over, now);
        board.refresh(&[], now);
        assert_eq!(board.next_due(), None);
        assert!(board.cards.is_empty());
    }
}
