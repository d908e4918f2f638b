//! Triggers: the front's own are created on the table that takes its place and disabled on the one that leaves.
//!
//! A trigger on rear or backup would fire for the rows that are brought into step, so none may be enabled there.
//! Capture's and the fence's triggers are no part of this: whoever switches them on switches them over.

use super::{Gathering, rights};
use crate::catalog::{role, spi};
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Ident, literal, plain};
use pgrx::pg_sys;
use serde::Deserialize;

#[derive(Deserialize)]
struct Trigger {
    oid: u32,
    name: Ident,
    /// CREATE TRIGGER …, with the table's present name.
    definition: String,
    /// Whether it has a WHEN clause.
    conditional: bool,
    /// Whether the table's owner may call its function.
    executable: bool,
    /// Whether that owner has the privilege TRIGGER, which owners can take from themselves.
    may_trigger: bool,
    /// O, D, R or A
    enabled: char,
    comment: Option<String>,
    /// Of the constraint behind a constraint trigger.
    constraint_comment: Option<String>,
    /// DEPENDS ON EXTENSION
    extensions: Vec<Ident>,
}

fn read(relation: u32) -> Result<Vec<Trigger>, Failure> {
    spi::fetch(
        "select t.oid::pg_catalog.int8 as oid, t.tgname as name, pg_catalog.pg_get_triggerdef(t.oid, false) as definition, t.tgqual is not null as conditional, \
             pg_catalog.has_function_privilege((select c.relowner from pg_catalog.pg_class c where c.oid = t.tgrelid), t.tgfoid, 'EXECUTE') as executable, \
             pg_catalog.has_table_privilege((select c.relowner from pg_catalog.pg_class c where c.oid = t.tgrelid), t.tgrelid, 'TRIGGER') as may_trigger, t.tgenabled as enabled, \
             pg_catalog.obj_description(t.oid, 'pg_trigger') as comment, \
             (select pg_catalog.obj_description(k.oid, 'pg_constraint') from pg_catalog.pg_constraint k where k.oid = t.tgconstraint) as constraint_comment, \
             coalesce((select pg_catalog.jsonb_agg(e.extname order by e.extname) from pg_catalog.pg_depend d join pg_catalog.pg_extension e on e.oid = d.refobjid \
                       where d.classid = 'pg_catalog.pg_trigger'::pg_catalog.regclass and d.objid = t.oid and d.deptype = 'x' \
                         and d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass), '[]') as extensions \
         from pg_catalog.pg_trigger t join pg_catalog.pg_proc p on p.oid = t.tgfoid join pg_catalog.pg_namespace n on n.oid = p.pronamespace \
         where t.tgrelid = $1 and not t.tgisinternal and not (n.nspname = 'migrator' and t.tgname like 'migrator\\_%') \
         order by t.oid",
        &[pg_sys::Oid::from(relation).into()],
    )
}

pub(super) fn gather(g: &mut Gathering<'_>) -> Result<(), Failure> {
    let (front, rear) = (g.swap.front, g.swap.rear);
    let wanted = read(front.oid)?;
    // What the rear has from the last time is replaced: it may have been changed or dropped on the front since.
    for old in read(rear.oid)? {
        if g.again() || wanted.iter().any(|trigger| trigger.name == old.name) {
            g.before_lock(format!("drop trigger {} on {}", old.name, rear.name));
        }
    }
    let enabled: Vec<String> =
        wanted.iter().filter(|t| t.enabled != 'D').map(|t| format!("disable trigger {}", t.name)).collect();
    if !enabled.is_empty() {
        g.before_move(format!("alter table {} {}", front.name, enabled.join(", ")));
    }
    let public = g.swap.public_name();
    let mut states = vec![];
    for trigger in &wanted {
        create(g, trigger)?;
        let name = &trigger.name;
        match trigger.enabled {
            'D' => states.push(format!("disable trigger {name}")),
            'R' => states.push(format!("enable replica trigger {name}")),
            'A' => states.push(format!("enable always trigger {name}")),
            _ => {}
        }
        if let Some(comment) = &trigger.comment {
            g.after_move(format!("comment on trigger {name} on {public} is {}", literal(comment)));
        }
        if let Some(comment) = &trigger.constraint_comment {
            g.after_move(format!("comment on constraint {name} on {public} is {}", literal(comment)));
        }
        for extension in &trigger.extensions {
            g.after_move(format!("alter trigger {name} on {public} depends on extension {extension}"));
        }
    }
    if !states.is_empty() {
        g.after_move(format!("alter table {public} {}", states.join(", ")));
    }
    Ok(())
}

/// A WHEN clause is parsed as the table's owner. Without one there is nothing to evaluate, and the owner need not be
/// allowed to call the function, which PostgreSQL asks for only when a trigger is created.
fn create(g: &mut Gathering<'_>, trigger: &Trigger) -> Result<(), Failure> {
    if !trigger.conditional {
        g.after_move(trigger.definition.as_str());
        return Ok(());
    }
    let front = g.swap.front;
    if !trigger.executable {
        return Err(Failure::new(
            code::DEPENDENTS,
            format!(
                "cannot change table {}: its owner may not execute the function of trigger {}",
                front.name.plain(),
                plain(trigger.name.as_str())
            ),
        )
        .detail("A trigger with a WHEN clause is created again with the rights of the table's owner.")
        .hint("Grant EXECUTE on the function to the table's owner, or drop the trigger before."));
    }
    let loans = rights::lacking(front.owner, ("pg_trigger", trigger.oid), &[&front.name.schema], &[])?;
    let create = rights::lent(trigger.definition.clone(), front.owner, &loans);
    if trigger.may_trigger {
        g.out.after_move.extend(create);
        return Ok(());
    }
    let owner = role::name(front.owner())?;
    g.after_move(format!("grant trigger on table {} to {owner}", front.name));
    g.out.after_move.extend(create);
    g.after_move(format!("revoke trigger on table {} from {owner}", front.name));
    Ok(())
}
