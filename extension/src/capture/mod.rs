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
