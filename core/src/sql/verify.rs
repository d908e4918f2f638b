//! The text of verify: ranges of keys, hashes of rows, the search for those that differ.

use super::*;

/// A range of keys, as text values of the old shape's types; a bound may name the leading columns only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyRange {
    /// First key; none: from the start.
    pub from: Option<Vec<String>>,
    /// First key behind; none: to the end.
    pub until: Option<Vec<String>>,
}

impl KeyRange {
    pub(super) fn filter(&self, plan: &Plan, direction: Direction) -> String {
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

pub(super) fn row_hash(values: &[String]) -> String {
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
