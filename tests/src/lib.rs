//! What the tests from outside, the demo and the bench are made of: real servers, live clients that know what the
//! table must hold, and changes driven as an agent or a person would drive them.
//!
//! Nothing here knows how the engine works. It speaks SQL to the server and looks at what comes of it.

pub mod application;
pub mod bouncer;
pub mod change;
pub mod cluster;
pub mod counted;
pub mod database;
pub mod ledger;
pub mod left_behind;
pub mod lock_watch;
pub mod program;
pub mod same_rows;
pub mod servers;
pub mod session;
pub mod story;
pub mod strike;
pub mod subscription;
pub mod traffic;
pub mod upgrades;
pub mod witness;

pub use anyhow::{Context, Result, bail, ensure};
pub use change::Change;
pub use cluster::Cluster;
pub use database::Database;
pub use servers::Server;
pub use session::{Session, SqlError};
