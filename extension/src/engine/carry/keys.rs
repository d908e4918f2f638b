//! Foreign keys, to the table, from it, and from it to itself.
//!
//! Neither rear nor backup ever has a foreign key: one on the rear would fire while rows are brought into step
//! (its ON DELETE CASCADE would delete rows, its check would refuse the application's order of statements).
//! So all of them are dropped from the old front and added to the new one in the same transaction, NOT VALID:
//! that needs no scan under the lock. From then on every write is checked; VALIDATE follows after the commit.
//! No look for orphans is needed beforehand: the rows of both tables are equal, and the old keys held until now.

use super::Gathering;
use crate::catalog::lock::Mode;
use crate::catalog::spi;
use migrator_core::failure::Failure;
use migrator_core::ident::{Ident, Name, literal};
use pgrx::pg_sys;
use serde::Deserialize;

#[derive(Deserialize)]
struct Key {
    name: Ident,
    /// The referencing table.
    table_oid: u32,
    table_schema: Ident,
    table_name: Ident,
    columns: Vec<Ident>,
    /// The referenced table.
    to_oid: u32,
    to_schema: Ident,
    to_name: Ident,
    to_columns: Vec<Ident>,
    full: bool,
    on_update: String,
    on_delete: String,
    /// SET NULL (columns)
    only: Vec<Ident>,
    deferrable: bool,
    deferred: bool,
    valid: bool,
    /// 18 and later
    enforced: Option<bool>,
    period: Option<bool>,
    comment: Option<String>,
}

const KEYS: &str = "\
    select k.conname as name, \
        k.conrelid::pg_catalog.int8 as table_oid, fn.nspname as table_schema, f.relname as table_name, \
        (select pg_catalog.jsonb_agg(a.attname order by u.place) from pg_catalog.unnest(k.conkey) with ordinality u (num, place) \
         join pg_catalog.pg_attribute a on a.attrelid = k.conrelid and a.attnum = u.num) as columns, \
        k.confrelid::pg_catalog.int8 as to_oid, tn.nspname as to_schema, t.relname as to_name, \
        (select pg_catalog.jsonb_agg(a.attname order by u.place) from pg_catalog.unnest(k.confkey) with ordinality u (num, place) \
         join pg_catalog.pg_attribute a on a.attrelid = k.confrelid and a.attnum = u.num) as to_columns, \
        k.confmatchtype = 'f' as \"full\", \
        case k.confupdtype when 'r' then 'restrict' when 'c' then 'cascade' when 'n' then 'set null' when 'd' then 'set default' else 'no action' end as on_update, \
        case k.confdeltype when 'r' then 'restrict' when 'c' then 'cascade' when 'n' then 'set null' when 'd' then 'set default' else 'no action' end as on_delete, \
        coalesce((select pg_catalog.jsonb_agg(a.attname order by u.place) \
                  from pg_catalog.jsonb_array_elements_text(coalesce(nullif(pg_catalog.to_jsonb(k) -> 'confdelsetcols', 'null'), '[]')) with ordinality u (num, place) \
                  join pg_catalog.pg_attribute a on a.attrelid = k.conrelid and a.attnum = u.num::pg_catalog.int2), '[]') as only, \
        k.condeferrable as deferrable, k.condeferred as deferred, k.convalidated as valid, \
        (pg_catalog.to_jsonb(k) ->> 'conenforced')::pg_catalog.bool as enforced, (pg_catalog.to_jsonb(k) ->> 'conperiod')::pg_catalog.bool as period, \
        pg_catalog.obj_description(k.oid, 'pg_constraint') as comment \
    from pg_catalog.pg_constraint k \
    join pg_catalog.pg_class f on f.oid = k.conrelid join pg_catalog.pg_namespace fn on fn.oid = f.relnamespace \
    join pg_catalog.pg_class t on t.oid = k.confrelid join pg_catalog.pg_namespace tn on tn.oid = t.relnamespace \
    where k.contype = 'f' and $1 in (k.conrelid, k.confrelid) \
      and not exists (select from pg_catalog.pg_constraint p where p.oid = k.conparentid and $1 in (p.conrelid, p.confrelid)) \
    order by k.oid";

pub(super) fn gather(g: &mut Gathering<'_>) -> Result<(), Failure> {
    let front = g.swap.front.oid;
    let keys: Vec<Key> = spi::fetch(KEYS, &[pg_sys::Oid::from(front).into()])?;
    for mut key in keys {
        // Both sides carry the triggers that serve the key, and dropping those needs the table for itself.
        for table in [key.table_oid, key.to_oid] {
            g.lock_table(table, Mode::AccessExclusive);
        }
        let table = Name { schema: key.table_schema.clone(), name: key.table_name.clone() };
        g.before_move(format!("alter table {table} drop constraint {}", key.name));
        if key.table_oid == front {
            rename(g, &mut key.columns);
            rename(g, &mut key.only);
        }
        if key.to_oid == front {
            rename(g, &mut key.to_columns);
        }
        // Names in the statement find the new front: it has the old one's name by then.
        g.after_move(key.definition(&table));
        if let Some(comment) = &key.comment {
            g.after_move(format!("comment on constraint {} on {table} is {}", key.name, literal(comment)));
        }
        let entry = (table.to_string(), key.name.0.clone());
        let ours = g.last.as_ref().is_some_and(|last| last.pending.contains(&entry));
        if (key.valid || ours) && key.enforced != Some(false) {
            g.kept.pending.push(entry.clone());
            g.out.unvalidated.push(entry);
        }
    }
    Ok(())
}

/// The preflight has made sure that each column has a counterpart.
fn rename(g: &Gathering<'_>, columns: &mut [Ident]) {
    for column in columns {
        if let Some(to) = g.columns.to(column.as_str()) {
            *column = to.clone();
        }
    }
}

impl Key {
    fn definition(&self, table: &Name) -> String {
        let to = Name { schema: self.to_schema.clone(), name: self.to_name.clone() };
        let period = self.period == Some(true);
        let mut sql = format!(
            "alter table {table} add constraint {} foreign key ({}) references {to} ({})",
            self.name,
            list(&self.columns, period),
            list(&self.to_columns, period)
        );
        if self.full {
            sql.push_str(" match full");
        }
        sql.push_str(&format!(" on update {} on delete {}", self.on_update, self.on_delete));
        if !self.only.is_empty() {
            sql.push_str(&format!(" ({})", list(&self.only, false)));
        }
        sql.push_str(if self.deferrable { " deferrable" } else { " not deferrable" });
        sql.push_str(if self.deferred { " initially deferred" } else { " initially immediate" });
        sql.push_str(if self.enforced == Some(false) { " not enforced" } else { " not valid" });
        sql
    }
}

fn list(columns: &[Ident], period: bool) -> String {
    let last = columns.len().saturating_sub(1);
    let part = |(place, column): (usize, &Ident)| {
        if period && place == last { format!("period {column}") } else { column.to_string() }
    };
    columns.iter().enumerate().map(part).collect::<Vec<_>>().join(", ")
}
