//! The contract: every call of schema migrator that this program makes, with types. Nothing else here knows SQL of ours,
//! and nothing here touches the extension's own tables.

mod calls;
mod change;
mod upgrade;
mod upgrade_calls;
mod version;

pub use calls::{Order, Store, Wish};
pub use change::{Advance, Change, Event, Finding, PlanStep, Selector, SelectorError, Turned, pick};
pub use upgrade::{Mark, Upgrade, UpgradeFailure, UpgradeFilter, UpgradeOrder, UpgradeStep, by_table};
pub use version::Unfit;
