//! One batch: rows of a range that lack something are locked, written, and thereby upgraded by the guard.
//!
//! The whole batch is tried at once. Where that fails by a row's fault the rows are halved until what fails stands alone: it
//! is set aside with what it was and why, after the upgrades before the failing one were applied to it. Rows that somebody
//! else has locked are not waited for; the chunk remembers them.

use super::bound::Within;
use super::keyset::Keyset;
use super::looked;
use super::table::Upgraded;
use crate::catalog::attempt::attempt;
use crate::catalog::spi;
use crate::crash;
use crate::guard;
use migrator_core::failure::{Failure, code};
use migrator_core::ident::plain;
use migrator_core::sqlstate;
use migrator_core::upgrade::sweep::Range;
use migrator_core::upgrade::{COLUMN, Definition};
use pgrx::JsonB;
use serde::Deserialize;
use serde_json::json;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// A key, as texts.
pub type Key = Vec<String>;

/// What became of a batch.
#[derive(Debug, Default)]
pub struct Done {
    /// Rows that it looked at; where it was cut short, as many as it is through with.
    pub scanned: i64,
    /// Rows that it wrote.
    pub written: i64,
    /// Rows that were set aside.
    pub failed: i64,
    /// Those.
    pub aside: Vec<Key>,
    /// Rows that somebody else holds, and those that there was no time for.
    pub skipped: Vec<Key>,
    /// It ended before its last row: time, WAL or failures were too many.
    pub cut: bool,
}

/// What one statement did to the rows that lack something.
#[derive(Debug, Deserialize)]
struct Counts {
    locked: i64,
    written: i64,
}

#[derive(Deserialize)]
struct Found {
    key: Key,
}

/// A table, what its guard knows, and its key.
pub struct Batch<'a> {
    table: &'a Upgraded,
    definition: &'a Definition,
    keyset: &'a Keyset<'a>,
    /// None: everything at once, as somebody asked for, and no part of a sweep.
    bound: Option<Within>,
    /// How long to wait for each lock.
    patience: Cell<Duration>,
}

/// Below so many rows, one by one is cheaper than halving.
const FEW: usize = 16;
/// No batch sets more rows aside: then it is looked whether that are too many.
const FAILED_MOST: i64 = 100;
/// A row whose new values have to wait for another session keeps the batch's rows locked: not for long, and when it has
/// happened once, hardly at all.
const PATIENCE: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(20)];

impl<'a> Batch<'a> {
    /// All rows that it is given, however many.
    pub fn whole(table: &'a Upgraded, definition: &'a Definition, keyset: &'a Keyset<'a>) -> Self {
        Self { table, definition, keyset, bound: None, patience: Cell::new(PATIENCE[0]) }
    }

    /// As many of them as there is time for in a step of this target, which began then.
    pub fn within(
        begun: Instant,
        target: Duration,
        table: &'a Upgraded,
        definition: &'a Definition,
        keyset: &'a Keyset<'a>,
    ) -> Self {
        Self { bound: Some(Within::begin(begun, target)), ..Self::whole(table, definition, keyset) }
    }

    /// Brings up the rows of a range.
    pub fn range(&self, range: &Range) -> Result<Done, Failure> {
        let sql = self.keyset.table().write(self.definition, range);
        let (whole, looked) = looked::at(|| self.attempt(usize::MAX, &sql, None));
        crash::point("step.written");
        let mut done = Done::default();
        let mut held = false;
        match whole {
            Ok(counts) => {
                let all_written = counts.written >= looked.lacking;
                done.cut = self.was_cut();
                // Where all that it came to are in other hands it has looked at them all the same.
                let through = if counts.locked > 0 { counts.written } else { looked.rows };
                done.scanned = if done.cut && !all_written { through } else { looked.rows };
                done.written = counts.written;
                if all_written || done.cut {
                    return Ok(done);
                }
                held = counts.written == counts.locked;
            }
            Err(failure) => self.of_a_row(failure)?,
        }
        // Some rows are in other hands (only that, where all that were locked were written), or were not written though they
        // were locked, or one of them is refused.
        let lacking = self.keyset.table().lacking_keys(self.definition, range);
        let keys: Vec<Found> = self.keyset.query(&lacking, &[])?;
        let keys: Vec<Key> = keys.into_iter().map(|found| found.key).collect();
        done.scanned = done.scanned.max(i64::try_from(keys.len()).unwrap_or(i64::MAX));
        if held {
            done.skipped = keys;
        } else {
            self.halve(keys, &mut done)?;
        }
        if done.cut {
            done.scanned = done.written + done.failed;
        }
        Ok(done)
    }

    /// Tries again rows that were in other hands: those of the first so many that lack something still.
    pub fn keys(&self, mut keys: Vec<Key>, rows: usize) -> Result<Done, Failure> {
        let mut done = Done::default();
        let behind = keys.split_off(rows.min(keys.len()));
        let lacking = self.keyset.table().still_lacking(self.definition);
        let still: Vec<Found> = self.keyset.query(&lacking, &[JsonB(json!(keys)).into()])?;
        self.halve(still.into_iter().map(|found| found.key).collect(), &mut done)?;
        // Those that were not looked at come first the next time.
        done.skipped.splice(0..0, behind);
        Ok(done)
    }

    /// Tries rows until what fails stands alone. Rows that there is no time for count as those in other hands.
    fn halve(&self, mut keys: Vec<Key>, done: &mut Done) -> Result<(), Failure> {
        pgrx::check_for_interrupts!();
        if keys.len() > FEW && self.is_over(done) {
            // No part of them would get further than to its first row, with which all of them begin.
            done.cut = true;
            done.skipped.extend(keys.split_off(1));
        }
        if keys.len() <= FEW {
            return self.one_by_one(keys, done);
        }
        let sql = self.keyset.table().write_keys();
        match self.attempt(usize::MAX, &sql, Some(&keys)) {
            Ok(counts) if usize::try_from(counts.written) == Ok(keys.len()) => {
                done.written += counts.written;
                Ok(())
            }
            Ok(counts) => {
                done.written += counts.written;
                done.cut |= self.was_cut();
                let lacking = self.keyset.table().still_lacking(self.definition);
                let still: Vec<Found> = self.keyset.query(&lacking, &[JsonB(json!(keys)).into()])?;
                let still = still.into_iter().map(|found| found.key).collect();
                if done.cut || counts.written == counts.locked {
                    done.skipped.extend(still);
                    return Ok(());
                }
                self.one_by_one(still, done)
            }
            Err(failure) => {
                self.of_a_row(failure)?;
                let behind = keys.split_off(keys.len() / 2);
                self.halve(keys, done)?;
                if self.is_over(done) {
                    done.cut = true;
                    done.skipped.extend(behind);
                    return Ok(());
                }
                self.halve(behind, done)
            }
        }
    }

    fn one_by_one(&self, keys: Vec<Key>, done: &mut Done) -> Result<(), Failure> {
        let mut keys = keys.into_iter();
        while let Some(key) = keys.next() {
            self.one(key, done)?;
            if self.is_over(done) && keys.len() > 0 {
                done.cut = true;
                done.skipped.extend(keys);
                break;
            }
        }
        Ok(())
    }

    fn is_over(&self, done: &Done) -> bool {
        self.bound.as_ref().is_some_and(|bound| bound.is_over() || done.failed >= FAILED_MOST)
    }

    fn was_cut(&self) -> bool {
        self.bound.as_ref().is_some_and(Within::was_cut)
    }

    /// One row by itself.
    fn one(&self, key: Key, done: &mut Done) -> Result<(), Failure> {
        let sql = self.keyset.table().write_keys();
        let keys = vec![key];
        match self.attempt_row(usize::MAX, &sql, &keys) {
            Ok(counts) if counts.locked == 0 => done.skipped.extend(keys),
            Ok(counts) if counts.written == 0 => {
                let table = self.table.relation.name.plain();
                let failure =
                    Failure::new("02000", format!("a trigger of table {table} kept the row from being written"));
                self.set_aside(&keys[0], None, &failure, done)?;
            }
            Ok(_) => done.written += 1,
            Err(failure) if is_locked(&failure) => done.skipped.extend(keys),
            Err(failure) => {
                self.of_a_row(failure.clone())?;
                if self.definition.upgrades.is_empty() {
                    self.set_aside(&keys[0], None, &failure, done)?;
                } else {
                    self.as_far_as_it_goes(&keys, &sql, done)?;
                }
            }
        }
        Ok(())
    }

    /// Applies one upgrade after the other, until one fails: that one is set aside, those before it stay.
    fn as_far_as_it_goes(&self, keys: &[Key], sql: &str, done: &mut Done) -> Result<(), Failure> {
        // What a turn has applied is the row's: the next one applies one more.
        for _ in &self.definition.upgrades {
            match self.attempt_row(1, sql, keys) {
                Ok(counts) if counts.locked == 0 => {
                    done.skipped.extend_from_slice(keys);
                    return Ok(());
                }
                Ok(_) => {}
                // Another session is in the way, and no fault of the row's.
                Err(failure) if is_locked(&failure) => {
                    done.skipped.extend_from_slice(keys);
                    return Ok(());
                }
                Err(failure) => {
                    let at = Some(guard::at()).filter(|at| *at != 0);
                    self.of_a_row(failure.clone())?;
                    self.set_aside(&keys[0], at, &failure, done)?;
                    return Ok(());
                }
            }
        }
        done.written += 1;
        Ok(())
    }

    /// What a batch has to do for a row: the first upgrade that it lacks, or else a retired one whose name it has.
    fn wanted_by(&self, row: &str) -> Result<i64, Failure> {
        let row: serde_json::Value = serde_json::from_str(row).unwrap_or_default();
        let has = |name: &str| row[COLUMN].as_array().is_some_and(|names| names.iter().any(|there| there == name));
        if let Some(lacked) = self.definition.upgrades.iter().find(|upgrade| !has(&upgrade.name)) {
            return Ok(lacked.id);
        }
        let registered = self.table.registered()?;
        let retired = registered.iter().find(|upgrade| upgrade.state == "retiring" && has(&upgrade.name));
        Ok(retired.map_or_else(|| self.first(), |upgrade| upgrade.id))
    }

    fn first(&self) -> i64 {
        self.definition.upgrades.first().map_or(0, |upgrade| upgrade.id)
    }

    fn attempt(&self, limit: usize, sql: &str, keys: Option<&[Key]>) -> Result<Counts, Failure> {
        let none = vec![];
        let settings = self.definition.settings.first().unwrap_or(&none);
        let arguments = keys.map(|keys| JsonB(json!(keys)).into());
        if let Some(bound) = &self.bound {
            bound.statement();
        }
        let patience = self.patience.get();
        let outcome = attempt(|| {
            guard::in_batch(self.first(), limit, || {
                self.keyset.write_within(patience, settings, sql, arguments.as_slice())
            })
        });
        if matches!(&outcome, Err(failure) if failure.code == code::LOCK_NOT_AVAILABLE) {
            self.patience.set(PATIENCE[1]);
        }
        outcome
    }

    /// The same for one row. One that moved at that moment is found where it is now; what fails so again is the row's fault.
    fn attempt_row(&self, limit: usize, sql: &str, keys: &[Key]) -> Result<Counts, Failure> {
        match self.attempt(limit, sql, Some(keys)) {
            Err(failure) if failure.code == code::SERIALIZATION => self.attempt(limit, sql, Some(keys)),
            outcome => outcome,
        }
    }

    /// Nothing where a row is to blame; the failure, where the program is, or the moment.
    fn of_a_row(&self, failure: Failure) -> Result<(), Failure> {
        let others = sqlstate::belongs_to_moment(&failure.code) || sqlstate::belongs_to_program(&failure.code);
        if in_other_hands(&failure) {
            return Ok(());
        }
        if others || self.fails_without_rows(&failure) {
            return Err(failure);
        }
        Ok(())
    }

    /// Whether a failure with a code that functions and triggers raise for a row, and the server for a table (55000: it is published, and has
    /// no replica identity), comes for no row at all.
    fn fails_without_rows(&self, failure: &Failure) -> bool {
        failure.code == code::NOT_IN_STATE
            && self
                .attempt(usize::MAX, &self.keyset.table().write_keys(), Some(&[]))
                .is_err_and(|without| without.code == failure.code)
    }

    /// Where the guard did not come to an upgrade, what the row was written for: under a name that it has it would be forgotten again.
    fn set_aside(&self, key: &Key, upgrade: Option<i64>, failure: &Failure, done: &mut Done) -> Result<(), Failure> {
        #[derive(Deserialize)]
        struct Row {
            key: String,
            row: String,
        }
        let rows: Vec<Row> = self.keyset.query(&self.keyset.table().row(), &[JsonB(json!(key)).into()])?;
        let sweep = self.bound.as_ref().map(|_| self.table.state.sweep);
        for row in rows {
            let upgrade = upgrade.map_or_else(|| self.wanted_by(&row.row), Ok)?;
            guard::store(upgrade, sweep, &row.key, &row.row, failure)?;
        }
        done.failed += 1;
        done.aside.push(key.clone());
        Ok(())
    }
}

/// Whether another session has, or had, one of the rows. A row that moved to another partition when its lock was about to be taken
/// fails the statement (40001) though it would skip what is locked; the next statement finds it where it is now.
fn in_other_hands(failure: &Failure) -> bool {
    failure.code == code::SERIALIZATION || is_locked(failure)
}

/// Whether another session has it.
fn is_locked(failure: &Failure) -> bool {
    [code::LOCK_NOT_AVAILABLE, code::DEADLOCK].contains(&&*failure.code)
}

/// Blocks the table's upgrades: the same would happen at every turn. Not where somebody has the table's row, who may be waiting for
/// the table that a batch holds: the next step meets it again.
pub fn block(table: &Upgraded, definition: &Definition, failure: &Failure) -> Result<bool, Failure> {
    let at = guard::at();
    let name = definition.upgrades.iter().find(|upgrade| upgrade.id == at).map_or("", |upgrade| upgrade.name.as_str());
    let which = if name.is_empty() { String::new() } else { format!("upgrade {}: ", plain(name)) };
    let why = format!("{which}{} ({})", failure.message, failure.code);
    let hint = failure.hint.clone().unwrap_or_default();
    let call =
        format!("select migrator.resume_upgrades({});", migrator_core::ident::literal(&table.relation.name.plain()));
    let taken = spi::execute(
        "update migrator.upgraded set blocked = $2, blocked_hint = $3 where relation = $1 \
           and relation in (select u.relation from migrator.upgraded u where u.relation = $1 for no key update skip locked)",
        &[
            pgrx::pg_sys::Oid::from(table.relation.oid).into(),
            why.clone().into(),
            format!("{hint} When it is mended: {call}").trim().to_owned().into(),
        ],
    )?;
    if taken == 0 {
        return Ok(false);
    }
    table.event("blocked", &why, json!({"sqlstate": failure.code}))?;
    Ok(true)
}
