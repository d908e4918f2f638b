//! How a test runs on every version of PostgreSQL there is, and how it says that it cannot.

use crate::{Result, Server};
use std::fmt;
use std::future::Future;
use std::io::Write;
use std::time::Duration;

/// Longer than any test should need; a test that hangs ends with a message.
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// Why a test failed, shown as it reads.
pub struct Failed(String);

impl fmt::Debug for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Runs one test on one version. Called by [`for_each_server`](crate::for_each_server).
pub fn run<F: Future<Output = Result<()>>>(
    name: &str,
    major: u32,
    test: impl FnOnce(Server) -> F,
) -> Result<(), Failed> {
    let server = Server::of(major).expect("tools/servers lists the servers");
    let Some(server) = server else {
        skipped(&format!("{name} on {major}"), "this version is not set up");
        return Ok(());
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime can be had for a test");
    let outcome = runtime.block_on(async { tokio::time::timeout(LONGEST, test(server)).await });
    let why = match outcome {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => error.chain().map(ToString::to_string).collect::<Vec<_>>().join("\n  because: "),
        Err(_) => format!("not done after {LONGEST:?}"),
    };
    Err(Failed(format!("{name} on PostgreSQL {major}: {why}")))
}

/// Says that a test cannot run here. In CI nothing may be missing, so there it fails instead, unless versions were chosen.
pub fn skipped(name: &str, why: &str) {
    let chosen = std::env::var("MIGRATOR_PG").is_ok_and(|majors| !majors.is_empty());
    if std::env::var("CI").is_ok_and(|ci| ci == "true") && !chosen {
        panic!("{name} cannot run: {why}; CI needs everything");
    }
    println!("skipped: {name}: {why}");
    if let Some(path) = std::env::var_os("MIGRATOR_SKIPS") {
        let mut file = std::fs::File::options().append(true).create(true).open(path).expect("MIGRATOR_SKIPS is a file");
        writeln!(file, "{name}: {why}").expect("MIGRATOR_SKIPS can be written");
    }
}

/// Seconds that a test with a time budget may take: MIGRATOR_TEST_SECONDS, or long with MIGRATOR_TEST_FULL.
pub fn seconds(short: u64, long: u64) -> Duration {
    let given = std::env::var("MIGRATOR_TEST_SECONDS").ok().and_then(|text| text.parse().ok());
    let full = std::env::var_os("MIGRATOR_TEST_FULL").is_some();
    Duration::from_secs(given.unwrap_or(if full { long } else { short }))
}

/// One story on one version of PostgreSQL: a test inside a module of the story's name.
#[macro_export]
macro_rules! story_on {
    ($name:ident, $test:ident, $major:literal) => {
        #[test]
        fn $test() -> Result<(), $crate::story::Failed> {
            $crate::story::run(stringify!($name), $major, super::$name)
        }
    };
}

/// Turns each async function named, taking a [`Server`] and returning a [`Result`](crate::Result), into one test for each version of PostgreSQL.
#[macro_export]
macro_rules! for_each_server {
    ($($name:ident),+ $(,)?) => { $(
        mod $name {
            $crate::story_on!($name, pg15, 15);
            $crate::story_on!($name, pg16, 16);
            $crate::story_on!($name, pg18, 18);
        }
    )+ };
}

/// The same on the oldest and the newest version only, for tests that take long and depend little on what lies between.
/// With the feature `full`, which `make test-full` switches on, they are tests for each version like all others.
#[macro_export]
macro_rules! for_oldest_and_newest_server {
    ($($name:ident),+ $(,)?) => { $(
        mod $name {
            $crate::story_on!($name, pg15, 15);
            #[cfg(feature = "full")]
            $crate::story_on!($name, pg16, 16);
            $crate::story_on!($name, pg18, 18);
        }
    )+ };
}

/// The same on the newest version only, for what is all the program's and meets the server in a few words.
#[macro_export]
macro_rules! for_newest_server {
    ($($name:ident),+ $(,)?) => { $(
        mod $name {
            #[cfg(feature = "full")]
            $crate::story_on!($name, pg15, 15);
            #[cfg(feature = "full")]
            $crate::story_on!($name, pg16, 16);
            $crate::story_on!($name, pg18, 18);
        }
    )+ };
}
