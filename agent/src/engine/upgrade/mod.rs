//! Drives upgrades of rows: whose turn it is (`board`, pure), the calls (`work`), and VACUUM beside them (`vacuum`). What a
//! step does, the database decides.

mod board;
mod vacuum;
mod work;

pub use work::{UpgradeGoal, Upgrades};
