//! Indexes and constraints of the shadow: written down, then taken off, so that the copy meets a bare table.

use super::table::Steps;
use crate::catalog::definition;
use crate::catalog::definition::Index;
use crate::catalog::relation::Relation;
use migrator_core::failure::Failure;
use migrator_core::ident::{Name, literal};
use migrator_core::plan::Build;

/// Writes down what each index of the shadow is made with, the key's (`carrier`, an oid) first, and drops them all.
pub fn take(steps: &Steps, shadow: &Relation, carrier: u32) -> Result<Vec<Build>, Failure> {
    if shadow.kind == "p" {
        // A partitioned table keeps its indexes: they are those of its partitions, which are the user's.
        return Ok(vec![]);
    }
    let mut indexes = definition::indexes(shadow.oid)?;
    indexes.sort_by_key(|index| (index.oid != carrier, index.oid));
    let builds = indexes.iter().map(|index| build(index, &shadow.name, index.oid == carrier)).collect();
    for index in &indexes {
        let sql = if index.constraint.is_some() {
            format!("alter table {} drop constraint {}", shadow.name, index.name)
        } else {
            format!("drop index {}", Name { schema: shadow.name.schema.clone(), name: index.name.clone() })
        };
        steps.run(&sql)?;
    }
    Ok(builds)
}

fn build(index: &Index, table: &Name, is_key: bool) -> Build {
    let sql = match index.constraint {
        Some(constraint) if !index.stands_alone() => definition::constraint_sql(constraint),
        _ => definition::index_sql(index),
    };
    let attach = match index.constraint_kind.as_deref() {
        Some(kind) if index.stands_alone() => {
            let kind = if kind == "p" { "primary key" } else { "unique" };
            let name = &index.name;
            Some(format!("alter table {table} add constraint {name} {kind} using index {name}{}", index.deferrable))
        }
        _ => None,
    };
    Build { name: index.name.clone(), sql, attach, is_key, also: hangs_on(index, table) }
}

/// Statements for what hangs on an index, once it and its constraint are there.
pub fn hangs_on(index: &Index, table: &Name) -> Vec<String> {
    let name = Name { schema: table.schema.clone(), name: index.name.clone() };
    let mut also = vec![];
    if let Some(comment) = &index.comment {
        also.push(format!("comment on index {name} is {}", literal(comment)));
    }
    if let Some(comment) = &index.constraint_comment {
        also.push(format!("comment on constraint {} on {table} is {}", index.name, literal(comment)));
    }
    for (column, target) in &index.targets {
        also.push(format!("alter index {name} alter column {column} set statistics {target}"));
    }
    if index.is_clustered {
        also.push(format!("alter table {table} cluster on {}", index.name));
    }
    also
}
