//! Which column of the shadow comes from where, and which column of the live table goes back how.
//!
//! Columns are matched by attribute number, recorded between LIKE and the user's actions: by name a RENAME
//! would look like a column lost and a column found.

use super::Request;
use super::table::Steps;
use crate::catalog::actions::Part;
use crate::catalog::definition::{self, Column};
use crate::catalog::expression::{self, Default, Expression, Place, Shape, Type};
use crate::catalog::relation::Relation;
use crate::catalog::{role, spi};
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Ident, literal, plain};
use migrator_core::plan::{KeyColumn, NewColumn, OldColumn, Source};
use serde::Deserialize;
use std::collections::HashMap;

/// What the plan of the columns is made from.
pub struct Work<'a> {
    /// The user's wish.
    pub request: &'a Request,
    /// The live table.
    pub live: &'a Relation,
    /// The shadow.
    pub shadow: &'a Relation,
    /// The live table's columns.
    pub before: &'a [Column],
    /// What is run is remembered here.
    pub steps: &'a Steps,
    /// Column of the shadow (attnum) → index in `before`.
    pub history: HashMap<i16, usize>,
}

/// Column of the shadow (attnum) → what rows that exist get: a constant, as SQL.
pub type Frozen = HashMap<i16, String>;

impl Work<'_> {
    /// Runs the user's actions on the empty shadow, as the owner, and evaluates the defaults of added columns once.
    pub fn alter(&self, parts: &[Part]) -> Result<Frozen, Failure> {
        let mut frozen = Frozen::new();
        for part in parts {
            for added in &part.added {
                if let (Some(kind), None) = (added.counted, self.given(&self.request.transform, &added.name)) {
                    return Err(
                        self.not_constant(&added.name, &format!("it takes its values from a sequence ({kind})"))
                    );
                }
            }
            let sql = format!("alter table {} {}", self.shadow.name, part.text);
            role::as_owner(self.live.owner(), &self.request.session.settings, || self.steps.run(&sql))?;
            if part.added.is_empty() {
                continue;
            }
            let columns = definition::columns(self.shadow.oid)?;
            for added in &part.added {
                let Some(column) = columns.iter().find(|column| column.name.as_str() == added.name) else { continue };
                let known = column.generated
                    || added.counted.is_some()
                    || self.given(&self.request.transform, &added.name).is_some();
                let default = added.default.map_or(Default::OfType, Default::Clause);
                if !known && let Some(sql) = self.freeze(column, default)? {
                    frozen.insert(column.attnum, sql);
                }
            }
        }
        Ok(frozen)
    }

    /// The same for the columns that only a table made by the user has.
    pub fn freeze_all(&self, after: &[Column]) -> Result<Frozen, Failure> {
        let mut frozen = Frozen::new();
        for column in after.iter().filter(|column| self.old_of(column).is_none() && !column.generated) {
            if self.given(&self.request.transform, column.name.as_str()).is_some() {
                continue;
            }
            if column.identity {
                return Err(self.not_constant(column.name.as_str(), "it takes its values from a sequence (identity)"));
            }
            if let Some(sql) = self.freeze(column, Default::Stored(column.attnum))? {
                frozen.insert(column.attnum, sql);
            }
        }
        Ok(frozen)
    }

    /// The value that a default has now, as a literal of the column's type. PostgreSQL does the same when it adds a
    /// column with a STABLE default: now() is the time of the ALTER TABLE for every row.
    fn freeze(&self, column: &Column, default: Default) -> Result<Option<String>, Failure> {
        #[derive(Deserialize)]
        struct Value {
            value: String,
        }
        let place = self.place(Shape::New, format!("default of {}", expression::column(column.name.as_str())));
        let sql = match expression::read_default(&place, default, kind(column)) {
            Ok(None) => return Ok(None),
            Ok(Some(sql)) => sql,
            Err(failure) if failure.code == code::NOT_SUPPORTED => {
                return Err(self.not_constant(column.name.as_str(), "its default is volatile"));
            }
            Err(failure) => return Err(failure),
        };
        let mut settings = self.request.session.settings.clone();
        settings.extend(
            [("DateStyle", "ISO"), ("IntervalStyle", "postgres"), ("extra_float_digits", "3")]
                .map(|(name, value)| (name.into(), value.into())),
        );
        let value: Value = role::as_owner(self.live.owner(), &settings, || {
            spi::fetch_one(&format!("select pg_catalog.format('%L', ({sql})::{}) as value", column.type_name), &[])
        })?;
        Ok(Some(if value.value == "NULL" { value.value } else { format!("{}::{}", value.value, column.type_name) }))
    }

    fn not_constant(&self, column: &str, why: &str) -> Failure {
        Failure::new(code::NOT_SUPPORTED, format!("rows that exist cannot be given a value for column {}: {why}", plain(column)))
            .detail("A row is read again at every catch-up and by verify, and has to get the same value each time.")
            .hint(format!(
                "Add the column without it and set it when the change is finished, or say what rows that exist get: transform => '{}'.",
                serde_json::json!({ column: "expression over the old row" })
            ))
    }

    fn given<'a>(&self, object: &'a serde_json::Value, name: &str) -> Option<&'a str> {
        object.get(name).and_then(serde_json::Value::as_str)
    }

    fn place(&self, shape: Shape, what: String) -> Place<'_> {
        let relation = match shape {
            Shape::Old => self.live.oid,
            Shape::New => self.shadow.oid,
        };
        Place {
            relation,
            shape,
            owner: self.live.owner(),
            settings: &self.request.session.settings,
            what,
            whole_row: false,
        }
    }

    fn old_of(&self, column: &Column) -> Option<&Column> {
        self.history.get(&column.attnum).map(|at| &self.before[*at])
    }

    /// Where the value of each column of the shadow comes from.
    pub fn forward(&self, after: &[Column], parts: &[Part], frozen: &Frozen) -> Result<Vec<NewColumn>, Failure> {
        self.names_exist("transform", &self.request.transform, after, self.shadow)?;
        after
            .iter()
            .map(|column| {
                Ok(NewColumn {
                    name: column.name.clone(),
                    type_name: column.type_name.clone(),
                    bare_type: column.bare_type.clone(),
                    generated: column.generated,
                    old: self.old_of(column).map(|old| old.name.clone()),
                    source: self.source(column, parts, frozen)?,
                    upgraded: self.request.upgrade
                        && self.given(&self.request.transform, column.name.as_str()).is_some(),
                })
            })
            .collect()
    }

    fn source(&self, column: &Column, parts: &[Part], frozen: &Frozen) -> Result<Source, Failure> {
        let name = column.name.as_str();
        let old = self.old_of(column);
        let transform = self.given(&self.request.transform, name);
        if column.generated {
            return match transform {
                None => Ok(Source::Generated),
                Some(_) => Err(Failure::new(
                    code::INVALID_PARAMETER,
                    format!("transform names column {}, which is generated", plain(name)),
                )
                .hint("Leave it out: PostgreSQL computes it.")),
            };
        }
        if let Some(text) = transform {
            let place = self.place(Shape::Old, format!("transform of {}", expression::column(name)));
            let read = takes(column, &place.what, expression::read(&place, text, kind(column))?)?;
            return Ok(Source::Expression { sql: read.sql, given: true });
        }
        // USING stands in the first part only, so it speaks of columns under their names in the live table.
        let using = old.and_then(|old| parts.first()?.using.iter().find(|(name, _)| name == old.name.as_str()));
        if let Some((_, raw)) = using {
            let place = self.place(Shape::Old, format!("using of {}", expression::column(name)));
            let read = takes(column, &place.what, expression::read_raw(&place, *raw, kind(column))?)?;
            return Ok(Source::Expression { sql: read.sql, given: true });
        }
        match old {
            Some(old) if kind(old) == kind(column) => Ok(Source::Same),
            Some(old) if !is_taken(column, old.type_oid) => Err(Failure::new(
                "42846",
                format!(
                    "column {} of type {} does not take values of type {}",
                    plain(name),
                    column.type_name,
                    old.type_name
                ),
            )
            .hint(format!("Say how: transform => '{}'.", example(name, old.name.as_str(), &column.type_name)))),
            Some(old) => Ok(Source::Expression { sql: format!("l.{}", old.name), given: false }),
            None => {
                let sql = frozen.get(&column.attnum).cloned().unwrap_or_else(|| "NULL".to_owned());
                if sql == "NULL" && column.not_null {
                    return Err(Failure::new(
                        code::NOT_NULL,
                        format!("rows that exist have no value for column {}, which is NOT NULL", plain(name)),
                    )
                    .hint(format!(
                        "Give it a default, or say what they get: transform => '{}'.",
                        serde_json::json!({ name: "expression over the old row" })
                    )));
                }
                Ok(Source::Constant { sql })
            }
        }
    }

    /// How each column of the live table gets its value back.
    pub fn backward(&self, after: &[Column], key: &[KeyColumn]) -> Result<Vec<OldColumn>, Failure> {
        self.names_exist("reverse", &self.request.reverse, self.before, self.live)?;
        self.before
            .iter()
            .map(|column| {
                let new = after.iter().find(|new| self.old_of(new).is_some_and(|old| old.attnum == column.attnum));
                let (reverse, otherwise) = self.way_back(column, new, key)?;
                Ok(OldColumn {
                    name: column.name.clone(),
                    type_name: column.type_name.clone(),
                    bare_type: column.bare_type.clone(),
                    generated: column.generated,
                    new: new.map(|new| new.name.clone()),
                    reverse,
                    otherwise,
                })
            })
            .collect()
    }

    fn way_back(
        &self,
        column: &Column,
        new: Option<&Column>,
        key: &[KeyColumn],
    ) -> Result<(Option<String>, String), Failure> {
        let name = column.name.as_str();
        let given = self.given(&self.request.reverse, name);
        let null = || "NULL".to_owned();
        let carried = key.iter().find(|key| key.old == column.name);
        if given.is_some() && (column.generated || carried.is_some()) {
            let why = if column.generated {
                "which is generated"
            } else {
                "which is part of the key and goes back as it came"
            };
            return Err(Failure::new(code::INVALID_PARAMETER, format!("reverse names column {}, {why}", plain(name)))
                .hint("Leave it out."));
        }
        if column.generated {
            return Ok((None, null()));
        }
        if let Some(text) = given {
            let place = self.place(Shape::New, format!("reverse of {}", expression::column(name)));
            let read = takes(column, &place.what, expression::read(&place, text, kind(column))?)?;
            return Ok((Some(read.sql), null()));
        }
        match new {
            Some(new) if is_taken(column, new.type_oid) => Ok((Some(format!("s.{}", new.name)), null())),
            // One to one by the rule for keys, so the text form is the way back.
            Some(new) if carried.is_some() => Ok((Some(format!("(s.{})::{}", new.name, column.type_name)), null())),
            Some(new) => Err(Failure::new(
                "42846",
                format!(
                    "column {} has no way back: a value of type {} is not taken by type {}",
                    plain(name),
                    new.type_name,
                    column.type_name
                ),
            )
            .detail("After the swap every write goes back into the old table as well, so that a rollback loses none.")
            .hint(format!("Say how: reverse => '{}'.", example(name, new.name.as_str(), &column.type_name)))),
            None => {
                let otherwise = expression::default_of(self.live.oid, column.attnum)?;
                if otherwise.is_none() && column.not_null {
                    return Err(Failure::new(
                        code::NOT_NULL,
                        format!("column {} has no way back: it is NOT NULL, has no default, and the new shape does not have it", plain(name)),
                    )
                    .detail("After the swap every new row goes back into the old table as well, so that a rollback loses none.")
                    .hint(format!("Say what such a row gets: reverse => '{}'.", serde_json::json!({ name: "expression over the new row" }))));
                }
                Ok((None, otherwise.unwrap_or_else(null)))
            }
        }
    }

    fn names_exist(
        &self,
        argument: &str,
        object: &serde_json::Value,
        columns: &[Column],
        relation: &Relation,
    ) -> Result<(), Failure> {
        let unknown = object
            .as_object()
            .and_then(|object| object.keys().find(|name| !columns.iter().any(|column| column.name.as_str() == *name)));
        match unknown {
            None => Ok(()),
            Some(name) => {
                let shape = if argument == "transform" { "new shape" } else { "old shape" };
                Err(Failure::new(
                    code::UNDEFINED_COLUMN,
                    format!(
                        "{argument} names column {}, which the {shape} of {} does not have",
                        plain(name),
                        plain(relation.name.name.as_str())
                    ),
                )
                .hint(format!("{argument} speaks of the columns of the {shape}: {}.", listed(columns))))
            }
        }
    }
}

/// Whether a column takes values of a type as they are.
fn is_taken(column: &Column, type_oid: u32) -> bool {
    expression::is_assignable(type_oid, column.type_oid)
        && (column.bare_type.is_some() || expression::is_same_value(type_oid, column.type_oid))
}

/// Refuses an expression over whose values a cast to the column's type would say what fits, and cut the rest.
fn takes(column: &Column, what: &str, read: Expression) -> Result<Expression, Failure> {
    if is_taken(column, read.type_oid) {
        return Ok(read);
    }
    let (is, wanted) = (expression::type_text(read.type_oid, -1), &column.type_name);
    Err(Failure::new(
        code::DATATYPE_MISMATCH,
        format!("{what}: the expression is of type {is}, and the column, of type {wanted}, takes values of its own type only"),
    )
    .detail("Its fields have a length, or are domains or rows themselves: made out of another type they could be cut without a word.")
    .hint(format!("Have each field fit, and name the type: row(left(…, 3), …)::{wanted}.")))
}

fn listed(columns: &[Column]) -> String {
    const SHOWN: usize = 20;
    let mut names: Vec<String> = columns.iter().take(SHOWN).map(|column| plain(column.name.as_str())).collect();
    if columns.len() > SHOWN {
        names.push("…".to_owned());
    }
    names.join(", ")
}

fn example(name: &str, from: &str, type_name: &str) -> String {
    let example = serde_json::json!({ name: format!("{}::{type_name}", plain(from)) }).to_string();
    // Shown inside quotes.
    literal(&example).trim_matches('\'').to_owned()
}

/// A column's type.
pub fn kind(column: &Column) -> Type {
    Type { oid: column.type_oid, modifier: column.modifier }
}

/// The history of a shadow that was made with LIKE: it numbers the columns anew, leaving dropped ones out.
pub fn history_of_like(before: &[Column]) -> HashMap<i16, usize> {
    (0..before.len()).map(|at| (i16::try_from(at + 1).expect("a table has at most 1,600 columns"), at)).collect()
}

/// The history of a shadow that the user made: columns of one name are the same column.
pub fn history_of_names(before: &[Column], after: &[Column]) -> HashMap<i16, usize> {
    let at: HashMap<&Ident, usize> = before.iter().enumerate().map(|(at, column)| (&column.name, at)).collect();
    after.iter().filter_map(|column| at.get(&column.name).map(|at| (column.attnum, *at))).collect()
}
