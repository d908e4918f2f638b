//! The configuration file.

use super::logging::Format;
use anyhow::Context as _;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// What the file may hold. A key that does not exist is an error: a misspelt one would be forgotten.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The database, as for --database.
    pub database: Option<String>,
    /// Connections for work, as for --jobs.
    pub jobs: Option<usize>,
    /// As for --log-format.
    pub log_format: Option<Format>,
    /// As for --log-file.
    pub log_file: Option<PathBuf>,
}

impl Config {
    /// Reads the file: the one that was named, which must exist, or the usual one, which need not.
    pub fn read(named: Option<&Path>, usual: Option<&Path>) -> anyhow::Result<Config> {
        let Some(path) = named.or_else(|| usual.filter(|path| path.exists())) else { return Ok(Config::default()) };
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text)
            // The parser quotes the line, which may hold a password; its message and place are enough.
            .map_err(|error| {
                let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
                anyhow::anyhow!("{}, near line {line}: {}", path.display(), error.message())
            })
    }
}

/// The connection string that counts: the command line's, then the variable's, then the file's, then none at all.
pub fn connection_string<'a>(line: Option<&'a str>, variable: Option<&'a str>, file: Option<&'a str>) -> &'a str {
    line.or(variable).or(file).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_source_counts() {
        assert_eq!(connection_string(Some("a"), Some("b"), Some("c")), "a");
        assert_eq!(connection_string(None, Some("b"), Some("c")), "b");
        assert_eq!(connection_string(None, None, Some("c")), "c");
        assert_eq!(connection_string(None, None, None), "");
    }

    #[test]
    fn a_file_is_read_or_refused_without_quoting_it() {
        let path = std::env::temp_dir().join(format!("migrator-config-{}.toml", std::process::id()));
        std::fs::write(&path, "database = \"postgres://db/x\"\njobs = 3\nlog-format = \"json\"\n").unwrap();
        let config = Config::read(Some(&path), None).unwrap();
        assert_eq!((config.database.as_deref(), config.jobs), (Some("postgres://db/x"), Some(3)));
        std::fs::write(&path, "jobs = 3\ndatabas = \"password=hunter2\"\n").unwrap();
        let error = Config::read(None, Some(&path)).unwrap_err().to_string();
        assert!(error.contains("databas") && error.contains("line 2") && !error.contains("hunter2"), "{error}");
        std::fs::remove_file(&path).unwrap();
        assert!(Config::read(Some(&path), None).is_err() && Config::read(None, Some(&path)).is_ok());
    }
}
