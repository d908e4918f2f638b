//! Which table a worker steps next. Pure: every moment is passed in.
//!
//! A table with work is open to as many workers as find something to do. One who finds the rest in the hands of others stays
//! away for as long as the step said, and the others go on; where nobody is left, the whole table rests.

use crate::db::Class;
use crate::engine::decide::{Action, Observation, decide};
use crate::engine::delays::Delays;
use crate::store::{Mark, Upgrade, UpgradeStep};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A longer sleep than this is not believed.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How often a table is called that waits for somebody; what somebody did shows then at the latest.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// The same where everything is complete. What is registered shows at once, for whoever looks at the views tells it.
const LOOK_AGAIN: Duration = Duration::from_secs(120);

/// Tables and when each is due.
#[derive(Debug, Default)]
pub struct Board {
    cards: BTreeMap<i64, Card>,
}

#[derive(Debug)]
struct Card {
    relation: String,
    marks: Vec<Mark>,
    due: Instant,
    /// Workers that are at it.
    active: usize,
    /// Until then no more workers than these find something to do.
    crowded: Option<(usize, Instant)>,
    /// Something that only somebody can mend, who may do it where nobody sees it: a right that is granted, a function that is there
    /// again. So it is tried again at this time, or when something is seen.
    stopped: Option<Instant>,
    /// Somebody did something while workers were at it: what they bring back may be older.
    touched: bool,
    delays: Delays,
    /// Between the tries of what is stopped.
    tries: Delays,
    /// Why the last call did nothing.
    reason: Option<String>,
}

/// A worker's turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// The table to step.
    pub table: i64,
    /// Its name, for people.
    pub relation: String,
}

/// What follows from a step.
pub fn after(step: Result<&UpgradeStep, Class>) -> Action {
    let step = match step {
        Ok(step) => step,
        Err(class) => return decide(&Observation::Failed(class)),
    };
    let wait = Duration::from_millis(step.wait_ms.unwrap_or(0).max(0).unsigned_abs()).min(LONGEST_WAIT);
    if step.done {
        Action::Rest(if step.state == "complete" { LOOK_AGAIN } else { wait.max(ASK_AGAIN) })
    } else if wait.is_zero() {
        Action::Again
    } else {
        Action::Wait(wait)
    }
}

impl Board {
    /// Takes over which tables have upgrades. Returns those that are new.
    pub fn refresh(&mut self, tables: &[(i64, Vec<&Upgrade>)], now: Instant) -> Vec<i64> {
        let mut new = Vec::new();
        self.cards.retain(|oid, card| card.active > 0 || tables.iter().any(|(table, _)| table == oid));
        for (oid, upgrades) in tables {
            let marks: Vec<Mark> = upgrades.iter().map(|upgrade| upgrade.mark()).collect();
            let relation = upgrades.first().map_or_else(String::new, |upgrade| upgrade.relation.clone());
            match self.cards.get_mut(oid) {
                Some(card) if card.marks == marks => card.relation = relation,
                Some(card) => {
                    card.due = card.due.min(now);
                    card.stopped = None;
                    card.touched = card.active > 0;
                    card.marks = marks;
                    card.relation = relation;
                }
                None => {
                    new.push(*oid);
                    let card = Card {
                        relation,
                        marks,
                        due: now,
                        active: 0,
                        crowded: None,
                        stopped: None,
                        touched: false,
                        delays: Delays::default(),
                        tries: Delays::default(),
                        reason: None,
                    };
                    self.cards.insert(*oid, card);
                }
            }
        }
        new
    }

    /// The table that needs a worker most: due, and with the fewest workers.
    pub fn take(&mut self, now: Instant) -> Option<Turn> {
        let (oid, card) = self
            .cards
            .iter_mut()
            .filter(|(_, card)| card.next_due() <= now)
            .min_by_key(|(_, card)| (card.active, card.due))?;
        card.active += 1;
        Some(Turn { table: *oid, relation: card.relation.clone() })
    }

    /// A worker's turn is over. Returns how long the table, or this worker, now rests.
    pub fn give_back(&mut self, table: i64, step: Option<&UpgradeStep>, action: Action, now: Instant) -> Duration {
        let Some(card) = self.cards.get_mut(&table) else { return Duration::ZERO };
        card.active -= 1;
        let touched = std::mem::take(&mut card.touched);
        if step.is_some() {
            card.delays.reset();
            // What works beside it, begun before it was stopped, says nothing of it.
            if card.stopped.is_none_or(|until| until <= now) {
                card.stopped = None;
                card.tries.reset();
            }
        }
        let rest = match action {
            Action::Again => Duration::ZERO,
            Action::Rest(_) if touched => Duration::ZERO,
            Action::Wait(time) | Action::Rest(time) => time,
            Action::Retry | Action::BackOff | Action::Reconnect => card.delays.next(action),
            Action::Over | Action::Stop if touched => Duration::ZERO,
            Action::Over | Action::Stop => {
                // Those who are at it too find the same: one delay for all of them.
                let until =
                    card.stopped.filter(|until| now < *until).unwrap_or_else(|| now + card.tries.next(Action::Stop));
                card.stopped = Some(until);
                return until - now;
            }
        };
        // What one had to wait for, a chunk or a connection, the others may have.
        if card.active > 0 && !rest.is_zero() && !matches!(action, Action::Rest(_)) {
            card.crowded = Some((card.active, now + rest));
            return rest;
        }
        if let Some(step) = step {
            card.reason = step.reason.clone().filter(|reason| action != Action::Again && !reason.is_empty());
        }
        card.due = now + rest;
        rest
    }

    /// Why the last call for a table did nothing, if it did nothing.
    pub fn reason(&self, table: i64) -> Option<&str> {
        self.cards.get(&table).and_then(|card| card.reason.as_deref())
    }

    /// When a worker can take a turn next.
    pub fn next_due(&self) -> Option<Instant> {
        self.cards.values().map(Card::next_due).min()
    }
}

impl Card {
    /// When one more worker may take it, if nobody gives it back before.
    fn next_due(&self) -> Instant {
        let crowded = self.crowded.filter(|(workers, _)| self.active >= *workers).map(|(_, until)| until);
        [Some(self.due), crowded, self.stopped].into_iter().flatten().max().unwrap_or(self.due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn upgrade(name: &str, state: &str) -> Upgrade {
        let value = json!({"relation": "public.t", "name": name, "ordinal": 1, "kind": "expression", "state": state});
        serde_json::from_value(value).unwrap()
    }

    fn step(state: &str, done: bool, wait: i64) -> UpgradeStep {
        UpgradeStep { state: state.into(), done, wait_ms: Some(wait), ..UpgradeStep::default() }
    }

    fn board(now: Instant, tables: &[i64]) -> Board {
        let (mut board, words) = (Board::default(), upgrade("words", "running"));
        let all: Vec<_> = tables.iter().map(|oid| (*oid, vec![&words])).collect();
        assert_eq!(board.refresh(&all, now), tables);
        board
    }

    fn taken(board: &mut Board, now: Instant) -> Option<i64> {
        board.take(now).map(|turn| turn.table)
    }

    fn give(board: &mut Board, table: i64, step: &UpgradeStep, now: Instant) -> Duration {
        board.give_back(table, Some(step), after(Ok(step)), now)
    }

    #[test]
    fn what_follows_a_step() {
        assert_eq!(after(Ok(&step("upgrading", false, 0))), Action::Again);
        assert_eq!(after(Ok(&step("waiting", false, 50))), Action::Wait(MS(50)));
        assert_eq!(after(Ok(&step("waiting", false, 9_000_000))), Action::Wait(LONGEST_WAIT));
        assert_eq!(after(Ok(&step("complete", true, 0))), Action::Rest(LOOK_AGAIN));
        assert_eq!(after(Ok(&step("paused", true, 10))), Action::Rest(ASK_AGAIN));
        assert_eq!(after(Ok(&step("waiting", true, 5000))), Action::Rest(MS(5000)));
        assert_eq!(after(Err(Class::Retry)), Action::Retry);
        assert_eq!(after(Err(Class::Stop)), Action::Stop);
    }

    #[test]
    fn workers_spread_over_tables_and_share_one() {
        let now = Instant::now();
        let mut board = board(now, &[1, 2]);
        let turns: Vec<_> = (0..4).filter_map(|_| taken(&mut board, now)).collect();
        assert_eq!(turns, [1, 2, 1, 2]);
    }

    #[test]
    fn who_finds_nothing_stays_away_and_the_others_go_on() {
        let now = Instant::now();
        let mut board = board(now, &[1]);
        assert_eq!((taken(&mut board, now), taken(&mut board, now)), (Some(1), Some(1)));
        assert_eq!(give(&mut board, 1, &step("upgrading", false, 100), now), MS(100));
        assert_eq!(taken(&mut board, now + MS(50)), None, "one is at it, and more than one has nothing to do");
        assert_eq!(board.next_due(), Some(now + MS(100)));
        give(&mut board, 1, &step("upgrading", false, 0), now + MS(60));
        assert_eq!(taken(&mut board, now + MS(60)), Some(1), "whoever has work goes on at once");
        assert_eq!(taken(&mut board, now + MS(61)), None);
        assert_eq!(taken(&mut board, now + MS(100)), Some(1), "and the other asks again in time");
        give(&mut board, 1, &step("upgrading", false, 100), now + MS(100));
        give(&mut board, 1, &step("waiting", false, 1000), now + MS(110));
        assert_eq!(taken(&mut board, now + MS(600)), None, "a hold is one for all");
        assert_eq!(taken(&mut board, now + MS(1110)), Some(1));
    }

    #[test]
    fn what_somebody_does_is_seen_at_once() {
        let now = Instant::now();
        let (words, more) = (upgrade("words", "complete"), upgrade("more", "running"));
        let mut board = board(now, &[1]);
        taken(&mut board, now);
        assert_eq!(give(&mut board, 1, &step("complete", true, 0), now), LOOK_AGAIN);
        board.refresh(&[(1, vec![&words])], now);
        assert_eq!(taken(&mut board, now), Some(1), "its state changed");
        // Registered while a step was under way that did not see it.
        board.refresh(&[(1, vec![&words, &more])], now);
        assert_eq!(give(&mut board, 1, &step("complete", true, 0), now), Duration::ZERO);
        assert_eq!(taken(&mut board, now), Some(1));
        give(&mut board, 1, &step("complete", true, 0), now);
        board.refresh(&[(1, vec![&words, &more])], now);
        assert_eq!(taken(&mut board, now), None, "nothing new");
    }

    #[test]
    fn what_is_stopped_is_tried_again_and_keeps_nothing_else() {
        let now = Instant::now();
        let (words, paused) = (upgrade("words", "running"), upgrade("words", "paused"));
        let mut board = board(now, &[1, 2]);
        taken(&mut board, now);
        let rest = board.give_back(1, None, Action::Stop, now);
        assert_eq!(taken(&mut board, now), Some(2), "others go on");
        board.refresh(&[(1, vec![&words]), (2, vec![&words])], now);
        assert_eq!(taken(&mut board, now).filter(|table| *table == 1), None);
        board.refresh(&[(1, vec![&paused]), (2, vec![&words])], now);
        assert_eq!(taken(&mut board, now), Some(1), "somebody did something");
        board.give_back(1, None, Action::Stop, now);
        board.give_back(2, None, Action::Stop, now);
        assert!(rest >= Duration::from_secs(1));
        assert_eq!(taken(&mut board, now + MS(999)), None);
        let late = now + Duration::from_secs(5);
        let turns: Vec<_> = (0..3).map(|_| taken(&mut board, late)).collect();
        assert!(turns.contains(&Some(1)) && turns.contains(&Some(2)), "both are tried again: {turns:?}");
    }

    #[test]
    fn tries_are_further_apart_until_one_works() {
        let mut now = Instant::now();
        let mut board = board(now, &[1]);
        let mut rests = Vec::new();
        for _ in 0..12 {
            assert_eq!(taken(&mut board, now), Some(1));
            let rest = board.give_back(1, None, Action::Stop, now);
            assert_eq!(board.next_due(), Some(now + rest));
            rests.push(rest.as_secs());
            now += rest;
        }
        assert!(rests[0] < 3 && rests[4] >= 16 && rests[11] >= 150 && rests[11] <= 300, "{rests:?}");
        assert_eq!(taken(&mut board, now), Some(1));
        give(&mut board, 1, &step("upgrading", false, 0), now);
        assert_eq!(taken(&mut board, now), Some(1));
        assert!(board.give_back(1, None, Action::Stop, now) < Duration::from_secs(3));
    }

    #[test]
    fn workers_that_are_stopped_together_wait_together() {
        let now = Instant::now();
        let mut board = board(now, &[1]);
        assert_eq!([taken(&mut board, now), taken(&mut board, now), taken(&mut board, now)], [Some(1); 3]);
        let rest = board.give_back(1, None, Action::Stop, now);
        assert_eq!(board.give_back(1, None, Action::Stop, now + MS(10)), rest - MS(10), "no second delay");
        assert_eq!(give(&mut board, 1, &step("upgrading", false, 0), now + MS(20)), MS(0));
        assert_eq!(taken(&mut board, now + rest - MS(1)), None, "what had begun before says nothing of it");
        assert_eq!(taken(&mut board, now + rest), Some(1));
        let longer = board.give_back(1, None, Action::Stop, now + rest);
        assert!(longer >= Duration::from_secs(2), "{longer:?}");
    }

    #[test]
    fn failures_wait_longer_each_time_until_one_step_works() {
        let now = Instant::now();
        let mut board = board(now, &[1]);
        let mut delay = |step: Option<&UpgradeStep>, action| {
            board.take(now + Duration::from_secs(3600)).unwrap();
            board.give_back(1, step, action, now)
        };
        let delays: Vec<_> = (0..10).map(|_| delay(None, Action::BackOff)).collect();
        assert!(delays[0] < Duration::from_secs(1) && delays[9] >= Duration::from_secs(30), "{delays:?}");
        delay(Some(&step("upgrading", false, 0)), Action::Again);
        assert!(delay(None, Action::BackOff) < Duration::from_secs(1));
    }

    #[test]
    fn who_lost_the_connection_does_not_stop_the_others() {
        let now = Instant::now();
        let mut board = board(now, &[1]);
        assert_eq!((taken(&mut board, now), taken(&mut board, now)), (Some(1), Some(1)));
        let rest = board.give_back(1, None, Action::Reconnect, now);
        assert!(rest > MS(0));
        give(&mut board, 1, &step("upgrading", false, 0), now);
        assert_eq!((taken(&mut board, now), taken(&mut board, now)), (Some(1), None));
        assert_eq!(taken(&mut board, now + rest), Some(1));
    }

    #[test]
    fn a_table_that_vanished_leaves_when_its_workers_have() {
        let now = Instant::now();
        let mut board = board(now, &[1]);
        taken(&mut board, now);
        board.refresh(&[], now);
        board.give_back(1, None, Action::Stop, now);
        board.refresh(&[], now);
        assert_eq!(board.next_due(), None);
        assert!(board.cards.is_empty());
    }
}
