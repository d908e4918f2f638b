//! The rules of migrator: identifiers, states, plans, the SQL text that each step needs,
//! batch sizes, throttle verdicts, failures and their messages.
//!
//! This crate never does I/O and never imports pgrx, so that plain `cargo test` covers every rule.
//! Both the extension and the agent use it: a rule stands once.

pub mod alter;
pub mod batch;
pub mod columns;
pub mod deadline;
pub mod dependant;
pub mod failure;
pub mod ident;
pub mod key;
pub mod load;
pub mod plan;
pub mod sql;
pub mod sqlstate;
pub mod state;
pub mod upgrade;
