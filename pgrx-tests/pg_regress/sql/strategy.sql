-- Batches of rows, or the table written anew: what is chosen, and what is said of it.
create schema strategy;
set search_path = strategy, public;
set client_min_messages = notice;

-- A small table.
create table small (id int primary key, a text, b int);
select migrator.register_upgrade('small', 'words', '{"b": "length(a)"}', strategy => 'auto') is not null as registered;

-- A big one, of a row a block: all its rows lack it.
create table big (id int primary key, a text, b int) with (fillfactor = 10);
insert into big select g, repeat('x', 800) from generate_series(1, 9000) g;
analyze big;
select note from migrator.explain_upgrade('big', 'words', '{"b": "length(a)"}', strategy => 'auto') where step = 'create_shadow';
-- What batches would cost; and that the view has no name to take.
select step, statement, rows, bytes between 7200000 and 9000000 as bytes, wal_bytes > bytes as wal, seconds >= 0 as seconds
  from migrator.explain_upgrade('big', 'words', '{"b": "length(a)"}', ordinal => 3, batch_size => 10, cleanup_batch_size => 20, target => '1 s', view_name => 'big_now')
 where step <> 'register_upgrade' or statement like '%view%';
select note from migrator.explain_upgrade('big', 'words', '{"b": "1 / (length(a) - 800)"}') where step = 'step';
select count(*) from migrator.explain_upgrade('big', 'words', '{"b": "length(a)"}', view_name => 'small');
select migrator.register_upgrade('big', 'words', '{"b": "length(a)"}', strategy => 'auto') is not null as registered;
select state, strategy, change is not null as by_a_change, waits_for like 'change % writes the table anew' as waits_for_it from migrator.upgrades where relation = 'strategy.big';
select done, reason like 'change % writes the table anew: call migrator.prepare%' as says_so from migrator.step('big');
-- Taken back, it is done in batches.
set client_min_messages = warning;
select migrator.cancel(change => change) from migrator.upgrades where relation = 'strategy.big';
set client_min_messages = notice;
select state, change is null as by_batches, waits_for from migrator.upgrades where relation = 'strategy.big';
select detail ->> 'strategy' as strategy, detail ->> 'why' as why from migrator.upgrade_events where relation in ('strategy.small', 'strategy.big') and kind = 'registered' order by id;

-- Most rows have the name: they were born with it.
create table half (id int primary key, a text, b int, applied_upgrades text[] not null default '{words}') with (fillfactor = 10);
insert into half select g, repeat('x', 800), 800 from generate_series(1, 9000) g;
update half set applied_upgrades = '{}' where id % 5 = 0;
analyze half;
select migrator.register_upgrade('half', 'words', '{"b": "length(a)"}', strategy => 'auto') is not null as registered;

-- The rows of a partitioned table are elsewhere.
create table apart (id int primary key, a text, b int) partition by range (id);
select migrator.register_upgrade('apart', 'words', '{"b": "length(a)"}', strategy => 'auto') is not null as registered;

-- Something hangs on it that a change does not carry over; or it is a function that makes the rows.
create table hung (id int primary key, a text, b int, c int) with (fillfactor = 10);
insert into hung select id, a from big;
create materialized view hangs as select id from hung;
select migrator.register_upgrade('hung', 'words', '{"b": "length(a)"}', strategy => 'auto') is not null as registered;
create function better(h hung) returns hung immutable language sql as $$ select h $$;
select migrator.register_upgrade('hung', 'better', function => 'better(hung)', outputs => '{c}', strategy => 'auto') is not null as registered;
create table asked (id int primary key, a text, b int);
create materialized view hangs_too as select id from asked;
select migrator.register_upgrade('asked', 'words', '{"b": "length(a)"}', strategy => 'rewrite');

set client_min_messages = warning;
drop schema strategy cascade;
