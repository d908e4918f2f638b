//! Capture on and off: the triggers on a captured table, and whether they are still what was put there.
//!
//! The caller holds the table's lock (SHARE ROW EXCLUSIVE to switch on, ACCESS EXCLUSIVE to switch off).

use super::log::Direction;
use crate::catalog::relation::Relation;
use crate::catalog::spi;
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Ident, literal};
use serde::Deserialize;

/// What a capture trigger fires on.
struct Kind {
    /// The last part of its name.
    word: &'static str,
    /// `after … on`
    event: &'static str,
    /// What follows the table.
    each: &'static str,
    /// Its ALTER TABLE mode.
    enable: &'static str,
}

/// The triggers of a captured table. ALWAYS: neither a session nor a restore that sets
/// `session_replication_role` to `replica` escapes them.
const STATEMENT: [Kind; 4] = [
    Kind {
        word: "insert",
        event: "insert",
        each: "referencing new table as migrator_new for each statement",
        enable: "always",
    },
    Kind {
        word: "update",
        event: "update",
        each: "referencing old table as migrator_old new table as migrator_new for each statement",
        enable: "always",
    },
    Kind {
        word: "delete",
        event: "delete",
        each: "referencing old table as migrator_old for each statement",
        enable: "always",
    },
    Kind { word: "truncate", event: "truncate", each: "for each statement", enable: "always" },
];

/// Logical replication applies rows without firing triggers of statements (CREATE SUBSCRIPTION after
/// capture began would go unseen). REPLICA: in any other session this one costs a look at its flag.
const APPLY: Kind =
    Kind { word: "apply", event: "insert or update or delete", each: "for each row", enable: "replica" };

fn trigger(change: i64, kind: &Kind) -> Ident {
    Ident::new(format!("migrator_capture_{change}_{}", kind.word))
}

/// The triggers that `table` gets: a partitioned table has no rows of its own that could be applied.
fn kinds(table: &Relation) -> impl Iterator<Item = &'static Kind> {
    STATEMENT.iter().chain((table.kind == "r").then_some(&APPLY))
}

/// Puts the capture triggers on `table`: from now on every statement that writes it appends the key of
/// each row to the log of `change` in this direction, which must exist with the columns `key` in this order.
///
/// Of a partitioned table every member of the tree needs its own: a statement fires the triggers of the
/// table that it names, and no others.
///
/// With `swap_xid` (the full id of the transaction in which this table took another's place) writers whose
/// transaction-wide snapshot is older get 40001: they would not see the rows that are there.
pub fn switch_on(
    change: i64,
    direction: Direction,
    table: &Relation,
    key: &[Ident],
    swap_xid: Option<u64>,
) -> Result<(), Failure> {
    let arguments = [
        change.to_string(),
        direction.letter().to_string(),
        attribute_numbers(table, key)?,
        swap_xid.map(|xid| xid.to_string()).unwrap_or_default(),
    ]
    .map(|argument| literal(&argument))
    .join(", ");
    let mut modes = vec![];
    for kind in kinds(table) {
        let name = trigger(change, kind);
        spi::execute(
            &format!(
                "create trigger {name} after {} on {} {} execute function migrator._capture({arguments})",
                kind.event, table.name, kind.each
            ),
            &[],
        )?;
        modes.push(format!("enable {} trigger {name}", kind.enable));
    }
    spi::execute(&format!("alter table only {} {}", table.name, modes.join(", ")), &[]).map(|_| ())
}

/// Takes the capture triggers of `change` off `table`, those that are there.
pub fn switch_off(change: i64, table: &Relation) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Row {
        name: Ident,
    }
    let names: Vec<String> =
        STATEMENT.iter().chain([&APPLY]).map(|kind| trigger(change, kind).as_str().to_owned()).collect();
    let there: Vec<Row> = spi::fetch(
        "select t.tgname as name from pg_catalog.pg_trigger t where t.tgrelid = $1 and t.tgname = any ($2) and not t.tgisinternal",
        &[table_oid(table), names.into()],
    )?;
    for Row { name } in there {
        spi::execute(&format!("drop trigger {name} on {}", table.name), &[])?;
    }
    Ok(())
}

/// A text that stays the same as long as nobody touched the capture triggers: one that was disabled for a
/// moment, dropped and made again, renamed or given another function makes it differ, for then a write may
/// have escaped. Reads the catalog only.
pub fn fingerprint(change: i64, table: &Relation) -> Result<String, Failure> {
    #[derive(Deserialize)]
    struct Row {
        line: String,
    }
    let names: Vec<String> = kinds(table).map(|kind| trigger(change, kind).as_str().to_owned()).collect();
    let rows: Vec<Row> = spi::fetch(
        "select case when t.oid is null then 'missing' else pg_catalog.format('%s:%s:%s:%s:%s:%s', t.oid, t.xmin, t.tgenabled, \
         t.tgfoid::pg_catalog.oid, t.tgtype, pg_catalog.encode(t.tgargs, 'hex')) end as line \
         from pg_catalog.unnest($1) with ordinality as w(name, ordinal) \
         left join pg_catalog.pg_trigger t on t.tgrelid = $2 and t.tgname = w.name and not t.tgisinternal order by w.ordinal",
        &[names.into(), table_oid(table)],
    )?;
    Ok(rows.into_iter().map(|row| row.line).collect::<Vec<_>>().join(" "))
}

fn table_oid<'a>(table: &Relation) -> pgrx::datum::DatumWithOid<'a> {
    pgrx::pg_sys::Oid::from(table.oid).into()
}

/// The numbers of the key's columns in `table`, as the trigger reads them: `1,2`.
fn attribute_numbers(table: &Relation, key: &[Ident]) -> Result<String, Failure> {
    #[derive(Deserialize)]
    struct Row {
        number: Option<i64>,
        name: Ident,
    }
    let names: Vec<String> = key.iter().map(|column| column.as_str().to_owned()).collect();
    let rows: Vec<Row> = spi::fetch(
        "select a.attnum::pg_catalog.int8 as number, k.name from pg_catalog.unnest($1) with ordinality as k(name, ordinal) \
         left join pg_catalog.pg_attribute a on a.attrelid = $2 and a.attname = k.name and a.attnum > 0 and not a.attisdropped \
         order by k.ordinal",
        &[names.into(), table_oid(table)],
    )?;
    let numbers: Result<Vec<String>, Failure> = rows
        .into_iter()
        .map(|row| {
            row.number.map(|number| number.to_string()).ok_or_else(|| {
                Failure::new(
                    code::UNDEFINED_COLUMN,
                    format!("column {} of {} does not exist", row.name, table.name.plain()),
                )
            })
        })
        .collect();
    Ok(numbers?.join(","))
}
