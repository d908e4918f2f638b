//! Retiring an upgrade: its name means nothing any more, at once; rows lose it as they are written, by a sweep, or all of
//! them in one moment where no live upgrade is left.

use super::table::{self, Registered, Upgraded};
use super::{install, look, view};
use crate::catalog::attempt::{attempt, rehearse};
use crate::catalog::lock::{self, Mode, Wanted};
use crate::catalog::spi;
use crate::crash;
use crate::engine::guard;
use crate::guard::TRIGGER;
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Ident, literal, plain};
use migrator_core::upgrade::COLUMN;
use pgrx::pg_sys;
use serde::Deserialize;
use serde_json::json;

/// Retires one, and says how rows lose its name: `at once` or `in batches`.
///
/// An upgrade that is not complete is refused, for rows without it would never get it, unless `incomplete` says that this is
/// meant: it was registered by mistake.
pub fn retire(table: &Upgraded, name: &str, incomplete: bool) -> Result<&'static str, Failure> {
    // With an older snapshot the looks would miss what others have written since.
    guard::fresh_snapshots("migrator.retire_upgrade")?;
    let upgrade = table.named(name)?;
    in_state(table, &upgrade, incomplete)?;
    // Both before the table's row is taken, and with its lock given back: they may take as long as a look at all rows.
    if upgrade.state == "complete" && !incomplete {
        still_complete(table, &upgrade)?;
    }
    let at_once = is_last(table, name)? && look::only_our_names(table) && !rehearse(|| look::any_other(table))?;
    let table = &table.held()?;
    let upgrade = table.named(name)?;
    in_state(table, &upgrade, incomplete)?;
    let relation = table.relation.name.plain();
    spi::execute(
        "update migrator.upgrade set state = 'retiring', retired_at = pg_catalog.clock_timestamp(), completed_at = case when $2 then completed_at end where id = $1",
        // Who said that it may be incomplete had nobody look: it does not count as one that was complete.
        &[upgrade.id.into(), (upgrade.state == "complete" && !incomplete).into()],
    )?;
    spi::execute("delete from migrator.upgrade_failure where upgrade = $1", &[upgrade.id.into()])?;
    spi::execute("delete from migrator.upgrade_unnoted where upgrade = $1", &[upgrade.id.into()])?;
    spi::execute("delete from migrator.upgrade_lease where upgrade = $1", &[upgrade.id.into()])?;
    table.event("retired", &format!("upgrade {name} was retired"), json!({"upgrade": name, "was": upgrade.state}))?;
    let what = format!("upgrade {} of table {relation} was not retired", plain(name));
    if !look::has_names(table)? {
        // Somebody has dropped the column: no row has any name, and what other upgrades need is not there either.
        let retiring: Vec<Registered> =
            table.registered()?.into_iter().filter(|other| other.state == "retiring").collect();
        gone(table, &retiring)?;
        if table.registered()?.is_empty() {
            install::apply(table, &what, false, None)?;
        }
        end_sweep(table)?;
        return Ok("at once");
    }
    if at_once
        && table::columns_may_change(&table.relation).is_ok()
        && is_last(table, name)?
        && look::only_our_names(table)
        && column_stands_alone(table)?
        && view::stands_alone(table)?
    {
        let swept = attempt(|| drop_all(table, &what));
        match swept {
            Ok(()) => return Ok("at once"),
            // Something depends on the column.
            Err(failure) if failure.code == "2BP01" => {}
            Err(failure) => return Err(failure),
        }
    }
    install::apply(table, &what, false, None)?;
    // No name came, so the last look at all rows says as much of them as it did: the next one may go at once.
    spi::execute(
        "update migrator.upgraded set strangers = $2 where relation = $1",
        &[pg_sys::Oid::from(table.relation.oid).into(), table.state.strangers.into()],
    )?;
    Ok("in batches")
}

fn in_state(table: &Upgraded, upgrade: &Registered, incomplete: bool) -> Result<(), Failure> {
    let relation = table.relation.name.plain();
    let (name, quoted) = (plain(&upgrade.name), literal(&relation));
    if upgrade.state == "retiring" {
        return Err(Failure::new(code::NOT_IN_STATE, format!("upgrade {name} of table {relation} is retired already"))
            .detail("Rows that still have its name lose it in batches. Nothing was changed.")
            .hint(format!("Let that end: call migrator.run_upgrades({quoted});")));
    }
    not_brought(table, upgrade)?;
    if upgrade.state != "complete" && !incomplete {
        return Err(Failure::new(code::NOT_IN_STATE, format!("upgrade {name} of table {relation} is not complete"))
            .detail("Rows that lack it would never get it. Nothing was changed.")
            .hint(format!(
                "Let it end: call migrator.run_upgrades({quoted}); or, if it should not have been registered: select migrator.retire_upgrade({quoted}, {}, incomplete => true);",
                literal(&upgrade.name)
            )));
    }
    Ok(())
}

/// Refuses an upgrade that a change of the table is to bring to its rows, or can take back from them: the change knows nothing of it
/// being retired. A change that is over never begins again, so one that is seen to be over needs no second look.
fn not_brought(table: &Upgraded, upgrade: &Registered) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Open {
        id: i64,
        state: String,
    }
    let open: Option<Open> = spi::fetch_optional(
        "select c.id, c.state from migrator.upgrade g join migrator.change c on c.id = g.change \
         where g.id = $1 and c.state not in ('finished', 'cancelled')",
        &[upgrade.id.into()],
    )?;
    let Some(Open { id, state }) = open else { return Ok(()) };
    let failure = Failure::new(
        code::NOT_IN_STATE,
        format!(
            "upgrade {} of table {} is brought by change {id}, which is {state}",
            plain(&upgrade.name),
            table.relation.name.plain()
        ),
    );
    Err(if state == "swapped" {
        failure
            .detail("A rollback would bring back rows that lack it, and nothing would upgrade them any more. Nothing was changed.")
            .hint(format!(
                "End the change first: select migrator.finish(change => {id}); or take it back and give it up: select * from migrator.rollback(change => {id}); select migrator.cancel(change => {id});"
            ))
    } else {
        failure
            .detail("The change would go on and write it to all rows. Nothing was changed.")
            .hint(format!("Give the change up first: select migrator.cancel(change => {id});"))
    })
}

fn still_complete(table: &Upgraded, upgrade: &Registered) -> Result<(), Failure> {
    let Some(why) = rehearse(|| look::is_stale(table, upgrade, true))? else { return Ok(()) };
    let relation = table.relation.name.plain();
    let (name, quoted) = (plain(&upgrade.name), literal(&relation));
    Err(Failure::new(code::NOT_IN_STATE, format!("upgrade {name} of table {relation} is not complete any more"))
        .detail(format!("It was, but {why}. Rows that lack it would never get it. Nothing was changed."))
        .hint(format!(
            "Have them found and upgraded: select migrator.verify_upgrades({quoted}); call migrator.run_upgrades({quoted}); or, if that is meant: select migrator.retire_upgrade({quoted}, {}, incomplete => true);",
            literal(&upgrade.name)
        )))
}

/// Whether no other upgrade is live.
fn is_last(table: &Upgraded, name: &str) -> Result<bool, Failure> {
    Ok(table.registered()?.iter().all(|other| other.state == "retiring" || other.name == name))
}

/// Takes the names off all rows in one moment: the column is dropped and made anew. Only the catalog is written.
fn drop_all(table: &Upgraded, what: &str) -> Result<(), Failure> {
    let oid = table.relation.oid;
    lock::settle(what, &[oid])?;
    lock::series(
        what,
        lock::ATTEMPTS,
        || Ok(view::of(table)?.into_iter().chain([Wanted { relation: oid, mode: Mode::AccessExclusive }]).collect()),
        || Ok(()),
        || {
            let relation = table.still_there()?;
            spi::execute(&format!("drop trigger if exists {} on {}", Ident::from(TRIGGER), relation.name), &[])?;
            let grants = view::without_column(table)?;
            spi::execute(
                &format!(
                    "alter table {0} drop column {1}, add column {1} pg_catalog.text[] not null default '{{}}'",
                    relation.name,
                    Ident::from(COLUMN)
                ),
                &[],
            )?;
            view::make(table, &relation, &table.definition()?, None)?;
            view::give_back(table, &grants)
        },
    )?;
    // No row has any name: `strangers` stays 0.
    end_sweep(table)?;
    crash::point("retire");
    gone(table, &table.registered()?)
}

/// A sweep that is under way has nothing to look for any more.
fn end_sweep(table: &Upgraded) -> Result<(), Failure> {
    let oid = pg_sys::Oid::from(table.relation.oid);
    spi::execute(
        "update migrator.upgraded set generation = generation + 1, sweep_kind = null, verified_at = null, lacking = null where relation = $1",
        &[oid.into()],
    )?;
    spi::execute("delete from migrator.sweep_chunk where relation = $1", &[oid.into()]).map(|_| ())
}

/// The column is the last one, and nothing but our view and trigger knows of it: what would be lost with it can be made again.
fn column_stands_alone(table: &Upgraded) -> Result<bool, Failure> {
    #[derive(Deserialize)]
    struct Found {
        alone: bool,
    }
    let found: Found = spi::fetch_one(
        "select c.relkind = 'r' and a.attnum = (select max(m.attnum) from pg_catalog.pg_attribute m where m.attrelid = c.oid and not m.attisdropped) \
           and a.attacl is null and a.attnotnull and pg_catalog.col_description(c.oid, a.attnum) is null \
           and not exists (select from pg_catalog.pg_index i where i.indrelid = c.oid and (a.attnum = any (i.indkey) or i.indexprs is not null or i.indpred is not null)) \
           and not exists (select from pg_catalog.pg_constraint k where k.conrelid = c.oid and k.contype <> 'n' and a.attnum = any (k.conkey)) \
           and not exists (select from pg_catalog.pg_statistic_ext s where s.stxrelid = c.oid) \
           and coalesce(pg_catalog.pg_get_expr(d.adbin, d.adrelid) in ('''{}''::text[]', '''{}''::pg_catalog.text[]'), false) as alone \
         from pg_catalog.pg_class c join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attname = $2 \
         left join pg_catalog.pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum where c.oid = $1",
        &[pg_sys::Oid::from(table.relation.oid).into(), COLUMN.into()],
    )?;
    Ok(found.alone)
}

/// Whether retired names are free.
pub enum Clean {
    /// No row has them, and the guard does not know of them any more.
    Done,
    /// Rows have them, or may have.
    NotYet,
    /// No row would have them, if rows were not born with them: what somebody has to do.
    Born(String),
}

/// A look at all rows found none with a retired name: the guard need not know of it any more, and it is free to be used again.
/// The names' rows were counted by the last verify sweep.
pub fn clean(table: &Upgraded) -> Result<Clean, Failure> {
    if !table.alone()? {
        return Ok(Clean::NotYet);
    }
    let now = table.again()?;
    if now.state.generation != table.state.generation || !now.state.verified || now.state.lacking.unwrap_or(1) > 0 {
        return Ok(Clean::NotYet);
    }
    let retiring: Vec<Registered> =
        table.registered()?.into_iter().filter(|upgrade| upgrade.state == "retiring").collect();
    let born = table::born_with(&table.relation)?;
    if let Some(upgrade) = retiring.iter().find(|upgrade| born.contains(&upgrade.name)) {
        return Ok(Clean::Born(format!(
            "rows are born with the retired name {}: alter table {} alter column {COLUMN} set default '{{}}';",
            plain(&upgrade.name),
            table.relation.name
        )));
    }
    gone(table, &retiring)?;
    crash::point("step.forgotten");
    let what = format!("retired names of table {} could not be forgotten", table.relation.name.plain());
    install::apply(table, &what, false, None)?;
    // Nothing was added that a sweep would have to bring to rows; the names that the last look found are those that there are.
    spi::execute(
        "update migrator.upgraded set sweep_generation = generation, verified_at = pg_catalog.clock_timestamp(), lacking = 0, strangers = $2 where relation = $1",
        &[pg_sys::Oid::from(table.relation.oid).into(), now.state.strangers.into()],
    )?;
    Ok(Clean::Done)
}

fn gone(table: &Upgraded, upgrades: &[Registered]) -> Result<(), Failure> {
    for upgrade in upgrades {
        spi::execute(
            "update migrator.upgrade set state = 'retired', gone_at = pg_catalog.clock_timestamp() where id = $1",
            &[upgrade.id.into()],
        )?;
        table.event(
            "gone",
            &format!("no row has the name {} any more", upgrade.name),
            json!({"upgrade": upgrade.name}),
        )?;
    }
    Ok(())
}
