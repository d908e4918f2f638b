-- create_shadow: the plan that it makes of a user's wish, and everything that it refuses.
\set VERBOSITY terse
\pset format unaligned
\pset tuples_only on
\set SHOW_CONTEXT never
set client_min_messages = warning;
set timezone = 'UTC';
create role shape_owner;
create role shape_other;
create schema shape authorization shape_owner;
grant usage on schema shape to public;
set search_path = shape, public;

-- The plan of a table's open change, with the change's id taken out.
create function plan_of(relation regclass) returns table(part text, line text) language sql set search_path = pg_catalog as $$
  with c as (select * from migrator.change where live = relation and state = 'created')
  select 'new', concat_ws(' | ', n->>'name', n->>'type_name', 'old=' || (n->>'old'), n->'source'->>'from', n->'source'->>'sql',
      case when (n->'source'->>'given')::bool then 'given' end, case when (n->>'generated')::bool then 'never written' end)
    from c, jsonb_array_elements(plan->'new_columns') n
  union all select 'old', concat_ws(' | ', n->>'name', n->>'type_name', 'new=' || (n->>'new'), 'reverse=' || (n->>'reverse'), 'otherwise=' || regexp_replace(n->>'otherwise', '\d{4,}', 'OID'))
    from c, jsonb_array_elements(plan->'old_columns') n
  union all select 'key', concat_ws(' | ', n->>'old', n->>'old_type', n->>'new', n->>'new_type', 'same order=' || (n->>'same_order'), n->>'operators')
    from c, jsonb_array_elements(plan->'key') n
  union all select case when b.is_key then 'key build' else 'build' end, replace(concat_ws(' | ', b.name, b.sql, b.attach), 'migrator_shadow_' || c.id, 'SHADOW')
    from c join migrator.build b on b.change = c.id
  union all select 'also', replace(a, 'migrator_shadow_' || c.id, 'SHADOW') from c, jsonb_array_elements(plan->'builds') n, jsonb_array_elements_text(n->'also') a
  union all select 'unvalidated', concat_ws(' | ', n->>'name', n->>'definition', n->>'comment') from c, jsonb_array_elements(plan->'unvalidated') n
$$;

-- How a statement fails.
create function refused(statement text) returns setof text language plpgsql as $$
declare message text; detail text; hint text;
begin
  execute statement;
  return next 'not refused';
  raise exception 'undo';
exception when others then
  get stacked diagnostics message = message_text, detail = pg_exception_detail, hint = pg_exception_hint;
  if message <> 'undo' then return next sqlstate || ' ' || message; end if;
  if detail <> '' then return next '  ' || detail; end if;
  if hint <> '' then return next '  hint: ' || hint; end if;
end $$;
create function refused(actions text, transform jsonb, reverse jsonb default '{}', relation text default 'shape.orders') returns setof text language sql as $$
  select shape.refused(format('select migrator.create_shadow(%L, %L, %L, %L)', relation, actions, transform, reverse))
$$;

set role shape_owner;
create table customers (id int primary key);
create table orders (
  id serial primary key, customer int references customers, code varchar(8) not null unique, price numeric(10,2) not null default 9.99 check (price >= 0),
  placed timestamptz not null default now(), note text, meta json, doubled numeric generated always as (price * 2) stored
);
create index orders_note on orders (lower(note)) where note is not null;

-- widen the key, add columns with and without an expression, rename, drop
select migrator.create_shadow('orders', $$alter column id type bigint, add column title text not null default 'none', add column upper_note text,
  add column since date default '2020-02-03', add column amount bigint not null; rename column placed to placed_at; drop column meta$$,
  transform => '{"upper_note": "upper(note)", "amount": "price * 100"}') > 0 as made;
reset role;
select * from plan_of('orders');
select state, on_ready, requested_by, table_schema, table_name, live = 'orders'::regclass as live, actions is not null as actions, transform from migrator.change where live = 'orders'::regclass;
select kind, replace(message, 'migrator_shadow_' || change, 'SHADOW') as message from migrator.event where change = (select id from migrator.change where live = 'orders'::regclass);

-- the shadow is bare, belongs to the owner and nobody else can look into its schema
select pg_get_userbyid(c.relowner) as owner, pg_get_userbyid(n.nspowner) = current_user as schema_is_ours, has_schema_privilege('shape_owner', n.oid, 'usage') as usage,
  has_schema_privilege('shape_other', n.oid, 'usage') as others,
  (select count(*) from pg_index i where i.indrelid = c.oid) as indexes, (select count(*) from pg_trigger t where t.tgrelid = c.oid) as triggers,
  (select string_agg(conname || ' ' || pg_get_constraintdef(k.oid), ', ' order by conname) from pg_constraint k where k.conrelid = c.oid and contype <> 'n') as constraints
from migrator.change g join pg_class c on c.oid = g.shadow join pg_namespace n on n.oid = c.relnamespace where g.live = 'orders'::regclass;

-- one change at a time; the table of a change is no table to change
set role shape_owner;
select refused('add column x int', '{}');
reset role;
select replace(line, g.id::text, 'N') as line from migrator.change g, refused(format('select migrator.create_shadow(%s::regclass, %L)', g.shadow, 'add column x int')) line where g.live = 'orders'::regclass;
select count(*) as cancelled from (select migrator.cancel('orders')) c;

-- who may
set role shape_other;
select refused('add column x int', '{}');
reset role;
grant shape_owner to shape_other;
set role shape_other;
begin; select migrator.create_shadow('orders', 'add column x int') > 0 as a_member_may; rollback;
set role shape_owner;

-- actions are ALTER TABLE actions on this table, and nothing else
select refused('add column x int; drop table shape.customers', '{}');
select refused('add column x int; alter table shape.customers add column y int', '{}');
select refused('.y add column x int', '{}');
select refused('add colum x int', '{}');
select refused('', '{}');
select refused('rename to o2', '{}');
select refused('set schema public', '{}');
select refused('owner to shape_other', '{}');
select refused('add constraint f foreign key (customer) references customers', '{}');
select refused('add column c2 int references customers', '{}');
select refused('drop constraint orders_customer_fkey', '{}');
select refused('disable trigger all', '{}');
select refused('enable row level security', '{}');
select refused('replica identity full', '{}');
select refused('inherit customers', '{}');
select refused('add column x int; alter column meta type int using length(note)', '{}');
select refused('alter column nothing type int', '{}');
begin; select migrator.create_shadow('orders', $$add column "a;b" text default ';' /* ; */; alter column note set default $q$;$q$;$$) > 0 as semicolons_that_do_not_separate; rollback;

-- expressions read their own row, and give the same value at every time
select refused('add column x int', '{"x": "nothing + 1"}');
select refused('add column x int', '{"x": "id +"}');
select refused('add column x int', '{"x": "id, price"}');
select refused('add column x int', '{"x": "id from shape.orders"}');
select refused('add column x int', '{"x": "id) , (price"}');
select refused('add column x int', '{"x": "(select max(id) from shape.orders)"}');
select refused('add column x int', '{"x": "max(id)"}');
select refused('add column x int', '{"x": "row_number() over ()"}');
select refused('add column x int', '{"x": "generate_series(1, id)"}');
select refused('add column x int', '{"x": "random() * id"}');
select refused('add column x timestamptz', '{"x": "now()"}');
select refused('add column x timestamptz', '{"x": "current_timestamp"}');
select refused('add column x text', '{"x": "current_user"}');
select refused('add column x text', '{"x": "current_setting(''work_mem'')"}');
select refused('add column x interval', '{"x": "age(placed)"}');
select refused('add column x json', '{"x": "row_to_json(orders)"}');
select refused('add column x tid', '{"x": "ctid"}');
select refused('add column x int', '{"x": "$1"}');
select refused('add column x int', '{"x": "note"}');
select refused('add column x int', '{"x": "''many''"}');
select refused('add column x int', '{"y": "1"}');
select refused('add column x int', '{"x": 1}');
select refused('add column x int', '[]');
select refused('add column x int', '{"doubled": "1"}');
create function looks_up(int) returns int stable language sql as 'select count(*)::int from shape.orders';
create function doubles(int) returns int immutable language sql as 'select 2 * $1';
select refused('add column x int', '{"x": "looks_up(id)"}');
begin;
select migrator.create_shadow('orders', 'add column x int, add column y text, add column z varchar(3), alter column meta type int using length(note)',
  transform => '{"x": "doubles(orders.id)", "y": "placed::text || to_char(placed, ''YYYY'')", "z": "''four''"}', reverse => '{"meta": "json_build_array(meta)"}') > 0 as made;
reset role;
select * from plan_of('orders') where line ~ '^(x|y|z|meta) ';
select s.value ->> 0 as setting, s.value ->> 1 as value from migrator.change c, jsonb_array_elements(c.plan -> 'settings') s
  where c.live = 'orders'::regclass and s.value ->> 0 in ('search_path', 'TimeZone', 'DateStyle');
rollback;
set role shape_owner;

-- defaults of added columns are frozen, or refused
begin;
select migrator.create_shadow('orders', $$add column a timestamptz default date_trunc('century', now()), add column b int[] default array[1,2], add column c varchar(9) default 'it''s\',
  add column d interval default '-1 day 02:03', add column e int default null, add column f int, alter column f set default 5$$) > 0 as made;
reset role;
select * from plan_of('orders') where line ~ '^[a-f] ';
rollback;
set role shape_owner;
select refused('add column x uuid default gen_random_uuid()', '{}');
select refused('add column x serial', '{}');
select refused('add column x int generated always as identity', '{}');
select refused('add column x int not null', '{}');
select refused('add column x varchar(2) default ''abc''', '{}');
begin; select migrator.create_shadow('orders', 'add column x uuid default gen_random_uuid(), add column y int generated by default as identity', '{"x": "md5(id::text)::uuid", "y": "id"}') > 0 as with_an_expression; rollback;

-- the way back
select refused('drop column code', '{}');
select refused('alter column meta type int using length(note)', '{}');
select refused('drop column note', '{}', '{"nothing": "1"}');
select refused('drop column note', '{}', '{"note": "random()::text"}');
select refused('alter column id type bigint', '{}', '{"id": "id"}');
begin;
select migrator.create_shadow('orders', 'drop column code, drop column price cascade', reverse => '{"code": "''c'' || id"}') > 0 as made;
reset role;
select * from plan_of('orders') where part = 'old';
rollback;

-- the key
set role shape_owner;
select refused('drop constraint orders_pkey', '{}');
select refused('drop column id', '{}', '{"id": "1"}');
select refused('alter column id type double precision', '{}');
select refused('alter column id type smallint', '{}');
select refused('alter column id type bigint using id + 1', '{}');
begin;
alter table orders alter column code drop not null;
select refused('alter column id type smallint', '{}');
rollback;
begin;
select migrator.create_shadow('orders', 'drop constraint orders_pkey, drop column id, alter column code type text') > 0 as made;
reset role;
select * from plan_of('orders') where part like 'key%' or line ~ '^id ';
rollback;
set role shape_owner;
begin;
select migrator.create_shadow('orders', 'alter column id type text using id') > 0 as made;
reset role;
select * from plan_of('orders') where part like 'key%' or line ~ '^id ';
rollback;
set role shape_owner;
create table keyless (a int, b int unique);
select refused('add column x int', '{}', '{}', 'shape.keyless');
create table deferred (a int, b int primary key deferrable initially deferred, c text);
create unique index on deferred (a) where a > 0;
create unique index on deferred (lower(c));
begin; select migrator.create_shadow('deferred') > 0 as made; reset role; select * from plan_of('deferred'); rollback;

-- what hangs on the table is made again under its name
set role shape_owner;
create type mood as enum ('sad', 'ok');
create domain positive as int check (value > 0);
create table "Order Items; --" (
  gone int, id int generated always as identity (start 100 increment 5) primary key, "a""b" varchar(20) collate "C" not null, m mood default 'ok', p positive,
  q int, during int4range, j jsonb compression pglz, constraint sane check (q >= 0),
  constraint u unique ("a""b", m) include (p) with (fillfactor = 60) deferrable initially deferred,
  constraint apart exclude using gist (during with &&) where (q > 0)
) with (fillfactor = 80, toast.autovacuum_enabled = false);
alter table "Order Items; --" drop column gone;
alter table "Order Items; --" add constraint later check (q < 1000) not valid;
comment on constraint later on "Order Items; --" is 'it''s old';
comment on constraint u on "Order Items; --" is 'no two';
comment on column "Order Items; --".p is 'positive; --';
create index "my ""index" on "Order Items; --" (lower("a""b") text_pattern_ops desc nulls last, q) include (p) where m = 'ok';
comment on index "my ""index" is 'comment';
alter index "my ""index" alter column 1 set statistics 500;
create index on "Order Items; --" using gin (j jsonb_path_ops);
create statistics "st;" (ndistinct, mcv) on m, p from "Order Items; --";
create statistics expression on (q * 2) from "Order Items; --";
alter table "Order Items; --" alter column p set statistics 77, alter column p set (n_distinct = 5), cluster on u;
alter sequence "Order Items; --_id_seq" rename to "its own; name";
select migrator.create_shadow('"Order Items; --"', 'add column "x;""y" int default 3') > 0 as made;
reset role;
select * from plan_of('"Order Items; --"');
select g.shadow::regclass::text ~ '^migrator_shadow_\d+."Order Items; --"$' as name, c.reloptions, t.reloptions as toast,
  (select replace(pg_get_serial_sequence(g.shadow::regclass::text, 'id'), 'migrator_shadow_' || g.id, 'SHADOW')) as sequence,
  (select array_agg(format('%s %s %s %s', attname, coalesce(attstattarget, -1), array(select o from unnest(attoptions) o where o !~ '^pg_attver=')::text, attcompression) order by attnum) from pg_attribute where attrelid = g.shadow and attname in ('p', 'j')) as columns,
  col_description(g.shadow, 4) as comment,
  (select string_agg(replace(pg_get_statisticsobjdef(s.oid), 'migrator_shadow_' || g.id, 'SHADOW'), '; ' order by s.oid) from pg_statistic_ext s where s.stxrelid = g.shadow) as statistics
from migrator.change g join pg_class c on c.oid = g.shadow join pg_class t on t.oid = c.reltoastrelid where g.live = '"Order Items; --"'::regclass;

-- whoever asks, the owner's functions run with the owner's rights, and unprivileged beyond them
set role shape_owner;
create function who(x int) returns int immutable language plpgsql as $$ begin if current_user <> 'shape_owner' then raise warning 'runs as %', current_user; end if; return x; end $$;
create domain checked as int check (shape.who(value) > 0);
create table trap (id int primary key, a int check (a > shape.who(1)), b int default shape.who(2), c checked default shape.who(3), g int generated always as (a + shape.who(1)) stored);
create index on trap (shape.who(a)) where a > shape.who(2);
create index on trap ((a + shape.who(5)));
create statistics trapped on (a + shape.who(5)), b from trap;
alter table trap add constraint later check (a > shape.who(7)) not valid;
reset role;
begin;
select migrator.create_shadow('trap', 'add column n int default shape.who(9) + 1, alter column b type bigint using b + shape.who(8), add constraint q check (n > shape.who(3)), add column d shape.checked default 5, add unique (b)',
  '{"n": "b + shape.who(4)"}', '{"b": "b + shape.who(7)"}') > 0 as made;
rollback;
set role shape_owner;

-- names that somebody else has where the swap will put them
set role shape_owner;
create table shape_taken (id int primary key);
alter table shape_taken rename constraint shape_taken_pkey to orders_taken_key;
select refused('add column taken int, add constraint orders_taken_key unique (taken)', '{}');

-- what is no table for this
create view a_view as select 1 as a;
create unlogged table unlogged (id int primary key) with (fillfactor = 50);
create table parent (id int primary key); create table child () inherits (parent);
create table parted (id int primary key) partition by range (id); create table part partition of parted default;
create type composite as (id int); create table typed of composite (primary key (id));
select refused('add column x int', '{}', '{}', 'shape.a_view');
select refused('add column x int', '{}', '{}', 'shape.parent');
select refused('add column x int', '{}', '{}', 'shape.child');
select refused('add column x int', '{}', '{}', 'shape.parted');
select refused('add column x int', '{}', '{}', 'shape.part');
select refused('add column x int', '{}', '{}', 'shape.typed');
select refused('add column x int', '{}', '{}', 'shape.orders_note');
select refused('add column x int', '{}', '{}', 'pg_class');
reset role;
select refused('add column x int', '{}', '{}', 'migrator.change');
create temporary table temporary (id int primary key);
select regexp_replace(line, 'pg_temp_\d+', 'pg_temp') from refused('add column x int', '{}', '{}', 'temporary') line;
select refused('select migrator.create_shadow(null, ''add column x int'')');
select refused('select migrator.create_shadow(''orders'', ''add column x int'', on_ready => ''never'')');
begin; select migrator.create_shadow('unlogged', on_ready => 'swap') > 0 as made;
select c.relpersistence, c.reloptions, g.on_ready from migrator.change g join pg_class c on c.oid = g.shadow where live = 'unlogged'::regclass; rollback;
set role shape_owner;
create table guarded (id int primary key);
alter table guarded enable row level security, force row level security;
select refused('add column x int', '{}', '{}', 'shape.guarded');

-- a table that the user made
create table wanted (code text not null, customer bigint, price numeric, id bigint not null, region text not null default 'eu', primary key (region, id), unique (id));
create index wanted_price on wanted (price);
select refused('select migrator.create_shadow(''orders'', ''add column x int'', shadow => ''wanted'')');
insert into wanted values ('a', 1, 1, 1);
select refused('select migrator.create_shadow(''orders'', shadow => ''wanted'')');
truncate wanted;
create table wanted2 (id int primary key, customer int references customers);
select refused('select migrator.create_shadow(''orders'', shadow => ''wanted2'', reverse => ''{"code": "id"}'')');
begin;
select migrator.create_shadow('orders', shadow => 'wanted') > 0 as made;
reset role;
select * from plan_of('orders');
rollback;
set role shape_owner;
create table by_year (id bigint not null, customer int, placed timestamptz not null, code varchar(8) not null, primary key (id)) partition by hash (id);
create table by_year_1 partition of by_year for values with (modulus 1, remainder 0);
begin;
select migrator.create_shadow('orders', shadow => 'by_year') > 0 as made;
reset role;
select * from plan_of('orders');
select c.relkind, (select count(*) from pg_index where indrelid = c.oid) as indexes from migrator.change g join pg_class c on c.oid = g.shadow where g.live = 'orders'::regclass;
rollback;

-- explain writes nothing
set role shape_owner;
create view seen as select id, code from orders;
select step, object, regexp_replace(statement, '^(create view).*', '\1 …') as statement, lock, held, rows, seconds, note
  from migrator.explain('orders', 'alter column id type bigint, alter column customer type bigint using customer * 10, drop column note, add column x int', '{"code": "lower(code)"}')
  where step <> 'disk' and statement is distinct from 'grant MAINTAIN on table "shape"."seen" to "shape_owner"';
select step, object, bytes > 0 as known, note from migrator.explain('orders', 'add column x int') where step = 'disk';
insert into orders (code, price) select 'c' || g, g from generate_series(1, 500) g;
select rows, bytes > 0 as bytes, wal_bytes > 0 as wal, seconds between 0 and 10 as seconds, regexp_replace(note, '\d+ (kB|bytes|ms)', 'N \1', 'g') as note
  from migrator.explain('orders', 'add column x int') where step = 'copy';
select seconds, note from migrator.explain('orders', 'alter column code type int using code::int') where step = 'copy';
delete from orders;
drop view seen;
select * from refused('select migrator.explain(''orders'', ''drop column code'')') line;
reset role;
select count(*) from pg_namespace where nspname = 'migrator_shadow_0';
select count(*) from migrator.change where live = 'orders'::regclass and state = 'created';

-- 1,600 columns
do $$ begin execute (select format('create table shape.wide (id int primary key, %s)', string_agg(format('c%s int', n), ', ' order by n)) from generate_series(1, 1599) n); end $$;
begin; select migrator.create_shadow('wide', 'alter column c7 type bigint') > 0 as made;
select jsonb_array_length(plan -> 'new_columns') as columns from migrator.change where live = 'wide'::regclass; rollback;

-- nothing is left
select count(*) from (select migrator.cancel('"Order Items; --"')) c;
set client_min_messages = error;
drop schema shape cascade;
drop role shape_owner, shape_other;
select nspname from pg_namespace where nspname like 'migrator\_%';
