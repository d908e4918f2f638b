//! Handing rows out: oldest key first, each to one worker at a time.
//!
//! The table is read by its key from where the last call ended, a window of rows at a time, and from the first key again when
//! the end is reached; so the last call costs what the first one did, and nothing that comes up behind the cursor is forgotten.
//! No row is locked: that its inputs are still the same is looked at when it comes back.

use super::{Desk, Key};
use crate::catalog::{definition, lock, spi};
use crate::crash;
use crate::engine::load;
use migrator_core::batch;
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Ident, literal, plain};
use migrator_core::load::Verdict;
use migrator_core::upgrade::sweep::Range;
use pgrx::prelude::*;
use pgrx::{JsonB, pg_sys};
use serde::Deserialize;
use serde_json::json;
use std::time::{Duration, Instant};

/// A row that is handed out. Key and row are JSON as text: a number keeps all its digits.
pub struct Handed {
    pub key: String,
    pub row: String,
    pub token: String,
    pub until: TimestampWithTimeZone,
}

/// The most rows of a call.
const MOST: i32 = 10_000;
/// The most bytes of a call, as they are stored: a call answers in memory.
const MOST_BYTES: i64 = 16 << 20;
/// What a row is taken to have that was not looked at.
const SUPPOSED_BYTES: i64 = 64 << 10;
/// Rows of the first window at least, and of any at most.
const WINDOW: i64 = 200;
const WIDEST: i64 = 20_000;
/// A pass over everything that found nothing is not repeated before this many times what it took.
pub(super) const REST: u32 = 10;

/// What a call found out.
pub enum Found {
    /// Rows.
    Some,
    /// Nothing, in the whole table.
    NothingFor(Duration),
    /// Nothing in the part that was looked at.
    NothingHere,
}

/// Hands out rows that lack the upgrade, or (`applied`) that have it. None: nothing is to be found now.
pub fn select(desk: &Desk<'_>, limit: i32, applied: bool, lease: Duration) -> Result<Vec<Handed>, Failure> {
    if !(1..=MOST).contains(&limit) {
        return Err(Failure::new(code::INVALID_PARAMETER, format!("a call hands out 1 to {MOST} rows"))
            .detail("Nothing was changed.")
            .hint("100 is a good number: what a worker does within its lease."));
    }
    if !(Duration::from_secs(1)..=Duration::from_secs(86_400)).contains(&lease) {
        return Err(Failure::new(code::INVALID_PARAMETER, "a lease is an interval from one second to one day")
            .detail("Nothing was changed.")
            .hint("It is how long a worker may take for all rows of a call; 30 seconds if it is left out."));
    }
    check(desk, applied)?;
    let Some(limit) = as_the_load_allows(desk, limit)? else { return Ok(vec![]) };
    lock::upgrading(desk.table.relation.oid);
    let lease_ms = i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
    let cursor = desk.cursor(lease_ms)?;
    // SAFETY: reads the clock.
    let now = unsafe { pg_sys::GetCurrentTimestamp() };
    let until = TimestampWithTimeZone::try_from(now + lease_ms * 1000)
        .map_err(|_| Failure::new(code::INTERNAL, "the clock is out of range"))?;
    let mut round = Round {
        desk,
        applied,
        until,
        left: usize::try_from(limit).unwrap_or(1),
        bytes: MOST_BYTES,
        handed: vec![],
        again: 0,
        columns: definition::columns(desk.table.relation.oid)?
            .into_iter()
            .filter(|column| !column.generated)
            .map(|column| column.name)
            .collect(),
    };
    if applied {
        let (after, ended) =
            if cursor.marked_over { (None, true) } else { round.until_the_end(cursor.marked_after.as_ref())? };
        if !cursor.marked_over {
            let done = desk.forget()? + round.again;
            desk.keep_marked(after.as_ref(), ended, done)?;
        }
    } else {
        let due: Vec<(Key, i64)> = desk.due(i64::from(limit))?.into_iter().map(|key| (key, SUPPOSED_BYTES)).collect();
        round.hand(&due)?;
        let (after, found) = round.all_round(cursor.key_after.as_ref(), cursor.idle)?;
        if matches!(found, Found::NothingFor(_)) && desk.registered.state == "running" {
            desk.look_again()?;
        }
        let done = desk.forget()? + round.again;
        desk.keep(after.as_ref(), found, done)?;
    }
    if !applied && !round.handed.is_empty() {
        // It was complete, and is not any more.
        spi::execute(
            "update migrator.upgrade set state = 'running', completed_at = null where id = $1 and state = 'complete'",
            &[desk.upgrade.id.into()],
        )?;
    }
    crash::point("select_batch.lent");
    Ok(round.handed)
}

/// How many rows the server's load lets go out now; None: none, and the caller hears why. What is out can come back: its rows
/// are written by one short statement, and to refuse it would only have the work done twice.
fn as_the_load_allows(desk: &Desk<'_>, limit: i32) -> Result<Option<i32>, Failure> {
    let reason = match load::verdict(|| load::work_on_rows(desk.table.relation.oid))? {
        Verdict::Go => {
            load::upgrades_held(desk.table, None)?;
            return Ok(Some(limit));
        }
        Verdict::Slow(factor, _) => {
            load::upgrades_held(desk.table, None)?;
            return Ok(Some(batch::divided(limit, factor)));
        }
        Verdict::Hold(reason) => reason,
    };
    load::upgrades_held(desk.table, Some(&reason))?;
    pgrx::notice!("no rows are handed out for now: {reason}. Call again in a second");
    Ok(None)
}

/// Refuses what is not for application code to do, or not now.
fn check(desk: &Desk<'_>, applied: bool) -> Result<(), Failure> {
    let table = desk.table.relation.name.plain();
    let name = &desk.registered.name;
    desk.guarded()?;
    if let Some(why) = &desk.table.state.blocked {
        let hint = desk.table.state.blocked_hint.clone();
        return Err(Failure::new(code::NOT_IN_STATE, format!("upgrades of table {table} are blocked: {why}"))
            .detail("Rows that are handed out already can come back. Nothing was changed.")
            .hint(hint.unwrap_or_else(|| {
                format!("When that is mended: select migrator.resume_upgrades({});", literal(&table))
            })));
    }
    if desk.table.state.paused {
        return Err(Failure::new(code::NOT_IN_STATE, format!("upgrades of table {table} are paused"))
            .detail("Rows that are handed out already can come back. Nothing was changed.")
            .hint(format!("To go on: select migrator.resume_upgrades({});", literal(&table))));
    }
    if applied {
        return Ok(());
    }
    desk.live()?;
    if !desk.upgrade.is_application() {
        return Err(Failure::new(
            code::WRONG_OBJECT_TYPE,
            format!("upgrade {} of table {table} is done in the server, not by application code", plain(name)),
        )
        .detail("Its expressions are applied by batches. Nothing was changed.")
        .hint(format!(
            "Run them: call migrator.run_upgrades({0}); or one at a time: select * from migrator.step({0}); applied => true gives rows that have it.",
            literal(&table)
        )));
    }
    within_budget(desk)
}

/// Application code that fails for too many rows is wrong itself: handing out the rest would only fill the list.
fn within_budget(desk: &Desk<'_>) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Count {
        n: i64,
    }
    let budget = (desk.table.state.rows_total / 1000).max(100);
    let count: Count = spi::fetch_one(
        "select count(*) as n from (select from migrator.upgrade_failure f where f.relation = $1 and f.upgrade = $2 and f.attempts > 0 limit $3) w",
        &[desk.relation().into(), desk.upgrade.id.into(), (budget + 1).into()],
    )?;
    if count.n <= budget {
        return Ok(());
    }
    let table = literal(&desk.table.relation.name.plain());
    let name = literal(&desk.registered.name);
    Err(Failure::new(
        code::NOT_IN_STATE,
        format!(
            "more than {budget} rows of table {} failed in upgrade {}",
            desk.table.relation.name.plain(),
            plain(&desk.registered.name)
        ),
    )
    .detail("No more are handed out until somebody has looked. Nothing was changed.")
    .hint(format!(
        "select sqlstate, message, count(*) from migrator.upgrade_failures where relation = {} and upgrade = {name} group by 1, 2; shows why. When the application is mended: select migrator.retry_failed({table}, {name});",
        desk.table.relation.as_shown()
    )))
}

/// One call under way.
struct Round<'a> {
    desk: &'a Desk<'a>,
    applied: bool,
    until: TimestampWithTimeZone,
    /// Rows and bytes that may still be handed out.
    left: usize,
    bytes: i64,
    handed: Vec<Handed>,
    /// Of these, rows that had been upgraded before.
    again: i64,
    columns: Vec<Ident>,
}

/// A window as it was read.
#[derive(Deserialize)]
struct Window {
    scanned: i64,
    last: Option<Key>,
    found: Vec<Fitting>,
}

#[derive(Deserialize)]
struct Fitting {
    key: Key,
    bytes: i64,
}

/// A row at the moment of handing it out.
#[derive(Deserialize)]
struct InHand {
    n: usize,
    fits: bool,
    has: bool,
    row: Option<String>,
    image: Option<i64>,
}

impl Round<'_> {
    /// From a key to the end of the table and on from its beginning to that key, until enough is found. The key to go on behind.
    ///
    /// A call that found something ends after the time of a batch. One that has found nothing goes on until it has been everywhere,
    /// unless (`idle`) that was tried a moment ago.
    fn all_round(&mut self, start: Option<&Key>, idle: bool) -> Result<(Option<Key>, Found), Failure> {
        let begun = Instant::now();
        let mut range = Range { after: start.cloned(), until: None };
        let mut rows = self.first_window();
        loop {
            if self.is_full() {
                return Ok((range.after, Found::Some));
            }
            let ended = self.window(&mut range, rows)?;
            if ended && !self.is_full() {
                if start.is_none() || range.until.is_some() {
                    let nothing = self.handed.is_empty();
                    return Ok((None, if nothing { Found::NothingFor(begun.elapsed()) } else { Found::Some }));
                }
                // What is left is from the first key to where this began.
                range = Range { after: None, until: start.cloned() };
            }
            if begun.elapsed() >= self.time() {
                match self.handed.is_empty() {
                    false => return Ok((range.after, Found::Some)),
                    true if idle => return Ok((range.after, Found::NothingHere)),
                    true => {}
                }
            }
            rows = (rows * 2).min(WIDEST);
        }
    }

    /// From a key to the end of the table. The key to go on behind, and whether the end was reached.
    fn until_the_end(&mut self, start: Option<&Key>) -> Result<(Option<Key>, bool), Failure> {
        let begun = Instant::now();
        let mut range = Range { after: start.cloned(), until: None };
        let mut rows = self.first_window();
        loop {
            let ended = self.window(&mut range, rows)?;
            if self.is_full() {
                return Ok((range.after, false));
            }
            if ended {
                return Ok((None, true));
            }
            if begun.elapsed() >= self.time() && !self.handed.is_empty() {
                return Ok((range.after, false));
            }
            rows = (rows * 2).min(WIDEST);
        }
    }

    fn first_window(&self) -> i64 {
        i64::try_from(self.left).unwrap_or(WIDEST).clamp(WINDOW, WIDEST)
    }

    fn is_full(&self) -> bool {
        self.left == 0 || self.bytes <= 0
    }

    fn time(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.desk.table.state.target_ms).unwrap_or(200))
    }

    /// Reads one window and hands out what it can of it. Moves the range behind what was looked at; true at the range's end.
    fn window(&mut self, range: &mut Range, rows: i64) -> Result<bool, Failure> {
        pgrx::check_for_interrupts!();
        let desk = self.desk;
        let sql = desk.keyset.table().window(&desk.wanted(self.applied), range, rows, &self.columns);
        let window: Vec<Window> = desk.keyset.query(&sql, &[])?;
        let Some(window) = window.into_iter().next() else { return Ok(true) };
        let found: Vec<(Key, i64)> = window.found.into_iter().map(|found| (found.key, found.bytes)).collect();
        let seen = self.hand(&found)?;
        if self.is_full() && seen < found.len() {
            // Whatever is behind the last row that was looked at is for the next call.
            range.after = found.into_iter().take(seen).next_back().map(|(key, _)| key).or_else(|| range.after.take());
            return Ok(false);
        }
        if window.last.is_some() {
            range.after = window.last;
        }
        Ok(window.scanned < rows)
    }

    /// Hands out those of these rows that nobody has in hand, as many as there is room for. How many were looked at.
    fn hand(&mut self, rows: &[(Key, i64)]) -> Result<usize, Failure> {
        let mut seen = 0;
        while seen < rows.len() && !self.is_full() {
            let part = &rows[seen..rows.len().min(seen + self.left)];
            let keys: Vec<Key> = part.iter().map(|(key, _)| key.clone()).collect();
            let free = self.desk.free(&keys, self.applied)?;
            let mut chosen = vec![];
            let mut looked_at = part.len();
            for free in free {
                if self.bytes <= 0 {
                    looked_at = free.n;
                    break;
                }
                self.bytes -= part[free.n].1;
                self.again += i64::from(free.again);
                chosen.push(keys[free.n].clone());
            }
            self.lend(&chosen)?;
            seen += looked_at;
        }
        Ok(seen)
    }

    /// Looks at rows once more, now that nobody else can bring them up or take them, and lends them out.
    fn lend(&mut self, keys: &[Key]) -> Result<(), Failure> {
        if keys.is_empty() {
            return Ok(());
        }
        let desk = self.desk;
        let sql = desk.keyset.table().in_hand(&desk.wanted(self.applied));
        let mut rows: Vec<InHand> = desk.keyset.query(&sql, &[JsonB(json!(keys)).into()])?;
        rows.sort_by_key(|row| row.n);
        // They came up as failed, or as in the hands of somebody who did not come back.
        let (mut unfit, mut settled) = (vec![], vec![]);
        for (n, key) in (1..).zip(keys) {
            let row = rows.binary_search_by_key(&n, |row| row.n).ok().map(|place| &rows[place]);
            if row.is_none_or(|row| !row.fits) {
                unfit.push(desk.name(key));
            }
            if row.is_none_or(|row| row.has) {
                settled.push(desk.name(key));
            }
        }
        desk.drop(&unfit)?;
        desk.forget_failures(&settled)?;
        let rows: Vec<(&Key, String, i64)> =
            rows.into_iter().filter_map(|row| Some((keys.get(row.n - 1)?, row.row?, row.image?))).collect();
        let lent: Vec<(&Key, i64)> = rows.iter().map(|(key, _, image)| (*key, *image)).collect();
        let tokens = desk.lend(&lent, self.until, self.applied)?;
        self.left = self.left.saturating_sub(rows.len());
        self.handed.extend(rows.into_iter().zip(tokens).map(|((key, row, _), token)| Handed {
            key: desk.name(key).to_string(),
            row,
            token,
            until: self.until,
        }));
        Ok(())
    }
}
