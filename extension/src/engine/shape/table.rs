//! The shadow as a table: like the live one down to storage parameters, indexes and statistics objects, before
//! the user's actions run on it. A shadow never has foreign keys or triggers.

use crate::catalog::relation::Relation;
use crate::catalog::{definition, role, spi};
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Ident, Name, literal, plain};
use migrator_core::plan::Unvalidated;
use pgrx::pg_sys;
use serde::Deserialize;
use std::cell::RefCell;

#[derive(Deserialize)]
struct Storage {
    owner: Ident,
    method: Ident,
    tablespace: Option<Ident>,
    options: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct Oid {
    oid: u32,
}

/// Runs statements and remembers them, for `explain`.
#[derive(Default)]
pub struct Steps(RefCell<Vec<String>>);

impl Steps {
    /// Runs one statement with the rights in force.
    pub fn run(&self, sql: &str) -> Result<(), Failure> {
        spi::execute(sql, &[])?;
        self.0.borrow_mut().push(sql.to_owned());
        Ok(())
    }
    /// What was run.
    pub fn taken(self) -> Vec<String> {
        self.0.into_inner()
    }
}

/// Makes the schema and in it an empty table of the live table's shape, its indexes included. The owner may create
/// in that schema, as ALTER TABLE … ADD UNIQUE and the index builds, which run with the owner's rights, need.
pub fn like(steps: &Steps, live: &Relation, name: &Name) -> Result<Relation, Failure> {
    let storage = storage(live)?;
    open_schema(steps, name, &storage.owner)?;
    // What is not said follows the database, not a setting of the session.
    role::with_settings(&[("default_tablespace", "")], || {
        steps.run(&create_table(live, name, &storage))?;
        steps.run(&format!("alter table {name} owner to {}", storage.owner))?;
        let shadow = find(name)?;
        for sql in definition::leftovers(live.oid, name)? {
            steps.run(&sql)?;
        }
        set_unvalidated(steps, live, name)?;
        for index in definition::indexes(live.oid)?.iter().filter(|index| index.is_valid) {
            let sql = match index.constraint {
                Some(constraint) => definition::constraint_sql_on(constraint, &index.name, &live.name, name)?,
                None => definition::index_sql_on(index, &live.name, name)?,
            };
            // Parsing the text, and building the index, may run functions of the owner's.
            role::as_owner(live.owner(), &[], || steps.run(&sql))?;
            for sql in super::builds::hangs_on(index, name) {
                steps.run(&sql)?;
            }
        }
        rename_sequences(steps, live, &shadow)?;
        // So may CREATE STATISTICS.
        for sql in definition::statistics(live.oid, name)? {
            role::as_owner(live.owner(), &[], || steps.run(&sql))?;
        }
        Ok(shadow)
    })
}

fn open_schema(steps: &Steps, name: &Name, owner: &Ident) -> Result<(), Failure> {
    steps.run(&format!("create schema {}", name.schema))?;
    steps.run(&format!("grant usage, create on schema {} to {owner}", name.schema))
}

/// Takes a table that the user made into the shadow's schema, under the live table's name.
pub fn adopt(steps: &Steps, live: &Relation, made: &Relation, name: &Name) -> Result<Relation, Failure> {
    open_schema(steps, name, &storage(live)?.owner)?;
    steps.run(&format!("alter table {} set schema {}", made.name, name.schema))?;
    if made.name.name != name.name {
        steps.run(&format!("alter table {}.{} rename to {}", name.schema, made.name.name, name.name))?;
    }
    Relation::get(made.oid)
}

fn storage(live: &Relation) -> Result<Storage, Failure> {
    spi::fetch_one(
        "select pg_catalog.pg_get_userbyid(c.relowner) as owner, coalesce(m.amname, 'heap') as method, t.spcname as tablespace, \
           (select coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(o.name, o.value)), '[]') from ( \
              select o.option_name as name, o.option_value as value from pg_catalog.pg_options_to_table(c.reloptions) o \
              union all select 'toast.' || o.option_name, o.option_value from pg_catalog.pg_class s, pg_catalog.pg_options_to_table(s.reloptions) o where s.oid = c.reltoastrelid \
           ) o) as options \
         from pg_catalog.pg_class c left join pg_catalog.pg_am m on m.oid = c.relam left join pg_catalog.pg_tablespace t on t.oid = c.reltablespace where c.oid = $1",
        &[pg_sys::Oid::from(live.oid).into()],
    )
}

fn create_table(live: &Relation, name: &Name, storage: &Storage) -> String {
    let unlogged = if live.persistence == "u" { "unlogged " } else { "" };
    let options: Vec<String> = storage
        .options
        .iter()
        .map(|(option, value)| match option.strip_prefix("toast.") {
            Some(option) => format!("toast.{} = {}", Ident::new(option), literal(value)),
            None => format!("{} = {}", Ident::new(option.as_str()), literal(value)),
        })
        .collect();
    let with = if options.is_empty() { String::new() } else { format!(" with ({})", options.join(", ")) };
    let tablespace =
        storage.tablespace.as_ref().map_or_else(String::new, |tablespace| format!(" tablespace {tablespace}"));
    format!(
        "create {unlogged}table {name} (like {} including defaults including constraints including generated including identity \
         including storage including compression including comments) using {}{with}{tablespace}",
        live.name, storage.method
    )
}

fn find(name: &Name) -> Result<Relation, Failure> {
    let oid: Oid = spi::fetch_one(
        "select c.oid::pg_catalog.int8 as oid from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
         where n.nspname = $1::pg_catalog.name and c.relname = $2::pg_catalog.name",
        &[name.schema.as_str().into(), name.name.as_str().into()],
    )?;
    Relation::get(oid.oid)
}

/// LIKE makes every condition a valid one. Where the live table's is NOT VALID, the shadow's becomes so too: it
/// has to survive the user's actions as what it is.
fn set_unvalidated(steps: &Steps, live: &Relation, name: &Name) -> Result<(), Failure> {
    for condition in definition::unvalidated_conditions(live.oid)? {
        let add = definition::constraint_sql_on(condition.oid, &condition.name, &live.name, name)?;
        steps.run(&format!("alter table {name} drop constraint {}", condition.name))?;
        // Parsing a condition evaluates its literals.
        role::as_owner(live.owner(), &[], || steps.run(&add))?;
        if let Some(comment) = condition.comment {
            steps.run(&format!("comment on constraint {} on {name} is {}", condition.name, literal(&comment)))?;
        }
    }
    Ok(())
}

/// Sequences of identity columns are made anew; they get the live ones' names, so that the swap leaves them, and their
/// types: LIKE makes each a bigint with the old bounds, which would stay when the column grows.
fn rename_sequences(steps: &Steps, live: &Relation, shadow: &Relation) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Pair {
        schema: String,
        made: String,
        wanted: Ident,
        renamed: bool,
        #[serde(rename = "type")]
        kind: Option<String>,
    }
    let pairs: Vec<Pair> = spi::fetch(
        "with own(relation, attnum, name, schema, type) as ( \
           select d.refobjid, a.attname, s.relname, n.nspname, i.seqtypid from pg_catalog.pg_depend d \
             join pg_catalog.pg_sequence i on i.seqrelid = d.objid \
             join pg_catalog.pg_class s on s.oid = d.objid and s.relkind = 'S' join pg_catalog.pg_namespace n on n.oid = s.relnamespace \
             join pg_catalog.pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid \
            where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass \
              and d.deptype = 'i' and d.refobjid in ($1, $2)) \
         select pg_catalog.to_jsonb(q) from (select m.schema, m.name as made, w.name as wanted, m.name <> w.name as renamed, \
            case when m.type <> w.type then pg_catalog.format_type(w.type, null) end as type from own m join own w using (attnum) \
          where m.relation = $2 and w.relation = $1) q",
        &[pg_sys::Oid::from(live.oid).into(), pg_sys::Oid::from(shadow.oid).into()],
    )?;
    for pair in pairs {
        let name = Name::new(pair.schema, pair.made);
        if let Some(kind) = pair.kind {
            steps.run(&format!("alter sequence {name} as {kind}"))?;
        }
        if pair.renamed {
            steps.run(&format!("alter sequence {name} rename to {}", pair.wanted))?;
        }
    }
    Ok(())
}

/// Takes conditions that are NOT VALID off the shadow: rows that exist may break them, and the swap adds them again.
pub fn set_aside(steps: &Steps, shadow: &Relation) -> Result<Vec<Unvalidated>, Failure> {
    let mut all = vec![];
    for condition in definition::unvalidated_conditions(shadow.oid)? {
        let sql = definition::constraint_sql(condition.oid);
        let definition = definition::constraint_tail(&sql, &condition.name, &shadow.name)?;
        steps.run(&format!("alter table {} drop constraint {}", shadow.name, condition.name))?;
        all.push(Unvalidated { name: condition.name, definition, comment: condition.comment });
    }
    Ok(all)
}

/// Refuses an index or sequence of the shadow whose name somebody else's relation has where the swap will put it.
pub fn names_are_free(live: &Relation, shadow: &Relation) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Taken {
        name: String,
        kind: String,
    }
    let taken: Option<Taken> = spi::fetch_optional(
        "with part(of, oid) as ( \
           select i.indrelid, i.indexrelid from pg_catalog.pg_index i where i.indrelid in ($1, $2) \
           union all select d.refobjid, d.objid from pg_catalog.pg_depend d join pg_catalog.pg_class s on s.oid = d.objid and s.relkind = 'S' \
            where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass \
              and d.deptype in ('a', 'i') and d.refobjid in ($1, $2)) \
         select pg_catalog.to_jsonb(q) from ( \
         select c.relname as name, case c.relkind when 'S' then 'sequence' else 'index' end as kind from part p join pg_catalog.pg_class c on c.oid = p.oid \
           join pg_catalog.pg_class o on o.relname = c.relname and o.oid <> c.oid \
           join pg_catalog.pg_class l on l.oid = $1 and l.relnamespace = o.relnamespace \
         where p.of = $2 and not exists (select from part own where own.of = $1 and own.oid = o.oid)) q",
        &[pg_sys::Oid::from(live.oid).into(), pg_sys::Oid::from(shadow.oid).into()],
    )?;
    match taken {
        None => Ok(()),
        Some(Taken { name, kind }) => {
            let place = Name { schema: live.name.schema.clone(), name: Ident::new(name.as_str()) };
            Err(Failure::new(
                "42P07",
                format!(
                    "{kind} {} of the new shape cannot take its place: there is another {}",
                    plain(&name),
                    place.plain()
                ),
            )
            .hint("Give it another name: alter table … add constraint NAME …."))
        }
    }
}

/// The shadow may not have what would fire or refuse while rows are put into it.
pub fn assert_inert(live: &Relation, shadow: &Relation) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Found {
        what: String,
    }
    let found: Option<Found> = spi::fetch_optional(
        "with tree(oid) as (select t.relid::pg_catalog.oid from pg_catalog.pg_partition_tree($1) t union select $1) \
         select pg_catalog.to_jsonb(q) from ( \
         select 'foreign key ' || n.conname as what from pg_catalog.pg_constraint n join tree on tree.oid = n.conrelid where n.contype = 'f' \
         union all select 'a foreign key to it, ' || n.conname from pg_catalog.pg_constraint n join tree on tree.oid = n.confrelid where n.contype = 'f' \
         union all select 'trigger ' || t.tgname from pg_catalog.pg_trigger t join tree on tree.oid = t.tgrelid where not t.tgisinternal and t.tgenabled <> 'D' \
         union all select 'rule ' || r.rulename from pg_catalog.pg_rewrite r join tree on tree.oid = r.ev_class \
         union all select 'row-level security that its owner obeys' from pg_catalog.pg_class c join tree on tree.oid = c.oid where c.relrowsecurity and c.relforcerowsecurity) q",
        &[pg_sys::Oid::from(shadow.oid).into()],
    )?;
    match found {
        None => Ok(()),
        Some(found) => {
            Err(Failure::new(code::NOT_SUPPORTED, format!("the shadow of {} has {}", live.name.plain(), found.what))
                .detail("It would act on rows that are only being copied.")
                .hint("Drop it from the shadow, and create it again after the swap."))
        }
    }
}
