//! Old snapshots: an exchange of tables is not MVCC-safe, so it waits for those that would notice.

use crate::catalog::spi;
use crate::engine::change::Change;
use migrator_core::failure::{Failure, code};
use serde::Deserialize;

#[derive(Deserialize)]
struct Old {
    pid: i32,
    what: String,
    seconds: f64,
}

/// Refuses while a snapshot lives that does not see what was last written in bulk to the table that would become live:
/// its transaction would find rows missing there.
pub fn refuse_old(change: &Change, verb: &str) -> Result<(), Failure> {
    let Some(fence) = &change.fence_xid else { return Ok(()) };
    refuse(
        fence,
        change.id,
        "fence_at",
        &format!("{verb} of table {} waits", change.name().plain()),
        "It was taken before the last large catch-up, so its transaction would find rows missing. Nothing was changed.",
    )
}

/// Refuses while a snapshot lives that was taken before the swap: the trigger that stops its writes must stay.
pub fn refuse_before_swap(change: &Change) -> Result<(), Failure> {
    let Some(swap) = &change.swap_xid else { return Ok(()) };
    refuse(
        swap,
        change.id,
        "swapped_at",
        &format!("finish of table {} waits", change.name().plain()),
        "It was taken before the swap; until it is gone, a trigger keeps its transaction from writing to a table that it does not see. Nothing was changed.",
    )
}

/// Left out are those who wait for the very thing: `ensure_changed` (`lock::watch`) and `ensure_upgraded` (`lock::awaiting`, AccessShareLock,
/// until the call returns; whoever works on rows has a ShareLock, and is not left out for it). Their snapshot is that of the statement that
/// calls, which would otherwise wait for this exchange, and this for its end. It does no harm: both refuse anything but READ COMMITTED, look at
/// our own tables under a new snapshot each time, and the next statement of their transaction takes one of its own, after the swap. What
/// else the calling statement names, or an open cursor, was locked when it was planned, so the exchange waits for that lock instead. Left
/// is a STABLE function in the same statement, called after ours, that opens the table only then, with the statement's snapshot.
///
/// A snapshot is older than a transaction when that one is not below its xmin, and its own transaction began before the
/// other committed: xmin alone is that of the oldest writer anywhere, also for a snapshot of this moment.
fn refuse(xid: &str, change: i64, moment: &str, what: &str, detail: &str) -> Result<(), Failure> {
    let sql = format!(
        "with bound as (select ((($1::text)::numeric % 4294967296)::text)::xid as xid) \
         select pg_catalog.to_jsonb(q) from ( \
           select a.pid, pg_catalog.format('session %s (%s, %s)', a.pid, coalesce(nullif(a.application_name, ''), a.usename), a.state) as what, \
                  coalesce(extract(epoch from pg_catalog.clock_timestamp() - a.xact_start), 0)::pg_catalog.float8 as seconds \
           from pg_catalog.pg_stat_activity a, bound \
           where a.backend_xmin is not null and pg_catalog.age(a.backend_xmin) >= pg_catalog.age(bound.xid) \
             and a.datname = pg_catalog.current_database() and a.pid <> pg_catalog.pg_backend_pid() \
             and a.xact_start <= (select c.{moment} + interval '5 s' from migrator.change c where c.id = $2) \
             and a.backend_type = 'client backend' and a.pid not in (select p.pid from pg_catalog.pg_stat_progress_vacuum p) \
             and not exists (select from pg_catalog.pg_locks m where m.pid = a.pid and m.locktype = 'object' and (m.classid = 'migrator.change'::pg_catalog.regclass \
                     or m.classid = 'migrator.upgraded'::pg_catalog.regclass and m.mode = 'AccessShareLock')) \
           order by a.xact_start limit 1) q"
    );
    let old: Option<Old> = spi::fetch_optional(&sql, &[xid.into(), change.into()])?;
    match old {
        None => Ok(()),
        Some(old) => Err(Failure::new(
            code::IN_USE,
            format!("{what}: {} has a snapshot that is {:.0} s old", old.what, old.seconds),
        )
        .detail(detail)
        .hint(format!(
            "Call it again when that transaction is over, or end it: select pg_terminate_backend({});",
            old.pid
        ))),
    }
}
