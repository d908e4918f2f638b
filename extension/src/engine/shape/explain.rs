//! What a change would do, from its plan: each statement, its lock and for how long, what it costs, what hangs on the
//! table, and what cannot be undone.

use super::Made;
use super::measure::{self, Size};
use crate::catalog::lock::{self, Mode};
use crate::catalog::relation::Relation;
use crate::catalog::{dependants, spi};
use crate::engine::carry;
use migrator_core::failure::Failure;
use migrator_core::ident::{Ident, plain};
use migrator_core::plan::{Plan, Source};
use migrator_core::sql::{self, Tables};
use pgrx::pg_sys;
use serde::Deserialize;

/// One row of `migrator.explain`.
#[derive(Debug, Default)]
pub struct Row {
    /// The step, `dependant`, `disk` or `note`.
    pub step: &'static str,
    /// What it is about.
    pub object: String,
    /// What is run.
    pub statement: Option<String>,
    /// The strongest lock on the table that the application uses, or on the shadow.
    pub lock: Option<String>,
    /// For how long.
    pub held: Option<String>,
    /// Rows that it touches.
    pub rows: Option<i64>,
    /// Bytes that it writes, or, of the disk, that are needed or free.
    pub bytes: Option<i64>,
    /// Bytes of WAL.
    pub wal_bytes: Option<i64>,
    /// How long it takes, estimated.
    pub seconds: Option<f64>,
    /// What else there is to know.
    pub note: Option<String>,
}

fn row(step: &'static str, object: &str, statement: &str, lock: &str, held: &str, note: &str) -> Row {
    Row {
        step,
        object: object.to_owned(),
        statement: text(statement),
        lock: text(lock),
        held: text(held),
        note: text(note),
        ..Row::default()
    }
}

/// All rows, in the order of the steps; what to know of them at the end. The caller undoes what it made for this.
pub fn rows(live: &Relation, made: &Made) -> Result<Vec<Row>, Failure> {
    let table = live.name.plain();
    let size = Size::of(live)?;
    let attempts =
        format!("attempts of at most {} ms, taken only when nobody is in the way", lock::DEADLINE.as_millis());
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
    let copy = copy(live, made, &size)?;
    let number = copy.rows;
    rows.push(copy);
    builds(live, made, &mut rows)?;
    rows.push(row(
        "catch_up",
        &table,
        "",
        "ACCESS SHARE",
        "one batch",
        "Rows whose keys were recorded are copied again, until few are left.",
    ));
    rows.push(Row {
        rows: number,
        ..row(
            "verify",
            &table,
            "",
            "ACCESS SHARE",
            "one batch, about 1 s",
            "Every row of both tables is compared by the hash of what is stored. A call of migrator.verify does it in one transaction.",
        )
    });
    swap(live, made, &attempts, &mut rows)?;
    rows.push(row(
        "finish",
        &table,
        "drop table …",
        "ACCESS EXCLUSIVE, on the backup too",
        &attempts,
        "Until then rollback takes the swap back, with every write made since that the old shape can hold; after it nothing does.",
    ));
    rows.extend(
        dependants::carried(live.oid)?
            .iter()
            .map(|object| row("dependant", object, "", "", "", "The swap carries it over; rollback brings it back.")),
    );
    rows.extend(notes(&made.plan).into_iter().map(|(object, note)| row("note", &object, "", "", "", &note)));
    rows.extend(
        narrow_sequences(live, &made.plan)?.into_iter().map(|(object, note)| row("note", &object, "", "", "", &note)),
    );
    rows.extend(disk(live, &size)?);
    Ok(rows)
}

fn copy(live: &Relation, made: &Made, size: &Size) -> Result<Row, Failure> {
    let tables = Tables { old: &live.name, new: &made.shadow.name };
    let estimate = measure::sample(live, &made.plan, tables, size.blocks)?;
    let statement = sql::copy(&made.plan, tables, 0, 32);
    let rows = size.rows.or(estimate.rows);
    let about = rows.map_or_else(|| "Nobody has counted its rows;".to_owned(), |rows| format!("About {rows} rows,"));
    let note = format!("{about} {}; as much WAL. {}", size.table_text, estimate.note);
    Ok(Row {
        rows,
        bytes: Some(size.table),
        wal_bytes: Some(size.table),
        seconds: estimate.seconds,
        ..row("copy", &live.name.plain(), &statement, "ACCESS SHARE", "one batch, about 200 ms", note.trim_end())
    })
}

fn builds(live: &Relation, made: &Made, rows: &mut Vec<Row>) -> Result<(), Failure> {
    for build in &made.plan.builds {
        // The new index will be about as big as the one that it follows.
        let bytes = measure::index_bytes(live, build.name.as_str())?;
        let held = "while it is built; nobody else uses the shadow";
        rows.push(Row {
            bytes,
            wal_bytes: bytes,
            ..row("build", build.name.as_str(), &build.sql, "SHARE on the shadow", held, "")
        });
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
    Ok(())
}

/// The swap, as it would be carried out if everything stays as it is. Refuses what `create_shadow` refuses.
fn swap(live: &Relation, made: &Made, attempts: &str, rows: &mut Vec<Row>) -> Result<(), Failure> {
    let table = live.name.plain();
    let away = "migrator_backup_0";
    let carryover = carry::gather(&carry::Swap {
        front: live,
        rear: &made.shadow,
        plan: &made.plan,
        direction: sql::Direction::Forward,
        kept: None,
        front_backup_schema: away,
    })?;
    for statement in &carryover.before_lock {
        rows.push(row("swap", &table, &statement.sql, "", "", "Before any lock, on the shadow."));
    }
    for wanted in &carryover.locks {
        let Some(relation) = Relation::find(wanted.relation)? else { continue };
        if relation.oid != made.shadow.oid && relation.oid != live.oid {
            rows.push(row("swap", &relation.name.plain(), "", wanted.mode.name(), attempts, "Locked with the table."));
        }
    }
    let moves = [
        format!("alter table {} set schema {}", live.name, Ident::new(away)),
        format!("alter table {} set schema {}", made.shadow.name, live.name.schema),
    ];
    let all = carryover.before_move.iter().map(|statement| &statement.sql);
    let all = all.chain(&moves).chain(carryover.after_move.iter().map(|statement| &statement.sql));
    for statement in all {
        rows.push(row("swap", &table, statement, Mode::AccessExclusive.name(), attempts, ""));
    }
    for (of, constraint) in &carryover.unvalidated {
        let statement = format!("alter table {of} validate constraint {}", Ident::new(constraint.clone()));
        let held = "while rows are checked; nobody who reads or writes waits";
        rows.push(row("validate", constraint, &statement, Mode::ShareUpdateExclusive.name(), held, "After the swap."));
    }
    Ok(())
}

/// Disk and WAL, needed and free.
fn disk(live: &Relation, size: &Size) -> Result<Vec<Row>, Failure> {
    let (data, wal) = measure::free(live)?;
    let needed = size.table + size.indexes;
    let told = |free: Option<i64>| match free {
        None => "The server's user cannot tell.",
        Some(free) if free < needed => "This is too little.",
        Some(_) => "",
    };
    let of = |object, bytes, note: &str| Row { bytes, ..row("disk", object, "", "", "", note) };
    let until_finish = format!(
        "About as much again as the table has: {} and {} of indexes, until finish.",
        size.table_text, size.indexes_text
    );
    Ok(vec![
        of("needed", Some(needed), &until_finish),
        of("free", data, told(data)),
        of(
            "WAL needed",
            Some(needed),
            "While rows are copied and indexes built; kept as long as the server keeps WAL.",
        ),
        of("WAL free", wal, told(wal)),
    ])
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
                        "After the swap {} goes back from {} to {}: a row with a value that does not fit is named by migrator.status, and stands in the way of a rollback until it fits or is gone.",
                        name, new.type_name, column.type_name
                    )));
                }
                if matches!(new.source, Source::Expression { given: true, .. }) && column.goes_back_as_it_is() {
                    notes.push((name.clone(), format!("{name} is computed by an expression, and goes back as it is: give reverse if its meaning changes.")));
                }
            }
            None if column.reverse.is_none() && !column.generated => {
                results = true;
                notes.push((name.clone(), format!("{name} is dropped: after a rollback rows that were inserted since the swap, or got another key, have {} there, all others their old value.", column.otherwise)));
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
