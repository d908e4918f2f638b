//! Whether what somebody wants to register can be: its name, its place in the order, the table and what else is registered there.
//! Nothing is written here.

use super::reading::Reading;
use super::table::{self, Registered, Upgraded};
use super::{look, numbers};
use crate::catalog::definition::{self, Column};
use crate::catalog::relation::Relation;
use crate::catalog::spi;
use crate::engine::guard;
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Ident, literal, plain};
use migrator_core::upgrade::{COLUMN, OUTDATED, Upgrade};
use pgrx::pg_sys;
use serde::Deserialize;
use serde_json::Value;

/// What somebody asks for.
#[derive(Debug, Clone)]
pub struct Request {
    pub relation: u32,
    pub name: String,
    pub set: Option<Value>,
    /// pg_proc.oid
    pub function: Option<u32>,
    pub inputs: Option<Vec<String>>,
    pub outputs: Option<Vec<String>>,
    pub ordinal: Option<i32>,
    pub safe_in_place: bool,
    pub batch_size: Option<i32>,
    pub cleanup_batch_size: Option<i32>,
    pub target_ms: Option<i32>,
    pub view_name: Option<String>,
    pub strategy: String,
    pub caller: pg_sys::Oid,
    pub settings: Vec<(String, String)>,
}

/// What was understood.
#[derive(Debug, Clone)]
pub struct Wish {
    pub relation: Relation,
    pub key: Vec<Ident>,
    pub kind: &'static str,
    pub upgrade: Upgrade,
    pub ordinal: i32,
    /// Whether the table has no `applied_upgrades` yet.
    pub adds_column: bool,
    pub others: Vec<Registered>,
}

/// The most bytes of a name: it is stored in every row.
const LONGEST_NAME: usize = 1000;

/// Understands a request, or refuses it.
pub fn understand(request: &Request) -> Result<Wish, Failure> {
    let relation = Relation::get(request.relation)?;
    let key: Vec<Ident> = table::check(&relation, request.caller)?.into_iter().map(|column| column.name).collect();
    if relation.kind == "p" {
        members_fit(&relation)?;
    }
    let columns = definition::columns(relation.oid)?;
    let others = table::registered(relation.oid)?;
    name(request, &relation, &others)?;
    let ordinal = ordinal(request, &others)?;
    let adds_column = applied_upgrades(&relation, &columns)?;
    names_stand(&relation, &others, adds_column)?;
    if adds_column {
        table::columns_may_change(&relation)?;
    } else {
        not_carried(request, &relation)?;
    }
    sizes(request)?;
    if !["rows", "rewrite", "auto"].contains(&request.strategy.as_str()) {
        return Err(invalid(format!("strategy {:?} is none", request.strategy)).hint("It is rows, rewrite or auto."));
    }
    let reading = Reading { request, relation: &relation, key: &key, columns: &columns };
    let (kind, upgrade) = match (&request.set, request.function) {
        (Some(_), Some(_)) => {
            return Err(invalid("both expressions and a function were given").hint("Give set or function."));
        }
        (Some(set), None) => ("expression", reading.expressions(set)?),
        (None, Some(function)) => ("function", reading.function(function)?),
        (None, None) => ("application", reading.application()?),
    };
    let upgrade = reading.in_place(upgrade)?;
    among(&relation, &upgrade, &others)?;
    if upgrade.in_place {
        moves_to_no_partition(&upgrade, &relation)?;
    }
    if upgrade.in_place {
        not_subscribed(request, &relation)?;
    }
    last_to_fire(&relation)?;
    Ok(Wish { relation, key, kind, upgrade, ordinal, adds_column, others })
}

/// What a subscription applies is in the shape that the publisher has, and nobody can tell it from a value of the new one.
fn not_subscribed(request: &Request, relation: &Relation) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Subscription {
        name: String,
    }
    let found: Option<Subscription> = spi::fetch_optional(
        "select pg_catalog.format('%I', s.subname) as name from pg_catalog.pg_subscription_rel r join pg_catalog.pg_subscription s on s.oid = r.srsubid \
         where r.srrelid = $1 order by 1 limit 1",
        &[pg_sys::Oid::from(relation.oid).into()],
    )?;
    let Some(Subscription { name }) = found else { return Ok(()) };
    Err(unsupported(format!(
        "upgrade {} makes a column out of itself, and subscription {name} writes to table {}",
        plain(&request.name),
        relation.name.plain()
    ))
    .detail("With each row that is written on the publisher its old value would come back under the name. Nothing was changed.")
    .hint("Register it on the publisher; or write to a column of its own."))
}

pub(super) fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(code::INVALID_PARAMETER, message).detail("Nothing was changed.")
}

pub(super) fn unsupported(message: impl Into<String>) -> Failure {
    Failure::new(code::NOT_SUPPORTED, message).detail("Nothing was changed.")
}

fn name(request: &Request, relation: &Relation, others: &[Registered]) -> Result<(), Failure> {
    let name = &request.name;
    if name.trim().is_empty() || name.len() > LONGEST_NAME {
        return Err(invalid(format!("an upgrade's name has 1 to {LONGEST_NAME} bytes"))
            .hint("Rows remember it: choose a short one, and never the same for something else."));
    }
    if name.starts_with(OUTDATED) {
        return Err(invalid(format!("names that begin with {} are migrator's own", plain(OUTDATED)))
            .hint("Give the upgrade another name."));
    }
    let table = relation.name.plain();
    match others.iter().find(|other| other.name == *name) {
        None => not_born_with(request, relation),
        Some(other) if other.state == "retiring" => Err(Failure::new(
            code::DUPLICATE_OBJECT,
            format!("upgrade {} of table {table} is retired, and rows still have its name", plain(name)),
        )
        .detail(
            "A row that has the name would be taken for one that the new upgrade was applied to. Nothing was changed.",
        )
        .hint(format!("Take another name; or let the cleanup end: call migrator.run_upgrades({});", literal(&table)))),
        Some(_) => Err(Failure::new(
            code::DUPLICATE_OBJECT,
            format!("table {table} has an upgrade {} already", plain(name)),
        )
        .detail("Rows that have its name would never get another one of that name. Nothing was changed.")
        .hint("Register a correction under a name of its own; select * from migrator.upgrades; lists what there is.")),
    }
}

/// Whether the name is that of an upgrade which is gone.
fn was_used(request: &Request, relation: &Relation) -> Result<bool, Failure> {
    #[derive(Deserialize)]
    struct Used {
        used: bool,
    }
    let used: Used = spi::fetch_one(
        "select exists (select from migrator.upgrade g where g.relation = $1 and g.name = $2) as used",
        &[pg_sys::Oid::from(relation.oid).into(), request.name.clone().into()],
    )?;
    Ok(used.used)
}

/// Nor would rows that somebody has given the name since it was gone: a client who read a row before that, and writes it all back.
fn not_carried(request: &Request, relation: &Relation) -> Result<(), Failure> {
    if !was_used(request, relation)? {
        return Ok(());
    }
    // With the snapshot of an older transaction such a row may not be seen.
    guard::fresh_snapshots("registering a name that was used before")?;
    if !look::any_has(relation, &request.name)? {
        return Ok(());
    }
    Err(Failure::new(
        code::DUPLICATE_OBJECT,
        format!(
            "upgrade {} of table {} was retired, and rows have its name again",
            plain(&request.name),
            relation.name.plain()
        ),
    )
    .detail("Somebody wrote back what he had read before. Such a row would be taken for one that the new upgrade was applied to. Nothing was changed.")
    .hint(format!(
        "Take another name; or take it off these rows first: update {} set {COLUMN} = array_remove({COLUMN}, {}) where {COLUMN} @> array[{1}];",
        relation.name,
        literal(&request.name)
    )))
}

/// Rows that are born with a name, which meant something else before, would never get what it means now.
fn not_born_with(request: &Request, relation: &Relation) -> Result<(), Failure> {
    if !was_used(request, relation)? || !table::born_with(relation)?.contains(&request.name) {
        return Ok(());
    }
    Err(Failure::new(
        code::DUPLICATE_OBJECT,
        format!(
            "upgrade {} of table {} was retired, and rows are still born with its name",
            plain(&request.name),
            relation.name.plain()
        ),
    )
    .detail(format!("The default of column {COLUMN} has it. A new row would be taken for one that the new upgrade was applied to. Nothing was changed."))
    .hint(format!(
        "Take another name; or take it off the default: alter table {} alter column {COLUMN} set default '{{}}';",
        relation.name
    )))
}

/// The order is fixed: a row that has a later upgrade cannot get an earlier one any more.
fn ordinal(request: &Request, others: &[Registered]) -> Result<i32, Failure> {
    let last = others.iter().filter(|other| other.state != "retiring").max_by_key(|other| other.ordinal);
    match (request.ordinal, last) {
        (None, None) => Ok(1),
        (None, Some(last)) => Ok(last.ordinal + 1),
        (Some(given), Some(last)) if given <= last.ordinal => Err(invalid(format!(
            "place {given} is not behind upgrade {}, which has place {}",
            plain(&last.name),
            last.ordinal
        ))
        .hint(format!("Rows may have that one already. Leave the place out, or give {} or more.", last.ordinal + 1))),
        (Some(given), _) if given < 1 => Err(invalid("a place is 1 or more").hint("Leave it out for the next one.")),
        (Some(given), _) => Ok(given),
    }
}

/// Whether the column has to be added; one that is there has to be what we need.
fn applied_upgrades(relation: &Relation, columns: &[Column]) -> Result<bool, Failure> {
    let Some(column) = columns.iter().find(|column| column.name.as_str() == COLUMN) else { return Ok(true) };
    if !holds_names(column) {
        return Err(Failure::new(
            code::DATATYPE_MISMATCH,
            format!("column {COLUMN} of table {} is of type {}, not text[]", relation.name.plain(), column.type_name),
        )
        .detail("Rows remember their upgrades in it. Nothing was changed.")
        .hint(format!(
            "Rename it, and the column will be made: alter table {} rename column {COLUMN} to …;",
            relation.name
        )));
    }
    Ok(false)
}

/// Refuses where the column of names is gone, or came back empty, though upgrades remember in it which rows they were applied to: with a new
/// one all rows would be upgraded once more.
fn names_stand(relation: &Relation, others: &[Registered], adds_column: bool) -> Result<(), Failure> {
    if let Some(upgraded) = Upgraded::find(relation.oid)?
        && let Some((_, lost)) = numbers::added_again(&upgraded)?.pop()
    {
        return Err(lost.detail("Nothing was registered."));
    }
    if !adds_column || others.iter().all(|other| other.state == "retiring") {
        return Ok(());
    }
    let table = relation.name.plain();
    Err(Failure::new(code::UNDEFINED_COLUMN, format!("column {COLUMN} of table {table}, in which rows remember their upgrades, is not there"))
        .detail("With a new one all rows would be upgraded once more. Nothing was registered.")
        .hint(format!(
            "Where it was renamed, give it its name back. Where it was dropped, retire the upgrades that there are: select migrator.retire_upgrade({}, …, incomplete => true);",
            literal(&table)
        )))
}

/// Whether a column can be the one of names.
pub fn holds_names(column: &Column) -> bool {
    column.type_oid == pg_sys::TEXTARRAYOID.to_u32() && !column.generated
}

/// Refuses an upgrade in place of a partitioned table.
pub fn moves_to_no_partition(upgrade: &Upgrade, relation: &Relation) -> Result<(), Failure> {
    if relation.kind != "p" {
        return Ok(());
    }
    Err(unsupported(format!("upgrade {} makes a column out of itself, and table {} is partitioned", plain(&upgrade.name), relation.name.plain()))
        .detail("A row that moves to another partition is a new row there, of which nobody can tell whether it was upgraded. Nothing was changed.")
        .hint("Write to a column of its own."))
}

fn sizes(request: &Request) -> Result<(), Failure> {
    for (what, size) in [("batch_size", request.batch_size), ("cleanup_batch_size", request.cleanup_batch_size)] {
        if size.is_some_and(|size| !(1..=100_000).contains(&size)) {
            return Err(invalid(format!("{what} is a number of rows from 1 to 100,000"))
                .hint("Leave it out to have batches sized by the time they take."));
        }
    }
    if request.target_ms.is_some_and(|ms| !(10..=60_000).contains(&ms)) {
        return Err(invalid("target is an interval from 10 milliseconds to one minute")
            .hint("It is what one batch should take; 200 ms if it is left out."));
    }
    Ok(())
}

/// What no order of the guard could keep right together.
fn among(relation: &Relation, upgrade: &Upgrade, others: &[Registered]) -> Result<(), Failure> {
    let table = relation.name.plain();
    for other in others.iter().filter(|other| other.state != "retiring") {
        let theirs = &other.definition;
        let shared = upgrade.outputs().find(|output| theirs.outputs().any(|column| column == *output));
        if let Some(column) = shared
            && !(upgrade.in_place && theirs.in_place)
        {
            return Err(unsupported(format!(
                "upgrades {} and {} of table {table} would both write column {}",
                plain(&other.name),
                plain(&upgrade.name),
                plain(column.as_str())
            ))
            .hint(format!(
                "When its inputs change, the earlier one would write over the later. Wait until it is complete and retire it: select migrator.retire_upgrade({}, {});",
                literal(&table),
                literal(&other.name)
            )));
        }
        let back = upgrade.outputs().find(|output| theirs.inputs.contains(output));
        if let Some(column) = back
            && !(upgrade.in_place && theirs.in_place)
        {
            return Err(unsupported(format!(
                "upgrade {} of table {table} would change column {}, from which the earlier upgrade {} makes its own",
                plain(&upgrade.name),
                plain(column.as_str()),
                plain(&other.name)
            ))
            .hint(format!(
                "Wait until the earlier one is complete and retire it: select migrator.retire_upgrade({}, {});",
                literal(&table),
                literal(&other.name)
            )));
        }
    }
    Ok(())
}

/// The guard has to see what other BEFORE triggers made of a row; one that is switched off makes nothing of it.
pub fn last_to_fire(relation: &Relation) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Trigger {
        name: String,
        table: String,
    }
    // tgtype: 1 of rows, 2 before, 4 insert, 16 update
    let behind: Option<Trigger> = spi::fetch_optional(
        &format!(
            "select t.tgname as name, m.name as table \
             from {} m join pg_catalog.pg_trigger t on t.tgrelid = m.oid and not t.tgisinternal and t.tgenabled <> 'D' \
               and t.tgtype & 3 = 3 and t.tgtype & 20 <> 0 and t.tgname > $2::name collate \"C\" order by m.oid <> $1::oid, t.tgname limit 1",
            table::TREE
        ),
        &[pg_sys::Oid::from(relation.oid).into(), crate::guard::TRIGGER.into()],
    )?;
    let Some(Trigger { name, table }) = behind else { return Ok(()) };
    Err(unsupported(format!("trigger {} of table {table} would fire after migrator's", plain(&name)))
        .hint(format!(
            "BEFORE triggers fire in the order of their names, and the guard has to see their work: alter trigger {} on {table} rename to …;",
            Ident::new(name.as_str())
        )))
}

/// Partitions that have their columns elsewhere are found by name; their triggers are the parent's.
pub fn members_fit(relation: &Relation) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Member {
        name: String,
    }
    #[derive(Deserialize)]
    struct Owner {
        may: bool,
        name: String,
    }
    let owner: Owner = spi::fetch_one(
        "select pg_catalog.has_function_privilege(c.relowner, 'migrator._guard()', 'execute') as may, pg_catalog.pg_get_userbyid(c.relowner) as name \
         from pg_catalog.pg_class c where c.oid = $1",
        &[pg_sys::Oid::from(relation.oid).into()],
    )?;
    if !owner.may {
        return Err(unsupported(format!("table {} is partitioned, and its owner {} could not add partitions any more", relation.name.plain(), plain(&owner.name)))
            .detail("A new partition gets the guard's trigger from its parent, which only a superuser and the extension's owner may create. Nothing was changed.")
            .hint("Give the table to the extension's owner while it is upgraded: alter table … owner to …;"));
    }
    let foreign: Option<Member> = spi::fetch_optional(
        "select t.relid::pg_catalog.regclass::text as name from pg_catalog.pg_partition_tree($1::pg_catalog.oid::pg_catalog.regclass) t \
         join pg_catalog.pg_class c on c.oid = t.relid where c.relkind = 'f' limit 1",
        &[pg_sys::Oid::from(relation.oid).into()],
    )?;
    match foreign {
        None => Ok(()),
        Some(member) => {
            Err(unsupported(format!("partition {} of table {} is a foreign table", member.name, relation.name.plain()))
                .hint("Its rows are upgraded on the server that holds them; detach it first."))
        }
    }
}
