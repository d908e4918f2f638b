//! Upgrades of rows: registering them, bringing rows up in batches, completion, retiring.
//!
//! The guard (`crate::guard`) applies expressions; here it is decided when, to which rows, and what is told.

mod batch;
pub mod bound;
mod chunk;
mod complete;
pub mod ensure;
pub mod explain;
pub mod failures;
pub mod findings;
pub mod fits;
pub mod follow;
pub mod forget;
pub mod hand;
pub mod install;
mod keyset;
mod look;
pub mod looked;
mod numbers;
mod overtaken;
mod published;
mod reading;
pub mod register;
mod repeat;
pub mod retire;
mod rewrite;
pub mod settle;
pub mod step;
mod sweep;
pub mod table;
mod view;
