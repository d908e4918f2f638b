//! Views over the table.
//!
//! A plain view stores the table's oid. Its text, read while the front has its name, is run again as CREATE OR
//! REPLACE once the rear has that name: the view keeps its oid, and with it owner, privileges, comments,
//! triggers, rules and all that depends on it. Views over such a view need nothing.
//!
//! Only where a view's columns would get other types does it have to be dropped and created, with the views
//! over it; whatever else hangs on one of those is refused by name. What a view's columns would be is worked out by
//! PostgreSQL's own parser, from the view's text with the table replaced by the rear.

use super::{Gathering, grants, rights};
use crate::catalog::lock::{Mode, Wanted};
use crate::catalog::{role, spi, view_text};
use migrator_core::dependant::{Verdict, judge_on_view};
use migrator_core::failure::{Failure, code};
use migrator_core::ident::{Ident, Name, literal, plain};
use pgrx::pg_sys;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Deserialize)]
struct View {
    oid: u32,
    /// Oid of the rule that is its query.
    rule: u32,
    schema: Ident,
    name: Ident,
    owner: u32,
    definition: String,
    options: Vec<(String, String)>,
    columns: Vec<view_text::Output>,
    /// Whether it reads the table itself.
    direct: bool,
    /// Relations that it reads.
    reads: Vec<u32>,
    /// Whether its text gives names to the table's columns, or to a join's, by their place.
    by_place: bool,
}

impl View {
    fn name(&self) -> Name {
        Name { schema: self.schema.clone(), name: self.name.clone() }
    }
    fn options(&self) -> String {
        if self.options.is_empty() {
            return String::new();
        }
        let options: Vec<String> = self
            .options
            .iter()
            .map(|(name, value)| format!("{} = {}", Ident::new(name.as_str()), literal(value)))
            .collect();
        format!(" with ({})", options.join(", "))
    }
}

/// An alias with a list of column names, as pg_node_tree prints it, on a relation (rtekind 0) or a join (2).
const BY_PLACE: &str = r#"\{(RTE|RANGETBLENTRY) :alias \{ALIAS :aliasname (\\.|[^\\ ])* :colnames \(("(\\.|[^"\\])*" ?)+\)\} :eref \{ALIAS :aliasname (\\.|[^\\ ])* :colnames \(("(\\.|[^"\\])*" ?)*\)\} :rtekind [02]"#;

const VIEWS: &str = "\
    select v.* from ( \
    with recursive root (classid, objid) as ( \
        select 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid, $1 \
        union all select 'pg_catalog.pg_type'::pg_catalog.regclass, c.reltype from pg_catalog.pg_class c where c.oid = $1 \
        union all select 'pg_catalog.pg_type'::pg_catalog.regclass, t.typarray from pg_catalog.pg_class c join pg_catalog.pg_type t on t.oid = c.reltype where c.oid = $1 \
    ), direct (oid) as ( \
        select distinct r.ev_class from root o join pg_catalog.pg_depend d on d.refclassid = o.classid and d.refobjid = o.objid \
        join pg_catalog.pg_rewrite r on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and d.objid = r.oid \
        join pg_catalog.pg_class c on c.oid = r.ev_class where r.rulename = '_RETURN' and c.relkind = 'v' \
    ), views (oid) as ( \
        select d.oid from direct d \
        union \
        select r.ev_class from views v join pg_catalog.pg_depend d on d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refobjid = v.oid \
        join pg_catalog.pg_rewrite r on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and d.objid = r.oid \
        join pg_catalog.pg_class c on c.oid = r.ev_class where r.rulename = '_RETURN' and c.relkind = 'v' and r.ev_class <> v.oid \
    ) \
    select c.oid::pg_catalog.int8 as oid, w.oid::pg_catalog.int8 as rule, n.nspname as schema, c.relname as name, c.relowner::pg_catalog.int8 as owner, \
        pg_catalog.rtrim(pg_catalog.pg_get_viewdef(c.oid, false), ';') as definition, \
        coalesce((select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(p.option_name, p.option_value)) from pg_catalog.pg_options_to_table(c.reloptions) p), '[]') as options, \
        (select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('name', a.attname, 'type_oid', a.atttypid::pg_catalog.int8, 'modifier', a.atttypmod, 'collation', a.attcollation::pg_catalog.int8) order by a.attnum) \
         from pg_catalog.pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns, \
        exists (select from direct d where d.oid = c.oid) as direct, \
        coalesce((select pg_catalog.jsonb_agg(distinct d.refobjid::pg_catalog.int8) from pg_catalog.pg_depend d \
                  join pg_catalog.pg_class u on u.oid = d.refobjid and u.relkind not in ('i', 'I', 'S', 'c') \
                  where d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and d.objid = w.oid and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refobjid <> c.oid), '[]') as reads, \
        w.ev_action::pg_catalog.text operator(pg_catalog.~) $2 as by_place \
    from views v join pg_catalog.pg_class c on c.oid = v.oid join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
    join pg_catalog.pg_rewrite w on w.ev_class = c.oid and w.rulename = '_RETURN' \
    ) v order by v.oid";

pub(super) fn gather(g: &mut Gathering<'_>) -> Result<(), Failure> {
    let (front, rear) = (g.swap.front, g.swap.rear);
    let views: Vec<View> = spi::fetch(VIEWS, &[pg_sys::Oid::from(front.oid).into(), BY_PLACE.into()])?;
    let depth = depths(&views);
    let mut inside_out: Vec<&View> = views.iter().collect();
    inside_out.sort_by_key(|view| (depth[&view.oid], view.oid));

    // Which views cannot be replaced: those whose columns change, and all over them.
    let mut anew = BTreeSet::new();
    for view in &inside_out {
        if view.direct && view.by_place && !g.columns.same_places {
            return Err(Failure::new(
                code::DEPENDENTS,
                format!(
                    "cannot change table {}: view {} names columns by their place, and the change moves or adds columns",
                    front.name.plain(),
                    view.name().plain()
                ),
            )
            .hint("Write the view without a list of column names behind the table's or the join's alias, then begin again."));
        }
        let over_another = view.reads.iter().any(|read| anew.contains(read));
        if over_another || (view.direct && outputs(view, &front.name, &rear.name)? != view.columns) {
            anew.insert(view.oid);
        }
    }
    for view in &inside_out {
        if anew.contains(&view.oid) {
            may_be_dropped(view)?;
        }
    }

    for view in inside_out.iter().rev().filter(|view| anew.contains(&view.oid)) {
        g.before_move(format!("drop view {}", view.name()));
    }
    for view in &inside_out {
        if anew.contains(&view.oid) {
            create(g, view, CREATE)?;
            restore(g, view)?;
        } else if view.direct {
            create(g, view, REPLACE)?;
        } else {
            continue;
        }
        for read in &view.reads {
            g.lock_table(*read, Mode::AccessShare);
        }
    }
    let touched = |view: &&&View| view.direct || anew.contains(&view.oid);
    g.views = inside_out
        .iter()
        .rev()
        .filter(touched)
        .map(|view| Wanted { relation: view.oid, mode: Mode::AccessExclusive })
        .collect();
    rules(g)
}

/// How many views lie between each view and the tables: a view is always higher than what it reads.
fn depths(views: &[View]) -> BTreeMap<u32, usize> {
    let mut depth: BTreeMap<u32, usize> = views.iter().map(|view| (view.oid, 0)).collect();
    // Views cannot be circular, so as many rounds as there are views always suffice.
    for _ in 0..views.len() {
        let mut settled = true;
        for view in views {
            let above = view.reads.iter().filter_map(|read| depth.get(read)).max().map_or(0, |deepest| deepest + 1);
            if depth.insert(view.oid, above) != Some(above) {
                settled = false;
            }
        }
        if settled {
            break;
        }
    }
    depth
}

/// Refuses, by name, what could not follow a view that is dropped and created.
fn may_be_dropped(view: &View) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct OnView {
        catalog: String,
        kind: String,
        deptype: char,
        own: bool,
        described: String,
    }
    let found: Vec<OnView> = spi::fetch(
        "select distinct (select c.relname from pg_catalog.pg_class c where c.oid = d.classid) as catalog, \
             coalesce(case when w.relkind = 'm' then 'materialized view' when w.relkind <> 'v' then 'rule' when r.rulename = '_RETURN' then 'view' when w.oid is not null then 'view rule' end, '') as kind, \
             d.deptype, \
             coalesce(r.ev_class = $1 or f.adrelid = $1 or (t.typrelid = $1) or (t.oid = y.typarray), false) as own, \
             case when r.rulename = '_RETURN' then pg_catalog.pg_describe_object('pg_catalog.pg_class'::pg_catalog.regclass, w.oid, 0) \
                  else pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) end as described \
         from pg_catalog.pg_class v join pg_catalog.pg_type y on y.oid = v.reltype \
         join pg_catalog.pg_depend d on (d.refclassid, d.refobjid) in (('pg_catalog.pg_class'::pg_catalog.regclass, v.oid), ('pg_catalog.pg_type'::pg_catalog.regclass, y.oid), \
                                                                       ('pg_catalog.pg_type'::pg_catalog.regclass, y.typarray)) \
         left join pg_catalog.pg_rewrite r on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and r.oid = d.objid left join pg_catalog.pg_class w on w.oid = r.ev_class \
         left join pg_catalog.pg_attrdef f on d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass and f.oid = d.objid \
         left join pg_catalog.pg_type t on d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass and t.oid = d.objid \
         where v.oid = $1 \
         union all \
         select 'pg_extension', '', d.deptype, false, pg_catalog.pg_describe_object(d.refclassid, d.refobjid, 0) from pg_catalog.pg_depend d \
         where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objid = $1 and d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass \
         union all \
         select 'pg_seclabel', '', 'n', false, pg_catalog.format('security label of provider %I', l.provider) from pg_catalog.pg_seclabel l \
         where l.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass and l.objoid = $1 \
         order by described",
        &[pg_sys::Oid::from(view.oid).into()],
    )?;
    for on_view in found {
        if let Verdict::Refused(reason) = judge_on_view(&on_view.catalog, &on_view.kind, on_view.deptype, on_view.own) {
            let name = view.name().plain();
            return Err(Failure::new(
                code::DEPENDENTS,
                format!("view {name} has to be dropped and created again, for its columns change their types, but {} hangs on it", on_view.described),
            )
            .detail(format!("It {reason}, here the view."))
            .hint(format!("Drop {} before, and create it again after the swap.", on_view.described)));
        }
    }
    Ok(())
}

/// The columns that the view would have over the rear. Its owner, who parses its text, need not know the rear's schema.
fn outputs(view: &View, front: &Name, rear: &Name) -> Result<Vec<view_text::Output>, Failure> {
    let loans = rights::lacking(view.owner, ("pg_rewrite", view.rule), &[&rear.schema], &[])?;
    let grants: Vec<String> = loans.iter().map(rights::Loan::grant).collect();
    view_text::outputs(&view.definition, front, rear, view.owner.into(), &grants)
}

/// Runs the view's text as its owner, who has to be allowed to create in its schema even where the view is replaced.
///
/// An owner who may not (any more) is not allowed to for our sake: the text may run the owner's own code, which
/// could use the moment. The view is made in a schema that nobody else uses, and moved to its place. What that code
/// leaves there makes DROP SCHEMA, and with it the swap, fail.
fn create(g: &mut Gathering<'_>, view: &View, verb: &str) -> Result<(), Failure> {
    let text = |name: &Name| format!("{verb} view {name}{} as {}", view.options(), view.definition);
    let name = view.name();
    let loans = rights::lacking(view.owner, ("pg_rewrite", view.rule), &[&view.schema], &[])?;
    if rights::may_create(view.owner, &view.schema)? {
        g.out.after_move.extend(rights::lent(text(&name), view.owner, &loans));
        return Ok(());
    }
    let aside = Ident::new(format!("{}_views", g.swap.front_backup_schema));
    let there = Name { schema: aside.clone(), name: view.name.clone() };
    let owner = role::name(view.owner.into())?;
    g.after_move(format!("create schema {aside}"));
    g.after_move(format!("grant usage, create on schema {aside} to {owner}"));
    if verb != CREATE {
        g.after_move(format!("alter view {name} set schema {aside}"));
    }
    g.out.after_move.extend(rights::lent(text(&there), view.owner, &loans));
    g.after_move(format!("alter view {there} set schema {}", view.schema));
    g.after_move(format!("drop schema {aside}"));
    Ok(())
}

const CREATE: &str = "create";
const REPLACE: &str = "create or replace";

/// What DROP VIEW took with it.
fn restore(g: &mut Gathering<'_>, view: &View) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Extra {
        oid: u32,
        column: Option<Ident>,
        kind: String,
        text: String,
    }
    let name = view.name();
    let extras: Vec<Extra> = spi::fetch(
        "select f.oid::pg_catalog.int8 as oid, a.attname as \"column\", 'default' as kind, pg_catalog.pg_get_expr(f.adbin, f.adrelid) as text \
         from pg_catalog.pg_attrdef f join pg_catalog.pg_attribute a on a.attrelid = f.adrelid and a.attnum = f.adnum where f.adrelid = $1 \
         union all \
         select 0, a.attname, 'comment', d.description from pg_catalog.pg_description d \
         left join pg_catalog.pg_attribute a on a.attrelid = d.objoid and a.attnum = d.objsubid and d.objsubid > 0 \
         where d.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objoid = $1",
        &[pg_sys::Oid::from(view.oid).into()],
    )?;
    for Extra { oid, column, kind, text } in extras {
        g.after_move(match (kind.as_str(), column) {
            ("default", Some(column)) => {
                let sql = format!("alter view {name} alter column {column} set default {text}");
                let loans = rights::lacking(view.owner, ("pg_attrdef", oid), &[&view.schema], &[])?;
                g.out.after_move.extend(rights::lent(sql, view.owner, &loans));
                continue;
            }
            (_, Some(column)) => format!("comment on column {name}.{column} is {}", literal(&text)),
            (_, None) => format!("comment on view {name} is {}", literal(&text)),
        });
    }
    g.out.after_move.extend(grants::restore(&name, view.oid, view.owner)?);
    Ok(())
}

/// Rules of views whose actions name the table: replaced, like the views themselves.
fn rules(g: &mut Gathering<'_>) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Rule {
        oid: u32,
        view: u32,
        owner: u32,
        name: String,
        definition: String,
    }
    let rules: Vec<Rule> = spi::fetch(
        "select distinct on (r.oid) r.oid::pg_catalog.int8 as oid, c.oid::pg_catalog.int8 as view, c.relowner::pg_catalog.int8 as owner, r.rulename as name, pg_catalog.pg_get_ruledef(r.oid, false) as definition \
         from pg_catalog.pg_class t join pg_catalog.pg_depend d on (d.refclassid, d.refobjid) in (('pg_catalog.pg_class'::pg_catalog.regclass, t.oid), ('pg_catalog.pg_type'::pg_catalog.regclass, t.reltype)) \
         join pg_catalog.pg_rewrite r on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and d.objid = r.oid \
         join pg_catalog.pg_class c on c.oid = r.ev_class where t.oid = $1 and c.relkind = 'v' and r.rulename <> '_RETURN' order by r.oid",
        &[pg_sys::Oid::from(g.swap.front.oid).into()],
    )?;
    for rule in rules {
        let Some(rest) = rule.definition.strip_prefix("CREATE RULE ") else {
            return Err(Failure::new(
                code::NOT_SUPPORTED,
                format!("the definition of rule {} cannot be read", plain(&rule.name)),
            )
            .hint("Turn the rule into an INSTEAD OF trigger."));
        };
        let sql = format!("create or replace rule {}", rest.trim_end_matches(';'));
        let loans = rights::lacking(rule.owner, ("pg_rewrite", rule.oid), &[], &[])?;
        g.out.after_move.extend(rights::lent(sql, rule.owner, &loans));
        if !g.views.iter().any(|wanted| wanted.relation == rule.view) {
            g.views.insert(0, Wanted { relation: rule.view, mode: Mode::AccessExclusive });
        }
    }
    Ok(())
}
