//! The command line: one file a command. stdout is data, stderr is for people and logs.
//! Exit status: 0 done, 1 a negative answer, 2 an error.

mod agent;
mod alter;
mod cleanup;
mod config;
mod context;
mod doctor;
mod end;
mod failure;
mod list;
mod log;
mod logging;
mod order;
mod output;
mod pause;
mod prepare;
mod progress;
mod resume;
mod rollback;
mod run;
mod selector;
mod status;
mod swap;
mod upgrade;
mod verify;

use clap::{Args, Parser, Subcommand};
use context::Context;
use std::path::PathBuf;
use std::process::ExitCode;

/// Changes tables while applications go on reading and writing.
///
/// A change fills a shadow beside the live table, keeps it in step, verifies it, and puts it in the live table's place
/// in one short transaction. An upgrade brings rows up where they are. All state is in the database (schema migrator): this program may be stopped or killed at
/// any time and goes on where it was.
#[derive(Debug, Parser)]
#[command(name = "migrator", version, after_help = AFTER)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const AFTER: &str = "The database is named by --database, else MIGRATOR_DEST, else `database` in the configuration \
file, else libpq's variables (PGHOST, PGSERVICE, …). Passwords belong into ~/.pgpass or a service file: a command line \
can be seen by others.

Exit status: 0 done, 1 a negative answer (nothing to swap, rows differ, something is wrong), 2 an error.";

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connection and log")]
pub struct Global {
    /// The database: postgresql://… or keyword=value pairs, as for psql
    #[arg(long, visible_alias = "dest", value_name = "URL", global = true)]
    database: Option<String>,
    /// Configuration file (TOML) [default: ~/.config/migrator.toml]
    #[arg(long, value_name = "PATH", global = true)]
    config: Option<PathBuf>,
    /// Say more on stderr; twice for every call
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    /// Errors only: no progress, no log
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// How the log is written
    #[arg(long, value_enum, value_name = "FORMAT", global = true)]
    log_format: Option<logging::Format>,
    /// Write the log to this file instead of stderr
    #[arg(long, value_name = "PATH", global = true)]
    log_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Agent(agent::Agent),
    Alter(alter::Alter),
    Prepare(prepare::Prepare),
    Status(status::Status),
    List(list::List),
    Swap(swap::Swap),
    Rollback(rollback::Rollback),
    Verify(verify::Verify),
    Pause(pause::Pause),
    Resume(resume::Resume),
    /// Keep a swapped change: its backup is dropped, and there is no way back afterwards
    ///
    /// Example: migrator finish orders --dry-run
    Finish(end::End),
    /// Give a change up before its swap: its shadow is dropped, the live table stays as it is
    Cancel(end::End),
    Cleanup(cleanup::Cleanup),
    #[command(subcommand)]
    Upgrade(upgrade::Upgrade),
    Log(log::Log),
    Doctor(doctor::Doctor),
}

impl Command {
    fn wants_json(&self) -> bool {
        match self {
            Command::Agent(_) => false,
            Command::Alter(it) => it.output.json,
            Command::Prepare(it) => it.output.json,
            Command::Status(it) => it.output.json,
            Command::List(it) => it.output.json,
            Command::Swap(it) => it.output.json,
            Command::Rollback(it) => it.output.json,
            Command::Verify(it) => it.output.json,
            Command::Pause(it) => it.output.json,
            Command::Resume(it) => it.output.json,
            Command::Finish(it) => it.output.json,
            Command::Cancel(it) => it.output.json,
            Command::Cleanup(it) => it.output.json,
            Command::Upgrade(it) => it.wants_json(),
            Command::Log(it) => it.output.json,
            Command::Doctor(it) => it.output.json,
        }
    }

    async fn run(self, context: Context) -> anyhow::Result<Outcome> {
        match self {
            Command::Agent(it) => it.run(context).await,
            Command::Alter(it) => it.run(context).await,
            Command::Prepare(it) => it.run(context).await,
            Command::Status(it) => it.run(context).await,
            Command::List(it) => it.run(context).await,
            Command::Swap(it) => it.run(context).await,
            Command::Rollback(it) => it.run(context).await,
            Command::Verify(it) => it.run(context).await,
            Command::Pause(it) => it.run(context).await,
            Command::Resume(it) => it.run(context).await,
            Command::Finish(it) => it.finish(context).await,
            Command::Cancel(it) => it.cancel(context).await,
            Command::Cleanup(it) => it.run(context).await,
            Command::Upgrade(it) => it.run(context).await,
            Command::Log(it) => it.run(context).await,
            Command::Doctor(it) => it.run(context).await,
        }
    }
}

/// What a command came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// What was asked for is so.
    Done,
    /// It is not, and that is no error.
    Negative,
}

/// Reads the command line, runs the command, and says how it went.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return failure::of_usage(&error),
    };
    let json = cli.command.wants_json();
    match start(cli) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Negative) => ExitCode::from(1),
        Err(error) => {
            failure::report(&error, json);
            ExitCode::from(2)
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<Outcome> {
    let context = Context::new(cli.global, matches!(cli.command, Command::Agent(_)))?;
    // One thread is enough: the work is the server's.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let signals = crate::engine::Signals::listen()?;
        cli.command.run(context.with(signals)).await
    });
    // A second signal may leave calls behind; they are not waited for.
    runtime.shutdown_background();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn two_selectors_are_an_error_that_names_both() {
        for (command, extra) in [("swap", vec![]), ("status", vec![]), ("log", vec!["--follow"]), ("pause", vec![])] {
            let mut line = vec!["migrator", command, "orders", "--change", "4"];
            line.extend(extra);
            let error = Cli::try_parse_from(line).unwrap_err();
            let text = error.to_string();
            assert_eq!(error.exit_code(), 2);
            assert!(text.contains("[TABLE]") && text.contains("--change <ID>"), "{text}");
        }
        let error = Cli::try_parse_from(["migrator", "swap", "--latest", "--timestamp", "17"]).unwrap_err().to_string();
        assert!(error.contains("--latest") && error.contains("--timestamp"), "{error}");
    }

    #[test]
    fn dest_is_another_name_for_database() {
        for option in ["--database", "--dest"] {
            let cli = Cli::try_parse_from(["migrator", "status", option, "postgres://db/x"]).unwrap();
            assert_eq!(cli.global.database.as_deref(), Some("postgres://db/x"));
        }
    }
}
