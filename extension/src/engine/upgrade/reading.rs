//! Reading one upgrade: its columns and expressions, what it is made from, and whether it can be told from a row that it was done.

use super::numbers;
use super::register::{Request, invalid, unsupported};
use crate::catalog::definition::Column;
use crate::catalog::expression::{self, Place, Shape, Type};
use crate::catalog::relation::Relation;
use crate::catalog::spi;
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Ident, Name, plain};
use migrator_core::upgrade::{COLUMN, Upgrade};
use pgrx::pg_sys;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeSet;

/// What is read of one upgrade.
pub struct Reading<'a> {
    pub request: &'a Request,
    pub relation: &'a Relation,
    pub key: &'a [Ident],
    pub columns: &'a [Column],
}

impl Reading<'_> {
    fn column(&self, name: &str, role: &str) -> Result<&Column, Failure> {
        if name == COLUMN {
            return Err(unsupported(format!("{role} {COLUMN}: that is where rows remember their upgrades"))
                .hint("Name a column of the application's."));
        }
        let table = self.relation.name.plain();
        let column = self.columns.iter().find(|column| column.name.as_str() == name).ok_or_else(|| {
            Failure::new(code::UNDEFINED_COLUMN, format!("{role} {} is no column of table {table}", plain(name)))
                .detail("Nothing was changed.")
                .hint(format!("Add it first: alter table {} add column {} …;", self.relation.name, Ident::new(name)))
        })?;
        if column.generated {
            return Err(unsupported(format!("{role} {} of table {table} is a generated column", plain(name)))
                .hint("Name the columns that it is generated from."));
        }
        Ok(column)
    }

    fn output(&self, name: &str) -> Result<&Column, Failure> {
        let column = self.column(name, "output")?;
        if self.key.contains(&column.name) {
            return Err(unsupported(format!(
                "column {} is part of the key of table {}",
                plain(name),
                self.relation.name.plain()
            ))
            .hint("Rows are found by it while they are upgraded. Change a key with migrator.create_shadow."));
        }
        if column.identity {
            return Err(
                unsupported(format!("column {} is an identity column", plain(name))).hint("Write another column.")
            );
        }
        Ok(column)
    }

    fn named(&self, given: Option<&Vec<String>>, role: &str) -> Result<Option<Vec<Ident>>, Failure> {
        let Some(given) = given else { return Ok(None) };
        let mut names = BTreeSet::new();
        for name in given {
            let column = if role == "output" { self.output(name)? } else { self.column(name, role)? };
            names.insert(column.attnum);
        }
        Ok(Some(self.by_number(&names)))
    }

    fn by_number(&self, numbers: &BTreeSet<i16>) -> Vec<Ident> {
        let named = self.columns.iter().filter(|column| numbers.contains(&column.attnum));
        named.map(|column| column.name.clone()).collect()
    }

    fn place<'a>(&'a self, what: String, whole_row: bool) -> Place<'a> {
        Place {
            relation: self.relation.oid,
            shape: Shape::Old,
            owner: self.relation.owner(),
            settings: &self.request.settings,
            what,
            whole_row,
        }
    }

    fn upgrade(&self, set: Vec<(Ident, String)>, inputs: Vec<Ident>, outputs: Vec<Ident>) -> Upgrade {
        Upgrade {
            id: 0,
            name: self.request.name.clone(),
            set,
            inputs,
            outputs,
            settings: 0,
            in_place: false,
            numbers: vec![],
            deferred: false,
        }
    }

    pub fn expressions(&self, set: &Value) -> Result<Upgrade, Failure> {
        let wrong = || {
            invalid("set is an object of column → SQL expression")
                .hint(r#"For instance: set => '{"headline": "btrim(headline)"}'"#)
        };
        let set = set.as_object().filter(|set| !set.is_empty()).ok_or_else(wrong)?;
        if self.request.outputs.is_some() {
            return Err(invalid("outputs are named by set").hint("Leave outputs out."));
        }
        let mut expressions = vec![];
        let mut inputs = BTreeSet::new();
        for column in self.columns {
            let Some(text) = set.get(column.name.as_str()) else { continue };
            let text = text.as_str().ok_or_else(wrong)?;
            self.output(column.name.as_str())?;
            let place = self
                .place(format!("upgrade {}, column {}", plain(&self.request.name), plain(column.name.as_str())), false);
            let target = Type { oid: column.type_oid, modifier: column.modifier };
            let read = expression::read(&place, text, target)?;
            inputs.extend(read.columns.iter().copied());
            expressions.push((column.name.clone(), read.sql));
        }
        if let Some(unknown) =
            set.keys().find(|name| !expressions.iter().any(|(column, _)| column.as_str() == name.as_str()))
        {
            self.output(unknown)?;
        }
        let read = self.by_number(&inputs);
        for input in &read {
            self.column(input.as_str(), "input")?;
        }
        let inputs = match self.named(self.request.inputs.as_ref(), "input")? {
            None => read,
            // More may be named than the expressions read: what a function of the user's depends on.
            Some(given) => {
                if let Some(missing) = read.iter().find(|input| !given.contains(input)) {
                    return Err(invalid(format!(
                        "the expressions read column {}, which inputs does not name",
                        plain(missing.as_str())
                    ))
                    .hint("Leave inputs out: they are found by themselves."));
                }
                given
            }
        };
        Ok(self.upgrade(expressions, inputs, vec![]))
    }

    /// A function from the row type to the row type: its outputs are taken from what it returns.
    pub fn function(&self, oid: u32) -> Result<Upgrade, Failure> {
        #[derive(Deserialize)]
        struct Function {
            #[serde(flatten)]
            name: Name,
            fits: bool,
            computed: Option<String>,
        }
        let function: Function = spi::fetch_one(
            "select n.nspname as schema, p.proname as name, \
               p.prokind = 'f' and not p.proretset and p.pronargs = 1 and p.prorettype = c.reltype and p.proargtypes[0] = c.reltype as fits, \
               (select min(a.attname::text) from pg_catalog.pg_attribute a where a.attrelid = c.oid and a.attgenerated = 'v' and not a.attisdropped) as computed \
             from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace, pg_catalog.pg_class c where p.oid = $1 and c.oid = $2",
            &[pg_sys::Oid::from(oid).into(), pg_sys::Oid::from(self.relation.oid).into()],
        )?;
        let table = self.relation.name.plain();
        if !function.fits {
            return Err(Failure::new(
                code::DATATYPE_MISMATCH,
                format!("function {} does not take and return one row of table {table}", function.name.plain()),
            )
            .detail("Nothing was changed.")
            .hint(format!("It should be declared as {}({table}) returns {table}, immutable.", function.name.plain())));
        }
        if let Some(column) = function.computed {
            return Err(unsupported(format!("column {} of table {table} is virtual, and a function of the whole row would find it empty", plain(&column)))
                .hint("Say it with expressions over the columns that they need: set => '{…}'; or make the column a stored one."));
        }
        let Some(outputs) = self.named(self.request.outputs.as_ref(), "output")?.filter(|outputs| !outputs.is_empty())
        else {
            return Err(invalid("a function needs outputs: the columns that are taken from the row that it returns")
                .hint("For instance: outputs => '{headline}', inputs => '{content}'"));
        };
        let inputs = match self.named(self.request.inputs.as_ref(), "input")? {
            Some(inputs) => inputs,
            None => self
                .columns
                .iter()
                .filter(|column| !column.generated && column.name.as_str() != COLUMN && !outputs.contains(&column.name))
                .map(|column| column.name.clone())
                .collect(),
        };
        let mut expressions = vec![];
        for output in &outputs {
            let column = self.column(output.as_str(), "output")?;
            let text = format!("({}({})).{output}", function.name, Ident::new(self.relation.name.name.as_str()));
            let place =
                self.place(format!("upgrade {}, function {}", plain(&self.request.name), function.name.plain()), true);
            let read = expression::read(&place, &text, Type { oid: column.type_oid, modifier: column.modifier })?;
            expressions.push((output.clone(), read.sql));
        }
        Ok(self.upgrade(expressions, inputs, vec![]))
    }

    pub fn application(&self) -> Result<Upgrade, Failure> {
        let Some(inputs) = self.named(self.request.inputs.as_ref(), "input")?.filter(|inputs| !inputs.is_empty())
        else {
            return Err(invalid(format!(
                "upgrade {} has neither set nor function, so application code does it, and its inputs have to be named",
                plain(&self.request.name)
            ))
            .hint("For instance: inputs => '{content}', outputs => '{content2}'. A row whose inputs change is handed out again."));
        };
        let outputs = self.named(self.request.outputs.as_ref(), "output")?.unwrap_or_default();
        Ok(self.upgrade(vec![], inputs, outputs))
    }

    /// An output among the inputs: once it is written, nobody can tell from the row what was there before.
    pub fn in_place(&self, upgrade: Upgrade) -> Result<Upgrade, Failure> {
        let shared: Vec<String> = upgrade
            .outputs()
            .filter(|output| upgrade.inputs.contains(output))
            .map(|output| plain(output.as_str()))
            .collect();
        if shared.is_empty() || upgrade.is_application() {
            return Ok(upgrade);
        }
        if upgrade.outputs().count() > 1 {
            return Err(unsupported(format!(
                "upgrade {} makes {} out of itself, and writes more than one column",
                plain(&self.request.name),
                shared.join(", ")
            ))
            .detail("A writer who writes one of them and not the others says nothing of those. Nothing was changed.")
            .hint("Register an upgrade for each column."));
        }
        if !self.request.safe_in_place {
            return Err(unsupported(format!(
                "upgrade {} makes {} out of itself",
                plain(&self.request.name),
                shared.join(", ")
            ))
            .detail("When an application that does not know of the upgrade writes that column, it cannot be told whether the value is an old or a new one. Nothing was changed.")
            .hint("Write to a column of its own; or, if nothing that runs writes old values any more, say so: safe_in_place => true."));
        }
        let numbers = numbers::of(self.columns, &upgrade);
        Ok(Upgrade { in_place: true, numbers, ..upgrade })
    }
}
