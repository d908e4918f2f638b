//! How a change ends: foreign keys validated and backup dropped, or shadow dropped; and the marks that stop it for a while.

use crate::capture::{log, switch};
use crate::catalog::attempt::attempt;
use crate::catalog::lock::{self, Hold, Mode, Wanted};
use crate::catalog::relation::Relation;
use crate::catalog::{role, spi, timeout};
use crate::crash;
use crate::engine::change::Change;
use crate::engine::{guard, snapshot};
use migrator_core::failure::{Failure, code};
use migrator_core::ident::Ident;
use migrator_core::sql::Direction;
use migrator_core::state::State;
use pgrx::JsonB;
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Unvalidated {
    table: String,
    constraint: String,
}

fn unvalidated(change: &Change) -> Result<Vec<Unvalidated>, Failure> {
    #[derive(Deserialize)]
    struct Row {
        unvalidated: Vec<Unvalidated>,
    }
    let row: Row = spi::fetch_one("select unvalidated from migrator.change where id = $1", &[change.id.into()])?;
    Ok(row.unvalidated)
}

/// How long validation waits for the referencing table, on which autovacuum may be at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Until a plain autovacuum gives way: for a transaction that holds no table yet.
    Autovacuum,
    /// As long as for any lock; for one that does.
    Moment,
}

/// Validates one of the foreign keys that the swap added NOT VALID. False when none is left. VALIDATE takes
/// SHARE UPDATE EXCLUSIVE on the referencing and ROW SHARE on the referenced table: neither stops a reader or a writer.
///
/// Somebody who locks both (TRUNCATE does) may have one and wait for the other. Whoever waits for less than deadlock_timeout
/// is gone before the server looks for somebody to end.
pub fn validate_one(change: &Change, patience: Patience) -> Result<bool, Failure> {
    let mut open = unvalidated(change)?;
    let Some(next) = open.pop() else { return Ok(false) };
    // `table` is quoted and qualified, `constraint` the bare name, as carry-over wrote them.
    #[derive(Deserialize)]
    struct Key {
        tables: Vec<u32>,
        owner: u32,
        valid: bool,
    }
    let key: Option<Key> = spi::fetch_optional(
        "select coalesce((select pg_catalog.jsonb_agg(t.relid::pg_catalog.oid::pg_catalog.int8 order by t.level, t.relid) from pg_catalog.pg_partition_tree(r.oid) t), \
           pg_catalog.jsonb_build_array(r.oid::pg_catalog.int8)) as tables, r.relowner::pg_catalog.int8 as owner, k.convalidated as valid from pg_catalog.pg_constraint k \
         join pg_catalog.pg_class r on r.oid = k.conrelid where k.conrelid = pg_catalog.to_regclass($1)::pg_catalog.oid and k.conname = $2 and k.contype = 'f'",
        &[next.table.as_str().into(), next.constraint.as_str().into()],
    )?;
    // Dropped, renamed or validated by somebody else meanwhile: theirs to decide.
    if let Some(key) = key.filter(|key| !key.valid) {
        let constraint = Ident::new(next.constraint.clone());
        let statement = format!("alter table {} validate constraint {constraint}", next.table);
        // The check compares with operators and casts that may be the owner's own functions.
        let owner = pgrx::pg_sys::Oid::from(key.owner);
        let what = format!("foreign key {} of {} was not validated", next.constraint, next.table);
        if patience == Patience::Autovacuum {
            lock::settle(&what, &key.tables)?;
        }
        let briefly = [("lock_timeout".to_owned(), lock::DEADLINE.as_millis().to_string())];
        timeout::unbounded(|| attempt(|| role::as_owner(owner, &briefly, || spi::execute(&statement, &[]))))
            .map_err(|failure| lock::not_granted(failure, &what))?;
    }
    let left = serde_json::to_value(&open).map_err(|error| Failure::new(code::INTERNAL, error.to_string()))?;
    spi::execute("update migrator.change set unvalidated = $2 where id = $1", &[change.id.into(), JsonB(left).into()])?;
    change.event("validate", &format!("foreign key {} of {} validated", next.constraint, next.table), json!({}))?;
    Ok(true)
}

/// Validates all of them; how many there were.
pub fn validate(change: &Change) -> Result<i64, Failure> {
    lock::change(change.id, Hold::Alone);
    let mut number = 0;
    while validate_one(change, Patience::Autovacuum)? {
        number += 1;
    }
    Ok(number)
}

/// Ends a swapped change: capture off, the backup dropped. There is no way back after this.
pub fn finish(change: Change, dry_run: bool) -> Result<State, Failure> {
    guard::outside_transaction("migrator.finish")?;
    lock::change(change.id, Hold::Alone);
    let mut change = change.again()?;
    if change.state != State::Swapped {
        return Err(change.not_now(&format!("it is {}, not swapped", change.state)));
    }
    snapshot::refuse_before_swap(&change)?;
    if dry_run {
        return Ok(change.state);
    }
    // A change does not end with foreign keys that nobody would ever validate.
    while validate_one(&change, Patience::Autovacuum)? {}
    let backup = Relation::find(change.live)?;
    let Some(front) = Relation::find(change.shadow)? else { return without_front(change, backup) };
    let what = format!("finish of table {} was not done", change.name().plain());
    let others = besides(&change, &backup)?;
    lock::settle(&what, &to_settle(&backup, &front, &others))?;
    lock::series(
        &what,
        lock::ATTEMPTS,
        || Ok(both(&backup, &front, &others)),
        || Ok(()),
        || {
            switch::switch_off(change.id, &front)?;
            backup.as_ref().map_or(Ok(()), |backup| drop_ours(&change, backup, &change.backup_schema()))
        },
    )?;
    clear(&change)?;
    crash::point("finish");
    change.set_state(State::Finished)?;
    Ok(State::Finished)
}

/// Ends a change whose new table somebody has dropped. What is left of its rows is in the backup, so that is not dropped here.
fn without_front(mut change: Change, backup: Option<Relation>) -> Result<State, Failure> {
    if let Some(backup) = backup.filter(|backup| backup.name.schema.as_str() == change.backup_schema()) {
        let (name, table) = (change.name().plain(), backup.name.plain());
        return Err(Failure::new(
            code::NOT_IN_STATE,
            format!("table {name} of change {} was dropped, and {table} is all that is left of it", change.id),
        )
        .detail("It was kept in step until then. Nothing was changed.")
        .hint(format!(
            "Keep it: alter table {table} set schema {}; or drop it: drop table {table}; Then call this again.",
            Ident::new(change.table_schema.clone())
        )));
    }
    clear(&change)?;
    change.set_state(State::Finished)?;
    Ok(State::Finished)
}

/// The locks to end with: first on the table that goes, which somebody may be reading, so that nobody waits for the live one
/// meanwhile; last on what goes with it.
fn both(rear: &Option<Relation>, front: &Relation, others: &[u32]) -> Vec<Wanted> {
    let tables = rear.iter().chain([front]).map(|table| table.oid).chain(others.iter().copied());
    tables.map(|relation| Wanted { relation, mode: Mode::AccessExclusive }).collect()
}

/// The same tables, the live one first.
fn to_settle(rear: &Option<Relation>, front: &Relation, others: &[u32]) -> Vec<u32> {
    [front].into_iter().chain(rear).map(|table| table.oid).chain(others.iter().copied()).collect()
}

/// What is dropped with the rear, and what autovacuum may be at by itself: its TOAST table; the logs, which writers lock
/// after the table, and theirs.
fn besides(change: &Change, rear: &Option<Relation>) -> Result<Vec<u32>, Failure> {
    #[derive(Deserialize)]
    struct Toast {
        oid: u32,
    }
    let mut tables = log::tables(change.id)?;
    let owners: Vec<i64> = tables.iter().copied().chain(rear.iter().map(|rear| rear.oid)).map(i64::from).collect();
    let toast: Vec<Toast> = spi::fetch(
        "select c.reltoastrelid::pg_catalog.int8 as oid from pg_catalog.pg_class c \
         where c.oid::pg_catalog.int8 = any ($1) and c.reltoastrelid <> 0",
        &[owners.into()],
    )?;
    tables.extend(toast.into_iter().map(|toast| toast.oid));
    Ok(tables)
}

/// Gives a change up before its swap: capture off, the shadow dropped. The live table was never touched.
pub fn cancel(change: Change, dry_run: bool) -> Result<State, Failure> {
    change.check_open()?;
    if change.capture.is_some() {
        guard::outside_transaction("migrator.cancel")?;
    }
    lock::change(change.id, Hold::Alone);
    let mut change = change.again()?;
    if change.state == State::Swapped {
        return Err(change.not_now("it is swapped"));
    }
    change.check_open()?;
    if dry_run {
        return Ok(change.state);
    }
    // After a rollback those of the old table are NOT VALID.
    while validate_one(&change, Patience::Autovacuum)? {}
    let shadow = Relation::find(change.shadow)?;
    let drop_shadow = || shadow.as_ref().map_or(Ok(()), |shadow| drop_ours(&change, shadow, &change.shadow_schema()));
    match (&change.capture, Relation::find(change.live)?) {
        (Some(_), Some(live)) => {
            let what = format!("cancel of change {} of table {} was not done", change.id, change.name().plain());
            let others = besides(&change, &shadow)?;
            lock::settle(&what, &to_settle(&shadow, &live, &others))?;
            lock::series(
                &what,
                lock::ATTEMPTS,
                || Ok(both(&shadow, &live, &others)),
                || Ok(()),
                || {
                    switch::switch_off(change.id, &live)?;
                    drop_shadow()
                },
            )?
        }
        _ => drop_shadow()?,
    }
    clear(&change)?;
    crash::point("cancel");
    change.set_state(State::Cancelled)?;
    Ok(State::Cancelled)
}

/// Drops a table, if it is where this change put it. After a restore from a dump the recorded oid may be somebody else's.
fn drop_ours(change: &Change, table: &Relation, schema: &str) -> Result<(), Failure> {
    if table.name.schema.as_str() != schema || table.name.name.as_str() != change.table_name {
        return Err(Failure::new(
            code::NOT_IN_STATE,
            format!("table {} is not where change {} put it, and was not dropped", table.name.plain(), change.id),
        )
        .detail(format!(
            "It should be {}.{}. It was moved or renamed, or this database was restored from a dump.",
            schema, change.table_name
        ))
        .hint("If it is the table of this change, move it back with ALTER TABLE and call this again."));
    }
    spi::execute(&format!("drop table {}", table.name), &[]).map(|_| ())
}

/// Drops what only this change used. Schemas without CASCADE: what somebody put there is theirs, and named in the error.
fn clear(change: &Change) -> Result<(), Failure> {
    log::drop_log(change.id, Direction::Forward)?;
    log::drop_log(change.id, Direction::Reverse)?;
    for schema in [change.shadow_schema(), change.backup_schema()] {
        spi::execute(&format!("drop schema if exists {}", Ident::new(schema)), &[])?;
    }
    spi::execute("delete from migrator.chunk where change = $1", &[change.id.into()])?;
    spi::execute("delete from migrator.bad_row where change = $1", &[change.id.into()])?;
    spi::execute(
        "update migrator.change set blocked = null, blocked_hint = null, paused_at = null, waiting = null, backlog = 0 where id = $1",
        &[change.id.into()],
    )?;
    Ok(())
}

/// Stops all work on a change that goes on by itself, except capture. What is in hand is finished; rollback, finish and cancel
/// are somebody's decision, and are not stopped.
pub fn pause(change: &Change) -> Result<(), Failure> {
    change.check_open()?;
    spi::execute(
        "update migrator.change set paused_at = coalesce(paused_at, pg_catalog.clock_timestamp()) where id = $1",
        &[change.id.into()],
    )?;
    change.event("paused", "paused", json!({}))
}

/// Lets a paused or blocked change go on.
pub fn resume(change: &Change) -> Result<(), Failure> {
    change.check_open()?;
    spi::execute(
        "update migrator.change set paused_at = null, blocked = null, blocked_hint = null, verify_rounds = 0 where id = $1",
        &[change.id.into()],
    )?;
    change.event("resumed", "resumed", json!({}))
}

/// Keeps a change from being swapped before a time; null lifts that.
pub fn postpone(change: &Change, until: Option<pgrx::datum::TimestampWithTimeZone>) -> Result<(), Failure> {
    change.check_open()?;
    spi::execute("update migrator.change set postponed_until = $2 where id = $1", &[change.id.into(), until.into()])?;
    change.event("postponed", "swap postponed", json!({}))
}
