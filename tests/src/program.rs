//! Programs that tests start: the agent, PostgreSQL's own, and those of other people, which may be missing.

use crate::servers::target;
use crate::{Database, Result};
use anyhow::{Context, ensure};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use tokio::process::{Child, Command};

/// What a program that has ended left behind.
pub struct Outcome {
    /// Its exit code; -1 after a signal.
    pub code: i32,
    /// What it printed as data.
    pub stdout: String,
    /// What it logged.
    pub stderr: String,
}

impl Outcome {
    /// Insists on exit code 0 and gives the standard output.
    pub fn fine(self) -> Result<String> {
        ensure!(self.code == 0, "exit code {}\nstdout: {}\nstderr: {}", self.code, self.stdout, self.stderr);
        Ok(self.stdout)
    }
}

/// Ends a program of ours: says why it failed, if it did, in words alone.
pub fn end(outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let chain: Vec<String> = error.chain().map(ToString::to_string).collect();
            eprintln!("error: {}", chain.join("\n  because: "));
            ExitCode::FAILURE
        }
    }
}

/// Runs a command to its end.
pub async fn run(command: &mut Command) -> Result<Outcome> {
    let name = format!("{:?}", command.as_std().get_program());
    let output = command.kill_on_drop(true).stdin(Stdio::null()).output().await.context(name)?;
    Ok(Outcome {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// The program `migrator`, built beside the program that runs now.
pub fn migrator() -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    here.ancestors()
        .map(|folder| folder.join("migrator"))
        .find(|path| path.is_file())
        .context("the program migrator is not built: cargo build -p migrator-agent")
}

/// A command of the agent for a database.
pub fn agent(database: &Database) -> Result<Command> {
    let mut command = Command::new(migrator()?);
    command.envs(database.environment()).env_remove("MIGRATOR_DEST");
    Ok(command)
}

/// Runs a command of the agent to its end.
pub async fn say(database: &Database, arguments: &[&str]) -> Result<Outcome> {
    run(agent(database)?.args(arguments)).await
}

/// Starts `migrator agent`, with nobody listening to it. It is killed with the value.
pub fn daemon(database: &Database, arguments: &[&str]) -> Result<Child> {
    let mut command = agent(database)?;
    command.arg("agent").args(arguments).kill_on_drop(true);
    Ok(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
}

/// Sends SIGTERM.
pub async fn terminate(child: &Child) -> Result<()> {
    let pid = child.id().context("it ended by itself")?.to_string();
    run(Command::new("kill").args(["-TERM", &pid])).await?.fine().map(drop)
}

/// One of PostgreSQL's own programs, of the database's own version.
pub fn postgresql(database: &Database, name: &str) -> Command {
    let mut command = Command::new(database.cluster().server.program(name));
    command.envs(database.environment());
    command
}

/// Where a program of somebody else is, if it is installed.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// The Python that has alembic and psycopg, if the setup could make it.
pub fn python() -> Option<PathBuf> {
    let python = target().join("venv/bin/python");
    let works = |python: &Path| {
        std::process::Command::new(python)
            .args(["-c", "import alembic, psycopg"])
            .output()
            .is_ok_and(|output| output.status.success())
    };
    works(&python).then_some(python)
}

/// A project of the migration tool Alembic for a database, with each migration in a transaction of its own.
pub struct AlembicProject {
    folder: tempfile::TempDir,
    python: PathBuf,
}

impl AlembicProject {
    /// An empty project.
    pub fn new(python: &Path, database: &Database) -> Result<AlembicProject> {
        let folder = tempfile::tempdir()?;
        let scripts = folder.path().join("scripts");
        std::fs::create_dir_all(scripts.join("versions"))?;
        let socket = database.cluster().socket_folder().display();
        let url =
            format!("postgresql+psycopg://postgres@/{}?host={socket}&port={}", database.name, database.cluster().port);
        std::fs::write(folder.path().join("alembic.ini"), "[alembic]\nscript_location = scripts\n")?;
        std::fs::write(
            scripts.join("env.py"),
            format!(
                "from alembic import context\nfrom sqlalchemy import create_engine\n\n\
                 engine = create_engine({url:?})\nwith engine.connect() as connection:\n    \
                 context.configure(connection=connection, transaction_per_migration=True)\n    \
                 with context.begin_transaction():\n        context.run_migrations()\n"
            ),
        )?;
        Ok(AlembicProject { folder, python: python.to_owned() })
    }

    /// Adds a migration.
    pub fn migration(&self, name: &str, text: &str) -> Result<()> {
        Ok(std::fs::write(self.folder.path().join(format!("scripts/versions/{name}.py")), text)?)
    }

    /// Runs the tool.
    pub async fn run(&self, arguments: &[&str]) -> Result<Outcome> {
        let mut command = Command::new(&self.python);
        run(command.args(["-m", "alembic"]).args(arguments).current_dir(self.folder.path())).await
    }
}
