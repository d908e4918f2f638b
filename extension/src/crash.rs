//! Named places where a test can make the server fail, die or wait.
//!
//! Compiled in only with the feature `crash-points`; without it each point is an empty inline function.
//! `set migrator.crash_at = 'NAME:ACTION'`, ACTION one of `error`, `kill` (SIGKILL of this backend) and
//! `wait` (until the advisory lock 7331 is free, so that a test decides when to go on, whatever `lock_timeout` is in force).

#[cfg(feature = "crash-points")]
mod points {
    use crate::catalog::{role, spi};
    use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};
    use std::ffi::CString;

    static CRASH_AT: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);

    pub fn define_setting() {
        GucRegistry::define_string_guc(
            c"migrator.crash_at",
            c"Where a test makes the server fail, die or wait.",
            c"NAME:ACTION, ACTION one of error, kill, wait.",
            &CRASH_AT,
            GucContext::Suset,
            GucFlags::default(),
        );
    }

    pub fn point(name: &str) {
        let Some(setting) = CRASH_AT.get() else { return };
        let setting = setting.to_string_lossy().into_owned();
        let Some((at, action)) = setting.rsplit_once(':') else { return };
        if at != name {
            return;
        }
        match action {
            "error" => pgrx::error!("crash point {name}"),
            // SAFETY: kill(2) on the own process id has no memory effects; the process ends here.
            "kill" => unsafe {
                libc::kill(libc::getpid(), libc::SIGKILL);
            },
            "wait" => {
                let wait = "select pg_catalog.pg_advisory_lock(7331), pg_catalog.pg_advisory_unlock(7331)";
                role::with_settings(&[("lock_timeout", "0")], || spi::execute(wait, &[]))
                    .expect("an advisory lock can be waited for");
            }
            other => pgrx::error!("crash point {name}: unknown action {other}"),
        }
    }
}

#[cfg(feature = "crash-points")]
pub use points::{define_setting, point};

/// Nothing, in a released build.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub fn define_setting() {}

/// Nothing, in a released build.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub fn point(_name: &str) {}
