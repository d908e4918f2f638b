//! What a table is made of, as the catalog has it, and the SQL that makes each part again on another table.

use crate::catalog::expression::owned;
use crate::catalog::spi;
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Ident, Name, literal};
use pgrx::pg_sys;
use serde::Deserialize;

/// One column that is not dropped.
#[derive(Debug, Clone, Deserialize)]
pub struct Column {
    /// pg_attribute.attnum
    pub attnum: i16,
    /// Name.
    pub name: Ident,
    /// Type's oid.
    pub type_oid: u32,
    /// Type's modifier.
    pub modifier: i32,
    /// Type with modifier, as SQL.
    pub type_name: String,
    /// The type under all domains, as SQL, without a modifier.
    pub base_type: String,
    /// The same, such that a cast to it cuts nothing: `character` alone is `character(1)`, an array of a domain's values one of those of the type
    /// under it. None where each cast could: what has fields with a modifier, or that are domains or have fields.
    pub bare_type: Option<String>,
    /// The modifier of that, whether the column gives it or a domain.
    pub bare_modifier: i32,
    /// Collation's oid, 0 for none.
    pub collation: u32,
    /// Whether equal means the same bytes under that collation.
    pub deterministic: bool,
    /// NOT NULL, of all rows (from 18 on it can be NOT VALID).
    pub not_null: bool,
    /// Stored or virtual.
    pub generated: bool,
    /// GENERATED … AS IDENTITY.
    pub identity: bool,
    /// Schema of the operators by which a btree sorts the type; pg_catalog without any.
    pub operators: Ident,
}

/// The columns of a relation in attribute order.
pub fn columns(relation: u32) -> Result<Vec<Column>, Failure> {
    spi::fetch(
        "with recursive base(of, oid, kind, next, below, modifier) as ( \
           select distinct t.oid, t.oid, t.typtype, t.typbasetype, t.typtypmod, -1 from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.oid = a.atttypid \
            where a.attrelid = $1 and a.attnum > 0 \
           union all \
           select b.of, t.oid, t.typtype, t.typbasetype, t.typtypmod, b.below from base b join pg_catalog.pg_type t on t.oid = b.next where b.kind = 'd'), \
         element(of, oid, kind, next, below, modifier) as ( \
           select b.of, t.oid, t.typtype, t.typbasetype, t.typtypmod, b.modifier from base b join pg_catalog.pg_type t on t.typarray = b.oid where b.kind <> 'd' \
           union all \
           select e.of, t.oid, t.typtype, t.typbasetype, t.typtypmod, e.below from element e join pg_catalog.pg_type t on t.oid = e.next where e.kind = 'd') \
         select pg_catalog.to_jsonb(q) from ( \
         select a.attnum, a.attname as name, a.atttypid::pg_catalog.int8 as type_oid, a.atttypmod as modifier, \
           pg_catalog.format_type(a.atttypid, a.atttypmod) as type_name, pg_catalog.format_type(b.oid, null) as base_type, \
           case when e.of is not null and m.typarray = 0 or exists (select from pg_catalog.pg_type c join pg_catalog.pg_attribute f on f.attrelid = c.typrelid \
               join pg_catalog.pg_type t on t.oid = f.atttypid left join pg_catalog.pg_type u on u.typarray = t.oid \
               where c.oid = coalesce(e.oid, b.oid) and c.typtype = 'c' and f.attnum > 0 and not f.attisdropped \
                 and (f.atttypmod >= 0 or coalesce(u.typtype, t.typtype) in ('c', 'd'))) then null \
                else pg_catalog.format_type(coalesce(m.typarray, b.oid), -1) end as bare_type, \
           case when a.atttypmod >= 0 then a.atttypmod else coalesce(e.modifier, b.modifier) end as bare_modifier, \
           a.attcollation::pg_catalog.int8 as collation, coalesce(l.collisdeterministic, true) as deterministic, \
           a.attnotnull and not exists (select from pg_catalog.pg_constraint n where n.conrelid = a.attrelid and n.contype = 'n' \
             and not n.convalidated and n.conkey[1] = a.attnum) as not_null, a.attgenerated <> '' as generated, a.attidentity <> '' as identity, \
           coalesce((select n.nspname from pg_catalog.pg_opclass o join pg_catalog.pg_am m on m.oid = o.opcmethod and m.amname = 'btree' \
              join pg_catalog.pg_amop p on p.amopfamily = o.opcfamily and p.amoplefttype = o.opcintype and p.amoprighttype = o.opcintype and p.amopstrategy = 3 \
              join pg_catalog.pg_operator r on r.oid = p.amopopr join pg_catalog.pg_namespace n on n.oid = r.oprnamespace \
             where o.opcdefault and o.opcintype = b.oid limit 1), 'pg_catalog') as operators \
         from pg_catalog.pg_attribute a join base b on b.of = a.atttypid and b.kind <> 'd' \
           left join element e on e.of = a.atttypid and e.kind <> 'd' left join pg_catalog.pg_type m on m.oid = e.oid \
           left join pg_catalog.pg_collation l on l.oid = a.attcollation \
         where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped order by a.attnum) q",
        &[pg_sys::Oid::from(relation).into()],
    )
}

/// An index, and the constraint that stands on it.
#[derive(Debug, Clone, Deserialize)]
pub struct Index {
    /// Oid of the index.
    pub oid: u32,
    /// Name of the index, and of its constraint.
    pub name: Ident,
    /// Access method.
    pub method: String,
    /// UNIQUE
    pub is_unique: bool,
    /// PRIMARY KEY
    pub is_primary: bool,
    /// Usable: not left over from a failed CREATE INDEX CONCURRENTLY.
    pub is_valid: bool,
    /// Has a predicate.
    pub is_partial: bool,
    /// The table was last clustered by it.
    pub is_clustered: bool,
    /// attnums of the key columns, 0 for an expression.
    pub keys: Vec<i16>,
    /// Whether every key column is compared as its type and collation do by themselves.
    pub is_ordinary: bool,
    /// Oid of the constraint, if there is one.
    pub constraint: Option<u32>,
    /// Its kind: p, u or x.
    pub constraint_kind: Option<String>,
    /// ` deferrable initially deferred`, or nothing.
    pub deferrable: String,
    /// WITHOUT OVERLAPS: not made from an index.
    pub is_period: bool,
    /// COMMENT ON INDEX
    pub comment: Option<String>,
    /// COMMENT ON CONSTRAINT
    pub constraint_comment: Option<String>,
    /// Statistics targets of its expressions: column number and target.
    pub targets: Vec<(i16, i32)>,
}

impl Index {
    /// Whether it is made with CREATE INDEX, with its constraint attached afterwards; otherwise the constraint is made whole.
    pub fn stands_alone(&self) -> bool {
        self.constraint_kind.as_deref().is_none_or(|kind| kind != "x" && !self.is_period)
    }
}

/// The indexes of a table, oldest first.
pub fn indexes(table: u32) -> Result<Vec<Index>, Failure> {
    spi::fetch(
        "select i.indexrelid::pg_catalog.int8 as oid, c.relname as name, m.amname as method, i.indisunique as is_unique, \
           i.indisprimary as is_primary, i.indisvalid and i.indisready and i.indislive as is_valid, i.indpred is not null as is_partial, \
           i.indisclustered as is_clustered, \
           (select coalesce(pg_catalog.array_agg(k.attnum order by k.place), '{}') from pg_catalog.unnest(i.indkey::pg_catalog.int2[]) \
              with ordinality k(attnum, place) where k.place <= i.indnkeyatts) as keys, \
           (select coalesce(pg_catalog.bool_and(o.opcdefault and (a.attnum is null or a.attcollation = k.collation)), true) \
              from (select pg_catalog.unnest(i.indkey::pg_catalog.int2[]) as attnum, pg_catalog.unnest(i.indclass::pg_catalog.oid[]) as class, \
                           pg_catalog.unnest(i.indcollation::pg_catalog.oid[]) as collation) k \
              join pg_catalog.pg_opclass o on o.oid = k.class \
              left join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum) as is_ordinary, \
           n.oid::pg_catalog.int8 as constraint, n.contype as constraint_kind, \
           case when n.condeferrable then case when n.condeferred then ' deferrable initially deferred' else ' deferrable' end else '' end as deferrable, \
           coalesce((pg_catalog.to_jsonb(n) ->> 'conperiod')::pg_catalog.bool, false) as is_period, \
           pg_catalog.obj_description(i.indexrelid, 'pg_class') as comment, pg_catalog.obj_description(n.oid, 'pg_constraint') as constraint_comment, \
           (select coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(a.attnum, a.attstattarget) order by a.attnum), '[]') \
              from pg_catalog.pg_attribute a where a.attrelid = i.indexrelid and a.attstattarget >= 0) as targets \
         from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indexrelid join pg_catalog.pg_am m on m.oid = c.relam \
           left join pg_catalog.pg_constraint n on n.conindid = i.indexrelid and n.conrelid = i.indrelid and n.contype in ('p', 'u', 'x') \
         where i.indrelid = $1 order by i.indexrelid",
        &[pg_sys::Oid::from(table).into()],
    )
}

/// `create index …` for an index as it stands, the table qualified, every name in it qualified.
pub fn index_sql(index: &Index) -> String {
    // SAFETY: an index's oid read in this transaction; the text is palloc'd.
    unsafe { owned(pg_sys::pg_get_indexdef_string(pg_sys::Oid::from(index.oid))) }
}

/// The same for another table.
pub fn index_sql_on(index: &Index, from: &Name, to: &Name) -> Result<String, Failure> {
    let unique = if index.is_unique { "UNIQUE " } else { "" };
    let head = format!("CREATE {unique}INDEX {} ON ", quoted(index.name.as_str()));
    let sql = index_sql(index);
    // ONLY: the index of a partitioned table.
    let rest = sql.strip_prefix(&head).map(|rest| rest.strip_prefix("ONLY ").unwrap_or(rest));
    let rest = rest
        .and_then(|rest| rest.strip_prefix(&format!("{} ", qualified(from))))
        .ok_or_else(|| unreadable(&sql, &head))?;
    Ok(format!("create {unique}index {} on {to} {rest}", index.name))
}

/// `alter table … add constraint …` for a constraint as it stands.
pub fn constraint_sql(constraint: u32) -> String {
    // SAFETY: a constraint's oid read in this transaction; the text is palloc'd.
    unsafe { owned(pg_sys::pg_get_constraintdef_command(pg_sys::Oid::from(constraint))) }
}

/// The same for another table.
pub fn constraint_sql_on(constraint: u32, name: &Ident, from: &Name, to: &Name) -> Result<String, Failure> {
    let rest = constraint_tail(&constraint_sql(constraint), name, from)?;
    Ok(format!("alter table {to} add constraint {name} {rest}"))
}

/// What follows `add constraint NAME` in such a statement.
pub fn constraint_tail(sql: &str, name: &Ident, table: &Name) -> Result<String, Failure> {
    let head = format!("ALTER TABLE {} ADD CONSTRAINT {} ", qualified(table), quoted(name.as_str()));
    sql.strip_prefix(&head).map(str::to_owned).ok_or_else(|| unreadable(sql, &head))
}

fn unreadable(sql: &str, head: &str) -> Failure {
    Failure::new(code::INTERNAL, "a definition of the catalog does not begin as expected")
        .detail(format!("Expected: {head} Found: {sql}"))
}

/// A name as ruleutils.c prints it: quoted only where it must be.
pub fn quoted(name: &str) -> String {
    let name = std::ffi::CString::new(name).expect("names have no NUL");
    // SAFETY: gives the argument or a palloc'd copy; read at once.
    unsafe { owned(pg_sys::quote_identifier(name.as_ptr())) }
}

fn qualified(name: &Name) -> String {
    format!("{}.{}", quoted(name.schema.as_str()), quoted(name.name.as_str()))
}

/// A constraint without an index: CHECK, or NOT NULL with a name (18).
#[derive(Debug, Clone, Deserialize)]
pub struct Condition {
    /// Oid.
    pub oid: u32,
    /// Name.
    pub name: Ident,
    /// COMMENT ON CONSTRAINT
    pub comment: Option<String>,
}

/// Conditions that rows which exist may break: NOT VALID, and enforced.
pub fn unvalidated_conditions(table: u32) -> Result<Vec<Condition>, Failure> {
    spi::fetch(
        "select n.oid::pg_catalog.int8 as oid, n.conname as name, pg_catalog.obj_description(n.oid, 'pg_constraint') as comment from pg_catalog.pg_constraint n \
         where n.conrelid = $1 and n.contype in ('c', 'n') and not n.convalidated \
           and coalesce((pg_catalog.to_jsonb(n) ->> 'conenforced')::pg_catalog.bool, true) order by n.conname",
        &[pg_sys::Oid::from(table).into()],
    )
}

/// Statements that give `to` what CREATE TABLE … LIKE leaves out: statistics targets and options of columns.
/// `pg_attver` is the server's own (since the minor releases of November 2026): a version that it gives each column.
pub fn leftovers(from: u32, to: &Name) -> Result<Vec<String>, Failure> {
    #[derive(Deserialize)]
    struct Leftover {
        sql: String,
    }
    let rows: Vec<Leftover> = spi::fetch(
        "select pg_catalog.format('alter table %s alter column %I set statistics %s', $2, a.attname, a.attstattarget) as sql \
           from pg_catalog.pg_attribute a where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped and a.attstattarget >= 0 \
         union all \
         select pg_catalog.format('alter table %s alter column %I set (%s)', $2, a.attname, \
             pg_catalog.string_agg(pg_catalog.format('%I = %L', o.option_name, o.option_value), ', ')) \
           from pg_catalog.pg_attribute a cross join lateral pg_catalog.pg_options_to_table(a.attoptions) o \
          where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped and o.option_name <> 'pg_attver' \
          group by a.attnum, a.attname",
        &[pg_sys::Oid::from(from).into(), to.to_string().into()],
    )?;
    Ok(rows.into_iter().map(|row| row.sql).collect())
}

#[derive(Deserialize)]
struct Statistics {
    name: Ident,
    kinds: Vec<String>,
    columns: String,
    target: i32,
    comment: Option<String>,
}

/// Statements that make a table's extended statistics again on another table, under their names.
pub fn statistics(from: u32, to: &Name) -> Result<Vec<String>, Failure> {
    let rows: Vec<Statistics> = spi::fetch(
        "select s.stxname as name, coalesce(s.stxstattarget, -1) as target, pg_catalog.pg_get_statisticsobjdef_columns(s.oid) as columns, \
           (select coalesce(pg_catalog.array_agg(case k when 'd' then 'ndistinct' when 'f' then 'dependencies' when 'm' then 'mcv' end), '{}') \
              from pg_catalog.unnest(s.stxkind) k where k <> 'e') as kinds, \
           pg_catalog.obj_description(s.oid, 'pg_statistic_ext') as comment \
         from pg_catalog.pg_statistic_ext s where s.stxrelid = $1 order by s.oid",
        &[pg_sys::Oid::from(from).into()],
    )?;
    let mut statements = vec![];
    for row in rows {
        let name = Name { schema: to.schema.clone(), name: row.name };
        let kinds = if row.kinds.is_empty() { String::new() } else { format!(" ({})", row.kinds.join(", ")) };
        statements.push(format!("create statistics {name}{kinds} on {} from {to}", row.columns));
        if row.target >= 0 {
            statements.push(format!("alter statistics {name} set statistics {}", row.target));
        }
        if let Some(comment) = row.comment {
            statements.push(format!("comment on statistics {name} is {}", literal(&comment)));
        }
    }
    Ok(statements)
}

/// A fingerprint of what capture and copy rely on: the columns, dropped ones included. VACUUM FULL and other
/// rewrites leave it as it is (they are noticed by the file's number).
pub fn structure(relation: u32) -> Result<String, Failure> {
    fingerprint_of_columns(relation, true)
}

/// The same without dropped columns: a column that came and went again makes no difference.
pub fn columns_in_use(relation: u32) -> Result<String, Failure> {
    fingerprint_of_columns(relation, false)
}

fn fingerprint_of_columns(relation: u32, dropped: bool) -> Result<String, Failure> {
    #[derive(Deserialize)]
    struct Fingerprint {
        structure: Option<String>,
    }
    let row: Fingerprint = spi::fetch_one(
        "select pg_catalog.md5(pg_catalog.string_agg(pg_catalog.concat_ws(' ', a.attnum, pg_catalog.quote_ident(a.attname), a.atttypid, a.atttypmod, \
           a.attcollation, a.attnotnull, a.attisdropped, a.attgenerated, a.attidentity), ';' order by a.attnum)) as structure \
         from pg_catalog.pg_attribute a where a.attrelid = $1 and a.attnum > 0 and ($2 or not a.attisdropped)",
        &[pg_sys::Oid::from(relation).into(), dropped.into()],
    )?;
    Ok(row.structure.unwrap_or_default())
}

/// A fingerprint of the indexes, constraints (foreign keys apart: the swap reads those anew) and defaults of a table.
pub fn definitions(relation: u32) -> Result<String, Failure> {
    #[derive(Deserialize)]
    struct Fingerprint {
        definitions: Option<String>,
    }
    let row: Fingerprint = spi::fetch_one(
        "select pg_catalog.md5(pg_catalog.string_agg(q.line, ';' order by q.line)) as definitions from ( \
           select pg_catalog.pg_get_indexdef(i.indexrelid) as line from pg_catalog.pg_index i where i.indrelid = $1 \
           union all select pg_catalog.concat_ws(' ', k.conname, k.convalidated, pg_catalog.pg_get_constraintdef(k.oid)) \
             from pg_catalog.pg_constraint k where k.conrelid = $1 and k.contype in ('c', 'p', 'u', 'x') \
           union all select pg_catalog.concat_ws(' ', d.adnum, pg_catalog.pg_get_expr(d.adbin, d.adrelid)) \
             from pg_catalog.pg_attrdef d where d.adrelid = $1) q",
        &[pg_sys::Oid::from(relation).into()],
    )?;
    Ok(row.definitions.unwrap_or_default())
}
