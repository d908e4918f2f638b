//! One row that is written or read, and its upgrades.

use super::defaults::Unwritten;
use super::image;
use super::known::Known;
use super::marks;
use super::run::{self, Busy, Run};
use crate::catalog::attempt::attempt;
use crate::catalog::bulk::attribute;
use crate::catalog::role;
use migrator_core::failure::Failure;
use migrator_core::upgrade::{Act, Marks, Row as Kind, Written, decide};
use pgrx::pg_sys;
use std::rc::Rc;

/// Who applies upgrades.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applier {
    /// A statement of an application: it must not fail.
    Writer,
    /// A batch of ours, already running as the owner: errors are its own to sort out. So many expressions, from the first, are
    /// applied to a row.
    Batch { limit: usize },
    /// A reader: nothing is stored.
    Reader,
}

/// An upgrade that failed for a row.
pub struct Failed {
    pub upgrade: i64,
    pub failure: Failure,
}

/// The columns of a row, taken apart.
pub struct Values {
    pub values: Vec<pg_sys::Datum>,
    pub nulls: Vec<bool>,
}

impl Values {
    /// # Safety
    /// The tuple is of the descriptor's type, and lives as long as the values are used.
    pub unsafe fn of(tuple: pg_sys::HeapTuple, row: pg_sys::TupleDesc) -> Values {
        // SAFETY: the caller's; both arrays have a place for each column.
        unsafe {
            let count = usize::try_from((*row).natts).expect("a table's columns");
            let mut values = vec![pg_sys::Datum::from(0_usize); count];
            let mut nulls = vec![false; count];
            pg_sys::heap_deform_tuple(tuple, row, values.as_mut_ptr(), nulls.as_mut_ptr());
            Values { values, nulls }
        }
    }

    fn get(&self, place: usize) -> Option<pg_sys::Datum> {
        (!self.nulls[place]).then_some(self.values[place])
    }
}

/// A row in hand.
pub struct Row<'a> {
    table: pg_sys::Relation,
    known: &'a Rc<Known>,
    applier: Applier,
    /// Before the statement; none for a new row.
    old: Option<Values>,
    /// As it is written, and then as it becomes.
    pub new: Values,
    pub changed: Vec<usize>,
    /// Upgrades whose outputs nobody wrote: a new row that comes from another partition has them from there.
    outdated: Vec<i64>,
    pub failed: Option<Failed>,
    /// What the derived values lie with. An upgrade that fails has its statement evaluate with another from the next row on.
    run: Option<(Rc<Run>, Busy)>,
}

impl<'a> Row<'a> {
    pub fn new(
        table: pg_sys::Relation,
        known: &'a Rc<Known>,
        applier: Applier,
        old: Option<Values>,
        new: Values,
    ) -> Self {
        Self { table, known, applier, old, new, changed: vec![], outdated: vec![], failed: None, run: None }
    }

    /// Applies what there is to apply. Afterwards `changed` lists the columns that differ from what was written.
    ///
    /// # Safety
    /// The relation is open and `known` is what is known of it.
    pub unsafe fn apply(&mut self) -> Result<(), Failure> {
        let known = self.known;
        // SAFETY: the column is of type text[], or the table would not be known.
        let (before, clean) = unsafe { marks::read(self.new.get(known.marks)) };
        // SAFETY: the same; the statement has rarely touched it.
        let had = unsafe {
            self.is_changed(known.marks)
                .then(|| self.old.as_ref().map_or_else(Marks::default, |old| marks::read(old.get(known.marks)).0))
        };
        let had = had.as_ref().unwrap_or(&before);
        let mut marks = before.clone();
        // What the guard of the partition that it comes from had to leave.
        let outdated = marks.take_outdated();
        if self.old.is_none() {
            self.outdated = outdated;
        }
        for name in &known.definition.retired {
            marks.clear(name);
        }
        let mut barrier = false;
        let mut applied = 0;
        let mut left = vec![];
        for place in 0..known.definition.upgrades.len() {
            let upgrade = &known.definition.upgrades[place];
            // SAFETY: the caller's.
            let written = unsafe { self.written(place, had.has(&upgrade.name), before.has(&upgrade.name)) };
            let in_batch = known.fits && self.applier != Applier::Writer;
            let mut act = decide(upgrade, self.kind(), written, in_batch);
            // What cannot be told from done twice keeps its name whatever happens before it.
            let safe = upgrade.in_place && act == Act::Keep;
            if barrier && !safe || !known.fits && derives(act) {
                act = Act::Leave;
            }
            if matches!(self.applier, Applier::Batch { limit } if applied >= limit) && derives(act) {
                act = Act::Leave;
            }
            // Nor may a name that the writer did not write himself make his statement fail.
            let is_refusable = known.refuses_marks && !safe && !upgrade.is_application() && !before.has(&upgrade.name);
            if act == Act::Keep && is_refusable && self.applier == Applier::Writer {
                act = if upgrade.deferred { Act::Leave } else { Act::DeriveOthers };
            }
            match act {
                Act::Keep => marks.set(&upgrade.name),
                Act::Leave => {
                    marks.clear(&upgrade.name);
                    barrier = true;
                    left.extend(upgrade.is_derived().then_some(upgrade.id));
                }
                Act::Derive | Act::DeriveOthers => {
                    // SAFETY: the caller's.
                    let done = unsafe {
                        let (run, _) = self.run.get_or_insert_with(|| {
                            let run = run::of(self.table, known);
                            let busy = run.reset();
                            (run, busy)
                        });
                        let run = run.clone();
                        self.derive(&run, place, act, before.has(&upgrade.name), &marks)?
                    };
                    if done {
                        applied += 1;
                        marks.set(&upgrade.name);
                    } else {
                        marks.clear(&upgrade.name);
                        barrier = true;
                        left.extend(upgrade.is_derived().then_some(upgrade.id));
                    }
                }
            }
        }
        // Outputs that a batch would have made anew must not pass for what the writer gave where it goes: a note goes with them.
        // SAFETY: the caller's.
        if !left.is_empty() && known.is_clone && unsafe { self.moves() } {
            left.into_iter().for_each(|upgrade| marks.set_outdated(upgrade));
        }
        if marks != before || !clean {
            self.new.values[known.marks] = known.array(marks);
            self.new.nulls[known.marks] = false;
            self.changed.push(known.marks);
        }
        Ok(())
    }

    /// Whether it is stored in another partition than it was: as a new row, of which nobody can tell any more what changed.
    unsafe fn moves(&self) -> bool {
        if self.old.is_none() || self.applier == Applier::Reader {
            return false;
        }
        let run = match &self.run {
            Some((run, _)) if self.failed.is_none() => run.clone(),
            // SAFETY: the caller's open relation.
            _ => unsafe { run::of(self.table, self.known) },
        };
        // SAFETY: the run is of this table.
        unsafe { !run.stays(&self.new.values, &self.new.nulls) }
    }

    /// The table that it is a row of.
    pub fn table(&self) -> pg_sys::Relation {
        self.table
    }

    /// The names that the row has.
    pub fn marks(&self) -> Marks {
        // SAFETY: the column is of type text[].
        unsafe { marks::read(self.new.get(self.known.marks)).0 }
    }

    /// The names that it should have, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.known.definition.upgrades.iter().map(|upgrade| upgrade.name.as_str())
    }

    fn kind(&self) -> Kind {
        if self.old.is_some() { Kind::Updated } else { Kind::New }
    }

    /// What the statement, and the upgrades before this one, did to its columns.
    unsafe fn written(&self, upgrade: usize, had: bool, has: bool) -> Written {
        let columns = &self.known.columns[upgrade];
        // By the statement itself: what an upgrade before this one made of a column says nothing of the writer.
        let written = |place: usize| {
            // SAFETY: a place of this row.
            !self.changed.contains(&columns.outputs[place]) && unsafe { self.is_output_changed(upgrade, place, has) }
        };
        let count = (0..columns.outputs.len()).filter(|place| written(*place)).count();
        // SAFETY: places of columns of this row.
        let inputs = columns.lost || unsafe { columns.inputs.iter().any(|place| self.is_changed(*place)) };
        // Of those that are away nobody can tell.
        let all = count > 0 && count == self.known.definition.upgrades[upgrade].outputs().count();
        // SAFETY: places of this row.
        let emptied = (0..columns.outputs.len()).any(|place| unsafe { self.is_emptied(upgrade, place) });
        Written { had, has, inputs, outputs: count > 0, all, emptied }
    }

    unsafe fn is_changed(&self, place: usize) -> bool {
        match &self.old {
            // SAFETY: two values of one column.
            Some(old) => unsafe { !self.same(place, old.get(place), self.new.get(place)) },
            None => true,
        }
    }

    /// Whether the statement wrote an output of an upgrade, by its number.
    unsafe fn is_output_changed(&self, upgrade: usize, number: usize, has: bool) -> bool {
        let columns = &self.known.columns[upgrade];
        let place = columns.outputs[number];
        // SAFETY: a place of this row.
        unsafe {
            if self.old.is_some() {
                return self.is_changed(place) && !self.is_emptied(upgrade, number);
            }
            if self.outdated.contains(&self.known.definition.upgrades[upgrade].id) {
                return false;
            }
            match &columns.defaults[number] {
                Unwritten::Unknown if !self.new.nulls[place] => has,
                _ => !self.is_unwritten(upgrade, number),
            }
        }
    }

    /// Whether an output has what it has where nobody gives it a value, as far as that can be told.
    unsafe fn is_unwritten(&self, upgrade: usize, number: usize) -> bool {
        let columns = &self.known.columns[upgrade];
        let place = columns.outputs[number];
        // SAFETY: defaults are of the column's type.
        let is_default = |value: &pg_sys::Datum| unsafe { self.same(place, Some(*value), self.new.get(place)) };
        self.new.nulls[place]
            || matches!(&columns.defaults[number], Unwritten::Constants(values) if values.iter().any(is_default))
    }

    /// Whether a subscription took the value of an output away. Its worker writes every column that is published; where the publisher's
    /// application knows nothing of the upgrade, an output comes back with each row as it is there: with nothing. An upgrade in place
    /// has the writers' own values in its column.
    unsafe fn is_emptied(&self, upgrade: usize, number: usize) -> bool {
        let place = self.known.columns[upgrade].outputs[number];
        // SAFETY: reads a variable of the session (commands/trigger.h). The place is one of this row.
        unsafe {
            self.applier == Applier::Writer
                && pg_sys::SessionReplicationRole == pg_sys::SESSION_REPLICATION_ROLE_REPLICA.cast_signed()
                && self.old.is_some()
                && !self.known.definition.upgrades[upgrade].in_place
                && !self.changed.contains(&place)
                && self.is_changed(place)
                && self.is_unwritten(upgrade, number)
        }
    }

    unsafe fn same(&self, place: usize, a: Option<pg_sys::Datum>, b: Option<pg_sys::Datum>) -> bool {
        match (a, b) {
            (None, None) => true,
            // SAFETY: values of this column.
            (Some(a), Some(b)) => unsafe {
                let column = &*attribute((*self.table).rd_att, place);
                image::same(a, b, column.attbyval, column.attlen)
            },
            _ => false,
        }
    }

    /// Puts derived values into the row, which has these names so far. False where that failed, and was noted, or is left to a batch.
    unsafe fn derive(
        &mut self,
        run: &Rc<Run>,
        upgrade: usize,
        act: Act,
        has: bool,
        marks: &Marks,
    ) -> Result<bool, Failure> {
        let known = self.known;
        let definition = &known.definition.upgrades[upgrade];
        let outputs = &known.columns[upgrade].outputs;
        let places: Vec<usize> = (0..outputs.len())
            // SAFETY: places of this row.
            .filter(|number| act == Act::Derive || unsafe { !self.is_output_changed(upgrade, *number, has) })
            .map(|number| outputs[number])
            .collect();
        // SAFETY: the caller's.
        let outcome = unsafe {
            if let Applier::Batch { .. } = self.applier {
                super::trigger::begins(definition.id);
                let evaluate = || run.evaluate(self.table, upgrade, &self.new.values, &self.new.nulls);
                // The batch runs under the settings of the first list.
                if definition.settings == 0 {
                    evaluate().map(Some)
                } else {
                    let settings: Vec<(&str, &str)> = known.definition.settings[definition.settings]
                        .iter()
                        .map(|(name, value)| (name.as_str(), value.as_str()))
                        .collect();
                    role::with_settings(&settings, evaluate).map(Some)
                }
            } else {
                let owner = (*(*self.table).rd_rel).relowner;
                let settings = &known.definition.settings[definition.settings];
                attempt(|| {
                    let outputs = role::as_owner(owner, settings, || {
                        run.evaluate(self.table, upgrade, &self.new.values, &self.new.nulls)
                    })?;
                    if self.applier == Applier::Writer {
                        let (mut values, mut nulls) = (self.new.values.clone(), self.new.nulls.clone());
                        self.put(&mut values, &mut nulls, upgrade, &places, &outputs);
                        if known.tries_marks {
                            // An array of its own: functions of a CHECK may write to this table, and so come by the one that is shared.
                            let mut marks = marks.clone();
                            marks.set(&definition.name);
                            values[known.marks] = marks::array(&marks);
                            nulls[known.marks] = false;
                        }
                        if known.columns[upgrade].refusals.too_long(&values, &nulls) {
                            return Ok(None);
                        }
                        run.check(self.table, &values, &nulls, self.old.is_none());
                    }
                    Ok(Some(outputs))
                })
            }
        };
        match outcome {
            Ok(None) => Ok(false),
            Ok(Some(outputs)) => {
                let (mut values, mut nulls) =
                    (std::mem::take(&mut self.new.values), std::mem::take(&mut self.new.nulls));
                self.put(&mut values, &mut nulls, upgrade, &places, &outputs);
                self.new = Values { values, nulls };
                for place in places {
                    if !self.changed.contains(&place) {
                        self.changed.push(place);
                    }
                }
                Ok(true)
            }
            Err(failure) if matches!(self.applier, Applier::Batch { .. }) => Err(failure),
            Err(failure) => {
                run::forget();
                self.failed = Some(Failed { upgrade: definition.id, failure });
                Ok(false)
            }
        }
    }

    fn put(
        &self,
        values: &mut [pg_sys::Datum],
        nulls: &mut [bool],
        upgrade: usize,
        places: &[usize],
        outputs: &[(pg_sys::Datum, bool)],
    ) {
        for (place, (value, null)) in self.known.columns[upgrade].outputs.iter().zip(outputs) {
            if places.contains(place) {
                (values[*place], nulls[*place]) = (*value, *null);
            }
        }
    }
}

fn derives(act: Act) -> bool {
    matches!(act, Act::Derive | Act::DeriveOthers)
}
