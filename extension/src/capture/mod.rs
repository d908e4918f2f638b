//! What runs inside the application's statements: the trigger that logs the keys of changed rows, and
//! the image hash of verify; and the tables and triggers that belong to it.
//!
//! Nothing here reads the log: draining it belongs to the engine.

#![allow(dead_code, unused_imports)]

pub mod log;
pub mod switch;

pub use log::{Direction, create_log, drop_log, segments};
pub use switch::{fingerprint, switch_off, switch_on};
