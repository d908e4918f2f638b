//! The text of a sweep over a table (alias `l`) by key: where a batch ends, what it writes, what is left.

mod hand;

pub use hand::Wanted;

use super::{COLUMN, Definition, all_marked, pending};
use crate::ident::{Ident, Name, literal};

/// A column of the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Name.
    pub name: Ident,
    /// Type with modifier, as SQL.
    pub type_name: String,
    /// Schema of the operators that sort it.
    pub operators: Ident,
}

/// The table, and the columns by which its rows are found.
#[derive(Debug, Clone)]
pub struct Table<'a> {
    /// Its name now.
    pub name: &'a Name,
    /// The key, in the order of its index.
    pub key: &'a [Key],
    /// It has no partitions, so a row that is locked is found again by its place.
    pub one_heap: bool,
}

/// Keys behind one and up to another, as text values; a bound may name the leading columns only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Range {
    /// The last key before; none: from the start.
    pub after: Option<Vec<String>>,
    /// The last key; none: to the end.
    pub until: Option<Vec<String>>,
}

impl Range {
    fn filter(&self, key: &[Key]) -> String {
        let parts: Vec<String> = [(&self.after, ">", ">"), (&self.until, "<=", "<")]
            .into_iter()
            .filter_map(|(bound, symbol, strict)| Some(compare(key, bound.as_deref()?, symbol, strict)))
            .collect();
        if parts.is_empty() { "true".to_owned() } else { parts.join(" and ") }
    }
}

/// A comparison with a bound: as one of rows where the columns' operators are of one schema, so that an index serves it.
fn compare(key: &[Key], values: &[String], symbol: &str, strict: &str) -> String {
    let columns: Vec<(&Key, String)> = key
        .iter()
        .zip(values)
        .map(|(column, value)| (column, format!("{}::{}", literal(value), column.type_name)))
        .collect();
    let operator = |column: &Key, symbol: &str| format!("operator({}.{symbol})", column.operators);
    let (first, value) = columns.first().expect("a bound has a column");
    if columns.len() == 1 {
        return format!("l.{} {} {value}", first.name, operator(first, symbol));
    }
    if columns.windows(2).all(|pair| pair[0].0.operators == pair[1].0.operators) {
        let names: Vec<String> = columns.iter().map(|(column, _)| format!("l.{}", column.name)).collect();
        let values: Vec<&str> = columns.iter().map(|(_, value)| value.as_str()).collect();
        return format!("({}) {} ({})", names.join(", "), operator(first, symbol), values.join(", "));
    }
    // No index serves a comparison with `or`: what it is about at most stands beside it.
    let bound = format!("l.{} {} {value}", first.name, operator(first, &format!("{strict}=")));
    let exactly = columns.iter().enumerate().rev().fold(String::new(), |text, (place, (column, value))| {
        let name = &column.name;
        if place + 1 == columns.len() {
            format!("l.{name} {} {value}", operator(column, symbol))
        } else {
            let (less, equal) = (operator(column, strict), operator(column, "="));
            format!("(l.{name} {less} {value} or (l.{name} {equal} {value} and {text}))")
        }
    });
    format!("{bound} and {exactly}")
}

/// The key as an array of texts.
fn texts(key: &[Key]) -> String {
    let columns: Vec<String> = key.iter().map(|column| format!("(l.{})::pg_catalog.text", column.name)).collect();
    format!("array[{}]", columns.join(", "))
}

fn order(key: &[Key], way: &str) -> String {
    let columns: Vec<String> =
        key.iter().map(|column| format!("l.{} using operator({}.{way})", column.name, column.operators)).collect();
    columns.join(", ")
}

impl Table<'_> {
    /// The key with which a batch of so many rows ends, or earlier, where `migrator._ends()` says so of a row that it is asked
    /// about in the order of the key: `key`; no row where fewer are left. OFFSET keeps the condition from being asked below the order. It
    /// is asked by the row's place too, which no index has: what is not in memory is read here, where the look ends with its
    /// time, and not by the statement that has to look at each row up to the key.
    #[must_use]
    pub fn boundary(&self, range: &Range, rows: i64) -> String {
        format!(
            "select {} as key from (select {}, l.ctid from {} l where {} order by {} offset 0) l where migrator._ends({rows}, l.ctid) limit 1",
            texts(self.key),
            self.named(),
            self.name,
            range.filter(self.key),
            order(self.key, "<"),
        )
    }

    /// Keys between which there are about equally many rows, for chunks of so many rows, so many chunks at most, by a sample of
    /// this percentage of the table's blocks: `key`, and the number of `rows` that the sample stands for. No statistics are
    /// needed, and any key will do, of any number of columns.
    #[must_use]
    pub fn bounds(&self, percent: f64, rows_of_a_chunk: i64, chunks: usize) -> String {
        let order = order(self.key, "<");
        format!(
            "select q.key, q.rows from (select s.*, s.total / greatest(1, least({chunks}, s.rows / {rows_of_a_chunk})) as each from ( \
               select {key} as key, pg_catalog.row_number() over (order by {order}) as n, count(*) over () as total, \
                 (count(*) over () * 100 / {percent})::pg_catalog.int8 as rows from {table} l tablesample system ({percent})) s) q \
             where q.each > 0 and q.n % q.each = 0 and q.n < q.total order by q.n limit {most}",
            key = texts(self.key),
            table = self.name,
            most = chunks.saturating_sub(1),
        )
    }

    /// The last key of the table: `key`.
    #[must_use]
    pub fn last(&self) -> String {
        format!("select {} as key from {} l order by {} limit 1", texts(self.key), self.name, order(self.key, ">"))
    }

    /// What a batch does: locks the rows of the range that lack something and that nobody else has locked, and writes
    /// them; the guard applies what there is to apply. One jsonb: rows `locked` and `written`. How many rows it looked at, and
    /// how many of them lack something, `migrator._counts()` keeps: to count them here would be a second look at each.
    ///
    /// Row by row and not by range: an UPDATE of a range waits for rows that are locked, and whoever holds those may wait for
    /// rows of ours. By place (ctid) where there is but one heap: nobody moves a row that is locked; all places at once, for a
    /// join asks the system for the size of the file at each row. A row that was moved between the statement's snapshot and
    /// the lock is locked at a place that the snapshot does not show: it counts as `locked` and not as `written`, and the
    /// caller takes it by its key. Likewise all rows for which there was no time left.
    #[must_use]
    pub fn write(&self, definition: &Definition, range: &Range) -> String {
        let only = if self.one_heap { "only " } else { "" };
        let rows = format!(
            "{only}{} l where {} and migrator._counts({}) for no key update of l skip locked",
            self.name,
            range.filter(self.key),
            lacking(definition)
        );
        let (locked, count, written) = if self.one_heap {
            (
                format!(
                    "select pg_catalog.array_agg(k.place) as places, count(*) as rows from (select l.ctid as place from {rows}) k"
                ),
                "select k.rows from locked k",
                "where l.ctid operator(pg_catalog.=) any ((select k.places from locked k)::pg_catalog.tid[])"
                    .to_owned(),
            )
        } else {
            (
                format!("select {} from {rows}", self.named()),
                "select count(*) from locked",
                format!("from locked k where {}", self.same()),
            )
        };
        format!(
            "with locked as materialized ({locked}), \
             written as (update {only}{} l set {column} = l.{column} {written} and migrator._in_time() returning 1) \
             select pg_catalog.jsonb_build_object('locked', ({count}), 'written', (select count(*) from written))",
            self.name,
            column = Ident::from(COLUMN),
        )
    }

    /// The same for rows named one by one: $1 is a jsonb array of arrays of texts.
    #[must_use]
    pub fn write_keys(&self) -> String {
        format!(
            "with wanted as materialized (select {wanted} from pg_catalog.jsonb_array_elements($1) j), \
             locked as materialized (select {keys} from {table} l, wanted k where {same} for no key update of l skip locked), \
             written as (update {table} l set {column} = l.{column} from locked k where {same} and migrator._in_time() returning 1) \
             select pg_catalog.jsonb_build_object('locked', (select count(*) from locked), 'written', (select count(*) from written))",
            wanted = self.named_in("j"),
            keys = self.named(),
            table = self.name,
            column = Ident::from(COLUMN),
            same = self.same(),
        )
    }

    /// The keys of the range that still lack something: `key`, in order.
    #[must_use]
    pub fn lacking_keys(&self, definition: &Definition, range: &Range) -> String {
        format!(
            "select {} as key from {} l where {} and {} order by {}",
            texts(self.key),
            self.name,
            range.filter(self.key),
            lacking(definition),
            order(self.key, "<")
        )
    }

    /// How far a range is done: the key before the first that still lacks something, but for some ($1, a list of keys), null where that is the first of all, and the number of rows up to
    /// it: `before` and `rows`; no row where nothing lacks anything. One look in the order of the key, which ends there.
    #[must_use]
    pub fn done_until(&self, definition: &Definition, range: &Range) -> String {
        format!(
            "select q.before, q.rows from ( \
               select {lacking} and pg_catalog.to_jsonb({key})::pg_catalog.text <> all (array(select x.value::pg_catalog.text from pg_catalog.jsonb_array_elements($1) x)) as lacks, \
                 pg_catalog.lag({key}) over w as before, row_number() over w - 1 as rows \
               from {table} l where {range} window w as (order by {order}) order by {order} offset 0) q \
             where q.lacks limit 1",
            lacking = lacking(definition),
            key = texts(self.key),
            table = self.name,
            range = range.filter(self.key),
            order = order(self.key, "<")
        )
    }

    /// How many rows are in a range: `n`.
    #[must_use]
    pub fn rows_in(&self, range: &Range) -> String {
        format!("select count(*) as n from {} l where {}", self.name, range.filter(self.key))
    }

    /// Of keys named one by one ($1) those that still lack something: `key`.
    #[must_use]
    pub fn still_lacking(&self, definition: &Definition) -> String {
        format!(
            "select {} as key from {} l, (select {} from pg_catalog.jsonb_array_elements($1) j) k where {} and {}",
            texts(self.key),
            self.name,
            self.named_in("j"),
            self.same(),
            lacking(definition)
        )
    }

    /// Of keys named one by one ($1) those whose rows are there and have this name, or lack it: `key`.
    #[must_use]
    pub fn by_name(&self, name: &str, has: bool) -> String {
        format!(
            "select {} as key from {} l, (select {} from pg_catalog.jsonb_array_elements($1) j) k where {} and {}coalesce(l.{} @> array[{}]::pg_catalog.text[], false)",
            texts(self.key),
            self.name,
            self.named_in("j"),
            self.same(),
            if has { "" } else { "not " },
            Ident::from(COLUMN),
            literal(name)
        )
    }

    /// Whether any row of the table has this name, or lacks it: `found`.
    #[must_use]
    pub fn any(&self, name: &str, has: bool) -> String {
        format!(
            "select exists (select from {} l where {}coalesce(l.{} @> array[{}]::pg_catalog.text[], false)) as found",
            self.name,
            if has { "" } else { "not " },
            Ident::from(COLUMN),
            literal(name)
        )
    }

    /// Whether any row has a name that is none of these: `found`.
    #[must_use]
    pub fn any_other<'b>(&self, names: impl Iterator<Item = &'b str>) -> String {
        format!(
            "select exists (select from {} l where not coalesce(l.{} <@ array[{}]::pg_catalog.text[], true)) as found",
            self.name,
            Ident::from(COLUMN),
            names.map(literal).collect::<Vec<_>>().join(", ")
        )
    }

    /// A row by its key ($1, a jsonb array of texts): `row`, and its name as everywhere, `key`; both JSON as text.
    #[must_use]
    pub fn row(&self) -> String {
        let names: Vec<String> = self
            .key
            .iter()
            .map(|column| format!("{}, (l.{})::pg_catalog.text", literal(column.name.as_str()), column.name))
            .collect();
        format!(
            "select pg_catalog.jsonb_build_object({})::pg_catalog.text as key, pg_catalog.to_jsonb(l)::pg_catalog.text as row from {} l, (select {} from (select $1::pg_catalog.jsonb) as w (j)) k where {}",
            names.join(", "),
            self.name,
            self.named_in("w"),
            self.same()
        )
    }

    /// Counts in a range: `scanned` rows, those that a batch has something to do for (`pending`), and for each upgrade, then
    /// for each retired name, the rows that lack it, or still have it, then rows that have a name which is neither (`counts`).
    #[must_use]
    pub fn count(&self, definition: &Definition, range: &Range) -> String {
        let column = format!("l.{}", Ident::from(COLUMN));
        let has = |name: &str| format!("coalesce({column} @> array[{}]::pg_catalog.text[], false)", literal(name));
        let names = definition.upgrades.iter().map(|upgrade| upgrade.name.as_str());
        let known: Vec<String> = names.chain(definition.retired.iter().map(String::as_str)).map(literal).collect();
        let counts: Vec<String> = definition
            .upgrades
            .iter()
            .map(|upgrade| format!("count(*) filter (where not {})", has(&upgrade.name)))
            .chain(definition.retired.iter().map(|name| format!("count(*) filter (where {})", has(name))))
            .chain([format!(
                "count(*) filter (where not coalesce({column} <@ array[{}]::pg_catalog.text[], true))",
                known.join(", ")
            )])
            .collect();
        format!(
            "select count(*) as scanned, count(*) filter (where {}) as pending, array[{}]::pg_catalog.int8[] as counts from {} l where {}",
            lacking(definition),
            counts.join(", "),
            self.name,
            range.filter(self.key)
        )
    }

    fn named(&self) -> String {
        let columns: Vec<String> = self.key.iter().map(|column| format!("l.{}", column.name)).collect();
        columns.join(", ")
    }

    fn named_in(&self, alias: &str) -> String {
        let value = if alias == "j" { "j.value".to_owned() } else { format!("{alias}.j") };
        let columns: Vec<String> = self
            .key
            .iter()
            .enumerate()
            .map(|(place, column)| format!("({value} ->> {place})::{} as {}", column.type_name, column.name))
            .collect();
        columns.join(", ")
    }

    fn same(&self) -> String {
        let columns: Vec<String> = self
            .key
            .iter()
            .map(|column| format!("l.{0} operator({1}.=) k.{0}", column.name, column.operators))
            .collect();
        columns.join(" and ")
    }
}

/// A batch has something to do: an upgrade to apply, or a retired name to take off.
fn lacking(definition: &Definition) -> String {
    or_retired(definition, pending(definition))
}

/// A row has not all names that it should have, or a retired one: whoever has to do something about it.
#[must_use]
pub fn strange(definition: &Definition) -> String {
    or_retired(definition, format!("not {}", all_marked(&definition.upgrades)))
}

fn or_retired(definition: &Definition, lacks: String) -> String {
    if definition.retired.is_empty() {
        return lacks;
    }
    let names: Vec<String> = definition.retired.iter().map(|name| literal(name)).collect();
    format!("({lacks} or coalesce(l.{} && array[{}]::pg_catalog.text[], false))", Ident::from(COLUMN), names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, operators: &str) -> Key {
        Key { name: Ident::new(name), type_name: "bigint".into(), operators: Ident::new(operators) }
    }

    #[test]
    fn a_range_begins_behind_a_key_and_ends_with_one() {
        let keys = [key("a", "pg_catalog"), key("b", "pg_catalog")];
        let range = Range { after: Some(vec!["1".into(), "2".into()]), until: Some(vec!["9".into()]) };
        assert_eq!(
            range.filter(&keys),
            "(l.\"a\", l.\"b\") operator(\"pg_catalog\".>) ('1'::bigint, '2'::bigint) and l.\"a\" operator(\"pg_catalog\".<=) '9'::bigint"
        );
        assert_eq!(Range::default().filter(&keys), "true");
    }

    #[test]
    fn operators_of_several_schemas_are_compared_one_by_one() {
        let keys = [key("a", "x"), key("b", "y")];
        let range = Range { after: Some(vec!["1".into(), "2".into()]), until: None };
        assert_eq!(
            range.filter(&keys),
            "l.\"a\" operator(\"x\".>=) '1'::bigint and (l.\"a\" operator(\"x\".>) '1'::bigint or (l.\"a\" operator(\"x\".=) '1'::bigint and l.\"b\" operator(\"y\".>) '2'::bigint))"
        );
    }
}
