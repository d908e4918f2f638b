//! Putting a definition where the guard finds it: column, trigger and view, in one transaction.

use super::published::warn_of_publications;
use super::register::{self, Request, Wish};
use super::table::{self, Upgraded};
use super::{fits, numbers, rewrite, view};
use crate::catalog::definition::{self, Column};
use crate::catalog::lock::{self, Mode, Wanted};
use crate::catalog::relation::Relation;
use crate::catalog::spi;
use crate::crash;
use crate::engine::sync::warn_of_standbys;
use crate::guard::{Refusal, TRIGGER};
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Ident, literal, plain};
use migrator_core::upgrade::{COLUMN, Definition, Upgrade};
use pgrx::{JsonB, pg_sys};
use serde::Deserialize;
use serde_json::json;

/// Registers an upgrade: from the commit on every write goes through the guard, which knows of it.
///
/// The trigger is put there under SHARE ROW EXCLUSIVE (ACCESS EXCLUSIVE for the column), taken in short attempts: when it is
/// granted, no statement that writes the table is under way; so what the guard did not see is older than this transaction,
/// and in the first snapshot of the sweep.
pub fn register(request: &Request) -> Result<i64, Failure> {
    let relation = Relation::get(request.relation)?;
    table::check_owner(&relation, request.caller)?;
    // Two who register at once take turns, and what is read from here on is what the other one has left.
    table::take_new_row(&relation)?;
    let wish = register::understand(request)?;
    let mut chosen = rewrite::choose(request, &wish)?;
    let relation = &wish.relation;
    spi::execute(
        "update migrator.upgraded u set column_added = u.column_added or $2, batch_size = coalesce($3, u.batch_size), \
           cleanup_batch_size = coalesce($4, u.cleanup_batch_size), target_ms = coalesce($5, u.target_ms) where u.relation = $1",
        &[
            pg_sys::Oid::from(relation.oid).into(),
            wish.adds_column.into(),
            request.batch_size.into(),
            request.cleanup_batch_size.into(),
            request.target_ms.into(),
        ],
    )?;
    table::renew_key(relation.oid, &wish.key)?;
    let id = insert(request, &wish)?;
    fits::open_change(relation, &request.name)?;
    // By the name under which it was understood.
    let upgraded = Upgraded { relation: relation.clone(), ..Upgraded::get(relation.oid)? };
    let what = format!("upgrade {} of table {} was not registered", request.name, relation.name.plain());
    apply(&upgraded, &what, wish.adds_column, request.view_name.as_deref())?;
    crash::point("register.installed");
    warn_of_standbys("While the table has upgrades")?;
    warn_of_publications()?;
    fits::warn_of_way_back(&upgraded.again()?)?;
    if chosen.rewrite && request.strategy == "auto" {
        chosen = rewrite::begin_if_possible(&upgraded, request, id, chosen)?;
    } else if chosen.rewrite {
        rewrite::begin(&upgraded, request, id)?;
    }
    if request.strategy == "auto" {
        pgrx::notice!(
            "{}: {}",
            if chosen.rewrite { "the table is written anew" } else { "rows are upgraded in batches" },
            chosen.why
        );
    }
    table::event(
        relation.oid,
        "registered",
        &format!("upgrade {} was registered at place {}", request.name, wish.ordinal),
        json!({"upgrade": request.name, "kind": wish.kind, "in_place": wish.upgrade.in_place, "deferred": table::refusal(&wish.relation, &wish.upgrade)? == Refusal::Any,
               "strategy": chosen.strategy(), "why": chosen.why}),
    )?;
    Ok(id)
}

fn insert(request: &Request, wish: &Wish) -> Result<i64, Failure> {
    #[derive(Deserialize)]
    struct Id {
        id: i64,
    }
    let mut definition = serde_json::to_value(&wish.upgrade).expect("a definition is plain data");
    definition["settings_list"] = json!(request.settings);
    let function = match request.function {
        Some(function) => Some(function_text(function)?),
        None => None,
    };
    let row: Id = spi::fetch_one(
        "with n as (insert into migrator.upgrade (relation, name, ordinal, kind, set, function, definition, numbers) \
         values ($1, $2, $3, $4, $5, $6, $7, $8) returning id) select pg_catalog.to_jsonb(n) from n",
        &[
            pg_sys::Oid::from(wish.relation.oid).into(),
            request.name.clone().into(),
            wish.ordinal.into(),
            wish.kind.into(),
            request.set.clone().map(JsonB).into(),
            function.into(),
            JsonB(definition).into(),
            numbers::noted(&definition::columns(wish.relation.oid)?, &wish.upgrade).into(),
        ],
    )?;
    Ok(row.id)
}

fn function_text(function: u32) -> Result<String, Failure> {
    #[derive(Deserialize)]
    struct Text {
        text: String,
    }
    let text: Text = spi::fetch_one(
        "select $1::pg_catalog.oid::pg_catalog.regprocedure::text as text",
        &[pg_sys::Oid::from(function).into()],
    )?;
    Ok(text.text)
}

/// Writes the definition as it is now into the trigger, and makes the view anew. Without any name to look after the trigger goes.
///
/// The caller holds the table's row in `migrator.upgraded`, as everybody does who changes a definition. So the one that is read
/// here is still the last when the table's lock is granted, however long that took.
pub fn apply(upgraded: &Upgraded, what: &str, adds_column: bool, view_name: Option<&str>) -> Result<(), Failure> {
    let definition = upgraded.definition()?;
    let mode = if adds_column { Mode::AccessExclusive } else { Mode::ShareRowExclusive };
    let oid = upgraded.relation.oid;
    lock::settle(what, &table::tree(&upgraded.relation)?)?;
    if definition.upgrades.is_empty() && definition.retired.is_empty() {
        remove(upgraded, &definition, what)?;
        return changed(oid);
    }
    lock::series(
        what,
        lock::ATTEMPTS,
        || locks(upgraded, &definition, view_name, mode),
        || Ok(()),
        || {
            let relation = upgraded.still_there()?;
            let mut definition = definition.clone();
            if adds_column {
                // The row of a table that had no upgrades yet stops nobody: a change may have begun until a moment ago. From here on
                // none does, for it would hold the table.
                table::columns_may_change(&relation)?;
                spi::execute(&add_column(&relation), &[])?;
                numbers::learn(upgraded, &upgraded.registered()?)?;
                definition = upgraded.definition()?;
            }
            for statement in trigger(&relation, &definition) {
                spi::execute(&statement, &[])?;
            }
            // Where nobody can tell which rows have what, it would show rows upgraded once more.
            if !numbers::added_again(upgraded)?.is_empty() {
                return Ok(());
            }
            view::make(upgraded, &relation, &definition, view_name)
        },
    )?;
    changed(oid)
}

/// The view, where it is made anew, and the table.
fn locks(
    upgraded: &Upgraded,
    definition: &Definition,
    view_name: Option<&str>,
    mode: Mode,
) -> Result<Vec<Wanted>, Failure> {
    let relation = upgraded.still_there()?;
    let view = view::lock(upgraded, &relation, definition, view_name)?;
    // Partitions get the guard and the column too: within the attempt, and not each with a deadline of its own.
    let members = table::tree(&relation)?.into_iter().map(|relation| Wanted { relation, mode });
    Ok(view.into_iter().chain(members).collect())
}

/// Attempts to get the lock under which the trigger goes. Where the table is too busy, one that knows of nothing does no harm.
const FEW: u32 = 5;

fn remove(upgraded: &Upgraded, definition: &Definition, what: &str) -> Result<(), Failure> {
    let drop = |mode, statements: &dyn Fn(&Relation) -> Vec<String>, attempts| {
        lock::series(
            what,
            attempts,
            || locks(upgraded, definition, None, mode),
            || Ok(()),
            || {
                let relation = upgraded.still_there()?;
                for statement in statements(&relation) {
                    spi::execute(&statement, &[])?;
                }
                view::make(upgraded, &relation, definition, None)
            },
        )
    };
    let dropped = drop(
        Mode::AccessExclusive,
        &|relation| vec![format!("drop trigger if exists {} on {}", Ident::from(TRIGGER), relation.name)],
        FEW,
    );
    match dropped {
        Err(failure) if failure.code == code::LOCK_NOT_AVAILABLE => {
            drop(Mode::ShareRowExclusive, &|relation| trigger(relation, definition).to_vec(), lock::ATTEMPTS)
        }
        outcome => outcome,
    }
}

fn changed(oid: u32) -> Result<(), Failure> {
    spi::execute(
        "update migrator.upgraded set generation = generation + 1, verified_at = null, lacking = null, repeated = 0, strangers = null where relation = $1",
        &[pg_sys::Oid::from(oid).into()],
    )
    .map(|_| ())
}

/// Only the catalog changes: the default is a constant.
pub fn add_column(relation: &Relation) -> String {
    format!(
        "alter table {} add column {} pg_catalog.text[] not null default '{{}}'",
        relation.name,
        Ident::from(COLUMN)
    )
}

/// The guard fires ALWAYS: neither a session nor a subscription with `session_replication_role` = `replica` escapes it.
pub fn trigger(relation: &Relation, definition: &Definition) -> [String; 2] {
    let name = Ident::from(TRIGGER);
    let argument = literal(&serde_json::to_string(definition).expect("a definition is plain data"));
    [
        format!(
            "create or replace trigger {name} before insert or update on {} for each row execute function migrator._guard({argument})",
            relation.name
        ),
        format!("alter table {} enable always trigger {name}", relation.name),
    ]
}

/// Whether writes escape the guard: its trigger is gone, switched off, or not what was put there; or a column that an upgrade
/// names is gone, so that it does nothing; or is there again without its values; or a trigger that came later changes rows behind it.
pub fn is_unguarded(table: &Upgraded) -> Result<Option<Failure>, Failure> {
    let registered = table.registered()?;
    let definition = table::define(table.key.clone(), &registered);
    if definition.upgrades.is_empty() && definition.retired.is_empty() {
        return Ok(None);
    }
    crash::point("guard.compared");
    // Whoever registers or retires meanwhile commits definition and trigger together, and we may have read one of each. No
    // definition comes back, so one that is the same before and after was there in between.
    let columns = definition::columns(table.relation.oid)?;
    let failure = match unlike(table, &definition, &columns)? {
        None => numbers::added_again_of(table, &registered, &columns)?.pop().map(|(_, failure)| failure),
        wrong => wrong,
    };
    match failure {
        Some(failure) if table.definition()? == definition => Ok(Some(failure)),
        _ => Ok(None),
    }
}

/// What is wrong with the guard, if this is what it should know.
fn unlike(table: &Upgraded, definition: &Definition, columns: &[Column]) -> Result<Option<Failure>, Failure> {
    #[derive(Deserialize)]
    struct Guard {
        name: String,
        what: String,
    }
    let name = table.relation.name.plain();
    let marks = Ident::from(COLUMN);
    let named = definition.upgrades.iter().flat_map(|upgrade| upgrade.inputs.iter().chain(upgrade.outputs()));
    let unwatched = "Rows that had a name and whose inputs were written since may have outputs that do not fit them: take the name off those.";
    if let Some(gone) = named.chain([&marks]).find(|column| !columns.iter().any(|there| there.name == **column)) {
        let hint = "Where it was renamed, give it its name back. Where it was dropped its values are gone, and one that is added under that name is empty: retire the upgrade (select migrator.retire_upgrade(…, incomplete => true);) and register it under another name.";
        let also = if *gone == marks { format!(" {unwatched}") } else { String::new() };
        return Ok(Some(
            Failure::new(
                code::UNDEFINED_COLUMN,
                format!("column {} of table {name}, which an upgrade names, is not there", plain(gone.as_str())),
            )
            .hint(format!("{hint}{also}")),
        ));
    }
    if let Some(other) = columns.iter().find(|column| column.name == marks && !register::holds_names(column)) {
        let made = if other.generated { ", made by the server," } else { "" };
        return Ok(Some(Failure::new(code::UNDEFINED_COLUMN, format!("column {COLUMN} of table {name} is another one than it was: of type {}{made} and not text[]", other.type_name))
            .hint(format!("Give that column another name, and the one with the upgrades' names this one: alter table {} rename column … to {COLUMN}; {unwatched}", table.relation.name))));
    }
    let elsewhere = |upgrade: &&Upgrade| upgrade.in_place && upgrade.numbers != numbers::of(columns, upgrade);
    if let Some(upgrade) = definition.upgrades.iter().find(elsewhere) {
        return Ok(Some(Failure::new(code::NOT_IN_STATE, format!("columns of table {name} that upgrade {} makes out of themselves are in another place than they were", plain(&upgrade.name)))
            .hint("They were dropped and added again, or the table was restored from a dump. Resuming tells the guard.")));
    }
    if let Err(behind) = register::last_to_fire(&table.relation) {
        return Ok(Some(behind));
    }
    // In a restored table columns have moved up, and the guard goes on with the number before: it is right still, and one that is too low
    // is not, for it would take the column for one that was added again.
    let wanted = Definition { names_at: None, ..definition.clone() };
    let wanted = serde_json::to_string(&wanted).expect("a definition is plain data");
    let wrong: Option<Guard> = spi::fetch_optional(
        &format!(
            "select g.name, g.what from (select m.oid, m.name, \
                 case when t.oid is null then 'is gone' when t.tgenabled <> 'A' then 'was switched off' \
                   when t.tgfoid <> 'migrator._guard()'::pg_catalog.regprocedure or t.tgnargs <> 1 then 'is not the one that was put there' \
                   when pg_catalog.regexp_replace(pg_catalog.convert_from(pg_catalog.substr(t.tgargs, 1, pg_catalog.length(t.tgargs) - 1), \
                          pg_catalog.getdatabaseencoding()), ',\"names_at\":[0-9]+', '') <> $3 or {NAMES_AT} < $4 then 'is not the one that was put there' end as what \
               from {} m left join pg_catalog.pg_trigger t on t.tgrelid = m.oid and t.tgname = $2) g \
             where g.what is not null order by g.oid <> $1::oid, g.name limit 1",
            table::TREE
        ),
        &[pg_sys::Oid::from(table.relation.oid).into(), TRIGGER.into(), wanted.into(), definition.names_at.into()],
    )?;
    let Some(Guard { name: guarded, what }) = wrong else { return Ok(None) };
    Ok(Some(Failure::new(code::NOT_IN_STATE, format!("the guard of table {guarded}, trigger {}, {what}", plain(TRIGGER)))
        .hint("Rows that were written without it may have outputs that do not fit their inputs. Resuming puts it back.")))
}

/// The number of the column of names that the guard `t` (of `pg_trigger`) knows. In SQL.
const NAMES_AT: &str = "pg_catalog.substring(pg_catalog.convert_from(pg_catalog.substr(t.tgargs, 1, pg_catalog.length(t.tgargs) - 1), \
     pg_catalog.getdatabaseencoding()), ',\"names_at\":([0-9]+)')::pg_catalog.int2";

/// Whether the guard knows another number of the column of names, or none. It is the one that was put there.
fn knows_other_names(table: &Upgraded) -> Result<bool, Failure> {
    let definition = table.definition()?;
    let rows = spi::execute(
        &format!(
            "select from pg_catalog.pg_trigger t where t.tgrelid = $1 and t.tgname = $2 and {NAMES_AT} is distinct from $3"
        ),
        &[pg_sys::Oid::from(table.relation.oid).into(), TRIGGER.into(), definition.names_at.into()],
    )?;
    Ok(rows > 0)
}

/// Puts guard and view back where they are not as they should be, and has the guard and the sweeps find rows by the key that the table has now. Whether
/// the guard had to be put back. The caller holds the table's row.
pub fn reinstall(table: &Upgraded) -> Result<bool, Failure> {
    // Before the numbers are renewed.
    let lost = numbers::added_again(table)?.pop().map(|(_, failure)| failure);
    let off = is_unguarded(table)?;
    if let Some(failure) = lost {
        return Err(failure.detail("Nothing was changed."));
    }
    let others = [code::UNDEFINED_COLUMN, code::NOT_SUPPORTED];
    if let Some(failure) = off.as_ref().filter(|failure| others.contains(&&*failure.code)) {
        return Err(failure.clone().detail("Nothing was changed."));
    }
    let key = if table::key_stands(table)? { table.key.clone() } else { table::key_of(&table.relation)? };
    let moved = numbers::renew(&table.relation)? || off.is_none() && knows_other_names(table)?;
    let unseen = view::is_gone(table)?;
    if table::renew_key(table.relation.oid, &key)? || moved || unseen || off.is_some() {
        let what = format!("the guard of table {} could not be put back", table.relation.name.plain());
        apply(&table.again()?, &what, false, None)?;
    }
    Ok(off.is_some())
}
