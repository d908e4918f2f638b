//! Columns that upgrades write are known by number as well as by name.
//!
//! One that is upgraded in place: while it has another name nothing can be derived for its rows, but what is written to it is in the new
//! shape all the same, and must not be upgraded when the column has its name again. The guard knows those numbers.
//!
//! Any other: dropped, and added again under its name, it is empty in rows that carry the upgrade's name, and nothing would ever fill it.
//!
//! The column of names itself: dropped and added again, no row has a name, and each would be upgraded once more: in place twice, and over
//! what applications have written. The guard knows that number too, and leaves such rows alone.

use super::table::{self, Registered, Upgraded};
use crate::catalog::definition::{self, Column};
use crate::catalog::relation::Relation;
use crate::catalog::spi;
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Ident, literal, plain};
use migrator_core::upgrade::{COLUMN, Upgrade};
use pgrx::{JsonB, pg_sys};
use serde::Deserialize;
use serde_json::json;

/// The numbers (`pg_attribute.attnum`) of an upgrade's outputs, in their order; 0 for one that is not there.
pub fn of(columns: &[Column], upgrade: &Upgrade) -> Vec<i16> {
    let number = |name: &Ident| columns.iter().find(|column| column.name == *name).map_or(0, |column| column.attnum);
    upgrade.outputs().map(number).collect()
}

/// Noted of a column that a table did not have when it took the place of one that had it.
const NEVER: i16 = -1;

/// Those, and the number of the column of names behind them: what is noted of each upgrade.
pub fn noted(columns: &[Column], upgrade: &Upgrade) -> Vec<i16> {
    let marks = columns.iter().find(|column| column.name.as_str() == COLUMN);
    of(columns, upgrade).into_iter().chain([marks.map_or(0, |column| column.attnum)]).collect()
}

/// Of the column of names, as it was noted of an upgrade, where it is known.
pub fn of_names(upgrade: &Registered) -> Option<i16> {
    upgrade.numbers.as_ref()?.last().copied().filter(|number| *number > 0)
}

/// Writes down where the columns are in this table, which may be another than they were looked up in. Whether the guard has to be told.
/// The caller holds the table's row.
pub fn renew(relation: &Relation) -> Result<bool, Failure> {
    let columns = definition::columns(relation.oid)?;
    let mut renewed = false;
    for upgrade in table::registered(relation.oid)?.iter().filter(|upgrade| upgrade.state != "retiring") {
        let mut noted = noted(&columns, &upgrade.definition);
        // Not there where the table takes another's place: one that comes later has no values.
        noted.iter_mut().filter(|number| **number == 0).for_each(|number| *number = NEVER);
        if upgrade.numbers.as_ref() != Some(&noted) {
            write_down(upgrade, &noted)?;
            renewed = true;
        }
        let numbers = of(&columns, &upgrade.definition);
        if upgrade.definition.in_place && numbers != upgrade.definition.numbers {
            spi::execute(
                "update migrator.upgrade set definition = definition || $2 where id = $1",
                &[upgrade.id.into(), JsonB(json!({"numbers": numbers})).into()],
            )?;
            renewed = true;
        }
    }
    Ok(renewed)
}

/// Upgrades of whose outputs one, or the column of names, was dropped and added again, each with what to say of it. The caller holds the table.
pub fn added_again(table: &Upgraded) -> Result<Vec<(i64, Failure)>, Failure> {
    added_again_of(table, &table.registered()?, &definition::columns(table.relation.oid)?)
}

/// The same of what is registered, by the columns that there are.
///
/// A number that another column has by now says nothing: in a restored table all may have moved up. One that is a dropped column's does:
/// a restored table has none.
pub fn added_again_of(
    table: &Upgraded,
    registered: &[Registered],
    columns: &[Column],
) -> Result<Vec<(i64, Failure)>, Failure> {
    let mut all = vec![];
    for (upgrade, numbers) in moved(registered, columns) {
        let outputs = upgrade.definition.outputs().count();
        // An output in place is looked after by who resumes.
        let from = if upgrade.definition.in_place { outputs } else { 0 };
        let before = upgrade.numbers.iter().flatten().copied().zip(&numbers).enumerate().skip(from);
        let left: Vec<(usize, i16)> =
            before.filter(|(_, (was, now))| was != *now && **now > 0).map(|(place, (was, _))| (place, was)).collect();
        let known: Vec<i16> = left.iter().map(|(_, was)| *was).collect();
        let lost = if known.contains(&NEVER) { Some(NEVER) } else { first_dropped(table, known)? };
        let Some(place) = lost.and_then(|lost| left.iter().find(|(_, was)| *was == lost)).map(|(place, _)| *place)
        else {
            continue;
        };
        let (relation, name) = (table.relation.name.plain(), plain(&upgrade.name));
        let (column, so, then) = match upgrade.definition.outputs().nth(place) {
            Some(output) => (
                output.as_str(),
                format!("rows that carry the name of upgrade {name} lack its values"),
                "Retire it and register it under another name",
            ),
            None => (
                COLUMN,
                format!("nobody can tell which rows have upgrade {name}"),
                "Retire it; if it was complete, only rows that were written since the column was dropped lack it. For rows that you know to lack it register another",
            ),
        };
        let failure = Failure::new(
            code::NOT_IN_STATE,
            format!("column {} of table {relation} was dropped and added again: {so}", plain(column)),
        )
        .hint(format!(
            "{then}: select migrator.retire_upgrade({}, {}, incomplete => true);",
            literal(&relation),
            literal(&upgrade.name)
        ));
        all.push((upgrade.id, failure));
    }
    Ok(all)
}

/// Notes where the columns are where that is not known, or was of a table that was restored since. The caller holds the table.
pub fn learn(table: &Upgraded, registered: &[Registered]) -> Result<(), Failure> {
    let columns = definition::columns(table.relation.oid)?;
    let lost = added_again_of(table, registered, &columns)?;
    for (upgrade, numbers) in moved(registered, &columns) {
        if !lost.iter().any(|(id, _)| *id == upgrade.id) {
            // Of one that is away for the moment, where it was: it may have been dropped.
            let before = upgrade.numbers.iter().flatten().copied().chain(std::iter::repeat(0));
            let numbers: Vec<i16> =
                numbers.iter().zip(before).map(|(now, was)| if *now == 0 { was } else { *now }).collect();
            if upgrade.numbers.as_ref() != Some(&numbers) {
                write_down(upgrade, &numbers)?;
            }
        }
    }
    Ok(())
}

/// Those whose columns are not where they were noted to be, with where they are.
fn moved<'a>(registered: &'a [Registered], columns: &'a [Column]) -> impl Iterator<Item = (&'a Registered, Vec<i16>)> {
    let live = registered.iter().filter(|upgrade| upgrade.state != "retiring");
    live.map(|upgrade| (upgrade, noted(columns, &upgrade.definition)))
        .filter(|(upgrade, numbers)| upgrade.numbers.as_ref() != Some(numbers))
}

/// Somebody who has the row changes it, and is not waited for.
fn write_down(upgrade: &Registered, numbers: &[i16]) -> Result<(), Failure> {
    spi::execute(
        "update migrator.upgrade set numbers = $2 where id in (select g.id from migrator.upgrade g where g.id = $1 for no key update skip locked)",
        &[upgrade.id.into(), numbers.to_vec().into()],
    )
    .map(|_| ())
}

fn first_dropped(table: &Upgraded, numbers: Vec<i16>) -> Result<Option<i16>, Failure> {
    #[derive(Deserialize)]
    struct Dropped {
        number: i16,
    }
    if numbers.is_empty() {
        return Ok(None);
    }
    let dropped: Option<Dropped> = spi::fetch_optional(
        "select a.attnum as number from pg_catalog.pg_attribute a where a.attrelid = $1 and a.attnum = any ($2) and a.attisdropped order by 1 limit 1",
        &[pg_sys::Oid::from(table.relation.oid).into(), numbers.into()],
    )?;
    Ok(dropped.map(|dropped| dropped.number))
}
