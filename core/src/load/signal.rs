//! The signals: what each is called, what it is measured in, its limits, and what helps.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One thing that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// How far each standby's replay is behind.
    ReplayLag,
    /// A standby that was there and is gone: for so long it is expected back.
    LostStandby,
    /// Synchronous standbys that are asked for and not there.
    SynchronousStandby,
    /// WAL that a replication slot keeps.
    SlotWal,
    /// WAL files that wait to be archived.
    ArchiveReady,
    /// Sessions that wait for a lock that one of our workers holds.
    WaitingSessions,
    /// Sessions that wait for any lock, beyond the usual.
    LockWaits,
    /// Sessions at work, beyond the usual.
    ActiveSessions,
    /// A vacuum of the table; for so long one against wraparound is waited for.
    Vacuum,
    /// How old the oldest snapshot of the database is.
    SnapshotAge,
    /// Checkpoints that were requested within the last minutes.
    RequestedCheckpoints,
    /// Bytes that are free where the WAL and the table's files are.
    FreeDisk,
    /// What the DBA's own query says.
    OwnQuery,
    /// What the DBA's own check by HTTP says, which an agent asks.
    HttpCheck,
    /// Bytes of WAL that batches write in a second: kept, not watched.
    WalRate,
}

/// What a signal is measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// A number.
    Count,
}

/// When a signal is raised and when it is over: two thresholds, so that it does not flutter.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Limit {
    /// Raised beyond this (of free disk: below it).
    pub enter: f64,
    /// Over when it is back at this.
    pub leave: f64,
    /// Not watched at all.
    #[serde(default)]
    pub off: bool,
    /// Standbys, slots and places that are not watched, by name.
    #[serde(default)]
    pub ignoring: Vec<String>,
}

impl Signal {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Signal; 15] = [
        Signal::ReplayLag,
        Signal::LostStandby,
        Signal::SynchronousStandby,
        Signal::SlotWal,
        Signal::ArchiveReady,
        Signal::WaitingSessions,
        Signal::LockWaits,
        Signal::ActiveSessions,
        Signal::Vacuum,
        Signal::SnapshotAge,
        Signal::RequestedCheckpoints,
        Signal::FreeDisk,
        Signal::OwnQuery,
        Signal::HttpCheck,
        Signal::WalRate,
    ];

    /// As users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Signal::ReplayLag => "replay_lag",
            Signal::LostStandby => "lost_standby",
            Signal::SynchronousStandby => "synchronous_standby",
            Signal::SlotWal => "slot_wal",
            Signal::ArchiveReady => "archive_ready",
            Signal::WaitingSessions => "waiting_sessions",
            Signal::LockWaits => "lock_waits",
            Signal::ActiveSessions => "active_sessions",
            Signal::Vacuum => "vacuum",
            Signal::SnapshotAge => "snapshot_age",
            Signal::RequestedCheckpoints => "requested_checkpoints",
            Signal::FreeDisk => "free_disk",
            Signal::OwnQuery => "own_query",
            Signal::HttpCheck => "http_check",
            Signal::WalRate => "wal_rate",
        }
    }

    /// The signal that users write so.
    pub fn parse(name: &str) -> Option<Signal> {
        Self::ALL.into_iter().find(|signal| signal.as_str() == name)
    }

    /// What its thresholds are given in.
    pub fn unit(self) -> Unit {
        match self {
            Signal::ReplayLag | Signal::LostStandby | Signal::Vacuum | Signal::SnapshotAge => Unit::Seconds,
            Signal::SlotWal | Signal::FreeDisk | Signal::WalRate => Unit::Bytes,
            Signal::SynchronousStandby
            | Signal::ArchiveReady
            | Signal::WaitingSessions
            | Signal::LockWaits
            | Signal::ActiveSessions
            | Signal::RequestedCheckpoints
            | Signal::OwnQuery
            | Signal::HttpCheck => Unit::Count,
        }
    }

    /// Whether little is bad, and not much.
    pub fn is_a_floor(self) -> bool {
        self == Signal::FreeDisk
    }

    /// Whether it has a second threshold. The others are over as soon as what raised them is.
    pub fn has_leave(self) -> bool {
        !matches!(
            self,
            Signal::LostStandby | Signal::SynchronousStandby | Signal::Vacuum | Signal::HttpCheck | Signal::WalRate
        )
    }

    /// The limit where nobody set one.
    pub fn default_limit(self) -> Limit {
        let (enter, leave) = match self {
            Signal::ReplayLag => (10.0, 3.0),
            Signal::LostStandby => (3600.0, 3600.0),
            Signal::SlotWal => (8.0 * GIB, 4.0 * GIB),
            Signal::ArchiveReady => (32.0, 8.0),
            Signal::LockWaits => (8.0, 2.0),
            Signal::ActiveSessions => (16.0, 8.0),
            Signal::Vacuum => (600.0, 600.0),
            Signal::SnapshotAge => (1800.0, 900.0),
            // In five minutes: more often than once in 30 s, where PostgreSQL's own checkpoint_warning begins.
            Signal::RequestedCheckpoints => (10.0, 5.0),
            Signal::FreeDisk => (GIB, 2.0 * GIB),
            Signal::SynchronousStandby
            | Signal::WaitingSessions
            | Signal::OwnQuery
            | Signal::HttpCheck
            | Signal::WalRate => (0.0, 0.0),
        };
        // How fast work goes by itself is for its batches to say.
        Limit { enter, leave, off: self == Signal::WalRate, ignoring: vec![] }
    }

    /// What to do about it: a sentence, with the call where there is one.
    pub fn remedy(self) -> &'static str {
        match self {
            Signal::ReplayLag => "Look after the standby: its disk, its queries, pg_wal_replay_resume().",
            Signal::LostStandby => {
                "Bring it back. If it will not come: select migrator.set_limit('lost_standby', ignoring => '{NAME}');"
            }
            Signal::SynchronousStandby => "Bring it back, or change synchronous_standby_names: commits wait for it.",
            Signal::SlotWal => {
                "Bring its reader back, or drop it: select pg_drop_replication_slot(slot_name) from pg_replication_slots where not active;"
            }
            Signal::ArchiveReady => "select * from pg_stat_archiver; says what failed last.",
            Signal::WaitingSessions | Signal::LockWaits | Signal::ActiveSessions => {
                "select pid, wait_event_type, state, query from pg_stat_activity; shows what they do."
            }
            Signal::Vacuum => "select * from pg_stat_progress_vacuum; shows how far it is.",
            Signal::SnapshotAge => {
                "End that transaction when it is not needed, on a standby as well. A slot whose standby does not come back: select pg_drop_replication_slot('NAME');"
            }
            Signal::RequestedCheckpoints => "Raise max_wal_size.",
            Signal::FreeDisk => "Make room, or cancel the change.",
            Signal::OwnQuery => "That query knows. select migrator.set_own_query(); takes it away.",
            Signal::HttpCheck => "What answers there knows. The agent was started with it: --http-check.",
            Signal::WalRate => {
                "select * from migrator.set_limit('wal_rate', 'off'); lets batches go as fast as they can."
            }
        }
    }
}

const GIB: f64 = 1_073_741_824.0;

impl Limit {
    /// Whether a value raises the signal, or keeps it raised.
    pub(super) fn raises(&self, signal: Signal, value: f64, raised: bool) -> bool {
        let limit = if raised { self.leave } else { self.enter };
        !self.off && if signal.is_a_floor() { value < limit } else { value > limit }
    }

    /// Whether the two thresholds fit each other: numbers, of which the one to leave at is not the stricter.
    pub fn is_sound(&self, signal: Signal) -> bool {
        let ordered = if signal.is_a_floor() { self.leave >= self.enter } else { self.leave <= self.enter };
        self.enter.is_finite() && self.leave.is_finite() && ordered
    }

    /// The threshold to leave at that fits one to enter, in the proportion of the defaults.
    pub fn leave_for(signal: Signal, enter: f64) -> f64 {
        let usual = signal.default_limit();
        if usual.enter == 0.0 { enter } else { enter * usual.leave / usual.enter }
    }
}

/// The limits in force.
#[derive(Debug, Clone, Default)]
pub struct Limits(pub BTreeMap<Signal, Limit>);

impl Limits {
    /// The limit of a signal: what was set, or the default.
    pub fn of(&self, signal: Signal) -> Limit {
        self.0.get(&signal).cloned().unwrap_or_else(|| signal.default_limit())
    }
}

impl Unit {
    /// A value as people read it.
    pub fn text(self, value: f64) -> String {
        match self {
            Unit::Seconds if value >= 3600.0 && value % 3600.0 == 0.0 => format!("{} h", value / 3600.0),
            Unit::Seconds if value >= 60.0 && value % 60.0 == 0.0 => format!("{} min", value / 60.0),
            Unit::Seconds if value < 10.0 => format!("{} s", (value * 10.0).round() / 10.0),
            Unit::Seconds => format!("{value:.0} s"),
            Unit::Bytes => bytes(value),
            Unit::Count => format!("{}", (value * 1000.0).round() / 1000.0),
        }
    }
}

fn bytes(value: f64) -> String {
    let (mut value, mut unit) = (value, "bytes");
    for next in ["kB", "MB", "GB", "TB"] {
        if value.abs() < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    format!("{} {unit}", (value * 10.0).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_has_a_name_a_sound_limit_and_a_remedy() {
        for signal in Signal::ALL {
            assert_eq!(Signal::parse(signal.as_str()), Some(signal));
            assert_eq!(serde_json::to_value(signal).unwrap(), signal.as_str(), "stored as it is written");
            assert!(signal.default_limit().is_sound(signal), "{signal:?}");
            assert!(!signal.remedy().is_empty());
        }
        assert_eq!(Signal::parse("lag"), None);
    }

    #[test]
    fn thresholds_the_wrong_way_round_are_not_sound() {
        let limit = |enter, leave| Limit { enter, leave, off: false, ignoring: vec![] };
        assert!(!limit(3.0, 10.0).is_sound(Signal::ReplayLag));
        assert!(!limit(10.0, 3.0).is_sound(Signal::FreeDisk));
        assert!(limit(3.0, 10.0).is_sound(Signal::FreeDisk));
        assert!(!limit(f64::NAN, 3.0).is_sound(Signal::ReplayLag));
        assert!(!limit(f64::INFINITY, 3.0).is_sound(Signal::ReplayLag));
    }

    #[test]
    fn a_threshold_to_leave_at_follows_that_to_enter() {
        assert_eq!(Limit::leave_for(Signal::ReplayLag, 100.0), 30.0);
        assert_eq!(Limit::leave_for(Signal::FreeDisk, 10.0), 20.0);
        assert_eq!(Limit::leave_for(Signal::WaitingSessions, 5.0), 5.0);
        for signal in Signal::ALL {
            let leave = Limit::leave_for(signal, 7.0);
            assert!(Limit { enter: 7.0, leave, off: false, ignoring: vec![] }.is_sound(signal), "{signal:?}");
        }
    }

    #[test]
    fn values_read_well() {
        assert_eq!(Unit::Seconds.text(3.0), "3 s");
        assert_eq!(Unit::Seconds.text(0.25), "0.3 s");
        assert_eq!(Unit::Seconds.text(14.4), "14 s");
        assert_eq!(Unit::Seconds.text(600.0), "10 min");
        assert_eq!(Unit::Seconds.text(60.0), "1 min");
        assert_eq!(Unit::Seconds.text(3600.0), "1 h");
        assert_eq!(Unit::Seconds.text(5400.0), "90 min");
        assert_eq!(Unit::Bytes.text(8.0 * GIB), "8 GB");
        assert_eq!(Unit::Bytes.text(512.0), "512 bytes");
        assert_eq!(Unit::Bytes.text(1_600_000.0), "1.5 MB");
        assert_eq!(Unit::Count.text(32.0), "32");
        assert_eq!(Unit::Count.text(0.5), "0.5");
    }
}
