//! One look at the server's load, at most once a second, shared by all workers: go, slow down, or hold.

use crate::catalog::spi;
use crate::engine::change::Change;
use migrator_core::failure::Failure;
use migrator_core::load::{self, Seen, Verdict};
use serde::Deserialize;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What this session saw by itself, while another held the shared row.
static OWN: Mutex<Option<(Instant, Verdict)>> = Mutex::new(None);

#[derive(Deserialize)]
struct Row {
    fresh: bool,
    old: bool,
    verdict: String,
    factor: i32,
    reason: Option<String>,
    held: bool,
}

/// The verdict that is in force, sampled anew where the last sample is older than a second and nobody else is at it.
///
/// Whoever writes a sample holds its row until the end of the transaction, which may be an index build. So where the row
/// is taken and what it says has become old, each session looks for itself, once a second, and writes nothing.
pub fn verdict() -> Result<Verdict, Failure> {
    let row: Option<Row> = spi::fetch_optional(
        "select sampled_at > pg_catalog.clock_timestamp() - interval '1 s' as fresh, \
         sampled_at < pg_catalog.clock_timestamp() - interval '2 s' as old, verdict, factor, reason, verdict = 'hold' as held from migrator.load",
        &[],
    )?;
    let Some(row) = row else { return Ok(Verdict::Go) };
    let known = match row.verdict.as_str() {
        "hold" => Verdict::Hold(row.reason.unwrap_or_default()),
        "slow" => Verdict::Slow(row.factor, row.reason.unwrap_or_default()),
        _ => Verdict::Go,
    };
    if row.fresh {
        return Ok(known);
    }
    let mine = spi::execute("select from migrator.load for update skip locked", &[])?;
    if mine == 0 {
        return if row.old { unshared(row.held) } else { Ok(known) };
    }
    let seen: Seen = spi::fetch_one(SAMPLE, &[])?;
    let next = load::decide(&seen, row.held);
    let (word, factor, reason) = match &next {
        Verdict::Go => ("go", 1, None),
        Verdict::Slow(factor, reason) => ("slow", *factor, Some(reason.clone())),
        Verdict::Hold(reason) => ("hold", 1, Some(reason.clone())),
    };
    spi::execute(
        "update migrator.load set sampled_at = pg_catalog.clock_timestamp(), verdict = $1, factor = $2, reason = $3, \
         since = case when verdict = $1 then coalesce(since, pg_catalog.clock_timestamp()) else pg_catalog.clock_timestamp() end, \
         standbys = (select coalesce(pg_catalog.jsonb_object_agg(name, at), '{}') from ( \
            select s.key as name, s.value as at from pg_catalog.jsonb_each(standbys) s \
              where (s.value #>> '{}')::timestamptz > pg_catalog.clock_timestamp() - interval '1 hour' \
                and s.key not in (select coalesce(r.application_name, '') || '/' || coalesce(r.client_addr::text, 'local') from pg_catalog.pg_stat_replication r where r.state = 'streaming') \
            union all \
            select distinct coalesce(r.application_name, '') || '/' || coalesce(r.client_addr::text, 'local'), pg_catalog.to_jsonb(pg_catalog.clock_timestamp()) \
              from pg_catalog.pg_stat_replication r where r.state = 'streaming') q)",
        &[word.into(), factor.into(), reason.into()],
    )?;
    Ok(next)
}

fn unshared(held: bool) -> Result<Verdict, Failure> {
    let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    match own.as_ref() {
        Some((at, verdict)) if at.elapsed() < Duration::from_secs(1) => return Ok(verdict.clone()),
        _ => {}
    }
    let held = own.as_ref().map_or(held, |(_, verdict)| matches!(verdict, Verdict::Hold(_)));
    let seen: Seen = spi::fetch_one(SAMPLE, &[])?;
    let verdict = load::decide(&seen, held);
    *own = Some((Instant::now(), verdict.clone()));
    Ok(verdict)
}

/// Replay lag of standbys, standbys seen within the hour that are gone, and sessions that wait for one of ours.
const SAMPLE: &str = "select \
    (select max(extract(epoch from r.replay_lag))::pg_catalog.float8 from pg_catalog.pg_stat_replication r where r.state = 'streaming') as lag_seconds, \
    (select pg_catalog.string_agg(s.key, ', ') from migrator.load l, pg_catalog.jsonb_each(l.standbys) s \
      where s.key not in (select coalesce(r.application_name, '') || '/' || coalesce(r.client_addr::text, 'local') from pg_catalog.pg_stat_replication r where r.state = 'streaming')) as vanished, \
    (select count(distinct w.pid) from pg_catalog.pg_locks w \
      where not w.granted and w.pid <> pg_catalog.pg_backend_pid() \
        and exists (select from pg_catalog.unnest(pg_catalog.pg_blocking_pids(w.pid)) b \
                    join pg_catalog.pg_locks m on m.pid = b and m.locktype = 'object' and m.classid = 'migrator.change'::pg_catalog.regclass) \
        and not exists (select from pg_catalog.pg_locks m where m.pid = w.pid and m.locktype = 'object' and m.classid = 'migrator.change'::pg_catalog.regclass)) as waiting";

/// Shows in `status` why a change stands still, or that it goes on. Whether that was news: then the change's row is held until
/// the end of the transaction.
pub fn note(change: &Change, reason: Option<&str>) -> Result<bool, Failure> {
    spi::execute(
        "update migrator.change set waiting = $2, waiting_since = case when $2 is null then null else coalesce(waiting_since, pg_catalog.clock_timestamp()) end \
         where id = $1 and waiting is distinct from $2",
        &[change.id.into(), reason.into()],
    )
    .map(|rows| rows > 0)
}
