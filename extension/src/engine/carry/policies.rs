//! Policies: created on the new front once it has its name, so that a policy that asks its own table asks the new one.
//! Those of the table that leaves stay where they are: the work on it runs as its owner, whom they do not concern.

use super::{Gathering, rights};
use crate::catalog::spi;
use migrator_core::failure::Failure;
use migrator_core::ident::{Ident, literal};
use pgrx::pg_sys;
use serde::Deserialize;

#[derive(Deserialize)]
struct Policy {
    oid: u32,
    name: Ident,
    command: String,
    permissive: bool,
    /// Empty for PUBLIC.
    roles: Vec<Ident>,
    using: Option<String>,
    check: Option<String>,
    comment: Option<String>,
}

fn read(relation: u32) -> Result<Vec<Policy>, Failure> {
    spi::fetch(
        "select p.oid::pg_catalog.int8 as oid, p.polname as name, p.polpermissive as permissive, \
             case p.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'all' end as command, \
             coalesce((select pg_catalog.jsonb_agg(r.rolname order by u.place) from pg_catalog.unnest(p.polroles) with ordinality u (role, place) \
                       join pg_catalog.pg_roles r on r.oid = u.role), '[]') as roles, \
             pg_catalog.pg_get_expr(p.polqual, p.polrelid) as \"using\", pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid) as \"check\", \
             pg_catalog.obj_description(p.oid, 'pg_policy') as comment \
         from pg_catalog.pg_policy p where p.polrelid = $1 order by p.oid",
        &[pg_sys::Oid::from(relation).into()],
    )
}

pub(super) fn gather(g: &mut Gathering<'_>) -> Result<(), Failure> {
    let rear = g.swap.rear;
    let wanted = read(g.swap.front.oid)?;
    for old in read(rear.oid)? {
        if g.again() || wanted.iter().any(|policy| policy.name == old.name) {
            g.before_lock(format!("drop policy {} on {}", old.name, rear.name));
        }
    }
    let public = g.swap.public_name();
    for policy in wanted {
        let name = &policy.name;
        let kind = if policy.permissive { "permissive" } else { "restrictive" };
        let roles = if policy.roles.is_empty() {
            "public".to_owned()
        } else {
            policy.roles.iter().map(Ident::to_string).collect::<Vec<_>>().join(", ")
        };
        let mut sql = format!("create policy {name} on {public} as {kind} for {} to {roles}", policy.command);
        if let Some(expression) = &policy.using {
            sql.push_str(&format!(" using ({expression})"));
        }
        if let Some(expression) = &policy.check {
            sql.push_str(&format!(" with check ({expression})"));
        }
        let role = g.swap.front.owner;
        let loans = rights::lacking(role, ("pg_policy", policy.oid), &[&public.schema], &[])?;
        g.out.after_move.extend(rights::lent(sql, role, &loans));
        if let Some(comment) = &policy.comment {
            g.after_move(format!("comment on policy {name} on {public} is {}", literal(comment)));
        }
    }
    Ok(())
}
