//! Plans that a session keeps: parsing and planning the statements of a step takes longer than running them.
//!
//! PostgreSQL makes a kept plan anew when anything changes that it was made from (plancache.c): tables, statistics, the
//! search_path; and rights are checked at each run. Kept are texts with parameters only, for one with literals in it comes
//! only once.

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::{self, PgOid};
use pgrx::spi::{OwnedPreparedStatement, SpiClient, SpiError};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::mem::ManuallyDrop;
use std::rc::Rc;

/// A text and the types of its parameters.
type Key = (String, Vec<pg_sys::Oid>);
type Plans = HashMap<Key, Rc<OwnedPreparedStatement>>;

/// So many statements do the calls have that keep their plans, and more than that have no limit.
const MOST: usize = 128;

thread_local! {
    static KEEPING: Cell<bool> = const { Cell::new(false) };
    /// Never dropped: at the end of the process the server's memory goes first.
    static PLANS: RefCell<ManuallyDrop<Plans>> = RefCell::new(ManuallyDrop::new(HashMap::new()));
}

/// Runs `work`, whose statements keep their plans for its next run in this session.
pub fn plans<T>(work: impl FnOnce() -> T) -> T {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            KEEPING.set(self.0);
        }
    }
    let _before = Before(KEEPING.replace(true));
    work()
}

/// The kept plan of a statement, made if it is not there yet; none where plans are not kept.
pub(super) fn plan(
    client: &SpiClient<'_>,
    sql: &str,
    args: &[DatumWithOid<'_>],
) -> Result<Option<Rc<OwnedPreparedStatement>>, SpiError> {
    if args.is_empty() || !KEEPING.get() {
        return Ok(None);
    }
    let key = (sql.to_owned(), args.iter().map(DatumWithOid::oid).collect::<Vec<_>>());
    if let Some(plan) = PLANS.with_borrow(|plans| plans.get(&key).cloned()) {
        return Ok(Some(plan));
    }
    let types: Vec<PgOid> = key.1.iter().map(|oid| PgOid::from(*oid)).collect();
    let plan = Rc::new(client.prepare_mut(sql, &types)?.keep());
    PLANS.with_borrow_mut(|plans| {
        if plans.len() >= MOST {
            plans.clear();
        }
        plans.insert(key, plan.clone());
    });
    Ok(Some(plan))
}
