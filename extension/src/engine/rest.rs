//! The last keys of an exchange: taken under its lock, by a statement that was parsed, planned and run before.

use crate::capture::log;
use crate::catalog::attempt::attempt;
use crate::catalog::spi;
use crate::engine::bad_row;
use crate::engine::change::Change;
use crate::engine::reconcile::{self, BY_INDEX};
use migrator_core::failure::{Failure, code};
use migrator_core::sql::{self, Take};
use migrator_core::sqlstate;
use pgrx::{JsonB, PgBuiltInOids};
use serde::Deserialize;
use serde_json::Value;

/// Keys that may be taken under the lock. Older snapshots do not see those rows in the table that becomes live.
pub const AT_MOST: i64 = 1000;
/// With other plans than the first few times, the statement would be planned under the lock.
const PLANNED: (&str, &str) = ("plan_cache_mode", "force_generic_plan");

/// One take of all that the log holds.
pub struct Rest {
    take: spi::Prepared,
    aside: Value,
    deferrable: Option<String>,
}

impl Rest {
    /// Everything that can be worked out before the lock. Good as long as the caller holds the change alone, and the
    /// two tables are not moved.
    pub fn prepare(change: &Change) -> Result<Rest, Failure> {
        let direction = change.direction();
        let segments = log::segments(change.id, direction);
        let take = Take::Rest { segments: &segments, at_most: AT_MOST };
        let marker = log::marker(change.id, direction);
        let aside = bad_row::keys(change, direction)?;
        let some = aside.as_array().is_some_and(|keys| !keys.is_empty());
        let statement = change.with_tables(|tables| {
            Ok(sql::reconcile(&change.plan, tables, direction, change.put(), take, &marker, some))
        })?;
        let parameters = if some { vec![PgBuiltInOids::JSONBOID.oid()] } else { vec![] };
        let take = change.as_owner(&settings(), || spi::prepare(statement, &parameters))?;
        Ok(Rest { take, aside, deferrable: reconcile::deferrable(change)? })
    }

    /// Takes what is there and returns how many rows were put into the rear table. Fails with 55P03 where that cannot be
    /// done quickly: too many keys, a TRUNCATE, a row that does not fit. Then nothing was taken.
    pub fn run(&self, change: &Change) -> Result<i64, Failure> {
        #[derive(Deserialize)]
        struct Row {
            inserted: i64,
            truncated: bool,
            #[serde(default)]
            mended: Vec<Value>,
        }
        let taken: Result<Row, Failure> = attempt(|| {
            change.as_owner(&settings(), || {
                if let Some(names) = &self.deferrable {
                    spi::execute(&format!("set constraints {names} immediate"), &[])?;
                }
                if self.aside.as_array().is_some_and(|keys| !keys.is_empty()) {
                    spi::run(&self.take, &[JsonB(self.aside.clone()).into()])
                } else {
                    spi::run(&self.take, &[])
                }
            })
        });
        let row = match taken {
            Err(failure) if sqlstate::belongs_to_row(&failure.code) => {
                return Err(not_now(&format!("a row came that does not fit: {}", failure.message)));
            }
            Ok(row) if row.truncated => {
                return Err(not_now("too many keys came in while the lock was waited for, or the table was truncated"));
            }
            other => other?,
        };
        for key in &row.mended {
            bad_row::forget(change, change.direction(), key)?;
        }
        Ok(row.inserted)
    }
}

fn not_now(why: &str) -> Failure {
    Failure::new(code::LOCK_NOT_AVAILABLE, why.to_owned())
}

fn settings() -> Vec<(&'static str, &'static str)> {
    BY_INDEX.into_iter().chain([PLANNED]).collect()
}
