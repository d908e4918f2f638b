//! Owner and privileges: on the rear, before any lock. Each grant comes from the role that gave it.
//!
//! The owner is the front's already, for each step sees to that (`engine::owner`); where ALTER TABLE … OWNER TO came a moment
//! ago, it is brought into line here too.

use super::{Gathering, Statement};
use crate::catalog::spi;
use migrator_core::failure::Failure;
use migrator_core::ident::{Ident, Name};
use pgrx::pg_sys;
use serde::Deserialize;

/// One privilege, as aclexplode tells it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Grant {
    grantor: u32,
    grantor_name: Ident,
    /// 0 for PUBLIC.
    grantee: u32,
    grantee_name: Ident,
    /// A keyword of PostgreSQL's own.
    privilege: String,
    grantable: bool,
    column: Option<Ident>,
}

/// The privileges on a table, view or sequence and on its columns; the defaults where none were ever given.
pub(super) fn read(relation: u32) -> Result<Vec<Grant>, Failure> {
    spi::fetch(
        "select x.grantor::pg_catalog.int8 as grantor, r.rolname as grantor_name, x.grantee::pg_catalog.int8 as grantee, \
                coalesce(e.rolname, '') as grantee_name, x.privilege_type as privilege, x.is_grantable as grantable, x.\"column\" \
         from ( \
             select a.*, null::pg_catalog.name as \"column\" from pg_catalog.pg_class c, \
                 pg_catalog.aclexplode(coalesce(c.relacl, pg_catalog.acldefault(case c.relkind when 'S' then 's'::pg_catalog.\"char\" else 'r' end, c.relowner))) a \
             where c.oid = $1 \
             union all \
             select a.*, t.attname from pg_catalog.pg_attribute t, pg_catalog.aclexplode(t.attacl) a \
             where t.attrelid = $1 and t.attnum > 0 and not t.attisdropped) x \
         join pg_catalog.pg_roles r on r.oid = x.grantor left join pg_catalog.pg_roles e on e.oid = x.grantee \
         order by x.\"column\" nulls first, x.grantor, x.grantee, x.privilege_type",
        &[pg_sys::Oid::from(relation).into()],
    )
}

/// The statements that turn the privileges `have` of an object into `want`. `target` is `table …` or `sequence …`.
pub(super) fn align(target: &str, schema: &Ident, owner: u32, have: &[Grant], want: &[Grant]) -> Vec<Statement> {
    let mut statements = vec![];
    let mut have = have.to_vec();
    if have.iter().any(|grant| !want.contains(grant)) {
        // Something has to go, and whoever got it may have passed it on: begin from nothing.
        let mut grantees: Vec<(String, String)> = have.iter().map(|grant| (columns(grant), role(grant))).collect();
        grantees.sort();
        grantees.dedup();
        for (columns, role) in grantees {
            statements.push(Statement::new(format!("revoke all privileges{columns} on {target} from {role} cascade")));
        }
        have.clear();
    }
    let mut missing: Vec<&Grant> = want.iter().filter(|grant| !have.contains(grant)).collect();
    let mut lent: Vec<&Ident> = vec![];
    // Those who pass a privilege on must have it themselves first.
    while !missing.is_empty() {
        let ready = |grant: &Grant, have: &[Grant]| {
            grant.grantor == owner
                || have.iter().any(|held| {
                    held.grantable
                        && held.grantee == grant.grantor
                        && held.privilege == grant.privilege
                        && (held.column.is_none() || held.column == grant.column)
                })
        };
        let (now, later): (Vec<&Grant>, Vec<&Grant>) = missing.iter().partition(|grant| ready(grant, &have));
        // A grantor who holds the option through membership in another role: nothing to wait for.
        let (now, later) = if now.is_empty() { (later, vec![]) } else { (now, later) };
        for grant in &now {
            let by_owner = grant.grantor == owner;
            if !by_owner && !lent.contains(&&grant.grantor_name) {
                lent.push(&grant.grantor_name);
            }
            statements.push(Statement {
                sql: format!(
                    "grant {}{} on {target} to {}{}",
                    grant.privilege,
                    columns(grant),
                    role(grant),
                    if grant.grantable { " with grant option" } else { "" }
                ),
                role: (!by_owner).then_some(grant.grantor),
            });
        }
        have.extend(now.into_iter().cloned());
        missing = later;
    }
    // Whoever passes a privilege on must be able to name the table, in a schema that is nobody's but ours.
    if !lent.is_empty() && is_ours(schema) {
        let roles = lent.iter().map(|role| role.to_string()).collect::<Vec<_>>().join(", ");
        let first = statements.iter().position(|statement| statement.role.is_some()).unwrap_or(0);
        statements.insert(first, Statement::new(format!("grant usage on schema {schema} to {roles}")));
        statements.push(Statement::new(format!("revoke usage on schema {schema} from {roles}")));
    }
    statements
}

fn is_ours(schema: &Ident) -> bool {
    schema.as_str().starts_with("migrator_")
}

fn columns(grant: &Grant) -> String {
    grant.column.as_ref().map_or_else(String::new, |column| format!(" ({column})"))
}

fn role(grant: &Grant) -> String {
    if grant.grantee == 0 { "public".to_owned() } else { grant.grantee_name.to_string() }
}

pub(super) fn gather(g: &mut Gathering<'_>) -> Result<(), Failure> {
    let (front, rear) = (g.swap.front, g.swap.rear);
    let mut have = read(rear.oid)?;
    let target = format!("table {}", rear.name);
    if rear.owner != front.owner {
        #[derive(Deserialize)]
        struct Role {
            name: Ident,
        }
        let role: Role = spi::fetch_one(
            "select r.rolname as name from pg_catalog.pg_roles r where r.oid = $1",
            &[front.owner().into()],
        )?;
        g.before_lock(format!("alter {target} owner to {}", role.name));
        for grant in &mut have {
            // As ALTER … OWNER rewrites them (aclnewowner).
            if grant.grantor == rear.owner {
                (grant.grantor, grant.grantor_name) = (front.owner, role.name.clone());
            }
            if grant.grantee == rear.owner {
                (grant.grantee, grant.grantee_name) = (front.owner, role.name.clone());
            }
        }
    }
    let mut want: Vec<Grant> = read(front.oid)?
        .into_iter()
        .filter_map(|mut grant| {
            if let Some(column) = &grant.column {
                // The privileges on a column that goes, go with it, as with ALTER TABLE … DROP COLUMN.
                grant.column = Some(g.columns.to(column.as_str())?.clone());
            }
            Some(grant)
        })
        .collect();
    // Columns that only the rear has keep what they have.
    let new = |grant: &&Grant| grant.column.as_ref().is_some_and(|column| !g.columns.is_target(column.as_str()));
    want.extend(have.iter().filter(new).cloned());
    g.out.before_lock.extend(align(&target, &rear.name.schema, front.owner, &have, &want));
    Ok(())
}

/// The statements that give a relation that is created again, by the extension's owner, the privileges it has now.
/// What default privileges would add is taken away first.
pub(super) fn restore(name: &Name, relation: u32, owner: u32) -> Result<Vec<Statement>, Failure> {
    #[derive(Deserialize)]
    struct Role {
        name: Ident,
    }
    let roles: Vec<Role> = spi::fetch(
        "select r.rolname as name from pg_catalog.pg_roles r \
         where r.oid = $1 or exists (select from pg_catalog.pg_default_acl d, pg_catalog.aclexplode(d.defaclacl) x \
                                     where d.defaclobjtype = 'r' and x.grantee = r.oid)",
        &[pg_sys::Oid::from(owner).into()],
    )?;
    let roles = roles.iter().map(|role| format!(", {}", role.name)).collect::<String>();
    let mut statements =
        vec![Statement::new(format!("revoke all privileges on table {name} from public{roles} cascade"))];
    statements.extend(align(&format!("table {name}"), &name.schema, owner, &[], &read(relation)?));
    Ok(statements)
}
