//! The limits that a DBA set, each with its author, and setting them.

use crate::catalog::attempt::attempt;
use crate::catalog::{role, spi};
use migrator_core::failure::{Failure, code};
use migrator_core::load::{Limit, Limits, Signal, Unit};
use pgrx::pg_sys;
use serde::Deserialize;

/// What was set, and defaults for the rest. A signal that this version does not know is left alone.
pub fn in_force() -> Result<Limits, Failure> {
    #[derive(Deserialize)]
    struct Row {
        signal: String,
        #[serde(flatten)]
        limit: Limit,
    }
    let rows: Vec<Row> =
        spi::fetch_read_only("select l.signal, l.enter, l.leave, l.off, l.ignoring from migrator.signal_limit l", &[])?;
    Ok(Limits(rows.into_iter().filter_map(|row| Some((Signal::parse(&row.signal)?, row.limit))).collect()))
}

/// Sets the limit of a signal, or, given nothing, takes back what was set. Returns the thresholds in force, as people read them.
pub fn set(
    caller: pg_sys::Oid,
    signal: &str,
    enter: Option<&str>,
    leave: Option<&str>,
    ignoring: Vec<String>,
) -> Result<(String, String), Failure> {
    let signal = Signal::parse(signal).ok_or_else(|| unknown(signal))?;
    if signal == Signal::HttpCheck && enter.is_some_and(|enter| enter != "off") {
        return Err(invalid("signal http_check has no threshold".to_owned())
            .detail("The check itself says yes or no.")
            .hint("Not to watch it: select migrator.set_limit('http_check', 'off');"));
    }
    if leave.is_some() && !signal.has_leave() {
        return Err(invalid(format!("signal {} has no threshold to leave at", signal.as_str()))
            .detail("It is over as soon as what raised it is.")
            .hint("Leave that argument out."));
    }
    let usual = signal.default_limit();
    let off = enter.map_or(usual.off, |enter| enter == "off");
    let (from, until) = match enter {
        Some(enter) if !off => {
            let enter = parse(signal, enter)?;
            (enter, leave.map_or(Ok(Limit::leave_for(signal, enter)), |leave| parse(signal, leave))?)
        }
        _ => (usual.enter, leave.map_or(Ok(usual.leave), |leave| parse(signal, leave))?),
    };
    let limit = Limit { enter: from, leave: until, off, ignoring };
    if !limit.is_sound(signal) {
        let (side, enter, leave) =
            (if signal.is_a_floor() { "above" } else { "below" }, text(signal, limit.enter), text(signal, limit.leave));
        return Err(invalid(format!("signal {} cannot be raised at {enter} and left at {leave}", signal.as_str()))
            .hint(format!("The threshold to leave at lies {side} the one to enter, or is the same.")));
    }
    if limit == usual {
        spi::execute("delete from migrator.signal_limit where signal = $1", &[signal.as_str().into()])?;
    } else {
        let by = role::name(caller)?;
        spi::execute(
            "insert into migrator.signal_limit (signal, enter, leave, off, ignoring, set_by) values ($1, $2, $3, $4, $5, $6) \
             on conflict (signal) do update set enter = excluded.enter, leave = excluded.leave, off = excluded.off, \
                ignoring = excluded.ignoring, set_by = excluded.set_by, set_at = excluded.set_at",
            &[
                signal.as_str().into(),
                limit.enter.into(),
                limit.leave.into(),
                limit.off.into(),
                limit.ignoring.clone().into(),
                by.as_str().into(),
            ],
        )?;
    }
    Ok(texts(signal, &limit))
}

/// Both thresholds as people read them.
pub fn texts(signal: Signal, limit: &Limit) -> (String, String) {
    if limit.off {
        ("off".to_owned(), "off".to_owned())
    } else {
        (text(signal, limit.enter), text(signal, limit.leave))
    }
}

fn text(signal: Signal, value: f64) -> String {
    signal.unit().text(value)
}

fn parse(signal: Signal, text: &str) -> Result<f64, Failure> {
    #[derive(Deserialize)]
    struct Value {
        value: f64,
    }
    let (sql, what, example) = match signal.unit() {
        Unit::Seconds => ("extract(epoch from $1::pg_catalog.interval)::pg_catalog.float8", "a duration", "30 s"),
        Unit::Bytes => ("pg_catalog.pg_size_bytes($1)::pg_catalog.float8", "a size", "8 GB"),
        Unit::Count => ("$1::pg_catalog.float8", "a number", "32"),
    };
    attempt(|| spi::fetch_one::<Value>(&format!("select {sql} as value"), &[text.into()]))
        .ok()
        .map(|found| found.value)
        .filter(|value| value.is_finite() && (*value >= 0.0 || signal == Signal::OwnQuery))
        .filter(|value| *value >= 1.0 || signal != Signal::WalRate)
        .ok_or_else(|| {
            invalid(format!("the threshold \"{text}\" of signal {} is not {what}", signal.as_str()))
                .hint(format!("For instance: select migrator.set_limit('{}', '{example}');", signal.as_str()))
        })
}

fn unknown(signal: &str) -> Failure {
    let names: Vec<&str> = Signal::ALL.iter().map(|signal| signal.as_str()).collect();
    invalid(format!("there is no signal \"{signal}\"")).hint(format!("There are {}.", names.join(", ")))
}

fn invalid(message: String) -> Failure {
    Failure::new(code::INVALID_PARAMETER, message)
}
