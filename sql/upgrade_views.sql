-- What people and programs look at. Each row is shown to those who may change its table, and to members of pg_monitor.

create view migrator.upgrades with (security_barrier) as
with tables as (
    select u.*,
           coalesce((select pg_catalog.format('%I.%I', n.nspname, c.relname) from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                      where c.oid = u.relation), u.relation::text) as table_name,
           coalesce((select pg_catalog.pg_has_role(c.relowner, 'usage') from pg_catalog.pg_class c where c.oid = u.relation), false) as is_owner,
           coalesce(k.passed, 0) as passed,
           -- as ANALYZE counted them: -1 is a table that it has not seen, and null here
           greatest(nullif(u.rows_total, 0), nullif(k.passed, 0),
                    (select sum(c.reltuples)::pg_catalog.int8 from pg_catalog.pg_class c
                      where (c.oid = u.relation and c.relkind <> 'p' or c.oid in (select t.relid from pg_catalog.pg_partition_tree(u.relation) t where t.isleaf))
                        and c.reltuples >= 0)) as rows_in_all
      from migrator.upgraded u
      left join lateral (select sum(x.rows)::pg_catalog.int8 as passed from migrator.sweep_chunk x where x.relation = u.relation and x.sweep = u.sweep) k on true
), figures as (
    select g.*, t.table_name, t.is_owner, t.paused_at, t.blocked, t.blocked_hint, t.waiting, t.waiting_since, t.rows_in_all, t.passed,
           -- a sweep that applies, or looked for, what is registered now
           case when t.sweep_generation = t.generation then t.sweep_kind end as sweep_kind, t.sweep_began,
           case when t.verified_at is not null then t.lacking end as lacking,
           (select count(*) from migrator.upgrade_failure f where f.upgrade = g.id) as failed,
           (select count(*) from migrator.upgrade_lease l where l.upgrade = g.id and not l.applied and l.until > pg_catalog.clock_timestamp()) as lent,
           coalesce((select c.rows_done from migrator.upgrade_cursor c where c.upgrade = g.id), 0)
               + (select count(*) from migrator.upgrade_lease l where l.upgrade = g.id and l.applied) as rows_back,
           -- the table change that brings it to the rows, while it does
           (select c.id from migrator.change c where c.id = g.change and g.stands = 'running' and c.state not in ('swapped', 'finished', 'cancelled')) as rewriting,
           (select b.name from migrator.upgrade b where b.relation = g.relation and b.kind = 'application' and b.state = 'running' and b.ordinal < g.ordinal
             order by b.ordinal limit 1) as barrier
      -- one that was complete is not while a row is known that lacks it
      from (select x.*, case when x.state = 'complete' and (exists (select from migrator.upgrade_failure f where f.relation = x.relation and f.upgrade = x.id)
                                  or exists (select from migrator.upgrade_unnoted n where n.upgrade = x.id))
                             then 'running' else x.state end as stands
              from migrator.upgrade x) g join tables t on t.relation = g.relation
     where g.state <> 'retired'
), parts as (
    select f.*,
           case when f.stands <> 'running' then null
                when f.kind = 'application' then f.rows_back
                when f.sweep_kind = 'upgrade' then f.passed
                when f.sweep_kind = 'verify' then coalesce(f.rows_in_all, 0)
                when f.lacking is not null then greatest(0, coalesce(f.rows_in_all, 0) - f.lacking)
                else 0 end as done
      from figures f
)
select p.table_name as relation,
       p.name,
       p.ordinal,
       p.kind,
       case when p.stands in ('running', 'retiring') and p.paused_at is not null then 'paused'
            when p.stands in ('running', 'retiring') and p.blocked is not null then 'blocked'
            else p.stands end as state,
       case when p.stands = 'complete' then 1.0
            when p.rewriting is not null then (select 0.9 * h.progress from migrator.history h where h.change = p.rewriting)
            when p.stands = 'retiring' or p.rows_in_all is null then null
            when p.kind <> 'application' and p.sweep_kind = 'verify' then 0.9 + 0.09 * coalesce(p.passed::pg_catalog.float8 / nullif(p.rows_in_all, 0), 0)
            else least(0.99, coalesce(p.done::pg_catalog.float8 / nullif(p.rows_in_all, 0), 0)) * case when p.sweep_kind = 'upgrade' then 0.9 else 1.0 end
       end::pg_catalog.float8 as progress,
       case when p.stands in ('complete', 'retiring') then p.rows_in_all else p.done end as rows_done,
       case when p.stands in ('complete', 'retiring') then 0 when p.rows_in_all is not null then greatest(0, p.rows_in_all - p.done) end as rows_pending,
       p.failed,
       r.rows_per_second,
       case when r.rows_per_second > 0 and p.paused_at is null and p.blocked is null
            then pg_catalog.make_interval(secs => pg_catalog.round((greatest(0, p.rows_in_all - p.passed) / r.rows_per_second)::pg_catalog.numeric)::pg_catalog.float8) end as eta,
       case when p.stands = 'complete' then null
            when p.paused_at is not null then pg_catalog.format('somebody to resume it (paused since %s)', p.paused_at::pg_catalog.timestamptz(0))
            when p.blocked is not null then p.blocked
            when p.stands = 'retiring' then 'the agent, or call migrator.run_upgrades: rows lose its name'
            when p.rewriting is not null then pg_catalog.format('change %s, which writes the table anew', p.rewriting)
            when p.kind <> 'application' and p.waiting is not null then pg_catalog.format('%s (since %s)', p.waiting, p.waiting_since::pg_catalog.timestamptz(0))
            when p.kind <> 'application' and p.sweep_kind is not null then 'the agent, or call migrator.run_upgrades'
            when p.failed > 0 then pg_catalog.format('somebody to look at %s row(s) that are set aside: select * from migrator.upgrade_failures', p.failed)
            when p.kind = 'application' then case when p.lent > 0 then pg_catalog.format('application code, which has %s row(s) in hand', p.lent) else 'application code' end
            when p.barrier is not null and p.lacking = 0 then pg_catalog.format('application code, for upgrade %s before it', p.barrier)
            else 'the agent, or call migrator.run_upgrades' end as waits_for,
       case when p.paused_at is not null and p.stands <> 'complete' then pg_catalog.format('select migrator.resume_upgrades(%L);', p.table_name)
            when p.stands = 'complete' then pg_catalog.format('select migrator.retire_upgrade(%L, %L); -- when nothing reads the old form any more', p.table_name, p.name)
            when p.blocked is not null then coalesce(p.blocked_hint, pg_catalog.format('select migrator.resume_upgrades(%L);', p.table_name))
            when p.rewriting is not null then coalesce((select h.next_step from migrator.history h where h.change = p.rewriting), pg_catalog.format('call migrator.prepare(change => %s);', p.rewriting))
            when p.stands = 'retiring' or p.kind <> 'application' and p.sweep_kind is not null then pg_catalog.format('call migrator.run_upgrades(%L);', p.table_name)
            when p.failed > 0 then pg_catalog.format('select migrator.retry_failed(%1$L, %2$L); -- or: select migrator.waive_failed(%1$L, %2$L, reason => ''…'');', p.table_name, p.name)
            when p.kind = 'application' then pg_catalog.format('select * from migrator.select_batch(%1$L, %2$L); -- until there is no row, then: call migrator.run_upgrades(%1$L);', p.table_name, p.name)
            when p.barrier is not null and p.lacking = 0 then pg_catalog.format('select * from migrator.select_batch(%L, %L);', p.table_name, p.barrier)
            else pg_catalog.format('call migrator.run_upgrades(%L);', p.table_name) end as next_step,
       p.strategy,
       p.rewriting as change,
       coalesce((p.definition ->> 'in_place')::pg_catalog.bool, false) as in_place,
       array(select i.i::pg_catalog.name from pg_catalog.jsonb_array_elements_text(p.definition -> 'inputs') as i (i)) as inputs,
       array(select (o.o ->> 0)::pg_catalog.name from pg_catalog.jsonb_array_elements(p.definition -> 'set') as o (o)
             union all select o.o::pg_catalog.name from pg_catalog.jsonb_array_elements_text(p.definition -> 'outputs') as o (o)) as outputs,
       p.lent,
       p.requested_by,
       p.registered_at,
       case when p.stands <> 'running' then p.completed_at end as completed_at,
       p.id
  from parts p
  left join lateral (select p.passed / nullif(extract(epoch from pg_catalog.clock_timestamp() - p.sweep_began), 0)::pg_catalog.float8 as rows_per_second
                      where p.sweep_kind is not null and p.stands = 'running' and p.kind <> 'application' and p.passed > 0) r on true
 where p.is_owner or p.requested_by = current_user or pg_catalog.pg_has_role('pg_monitor', 'usage');

create view migrator.upgrade_failures with (security_barrier) as
select u.relation, u.name as upgrade, f.key, f.sqlstate,
       -- what a row holds, and what an error says of it, is for those who may read the table, all of it
       case when m.reads then f.message end as message,
       case when m.reads then f."row" end as "row",
       f.seen_at, f.attempts
  from migrator.upgrade_failure f join migrator.upgrades u on u.id = f.upgrade
  left join lateral (select pg_catalog.pg_has_role(c.relowner, 'usage')
                         or (pg_catalog.has_table_privilege(c.oid, 'select') and not pg_catalog.row_security_active(c.oid)) as reads
                       from pg_catalog.pg_class c where c.oid = f.relation) m on true;

create view migrator.upgrade_events with (security_barrier) as
select e.id,
       coalesce((select pg_catalog.format('%I.%I', n.nspname, c.relname) from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                  where c.oid = e.relation), e.relation::text) as relation,
       e.at, e.role, e.source, e.kind, e.message, e.detail
  from migrator.upgrade_event e
 where coalesce((select pg_catalog.pg_has_role(c.relowner, 'usage') from pg_catalog.pg_class c where c.oid = e.relation), false)
    or e.role = current_user
    or pg_catalog.pg_has_role('pg_monitor', 'usage');

grant select on migrator.upgrades, migrator.upgrade_failures, migrator.upgrade_events to public;
