-- Upgrades of rows and changes of their table: what a rewrite brings and takes back, and what neither may break of the other.
\set SHOW_CONTEXT never
create schema upgrade_changes;
set search_path = upgrade_changes, public;
set client_min_messages = warning;
create function refused(statement text) returns table (code text, message text, detail text, hint text) language plpgsql as $$
begin
    execute statement;
    return query select 'fine', statement, null::text, null::text;
exception when others then
    get stacked diagnostics code = returned_sqlstate, message = message_text, detail = pg_exception_detail, hint = pg_exception_hint;
    -- Changes are numbered by what ran before.
    message := regexp_replace(message, 'change \d+', 'change N');
    hint := regexp_replace(hint, 'change => \d+', 'change => N', 'g');
    return next;
end $$;

-- Written since the swap, and taken back: what the application wrote goes back with the names that it has. In place, and derived; with an
-- index for which the guard leaves rows to batches; swapped once more, and given up.
create table priced (id int primary key, price int, note text);
create table given_up (like priced including all);
create table worded (id int primary key, a text, b text);
create table own (like worded including all);
create table late (like worded including all, unique (b));
insert into priced select g, g from generate_series(1, 4) g;
insert into given_up select * from priced;
insert into worded select g, 'old ' || g from generate_series(1, 4) g;
insert into own select * from worded;
insert into late select * from worded;
select migrator.register_upgrade(t::regclass, 'cents', '{"price": "price * 100"}', safe_in_place => true, strategy => 'rewrite') is not null as registered
  from unnest('{priced, given_up}'::text[]) t;
select migrator.register_upgrade(t::regclass, 'upper', '{"b": "upper(a)"}', strategy => 'rewrite') is not null as registered
  from unnest('{worded, own, late}'::text[]) t;
call migrator.prepare('priced');
call migrator.prepare('given_up');
call migrator.prepare('worded');
call migrator.prepare('own');
call migrator.prepare('late');
update priced set price = 30000 where id = 1;
update priced set note = 'seen' where id = 2;
insert into priced values (7, 700);
update given_up set price = 30000 where id = 1;
update given_up set note = 'seen' where id = 2;
insert into given_up values (7, 700);
update worded set b = 'mine' where id = 1;
update worded set a = 'new 2' where id = 2;
update worded set a = 'new 3', b = 'OLD 3' where id = 3;
insert into worded values (7, 'seven', 'own');
update own set b = 'mine' where id = 1;
update own set a = 'new 2' where id = 2;
update own set a = 'new 3', b = 'OLD 3' where id = 3;
insert into own values (7, 'seven', 'own');
update late set b = 'mine' where id = 1;
update late set b = 'OLD 2' where id = 2;
update late set b = 'OLD 3 too' where id = 3;
select relation, rolled_back from migrator.rollback('priced');
select relation, rolled_back from migrator.rollback('given_up');
select relation, rolled_back from migrator.rollback('worded');
select relation, rolled_back from migrator.rollback('own');
select relation, rolled_back from migrator.rollback('late');
table priced order by id;
table priced__current order by id;
table worded order by id;
table worded__current order by id;
-- Written once more by old and new versions.
update priced set note = 'once more' where id in (1, 3);
update given_up set note = 'once more' where id in (1, 3);
update worded set b = 'once more' where id = 2;
update own set b = 'once more' where id = 2;
update late set a = 'another' where id = 3;
table late order by id;
call migrator.prepare('priced');
call migrator.prepare('worded');
call migrator.prepare('late');
select relation, swapped from migrator.swap('priced');
select relation, swapped from migrator.swap('worded');
select relation, swapped from migrator.swap('late');
select migrator.cancel('given_up');
select migrator.cancel('own');
call migrator.run_upgrades('priced');
call migrator.run_upgrades('given_up');
call migrator.run_upgrades('worded');
call migrator.run_upgrades('own');
call migrator.run_upgrades('late');
table priced order by id;
table given_up order by id;
table worded order by id;
table own order by id;
table late order by id;

-- The upgrade stays for as long as the change that brings it can still bring it, or take it back.
\x on
create table mistaken (id int primary key, price int);
insert into mistaken values (1, 1);
select migrator.register_upgrade('mistaken', 'cents', '{"price": "price * 100"}', safe_in_place => true, strategy => 'rewrite') is not null as registered;
select * from refused($$select migrator.retire_upgrade('mistaken', 'cents', incomplete => true)$$);
call migrator.prepare('mistaken');
call migrator.run_upgrades('mistaken');
select * from refused($$select migrator.retire_upgrade('mistaken', 'cents')$$);
select relation, rolled_back from migrator.rollback('mistaken');
select * from refused($$select migrator.retire_upgrade('mistaken', 'cents', incomplete => true)$$);
select migrator.cancel('mistaken');
select migrator.retire_upgrade('mistaken', 'cents', incomplete => true);
table mistaken;

-- What rows have already would take the expression's type on its way.
create table typed (id int primary key, a text, n numeric, i bigint, t timestamptz, v varchar(3), c char(3), applied_upgrades text[] not null default '{}') with (fillfactor = 10);
select * from refused($$select migrator.register_upgrade('typed', 'float', '{"n": "sqrt(id)"}', strategy => 'rewrite')$$);
select * from refused($$select migrator.register_upgrade('typed', 'float', '{"i": "length(a) * 1.5::float8"}', strategy => 'rewrite')$$);
select * from refused($$select migrator.register_upgrade('typed', 'char', '{"c": "upper(a)"}', strategy => 'rewrite')$$);
\x off
insert into typed select g, repeat('x', 800), 12345678901234567890.123 from generate_series(1, 9000) g;
analyze typed;
set client_min_messages = notice;
select migrator.register_upgrade('typed', 'float', '{"n": "sqrt(id)"}', strategy => 'auto') is not null as registered;
set client_min_messages = warning;
select migrator.retire_upgrade('typed', 'float', incomplete => true) is not null as retired;
call migrator.run_upgrades('typed');
update typed set a = 'four' where id = 1;
insert into typed values (0, 'x', 12345678901234567890.123, 9007199254740993, now(), 'abc', 'abc', '{types}');
select migrator.register_upgrade('typed', 'types', '{"n": "sqrt(id)::numeric", "i": "length(a)", "v": "left(a, 3)"}', strategy => 'rewrite') is not null as registered;
call migrator.prepare('typed');
select id, n, i, v, applied_upgrades from typed where id < 2 order by id;
select migrator.finish('typed');
drop table typed cascade;

-- A row that loses an earlier upgrade while the table is written anew gets the later one after it.
create table ordered (id int primary key, a text, b text, c text);
insert into ordered values (1, 'one'), (2, 'two');
select migrator.register_upgrade('ordered', 'first', '{"b": "upper(a)"}') is not null as registered;
call migrator.run_upgrades('ordered');
select migrator.register_upgrade('ordered', 'second', '{"c": "b || ''!''"}', strategy => 'rewrite') is not null as registered;
alter table ordered disable trigger "~migrator_guard";
update ordered set a = 'three', b = null, applied_upgrades = '{}' where id = 1;
alter table ordered enable always trigger "~migrator_guard";
call migrator.prepare('ordered');
table ordered order by id;
call migrator.run_upgrades('ordered');
table ordered order by id;

-- What a change may do with columns that live upgrades name: carry them over. Their own types may change where the expressions go along.
\x on
create function doubled(n int) returns int immutable language sql as $$ select n * 2 $$;
create table stood_on (id int primary key, content text, n int, k int, d int, applied_upgrades text[] not null default '{}');
insert into stood_on values (1, ' one ', 1, 1);
select migrator.register_upgrade('stood_on', 'cents', '{"k": "k * 100"}', safe_in_place => true) is not null as registered;
select migrator.register_upgrade('stood_on', 'doubled', '{"d": "doubled(n) + length(content)"}') is not null as registered;
call migrator.run_upgrades('stood_on');
select * from refused($$select migrator.create_shadow('stood_on', transform => '{"content": "btrim(content)"}')$$);
select * from refused($$select migrator.create_shadow('stood_on', 'alter column k type bigint using k + 1')$$);
select * from refused($$select * from migrator.explain('stood_on', transform => '{"applied_upgrades": "array[''doubled'']"}')$$);
select * from refused($$select migrator.create_shadow('stood_on', 'alter column n type bigint')$$);
select * from refused($$select migrator.create_shadow('stood_on', 'add column more int', reverse => '{"content": "btrim(content)"}')$$);
select * from refused($$select migrator.create_shadow('stood_on', 'drop column content, add column content text')$$);
select * from refused($$select migrator.create_shadow('stood_on', 'alter column applied_upgrades type varchar[]')$$);
-- A type in whose values an assignment rounds, there or back.
select * from refused($$select migrator.create_shadow('stood_on', 'alter column k type numeric')$$);
-- It may be a domain that has the digits, or the length. One that only checks changes nothing.
create domain amount as numeric check (value >= 0);
create domain in_cents as numeric(10,2);
create domain brief as varchar(5);
create table rounded (id int primary key, price numeric, words varchar[], n int, applied_upgrades text[] not null default '{}');
select migrator.register_upgrade('rounded', 'n', '{"n": "ceil(price)::int + length(words[1])"}') is not null as registered;
select code, message from refused($$select * from migrator.explain('rounded', 'alter column price type in_cents')$$);
select code, message from refused($$select * from migrator.explain('rounded', 'alter column words type brief[]')$$);
select code from refused($$select * from migrator.explain('rounded', 'alter column price type amount, alter column words type text[]')$$);
-- Nor does one that is registered while the change is under way.
create table begun (id int primary key, content text, n int, applied_upgrades text[] not null default '{}');
select migrator.create_shadow('begun', transform => '{"content": "btrim(content)"}') is not null as made;
select * from refused($$select migrator.register_upgrade('begun', 'long', '{"n": "length(content)"}')$$);
select migrator.register_upgrade('begun', 'id', '{"n": "id"}') is not null as registered;
select migrator.cancel('begun');
\x off
select migrator.create_shadow('stood_on', 'alter column k type bigint', transform => '{"content": "content", "d": "d + 1"}') is not null as made;
call migrator.prepare('stood_on');
select relation, swapped from migrator.swap('stood_on');
update stood_on set n = 2;
insert into stood_on (id, content, n, k) values (2, 'two', 3, 300);
table stood_on order by id;
select migrator.finish('stood_on');

-- Once it is swapped: for as long as it can be taken back, what had other values before is no input.
create table taken_back (id int primary key, content text, n int, d int, applied_upgrades text[] not null default '{}');
insert into taken_back values (1, ' one ', 1);
select migrator.create_shadow('taken_back', 'rename column n to k', transform => '{"content": "btrim(content)"}') is not null as made;
call migrator.prepare('taken_back');
select relation, swapped from migrator.swap('taken_back');
\x on
select * from refused($$select migrator.register_upgrade('taken_back', 'long', '{"d": "length(content)"}')$$);
select * from refused($$select migrator.register_upgrade('taken_back', 'content', '{"content": "content || ''!''"}', safe_in_place => true)$$);
set client_min_messages = error;
select migrator.register_upgrade('taken_back', 'k', '{"d": "k + 1"}') is not null as registered;
set client_min_messages = warning;
call migrator.run_upgrades('taken_back');
select relation, rolled_back from migrator.rollback('taken_back');
drop view taken_back__current;
select relation, rolled_back from migrator.rollback('taken_back');
select state, reason from migrator.step('taken_back');
\x off
table taken_back;
select migrator.cancel('taken_back');

-- Nor is what an expression cannot read in the shape before.
create table other_type (id int primary key, n bigint, d int, applied_upgrades text[] not null default '{}');
insert into other_type values (1, 2);
create function of_int(n int) returns int immutable language sql as 'select n * 2';
select migrator.create_shadow('other_type', 'alter column n type int') is not null as made;
call migrator.prepare('other_type');
select relation, swapped from migrator.swap('other_type');
\x on
select * from refused($$select migrator.register_upgrade('other_type', 'of int', '{"d": "of_int(n)"}')$$);
\x off
select migrator.register_upgrade('other_type', 'of int', '{"d": "n * 2"}') is not null as registered;
call migrator.run_upgrades('other_type');
select relation, rolled_back from migrator.rollback('other_type');
update other_type set n = 1;
table other_type;
select migrator.cancel('other_type');

-- Nor is there one where the column of names came with the change, and would go with it.
create table brings_names (id int primary key, d int);
insert into brings_names values (1);
select migrator.create_shadow('brings_names', $$add column applied_upgrades text[] not null default '{}'$$) is not null as made;
call migrator.prepare('brings_names');
select relation, swapped from migrator.swap('brings_names');
\x on
select * from refused($$select migrator.register_upgrade('brings_names', 'd', '{"d": "id + 1"}')$$);
\x off
select migrator.finish('brings_names');

-- A key comes back as it went, whatever its type.
create table keyed (id int primary key, d int, applied_upgrades text[] not null default '{}');
select migrator.register_upgrade('keyed', 'd', '{"d": "length(id::text)"}') is not null as registered;
select migrator.create_shadow('keyed', 'alter column id type text') is not null as made;
select migrator.cancel('keyed');

-- A table that somebody made has to fit like one that is registered.
\x on
create table adopting (id int not null primary key, n int, d int);
select migrator.register_upgrade('adopting', 'cents', '{"n": "n * 100"}', safe_in_place => true) is not null as registered;
create table in_parts (id int not null primary key, n int, d int, applied_upgrades text[] not null default '{}') partition by range (id);
create table in_parts_1 partition of in_parts for values from (0) to (1000);
create table generates (id int not null primary key, n int generated always as (d * 2) stored, d int, applied_upgrades text[] not null default '{}');
create table counts (id int not null primary key, n int generated by default as identity, d int, applied_upgrades text[] not null default '{}');
create table remembers (id int not null primary key, n int, d int, applied_upgrades varchar[] not null default '{}');
select * from refused($$select migrator.create_shadow('adopting', shadow => 'in_parts')$$);
select * from refused($$select migrator.create_shadow('adopting', shadow => 'generates')$$);
select * from refused($$select migrator.create_shadow('adopting', shadow => 'counts')$$);
select * from refused($$select migrator.create_shadow('adopting', shadow => 'remembers')$$);
select migrator.retire_upgrade('adopting', 'cents', incomplete => true) as retired;
call migrator.run_upgrades('adopting');
select migrator.register_upgrade('adopting', 'd', '{"d": "n + 1"}') is not null as registered;
select migrator.create_shadow('adopting', shadow => 'in_parts') is not null as made;
select migrator.cancel('adopting');

-- The column of names neither comes nor goes while a change is open, on either side of its swap.
create table changing (id int primary key, a text, b text);
insert into changing values (1, 'one');
select migrator.create_shadow('changing', 'alter column id type bigint') is not null as made;
select * from refused($$select migrator.register_upgrade('changing', 'upper', '{"b": "upper(a)"}')$$);
select * from refused($$select * from migrator.explain_upgrade('changing', 'upper', '{"b": "upper(a)"}')$$);
call migrator.prepare('changing');
select relation, swapped from migrator.swap('changing');
select * from refused($$select migrator.register_upgrade('changing', 'upper', '{"b": "upper(a)"}')$$);
select relation, rolled_back from migrator.rollback('changing');
select migrator.cancel('changing');
select migrator.register_upgrade('changing', 'upper', '{"b": "upper(a)"}') is not null as registered;
call migrator.run_upgrades('changing');
select migrator.verify_upgrades('changing');
call migrator.run_upgrades('changing');
select migrator.create_shadow('changing', 'alter column id type bigint') is not null as made;
call migrator.prepare('changing');
select relation, swapped from migrator.swap('changing');
call migrator.run_upgrades('changing');
select migrator.retire_upgrade('changing', 'upper') as retired;
call migrator.run_upgrades('changing');
select * from refused($$select migrator.forget_upgrades('changing')$$);
select relation, rolled_back from migrator.rollback('changing');
table changing;
select migrator.cancel('changing');
select migrator.forget_upgrades('changing') as column_gone;
table changing;

\x off
select t, migrator.finish(t) from unnest('{priced, worded, late, ordered}'::regclass[]) t;
drop schema upgrade_changes cascade;
