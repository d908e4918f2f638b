//! The end of it: a table whose upgrades are all retired becomes one that never had any.

use super::table::{self, Upgraded};
use super::{findings, look, view};
use crate::catalog::attempt::{attempt, rehearse};
use crate::catalog::lock::{self, Mode, Wanted};
use crate::catalog::relation::Relation;
use crate::catalog::{role, spi};
use crate::engine::guard;
use crate::guard::TRIGGER;
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Ident, literal, plain};
use migrator_core::upgrade::COLUMN;
use pgrx::pg_sys;
use serde::Deserialize;

/// Removes view, guard and, where it was made here and only our names were ever in it, the column; and what is written down of the
/// table. Of a table that was dropped only the latter is left. Says whether the column went.
pub fn forget(oid: u32) -> Result<bool, Failure> {
    let caller = role::caller();
    role::as_extension(|| {
        let Some(relation) = Relation::find(oid)? else { return dropped(oid, caller) };
        table::check_owner(&relation, caller)?;
        Upgraded::get(oid)?;
        table::take_row(&relation)?;
        let table = Upgraded::get(oid)?;
        let name = relation.name.plain();
        if let Some(left) = table.registered()?.first() {
            let (quoted, upgrade) = (literal(&name), literal(&left.name));
            let (what, hint) = if left.state == "retiring" {
                ("rows still have its name", format!("Let the cleanup end: call migrator.run_upgrades({quoted});"))
            } else {
                ("it is not retired", format!("Retire it first: select migrator.retire_upgrade({quoted}, {upgrade});"))
            };
            return Err(Failure::new(
                code::NOT_IN_STATE,
                format!("upgrade {} of table {name} is in the way: {what}", plain(&left.name)),
            )
            .detail("Nothing was changed.")
            .hint(hint));
        }
        guard::fresh_snapshots("migrator.forget_upgrades")?;
        let ours = look::only_our_names(&table) && !rehearse(|| look::any_other(&table))?;
        if ours {
            table::columns_may_change(&relation)?;
        }
        let what = format!("upgrades of table {name} were not forgotten");
        lock::settle(&what, &table::tree(&relation)?)?;
        lock::series(
            &what,
            lock::ATTEMPTS,
            || {
                let members = table::tree(&relation)?.into_iter();
                let own = members.map(|relation| Wanted { relation, mode: Mode::AccessExclusive });
                Ok(view::of(&table)?.into_iter().chain(own).collect())
            },
            || Ok(()),
            || remove(&table, ours),
        )?;
        books(oid)?;
        Ok(ours)
    })
}

fn remove(table: &Upgraded, column: bool) -> Result<(), Failure> {
    let name = &table.still_there()?.name;
    let mut statements = vec![];
    if let Some(view) = view::ours(table)? {
        statements.push((view.plain(), format!("drop view {view}")));
    }
    statements.push((name.plain(), format!("drop trigger if exists {} on {name}", Ident::from(TRIGGER))));
    if column {
        let what = format!("{}.{COLUMN}", name.plain());
        statements.push((what, format!("alter table {name} drop column if exists {}", Ident::from(COLUMN))));
    }
    for (what, statement) in statements {
        // What is gone already needs no notice.
        let quietly = || role::with_settings(&[("client_min_messages", "warning")], || spi::execute(&statement, &[]));
        attempt(quietly).map_err(|failure| held(&what, failure))?;
    }
    Ok(())
}

fn held(what: &str, failure: Failure) -> Failure {
    if failure.code != code::DEPENDENTS {
        return failure;
    }
    let more = failure.detail.unwrap_or_default();
    Failure::new(failure.code, format!("{what} cannot be dropped, because something depends on it"))
        .detail(format!("{more} Nothing was changed."))
        .hint("Drop what depends on it, or have it read the table itself.")
}

/// Nothing is left of it but what is written down, which names rows that nobody has any more.
fn dropped(oid: u32, caller: pg_sys::Oid) -> Result<bool, Failure> {
    let relation = pg_sys::Oid::from(oid);
    if spi::execute("select from migrator.upgraded u where u.relation = $1", &[relation.into()])? == 0 {
        return Err(Failure::new(
            code::UNDEFINED_OBJECT,
            format!("there is no table with oid {oid}, and nothing is known of its upgrades"),
        )
        .detail("Nothing was changed.")
        .hint("select * from migrator.doctor(); names tables that were dropped while they had upgrades."));
    }
    check_rights(oid, caller)?;
    check_restored(oid)?;
    books(oid)?;
    Ok(false)
}

/// Who owned the table is not known any more: whoever answers for the extension may, and whoever answers for all that was registered.
fn check_rights(oid: u32, caller: pg_sys::Oid) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Facts {
        may: bool,
        owner: String,
    }
    // A role that is gone has no members.
    let facts: Facts = spi::fetch_one(
        "select pg_catalog.pg_get_userbyid(e.extowner) as owner, pg_catalog.pg_has_role($2, e.extowner, 'usage') or coalesce( \
           (select pg_catalog.bool_and(coalesce(pg_catalog.pg_has_role($2, r.oid, 'usage'), false)) from migrator.upgrade g \
             left join pg_catalog.pg_roles r on r.rolname = g.requested_by where g.relation = $1), false) as may \
         from pg_catalog.pg_extension e where e.extname = 'migrator'",
        &[pg_sys::Oid::from(oid).into(), caller.into()],
    )?;
    if facts.may {
        return Ok(());
    }
    let owner = plain(&facts.owner);
    Err(Failure::new(
        code::INSUFFICIENT_PRIVILEGE,
        format!(
            "must be a member of {owner}, or of each role that registered an upgrade of the table that had oid {oid}"
        ),
    )
    .detail("The table was dropped, and with it went who its owner was. Nothing was changed.")
    .hint(format!("Call it as {owner}, the owner of the extension, or as whoever registered them.")))
}

/// A dump that was restored brings the guard along and gives the table another oid: what is written down is that table's then.
fn check_restored(oid: u32) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Restored {
        name: String,
        call: String,
    }
    let restored: Option<Restored> = spi::fetch_optional(
        "select i.name, pg_catalog.format($3, i.name, $1) as call \
         from pg_catalog.pg_trigger w join pg_catalog.pg_class t on t.oid = w.tgrelid join pg_catalog.pg_namespace n on n.oid = t.relnamespace \
         cross join lateral (select pg_catalog.format('%I.%I', n.nspname, t.relname) as name) i \
         cross join lateral pg_catalog.jsonb_array_elements(pg_catalog.convert_from(pg_catalog.substr(w.tgargs, 1, greatest(0, pg_catalog.length(w.tgargs) - 1)), \
              pg_catalog.getdatabaseencoding())::pg_catalog.jsonb -> 'upgrades') u \
         join migrator.upgrade g on g.id = (u ->> 'id')::pg_catalog.int8 and g.relation = $1 \
         where w.tgname = $2 and w.tgparentid = 0 and w.tgnargs > 0 and w.tgfoid = 'migrator._guard()'::pg_catalog.regprocedure order by 1 limit 1",
        &[pg_sys::Oid::from(oid).into(), TRIGGER.into(), findings::MOVED_ON.into()],
    )?;
    let Some(Restored { name, call }) = restored else { return Ok(()) };
    Err(Failure::new(code::NOT_IN_STATE, format!("table {name} has the guard of these upgrades"))
        .detail(format!(
            "It was restored from a dump, and they are registered for oid {oid}, which it had before. Nothing was changed."
        ))
        .hint(format!("Register them for the table as it is: {call}")))
}

/// The log of events stays.
fn books(oid: u32) -> Result<bool, Failure> {
    let relation = pg_sys::Oid::from(oid);
    spi::execute(
        "delete from migrator.upgrade_unnoted n using migrator.upgrade g where g.id = n.upgrade and g.relation = $1",
        &[relation.into()],
    )?;
    let gone = spi::execute("delete from migrator.upgraded where relation = $1", &[relation.into()])?;
    if gone > 0 {
        table::event(
            oid,
            "forgotten",
            "view, guard and books of the table's upgrades were removed",
            serde_json::json!({}),
        )?;
    }
    Ok(gone > 0)
}
