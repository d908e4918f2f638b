//! What runs inside the application's statements: the trigger that logs the keys of changed rows; the
//! tables and triggers that belong to it; and the image hash by which verify compares rows.
//!
//! Nothing here reads the log: draining it belongs to the engine.

mod append;
mod fence;
mod image;
pub mod log;
pub mod switch;
mod trigger;

pub use image::hash_call;
pub use log::{Direction, PERIOD, SEGMENTS, create_log, drop_log, segment_at, segments};
pub use switch::{fingerprint, switch_off, switch_on};
