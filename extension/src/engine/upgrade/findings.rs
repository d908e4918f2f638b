//! What doctor says of upgrades: those that stand still, and for whom; guards that are not as they should be; what is left of tables
//! that were dropped.

/// What is done for a table that was restored from a dump: a format of its name (1) and the oid that it had (2). Where its columns are,
/// and how far sweeps had come, was of the other one.
macro_rules! moved_on {
    () => {
        "update migrator.upgrade set numbers = null where relation = %2$s; \
         update migrator.upgraded set relation = %1$L::pg_catalog.regclass, sweep_kind = null, verified_at = null, lacking = null, strangers = null where relation = %2$s;"
    };
}
pub const MOVED_ON: &str = moved_on!();

/// Findings, as doctor has them, of tables that the role `$1` may see.
pub const SQL: &str = concat!(
    "\
with seen as materialized (select u.*, pg_catalog.format('%I.%I', n.nspname, t.relname) as name from migrator.upgraded u \
     join pg_catalog.pg_class t on t.oid = u.relation join pg_catalog.pg_namespace n on n.oid = t.relnamespace \
    where pg_catalog.pg_has_role($1, t.relowner, 'usage') or pg_catalog.pg_has_role($1, 'pg_monitor', 'usage')), \
member as (select s.relation as of, s.relation as oid, s.name from seen s \
   union select s.relation, c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname) \
     from seen s cross join lateral pg_catalog.pg_partition_tree(s.relation::pg_catalog.regclass) p join pg_catalog.pg_class c on c.oid = p.relid join pg_catalog.pg_namespace n on n.oid = c.relnamespace), \
restored as materialized (select g.relation as was, t.oid as now, pg_catalog.format('%I.%I', n.nspname, t.relname) as name, \
       pg_catalog.pg_has_role($1, t.relowner, 'usage') or pg_catalog.pg_has_role($1, 'pg_monitor', 'usage') as shown \
     from pg_catalog.pg_trigger w join pg_catalog.pg_class t on t.oid = w.tgrelid join pg_catalog.pg_namespace n on n.oid = t.relnamespace \
     cross join lateral pg_catalog.jsonb_array_elements(pg_catalog.convert_from(pg_catalog.substr(w.tgargs, 1, pg_catalog.length(w.tgargs) - 1), \
          pg_catalog.getdatabaseencoding())::pg_catalog.jsonb -> 'upgrades') u \
     join migrator.upgrade g on g.id = (u ->> 'id')::pg_catalog.int8 and g.relation <> t.oid \
    where w.tgname = '~migrator_guard' and w.tgparentid = 0 and w.tgfoid = 'migrator._guard()'::pg_catalog.regprocedure \
      and not exists (select from pg_catalog.pg_trigger o where o.tgrelid = g.relation and o.tgname = w.tgname)) \
select 'error' as severity, pg_catalog.format('upgrades of %s', s.name) as subject, s.blocked as problem, \
       coalesce(s.blocked_hint, pg_catalog.format('select migrator.resume_upgrades(%L);', s.name)) as remedy \
  from seen s where s.blocked is not null \
union all select 'warning', pg_catalog.format('upgrade %s of %s', g.name, s.name), \
       pg_catalog.format('%s row(s) are set aside, and it is not complete before somebody decides about them', f.rows), \
       pg_catalog.format('select * from migrator.upgrade_failures; then select migrator.retry_failed(%1$L, %2$L); or select migrator.waive_failed(%1$L, %2$L);', s.name, g.name) \
  from seen s join migrator.upgrade g on g.relation = s.relation \
  join lateral (select count(*) as rows from migrator.upgrade_failure f where f.upgrade = g.id) f on f.rows > 0 \
union all select 'warning', pg_catalog.format('upgrades of %s', s.name), \
       pg_catalog.format('rows lack them, and no batch was done for %s', pg_catalog.date_trunc('minute', pg_catalog.clock_timestamp() - l.at)), \
       pg_catalog.format('Start the agent (migrator agent), or drive them yourself: call migrator.run_upgrades(%L);', s.name) \
  from seen s join lateral (select greatest(s.sweep_began, (select max(e.at) from migrator.upgrade_event e where e.relation = s.relation), \
       (select max(k.lease_until) from migrator.sweep_chunk k where k.relation = s.relation)) as at) l on l.at < pg_catalog.clock_timestamp() - interval '1 hour' \
 where s.paused_at is null and s.blocked is null and (s.sweep_kind is not null or s.verified_at is null) \
   and exists (select from migrator.upgrade g where g.relation = s.relation and g.strategy = 'rows' \
     and (g.state = 'retiring' or g.state = 'running' and g.kind <> 'application')) \
union all select 'error', pg_catalog.format('guard of %s', m.name), w.problem, pg_catalog.format('select migrator.resume_upgrades(%L);', s.name) \
  from seen s join member m on m.of = s.relation \
  cross join lateral (select pg_catalog.jsonb_agg(g.id order by g.ordinal, g.id) filter (where g.state <> 'retiring') as ids, count(*) as n \
       from migrator.upgrade g where g.relation = s.relation and g.state <> 'retired') r \
  left join pg_catalog.pg_trigger t on t.tgrelid = m.oid and t.tgname = '~migrator_guard' \
  cross join lateral (select case when t.oid is null then 'it is gone: rows are written without it' \
       when t.tgenabled <> 'A' then 'it was switched off: rows are written without it' \
       when t.tgfoid <> 'migrator._guard()'::pg_catalog.regprocedure then 'another trigger has its name: rows are written without it' \
       when coalesce((select pg_catalog.jsonb_agg(u.u -> 'id' order by u.n) from pg_catalog.jsonb_array_elements( \
              pg_catalog.convert_from(pg_catalog.substr(t.tgargs, 1, greatest(0, pg_catalog.length(t.tgargs) - 1)), pg_catalog.getdatabaseencoding())::pg_catalog.jsonb -> 'upgrades') \
              with ordinality u (u, n)), '[]') is distinct from coalesce(r.ids, '[]') then 'it was overwritten: it knows of other upgrades than are registered' end as problem) w \
 where r.n > 0 and w.problem is not null \
union all select distinct 'error', pg_catalog.format('column %I of %s', c.name, s.name), 'an upgrade names it, and it is not there: rows are written without the guard', \
       'Where it was renamed, give it its name back. Where it was dropped, one that is added is empty: retire the upgrade, and register it under another name.' \
  from seen s join migrator.upgrade g on g.relation = s.relation and g.state not in ('retiring', 'retired') \
  cross join lateral (select pg_catalog.jsonb_array_elements_text(g.definition -> 'inputs') union select pg_catalog.jsonb_array_elements_text(coalesce(g.definition -> 'outputs', '[]')) \
       union select u -> 0 #>> '{}' from pg_catalog.jsonb_array_elements(coalesce(g.definition -> 'set', '[]')) u union select 'applied_upgrades') c (name) \
 where s.blocked is null and not exists (select from pg_catalog.pg_attribute a where a.attrelid = s.relation and a.attname = c.name::name and a.attnum > 0 and not a.attisdropped) \
union all select distinct 'error', pg_catalog.format('column applied_upgrades of %s', s.name), \
       'it was dropped and added again: rows are written without the guard, and nobody can tell which are upgraded', \
       pg_catalog.format('select migrator.resume_upgrades(%L); says what to do.', s.name) \
  from seen s join migrator.upgrade g on g.relation = s.relation and g.state not in ('retiring', 'retired') \
  join pg_catalog.pg_attribute w on w.attrelid = s.relation and w.attnum = g.numbers[pg_catalog.cardinality(g.numbers)] and w.attisdropped \
  join pg_catalog.pg_attribute a on a.attrelid = s.relation and a.attname = 'applied_upgrades' and a.attnum > w.attnum \
 where s.blocked is null \
union all select 'error', pg_catalog.format('trigger %I on %s', t.tgname, m.name), 'it fires behind the guard, which does not see what it makes of a row', \
       pg_catalog.format('alter trigger %I on %s rename to …; to a name that sorts before ~migrator_guard, then: select migrator.resume_upgrades(%L);', t.tgname, m.name, s.name) \
  from seen s join member m on m.of = s.relation \
  join pg_catalog.pg_trigger t on t.tgrelid = m.oid and not t.tgisinternal and t.tgenabled <> 'D' and t.tgtype & 3 = 3 and t.tgtype & 20 <> 0 \
       and t.tgname > '~migrator_guard'::name collate \"C\" \
 where exists (select from migrator.upgrade g where g.relation = s.relation and g.state <> 'retired') \
union all select 'info', pg_catalog.format('upgrades of a table with oid %s', u.relation), 'the table was dropped', pg_catalog.format('select migrator.forget_upgrades(%s::oid::regclass);', u.relation) \
  from migrator.upgraded u where not exists (select from pg_catalog.pg_class c where c.oid = u.relation) \
   and not exists (select from restored r where r.was = u.relation) \
union all select 'error', pg_catalog.format('upgrades of %s', r.name), 'they are registered for an oid that the table does not have: it was restored from a dump', \
       pg_catalog.format('",
    moved_on!(),
    "', r.name, r.was) \
  from (select distinct name, was from restored where shown) r \
union all select 'info', pg_catalog.format('standby %s', coalesce(nullif(r.application_name, ''), r.client_addr::pg_catalog.text)), \
       'while tables have upgrades, writes after a failover need the library there', 'Make sure that the extension''s files are installed on it.' \
  from pg_catalog.pg_stat_replication r where exists (select from seen)"
);
