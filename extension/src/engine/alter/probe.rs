//! What an action would do to a table, found out on an empty clone that is gone a moment later.
//!
//! PostgreSQL itself says it: a rewrite gives the clone a new file, an index build gives an index one, and every
//! pass over the rows counts as a scan, even of a table without rows (heapam.c, initscan).

use crate::catalog::attempt::rehearse;
use crate::catalog::definition::{self, Index};
use crate::catalog::relation::Relation;
use crate::catalog::{role, spi};
use crate::engine::shape::table;
use migrator_core::alter::Seen;
use migrator_core::failure::Failure;
use migrator_core::ident::{Ident, Name};
use pgrx::pg_sys;
use serde::Deserialize;
use std::collections::BTreeMap;

/// What one statement did to the clone.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Reads and writes.
    pub seen: Seen,
    /// Constraints that are new: name and definition.
    pub constraints: Vec<(String, String)>,
    /// Indexes that are new, and how to make them on the live table.
    pub indexes: Vec<NewIndex>,
}

/// An index that an action makes.
#[derive(Debug, Clone)]
pub struct NewIndex {
    /// Its name on the clone.
    pub name: Ident,
    /// `create unique index … on` the live table.
    pub create: String,
    /// What follows `add constraint NAME unique using index NAME`.
    pub deferrable: String,
}

#[derive(Deserialize)]
struct State {
    file: i64,
    scans: i64,
    indexes: BTreeMap<String, i64>,
    constraints: Vec<(i64, String, String)>,
}

/// Runs `first` on an empty clone of the table, then each of `texts`, observed; all is rolled back. A text is what
/// follows the table's name in ALTER TABLE.
pub fn run(
    live: &Relation,
    settings: &[(String, String)],
    first: &[String],
    texts: &[String],
) -> Result<Vec<Found>, Failure> {
    // Nobody else ever sees the name.
    let name =
        Name { schema: Ident::new(format!("migrator_probe_{}", std::process::id())), name: live.name.name.clone() };
    let mut settings = settings.to_vec();
    // A superuser's setting, which the owner may not change: put first, it is in force before the switch of roles.
    settings.insert(0, ("track_counts".to_owned(), "on".to_owned()));
    rehearse(|| {
        let clone = table::like(&table::Steps::default(), live, &name)?;
        for text in first {
            alter(&clone, &settings, text)?;
        }
        texts.iter().map(|text| observe(live, &clone, &settings, text)).collect()
    })
}

fn alter(clone: &Relation, settings: &[(String, String)], text: &str) -> Result<(), Failure> {
    role::as_owner(clone.owner(), settings, || spi::execute(&format!("alter table {} {text}", clone.name), &[]))
        .map(|_| ())
}

fn observe(live: &Relation, clone: &Relation, settings: &[(String, String)], text: &str) -> Result<Found, Failure> {
    let before = state(clone)?;
    alter(clone, settings, text)?;
    let after = state(clone)?;
    let rebuilds = after
        .indexes
        .iter()
        .filter(|(name, file)| before.indexes.get(*name).is_some_and(|old| old != *file))
        .map(|(name, _)| name.clone())
        .collect();
    let seen = Seen { scans: after.scans > before.scans, rewrites: after.file != before.file, rebuilds };
    let constraints = after
        .constraints
        .into_iter()
        .filter(|(oid, ..)| !before.constraints.iter().any(|(old, ..)| old == oid))
        .map(|(_, name, definition)| (name, definition))
        .collect();
    let mut indexes = vec![];
    for index in
        definition::indexes(clone.oid)?.into_iter().filter(|index| !before.indexes.contains_key(index.name.as_str()))
    {
        if index.stands_alone() {
            indexes.push(new_index(&index, clone, live)?);
        }
    }
    Ok(Found { seen, constraints, indexes })
}

fn new_index(index: &Index, clone: &Relation, live: &Relation) -> Result<NewIndex, Failure> {
    let create = definition::index_sql_on(index, &clone.name, &live.name)?;
    Ok(NewIndex { name: index.name.clone(), create, deferrable: index.deferrable.clone() })
}

fn state(clone: &Relation) -> Result<State, Failure> {
    spi::fetch_one(
        "select pg_catalog.pg_relation_filenode($1)::pg_catalog.int8 as file, pg_catalog.pg_stat_get_xact_numscans($1) as scans, \
           (select coalesce(pg_catalog.jsonb_object_agg(c.relname, pg_catalog.pg_relation_filenode(c.oid)::pg_catalog.int8), '{}') \
              from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indexrelid where i.indrelid = $1) as indexes, \
           (select coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(n.oid::pg_catalog.int8, n.conname, pg_catalog.pg_get_constraintdef(n.oid)) order by n.oid), '[]') \
              from pg_catalog.pg_constraint n where n.conrelid = $1) as constraints",
        &[pg_sys::Oid::from(clone.oid).into()],
    )
}
