//! Who depends on a table: found before anything is changed, carried over or refused by name.
//!
//! Three questions are asked of the catalog: what does pg_depend know (judged by `migrator_core::dependant`),
//! what names the table without pg_depend, and which dependants rest on columns that the change drops,
//! renames or retypes. This module answers and refuses; it changes nothing.

use crate::catalog::relation::Relation;
use crate::catalog::{spi, version};
use migrator_core::columns::Columns;
use migrator_core::dependant::{Dependency, On, Reason, Verdict, judge, judge_shared, judge_upward};
use migrator_core::failure::{Failure, code};
use migrator_core::ident::plain;
use migrator_core::plan::Plan;
use pgrx::pg_sys;
use serde::Deserialize;

/// Walks every catalog that can name the table and refuses what a swap would break.
///
/// `live` is the table of the old shape, `plan` what the change does to its columns. Writes nothing.
pub fn preflight(live: u32, plan: &Plan) -> Result<(), Failure> {
    inspect(&Relation::get(live)?, &Columns::forward(plan))
}

/// The same for the front table of a swap or rollback, whichever shape it has.
pub fn inspect(front: &Relation, columns: &Columns) -> Result<(), Failure> {
    for dependant in walk(front.oid)? {
        match judge(&dependant.dependency) {
            Verdict::Refused(reason) => {
                return Err(refused(front, &dependant.described, reason, &dependant.dependency));
            }
            Verdict::Carried => on_column(front, columns, &dependant)?,
            Verdict::Harmless => {}
        }
    }
    upward(front)?;
    shared(front)?;
    foreign_keys(front, columns)?;
    unlisted(front)
}

/// Objects outside the table that the swap carries over, as people know them, each once.
pub fn carried(front: u32) -> Result<Vec<String>, Failure> {
    let mut found: Vec<String> = walk(front)?
        .into_iter()
        // Triggers of other tables are halves of their foreign keys.
        .filter(|dependant| dependant.dependency.catalog != "pg_trigger")
        .filter(|dependant| !dependant.dependency.own && judge(&dependant.dependency) == Verdict::Carried)
        .map(|dependant| dependant.described)
        .collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// One row of pg_depend about a part of the table.
#[derive(Debug, Deserialize)]
struct Dependant {
    #[serde(flatten)]
    dependency: Dependency,
    described: String,
    /// The column it rests on, if pg_depend names one.
    column: Option<String>,
}

/// The table's parts: (classid, objid, place). Everything that goes where the table goes.
const PARTS: &str = "\
    parts (classid, objid, place) as ( \
        select 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid, $1, 'table' \
        union all select 'pg_catalog.pg_type'::pg_catalog.regclass, c.reltype, 'row_type' from pg_catalog.pg_class c where c.oid = $1 \
        union all select 'pg_catalog.pg_type'::pg_catalog.regclass, t.typarray, 'row_type' \
            from pg_catalog.pg_class c join pg_catalog.pg_type t on t.oid = c.reltype where c.oid = $1 and t.typarray <> 0 \
        union all select 'pg_catalog.pg_class'::pg_catalog.regclass, i.indexrelid, case when i.indrelid = $1 then 'index' else 'part' end \
            from pg_catalog.pg_index i join pg_catalog.pg_class c on i.indrelid in (c.oid, c.reltoastrelid) where c.oid = $1 \
        union all select 'pg_catalog.pg_class'::pg_catalog.regclass, c.reltoastrelid, 'part' from pg_catalog.pg_class c where c.oid = $1 and c.reltoastrelid <> 0 \
        union all select 'pg_catalog.pg_constraint'::pg_catalog.regclass, k.oid, 'constraint' from pg_catalog.pg_constraint k where k.conrelid = $1 \
        union all select 'pg_catalog.pg_attrdef'::pg_catalog.regclass, a.oid, 'part' from pg_catalog.pg_attrdef a where a.adrelid = $1 \
        union all select 'pg_catalog.pg_trigger'::pg_catalog.regclass, t.oid, 'part' from pg_catalog.pg_trigger t where t.tgrelid = $1 \
        union all select 'pg_catalog.pg_policy'::pg_catalog.regclass, p.oid, 'part' from pg_catalog.pg_policy p where p.polrelid = $1 \
        union all select 'pg_catalog.pg_rewrite'::pg_catalog.regclass, r.oid, 'part' from pg_catalog.pg_rewrite r where r.ev_class = $1 \
        union all select 'pg_catalog.pg_statistic_ext'::pg_catalog.regclass, s.oid, 'part' from pg_catalog.pg_statistic_ext s where s.stxrelid = $1 \
        union all select 'pg_catalog.pg_class'::pg_catalog.regclass, d.objid, case d.deptype when 'i' then 'identity' else 'serial' end \
            from pg_catalog.pg_depend d join pg_catalog.pg_class s on s.oid = d.objid and s.relkind = 'S' \
            where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass \
              and d.refobjid = $1 and d.refobjsubid > 0 and d.deptype in ('a', 'i'))";

fn walk(front: u32) -> Result<Vec<Dependant>, Failure> {
    spi::fetch(
        &format!(
            "select distinct on (q.catalog, q.object, q.deptype, q.\"on\", q.\"column\") q.* from ( \
             with {PARTS} \
             select (select c.relname from pg_catalog.pg_class c where c.oid = d.classid) as catalog, d.objid as object, \
                 coalesce(case d.classid \
                     when 'pg_catalog.pg_class'::pg_catalog.regclass then c.relkind::pg_catalog.text \
                     when 'pg_catalog.pg_constraint'::pg_catalog.regclass then (select k.contype::pg_catalog.text from pg_catalog.pg_constraint k where k.oid = d.objid) \
                     when 'pg_catalog.pg_rewrite'::pg_catalog.regclass then \
                         case when v.relkind = 'm' then 'materialized view' when v.relkind <> 'v' then 'rule' \
                              when v.relpersistence = 't' then 'temporary view' when r.rulename = '_RETURN' then 'view' else 'view rule' end \
                 end, '') as kind, \
                 d.deptype, p.place as \"on\", \
                 exists (select from parts q where q.classid = d.classid and q.objid = d.objid) as own, \
                 case when r.rulename = '_RETURN' then pg_catalog.pg_describe_object('pg_catalog.pg_class'::pg_catalog.regclass, v.oid, 0) \
                      else pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) end as described, \
                 a.attname as \"column\" \
             from parts p join pg_catalog.pg_depend d on d.refclassid = p.classid and d.refobjid = p.objid \
             left join pg_catalog.pg_class c on d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and c.oid = d.objid \
             left join pg_catalog.pg_rewrite r on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and r.oid = d.objid \
             left join pg_catalog.pg_class v on v.oid = r.ev_class \
             left join pg_catalog.pg_attribute a on p.place = 'table' and a.attrelid = $1 and a.attnum = d.refobjsubid and d.refobjsubid > 0) q"
        ),
        &[pg_sys::Oid::from(front).into()],
    )
}

fn refused(front: &Relation, described: &str, reason: Reason, dependency: &Dependency) -> Failure {
    let code = match reason {
        Reason::Publication | Reason::Extension | Reason::Inheritance | Reason::Unknown => code::NOT_SUPPORTED,
        _ => code::DEPENDENTS,
    };
    let failure = Failure::new(code, format!("cannot change table {}: {described} {reason}", front.name.plain()))
        .hint(reason.hint());
    if reason == Reason::Unknown {
        let Dependency { catalog, kind, deptype, on, own } = dependency;
        return failure.detail(format!("It is known as ({catalog}, {kind:?}, {deptype:?}) on {on:?}, own: {own}."));
    }
    failure
}

/// What is carried as text or by column name has to find its columns.
fn on_column(front: &Relation, columns: &Columns, dependant: &Dependant) -> Result<(), Failure> {
    let Dependant { dependency, described, column: Some(column) } = dependant else { return Ok(()) };
    if columns.keeps_name(column) || dependency.on != On::Table {
        return Ok(());
    }
    let by_text = matches!(dependency.catalog.as_str(), "pg_rewrite" | "pg_policy")
        || (dependency.catalog == "pg_trigger" && dependency.deptype == 'n');
    let key = dependency.catalog == "pg_constraint" && dependency.kind == "f";
    let renamed = columns.to(column);
    if !(by_text || (key && renamed.is_none())) {
        return Ok(());
    }
    let fate = renamed.map_or_else(
        || "which the table taking its place does not have".to_owned(),
        |to| format!("whose name is {} in the table taking its place", plain(to.as_str())),
    );
    Err(Failure::new(
        code::DEPENDENTS,
        format!("cannot change table {}: {described} uses column {}, {fate}", front.name.plain(), plain(column)),
    )
    .hint(format!("Drop the {} before and create it as it shall be afterwards, or keep the column.", noun(dependency))))
}

fn noun(dependency: &Dependency) -> &'static str {
    match (dependency.catalog.as_str(), dependency.kind.as_str()) {
        ("pg_rewrite", "view") => "view",
        ("pg_rewrite", _) => "rule",
        ("pg_policy", _) => "policy",
        ("pg_trigger", _) => "trigger",
        _ => "foreign key",
    }
}

#[derive(Deserialize)]
struct Reference {
    catalog: String,
    deptype: char,
    /// The catalog of what is depended upon.
    on_catalog: String,
    described: String,
}

fn shared(front: &Relation) -> Result<(), Failure> {
    let references: Vec<Reference> = spi::fetch(
        &format!(
            "select * from (with {PARTS} \
             select (select c.relname from pg_catalog.pg_class c where c.oid = d.classid) as catalog, d.deptype, 'pg_authid' as on_catalog, \
                    pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) as described \
             from parts p join pg_catalog.pg_shdepend d on d.classid = p.classid and d.objid = p.objid \
             where d.dbid = (select b.oid from pg_catalog.pg_database b where b.datname = pg_catalog.current_database())) q"
        ),
        &[pg_sys::Oid::from(front.oid).into()],
    )?;
    for reference in references {
        if let Verdict::Refused(reason) = judge_shared(&reference.catalog, reference.deptype) {
            return Err(refused_reference(front, &reference, reason));
        }
    }
    Ok(())
}

fn upward(front: &Relation) -> Result<(), Failure> {
    let references: Vec<Reference> = spi::fetch(
        &format!(
            "select distinct q.* from (with {PARTS} \
             select (select c.relname from pg_catalog.pg_class c where c.oid = d.classid) as catalog, d.deptype, \
                    (select c.relname from pg_catalog.pg_class c where c.oid = d.refclassid) as on_catalog, \
                    pg_catalog.pg_describe_object(d.refclassid, d.refobjid, 0) as described \
             from parts p join pg_catalog.pg_depend d on d.classid = p.classid and d.objid = p.objid) q"
        ),
        &[pg_sys::Oid::from(front.oid).into()],
    )?;
    for reference in references {
        if let Verdict::Refused(reason) = judge_upward(&reference.catalog, reference.deptype, &reference.on_catalog) {
            return Err(refused_reference(front, &reference, reason));
        }
    }
    Ok(())
}

fn refused_reference(front: &Relation, reference: &Reference, reason: Reason) -> Failure {
    Failure::new(
        code::NOT_SUPPORTED,
        format!("cannot change table {}: {} {reason}", front.name.plain(), reference.described),
    )
    .detail(format!("It is known as ({}, {:?}) on {}.", reference.catalog, reference.deptype, reference.on_catalog))
    .hint(reason.hint())
}

#[derive(Deserialize)]
struct Key {
    described: String,
    /// Why it cannot be dropped and made again as it is.
    odd: Option<String>,
    /// The other table's column, its type, this table's column.
    pairs: Vec<(String, i64, String)>,
}

/// Foreign keys are dropped and created again: those for which that would not give the same are refused.
fn foreign_keys(front: &Relation, columns: &Columns) -> Result<(), Failure> {
    let keys: Vec<Key> = spi::fetch(
        "select pg_catalog.pg_describe_object('pg_catalog.pg_constraint'::pg_catalog.regclass, k.oid, 0) as described, \
             case when k.conrelid <> $1 and r.relkind = 'p' and pg_catalog.current_setting('server_version_num')::pg_catalog.int4 < 180000 \
                  then 'belongs to a partitioned table, where a foreign key cannot be added without a scan' \
                  when exists (select from pg_catalog.pg_trigger t where t.tgconstraint = k.oid and t.tgenabled <> 'O') \
                  then 'has triggers that somebody disabled, and would get them enabled' end as odd, \
             coalesce((select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(o.attname, o.atttypid::pg_catalog.int8, m.attname)) \
              from rows from (pg_catalog.unnest(case when k.conrelid = $1 then k.conkey else k.confkey end), \
                              pg_catalog.unnest(case when k.conrelid = $1 then k.confkey else k.conkey end)) as u (mine, others) \
              join pg_catalog.pg_attribute m on m.attrelid = $1 and m.attnum = u.mine \
              join pg_catalog.pg_attribute o on o.attrelid = (case when k.conrelid = $1 then k.confrelid else k.conrelid end) and o.attnum = u.others \
              where k.conrelid <> k.confrelid), '[]') as pairs \
         from pg_catalog.pg_constraint k join pg_catalog.pg_class r on r.oid = k.conrelid \
         where k.contype = 'f' and $1 in (k.conrelid, k.confrelid) \
           and not exists (select from pg_catalog.pg_constraint p where p.oid = k.conparentid and $1 in (p.conrelid, p.confrelid))",
        &[pg_sys::Oid::from(front.oid).into()],
    )?;
    for key in keys {
        if let Some(odd) = key.odd {
            return Err(Failure::new(
                code::NOT_SUPPORTED,
                format!("cannot change table {}: {} {odd}", front.name.plain(), key.described),
            )
            .hint("Drop the foreign key, or enable its triggers, then begin again."));
        }
        for (column, type_oid, mine) in key.pairs {
            let Some(new_type) = columns.new_type(&mine) else { continue };
            if !comparable(new_type, type_oid)? {
                return Err(Failure::new(
                    code::DATATYPE_MISMATCH,
                    format!(
                        "cannot change table {}: {} compares column {} with column {}, whose new type {new_type} has no equality with the other's",
                        front.name.plain(),
                        key.described,
                        plain(&column),
                        plain(&mine)
                    ),
                )
                .hint("Drop the foreign key first, and add it again when both columns have types that compare."));
            }
        }
    }
    Ok(())
}

/// Whether a foreign key between the two types finds an operator: equality of a btree family, or an implicit cast.
/// (The rule of ATAddForeignKeyConstraint in PostgreSQL's tablecmds.c, without its corner for binary coercion through domains.)
fn comparable(type_name: &str, other: i64) -> Result<bool, Failure> {
    #[derive(Deserialize)]
    struct Found {
        found: bool,
    }
    let found: Option<Found> = spi::fetch_optional(
        "select t.mine = t.other \
             or exists (select from pg_catalog.pg_amop o join pg_catalog.pg_am m on m.oid = o.amopmethod \
                        where m.amname = 'btree' and o.amopstrategy = 3 \
                          and (o.amoplefttype, o.amoprighttype) in ((t.mine, t.other), (t.other, t.mine))) \
             or exists (select from pg_catalog.pg_cast c where c.castcontext = 'i' and (c.castsource, c.casttarget) in ((t.mine, t.other), (t.other, t.mine))) as found \
         from (select coalesce(nullif(m.typbasetype, 0), m.oid) as mine, coalesce(nullif(o.typbasetype, 0), o.oid) as other \
               from pg_catalog.pg_type m, pg_catalog.pg_type o \
               where m.oid = pg_catalog.to_regtype(pg_catalog.regexp_replace($1, E'\\\\(.*\\\\)', '')) and o.oid = $2::pg_catalog.int8::pg_catalog.oid) t",
        &[type_name.into(), other.into()],
    )?;
    Ok(found.is_none_or(|found| found.found))
}

#[derive(Deserialize)]
struct Unlisted {
    described: String,
    why: String,
    hint: String,
}

/// What names a table without pg_depend, or hangs on it in a way that only its own catalog tells.
fn unlisted(front: &Relation) -> Result<(), Failure> {
    let found: Option<Unlisted> =
        spi::fetch_optional(&version::complete(UNLISTED), &[pg_sys::Oid::from(front.oid).into()])?;
    found.map_or(Ok(()), |found| {
        Err(Failure::new(
            code::NOT_SUPPORTED,
            format!("cannot change table {}: {} {}", front.name.plain(), found.described, found.why),
        )
        .hint(found.hint))
    })
}

const UNLISTED: &str = "\
    select q.* from pg_catalog.pg_class c, lateral ( \
        select pg_catalog.format('publication %I', p.pubname) as described, 'publishes all tables, the shadow and the log among them' as why, \
               'List the tables in the publication (for table …) instead of publishing all; the change would add tables that subscribers do not have.' as hint \
        from pg_catalog.pg_publication p where p.puballtables \
        union all \
        select pg_catalog.format('publication %I', p.pubname), 'publishes all tables of its schema', \
               'List the tables in the publication (for table …) instead of its schema.' \
        from @published_schemas@ n join pg_catalog.pg_publication p on p.oid = n.pnpubid where n.pnnspid = c.relnamespace \
        union all \
        select pg_catalog.format('publication %I', p.pubname), 'publishes the table by its identity', \
               'Take the table out of the publication (alter publication … drop table …), and add it again after finish.' \
        from pg_catalog.pg_publication_rel r join pg_catalog.pg_publication p on p.oid = r.prpubid where r.prrelid = c.oid \
        union all \
        select pg_catalog.format('subscription %I', s.subname), 'writes to the table by its identity, and would write to the backup after the swap', \
               'Change the table on the publisher first, or take it out of the subscription.' \
        from pg_catalog.pg_subscription_rel r join pg_catalog.pg_subscription s on s.oid = r.srsubid where r.srrelid = c.oid \
        union all \
        select pg_catalog.format('security label of provider %I', l.provider), 'is set on the table', \
               'Remove the label (security label … is null), and set it again after finish.' \
        from pg_catalog.pg_seclabel l where l.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass and l.objoid = c.oid \
        union all \
        select pg_catalog.format('table %s', case i.inhrelid when c.oid then i.inhparent else i.inhrelid end::pg_catalog.regclass), \
               'belongs to the same inheritance or partition tree', 'Inheritance and partition trees cannot be changed this way; detach the table first.' \
        from pg_catalog.pg_inherits i where c.oid in (i.inhrelid, i.inhparent) \
        union all \
        select pg_catalog.format('type %s', c.reloftype::pg_catalog.regtype), 'is the type that the table was made of', \
               'Let it stand on its own first: alter table … not of.' \
        where c.reloftype <> 0 \
        union all \
        select pg_catalog.format('type %s', t.oid::pg_catalog.regtype), 'is its row type and has privileges of its own', \
               'Reset them: grant usage on type … to public, and revoke the others.' \
        from pg_catalog.pg_type t where t.oid = c.reltype and t.typacl is not null and t.typacl <> pg_catalog.acldefault('T', t.typowner) \
        union all \
        select 'an extension', 'recorded initial privileges of the table', 'Take the table out of the extension: alter extension … drop table …' \
        from pg_catalog.pg_init_privs i where i.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass and i.objoid = c.oid \
        union all \
        select 'row-level security', 'is forced on its owner, so that rows could be hidden from the copy', \
               'Call alter table … no force row level security, or let a role with BYPASSRLS own the table.' \
        where c.relforcerowsecurity and not exists (select from pg_catalog.pg_roles o where o.oid = c.relowner and (o.rolsuper or o.rolbypassrls)) \
        union all \
        select pg_catalog.format('statistics object %I.%I', n.nspname, s.stxname), 'has the same name as another of its statistics objects', \
               'Rename one of the two.' \
        from pg_catalog.pg_statistic_ext s join pg_catalog.pg_namespace n on n.oid = s.stxnamespace \
        where s.stxrelid = c.oid and exists (select from pg_catalog.pg_statistic_ext o where o.stxrelid = c.oid and o.stxname = s.stxname and o.oid < s.oid) \
    ) q where c.oid = $1 order by 1, 2 limit 1";
