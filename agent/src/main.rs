//! `migrator`: drives the changes of schema migrator from outside the server, and shows them to people.
//!
//! `cli` (a command a file) → `engine` (decide, then act) → `store` (the SQL surface, typed) → `db` (connections).
//! Nothing points back, and no row of a user's table ever passes through here.

mod cli;
mod db;
mod engine;
mod store;

fn main() -> std::process::ExitCode {
    cli::main()
}
