//! What is refused before anything is made, each with the way out.

use super::Request;
use crate::catalog::lock::{self, Mode, Wanted};
use crate::catalog::relation::Relation;
use crate::catalog::{actions, role, spi};
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{literal, plain};
use pgrx::pg_sys;
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Facts {
    owned: bool,
    owner: String,
    is_partition: bool,
    inherits: bool,
    has_children: bool,
    is_typed: bool,
    is_heap: bool,
    is_temporary: bool,
    is_ours: bool,
    forces_row_security: bool,
    extension: Option<String>,
    system: bool,
}

/// The table, if a change of it can begin and the caller may begin it.
pub fn table(request: &Request) -> Result<Relation, Failure> {
    let live = Relation::get(request.relation)?;
    let facts = facts(request, &live)?;
    let name = live.name.plain();
    if !facts.owned {
        return Err(Failure::new(code::INSUFFICIENT_PRIVILEGE, format!("must be owner of table {name}"))
            .hint(format!("Call it as {} or as a member of that role.", plain(&facts.owner))));
    }
    let not = |what: &str| Failure::new(code::WRONG_OBJECT_TYPE, format!("{name} {what}"));
    match live.kind.as_str() {
        "r" => {}
        "p" => {
            return Err(Failure::new(code::NOT_SUPPORTED, format!("{name} is a partitioned table"))
                .hint("Change its partitions' common shape in place with call migrator.alter_table(…)."));
        }
        "v" | "m" => return Err(not("is a view").hint("Replace it with create or replace view.")),
        "f" => return Err(not("is a foreign table").hint("Change it on the server that holds its rows.")),
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
    if facts.is_temporary {
        return Err(not("is a temporary table").hint("No other session sees it: use ALTER TABLE."));
    }
    let unsupported = |what: &str| Failure::new(code::NOT_SUPPORTED, format!("{name} {what}"));
    if facts.is_partition {
        return Err(unsupported("is a partition").hint("Its columns are its parent's: change the parent."));
    }
    if facts.inherits || facts.has_children {
        return Err(unsupported("takes part in table inheritance")
            .detail("Rows of a plain inheritance tree cannot be told apart from the outside while it is being copied.")
            .hint(format!(
                "Take it out of the tree first: alter table … no inherit …; or use ALTER TABLE on {name}."
            )));
    }
    if facts.is_typed {
        return Err(
            unsupported("is a typed table").hint(format!("Cut the tie first: alter table {} not of;", live.name))
        );
    }
    if !facts.is_heap {
        return Err(unsupported("has an access method other than heap").detail("The copy reads ranges of heap blocks."));
    }
    if facts.forces_row_security {
        let owner = plain(&facts.owner);
        return Err(unsupported(&format!("forces row-level security on its owner {owner}, who would copy only some of its rows")).hint(format!(
            "alter table {} no force row level security; or alter role {owner} bypassrls; until the change is finished.",
            live.name
        )));
    }
    no_open_change(&live)?;
    Ok(live)
}

fn facts(request: &Request, live: &Relation) -> Result<Facts, Failure> {
    spi::fetch_one(
        "select pg_catalog.pg_has_role($2, c.relowner, 'usage') as owned, pg_catalog.pg_get_userbyid(c.relowner) as owner, c.relispartition as is_partition, \
           exists (select from pg_catalog.pg_inherits i where i.inhrelid = c.oid) as inherits, \
           exists (select from pg_catalog.pg_inherits i where i.inhparent = c.oid) as has_children, c.reloftype <> 0 as is_typed, \
           coalesce((select m.amhandler = 'pg_catalog.heap_tableam_handler'::pg_catalog.regproc from pg_catalog.pg_am m where m.oid = c.relam), false) as is_heap, \
           c.relpersistence = 't' as is_temporary, \
           n.nspname = 'migrator' or exists (select from migrator.change g where g.state not in ('finished', 'cancelled') and \
             n.nspname in (pg_catalog.concat('migrator_shadow_', g.id), pg_catalog.concat('migrator_backup_', g.id))) as is_ours, \
           c.relrowsecurity and c.relforcerowsecurity and not coalesce(r.rolsuper or r.rolbypassrls, false) as forces_row_security, \
           (select e.extname from pg_catalog.pg_depend d join pg_catalog.pg_extension e on e.oid = d.refobjid \
             where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objid = c.oid and d.deptype = 'e' \
               and d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass) as extension, \
           n.nspname in ('pg_catalog', 'information_schema', 'pg_toast') as system \
         from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace left join pg_catalog.pg_roles r on r.oid = c.relowner \
         where c.oid = $1",
        &[pg_sys::Oid::from(live.oid).into(), request.session.role.into()],
    )
}

/// The table that the user made to be the shadow, if it can be one. It moves into the shadow's schema, so it is
/// locked like for any ALTER TABLE until the end of the transaction.
pub fn made_by_user(request: &Request, live: &Relation, oid: u32) -> Result<Relation, Failure> {
    #[derive(Deserialize)]
    struct Facts {
        has_dependants: bool,
        other_owner: Option<String>,
        is_plain: bool,
    }
    #[derive(Deserialize)]
    struct Rows {
        found: bool,
    }
    let made = Relation::get(oid)?;
    let name = made.name.plain();
    let unfit = |what: &str| {
        Failure::new(code::INVALID_PARAMETER, format!("{name} cannot be the shadow of {}: {what}", live.name.plain()))
    };
    if made.oid == live.oid {
        return Err(unfit("it is that table itself"));
    }
    if !matches!(made.kind.as_str(), "r" | "p") {
        return Err(unfit("it is not a table").hint("Make an ordinary or a partitioned table with the new shape."));
    }
    lock::relation(Wanted { relation: oid, mode: Mode::AccessExclusive });
    no_open_change(&made)?;
    let facts: Facts = spi::fetch_one(
        "select exists (select from pg_catalog.pg_depend d where d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refobjid = c.oid \
             and d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass) as has_dependants, \
           (select pg_catalog.pg_get_userbyid(t.relowner) from pg_catalog.pg_class t where t.relowner <> l.relowner and \
             t.oid in (select c.oid union select p.relid from pg_catalog.pg_partition_tree(c.oid) p) limit 1) as other_owner, \
           c.relpersistence <> 't' and not c.relispartition and c.reloftype = 0 and n.nspname not in ('pg_catalog', 'information_schema', 'migrator') \
             and not exists (select from pg_catalog.pg_inherits i where i.inhrelid = c.oid or i.inhparent = c.oid and c.relkind <> 'p') as is_plain \
         from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace, pg_catalog.pg_class l where c.oid = $1 and l.oid = $2",
        &[pg_sys::Oid::from(oid).into(), pg_sys::Oid::from(live.oid).into()],
    )?;
    if let Some(owner) = facts.other_owner {
        return Err(unfit(&format!("it, or a partition of it, belongs to {}", plain(&owner)))
            .hint("Both tables need one owner: alter table … owner to …;"));
    }
    if !facts.is_plain {
        return Err(unfit("it is temporary, a partition, a typed table, or takes part in table inheritance"));
    }
    if facts.has_dependants {
        return Err(
            unfit("a view or rule stands on it").hint("Drop it, and create it again on the table after the swap.")
        );
    }
    let rows: Rows = role::as_owner(live.owner(), &request.session.settings, || {
        spi::fetch_one(&format!("select exists (select from {}) as found", made.name), &[])
    })?;
    if rows.found {
        return Err(unfit("it is not empty").hint(format!(
            "Its rows are to come from {}: truncate {};",
            live.name.plain(),
            made.name
        )));
    }
    Ok(made)
}

#[derive(Deserialize)]
struct Open {
    id: i64,
    state: String,
}

/// Refuses a table that is part of a change which is not over.
pub fn no_open_change(live: &Relation) -> Result<(), Failure> {
    let open: Option<Open> = spi::fetch_optional(
        "select c.id, c.state from migrator.change c where c.state not in ('finished', 'cancelled') and $1 in (c.live, c.shadow) order by c.id",
        &[pg_sys::Oid::from(live.oid).into()],
    )?;
    let Some(open) = open else { return Ok(()) };
    let table = literal(&live.name.plain());
    Err(Failure::new(
        code::IN_USE,
        format!("{} is already part of change {}, which is {}", live.name.plain(), open.id, open.state),
    )
    .hint(if open.state == "swapped" {
        format!(
            "End it first: select migrator.finish({table}); or take it back: select * from migrator.rollback({table});"
        )
    } else {
        format!("Go on with it: call migrator.prepare({table}); or give it up: select migrator.cancel({table});")
    }))
}

/// Refuses arguments that cannot mean anything.
pub fn wish(request: &Request, live: &Relation) -> Result<(), Failure> {
    let invalid = |message: String| Failure::new(code::INVALID_PARAMETER, message);
    if !matches!(request.on_ready.as_str(), "wait" | "swap") {
        return Err(invalid(format!("on_ready is {}, which is neither wait nor swap", literal(&request.on_ready))));
    }
    for (argument, given) in [("transform", &request.transform), ("reverse", &request.reverse)] {
        let sound = given.as_object().is_some_and(|object| object.values().all(Value::is_string));
        if !sound {
            return Err(invalid(format!("{argument} is not an object of column names and expressions"))
                .hint(format!("For instance: {argument} => '{{\"note\": \"upper(title)\"}}'.")));
        }
    }
    if request.actions.is_some() && request.shadow.is_some() {
        return Err(invalid(format!("both actions and shadow are given for {}", live.name.plain()))
            .hint("Either name a table that has the new shape, or the actions that lead to it."));
    }
    Ok(())
}

/// Refuses actions on what the shadow cannot have.
pub fn parts(live: &Relation, parts: &[actions::Part]) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct ForeignKey {
        name: String,
    }
    let keys: Vec<ForeignKey> = spi::fetch(
        "select n.conname as name from pg_catalog.pg_constraint n where n.conrelid = $1 and n.contype = 'f'",
        &[pg_sys::Oid::from(live.oid).into()],
    )?;
    for (at, part) in parts.iter().enumerate() {
        if let Some(key) = part.dropped.iter().find(|name| keys.iter().any(|key| key.name == **name)) {
            return Err(actions::drop_foreign_key(&live.name, key));
        }
        if let (true, Some((column, _))) = (at > 0, part.using.first()) {
            return Err(Failure::new(
                code::NOT_SUPPORTED,
                format!("USING of column {} stands behind a semicolon", plain(column)),
            )
            .detail("It would read columns that an earlier part has changed.")
            .hint("Put it into the first part, or give the expression over the old row as transform."));
        }
    }
    Ok(())
}
