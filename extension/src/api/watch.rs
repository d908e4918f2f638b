//! Looking: events, version.

use crate::api::arguments::RegClass;
use crate::api::change::oid;
use crate::catalog::spi;
use crate::engine::guard;
use crate::raise::OrRaise;
use pgrx::prelude::*;
use serde::Deserialize;

/// The version of the library that is loaded.
#[pg_extern(immutable, parallel_safe)]
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Leaves a line in the log of a change, as the agent does about its runs.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
fn note_event(change: i64, kind: &str, message: &str, detail: default!(pgrx::JsonB, "'{}'")) -> i64 {
    #[derive(Deserialize)]
    struct Id {
        id: i64,
    }
    guard::enter(None, Some(change), |change| {
        let row: Id = spi::fetch_one(
            "with i as (insert into migrator.event (change, kind, message, detail) values ($1, $2, $3, $4) returning id) select pg_catalog.to_jsonb(i) from i",
            &[change.id.into(), kind.into(), message.into(), detail.into()],
        )?;
        Ok(row.id)
    })
    .or_raise()
}

/// The id of the change that a table or an id names, after the check of the caller's rights; for the procedures.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
fn _change_id(relation: default!(Option<RegClass>, "NULL"), change: default!(Option<i64>, "NULL")) -> i64 {
    guard::enter(oid(relation), change, |change| Ok(change.id)).or_raise()
}
