//! Locks: on a change (whose turn it is) and on users' tables (never long, never in the way).

use crate::catalog::{attempt::attempt, role, spi};
use migrator_core::deadline::Deadline;
use migrator_core::failure::{Failure, code};
use pgrx::pg_sys;
use serde::Deserialize;
use std::ffi::CStr;
use std::time::{Duration, Instant};

/// How a step holds its change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Copy batches, index builds, verify chunks: many at once.
    Shared,
    /// Reconcile, swap, every transition of state: alone.
    Alone,
}

/// Takes the change's lock until the end of the transaction, or says at once that it is taken.
///
/// An object lock on (class of `migrator.change`, id): it cannot collide with an application's advisory
/// locks, it is seen in pg_locks as `object`, and it dies with its transaction.
pub fn try_change(id: i64, hold: Hold) -> bool {
    acquire_change(id, hold, true)
}

/// The same, waiting.
pub fn change(id: i64, hold: Hold) {
    acquire_change(id, hold, false);
}

/// Marks this transaction as one that waits for the change: it conflicts with nothing, and shows in pg_locks.
pub fn watch(id: i64) {
    acquire(c"change", id, pg_sys::AccessShareLock, false);
}

/// Marks this transaction as one that upgrades rows of a table: any number may, and whoever watches the load tells them from
/// applications by it.
pub fn upgrading(table: u32) {
    acquire(c"upgraded", i64::from(table), pg_sys::ShareLock, false);
}

/// Marks this transaction as one that waits for the upgrades of a table: it conflicts with nothing, and the batches that it
/// waits for are not held for its snapshot.
pub fn awaiting(table: u32) {
    acquire(c"upgraded", i64::from(table), pg_sys::AccessShareLock, false);
}

/// Takes one such mark away again.
pub fn awaited(table: u32) {
    let tag = tag(c"upgraded", i64::from(table));
    // SAFETY: the tag and mode that `awaiting` took; LockRelease takes it by pointer for the call.
    unsafe { pg_sys::LockRelease(&tag, i32::try_from(pg_sys::AccessShareLock).expect("a small number"), false) };
}

/// Whether this transaction is the one that ends a session which held a chunk for too long, and tells of it.
pub fn try_ending(pid: i32) -> bool {
    acquire(c"upgrade_event", i64::from(pid), pg_sys::ExclusiveLock, true)
}

/// Marks this transaction as one that brings up all rows of a table by itself, however long that takes.
pub fn driving(table: u32) {
    acquire(c"upgrade", i64::from(table), pg_sys::ShareLock, false);
}

fn acquire_change(id: i64, hold: Hold, dont_wait: bool) -> bool {
    let mode = match hold {
        Hold::Shared => pg_sys::ShareLock,
        Hold::Alone => pg_sys::ExclusiveLock,
    };
    acquire(c"change", id, mode, dont_wait)
}

/// Takes an object lock.
fn acquire(class: &CStr, id: i64, mode: u32, dont_wait: bool) -> bool {
    let (tag, mode) = (tag(class, id), i32::try_from(mode).expect("a small number"));
    // SAFETY: LockAcquire takes the tag by pointer for the call.
    unsafe { pg_sys::LockAcquire(&tag, mode, false, dont_wait) != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL }
}

/// An object lock on (class of a table of ours, number), as SET_LOCKTAG_OBJECT (storage/lock.h) fills it.
fn tag(class: &CStr, id: i64) -> pg_sys::LOCKTAG {
    pg_sys::LOCKTAG {
        // SAFETY: reads a variable of the session.
        locktag_field1: u32::from(unsafe { pg_sys::MyDatabaseId }),
        locktag_field2: u32::from(own_table(class)),
        locktag_field3: u32::try_from(id & 0xffff_ffff).expect("masked to 32 bits"),
        locktag_field4: 0,
        locktag_type: u8::try_from(pg_sys::LockTagType::LOCKTAG_OBJECT).expect("a small tag"),
        locktag_lockmethodid: u8::try_from(pg_sys::DEFAULT_LOCKMETHOD).expect("a small number"),
    }
}

fn own_table(name: &CStr) -> pg_sys::Oid {
    // SAFETY: name look-ups by constant strings; 0 where missing.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"migrator".as_ptr(), false);
        pg_sys::get_relname_relid(name.as_ptr(), schema)
    }
}

/// A lock mode on a table, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// SELECT's own.
    AccessShare,
    /// VACUUM's own: no conflict with DML, conflicts with itself and with DDL.
    ShareUpdateExclusive,
    /// CREATE TRIGGER's own: stops writers.
    ShareRowExclusive,
    /// Stops everybody.
    AccessExclusive,
}

impl Mode {
    /// As the manual writes it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::AccessShare => "ACCESS SHARE",
            Mode::ShareUpdateExclusive => "SHARE UPDATE EXCLUSIVE",
            Mode::ShareRowExclusive => "SHARE ROW EXCLUSIVE",
            Mode::AccessExclusive => "ACCESS EXCLUSIVE",
        }
    }

    fn number(self) -> i32 {
        let mode = match self {
            Mode::AccessShare => pg_sys::AccessShareLock,
            Mode::ShareUpdateExclusive => pg_sys::ShareUpdateExclusiveLock,
            Mode::ShareRowExclusive => pg_sys::ShareRowExclusiveLock,
            Mode::AccessExclusive => pg_sys::AccessExclusiveLock,
        };
        i32::try_from(mode).expect("a small number")
    }
}

/// One lock that a step needs on a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The relation.
    pub relation: u32,
    /// How strongly.
    pub mode: Mode,
}

/// Takes a relation lock, waiting as long as the settings in force allow.
pub fn relation(wanted: Wanted) {
    // SAFETY: LockRelationOid takes any oid; a dropped relation is noticed by its later use.
    unsafe { pg_sys::LockRelationOid(pg_sys::Oid::from(wanted.relation), wanted.mode.number()) }
}

/// Takes a lock on which nobody else's work depends, waited for longer than deadlock_timeout, so that a plain autovacuum
/// gives way.
pub fn patiently(what: &str, wanted: Wanted) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Time {
        ms: i64,
    }
    let time: Time = spi::fetch_one(
        "select setting::bigint + 2000 as ms from pg_catalog.pg_settings where name = 'deadlock_timeout'",
        &[],
    )?;
    let asked = attempt(|| {
        role::with_settings(&[("lock_timeout", &time.ms.to_string())], || relation(wanted));
        Ok(())
    });
    match asked {
        Err(failure) if failure.code == code::LOCK_NOT_AVAILABLE => {
            if let Some(holder) = at_work(wanted.relation)? {
                return Err(kept_out(what, &holder));
            }
            let blocker = blockers(&[wanted])?.into_iter().next();
            Err(blocker.map_or_else(|| gave_up(what), |blocker| held_up(what, &blocker)))
        }
        outcome => outcome,
    }
}

/// How long one attempt may make others wait, from the first lock asked for to the last granted.
pub const DEADLINE: Duration = Duration::from_millis(50);
/// Savepoint attempts in one transaction.
pub const ATTEMPTS: u32 = 50;

/// A session that stands in the way of a lock.
#[derive(Debug, Clone, Deserialize)]
pub struct Blocker {
    /// Process id; 0 for a prepared transaction.
    pub pid: i32,
    /// What it is, for people.
    pub what: String,
    /// Since when its transaction runs, in whole seconds.
    pub seconds: f64,
}

/// Takes all locks in order and runs `work` under them, within a series of short attempts.
///
/// Each attempt is a subtransaction with ONE deadline from the first lock asked for to the last granted (see
/// [`Deadline`]). Before each, whoever holds a conflicting lock for longer than the deadline is looked for, so that
/// we do not even queue behind a transaction that will not be over in time. Between attempts `between` runs
/// (it drains the key log). An attempt whose `work` fails with 55P03 counts as an attempt; any other failure ends the series.
pub fn series<T>(
    what: &str,
    attempts: u32,
    wanted: impl Fn() -> Result<Vec<Wanted>, Failure>,
    mut between: impl FnMut() -> Result<(), Failure>,
    mut work: impl FnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut last = Failure::new(code::LOCK_NOT_AVAILABLE, format!("{what}: no attempt was made"));
    for number in 0..attempts {
        if number > 0 {
            pause(backoff(number));
        }
        match between() {
            // Who stood in the way of the attempts before is what the caller must hear of.
            Err(failure) if number > 0 && failure.code == code::LOCK_NOT_AVAILABLE => return Err(last),
            outcome => outcome?,
        }
        let wanted = wanted()?;
        if let Some(blocker) = blockers(&wanted)?.into_iter().next() {
            pgrx::debug1!("migrator: attempt {number} not made: {} holds a lock", blocker.what);
            last = held_up(what, &blocker);
            continue;
        }
        let mut granted = false;
        let outcome = attempt(|| {
            let deadline = Deadline::after(Instant::now(), DEADLINE);
            for lock in &wanted {
                let Some(left) = deadline.lock_timeout(Instant::now()) else {
                    return Err(Failure::new(code::LOCK_NOT_AVAILABLE, "the deadline of the attempt has passed"));
                };
                role::with_settings(&[("lock_timeout", &left.to_string())], || relation(*lock));
            }
            granted = true;
            // What the work itself still has to lock (a TOAST table, an index) is not waited for any longer either.
            role::with_settings(&[("lock_timeout", &DEADLINE.as_millis().to_string())], &mut work)
        });
        match outcome {
            Ok(done) => return Ok(done),
            // Not the lock was missing: the work itself says that it is not the moment.
            Err(failure) if granted && failure.code == code::LOCK_NOT_AVAILABLE && failure.hint.is_some() => {
                last = Failure { message: format!("{what}: {}", failure.message), ..failure }
                    .detail("Nothing was changed, and no session waited longer than one attempt.");
            }
            Err(failure) if failure.code == code::LOCK_NOT_AVAILABLE => {
                pgrx::debug1!("migrator: attempt {number} ended: {}", failure.message);
                let blocker = blockers(&wanted)?.into_iter().next();
                last = blocker.map_or_else(|| gave_up(what), |blocker| held_up(what, &blocker));
            }
            Err(failure) => return Err(failure),
        }
    }
    Err(last)
}

/// What a series of attempts begins with: SHARE UPDATE EXCLUSIVE on the tables, the one that the application uses first, which stops no reader and no writer, and
/// keeps autovacuum away until the transaction ends. It is waited for longer than deadlock_timeout, at which a plain
/// autovacuum gives way; without this it would be back between any two attempts. One against wraparound stays.
pub fn settle(what: &str, tables: &[u32]) -> Result<(), Failure> {
    for (place, table) in tables.iter().enumerate() {
        // Whoever holds one lock and waits for another can close a circle, in which the other session may be ended. So only
        // the first table is waited for, and beyond it autovacuum, which asks for one table at a time.
        let mut looks = if place > 0 { LOOKS } else { 0 };
        while looks > 0
            && let Some(holder) = at_work(*table)?.filter(|holder| !holder.autovacuum)
        {
            looks -= 1;
            if looks == 0 {
                return Err(kept_out(what, &holder));
            }
            pause(DEADLINE);
        }
        let wanted = Wanted { relation: *table, mode: Mode::ShareUpdateExclusive };
        patiently(what, wanted)?;
    }
    Ok(())
}

/// How often `settle` looks, without asking for the lock, whether a table has become free.
const LOOKS: u32 = 40;

/// Who works on a table under a lock that DDL, VACUUM and index builds take.
#[derive(Debug, Deserialize)]
struct Holder {
    #[serde(flatten)]
    blocker: Blocker,
    autovacuum: bool,
}

fn at_work(table: u32) -> Result<Option<Holder>, Failure> {
    spi::fetch_optional(
        "select coalesce(l.pid, 0) as pid, coalesce(extract(epoch from pg_catalog.clock_timestamp() - a.xact_start), 0)::pg_catalog.float8 as seconds, \
           case when l.pid is null then 'a prepared transaction' \
                when a.backend_type = 'autovacuum worker' then pg_catalog.format('process %s (%s)', l.pid, a.query) \
                else pg_catalog.format('session %s (%s, %s)', l.pid, coalesce(nullif(a.application_name, ''), a.usename), a.state) end as what, \
           coalesce(a.backend_type = 'autovacuum worker', false) as autovacuum \
         from pg_catalog.pg_locks l left join pg_catalog.pg_stat_activity a on a.pid = l.pid \
         where l.locktype = 'relation' and l.granted and l.pid is distinct from pg_catalog.pg_backend_pid() and l.relation = $1 \
           and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()) \
           and l.mode in ('ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock') \
         order by a.xact_start nulls first limit 1",
        &[pg_sys::Oid::from(table).into()],
    )
}

fn kept_out(what: &str, holder: &Holder) -> Failure {
    let failure = held_up(what, &holder.blocker);
    if !holder.autovacuum {
        return failure;
    }
    failure.hint(
        "It keeps the server from running out of transaction ids and gives way to nobody. Call this again when it is done; select * from pg_stat_progress_vacuum; shows how far it is.",
    )
}

fn gave_up(what: &str) -> Failure {
    Failure::new(
        code::LOCK_NOT_AVAILABLE,
        format!("{what}: the table is too busy for a lock within {} ms", DEADLINE.as_millis()),
    )
    .detail("Nothing was changed, and no session waited longer than one attempt.")
    .hint("Call it again; at a quieter moment it needs fewer attempts.")
}

/// The failure of a statement whose lock was not granted in time, in the words of the others.
pub fn not_granted(failure: Failure, what: &str) -> Failure {
    if failure.code == code::LOCK_NOT_AVAILABLE { gave_up(what) } else { failure }
}

fn held_up(what: &str, blocker: &Blocker) -> Failure {
    Failure::new(
        code::LOCK_NOT_AVAILABLE,
        format!("{what}: {} holds the table since {:.0} s", blocker.what, blocker.seconds),
    )
    .detail("Nothing was changed, and no session waited longer than one attempt.")
    .hint(if blocker.pid > 0 {
        format!("Call it again when that transaction is over, or end it: select pg_terminate_backend({});", blocker.pid)
    } else {
        "Commit or roll back that prepared transaction, then call it again.".to_owned()
    })
}

/// Who holds a lock that conflicts with one of the wanted, in a transaction older than the deadline.
/// Autovacuum is left out: it gives way to a waiter.
pub fn blockers(wanted: &[Wanted]) -> Result<Vec<Blocker>, Failure> {
    let strong: Vec<i64> =
        wanted.iter().filter(|w| w.mode == Mode::AccessExclusive).map(|w| i64::from(w.relation)).collect();
    let writers: Vec<i64> =
        wanted.iter().filter(|w| w.mode == Mode::ShareRowExclusive).map(|w| i64::from(w.relation)).collect();
    spi::fetch(
        "select coalesce(l.pid, 0) as pid, \
           case when l.pid is null then 'a prepared transaction' \
                else pg_catalog.format('session %s (%s, %s)', l.pid, coalesce(nullif(a.application_name, ''), a.usename), a.state) end as what, \
           coalesce(extract(epoch from pg_catalog.clock_timestamp() - a.xact_start), 0)::pg_catalog.float8 as seconds \
         from pg_catalog.pg_locks l left join pg_catalog.pg_stat_activity a on a.pid = l.pid \
         where l.locktype = 'relation' and l.granted and l.mode <> 'SIReadLock' and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()) \
           and (l.pid is null or (l.pid <> pg_catalog.pg_backend_pid() and a.backend_type <> 'autovacuum worker' \
                and a.xact_start < pg_catalog.clock_timestamp() - interval '50 ms' \
                and (a.state like 'idle in transaction%' or a.xact_start < pg_catalog.clock_timestamp() - interval '1 s'))) \
           and (l.relation::pg_catalog.int8 = any ($1) \
                or (l.relation::pg_catalog.int8 = any ($2) and l.mode not in ('AccessShareLock', 'RowShareLock'))) \
         order by a.xact_start nulls first limit 5",
        &[strong.into(), writers.into()],
    )
}

fn backoff(number: u32) -> Duration {
    // Doubling to a ceiling, with jitter, so that we never beat in time with a periodic load.
    let ceiling = 20u64.saturating_mul(1 << number.min(5));
    // SAFETY: a time stamp without side effects.
    let noise = unsafe { pg_sys::GetCurrentTimestamp() }.unsigned_abs() / 7 % ceiling;
    Duration::from_millis(ceiling / 2 + noise / 2)
}

/// Sleeps, and still answers Ctrl-C.
pub fn pause(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        pgrx::check_for_interrupts!();
        std::thread::sleep(Duration::from_millis(5).min(end.saturating_duration_since(Instant::now())));
    }
}
