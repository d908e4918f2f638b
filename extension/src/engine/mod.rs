//! The steps of a change. Decides with `migrator-core`, acts through `catalog`.

pub mod advance;
pub mod alter;
pub mod bad_row;
mod bisect;
pub mod build;
pub mod carry;
pub mod change;
pub mod copy;
pub mod doctor;
pub mod drain;
pub mod ensure;
pub mod guard;
pub mod load;
pub mod owner;
pub mod recapture;
pub mod recheck;
pub mod reconcile;
pub mod rest;
pub mod settle;
pub mod shape;
pub mod snapshot;
pub mod swap;
pub mod sync;
pub mod upgrade;
pub mod verify;
