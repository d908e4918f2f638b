//! One look at the server's load, at most once a second, shared by all workers: go, slow down, or hold.
//!
//! `checks.rs` keeps what agents heard by HTTP, `held.rs` writes the log of holds, `pace.rs` keeps batches at a rate, `look.rs` reads the signals, `limits.rs` the DBA's settings, `own.rs` runs the DBA's own query; `migrator_core::load`
//! decides. What was decided stands in `migrator.load`, and `migrator.signals` shows it.

mod checks;
mod held;
mod limits;
mod look;
mod own;
pub mod pace;
mod show;

pub use checks::report as report_check;
pub use held::{change as change_held, upgrades as upgrades_held};
pub use limits::set as set_limit;
pub use own::set as set_own_query;
pub use show::rows as shown;

use crate::catalog::spi;
use crate::engine::change::Change;
use migrator_core::batch;
use migrator_core::failure::Failure;
use migrator_core::load::{Decision, Memory, Verdict, Work};
use pgrx::{JsonB, pg_sys};
use serde::Deserialize;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What this session saw by itself, while another held the shared row.
static OWN: Mutex<Option<(Instant, Decision, Memory)>> = Mutex::new(None);

#[derive(Deserialize)]
struct Row {
    fresh: bool,
    old: bool,
    decision: serde_json::Value,
    memory: Option<serde_json::Value>,
}

impl Row {
    /// What another version wrote and this one cannot read, begins anew.
    fn decision(&self) -> Decision {
        Decision::deserialize(&self.decision).unwrap_or_default()
    }

    fn memory(&self) -> Memory {
        self.memory.as_ref().and_then(|memory| Memory::deserialize(memory).ok()).unwrap_or_default()
    }
}

/// The verdict for some work: of what is in force, sampled anew where the last look is older than a second and nobody else
/// is at it. `work` is asked only where something is raised.
///
/// Whoever writes a sample holds its row until the end of the transaction, which may be an index build. So where the row
/// is taken and what it says has become old, each session looks for itself, once a second, and writes nothing.
pub fn verdict(work: impl FnOnce() -> Result<Work, Failure>) -> Result<Verdict, Failure> {
    let decision = decision()?;
    if decision.raised.is_empty() {
        return Ok(Verdict::Go);
    }
    Ok(decision.verdict(&work()?))
}

fn decision() -> Result<Decision, Failure> {
    let row: Option<Row> = spi::fetch_optional(
        "select l.sampled_at > pg_catalog.clock_timestamp() - interval '1 s' as fresh, \
         l.sampled_at < pg_catalog.clock_timestamp() - interval '2 s' as old, l.decision, \
         case when l.sampled_at < pg_catalog.clock_timestamp() - interval '1 s' then l.memory end as memory from migrator.load l",
        &[],
    )?;
    let Some(row) = row else { return Ok(Decision::default()) };
    if row.fresh {
        return Ok(row.decision());
    }
    if spi::execute("select from migrator.load for update skip locked", &[])? == 0 {
        return if row.old { unshared(&row) } else { Ok(row.decision()) };
    }
    let mut memory = row.memory();
    let decision = look::look(&mut memory, &row.decision())?;
    spi::execute(
        "update migrator.load set sampled_at = pg_catalog.clock_timestamp(), decision = $1, memory = $2",
        &[stored(&decision).into(), stored(&memory).into()],
    )?;
    Ok(decision)
}

fn stored(value: &impl serde::Serialize) -> JsonB {
    JsonB(serde_json::to_value(value).expect("numbers, texts and maps by text are JSON"))
}

fn unshared(row: &Row) -> Result<Decision, Failure> {
    let own = OWN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let (before, mut memory) = match own {
        Some((at, decision, _)) if at.elapsed() < Duration::from_secs(1) => return Ok(decision),
        Some((at, decision, memory)) if at.elapsed() < Duration::from_secs(60) => (decision, memory),
        _ => (row.decision(), row.memory()),
    };
    let decision = look::look(&mut memory, &before)?;
    *OWN.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), decision.clone(), memory));
    Ok(decision)
}

/// What a change is at work on: its live table, and the tablespaces of both tables and of their indexes.
pub fn work(change: &Change) -> Result<Work, Failure> {
    #[derive(Deserialize)]
    struct Found {
        tables: Vec<u32>,
        tablespaces: Vec<u32>,
    }
    let found: Found = spi::fetch_one(
        "select coalesce((select pg_catalog.jsonb_agg(x.oid::pg_catalog.int8) from pg_catalog.pg_class c, \
                  lateral (values (c.oid), (c.reltoastrelid)) x(oid) where c.oid = $1), '[]') as tables, \
           (select pg_catalog.jsonb_agg(distinct coalesce(nullif(c.reltablespace, 0), d.dattablespace)::pg_catalog.int8) \
              from pg_catalog.pg_class c where c.oid in ($1, $2) or c.oid in (select i.indexrelid from pg_catalog.pg_index i where i.indrelid in ($1, $2))) as tablespaces \
         from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()",
        &[pg_sys::Oid::from(change.live).into(), pg_sys::Oid::from(change.shadow).into()],
    )?;
    Ok(Work { tables: found.tables, tablespaces: found.tablespaces, rewrites: false })
}

/// What a table's upgrades are at work on.
pub fn work_on_rows(table: u32) -> Result<Work, Failure> {
    #[derive(Deserialize)]
    struct Found {
        tables: Vec<u32>,
        tablespaces: Vec<u32>,
    }
    let found: Found = spi::fetch_one(
        "select m.tables, m.tablespaces from (with members as (select t.relid::pg_catalog.oid as oid from pg_catalog.pg_partition_tree($1::pg_catalog.oid::pg_catalog.regclass) t \
               union select $1) \
         select (select pg_catalog.jsonb_agg(x.oid::pg_catalog.int8) from members m join pg_catalog.pg_class c on c.oid = m.oid, \
                  lateral (values (c.oid), (c.reltoastrelid)) x(oid) where x.oid <> 0) as tables, \
           (select pg_catalog.jsonb_agg(distinct coalesce(nullif(c.reltablespace, 0), d.dattablespace)::pg_catalog.int8) \
              from pg_catalog.pg_class c where c.oid in (select m.oid from members m) \
                or c.oid in (select i.indexrelid from pg_catalog.pg_index i where i.indrelid in (select m.oid from members m))) as tablespaces \
         from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()) m",
        &[pg_sys::Oid::from(table).into()],
    )?;
    Ok(Work { tables: found.tables, tablespaces: found.tablespaces, rewrites: true })
}

/// How long a caller rests after a batch that was divided.
pub fn rest_ms(factor: i32) -> i32 {
    i32::try_from(batch::rest(factor).as_millis()).unwrap_or(i32::MAX)
}

/// The same after a step of another kind, which took so long.
pub fn rest_ms_after(factor: i32, took: Duration) -> i32 {
    i32::try_from(batch::rest_after(factor, took).as_millis()).unwrap_or(i32::MAX).max(1)
}

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
