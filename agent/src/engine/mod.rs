//! Drives changes: decides what to do after each call (`decide`, pure), whose turn it is (`board`, pure), and does it
//! over several connections (`worker`, `drive`). All state is in the database: whoever is killed here loses nothing.

mod board;
mod decide;
mod drive;
mod signals;
mod upgrade;
mod worker;

pub use drive::{Drive, End, Goal, interruptible};
pub use signals::Signals;
pub use upgrade::{UpgradeDrive, UpgradeEnd, UpgradeGoal};
