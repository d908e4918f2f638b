//! The text of what is handed out to application code, and of what comes back from it.

use super::{COLUMN, Ident, Range, Table, literal, order, texts};
use crate::upgrade::{Upgrade, all_marked};

/// Which rows are handed out.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The upgrade.
    pub upgrade: &'a Upgrade,
    /// Those before it, in order: a row that lacks one of them is not handed out.
    pub earlier: &'a [Upgrade],
    /// Rows that carry its name, and not those that lack it.
    pub applied: bool,
}

impl Wanted<'_> {
    fn has(&self) -> String {
        all_marked([self.upgrade])
    }

    fn earlier(&self) -> String {
        if self.earlier.is_empty() { "true".to_owned() } else { all_marked(self.earlier) }
    }

    fn fits(&self) -> String {
        let has = self.has();
        if self.applied { has } else { format!("(not {has} and {})", self.earlier()) }
    }
}

impl Table<'_> {
    /// The rows of a range, so many at most, in order of the key, whatever they have: one jsonb with how many there were
    /// (`scanned`), the `last` key, and of those that are wanted (`found`) the `key` and the `bytes` that their `columns` take.
    ///
    /// The limit is on rows that are read and not on rows that are found: of the last call as of the first it is known what it costs.
    #[must_use]
    pub fn window(&self, wanted: &Wanted<'_>, range: &Range, rows: i64, columns: &[Ident]) -> String {
        let size: Vec<String> =
            columns.iter().map(|column| format!("coalesce(pg_catalog.pg_column_size(l.{column}), 0)")).collect();
        format!(
            "with w as materialized (select pg_catalog.row_number() over () as n, q.* from ( \
               select {key} as key, case when {fits} then ({size})::pg_catalog.int8 end as bytes from {table} l where {filter} order by {order} limit {rows}) q) \
             select pg_catalog.jsonb_build_object('scanned', (select count(*) from w), 'last', (select w.key from w order by w.n desc limit 1), \
               'found', coalesce((select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('key', w.key, 'bytes', w.bytes) order by w.n) \
                 from w where w.bytes is not null), '[]'))",
            key = texts(self.key),
            fits = wanted.fits(),
            size = size.join(" + "),
            table = self.name,
            filter = range.filter(self.key),
            order = order(self.key, "<"),
        )
    }

    /// Keys named one by one ($1, a jsonb array of arrays of texts) in their order: `key`.
    #[must_use]
    pub fn sorted(&self) -> String {
        format!(
            "select {} as key from (select {} from pg_catalog.jsonb_array_elements($1) j) l order by {}",
            texts(self.key),
            self.named_in("j"),
            order(self.key, "<")
        )
    }

    /// Of keys named one by one ($1, a jsonb array of arrays of texts) those that there are: place `n`, from 1, whether the row
    /// `fits`, has the name (`has`) and all `earlier` ones, and where it fits the `row`, as JSON, and the `image` of the upgrade's inputs.
    #[must_use]
    pub fn in_hand(&self, wanted: &Wanted<'_>) -> String {
        let fits = wanted.fits();
        format!(
            "select k.{n} as n, {fits} as fits, {has} as has, {earlier} as earlier, case when {fits} then pg_catalog.to_jsonb(l)::pg_catalog.text end as row, \
               case when {fits} then {image} end as image \
             from {table} l, (select {keys}, j.n as {n} from pg_catalog.jsonb_array_elements($1) with ordinality as j (value, n)) k where {same}",
            n = self.beside("n"),
            has = wanted.has(),
            earlier = wanted.earlier(),
            image = image(&wanted.upgrade.inputs),
            table = self.name,
            keys = self.named_in("j"),
            same = self.same(),
        )
    }

    /// Locks rows named one by one ($1), as far as nobody else has: place `n`, what they have (`has`, `earlier`), and the `image`.
    #[must_use]
    pub fn lock(&self, wanted: &Wanted<'_>) -> String {
        format!(
            "select k.{n} as n, {has} as has, {earlier} as earlier, {image} as image \
             from {table} l, (select {keys}, j.n as {n} from pg_catalog.jsonb_array_elements($1) with ordinality as j (value, n)) k \
             where {same} for no key update of l skip locked",
            n = self.beside("n"),
            has = wanted.has(),
            earlier = wanted.earlier(),
            image = image(&wanted.upgrade.inputs),
            table = self.name,
            keys = self.named_in("j"),
            same = self.same(),
        )
    }

    /// Rows named one by one ($1) as they are now: place `n`, and the `row` as JSON.
    #[must_use]
    pub fn as_it_is(&self) -> String {
        format!(
            "select k.{n} as n, pg_catalog.to_jsonb(l)::pg_catalog.text as row \
             from {table} l, (select {keys}, j.n as {n} from pg_catalog.jsonb_array_elements($1) with ordinality as j (value, n)) k where {same}",
            n = self.beside("n"),
            table = self.name,
            keys = self.named_in("j"),
            same = self.same(),
        )
    }

    /// Writes what application code gave back ($2, a jsonb array, each element with a `key` and perhaps an object `values`), and the
    /// name, into the rows of these places ($1, int4[], from 0). One jsonb: `n`, the places that were written and have the name
    /// now, and `without`, those that were written and have not.
    #[must_use]
    pub fn write_back(&self, upgrade: &Upgrade, columns: &[Ident]) -> String {
        let (place, values_given) = (self.beside("place"), self.beside("given"));
        let given = if columns.is_empty() {
            String::new()
        } else {
            let names: Vec<String> = columns.iter().map(ToString::to_string).collect();
            let values: Vec<String> = columns.iter().map(|column| format!("r.{column}")).collect();
            // Over the row itself: what is not given stays. Conversions are those of jsonb_populate_record().
            format!(
                "({}) = (select {} from pg_catalog.jsonb_populate_record(l, k.{values_given}) r), ",
                names.join(", "),
                values.join(", ")
            )
        };
        format!(
            "with k as materialized (select {keys}, j.n::pg_catalog.int4 - 1 as {place}, \
                 case pg_catalog.jsonb_typeof(j.value -> 'values') when 'object' then j.value -> 'values' else '{{}}' end as {values_given} \
               from pg_catalog.jsonb_array_elements($2::pg_catalog.jsonb) with ordinality as j (value, n) where j.n - 1 = any ($1::pg_catalog.int4[])), \
             written as (update {table} l set {given}{column} = {marked} from k where {same} returning k.{place} as n, {has} as has) \
             select pg_catalog.jsonb_build_object('n', coalesce(pg_catalog.jsonb_agg(x.n) filter (where x.has), '[]'), \
               'without', coalesce(pg_catalog.jsonb_agg(x.n) filter (where not x.has), '[]')) from written x",
            keys =
                self.given_keys().map(|(column, value)| format!("{value} as {column}")).collect::<Vec<_>>().join(", "),
            table = self.name,
            column = Ident::from(COLUMN),
            marked = with_name(&upgrade.name),
            same = self.same(),
            has = all_marked([upgrade]),
        )
    }

    /// What application code gave back ($1, a jsonb array), taken apart: `n`, from 0; the `key` as texts, with a NULL for what is
    /// missing; the `token`; the names of the `columns` that it gives; its `error`; and a field that nobody reads (`strange`), beside
    /// those that handing out gave.
    #[must_use]
    pub fn given_back(&self) -> String {
        let key: Vec<String> = self.given_keys().map(|(_, value)| format!("({value})::pg_catalog.text")).collect();
        format!(
            "select j.n::pg_catalog.int4 - 1 as n, array[{}] as key, j.value ->> 'token' as token, j.value ->> 'error' as error, \
               case pg_catalog.jsonb_typeof(j.value -> 'values') when 'object' then array(select pg_catalog.jsonb_object_keys(j.value -> 'values')) end as columns, \
               pg_catalog.jsonb_typeof(j.value -> 'values') as typed, \
               case pg_catalog.jsonb_typeof(j.value) when 'object' then (select f.name from pg_catalog.jsonb_object_keys(j.value) f (name) \
                 where f.name not in ('key', 'token', 'values', 'error', 'row', 'lease_until') limit 1) end as strange \
             from pg_catalog.jsonb_array_elements($1::pg_catalog.jsonb) with ordinality as j (value, n)",
            key.join(", ")
        )
    }

    /// Gives rows named one by one ($1) the name, and leaves everything else to the guard. One jsonb: `n`, the places that have it now.
    #[must_use]
    pub fn mark(&self, upgrade: &Upgrade) -> String {
        format!(
            "with k as materialized (select {keys}, j.n as {n} from pg_catalog.jsonb_array_elements($1) with ordinality as j (value, n)), \
             written as (update {table} l set {column} = {marked} from k where {same} returning k.{n} as n, {has} as has) \
             select pg_catalog.jsonb_build_object('n', coalesce(pg_catalog.jsonb_agg(x.n) filter (where x.has), '[]')) from written x",
            n = self.beside("n"),
            keys = self.named_in("j"),
            table = self.name,
            column = Ident::from(COLUMN),
            marked = with_name(&upgrade.name),
            same = self.same(),
            has = all_marked([upgrade]),
        )
    }

    /// A name like this one that no column of the key has.
    fn beside(&self, name: &str) -> Ident {
        let mut name = Ident::from(name);
        while self.key.iter().any(|column| column.name == name) {
            name.0.push('_');
        }
        name
    }

    /// The columns of the key, and their values in an object `key` of `j`.
    fn given_keys(&self) -> impl Iterator<Item = (&Ident, String)> {
        self.key.iter().map(|column| {
            let value = format!("(j.value -> 'key' ->> {})::{}", literal(column.name.as_str()), column.type_name);
            (&column.name, value)
        })
    }
}

/// The names of `l` and one more: in one dimension, whatever the array was, which array_append() asks for.
fn with_name(name: &str) -> String {
    format!(
        "pg_catalog.array_append(array(select u.u from pg_catalog.unnest(l.{}) as u (u) where u.u is not null), {}::pg_catalog.text)",
        Ident::from(COLUMN),
        literal(name)
    )
}

/// PostgreSQL passes at most 100 arguments to a function (FUNC_MAX_ARGS).
const ARGUMENTS: usize = 90;

/// A hash of the stored bytes of columns of `l`.
fn image(columns: &[Ident]) -> String {
    fn hash(values: &[String]) -> String {
        if values.len() <= ARGUMENTS {
            return format!("migrator._image_hash({})", values.join(", "));
        }
        let parts: Vec<String> = values.chunks(ARGUMENTS).map(hash).collect();
        hash(&parts)
    }
    hash(&columns.iter().map(|column| format!("l.{column}")).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::super::Key;
    use super::*;
    use crate::ident::Name;

    fn upgrade(name: &str) -> Upgrade {
        Upgrade {
            id: 1,
            name: name.into(),
            set: vec![],
            inputs: vec![Ident::new("a")],
            outputs: vec![],
            settings: 0,
            in_place: false,
            numbers: vec![],
            deferred: false,
        }
    }

    #[test]
    fn the_limit_is_on_rows_that_are_read() {
        let name = Name::new("public", "t");
        let key = [Key { name: Ident::new("id"), type_name: "bigint".into(), operators: Ident::new("pg_catalog") }];
        let table = Table { name: &name, key: &key, one_heap: true };
        let (this, before) = (upgrade("b"), [upgrade("a")]);
        let wanted = Wanted { upgrade: &this, earlier: &before, applied: false };
        let range = Range { after: Some(vec!["7".into()]), until: None };
        let text = table.window(&wanted, &range, 500, &[Ident::new("id")]);
        assert!(
            text.contains("where l.\"id\" operator(\"pg_catalog\".>) '7'::bigint order by l.\"id\" using operator(\"pg_catalog\".<) limit 500"),
            "{text}"
        );
        assert!(
            text.contains("case when (not coalesce(l.\"applied_upgrades\" @> array['b']::pg_catalog.text[], false) and coalesce(l.\"applied_upgrades\" @> array['a']::pg_catalog.text[], false)) then"),
            "{text}"
        );
    }

    #[test]
    fn no_function_gets_more_arguments_than_it_may() {
        let many: Vec<Ident> = (0..200).map(|n| Ident::new(format!("c{n}"))).collect();
        let text = image(&many);
        assert_eq!(text.matches("_image_hash(").count(), 4);
        assert_eq!(image(&many[..2]), "migrator._image_hash(l.\"c0\", l.\"c1\")");
    }
}
