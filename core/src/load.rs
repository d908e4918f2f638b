//! Throttling: from what was seen of the server to a verdict for everybody who works in batches.
//!
//! ```text
//! readings ─ Memory ─> Seen ─ decide(before, limits) ─> Decision ─ verdict(work) ─> go | slow(factor) | hold(reason)
//! ```
//!
//! One look serves all work on the server ([`Decision`]); a verdict is that of some [`Work`], for a vacuum of another table
//! or a full disk of another tablespace concerns nobody else.

mod decide;
mod memory;
mod seen;
mod signal;

pub use decide::{Decision, Effect, Raised, decide};
pub use memory::{Keeper, Memory, Reading};
pub use seen::{Check, Disk, Lag, Lost, Seen, Slot, Snapshot, Synchronous, Unreadable, Usual, Vacuum};
pub use signal::{Limit, Limits, Signal, Unit};

/// What a worker does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// A full batch.
    Go,
    /// A batch divided by the factor, and why.
    Slow(i32, String),
    /// Nothing for now, and why.
    Hold(String),
}

/// What is at work, as far as the verdict depends on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Work {
    /// The tables that it reads or writes and that others use: their oids, with those of their TOAST tables.
    pub tables: Vec<u32>,
    /// The tablespaces that it writes to.
    pub tablespaces: Vec<u32>,
    /// Whether it leaves a dead row for each that it writes, as an upgrade of rows does and the filling of a shadow does
    /// not. While an old snapshot keeps VACUUM from removing them, such work holds; other work goes slow.
    pub rewrites: bool,
}
