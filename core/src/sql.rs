//! The SQL text of copy and reconcile, (`log`) of single rows of the log, and (`verify`) of verify, worked out from a plan. Pure: names in, text out.
//!
//! Every statement here is ONE statement, hence runs under ONE snapshot: log and rows are read together.
//! Operators on key columns are written with their schema, for a key of type citext compared by whatever
//! `=` a search_path finds would be compared as text.

use crate::ident::{Ident, Name};
use crate::plan::{KeyColumn, NewColumn, Plan, Source};

mod log;
mod sample;
mod verify;

pub use log::{Part, Place, forget, log_row, places, relog, relog_all, rows_of_key};
pub use sample::sample;
pub use verify::{KeyRange, Walk, boundary, compare, mismatches};

/// Which way rows flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the old shape, which is live, to the new.
    Forward,
    /// From the new shape, which is live after a swap, to the old.
    Reverse,
}

impl Direction {
    /// The letter in the names of key logs.
    pub fn letter(self) -> char {
        match self {
            Direction::Forward => 'f',
            Direction::Reverse => 'r',
        }
    }
    /// The word in tables and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Direction::Forward => "forward",
            Direction::Reverse => "reverse",
        }
    }
}

/// The two tables of a change under their present names.
#[derive(Debug, Clone, Copy)]
pub struct Tables<'a> {
    /// The table of the old shape, alias `l`.
    pub old: &'a Name,
    /// The table of the new shape, alias `s`.
    pub new: &'a Name,
}

/// Which rows of the key log a reconcile takes.
#[derive(Debug, Clone, Copy)]
pub enum Take<'a> {
    /// The visible rows of some blocks of one segment: a batch.
    Blocks {
        /// The segment.
        segment: &'a Name,
        /// First block.
        from: u64,
        /// First block behind.
        until: u64,
    },
    /// Some rows by their places: a part of a bisection.
    Parts {
        /// Disjoint.
        parts: &'a [Part],
    },
    /// All visible rows of all segments.
    All {
        /// The segments.
        segments: &'a [Name],
    },
    /// The same, if they are not more than so many; otherwise none of them: under the lock of a swap.
    Rest {
        /// The segments.
        segments: &'a [Name],
        /// Rows.
        at_most: i64,
    },
    /// All visible rows of all segments, and besides every key that either table has: after a TRUNCATE.
    Everything {
        /// The segments.
        segments: &'a [Name],
    },
}

/// How a row of the rear table is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// From the front row alone.
    Plain,
    /// From the front row and what the rear has already, so that what only the rear's shape can hold is kept.
    Merged,
}

fn list<T>(items: impl IntoIterator<Item = T>, each: impl Fn(T) -> String) -> String {
    items.into_iter().map(each).collect::<Vec<_>>().join(", ")
}

/// The rows of all these tables.
fn union(tables: &[Name], columns: &str) -> String {
    tables.iter().map(|table| format!("select {columns} from {table}")).collect::<Vec<_>>().join(" union all ")
}

fn all<T>(items: impl IntoIterator<Item = T>, each: impl Fn(T) -> String) -> String {
    items.into_iter().map(each).collect::<Vec<_>>().join(" and ")
}

fn equals(column: &KeyColumn) -> String {
    operator(column, "=")
}

fn operator(column: &KeyColumn, symbol: &str) -> String {
    format!("operator({}.{symbol})", column.operators)
}

fn written(plan: &Plan) -> impl Iterator<Item = &NewColumn> {
    plan.new_columns.iter().filter(|column| !column.generated)
}

/// The value of a column of the new shape, from the old-shape row alone. Not coerced.
fn forward(column: &NewColumn) -> String {
    match &column.source {
        Source::Same => format!("l.{}", column.old.as_ref().unwrap_or(&column.name)),
        Source::Expression { sql, .. } => sql.clone(),
        Source::Constant { sql } => sql.clone(),
        Source::Generated => "null".to_owned(),
    }
}

fn forward_cast(column: &NewColumn) -> String {
    match column.source {
        Source::Same => forward(column),
        _ => format!("({})::{}", forward(column), column.type_name),
    }
}

fn hash(expression: &str) -> String {
    format!("migrator._image_hash({expression})")
}

/// Whether the row with this alias came out of an outer join with a partner.
fn present(alias: char, plan: &Plan) -> String {
    let column = plan.key.first().expect("a plan has a key");
    format!("{alias}.{} is not null", if alias == 'l' { &column.old } else { &column.new })
}

/// The value of a column of the new shape when a rear row `s` may exist (after a rollback): what the new shape had is
/// kept wherever the old shape still says the same, so that what only the new shape can hold survives a second swap.
fn forward_merged(plan: &Plan, column: &NewColumn) -> String {
    let plain = forward(column);
    // The old shape holds all of it: outputs and the name that tells whether they are upgraded.
    if column.upgraded {
        return plain;
    }
    let here = present('s', plan);
    let keep = format!("s.{}", column.name);
    let other = beside_kept(&plain, column.bare_type.as_deref());
    let old = column.old.as_ref().and_then(|name| plan.old_columns.iter().find(|old| old.name == *name));
    match (&column.source, old) {
        (Source::Constant { .. }, _) => format!("case when {here} then {keep} else {other} end"),
        (Source::Expression { .. }, Some(old)) if old.reverse.is_some() => {
            let back = format!("({})::{}", old.reverse.as_deref().unwrap_or_default(), old.type_name);
            let same = format!("{} = {}", hash(&back), hash(&format!("l.{}", old.name)));
            format!("case when {here} and {same} then {keep} else {other} end")
        }
        (Source::Expression { .. }, _) => {
            let typed = compared(&plain, column.bare_type.as_deref(), &column.type_name);
            let same = format!("(select {} from (select {}) l) = {}", hash(&typed), taken_back(plan), hash(&typed));
            format!("case when {here} and {same} then {keep} else {other} end")
        }
        (Source::Same | Source::Generated, _) => plain,
    }
}

/// A value in one CASE with one that is kept, as of the type of the column that has it. Otherwise the CASE would make both of a type
/// that suits both, and give what is kept through it: a `numeric` as what `double precision` leaves of it, or nothing at all of
/// `json` and `jsonb`. The column's modifier is left to the assignment, which refuses what it would have to cut.
fn beside_kept(value: &str, bare_type: Option<&str>) -> String {
    match bare_type {
        // A NULL is of any type, and need not name one that may have another name by now.
        Some(bare_type) if value != "NULL" => format!("({value})::{bare_type}"),
        _ => value.to_owned(),
    }
}

/// A value that is compared with another one that is computed in the same way, as the column would have it where it rounds by itself, not by a domain: 2.40 and 2.4 are the same in a
/// column with two digits. Nothing is cut, and nothing refused that nobody assigns: what the column has no room for has to differ.
fn compared(value: &str, bare_type: Option<&str>, type_name: &str) -> String {
    let bare = beside_kept(value, bare_type);
    let inside = type_name.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
    match (bare_type, inside) {
        (Some("numeric"), Some((digits, ""))) => match digits.split_once(',') {
            Some((_, scale)) => format!("pg_catalog.round({bare}, {scale})"),
            None => bare,
        },
        (Some(bare_type), Some((digits, _))) if bare_type.starts_with("time") => {
            let plain = type_name.replacen(&format!("({digits})"), "", 1);
            if plain == bare_type { format!("({value})::{type_name}") } else { bare }
        }
        _ => bare,
    }
}

/// The old-shape row that the new-shape row `s` stands for, as a select list; columns that the new shape does not have are those of `l`.
fn taken_back(plan: &Plan) -> String {
    list(&plan.old_columns, |column| match &column.reverse {
        Some(reverse) if !column.generated => format!("({reverse})::{} as {}", column.type_name, column.name),
        _ => format!("l.{} as {}", column.name, column.name),
    })
}

/// The values of the columns of the old shape from the new-shape row `s` and the backup row `l`, if there is one.
fn backward(plan: &Plan) -> Vec<(Ident, String)> {
    let here = present('l', plan);
    let projected = list(&plan.new_columns, |column| {
        if column.generated {
            format!("null::{} as {}", column.type_name, column.name)
        } else {
            format!("{} as {}", forward_cast(column), column.name)
        }
    });
    plan.old_columns
        .iter()
        .filter(|column| !column.generated)
        .map(|column| {
            let keep = format!("l.{}", column.name);
            let other = |value: &str| beside_kept(value, column.bare_type.as_deref());
            let new = column.new.as_ref().and_then(|name| plan.new_columns.iter().find(|new| new.name == *name));
            let value = match (new, &column.reverse) {
                // Together with the row's names: an output that is upgraded must not meet the names of a backup row that is not.
                (Some(new), _) if new.upgraded => format!("s.{}", new.name),
                (Some(new), reverse) if new.source == Source::Same => {
                    reverse.clone().unwrap_or_else(|| format!("s.{}", new.name))
                }
                (Some(new), Some(reverse)) if !new.generated => format!(
                    "case when {here} and {} = {} then {keep} else {} end",
                    hash(&forward_cast(new)),
                    hash(&format!("s.{}", new.name)),
                    other(reverse)
                ),
                (_, Some(reverse)) => {
                    let typed = hash(&compared(reverse, column.bare_type.as_deref(), &column.type_name));
                    format!(
                        "case when {here} and (select {typed} from (select {projected}) s) = {typed} then {keep} else {} end",
                        other(reverse)
                    )
                }
                (_, None) => format!("case when {here} then {keep} else {} end", other(&column.otherwise)),
            };
            (column.name.clone(), value)
        })
        .collect()
}

/// One batch of the copy: the rows of blocks `from` up to, not including, `until`.
pub fn copy(plan: &Plan, tables: Tables<'_>, from: u64, until: u64) -> String {
    format!(
        "insert into {} ({}) overriding system value select {} from {} l where l.ctid >= '({from},0)' and l.ctid < '({until},0)'",
        tables.new,
        list(written(plan), |column| column.name.to_string()),
        list(written(plan), forward),
        tables.old
    )
}

/// One row of the copy, by its place.
pub fn copy_row(plan: &Plan, tables: Tables<'_>, block: u64, offset: u64) -> String {
    format!(
        "insert into {} ({}) overriding system value select {} from {} l where l.ctid = '({block},{offset})'",
        tables.new,
        list(written(plan), |column| column.name.to_string()),
        list(written(plan), forward),
        tables.old
    )
}

/// The keys of the rows in a block, with their offsets: what a bisection of the copy looks at.
pub fn rows_of_block(plan: &Plan, tables: Tables<'_>, block: u64) -> String {
    format!(
        "select (l.ctid::text::point)[1]::bigint as \"offset\", {} as key from {} l where l.ctid >= '({block},0)' and l.ctid < '({},0)' order by 1",
        key_json(plan, Direction::Forward, 'l'),
        tables.old,
        block + 1
    )
}

fn key_json(plan: &Plan, direction: Direction, alias: char) -> String {
    let pairs = list(&plan.key, |column| {
        let name = match direction {
            Direction::Forward => &column.old,
            Direction::Reverse => &column.new,
        };
        format!("{}, {alias}.{name}::text", crate::ident::literal(name.as_str()))
    });
    format!("jsonb_build_object({pairs})")
}

/// Names, types and aliases of the key on both sides of a direction.
struct Sides<'a> {
    front: &'a Name,
    rear: &'a Name,
    front_alias: char,
    rear_alias: char,
    columns: Vec<Side<'a>>,
}

struct Side<'a> {
    column: &'a KeyColumn,
    front: &'a Ident,
    rear: &'a Ident,
    front_type: &'a str,
    rear_type: &'a str,
}

fn sides<'a>(plan: &'a Plan, tables: Tables<'a>, direction: Direction) -> Sides<'a> {
    let forward = direction == Direction::Forward;
    Sides {
        front: if forward { tables.old } else { tables.new },
        rear: if forward { tables.new } else { tables.old },
        front_alias: if forward { 'l' } else { 's' },
        rear_alias: if forward { 's' } else { 'l' },
        columns: plan
            .key
            .iter()
            .map(|column| Side {
                column,
                front: if forward { &column.old } else { &column.new },
                rear: if forward { &column.new } else { &column.old },
                front_type: if forward { &column.old_type } else { &column.new_type },
                rear_type: if forward { &column.new_type } else { &column.old_type },
            })
            .collect(),
    }
}

impl Sides<'_> {
    /// `alias.front = d.front …`
    fn front_is_dirty(&self) -> String {
        let alias = self.front_alias;
        all(&self.columns, |side| format!("{alias}.{} {} d.{}", side.front, equals(side.column), side.front))
    }
    /// `alias.rear = d.front::type …`
    fn rear_is_dirty(&self) -> String {
        let alias = self.rear_alias;
        all(&self.columns, |side| format!("{alias}.{} {} {}", side.rear, equals(side.column), cast(side, "d")))
    }
    /// The keys of both tables, in the front's types.
    fn every_key(&self) -> String {
        let names = list(&self.columns, |side| side.front.to_string());
        let rear = list(&self.columns, |side| {
            if side.front_type == side.rear_type {
                side.rear.to_string()
            } else {
                format!("{}::{}", side.rear, side.front_type)
            }
        });
        format!("select {names} from {} union all select {rear} from {}", self.front, self.rear)
    }
    /// `rear.key = front.key::type …`
    fn rear_is_front(&self) -> String {
        let (rear, front) = (self.rear_alias, self.front_alias.to_string());
        all(&self.columns, |side| format!("{rear}.{} {} {}", side.rear, equals(side.column), cast(side, &front)))
    }
}

fn cast(side: &Side<'_>, alias: &str) -> String {
    if side.front_type == side.rear_type {
        format!("{alias}.{}", side.front)
    } else {
        format!("{alias}.{}::{}", side.front, side.rear_type)
    }
}

fn range(from: u64, until: u64) -> String {
    format!("ctid >= '({from},0)' and ctid < '({until},0)'")
}

/// One reconcile: takes dirty keys from the log, deletes their rows from the rear table and puts them there
/// anew as the front table has them now, and takes the log rows away. Returns one jsonb with `taken` (log
/// rows), `keys` (distinct), `deleted`, `inserted` and `truncated`; with `aside` also `mended`, which of the keys in `$1`
/// (a jsonb array of `bad_row.key`) were among them.
///
/// Where `marker` has a row that the statement sees, the table was truncated, and only `Take::Everything` is right:
/// the others then do nothing and say so. To look before the statement would not do: the TRUNCATE may commit between.
/// `Take::Rest` says the same of too many rows, and of a row of NULLs.
///
/// The insert waits for the delete: its filter reads a count over the delete's RETURNING, which PostgreSQL
/// evaluates once, before the first row. Deleted rows of the same command no longer count for unique indexes.
pub fn reconcile(
    plan: &Plan,
    tables: Tables<'_>,
    direction: Direction,
    put: Put,
    take: Take<'_>,
    marker: &Name,
    aside: bool,
) -> String {
    let sides = sides(plan, tables, direction);
    let names = list(&sides.columns, |side| side.front.to_string());
    let first = sides.columns.first().expect("a plan has a key").front;
    let (dirty, gone) = match take {
        Take::Blocks { segment, from, until } => {
            (format!("select {names} from {segment} where {}", range(from, until)), vec![(segment, range(from, until))])
        }
        Take::Parts { parts } => (
            parts
                .iter()
                .map(|part| format!("select {names} from {} where {}", part.segment, part.condition()))
                .collect::<Vec<_>>()
                .join(" union all "),
            parts.iter().map(|part| (&part.segment, part.condition())).collect(),
        ),
        Take::All { segments } | Take::Rest { segments, .. } => {
            (union(segments, &names), segments.iter().map(|segment| (segment, "true".to_owned())).collect())
        }
        Take::Everything { segments } => {
            (sides.every_key(), segments.iter().chain([marker]).map(|segment| (segment, "true".to_owned())).collect())
        }
    };
    let key = key_json(plan, direction, 'd');
    let mended = if aside {
        format!(
            ", 'mended', (select coalesce(jsonb_agg({key}), '[]') from d where $1::jsonb @> jsonb_build_array({key}))"
        )
    } else {
        String::new()
    };
    let (unless_truncated, known) = match take {
        Take::Everything { .. } => ("", String::new()),
        // A row of NULLs says that all has to be compared: it leaves only with that.
        Take::Blocks { .. } | Take::Parts { .. } | Take::All { .. } | Take::Rest { .. } => {
            (" and not (select truncated from halt)", format!(" and {first} is not null"))
        }
    };
    let gone_ctes = gone
        .iter()
        .enumerate()
        .map(|(number, (segment, place))| {
            format!("gone{number} as (delete from {segment} where ({place}){known}{unless_truncated} returning 1)")
        })
        .collect::<Vec<_>>()
        .join(", ");
    let taken =
        (0..gone.len()).map(|number| format!("(select count(*) from gone{number})")).collect::<Vec<_>>().join(" + ");
    let join = format!("from d join {} {} on {}", sides.front, sides.front_alias, sides.front_is_dirty());
    let outer = format!("left join {} {} on {}", sides.rear, sides.rear_alias, sides.rear_is_front());
    let (made, columns, values, rows) = match (direction, put) {
        (Direction::Forward, Put::Plain) => (
            String::new(),
            list(written(plan), |column| column.name.to_string()),
            list(written(plan), forward),
            format!("{join} where"),
        ),
        (Direction::Forward, Put::Merged) => merged(
            written(plan).map(|column| (column.name.clone(), forward_merged(plan, column))).collect(),
            &format!("{join} {outer}"),
        ),
        (Direction::Reverse, _) => merged(backward(plan), &format!("{join} {outer}")),
    };
    let too_many = match take {
        Take::Rest { segments, at_most } => {
            let rows = union(segments, "");
            let keys = union(segments, &first.to_string());
            format!(
                " or (select count(*) from (select from ({rows}) r limit {at_most} + 1) c) > {at_most} \
                  or exists (select from ({keys}) u where u.{first} is null)"
            )
        }
        _ => String::new(),
    };
    format!(
        "with halt as materialized (select exists (select from {marker}){too_many} as truncated), \
         d as materialized (select distinct {names} from ({dirty}) q where {first} is not null{unless_truncated}), {made}\
         del as (delete from {rear} {rear_alias} using d where {rear_is_dirty} returning 1), \
         ins as (insert into {rear} ({columns}) overriding system value select {values} {rows} (select count(*) from del) >= 0 returning 1), \
         {gone_ctes} \
         select jsonb_build_object('taken', {taken}, 'keys', (select count(*) from d), \
         'deleted', (select count(*) from del), 'inserted', (select count(*) from ins), 'truncated', (select truncated from halt){mended})",
        rear = sides.rear,
        rear_alias = sides.rear_alias,
        rear_is_dirty = sides.rear_is_dirty(),
    )
}

/// The merged rows are worked out in full before anything is deleted: they read what will be deleted.
fn merged(values: Vec<(Ident, String)>, from: &str) -> (String, String, String, String) {
    let made = format!(
        "m as materialized (select {} {from}), ",
        list(values.iter().enumerate(), |(number, (_, value))| format!("{value} as c{number}"))
    );
    let columns = list(&values, |(name, _)| name.to_string());
    let numbered = list(0..values.len(), |number| format!("m.c{number}"));
    (made, columns, numbered, "from m where (select count(*) from m) >= 0 and".to_owned())
}

#[cfg(test)]
#[path = "sql_tests.rs"]
mod tests;
