//! A look at the server: one field a signal.

use super::Signal;

/// What a look saw. A field that is None was not looked at, or could not be read: then `unreadable` says why.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// When, in seconds since 1970, by the server's clock.
    pub at: f64,
    /// Every standby that is there.
    pub replay_lag: Option<Vec<Lag>>,
    /// Standbys that were there and are gone.
    pub lost: Option<Vec<Lost>>,
    /// Where `synchronous_standby_names` is set: how many standbys commits wait for.
    pub synchronous: Option<Synchronous>,
    /// Replication slots.
    pub slots: Option<Vec<Slot>>,
    /// WAL files that wait to be archived.
    pub archive_ready: Option<i64>,
    /// Sessions that wait for a lock that one of our workers holds.
    pub waiting: Option<i64>,
    /// Sessions that wait for any lock.
    pub lock_waits: Option<Usual>,
    /// Sessions at work.
    pub active: Option<Usual>,
    /// Vacuums that run in this database.
    pub vacuums: Option<Vec<Vacuum>>,
    /// The oldest snapshot that keeps row versions of this database.
    pub snapshot: Option<Snapshot>,
    /// Checkpoints requested within the last five minutes.
    pub checkpoints: Option<i64>,
    /// Room in each place that is written to.
    pub disks: Option<Vec<Disk>>,
    /// What the DBA's own query said.
    pub own: Option<f64>,
    /// Checks by HTTP that do not say that all is well, and what they say instead.
    pub checks: Option<Vec<Check>>,
    /// What could not be read.
    pub unreadable: Vec<Unreadable>,
}

/// A standby that is there.
#[derive(Debug, Clone, PartialEq)]
pub struct Lag {
    /// `application_name/address`.
    pub standby: String,
    /// How long ago it was that the server had written what the standby has replayed.
    pub seconds: f64,
}

/// A standby that was there.
#[derive(Debug, Clone, PartialEq)]
pub struct Lost {
    /// `application_name/address`.
    pub standby: String,
    /// Since when it is gone, at least.
    pub seconds: f64,
}

/// What commits wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Synchronous {
    /// Standbys that `synchronous_standby_names` asks for.
    pub wanted: i64,
    /// Of these, so many are there.
    pub there: i64,
}

/// A replication slot.
#[derive(Debug, Clone, PartialEq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Whether somebody reads from it now.
    pub active: bool,
    /// WAL between what it needs and what is written; None once it has lost what it needed.
    pub bytes: Option<i64>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
}

/// A number, and what it usually is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usual {
    /// Now.
    pub now: f64,
    /// Usually.
    pub usual: f64,
}

/// A vacuum that runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Vacuum {
    /// Oid of the table, or of a TOAST table.
    pub table: u32,
    /// Its name.
    pub name: String,
    /// Whether it keeps the server from running out of transaction ids.
    pub wraparound: bool,
    /// How long it has run.
    pub seconds: f64,
}

/// The oldest snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Whose it is and what he has done for so long, for people: "session 4711 has been in a transaction".
    pub what: String,
    /// For how long.
    pub seconds: f64,
}

/// Room in a place.
#[derive(Debug, Clone, PartialEq)]
pub struct Disk {
    /// Its name, for people: `WAL`, or a tablespace's.
    pub place: String,
    /// The tablespace's oid; None where all work is concerned.
    pub tablespace: Option<u32>,
    /// Free bytes.
    pub free: i64,
}

/// A check that an agent made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Its address.
    pub address: String,
    /// What is not well, for people.
    pub said: String,
}

/// A signal that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Which.
    pub signal: Signal,
    /// Why not.
    pub why: String,
}
