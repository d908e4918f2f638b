//! Replaying the key log: dirty keys out of the rear table, their rows as they are now into it.
//!
//! Every take is one statement, hence one snapshot over log and rows. A log row is deleted only by the
//! statement that re-read its key, and by its place: rows that commit later are not visible to it. The
//! caller holds the change `Alone`, so no key is in two hands.

use crate::capture::log;
use crate::catalog::attempt::attempt;
use crate::catalog::cost::Meter;
use crate::catalog::{spi, timeout};
use crate::crash;
use crate::engine::bad_row;
use crate::engine::bisect::{self, Rest};
use crate::engine::change::Change;
use crate::engine::drain;
use migrator_core::batch::{self, Pace};
use migrator_core::failure::Failure;
use migrator_core::ident::{Ident, Name};
use migrator_core::sql::{self, Direction, Take};
use migrator_core::sqlstate;
use pgrx::JsonB;
use serde::Deserialize;
use serde_json::{Value, json};

/// What a reconcile did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Log rows taken away.
    pub taken: i64,
    /// Distinct keys among them.
    pub keys: i64,
    /// Rows deleted from the rear table.
    pub deleted: i64,
    /// Rows put there.
    pub inserted: i64,
    /// All rows have to be compared (a TRUNCATE, keys that could not be told), and that was not done, or not to the end.
    pub truncated: bool,
    /// All rows were compared.
    pub everything: bool,
}

impl std::ops::AddAssign for Taken {
    fn add_assign(&mut self, other: Taken) {
        self.taken += other.taken;
        self.keys += other.keys;
        self.deleted += other.deleted;
        self.inserted += other.inserted;
        self.truncated |= other.truncated;
    }
}

/// Keys of a batch below which its time says nothing of how long a larger one takes.
const FEW: i64 = 200;
/// A take of more keys than this moves the fence that older snapshots must not cross (see `fence`).
const LARGE: i64 = 1000;
/// Nested loops over the key indexes: the planner does not know how few keys a batch has.
pub const BY_INDEX: [(&str, &str); 3] =
    [("enable_hashjoin", "off"), ("enable_mergejoin", "off"), ("enable_seqscan", "off")];

/// Takes one batch from the log, divided by `factor`, or everything after a TRUNCATE.
pub fn batch(change: &Change, factor: i32) -> Result<Taken, Failure> {
    let pace = change.catch_up.unwrap_or_else(|| Pace::of(batch::CATCH_UP.most));
    let blocks = batch::divided(pace.size, factor);
    let meter = Meter::start();
    let taken = keys(change, blocks)?;
    if taken.truncated {
        return everything(change, &log::segments(change.id, change.direction()));
    }
    if taken.taken > FEW {
        let next = pace.after(batch::CATCH_UP, meter.batch(blocks));
        let next = JsonB(serde_json::to_value(next).expect("numbers are JSON"));
        spi::execute("update migrator.change set catch_up = $2 where id = $1", &[change.id.into(), next.into()])?;
    }
    Ok(taken)
}

/// Takes one batch of keys from the log, so many blocks of it. Where they are not enough, for all rows have to be compared,
/// it only says so.
pub fn keys(change: &Change, blocks: i32) -> Result<Taken, Failure> {
    let segments = log::segments(change.id, change.direction());
    let everything = Taken { truncated: true, ..Taken::default() };
    let take = match oldest(change, &segments)? {
        Oldest::Unknown => return Ok(everything),
        Oldest::At(segment, from) => Take::Blocks { segment, from, until: from + u64::try_from(blocks).unwrap_or(1) },
        Oldest::None if truncated(change)? => return Ok(everything),
        Oldest::None => return Ok(Taken::default()),
    };
    widening(change, &segments, take, &BY_INDEX)
}

/// Whether all rows have to be compared before the rear can be trusted: the table was truncated, or the log has a row of
/// NULLs, which says that keys could not be told.
pub fn must_compare_all(change: &Change) -> Result<bool, Failure> {
    #[derive(Deserialize)]
    struct Found {
        found: bool,
    }
    if truncated(change)? {
        return Ok(true);
    }
    let key = first_key(change);
    let looks: Vec<String> = log::segments(change.id, change.direction())
        .iter()
        .map(|segment| format!("exists (select from {segment} q where q.{key} is null)"))
        .collect();
    let found: Found = spi::fetch_one(&format!("select {} as found", looks.join(" or ")), &[])?;
    Ok(found.found)
}

/// The first reconcile: while the shadow has no index, one pass over everything that was written during the copy.
/// A row that moved may have been copied twice; its key is in the log, so both go and one comes.
pub fn first(change: &Change) -> Result<Taken, Failure> {
    let segments = log::segments(change.id, change.direction());
    let mut taken = Taken { truncated: must_compare_all(change)?, ..Taken::default() };
    if !taken.truncated && !matches!(oldest(change, &segments)?, Oldest::None) {
        taken = timeout::unbounded(|| widening(change, &segments, Take::All { segments: &segments }, &[]))?;
    }
    if taken.truncated {
        taken = everything(change, &segments)?;
    }
    crash::point("first_reconcile");
    fence(change)?;
    Ok(taken)
}

/// Tries a take, and what is wider where it is refused: a value may still be held by a row whose key is in the log too,
/// so the whole log is taken at once; what is refused even then belongs to rows, which are searched for.
fn widening(change: &Change, segments: &[Name], take: Take<'_>, settings: &[(&str, &str)]) -> Result<Taken, Failure> {
    let all = Take::All { segments };
    let is_all = matches!(take, Take::All { .. });
    let taken = match run(change, take, settings) {
        Err(failure) if sqlstate::may_be_order(&failure.code) && !is_all => {
            return widening(change, segments, all, settings);
        }
        Err(failure) if sqlstate::belongs_to_row(&failure.code) => {
            // However many rows there are to look through, it is one search.
            let (taken, rest) = timeout::unbounded(|| bisect::refused(change, segments, take, settings, failure))?;
            if rest == Rest::NeedsAll && !taken.truncated {
                note(change, taken)?;
                let mut others = widening(change, segments, all, settings)?;
                others += taken;
                return Ok(others);
            }
            taken
        }
        outcome => outcome?,
    };
    if !taken.truncated {
        note(change, taken)?;
    }
    Ok(taken)
}

/// After a TRUNCATE: compares by key all that either table has.
fn everything(change: &Change, segments: &[Name]) -> Result<Taken, Failure> {
    change.event("truncate", "comparing all rows of both tables", json!({}))?;
    let taken = match timeout::unbounded(|| run(change, Take::Everything { segments }, &[])) {
        // As keys in the log they can be halved, until the rows that are refused stand alone.
        Err(failure) if sqlstate::belongs_to_row(&failure.code) => {
            let marker = log::marker(change.id, change.direction());
            let statement = change.with_tables(|tables| {
                Ok(sql::relog_all(&change.plan, tables, change.direction(), segments, &marker))
            })?;
            timeout::unbounded(|| {
                change.as_owner(&[], || spi::execute(&statement, &[]))?;
                widening(change, segments, Take::All { segments }, &[])
            })?
        }
        outcome => outcome?,
    };
    fence(change)?;
    // Another TRUNCATE may have come while keys were halved: then it says so, and the mark is still there for the next call.
    Ok(Taken { everything: true, ..taken })
}

/// One statement in a subtransaction of its own.
pub(super) fn run(change: &Change, take: Take<'_>, settings: &[(&str, &str)]) -> Result<Taken, Failure> {
    #[derive(Deserialize)]
    struct Row {
        taken: i64,
        keys: i64,
        deleted: i64,
        inserted: i64,
        truncated: bool,
        #[serde(default)]
        mended: Vec<Value>,
    }
    let direction = change.direction();
    let marker = log::marker(change.id, direction);
    let aside = bad_row::keys(change, direction)?;
    let some = aside.as_array().is_some_and(|keys| !keys.is_empty());
    let statement = change
        .with_tables(|tables| Ok(sql::reconcile(&change.plan, tables, direction, change.put(), take, &marker, some)))?;
    let deferrable = deferrable(change)?;
    let row: Row = attempt(|| {
        change.as_owner(settings, || {
            // A deferred unique constraint would otherwise fail at COMMIT, where nobody can widen the batch.
            if let Some(names) = &deferrable {
                spi::execute(&format!("set constraints {names} immediate"), &[])?;
            }
            let row = spi::fetch_one(&statement, &[JsonB(aside).into()]);
            crash::point("reconcile");
            row
        })
    })?;
    for key in &row.mended {
        bad_row::forget(change, direction, key)?;
    }
    let Row { taken, keys, deleted, inserted, truncated, .. } = row;
    Ok(Taken { taken, keys, deleted, inserted, truncated, everything: false })
}

/// The deferrable unique and exclusion constraints of the rear table, for SET CONSTRAINTS.
pub fn deferrable(change: &Change) -> Result<Option<String>, Failure> {
    #[derive(Deserialize)]
    struct Names {
        names: Option<String>,
    }
    let (_, rear) = change.front_and_rear()?;
    let found: Names = spi::fetch_one(
        "select pg_catalog.string_agg(pg_catalog.format('%I.%I', n.nspname, c.conname), ', ') as names \
         from pg_catalog.pg_constraint c join pg_catalog.pg_namespace n on n.oid = c.connamespace \
         where c.conrelid = $1 and c.condeferrable and c.contype in ('p', 'u', 'x')",
        &[pgrx::pg_sys::Oid::from(rear.oid).into()],
    )?;
    Ok(found.names)
}

/// Whether the log says that the table was truncated.
pub fn truncated(change: &Change) -> Result<bool, Failure> {
    #[derive(Deserialize)]
    struct Found {
        found: bool,
    }
    let marker = log::marker(change.id, change.direction());
    let found: Found = spi::fetch_one(&format!("select exists (select from {marker}) as found"), &[])?;
    Ok(found.found)
}

/// Where the log begins.
enum Oldest<'a> {
    /// It is empty.
    None,
    /// In this block of this segment.
    At(&'a Name, u64),
    /// With a row that says that keys could not be told.
    Unknown,
}

/// The first column of the log.
fn first_key(change: &Change) -> &Ident {
    let key = change.plan.key.first().expect("a plan has a key");
    if change.direction() == Direction::Forward { &key.old } else { &key.new }
}

/// The first visible row of the first segment that has one.
fn oldest<'a>(change: &Change, segments: &'a [Name]) -> Result<Oldest<'a>, Failure> {
    #[derive(Deserialize)]
    struct First {
        block: u64,
        unknown: bool,
    }
    let key = first_key(change);
    for segment in segments {
        let first: Option<First> = spi::fetch_optional(
            &format!(
                "select (q.ctid::text::point)[0]::bigint as block, q.{key} is null as unknown from {segment} q limit 1"
            ),
            &[],
        )?;
        match first {
            Some(first) if first.unknown => return Ok(Oldest::Unknown),
            Some(first) => return Ok(Oldest::At(segment, first.block)),
            None => {}
        }
    }
    Ok(Oldest::None)
}

/// How many log rows wait, counted up to a ceiling.
pub fn backlog(change: &Change) -> Result<i64, Failure> {
    let rows = waiting(change)?;
    spi::execute(
        "update migrator.change set backlog = $2 where id = $1 and backlog <> $2",
        &[change.id.into(), rows.into()],
    )?;
    Ok(rows)
}

/// The same without a note of it, for those who only look.
pub fn waiting(change: &Change) -> Result<i64, Failure> {
    #[derive(Deserialize)]
    struct Rows {
        n: i64,
    }
    let parts: Vec<String> =
        log::segments(change.id, change.direction()).iter().map(|segment| format!("select from {segment}")).collect();
    let rows: Rows = spi::fetch_one(
        &format!("select count(*) as n from (select from ({}) a limit 200000) b", parts.join(" union all ")),
        &[],
    )?;
    Ok(rows.n)
}

fn note(change: &Change, taken: Taken) -> Result<(), Failure> {
    if taken.inserted + taken.deleted > LARGE {
        fence(change)?;
    }
    if taken.taken > 0 {
        spi::execute(
            "update migrator.change set rows_caught_up = rows_caught_up + $2 where id = $1",
            &[change.id.into(), taken.inserted.into()],
        )?;
    }
    Ok(())
}

/// Snapshots older than this transaction do not see what it wrote to the rear table. While one of them lives, a swap
/// would show it a table with missing rows; so swap and rollback wait for it.
fn fence(change: &Change) -> Result<(), Failure> {
    spi::execute(
        "update migrator.change set fence_xid = pg_catalog.pg_current_xact_id(), fence_at = pg_catalog.clock_timestamp() where id = $1",
        &[change.id.into()],
    )
    .map(|_| ())
}

/// Gives a drained segment's space back, if nobody writes to it just now. Only between statements of its own:
/// its lock would otherwise last as long as the caller's transaction. Whether that lock was taken.
pub fn rotate(change: &Change) -> Result<bool, Failure> {
    if crate::engine::guard::in_transaction_block() {
        return Ok(false);
    }
    drain::truncate_drained(change.id, change.direction())
}
