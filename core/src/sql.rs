//! The SQL text of copy, reconcile and verify, worked out from a plan. Pure: names in, text out.
//!
//! Every statement here is ONE statement, hence runs under ONE snapshot: log and rows are read together.
//! Operators on key columns are written with their schema, for a key of type citext compared by whatever
//! `=` a search_path finds would be compared as text.

use crate::ident::{Ident, Name};
use crate::plan::{KeyColumn, NewColumn, Plan, Source};

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
    /// One row of a segment: the end of a bisection.
    Row {
        /// The segment.
        segment: &'a Name,
        /// Block and offset.
        ctid: (u64, u64),
    },
    /// All visible rows of all segments.
    All {
        /// The segments.
        segments: &'a [Name],
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
    let here = present('s', plan);
    let keep = format!("s.{}", column.name);
    let old = column.old.as_ref().and_then(|name| plan.old_columns.iter().find(|old| old.name == *name));
    match (&column.source, old) {
        (Source::Constant { .. }, _) => format!("case when {here} then {keep} else {plain} end"),
        (Source::Expression { .. }, Some(old)) if old.reverse.is_some() => {
            let back = format!("({})::{}", old.reverse.as_deref().unwrap_or_default(), old.type_name);
            let same = format!("{} = {}", hash(&back), hash(&format!("l.{}", old.name)));
            format!("case when {here} and {same} then {keep} else {plain} end")
        }
        (Source::Expression { .. }, _) => {
            let typed = forward_cast(column);
            let same = format!("(select {} from (select {}) l) = {}", hash(&typed), taken_back(plan), hash(&typed));
            format!("case when {here} and {same} then {keep} else {plain} end")
        }
        (Source::Same | Source::Generated, _) => plain,
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
            let new = column.new.as_ref().and_then(|name| plan.new_columns.iter().find(|new| new.name == *name));
            let value = match (new, &column.reverse) {
                (Some(new), reverse) if new.source == Source::Same => {
                    reverse.clone().unwrap_or_else(|| format!("s.{}", new.name))
                }
                (Some(new), Some(reverse)) if !new.generated => format!(
                    "case when {here} and {} = {} then {keep} else {reverse} end",
                    hash(&forward_cast(new)),
                    hash(&format!("s.{}", new.name))
                ),
                (_, Some(reverse)) => {
                    let typed = format!("({reverse})::{}", column.type_name);
                    format!(
                        "case when {here} and (select {} from (select {projected}) s) = {} then {keep} else {reverse} end",
                        hash(&typed),
                        hash(&typed)
                    )
                }
                (_, None) => format!("case when {here} then {keep} else {} end", column.otherwise),
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
        Take::Row { segment, ctid: (block, offset) } => {
            let place = format!("ctid = '({block},{offset})'");
            (format!("select {names} from {segment} where {place}"), vec![(segment, place)])
        }
        Take::All { segments } => (
            segments
                .iter()
                .map(|segment| format!("select {names} from {segment}"))
                .collect::<Vec<_>>()
                .join(" union all "),
            segments.iter().map(|segment| (segment, "true".to_owned())).collect(),
        ),
        Take::Everything { segments } => {
            let rear = list(&sides.columns, |side| {
                if side.front_type == side.rear_type {
                    side.rear.to_string()
                } else {
                    format!("{}::{}", side.rear, side.front_type)
                }
            });
            (
                format!("select {names} from {} union all select {rear} from {}", sides.front, sides.rear),
                segments.iter().chain([marker]).map(|segment| (segment, "true".to_owned())).collect(),
            )
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
    let unless_truncated = match take {
        Take::Everything { .. } => "",
        Take::Blocks { .. } | Take::Row { .. } | Take::All { .. } => " and not (select truncated from halt)",
    };
    let gone_ctes = gone
        .iter()
        .enumerate()
        .map(|(number, (segment, place))| {
            format!("gone{number} as (delete from {segment} where {place}{unless_truncated} returning 1)")
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
    format!(
        "with halt as materialized (select exists (select from {marker}) as truncated), \
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

/// A range of keys, as text values of the old shape's types; a bound may name the leading columns only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyRange {
    /// First key; none: from the start.
    pub from: Option<Vec<String>>,
    /// First key behind; none: to the end.
    pub until: Option<Vec<String>>,
}

impl KeyRange {
    fn filter(&self, plan: &Plan, direction: Direction) -> String {
        let mut parts = vec![];
        if let Some(from) = &self.from {
            parts.push(bound(plan, direction, ">=", ">", from));
        }
        if let Some(until) = &self.until {
            parts.push(bound(plan, direction, "<", "<", until));
        }
        if parts.is_empty() { "true".to_owned() } else { parts.join(" and ") }
    }
}

/// A comparison with a bound: as a row comparison where one operator schema serves all columns, so that an index serves it.
fn bound(plan: &Plan, side: Direction, symbol: &str, strict: &str, values: &[String]) -> String {
    let forward = side == Direction::Forward;
    let alias = if forward { 'l' } else { 's' };
    let columns: Vec<(&KeyColumn, String, String)> = plan
        .key
        .iter()
        .zip(values)
        .map(|(column, value)| {
            let name = if forward { &column.old } else { &column.new };
            let old = format!("{}::{}", crate::ident::literal(value), column.old_type);
            let value = if forward { old } else { format!("({old})::{}", column.new_type) };
            (column, format!("{alias}.{name}"), value)
        })
        .collect();
    let one_schema = columns.windows(2).all(|pair| pair[0].0.operators == pair[1].0.operators);
    if one_schema {
        let (first, ..) = columns.first().expect("a bound has a column");
        let operator = operator(first, symbol);
        if columns.len() == 1 {
            return format!("{} {operator} {}", columns[0].1, columns[0].2);
        }
        return format!("({}) {operator} ({})", list(&columns, |c| c.1.clone()), list(&columns, |c| c.2.clone()));
    }
    let mut text = String::new();
    for (place, (column, name, value)) in columns.iter().enumerate().rev() {
        text = if place + 1 == columns.len() {
            format!("{name} {} {value}", operator(column, symbol))
        } else {
            format!("({name} {} {value} or ({name} {} {value} and {text}))", operator(column, strict), equals(column))
        };
    }
    text
}

/// The key that follows the first `rows` keys of a range of the old shape's table: text array `key`, no row at the end.
pub fn boundary(plan: &Plan, tables: Tables<'_>, range: &KeyRange, rows: u64) -> String {
    format!(
        "select array[{}] as key from {} l where {} order by {} offset {rows} limit 1",
        list(&plan.key, |column| format!("l.{}::text", column.old)),
        tables.old,
        range.filter(plan, Direction::Forward),
        list(&plan.key, |column| format!("l.{} using operator({}.<)", column.old, column.operators)),
    )
}

/// Columns of both shapes beyond which the pair of two rows is not joined with anything: a plan that hashes the pairs would
/// need rows of more than 1,664 columns (MaxTupleAttributeNumber).
const WIDE: usize = 1600;

/// PostgreSQL passes at most 100 arguments to a function (FUNC_MAX_ARGS).
const ARGUMENTS: usize = 90;

fn row_hash(values: &[String]) -> String {
    if values.len() <= ARGUMENTS {
        return hash(&values.join(", "));
    }
    let parts: Vec<String> = values.chunks(ARGUMENTS).map(|part| hash(&part.join(", "))).collect();
    row_hash(&parts)
}

fn old_row_hash(plan: &Plan, put: Put) -> String {
    let values: Vec<String> = written(plan)
        .map(|column| match (put, &column.source) {
            (Put::Plain, _) | (_, Source::Same) => forward_cast(column),
            (Put::Merged, _) => format!("({})::{}", forward_merged(plan, column), column.type_name),
        })
        .collect();
    row_hash(&values)
}

fn new_row_hash(plan: &Plan) -> String {
    let values: Vec<String> = written(plan).map(|column| format!("s.{}", column.name)).collect();
    row_hash(&values)
}

/// Compares a range of both tables as wholes: one jsonb with `rows` and `same`. Cheap, and enough where nothing is being written.
pub fn compare(plan: &Plan, tables: Tables<'_>, range: &KeyRange) -> String {
    format!(
        "with o as (select count(*) as n, bit_xor({}) as h from {} l where {}), \
              w as (select count(*) as n, bit_xor({}) as h from {} s where {}) \
         select jsonb_build_object('rows', o.n, 'same', o.n = w.n and o.h is not distinct from w.h) from o, w",
        old_row_hash(plan, Put::Plain),
        tables.old,
        range.filter(plan, Direction::Forward),
        new_row_hash(plan),
        tables.new,
        range.filter(plan, Direction::Reverse),
    )
}

/// Which side's rows a mismatch search walks through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walk<'a> {
    /// A range of keys on both sides.
    Both(&'a KeyRange),
    /// A range of the old shape's keys; rows that only the new shape has are not found.
    Old(&'a KeyRange),
    /// Blocks of the new shape's table, looking only for rows that the old shape does not have.
    New {
        /// First block.
        from: u64,
        /// First block behind.
        until: u64,
    },
}

/// Finds the keys whose rows differ, leaving out those that the log already holds (they are on their way) and those
/// that are set aside (`$1`: a jsonb array of `bad_row.key`; the rear cannot have them), and puts them into the log. Returns one jsonb with `rows` and `mismatched`, and up to five `examples`.
pub fn mismatches(plan: &Plan, tables: Tables<'_>, put: Put, walk: Walk<'_>, segments: &[Name], aside: bool) -> String {
    let into = segments.first().expect("a log has segments");
    let keys_old = list(&plan.key, |column| format!("l.{} as {}", column.old, column.old));
    let names = list(&plan.key, |column| column.old.to_string());
    let matched = all(&plan.key, |column| {
        let old = if column.old_type == column.new_type {
            format!("l.{}", column.old)
        } else {
            format!("l.{}::{}", column.old, column.new_type)
        };
        format!("s.{} {} {old}", column.new, equals(column))
    });
    let coalesced = list(&plan.key, |column| {
        let new = if column.old_type == column.new_type {
            format!("s.{}", column.new)
        } else {
            format!("s.{}::{}", column.new, column.old_type)
        };
        format!("coalesce(l.{}, {new}) as {}", column.old, column.old)
    });
    let logged =
        segments.iter().map(|segment| format!("select {names} from {segment}")).collect::<Vec<_>>().join(" union all ");
    // A row whose key is in the log or was set aside is not even looked at: its expressions may fail.
    let on_its_way = |key: &dyn Fn(&KeyColumn) -> String| {
        let join = all(&plan.key, |column| format!("g.{} {} {}", column.old, equals(column), key(column)));
        let first = plan.key.first().expect("a plan has a key");
        let pairs =
            list(&plan.key, |column| format!("{}, {}::text", crate::ident::literal(column.old.as_str()), key(column)));
        let aside = if aside {
            format!(" or $1::jsonb @> jsonb_build_array(jsonb_build_object({pairs}))")
        } else {
            String::new()
        };
        if plan.new_columns.len() + plan.old_columns.len() > WIDE {
            (String::new(), format!("exists (select from logged g where {join}){aside}"))
        } else {
            (format!("left join logged g on {join}"), format!("g.{} is not null{aside}", first.old))
        }
    };
    let of_new = |column: &KeyColumn| {
        if column.old_type == column.new_type {
            format!("s.{}", column.new)
        } else {
            format!("s.{}::{}", column.new, column.old_type)
        }
    };
    let (old_hash, new_hash) = (old_row_hash(plan, put), new_row_hash(plan));
    let here = (present('l', plan), present('s', plan));
    let found = match walk {
        Walk::Both(range) => {
            let (join, known) = on_its_way(&|column| format!("coalesce(l.{}, {})", column.old, of_new(column)));
            format!(
                "select {coalesced}, case when {known} then true else {} and {} and {old_hash} = {new_hash} end as same \
                 from (select * from {} l where {}) l full join (select * from {} s where {}) s on {matched} {join}",
                here.0,
                here.1,
                tables.old,
                range.filter(plan, Direction::Forward),
                tables.new,
                range.filter(plan, Direction::Reverse),
            )
        }
        Walk::Old(range) => {
            let (join, known) = on_its_way(&|column| format!("l.{}", column.old));
            format!(
                "select {keys_old}, case when {known} then true else {} and {old_hash} = {new_hash} end as same \
                 from {} l left join {} s on {matched} {join} where {}",
                here.1,
                tables.old,
                tables.new,
                range.filter(plan, Direction::Forward),
            )
        }
        Walk::New { from, until } => {
            let (join, known) = on_its_way(&of_new);
            format!(
                "select {}, case when {known} then true else exists (select from {} l where {}) end as same \
                 from {} s {join} where s.ctid >= '({from},0)' and s.ctid < '({until},0)'",
                list(&plan.key, |column| format!("{} as {}", of_new(column), column.old)),
                tables.old,
                all(&plan.key, |column| format!("l.{} {} {}", column.old, equals(column), of_new(column))),
                tables.new,
            )
        }
    };
    format!(
        "with logged as materialized (select distinct {names} from ({logged}) q), \
              f as materialized ({found}), \
              bad as materialized (select {names} from f where not f.same), \
              ins as (insert into {into} ({names}) select {names} from bad returning 1) \
         select jsonb_build_object('rows', (select count(*) from f), 'mismatched', (select count(*) from ins), \
         'examples', (select jsonb_agg(to_jsonb(e)) from (select {names} from bad limit 5) e))"
    )
}

#[cfg(test)]
#[path = "sql_tests.rs"]
mod tests;
