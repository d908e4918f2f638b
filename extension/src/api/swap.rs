//! Swap and rollback.

use crate::api::answer::{DECIDE, answer};
use crate::api::arguments::RegClass;
use crate::api::change::oid;
use crate::catalog::role;
use crate::engine::change::Change;
use crate::engine::swap::{self, Wants, Way};
use migrator_core::failure::Failure;
use migrator_core::state::State;
use pgrx::prelude::*;

/// Puts the shadow in the live table's place, atomically; without arguments, every ready change that the caller may change.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
#[allow(clippy::type_complexity)]
fn swap(
    relation: default!(Option<RegClass>, "NULL"),
    change: default!(Option<i64>, "NULL"),
    in_transaction: default!(bool, "false"),
    dry_run: default!(bool, "false"),
) -> TableIterator<
    'static,
    (name!(change, i64), name!(relation, String), name!(swapped, bool), name!(reason, Option<String>)),
> {
    TableIterator::new(answer(DECIDE, || exchange(relation, change, Way::Swap, Wants { in_transaction, dry_run })))
}

/// Puts the backup back in the live table's place, atomically, with every write made since the swap that it can hold.
#[pg_extern(volatile, parallel_unsafe, requires = ["tables"])]
#[allow(clippy::type_complexity)]
fn rollback(
    relation: default!(Option<RegClass>, "NULL"),
    change: default!(Option<i64>, "NULL"),
    in_transaction: default!(bool, "false"),
    dry_run: default!(bool, "false"),
) -> TableIterator<
    'static,
    (name!(change, i64), name!(relation, String), name!(rolled_back, bool), name!(reason, Option<String>)),
> {
    TableIterator::new(answer(DECIDE, || exchange(relation, change, Way::Rollback, Wants { in_transaction, dry_run })))
}

type Row = (i64, String, bool, Option<String>);

fn exchange(relation: Option<RegClass>, id: Option<i64>, way: Way, wants: Wants) -> Result<Vec<Row>, Failure> {
    let caller = role::caller();
    role::as_extension(|| {
        if relation.is_some() || id.is_some() || way == Way::Rollback {
            let change = Change::select(oid(relation), id)?;
            change.check_rights(caller)?;
            let done = swap::exchange(vec![change], way, wants)?;
            return Ok(done.iter().map(|change| row(change, true, dry(wants))).collect());
        }
        let mut ready = vec![];
        let mut rows = vec![];
        for change in Change::all_open()? {
            if !change.may_change(caller)? {
                continue;
            }
            match left_out(&change) {
                Some(reason) => rows.push(row(&change, false, Some(reason))),
                None => ready.push(change),
            }
        }
        if !ready.is_empty() {
            let done = swap::exchange(ready, way, wants)?;
            rows.extend(done.iter().map(|change| row(change, true, dry(wants))));
        }
        rows.sort_by_key(|row| row.0);
        Ok(rows)
    })
}

fn dry(wants: Wants) -> Option<String> {
    wants.dry_run.then(|| "dry run: nothing stands in the way now".to_owned())
}

fn row(change: &Change, done: bool, reason: Option<String>) -> Row {
    (change.id, change.name().plain(), done, reason)
}

/// Why a change is not among those that `swap()` takes.
fn left_out(change: &Change) -> Option<String> {
    if change.paused {
        Some("it is paused".to_owned())
    } else if let Some(why) = &change.blocked {
        Some(format!("it is blocked: {why}"))
    } else if change.state != State::Ready {
        Some(format!("it is {}, not ready", change.state))
    } else if change.postponed {
        Some("it is postponed".to_owned())
    } else {
        None
    }
}
