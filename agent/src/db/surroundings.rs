//! What a program finds around itself when it looks for a server: variables, a home, a user's name.
//! Passed in, so that a test can say what they are.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The process's surroundings.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Environment variables. Those that hold nothing count as not set, as for libpq.
    pub variables: HashMap<String, String>,
    /// The user's name in the operating system.
    pub user: Option<String>,
    /// Directories where a server's socket may be.
    pub socket_directories: Vec<PathBuf>,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_this_process() -> Self {
        Self {
            variables: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
            user: whoami::username().ok(),
            // Debian's and PostgreSQL's own defaults.
            socket_directories: vec![PathBuf::from("/var/run/postgresql"), PathBuf::from("/tmp")],
        }
    }

    /// A variable that holds something.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A file below the home directory.
    pub fn at_home(&self, path: &str) -> Option<PathBuf> {
        self.variable("HOME").map(|home| Path::new(home).join(path))
    }

    /// Where this program's own settings are.
    pub fn config_file(&self) -> Option<PathBuf> {
        match self.variable("XDG_CONFIG_HOME") {
            Some(folder) => Some(Path::new(folder).join("migrator.toml")),
            None => self.at_home(".config/migrator.toml"),
        }
    }
}
