//! What `migrator.signals` shows: each signal as it was last seen, with its limits.

use super::limits;
use crate::catalog::spi;
use migrator_core::failure::Failure;
use migrator_core::load::{Decision, Effect, Raised, Signal};
use pgrx::pg_sys;
use serde::Deserialize;
use std::collections::HashMap;

/// A row of the view.
pub struct Row {
    /// The signal's name.
    pub signal: &'static str,
    /// `go`, `slow` or `hold`.
    pub verdict: &'static str,
    /// By what batches are divided.
    pub factor: i32,
    /// Why.
    pub reason: Option<String>,
    /// Since when, in seconds since 1970.
    pub since: Option<f64>,
    /// What it was seen at.
    pub value: Option<String>,
    /// The thresholds.
    pub enter: String,
    pub leave: Option<String>,
    pub ignoring: Vec<String>,
    /// Who set them, and when; None for the defaults.
    pub set_by: Option<String>,
    pub set_at: Option<f64>,
    /// When the server was last looked at; None if never.
    pub sampled_at: Option<f64>,
    /// What helps.
    pub remedy: Option<&'static str>,
}

/// All signals, for a role that may change one of the tables under way or with upgrades, or that is a member of pg_monitor; nothing for others.
pub fn rows(caller: pg_sys::Oid) -> Result<Vec<Row>, Failure> {
    #[derive(Deserialize)]
    struct Last {
        may: bool,
        decision: serde_json::Value,
        sampled_at: Option<f64>,
    }
    #[derive(Deserialize)]
    struct Set {
        signal: String,
        set_by: String,
        set_at: f64,
    }
    let last: Vec<Last> = spi::fetch_read_only(
        "select pg_catalog.pg_has_role($1, 'pg_monitor', 'usage') or exists (select from migrator.change c join pg_catalog.pg_class t on t.oid in (c.live, c.shadow) \
            where c.state not in ('finished', 'cancelled') and pg_catalog.pg_has_role($1, t.relowner, 'usage')) \
            or exists (select from migrator.upgraded u join pg_catalog.pg_class t on t.oid = u.relation where pg_catalog.pg_has_role($1, t.relowner, 'usage')) as may, \
           l.decision, case when pg_catalog.isfinite(l.sampled_at) then extract(epoch from l.sampled_at)::pg_catalog.float8 end as sampled_at \
         from migrator.load l",
        &[caller.into()],
    )?;
    let Some(last) = last.into_iter().next().filter(|last| last.may) else { return Ok(vec![]) };
    let set: Vec<Set> = spi::fetch_read_only(
        "select l.signal, l.set_by, extract(epoch from l.set_at)::pg_catalog.float8 as set_at from migrator.signal_limit l \
         union all select 'own_query', q.role, extract(epoch from q.set_at)::pg_catalog.float8 from migrator.own_query q order by set_at",
        &[],
    )?;
    let set: HashMap<String, (String, f64)> =
        set.into_iter().map(|set| (set.signal, (set.set_by, set.set_at))).collect();
    let limits = limits::in_force()?;
    let decision = Decision::deserialize(&last.decision).unwrap_or_default();
    Ok(Signal::ALL
        .into_iter()
        .map(|signal| {
            let limit = limits.of(signal);
            let (enter, leave) = limits::texts(signal, &limit);
            let raised: Vec<&Raised> = decision.raised.iter().filter(|raised| raised.signal == signal).collect();
            let (verdict, factor) = strictest(&raised);
            let author = set.get(signal.as_str());
            Row {
                signal: signal.as_str(),
                verdict,
                factor,
                reason: (!raised.is_empty())
                    .then(|| raised.iter().map(|raised| raised.reason.as_str()).collect::<Vec<_>>().join("; ")),
                since: raised.iter().map(|raised| raised.since).min_by(f64::total_cmp),
                value: decision.values.get(&signal).map(|value| signal.unit().text(*value)),
                enter,
                leave: signal.has_leave().then_some(leave),
                ignoring: limit.ignoring,
                set_by: author.map(|(by, _)| by.clone()),
                set_at: author.map(|(_, at)| *at),
                sampled_at: last.sampled_at,
                remedy: (!raised.is_empty()).then(|| signal.remedy()),
            }
        })
        .collect())
}

fn strictest(raised: &[&Raised]) -> (&'static str, i32) {
    let mut factor = 1;
    for raised in raised {
        match raised.effect {
            Effect::Hold => return ("hold", 1),
            Effect::Slow(by) => factor = factor.max(by),
        }
    }
    (if factor > 1 { "slow" } else { "go" }, factor)
}
