//! Indexes and constraints of the shadow, one transaction each, several connections at once.

use crate::catalog::attempt::attempt;
use crate::catalog::{spi, timeout};
use crate::crash;
use crate::engine::change::Change;
use crate::engine::swap;
use migrator_core::failure::Failure;
use serde::Deserialize;
use serde_json::json;
use std::time::Instant;

/// What a call did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Built {
    /// An index of this name.
    One(String),
    /// Nothing: the ones that are not done are in other hands.
    Busy,
    /// Nothing: all are there.
    Done,
}

#[derive(Deserialize)]
struct Row {
    number: i32,
    name: String,
    sql: String,
}

/// Builds one index that nobody else is building. The caller holds the change `Shared`. A plain CREATE INDEX:
/// nobody but us uses the shadow, and a build that dies leaves nothing behind.
pub fn one(change: &Change) -> Result<Built, Failure> {
    let Some(row) = spi::fetch_optional::<Row>(
        "with b as (select number, name, sql from migrator.build where change = $1 and built_at is null \
                    order by number limit 1 for update skip locked) select pg_catalog.to_jsonb(b) from b",
        &[change.id.into()],
    )?
    else {
        return Ok(if left(change)? == 0 { Built::Done } else { Built::Busy });
    };
    let begun = Instant::now();
    let built = timeout::unbounded(|| attempt(|| change.as_owner(&[], || spi::execute(&row.sql, &[]))));
    if let Err(failure) = built {
        // 54: a value is too long for an index.
        if ["22", "23", "54"].iter().any(|class| failure.code.starts_with(class)) {
            let detail = failure.detail.clone().unwrap_or_default();
            spi::execute(
                "update migrator.build set refused = true where change = $1 and number = $2",
                &[change.id.into(), row.number.into()],
            )?;
            change.block(
                &format!("index {} cannot be built: {}. {detail}", row.name, failure.message),
                &format!("Mend the rows in the table, then: {}", change.call("resume")),
            )?;
            return Ok(Built::Busy);
        }
        return Err(failure);
    }
    crash::point("build");
    let seconds = begun.elapsed().as_secs_f64();
    spi::execute(
        "update migrator.build set built_at = pg_catalog.clock_timestamp(), took = pg_catalog.make_interval(secs => $3) where change = $1 and number = $2",
        &[change.id.into(), row.number.into(), seconds.into()],
    )?;
    change.event("build", &format!("index {} built", row.name), json!({"seconds": seconds}))?;
    Ok(Built::One(row.name))
}

/// Whether rows stood in the way of one: mended in the live table, they are still in the shadow as they were.
pub fn was_refused(change: &Change) -> Result<bool, Failure> {
    #[derive(Deserialize)]
    struct Refused {
        refused: bool,
    }
    let build: Refused = spi::fetch_one(
        "select exists (select from migrator.build where change = $1 and refused) as refused",
        &[change.id.into()],
    )?;
    Ok(build.refused)
}

/// Lets what was refused be tried again. The caller has replayed the key log.
pub fn try_again(change: &Change) -> Result<(), Failure> {
    spi::execute("update migrator.build set refused = false where change = $1 and refused", &[change.id.into()])
        .map(|_| ())
}

/// How many are not built.
pub fn left(change: &Change) -> Result<i64, Failure> {
    #[derive(Deserialize)]
    struct Left {
        n: i64,
    }
    let left: Left = spi::fetch_one(
        "select count(*) as n from migrator.build where change = $1 and built_at is null",
        &[change.id.into()],
    )?;
    Ok(left.n)
}

/// Turns indexes into the constraints that they carry, then what can be carried over already, then ANALYZE. The caller holds the change `Alone`.
pub fn attach(change: &Change) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Attach {
        attach: String,
    }
    let statements: Vec<Attach> = spi::fetch(
        "select b.attach from migrator.build b where b.change = $1 and b.attach is not null \
         and not exists (select from pg_catalog.pg_constraint c where c.conrelid = $2 and c.conname = b.name) order by b.number",
        &[change.id.into(), pgrx::pg_sys::Oid::from(change.shadow).into()],
    )?;
    for statement in statements {
        timeout::unbounded(|| change.as_owner(&[], || spi::execute(&statement.attach, &[])))?;
    }
    for statement in change.plan.builds.iter().flat_map(|build| &build.also) {
        spi::execute(statement, &[])?;
    }
    swap::rehearse(change)?;
    let shadow = change.table(change.shadow)?.name;
    timeout::unbounded(|| change.as_owner(&[], || spi::execute(&format!("analyze {shadow}"), &[])))?;
    change.event("attach", "constraints attached, statistics gathered", json!({}))
}

/// What the agent, or a person, runs outside a transaction: VACUUM can run in no function.
pub fn vacuum(change: &Change) -> Result<String, Failure> {
    let shadow = change.table(change.shadow)?.name;
    Ok(format!("vacuum (freeze) {shadow}"))
}
