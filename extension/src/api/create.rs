//! create_shadow and explain: the beginning of a change.

use crate::api::answer::{BEGIN, LOOK, answer};
use crate::api::arguments::RegClass;
use crate::catalog::{role, settings};
use crate::engine::shape::{self, Request, Session};
use crate::engine::swap;
use migrator_core::failure::Failure;
use pgrx::JsonB;
use pgrx::prelude::*;

/// Makes an empty table of the new shape beside the live one, and gives the change's id.
// No `set search_path`: the caller's is recorded with the change, and pinned within.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
fn create_shadow(
    relation: Option<RegClass>,
    actions: default!(Option<&str>, "NULL"),
    transform: default!(Option<JsonB>, "'{}'"),
    reverse: default!(Option<JsonB>, "'{}'"),
    shadow: default!(Option<RegClass>, "NULL"),
    on_ready: default!(Option<&str>, "'wait'"),
) -> i64 {
    let request = request(relation, actions, transform, reverse, shadow, on_ready);
    answer(BEGIN, || {
        role::as_extension(|| {
            let id = shape::create_shadow(&request?)?;
            swap::foresee(id)?;
            Ok(id)
        })
    })
}

/// What create_shadow and the steps after it would do: each statement, its lock and for how long. Leaves nothing behind.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
#[allow(clippy::type_complexity)]
fn explain(
    relation: Option<RegClass>,
    actions: default!(Option<&str>, "NULL"),
    transform: default!(Option<JsonB>, "'{}'"),
    reverse: default!(Option<JsonB>, "'{}'"),
    shadow: default!(Option<RegClass>, "NULL"),
) -> TableIterator<
    'static,
    (
        name!(ordinal, i32),
        name!(step, String),
        name!(object, String),
        name!(statement, Option<String>),
        name!(lock, Option<String>),
        name!(held, Option<String>),
        name!(rows, Option<i64>),
        name!(bytes, Option<i64>),
        name!(wal_bytes, Option<i64>),
        name!(seconds, Option<f64>),
        name!(note, Option<String>),
    ),
> {
    let request = request(relation, actions, transform, reverse, shadow, None);
    let rows = answer(LOOK, || role::as_extension(|| request.and_then(|request| shape::explain(&request))));
    TableIterator::new((1..).zip(rows).map(|(ordinal, row)| {
        let shape::Row { step, object, statement, lock, held, rows, bytes, wal_bytes, seconds, note } = row;
        (ordinal, step.to_owned(), object, statement, lock, held, rows, bytes, wal_bytes, seconds, note)
    }))
}

fn request(
    relation: Option<RegClass>,
    actions: Option<&str>,
    transform: Option<JsonB>,
    reverse: Option<JsonB>,
    shadow: Option<RegClass>,
    on_ready: Option<&str>,
) -> Result<Request, Failure> {
    let object = |given: Option<JsonB>| given.map_or_else(|| serde_json::json!({}), |given| given.0);
    Ok(Request {
        relation: shape::given(relation.map(|relation| relation.0))?,
        actions: actions.map(str::to_owned),
        transform: object(transform),
        reverse: object(reverse),
        shadow: shadow.map(|shadow| shadow.0),
        on_ready: on_ready.unwrap_or("wait").to_owned(),
        upgrade: false,
        session: Session { role: role::caller(), settings: settings::of_session() },
    })
}
