//! Rows that are set aside: trying them again, or letting them be as they are.

use super::batch::Batch;
use super::complete;
use super::keyset::Keyset;
use super::table::{Registered, Upgraded};
use crate::catalog::spi;
use crate::crash;
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{literal, plain};
use migrator_core::upgrade::Upgrade;
use migrator_core::upgrade::sweep::Wanted;
use pgrx::{JsonB, pg_sys};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

type Key = Vec<String>;

/// Keys that an event names at most.
const NAMED: usize = 100;

/// Tries rows again now, or where application code does the upgrade has them handed out again at once. How many of them are not
/// set aside any more, or are to be handed out.
pub fn retry(table: &Upgraded, name: Option<&str>, key: Option<&str>) -> Result<i64, Failure> {
    let registered = table.registered()?;
    let one = name.map(|name| table.named(name)).transpose()?;
    let of = |upgrade: &Registered| one.as_ref().is_none_or(|one| one.id == upgrade.id);
    let (mut tried, mut handed) = (vec![], 0);
    for upgrade in registered.iter().filter(|upgrade| of(upgrade)) {
        let keys = set_aside(table, upgrade.id, key)?;
        if upgrade.kind == "application" && upgrade.state != "retiring" {
            handed += hand_out(table, upgrade.id, &keys)?;
        } else {
            tried.extend(keys.into_iter().map(|key| (upgrade.id, key)));
        }
    }
    if handed == 0 && tried.is_empty() {
        return key.map_or(Ok(0), |key| Err(not_aside(table, key)));
    }
    let mut keys: Vec<Key> = tried.iter().map(|(_, key)| key.clone()).collect();
    keys.sort_unstable();
    keys.dedup();
    let (definition, keyset) = (table.definition()?, Keyset::of(table)?);
    let done = Batch::whole(table, &definition, &keyset).keys(keys, usize::MAX)?;
    crash::point("retry_failed.written");
    complete::forget_what_is_mended(table)?;
    let mut mended = 0;
    for upgrade in registered.iter().filter(|upgrade| of(upgrade)) {
        let left = set_aside(table, upgrade.id, key)?;
        let of_this = tried.iter().filter(|(id, _)| *id == upgrade.id);
        mended += of_this.filter(|(_, key)| !left.contains(key)).count();
    }
    looked_after(table, mended)?;
    let mended = i64::try_from(mended).unwrap_or(i64::MAX);
    table.event(
        "retried",
        &format!("rows that were set aside were tried again: {mended} done, {} failed, {handed} to be handed out", done.failed),
        json!({"upgrade": name, "key": key, "done": mended, "failed": done.failed, "handed_out": handed, "locked": done.skipped.len()}),
    )?;
    Ok(mended + handed)
}

/// Marks rows that are set aside without changing anything else of them: they keep what they have. How many.
pub fn waive(table: &Upgraded, name: &str, key: Option<&str>, reason: Option<&str>, by: &str) -> Result<i64, Failure> {
    let registered = table.named(name)?;
    let (definition, keyset) = (table.definition()?, Keyset::of(table)?);
    let Some(place) = definition.upgrades.iter().position(|upgrade| upgrade.id == registered.id) else {
        return Err(Failure::new(
            code::NOT_IN_STATE,
            format!("upgrade {} of table {} is retired", plain(name), table.relation.name.plain()),
        )
        .detail("Rows lose its name. Nothing was changed.")
        .hint(format!(
            "Where a row keeps it because it cannot be written, mend that, and then: select migrator.retry_failed({}, {});",
            literal(&table.relation.name.plain()),
            literal(name)
        )));
    };
    let wanted =
        Wanted { upgrade: &definition.upgrades[place], earlier: &definition.upgrades[..place], applied: false };
    let keys = set_aside(table, registered.id, key)?;
    if keys.is_empty() {
        return key.map_or(Ok(0), |key| Err(not_aside(table, key)));
    }
    // The upgrades before it may be pending: with them its inputs change, and it would be derived in the statement that
    // marks the row.
    let first = look(&keyset, &wanted, &keys)?;
    if !first.behind.is_empty() {
        Batch::whole(table, &definition, &keyset).keys(first.behind, usize::MAX)?;
    }
    let state = look(&keyset, &wanted, &keys)?;
    let waived = mark(&keyset, &registered, wanted.upgrade, &state.ready)?;
    crash::point("waive_failed.written");
    let left = keys.len() - waived.len() - state.settled.len();
    forget(table, registered.id, waived.iter().chain(&state.settled))?;
    nobody_has(table, registered.id, &waived)?;
    if left > 0 {
        let why = unwaived(table, name, &state, left);
        if key.is_some() {
            return Err(why);
        }
        crate::raise::warn(why);
    }
    looked_after(table, waived.len() + state.settled.len())?;
    if !waived.is_empty() {
        let named: Vec<Value> = waived.iter().take(NAMED).map(|key| object(table, key)).collect();
        table.event(
            "waived",
            &format!(
                "{} row(s) stay as they are without upgrade {name}: {}",
                waived.len(),
                reason.unwrap_or("no reason was given")
            ),
            json!({"upgrade": name, "rows": waived.len(), "keys": named, "reason": reason, "by": by}),
        )?;
    }
    Ok(i64::try_from(waived.len()).unwrap_or(i64::MAX))
}

/// Rows as they are under their locks.
#[derive(Default)]
struct State {
    /// To be marked.
    ready: Vec<Key>,
    /// An upgrade before this one is missing.
    behind: Vec<Key>,
    /// Marked already, or gone.
    settled: Vec<Key>,
    /// In the hands of other sessions.
    held: Vec<Key>,
}

fn look(keyset: &Keyset<'_>, wanted: &Wanted<'_>, keys: &[Key]) -> Result<State, Failure> {
    #[derive(Deserialize)]
    struct Locked {
        n: usize,
        has: bool,
        earlier: bool,
    }
    #[derive(Deserialize)]
    struct There {
        n: usize,
    }
    let locked: Vec<Locked> = keyset.query(&keyset.table().lock(wanted), &[JsonB(json!(keys)).into()])?;
    let there: Vec<There> = keyset.query(&keyset.table().as_it_is(), &[JsonB(json!(keys)).into()])?;
    let mut state = State::default();
    for (n, key) in (1..).zip(keys) {
        let list = match locked.iter().find(|row| row.n == n) {
            None if there.iter().any(|row| row.n == n) => &mut state.held,
            None => &mut state.settled,
            Some(row) if row.has => &mut state.settled,
            Some(row) if !row.earlier => &mut state.behind,
            Some(_) => &mut state.ready,
        };
        list.push(key.clone());
    }
    Ok(state)
}

/// Writes the name, and nothing else. Those that have it then.
fn mark(keyset: &Keyset<'_>, registered: &Registered, upgrade: &Upgrade, keys: &[Key]) -> Result<Vec<Key>, Failure> {
    #[derive(Deserialize)]
    struct Marked {
        n: Vec<usize>,
    }
    if keys.is_empty() {
        return Ok(vec![]);
    }
    let sql = keyset.table().mark(upgrade);
    let marked: Marked =
        keyset.write_within(Duration::from_secs(1), &registered.settings, &sql, &[JsonB(json!(keys)).into()])?;
    Ok(marked.n.into_iter().filter_map(|n| keys.get(n - 1).cloned()).collect())
}

/// Why rows were not waived.
fn unwaived(table: &Upgraded, name: &str, state: &State, left: usize) -> Failure {
    let relation = table.relation.name.plain();
    let (detail, hint) = if !state.behind.is_empty() {
        (
            "An upgrade before it is pending or has failed for them, and has to come first.",
            format!(
                "select upgrade, key, message from migrator.upgrade_failures where relation = {}; shows which.",
                table.relation.as_shown()
            ),
        )
    } else if !state.held.is_empty() {
        ("Other sessions hold them.", "Call it again when their transactions have ended.".to_owned())
    } else {
        (
            "A trigger of the table kept them from being written, or changed what the upgrade is made from.",
            "Look at the table's BEFORE triggers.".to_owned(),
        )
    };
    Failure::new(
        code::NOT_IN_STATE,
        format!("{left} row(s) of table {relation} could not be waived for upgrade {}", plain(name)),
    )
    .detail(detail)
    .hint(hint)
}

fn not_aside(table: &Upgraded, key: &str) -> Failure {
    let relation = table.relation.name.plain();
    Failure::new(code::UNDEFINED_OBJECT, format!("row {key} of table {relation} is not set aside"))
        .detail("Nothing was changed.")
        .hint(format!(
            "select upgrade, key from migrator.upgrade_failures where relation = {}; lists those that are.",
            table.relation.as_shown()
        ))
}

fn object(table: &Upgraded, key: &[String]) -> Value {
    Value::Object(
        table.key.iter().map(|column| column.as_str().to_owned()).zip(key.iter().cloned().map(Value::String)).collect(),
    )
}

/// The keys of an upgrade's rows that are set aside, or this one of them. `key` is an object, whose values may be numbers.
fn set_aside(table: &Upgraded, upgrade: i64, key: Option<&str>) -> Result<Vec<Key>, Failure> {
    #[derive(Deserialize)]
    struct Failed {
        key: Value,
    }
    let failed: Vec<Failed> = spi::fetch(
        "select f.key from migrator.upgrade_failure f where f.relation = $1 and f.upgrade = $2 and ($3 is null or f.key = \
           (select pg_catalog.jsonb_object_agg(k.key, k.value) from pg_catalog.jsonb_each_text($3::pg_catalog.jsonb) k)) order by f.key",
        &[pg_sys::Oid::from(table.relation.oid).into(), upgrade.into(), key.into()],
    )?;
    let text = |key: &Value, column: &str| key[column].as_str().unwrap_or_default().to_owned();
    Ok(failed
        .into_iter()
        .map(|failed| table.key.iter().map(|column| text(&failed.key, column.as_str())).collect())
        .collect())
}

/// Their next attempt does not wait any longer.
fn hand_out(table: &Upgraded, upgrade: i64, keys: &[Key]) -> Result<i64, Failure> {
    let names: Vec<Value> = keys.iter().map(|key| object(table, key)).collect();
    let rows = spi::execute(
        "update migrator.upgrade_failure f set attempts = 0 where f.relation = $1 and f.upgrade = $2 and f.key in (select pg_catalog.jsonb_array_elements($3))",
        &[pg_sys::Oid::from(table.relation.oid).into(), upgrade.into(), JsonB(json!(names)).into()],
    )?;
    Ok(i64::try_from(rows).unwrap_or(i64::MAX))
}

fn forget<'k>(table: &Upgraded, upgrade: i64, keys: impl Iterator<Item = &'k Key>) -> Result<(), Failure> {
    let names: Vec<Value> = keys.map(|key| object(table, key)).collect();
    spi::execute(
        "delete from migrator.upgrade_failure f where f.relation = $1 and f.upgrade = $2 and f.key in (select pg_catalog.jsonb_array_elements($3))",
        &[pg_sys::Oid::from(table.relation.oid).into(), upgrade.into(), JsonB(json!(names)).into()],
    )
    .map(|_| ())
}

/// Application code that has them in hand is told that they are upgraded.
fn nobody_has(table: &Upgraded, upgrade: i64, keys: &[Key]) -> Result<(), Failure> {
    let names: Vec<Value> = keys.iter().map(|key| object(table, key)).collect();
    spi::execute(
        "delete from migrator.upgrade_lease l where l.relation = $1 and l.upgrade = $2 and l.key in (select pg_catalog.jsonb_array_elements($3))",
        &[pg_sys::Oid::from(table.relation.oid).into(), upgrade.into(), JsonB(json!(names)).into()],
    )
    .map(|_| ())
}

/// So many rows fewer lack something; the next step looks whether that was all. Who has the row may be waiting for the table, whose
/// rows were just written: then more rows seem to lack something than are set aside, and the next step has them all passed again.
fn looked_after(table: &Upgraded, rows: usize) -> Result<(), Failure> {
    if rows == 0 {
        return Ok(());
    }
    spi::execute(
        "update migrator.upgraded set lacking = greatest(0, lacking - $2), verified_at = case when verified_at is not null then '-infinity'::timestamptz end \
         where relation = $1 \
           and relation in (select u.relation from migrator.upgraded u where u.relation = $1 for no key update skip locked)",
        &[pg_sys::Oid::from(table.relation.oid).into(), i64::try_from(rows).unwrap_or(i64::MAX).into()],
    )
    .map(|_| ())
}
