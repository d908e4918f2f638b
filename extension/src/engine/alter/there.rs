//! What an earlier call left half done: a constraint that is there NOT VALID, with the definition that is asked for.

use super::{Work, probe};
use crate::catalog::commands::Piece;
use crate::catalog::{role, spi};
use migrator_core::alter::{ForeignKey, Kind, foreign_key_name};
use migrator_core::failure::Failure;
use migrator_core::ident::Ident;
use pgrx::pg_sys;
use serde::Deserialize;

/// A constraint of the live table.
#[derive(Debug, Clone, Deserialize)]
pub struct There {
    /// Its name.
    pub name: String,
    /// Nothing is left to do.
    pub is_valid: bool,
    definition: String,
    kind: String,
    codes: String,
    columns: Vec<String>,
    referenced: Option<i64>,
    referenced_columns: Vec<String>,
}

/// The constraints of the live table that can be NOT VALID.
pub fn constraints(work: &Work<'_>) -> Result<Vec<There>, Failure> {
    spi::fetch(
        "select n.conname as name, n.convalidated as is_valid, pg_catalog.pg_get_constraintdef(n.oid) as definition, n.contype as kind, \
           pg_catalog.concat(n.confmatchtype, n.confupdtype, n.confdeltype) as codes, nullif(n.confrelid::pg_catalog.int8, 0) as referenced, \
           (select coalesce(pg_catalog.array_agg(a.attname::pg_catalog.text order by k.place), '{}') from pg_catalog.unnest(n.conkey) with ordinality k(attnum, place) \
              join pg_catalog.pg_attribute a on a.attrelid = n.conrelid and a.attnum = k.attnum) as columns, \
           (select coalesce(pg_catalog.array_agg(a.attname::pg_catalog.text order by k.place), '{}') from pg_catalog.unnest(n.confkey) with ordinality k(attnum, place) \
              join pg_catalog.pg_attribute a on a.attrelid = n.confrelid and a.attnum = k.attnum) as referenced_columns \
         from pg_catalog.pg_constraint n where n.conrelid = $1 and n.contype in ('c', 'f', 'n') order by n.oid",
        &[pg_sys::Oid::from(work.live.oid).into()],
    )
}

/// The constraint that a piece would add, if it is there.
pub fn find(work: &Work<'_>, all: &[There], piece: &Piece) -> Result<Option<There>, Failure> {
    match &piece.kind {
        Kind::AddForeignKey(key) => {
            let referenced = i64::from(referenced(work, key)?);
            Ok(all
                .iter()
                .find(|there| {
                    there.kind == "f"
                        && key.name.as_ref().map_or(!there.is_valid, |name| *name == there.name)
                        && there.columns == key.columns
                        && there.referenced == Some(referenced)
                        && (key.referenced_columns.is_empty() || there.referenced_columns == key.referenced_columns)
                        && there.codes == key.codes
                })
                .cloned())
        }
        Kind::AddCondition { name, .. } => {
            let candidates: Vec<&There> = all
                .iter()
                .filter(|there| there.kind != "f" && name.as_ref().map_or(!there.is_valid, |name| *name == there.name))
                .collect();
            let Some(first) = candidates.first() else { return Ok(None) };
            // Without the one of its name the clone can take it, and says how PostgreSQL spells it.
            let away = if name.is_some() {
                vec![format!("drop constraint {}", Ident::new(first.name.as_str()))]
            } else {
                vec![]
            };
            let Ok(found) = probe::run(work.live, work.settings(), &away, std::slice::from_ref(&piece.text)) else {
                return Ok(None);
            };
            let wanted = found
                .into_iter()
                .flat_map(|found| found.constraints)
                .map(|(_, definition)| bare(&definition).to_owned())
                .next();
            Ok(candidates.into_iter().find(|there| wanted.as_deref() == Some(bare(&there.definition))).cloned())
        }
        _ => Ok(None),
    }
}

fn bare(definition: &str) -> &str {
    definition.strip_suffix(" NOT VALID").unwrap_or(definition)
}

/// The table that a foreign key refers to.
pub fn referenced(work: &Work<'_>, key: &ForeignKey) -> Result<u32, Failure> {
    #[derive(Deserialize)]
    struct Found {
        oid: Option<u32>,
    }
    let found: Found = role::as_owner(work.live.owner(), work.settings(), || {
        spi::fetch_one(
            "select pg_catalog.to_regclass($1)::pg_catalog.oid::pg_catalog.int8 as oid",
            &[key.referenced.as_str().into()],
        )
    })?;
    found.oid.ok_or_else(|| {
        Failure::new("42P01", format!("relation {} does not exist", key.referenced))
            .hint("The foreign key refers to it. Nothing was changed.")
    })
}

/// A name for a foreign key that has none, as PostgreSQL would choose it.
pub fn name_for(work: &Work<'_>, all: &[There], key: &ForeignKey, taken: &[String]) -> String {
    let table = work.live.name.name.as_str();
    (0..)
        .map(|number| foreign_key_name(table, &key.columns, number).as_str().to_owned())
        .find(|name| !all.iter().any(|there| there.name == *name) && !taken.contains(name))
        .expect("numbers do not end")
}

/// Columns of an index that may still be NULL: a primary key on it makes them NOT NULL.
pub fn nullable_columns(work: &Work<'_>, index: &str) -> Result<Vec<String>, Failure> {
    #[derive(Deserialize)]
    struct Column {
        name: String,
    }
    let columns: Vec<Column> = spi::fetch(
        "select a.attname as name from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indexrelid \
           cross join pg_catalog.unnest(i.indkey::pg_catalog.int2[]) with ordinality k(attnum, place) \
           join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum \
         where k.place <= i.indnkeyatts and i.indrelid = $1 and c.relname = $2::pg_catalog.name and not a.attnotnull order by a.attnum",
        &[pg_sys::Oid::from(work.live.oid).into(), index.into()],
    )?;
    Ok(columns.into_iter().map(|column| column.name).collect())
}

/// Whether a view, trigger, policy or publication reads a column, so that its type cannot change under them.
pub fn is_read(work: &Work<'_>, column: &str) -> Result<Option<String>, Failure> {
    #[derive(Deserialize)]
    struct Reader {
        what: String,
    }
    let reader: Option<Reader> = spi::fetch_optional(
        "select pg_catalog.pg_describe_object(d.classid, d.objid, 0) as what from pg_catalog.pg_depend d join pg_catalog.pg_attribute a \
           on a.attrelid = $1 and a.attname = $2::pg_catalog.name and a.attnum = d.refobjsubid \
         where d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refobjid = $1 \
           and d.classid in ('pg_catalog.pg_rewrite'::pg_catalog.regclass, 'pg_catalog.pg_trigger'::pg_catalog.regclass, 'pg_catalog.pg_policy'::pg_catalog.regclass) \
         limit 1",
        &[pg_sys::Oid::from(work.live.oid).into(), column.into()],
    )?;
    Ok(reader.map(|reader| reader.what))
}
