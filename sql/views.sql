-- What people and programs look at. Each row is shown to those who may change its table, and to members of pg_monitor.

create view migrator.history with (security_barrier) as
with figures as (
    select c.*,
           coalesce(k.copy_left, 0) as copy_left, coalesce(k.copied, 0) as copied,
           coalesce(k.verify_chunks, 0) as verify_chunks, coalesce(k.verify_done, 0) as verify_done, coalesce(k.verified, 0) as verified,
           coalesce(b.builds, 0) as builds, coalesce(b.built, 0) as built,
           coalesce(r.bad, 0) as bad,
           (select pg_catalog.format('%s: %s (%s, since %s)', u.key, u.message, u.sqlstate, u.seen_at::pg_catalog.timestamptz(0))
              from migrator.bad_row u where u.change = c.id and u.direction = 'reverse' order by u.seen_at, u.key limit 1) as unfit,
           greatest(coalesce((select t.reltuples from pg_catalog.pg_class t where t.oid = case when c.state = 'swapped' then c.shadow else c.live end), 0), 0)::pg_catalog.int8 as estimate
      from migrator.change c
      left join lateral (
           select sum(x.block_until - x.block_from) filter (where x.step = 'copy') as copy_left,
                  sum(x.rows) filter (where x.step = 'copy') as copied,
                  count(*) filter (where x.step = 'verify') as verify_chunks,
                  count(x.done_at) filter (where x.step = 'verify') as verify_done,
                  sum(x.rows) filter (where x.step = 'verify') as verified
             from migrator.chunk x where x.change = c.id) k on true
      left join lateral (select count(*) as builds, count(x.built_at) as built from migrator.build x where x.change = c.id) b on true
      left join lateral (select count(*) as bad from migrator.bad_row x where x.change = c.id
                          and x.direction = case when c.state = 'swapped' then 'reverse' else 'forward' end) r on true
), parts as (
    select f.*,
           case f.state
               when 'copying' then (f.blocks_total - f.copy_left)::pg_catalog.float8 / nullif(f.blocks_total, 0)
               when 'indexing' then f.built::pg_catalog.float8 / nullif(f.builds, 0)
               when 'verifying' then case when f.estimate > 0 then least(1, f.verified::pg_catalog.float8 / f.estimate) end
           end as part
      from figures f
)
select p.id as change,
       p.kind,
       pg_catalog.format('%I.%I', p.table_schema, p.table_name) as relation,
       case when p.state in ('finished', 'cancelled') then p.state
            when p.paused_at is not null then 'paused'
            when p.blocked is not null then 'blocked'
            else p.state end as state,
       p.state as phase,
       case p.state
            when 'created' then 0.0
            when 'syncing' then 0.0
            when 'copying' then 0.6 * coalesce(p.part, 0)
            when 'indexing' then 0.6 + 0.2 * coalesce(p.part, 0)
            when 'catching_up' then 0.8
            when 'verifying' then 0.8 + 0.2 * coalesce(p.part, 0)
            when 'cancelled' then null
            else 1.0 end::pg_catalog.float8 as progress,
       case p.state when 'copying' then p.copied when 'verifying' then p.verified else p.rows_copied end::pg_catalog.int8 as rows_done,
       greatest(p.estimate, p.rows_copied) as rows_total,
       p.backlog,
       case when p.part > 0.02 and p.paused_at is null and p.blocked is null
            then pg_catalog.make_interval(secs => pg_catalog.round((extract(epoch from pg_catalog.clock_timestamp() - p.state_since) * (1 - p.part) / p.part)::pg_catalog.numeric)::pg_catalog.float8) end as eta,
       case when p.state in ('finished', 'cancelled') then null
            when p.paused_at is not null then pg_catalog.format('somebody to resume it (paused since %s)', p.paused_at::pg_catalog.timestamptz(0))
            when p.blocked is not null then p.blocked
            when p.waiting is not null then pg_catalog.format('%s (since %s)', p.waiting, p.waiting_since::pg_catalog.timestamptz(0))
            when p.bad > 0 then pg_catalog.format('%s row(s) that do not fit: select * from migrator.bad_rows', p.bad)
            when p.postponed_until > pg_catalog.clock_timestamp() then pg_catalog.format('postponed until %s', p.postponed_until::pg_catalog.timestamptz(0))
            when p.state = 'ready' and p.on_ready = 'wait' then 'somebody to swap it'
            when p.state = 'swapped' then 'somebody to finish it, or to roll it back'
            when p.state in ('created', 'syncing', 'copying', 'indexing', 'catching_up', 'verifying') then 'the agent, or call migrator.prepare'
       end as waits_for,
       case when p.state in ('finished', 'cancelled') then null
            when p.blocked is not null then coalesce(p.blocked_hint, pg_catalog.format('select migrator.resume(change => %s);', p.id))
            when p.paused_at is not null then pg_catalog.format('select migrator.resume(change => %s);', p.id)
            when p.state = 'ready' then pg_catalog.format('select * from migrator.swap(change => %s);', p.id)
            when p.state = 'swapped' then pg_catalog.format('select migrator.finish(change => %s); -- or: select * from migrator.rollback(change => %s);', p.id, p.id)
            else pg_catalog.format('call migrator.prepare(change => %s);', p.id) end as next_step,
       p.started_ms,
       p.created_at,
       p.state_since,
       p.on_ready,
       p.bad as bad_rows,
       p.unfit,
       p.swapped_at,
       p.live,
       p.shadow
  from parts p
 where coalesce((select pg_catalog.pg_has_role(t.relowner, 'usage') from pg_catalog.pg_class t
                  where t.oid in (p.live, p.shadow)
                  order by (t.oid = p.shadow) = (p.state in ('swapped', 'finished')) desc limit 1), false)
    or p.requested_by = current_user
    or pg_catalog.pg_has_role('pg_monitor', 'usage');

create view migrator.status with (security_barrier) as
select * from migrator.history h where h.phase not in ('finished', 'cancelled');

create view migrator.bad_rows with (security_barrier) as
select b.change, h.relation, b.direction, b.key, b.sqlstate, b.message, b.seen_at
  from migrator.bad_row b join migrator.history h on h.change = b.change;

create view migrator.events with (security_barrier) as
select e.id, e.change, h.relation, e.at, e.role, e.source, e.kind, e.message, e.detail
  from migrator.event e join migrator.history h on h.change = e.change;

grant select on migrator.history, migrator.status, migrator.bad_rows, migrator.events to public;

-- The log of one change, oldest first: of the last change of a table, or by number; without arguments, of all.
create function migrator.log(relation regclass default null, change bigint default null) returns setof migrator.events
language sql stable set search_path = pg_catalog, pg_temp
as $$
    select e.* from migrator.events e
     where case when $2 is not null then e.change = $2
                when $1 is not null then e.change = (select max(h.change) from migrator.history h where $1::oid in (h.live, h.shadow))
                else true end
     order by e.id
$$;
