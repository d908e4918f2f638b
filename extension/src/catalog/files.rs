//! What can be told of the server's files from inside it, with the rights of the server's own user: room on its disks, and
//! WAL files that wait to be archived.

use migrator_core::failure::{Failure, code};
use pgrx::pg_sys;
use std::ffi::CStr;
use std::io::Error;
use std::path::{Path, PathBuf};

/// A path below the data folder.
pub fn in_data(name: &str) -> PathBuf {
    // SAFETY: set once when the server starts, before any backend does (miscinit.c, SetDataDir).
    let data = unsafe { CStr::from_ptr(pg_sys::DataDir) };
    Path::new(&*data.to_string_lossy()).join(name)
}

/// Where a tablespace's files are, by what pg_tablespace_location says of it: nothing, for the default one.
pub fn of_tablespace(location: &str) -> PathBuf {
    if location.is_empty() { in_data("base") } else { PathBuf::from(location) }
}

/// Bytes that the server's user may still write where a path is.
pub fn free(path: &Path) -> Result<i64, Failure> {
    let found = rustix::fs::statvfs(path).map_err(|error| failed(path, &error.into()))?;
    Ok(found.f_bavail.checked_mul(found.f_frsize).and_then(|free| i64::try_from(free).ok()).unwrap_or(i64::MAX))
}

/// How many WAL files wait to be archived, counted up to a ceiling: `archive_command` fails, or cannot keep up.
pub fn ready_to_archive() -> Result<i64, Failure> {
    const CEILING: usize = 100_000;
    let folder = in_data("pg_wal/archive_status");
    let entries = std::fs::read_dir(&folder).map_err(|error| failed(&folder, &error))?;
    let ready = entries
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "ready"))
        .take(CEILING)
        .count();
    Ok(i64::try_from(ready).unwrap_or(i64::MAX))
}

fn failed(path: &Path, error: &Error) -> Failure {
    Failure::new(code::INTERNAL, format!("{}: {error}", path.display()))
}
