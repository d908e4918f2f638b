//! The text with which a dry run measures: what the copy reads and computes, and nothing that it writes.

use super::{Tables, forward_cast, list, written};
use crate::plan::Plan;

/// Reads the rows of the old table in blocks `from..until` and computes every column of the new shape. One row:
/// `rows`, and `bytes` of what was computed.
pub fn sample(plan: &Plan, tables: Tables<'_>, from: u64, until: u64) -> String {
    // The size of the whole row: a plain count(*) would leave out expressions that nobody looks at.
    format!(
        "select count(*) as rows, coalesce(sum(pg_column_size(row({}))), 0)::bigint as bytes from {} l where l.ctid >= '({from},0)' and l.ctid < '({until},0)'",
        list(written(plan), forward_cast),
        tables.old
    )
}
