//! What `alter_table` asks of a table before it looks at the actions. Less than a shadow needs: partitioned tables,
//! partitions and children can be changed in place.

use crate::catalog::commands::Part;
use crate::catalog::relation::Relation;
use crate::catalog::spi;
use crate::engine::shape::Request;
use migrator_core::alter::Kind;
use migrator_core::failure::{Failure, code};
use migrator_core::ident::plain;
use pgrx::pg_sys;
use serde::Deserialize;

/// The table, if the caller may change it and ALTER TABLE has a meaning for it.
pub fn table(request: &Request) -> Result<Relation, Failure> {
    #[derive(Deserialize)]
    struct Facts {
        owned: bool,
        owner: String,
        is_ours: bool,
        extension: Option<String>,
        system: bool,
        under_way: Option<String>,
    }
    let live = Relation::get(request.relation)?;
    let facts: Facts = spi::fetch_one(
        "select pg_catalog.pg_has_role($2, c.relowner, 'usage') as owned, pg_catalog.pg_get_userbyid(c.relowner) as owner, \
           n.nspname = 'migrator' or exists (select from migrator.change g where g.state not in ('finished', 'cancelled') and \
             n.nspname in (pg_catalog.concat('migrator_shadow_', g.id), pg_catalog.concat('migrator_backup_', g.id))) as is_ours, \
           (select e.extname from pg_catalog.pg_depend d join pg_catalog.pg_extension e on e.oid = d.refobjid \
             where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objid = c.oid and d.deptype = 'e' \
               and d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass) as extension, \
           n.nspname in ('pg_catalog', 'information_schema', 'pg_toast') as system, \
           (select pg_catalog.format('change %s of its part %s', g.id, t.relid::pg_catalog.regclass) from pg_catalog.pg_partition_tree(c.oid) t \
             join migrator.change g on t.relid::pg_catalog.oid in (g.live, g.shadow) and g.state not in ('finished', 'cancelled') \
            where t.relid::pg_catalog.oid <> c.oid limit 1) as under_way \
         from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.oid = $1",
        &[pg_sys::Oid::from(live.oid).into(), request.session.role.into()],
    )?;
    let name = live.name.plain();
    if !facts.owned {
        return Err(Failure::new(code::INSUFFICIENT_PRIVILEGE, format!("must be owner of table {name}"))
            .hint(format!("Call it as {} or as a member of that role.", plain(&facts.owner))));
    }
    let not = |what: &str| Failure::new(code::WRONG_OBJECT_TYPE, format!("{name} {what}"));
    match live.kind.as_str() {
        "r" | "p" => {}
        "v" | "m" => return Err(not("is a view").hint("Replace it with create or replace view.")),
        "f" => return Err(not("is a foreign table").hint("It holds no rows here: use ALTER FOREIGN TABLE.")),
        _ => return Err(not("is not a table").hint("Name the table that the application uses.")),
    }
    if facts.system {
        return Err(not("is a system catalog")
            .hint("Only PostgreSQL changes its shape. Name the table that the application uses."));
    }
    if facts.is_ours {
        return Err(not("belongs to migrator itself")
            .hint("Name the table that the application uses; select * from migrator.status shows it."));
    }
    if let Some(extension) = facts.extension {
        return Err(not(&format!("belongs to extension {}", plain(&extension)))
            .hint("Its shape is the extension's business: alter extension … update."));
    }
    if live.persistence == "t" {
        return Err(not("is a temporary table").hint("No other session sees it: use ALTER TABLE."));
    }
    if let Some(under_way) = facts.under_way {
        return Err(Failure::new(code::IN_USE, format!("{name} cannot be changed while {under_way} is under way"))
            .hint("Finish or cancel that change first."));
    }
    if request.actions.as_deref().is_none_or(|text| text.trim().is_empty()) {
        return Err(Failure::new(code::INVALID_PARAMETER, format!("no actions are given for {name}"))
            .hint("Write what follows the table's name in ALTER TABLE, for instance: alter column id type bigint, add column note text."));
    }
    Ok(live)
}

/// How much there is to read.
#[derive(Deserialize)]
pub struct Size {
    /// Table, TOAST and indexes.
    pub bytes: i64,
    /// Not one block.
    pub is_empty: bool,
}

/// The size of a table and of all its parts.
pub fn size(live: &Relation) -> Result<Size, Failure> {
    spi::fetch_one(
        "with recursive tree(relation) as ( \
           select $1::pg_catalog.oid union select i.inhrelid from tree t join pg_catalog.pg_inherits i on i.inhparent = t.relation) \
         select pg_catalog.to_jsonb(q) from (select coalesce(sum(pg_catalog.pg_total_relation_size(t.relation)), 0)::pg_catalog.int8 as bytes, \
           coalesce(sum(pg_catalog.pg_relation_size(t.relation)), 0) = 0 as is_empty from tree t) q",
        &[pg_sys::Oid::from(live.oid).into()],
    )
}

/// A foreign key is no part of a shape, and a clone has none: actions on one are catalogue work.
pub fn foreign_keys(live: &Relation, mut parts: Vec<Part>) -> Result<Vec<Part>, Failure> {
    #[derive(Deserialize)]
    struct Key {
        name: String,
    }
    let keys: Vec<Key> = spi::fetch(
        "select n.conname as name from pg_catalog.pg_constraint n where n.conrelid = $1 and n.contype = 'f'",
        &[pg_sys::Oid::from(live.oid).into()],
    )?;
    for piece in parts.iter_mut().flat_map(|part| part.pieces.iter_mut()) {
        if let Kind::Constraint(name) = &piece.kind
            && keys.iter().any(|key| key.name == *name)
        {
            piece.kind = Kind::Catalog;
            piece.is_shape = false;
        }
    }
    Ok(parts)
}
