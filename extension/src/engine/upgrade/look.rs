//! Looks at the rows here and now, where what an earlier look found does not say enough: rows may have come that no guard saw,
//! or that it had to leave as they were.

use super::complete;
use super::install;
use super::table::{self, Registered, Upgraded};
use crate::catalog::definition;
use crate::catalog::relation::Relation;
use crate::catalog::{role, spi};
use crate::guard::{Refusal, TRIGGER};
use migrator_core::failure::Failure;
use migrator_core::ident::{Ident, Name};
use migrator_core::upgrade::sweep::{Table, strange};
use migrator_core::upgrade::{COLUMN, all_marked};
use pgrx::pg_sys;
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Found {
    found: bool,
}

/// One statement over the table, at the worst over all of its rows, as its owner.
fn ask(table: &Relation, sql: &str) -> Result<bool, Failure> {
    let found: Found = role::as_owner(table.owner(), &[], || spi::fetch_one(sql, &[]))?;
    Ok(found.found)
}

fn of<'a>(table: &Relation, name: &'a Name) -> Table<'a> {
    Table { name, key: &[], one_heap: table.kind == "r" }
}

/// Whether a row has this name.
pub fn any_has(table: &Relation, name: &str) -> Result<bool, Failure> {
    ask(table, &of(table, &table.name).any(name, true))
}

/// Whether all names that rows have were registered here: the column was made here, and the last look at every row found no other.
/// With an adopted column goes what others remember in it, perhaps in rows that they are about to write.
pub fn only_our_names(table: &Upgraded) -> bool {
    table.state.column_added && table.state.strangers == Some(0)
}

/// Whether the table still has the column of names.
pub fn has_names(table: &Upgraded) -> Result<bool, Failure> {
    Ok(definition::columns(table.relation.oid)?.iter().any(|column| column.name == Ident::from(COLUMN)))
}

/// Whether rows have names that are not registered: of a later version of the application, perhaps. Where the column is gone that
/// cannot be told.
pub fn any_other(table: &Upgraded) -> Result<bool, Failure> {
    if !has_names(table)? {
        return Ok(true);
    }
    let registered = table.registered()?;
    let names = registered.iter().map(|upgrade| upgrade.name.as_str());
    ask(&table.relation, &of(&table.relation, &table.relation.name).any_other(names))
}

/// Whether an upgrade that was complete has lost that since, and why: for who goes on from there. `surely`: all rows are looked at, even
/// where nothing says that one may have come; for who throws something away.
pub fn is_stale(table: &Upgraded, upgrade: &Registered, surely: bool) -> Result<Option<String>, Failure> {
    if let Some(unguarded) = install::is_unguarded(table)? {
        return Ok(Some(unguarded.message));
    }
    if table.relation.kind == "p"
        && let Some(partition) =
            with_rows(&new_partitions(table)?, &format!("not {}", all_marked([&upgrade.definition])))?.first()
    {
        return Ok(Some(format!("rows of partition {partition}, which came later, may lack it")));
    }
    // Rows come without it: of writers who do not know of it, and those that the guard has to leave to batches.
    let may_come = surely
        || upgrade.kind == "application"
        || table.state.may_be_left
        || table::refusal(&table.relation, &upgrade.definition)? > Refusal::None;
    if may_come && ask(&table.relation, &of(&table.relation, &table.relation.name).any(&upgrade.name, false))? {
        return Ok(Some("rows lack it that were written since".to_owned()));
    }
    Ok(None)
}

/// Whether partitions have come with rows that lack something. Then nothing of the table is complete any more, and every row is
/// looked at again. Partitions that came without such rows, as new ones do, are known from then on. The caller holds the table's row.
///
/// A partition that was attached while a sweep was under way, at keys that it had passed or beyond its end, is found at the
/// end of it; one that is attached later, by the next step. Known are those that were looked at here and no others: one may be
/// attached meanwhile.
pub fn attached(table: &Upgraded) -> Result<bool, Failure> {
    let definition = table.definition()?;
    if table.relation.kind != "p" || definition.upgrades.is_empty() && definition.retired.is_empty() {
        return Ok(false);
    }
    let new = new_partitions(table)?;
    if new.is_empty() {
        return Ok(false);
    }
    let found = with_rows(&new, &strange(&definition))?;
    spi::execute(
        "update migrator.upgraded set partitions = coalesce(partitions, '{}') || $2::oid[] where relation = $1",
        &[pg_sys::Oid::from(table.relation.oid).into(), guards(&new).into()],
    )?;
    if found.is_empty() {
        return Ok(false);
    }
    spi::execute(
        "update migrator.upgraded set sweep_kind = null, verified_at = null, lacking = null, strangers = null where relation = $1",
        &[pg_sys::Oid::from(table.relation.oid).into()],
    )?;
    for upgrade in table.registered()?.iter().filter(|upgrade| upgrade.state != "retiring") {
        complete::not_any_more(upgrade.id)?;
    }
    table.event(
        "attached",
        &format!("rows of {} may lack something: every row is looked at again", found.join(", ")),
        json!({"partitions": found}),
    )?;
    Ok(true)
}

/// Notes the partitions whose rows are looked at from now on.
pub fn know_partitions(table: &Upgraded) -> Result<(), Failure> {
    if table.relation.kind != "p" {
        return Ok(());
    }
    spi::execute(
        "update migrator.upgraded set partitions = '{}' where relation = $1",
        &[pg_sys::Oid::from(table.relation.oid).into()],
    )?;
    let all = new_partitions(table)?;
    spi::execute(
        "update migrator.upgraded set partitions = $2::oid[] where relation = $1",
        &[pg_sys::Oid::from(table.relation.oid).into(), guards(&all).into()],
    )
    .map(|_| ())
}

/// A partition with rows.
#[derive(Deserialize)]
struct Partition {
    #[serde(flatten)]
    name: Name,
    owner: u32,
    /// The guard that it has: a new one each time that it is attached.
    guard: Option<u32>,
}

fn guards(partitions: &[Partition]) -> Vec<pg_sys::Oid> {
    partitions.iter().filter_map(|partition| partition.guard.map(pg_sys::Oid::from)).collect()
}

/// Those that are not known: their guard has come since.
fn new_partitions(table: &Upgraded) -> Result<Vec<Partition>, Failure> {
    spi::fetch(
        "select n.nspname as schema, c.relname as name, c.relowner::pg_catalog.int8 as owner, g.oid::pg_catalog.int8 as guard \
         from pg_catalog.pg_partition_tree($1::pg_catalog.oid::pg_catalog.regclass) t join pg_catalog.pg_class c on c.oid = t.relid \
         join pg_catalog.pg_namespace n on n.oid = c.relnamespace left join pg_catalog.pg_trigger g on g.tgrelid = c.oid and g.tgname = $2 \
         where t.isleaf and c.relkind <> 'p' \
           and (g.oid is null or g.oid <> all (coalesce((select u.partitions from migrator.upgraded u where u.relation = $1), '{}'))) order by 1, 2",
        &[pg_sys::Oid::from(table.relation.oid).into(), TRIGGER.into()],
    )
}

/// So many rows of a partition are looked at; of one that has more, every row is looked at by batches.
const ROWS: u32 = 50_000;

/// Those of them of whose rows one is found that is so, or that have too many to tell. Each as its own owner.
fn with_rows(partitions: &[Partition], is_so: &str) -> Result<Vec<String>, Failure> {
    let mut found = vec![];
    for partition in partitions {
        let sql = format!(
            "select count(*) > {ROWS} or coalesce(pg_catalog.bool_or({is_so}), false) as found from (select l.* from only {} l limit {}) l",
            partition.name,
            ROWS + 1
        );
        let one: Found = role::as_owner(pg_sys::Oid::from(partition.owner), &[], || spi::fetch_one(&sql, &[]))?;
        if one.found {
            found.push(partition.name.plain());
        }
    }
    Ok(found)
}
