//! The log: events with fields, on stderr or in a file. A progress bar steps aside for each line.

use anyhow::Context as _;
use indicatif::ProgressBar;
use serde::Deserialize;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::prelude::*;

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    Text,
    /// One JSON document a line.
    Json,
}

/// How much is logged.
#[derive(Debug, Clone, Copy)]
pub struct Loudness {
    /// How often -v was given.
    pub verbose: u8,
    /// Whether -q was given.
    pub quiet: bool,
    /// Whether nobody watches: the daemon says what it does, a command shows it.
    pub daemon: bool,
}

impl Loudness {
    fn levels(self) -> Targets {
        let own = match (self.quiet, self.verbose, self.daemon) {
            (true, _, _) => LevelFilter::ERROR,
            (_, 0, false) => LevelFilter::WARN,
            (_, 0, true) | (_, 1, false) => LevelFilter::INFO,
            (_, 1, true) | (_, 2, _) => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        };
        // What the server says by NOTICE is said to a person.
        let server = if self.quiet { LevelFilter::ERROR } else { own.max(LevelFilter::INFO) };
        Targets::new().with_default(LevelFilter::WARN).with_target("migrator", own).with_target("server", server)
    }
}

/// Where lines go.
#[derive(Debug, Clone, Default)]
pub struct Sink {
    file: Option<Arc<Mutex<File>>>,
    bar: Arc<Mutex<Option<ProgressBar>>>,
}

impl Sink {
    /// From now on this bar steps aside for each line.
    pub fn beside(&self, bar: &ProgressBar) {
        *self.bar.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
    }
}

impl Write for Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(file) = &self.file {
            return file.lock().unwrap_or_else(PoisonError::into_inner).write(line);
        }
        let bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match bar {
            Some(bar) if !bar.is_finished() => bar.suspend(|| io::stderr().write(line)),
            _ => io::stderr().write(line),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Sink {
    type Writer = Sink;
    fn make_writer(&self) -> Sink {
        self.clone()
    }
}

/// Begins to log.
pub fn begin(loudness: Loudness, format: Format, file: Option<&Path>) -> anyhow::Result<Sink> {
    let open = |path: &Path| {
        let file = File::options().create(true).append(true).open(path);
        file.with_context(|| format!("cannot write the log to {}", path.display()))
    };
    let sink = Sink { file: file.map(open).transpose()?.map(|file| Arc::new(Mutex::new(file))), bar: Arc::default() };
    let colours = file.is_none() && console::colors_enabled_stderr();
    let lines = tracing_subscriber::fmt::layer().with_writer(sink.clone()).with_ansi(colours);
    let registry = tracing_subscriber::registry();
    match format {
        Format::Json => registry.with(lines.json().flatten_event(true).with_filter(loudness.levels())).init(),
        Format::Text if loudness.daemon || file.is_some() => {
            registry.with(lines.with_target(false).with_filter(loudness.levels())).init();
        }
        // Whoever sits before a command knows what time it is.
        Format::Text => {
            registry.with(lines.without_time().with_target(false).with_filter(loudness.levels())).init();
        }
    }
    Ok(sink)
}
