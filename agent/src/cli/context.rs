//! What every command works with: the database, the log, the signals.

use super::Global;
use super::config::{Config, connection_string};
use super::logging::{self, Format, Loudness, Sink};
use crate::db::{Limits, Surroundings, Target};
use crate::engine::Signals;
use crate::store::{Store, Unfit};

/// A command's surroundings, before it runs.
pub struct Prepared {
    target: Target,
    jobs: Option<usize>,
    quiet: bool,
    log: Sink,
}

/// A command's surroundings.
pub struct Context {
    /// The database.
    pub target: Target,
    /// `jobs` of the configuration file.
    pub jobs: Option<usize>,
    /// Whether only errors are wanted.
    pub quiet: bool,
    /// The log's lines.
    pub log: Sink,
    /// What the user asks for by signals.
    pub signals: Signals,
}

impl Context {
    /// Reads the configuration, begins the log, finds the database. `daemon`: nobody watches.
    #[allow(clippy::new_ret_no_self)]
    pub fn new(global: Global, daemon: bool) -> anyhow::Result<Prepared> {
        let around = Surroundings::of_this_process();
        let config = Config::read(global.config.as_deref(), around.config_file().as_deref())?;
        let loudness = Loudness { verbose: global.verbose, quiet: global.quiet, daemon };
        let format = global.log_format.or(config.log_format).unwrap_or(Format::Text);
        let log = logging::begin(loudness, format, global.log_file.as_deref().or(config.log_file.as_deref()))?;
        let text =
            connection_string(global.database.as_deref(), around.variable("MIGRATOR_DEST"), config.database.as_deref());
        let target = Target::resolve(text, &around)?;
        Ok(Prepared { target, jobs: config.jobs, quiet: global.quiet, log })
    }

    /// Connects for a command of this name.
    pub async fn store(&self, name: &str, limits: Limits) -> Result<Store, Unfit> {
        Store::open(&self.target, name, limits).await
    }
}

impl Prepared {
    /// Adds the signals, which need a runtime.
    pub fn with(self, signals: Signals) -> Context {
        let Prepared { target, jobs, quiet, log } = self;
        Context { target, jobs, quiet, log, signals }
    }
}
