-- What writers do to rows with upgrades that is neither old nor new: stale rows written back, values that an index refuses.
\set SHOW_CONTEXT never
create schema upgrades_writes;
set search_path = upgrades_writes;

-- An old client read the row when it had the name; another changed the input meanwhile; the old one writes it all back with its own.
create table stale (id int primary key, a text, b text);
insert into stale values (1, 'first', null);
select migrator.register_upgrade('stale', 'code', inputs => '{a}', outputs => '{b}') is not null as registered;
update stale set b = 'of first', applied_upgrades = '{code}' where id = 1;
update stale set a = 'second' where id = 1;
update stale set a = 'third', b = 'of first', applied_upgrades = '{code}' where id = 1;
select * from stale;
-- Without declared outputs nobody can tell: what the writer says counts.
create table undeclared (id int primary key, a text);
insert into undeclared values (1, 'first');
select migrator.register_upgrade('undeclared', 'code', inputs => '{a}') is not null as registered;
update undeclared set a = 'FIRST', applied_upgrades = '{code}' where id = 1;
select * from undeclared;

-- A derived value that an index refuses: the application's statement goes on, the batch says what is wrong.
create function incompressible(n int) returns text immutable language sql as $$ select string_agg(md5(g::text), '') from generate_series(1, n) g $$;
create table indexed (id int primary key, n int, long text, inverse int);
create index on indexed (long);
create index on indexed ((100 / inverse)) where inverse < 50;
insert into indexed (id, n) values (1, 1), (2, 1000);
select migrator.register_upgrade('indexed', 'long', '{"long": "incompressible(n)"}') is not null as registered;
select migrator.register_upgrade('indexed', 'inverse', '{"inverse": "n - 1"}') is not null as registered;
insert into indexed (id, n) values (3, 1), (4, 1000), (5, 2);
update indexed set n = 1001 where id = 3;
update indexed set n = 3 where id = 4;
select id, n, length(long) as long, inverse, applied_upgrades from indexed order by id;
call migrator.run_upgrades('indexed');
select id, n, length(long) as long, inverse, applied_upgrades from indexed order by id;
select upgrade, key, sqlstate from migrator.upgrade_failures where relation = 'upgrades_writes.indexed' order by 2;

-- An index, and a key, that come later count too; and so does that they are gone.
create table later (id int primary key, a text, slug text);
insert into later values (1, 'Same');
select migrator.register_upgrade('later', 'slug', '{"slug": "lower(a)"}') is not null as registered;
insert into later values (2, 'One');
create unique index later_slug on later (slug);
insert into later values (3, 'ONE');
insert into later values (4, 'Four');
select * from later order by id;
drop index later_slug;
insert into later values (5, 'ONE');
create table words (word text primary key);
insert into words values ('one'), ('four');
delete from later where id = 1;
alter table later add foreign key (slug) references words;
insert into later values (6, 'unheard of');
select * from later order by id;
call migrator.run_upgrades('later');
select key, sqlstate from migrator.upgrade_failures where relation = 'upgrades_writes.later' order by 1;

set client_min_messages = warning;
drop schema upgrades_writes cascade;
