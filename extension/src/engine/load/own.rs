//! The DBA's own query: with the rights of the role that set it, in a security-restricted operation that cannot write, for
//! no longer than its timeout. Never as a superuser where the one who set it was none.

use crate::catalog::{role, spi, timeout};
use migrator_core::failure::{Failure, code};
use pgrx::pg_sys;
use serde::Deserialize;
use std::time::Duration;

/// The query as it was set.
#[derive(Deserialize)]
struct Own {
    query: String,
    timeout_ms: u32,
    role: String,
    superuser: bool,
}

#[derive(Deserialize)]
struct Role {
    oid: u32,
    superuser: bool,
}

const ROLE: &str = "select r.oid::pg_catalog.int8 as oid, r.rolsuper as superuser from pg_catalog.pg_roles r";

/// Asks it. None where there is no query, or where it has nothing to say.
pub fn ask() -> Result<Option<f64>, Failure> {
    let own: Option<Own> =
        spi::fetch_optional("select q.query, q.timeout_ms, q.role, q.superuser from migrator.own_query q", &[])?;
    own.map_or(Ok(None), |own| run(&own))
}

fn run(own: &Own) -> Result<Option<f64>, Failure> {
    #[derive(Deserialize)]
    struct Answer {
        answer: Option<String>,
    }
    let role: Option<Role> = spi::fetch_optional(&format!("{ROLE} where r.rolname = $1"), &[own.role.as_str().into()])?;
    let Some(role) = role else {
        return Err(again(format!("role {}, which set the query, does not exist", own.role)));
    };
    if role.superuser && !own.superuser {
        return Err(again(format!("role {} was no superuser when it set the query, and is one now", own.role)));
    }
    // As text, for JSON has neither NaN nor infinity.
    let sql = format!("select ((\n{}\n)::pg_catalog.float8)::pg_catalog.text as answer", own.query);
    let limit = Duration::from_millis(u64::from(own.timeout_ms));
    let settings = [("row_security", "on".to_owned()), ("lock_timeout", own.timeout_ms.to_string())];
    let settings = settings.map(|(name, value)| (name.to_owned(), value));
    let answer: Answer = timeout::within(limit, || {
        // Until the end of the subtransaction around us.
        role::read_only();
        role::as_owner(pg_sys::Oid::from(role.oid), &settings, || spi::fetch_one(&sql, &[]))
    })?;
    match answer.answer.map(|answer| answer.parse::<f64>()) {
        None => Ok(None),
        Some(Ok(number)) if !number.is_nan() => Ok(Some(number)),
        Some(_) => Err(Failure::new(code::INVALID_PARAMETER, "the answer of the query is not a number")),
    }
}

fn again(message: String) -> Failure {
    Failure::new(code::INSUFFICIENT_PRIVILEGE, message).hint("Set it again: select migrator.set_own_query('…');")
}

/// Sets the query, or takes it away, and returns what it says now. One that fails now is refused.
pub fn set(caller: pg_sys::Oid, query: Option<&str>, timeout: Duration) -> Result<Option<f64>, Failure> {
    spi::execute("delete from migrator.own_query", &[])?;
    let Some(query) = query else { return Ok(None) };
    let timeout_ms =
        u32::try_from(timeout.as_millis()).ok().filter(|ms| (1..=10_000).contains(ms)).ok_or_else(|| {
            Failure::new(code::INVALID_PARAMETER, "the timeout of the query is not between 1 ms and 10 s")
                .detail("While it runs, the worker that asks it does nothing else.")
                .hint("For instance: select migrator.set_own_query('select …', timeout => '500 ms');")
        })?;
    let name = role::name(caller)?;
    let role: Role = spi::fetch_one(&format!("{ROLE} where r.oid = $1"), &[caller.into()])?;
    let query = query.trim_end().trim_end_matches(';').to_owned();
    let own = Own { query, timeout_ms, role: name.as_str().to_owned(), superuser: role.superuser };
    let answer = run(&own).map_err(|failure| Failure {
        message: format!("the query cannot be asked: {}", failure.message),
        hint: Some(
            "It is one SELECT of one number, with every object named with its schema, and runs with your rights."
                .to_owned(),
        ),
        ..failure
    })?;
    spi::execute(
        "insert into migrator.own_query (query, timeout_ms, role, superuser) values ($1, $2, $3, $4)",
        &[own.query.as_str().into(), i64::from(own.timeout_ms).into(), own.role.as_str().into(), own.superuser.into()],
    )?;
    Ok(answer)
}
