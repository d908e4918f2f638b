//! Whether this program and the extension fit: the same major and minor version.

use crate::db::{Class, Session, Trouble};
use serde::Deserialize;

/// This program's version.
pub const OWN: &str = env!("CARGO_PKG_VERSION");

/// Why a database cannot be worked with.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// The server or the connection.
    #[error(transparent)]
    Trouble(#[from] Trouble),
    /// The extension is not in this database; it is or is not on the server.
    #[error("this database does not have the extension migrator")]
    Missing {
        /// Whether the server has its files.
        on_server: bool,
    },
    /// The library is of another version than this program.
    #[error("the server has migrator {library}, this program is {OWN}")]
    Library {
        /// The library's version.
        library: String,
    },
    /// The database's objects are of another version than the library.
    #[error("this database has the objects of migrator {objects}, the server's library is {library}")]
    Objects {
        /// The objects' version.
        objects: String,
        /// The library's version.
        library: String,
    },
}

impl Unfit {
    /// What can be done about it.
    pub fn class(&self) -> Class {
        match self {
            Unfit::Trouble(trouble) => trouble.class(),
            // The extension is being updated or the program was left behind: a person must look.
            Unfit::Missing { .. } | Unfit::Library { .. } | Unfit::Objects { .. } => Class::Stop,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Unfit::Trouble(_) => return None,
            Unfit::Missing { on_server: true } => "Run as a superuser: create extension migrator".to_owned(),
            Unfit::Missing { on_server: false } => {
                format!(
                    "Install migrator {OWN} on the server first (make install PG_CONFIG=…), then: create extension migrator"
                )
            }
            Unfit::Library { library } if numbers(library) > numbers(OWN) => {
                format!("Use the program migrator of version {library}.")
            }
            Unfit::Library { .. } => format!(
                "Install migrator {OWN} on the server (make install PG_CONFIG=…), then run as a superuser: \
                 alter extension migrator update"
            ),
            Unfit::Objects { .. } => "Run as a superuser: alter extension migrator update".to_owned(),
        })
    }
}

/// Major and minor, which must agree; a patch may differ.
fn numbers(version: &str) -> Vec<u32> {
    version.split(['.', '-', '+']).take(2).map_while(|part| part.parse().ok()).collect()
}

#[derive(Deserialize)]
struct Installed {
    objects: Option<String>,
    on_server: bool,
}

/// Refuses a database whose extension is missing or of another version.
pub async fn check(session: &Session) -> Result<(), Unfit> {
    let installed: Installed = session
        .row(
            "select jsonb_build_object('objects', (select extversion from pg_extension where extname = 'migrator'), \
             'on_server', exists (select from pg_available_extensions where name = 'migrator'))::text",
            &[],
        )
        .await?;
    let Some(objects) = installed.objects else { return Err(Unfit::Missing { on_server: installed.on_server }) };
    let library: String = match session.row("select to_jsonb(migrator.version())::text", &[]).await {
        Ok(library) => library,
        // undefined_function: objects so old that they cannot say
        Err(trouble) if trouble.sqlstate() == Some("42883") => objects.clone(),
        Err(trouble) => return Err(trouble.into()),
    };
    compare(objects, library)
}

fn compare(objects: String, library: String) -> Result<(), Unfit> {
    if numbers(&library) != numbers(OWN) {
        Err(Unfit::Library { library })
    } else if numbers(&objects) != numbers(&library) {
        Err(Unfit::Objects { objects, library })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn major_and_minor_decide() {
        let own = numbers(OWN);
        let patched = format!("{}.{}.99", own[0], own[1]);
        assert!(compare(OWN.to_owned(), patched.clone()).is_ok());
        let newer = format!("{}.{}.0", own[0], own[1] + 1);
        let hint = |objects: &str, library: &str| compare(objects.into(), library.into()).unwrap_err().hint().unwrap();
        assert!(hint(OWN, &newer).contains("program"));
        assert!(hint(OWN, "0.0.1").contains("Install"));
        assert!(hint("0.0.1", OWN).contains("alter extension migrator update"));
    }
}
