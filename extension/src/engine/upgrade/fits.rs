//! Whether the live upgrades of a table fit the new shape that a change gives it: what registration asked of the old one, the
//! shadow has to answer too, and what a row's names say of it has to be as true of the row that is made of it.

use super::table::{Registered, Upgraded};
use super::{numbers, register, view};
use crate::catalog::definition::{self, Column};
use crate::catalog::expression::{self, Place, Type};
use crate::catalog::relation::Relation;
use crate::engine::change::Change;
use crate::engine::shape::keys;
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Ident, plain};
use migrator_core::key::{KeyType, none_rounds};
use migrator_core::plan::{KeyColumn, NewColumn, OldColumn};
use migrator_core::state::State;
use migrator_core::upgrade::COLUMN;

/// A new shape, as it will be.
pub struct Fits<'a> {
    /// Whether the change brings an upgrade of rows itself: its transforms leave alone what has the name.
    pub brings: bool,
    pub live: &'a Relation,
    pub shadow: &'a Relation,
    /// The shadow's columns, and where the value of each comes from.
    pub after: &'a [Column],
    pub plan: &'a [NewColumn],
    /// The columns before, and how they come back with a rollback.
    pub before: &'a [OldColumn],
    /// Those of the key come back as they went, whatever their type.
    pub key: &'a [KeyColumn],
}

/// Keeps what is registered as it is until the end of the transaction: of a change that begins and an upgrade that is registered at
/// once one sees the other. Taken before the table, as by whoever registers.
pub fn hold(live: &Relation) -> Result<(), Failure> {
    match Upgraded::find(live.oid)? {
        Some(table) => table.held().map(|_| ()),
        None => Ok(()),
    }
}

/// Refuses an upgrade, registered a moment ago, that the other shape of the table's open change does not fit: the new one, where the
/// table is still to be swapped, the one before, where it can be brought back.
pub fn open_change(live: &Relation, upgrade: &str) -> Result<(), Failure> {
    let Some(change) = Change::find_open(live.oid)? else { return Ok(()) };
    let id = change.id;
    let refused = |failure: Failure, hint: String| {
        Failure::new(
            code::NOT_IN_STATE,
            format!("upgrade {} cannot be registered beside change {id}: {}", plain(upgrade), failure.message),
        )
        .detail(failure.detail.unwrap_or_else(|| "Nothing was changed.".to_owned()))
        .hint(hint)
    };
    if change.state == State::Swapped {
        return way_back(live, &change, upgrade).map_err(|failure| {
            refused(failure, format!("Register it when the change is finished, which gives up the way back: select migrator.finish(change => {id}); or give the change up first: select migrator.rollback(change => {id}); select migrator.cancel(change => {id});"))
        });
    }
    let shadow = change.table(change.shadow)?;
    let after = definition::columns(shadow.oid)?;
    let plan = &change.plan.new_columns;
    let brings = plan.iter().any(|column| column.upgraded);
    let (before, key) = (&change.plan.old_columns, &change.plan.key);
    Fits { brings, live, shadow: &shadow, after: &after, plan, before, key }.check().map_err(|failure| {
        refused(failure, format!("Register it when the change is swapped: call migrator.prepare(change => {id}); or give the change up first: select migrator.cancel(change => {id});"))
    })
}

/// After a rollback rows have the names that they got since the swap, and inputs and outputs as the way back makes them. Where that gives
/// one that has the same name other values, nobody could tell that they do not fit one another. Where the shape before does not have
/// one, the guard misses it, and says so.
fn way_back(live: &Relation, change: &Change, upgrade: &str) -> Result<(), Failure> {
    let plan = &change.plan;
    // What a rewrite has upgraded goes back as it is.
    let comes = |new: &NewColumn, name: &Ident| new.upgraded || keys::is_unchanged(&new.source, name);
    let old = change.table(change.live)?;
    let (columns_before, columns_after) = (definition::columns(old.oid)?, definition::columns(live.oid)?);
    let stays = |name: &Ident| {
        let new = plan.new_columns.iter().find(|new| new.name == *name && new.old.as_ref() == Some(name));
        let as_it_is = || {
            goes_back(&plan.old_columns, &plan.key, name) && !rounds(&columns_before, &columns_after, &plan.key, name)
        };
        new.is_some_and(|new| comes(new, name) && (new.upgraded || as_it_is()))
    };
    let before = |name: &Ident| plan.old_columns.iter().any(|old| old.name == *name);
    if !before(&Ident::from(COLUMN)) {
        return Err(Failure::new(code::NOT_IN_STATE, format!("column {COLUMN} of {} came with it", live.name.plain()))
            .detail("A rollback would take it, and with it what tells which rows are upgraded. Nothing was changed."));
    }
    let registered = Upgraded::get(live.oid)?.registered()?;
    let Some(registered) = registered.iter().find(|there| there.name == upgrade) else { return Ok(()) };
    let columns: Vec<&Ident> = registered.definition.inputs.iter().chain(registered.definition.outputs()).collect();
    if let Some(input) = columns.iter().find(|column| before(column) && !stays(column)) {
        return Err(Failure::new(
            code::NOT_IN_STATE,
            format!("column {} of {} had other values before it, or gets others on the way back", plain(input.as_str()), live.name.plain()),
        )
        .detail("A rollback would bring those back, and leave what the upgrade has made of the others. Nothing was changed."));
    }
    if registered.kind != "expression" || !columns.into_iter().all(before) {
        return Ok(());
    }
    // What is there as it was may be of another type.
    can_be_read(registered, &old, &columns_before, live).map_err(|failure| {
        Failure::new(
            code::NOT_IN_STATE,
            format!(
                "what {} was before it has columns that the upgrade cannot read: {}",
                live.name.plain(),
                failure.message
            ),
        )
        .detail("After a rollback no row could be upgraded. Nothing was changed.")
    })
}

/// Whether a rollback gives rows in a column what they have in the one of its name.
fn goes_back(before: &[OldColumn], key: &[KeyColumn], name: &Ident) -> bool {
    let as_it_is = |old: &OldColumn| old.goes_back_as_it_is() || key.iter().any(|key| key.old == old.name);
    before.iter().any(|old| old.name == *name && old.new.as_ref() == Some(name) && as_it_is(old))
}

/// Whether a column gets other values because its types are other ones, there or back. A key has asked for more than that.
fn rounds(before: &[Column], after: &[Column], key: &[KeyColumn], name: &Ident) -> bool {
    let of = |columns: &[Column]| columns.iter().position(|column| column.name == *name);
    let (Some(old), Some(new)) = (of(before), of(after)) else { return false };
    let (old, new) = (&before[old], &after[new]);
    let same = old.type_oid == new.type_oid && old.modifier == new.modifier;
    !same && !key.iter().any(|key| key.old == *name) && !none_rounds(under_domains(old), under_domains(new))
}

fn under_domains(column: &Column) -> KeyType<'_> {
    let base = column.bare_type.as_deref().unwrap_or(&column.base_type);
    KeyType { base, modifier: column.bare_modifier, ..keys::key_type(column) }
}

/// Whether the guard can read an upgrade's expressions over another table, which takes the place of the live one.
fn can_be_read(upgrade: &Registered, other: &Relation, columns: &[Column], live: &Relation) -> Result<(), Failure> {
    for (output, text) in &upgrade.definition.set {
        let Some(column) = columns.iter().find(|column| column.name == *output) else { continue };
        let place = Place {
            relation: other.oid,
            shape: expression::Shape::Old,
            owner: live.owner(),
            settings: &upgrade.settings,
            what: format!("upgrade {}, column {}", plain(&upgrade.name), plain(output.as_str())),
            whole_row: false,
        };
        expression::fits(&place, text, Type { oid: column.type_oid, modifier: column.modifier })?;
    }
    Ok(())
}

/// Warns who registered beside a swapped change that the view is in the way of a rollback, for it shows columns that the shape before
/// does not have under their names.
pub fn warn_of_way_back(upgraded: &Upgraded) -> Result<(), Failure> {
    let live = &upgraded.relation;
    let Some(change) = Change::find_open(live.oid)?.filter(|change| change.state == State::Swapped) else {
        return Ok(());
    };
    let Some(view) = view::ours(upgraded)? else { return Ok(()) };
    let plan = &change.plan;
    let stays = |new: &&NewColumn| {
        plan.old_columns.iter().any(|old| old.name == new.name && old.new.as_ref() == Some(&new.name))
    };
    if let Some(column) = plan.new_columns.iter().find(|new| !stays(new)) {
        let id = change.id;
        crate::raise::warn(
            Failure::new("01000", format!("view {} is in the way of a rollback of change {id}", view.plain()))
                .detail(format!("It shows column {}, which the table before does not have.", plain(column.name.as_str())))
                .hint(format!("Should you have to go back: drop view {view}; select migrator.rollback(change => {id}); migrator.resume_upgrades makes it anew, where the table has what upgrades name.")),
        );
    }
    Ok(())
}

impl Fits<'_> {
    /// Refuses a shape that an upgrade of the table does not fit.
    pub fn check(&self) -> Result<(), Failure> {
        let Some(table) = Upgraded::find(self.live.oid)? else { return Ok(()) };
        let registered = table.registered()?;
        if registered.is_empty() {
            return Ok(());
        }
        // The new shape has columns of its own, of which nobody could tell that any more.
        if let Some((_, lost)) = numbers::added_again(&table)?.pop() {
            return Err(lost.detail("Nothing was changed."));
        }
        let marks = Ident::from(COLUMN);
        for name in table.key.iter().chain([&marks]) {
            self.there(name)?;
        }
        self.holds_names(&marks)?;
        // In messages the shadow is the table that it will be.
        let shadow = Relation { name: self.live.name.clone(), ..self.shadow.clone() };
        if shadow.kind == "p" {
            register::members_fit(&shadow).map_err(|failure| self.unfit(failure))?;
        }
        for upgrade in registered.iter().filter(|upgrade| upgrade.state != "retiring") {
            self.columns(upgrade)?;
            if upgrade.definition.in_place {
                register::moves_to_no_partition(&upgrade.definition, &shadow).map_err(|failure| self.unfit(failure))?;
            }
            // A function takes rows of the table, which keeps the table from being changed at all.
            if upgrade.kind == "expression" {
                can_be_read(upgrade, self.shadow, self.after, self.live).map_err(|failure| {
                    self.unfit(failure).detail("From the swap on no row could be upgraded. Nothing was changed.")
                })?;
            }
        }
        Ok(())
    }

    /// The column of the new shape that was this one before.
    fn there(&self, name: &Ident) -> Result<(&Column, &NewColumn), Failure> {
        let columns = self.after.iter().zip(self.plan);
        let Some((column, new)) = columns.into_iter().find(|(column, _)| column.name == *name) else {
            return Err(self.needs(name, "The new shape does not have it under that name."));
        };
        if new.old.as_ref() != Some(name) {
            return Err(self.needs(name, "The new shape has another column under that name."));
        }
        Ok((column, new))
    }

    fn needs(&self, name: &Ident, detail: &str) -> Failure {
        Failure::new(
            code::NOT_IN_STATE,
            format!("upgrades of the rows of {} need column {}", self.live.name.plain(), plain(name.as_str())),
        )
        .detail(detail)
        .hint("Let them end and retire them first: select name, state, next_step from migrator.upgrades; or keep the column in this change.")
    }

    fn holds_names(&self, marks: &Ident) -> Result<(), Failure> {
        let (column, new) = self.there(marks)?;
        if !register::holds_names(column) {
            return Err(
                self.needs(marks, "Rows remember their upgrades in it, and in the new shape it is not of type text[].")
            );
        }
        self.carried(marks, new, "Rows remember their upgrades in it.")
    }

    /// A row keeps its names, so what its outputs were made from has to stay what it was.
    fn columns(&self, upgrade: &Registered) -> Result<(), Failure> {
        for input in &upgrade.definition.inputs {
            let (column, new) = self.there(input)?;
            self.written(upgrade, column)?;
            let name = plain(&upgrade.name);
            let why = if upgrade.definition.outputs().any(|output| output == input) {
                format!(
                    "Upgrade {name} makes it out of itself: of the new values nobody could tell whether it has made them."
                )
            } else {
                format!("Upgrade {name} has made outputs from it, which would stay as they are.")
            };
            self.carried(input, new, &why)?;
        }
        for output in upgrade.definition.outputs() {
            let (column, _) = self.there(output)?;
            self.written(upgrade, column)?;
            if column.identity {
                return Err(
                    self.needs(output, "In the new shape it is an identity column, which no upgrade can write.")
                );
            }
        }
        Ok(())
    }

    fn written(&self, upgrade: &Registered, column: &Column) -> Result<(), Failure> {
        if !column.generated {
            return Ok(());
        }
        let detail =
            format!("In the new shape it is generated, and upgrade {} reads or writes it.", plain(&upgrade.name));
        Err(self.needs(&column.name, &detail))
    }

    fn carried(&self, name: &Ident, new: &NewColumn, why: &str) -> Result<(), Failure> {
        let columns_before = definition::columns(self.live.oid)?;
        let as_it_is = self.brings || keys::is_unchanged(&new.source, name) && goes_back(self.before, self.key, name);
        if as_it_is && (new.upgraded || !rounds(&columns_before, self.after, self.key, name)) {
            return Ok(());
        }
        Err(Failure::new(
            code::NOT_IN_STATE,
            format!(
                "column {} of {} cannot get other values: upgrades of the rows stand on it",
                plain(name.as_str()),
                self.live.name.plain()
            ),
        )
        .detail(format!("{why} Nothing was changed."))
        .hint(format!(
            "Leave its values as they are, there (transform, USING, a type that makes others of them) and back (reverse); or retire the upgrades first: select name, state, next_step from migrator.upgrades where relation = {};",
            self.live.as_shown()
        )))
    }

    fn unfit(&self, why: Failure) -> Failure {
        let failure = Failure::new(
            code::NOT_IN_STATE,
            format!("upgrades of the rows of {} do not fit the new shape: {}", self.live.name.plain(), why.message),
        )
        .hint("Let them end and retire them first: select name, state, next_step from migrator.upgrades; or leave these columns as they are.");
        match why.detail {
            Some(detail) => failure.detail(detail),
            None => failure,
        }
    }
}
