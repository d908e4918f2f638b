//! What registering would do, without doing it.

use super::install;
use super::register::Wish;
use super::register::{self, Request};
use super::table::Upgraded;
use super::{rewrite, table, view};
use crate::catalog::attempt::attempt;
use crate::catalog::lock;
use crate::catalog::{role, spi};
use crate::guard::Refusal;
use migrator_core::failure::Failure;
use migrator_core::ident::{Ident, Name};
use migrator_core::upgrade::{COLUMN, Upgrade};
use pgrx::pg_sys;
use serde::Deserialize;
use std::time::Instant;

/// One step.
pub struct Row {
    pub step: &'static str,
    pub object: String,
    pub statement: Option<String>,
    pub lock: Option<&'static str>,
    pub held: Option<String>,
    pub cost: Cost,
    pub note: Option<String>,
}

/// What it costs, estimated; None where nobody knows.
#[derive(Default)]
pub struct Cost {
    /// Rows that are written.
    pub rows: Option<i64>,
    /// Bytes of new versions of them.
    pub bytes: Option<i64>,
    pub wal_bytes: Option<i64>,
    /// Seconds of one connection for reading and computing them.
    pub seconds: Option<f64>,
}

/// The steps, in order.
pub fn rows(request: &Request) -> Result<Vec<Row>, Failure> {
    let wish = register::understand(request)?;
    let table = wish.relation.name.plain();
    let held = format!("attempts of at most {} ms, taken only when nobody is in the way", lock::DEADLINE.as_millis());
    let mut rows = vec![];
    if wish.adds_column {
        rows.push(Row {
            step: "register_upgrade",
            object: format!("{table}.{COLUMN}"),
            statement: Some(install::add_column(&wish.relation)),
            lock: Some(lock::Mode::AccessExclusive.name()),
            held: Some(held.clone()),
            cost: Cost::default(),
            note: Some("only the catalog is written".to_owned()),
        });
    }
    let mut definition = table::define(wish.key.clone(), &wish.others);
    definition.settings.push(request.settings.clone());
    definition.upgrades.push(Upgrade { settings: definition.settings.len() - 1, ..wish.upgrade.clone() });
    let deferred = table::refusal(&wish.relation, &wish.upgrade)? == Refusal::Any;
    for statement in install::trigger(&wish.relation, &definition) {
        rows.push(Row {
            step: "register_upgrade",
            object: table.clone(),
            statement: Some(statement),
            lock: Some(lock::Mode::ShareRowExclusive.name()),
            held: Some(held.clone()),
            cost: Cost::default(),
            note: deferred.then(|| {
                "derived in batches only: a derived value could make an application's statement fail".to_owned()
            }),
        });
    }
    let upgraded = Upgraded::find(wish.relation.oid)?;
    let view: Name = view::name(upgraded.as_ref(), &wish.relation, request.view_name.as_deref())?;
    rows.push(Row {
        step: "register_upgrade",
        object: view.plain(),
        statement: Some(format!("create or replace view {view} …")),
        lock: None,
        held: None,
        cost: Cost::default(),
        note: Some("shows every row as it will be".to_owned()),
    });
    let chosen = rewrite::choose(request, &wish)?;
    if chosen.rewrite {
        rows.push(Row {
            step: "create_shadow",
            object: table,
            statement: None,
            lock: None,
            held: None,
            cost: Cost::default(),
            note: Some(format!(
                "the table is written anew, as by migrator.create_shadow(…, on_ready => 'swap'): {}",
                chosen.why
            )),
        });
        return Ok(rows);
    }
    let (cost, sampled) = cost(request, &wish)?;
    rows.push(Row {
        step: "step",
        object: table.clone(),
        statement: None,
        lock: Some("ROW EXCLUSIVE"),
        held: Some("one batch".to_owned()),
        cost,
        note: Some(format!(
            "{}; {sampled}",
            if wish.upgrade.is_application() {
                "application code does it: migrator.select_batch hands the rows out".to_owned()
            } else {
                "every row that lacks it is written once, in batches; rows that somebody else holds are left for later"
                    .to_owned()
            }
        )),
    });
    Ok(rows)
}

#[derive(Deserialize)]
struct Size {
    rows: Option<i64>,
    blocks: i64,
}

/// Rows, as they were counted last, and blocks; of a partitioned table those of its partitions.
fn size(wish: &Wish) -> Result<Size, Failure> {
    spi::fetch_one(
        "select sum(c.reltuples) filter (where c.reltuples >= 0)::pg_catalog.int8 as rows, \
           coalesce(sum(pg_catalog.pg_relation_size(c.oid)) / pg_catalog.current_setting('block_size')::pg_catalog.int8, 0)::pg_catalog.int8 as blocks \
         from pg_catalog.pg_class c where (c.oid = $1 and c.relkind <> 'p' \
           or c.oid in (select t.relid from pg_catalog.pg_partition_tree($1::pg_catalog.oid::pg_catalog.regclass) t where t.isleaf))",
        &[pg_sys::Oid::from(wish.relation.oid).into()],
    )
}

/// Rows for which the expressions are computed, however long they take.
const SAMPLE: u32 = 1000;

/// What bringing it to the rows takes, by a sample of the table that is read and computed as its owner; and what is not in that.
fn cost(request: &Request, wish: &Wish) -> Result<(Cost, String), Failure> {
    #[derive(Deserialize)]
    struct Sample {
        rows: i64,
        lacking: i64,
        width: Option<f64>,
        indexes: i64,
    }
    let size = size(wish)?;
    let upgrade = &wish.upgrade;
    let has = if wish.adds_column { "false".to_owned() } else { rewrite::has(&upgrade.name) };
    // What is not asked for is not computed: its size is.
    let computed: Vec<&str> = upgrade.set.iter().map(|(_, expression)| expression.as_str()).collect();
    let computed = if computed.is_empty() { "1".to_owned() } else { computed.join(", ") };
    let percent = (100.0 * 500.0 / size.blocks.max(1) as f64).min(100.0);
    let table = &wish.relation.name;
    let alias = Ident::from("l");
    let only = if wish.relation.kind == "p" { "" } else { "only " };
    let sql = format!(
        "select count(*) as rows, count(*) filter (where not {has}) as lacking, avg(pg_column_size({alias}.*) + 0 * pg_column_size(row({computed})))::pg_catalog.float8 as width, \
           (select count(*) from pg_catalog.pg_index i where i.indrelid = $1) as indexes \
         from (select * from {only}{table} tablesample system ({percent}) repeatable (1) limit {SAMPLE}) {alias}"
    );
    let begun = Instant::now();
    let oid = pg_sys::Oid::from(wish.relation.oid);
    let sample: Result<Sample, Failure> =
        attempt(|| role::as_owner(wish.relation.owner(), &request.settings, || spi::fetch_one(&sql, &[oid.into()])));
    let sample = match sample {
        Ok(sample) => sample,
        Err(failure) => {
            return Ok((
                Cost::default(),
                format!("a row of a sample is refused, so nothing was measured: {}", failure.message),
            ));
        }
    };
    let Some(width) = sample.width.filter(|_| sample.rows > 0) else {
        return Ok((Cost { rows: size.rows, ..Cost::default() }, "no row was seen in a sample".to_owned()));
    };
    let took = begun.elapsed().as_secs_f64();
    // Where nobody has counted them: as many as have room, if the sample was not the whole.
    let whole = sample.rows < i64::from(SAMPLE);
    let fit = if whole { sample.rows } else { (size.blocks as f64 * 8192.0 / (width + 28.0)) as i64 };
    let rows = size.rows.unwrap_or(fit).max(sample.rows) as f64 * sample.lacking as f64 / sample.rows as f64;
    // The new version with its header; in the WAL the same, and an entry of each index where the page has no room for it.
    let bytes = rows * (width + 28.0);
    let wal = rows * (width + 60.0 + 70.0 * sample.indexes as f64);
    let seconds = took * rows / sample.rows as f64;
    let cost = Cost {
        rows: Some(rows.round() as i64),
        bytes: Some(bytes.round() as i64),
        wal_bytes: Some(wal.round() as i64),
        seconds: Some((seconds * 1000.0).round() / 1000.0),
    };
    let note = format!(
        "estimates from {} rows, of which {} lack it: seconds are those of reading and computing, writing comes on top; VACUUM beside the batches gives the room of old versions back; whole pages in the WAL after checkpoints come on top",
        sample.rows, sample.lacking
    );
    Ok((cost, note))
}
