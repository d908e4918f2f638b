//! Drives what there is to do: decides what to do after each call (`decide`, `delays`, pure), and does it over several
//! connections (`drive`, `worker`). What they have to know of `change`s and of `upgrade`s of rows is `work`. All state is in
//! the database: whoever is killed here loses nothing. `check` asks by HTTP whether work may go on, and tells the database.

mod change;
mod check;
mod decide;
mod delays;
mod drive;
mod signals;
mod upgrade;
mod work;
mod worker;

pub use change::{Changes, Goal};
pub use check::Check;
pub use signals::{Signals, interruptible};
pub use upgrade::{UpgradeGoal, Upgrades};
pub use work::End;
