//! ALTER TABLE … OWNER TO on the front while a change is under way: the rear follows.
//!
//! Every step runs with the rights of the front's owner. So the rear table, its schema and the key log must be that
//! role's too: before the next step, not in the swap, for until then nothing could be done at all.

use crate::capture::log;
use crate::catalog::lock::{self, Mode, Wanted};
use crate::catalog::relation::Relation;
use crate::catalog::{role, spi};
use crate::engine::change::Change;
use migrator_core::failure::Failure;
use migrator_core::ident::{Name, plain};
use serde::Deserialize;
use serde_json::json;

/// Whether the rear has another owner than the front, or the owner may not name the rear or read the log: what was granted
/// to the old owner goes with DROP OWNED, even where REASSIGN OWNED handed both tables over. Asked at every turn.
pub fn changed(change: &Change) -> Result<bool, Failure> {
    #[derive(Deserialize)]
    struct Rights {
        has: bool,
    }
    let (front, rear) = change.front_and_rear()?;
    if front.owner != rear.owner || !strangers(front.owner, &rear)?.is_empty() {
        return Ok(true);
    }
    let segments = log::segments(change.id, change.direction());
    let segment = segments.first().expect("a log has segments").to_string();
    let rights: Rights = spi::fetch_one(
        "select pg_catalog.has_schema_privilege($1, $2, 'usage') \
           and coalesce(pg_catalog.has_table_privilege($1, pg_catalog.to_regclass($3)::pg_catalog.oid, 'select'), true) as has",
        &[front.owner().into(), rear.name.schema.as_str().into(), segment.into()],
    )?;
    Ok(!rights.has)
}

/// Gives rear and log to the front's owner. The caller holds the change `Alone`. The strong lock is on the rear only, which no
/// application uses; it is waited for long enough that a plain autovacuum gives way.
pub fn follow(change: &Change) -> Result<(), Failure> {
    if !changed(change)? {
        return Ok(());
    }
    let (front, rear) = change.front_and_rear()?;
    let (owner, before) = (role::name(front.owner())?, role::name(rear.owner())?);
    let what = format!(
        "{} was not given to {}, the new owner of {}",
        rear.name.plain(),
        plain(owner.as_str()),
        front.name.plain()
    );
    let handed_over = front.owner != rear.owner;
    // What the extension's own role may do is not for us to take away.
    let revokes = handed_over && rear.owner() != role::caller();
    let mut statements = vec![];
    if handed_over {
        lock::patiently(&what, Wanted { relation: rear.oid, mode: Mode::AccessExclusive })?;
        statements.push(format!("alter table {} owner to {owner}", rear.name));
    }
    // A partitioned table's owner is not its partitions'.
    for part in strangers(front.owner, &rear)?.into_iter().filter(|part| part.oid != rear.oid) {
        lock::patiently(&what, Wanted { relation: part.oid, mode: Mode::AccessExclusive })?;
        statements.push(format!("alter table {} owner to {owner}", part.name));
    }
    let schema = &rear.name.schema;
    if revokes {
        statements.push(format!("revoke all privileges on schema {schema} from {before}"));
    }
    let create = if schema.as_str() == change.shadow_schema() { ", create" } else { "" };
    statements.push(format!("grant usage{create} on schema {schema} to {owner}"));
    let direction = change.direction();
    for segment in log::segments(change.id, direction).into_iter().chain([log::marker(change.id, direction)]) {
        if !there(&segment)? {
            continue;
        }
        if revokes {
            statements.push(format!("revoke all privileges on {segment} from {before}"));
        }
        statements.push(format!("grant select, insert, delete on {segment} to {owner}"));
    }
    for statement in statements {
        spi::execute(&statement, &[])?;
    }
    let (name, rear) = (plain(owner.as_str()), rear.name.plain());
    let message = format!("the table belongs to {name} now: so do {rear} and the key log");
    change.event("owner", &message, json!({"owner": owner, "before": before}))
}

/// Partitions of the rear that belong to somebody else.
fn strangers(owner: u32, rear: &Relation) -> Result<Vec<Relation>, Failure> {
    #[derive(Deserialize)]
    struct Part {
        oid: u32,
    }
    if rear.kind != "p" {
        return Ok(vec![]);
    }
    let parts: Vec<Part> = spi::fetch(
        "select c.oid::pg_catalog.int8 as oid from pg_catalog.pg_partition_tree($1::pg_catalog.oid::pg_catalog.regclass) t \
         join pg_catalog.pg_class c on c.oid = t.relid where c.relowner <> $2",
        &[pgrx::pg_sys::Oid::from(rear.oid).into(), pgrx::pg_sys::Oid::from(owner).into()],
    )?;
    parts.into_iter().map(|part| Relation::get(part.oid)).collect()
}

fn there(table: &Name) -> Result<bool, Failure> {
    #[derive(Deserialize)]
    struct There {
        there: bool,
    }
    let there: There =
        spi::fetch_one("select pg_catalog.to_regclass($1) is not null as there", &[table.to_string().into()])?;
    Ok(there.there)
}
