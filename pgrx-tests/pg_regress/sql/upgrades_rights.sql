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
-- The books of a table that was dropped are not everybody's to throw away, and nobody's while a restored table has its guard.
reset role;
set session authorization regress_rights_owner;
create table upgrades_rights.gone (id int primary key, a text, b text);
select migrator.register_upgrade('upgrades_rights.gone', 'b', '{"b": "a"}') is not null as registered;
reset session authorization;
set search_path = upgrades_rights;
select 'gone'::regclass::oid as gone \gset
create table restored (like gone including all);
select replace(pg_get_triggerdef(oid), 'gone', 'restored') as guard from pg_trigger where tgrelid = 'gone'::regclass and tgname = '~migrator_guard' \gset
:guard;
set client_min_messages = warning;
drop table gone cascade;
reset client_min_messages;
create function refused(statement text, out code text, out message text, out detail text, out hint text) language plpgsql as $$
begin
    execute statement;
exception when others then
    get stacked diagnostics code = returned_sqlstate, message = message_text, detail = pg_exception_detail, hint = pg_exception_hint;
end $$;
create function told(statement text, gone text) returns setof text language sql as $$
    select replace(replace(line, gone, '…'), (select rolname from pg_roles r join pg_extension e on e.extowner = r.oid where extname = 'migrator'), '(owner)')
    from refused(statement) r, unnest(array[r.code, r.message, r.detail, r.hint]) line
$$;
set role regress_rights_stranger;
select told(format('select migrator.forget_upgrades(%s::oid::regclass)', :gone), :'gone');
set role regress_rights_owner;
select told(format('select migrator.forget_upgrades(%s::oid::regclass)', :gone), :'gone');
reset role;
drop table restored;
set role regress_rights_stranger;
select told(format('select migrator.forget_upgrades(%s::oid::regclass)', :gone), :'gone');
set role regress_rights_owner;
select migrator.forget_upgrades(:gone::oid::regclass);
reset role;
select count(*) from migrator.upgraded where relation = :gone;
set client_min_messages = warning;
drop schema upgrades_rights cascade;
drop role regress_rights_owner, regress_rights_reader, regress_rights_stranger, regress_rights_monitor;
