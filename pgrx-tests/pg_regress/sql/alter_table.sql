-- alter_table: each way, what it says, what it leaves behind, and what it refuses.
\set SHOW_CONTEXT never
select setval('migrator.change_id_seq', 5000) as ignored \gset
create schema alter_table;
set search_path = alter_table;

create function plan(relation regclass, actions text, strategy text default 'auto', out way text, out statement text, out lock text) returns setof record
language sql as $$ select p.way, p.statement, p.lock from migrator.alter_plan(relation, actions, strategy) p order by p.ordinal $$;
create view columns as
    select c.relname as relation, a.attname as name, format_type(a.atttypid, a.atttypmod) as type, a.attnotnull as not_null
      from pg_attribute a join pg_class c on c.oid = a.attrelid
     where c.relnamespace = 'alter_table'::regnamespace and c.relkind in ('r', 'p') and a.attnum > 0 and not a.attisdropped order by c.relname, a.attnum;
create view constraints as
    select conrelid::regclass as relation, conname as name, convalidated as valid, pg_get_constraintdef(oid) as definition
      from pg_constraint where connamespace = 'alter_table'::regnamespace and contype in ('c', 'f', 'p', 'u') order by conrelid::regclass::text collate "C", conname;

create table customer (id int primary key);
insert into customer select generate_series(1, 100);
create table orders (id int primary key, customer int, code varchar(10), note text, price numeric);
insert into orders select i, i % 100 + 1, 'c' || i, null, i from generate_series(1, 1000) i;

-- Catalogue work only: in place, as it stands. A plan writes nothing.
select * from plan('orders', 'add column n int default 3, alter column code type varchar(20)');
select name from columns where relation = 'orders';
create function file_of(regclass) returns oid language sql as $$ select pg_relation_filenode($1) $$;
select file_of('orders') as file \gset
call migrator.alter_table('orders', 'add column n int default 3, alter column code type varchar(20)');
call migrator.alter_table('orders', 'rename n to amount; alter amount set default 4; rename constraint orders_pkey to orders_key');
select file_of('orders') = :file as same_file;
select name, type from columns where relation = 'orders';
select sum(amount) from orders;

-- Constraints: added NOT VALID, then validated. Also those that stand inside ADD COLUMN.
select * from plan('orders', 'add check (price > 0), alter customer set not null, add foreign key (customer) references customer');
call migrator.alter_table('orders', 'add check (price > 0), alter customer set not null, add foreign key (customer) references customer');
call migrator.alter_table('orders',
    'add column other int constraint positive check (other > 0) references customer (id) on delete set null deferrable, add column "with,comma" text collate "C" check ("with,comma" <> '','')');
select file_of('orders') = :file as same_file;
select * from constraints where relation = 'orders'::regclass;
select name, not_null from columns where relation = 'orders';

-- Rows that break a constraint: it stays, NOT VALID; the same call goes on when they are mended.
call migrator.alter_table('orders', 'add column z int, add constraint cheap check (price < 900)'); \echo :LAST_ERROR_SQLSTATE
select name, valid from constraints where name = 'cheap';
insert into orders values (2000, 1, 'new', 'x', 1000);
call migrator.alter_table('orders', 'add column z int, add constraint cheap check (price < 900)'); \echo :LAST_ERROR_SQLSTATE
update orders set price = 899 where price >= 900;
call migrator.alter_table('orders', 'add column z int, add constraint cheap check (price < 900)');
select name, valid from constraints where name = 'cheap';
call migrator.alter_table('orders', 'alter note set not null'); \echo :LAST_ERROR_SQLSTATE
update orders set note = 'note';
call migrator.alter_table('orders', 'alter note set not null');
update orders set other = 1000 where id = 1;
insert into customer values (1000);
call migrator.alter_table('orders', 'drop constraint orders_other_fkey, drop constraint positive');
delete from customer where id = 1000;
call migrator.alter_table('orders', 'add constraint orders_other_fkey foreign key (other) references customer (id)');
update orders set other = null where id = 1;
call migrator.alter_table('orders', 'add constraint orders_other_fkey foreign key (other) references customer (id)');
select * from constraints where relation = 'orders'::regclass;
select not_null from columns where relation = 'orders' and name = 'note';

-- A constraint that the user wants NOT VALID stays so, until asked.
call migrator.alter_table('orders', 'add constraint later check (id > 0) not valid');
select valid from constraints where name = 'later';
call migrator.alter_table('orders', 'validate constraint later');
select valid from constraints where name = 'later';

-- A rewrite goes through a shadow; foreign keys of the same call are added before.
select * from plan('orders', 'alter id type bigint, add unique (code), drop constraint orders_other_fkey');
call migrator.alter_table('orders', 'alter id type bigint, add unique (code), drop constraint orders_other_fkey');
select name, type, not_null from columns where relation = 'orders';
select * from constraints where relation = 'orders'::regclass;
select count(*), sum(id), sum(price), sum(amount), min(note) from orders;
select kind, message, detail ->> 'asked' as asked from migrator.log('orders') where kind = 'alter_table';
select state, waits_for from migrator.status;
-- The way back keeps what was written since.
insert into orders (id, customer, code, note, price) values (3000, 1, 'since', 'x', 1);
select relation, rolled_back from migrator.rollback('orders');
select migrator.cancel('orders');
select name, type from columns where relation = 'orders' and name = 'id';
select count(*), sum(id) from orders;
call migrator.alter_table('orders', 'alter id type bigint', transform => '{"note": "upper(note)"}', reverse => '{"note": "lower(note)"}');
call migrator.alter_table('orders', 'add column late int'); \echo :LAST_ERROR_SQLSTATE
select migrator.finish('orders');
select min(note), max(id), count(*) from orders;
select count(*) from migrator.status;

-- What a type change reads or builds anew is noticed too.
create table big (id int, code varchar(10), filler text);
alter table big alter filler set storage plain;
insert into big select i, 'c' || i, repeat('x', 300) from generate_series(1, 30000) i;
create view on_code as select code from big;
select way, statement from plan('big', 'alter code type varchar(20)', 'in_place'); \echo :LAST_ERROR_SQLSTATE
drop view on_code;
select way from plan('big', 'alter code type varchar(20)');
alter table big add constraint short check (length(code) < 9);
select way, statement from plan('big', 'alter code type varchar(20)', 'in_place'); \echo :LAST_ERROR_SQLSTATE
alter table big drop constraint short;

-- Indexes: outside a transaction, or through a shadow.
select * from plan('big', 'add primary key (id), add column k int', 'concurrently');
call migrator.alter_table('big', 'add primary key (id)', 'concurrently'); \echo :LAST_ERROR_SQLSTATE
call migrator.alter_table('big', 'add primary key (id)'); \echo :LAST_ERROR_SQLSTATE
create unique index concurrently big_pkey on big (id);
select * from plan('big', 'add constraint big_pkey primary key using index big_pkey');
call migrator.alter_table('big', 'add constraint big_pkey primary key using index big_pkey, add column k int');
select name, not_null from columns where relation = 'big';
select * from constraints where relation = 'big'::regclass;
select distinct way from plan('big', 'add unique (code)');
call migrator.alter_table('big', 'add unique (code)', 'in_place'); \echo :LAST_ERROR_SQLSTATE
call migrator.alter_table('big', 'alter id type bigint', 'in_place'); \echo :LAST_ERROR_SQLSTATE
select way from plan('big', 'add column g int generated always as (id + 1) stored') limit 1;
select way from plan('big', 'add column g int default 1 not null');
call migrator.alter_table('big', 'add column r float8 default random()'); \echo :LAST_ERROR_SQLSTATE
call migrator.alter_table('big', 'enable row level security, replica identity full, cluster on big_pkey, disable trigger user, set (fillfactor = 90), alter code set statistics 10');
call migrator.alter_table('big', 'add unique (code)');
select migrator.finish('big');
select name from constraints where relation = 'big'::regclass;
select count(*), sum(id), sum(length(filler)) from big;
drop table big;

-- A small table may be read, and with in_place even rewritten, under a lock; an empty one always.
create table small (id int primary key, v int);
insert into small select i, i from generate_series(1, 10) i;
select way, statement from plan('small', 'add unique (v)');
select way, statement from plan('small', 'alter v type bigint', 'in_place');
call migrator.alter_table('small', 'add unique (v)', 'in_place');
truncate small;
call migrator.alter_table('small', 'alter v type bigint, add column g uuid default gen_random_uuid(), add check (v > 0)');
select name, type from columns where relation = 'small';

-- Partitioned tables in place.
create table part (id int, at date not null, v int, primary key (id, at)) partition by range (at);
create table part_1 partition of part for values from ('2020-01-01') to ('2021-01-01');
create table part_2 partition of part for values from ('2021-01-01') to ('2022-01-01');
insert into part select i, '2020-06-01'::date + i, i from generate_series(1, 300) i;
call migrator.alter_table('part', 'add column n int default 1, add constraint pos check (v > 0), alter v set not null');
select relation, name, not_null from columns where relation like 'part%' and name in ('n', 'v');
select * from constraints where name = 'pos';
call migrator.alter_table('part_1', 'alter v type bigint'); \echo :LAST_ERROR_SQLSTATE

-- Names that hurt.
create table "Order Items; --" ("Id'1" int primary key, "a,b" int, "not valid" text);
insert into "Order Items; --" select i, i, 'x' from generate_series(1, 50) i;
call migrator.alter_table('"Order Items; --"',
    'add constraint "c;"",d" check ("a,b" > 0 and ''x,y'' <> $q$;,$q$ /* , ; */), alter "not valid" set not null, alter "Id''1" type bigint; -- the end, add');
select * from constraints where relation = '"Order Items; --"'::regclass;
select name, type, not_null from columns where relation = 'Order Items; --';
select migrator.finish('"Order Items; --"');
call migrator.alter_table('"Order Items; --"', 'add check ("a,b" < 1000), -- why, not
    add column "x;y" int -- because');
select name, valid from constraints where name like '%check';

-- What is refused, with nothing changed.
call migrator.alter_table(null, 'add column q int'); \echo :LAST_ERROR_SQLSTATE
call migrator.alter_table('small', null); \echo :LAST_ERROR_SQLSTATE
call migrator.alter_table('small', ' '); \echo :LAST_ERROR_SQLSTATE
call migrator.alter_table('small', 'add column q int', 'fast'); \echo :LAST_ERROR_SQLSTATE
call migrator.alter_table('small', 'add column'); \echo :LAST_ERROR_SQLSTATE
call migrator.alter_table('small', 'add column q int; drop table small'); \echo :LAST_ERROR_SQLSTATE
call migrator.alter_table('small', 'add column q int); drop table small; --'); \echo :LAST_ERROR_SQLSTATE
call migrator.alter_table('small', 'alter nope type int'); \echo :LAST_ERROR_SQLSTATE
call migrator.alter_table('small', 'add foreign key (v) references nope'); \echo :LAST_ERROR_SQLSTATE
call migrator.alter_table('small', 'add check (nope > 0)'); \echo :LAST_ERROR_SQLSTATE
call migrator.alter_table('small', 'owner to postgres'); \echo :LAST_ERROR_SQLSTATE
call migrator.alter_table('small', 'set schema public'); \echo :LAST_ERROR_SQLSTATE
call migrator.alter_table('part', 'attach partition small for values from (''2023-01-01'') to (''2024-01-01'')'); \echo :LAST_ERROR_SQLSTATE
call migrator.alter_table('small', 'add column q int', transform => '[1]'); \echo :LAST_ERROR_SQLSTATE
call migrator.alter_table('small', 'add column q int', 'in_place', transform => '{"q": "1"}'); \echo :LAST_ERROR_SQLSTATE
call migrator.alter_table('small', 'replica identity full', 'shadow'); \echo :LAST_ERROR_SQLSTATE
call migrator.alter_table('columns', 'add column q int'); \echo :LAST_ERROR_SQLSTATE
call migrator.alter_table('pg_class', 'add column q int'); \echo :LAST_ERROR_SQLSTATE
call migrator.alter_table('migrator.change', 'add column q int'); \echo :LAST_ERROR_SQLSTATE
begin;
call migrator.alter_table('small', 'add column q int'); \echo :LAST_ERROR_SQLSTATE
rollback;
do $$ begin call migrator.alter_table('small', 'add column q int'); exception when undefined_table then null; end $$; \echo :LAST_ERROR_SQLSTATE
set default_transaction_isolation = serializable;
call migrator.alter_table('small', 'add column q int'); \echo :LAST_ERROR_SQLSTATE
reset default_transaction_isolation;
create role regress_alter_stranger;
grant usage on schema alter_table to regress_alter_stranger;
set role regress_alter_stranger;
call migrator.alter_table('small', 'add column q int'); \echo :LAST_ERROR_SQLSTATE
select * from migrator.alter_plan('small', 'add column q int'); \echo :LAST_ERROR_SQLSTATE
reset role;
select name from columns where relation = 'small';

-- The owner's functions run as the owner, whoever calls.
create role regress_alter_owner;
grant usage, create on schema alter_table to regress_alter_owner;
create table owned (id int primary key);
insert into owned values (1);
alter table owned owner to regress_alter_owner;
create function spy(int) returns boolean language plpgsql as $$ begin raise notice 'as %', current_user; return true; end $$;
call migrator.alter_table('owned', 'add check (alter_table.spy(id))');
call migrator.alter_table('owned', 'add foreign key (id) references customer'); \echo :LAST_ERROR_SQLSTATE

select count(*) from pg_namespace where nspname ~ '^migrator_(probe|shadow|backup)';
drop table owned;
drop owned by regress_alter_owner, regress_alter_stranger;
drop role regress_alter_owner, regress_alter_stranger;
set client_min_messages = warning;
drop schema alter_table cascade;
