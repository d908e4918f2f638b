//! Extended statistics: the rear gets a twin of each object of the front, best before it is analyzed. At the move
//! the two change places: the front's goes to where its table goes, the twin to where the front's was.

use super::{Gathering, rights};
use crate::catalog::spi;
use migrator_core::failure::Failure;
use migrator_core::failure::code;
use migrator_core::ident::{Ident, Name, literal, plain};
use pgrx::pg_sys;
use serde::Deserialize;

#[derive(Deserialize)]
struct Object {
    oid: u32,
    schema: Ident,
    name: Ident,
    owner: Ident,
    /// Keywords; empty where PostgreSQL decides (an expression alone).
    kinds: Vec<String>,
    columns: Vec<Ident>,
    expressions: Vec<String>,
    /// The columns in its expressions.
    inner: Vec<Ident>,
    target: Option<i64>,
    comment: Option<String>,
}

impl Object {
    fn name(&self) -> Name {
        Name { schema: self.schema.clone(), name: self.name.clone() }
    }
}

fn read(relation: u32) -> Result<Vec<Object>, Failure> {
    spi::fetch(
        "select s.oid::pg_catalog.int8 as oid, n.nspname as schema, s.stxname as name, r.rolname as owner, \
             coalesce((select pg_catalog.jsonb_agg(case k when 'd' then 'ndistinct' when 'f' then 'dependencies' when 'm' then 'mcv' end) \
                       from pg_catalog.unnest(s.stxkind) k where k <> 'e'), '[]') as kinds, \
             coalesce((select pg_catalog.jsonb_agg(a.attname order by k.place) from pg_catalog.unnest(s.stxkeys) with ordinality k (num, place) \
                       join pg_catalog.pg_attribute a on a.attrelid = s.stxrelid and a.attnum = k.num), '[]') as columns, \
             coalesce(pg_catalog.to_jsonb(pg_catalog.pg_get_statisticsobjdef_expressions(s.oid)), '[]') as expressions, \
             coalesce((select pg_catalog.jsonb_agg(distinct a.attname) from pg_catalog.pg_depend d \
                       join pg_catalog.pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid \
                       where d.classid = 'pg_catalog.pg_statistic_ext'::pg_catalog.regclass and d.objid = s.oid and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass \
                         and d.refobjid = s.stxrelid and not d.refobjsubid = any (s.stxkeys::pg_catalog.int2[])), '[]') as inner, \
             nullif((pg_catalog.to_jsonb(s) ->> 'stxstattarget')::pg_catalog.int8, -1) as target, \
             pg_catalog.obj_description(s.oid, 'pg_statistic_ext') as comment \
         from pg_catalog.pg_statistic_ext s join pg_catalog.pg_namespace n on n.oid = s.stxnamespace join pg_catalog.pg_roles r on r.oid = s.stxowner \
         where s.stxrelid = $1 order by s.oid",
        &[pg_sys::Oid::from(relation).into()],
    )
}

pub(super) fn gather(g: &mut Gathering<'_>) -> Result<(), Failure> {
    let (front, rear) = (g.swap.front, g.swap.rear);
    let backup = Ident::new(g.swap.front_backup_schema);
    let mut twins = read(rear.oid)?;
    for object in read(front.oid)? {
        g.before_move(format!("alter statistics {} set schema {backup}", object.name()));
        let place = twins.iter().position(|twin| twin.name == object.name);
        let Some(columns) = renamed(g, &object)? else {
            // Without all its columns it stays with its table, as it would vanish with a dropped column.
            g.kept.statistics.insert(object.name.0.clone(), object.schema.clone());
            continue;
        };
        match place.map(|place| twins.remove(place)) {
            Some(twin) if twin.like(g, &object, &columns) => align(g, &object, &twin),
            Some(twin) => {
                g.before_lock(format!("drop statistics {}", twin.name()));
                create(g, &object, &columns)?;
            }
            None => create(g, &object, &columns)?,
        }
        g.after_move(format!(
            "alter statistics {} set schema {}",
            Name { schema: rear.name.schema.clone(), name: object.name.clone() },
            object.schema
        ));
    }
    // What only the rear has: its own column's statistics go back to their place, what was dropped on the front goes.
    for twin in twins {
        let home = g.last.as_ref().and_then(|last| last.statistics.get(twin.name.as_str())).cloned();
        match home {
            Some(home) => g.after_move(format!("alter statistics {} set schema {home}", twin.name())),
            None if g.again() => g.before_lock(format!("drop statistics {}", twin.name())),
            None => g.after_move(format!("alter statistics {} set schema {}", twin.name(), front.name.schema)),
        }
    }
    Ok(())
}

/// The object's columns under their names in the rear, None where one is missing there.
fn renamed(g: &Gathering<'_>, object: &Object) -> Result<Option<Vec<Ident>>, Failure> {
    if object.inner.iter().chain(&object.columns).any(|column| g.columns.to(column.as_str()).is_none()) {
        return Ok(None);
    }
    if let Some(column) = object.inner.iter().find(|column| !g.columns.keeps_name(column.as_str())) {
        return Err(Failure::new(
            code::DEPENDENTS,
            format!(
                "cannot change table {}: an expression of statistics object {} uses column {}, which is renamed",
                g.swap.front.name.plain(),
                object.name().plain(),
                plain(column.as_str())
            ),
        )
        .hint("Drop the statistics object before and create it again afterwards, or keep the column's name."));
    }
    Ok(Some(object.columns.iter().filter_map(|column| g.columns.to(column.as_str()).cloned()).collect()))
}

impl Object {
    fn like(&self, g: &Gathering<'_>, front: &Object, columns: &[Ident]) -> bool {
        let sorted = |columns: &[Ident]| {
            let mut columns = columns.to_vec();
            columns.sort();
            columns
        };
        // With a column of another type PostgreSQL writes the same expression with other casts.
        let retyped = front.inner.iter().any(|column| g.columns.retyped(column.as_str()));
        let same_expressions = if retyped {
            self.expressions.len() == front.expressions.len()
        } else {
            self.expressions == front.expressions
        };
        self.kinds == front.kinds && sorted(&self.columns) == sorted(columns) && same_expressions
    }
}

fn create(g: &mut Gathering<'_>, object: &Object, columns: &[Ident]) -> Result<(), Failure> {
    let rear = &g.swap.rear.name;
    let name = Name { schema: rear.schema.clone(), name: object.name.clone() };
    let mut parts: Vec<String> = columns.iter().map(Ident::to_string).collect();
    parts.extend(object.expressions.iter().map(|expression| format!("({expression})")));
    // A single expression takes no kinds.
    let kinds = if object.kinds.is_empty() { String::new() } else { format!(" ({})", object.kinds.join(", ")) };
    let sql = format!("create statistics {name}{kinds} on {} from {rear}", parts.join(", "));
    if object.expressions.is_empty() {
        g.before_lock(sql);
    } else {
        // Only the table's owner may create them, and ANALYZE evaluates them as that role too.
        let owner = g.swap.front.owner;
        let schemas = [&rear.schema];
        let loans = rights::lacking(owner, ("pg_statistic_ext", object.oid), &schemas, &schemas)?;
        g.out.before_lock.extend(rights::lent(sql, owner, &loans));
    }
    g.before_lock(format!("alter statistics {name} owner to {}", object.owner));
    if let Some(target) = object.target {
        g.before_lock(format!("alter statistics {name} set statistics {target}"));
    }
    if let Some(comment) = &object.comment {
        g.before_lock(format!("comment on statistics {name} is {}", literal(comment)));
    }
    Ok(())
}

fn align(g: &mut Gathering<'_>, object: &Object, twin: &Object) {
    let name = twin.name();
    if object.owner != twin.owner {
        g.before_lock(format!("alter statistics {name} owner to {}", object.owner));
    }
    if object.target != twin.target {
        g.before_lock(format!("alter statistics {name} set statistics {}", object.target.unwrap_or(-1)));
    }
    if object.comment != twin.comment {
        let text = object.comment.as_deref().map_or_else(|| "null".to_owned(), literal);
        g.before_lock(format!("comment on statistics {name} is {text}"));
    }
}
