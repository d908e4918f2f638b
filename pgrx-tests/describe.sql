-- migrator_describe(table): everything that hangs on a table, without a single oid: what must be the same before a change,
-- after its swap (but for what it was asked to change) and after its rollback.
--
-- One row a fact: `kind`, `name` (quoted, unique within its kind) and `facts`. Rows of kind 'sequence value' change with
-- every insert; leave them out where rows are written meanwhile.
-- A string body: the function itself depends on nothing.
create or replace function pg_temp.migrator_describe(subject regclass) returns table (kind text, name text, facts jsonb)
language sql stable set search_path = pg_catalog, pg_temp as $describe$
with recursive
rel as (
    select c.*, n.nspname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = subject
),
-- views over the table, and over those views
view (oid) as (
    select r.ev_class from pg_depend d join pg_rewrite r on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
    where d.refclassid = 'pg_class'::regclass and d.refobjid = subject and r.ev_class <> subject
    union
    select r.ev_class from view v join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = v.oid
    join pg_rewrite r on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
    where r.ev_class <> v.oid
),
-- sequences that belong to a column, with that column and how
owned as (
    select s.oid, a.attname, d.deptype from pg_depend d
    join pg_class s on s.oid = d.objid and s.relkind = 'S'
    join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
    where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = subject and d.deptype in ('a', 'i')
),
relations (oid) as (
    select subject::oid union select oid from view union select oid from owned
    union select indexrelid from pg_index where indrelid = subject
)
-- the relations themselves: the table, its indexes and sequences, the views
select case c.relkind when 'v' then 'view' when 'm' then 'materialized view' when 'i' then 'index' when 'I' then 'index' when 'S' then 'sequence' else 'table' end,
       c.oid::regclass::text,
       jsonb_build_object(
           'kind', c.relkind, 'owner', c.relowner::regrole, 'persistence', c.relpersistence, 'options', to_jsonb(c.reloptions),
           'method', (select amname from pg_am where oid = c.relam), 'tablespace', (select spcname from pg_tablespace where oid = c.reltablespace),
           'row security', c.relrowsecurity, 'forced', c.relforcerowsecurity, 'replica identity', c.relreplident,
           'toast options', (select to_jsonb(t.reloptions) from pg_class t where t.oid = c.reltoastrelid),
           'definition', case when c.relkind in ('v', 'm') then pg_get_viewdef(c.oid) when c.relkind in ('i', 'I') then pg_get_indexdef(c.oid) end,
           'index', (select jsonb_build_object('unique', indisunique, 'primary', indisprimary, 'exclusion', indisexclusion, 'immediate', indimmediate,
                         'clustered', indisclustered, 'valid', indisvalid, 'ready', indisready, 'live', indislive, 'replica identity', indisreplident)
                     from pg_index where indexrelid = c.oid),
           'sequence', (select to_jsonb(s) - 'seqrelid' - 'seqtypid' || jsonb_build_object('type', s.seqtypid::regtype) from pg_sequence s where s.seqrelid = c.oid),
           'belongs to', (select jsonb_build_object('column', o.attname, 'how', o.deptype) from owned o where o.oid = c.oid),
           'comment', obj_description(c.oid, 'pg_class'),
           'type comment', obj_description(c.reltype, 'pg_type'),
           'type privileges', (select to_jsonb(typacl::text[]) from pg_type where oid = c.reltype),
           'labels', (select jsonb_agg(jsonb_build_array(provider, objsubid, label) order by provider, objsubid) from pg_seclabel l where l.classoid = 'pg_class'::regclass and l.objoid = c.oid))
from relations r join pg_class c on c.oid = r.oid
union all
select 'sequence value', o.oid::regclass::text, to_jsonb(pg_sequence_last_value(o.oid)) from owned o
union all
-- privileges, with their grantors; none stored means the defaults
select 'privilege', format('%s: %s to %s by %s', c.oid::regclass, x.privilege_type, case x.grantee when 0 then 'public' else x.grantee::regrole::text end, x.grantor::regrole),
       jsonb_build_object('grantable', x.is_grantable)
from relations r join pg_class c on c.oid = r.oid,
     aclexplode(coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's'::"char" else 'r' end, c.relowner))) x
where c.relkind not in ('i', 'I')
union all
select 'column privilege', format('%s.%I: %s to %s by %s', c.oid::regclass, a.attname, x.privilege_type, case x.grantee when 0 then 'public' else x.grantee::regrole::text end, x.grantor::regrole),
       jsonb_build_object('grantable', x.is_grantable)
from relations r join pg_class c on c.oid = r.oid join pg_attribute a on a.attrelid = c.oid and not a.attisdropped, aclexplode(a.attacl) x
union all
-- columns: of the table, of its views, of its indexes (statistics targets of expressions); the option pg_attver is the
-- server's own (15.20 stamps each column with the WAL position of its last change)
select 'column', format('%s.%I', c.oid::regclass, a.attname),
       jsonb_build_object(
           'place', row_number() over (partition by a.attrelid order by a.attnum), 'type', format_type(a.atttypid, a.atttypmod), 'not null', a.attnotnull,
           'default', (select pg_get_expr(adbin, adrelid) from pg_attrdef where adrelid = a.attrelid and adnum = a.attnum),
           'identity', a.attidentity, 'generated', a.attgenerated, 'collation', a.attcollation::regcollation,
           'storage', a.attstorage, 'compression', a.attcompression, 'target', nullif(a.attstattarget, -1), 'options', (select jsonb_object_agg(o.option_name, o.option_value) from pg_options_to_table(a.attoptions) o where o.option_name <> 'pg_attver'),
           'comment', col_description(a.attrelid, a.attnum))
from relations r join pg_class c on c.oid = r.oid join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where c.relkind <> 'S'
union all
-- constraints of the table, foreign keys of others that point to it, constraints behind constraint triggers
select case when k.conrelid = subject then 'constraint' else 'inbound foreign key' end, format('%s %I', k.conrelid::regclass, k.conname),
       jsonb_build_object('type', k.contype, 'definition', pg_get_constraintdef(k.oid), 'deferrable', k.condeferrable, 'deferred', k.condeferred,
           'valid', k.convalidated, 'local', k.conislocal, 'inherited', k.coninhcount, 'no inherit', k.connoinherit, 'comment', obj_description(k.oid, 'pg_constraint'),
           'triggers', (select jsonb_agg(format('%s %s %s', t.tgrelid::regclass, t.tgfoid::regproc, t.tgenabled) order by t.tgrelid::regclass::text, t.tgfoid::regproc::text)
                        from pg_trigger t where t.tgconstraint = k.oid and t.tgisinternal))
from pg_constraint k where subject in (k.conrelid, k.confrelid)
union all
-- triggers but migrator's own: of the table, of its views, of others that name it
select 'trigger', format('%s %I', t.tgrelid::regclass, t.tgname),
       jsonb_build_object('definition', pg_get_triggerdef(t.oid), 'enabled', t.tgenabled, 'comment', obj_description(t.oid, 'pg_trigger'),
           'extensions', (select jsonb_agg(e.extname order by e.extname) from pg_depend d join pg_extension e on e.oid = d.refobjid
                          where d.classid = 'pg_trigger'::regclass and d.objid = t.oid and d.deptype = 'x'))
from pg_trigger t
where not t.tgisinternal and (t.tgrelid in (select oid from relations) or t.tgconstrrelid = subject)
  and not (t.tgname like 'migrator\_%' and exists (select from pg_proc p join pg_namespace n on n.oid = p.pronamespace where p.oid = t.tgfoid and n.nspname = 'migrator'))
union all
-- rules: of the table, of its views, of others that name it
select 'rule', format('%s %I', r.ev_class::regclass, r.rulename),
       jsonb_build_object('definition', case when r.rulename <> '_RETURN' then pg_get_ruledef(r.oid) end, 'enabled', r.ev_enabled, 'comment', obj_description(r.oid, 'pg_rewrite'))
from pg_rewrite r
where r.ev_class in (select oid from relations)
union all
select 'policy', format('%s %I', p.polrelid::regclass, p.polname),
       jsonb_build_object('command', p.polcmd, 'permissive', p.polpermissive, 'using', pg_get_expr(p.polqual, p.polrelid), 'check', pg_get_expr(p.polwithcheck, p.polrelid),
           'roles', (select jsonb_agg(case u when 0 then 'public' else u::regrole::text end order by u::regrole::text) from unnest(p.polroles) u),
           'comment', obj_description(p.oid, 'pg_policy'))
from pg_policy p where p.polrelid = subject
union all
select 'statistics', format('%I.%I', n.nspname, s.stxname),
       jsonb_build_object('definition', pg_get_statisticsobjdef(s.oid), 'owner', s.stxowner::regrole, 'target', nullif((to_jsonb(s) ->> 'stxstattarget')::int, -1),
           'comment', obj_description(s.oid, 'pg_statistic_ext'))
from pg_statistic_ext s join pg_namespace n on n.oid = s.stxnamespace where s.stxrelid = subject
union all
select 'inheritance', format('%s of %s', i.inhrelid::regclass, i.inhparent::regclass), jsonb_build_object('number', i.inhseqno)
from pg_inherits i where subject in (i.inhrelid, i.inhparent)
union all
select 'publication', p.pubname, jsonb_build_object('columns', p.attnames, 'rows', p.rowfilter)
from pg_publication_tables p, rel where p.schemaname = rel.nspname and p.tablename = rel.relname
union all
select 'extension', e.extname, jsonb_build_object('object', pg_describe_object(d.classid, d.objid, d.objsubid), 'how', d.deptype)
from relations r join pg_depend d on d.classid = 'pg_class'::regclass and d.objid = r.oid join pg_extension e on d.refclassid = 'pg_extension'::regclass and e.oid = d.refobjid
union all
-- whatever else depends on the table, its row type or the type's array: by its own description
select distinct 'other dependant', pg_describe_object(d.classid, d.objid, d.objsubid), jsonb_build_object('how', d.deptype)
from rel join pg_depend d
    on (d.refclassid = 'pg_class'::regclass and d.refobjid = rel.oid)
    or (d.refclassid = 'pg_type'::regclass and d.refobjid in (select t.oid from pg_type t where t.oid = rel.reltype union all select t.typarray from pg_type t where t.oid = rel.reltype))
where d.classid not in ('pg_constraint'::regclass, 'pg_trigger'::regclass, 'pg_policy'::regclass, 'pg_statistic_ext'::regclass, 'pg_attrdef'::regclass, 'pg_rewrite'::regclass)
  and not (d.classid = 'pg_class'::regclass and d.objid in (select oid from relations))
  and not (d.classid = 'pg_class'::regclass and d.objid = rel.reltoastrelid)
$describe$;
