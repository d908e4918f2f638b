//! Replaying the key log: dirty keys out of the rear table, their rows as they are now into it.
//!
//! Every take is one statement, hence one snapshot over log and rows. A log row is deleted only by the
//! statement that re-read its key, and by its place: rows that commit later are not visible to it. The
//! caller holds the change `Alone`, so no key is in two hands.

use crate::capture::log;
use crate::catalog::attempt::attempt;
use crate::catalog::spi;
use crate::crash;
use crate::engine::bad_row;
use crate::engine::change::Change;
use crate::engine::drain;
use migrator_core::failure::Failure;
use migrator_core::ident::Name;
use migrator_core::sql::{self, Direction, Put, Take};
use migrator_core::sqlstate;
use serde::Deserialize;
use serde_json::{Value, json};

/// What a reconcile did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct Taken {
    /// Log rows taken away.
    pub taken: i64,
    /// Distinct keys among them.
    pub keys: i64,
    /// Rows deleted from the rear table.
    pub deleted: i64,
    /// Rows put there.
    pub inserted: i64,
}

impl std::ops::AddAssign for Taken {
    fn add_assign(&mut self, other: Taken) {
        self.taken += other.taken;
        self.keys += other.keys;
        self.deleted += other.deleted;
        self.inserted += other.inserted;
    }
}

/// Log blocks taken by one batch: about 3,000 keys of a bigint.
const BATCH_BLOCKS: u64 = 16;
/// A take of more keys than this moves the fence that older snapshots must not cross (see `fence`).
const LARGE: i64 = 1000;
/// Nested loops over the key indexes: the planner does not know how few keys a batch has.
const BY_INDEX: [(&str, &str); 3] = [("enable_hashjoin", "off"), ("enable_mergejoin", "off"), ("enable_seqscan", "off")];

/// Takes one batch from the log, or everything after a TRUNCATE.
pub fn batch(change: &Change) -> Result<Taken, Failure> {
    let segments = log::segments(change.id, change.direction());
    if has_marker(change, &segments)? {
        return everything(change, &segments);
    }
    let Some((segment, from)) = oldest(&segments)? else {
        return Ok(Taken::default());
    };
    let take = Take::Blocks { segment, from, until: from + BATCH_BLOCKS };
    let taken = match run(change, take, &BY_INDEX) {
        Err(failure) if sqlstate::may_be_order(&failure.code) => whole(change, &segments, &BY_INDEX),
        Err(failure) if sqlstate::belongs_to_row(&failure.code) => one_by_one(change, &segments),
        outcome => outcome,
    }?;
    note(change, taken)?;
    Ok(taken)
}

/// Takes the whole visible log in one statement: under the swap's lock, where little is left.
pub fn rest(change: &Change) -> Result<Taken, Failure> {
    let segments = log::segments(change.id, change.direction());
    if has_marker(change, &segments)? {
        return everything(change, &segments);
    }
    let taken = match run(change, Take::All { segments: &segments }, &BY_INDEX) {
        Err(failure) if sqlstate::belongs_to_row(&failure.code) => one_by_one(change, &segments),
        outcome => outcome,
    }?;
    note(change, taken)?;
    Ok(taken)
}

/// The first reconcile: while the shadow has no index, one pass over everything that was written during the copy.
/// A row that moved may have been copied twice; its key is in the log, so both go and one comes.
pub fn first(change: &Change) -> Result<Taken, Failure> {
    let segments = log::segments(change.id, change.direction());
    let taken = if has_marker(change, &segments)? {
        everything(change, &segments)?
    } else if oldest(&segments)?.is_none() {
        Taken::default()
    } else {
        match run(change, Take::All { segments: &segments }, &[]) {
            Err(failure) if sqlstate::belongs_to_row(&failure.code) => one_by_one(change, &segments)?,
            outcome => outcome?,
        }
    };
    crash::point("first_reconcile");
    fence(change)?;
    note(change, taken)?;
    Ok(taken)
}

/// The visible log, all of it.
fn whole(change: &Change, segments: &[Name], settings: &[(&str, &str)]) -> Result<Taken, Failure> {
    match run(change, Take::All { segments }, settings) {
        Err(failure) if sqlstate::belongs_to_row(&failure.code) => one_by_one(change, segments),
        outcome => outcome,
    }
}

/// After a TRUNCATE: compares by key all that either table has.
fn everything(change: &Change, segments: &[Name]) -> Result<Taken, Failure> {
    change.event("truncate", "the table was truncated; comparing all of it", json!({}))?;
    let taken = run(change, Take::Everything { segments }, &[])?;
    fence(change)?;
    Ok(taken)
}

fn run(change: &Change, take: Take<'_>, settings: &[(&str, &str)]) -> Result<Taken, Failure> {
    let direction = change.direction();
    let statement = change.with_tables(|tables| Ok(sql::reconcile(&change.plan, tables, direction, change.put(), take)))?;
    let deferrable = deferrable(change)?;
    attempt(|| {
        change.as_owner(settings, || {
            // A deferred unique constraint would otherwise fail at COMMIT, where nobody can widen the batch.
            if let Some(names) = &deferrable {
                spi::execute(&format!("set constraints {names} immediate"), &[])?;
            }
            let taken = spi::fetch_one(&statement, &[]);
            crash::point("reconcile");
            taken
        })
    })
}

fn deferrable(change: &Change) -> Result<Option<String>, Failure> {
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

/// One log row at a time, and again while that helps: a unique value may move through several rows, so that one
/// row's turn comes only after another's. What is refused in the end is set aside, by key.
fn one_by_one(change: &Change, segments: &[Name]) -> Result<Taken, Failure> {
    #[derive(Deserialize)]
    struct Place {
        block: u64,
        offset: u64,
    }
    let direction = change.direction();
    let mut total = Taken::default();
    let mut open: Vec<(&Name, (u64, u64))> = vec![];
    for segment in segments {
        let places: Vec<Place> = spi::fetch(
            &format!(
                "select (q.ctid::text::point)[0]::bigint as block, (q.ctid::text::point)[1]::bigint as offset from {segment} q limit 20000"
            ),
            &[],
        )?;
        open.extend(places.into_iter().map(|place| (segment, (place.block, place.offset))));
    }
    loop {
        let before = open.len();
        let mut refused = vec![];
        let mut reasons = vec![];
        for (segment, ctid) in open {
            match run(change, Take::Row { segment, ctid }, &BY_INDEX) {
                Ok(taken) => total += taken,
                Err(failure) if sqlstate::belongs_to_row(&failure.code) => {
                    refused.push((segment, ctid));
                    reasons.push(failure);
                }
                Err(failure) => return Err(failure),
            }
        }
        if refused.len() == before || refused.is_empty() {
            for ((segment, ctid), failure) in refused.into_iter().zip(reasons) {
                set_aside(change, direction, segment, ctid, &failure)?;
                total.taken += 1;
            }
            return Ok(total);
        }
        open = refused;
    }
}

fn set_aside(
    change: &Change,
    direction: Direction,
    segment: &Name,
    ctid: (u64, u64),
    failure: &Failure,
) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Row {
        key: Value,
        present: bool,
    }
    let query = change.with_tables(|tables| Ok(sql::log_row(&change.plan, tables, direction, segment, ctid)))?;
    let row: Option<Row> = change.as_owner(&BY_INDEX, || spi::fetch_optional(&query, &[]))?;
    let Some(row) = row else { return Ok(()) };
    if row.present {
        bad_row::record(change, direction, &row.key, failure)?;
    } else {
        bad_row::forget(change, direction, &row.key)?;
    }
    if change.put() == Put::Plain {
        let forget = change.with_tables(|tables| Ok(sql::forget(&change.plan, tables, direction, segment, ctid)))?;
        // A key that cannot even be written in the rear's type has no row there.
        let _ = attempt(|| change.as_owner(&BY_INDEX, || spi::execute(&forget, &[])));
    }
    spi::execute(&format!("delete from {segment} where ctid = '({},{})'", ctid.0, ctid.1), &[])?;
    Ok(())
}

fn has_marker(change: &Change, segments: &[Name]) -> Result<bool, Failure> {
    #[derive(Deserialize)]
    struct Found {
        found: bool,
    }
    let found: Found = spi::fetch_one(&sql::has_marker(&change.plan, change.direction(), segments), &[])?;
    Ok(found.found)
}

/// The first visible row of the first segment that has one: segment and block.
fn oldest(segments: &[Name]) -> Result<Option<(&Name, u64)>, Failure> {
    #[derive(Deserialize)]
    struct First {
        block: u64,
    }
    for segment in segments {
        let first: Option<First> =
            spi::fetch_optional(&format!("select (q.ctid::text::point)[0]::bigint as block from {segment} q limit 1"), &[])?;
        if let Some(first) = first {
            return Ok(Some((segment, first.block)));
        }
    }
    Ok(None)
}

/// How many log rows wait, counted up to a ceiling.
pub fn backlog(change: &Change) -> Result<i64, Failure> {
    #[derive(Deserialize)]
    struct Rows {
        n: i64,
    }
    let parts: Vec<String> =
        log::segments(change.id, change.direction()).iter().map(|segment| format!("select from {segment}")).collect();
    let rows: Rows =
        spi::fetch_one(&format!("select count(*) as n from (select from ({}) a limit 200000) b", parts.join(" union all ")), &[])?;
    spi::execute("update migrator.change set backlog = $2 where id = $1 and backlog <> $2", &[change.id.into(), rows.n.into()])?;
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
        "update migrator.change set fence_xid = pg_catalog.pg_current_xact_id() where id = $1",
        &[change.id.into()],
    )
    .map(|_| ())
}

/// Gives a drained segment's space back, if nobody writes to it just now. Only between statements of its own:
/// its lock would otherwise last as long as the caller's transaction.
pub fn rotate(change: &Change) -> Result<(), Failure> {
    if crate::engine::guard::in_transaction_block() {
        return Ok(());
    }
    drain::truncate_drained(change.id, change.direction())
}
