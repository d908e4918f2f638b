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

impl Seen {
    /// A line of pgbench's log: client, number, latency in µs, script, seconds, µs [, lag behind schedule in µs].
    ///
    /// A transaction that ended with 40001 or 40P01 does not abort its client: since version 15 its latency reads `failed`.
    fn add(&mut self, line: &str) {
        let fields: Vec<&str> = line.split(' ').collect();
        let Some(latency) = fields.get(2).filter(|text| !text.is_empty()) else { return };
        let Ok(latency) = latency.parse::<u64>() else {
            self.failed += 1;
            return;
        };
        let lag = fields.get(6).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        self.transactions += 1;
        self.longest = self.longest.max(Duration::from_micros(latency.saturating_sub(lag)));
    }
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
        let aborted = errors.lines().filter(|line| line.contains("aborted")).count() as u64;
        let mut seen = Seen { transactions: 0, failed: aborted, longest: Duration::ZERO };
        for entry in std::fs::read_dir(&self.logs)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("log")) {
                for line in std::fs::read_to_string(&path)?.lines() {
                    seen.add(line);
                }
            }
        }
        ensure!(ended_early.is_none() || seen.failed > 0, "pgbench ended by itself:\n{errors}");
        std::fs::remove_dir_all(&self.logs)?;
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_that_was_given_up_is_a_failed_one() {
        let mut seen = Seen { transactions: 0, failed: 0, longest: Duration::ZERO };
        for line in ["0 1 1500 0 1700000000 1 500", "0 2 failed 0 1700000000 2", "1 1 700 1 1700000000 3", "1 2"] {
            seen.add(line);
        }
        assert_eq!((seen.transactions, seen.failed, seen.longest), (2, 1, Duration::from_micros(1000)));
    }
}
