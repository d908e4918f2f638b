//! Rows that the other shape refuses: set aside with their error, tried again, in the way of the swap only.

use crate::catalog::spi;
use crate::engine::change::Change;
use migrator_core::failure::{Failure, code};
use migrator_core::sql::{self, Direction};
use pgrx::JsonB;
use serde::Deserialize;
use serde_json::{Value, json};

/// More bad rows than this and the change is blocked: the shape is wrong, not the rows.
const BUDGET: i64 = 1000;

/// Sets a row aside. False when there are so many that the change is blocked now.
pub fn record(change: &Change, direction: Direction, key: &Value, failure: &Failure) -> Result<bool, Failure> {
    let first = count(change, direction)? == 0;
    spi::execute(
        "insert into migrator.bad_row (change, direction, key, sqlstate, message) values ($1, $2, $3, $4, $5) \
         on conflict (change, direction, key) do update set sqlstate = excluded.sqlstate, message = excluded.message",
        &[
            change.id.into(),
            direction.as_str().into(),
            JsonB(key.clone()).into(),
            failure.code.as_ref().into(),
            failure.message.as_str().into(),
        ],
    )?;
    if first {
        let message = format!("row {key} does not fit: {}", failure.message);
        change.event(
            "bad_row",
            &message,
            json!({"key": key, "sqlstate": failure.code, "direction": direction.as_str()}),
        )?;
    }
    let too_many = count(change, direction)? > BUDGET;
    if too_many {
        change.block(
            &format!(
                "more than {BUDGET} rows do not fit the {} shape",
                if direction == Direction::Forward { "new" } else { "old" }
            ),
            &format!(
                "Look at them: select * from migrator.bad_rows; mend the rows or the expressions, then {} or {}",
                change.call("resume"),
                change.call("cancel")
            ),
        )?;
    }
    Ok(!too_many)
}

/// Takes a row off the list: it is gone, and nothing is missing on the other side.
pub fn forget(change: &Change, direction: Direction, key: &Value) -> Result<(), Failure> {
    spi::execute(
        "delete from migrator.bad_row where change = $1 and direction = $2 and key = $3",
        &[change.id.into(), direction.as_str().into(), JsonB(key.clone()).into()],
    )
    .map(|_| ())
}

/// How many rows are set aside.
pub fn count(change: &Change, direction: Direction) -> Result<i64, Failure> {
    #[derive(Deserialize)]
    struct Count {
        n: i64,
    }
    let count: Count = spi::fetch_one(
        "select count(*) as n from migrator.bad_row where change = $1 and direction = $2",
        &[change.id.into(), direction.as_str().into()],
    )?;
    Ok(count.n)
}

/// The keys of all rows that are set aside, as one jsonb array.
pub fn keys(change: &Change, direction: Direction) -> Result<Value, Failure> {
    #[derive(Deserialize)]
    struct Keys {
        keys: Value,
    }
    let found: Keys = spi::fetch_one(
        "select coalesce(pg_catalog.jsonb_agg(key), '[]') as keys from migrator.bad_row where change = $1 and direction = $2",
        &[change.id.into(), direction.as_str().into()],
    )?;
    Ok(found.keys)
}

/// Puts every row that was set aside back into the log: what was in its way may be gone. Returns how many.
pub fn retry(change: &Change, direction: Direction) -> Result<i64, Failure> {
    #[derive(Deserialize)]
    struct Row {
        key: Value,
    }
    let rows: Vec<Row> = spi::fetch(
        "select key from migrator.bad_row where change = $1 and direction = $2 order by key limit 1000",
        &[change.id.into(), direction.as_str().into()],
    )?;
    let segments = crate::capture::log::segments(change.id, direction);
    let into = segments.first().expect("a log has segments");
    for row in &rows {
        let statement = sql::relog(&change.plan, direction, into);
        change.as_owner(&[], || spi::execute(&statement, &[JsonB(row.key.clone()).into()]))?;
        forget(change, direction, &row.key)?;
    }
    Ok(i64::try_from(rows.len()).unwrap_or(i64::MAX))
}

/// The failure that keeps a change with bad rows from being swapped or rolled back.
pub fn refuse(change: &Change, direction: Direction) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Row {
        key: Value,
        sqlstate: String,
        message: String,
    }
    let rows: Vec<Row> = spi::fetch(
        "select key, sqlstate, message from migrator.bad_row where change = $1 and direction = $2 order by seen_at, key limit 3",
        &[change.id.into(), direction.as_str().into()],
    )?;
    if rows.is_empty() {
        return Ok(());
    }
    let total = count(change, direction)?;
    let shape = if direction == Direction::Forward { "new" } else { "old" };
    let examples: Vec<String> =
        rows.iter().map(|row| format!("{} ({}: {})", row.key, row.sqlstate, row.message)).collect();
    Err(Failure::new(
        code::NOT_IN_STATE,
        format!("{total} row(s) of table {} do not fit the {shape} shape", change.name().plain()),
    )
    .detail(format!("The first: {}. Nothing was changed.", examples.join("; ")))
    .hint("Mend these rows with plain UPDATE or DELETE (they are tried again by themselves), then call it again. select * from migrator.bad_rows; lists all."))
}
