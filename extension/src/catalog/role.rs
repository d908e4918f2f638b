//! Whose rights a statement runs with, and under which settings.
//!
//! The engine itself runs as the extension's owner with `search_path` pinned. Everything that reads or
//! writes a user's rows, or evaluates a user's expression, runs as the table's owner inside a
//! security-restricted operation: a superuser who drives a change must never run the owner's functions
//! as superuser.

use crate::catalog::spi;
use migrator_core::failure::Failure;
use migrator_core::ident::Ident;
use pgrx::pg_sys;
use pgrx::prelude::*;
use serde::Deserialize;
use std::ffi::CString;

/// The settings that are in force while a scope lives; its end restores what was before.
struct Scope {
    user: pg_sys::Oid,
    context: i32,
    nest: i32,
}

impl Scope {
    fn enter(user: pg_sys::Oid, flags: u32, settings: &[(&str, &str)]) -> Self {
        // SAFETY: the sequence of index_build() in PostgreSQL's catalog/index.c: save, open a GUC level,
        // switch. An ERROR unwinds past us, and (sub)transaction abort restores both itself (xact.c).
        unsafe {
            let mut previous = pg_sys::InvalidOid;
            let mut context = 0;
            pg_sys::GetUserIdAndSecContext(&mut previous, &mut context);
            let nest = pg_sys::NewGUCNestLevel();
            for (name, value) in settings {
                set(name, value);
            }
            let flags = i32::try_from(flags).expect("the flags are two small bits");
            pg_sys::SetUserIdAndSecContext(user, context | flags);
            Self { user: previous, context, nest }
        }
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return; // abort restores user and settings
        }
        // SAFETY: see enter().
        unsafe {
            pg_sys::AtEOXact_GUC(false, self.nest);
            pg_sys::SetUserIdAndSecContext(self.user, self.context);
        }
    }
}

/// Sets a configuration parameter for the current GUC level.
unsafe fn set(name: &str, value: &str) {
    let name = CString::new(name).expect("setting names have no NUL");
    let value = CString::new(value).expect("setting values have no NUL");
    // SAFETY: both strings live over the call; GUC_ACTION_SAVE is undone by AtEOXact_GUC. What GetConfigOption() returns lives
    // until the setting changes. Setting what is set costs a hundred times as much as looking, and this runs for single rows.
    unsafe {
        let now = pg_sys::GetConfigOption(name.as_ptr(), true, false);
        if !now.is_null() && std::ffi::CStr::from_ptr(now) == value.as_c_str() {
            return;
        }
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_SAVE,
            true,
            0,
            false,
        );
    }
}

/// What every statement of ours runs with. Compiling would cost more than any of them: plans for few keys look endlessly
/// expensive, because sequential scans and hash joins are switched off for them.
const PINNED: [(&str, &str); 3] = [("search_path", "pg_catalog, pg_temp"), ("row_security", "off"), ("jit", "off")];

/// The role that calls us: what rights are checked against.
pub fn caller() -> pg_sys::Oid {
    // SAFETY: reads a backend-local variable.
    unsafe { pg_sys::GetUserId() }
}

/// Runs `work` as the extension's owner with a pinned search_path: how every function of `api` begins.
pub fn as_extension<T>(work: impl FnOnce() -> T) -> T {
    let scope = Scope::enter(extension_owner(), pg_sys::SECURITY_LOCAL_USERID_CHANGE, &PINNED);
    let result = work();
    drop(scope);
    result
}

/// Runs `work` as `owner`, security-restricted, row security off, under `settings` (a search_path among
/// them replaces the pinned one).
pub fn as_owner<T>(owner: pg_sys::Oid, settings: &[(String, String)], work: impl FnOnce() -> T) -> T {
    let mut all = PINNED.to_vec();
    all.extend(settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let flags = pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION;
    let scope = Scope::enter(owner, flags, &all);
    let result = work();
    drop(scope);
    result
}

/// Runs `work` with extra settings and the same user (planner switches, lock_timeout).
pub fn with_settings<T>(settings: &[(&str, &str)], work: impl FnOnce() -> T) -> T {
    let scope = Scope::enter(caller(), 0, settings);
    let result = work();
    drop(scope);
    result
}

/// Lets nothing be written from here to the end of the subtransaction around it. A setting cannot do that for part of a transaction.
pub fn read_only() {
    // SAFETY: the variable behind transaction_read_only; the end of a subtransaction, either way, gives it the value that it
    // had before (xact.c, CommitSubTransaction, AbortSubTransaction).
    unsafe { pg_sys::XactReadOnly = true }
}

/// The role that installed the extension and owns its objects.
fn extension_owner() -> pg_sys::Oid {
    Spi::connect(|client| {
        client
            .select(
                "select extowner from pg_catalog.pg_extension where extname operator(pg_catalog.=) 'migrator'",
                None,
                &[],
            )?
            .first()
            .get_one::<pg_sys::Oid>()
    })
    .ok()
    .flatten()
    .expect("a function of the extension runs only while the extension exists")
}

/// A role's name, for GRANT.
pub fn name(role: pg_sys::Oid) -> Result<Ident, Failure> {
    #[derive(Deserialize)]
    struct Role {
        name: Ident,
    }
    let role: Role =
        spi::fetch_one("select r.rolname as name from pg_catalog.pg_roles r where r.oid = $1", &[role.into()])?;
    Ok(role.name)
}
