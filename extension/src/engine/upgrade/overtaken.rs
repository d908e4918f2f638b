//! Who holds a chunk for too long: he is ended before somebody else has its rows, so that his transaction cannot commit.

use super::table::Upgraded;
use crate::catalog::{lock, spi};
use migrator_core::failure::Failure;
use pgrx::pg_sys;
use serde::Deserialize;
use serde_json::json;

/// How long a worker may hold a chunk in one transaction.
pub fn lease() -> Result<i32, Failure> {
    #[derive(Deserialize)]
    struct Lease {
        ms: i32,
    }
    let lease: Lease = spi::fetch_one(
        "select (extract(epoch from coalesce(nullif(pg_catalog.current_setting('migrator.lease', true), ''), '30 s')::interval) * 1000)::int as ms",
        &[],
    )?;
    Ok(lease.ms.max(1))
}

/// Ends each of them. One worker does so and tells of it, whoever has the table's row: that may be the session itself.
pub fn end(table: &Upgraded, lease_ms: i32) -> Result<(), Failure> {
    for seen in overdue(table, lease_ms)? {
        if !lock::try_ending(seen.pid) {
            continue;
        }
        // Who had that lock until now may have ended and told of the same.
        let still = overdue(table, lease_ms)?;
        let Some(holder) = still.into_iter().find(|other| (other.pid, other.number) == (seen.pid, seen.number)) else {
            continue;
        };
        spi::execute("select pg_catalog.pg_terminate_backend($1)", &[holder.pid.into()])?;
        if holder.told {
            continue;
        }
        table.event(
            "overtaken",
            &format!("session {} held chunk {} for longer than its lease and was ended", holder.pid, holder.number),
            json!({"pid": holder.pid, "chunk": holder.number}),
        )?;
    }
    Ok(())
}

/// A session that holds a chunk for longer than a lease: stopped, or idle in a transaction.
#[derive(Debug, Deserialize)]
struct Holder {
    pid: i32,
    number: i32,
    /// It was ended before, and is still there: a process that is stopped ends when it goes on.
    told: bool,
}

/// The holders of chunks whose transaction is older than the lease, twice that where the one before was ended too, and so on: a row
/// that takes longer than a lease is done all the same. A chunk is held by its row, whose xmax is the holder's transaction. Whoever drives the whole in one transaction (`ensure_upgraded`) says so by a lock, and is waited for.
fn overdue(table: &Upgraded, lease_ms: i32) -> Result<Vec<Holder>, Failure> {
    spi::fetch(
        "select a.pid, k.number, exists (select from migrator.upgrade_event e where e.relation = k.relation and e.kind = 'overtaken' \
             and e.detail -> 'chunk' = pg_catalog.to_jsonb(k.number) and e.detail -> 'pid' = pg_catalog.to_jsonb(a.pid) and e.at > a.xact_start) as told \
         from migrator.sweep_chunk k \
         join pg_catalog.pg_locks l on l.locktype = 'transactionid' and l.mode = 'ExclusiveLock' and l.granted and l.transactionid = k.xmax \
         join pg_catalog.pg_stat_activity a on a.pid = l.pid and a.pid <> pg_catalog.pg_backend_pid() \
         where k.relation = $1 and k.sweep = $2 and k.done_at is null \
           and not exists (select from pg_catalog.pg_locks d where d.pid = a.pid and d.locktype = 'object' and d.classid = 'migrator.upgrade'::pg_catalog.regclass) \
           and a.xact_start < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $3 / 1000.0 * 2 ^ least(16, ( \
             select count(distinct e.detail -> 'pid') from migrator.upgrade_event e join migrator.upgraded u on u.relation = e.relation \
             where e.relation = k.relation and e.kind = 'overtaken' and e.detail -> 'chunk' = pg_catalog.to_jsonb(k.number) and e.at > u.sweep_began)))",
        &[pg_sys::Oid::from(table.relation.oid).into(), table.state.sweep.into(), lease_ms.into()],
    )
}
