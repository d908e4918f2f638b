//! The settings of the caller's session on which the value of an expression can depend.
//!
//! Recorded when a change is created and set again for every statement that evaluates its expressions:
//! without that, a cast of timestamptz to text gave another value in a session with another TimeZone.

use pgrx::pg_sys;
use std::ffi::{CStr, CString};

/// Everything besides search_path; names that a server does not know are left out.
const NAMES: &[&str] = &[
    "TimeZone",
    "timezone_abbreviations",
    "DateStyle",
    "IntervalStyle",
    "extra_float_digits",
    "bytea_output",
    "array_nulls",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "xmlbinary",
    "xmloption",
    "default_text_search_config",
];

/// Keys of rows are kept as text, compared, and read in other sessions: in forms that do not depend on who writes them.
pub const AS_TEXT: [(&str, &str); 6] = [
    ("TimeZone", "UTC"),
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
];

/// Reads them from the session, before anything is pinned.
pub fn of_session() -> Vec<(String, String)> {
    let mut settings = vec![("search_path".to_owned(), search_path())];
    settings.extend(NAMES.iter().filter_map(|name| value(name).map(|value| ((*name).to_owned(), value))));
    // Where an index goes is said by its definition, or follows the database.
    settings.push(("default_tablespace".to_owned(), String::new()));
    settings
}

/// The schemas that exist now, by name: `"$user"` would mean another schema for another role. pg_catalog comes
/// first, because deparsed text leaves it out, and pg_temp last, because nothing of a change is there.
fn search_path() -> String {
    let mut path = vec!["pg_catalog".to_owned()];
    // SAFETY: a list of oids, copied for us; names are palloc'd or NULL for a schema that was dropped meanwhile.
    unsafe {
        let list = pg_sys::fetch_search_path(false);
        let length = list.as_ref().map_or(0, |list| list.length);
        for at in 0..length {
            let oid = pg_sys::list_nth_oid(list, at);
            let name = pg_sys::get_namespace_name(oid);
            if name.is_null() || pg_sys::isTempNamespace(oid) {
                continue;
            }
            let name = CStr::from_ptr(name).to_string_lossy().into_owned();
            if name != "pg_catalog" {
                path.push(migrator_core::ident::Ident::new(name).to_string());
            }
        }
    }
    path.push("pg_temp".to_owned());
    path.join(", ")
}

fn value(name: &str) -> Option<String> {
    let name = CString::new(name).expect("setting names have no NUL");
    // SAFETY: NULL for an unknown name; otherwise a string that lives until the setting changes, copied at once.
    unsafe {
        let value = pg_sys::GetConfigOption(name.as_ptr(), true, false);
        (!value.is_null()).then(|| CStr::from_ptr(value).to_string_lossy().into_owned())
    }
}
