//! Where most rows change, writing the table anew costs less than writing every row once more: the upgrade becomes a table
//! change with the same expressions.
//!
//! The guard stands first. So rows that are written meanwhile have the name before or after the swap, whichever way they come;
//! the others get it with the copy.

use super::register::{Request, Wish};
use super::table::{Registered, Upgraded};
use crate::catalog::attempt::attempt;
use crate::catalog::definition;
use crate::catalog::expression::{self, Place, Shape, Type};
use crate::catalog::{role, spi};
use crate::engine::shape::{self, Session, measure};
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Ident, literal, plain};
use migrator_core::state::State;
use migrator_core::upgrade::COLUMN;
use migrator_core::upgrade::choose::{self, Costs};
use pgrx::pg_sys;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// How an upgrade is brought to the rows that are there, and why.
#[derive(Debug, Clone)]
pub struct Chosen {
    pub rewrite: bool,
    pub why: String,
}

impl Chosen {
    fn rows(why: impl Into<String>) -> Self {
        Self { rewrite: false, why: why.into() }
    }

    /// As the table has it.
    pub fn strategy(&self) -> &'static str {
        if self.rewrite { "rewrite" } else { "rows" }
    }
}

/// Chooses what was asked for, or by the table's size, its indexes, the rows that lack it and the room there is.
pub fn choose(request: &Request, wish: &Wish) -> Result<Chosen, Failure> {
    match request.strategy.as_str() {
        "rows" => return Ok(Chosen::rows("batches of rows were asked for")),
        "rewrite" => {
            if let Some(why) = obstacle(request, wish)? {
                return Err(Failure::new(
                    code::NOT_SUPPORTED,
                    format!("upgrade {} cannot be done by a rewrite: {why}", plain(&request.name)),
                )
                .detail("Nothing was changed.")
                .hint("Leave strategy out: batches of rows do it."));
            }
            return Ok(Chosen { rewrite: true, why: "a rewrite was asked for".to_owned() });
        }
        _ => {}
    }
    // Its rows are in its partitions: neither its size nor a sample says anything.
    if let Some(why) = partitioned(wish) {
        return Ok(Chosen::rows(format!("a rewrite is not possible: {why}")));
    }
    let size = measure::Size::of(&wish.relation)?;
    let bytes = size.table + size.indexes;
    if let Some(why) = choose::is_small(bytes) {
        return Ok(Chosen::rows(why));
    }
    let (share, seen) =
        if wish.adds_column { (1.0, "all rows lack it".to_owned()) } else { lacking(request, wish, size.blocks)? };
    let free = measure::free(&wish.relation)?.0;
    let why = match choose::choose(&Costs { bytes, indexes: size.index_count, share, free }, &seen) {
        Err(why) => return Ok(Chosen::rows(why)),
        Ok(why) => why,
    };
    match obstacle(request, wish)? {
        Some(obstacle) => Ok(Chosen::rows(format!("{seen}, but a rewrite is not possible: {obstacle}"))),
        None => Ok(Chosen { rewrite: true, why }),
    }
}

/// Which part of the rows lacks the name, by a sample, and that in words.
fn lacking(request: &Request, wish: &Wish, blocks: u64) -> Result<(f64, String), Failure> {
    #[derive(Deserialize)]
    struct Counts {
        rows: i64,
        lacking: i64,
    }
    // Some thousand blocks, wherever they are. Always the same ones: who explains it first sees what is chosen.
    let percent = (100.0 * 1000.0 / blocks.max(1) as f64).min(100.0);
    let sql = format!(
        "select count(*) as rows, count(*) filter (where not {}) as lacking from only {} tablesample system ({percent}) repeatable (1)",
        has(&request.name),
        wish.relation.name
    );
    let counts: Counts = role::as_owner(wish.relation.owner(), &[], || spi::fetch_one(&sql, &[]))?;
    if counts.rows == 0 {
        return Ok((0.0, "no rows were seen in a sample".to_owned()));
    }
    let share = counts.lacking as f64 / counts.rows as f64;
    Ok((share, format!("{:.0} % of the rows lack it, by a sample of {}", share * 100.0, counts.rows)))
}

fn obstacle(request: &Request, wish: &Wish) -> Result<Option<String>, Failure> {
    if wish.kind != "expression" {
        return Ok(Some("only expressions can be computed by a copy".to_owned()));
    }
    if wish.others.iter().any(|other| other.state != "complete") {
        return Ok(Some("other upgrades of the table are not complete".to_owned()));
    }
    if let Some(why) = partitioned(wish) {
        return Ok(Some(why.to_owned()));
    }
    if let Some(why) = unified(request, wish)? {
        return Ok(Some(why));
    }
    // Tried, and undone. Where the column is not there yet, without the marks: the expressions and what hangs on the table are
    // what a change stumbles over.
    let earlier = live(&wish.others);
    match attempt(|| shape::explain(&change(request, wish.relation.oid, !wish.adds_column, &earlier))) {
        Ok(_) => Ok(None),
        Err(failure) => Ok(Some(failure.message)),
    }
}

/// An expression whose type the column's own values would take on their way: the copy chooses between both for each row, in one type.
fn unified(request: &Request, wish: &Wish) -> Result<Option<String>, Failure> {
    let place = Place {
        relation: wish.relation.oid,
        shape: Shape::Old,
        owner: wish.relation.owner(),
        settings: &request.settings,
        what: format!("upgrade {}", plain(&request.name)),
        whole_row: false,
    };
    let columns = definition::columns(wish.relation.oid)?;
    for (name, expression) in expressions(request) {
        let Some(column) = columns.iter().find(|column| column.name.as_str() == name) else { continue };
        let target = Type { oid: column.type_oid, modifier: column.modifier };
        let both = match expression::read(&place, &value("true", &column.name, expression), target) {
            Ok(both) => both,
            Err(failure) => return Ok(Some(failure.message)),
        };
        if !expression::is_same_value(both.type_oid, column.type_oid) {
            let own = expression::read(&place, expression, target)?.type_oid;
            return Ok(Some(format!(
                "the expression for column {} is of type {}, and values of type {} that rows have already would become such of type {} on their way; cast it to the column's type",
                plain(name),
                expression::type_text(own, -1),
                column.type_name,
                expression::type_text(both.type_oid, -1),
            )));
        }
    }
    Ok(None)
}

fn partitioned(wish: &Wish) -> Option<&'static str> {
    (wish.relation.kind != "r").then_some("the table is partitioned")
}

/// Begins the change of a rewrite that was chosen, and not asked for: where it cannot be begun, rows are upgraded in batches, and
/// it is said why.
pub fn begin_if_possible(table: &Upgraded, request: &Request, upgrade: i64, chosen: Chosen) -> Result<Chosen, Failure> {
    match attempt(|| begin(table, request, upgrade)) {
        Ok(()) => Ok(chosen),
        Err(failure) => Ok(Chosen::rows(format!("a rewrite is not possible: {}", failure.message))),
    }
}

/// Begins the change, after the guard was put there.
pub fn begin(table: &Upgraded, request: &Request, upgrade: i64) -> Result<(), Failure> {
    let mut others = table.registered()?;
    others.retain(|other| other.id != upgrade);
    let id = shape::create_shadow(&change(request, table.relation.oid, true, &live(&others)))?;
    spi::execute(
        "update migrator.upgrade set strategy = 'rewrite', change = $2 where id = $1",
        &[upgrade.into(), id.into()],
    )
    .map(|_| ())
}

/// The names that a row has to have before it may get another one: new upgrades stand behind all live ones.
fn live(others: &[Registered]) -> Vec<&str> {
    others.iter().filter(|other| other.state != "retiring").map(|other| other.name.as_str()).collect()
}

/// Whether a row has the name.
pub fn has(name: &str) -> String {
    has_all(&[name])
}

fn has_all(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| literal(name)).collect();
    format!(
        "coalesce({} operator(pg_catalog.@>) array[{}]::pg_catalog.text[], false)",
        Ident::from(COLUMN),
        names.join(", ")
    )
}

fn expressions(request: &Request) -> impl Iterator<Item = (&str, &str)> {
    let set = request.set.as_ref().and_then(Value::as_object).into_iter().flatten();
    set.map(|(column, expression)| (column.as_str(), expression.as_str().unwrap_or_default()))
}

fn value(stays: &str, column: &Ident, expression: &str) -> String {
    format!("case when {stays} then {column} else ({expression}) end")
}

/// The change: rows that have the name keep what they have. So do rows that lack an earlier one, which they may have lost since that
/// was complete: batches bring them both, in their order. `marked`: the table has the column of names.
fn change(request: &Request, relation: u32, marked: bool, earlier: &[&str]) -> shape::Request {
    let marks = Ident::from(COLUMN);
    let name = literal(&request.name);
    let stays = match (marked, earlier) {
        (false, _) => "false".to_owned(),
        (true, []) => has(&request.name),
        (true, earlier) => format!("{} or not {}", has(&request.name), has_all(earlier)),
    };
    let mut transform = Map::new();
    for (column, expression) in expressions(request) {
        transform.insert(column.to_owned(), json!(value(&stays, &Ident::new(column), expression)));
    }
    if marked {
        transform.insert(
            COLUMN.to_owned(),
            json!(format!(
                "case when {stays} then {marks} else pg_catalog.array_append(coalesce({marks}, '{{}}'), {name}::pg_catalog.text) end"
            )),
        );
    }
    shape::Request {
        relation,
        actions: None,
        transform: Value::Object(transform),
        reverse: json!({}),
        shadow: None,
        on_ready: "swap".to_owned(),
        upgrade: true,
        session: Session { role: request.caller, settings: request.settings.clone() },
    }
}

/// A change that rewrites the table for an upgrade, and is not there yet: what batches wait for. One that was cancelled leaves the
/// rows to batches.
pub fn under_way(table: &Upgraded) -> Result<Option<i64>, Failure> {
    #[derive(Deserialize)]
    struct Row {
        change: i64,
        state: State,
    }
    let rows: Vec<Row> = spi::fetch(
        "select g.change, c.state from migrator.upgrade g join migrator.change c on c.id = g.change \
         where g.relation = $1 and g.state = 'running' and g.strategy = 'rewrite' order by g.id",
        &[pg_sys::Oid::from(table.relation.oid).into()],
    )?;
    let open = |row: &&Row| !matches!(row.state, State::Swapped | State::Finished | State::Cancelled);
    Ok(rows.iter().find(open).map(|row| row.change))
}
