//! What a change would do, from its plan: each statement, its lock and for how long, and what cannot be undone.

use super::Made;
use crate::catalog::relation::Relation;
use crate::catalog::{lock, spi};
use migrator_core::failure::Failure;
use migrator_core::ident::plain;
use migrator_core::plan::{OldColumn, Plan, Source};
use migrator_core::sql::{self, Tables};
use pgrx::pg_sys;
use serde::Deserialize;

/// One row of `migrator.explain`.
#[derive(Debug, Default)]
pub struct Row {
    /// The step, or `note`.
    pub step: &'static str,
    /// What it is about.
    pub object: String,
    /// What is run.
    pub statement: Option<String>,
    /// The strongest lock on the table that the application uses, or on the shadow.
    pub lock: Option<String>,
    /// For how long.
    pub held: Option<String>,
    /// What else there is to know.
    pub note: Option<String>,
}

/// All rows, in the order of the steps; what to know of them at the end.
pub fn rows(live: &Relation, made: &Made) -> Result<Vec<Row>, Failure> {
    let table = live.name.plain();
    let size = Size::of(live)?;
    let attempts =
        format!("attempts of at most {} ms, taken only when nobody is in the way", lock::DEADLINE.as_millis());
    let row = |step, object: &str, statement: &str, lock: &str, held: &str, note: &str| Row {
        step,
        object: object.to_owned(),
        statement: text(statement),
        lock: text(lock),
        held: text(held),
        note: text(note),
    };
    let mut rows: Vec<Row> = made
        .statements
        .iter()
        .map(|statement| row("create_shadow", &table, statement, "ACCESS SHARE", "until COMMIT; no writer waits", ""))
        .collect();
    rows.push(row(
        "start_sync",
        &table,
        "create trigger …",
        "SHARE ROW EXCLUSIVE",
        &attempts,
        "From here on each write also records the key of the row.",
    ));
    let copy = sql::copy(&made.plan, Tables { old: &live.name, new: &made.shadow.name }, 0, 32);
    rows.push(row("copy", &table, &copy, "ACCESS SHARE", "one batch, about 200 ms", &size.copied()));
    for build in &made.plan.builds {
        rows.push(row(
            "build",
            build.name.as_str(),
            &build.sql,
            "SHARE on the shadow",
            "while it is built; nobody else uses the shadow",
            "",
        ));
    }
    for build in &made.plan.builds {
        for statement in build.attach.iter().chain(&build.also) {
            rows.push(row(
                "attach",
                build.name.as_str(),
                statement,
                "ACCESS EXCLUSIVE on the shadow",
                "a moment; nobody else uses the shadow",
                "",
            ));
        }
    }
    rows.push(row(
        "catch_up",
        &table,
        "",
        "ACCESS SHARE",
        "one batch",
        "Rows whose keys were recorded are copied again, until few are left.",
    ));
    rows.push(row(
        "verify",
        &table,
        "",
        "ACCESS SHARE",
        "one chunk, at most 5 s",
        "Every row of both tables is compared by the hash of what is stored.",
    ));
    rows.push(row(
        "swap",
        &table,
        "alter table … set schema …",
        "ACCESS EXCLUSIVE",
        &attempts,
        "Referenced and referencing tables are locked with it.",
    ));
    rows.push(row(
        "finish",
        &table,
        "drop table …",
        "ACCESS EXCLUSIVE on the backup",
        "a moment",
        "Until then rollback takes the swap back, with every write made since that the old shape can hold.",
    ));
    rows.extend(notes(&made.plan).into_iter().map(|(object, note)| row("note", &object, "", "", "", &note)));
    rows.extend(
        narrow_sequences(live, &made.plan)?.into_iter().map(|(object, note)| row("note", &object, "", "", "", &note)),
    );
    rows.push(row("note", &table, "", "", "", &size.needed()));
    Ok(rows)
}

fn text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// What people should know before they begin: (column or table, note).
fn notes(plan: &Plan) -> Vec<(String, String)> {
    let mut notes = vec![];
    let mut results = false;
    for column in &plan.old_columns {
        let new = column.new.as_ref().and_then(|name| plan.new_columns.iter().find(|new| new.name == *name));
        let name = plain(column.name.as_str());
        match new {
            Some(new) => {
                results |= new.type_name != column.type_name || new.name != column.name;
                if new.type_name != column.type_name {
                    notes.push((name.clone(), format!(
                        "After the swap {} goes back from {} to {}: a row with a value that does not fit is named by migrator.status, and a rollback cannot keep it.",
                        name, new.type_name, column.type_name
                    )));
                }
                if matches!(new.source, Source::Expression { given: true, .. }) && is_plain_way_back(column) {
                    notes.push((name.clone(), format!("{name} is computed by an expression, and goes back as it is: give reverse if its meaning changes.")));
                }
            }
            None if column.reverse.is_none() && !column.generated => {
                results = true;
                notes.push((name.clone(), format!("{name} is dropped: after a rollback rows written since the swap have {} there, all others their old value.", column.otherwise)));
            }
            None => results = true,
        }
    }
    results |= plan.new_columns.iter().any(|column| column.old.is_none());
    if results {
        notes.push(("prepared statements".to_owned(), "One whose result columns change fails once after the swap with \"cached plan must not change result type\"; so does select * with a column more or less. All others continue.".to_owned()));
    }
    for constraint in &plan.unvalidated {
        notes.push((plain(constraint.name.as_str()), "Stays NOT VALID: rows that exist are not checked.".to_owned()));
    }
    if plan.key.iter().any(|column| !column.same_order) {
        notes.push((
            "key".to_owned(),
            "Old and new keys sort differently, so verify reads each chunk of the new table by key.".to_owned(),
        ));
    }
    notes
}

/// A serial column that becomes wider keeps its sequence, which goes on counting in the old type.
fn narrow_sequences(live: &Relation, plan: &Plan) -> Result<Vec<(String, String)>, Failure> {
    #[derive(Deserialize)]
    struct Sequence {
        column: String,
        sequence: String,
        counts: String,
    }
    let sequences: Vec<Sequence> = spi::fetch(
        "select a.attname as column, d.objid::pg_catalog.regclass::pg_catalog.text as sequence, pg_catalog.format_type(q.seqtypid, null) as counts \
         from pg_catalog.pg_depend d join pg_catalog.pg_sequence q on q.seqrelid = d.objid \
           join pg_catalog.pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid \
         where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass \
           and d.deptype = 'a' and d.refobjid = $1 order by a.attnum",
        &[pg_sys::Oid::from(live.oid).into()],
    )?;
    Ok(sequences
        .into_iter()
        .filter_map(|found| {
            let new =
                plan.new_columns.iter().find(|new| new.old.as_ref().is_some_and(|old| old.as_str() == found.column))?;
            let width = |name: &str| ["smallint", "integer", "bigint"].iter().position(|wanted| *wanted == name);
            (width(&new.type_name)? > width(&found.counts)?).then(|| {
                let note = format!(
                    "Its sequence still counts in {}. When the change is finished: alter sequence {} as {};",
                    found.counts, found.sequence, new.type_name
                );
                (plain(&found.column), note)
            })
        })
        .collect())
}

fn is_plain_way_back(column: &OldColumn) -> bool {
    column.new.as_ref().is_some_and(|new| column.reverse.as_deref() == Some(format!("s.{new}").as_str()))
}

#[derive(Deserialize)]
struct Size {
    rows: f64,
    heap: String,
    indexes: String,
    all: String,
}

impl Size {
    fn of(live: &Relation) -> Result<Size, Failure> {
        spi::fetch_one(
            "select greatest(c.reltuples, 0)::pg_catalog.float8 as rows, pg_catalog.pg_size_pretty(pg_catalog.pg_table_size(c.oid)) as heap, \
               pg_catalog.pg_size_pretty(pg_catalog.pg_indexes_size(c.oid)) as indexes, \
               pg_catalog.pg_size_pretty(pg_catalog.pg_total_relation_size(c.oid)) as all \
             from pg_catalog.pg_class c where c.oid = $1",
            &[pg_sys::Oid::from(live.oid).into()],
        )
    }

    fn copied(&self) -> String {
        format!("About {:.0} rows, {}; as much WAL.", self.rows, self.heap)
    }

    fn needed(&self) -> String {
        format!(
            "Needs about as much disk again as the table has, {} ({} of it indexes), until finish; and as much WAL.",
            self.all, self.indexes
        )
    }
}
