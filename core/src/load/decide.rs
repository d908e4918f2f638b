//! Which signals a look raises, and what that means for some work.

use super::{Disk, Limit, Limits, Seen, Signal, Slot, Usual, Vacuum, Verdict, Work};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a raised signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Batches divided by this.
    Slow(i32),
    /// No batches.
    Hold,
}

/// A signal that is raised. Its words stay the same for as long as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Raised {
    /// Which.
    pub signal: Signal,
    /// By what: a standby, a slot, a table, a place; empty where there is only one.
    pub subject: String,
    /// What it asks for.
    pub effect: Effect,
    /// Why, for people.
    pub reason: String,
    /// Since when, in seconds since 1970.
    pub since: f64,
    /// Concerns only work on this table.
    #[serde(default)]
    pub table: Option<u32>,
    /// Concerns only work that writes to this tablespace.
    #[serde(default)]
    pub tablespace: Option<u32>,
    /// It could not be read: this is a warning, not what the signal is for.
    #[serde(default)]
    pub unreadable: bool,
}

/// What a look comes to. This is what is kept and shared.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Decision {
    /// The signals that are raised.
    pub raised: Vec<Raised>,
    /// What was raised when its signal could be read last: it is over when it is back at its second threshold, and not
    /// because nobody could look for a while.
    pub unsettled: Vec<(Signal, String)>,
    /// What each signal was seen at, at its worst, in its own unit.
    pub values: BTreeMap<Signal, f64>,
}

/// A quarter of the speed: others are waiting, or may be worse off than can be seen.
const QUARTER: Effect = Effect::Slow(4);
/// Seconds for which a standby that is gone holds everything.
const PATIENCE: f64 = 600.0;
/// Half of it: the server has more to do than usual.
const HALF: Effect = Effect::Slow(2);

/// Which signals are raised now. `before` is what the look before came to: a signal that was raised then has to fall back
/// to its second threshold. A signal that could not be read asks for half the speed, with a warning that names it.
pub fn decide(seen: &Seen, before: &Decision, limits: &Limits) -> Decision {
    let mut look = Look { at: seen.at, before, limits, found: Decision::default() };
    look.standbys(seen);
    look.slots(seen.slots.as_deref().unwrap_or_default());
    look.storage(seen);
    look.sessions(seen);
    look.vacuums(seen.vacuums.as_deref().unwrap_or_default());
    look.own(seen);
    look.checks(seen);
    for unreadable in &seen.unreadable {
        let signal = unreadable.signal;
        if !limits.of(signal).off {
            let reason = format!("the signal {} cannot be read: {}", signal.as_str(), unreadable.why);
            look.raise(signal, UNREADABLE, HALF, reason).unreadable = true;
            look.found.unsettled.extend(before.subjects(signal).map(|subject| (signal, subject.to_owned())));
        }
    }
    look.found
}

/// The subject of a signal that could not be read. No standby, slot or tablespace is called so.
const UNREADABLE: &str = "(unreadable)";

impl Decision {
    /// What some work has to do: the strictest of what concerns it, with all reasons for that.
    pub fn verdict(&self, work: &Work) -> Verdict {
        let concerned: Vec<&Raised> = self.raised.iter().filter(|raised| raised.concerns(work)).collect();
        let holds: Vec<&str> =
            concerned.iter().filter(|raised| raised.holds(work)).map(|raised| raised.reason.as_str()).collect();
        if !holds.is_empty() {
            return Verdict::Hold(holds.join("; "));
        }
        let factor = concerned.iter().map(|raised| raised.factor()).max().unwrap_or(1);
        if factor <= 1 {
            return Verdict::Go;
        }
        let reasons: Vec<&str> = concerned.iter().map(|raised| raised.reason.as_str()).collect();
        Verdict::Slow(factor, reasons.join("; "))
    }

    /// The signals that could not be read and could be before, for a warning.
    pub fn newly_unreadable<'a>(&'a self, before: &'a Decision) -> impl Iterator<Item = &'a Raised> {
        self.raised.iter().filter(|raised| raised.unreadable && before.find(raised.signal, UNREADABLE).is_none())
    }

    /// What a signal was raised by, when it could be read last.
    fn subjects(&self, signal: Signal) -> impl Iterator<Item = &str> {
        let raised = self.raised.iter().filter(move |raised| raised.signal == signal && !raised.unreadable);
        let unsettled = self.unsettled.iter().filter(move |(of, _)| *of == signal);
        raised.map(|raised| raised.subject.as_str()).chain(unsettled.map(|(_, subject)| subject.as_str()))
    }

    /// Whether a signal is raised by something (a standby, a slot; nothing, where there is only one), so that its second threshold counts.
    pub fn is_raised(&self, signal: Signal, subject: &str) -> bool {
        self.subjects(signal).any(|raised| raised == subject)
    }

    fn find(&self, signal: Signal, subject: &str) -> Option<&Raised> {
        self.raised.iter().find(|raised| raised.signal == signal && raised.subject == subject)
    }
}

impl Raised {
    fn concerns(&self, work: &Work) -> bool {
        self.table.is_none_or(|table| work.tables.contains(&table))
            && self.tablespace.is_none_or(|tablespace| work.tablespaces.contains(&tablespace))
    }

    fn holds(&self, work: &Work) -> bool {
        // A dead row for each row written, and nobody can remove them: the table would double.
        let bloats = work.rewrites && self.signal == Signal::SnapshotAge && !self.unreadable;
        self.effect == Effect::Hold || bloats
    }

    fn factor(&self) -> i32 {
        match self.effect {
            Effect::Slow(factor) => factor,
            Effect::Hold => 1,
        }
    }
}

struct Look<'a> {
    at: f64,
    before: &'a Decision,
    limits: &'a Limits,
    found: Decision,
}

impl Look<'_> {
    fn raise(&mut self, signal: Signal, subject: &str, effect: Effect, reason: String) -> &mut Raised {
        let since = self.before.find(signal, subject).map_or(self.at, |before| before.since);
        let raised = Raised {
            signal,
            subject: subject.to_owned(),
            effect,
            reason,
            since,
            table: None,
            tablespace: None,
            unreadable: false,
        };
        self.found.raised.push(raised);
        self.found.raised.last_mut().expect("it was just put there")
    }

    /// Notes what a signal was seen at, and says whether that raises it.
    fn passes(&mut self, signal: Signal, subject: &str, value: f64) -> bool {
        let limit = self.limits.of(signal);
        if limit.ignores(subject) {
            return false;
        }
        let worst = self.found.values.entry(signal).or_insert(value);
        *worst = if signal.is_a_floor() { worst.min(value) } else { worst.max(value) };
        limit.raises(signal, value, self.before.is_raised(signal, subject))
    }

    /// The two thresholds of a signal, for people.
    fn words(&self, signal: Signal) -> (String, String) {
        let Limit { enter, leave, .. } = self.limits.of(signal);
        (signal.unit().text(enter), signal.unit().text(leave))
    }

    fn standbys(&mut self, seen: &Seen) {
        let (enter, leave) = self.words(Signal::ReplayLag);
        for lag in seen.replay_lag.iter().flatten() {
            if self.passes(Signal::ReplayLag, &lag.standby, lag.seconds) {
                let reason = format!("standby {} fell more than {enter} behind (goes on below {leave})", lag.standby);
                self.raise(Signal::ReplayLag, &lag.standby, Effect::Hold, reason);
            }
        }
        let expected = self.words(Signal::LostStandby).0;
        let limit = self.limits.of(Signal::LostStandby);
        for lost in seen.lost.iter().flatten() {
            if limit.off || limit.ignores(&lost.standby) || lost.seconds > limit.enter {
                continue;
            }
            // One that does not answer may be any time behind: that it is gone is not that it has no lag. It is waited for as one
            // that lags is, but not for ever: it may have been taken away for good.
            let reason = format!("standby {} was streaming within the last {expected} and is gone", lost.standby);
            let effect = if lost.seconds <= PATIENCE { Effect::Hold } else { QUARTER };
            self.raise(Signal::LostStandby, &lost.standby, effect, reason);
            let longest = self.found.values.entry(Signal::LostStandby).or_insert(lost.seconds);
            *longest = longest.max(lost.seconds);
        }
        if let Some(synchronous) = seen.synchronous {
            let missing = synchronous.wanted - synchronous.there;
            if self.passes(Signal::SynchronousStandby, "", missing.max(0) as f64) {
                let reason = format!(
                    "synchronous_standby_names asks for {} standby(s), of which {} are there: commits wait",
                    synchronous.wanted, synchronous.there
                );
                self.raise(Signal::SynchronousStandby, "", Effect::Hold, reason);
            }
        }
    }

    fn slots(&mut self, slots: &[Slot]) {
        let (enter, leave) = self.words(Signal::SlotWal);
        let limit = self.limits.of(Signal::SlotWal);
        for slot in slots {
            let name = &slot.name;
            let much = slot.bytes.is_some_and(|bytes| self.passes(Signal::SlotWal, name, bytes as f64));
            if limit.off || limit.ignores(name) {
                continue;
            }
            let (effect, reason) = match slot.wal_status.as_deref() {
                Some("unreserved") => {
                    (Effect::Hold, format!("replication slot {name} is about to lose WAL that it needs"))
                }
                Some("lost") => {
                    (HALF, format!("replication slot {name} has lost WAL that it needed: its reader has to begin anew"))
                }
                _ if much && !slot.active => (
                    Effect::Hold,
                    format!(
                        "nobody reads from replication slot {name}, which keeps more than {enter} of WAL (goes on below {leave})"
                    ),
                ),
                _ if much => (
                    HALF,
                    format!("the reader of replication slot {name} is more than {enter} behind (over below {leave})"),
                ),
                _ => continue,
            };
            self.raise(Signal::SlotWal, name, effect, reason);
        }
    }

    fn storage(&mut self, seen: &Seen) {
        if let Some(ready) = seen.archive_ready
            && self.passes(Signal::ArchiveReady, "", ready as f64)
        {
            let (enter, leave) = self.words(Signal::ArchiveReady);
            let reason = format!("more than {enter} WAL files wait to be archived (goes on at {leave})");
            self.raise(Signal::ArchiveReady, "", Effect::Hold, reason);
        }
        if let Some(requested) = seen.checkpoints
            && self.passes(Signal::RequestedCheckpoints, "", requested as f64)
        {
            let (enter, leave) = self.words(Signal::RequestedCheckpoints);
            let reason = format!(
                "more than {enter} checkpoints were requested within five minutes (over at {leave}); max_wal_size is small for this"
            );
            self.raise(Signal::RequestedCheckpoints, "", HALF, reason);
        }
        let (enter, leave) = self.words(Signal::FreeDisk);
        for Disk { place, tablespace, free } in seen.disks.iter().flatten() {
            if self.passes(Signal::FreeDisk, place, *free as f64) {
                let reason = format!("less than {enter} is free where {place} is (goes on above {leave})");
                self.raise(Signal::FreeDisk, place, Effect::Hold, reason).tablespace = *tablespace;
            }
        }
    }

    fn sessions(&mut self, seen: &Seen) {
        if let Some(waiting) = seen.waiting
            && self.passes(Signal::WaitingSessions, "", waiting as f64)
        {
            self.raise(Signal::WaitingSessions, "", QUARTER, "other sessions wait for a lock of ours".to_owned());
        }
        if let Some(waits) = seen.lock_waits
            && self.more_than_usual(Signal::LockWaits, waits)
        {
            let enter = self.words(Signal::LockWaits).0;
            let reason = format!("at least {enter} sessions more than usual wait for locks");
            self.raise(Signal::LockWaits, "", QUARTER, reason);
        }
        if let Some(active) = seen.active
            && self.more_than_usual(Signal::ActiveSessions, active)
        {
            let enter = self.words(Signal::ActiveSessions).0;
            let reason = format!("at least {enter} sessions more than usual are at work");
            self.raise(Signal::ActiveSessions, "", QUARTER, reason);
        }
        if let Some(snapshot) = &seen.snapshot
            && self.passes(Signal::SnapshotAge, "", snapshot.seconds)
        {
            let enter = self.words(Signal::SnapshotAge).0;
            let reason =
                format!("{} for more than {enter}, and VACUUM cannot remove what is deleted meanwhile", snapshot.what);
            self.raise(Signal::SnapshotAge, "", HALF, reason);
        }
    }

    /// By so many, and by half as much again as usual: on a server with hundreds of sessions a handful more is nothing.
    fn more_than_usual(&mut self, signal: Signal, Usual { now, usual }: Usual) -> bool {
        let limit = self.limits.of(signal);
        let raised = self.before.is_raised(signal, "");
        let scale = if raised { limit.leave.max(usual / 4.0) } else { limit.enter.max(usual / 2.0) };
        let more = now - usual;
        self.found.values.insert(signal, more);
        !limit.off && more > scale
    }

    fn vacuums(&mut self, vacuums: &[Vacuum]) {
        let limit = self.limits.of(Signal::Vacuum);
        if limit.off {
            return;
        }
        let patience = self.words(Signal::Vacuum).0;
        for Vacuum { table, name, wraparound, seconds } in vacuums {
            if limit.ignores(name) {
                continue;
            }
            let longest = self.found.values.entry(Signal::Vacuum).or_insert(*seconds);
            *longest = longest.max(*seconds);
            let (effect, reason) = if !wraparound {
                (HALF, format!("table {name} is being vacuumed"))
            } else if *seconds <= limit.enter {
                let until = format!("goes on when that is done, or has taken {patience}");
                (Effect::Hold, format!("table {name} is being vacuumed to prevent wraparound ({until})"))
            } else {
                (QUARTER, format!("table {name} has been vacuumed to prevent wraparound for more than {patience}"))
            };
            self.raise(Signal::Vacuum, name, effect, reason).table = Some(*table);
        }
    }

    fn own(&mut self, seen: &Seen) {
        if let Some(value) = seen.own
            && self.passes(Signal::OwnQuery, "", value)
        {
            let (enter, leave) = self.words(Signal::OwnQuery);
            let reason = format!("the DBA's own query said more than {enter} (goes on at {leave})");
            self.raise(Signal::OwnQuery, "", Effect::Hold, reason);
        }
    }
}

impl Look<'_> {
    fn checks(&mut self, seen: &Seen) {
        let limit = self.limits.of(Signal::HttpCheck);
        for check in seen.checks.iter().flatten().filter(|check| !limit.off && !limit.ignores(&check.address)) {
            let reason = format!("the check {} says no: {}", check.address, check.said);
            self.raise(Signal::HttpCheck, &check.address, Effect::Hold, reason);
        }
    }
}

impl Limit {
    /// Whether a standby, slot or place is not to be watched. A standby goes by its whole name or by its application_name.
    fn ignores(&self, subject: &str) -> bool {
        let application = subject.rsplit_once('/').map(|(application, _)| application);
        self.ignoring.iter().any(|name| name == subject || Some(name.as_str()) == application)
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
