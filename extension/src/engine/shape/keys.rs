//! The key by which rows of both shapes are matched: unique, NOT NULL and of kept equality in both.

use crate::catalog::definition::{self, Column, Index};
use crate::catalog::relation::Relation;
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Ident, plain};
use migrator_core::key::{KeyType, kept};
use migrator_core::plan::{KeyColumn, NewColumn, Source};
use std::collections::BTreeSet;

/// Both shapes of a table, as far as the key depends on them.
pub struct Shapes<'a> {
    /// The live table.
    pub live: &'a Relation,
    /// The shadow, its indexes still on it.
    pub shadow: &'a Relation,
    /// The live table's columns.
    pub before: &'a [Column],
    /// The shadow's columns.
    pub after: &'a [Column],
    /// Where the shadow's columns come from.
    pub columns: &'a [NewColumn],
}

impl Shapes<'_> {
    /// The key, and the index of the shadow that carries it: the primary key if it can serve, else the narrowest
    /// unique index that can.
    pub fn key(&self) -> Result<(Vec<KeyColumn>, u32), Failure> {
        let mut candidates: Vec<Index> =
            definition::indexes(self.live.oid)?.into_iter().filter(|index| identifies(index, self.before)).collect();
        candidates.sort_by_key(|index| (!index.is_primary, index.keys.len(), index.oid));
        let carriers: Vec<Index> =
            definition::indexes(self.shadow.oid)?.into_iter().filter(|index| identifies(index, self.after)).collect();
        let mut first_reason = None;
        for candidate in &candidates {
            match self.matched(candidate, &carriers) {
                Ok(found) => return Ok(found),
                Err(reason) => {
                    first_reason.get_or_insert((candidate, reason));
                }
            }
        }
        Err(match first_reason {
            None => self.no_key(),
            Some((index, reason)) => Failure::new(code::NOT_SUPPORTED, format!("{} would have no key that both shapes share: {reason}", self.live.name.plain()))
                .detail(format!("Rows are matched by {} while the two shapes are kept in step.", plain(index.name.as_str())))
                .hint("Leave those columns and their unique index as they are, and change them in a change of their own, with another unique index on columns that are NOT NULL to match rows by."),
        })
    }

    fn no_key(&self) -> Failure {
        Failure::new(code::NOT_IN_STATE, format!("{} has no key: no primary key, and no unique index on NOT NULL columns", self.live.name.plain()))
            .detail("Without one a changed row cannot be found again in the shadow.")
            .hint(format!(
                "Make one first: alter table {0} add primary key (…); or, without stopping writers: create unique index concurrently on {0} (…); on columns that are NOT NULL.",
                self.live.name
            ))
    }

    /// The key that a live index gives, or why it cannot serve.
    fn matched(&self, index: &Index, carriers: &[Index]) -> Result<(Vec<KeyColumn>, u32), String> {
        let mut key = vec![];
        let mut attnums = BTreeSet::new();
        for attnum in &index.keys {
            let old = self.before.iter().find(|column| column.attnum == *attnum).ok_or("a column of it is dropped")?;
            let (column, new) =
                self.successor(&old.name).ok_or_else(|| format!("column {} is dropped", plain(old.name.as_str())))?;
            if !is_unchanged(&column.source, &old.name) {
                return Err(format!("column {} gets its value from an expression", plain(old.name.as_str())));
            }
            let kept = kept(key_type(old), key_type(new)).ok_or_else(|| {
                format!(
                    "column {} changes from {} to {}, which does not keep different values different",
                    plain(old.name.as_str()),
                    old.type_name,
                    new.type_name
                )
            })?;
            attnums.insert(new.attnum);
            key.push(KeyColumn {
                old: old.name.clone(),
                old_type: old.type_name.clone(),
                new: new.name.clone(),
                new_type: new.type_name.clone(),
                same_order: kept.same_order,
                operators: old.operators.clone(),
            });
        }
        let carrier = carriers.iter().find(|carrier| carrier.keys.iter().copied().collect::<BTreeSet<_>>() == attnums);
        let carrier = carrier.ok_or_else(|| format!("the new shape has no unique index on {}", listed(&key)))?;
        Ok((key, carrier.oid))
    }

    fn successor(&self, old: &Ident) -> Option<(&NewColumn, &Column)> {
        self.columns.iter().zip(self.after).find(|(column, _)| column.old.as_ref() == Some(old))
    }
}

/// The columns by which a table's rows are named, in the order of the index that does it; None without a key.
pub fn of_table(table: u32) -> Result<Option<Vec<Column>>, Failure> {
    let columns = definition::columns(table)?;
    let mut candidates: Vec<Index> =
        definition::indexes(table)?.into_iter().filter(|index| identifies(index, &columns)).collect();
    candidates.sort_by_key(|index| (!index.is_primary, index.keys.len(), index.oid));
    let column = |attnum: &i16| columns.iter().find(|column| column.attnum == *attnum).cloned();
    Ok(candidates.first().and_then(|index| index.keys.iter().map(column).collect()))
}

/// Whether these columns tell every row of a table from every other.
pub fn stands(table: u32, key: &[Ident]) -> Result<bool, Failure> {
    let columns = definition::columns(table)?;
    let named = |attnum: &i16| columns.iter().any(|column| column.attnum == *attnum && key.contains(&column.name));
    Ok(definition::indexes(table)?.iter().any(|index| identifies(index, &columns) && index.keys.iter().all(named)))
}

/// Whether an index tells every row from every other by the plain equality of its columns' types.
fn identifies(index: &Index, columns: &[Column]) -> bool {
    index.is_unique
        && index.is_valid
        && !index.is_partial
        && !index.is_period
        && index.is_ordinary
        && index.method == "btree"
        && index
            .keys
            .iter()
            .all(|attnum| columns.iter().any(|column| column.attnum == *attnum && column.not_null && !column.generated))
}

/// Whether a column carries the values of the old one over, as they are or as its own type takes them.
pub fn is_unchanged(source: &Source, old: &Ident) -> bool {
    match source {
        Source::Same => true,
        Source::Expression { sql, given } => !given || *sql == format!("l.{}", definition::quoted(old.as_str())),
        Source::Constant { .. } | Source::Generated => false,
    }
}

pub fn key_type(column: &Column) -> KeyType<'_> {
    // A domain's modifier is its own business: the same domain, or none at all, is all that is compared.
    KeyType {
        base: &column.base_type,
        modifier: column.modifier,
        collation: column.collation,
        deterministic: column.deterministic,
    }
}

fn listed(key: &[KeyColumn]) -> String {
    key.iter().map(|column| plain(column.new.as_str())).collect::<Vec<_>>().join(", ")
}
