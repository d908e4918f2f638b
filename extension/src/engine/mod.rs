//! The steps of a change. Decides with `migrator-core`, acts through `catalog`.

pub mod carry;
