//! Drives changes: whose turn it is (`board`, pure), and the calls (`work`).

mod board;
mod work;

pub use work::{Changes, Goal};
