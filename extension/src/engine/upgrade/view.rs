//! The view on which readers see every row with its upgrades applied, before they are.
//!
//! Columns that no upgrade writes are the table's own: their indexes serve, and where PostgreSQL allows it they can be written
//! through the view. The others are the table's own for rows that are done, and made by `migrator.current` for those that are not.

use super::table::Upgraded;
use crate::catalog::attempt::attempt;
use crate::catalog::definition;
use crate::catalog::lock::{Mode, Wanted};
use crate::catalog::relation::Relation;
use crate::catalog::{role, spi};
use crate::raise;
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Ident, Name, plain};
use migrator_core::upgrade::{Definition, all_marked};
use pgrx::pg_sys;
use serde::Deserialize;

/// The column that lists what a row has not got.
const PENDING: &str = "pending_upgrades";
/// Whoever reads it needs the rights that he needs for the table.
const OPTIONS: &str = if cfg!(feature = "pg14") { "" } else { " with (security_invoker = true)" };
/// NAMEDATALEN - 1: what is longer would be cut off.
const LONGEST: usize = 63;

/// The lock that `make` needs beside the table's: readers of the view hold it before they come to the table, so it is the first.
/// None where the view stays as it is, or is not there yet.
pub fn lock(
    upgraded: &Upgraded,
    table: &Relation,
    definition: &Definition,
    wanted: Option<&str>,
) -> Result<Option<Wanted>, Failure> {
    let name = name(Some(upgraded), table, wanted)?;
    if is_taken(&name, table)? {
        return Ok(None);
    }
    let Some(existing) = existing(&name)? else { return Ok(None) };
    let stays = stays(upgraded, table, &name, &select(table, definition, Some(&existing))?)?;
    let relation = oid(&name)?;
    Ok((!stays).then_some(Wanted { relation, mode: Mode::AccessExclusive }))
}

/// The query that the view is made of, and what the server made of that: by then its columns are numbers.
fn made_of(name: &Name, select: &str) -> Result<String, Failure> {
    #[derive(Deserialize)]
    struct Text {
        text: String,
    }
    let text: Text = spi::fetch_one(
        "select coalesce(pg_catalog.pg_get_viewdef($1::pg_catalog.oid), '') as text",
        &[pg_sys::Oid::from(oid(name)?).into()],
    )?;
    Ok(format!("{select}\n{}", text.text))
}

/// Whether the view is still what this query makes, and the table's owner's.
fn stays(upgraded: &Upgraded, table: &Relation, name: &Name, select: &str) -> Result<bool, Failure> {
    let same = upgraded.state.view_query.as_deref() == Some(&*made_of(name, select)?);
    Ok(same && Relation::get(oid(name)?)?.owner == table.owner)
}

/// The view as it is, locked against everybody.
pub fn of(upgraded: &Upgraded) -> Result<Option<Wanted>, Failure> {
    let Some(name) = ours(upgraded)? else { return Ok(None) };
    Ok(Some(Wanted { relation: oid(&name)?, mode: Mode::AccessExclusive }))
}

/// The name under which the view was made.
fn recorded(upgraded: &Upgraded) -> Option<Name> {
    let (schema, name) = (upgraded.state.view_schema.clone()?, upgraded.state.view_name.clone()?);
    Some(Name { schema, name })
}

/// The table's view, if it is there: what has its name by now may be another's.
pub fn ours(upgraded: &Upgraded) -> Result<Option<Name>, Failure> {
    let Some(name) = recorded(upgraded) else { return Ok(None) };
    Ok(is_of(oid(&name)?, upgraded.relation.oid)?.then_some(name))
}

/// Whether there is no view, and its name is free.
pub fn is_gone(upgraded: &Upgraded) -> Result<bool, Failure> {
    let Some(name) = recorded(upgraded) else { return Ok(true) };
    Ok(Relation::find(oid(&name)?)?.is_none())
}

/// Whether a relation is a view over the table that shows what rows lack.
fn is_of(view: u32, table: u32) -> Result<bool, Failure> {
    #[derive(Deserialize)]
    struct Found {
        found: bool,
    }
    let found: Found = spi::fetch_one(
        "select exists (select from pg_catalog.pg_class c join pg_catalog.pg_rewrite r on r.ev_class = c.oid \
           join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and d.objid = r.oid \
             and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refobjid = $2 \
           join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attname = $3 and not a.attisdropped \
         where c.oid = $1 and c.relkind = 'v') as found",
        &[pg_sys::Oid::from(view).into(), pg_sys::Oid::from(table).into(), PENDING.into()],
    )?;
    Ok(found.found)
}

/// Whether nothing is lost when the view is dropped and made anew: what somebody added to it is not known here.
pub fn stands_alone(upgraded: &Upgraded) -> Result<bool, Failure> {
    #[derive(Deserialize)]
    struct Found {
        alone: bool,
    }
    let Some(name) = ours(upgraded)? else { return Ok(true) };
    let found: Found = spi::fetch_one(
        "select not exists (select from pg_catalog.pg_trigger t where t.tgrelid = $1) \
           and not exists (select from pg_catalog.pg_attrdef d where d.adrelid = $1) \
           and not exists (select from pg_catalog.pg_description d where d.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objoid = $1) \
           and not exists (select from pg_catalog.pg_seclabel l where l.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass and l.objoid = $1) \
           and not exists (select from pg_catalog.pg_attribute a where a.attrelid = $1 and a.attacl is not null) \
           and not exists (select from pg_catalog.pg_rewrite r where r.ev_class = $1 and r.rulename <> '_RETURN') \
           and not exists (select from pg_catalog.pg_class c, pg_catalog.aclexplode(c.relacl) x where c.oid = $1 and x.grantee <> c.relowner \
             and (x.is_grantable or x.privilege_type not in ('SELECT', 'INSERT', 'UPDATE', 'DELETE'))) \
           and exists (select from pg_catalog.pg_class c where c.oid = $1 and coalesce(c.reloptions, '{}') <@ array['security_invoker=true']) as alone",
        &[pg_sys::Oid::from(oid(&name)?).into()],
    )?;
    Ok(found.alone)
}

/// Makes the view, or makes it anew. `wanted` is the name that somebody gave.
pub fn make(
    upgraded: &Upgraded,
    table: &Relation,
    definition: &Definition,
    wanted: Option<&str>,
) -> Result<(), Failure> {
    let name = name(Some(upgraded), table, wanted)?;
    if is_taken(&name, table)? {
        raise::warn(
            Failure::new("42P07", format!("{} is not the view of table {} any more", name.plain(), table.name.plain()))
                .detail("Somebody has made another relation of that name, which stays as it is. Upgrades go on, and no view shows rows with them.")
                .hint("Rename or drop it, and call migrator.resume_upgrades(…): the view is made again then."),
        );
        return Ok(());
    }
    let existing = existing(&name)?;
    let select = select(table, definition, existing.as_deref())?;
    if existing.is_some() && stays(upgraded, table, &name, &select)? {
        return Ok(());
    }
    let options = OPTIONS;
    let replace = format!("create or replace view {name}{options} as {select}");
    let made = attempt(|| spi::execute(&replace, &[]));
    match made {
        Ok(_) => {}
        // A column of the table has gone or changed its type: the view cannot stay the same object.
        Err(failure) if failure.code == "42P16" => {
            let before = Relation::get(oid(&name)?)?;
            let grants = grants(&before)?;
            spi::execute(&format!("drop view {name}"), &[]).map_err(|failure| held(&name, failure))?;
            spi::execute(&format!("create view {name}{options} as {}", self::select(table, definition, None)?), &[])?;
            spi::execute(&format!("alter view {name} owner to {}", role::name(pg_sys::Oid::from(before.owner))?), &[])?;
            give(&grants, &name)?;
        }
        Err(failure) => return Err(failure),
    }
    if existing.is_none() || Relation::get(oid(&name)?)?.owner != table.owner {
        spi::execute(&format!("alter view {name} owner to {}", role::name(table.owner())?), &[])?;
        grant(table, &name)?;
    }
    spi::execute(
        "update migrator.upgraded set view_schema = $2, view_name = $3, view_query = $4 where relation = $1",
        &[
            pg_sys::Oid::from(table.oid).into(),
            name.schema.as_str().into(),
            name.name.as_str().into(),
            made_of(&name, &select)?.into(),
        ],
    )?;
    Ok(())
}

/// The view's name: the one that it has, or a new one, which must be free.
pub fn name(upgraded: Option<&Upgraded>, table: &Relation, wanted: Option<&str>) -> Result<Name, Failure> {
    let Some(name) = upgraded.and_then(recorded) else { return new_name(table, wanted) };
    if wanted.is_none_or(|wanted| name.name.as_str() == wanted) {
        return Ok(name);
    }
    if is_taken(&name, table)? {
        return new_name(table, wanted);
    }
    Err(Failure::new(
        code::DUPLICATE_OBJECT,
        format!("table {} has its view already: {}", table.name.plain(), name.plain()),
    )
    .detail("Nothing was changed.")
    .hint("Leave view_name out."))
}

/// Takes the view out of the way of the column; `make` puts it back, and `give_back` who might use it. What depends on it keeps the
/// column from being dropped.
pub fn without_column(upgraded: &Upgraded) -> Result<Vec<Grant>, Failure> {
    let Some(name) = ours(upgraded)? else { return Ok(vec![]) };
    let grants = grants(&Relation::get(oid(&name)?)?)?;
    spi::execute(&format!("drop view {name}"), &[])?;
    Ok(grants)
}

/// What others might do with the view before it was made anew.
pub fn give_back(upgraded: &Upgraded, grants: &[Grant]) -> Result<(), Failure> {
    match ours(&upgraded.again()?)? {
        Some(name) => give(grants, &name),
        None => Ok(()),
    }
}

fn held(name: &Name, failure: Failure) -> Failure {
    let more = failure.detail.unwrap_or_default();
    Failure::new(failure.code, format!("view {} has to be made anew, and something depends on it", name.plain()))
        .detail(format!("{more} Nothing was changed."))
        .hint("Drop what depends on it, and make it again afterwards.")
}

fn new_name(table: &Relation, wanted: Option<&str>) -> Result<Name, Failure> {
    let schema = table.name.schema.clone();
    let name = match wanted {
        Some(wanted) => wanted.to_owned(),
        None => format!("{}__current", table.name.name.as_str()),
    };
    if name.is_empty() || name.len() > LONGEST {
        return Err(Failure::new(
            "42622",
            format!("the view's name {} has {} bytes, and may have 1 to {LONGEST}", plain(&name), name.len()),
        )
        .detail("Nothing was changed.")
        .hint("Give it one: view_name => 'short_name'"));
    }
    let name = Name { schema, name: Ident::new(name) };
    if Relation::find(oid(&name)?)?.is_some() {
        return Err(Failure::new("42P07", format!("a relation {} exists already", name.plain()))
            .detail("Rows would be shown as they will be under that name. Nothing was changed.")
            .hint("Give the view another name: view_name => 'other_name'"));
    }
    Ok(name)
}

/// The columns of the view as it is; None where it is not there.
fn existing(name: &Name) -> Result<Option<Vec<Ident>>, Failure> {
    let oid = oid(name)?;
    if Relation::find(oid)?.is_none() {
        return Ok(None);
    }
    Ok(Some(definition::columns(oid)?.into_iter().map(|column| column.name).collect()))
}

/// Whether somebody else has made a relation of the view's name since.
fn is_taken(name: &Name, table: &Relation) -> Result<bool, Failure> {
    let oid = oid(name)?;
    Ok(Relation::find(oid)?.is_some() && !is_of(oid, table.oid)?)
}

fn oid(name: &Name) -> Result<u32, Failure> {
    #[derive(Deserialize)]
    struct Found {
        oid: Option<u32>,
    }
    let found: Found = spi::fetch_one(
        "select (select c.oid::pg_catalog.int8 from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
         where n.nspname = $1 and c.relname = $2) as oid",
        &[name.schema.as_str().into(), name.name.as_str().into()],
    )?;
    Ok(found.oid.unwrap_or(0))
}

/// The view's query. A view that is replaced keeps its columns in their order; new ones come behind.
fn select(table: &Relation, definition: &Definition, before: Option<&[Ident]>) -> Result<String, Failure> {
    let pending = Ident::from(PENDING);
    let mut names: Vec<Ident> = definition::columns(table.oid)?.into_iter().map(|column| column.name).collect();
    if names.contains(&pending) {
        return Err(Failure::new("42701", format!("table {} has a column {PENDING}", table.name.plain()))
            .detail("The view shows there what a row has not got. Nothing was changed.")
            .hint(format!("Rename it: alter table {} rename column {pending} to …;", table.name)));
    }
    names.push(pending.clone());
    if let Some(before) = before {
        let place = |name: &Ident| before.iter().position(|column| column == name).unwrap_or(usize::MAX);
        names.sort_by_key(place);
    }
    let done = all_marked(&definition.upgrades);
    let written = |name: &Ident| {
        definition
            .upgrades
            .iter()
            .any(|upgrade| !upgrade.is_application() && upgrade.outputs().any(|output| output == name))
    };
    let columns: Vec<String> = names
        .iter()
        .map(|name| match name {
            name if *name == pending && definition.upgrades.is_empty() => {
                format!("'{{}}'::pg_catalog.text[] as {name}")
            }
            name if *name == pending => {
                format!("case when {done} then '{{}}'::pg_catalog.text[] else migrator.pending(migrator.current(l)) end as {name}")
            }
            name if written(name) => {
                format!("case when {done} then l.{name} else (migrator.current(l)).{name} end as {name}")
            }
            name => format!("l.{name}"),
        })
        .collect();
    Ok(format!("select {} from {} l", columns.join(", "), table.name))
}

/// A right to a view.
#[derive(Deserialize)]
pub struct Grant {
    grantee: u32,
    privilege: String,
}

fn grants(relation: &Relation) -> Result<Vec<Grant>, Failure> {
    spi::fetch(
        "select x.grantee::pg_catalog.int8 as grantee, x.privilege_type as privilege from pg_catalog.pg_class c, pg_catalog.aclexplode(c.relacl) x \
         where c.oid = $1 and x.grantee <> c.relowner and x.privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE') order by 1, 2",
        &[pg_sys::Oid::from(relation.oid).into()],
    )
}

fn give(grants: &[Grant], view: &Name) -> Result<(), Failure> {
    for Grant { grantee, privilege } in grants {
        let to = if *grantee == 0 { "public".to_owned() } else { role::name(pg_sys::Oid::from(*grantee))?.to_string() };
        spi::execute(&format!("grant {privilege} on {view} to {to}"), &[])?;
    }
    Ok(())
}

/// Whoever may read or write the table may do so through the view.
fn grant(table: &Relation, view: &Name) -> Result<(), Failure> {
    give(&grants(table)?, view)
}
