//! Swap and rollback: the same exchange of two tables, forwards and backwards.
//!
//! Before any strong lock: the change alone, SHARE UPDATE EXCLUSIVE on both tables (it conflicts with no DML,
//! and asking for it longer than deadlock_timeout makes a plain autovacuum give way), the log drained to almost
//! nothing, everything that can be made beforehand made. Then attempts, each a subtransaction of at most
//! 50 ms of waiting: locks, last keys, checks, tables moved, what hangs on them carried over, capture turned round.

use crate::capture::{log, switch};
use crate::catalog::lock::{self, Hold, Mode, Wanted};
use crate::catalog::relation::Relation;
use crate::catalog::{role, spi};
use crate::crash;
use crate::engine::carry::{self, Carryover};
use crate::engine::change::{Change, plain_regclass};
use crate::engine::rest::{self, Rest};
use crate::engine::upgrade::follow::follow;
use crate::engine::{bad_row, guard, owner, reconcile, snapshot, sync};
use migrator_core::batch;
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Ident, literal};
use migrator_core::sql::Direction;
use migrator_core::state::State;
use pgrx::JsonB;
use serde::Deserialize;
use serde_json::json;

/// Which exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The shadow becomes live.
    Swap,
    /// The backup becomes live again.
    Rollback,
}

impl Way {
    /// The word for messages.
    pub fn verb(self) -> &'static str {
        match self {
            Way::Swap => "swap",
            Way::Rollback => "rollback",
        }
    }
    fn begins_in(self) -> State {
        match self {
            Way::Swap => State::Ready,
            Way::Rollback => State::Swapped,
        }
    }
    /// The direction of rows before the exchange.
    fn before(self) -> Direction {
        match self {
            Way::Swap => Direction::Forward,
            Way::Rollback => Direction::Reverse,
        }
    }
    fn after(self) -> Direction {
        match self {
            Way::Swap => Direction::Reverse,
            Way::Rollback => Direction::Forward,
        }
    }
}

/// What the caller asked for besides.
#[derive(Debug, Clone, Copy)]
pub struct Wants {
    /// Inside BEGIN, with a lock until COMMIT.
    pub in_transaction: bool,
    /// Only the checks.
    pub dry_run: bool,
}

/// Log rows that an attempt under the lock may still have to take; with more, it drains again first.
const NEAR_ZERO: i64 = 200;
/// Exchanges the tables of all given changes in this transaction: all of them, or, failing, none.
pub fn exchange(changes: Vec<Change>, way: Way, wants: Wants) -> Result<Vec<Change>, Failure> {
    if !wants.in_transaction {
        guard::outside_transaction(&format!("migrator.{}", way.verb())).map_err(|failure| {
            let hint = format!(
                "Call it outside BEGIN … COMMIT; or, if the lock may last that long, migrator.{}(…, in_transaction => true).",
                way.verb()
            );
            failure.hint(hint)
        })?;
    }
    guard::fresh_snapshots(&format!("migrator.{}", way.verb()))?;
    let mut sorted = changes;
    sorted.sort_by_key(|change| change.live);
    let mut held = vec![];
    for change in sorted {
        lock::change(change.id, Hold::Alone);
        let change = change.again()?;
        check(&change, way)?;
        held.push(change);
    }
    if wants.dry_run {
        for change in &held {
            bad_row::refuse(change, way.before())?;
        }
        return Ok(held);
    }
    let names = held.iter().map(|change| change.name().plain()).collect::<Vec<_>>().join(", ");
    let what = format!("{} of {names} was not done", way.verb());
    let tables: Vec<u32> = held
        .iter()
        .flat_map(|change| match way {
            Way::Swap => [change.live, change.shadow],
            Way::Rollback => [change.shadow, change.live],
        })
        .collect();
    lock::settle(&what, &tables)?;
    let mut budget = rest::AT_MOST * 5;
    for change in &held {
        // Our lock keeps the next ALTER TABLE … OWNER TO out.
        owner::follow(change)?;
        drain(change, way, &mut budget)?;
        // What stood in the way of a row may be gone by now.
        if bad_row::retry(change, way.before())? > 0 {
            drain(change, way, &mut budget)?;
            bad_row::refuse(change, way.before())?;
        }
        make_room(change, way)?;
    }
    let prepared = std::cell::RefCell::new(Vec::<Prepared>::new());
    lock::series(
        &what,
        lock::ATTEMPTS,
        || {
            let mut wanted: Vec<Wanted> = vec![];
            for ready in prepared.borrow().iter() {
                for lock in &ready.carryover.locks {
                    if !wanted.contains(lock) {
                        wanted.push(*lock);
                    }
                }
            }
            // Whatever else hangs on them, nobody may write to the two tables once the last keys are taken.
            for relation in held.iter().flat_map(|change| [change.live, change.shadow]) {
                let lock = Wanted { relation, mode: Mode::AccessExclusive };
                if !wanted.contains(&lock) {
                    wanted.push(lock);
                }
            }
            Ok(wanted)
        },
        || {
            for change in &held {
                drain(change, way, &mut budget)?;
            }
            let known = prepared.take();
            let mut known = known.into_iter();
            for change in &held {
                let mut ready = prepare(change, way, known.next())?;
                // Run once before the lock, so that under it everything is planned and in the caches.
                match ready.rest.run(change) {
                    Ok(rows) => {
                        ready.rows += rows;
                        budget -= rows;
                    }
                    Err(_) => {
                        drain(change, way, &mut budget)?;
                        bad_row::refuse(change, way.before())?;
                    }
                }
                if budget < 0 {
                    return Err(too_fast(change, way)?);
                }
                prepared.borrow_mut().push(ready);
            }
            Ok(())
        },
        || {
            // All checks before the first move: moving one table rewrites foreign keys of another.
            let mut rows = vec![];
            for (change, ready) in held.iter().zip(prepared.borrow().iter()) {
                let last = ready.rest.run(change).map_err(|failure| match failure.code.as_ref() {
                    code::LOCK_NOT_AVAILABLE => failure.hint(catch_up_first(change, way)),
                    _ => failure,
                })?;
                rows.push(ready.rows + last);
                still_so(change, way, ready)?;
            }
            for ((change, ready), rows) in held.iter().zip(prepared.borrow().iter()).zip(rows) {
                one(change, way, &ready.carryover, rows)?;
            }
            Ok(())
        },
    )?;
    crash::point(way.verb());
    Ok(held)
}

/// Refuses, before anything is changed, what cannot be exchanged now.
fn check(change: &Change, way: Way) -> Result<(), Failure> {
    match way {
        Way::Swap => guard::may_go_on(change)?,
        // Whoever wants the old table back is in no mood to resume first.
        Way::Rollback => guard::not_blocked(change)?,
    }
    if change.state != way.begins_in() {
        return Err(change.not_now(&format!("it is {}, not {}", change.state, way.begins_in())));
    }
    snapshot::refuse_old(change, way.verb())?;
    unchanged(change, way)?;
    let waits = match reconcile::waiting(change)? {
        _ if reconcile::must_compare_all(change)? => return Err(not_caught_up(change, way, COMPARE_ALL)),
        backlog if backlog > rest::AT_MOST => format!("{backlog} keys are not replayed yet"),
        _ => return Ok(()),
    };
    Err(not_caught_up(change, way, &waits))
}

const COMPARE_ALL: &str = "all rows of both tables have to be compared";

/// What is replayed by the exchange itself is invisible to every snapshot that is open now.
fn not_caught_up(change: &Change, way: Way, waits: &str) -> Failure {
    Failure::new(code::IN_USE, format!("{} of table {} waits: {waits}", way.verb(), change.name().plain()))
        .detail("That is done in transactions of its own, which an exchange cannot have. Nothing was changed.")
        .hint(catch_up_first(change, way))
}

/// The agent keeps a change in step by itself. Without one, the two calls have to follow each other at once.
fn catch_up_first(change: &Change, way: Way) -> String {
    let table = plain_regclass(&change.name());
    let verb = way.verb();
    if change.paused {
        let resume = change.call("resume");
        return format!("Nobody replays them while the change is paused. Let it go on: {resume} Then call this again.");
    }
    format!(
        "With an agent, call this again in a moment; without one, give psql both in one line: \
         call migrator.prepare('{table}'); select * from migrator.{verb}('{table}');"
    )
}

/// Replays the log until next to nothing is left, as long as that is little altogether.
fn drain(change: &Change, way: Way, budget: &mut i64) -> Result<(), Failure> {
    loop {
        let taken = reconcile::keys(change, batch::CATCH_UP.most)?;
        if taken.truncated {
            return Err(not_caught_up(change, way, COMPARE_ALL));
        }
        *budget -= taken.taken;
        if taken.taken == 0 || (taken.taken <= NEAR_ZERO && reconcile::backlog(change)? <= NEAR_ZERO) {
            return Ok(());
        }
        if *budget < 0 {
            return Err(too_fast(change, way)?);
        }
    }
}

fn too_fast(change: &Change, way: Way) -> Result<Failure, Failure> {
    let table = change.name().plain();
    let waiting = reconcile::backlog(change)?;
    Ok(Failure::new(
        code::LOCK_NOT_AVAILABLE,
        format!("table {table} is written too fast for the moment that this takes"),
    )
    .detail(format!("{waiting} keys are waiting. Nothing was changed."))
    .hint(catch_up_first(change, way)))
}

/// What the exchange needs and nobody sees: the schema for the table that leaves, the log for the way back.
fn make_room(change: &Change, way: Way) -> Result<(), Failure> {
    let (_, rear) = change.front_and_rear()?;
    let home = match way {
        Way::Swap => change.backup_schema(),
        Way::Rollback => change.shadow_schema(),
    };
    let home = Ident::new(home);
    match schema_is_ours(&home)? {
        None => spi::execute(&format!("create schema {home}"), &[]).map(|_| ())?,
        Some(true) => {}
        Some(false) => {
            return Err(Failure::new(code::DUPLICATE_OBJECT, format!("schema {home} belongs to somebody else"))
                .detail(
                    "Who owns a schema may drop what is in it, so the table is not moved there. Nothing was changed.",
                )
                .hint(format!("Look into it, then: drop schema {home}; and call this again.")));
        }
    }
    // The owner's rights keep the rear table in step, wherever it is.
    let owner = role::name(rear.owner())?;
    spi::execute(&format!("grant usage on schema {home} to {owner}"), &[])?;
    let key = key(change, way.after());
    log::drop_log(change.id, way.after())?;
    log::create_log(change.id, way.after(), &rear, &key)
}

/// Whether the schema belongs to the extension's owner; None where there is none.
fn schema_is_ours(name: &Ident) -> Result<Option<bool>, Failure> {
    #[derive(Deserialize)]
    struct Schema {
        ours: bool,
    }
    let schema: Option<Schema> = spi::fetch_optional(
        "select n.nspowner = current_user::pg_catalog.regrole::pg_catalog.oid as ours from pg_catalog.pg_namespace n where n.nspname = $1",
        &[name.as_str().into()],
    )?;
    Ok(schema.map(|schema| schema.ours))
}

/// The key columns of the table that is the front in this direction.
fn key(change: &Change, direction: Direction) -> Vec<Ident> {
    change
        .plan
        .key
        .iter()
        .map(|column| if direction == Direction::Forward { column.old.clone() } else { column.new.clone() })
        .collect()
}

/// What an exchange of one change has worked out before it asks for a lock.
struct Prepared {
    carryover: Carryover,
    /// What the carry-over was worked out from.
    fingerprint: String,
    /// How many messages about catalog changes this session had received before that was looked at.
    heard: u64,
    rest: Rest,
    /// Rows that it put into the rear before the lock.
    rows: i64,
}

fn prepare(change: &Change, way: Way, known: Option<Prepared>) -> Result<Prepared, Failure> {
    let heard = heard();
    unchanged(change, way)?;
    bad_row::refuse(change, way.before())?;
    let (front, rear) = change.front_and_rear()?;
    let fingerprint = carry::fingerprint(front.oid)?;
    let rows = known.as_ref().map_or(0, |known| known.rows);
    let carryover = match known {
        Some(known) if known.fingerprint == fingerprint => known.carryover,
        _ => {
            let carryover = gather(change, way, &front, &rear)?;
            run(&carryover.before_lock)?;
            carryover
        }
    };
    Ok(Prepared { carryover, fingerprint, heard, rest: Rest::prepare(change)?, rows })
}

/// How many messages about catalog changes by other sessions have arrived, those included that wait to be read.
///
/// Every commit that changed a row of a catalog with a cache sends some, before it gives its locks back: so where the
/// number is the same, no relation, column, right, rule, trigger, constraint, type, function, statistics object,
/// publication, dependency, comment or label has changed (inval.c, RelationInvalidatesSnapshotsOnly).
fn heard() -> u64 {
    // SAFETY: as LockRelationOid() calls it; the counter is this session's own.
    unsafe {
        pgrx::pg_sys::AcceptInvalidationMessages();
        pgrx::pg_sys::SharedInvalidMessageCounter
    }
}

/// Refuses what was changed by somebody since the change was made (or swapped).
fn unchanged(change: &Change, way: Way) -> Result<(), Failure> {
    sync::check_ground(change)?;
    match way {
        Way::Swap => sync::check_definitions(change),
        Way::Rollback => sync::check_unchanged_since_swap(change),
    }
}

fn gather(change: &Change, way: Way, front: &Relation, rear: &Relation) -> Result<Carryover, Failure> {
    let backup = match way {
        Way::Swap => change.backup_schema(),
        Way::Rollback => change.shadow_schema(),
    };
    carry::gather(&carry::Swap {
        front,
        rear,
        plan: &change.plan,
        direction: way.before(),
        kept: change.kept.as_ref(),
        front_backup_schema: &backup,
    })
}

/// Works out what the swap would carry over and throws it away: for `create_shadow`, before anything else is done.
pub fn foresee(id: i64) -> Result<(), Failure> {
    let change = Change::get(id)?;
    let (front, rear) = change.front_and_rear()?;
    gather(&change, Way::Swap, &front, &rear).map(|_| ())
}

/// Works out what the swap would carry over, and does what can be done long before it: grants, comments, statistics
/// objects, which the shadow's ANALYZE then fills. What cannot be carried over is found here, not at night.
pub fn rehearse(change: &Change) -> Result<(), Failure> {
    let (front, rear) = change.front_and_rear()?;
    let carryover = gather(change, Way::Swap, &front, &rear)?;
    run(&carryover.before_lock)
}

fn run(statements: &[carry::Statement]) -> Result<(), Failure> {
    for statement in statements {
        match statement.role {
            None => spi::execute(&statement.sql, &[])?,
            Some(role) => role::as_owner(pgrx::pg_sys::Oid::from(role), &[], || spi::execute(&statement.sql, &[]))?,
        };
    }
    Ok(())
}

/// Under all locks: whether everything still is as it was when the exchange was prepared.
fn still_so(change: &Change, way: Way, ready: &Prepared) -> Result<(), Failure> {
    if heard() == ready.heard {
        return Ok(());
    }
    unchanged(change, way)?;
    let (front, _) = change.front_and_rear()?;
    if carry::fingerprint(front.oid)? != ready.fingerprint {
        return Err(Failure::new(
            code::LOCK_NOT_AVAILABLE,
            "what hangs on the table changed while the lock was waited for",
        )
        .hint("Call it again."));
    }
    Ok(())
}

/// One exchange, under all locks.
fn one(change: &Change, way: Way, carryover: &Carryover, rows: i64) -> Result<(), Failure> {
    let mut change = change.clone();
    let (front, rear) = change.front_and_rear()?;
    crash::point("swap_locked");
    switch::switch_off(change.id, &front)?;
    run(&carryover.before_move)?;
    let home = Ident::new(change.table_schema.clone());
    let away = Ident::new(match way {
        Way::Swap => change.backup_schema(),
        Way::Rollback => change.shadow_schema(),
    });
    spi::execute(&format!("alter table {} set schema {away}", front.name), &[])?;
    spi::execute(&format!("alter table {} set schema {home}", rear.name), &[])?;
    run(&carryover.after_move)?;
    follow(front.oid, rear.oid)?;
    let new_front = Relation::get(rear.oid)?;
    if way == Way::Swap {
        add_unvalidated(&change, &new_front)?;
    }
    let swap_xid = current_xid()?;
    switch::switch_on(change.id, way.after(), &new_front, &key(&change, way.after()), Some(swap_xid))?;
    let capture = switch::fingerprint(change.id, &new_front)?;
    let definitions = (way == Way::Swap).then(|| sync::front_as_it_is(new_front.oid)).transpose()?;
    let unvalidated: Vec<_> = carryover
        .unvalidated
        .iter()
        .map(|(table, constraint)| json!({"table": table, "constraint": constraint}))
        .collect();
    // Who took it back decides when it is swapped again; an agent would do so within seconds.
    spi::execute(
        "update migrator.change set capture = $2, swap_xid = pg_catalog.pg_current_xact_id(), kept = $3, unvalidated = $4, backlog = 0, \
         fence_xid = null, front_definitions = $6, swapped_at = case when $5 then pg_catalog.clock_timestamp() end, \
         rolled_back = rolled_back + case when $5 then 0 else 1 end, verify_rounds = 0, \
         on_ready = case when $5 then on_ready else 'wait' end, rows_caught_up = rows_caught_up + $7 where id = $1",
        &[
            change.id.into(),
            capture.into(),
            JsonB(carryover.kept.clone()).into(),
            JsonB(unvalidated.into()).into(),
            (way == Way::Swap).into(),
            definitions.into(),
            rows.into(),
        ],
    )?;
    change.set_state(match way {
        Way::Swap => State::Swapped,
        Way::Rollback => State::CatchingUp,
    })
}

/// Constraints that rows of the live table may break: they were kept off the shadow while rows were copied.
fn add_unvalidated(change: &Change, table: &Relation) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct There {
        there: bool,
    }
    for constraint in &change.plan.unvalidated {
        let there: There = spi::fetch_one(
            "select exists (select from pg_catalog.pg_constraint k where k.conrelid = $1 and k.conname = $2) as there",
            &[pgrx::pg_sys::Oid::from(table.oid).into(), constraint.name.as_str().into()],
        )?;
        if there.there {
            continue;
        }
        // Reading a condition may run functions of the owner's, so it is read with the owner's rights.
        let add = format!("alter table {} add constraint {} {}", table.name, constraint.name, constraint.definition);
        role::as_owner(table.owner(), &[], || spi::execute(&add, &[]))?;
        if let Some(comment) = &constraint.comment {
            let comment = literal(comment);
            spi::execute(&format!("comment on constraint {} on {} is {comment}", constraint.name, table.name), &[])?;
        }
    }
    Ok(())
}

fn current_xid() -> Result<u64, Failure> {
    #[derive(Deserialize)]
    struct Xid {
        xid: String,
    }
    let xid: Xid = spi::fetch_one("select pg_catalog.pg_current_xact_id()::text as xid", &[])?;
    xid.xid.parse().map_err(|_| Failure::new(code::INTERNAL, "a transaction id is not a number"))
}
