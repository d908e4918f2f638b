//! Reads the signals, each by itself: one that cannot be read takes no other with it, and is named.

use super::{checks, limits, own};
use crate::catalog::attempt::attempt;
use crate::catalog::{files, spi};
use crate::raise;
use migrator_core::failure::{Failure, code};
use migrator_core::load::{
    Decision, Disk, Keeper, Limits, Memory, Reading, Seen, Signal, Slot, Snapshot, Synchronous, Unreadable, Vacuum,
    decide,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Looks at the server, and decides. Who caused the look hears of a signal that can no longer be read.
pub fn look(memory: &mut Memory, before: &Decision) -> Result<Decision, Failure> {
    let limits = limits::in_force()?;
    let seen = see(memory, before, &limits)?;
    let decision = decide(&seen, before, &limits);
    for raised in decision.newly_unreadable(before) {
        raise::warn(
            Failure::new("01000", raised.reason.clone())
                .detail("Work goes on at half its speed.")
                .hint(format!(
                    "select * from migrator.signals; shows all of them. Not to watch this one: select migrator.set_limit('{}', 'off');",
                    raised.signal.as_str()
                )),
        );
    }
    Ok(decision)
}

struct Looking<'a> {
    limits: &'a Limits,
    unreadable: Vec<Unreadable>,
}

impl Looking<'_> {
    /// Reads what one or several signals go by, unless none of them is watched.
    fn read<T>(&mut self, signals: &[Signal], reading: impl FnOnce() -> Result<T, Failure>) -> Option<T> {
        if signals.iter().all(|signal| self.limits.of(*signal).off) {
            return None;
        }
        match attempt(reading) {
            Ok(found) => Some(found),
            Err(failure) => {
                let why = failure.message;
                self.unreadable.extend(signals.iter().map(|signal| Unreadable { signal: *signal, why: why.clone() }));
                None
            }
        }
    }

    /// The same for what PostgreSQL shows as empty or NULL to roles that may not see it.
    fn read_statistics<T: DeserializeOwned>(&mut self, signals: &[Signal], sql: &str, may: bool) -> Option<Vec<T>> {
        self.read(signals, || if may { spi::fetch(sql, &[]) } else { Err(forbidden()) })
    }
}

fn forbidden() -> Failure {
    Failure::new(code::INSUFFICIENT_PRIVILEGE, "the extension's owner is not a member of pg_read_all_stats")
}

#[derive(Deserialize)]
struct Server {
    at: f64,
    written: u64,
    timeline: String,
    may: bool,
    standbys_wanted: Option<i64>,
    archives: bool,
}

fn see(memory: &mut Memory, before: &Decision, limits: &Limits) -> Result<Seen, Failure> {
    let server: Server = spi::fetch_one(SERVER, &[])?;
    let (at, may) = (server.at, server.may);
    let mut looking = Looking { limits, unreadable: vec![] };
    let mut seen = Seen { at, ..Seen::default() };

    let standbys = [Signal::ReplayLag, Signal::LostStandby];
    if let Some(readings) = looking.read_statistics::<Reading>(&standbys, STANDBYS, may) {
        let expected = limits.of(Signal::LostStandby).enter;
        memory.on_timeline(&server.timeline);
        let (lags, lost) = memory.standbys(&readings, server.written, at, expected);
        (seen.replay_lag, seen.lost) = (Some(lags), Some(lost));
    }
    if let Some(wanted) = server.standbys_wanted {
        let there = looking.read_statistics::<Number>(&[Signal::SynchronousStandby], SYNCHRONOUS, may).and_then(number);
        seen.synchronous = there.map(|there| Synchronous { wanted, there });
    }
    seen.slots = looking.read(&[Signal::SlotWal], || {
        let found: Vec<SlotRow> = spi::fetch(SLOTS, &[])?;
        Ok(found.into_iter().map(SlotRow::slot).collect())
    });
    if server.archives {
        seen.archive_ready = looking.read(&[Signal::ArchiveReady], files::ready_to_archive);
    }
    seen.waiting = looking.read(&[Signal::WaitingSessions], || spi::fetch(WAITING, &[])).and_then(number);
    let sessions = [Signal::LockWaits, Signal::ActiveSessions];
    if let Some(found) =
        looking.read_statistics::<Sessions>(&sessions, SESSIONS, may).and_then(|rows| rows.into_iter().next())
    {
        let raised = |signal| before.is_raised(signal, "");
        seen.lock_waits = Some(memory.lock_waits(found.lock_waits, at, raised(Signal::LockWaits)));
        seen.active = Some(memory.active(found.active, at, raised(Signal::ActiveSessions)));
    }
    seen.vacuums = looking.read_statistics::<VacuumRow>(&[Signal::Vacuum], VACUUMS, may).map(|rows| {
        rows.into_iter()
            .map(|row| Vacuum { table: row.table, name: row.name, wraparound: row.wraparound, seconds: row.seconds })
            .collect()
    });
    if let Some(sessions) = looking.read_statistics::<SnapshotRow>(&[Signal::SnapshotAge], SNAPSHOT, may) {
        let keepers = looking.read_statistics::<Keeper>(&[Signal::SnapshotAge], KEEPERS, may).unwrap_or_default();
        let here = sessions.into_iter().next().map(|row| Snapshot { what: row.what, seconds: row.seconds });
        let elsewhere = memory.horizons(&keepers, at);
        seen.snapshot = here.into_iter().chain(elsewhere).max_by(|one, other| one.seconds.total_cmp(&other.seconds));
    }
    seen.checkpoints = looking
        .read(&[Signal::RequestedCheckpoints], || spi::fetch(CHECKPOINTS, &[]))
        .and_then(number)
        .map(|count| memory.checkpoints(count, at));
    seen.disks = looking.read(&[Signal::FreeDisk], disks);
    seen.own = looking.read(&[Signal::OwnQuery], own::ask).flatten();
    seen.checks = looking.read(&[Signal::HttpCheck], checks::refusals);
    seen.unreadable = looking.unreadable;
    Ok(seen)
}

fn disks() -> Result<Vec<Disk>, Failure> {
    #[derive(Deserialize)]
    struct Tablespace {
        oid: u32,
        name: String,
        location: String,
    }
    let tablespaces: Vec<Tablespace> = spi::fetch(
        "select t.oid::pg_catalog.int8 as oid, t.spcname as name, pg_catalog.pg_tablespace_location(t.oid) as location \
         from pg_catalog.pg_tablespace t where t.spcname <> 'pg_global'",
        &[],
    )?;
    let wal = Disk { place: "the WAL".to_owned(), tablespace: None, free: files::free(&files::in_data("pg_wal"))? };
    let mut found = vec![wal];
    for Tablespace { oid, name, location } in tablespaces {
        let free = files::free(&files::of_tablespace(&location))?;
        found.push(Disk { place: format!("tablespace {name}"), tablespace: Some(oid), free });
    }
    Ok(found)
}

#[derive(Deserialize)]
struct Number {
    n: i64,
}

fn number(rows: Vec<Number>) -> Option<i64> {
    rows.first().map(|row| row.n)
}

#[derive(Deserialize)]
struct SlotRow {
    name: String,
    active: bool,
    bytes: Option<i64>,
    wal_status: Option<String>,
}

impl SlotRow {
    fn slot(self) -> Slot {
        Slot { name: self.name, active: self.active, bytes: self.bytes, wal_status: self.wal_status }
    }
}

#[derive(Deserialize)]
struct Sessions {
    lock_waits: f64,
    active: f64,
}

#[derive(Deserialize)]
struct VacuumRow {
    table: u32,
    name: String,
    wraparound: bool,
    seconds: f64,
}

#[derive(Deserialize)]
struct SnapshotRow {
    what: String,
    seconds: f64,
}

/// The clock, where the WAL ends, and what there is to look at. `FIRST n (…)`, `ANY n (…)` and `n (…)` ask for n standbys, a
/// plain list for one.
const SERVER: &str = "select extract(epoch from pg_catalog.clock_timestamp())::pg_catalog.float8 as at, \
    pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_flush_lsn(), '0/0')::pg_catalog.int8 as written, \
    pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) as timeline, \
    pg_catalog.pg_has_role('pg_read_all_stats', 'usage') as may, \
    case when s.names ~ E'\\\\S' then coalesce(pg_catalog.substring(s.names, E'(?i)^\\\\s*(?:(?:first|any)\\\\s+)?([0-9]+)\\\\s*\\\\(')::pg_catalog.int8, 1) end as standbys_wanted, \
    pg_catalog.current_setting('archive_mode') <> 'off' as archives \
    from (select pg_catalog.current_setting('synchronous_standby_names') as names) s";

/// Standbys that replay. Two with one name on one host count as two. A subscription's walsender is none: what its slot keeps tells of it.
const STANDBYS: &str = "select case when q.n = 1 then q.standby else q.standby || '#' || q.n end as standby, q.replayed, q.lag_seconds from ( \
    select n.standby, pg_catalog.pg_wal_lsn_diff(r.replay_lsn, '0/0')::pg_catalog.int8 as replayed, extract(epoch from r.replay_lag)::pg_catalog.float8 as lag_seconds, \
           row_number() over (partition by n.standby order by r.backend_start, r.pid) as n \
      from pg_catalog.pg_stat_replication r, \
           lateral (select coalesce(r.application_name, '') || '/' || coalesce(pg_catalog.host(r.client_addr), 'local') as standby) n \
     where r.state in ('streaming', 'catchup') and r.replay_lsn is not null \
       and not exists (select from pg_catalog.pg_replication_slots s where s.active_pid = r.pid and s.slot_type = 'logical')) q";

const SYNCHRONOUS: &str =
    "select count(*) as n from pg_catalog.pg_stat_replication r where r.sync_state in ('sync', 'quorum')";

const SLOTS: &str = "select s.slot_name as name, s.active, s.wal_status, \
    pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn)::pg_catalog.int8 as bytes from pg_catalog.pg_replication_slots s";

/// Sessions that hold a lock on an object of ours: those that work for us, and, in the weakest mode, those that wait for that.
macro_rules! holding {
    ($modes:literal) => {
        concat!(
            "(select m.pid from pg_catalog.pg_locks m where m.locktype = 'object' and m.granted and ",
            $modes,
            " and m.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()) \
            and m.classid in (select c.oid from pg_catalog.pg_class c where c.relnamespace = 'migrator'::pg_catalog.regnamespace))"
        )
    };
}

macro_rules! ours {
    () => {
        holding!("m.mode <> 'AccessShareLock'")
    };
}

const WAITING: &str = concat!(
    "with ours as materialized ",
    ours!(),
    " select pg_catalog.to_jsonb(q) from (select count(distinct w.pid) as n from pg_catalog.pg_locks w \
       where not w.granted and w.pid <> pg_catalog.pg_backend_pid() and w.pid not in (select o.pid from ours o) \
         and pg_catalog.pg_blocking_pids(w.pid) operator(pg_catalog.&&) array(select o.pid from ours o)) q"
);

const SESSIONS: &str = concat!(
    "select count(*) filter (where a.wait_event_type = 'Lock') as lock_waits, count(*) filter (where a.state = 'active') as active \
     from pg_catalog.pg_stat_activity a where a.backend_type = 'client backend' and a.pid <> pg_catalog.pg_backend_pid() and a.pid not in ",
    ours!()
);

/// Its TOAST table has a name that says nothing to people.
///
/// A VACUUM by a client, of a table whose upgrades asked for one (`step.statement`), is left out: batches made it necessary
/// and wait for the room that it makes, so to go slow for it would only put both off. By what name its session goes, and with
/// what program it was run, is all one. One that a DBA ran on such a table of his own accord is taken for it, which costs
/// him no more than the batches' full pace beside it; an autovacuum never is.
const VACUUMS: &str = "select p.relid::pg_catalog.int8 as table, coalesce(pg_catalog.format('%I.%I', n.nspname, c.relname), p.relid::text) as name, \
    coalesce(a.backend_type = 'autovacuum worker' and a.query like '%(to prevent wraparound)', false) as wraparound, \
    coalesce(extract(epoch from pg_catalog.clock_timestamp() - a.xact_start), 0)::pg_catalog.float8 as seconds \
    from pg_catalog.pg_stat_progress_vacuum p left join pg_catalog.pg_stat_activity a on a.pid = p.pid \
    left join pg_catalog.pg_class t on t.reltoastrelid = p.relid \
    left join pg_catalog.pg_class c on c.oid = coalesce(t.oid, p.relid) left join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
    where p.datname = pg_catalog.current_database() \
      and not (coalesce(a.backend_type = 'client backend', false) and exists (select from migrator.upgraded u where u.vacuum_asked_at <= a.xact_start \
        and (u.relation = c.oid or u.relation in (select g.relid from pg_catalog.pg_partition_ancestors(c.oid) g))))";

/// Whoever has a transaction id or a snapshot keeps what is deleted since: clients, and workers in the background. VACUUM itself does
/// not, and an autovacuum's ANALYZE is soon over. Sessions that work for us,
/// or wait for that (`ensure_upgraded`, `ensure_changed`), are left out while they are at it: to hold the work until who waits
/// for its end has ended would be for ever. One that is idle in its transaction is not at it.
const SNAPSHOT: &str = concat!(
    "select q.what, extract(epoch from pg_catalog.clock_timestamp() - q.since)::pg_catalog.float8 as seconds from ( \
        select pg_catalog.format('session %s (%s) has been in a transaction', a.pid, coalesce(nullif(a.application_name, ''), a.usename, a.backend_type)) as what, a.xact_start as since \
          from pg_catalog.pg_stat_activity a where a.datname = pg_catalog.current_database() and a.backend_type not in ('walsender', 'autovacuum worker') \
           and (a.backend_xmin is not null or a.backend_xid is not null) and a.xact_start is not null and a.pid <> pg_catalog.pg_backend_pid() \
           and a.pid not in (select v.pid from pg_catalog.pg_stat_progress_vacuum v) and not (a.state = 'active' and a.pid in ",
    holding!("true"),
    ") union all select pg_catalog.format('prepared transaction %s has been open', x.gid), x.prepared from pg_catalog.pg_prepared_xacts x \
         where x.database = pg_catalog.current_database()) q order by q.since limit 1"
);

/// Standbys that say which row versions their queries need (hot_standby_feedback), by themselves or by a slot, which keeps its word when the
/// standby is gone. One that needs no older ones than what runs here keeps nothing. A logical slot keeps rows of catalogs only.
const KEEPERS: &str = "select q.name, q.what, q.xmin::text as xmin from ( \
    select pg_catalog.format('standby %s/%s', coalesce(r.application_name, ''), coalesce(pg_catalog.host(r.client_addr), 'local')) as name, \
           pg_catalog.format('a query on standby %s/%s has kept its snapshot', coalesce(r.application_name, ''), coalesce(pg_catalog.host(r.client_addr), 'local')) as what, r.backend_xmin as xmin \
      from pg_catalog.pg_stat_replication r \
    union all select pg_catalog.format('slot %s', s.slot_name), pg_catalog.format(case when s.active then 'a query on the standby of replication slot %s has kept its snapshot' \
        else 'replication slot %s, whose standby is gone, has kept row versions' end, s.slot_name), s.xmin from pg_catalog.pg_replication_slots s) q \
    where q.xmin is not null and pg_catalog.age(q.xmin) > pg_catalog.age(pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::pg_catalog.xid)";

/// Checkpoints that were not due by the clock, since the statistics were reset.
const CHECKPOINTS: &str = if cfg!(any(feature = "pg17", feature = "pg18")) {
    "select c.num_requested as n from pg_catalog.pg_stat_checkpointer c"
} else {
    "select b.checkpoints_req as n from pg_catalog.pg_stat_bgwriter b"
};
