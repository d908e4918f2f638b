//! Drives upgrades of rows: whose turn it is (`board`, pure), the calls (`worker`), VACUUM beside them (`vacuum`), and all of
//! it for one table or for every one (`drive`). What a step does, the database decides.

mod board;
mod drive;
mod vacuum;
mod worker;

pub use drive::{UpgradeDrive, UpgradeEnd, UpgradeGoal};
