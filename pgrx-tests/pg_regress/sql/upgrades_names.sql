-- Names that rows remember: whose they are when upgrades are retired, born with rows, and what is left in the end.
\set SHOW_CONTEXT never
create schema upgrades_names;
set search_path = upgrades_names;
create function refused(statement text, out code text, out message text, out detail text, out hint text) language plpgsql as $$
begin
    execute statement;
    code := 'not refused';
exception when others then
    get stacked diagnostics code = returned_sqlstate, message = message_text, detail = pg_exception_detail, hint = pg_exception_hint;
end $$;

-- An adopted column may carry names of others: they stay when the last upgrade is retired.
create table adopted (id int primary key, a text, b text, applied_upgrades text[] not null default '{}');
insert into adopted values (1, 'a', null, '{foreign}'), (2, 'b', null, '{}');
select migrator.register_upgrade('adopted', 'b', '{"b": "upper(a)"}') is not null as registered;
call migrator.run_upgrades('adopted');
select migrator.retire_upgrade('adopted', 'b');
call migrator.run_upgrades('adopted');
select * from adopted order by id;
-- So do those that an application put into a column of ours.
create table ours (id int primary key, a text, b text);
insert into ours values (1, 'a'), (2, 'b');
select migrator.register_upgrade('ours', 'b', '{"b": "upper(a)"}') is not null as registered;
update ours set applied_upgrades = '{foreign}' where id = 1;
call migrator.run_upgrades('ours');
select migrator.retire_upgrade('ours', 'b');
call migrator.run_upgrades('ours');
select * from ours order by id;
-- Where there are none, all names go in one moment, and with the last name the guard.
update ours set applied_upgrades = '{}';
select migrator.register_upgrade('ours', 'again', '{"b": "lower(a)"}') is not null as registered;
call migrator.run_upgrades('ours');
select migrator.retire_upgrade('ours', 'again');
select * from ours__current order by id;
select tgrelid::regclass, tgname from pg_trigger where tgrelid in ('ours'::regclass, 'adopted'::regclass);

-- Rows of an application that knows an upgrade are born with its name: the column's default says so.
create table born (id int primary key, a text, b text, c text);
insert into born values (1, 'old');
select migrator.register_upgrade('born', 'code', inputs => '{a}', outputs => '{b}') is not null as registered;
select migrator.register_upgrade('born', 'after', '{"c": "b || ''!''"}') is not null as registered;
alter table born alter column applied_upgrades set default '{code}';
insert into born (id, a, b) values (2, 'new', 'by code');
select * from born order by id;
update born set b = 'by code', applied_upgrades = '{code}' where id = 1;
call migrator.run_upgrades('born');
select migrator.retire_upgrade('born', 'code');
insert into born (id, a, b) values (3, 'new', 'by code');
call migrator.run_upgrades('born');
\x on
select * from refused($$select migrator.register_upgrade('born', 'code', inputs => '{a}')$$);
\x off
select name, state from migrator.upgrades where relation = 'upgrades_names.born' order by ordinal;
alter table born alter column applied_upgrades set default '{}';
call migrator.run_upgrades('born');
select name, state from migrator.upgrades where relation = 'upgrades_names.born' order by ordinal;
alter table born alter column applied_upgrades set default '{code}';
\x on
select * from refused($$select migrator.register_upgrade('born', 'code', inputs => '{a}')$$);
\x off
select * from born order by id;

-- When all is retired, the table can be made one that never had upgrades: what was made here goes, what was there stays.
\x on
select * from refused($$select migrator.forget_upgrades('born')$$);
alter table born alter column applied_upgrades set default '{}';
select migrator.retire_upgrade('born', 'after');
call migrator.run_upgrades('born');
create view reader as select id, c from born__current;
select * from refused($$select migrator.forget_upgrades('born')$$);
\x off
drop view reader;
select migrator.forget_upgrades('born');
\d born
select to_regclass('born__current'), count(*) from migrator.upgrades where relation = 'upgrades_names.born';
select migrator.forget_upgrades('adopted');
select * from adopted order by id;
select migrator.register_upgrade('born', 'code', '{"c": "a"}') is not null as registered;
-- A table that was dropped: doctor names what is left of it.
select 'born'::regclass::oid as born \gset
set client_min_messages = warning;
drop table born cascade;
reset client_min_messages;
select severity, replace(subject, :'born', '…') as subject, problem, replace(remedy, :'born', '…') as remedy from migrator.doctor() where subject like '%' || :'born';
select migrator.forget_upgrades(:born::oid::regclass);
select count(*) from migrator.doctor() where subject like '%' || :'born';
\x on
select * from refused('select migrator.forget_upgrades(4294967295::oid::regclass)');
\x off

-- A name that was used before is free when no row has it, and not when a client has written it back since.
create table again (id int primary key, a text, b text);
insert into again values (1, 'one'), (2, 'two');
select migrator.register_upgrade('again', 'u', '{"b": "upper(a)"}') is not null as registered;
call migrator.run_upgrades('again');
select migrator.retire_upgrade('again', 'u');
update again set a = 'stale', b = 'STALE', applied_upgrades = '{u}' where id = 1;
\x on
select * from refused($$select migrator.register_upgrade('again', 'u', '{"b": "lower(a)"}')$$);
\x off
update upgrades_names.again set applied_upgrades = array_remove(applied_upgrades, 'u') where applied_upgrades @> array['u'];
select migrator.register_upgrade('again', 'u', '{"b": "lower(a)"}') is not null as registered;
call migrator.run_upgrades('again');
select * from again order by id;

-- Names with quotes in what is to be called next.
create table "it's" (id int primary key, a text, b text);
select migrator.register_upgrade('"it''s"', 'it''s', '{"b": "a"}') is not null as registered;
\x on
select * from refused($$select migrator.retire_upgrade('"it''s"', 'it''s')$$);
select * from refused($$select migrator.register_upgrade('"it''s"', 'other', '{"b": "a"}')$$);
\x off
set client_min_messages = warning;
drop schema upgrades_names cascade;
