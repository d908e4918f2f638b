//! The extension: a map of its parts.
//!
//! Data flows one way: `api` (every SQL function, thin) → `engine` (the steps of a change) →
//! `catalog` (the only place with SPI, locks and roles). `capture` is what runs inside the
//! application's statements. Rules that need no server live in `migrator-core`.

use pgrx::prelude::*;

mod api;
mod capture;
mod catalog;
mod crash;
mod engine;
mod guard;
mod raise;

::pgrx::pg_module_magic!(name, version);

extension_sql_file!("../../sql/tables.sql", name = "tables", bootstrap);
extension_sql_file!("../../sql/upgrades.sql", name = "upgrades", requires = ["tables"]);
extension_sql_file!(
    "../../sql/procedures.sql",
    name = "procedures",
    requires = [
        api::change::advance,
        api::watch::_change_id,
        api::alter::_alter_steps,
        api::alter::_alter_step,
        api::alter::_alter_shadow
    ]
);
extension_sql_file!("../../sql/views.sql", name = "views", requires = ["tables"]);
extension_sql_file!("../../sql/upgrade_views.sql", name = "upgrade_views", requires = ["upgrades", "views"]);
extension_sql_file!("../../sql/upgrade_procedures.sql", name = "upgrade_procedures", requires = [api::upgrade::step]);
extension_sql_file!(
    "../../sql/load.sql",
    name = "load",
    requires = [api::load::set_limit, api::load::set_own_query, api::load::_signals]
);
// Only one file can come last by itself, so this one names what it speaks of.
extension_sql_file!(
    "../../sql/upgrade_comments.sql",
    name = "upgrade_comments",
    requires = [
        "upgrade_views",
        "upgrade_procedures",
        api::upgrade::register_upgrade,
        api::upgrade::explain_upgrade,
        api::upgrade::step,
        api::upgrade::_counts,
        api::upgrade::_ends,
        api::upgrade::_in_time,
        api::upgrade::_run_upgrades,
        api::upgrade::retire_upgrade,
        api::upgrade::forget_upgrades,
        api::upgrade::pause_upgrades,
        api::upgrade::resume_upgrades,
        api::upgrade::verify_upgrades,
        api::hand::select_batch,
        api::hand::mark_applied,
        api::hand::ensure_upgraded,
        api::hand::retry_failed,
        api::hand::waive_failed
    ]
);
extension_sql_file!("../../sql/comments.sql", name = "comments", finalize);

/// What PostgreSQL calls when it loads the library.
#[allow(missing_docs)] // the macro's own function has none
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    crash::define_setting();
}

#[cfg(any(test, feature = "pg_test"))]
#[path = "../../pgrx-tests/bulk.rs"]
mod bulk_tests;
#[cfg(any(test, feature = "pg_test"))]
#[path = "../../pgrx-tests/capture.rs"]
mod capture_tests;
#[cfg(any(test, feature = "pg_test"))]
#[path = "../../pgrx-tests/image_hash.rs"]
mod image_hash_tests;

/// What `cargo pgrx test` needs of the crate's root.
#[cfg(test)]
pub mod pg_test {
    /// Nothing to set up.
    pub fn setup(_options: Vec<&str>) {}
    /// No settings.
    #[must_use]
    pub fn postgresql_conf_options() -> Vec<&'static str> {
        vec![]
    }
}

#[cfg(any(test, feature = "pg_test"))]
#[path = "../../pgrx-tests/carry.rs"]
mod carry_tests;
