//! Which rows does the rear refuse? A set of log rows that was refused as a whole is halved, until what is refused
//! stands alone and is set aside: for each such row a handful of statements, however many others there are.
//!
//! Every try is one statement, like any take: a key leaves the log only by a statement that re-read it, by the places of
//! its log rows. A set that stumbled over a unique value may only need another's row out of its way, so it is put
//! by, and tried again, together with all others of its kind, when the rest is done.

use crate::catalog::attempt::attempt;
use crate::catalog::spi;
use crate::engine::bad_row;
use crate::engine::change::Change;
use crate::engine::reconcile::{self, Taken};
use migrator_core::failure::Failure;
use migrator_core::ident::Name;
use migrator_core::sql::{self, Part, Place, Put, Take};
use migrator_core::sqlstate;
use serde::Deserialize;
use serde_json::Value;

/// What is left to do when a search is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// Nothing.
    Nothing,
    /// Some rows stumbled over values that rows elsewhere in the log may hold.
    NeedsAll,
}

/// A set of log rows that was refused, and how.
type Refused = (Vec<Part>, Failure);

struct Search<'a> {
    change: &'a Change,
    segments: &'a [Name],
    settings: &'a [(&'a str, &'a str)],
    taken: Taken,
    /// What stumbled over a unique value.
    put_by: Vec<Refused>,
    /// Whether such sets are halved too.
    to_the_end: bool,
    /// The budget of bad rows is used up: the change is blocked, what is left stays in the log.
    over: bool,
}

/// Takes all rows of a take that was refused with `failure`, but those that are refused by themselves: these are set aside, by key.
pub(super) fn refused(
    change: &Change,
    segments: &[Name],
    take: Take<'_>,
    settings: &[(&str, &str)],
    failure: Failure,
) -> Result<(Taken, Rest), Failure> {
    let whole = !matches!(take, Take::Blocks { .. });
    let set = match take {
        Take::Blocks { segment, from, until } => vec![Part::blocks(segment, from, until)],
        Take::Parts { parts } => parts.to_vec(),
        Take::All { .. } | Take::Rest { .. } | Take::Everything { .. } => all_blocks(segments)?,
    };
    let to_the_end = sqlstate::may_be_order(&failure.code);
    let mut search =
        Search { change, segments, settings, taken: Taken::default(), put_by: vec![], to_the_end, over: false };
    search.halve(set, failure)?;
    if !whole && !search.put_by.is_empty() {
        return Ok((search.taken, Rest::NeedsAll));
    }
    search.try_again_together()?;
    Ok((search.taken, Rest::Nothing))
}

fn all_blocks(segments: &[Name]) -> Result<Vec<Part>, Failure> {
    #[derive(Deserialize)]
    struct Size {
        blocks: u64,
    }
    let mut parts = vec![];
    for segment in segments {
        let size: Size = spi::fetch_one(
            "select pg_catalog.pg_relation_size($1::pg_catalog.regclass) / pg_catalog.current_setting('block_size')::bigint as blocks",
            &[segment.to_string().into()],
        )?;
        parts.push(Part::blocks(segment, 0, size.blocks));
    }
    Ok(parts)
}

/// A set of log rows in two halves.
enum Split {
    Empty,
    One(Name, (u64, u64)),
    Halves(Vec<Part>, Vec<Part>),
}

#[derive(Deserialize)]
struct Row {
    #[serde(default)]
    segment: usize,
    block: u64,
    offset: u64,
}

impl Search<'_> {
    /// Takes a set, or says how it was refused.
    fn takes(&mut self, parts: &[Part]) -> Result<Option<Failure>, Failure> {
        if parts.is_empty() {
            return Ok(None);
        }
        match reconcile::run(self.change, Take::Parts { parts }, self.settings) {
            Ok(taken) => {
                self.taken += taken;
                Ok(None)
            }
            Err(failure) if sqlstate::belongs_to_row(&failure.code) => Ok(Some(failure)),
            Err(failure) => Err(failure),
        }
    }

    fn is_over(&self) -> bool {
        self.over || self.taken.truncated
    }

    /// Finds what is refused in a set that was refused as a whole, and takes the rest of it.
    fn halve(&mut self, set: Vec<Part>, failure: Failure) -> Result<(), Failure> {
        if self.is_over() {
            return Ok(());
        }
        if sqlstate::may_be_order(&failure.code) && !self.to_the_end {
            self.put_by.push((set, failure));
            return Ok(());
        }
        match self.split(set)? {
            Split::Empty => Ok(()),
            Split::One(segment, ctid) => self.alone(&segment, ctid),
            Split::Halves(first, second) => {
                let Some(refused) = self.takes(&first)? else {
                    // Then it is the other half.
                    return self.halve(second, failure);
                };
                self.halve(first, refused)?;
                if self.is_over() {
                    return Ok(());
                }
                match self.takes(&second)? {
                    Some(refused) => self.halve(second, refused),
                    None => Ok(()),
                }
            }
        }
    }

    fn split(&self, mut set: Vec<Part>) -> Result<Split, Failure> {
        if set.len() > 1 {
            let second = set.split_off(set.len() / 2);
            return Ok(Split::Halves(set, second));
        }
        let Some(Part { segment, place }) = set.pop() else { return Ok(Split::Empty) };
        let mut rows = match place {
            Place::Blocks { from, until } if until > from + 1 => {
                let middle = from + (until - from) / 2;
                return Ok(Split::Halves(
                    vec![Part::blocks(&segment, from, middle)],
                    vec![Part::blocks(&segment, middle, until)],
                ));
            }
            Place::Blocks { from, until } if until > from => {
                let query = sql::places(&self.change.plan, self.change.direction(), &segment, from);
                let rows: Vec<Row> = self.change.as_owner(&[], || spi::fetch(&query, &[]))?;
                rows.into_iter().map(|row| (row.block, row.offset)).collect()
            }
            Place::Blocks { .. } => vec![],
            Place::Rows(rows) => rows,
        };
        match rows.as_slice() {
            [] => Ok(Split::Empty),
            [one] => Ok(Split::One(segment, *one)),
            _ => {
                let second = rows.split_off(rows.len() / 2);
                let part = |rows| vec![Part { segment: segment.clone(), place: Place::Rows(rows) }];
                Ok(Split::Halves(part(rows), part(second)))
            }
        }
    }

    /// One key, with all its rows in the log: a row that is written again and again is looked at once.
    fn alone(&mut self, segment: &Name, ctid: (u64, u64)) -> Result<(), Failure> {
        let change = self.change;
        let query = change.with_tables(|tables| {
            Ok(sql::rows_of_key(&change.plan, tables, change.direction(), self.segments, segment, ctid))
        })?;
        let rows: Vec<Row> = change.as_owner(&[], || spi::fetch(&query, &[]))?;
        let mut parts: Vec<Part> = vec![];
        for row in rows {
            let segment = self.segments.get(row.segment).expect("the query numbers the segments it was given");
            match parts.last_mut() {
                Some(Part { segment: last, place: Place::Rows(rows) }) if last == segment => {
                    rows.push((row.block, row.offset));
                }
                _ => parts.push(Part { segment: segment.clone(), place: Place::Rows(vec![(row.block, row.offset)]) }),
            }
        }
        match self.takes(&parts)? {
            None => Ok(()),
            Some(failure) if sqlstate::may_be_order(&failure.code) => {
                self.put_by.push((parts, failure));
                Ok(())
            }
            Some(failure) => self.set_aside(&parts, &failure),
        }
    }

    /// What stumbled over unique values: all of it in one statement, for values may go round in a circle; and in halves,
    /// as long as that helps. What is refused in the end is set aside.
    fn try_again_together(&mut self) -> Result<(), Failure> {
        let mut stuck = false;
        while !self.put_by.is_empty() && !self.is_over() {
            let put_by = std::mem::take(&mut self.put_by);
            if stuck {
                for (parts, failure) in put_by {
                    if !self.is_over() {
                        self.set_aside(&parts, &failure)?;
                    }
                }
                return Ok(());
            }
            let together: Vec<Part> = put_by.into_iter().flat_map(|(parts, _)| parts).collect();
            let before = self.taken.taken;
            if let Some(failure) = self.takes(&together)? {
                self.to_the_end = true;
                self.halve(together, failure)?;
            }
            stuck = self.taken.taken == before;
        }
        Ok(())
    }

    /// Sets a key aside and takes its log rows away. They were visible to the statement that was refused, so the row that
    /// it read is at least as new as they are.
    fn set_aside(&mut self, parts: &[Part], failure: &Failure) -> Result<(), Failure> {
        #[derive(Deserialize)]
        struct Row {
            key: Value,
            present: bool,
        }
        let Some(Part { segment, place: Place::Rows(rows) }) = parts.first() else { return Ok(()) };
        let Some(ctid) = rows.first().copied() else { return Ok(()) };
        let change = self.change;
        let direction = change.direction();
        let query = change.with_tables(|tables| Ok(sql::log_row(&change.plan, tables, direction, segment, ctid)))?;
        let row: Option<Row> = change.as_owner(self.settings, || spi::fetch_optional(&query, &[]))?;
        let Some(row) = row else { return Ok(()) };
        if row.present {
            self.over = !bad_row::record(change, direction, &row.key, failure)?;
        } else {
            bad_row::forget(change, direction, &row.key)?;
        }
        if change.put() == Put::Plain {
            let forget =
                change.with_tables(|tables| Ok(sql::forget(&change.plan, tables, direction, segment, ctid)))?;
            // A key that cannot even be written in the rear's type has no row there.
            let _ = attempt(|| change.as_owner(self.settings, || spi::execute(&forget, &[])));
        }
        for part in parts {
            let gone = spi::execute(&format!("delete from {} where {}", part.segment, part.condition()), &[])?;
            self.taken.taken += i64::try_from(gone).unwrap_or(i64::MAX);
        }
        Ok(())
    }
}
