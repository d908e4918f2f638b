//! What one look has to know of those before it: standbys that were there, what is usual, counters.
//!
//! It is stored beside the verdict, so it is shared by all sessions and replicated to standbys. After a failover its
//! positions may lie in a future that never came: those are thrown away.

use super::{Lag, Lost, Snapshot, Usual};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is kept from look to look. Whatever cannot be read back begins anew.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    timeline: String,
    standbys: BTreeMap<String, Standby>,
    horizons: BTreeMap<String, Horizon>,
    lock_waits: Option<Average>,
    active: Option<Average>,
    checkpoints: Option<Checkpoints>,
}

/// A standby as it was last seen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Standby {
    seen_at: f64,
    /// A place in the WAL that it had not replayed yet, and when the server had written it.
    mark: u64,
    mark_at: f64,
}

/// The transaction id from which on something keeps row versions, and since when it has been that one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Horizon {
    xmin: String,
    since: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Average {
    value: f64,
    at: f64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Checkpoints {
    count: i64,
    at: f64,
    /// When those of the last minutes were noticed.
    recent: Vec<f64>,
}

/// A standby as `pg_stat_replication` shows it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Reading {
    /// `application_name/address`, the same for the same standby.
    pub standby: String,
    /// How far it has replayed, as a number of bytes.
    pub replayed: u64,
    /// Its own measure of how far it is behind.
    pub lag_seconds: Option<f64>,
}

/// What keeps row versions though no session of this server does: a standby whose queries need them, a slot.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Keeper {
    /// Its name, the same for the same keeper.
    pub name: String,
    /// As [`Snapshot::what`] has it.
    pub what: String,
    /// From which transaction id on, as text.
    pub xmin: String,
}

/// For how long requested checkpoints count.
const CHECKPOINT_WINDOW: f64 = 300.0;
/// A counter that was not looked at for longer says nothing of when it grew.
const COUNTER_GAP: f64 = 60.0;
/// How long it takes for what has become more to be usual, and for what has become less.
const USUAL_UP: f64 = 600.0;
const USUAL_DOWN: f64 = 60.0;

impl Memory {
    /// The server's timeline: after a failover the standbys of another server are none of this one's, which was among them itself.
    pub fn on_timeline(&mut self, timeline: &str) {
        if self.timeline != timeline {
            self.standbys.clear();
            timeline.clone_into(&mut self.timeline);
        }
    }

    /// How far each standby is behind, and who is missing.
    ///
    /// A standby's own measure grows only while it answers, and says nothing while it is not connected. So a place in the
    /// WAL is remembered with the time at which the server had written it; until the standby has replayed that place, it
    /// is behind by at least the time since. `written` is where the server's WAL ends, `expected` for how many seconds a
    /// standby that is gone is expected back.
    pub fn standbys(&mut self, readings: &[Reading], written: u64, at: f64, expected: f64) -> (Vec<Lag>, Vec<Lost>) {
        let mut lags = vec![];
        for reading in readings {
            let known = self.standbys.get(&reading.standby).filter(|known| known.mark <= written);
            let known = *known.unwrap_or(&Standby { seen_at: at, mark: written, mark_at: at });
            let passed = reading.replayed >= known.mark;
            let since_mark = if passed { 0.0 } else { (at - known.mark_at).max(0.0) };
            // What it measured last stands in the view until its next answer, even when it has replayed everything.
            let own = reading.lag_seconds.filter(|_| reading.replayed < written).unwrap_or(0.0);
            lags.push(Lag { standby: reading.standby.clone(), seconds: since_mark.max(own) });
            let now = if passed { Standby { seen_at: at, mark: written, mark_at: at } } else { known };
            self.standbys.insert(reading.standby.clone(), Standby { seen_at: at, ..now });
        }
        self.standbys.retain(|_, known| at - known.seen_at <= expected);
        let lost = self
            .standbys
            .iter()
            .filter(|(name, _)| readings.iter().all(|reading| reading.standby != **name))
            .map(|(name, known)| Lost { standby: name.clone(), seconds: at - known.seen_at })
            .collect();
        (lags, lost)
    }

    /// Who has kept row versions for the longest time. Nobody says since when, so it is the time for which he has kept the same ones.
    pub fn horizons(&mut self, keepers: &[Keeper], at: f64) -> Option<Snapshot> {
        self.horizons.retain(|name, known| {
            keepers.iter().any(|keeper| keeper.name == *name && keeper.xmin == known.xmin) && known.since <= at
        });
        let mut oldest: Option<Snapshot> = None;
        for Keeper { name, what, xmin } in keepers {
            let known = self.horizons.entry(name.clone()).or_insert_with(|| Horizon { xmin: xmin.clone(), since: at });
            let seconds = at - known.since;
            if oldest.as_ref().is_none_or(|oldest| oldest.seconds < seconds) {
                oldest = Some(Snapshot { what: what.clone(), seconds });
            }
        }
        oldest
    }

    /// A number of sessions that wait for locks, beside what it usually is. While the signal is `raised`, nothing of it
    /// becomes usual.
    pub fn lock_waits(&mut self, now: f64, at: f64, raised: bool) -> Usual {
        usual(&mut self.lock_waits, now, at, raised)
    }

    /// The same for sessions at work.
    pub fn active(&mut self, now: f64, at: f64, raised: bool) -> Usual {
        usual(&mut self.active, now, at, raised)
    }

    /// Requested checkpoints of the last five minutes, from a counter of all there ever were.
    pub fn checkpoints(&mut self, count: i64, at: f64) -> i64 {
        let known = self.checkpoints.get_or_insert_with(|| Checkpoints { count, at, recent: vec![] });
        if at - known.at <= COUNTER_GAP {
            let more = usize::try_from(count - known.count).unwrap_or(0).min(1000);
            known.recent.extend(std::iter::repeat_n(at, more));
        }
        (known.count, known.at) = (count, at);
        known.recent.retain(|noticed| at - noticed <= CHECKPOINT_WINDOW);
        i64::try_from(known.recent.len()).unwrap_or(i64::MAX)
    }
}

fn usual(average: &mut Option<Average>, now: f64, at: f64, raised: bool) -> Usual {
    let known = average.get_or_insert(Average { value: now, at });
    let usual = known.value;
    if !raised || now < usual {
        let takes = if now < usual { USUAL_DOWN } else { USUAL_UP };
        known.value += (now - usual) * (1.0 - (-(at - known.at).max(0.0) / takes).exp());
    }
    known.at = at;
    Usual { now, usual }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(replayed: u64, lag_seconds: Option<f64>) -> Vec<Reading> {
        vec![Reading { standby: "a/local".into(), replayed, lag_seconds }]
    }

    fn lag(memory: &mut Memory, replayed: u64, written: u64, at: f64) -> f64 {
        memory.standbys(&reading(replayed, None), written, at, 3600.0).0[0].seconds
    }

    #[test]
    fn who_keeps_row_versions_is_known_by_keeping_the_same_ones() {
        let mut memory = Memory::default();
        let keeper = |name: &str, xmin: &str| Keeper { name: name.into(), what: name.into(), xmin: xmin.into() };
        let seen = |memory: &mut Memory, keepers: &[Keeper], at| {
            memory.horizons(keepers, at).map(|snapshot| (snapshot.what, snapshot.seconds))
        };
        assert_eq!(seen(&mut memory, &[], 1.0), None);
        assert_eq!(seen(&mut memory, &[keeper("a", "7")], 10.0), Some(("a".into(), 0.0)));
        assert_eq!(seen(&mut memory, &[keeper("a", "7"), keeper("b", "5")], 20.0), Some(("a".into(), 10.0)));
        assert_eq!(seen(&mut memory, &[keeper("a", "8"), keeper("b", "5")], 30.0), Some(("b".into(), 10.0)));
        assert_eq!(seen(&mut memory, &[keeper("a", "8")], 50.0), Some(("a".into(), 20.0)));
        assert_eq!(seen(&mut memory, &[keeper("a", "8")], 40.0), Some(("a".into(), 10.0)), "a clock that was put back");
        assert_eq!(seen(&mut memory, &[], 60.0), None);
    }

    #[test]
    fn after_a_failover_nobody_is_missed() {
        let mut memory = Memory::default();
        memory.on_timeline("00000001");
        memory.standbys(&reading(100, None), 100, 1000.0, 3600.0);
        memory.on_timeline("00000001");
        assert_eq!(memory.standbys(&[], 100, 1001.0, 3600.0).1.len(), 1);
        memory.on_timeline("00000002");
        assert!(memory.standbys(&[], 100, 1002.0, 3600.0).1.is_empty());
    }

    #[test]
    fn a_standby_that_does_not_replay_falls_behind_though_it_says_nothing() {
        let mut memory = Memory::default();
        assert_eq!(lag(&mut memory, 100, 100, 1000.0), 0.0);
        assert_eq!(lag(&mut memory, 100, 200, 1001.0), 0.0, "the mark is passed, the next is at 200");
        assert_eq!(lag(&mut memory, 100, 300, 1005.0), 4.0);
        assert_eq!(lag(&mut memory, 150, 900, 1020.0), 19.0);
        assert_eq!(lag(&mut memory, 200, 900, 1021.0), 0.0);
        assert_eq!(lag(&mut memory, 200, 900, 1030.0), 9.0, "another mark, at 900");
        assert_eq!(lag(&mut memory, 900, 900, 1031.0), 0.0);
    }

    #[test]
    fn an_idle_server_s_standby_is_not_behind() {
        let mut memory = Memory::default();
        for at in 0..100 {
            assert_eq!(lag(&mut memory, 100, 100, f64::from(at)), 0.0);
        }
        let stale = memory.standbys(&reading(100, Some(77.0)), 100, 200.0, 3600.0).0;
        assert_eq!(stale[0].seconds, 0.0, "what it measured last, before it had replayed everything");
        assert_eq!(memory.standbys(&reading(90, Some(77.0)), 100, 201.0, 3600.0).0[0].seconds, 77.0);
    }

    #[test]
    fn a_standby_that_is_gone_is_expected_for_a_while() {
        let mut memory = Memory::default();
        memory.standbys(&reading(100, None), 100, 1000.0, 3600.0);
        let (lags, lost) = memory.standbys(&[], 100, 1010.0, 3600.0);
        assert_eq!((lags.len(), lost), (0, vec![Lost { standby: "a/local".into(), seconds: 10.0 }]));
        assert_eq!(memory.standbys(&[], 100, 4600.0, 3600.0).1.len(), 1);
        assert!(memory.standbys(&[], 100, 4601.0, 3600.0).1.is_empty(), "not for ever");
    }

    #[test]
    fn a_standby_that_returns_hours_behind_is_behind_at_once() {
        let mut memory = Memory::default();
        lag(&mut memory, 100, 200, 1000.0);
        memory.standbys(&[], 5000, 1001.0, 3600.0);
        assert_eq!(lag(&mut memory, 150, 9000, 3000.0), 2000.0);
    }

    #[test]
    fn positions_of_a_timeline_that_was_lost_are_thrown_away() {
        let mut memory = Memory::default();
        lag(&mut memory, 900, 1000, 1000.0);
        assert_eq!(lag(&mut memory, 500, 500, 1010.0), 0.0, "this server has not written that far");
        assert_eq!(lag(&mut memory, 500, 500, 1011.0), 0.0);
    }

    #[test]
    fn what_lasts_becomes_usual_slowly_and_what_ends_is_forgotten_soon() {
        let mut memory = Memory::default();
        assert_eq!(memory.active(4.0, 0.0, false), Usual { now: 4.0, usual: 4.0 }, "the first look has to take it so");
        assert_eq!(memory.active(40.0, 1.0, false).usual, 4.0);
        let after = memory.active(40.0, 2.0, false).usual;
        assert!(after > 4.0 && after < 4.1, "{after}");
        let long = memory.active(40.0, 6000.0, false);
        assert!(memory.active(40.0, 6001.0, false).usual > 39.0, "{long:?}");
        memory.active(4.0, 6002.0, false);
        assert!(memory.active(4.0, 6300.0, false).usual < 40.0);
        assert!(memory.active(4.0, 6301.0, false).usual < 5.0, "five minutes are enough to forget");
    }

    #[test]
    fn a_storm_does_not_become_usual_while_it_is_waited_out() {
        let mut memory = Memory::default();
        memory.lock_waits(1.0, 0.0, false);
        for at in 1..5000 {
            assert_eq!(memory.lock_waits(50.0, f64::from(at), true).usual, 1.0);
        }
    }

    #[test]
    fn requested_checkpoints_count_for_five_minutes() {
        let mut memory = Memory::default();
        assert_eq!(memory.checkpoints(700, 0.0), 0, "nobody knows when those were");
        assert_eq!(memory.checkpoints(703, 1.0), 3);
        assert_eq!(memory.checkpoints(704, 30.0), 4);
        assert_eq!(memory.checkpoints(2, 31.0), 4, "statistics were reset");
        assert_eq!(memory.checkpoints(3, 80.0), 5);
        assert_eq!(memory.checkpoints(90, 300.0), 5, "nobody looked for minutes");
        assert_eq!(memory.checkpoints(90, 302.0), 2);
        assert_eq!(memory.checkpoints(90, 381.0), 0);
    }

    #[test]
    fn memory_survives_being_stored_and_nonsense_begins_anew() {
        let mut memory = Memory::default();
        lag(&mut memory, 1, 2, 3.0);
        memory.active(4.0, 0.0, false);
        memory.checkpoints(1, 2.0);
        let stored = serde_json::to_value(&memory).unwrap();
        assert_eq!(serde_json::from_value::<Memory>(stored).unwrap(), memory);
        assert_eq!(serde_json::from_str::<Memory>("{}").unwrap(), Memory::default());
    }
}
