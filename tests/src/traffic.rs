//! pgbench as an application: statements at a rate, and how long the slowest of them took.

use crate::program::postgresql;
use crate::{Database, Result};
use anyhow::{Context, ensure};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Child;

/// A pgbench that is running.
pub struct Traffic {
    child: Child,
    logs: PathBuf,
}

/// What pgbench saw.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Transactions that ended well.
    pub transactions: u64,
    /// Statements that failed.
    pub failed: u64,
    /// The longest transaction.
    pub longest: Duration,
}

impl Traffic {
    /// Fills the tables of pgbench: 100,000 accounts for each unit of scale.
    pub async fn fill(database: &Database, scale: u32) -> Result<()> {
        let mut command = postgresql(database, "pgbench");
        command.args(["-i", "-q", "-I", "dtGvp", "-s", &scale.to_string()]);
        crate::program::run(&mut command).await?.fine()?;
        Ok(())
    }

    /// Starts traffic of some transactions a second (0: as many as go) from some clients, each transaction one of the
    /// scripts; it ends with [`Traffic::stop`]. Scripts of one statement make a transaction's time a statement's time.
    pub fn start(database: &Database, scripts: &[&str], rate: u32, clients: u32) -> Result<Traffic> {
        let logs = tempfile::Builder::new().prefix("migrator-traffic.").tempdir_in("/tmp")?.keep();
        let mut command = postgresql(database, "pgbench");
        command
            .args(["-n", "-M", "prepared", "-c", &clients.to_string(), "-j", "1", "-T", "3600", "-l"])
            .args(["--log-prefix", &logs.join("log").to_string_lossy()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(logs.join("errors"))?)
            .kill_on_drop(true);
        for (number, script) in scripts.iter().enumerate() {
            let file = logs.join(format!("script{number}.sql"));
            std::fs::write(&file, script)?;
            command.arg("-f").arg(file);
        }
        if rate > 0 {
            command.args(["-R", &rate.to_string()]);
        }
        let child = command.spawn().context("pgbench cannot be started")?;
        Ok(Traffic { child, logs })
    }

    /// Ends it and tells what it saw. The last tenth of a second or so stays in pgbench's buffers and is not counted.
    pub async fn stop(mut self) -> Result<Seen> {
        let ended_early = self.child.try_wait()?;
        self.child.start_kill()?;
        self.child.wait().await?;
        let errors = std::fs::read_to_string(self.logs.join("errors"))?;
        let failed = errors.lines().filter(|line| line.contains("aborted")).count() as u64;
        let mut seen = Seen { transactions: 0, failed, longest: Duration::ZERO };
        for entry in std::fs::read_dir(&self.logs)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("log")) {
                for line in std::fs::read_to_string(&path)?.lines() {
                    // client, number, latency in µs, script, seconds, µs [, lag behind schedule in µs]
                    let fields: Vec<&str> = line.split(' ').collect();
                    let latency = fields.get(2).and_then(|text| text.parse::<u64>().ok());
                    let lag = fields.get(6).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
                    if let Some(latency) = latency {
                        seen.transactions += 1;
                        seen.longest = seen.longest.max(Duration::from_micros(latency.saturating_sub(lag)));
                    }
                }
            }
        }
        ensure!(ended_early.is_none() || failed > 0, "pgbench ended by itself:\n{errors}");
        std::fs::remove_dir_all(&self.logs)?;
        Ok(seen)
    }
}
