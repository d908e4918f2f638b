-- Upgrades of rows and people who do not own the table: whose expressions run for whom, and who sees rows that failed.
\set SHOW_CONTEXT never
create schema upgrades_rights;
set search_path = upgrades_rights;
create role regress_rights_owner;
create role regress_rights_reader;
create role regress_rights_stranger;
create role regress_rights_monitor in role pg_monitor;
grant usage, create on schema upgrades_rights to regress_rights_owner;
grant usage on schema upgrades_rights to regress_rights_reader, regress_rights_stranger, regress_rights_monitor;
set role regress_rights_owner;
create table secret (word text);
insert into secret values ('the word');
create function probe(guess text) returns boolean immutable language sql as $$ select exists (select from upgrades_rights.secret where word = guess) $$;
create table guarded (id int primary key, a text, b boolean, c int);
insert into guarded values (1, 'x'), (2, 'y');
select migrator.register_upgrade('guarded', 'b', '{"b": "probe(a)"}') is not null as registered;
select migrator.register_upgrade('guarded', 'c', '{"c": "a::int"}') is not null as registered;
grant select on guarded, guarded__current to regress_rights_reader;
-- Expressions run as the owner: only for those who may read the table they are for.
set role regress_rights_stranger;
select migrator.current(row(1, 'the word', null, null, '{}')::upgrades_rights.guarded);
set role regress_rights_reader;
select b, pending_upgrades from guarded__current order by id;
select (migrator.current(g)).b from guarded g order by id;
-- A view of the reader's rights is enough where it covers every column.
set role regress_rights_owner;
revoke select on guarded from regress_rights_reader;
grant select (id, a) on guarded to regress_rights_reader;
set role regress_rights_reader;
select id, a from guarded__current order by id;
select migrator.current(row(1, 'the word', null, null, '{}')::upgrades_rights.guarded);
set role regress_rights_owner;
grant select (b, c, applied_upgrades) on guarded to regress_rights_reader;
set role regress_rights_reader;
select id, b from guarded__current order by id;
-- Rows that failed are shown to those who may read the table.
set role regress_rights_owner;
grant select on guarded to regress_rights_reader;
insert into guarded (id, a) values (3, 'a secret of a user');
select upgrade, key, sqlstate, message, "row" ->> 'a' as a from migrator.upgrade_failures where relation = 'upgrades_rights.guarded';
set role regress_rights_monitor;
select upgrade, key, sqlstate, message, "row" ->> 'a' as a from migrator.upgrade_failures where relation = 'upgrades_rights.guarded';
reset role;
grant regress_rights_monitor to regress_rights_reader;
set role regress_rights_reader;
select upgrade, key, sqlstate, message, "row" ->> 'a' as a from migrator.upgrade_failures where relation = 'upgrades_rights.guarded';
set role regress_rights_owner;
create policy few on guarded using (id < 3);
alter table guarded enable row level security;
set role regress_rights_reader;
select upgrade, key, sqlstate, message, "row" ->> 'a' as a from migrator.upgrade_failures where relation = 'upgrades_rights.guarded';
reset role;
set client_min_messages = warning;
drop schema upgrades_rights cascade;
drop role regress_rights_owner, regress_rights_reader, regress_rights_stranger, regress_rights_monitor;
