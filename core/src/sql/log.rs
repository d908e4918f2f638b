//! The text for rows of the log by their place: what a reconcile takes where a batch was refused.

use super::*;

/// Rows of one segment of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The segment.
    pub segment: Name,
    /// Which of its rows.
    pub place: Place,
}

/// Where in a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Blocks `from` up to, not including, `until`.
    Blocks {
        /// First block.
        from: u64,
        /// First block behind.
        until: u64,
    },
    /// Rows by block and offset.
    Rows(Vec<(u64, u64)>),
}

impl Part {
    /// Blocks of a segment.
    pub fn blocks(segment: &Name, from: u64, until: u64) -> Part {
        Part { segment: segment.clone(), place: Place::Blocks { from, until } }
    }

    /// The condition on `ctid` that only these rows satisfy.
    pub fn condition(&self) -> String {
        match &self.place {
            Place::Blocks { from, until } => range(*from, *until),
            Place::Rows(rows) => {
                format!("ctid = any ('{{{}}}'::tid[])", list(rows, |(block, offset)| format!("\"({block},{offset})\"")))
            }
        }
    }
}

/// The places of the rows in one block of a segment, those of equal keys side by side.
pub fn places(plan: &Plan, direction: Direction, segment: &Name, block: u64) -> String {
    format!(
        "select (d.ctid::text::point)[0]::bigint as block, (d.ctid::text::point)[1]::bigint as \"offset\" from {segment} d where {} order by {}, d.ctid",
        range(block, block + 1),
        key_json(plan, direction, 'd')
    )
}

/// The places of all rows in the log that have the key of one of them: the number of the segment, block and offset.
pub fn rows_of_key(
    plan: &Plan,
    tables: Tables<'_>,
    direction: Direction,
    segments: &[Name],
    segment: &Name,
    ctid: (u64, u64),
) -> String {
    let sides = sides(plan, tables, direction);
    let names = list(&sides.columns, |side| side.front.to_string());
    let rows = segments
        .iter()
        .enumerate()
        .map(|(number, segment)| format!("select {number} as segment, ctid as place, {names} from {segment}"))
        .collect::<Vec<_>>()
        .join(" union all ");
    format!(
        "select q.segment, (q.place::text::point)[0]::bigint as block, (q.place::text::point)[1]::bigint as \"offset\" \
         from {segment} d join ({rows}) q on {} where d.ctid = '({},{})' order by 1, 2, 3",
        all(&sides.columns, |side| format!("q.{} {} d.{}", side.front, equals(side.column), side.front)),
        ctid.0,
        ctid.1
    )
}

/// Puts every key that either table has into the log, and takes away what said that all has to be compared: the keys do so now.
pub fn relog_all(plan: &Plan, tables: Tables<'_>, direction: Direction, segments: &[Name], marker: &Name) -> String {
    let sides = sides(plan, tables, direction);
    let first = sides.columns.first().expect("a plan has a key").front;
    let gone = segments
        .iter()
        .enumerate()
        .map(|(number, segment)| format!(", gone{number} as (delete from {segment} where {first} is null)"))
        .collect::<String>();
    format!(
        "with gone as (delete from {marker}){gone} insert into {} ({}) {}",
        segments.first().expect("a log has segments"),
        list(&sides.columns, |side| side.front.to_string()),
        sides.every_key()
    )
}

/// The keys of a log row and whether the front table has such a row now.
pub fn log_row(plan: &Plan, tables: Tables<'_>, direction: Direction, segment: &Name, ctid: (u64, u64)) -> String {
    let sides = sides(plan, tables, direction);
    format!(
        "select {} as key, exists (select from {} {} where {}) as present from {segment} d where d.ctid = '({},{})'",
        key_json(plan, direction, 'd'),
        sides.front,
        sides.front_alias,
        sides.front_is_dirty(),
        ctid.0,
        ctid.1
    )
}

/// Deletes the rear row of one log row's key.
pub fn forget(plan: &Plan, tables: Tables<'_>, direction: Direction, segment: &Name, ctid: (u64, u64)) -> String {
    let sides = sides(plan, tables, direction);
    format!(
        "delete from {} {} using {segment} d where d.ctid = '({},{})' and {}",
        sides.rear,
        sides.rear_alias,
        ctid.0,
        ctid.1,
        sides.rear_is_dirty()
    )
}

/// Puts a key that was set aside back into the log, so that it is tried again. `$1` is the jsonb of `bad_row.key`.
pub fn relog(plan: &Plan, direction: Direction, segment: &Name) -> String {
    let forward = direction == Direction::Forward;
    format!(
        "insert into {segment} ({}) select {}",
        list(&plan.key, |column| (if forward { &column.old } else { &column.new }).to_string()),
        list(&plan.key, |column| {
            let (name, kind) = if forward { (&column.old, &column.old_type) } else { (&column.new, &column.new_type) };
            format!("($1::jsonb ->> {})::{kind}", crate::ident::literal(name.as_str()))
        })
    )
}
