//! SQL from inside the server: one statement a call, a new snapshot each, rows as typed structures.

use super::kept;
use migrator_core::failure::{Failure, code};
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::OwnedPreparedStatement;
use serde::de::DeserializeOwned;

fn failed(sql: &str, error: &pgrx::spi::Error) -> Failure {
    Failure::new(code::INTERNAL, format!("a statement of migrator failed: {error}"))
        .detail(format!("The statement was: {sql}"))
}

/// Runs one statement and returns the number of rows it processed. A PostgreSQL error unwinds as such.
pub fn execute(sql: &str, args: &[DatumWithOid<'_>]) -> Result<u64, Failure> {
    Spi::connect_mut(|client| {
        let table = match kept::plan(client, sql, args)? {
            Some(plan) => client.update(&*plan, None, args)?,
            None => client.update(sql, None, args)?,
        };
        Ok(table.len() as u64)
    })
    .map_err(|error| failed(sql, &error))
}

/// Runs a query (or DML … RETURNING inside WITH) and returns its rows as structures, matched by column name.
/// Not read-only: it sees what this transaction did, under a snapshot of its own.
pub fn fetch<T: DeserializeOwned>(sql: &str, args: &[DatumWithOid<'_>]) -> Result<Vec<T>, Failure> {
    let text = wrapped(sql);
    let rows: Vec<pgrx::JsonB> = Spi::connect_mut(|client| {
        let rows = match kept::plan(client, &text, args)? {
            Some(plan) => client.update(&*plan, None, args)?,
            None => client.update(&text, None, args)?,
        };
        rows.map(|row| Ok(row.get::<pgrx::JsonB>(1)?.expect("to_jsonb of a row is not null")))
            .collect::<Result<Vec<_>, pgrx::spi::Error>>()
    })
    .map_err(|error| failed(sql, &error))?;
    decode(sql, rows)
}

/// The same for callers that must not write (a standby, a STABLE function).
pub fn fetch_read_only<T: DeserializeOwned>(sql: &str, args: &[DatumWithOid<'_>]) -> Result<Vec<T>, Failure> {
    let rows: Vec<pgrx::JsonB> = Spi::connect(|client| {
        client
            .select(&wrapped(sql), None, args)?
            .map(|row| Ok(row.get::<pgrx::JsonB>(1)?.expect("to_jsonb of a row is not null")))
            .collect::<Result<Vec<_>, pgrx::spi::Error>>()
    })
    .map_err(|error| failed(sql, &error))?;
    decode(sql, rows)
}

/// The one row of a query.
pub fn fetch_one<T: DeserializeOwned>(sql: &str, args: &[DatumWithOid<'_>]) -> Result<T, Failure> {
    fetch_optional(sql, args)?
        .ok_or_else(|| Failure::new(code::INTERNAL, "a query of migrator found no row").detail(sql))
}

/// The first row of a query, if there is one.
pub fn fetch_optional<T: DeserializeOwned>(sql: &str, args: &[DatumWithOid<'_>]) -> Result<Option<T>, Failure> {
    Ok(fetch(sql, args)?.into_iter().next())
}

/// A statement that was parsed and planned beforehand; its plan lives until this is dropped.
pub struct Prepared {
    statement: OwnedPreparedStatement,
    sql: String,
}

/// Parses a statement with these types of parameters under the role and settings in force, which must be the same
/// when it is run. It returns one jsonb.
pub fn prepare(sql: String, parameters: &[PgOid]) -> Result<Prepared, Failure> {
    let statement = Spi::connect_mut(|client| client.prepare_mut(sql.as_str(), parameters).map(|plan| plan.keep()))
        .map_err(|error| failed(&sql, &error))?;
    Ok(Prepared { statement, sql })
}

/// Runs a prepared statement and returns its one jsonb as a structure.
pub fn run<T: DeserializeOwned>(prepared: &Prepared, args: &[DatumWithOid<'_>]) -> Result<T, Failure> {
    let row =
        Spi::connect_mut(|client| client.update(&prepared.statement, None, args)?.first().get_one::<pgrx::JsonB>())
            .map_err(|error| failed(&prepared.sql, &error))?;
    let row =
        row.ok_or_else(|| Failure::new(code::INTERNAL, "a query of migrator found no row").detail(&*prepared.sql))?;
    decode(&prepared.sql, vec![row]).map(|mut rows| rows.remove(0))
}

fn wrapped(sql: &str) -> String {
    let with_dml = sql.trim_start().to_ascii_lowercase().starts_with("with");
    // A data-modifying WITH is only allowed at the top level, so such a query selects its jsonb itself.
    if with_dml { sql.to_owned() } else { format!("select pg_catalog.to_jsonb(q) from ({sql}) q") }
}

fn decode<T: DeserializeOwned>(sql: &str, rows: Vec<pgrx::JsonB>) -> Result<Vec<T>, Failure> {
    rows.into_iter()
        .map(|row| {
            serde_json::from_value(row.0).map_err(|error| {
                Failure::new(code::INTERNAL, format!("a row of migrator's catalog could not be read: {error}"))
                    .detail(sql)
            })
        })
        .collect()
}
