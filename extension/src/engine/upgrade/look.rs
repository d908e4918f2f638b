//! Looks at the rows here and now, where what an earlier look found does not say enough: rows may have come that no guard saw,
//! or that it had to leave as they were.

use super::complete;
use super::install;
use super::table::{self, Registered, Upgraded};
use crate::catalog::relation::Relation;
use crate::catalog::{role, spi};
use crate::guard::Refusal;
use migrator_core::failure::Failure;
use migrator_core::ident::Name;
use migrator_core::upgrade::sweep::Table;
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

/// Whether an upgrade that was complete has lost that since, and why: for who takes it as a reason to throw something away.
pub fn is_stale(table: &Upgraded, upgrade: &Registered) -> Result<Option<String>, Failure> {
    if let Some(unguarded) = install::is_unguarded(table)? {
        return Ok(Some(unguarded.message));
    }
    if let Some(partition) =
        strange_partitions(table, |leaf| leaf.any(&upgrade.name, false))?.unwrap_or_default().first()
    {
        return Ok(Some(format!("rows of partition {partition}, which came later, lack it")));
    }
    // Rows come without it: of writers who do not know of it, and those that the guard has to leave to batches.
    let may_come =
        upgrade.kind == "application" || table::refusal(&table.relation, &upgrade.definition)? > Refusal::None;
    if may_come && ask(&table.relation, &of(&table.relation, &table.relation.name).any(&upgrade.name, false))? {
        return Ok(Some("rows lack it that were written since".to_owned()));
    }
    Ok(None)
}

/// Whether partitions have come with rows that lack something. Then nothing of the table is complete any more, and every row is
/// looked at again. Partitions that came without such rows, as new ones do, are known from then on. The caller holds the table's row.
///
/// A partition that was attached while a sweep was under way, at keys that it had passed or beyond its end, is found at the
/// end of it; one that is attached later, by the next step.
pub fn attached(table: &Upgraded) -> Result<bool, Failure> {
    let definition = table.definition()?;
    let Some(found) = strange_partitions(table, |leaf| leaf.any_lacking(&definition))? else { return Ok(false) };
    know_partitions(table)?;
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
        &format!("rows of {} lack something: every row is looked at again", found.join(", ")),
        json!({"partitions": found}),
    )?;
    Ok(true)
}

/// Those of the partitions that came since of whose rows this query finds one; None where none has come.
fn strange_partitions(table: &Upgraded, lacks: impl Fn(&Table<'_>) -> String) -> Result<Option<Vec<String>>, Failure> {
    if table.relation.kind != "p" {
        return Ok(None);
    }
    let new: Vec<Name> = spi::fetch(
        "select n.nspname as schema, c.relname as name from pg_catalog.pg_partition_tree($1::pg_catalog.oid::pg_catalog.regclass) t \
         join pg_catalog.pg_class c on c.oid = t.relid join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
         where t.isleaf and c.relkind <> 'p' and c.oid <> all (coalesce((select u.partitions from migrator.upgraded u where u.relation = $1), '{}')) order by 1, 2",
        &[pg_sys::Oid::from(table.relation.oid).into()],
    )?;
    if new.is_empty() {
        return Ok(None);
    }
    let mut found = vec![];
    for name in &new {
        if ask(&table.relation, &lacks(&of(&table.relation, name)))? {
            found.push(name.plain());
        }
    }
    Ok(Some(found))
}

/// Notes the partitions whose rows are looked at from now on.
pub fn know_partitions(table: &Upgraded) -> Result<(), Failure> {
    if table.relation.kind != "p" {
        return Ok(());
    }
    spi::execute(
        "update migrator.upgraded set partitions = array(select t.relid::pg_catalog.oid from pg_catalog.pg_partition_tree($1::pg_catalog.oid::pg_catalog.regclass) t \
           where t.isleaf order by 1) where relation = $1",
        &[pg_sys::Oid::from(table.relation.oid).into()],
    )
    .map(|_| ())
}
