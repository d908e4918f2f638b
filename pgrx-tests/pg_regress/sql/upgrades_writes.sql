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

-- Very many rows that an expression does not fit: all are written, a hundred are noted, and none is forgotten.
create table flood (id int primary key, a text, b int);
select migrator.register_upgrade('flood', 'b', '{"b": "a::int"}') is not null as registered;
call migrator.run_upgrades('flood');
insert into flood select g, 'no number' from generate_series(1, 150) g;
begin;
savepoint lost;
insert into flood select g, 'no number' from generate_series(151, 300) g;
rollback to lost;
insert into flood select g, 'no number' from generate_series(301, 302) g;
commit;
select count(*) as rows, count(*) filter (where applied_upgrades = '{}') as without from flood;
select count(*) as noted, count(*) filter (where (key ->> 'id')::int > 300) as of_the_last from migrator.upgrade_failures where relation = 'upgrades_writes.flood';
call migrator.run_upgrades('flood');
update flood set a = '7' where id between 101 and 150;
select migrator.resume_upgrades('flood');
call migrator.run_upgrades('flood');
select count(*) from flood where applied_upgrades = '{}';
select count(*) as noted from migrator.upgrade_failures where relation = 'upgrades_writes.flood';

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

-- Likewise a policy; batches, which are the owner's, are not its subject.
create table policed (id int primary key, a text, b text);
select migrator.register_upgrade('policed', 'b', '{"b": "upper(a)"}') is not null as registered;
create role upgrades_writer;
grant usage on schema upgrades_writes to upgrades_writer;
grant insert, select on policed to upgrades_writer;
set role upgrades_writer;
insert into policed (id, a) values (1, 'one');
reset role;
create policy few on policed with check (b is distinct from 'TWO');
alter table policed enable row level security;
set role upgrades_writer;
insert into policed (id, a) values (2, 'two');
reset role;
select * from policed order by id;
call migrator.run_upgrades('policed');
alter table policed disable row level security;
set role upgrades_writer;
insert into policed (id, a) values (3, 'two');
reset role;
select * from policed order by id;
drop owned by upgrades_writer;
drop role upgrades_writer;

-- A generated column is computed from an output, and a unique index over it refuses the value.
create table generated (id int primary key, a text, b text, g text generated always as (lower(b)) stored unique);
insert into generated (id, a) values (1, 'Same');
select note from migrator.explain_upgrade('generated', 'b', '{"b": "upper(a)"}') where note like 'derived%';
select migrator.register_upgrade('generated', 'b', '{"b": "upper(a)"}') is not null as registered;
call migrator.run_upgrades('generated');
insert into generated (id, a) values (2, 'same');
update generated set a = 'other' where id = 1;
select * from generated order by id;
-- One whose values would be too long for an index.
create table lengthened (id int primary key, n int, b text, g text generated always as (b || b) stored);
create index on lengthened (g);
select migrator.register_upgrade('lengthened', 'b', '{"b": "incompressible(n)"}') is not null as registered;
insert into lengthened (id, n) values (1, 40), (2, 100);
select id, n, b, applied_upgrades from lengthened order by id;

-- An index with an operator class of somebody else's may refuse a value, too: the rows that are left are found after the upgrade was complete.
create operator class own_ops for type int using btree as operator 1 <, operator 2 <=, operator 3 =, operator 4 >=, operator 5 >, function 1 btint4cmp(int, int);
create table others (id int primary key, a int, status int, beside int);
create index on others (beside own_ops, status);
insert into others values (1, 1);
select migrator.register_upgrade('others', 'status', '{"status": "a + 1"}') is not null as registered;
call migrator.run_upgrades('others');
update others set a = 5;
select * from others;
update migrator.upgraded set verified_at = '-infinity' where relation = 'others'::regclass;
call migrator.run_upgrades('others');
select * from others;

-- A trigger that is switched off does not fire behind the guard.
create table switched (id int primary key, a text, b text);
create function nothing() returns trigger language plpgsql as $$ begin return new; end $$;
create trigger "~~behind" before insert on switched for each row execute function nothing();
alter table switched disable trigger "~~behind";
select migrator.register_upgrade('switched', 'b', '{"b": "a"}') is not null as registered;
call migrator.run_upgrades('switched');
select blocked from migrator.upgraded where relation = 'switched'::regclass;
select subject, problem from migrator.doctor() where subject like '%~~behind%';
alter table switched enable trigger "~~behind";
select subject, problem from migrator.doctor() where subject like '%~~behind%';

-- Two upgrades that fail in turn: a hundred rows of a transaction are noted, whichever fails, and each is told to look again.
create table by_turns (id int primary key, a text, b text, x int, y int);
select migrator.register_upgrade('by_turns', 'x', '{"x": "a::int"}') is not null as registered;
select migrator.register_upgrade('by_turns', 'y', '{"y": "b::int"}') is not null as registered;
call migrator.run_upgrades('by_turns');
insert into by_turns select g, case g % 2 when 0 then 'none' else '1' end, 'none' from generate_series(1, 300) g;
select count(*) as noted from migrator.upgrade_failures where relation = 'upgrades_writes.by_turns';
select count(*) as notes, count(distinct upgrade) as upgrades from migrator.upgrade_unnoted where relation = 'by_turns'::regclass;
update by_turns set a = '1', b = '2';
call migrator.run_upgrades('by_turns');
select count(*) as rows, count(*) filter (where applied_upgrades = '{x,y}') as done from by_turns;

-- A note runs a cast of the user's, which writes to the same table: the row in hand stays what it is.
create type mood as enum ('calm', 'wild');
create table nested (id int primary key, a text, b text, m mood, x text, y int);
create function as_json(m mood) returns json language plpgsql as $$
begin
  insert into upgrades_writes.nested (id, a, b) values (101, 'within', '5') on conflict do nothing;
  insert into upgrades_writes.nested (id, a, b) values (102, 'within', '6') on conflict do nothing;
  return to_json(m::text);
end $$;
create cast (mood as json) with function as_json(mood);
select migrator.register_upgrade('nested', 'of a, with a name that is not short at all', '{"x": "upper(a)"}') is not null as registered;
select migrator.register_upgrade('nested', 'of b', '{"y": "b::int"}') is not null as registered;
insert into nested (id, a, b, m) values (1, 'first', 'none', 'wild');
select id, x, y, applied_upgrades from nested order by id;
select upgrade, key, sqlstate from migrator.upgrade_failures where relation = 'upgrades_writes.nested';

-- Policies of a partitioned table are not its partitions' own, and count all the same, whenever they came and on whatever level.
create table parted (id int, part int, a text, b text, primary key (id, part)) partition by list (part);
create table parted_1 (b text, part int not null, a text, id int not null);
alter table parted attach partition parted_1 for values in (1);
create table parted_2 partition of parted for values in (2) partition by list (id);
create table parted_2_all partition of parted_2 default;
select migrator.register_upgrade('parted', 'b', '{"b": "upper(a)"}') is not null as registered;
create role upgrades_writer;
grant usage on schema upgrades_writes to upgrades_writer;
grant insert, select, update on parted, parted_2 to upgrades_writer;
set role upgrades_writer;
insert into parted (id, part, a) values (1, 1, 'one'), (2, 2, 'one');
reset role;
create policy few on parted with check (b is distinct from 'TWO');
create policy all_of_it on parted using (true) with check (false);
alter table parted enable row level security;
set role upgrades_writer;
insert into parted (id, part, a) values (3, 1, 'two'), (4, 2, 'two');
update parted set a = 'two' where id = 2;
reset role;
select tableoid::regclass as part, * from parted order by id;
alter table parted disable row level security;
set role upgrades_writer;
insert into parted (id, part, a) values (5, 1, 'two'), (6, 2, 'two');
reset role;
create policy few on parted_2 with check (b is distinct from 'THREE');
alter table parted_2 enable row level security;
set role upgrades_writer;
insert into parted_2 (id, part, a) values (7, 2, 'three');
insert into parted (id, part, a) values (8, 1, 'three');
reset role;
select tableoid::regclass as part, * from parted order by id;
call migrator.run_upgrades('parted');
select tableoid::regclass as part, * from parted order by id;
drop owned by upgrades_writer;
drop role upgrades_writer;

-- A column that an upgrade names is away for a while. Rows that are written meanwhile lose the names that they may not deserve any more,
-- and when it is back they are upgraded, though the upgrades were complete. One in place is not done again.
create table away (id int primary key, a text, b text, c int, d int, n int, beside text);
insert into away select g, 'before', null, 1, null, 10 from generate_series(1, 6) g;
select migrator.register_upgrade('away', 'b', '{"b": "upper(a)"}') is not null as registered;
select migrator.register_upgrade('away', 'n', '{"n": "n * 2"}', safe_in_place => true) is not null as registered;
select migrator.register_upgrade('away', 'd', '{"d": "c + 1"}') is not null as registered;
call migrator.run_upgrades('away');
select name, state from migrator.upgrades where relation = 'upgrades_writes.away' order by ordinal;
alter table away rename b to elsewhere;
update away set a = 'meanwhile' where id = 1;
update away set c = 5 where id = 2;
update away set beside = 'nothing of it' where id = 3;
update away set elsewhere = 'BY HAND' where id = 4;
insert into away (id, a, c, n, applied_upgrades) values (7, 'new', 7, 70, '{b,d}');
insert into away (id, a, c, d, n, applied_upgrades) values (8, 'new', 7, 80, 80, '{b,d}');
insert into away (id, a, c, n) values (9, 'new', 7, 90);
select * from away order by id;
select count(*) as notes, count(distinct upgrade) as upgrades from migrator.upgrade_unnoted where relation = 'away'::regclass;
alter table away rename elsewhere to b;
select name, state from migrator.upgrades where relation = 'upgrades_writes.away' order by ordinal;
call migrator.run_upgrades('away');
select * from away order by id;
select name, state from migrator.upgrades where relation = 'upgrades_writes.away' order by ordinal;
-- The same with an input: whether it changed cannot be told.
alter table away rename a to elsewhere;
begin isolation level repeatable read;
update away set elsewhere = 'last' where id = 5;
savepoint lost;
update away set elsewhere = 'not at all' where id = 6;
rollback to lost;
update away set elsewhere = 'last' where id = 6;
commit;
alter table away rename elsewhere to a;
call migrator.run_upgrades('away');
select * from away where id in (5, 6) order by id;

-- The column of names may be the user's, and have constraints, indexes and policies of its own.
create table own_check (id int primary key, a text, b text, c text, applied_upgrades text[] not null default '{}' check (cardinality(applied_upgrades) < 2));
select migrator.register_upgrade('own_check', 'b', '{"b": "upper(a)"}') is not null as registered;
select migrator.register_upgrade('own_check', 'c', '{"c": "lower(a)"}') is not null as registered;
insert into own_check (id, a) values (1, 'One');
update own_check set a = 'Two';
select * from own_check;
select upgrade, key, sqlstate from migrator.upgrade_failures where relation = 'upgrades_writes.own_check';
create table own_index (id int primary key, a text, b text, applied_upgrades text[] not null default '{}');
create index on own_index (applied_upgrades);
create index on own_index using gin (applied_upgrades);
insert into own_index (id, a, applied_upgrades) select 1, 'One', array[left(incompressible(100), 2400)];
select migrator.register_upgrade('own_index', 'b, by a name that is long enough to make a difference', '{"b": "upper(a)"}') is not null as registered;
insert into own_index (id, a) values (2, 'Two');
insert into own_index (id, a, applied_upgrades) select 3, 'Three', array[left(incompressible(100), 2640)];
select id, a, b, case when length(applied_upgrades::text) < 100 then applied_upgrades end as names from own_index order by id;
create table own_policy (id int primary key, a text, b text, applied_upgrades text[] not null default '{}');
create policy bare on own_policy with check (applied_upgrades = '{}');
alter table own_policy enable row level security;
select migrator.register_upgrade('own_policy', 'b', '{"b": "upper(a)"}') is not null as registered;
create role upgrades_writer;
grant usage on schema upgrades_writes to upgrades_writer;
grant insert on own_policy to upgrades_writer;
set role upgrades_writer;
insert into own_policy (id, a) values (1, 'One');
reset role;
select * from own_policy;
drop owned by upgrades_writer;
drop role upgrades_writer;

-- Indexes by which rows are found that lack an upgrade keep nothing from being derived, unless a row that comes into one may not fit it.
create table sought (id int primary key, a text, b text);
select migrator.register_upgrade('sought', 'b', '{"b": "upper(a)"}') is not null as registered;
create index sought_lacking on sought (id) where not applied_upgrades @> '{b}';
create index sought_named on sought ((cardinality(applied_upgrades)));
insert into sought (id, a) values (1, 'one');
create unique index sought_once on sought ((a is null)) where applied_upgrades @> '{b}';
insert into sought (id, a) values (2, 'two');
drop index sought_once;
create index sought_long on sought (a) where applied_upgrades @> '{b}';
insert into sought (id, a) values (3, 'three');
drop index sought_long;
insert into sought (id, a) values (4, 'four');
select * from sought order by id;

-- A row that moves to another partition while its new input fits no expression, or no index there, does not take its old output along.
create table moving (id int, part int, a text, b text, c int, primary key (id, part)) partition by list (part);
create table moving_1 partition of moving for values in (1);
create table moving_2 partition of moving for values in (2);
create index on moving_1 (b);
select migrator.register_upgrade('moving', 'b', '{"b": "a"}') is not null as registered;
select migrator.register_upgrade('moving', 'c', '{"c": "length(a) / (length(a) - 3)"}') is not null as registered;
insert into moving (id, part, a) values (1, 1, 'one row'), (2, 1, 'two'), (3, 1, 'three'), (4, 1, 'four');
update moving set part = 2, a = incompressible(100) where id = 1;
update moving set part = 2, a = 'six' where id = 3;
update moving set part = 2 where id = 4;
select id, part, length(a) as a, length(b) as b, c, applied_upgrades from moving order by id;
select key, upgrade, sqlstate from migrator.upgrade_failures where relation = 'upgrades_writes.moving' order by 1, 2;

-- Nor one that a statement before left there, nor where the column cannot be empty.
insert into moving (id, part, a) values (5, 1, 'five');
update moving set a = incompressible(100) where id = 5;
update moving set part = 2 where id = 5;
select id, part, length(a) as a, length(b) as b, applied_upgrades from moving where id = 5;
create table strict (id int, part int, a text, n int not null default 0, primary key (id, part)) partition by list (part);
create table strict_1 partition of strict for values in (1);
create table strict_2 partition of strict for values in (2);
alter table strict alter n drop default;
select migrator.register_upgrade('strict', 'n', '{"n": "a::int"}') is not null as registered;
insert into strict (id, part, a) values (1, 1, '7'), (2, 1, '8');
update strict set part = 2, a = 'no number' where id = 1;
update strict set a = 'no number' where id = 2;
update strict set part = 2 where id = 2;
select * from strict order by id;
update strict set a = '70' where id = 1;
update strict set part = 1, a = '80' where id = 2;
select * from strict order by id;

-- What nobody wrote: the parent's default or the partition's, and NULL wherever it comes from.
create table defaults (id int, part int, a text, n int default 0, m int, primary key (id, part)) partition by list (part);
create table defaults_1 (like defaults including indexes);
create table defaults_2 (like defaults including indexes);
alter table defaults_2 alter m set default 9;
alter table defaults attach partition defaults_1 for values in (1);
alter table defaults attach partition defaults_2 for values in (2);
select migrator.register_upgrade('defaults', 'n', '{"n": "length(a)", "m": "length(a)"}') is not null as registered;
insert into defaults (id, part, a) values (1, 1, 'one'), (2, 2, 'two');
insert into defaults_1 (id, part, a) values (3, 1, 'three');
insert into defaults_2 (id, part, a) values (4, 2, 'four');
insert into defaults (id, part, a, n, m) values (5, 1, 'five', null, null), (6, 2, 'sixth', 5, 0);
select * from defaults order by id;
alter table defaults alter n set default 77;
insert into defaults (id, part, a) values (7, 1, 'seven');
select * from defaults where id = 7;

-- Defaults that are casts, and of a domain.
create domain below_100 as int check (value < 100);
create table casts (id int primary key, a text, big bigint default 0, small smallint default 1, exact numeric(8, 2) default 2.5,
    short varchar(4) default 'none', float float8 default 0, domain below_100 default 3);
select migrator.register_upgrade('casts', 'all', '{"big": "length(a)", "small": "length(a)", "exact": "length(a)", "short": "left(a, 4)", "float": "length(a)", "domain": "length(a)"}') is not null as registered;
alter table casts alter applied_upgrades set default '{all}';
insert into casts (id, a) values (1, 'a long text');
insert into casts (id, a, big, small, exact, short, float, domain) values (2, 'a long text', 99, 98, 97, 'own', 95, 94);
alter table casts alter applied_upgrades set default '{}';
insert into casts (id, a) values (3, 'a long text');
insert into casts (id, a, big, small, exact, short, float, domain) values (4, 'a long text', 99, 98, 97, 'own', 95, 94);
select * from casts order by id;

-- Who writes all outputs himself is believed, though a value would not be derived for him, or could not be.
create table known (id int primary key, a text, slug text unique, n int);
insert into known values (1, 'One');
select migrator.register_upgrade('known', 'slug', '{"slug": "lower(a)"}') is not null as registered;
select migrator.register_upgrade('known', 'n', '{"n": "a::int"}') is not null as registered;
insert into known values (2, 'Two', 'my-two', 22), (3, 'Three', null, 33);
update known set slug = 'my-one', n = 11 where id = 1;
select * from known order by id;
\set VERBOSITY sqlstate
call migrator.run_upgrades('known');
\set VERBOSITY default
select * from known order by id;
select key, upgrade, sqlstate from migrator.upgrade_failures where relation = 'upgrades_writes.known' order by 1, 2;

-- Of several outputs one is away: it was not written, and is made when it is back.
create table several (id int primary key, a text, b text, c text);
insert into several values (1, 'One');
select migrator.register_upgrade('several', 'bc', '{"b": "lower(a)", "c": "upper(a)"}') is not null as registered;
alter table several rename c to elsewhere;
update several set b = 'own' where id = 1;
insert into several (id, a, b) values (2, 'Two', 'own');
select * from several order by id;
alter table several rename elsewhere to c;
select migrator.resume_upgrades('several');
call migrator.run_upgrades('several');
select * from several order by id;

-- Where the names are checked, too, what the writer wrote stays.
create table own_few (id int primary key, a text, b text, applied_upgrades text[] not null default '{}' check (cardinality(applied_upgrades) < 2));
insert into own_few values (1, 'One');
select migrator.register_upgrade('own_few', 'b', '{"b": "lower(a)"}') is not null as registered;
insert into own_few (id, a, b) values (2, 'Two', 'own');
update own_few set b = 'own' where id = 1;
insert into own_few (id, a, b, applied_upgrades) values (3, 'Three', 'own', '{other}');
call migrator.run_upgrades('own_few');
select * from own_few order by id;
select migrator.register_upgrade('own_few', '~migrator outdated 7', '{"b": "lower(a)"}');

-- One column only is made out of itself: of others beside it nobody would know whether they were written.
create table together (id int primary key, price int, fee int);
select migrator.register_upgrade('together', 'cents', '{"price": "price * 100", "fee": "fee * 100"}', safe_in_place => true);
select migrator.register_upgrade('together', 'sum', '{"price": "price * 100", "fee": "id"}', safe_in_place => true);

-- In place, too, nothing is derived in an application's statement that may be refused.
create table doubled (id int primary key, x int unique, note text);
insert into doubled values (1, 1), (2, 2);
select migrator.register_upgrade('doubled', 'x', '{"x": "x * -2"}', safe_in_place => true) is not null as registered;
insert into doubled values (3, -2);
update doubled set note = 'written' where id = 1;
update doubled set x = 5 where id = 2;
select * from doubled order by id;
delete from doubled where id = 3;
call migrator.run_upgrades('doubled');
set standard_conforming_strings = off;
set escape_string_warning = off;
select state from migrator.step('doubled');
reset standard_conforming_strings;
reset escape_string_warning;
select * from doubled order by id;

-- A function of the whole row reads generated columns as they follow from the others, whoever applies it.
create table totals (id int primary key, a int, c int, doubled int generated always as (a * 2) stored, from_c int generated always as (c + 1) stored, b int, d int);
insert into totals (id, a) values (1, 1), (2, 2);
create function of_doubled(t totals) returns totals immutable language plpgsql as $$ begin t.b := t.doubled + 1; return t; end $$;
select migrator.register_upgrade('totals', 'b', function => 'of_doubled(totals)', inputs => '{a}', outputs => '{b}') is not null as registered;
create function of_from_c(t totals) returns totals immutable language sql as $$ select row(t.id, t.a, t.c, t.doubled, t.from_c, t.b, t.from_c, t.applied_upgrades)::totals $$;
select migrator.register_upgrade('totals', 'c', '{"c": "a * 100"}') is not null as registered;
select migrator.register_upgrade('totals', 'd', function => 'of_from_c(totals)', inputs => '{c}', outputs => '{d}') is not null as registered;
insert into totals (id, a) values (3, 3);
update totals set a = 4 where id = 1;
select id, (migrator.current(t)).b, (migrator.current(t)).d from totals t order by id;
select id, a, doubled, b, from_c, d, applied_upgrades from totals order by id;
call migrator.run_upgrades('totals');
select id, a, doubled, b, from_c, d, applied_upgrades from totals order by id;
-- Virtual columns, which 18 has, are in no row that a function gets.
do $$
declare new boolean := current_setting('server_version_num')::int >= 180000;
begin
  execute format('create table computed (id int primary key, a int, g int generated always as (a * 2) %s, b int)', case when new then 'virtual' else 'stored' end);
  create function of_g(t computed) returns computed immutable language plpgsql as 'begin t.b := t.g; return t; end';
  perform migrator.register_upgrade('computed', 'b', function => 'of_g(computed)', inputs => '{a}', outputs => '{b}');
  assert not new, 'it was registered';
exception when feature_not_supported then
  assert new and sqlerrm like 'column g of table %computed is virtual%', sqlerrm;
end $$;
-- One that comes later: writes go on, and it is noted.
do $$
begin
  if current_setting('server_version_num')::int < 180000 then
    return;
  end if;
  create table computed (id int primary key, a int, b int);
  create function of_a(t computed) returns computed immutable language plpgsql as 'begin t.b := t.a; return t; end';
  perform migrator.register_upgrade('computed', 'b', function => 'of_a(computed)', inputs => '{a}', outputs => '{b}');
  insert into computed (id, a) values (1, 1);
  execute 'alter table computed add column g int generated always as (a * 2) virtual';
  insert into computed (id, a) values (2, 2);
  assert (select array_agg(b order by id) from computed) = '{1,null}', 'what was derived';
  assert (select array_agg(sqlstate) from migrator.upgrade_failures where relation = 'upgrades_writes.computed') = '{0A000}', 'what was noted';
end $$;

-- What nobody tries beforehand: an AFTER trigger of the user's that raises on the derived value, and a view WITH CHECK OPTION. There a
-- statement fails that would not without the upgrade; a batch sets the row aside. The view is not asked of what is written to the table.
create table raising (id int primary key, a text, b text);
insert into raising values (1, 'one'), (2, 'two');
create function no_two() returns trigger language plpgsql as $$
begin
  if new.b = 'TWO' then raise exception 'there is one % already', new.b using errcode = '23514'; end if;
  return null;
end $$;
create trigger no_two after insert or update on raising for each row execute function no_two();
select migrator.register_upgrade('raising', 'b', '{"b": "upper(a)"}') is not null as registered;
\set VERBOSITY sqlstate
insert into raising (id, a) values (3, 'two');
update raising set a = 'two' where id = 1;
update raising set a = a where id = 2;
\set VERBOSITY default
insert into raising (id, a) values (4, 'four');
call migrator.run_upgrades('raising');
select * from raising order by id;
select key, sqlstate, message from migrator.upgrade_failures where relation = 'upgrades_writes.raising';
create table viewed (id int primary key, a text, b text);
create view few as select id, a, b from viewed where b is distinct from 'TWO' with check option;
insert into few (id, a) values (1, 'one'), (2, 'two');
select migrator.register_upgrade('viewed', 'b', '{"b": "upper(a)"}') is not null as registered;
\set VERBOSITY sqlstate
insert into few (id, a) values (3, 'two');
update few set a = 'two' where id = 1;
update few set a = 'two' where id = 2;
\set VERBOSITY default
insert into few (id, a) values (4, 'four');
insert into viewed (id, a) values (5, 'two');
call migrator.run_upgrades('viewed');
select * from viewed order by id;
select id from few order by id;

set client_min_messages = warning;
drop schema upgrades_writes cascade;
