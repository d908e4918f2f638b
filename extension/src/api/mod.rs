//! Every SQL function, one file per noun, thin: check the arguments, call the engine, convert.

mod alter;
mod answer;
pub mod arguments;
mod change;
mod copy;
mod create;
mod hand;
mod load;
mod swap;
mod upgrade;
mod watch;
