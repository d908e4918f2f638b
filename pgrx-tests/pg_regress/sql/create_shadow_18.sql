-- create_shadow: shapes that only PostgreSQL 18 has.
\set VERBOSITY terse
\set SHOW_CONTEXT never
\pset format unaligned
\pset tuples_only on
select current_setting('server_version_num')::int < 180000 as old \gset
\if :old
\quit
\endif
set client_min_messages = warning;
create schema shape18;
set search_path = shape18;
create function plan_of(relation regclass) returns table(part text, line text) language sql set search_path = pg_catalog as $$
  with c as (select * from migrator.change where live = relation and state = 'created')
  select 'new', concat_ws(' | ', n->>'name', n->>'type_name', n->'source'->>'from', case when (n->>'generated')::bool then 'never written' end) from c, jsonb_array_elements(plan->'new_columns') n
  union all select 'key', concat_ws(' | ', n->>'old', n->>'new') from c, jsonb_array_elements(plan->'key') n
  union all select case when b.is_key then 'key build' else 'build' end, replace(concat_ws(' | ', b.name, b.sql, b.attach), 'migrator_shadow_' || c.id, 'SHADOW') from c join migrator.build b on b.change = c.id
  union all select 'unvalidated', concat_ws(' | ', n->>'name', n->>'definition', n->>'comment') from c, jsonb_array_elements(plan->'unvalidated') n
$$;

-- columns that are computed when they are read; names of NOT NULL constraints; conditions that rows may break
create table booking (
  id int constraint "no ""id" not null, room int4range, during daterange, price int, twice int generated always as (price * 2), thrice int generated always as (price * 3) stored,
  constraint booking_pkey primary key (id), constraint once unique (room, during without overlaps), constraint never check (price > 5) not enforced
);
alter table booking add constraint "room;" not null room not valid, add constraint cheap check (price < 10) not valid;
comment on constraint "room;" on booking is 'since May';
begin;
select migrator.create_shadow('booking', 'add column more int generated always as (price + 1)') > 0 as made;
select * from plan_of('booking');
select conname, pg_get_constraintdef(k.oid) from pg_constraint k join migrator.change g on g.shadow = k.conrelid order by conname;
rollback;

-- a key over time is not an equality
create table held (room int4range not null, during daterange not null, primary key (room, during without overlaps));
do $$ begin perform migrator.create_shadow('held'); exception when others then raise warning '% %', sqlstate, sqlerrm; end $$;
drop schema shape18 cascade;
