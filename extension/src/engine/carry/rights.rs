//! Text of the catalog that is parsed again runs as the owner of what it describes: parsing evaluates literals, and
//! the input function of a domain runs whatever its CHECK says.
//!
//! PostgreSQL asks for privileges on schemas when an object is made, not while it exists, so an owner may lack some
//! by now. Missing USAGE is lent for the one statement, in which the owner's code may run: it can name more then, not
//! make or read more. CREATE is lent in schemas of our own only.

use super::Statement;
use crate::catalog::spi;
use migrator_core::failure::Failure;
use migrator_core::ident::Ident;
use pgrx::pg_sys;
use serde::Deserialize;

/// A privilege on a schema that a role has not.
#[derive(Deserialize)]
pub(super) struct Loan {
    role: Ident,
    schema: Ident,
    privilege: String,
}

impl Loan {
    pub(super) fn grant(&self) -> String {
        format!("grant {} on schema {} to {}", self.privilege, self.schema, self.role)
    }
    fn revoke(&self) -> String {
        format!("revoke {} on schema {} from {}", self.privilege, self.schema, self.role)
    }
}

/// An object whose definition is parsed again: its catalog's name and its oid.
pub(super) type Source = (&'static str, u32);

/// What `role` lacks to name all that `source` depends on, to name things in `uses` and to create in `creates`, which are ours.
pub(super) fn lacking(role: u32, source: Source, uses: &[&Ident], creates: &[&Ident]) -> Result<Vec<Loan>, Failure> {
    let names = |schemas: &[&Ident]| schemas.iter().map(|schema| schema.as_str().to_owned()).collect::<Vec<_>>();
    spi::fetch(
        "select distinct r.rolname as role, n.nspname as schema, p.privilege from ( \
           select o.schema, 'usage' as privilege from pg_catalog.pg_depend d cross join lateral pg_catalog.pg_identify_object(d.refclassid, d.refobjid, 0) o \
            where d.classid = $2::pg_catalog.regclass and d.objid = $3 and o.schema is not null \
           union all select pg_catalog.quote_ident(u.name), 'usage' from pg_catalog.unnest($4::pg_catalog.text[]) u (name) \
           union all select pg_catalog.quote_ident(u.name), 'create' from pg_catalog.unnest($5::pg_catalog.text[]) u (name)) p \
         join pg_catalog.pg_namespace n on pg_catalog.quote_ident(n.nspname) = p.schema join pg_catalog.pg_roles r on r.oid = $1 \
         where not pg_catalog.has_schema_privilege(r.oid, n.oid, p.privilege) order by n.nspname, p.privilege",
        &[
            pg_sys::Oid::from(role).into(),
            format!("pg_catalog.{}", source.0).into(),
            pg_sys::Oid::from(source.1).into(),
            names(uses).into(),
            names(creates).into(),
        ],
    )
}

/// Whether `role` may create in a schema.
pub(super) fn may_create(role: u32, schema: &Ident) -> Result<bool, Failure> {
    #[derive(Deserialize)]
    struct Answer {
        may: bool,
    }
    let answer: Answer = spi::fetch_one(
        "select pg_catalog.has_schema_privilege($1::pg_catalog.oid, n.oid, 'create') as may from pg_catalog.pg_namespace n where n.nspname = $2",
        &[pg_sys::Oid::from(role).into(), schema.as_str().into()],
    )?;
    Ok(answer.may)
}

/// The statement as `role` runs it, between granting and revoking what it lacks.
pub(super) fn lent(sql: String, role: u32, loans: &[Loan]) -> Vec<Statement> {
    let mut statements: Vec<Statement> = loans.iter().map(|loan| Statement::new(loan.grant())).collect();
    statements.push(Statement { sql, role: Some(role) });
    statements.extend(loans.iter().rev().map(|loan| Statement::new(loan.revoke())));
    statements
}
