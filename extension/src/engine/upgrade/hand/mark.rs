//! Taking back what application code made of rows: values and name are written together, or not at all.
//!
//! A row that somebody changed meanwhile is not overwritten: its inputs are compared with what they were when it was handed out,
//! under a lock of that row, and where they differ it comes back as it is now. A value that the table refuses costs its own row only.

use super::{Desk, Key};
use crate::catalog::attempt::attempt;
use crate::catalog::definition::{self, Column};
use crate::catalog::lock;
use crate::crash;
use crate::guard;
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Ident, plain};
use migrator_core::sqlstate;
use migrator_core::upgrade::COLUMN;
use pgrx::JsonB;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What became of one row. Key and row are JSON as text.
pub struct Answer {
    pub key: String,
    pub applied: bool,
    pub reason: Option<String>,
    pub row: Option<String>,
}

/// One row as it came back.
#[derive(Deserialize)]
struct Given {
    n: usize,
    key: Vec<Option<String>>,
    token: Option<String>,
    error: Option<String>,
    columns: Option<Vec<String>>,
    typed: Option<String>,
    strange: Option<String>,
}

/// One row under its lock.
#[derive(Deserialize)]
struct Locked {
    n: usize,
    has: bool,
    earlier: bool,
    image: i64,
}

/// What is to become of a row, and of its lease.
enum Fate {
    Applied,
    /// Not written; the lease stays.
    Kept(&'static str),
    /// Not written; the row can be handed out again at once.
    Back(&'static str),
    /// Not written, and there is no lease to keep.
    Refused(&'static str),
    /// The row itself is gone.
    Gone,
    /// Set aside.
    Failed(Failure),
}

/// What came back, and the columns that it gives.
struct Work<'a> {
    rows: &'a str,
    columns: &'a [Ident],
}

/// How long a lock is waited for that a value runs into (of a unique value that somebody else has written and not committed), and
/// how long once one was waited for in vain: the other rows of the call are locked meanwhile.
const PATIENCE: Duration = Duration::from_millis(500);
const IMPATIENCE: Duration = Duration::from_millis(20);

/// A trigger kept the row from being written, or took its name off again.
const PREVENTED: &str = "27000";
/// What application code says of its own failure.
const TOLD: &str = "P0001";

/// Takes back rows: a JSON object, or an array of them, as text. An answer for each, in their order.
pub fn mark(desk: &Desk<'_>, rows: &str) -> Result<Vec<Answer>, Failure> {
    desk.live()?;
    desk.guarded()?;
    lock::upgrading(desk.table.relation.oid);
    let rows = if rows.starts_with('{') { format!("[{rows}]") } else { rows.to_owned() };
    if !rows.starts_with('[') {
        return Err(malformed("rows is neither an object nor an array of objects"));
    }
    let sql = desk.keyset.table().given_back();
    let given: Vec<Given> = desk.keyset.query(&sql, &[rows.as_str().into()])?;
    let keys = given.iter().map(read_key).collect::<Result<Vec<Key>, Failure>>()?;
    let columns = columns(desk, &given)?;
    let mut fates: BTreeMap<usize, Fate> = BTreeMap::new();
    let images = leases(desk, &given, &keys, &mut fates)?;
    let writable = rows_of(desk, &given, &keys, &images, &mut fates)?;
    let places: Vec<i32> = writable.iter().filter_map(|n| i32::try_from(*n).ok()).collect();
    halve(desk, &Work { rows: &rows, columns: &columns }, &places, PATIENCE, &mut fates)?;
    crash::point("mark_applied.written");
    settle(desk, &keys, fates)
}

fn malformed(message: &str) -> Failure {
    Failure::new(code::INVALID_PARAMETER, message)
        .detail("Nothing was changed.")
        .hint(r#"Give back key and token as migrator.select_batch gave them: [{"key": {"id": "1"}, "token": "…", "values": {"column": "value"}}]; "values": {} sets the name alone; instead of values there may be an "error": "what went wrong""#)
}

fn read_key(given: &Given) -> Result<Key, Failure> {
    let key: Option<Key> = given.key.iter().cloned().collect();
    let key = key.ok_or_else(|| malformed(&format!("row {} has no key, or not all columns of it", given.n + 1)))?;
    let Some(token) = &given.token else {
        return Err(malformed(&format!("row {} has no token", given.n + 1)));
    };
    if token.len() != 36 || !token.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
        return Err(malformed(&format!("the token of row {} is no token", given.n + 1)));
    }
    if let Some(strange) = &given.strange {
        return Err(malformed(&format!(
            "row {} has a field {strange:?}, which is neither values nor error",
            given.n + 1
        )));
    }
    match given.typed.as_deref() {
        Some("object") => Ok(key),
        // As of a program that caught something which has no message: it must not pass for having upgraded the row.
        None | Some("null") if given.error.is_none() => {
            Err(malformed(&format!("row {} has neither values nor an error", given.n + 1)))
        }
        None | Some("null") => Ok(key),
        Some(other) => {
            Err(malformed(&format!("the values of row {} are not an object but of type {other}", given.n + 1)))
        }
    }
}

/// The columns that are given, each of which application code may write here.
fn columns(desk: &Desk<'_>, given: &[Given]) -> Result<Vec<Ident>, Failure> {
    let names: BTreeSet<&String> = given.iter().flat_map(|given| given.columns.iter().flatten()).collect();
    if names.is_empty() {
        return Ok(vec![]);
    }
    let all = definition::columns(desk.table.relation.oid)?;
    let others = desk.table.definition()?.upgrades;
    let table = desk.table.relation.name.plain();
    names
        .into_iter()
        .map(|name| {
            let column = all.iter().find(|column| column.name.as_str() == name).ok_or_else(|| {
                Failure::new(code::UNDEFINED_COLUMN, format!("table {table} has no column {}", plain(name)))
                    .detail("Nothing was changed.")
                    .hint("The names in values are columns of the table.")
            })?;
            match forbidden(desk, column, &others) {
                None => Ok(column.name.clone()),
                Some(why) => Err(Failure::new(
                    code::INVALID_PARAMETER,
                    format!(
                        "upgrade {} of table {table} may not write column {}: {why}",
                        plain(&desk.registered.name),
                        plain(name)
                    ),
                )
                .detail("Nothing was changed.")
                .hint("Leave it out of values. The outputs of an upgrade are declared when it is registered.")),
            }
        })
        .collect()
}

fn forbidden(desk: &Desk<'_>, column: &Column, others: &[migrator_core::upgrade::Upgrade]) -> Option<String> {
    let name = &column.name;
    if name.as_str() == COLUMN {
        return Some("the name is added to it by migrator.mark_applied itself".to_owned());
    }
    let declared: Vec<&Ident> = desk.upgrade.outputs().collect();
    if !declared.is_empty() {
        let list: Vec<String> = declared.iter().map(|output| plain(output.as_str())).collect();
        return (!declared.contains(&name)).then(|| format!("its outputs are {}", list.join(", ")));
    }
    if desk.table.key.contains(name) {
        return Some("it is part of the key".to_owned());
    }
    if column.generated || column.identity {
        return Some("its values are made by the server".to_owned());
    }
    if desk.upgrade.inputs.contains(name) {
        return Some("it is one of the inputs, and not declared as an output".to_owned());
    }
    // Whoever writes a column that an earlier one reads or another one writes would be written over, or make that one be done again.
    let own = others.iter().position(|other| other.id == desk.upgrade.id).unwrap_or(others.len());
    others.iter().enumerate().filter(|(place, _)| *place != own).find_map(|(place, other)| {
        if other.outputs().any(|output| output == name) {
            return Some(format!("upgrade {} makes it", plain(&other.name)));
        }
        (place < own && other.inputs.contains(name))
            .then(|| format!("upgrade {} before it reads it", plain(&other.name)))
    })
}

/// What the tokens are worth: the image and whether the row had the name, for those that are good.
fn leases(
    desk: &Desk<'_>,
    given: &[Given],
    keys: &[Key],
    fates: &mut BTreeMap<usize, Fate>,
) -> Result<BTreeMap<usize, (i64, bool)>, Failure> {
    let mut seen = BTreeSet::new();
    let mut asked = vec![];
    for (given, key) in given.iter().zip(keys) {
        if seen.insert(key) {
            asked.push((given.n, key, given.token.as_deref().unwrap_or_default()));
        } else {
            fates.insert(given.n, Fate::Refused("the same key was given before in this call"));
        }
    }
    let mut images = BTreeMap::new();
    for taken in desk.take(&asked)? {
        let fate = if !taken.there {
            Fate::Refused("nobody has this row in hand: its lease ran out, or the row does not need the upgrade")
        } else if !taken.locked {
            Fate::Kept("another call has this row's lease in hand: call again")
        } else if !taken.ours {
            Fate::Refused("the token is not this row's any more: its lease ran out, or it came back")
        } else if taken.applied {
            Fate::Applied
        } else {
            images.insert(taken.n, (taken.image, taken.marked));
            continue;
        };
        fates.insert(taken.n, fate);
    }
    Ok(images)
}

/// Locks the rows, as far as nobody else has, and says which of them may be written: those that are as they were.
fn rows_of(
    desk: &Desk<'_>,
    given: &[Given],
    keys: &[Key],
    images: &BTreeMap<usize, (i64, bool)>,
    fates: &mut BTreeMap<usize, Fate>,
) -> Result<Vec<usize>, Failure> {
    let asked: Vec<usize> = images.keys().copied().collect();
    if asked.is_empty() {
        return Ok(vec![]);
    }
    let wanted: Vec<&Key> = asked.iter().map(|n| &keys[*n]).collect();
    let sql = desk.keyset.table().lock(&desk.wanted(false));
    let locked: Vec<Locked> = desk.keyset.query(&sql, &[JsonB(json!(wanted)).into()])?;
    let by_place: BTreeMap<usize, Locked> = locked.into_iter().map(|row| (row.n, row)).collect();
    let held: Vec<&Key> = (1..).zip(&wanted).filter(|(n, _)| !by_place.contains_key(n)).map(|(_, key)| *key).collect();
    let there = as_it_is(desk, &held)?;
    let is_there =
        |key: &Key| held.iter().position(|held| *held == key).is_some_and(|at| there.contains_key(&(at + 1)));
    let mut writable = vec![];
    for (place, n) in asked.into_iter().enumerate() {
        let (image, marked) = images[&n];
        let row = by_place.get(&(place + 1));
        let fate = match row {
            None if is_there(&keys[n]) => {
                Fate::Kept("another session holds the row: call again when it has ended its transaction")
            }
            None => Fate::Gone,
            Some(row) if row.image != image => Fate::Back("its inputs changed since it was handed out"),
            Some(row) if !row.earlier => Fate::Back("an upgrade before this one is to be done again for it"),
            Some(row) if row.has && !marked => Fate::Back("another writer has upgraded it meanwhile"),
            Some(_) => match &given[n].error {
                Some(error) => Fate::Failed(Failure::new(TOLD, error.clone())),
                None => {
                    writable.push(n);
                    continue;
                }
            },
        };
        fates.insert(n, fate);
    }
    Ok(writable)
}

/// Writes rows: all at once; where that fails by a row's fault in halves, until what fails stands alone.
fn halve(
    desk: &Desk<'_>,
    work: &Work<'_>,
    places: &[i32],
    patience: Duration,
    fates: &mut BTreeMap<usize, Fate>,
) -> Result<(), Failure> {
    pgrx::check_for_interrupts!();
    let numbers = |places: &[i32]| places.iter().filter_map(|n| usize::try_from(*n).ok()).collect::<Vec<_>>();
    if places.is_empty() {
        return Ok(());
    }
    match attempt(|| write(desk, work, places, patience)) {
        Ok(()) => {
            fates.extend(numbers(places).into_iter().map(|n| (n, Fate::Applied)));
            Ok(())
        }
        Err(failure) => {
            // As in a batch: a row's is what is neither the moment's nor the program's. A value that the server has no room for
            // (54000) and the SQLSTATE of a user's own trigger are met by that row only.
            let others = sqlstate::belongs_to_moment(&failure.code) || sqlstate::belongs_to_program(&failure.code);
            // 55000 is raised for a row, and by the server for a table: then it comes for no row, too.
            let of_the_table = failure.code == code::NOT_IN_STATE
                && attempt(|| write(desk, work, &[], patience)).is_err_and(|without| without.code == failure.code);
            if of_the_table || others && failure.code != code::LOCK_NOT_AVAILABLE {
                return Err(failure);
            }
            if places.len() > 1 {
                let (front, behind) = places.split_at(places.len() / 2);
                let patience = if failure.code == code::LOCK_NOT_AVAILABLE { IMPATIENCE } else { patience };
                halve(desk, work, front, patience, fates)?;
                return halve(desk, work, behind, patience, fates);
            }
            for n in numbers(places) {
                let fate = if failure.code == code::LOCK_NOT_AVAILABLE {
                    Fate::Kept("a lock that another session holds is in the way: call again")
                } else {
                    Fate::Failed(failure.clone())
                };
                fates.insert(n, fate);
            }
            Ok(())
        }
    }
}

fn write(desk: &Desk<'_>, work: &Work<'_>, places: &[i32], patience: Duration) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Written {
        n: Vec<i32>,
        without: Vec<i32>,
    }
    // The caller's own settings say how values are read; triggers find their tables as at the registration.
    let path: Vec<(String, String)> =
        desk.registered.settings.iter().filter(|(name, _)| name == "search_path").cloned().collect();
    let sql = desk.keyset.table().write_back(&desk.upgrade, work.columns);
    let written: Written =
        desk.keyset.write_within(patience, &path, &sql, &[places.to_vec().into(), work.rows.into()])?;
    let table = desk.table.relation.name.plain();
    if !written.without.is_empty() {
        return Err(Failure::new(
            PREVENTED,
            format!("a trigger of table {table} changed what the upgrade was made from"),
        ));
    }
    if written.n.len() < places.len() {
        return Err(Failure::new(PREVENTED, format!("a trigger of table {table} kept the row from being written")));
    }
    Ok(())
}

/// Rows as they are now, by their places from 1.
fn as_it_is(desk: &Desk<'_>, keys: &[&Key]) -> Result<BTreeMap<usize, String>, Failure> {
    #[derive(Deserialize)]
    struct Row {
        n: usize,
        row: String,
    }
    if keys.is_empty() {
        return Ok(BTreeMap::new());
    }
    let rows: Vec<Row> = desk.keyset.query(&desk.keyset.table().as_it_is(), &[JsonB(json!(keys)).into()])?;
    Ok(rows.into_iter().map(|row| (row.n, row.row)).collect())
}

/// Leases and failures as the rows' fates say, and the answers.
fn settle(desk: &Desk<'_>, keys: &[Key], fates: BTreeMap<usize, Fate>) -> Result<Vec<Answer>, Failure> {
    let shown: Vec<usize> =
        fates.iter().filter(|(_, fate)| !matches!(fate, Fate::Applied | Fate::Gone)).map(|(n, _)| *n).collect();
    let now = as_it_is(desk, &shown.iter().map(|n| &keys[*n]).collect::<Vec<_>>())?;
    let (mut applied, mut back, mut dropped, mut gone): (Vec<Value>, Vec<Value>, Vec<Value>, Vec<Value>) =
        (vec![], vec![], vec![], vec![]);
    let mut answers = vec![];
    for (n, fate) in fates {
        let key = desk.name(&keys[n]);
        let row = shown.iter().position(|shown| *shown == n).and_then(|place| now.get(&(place + 1)).cloned());
        let reason = match &fate {
            Fate::Applied => None,
            Fate::Kept(why) | Fate::Back(why) | Fate::Refused(why) => Some((*why).to_owned()),
            Fate::Gone => Some("the row is gone".to_owned()),
            Fate::Failed(failure) => Some(format!("{}: {}", failure.code, failure.message)),
        };
        let is_applied = matches!(fate, Fate::Applied);
        match fate {
            Fate::Applied => applied.push(key.clone()),
            Fate::Back(_) => back.push(key.clone()),
            Fate::Gone => gone.push(key.clone()),
            Fate::Failed(failure) => {
                let row = row.as_deref().unwrap_or("null");
                guard::store(desk.upgrade.id, None, &key.to_string(), row, &failure)?;
                dropped.push(key.clone());
            }
            Fate::Kept(_) | Fate::Refused(_) => {}
        }
        answers.push(Answer { key: key.to_string(), applied: is_applied, reason, row });
    }
    desk.applied(&applied)?;
    desk.back(&back)?;
    dropped.extend(gone.iter().cloned());
    desk.drop(&dropped)?;
    desk.forget_failures(&gone)?;
    Ok(answers)
}
