//! What a table carries besides columns and constraints: comments, statistics targets, options, row-level
//! security, replica identity, the mark of CLUSTER. All of it is brought into line on the rear before any lock.
//!
//! Front and rear may differ because the change asked for it, or because somebody altered the front since.
//! `Kept::settings` tells the two apart from the second swap on: it holds what the table that became the front had
//! then, so a difference from that is somebody's, and is carried; any other is the change's, and stays. At the
//! first swap the front wins where it has a value of its own and the rear has none; comments and row-level
//! security, which no change asks for, even where it has one.

use super::Gathering;
use crate::catalog::spi;
use migrator_core::failure::Failure;
use migrator_core::ident::{Ident, Name, literal};
use pgrx::pg_sys;
use serde::Deserialize;
use std::collections::BTreeMap;

/// One setting. Two settings of front and rear are the same one when kind, object and column agree, the column
/// under its name in the rear.
#[derive(Debug, Deserialize)]
struct Setting {
    kind: String,
    /// Constraint, index, option; empty where the kind says it all.
    object: String,
    column: Option<String>,
    /// None is the default.
    value: Option<String>,
    /// What statements about it need: the sequence of an identity column, the number of an index column.
    handle: Option<String>,
}

const SETTINGS: &str = "\
    select 'comment on table' as kind, '' as object, null::pg_catalog.text as \"column\", pg_catalog.obj_description(c.oid, 'pg_class') as value, null::pg_catalog.text as handle \
    from pg_catalog.pg_class c where c.oid = $1 \
    union all select 'comment on type', '', null, pg_catalog.obj_description(c.reltype, 'pg_type'), null from pg_catalog.pg_class c where c.oid = $1 \
    union all select 'comment on column', '', a.attname, pg_catalog.col_description($1, a.attnum), null \
    from pg_catalog.pg_attribute a where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped \
    union all select 'comment on constraint', k.conname, null, pg_catalog.obj_description(k.oid, 'pg_constraint'), null \
    from pg_catalog.pg_constraint k where k.conrelid = $1 and k.contype not in ('f', 't') \
    union all select 'comment on index', i.relname, null, pg_catalog.obj_description(i.oid, 'pg_class'), null \
    from pg_catalog.pg_index x join pg_catalog.pg_class i on i.oid = x.indexrelid where x.indrelid = $1 \
    union all select 'comment on sequence', '', a.attname, pg_catalog.obj_description(s.oid, 'pg_class'), pg_catalog.format('%I.%I', n.nspname, s.relname) \
    from pg_catalog.pg_depend d join pg_catalog.pg_class s on s.oid = d.objid and s.relkind = 'S' join pg_catalog.pg_namespace n on n.oid = s.relnamespace \
    join pg_catalog.pg_attribute a on a.attrelid = $1 and a.attnum = d.refobjsubid \
    where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refobjid = $1 and d.deptype = 'i' \
    union all select 'sequence', o.key, a.attname, o.value, pg_catalog.format('%I.%I', n.nspname, s.relname) \
    from pg_catalog.pg_depend d join pg_catalog.pg_class s on s.oid = d.objid and s.relkind = 'S' join pg_catalog.pg_namespace n on n.oid = s.relnamespace \
    join pg_catalog.pg_attribute a on a.attrelid = $1 and a.attnum = d.refobjsubid join pg_catalog.pg_sequence q on q.seqrelid = s.oid, \
    lateral (values ('increment by', q.seqincrement::pg_catalog.text), ('start with', q.seqstart::pg_catalog.text), ('cache', q.seqcache::pg_catalog.text), \
                    ('', case when q.seqcycle then 'cycle' else 'no cycle' end), \
                    ('minvalue', case when q.seqmin not in (1, case q.seqtypid::pg_catalog.oid when 20 then -9223372036854775808 when 23 then -2147483648 else -32768 end) then q.seqmin::pg_catalog.text end), \
                    ('maxvalue', case when q.seqmax not in (-1, case q.seqtypid::pg_catalog.oid when 20 then 9223372036854775807 when 23 then 2147483647 else 32767 end) then q.seqmax::pg_catalog.text end)) as o (key, value) \
    where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refobjid = $1 and d.deptype = 'i' \
    union all select 'row security', '', null, case when c.relrowsecurity then 'enable' end, null from pg_catalog.pg_class c where c.oid = $1 \
    union all select 'forced row security', '', null, case when c.relforcerowsecurity then 'force' end, null from pg_catalog.pg_class c where c.oid = $1 \
    union all select 'replica identity', '', null, \
        case c.relreplident when 'f' then 'full' when 'n' then 'nothing' \
             when 'i' then (select pg_catalog.format('using index %I', i.relname) from pg_catalog.pg_index x join pg_catalog.pg_class i on i.oid = x.indexrelid \
                            where x.indrelid = c.oid and x.indisreplident) end, null \
    from pg_catalog.pg_class c where c.oid = $1 \
    union all select 'cluster', '', null, (select i.relname from pg_catalog.pg_index x join pg_catalog.pg_class i on i.oid = x.indexrelid \
                                           where x.indrelid = $1 and x.indisclustered), null \
    union all select 'statistics target', '', a.attname, nullif(a.attstattarget, -1)::pg_catalog.text, null \
    from pg_catalog.pg_attribute a where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped \
    union all select 'index statistics target', i.relname, null, nullif(a.attstattarget, -1)::pg_catalog.text, a.attnum::pg_catalog.text \
    from pg_catalog.pg_index x join pg_catalog.pg_class i on i.oid = x.indexrelid join pg_catalog.pg_attribute a on a.attrelid = i.oid \
    where x.indrelid = $1 and x.indkey[a.attnum - 1] = 0 \
    union all select 'column option', o.key, a.attname, p.option_value, null \
    from pg_catalog.pg_attribute a cross join (values ('n_distinct'), ('n_distinct_inherited')) as o (key) \
    left join lateral (select p.option_value from pg_catalog.pg_options_to_table(a.attoptions) p where p.option_name = o.key) p on true \
    where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped \
    union all select 'option', o.option_name, null, o.option_value, null from pg_catalog.pg_class c, pg_catalog.pg_options_to_table(c.reloptions) o where c.oid = $1 \
    union all select 'option', 'toast.' || o.option_name, null, o.option_value, null \
    from pg_catalog.pg_class c join pg_catalog.pg_class t on t.oid = c.reltoastrelid, pg_catalog.pg_options_to_table(t.reloptions) o where c.oid = $1";

impl Setting {
    fn key(&self, column: Option<&str>) -> String {
        // Control characters cannot be confused with a part of a name by accident; a name that has them costs a comment at worst.
        let number = if self.kind == "index statistics target" { self.handle.as_deref() } else { None };
        format!("{}\u{1f}{}\u{1f}{}", self.kind, self.object, column.or(number).unwrap_or_default())
    }

    /// Who wins at the first swap, where nothing tells whose the difference is.
    fn first(&self, rear: Option<&str>) -> bool {
        match self.kind.as_str() {
            // The shadow was created with the front's own, so a difference may be what was asked for.
            "option" | "sequence" => false,
            "row security" | "forced row security" => self.value.is_some(),
            kind if kind.starts_with("comment") => self.value.is_some(),
            _ => self.value.is_some() && rear.is_none(),
        }
    }

    /// The statement that gives the rear this value; `handle` is the rear's.
    fn statement(&self, rear: &Name, column: Option<&Ident>, handle: Option<&str>) -> String {
        let object = Ident::new(self.object.as_str());
        let schema = &rear.schema;
        let column = column.map(Ident::to_string).unwrap_or_default();
        let handle = handle.unwrap_or_default();
        let value = self.value.as_deref();
        let text = value.map_or_else(|| "null".to_owned(), literal);
        match self.kind.as_str() {
            "comment on table" | "comment on type" => format!("{} {rear} is {text}", self.kind),
            "comment on column" => format!("comment on column {rear}.{column} is {text}"),
            "comment on constraint" => format!("comment on constraint {object} on {rear} is {text}"),
            "comment on index" => format!("comment on index {schema}.{object} is {text}"),
            "comment on sequence" => format!("comment on sequence {handle} is {text}"),
            "sequence" => match (self.object.as_str(), value) {
                ("minvalue" | "maxvalue", None) => format!("alter sequence {handle} no {}", self.object),
                (option, value) => format!("alter sequence {handle} {option} {}", value.unwrap_or_default()),
            },
            "row security" => format!("alter table {rear} {} row level security", value.unwrap_or("disable")),
            "forced row security" => format!("alter table {rear} {} row level security", value.unwrap_or("no force")),
            "replica identity" => format!("alter table {rear} replica identity {}", value.unwrap_or("default")),
            "cluster" => value.map_or_else(
                || format!("alter table {rear} set without cluster"),
                |index| format!("alter table {rear} cluster on {}", Ident::new(index)),
            ),
            "statistics target" => {
                format!("alter table {rear} alter column {column} set statistics {}", value.unwrap_or("-1"))
            }
            "index statistics target" => {
                format!("alter index {schema}.{object} alter column {handle} set statistics {}", value.unwrap_or("-1"))
            }
            "column option" => value.map_or_else(
                || format!("alter table {rear} alter column {column} reset ({object})"),
                |_| format!("alter table {rear} alter column {column} set ({object} = {text})"),
            ),
            _ => {
                let name = option_name(&self.object);
                value.map_or_else(
                    || format!("alter table {rear} reset ({name})"),
                    |_| format!("alter table {rear} set ({name} = {text})"),
                )
            }
        }
    }
}

fn option_name(option: &str) -> String {
    option
        .strip_prefix("toast.")
        .map_or_else(|| Ident::new(option).to_string(), |option| format!("toast.{}", Ident::new(option)))
}

fn read(relation: u32) -> Result<Vec<Setting>, Failure> {
    spi::fetch(SETTINGS, &[pg_sys::Oid::from(relation).into()])
}

pub(super) fn gather(g: &mut Gathering<'_>) -> Result<(), Failure> {
    let rear = &g.swap.rear.name;
    let mut front_settings = read(g.swap.front.oid)?;
    let mut rear_settings = read(g.swap.rear.oid)?;
    complete(&mut front_settings, &mut rear_settings);
    complete(&mut rear_settings, &mut front_settings);
    // By the key that the same setting has in the rear; those of columns that the rear has not are left out.
    let ours: BTreeMap<String, &Setting> = front_settings
        .iter()
        .filter_map(|ours| match ours.column.as_deref() {
            None => Some((ours.key(None), ours)),
            Some(column) => g.columns.to(column).map(|column| (ours.key(Some(column.as_str())), ours)),
        })
        .collect();
    for mut theirs in rear_settings {
        let key = theirs.key(theirs.column.as_deref());
        if let Some(ours) = ours.get(&key) {
            let base = g.last.as_ref().and_then(|last| {
                let base = last.settings.get(&ours.key(ours.column.as_deref())).cloned();
                // An option that was set nowhere was not listed.
                if ours.kind == "option" { Some(base.flatten()) } else { base }
            });
            let carry = match base {
                Some(base) => base != ours.value,
                None => ours.first(theirs.value.as_deref()),
            };
            if carry && ours.value != theirs.value {
                let column = theirs.column.as_deref().map(Ident::from);
                let sql = ours.statement(rear, column.as_ref(), theirs.handle.as_deref());
                g.before_lock(sql);
                theirs.value.clone_from(&ours.value);
            }
        }
        g.kept.settings.insert(key, theirs.value);
    }
    Ok(())
}

/// Options are listed only where they are set: gives each side the other's names, unset.
fn complete(from: &mut [Setting], to: &mut Vec<Setting>) {
    for setting in from.iter().filter(|setting| setting.kind == "option") {
        if !to.iter().any(|other| other.kind == "option" && other.object == setting.object) {
            to.push(Setting {
                kind: setting.kind.clone(),
                object: setting.object.clone(),
                column: None,
                value: None,
                handle: None,
            });
        }
    }
}
