//! The guard: what runs inside every statement that writes a table with upgrades, and the one place where expressions
//! of upgrades are applied, for writers, for batches and for readers.
//!
//! It knows what its trigger's arguments say and reads no table. It never makes an application's statement fail: where an
//! upgrade fails, the row stays as it was written, without the name, and the failure is noted.

mod current;
mod defaults;
mod failed;
mod image;
mod known;
mod marks;
mod refuses;
mod row;
mod run;
mod trigger;

pub use failed::store;
pub use refuses::{Refusal, refusal};
pub use trigger::{at, in_batch};

/// The guard's name on every table: BEFORE triggers fire in the order of their names, and this one has to be the last.
pub const TRIGGER: &str = "~migrator_guard";
