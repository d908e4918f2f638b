//! Where it is written down that an upgrade failed for a row that an application wrote.

use super::known::Known;
use super::row::Failed;
use super::run;
use crate::catalog::attempt::attempt;
use crate::catalog::relation::Relation;
use crate::catalog::settings::AS_TEXT;
use crate::catalog::{role, spi};
use crate::raise;
use migrator_core::failure::Failure;
use migrator_core::ident::{Ident, literal};
use migrator_core::upgrade::Marks;
use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use serde::Deserialize;
use std::cell::RefCell;

#[derive(Deserialize)]
struct Named {
    key: String,
    row: String,
}

/// `jsonb_build_object('id', (l."id")::text, …)`: how a row is named everywhere. In SQL, over the alias `l`.
fn key_of(key: &[Ident]) -> String {
    let parts: Vec<String> =
        key.iter().map(|column| format!("{}, (l.{column})::pg_catalog.text", literal(column.as_str()))).collect();
    format!("pg_catalog.jsonb_build_object({})", parts.join(", "))
}

/// So many rows are written down in a transaction. A COPY of a million that an expression does not fit would otherwise store each of
/// them twice.
const MOST: u32 = 100;

/// What a transaction wrote down.
struct Noted {
    /// Of which transaction and subtransaction.
    of: (u32, u32),
    /// Rows of the transaction, whichever upgrade failed for them.
    rows: u32,
    /// Upgrades of which the subtransaction noted that there are more. That is lost with it, and so are the rows that it wrote: each
    /// notes its own.
    more: Vec<i64>,
}

thread_local! {
    static NOTED: RefCell<Noted> = const { RefCell::new(Noted { of: (0, 0), rows: 0, more: vec![] }) };
}

fn noted<T>(look: impl FnOnce(&mut Noted) -> T) -> T {
    let (transaction, subtransaction, _) = run::statement();
    NOTED.with_borrow_mut(|noted| {
        if noted.of != (transaction, subtransaction) {
            let rows = if noted.of.0 == transaction { noted.rows } else { 0 };
            *noted = Noted { of: (transaction, subtransaction), rows, more: vec![] };
        }
        look(noted)
    })
}

/// Whether one more row may be written down. It is counted.
fn has_room() -> bool {
    noted(|noted| {
        noted.rows = noted.rows.saturating_add(1);
        noted.rows <= MOST
    })
}

/// Whether this is the first time that the subtransaction notes of an upgrade that there are more rows.
fn is_first(upgrade: i64) -> bool {
    noted(|noted| {
        let first = !noted.more.contains(&upgrade);
        if first {
            noted.more.push(upgrade);
        }
        first
    })
}

/// Notes that there are rows without an upgrade, of which no more is known: a row of its own, which no other session can hold, because
/// of which every row is looked at again. Where `another` is false, one that is there already is enough.
fn look_again(upgrade: i64, another: bool) -> Result<(), Failure> {
    attempt(|| {
        role::as_extension(|| {
            spi::execute(
                "insert into migrator.upgrade_unnoted (relation, upgrade) select g.relation, g.id from migrator.upgrade g \
                 where g.id = $1 and ($2 or not exists (select from migrator.upgrade_unnoted n where n.upgrade = g.id))",
                &[upgrade.into(), another.into()],
            )
        })
    })
    .map(|_| ())
}

fn ask_to_look_again(table: pg_sys::Oid) -> String {
    format!("Have every row looked at again: select migrator.verify_upgrades({}::regclass);", table.to_u32())
}

/// Notes which upgrades a row lacks that was written while the definition did not fit the table. Those of application code need none:
/// for their rows is looked again and again.
///
/// Each transaction that writes meanwhile leaves rows, so a note that is there already has to do for many. Notes are taken away where a
/// sweep begins, by a step that holds the table and found that the definition fits it. Whoever renames a column has the table alone.
/// So such a step ended before the column was renamed, and what it took away is not seen here any more, if the snapshot is one of
/// this statement; or it begins after the column was brought back, and then this transaction has ended, and its rows are seen.
///
/// # Safety
/// The relation is open.
pub unsafe fn note_lacking(table: pg_sys::Relation, known: &Known, marks: &Marks) {
    // SAFETY: a variable of the process.
    let old_snapshot = unsafe { pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ.cast_signed() };
    for upgrade in &known.definition.upgrades {
        if upgrade.is_application() || marks.has(&upgrade.name) || !is_first(upgrade.id) {
            continue;
        }
        if let Err(failure) = look_again(upgrade.id, old_snapshot) {
            // SAFETY: the caller's.
            let oid = unsafe { (*table).rd_id };
            raise::warn(failure.hint(ask_to_look_again(oid)));
        }
    }
}

/// Notes it. The application's statement goes on either way: where a name for the row cannot be had at once, or there are too
/// many, it is noted that there is one, and the row, which has no name, is found by the sweep that this brings about.
///
/// # Safety
/// The relation is open and the tuple of its type.
pub unsafe fn note(table: pg_sys::Relation, known: &Known, failed: &Failed, tuple: pg_sys::HeapTuple) {
    let room = has_room();
    if !room && !is_first(failed.upgrade) {
        return;
    }
    // SAFETY: an open relation has its oid and its name.
    let (oid, name) = unsafe { ((*table).rd_id, pgrx::name_data_to_str(&(*(*table).rd_rel).relname).to_owned()) };
    let said = if room {
        // SAFETY: the caller's.
        let Err(failure) = (unsafe { in_full(table, known, failed, tuple) }) else { return };
        Failure::new(
            failure.code,
            format!(
                "an upgrade failed for a row of table {name}, and which row could not be noted: {}",
                failure.message
            ),
        )
    } else {
        Failure::new(
            failed.failure.code.clone(),
            format!(
                "upgrades failed for more than {MOST} rows in one transaction, and no more rows of table {name} are noted"
            ),
        )
    };
    let again = match look_again(failed.upgrade, true) {
        Ok(()) => "Every row is looked at again by the next steps.".to_owned(),
        Err(_) => ask_to_look_again(oid),
    };
    raise::warn(
        said.detail(format!(
            "The row was written as it is, without the upgrade, which failed with: {} ({}).",
            failed.failure.message, failed.failure.code
        ))
        .hint(again),
    );
}

/// Writes down which row it was, and what it was like.
unsafe fn in_full(
    table: pg_sys::Relation,
    known: &Known,
    failed: &Failed,
    tuple: pg_sys::HeapTuple,
) -> Result<(), Failure> {
    // SAFETY: the caller's. The row is passed as a value of the table's row type.
    unsafe {
        let oid = (*table).rd_id.to_u32();
        let owner = (*(*table).rd_rel).relowner;
        let row = pg_sys::heap_copy_tuple_as_datum(tuple, (*table).rd_att);
        let row_type = (*(*table).rd_rel).reltype;
        attempt(|| {
            let relation = Relation::get(oid)?;
            // Casts and output functions of users' types run as the owner.
            let named: Named = role::as_owner(owner, &[], || {
                let sql = format!(
                    "select ({})::pg_catalog.text as key, pg_catalog.to_jsonb(l)::pg_catalog.text as row from (select ($1::{}).*) l",
                    key_of(&known.definition.key),
                    relation.name
                );
                role::with_settings(&AS_TEXT, || spi::fetch_one(&sql, &[DatumWithOid::new(row, row_type)]))
            })?;
            // Nobody waits for our books.
            let soon = [("lock_timeout", "50ms")];
            role::as_extension(|| {
                role::with_settings(&soon, || store(failed.upgrade, None, &named.key, &named.row, &failed.failure))
            })
        })
    }
}

/// Puts a row aside, which a batch of this sweep met, if one did. Key and row are JSON as text: a number keeps all its digits. Runs as
/// the extension.
pub fn store(upgrade: i64, sweep: Option<i64>, key: &str, row: &str, failure: &Failure) -> Result<(), Failure> {
    spi::execute(
        "insert into migrator.upgrade_failure as f (relation, upgrade, key, sqlstate, message, \"row\", sweep) \
         select g.relation, g.id, $2::pg_catalog.jsonb, $3, $4, $5::pg_catalog.jsonb, $6 from migrator.upgrade g where g.id = $1 \
         on conflict (relation, upgrade, key) do update set sqlstate = excluded.sqlstate, message = excluded.message, \
         \"row\" = excluded.\"row\", seen_at = pg_catalog.clock_timestamp(), attempts = f.attempts + 1, sweep = coalesce(excluded.sweep, f.sweep)",
        &[
            upgrade.into(),
            key.into(),
            failure.code.to_string().into(),
            failure.message.clone().into(),
            row.into(),
            sweep.into(),
        ],
    )?;
    // It was complete, and is not any more. Writers do not wait for one another to say so.
    spi::execute(
        "update migrator.upgrade set state = 'running', completed_at = null \
         where id = (select g.id from migrator.upgrade g where g.id = $1 and g.state = 'complete' for no key update skip locked)",
        &[upgrade.into()],
    )
    .map(|_| ())
}
