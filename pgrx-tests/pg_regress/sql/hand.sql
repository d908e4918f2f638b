-- Upgrades by application code: what is handed out, what comes back, what is set aside, and who may do it.
\set SHOW_CONTEXT never
create schema hand;
set search_path = hand;
set timezone = 'UTC';

create function refused(statement text, out code text, out message text, out detail text, out hint text) language plpgsql as $$
begin
    execute statement;
    code := 'not refused';
exception when others then
    get stacked diagnostics code = returned_sqlstate, message = message_text, detail = pg_exception_detail, hint = pg_exception_hint;
end $$;

create domain grade as text check (value <> 'F');
create type point3 as (x int, y text);
create table article (id bigint primary key, content text, small smallint, amount numeric, big bigint, at timestamptz, tags text[], mark grade, place point3, blocks jsonb,
    slug text unique, needed text not null default 'there', short varchar(5), size int);
insert into article (id, content) select g, 'content ' || g from generate_series(1, 12) g;
select migrator.register_upgrade('article', 'size', '{"size": "length(content)"}') is not null as registered;
select migrator.register_upgrade('article', 'code', inputs => '{content,size}', outputs => '{small,amount,big,at,tags,mark,place,blocks,slug,needed,short}') is not null as registered;

-- What was handed out last, and a call with what somebody makes of it: row → values.
create table handed (key jsonb, "row" jsonb, token uuid, lease_until timestamptz);
create function take(rows int) returns table (id text, has text) language sql as $$
    truncate handed;
    insert into handed select * from migrator.select_batch('hand.article', 'code', rows);
    select key ->> 'id', "row" ->> 'applied_upgrades' from handed order by (key ->> 'id')::bigint;
$$;
create function give(made jsonb, out id text, out applied boolean, out reason text, out comes_back text) returns setof record language sql as $$
    select m.key ->> 'id', m.applied, m.reason, m."row" ->> 'content' from migrator.mark_applied('hand.article', 'code',
        (select jsonb_agg(jsonb_build_object('key', h.key, 'token', h.token, 'values', '{}'::jsonb) || (made -> (h.key ->> 'id')) order by (h.key ->> 'id')::bigint) from handed h where made ? (h.key ->> 'id'))) m;
$$;

-- A row does not get a later upgrade before an earlier one.
select * from take(3);
update article set content = content where id = 2;
select * from take(3);
select * from give('{"2": {"values": {"small": 2}}}');
call migrator.run_upgrades('article');
analyze article;
select name, state, progress, rows_done, failed, lent, waits_for, next_step from migrator.upgrades where relation = 'hand.article' order by ordinal;
-- Oldest key first, and none twice.
select * from take(4);
select count(distinct token) as tokens, bool_and(lease_until > now() + interval '20 s') as for_a_while from handed;

-- Values of all kinds, as jsonb_populate_record() reads them. Numbers in text and in JSON keep all their digits.
select * from give('{"1": {"values": {"small": 7, "amount": "12345678901234567890.123456789", "big": "9007199254740993", "at": "2024-02-03 04:05:06+02", "tags": ["a", "b,c", null],
        "mark": "A", "place": {"x": 1, "y": "z"}, "blocks": [{"n": 12345678901234567890}], "slug": "one", "short": "five5"}},
    "3": {"values": {"big": 9007199254740993, "amount": 0.1234567890123456789012345, "tags": "{x,y}", "blocks": null, "slug": null}},
    "4": {"values": {}}, "5": {}}');
select id, small, amount, big, at, tags, mark, place, blocks, slug, short, applied_upgrades from article where id in (1, 3, 4, 5) order by id;
-- The answer was lost: asked again, it says so again, and nothing is written twice.
update article set slug = 'changed by hand' where id = 1;
select * from give('{"1": {"values": {"slug": "written again"}}}');
select slug from article where id = 1;

-- Nothing is overwritten: what changed comes back as it is now, and is handed out again.
select * from take(4);
update article set content = 'new content' where id = 6;
update article set needed = 'other column' where id = 7;
delete from article where id = 8;
update article set blocks = '"by another"', applied_upgrades = array_append(applied_upgrades, 'code') where id = 9;
select * from give('{"6": {"values": {"slug": "six"}}, "7": {"values": {"slug": "seven"}}, "8": {}, "9": {"values": {"blocks": 1}}}');
select id, slug, needed, blocks, applied_upgrades from article where id between 6 and 9 order by id;
-- The old token is worth nothing any more.
select * from give('{"6": {"values": {"slug": "six"}}, "8": {}}');
select * from take(1);
-- A key that changes takes the row with it.
update article set id = 60 where id = 6;
select * from give('{"6": {"values": {"slug": "six"}}}');
update article set id = 6 where id = 60;

-- What the table refuses costs the row that it is in, and no other.
select * from take(4);
select * from give('{"6": {"values": {"small": "40000"}}, "10": {"values": {"mark": "F"}}, "11": {"values": {"short": "eleven"}}, "12": {"values": {"slug": "twelve"}}}');
select id, slug, applied_upgrades from article where id in (6, 10, 11, 12) order by id;
select key, sqlstate, message, "row" ->> 'content' as content, attempts from migrator.upgrade_failures where relation = 'hand.article' and upgrade = 'code' order by key;
-- They rest for a while; whoever has mended something has them handed out at once.
select * from take(4);
select migrator.retry_failed('article', 'code', '{"id": 6}');
select * from take(4);
select * from give('{"6": {"values": {"slug": "twelve"}}}');
select migrator.retry_failed('article');
select * from take(4);
select * from give('{"6": {"values": {"needed": null}}, "10": {"error": "what application code says"}, "11": {"values": {"amount": "many"}}}');
select key, sqlstate, message, attempts from migrator.upgrade_failures where relation = 'hand.article' and upgrade = 'code' order by key;
select name, state, failed, waits_for, next_step from migrator.upgrades where relation = 'hand.article' and name = 'code';

-- Waived: the row keeps what it has, with the name.
select migrator.waive_failed('article', 'code', '{"id": "10"}', 'not worth it');
select migrator.waive_failed('article', 'code');
select id, slug, size, applied_upgrades from article where id in (6, 10, 11) order by id;
select kind, message, detail - 'handed_out' as detail from migrator.upgrade_events where relation = 'hand.article' and kind = 'waived' order by id;
\x on
select * from refused($$select migrator.waive_failed('hand.article', 'code', '{"id": 10}')$$);
select * from refused($$select migrator.retry_failed('hand.article', 'code', '{"id": 10}')$$);
select * from refused($$select migrator.waive_failed('hand.article', 'none')$$);
select * from refused($$select migrator.waive_failed('hand.article', null)$$);
\x off
select migrator.waive_failed('article', 'code'), migrator.retry_failed('article');

-- Complete, when every row was looked at after the last one came back.
select * from take(10);
call migrator.run_upgrades('article');
select migrator.ensure_upgraded('article', 'code');
select name, state, progress, waits_for, next_step from migrator.upgrades where relation = 'hand.article' order by ordinal;
-- What is written later is handed out later.
insert into article (id, content) values (100, 'late');
select * from take(10);
select state, completed_at from migrator.upgrades where relation = 'hand.article' and name = 'code';
\x on
select * from refused($$select migrator.ensure_upgraded('hand.article', 'none')$$);
select * from refused($$select migrator.ensure_upgraded('hand.article', null)$$);
select * from refused($$select migrator.ensure_upgraded(null, 'code')$$);
select * from refused($$select migrator.ensure_upgraded('handed', 'code')$$);
\x off
select * from give('{"100": {}}');

-- Rows that have a name, of any upgrade: until there is none, and not again for the time of a lease.
select key, "row" ->> 'size' as size from migrator.select_batch('article', 'size', 7, applied => true);
select key, "row" ->> 'size' as size from migrator.select_batch('article', 'size', 7, applied => true);
select count(*) from migrator.select_batch('article', 'size', 7, applied => true);
-- They can be written anew.
insert into handed select * from migrator.select_batch('article', 'code', 1, applied => true);
select * from give('{"1": {"values": {"slug": "anew"}}}');
select slug, applied_upgrades from article where id = 1;

-- What triggers do to a row that comes back.
create function meddle() returns trigger language plpgsql as $$
begin
    if new.slug = 'not written' then return null; end if;
    if new.slug = 'refused' then raise exception 'no such slug' using errcode = 'P0001'; end if;
    if new.slug = 'inputs' then new.content := repeat('x', 10); new.size := null; end if;
    return new;
end $$;
create trigger meddle before update on article for each row execute function meddle();
create function at_the_end() returns trigger language plpgsql as $$ begin raise notice 'at the end as %', current_user = session_user; return null; end $$;
create constraint trigger at_the_end after update on article deferrable initially deferred for each row when (new.slug like 'deferred%') execute function at_the_end();
insert into article (id, content) select g, 'content ' || g from generate_series(200, 203) g;
select * from take(4);
select * from give('{"200": {"values": {"slug": "not written"}}, "201": {"values": {"slug": "refused"}}, "202": {"values": {"slug": "inputs"}}, "203": {"values": {"slug": "deferred"}}}');
select id, content, slug, size, applied_upgrades from article where id between 200 and 203 order by id;

-- What is refused as a whole.
\x on
select * from refused($$select migrator.select_batch(null, 'code')$$);
select * from refused($$select migrator.select_batch('hand.article', null)$$);
select * from refused($$select migrator.select_batch('hand.article', 'none')$$);
select * from refused($$select migrator.select_batch('hand.handed', 'code')$$);
select * from refused($$select migrator.select_batch('hand.article', 'size')$$);
select * from refused($$select migrator.select_batch('hand.article', 'code', 0)$$);
select * from refused($$select migrator.select_batch('hand.article', 'code', lease => '0')$$);
select * from refused($$select migrator.mark_applied('hand.article', 'code', null)$$);
select * from refused($$select migrator.mark_applied('hand.article', 'code', '"row"')$$);
select * from refused($$select migrator.mark_applied('hand.article', 'code', '[1]')$$);
select * from refused($$select migrator.mark_applied('hand.article', 'code', '{"key": {"id": 1}, "token": "7e7b1d1c-0000-4000-8000-000000000000", "value": {"content": "misspelt"}}')$$);
select * from refused($$select migrator.mark_applied('hand.article', 'code', '{"key": {"id": 1}, "token": "7e7b1d1c-0000-4000-8000-000000000000", "error": null}')$$);
select * from refused($$select migrator.mark_applied('hand.article', 'code', '{"key": {"id": 1}, "token": "7e7b1d1c-0000-4000-8000-000000000000", "values": null}')$$);
select * from refused($$select migrator.mark_applied('hand.article', 'code', '{"key": {"id": 1}}')$$);
select * from refused($$select migrator.mark_applied('hand.article', 'code', '{"token": "7e7b1d1c-0000-4000-8000-000000000000"}')$$);
select * from refused($$select migrator.mark_applied('hand.article', 'code', '{"key": {"id": 1}, "token": "no uuid"}')$$);
select * from refused($$select migrator.mark_applied('hand.article', 'code', '{"key": {"id": 1}, "token": "7e7b1d1c-0000-4000-8000-000000000000", "values": [1]}')$$);
select * from refused($$select migrator.mark_applied('hand.article', 'code', '{"key": {"id": 1}, "token": "7e7b1d1c-0000-4000-8000-000000000000", "values": {"nowhere": 1}}')$$);
select * from refused($$select migrator.mark_applied('hand.article', 'code', '{"key": {"id": 1}, "token": "7e7b1d1c-0000-4000-8000-000000000000", "values": {"content": "x"}}')$$);
select * from refused($$select migrator.mark_applied('hand.article', 'code', '{"key": {"id": 1}, "token": "7e7b1d1c-0000-4000-8000-000000000000", "values": {"applied_upgrades": ["x"]}}')$$);
select migrator.pause_upgrades('article');
select * from refused($$select migrator.select_batch('hand.article', 'code')$$);
select migrator.resume_upgrades('article');
\x off
-- A token that nobody was given; an object instead of an array; the key as a number.
select key, applied, reason, "row" ->> 'content' as content from migrator.mark_applied('article', 'code', '{"key": {"id": 12}, "token": "7e7b1d1c-0000-4000-8000-000000000000", "values": {}}');

-- Without declared outputs every column may be written that nothing else depends on.
create table open (a int, b text, "it's {odd}" text, made text, generated text generated always as (b || '!') stored, n int generated always as identity, i text, free text, primary key (a, b));
insert into open (a, b, i) values (1, 'x', 'i'), (1, 'y "quoted" \ {}', 'i');
select migrator.register_upgrade('open', 'before', '{"made": "i"}') is not null as registered;
select migrator.register_upgrade('open', 'it''s {open}', inputs => '{a}') is not null as registered;
select count(*) from migrator.step('open'), generate_series(1, 1);
select count(*) from migrator.step('open');
create temp table opened as select * from migrator.select_batch('open', 'it''s {open}');
select key, "row" from opened order by key;
create function try_open(made jsonb) returns text language sql as $$
    select jsonb_build_object('key', key, 'token', token, 'values', made)::text from opened order by key limit 1 $$;
\x on
select * from refused(format($$select migrator.mark_applied('hand.open', 'it''s {open}', %L)$$, try_open('{"a": 2}')));
select * from refused(format($$select migrator.mark_applied('hand.open', 'it''s {open}', %L)$$, try_open('{"generated": 2}')));
select * from refused(format($$select migrator.mark_applied('hand.open', 'it''s {open}', %L)$$, try_open('{"n": 2}')));
select * from refused(format($$select migrator.mark_applied('hand.open', 'it''s {open}', %L)$$, try_open('{"made": "m"}')));
select * from refused(format($$select migrator.mark_applied('hand.open', 'it''s {open}', %L)$$, try_open('{"i": "i"}')));
\x off
select key, applied, reason from migrator.mark_applied('open', 'it''s {open}',
    (select jsonb_agg(jsonb_build_object('key', key, 'token', token, 'values', '{"it''s {odd}": "\"quoted\" \\ {}", "free": "f"}'::jsonb)) from opened)) order by key;
select * from open order by a, b;

-- Who may: the owner, and a role that may write every row itself.
create role regress_hand_worker;
create role regress_hand_reader;
grant usage on schema hand to regress_hand_worker, regress_hand_reader;
grant select, update on article, open to regress_hand_worker;
grant select on article to regress_hand_reader;
alter table open enable row level security;
create policy nothing on open for select using (false);
insert into article (id, content, slug) values (300, 'granted', null);
\x on
set role regress_hand_reader;
select * from refused($$select migrator.select_batch('hand.article', 'code')$$);
select * from refused($$select migrator.retry_failed('hand.article')$$);
set role regress_hand_worker;
select * from refused($$select migrator.select_batch('hand.open', 'it''s {open}')$$);
select * from refused($$select migrator.waive_failed('hand.article', 'code')$$);
select * from refused($$select migrator.ensure_upgraded('hand.article', 'code')$$);
\x off
create temp table granted as select * from migrator.select_batch('hand.article', 'code');
select key from granted order by key;
select m.key, m.applied from migrator.mark_applied('hand.article', 'code', (select jsonb_agg(to_jsonb(g) || '{"values": {}}') from granted g)) m order by key;
drop table granted;
reset role;

-- ensure_upgraded does the work itself where it is told to, and says what is in its way.
create table needed (id int primary key, a text, b int check (b < 20));
insert into needed select g, repeat('x', g) from generate_series(1, 10) g;
select migrator.register_upgrade('needed', 'b', '{"b": "length(a)"}') is not null as registered;
\x on
select * from refused($$select migrator.ensure_upgraded('hand.needed', 'b')$$);
\x off
select migrator.ensure_upgraded('needed', 'b', drive => true);
select count(*) filter (where applied_upgrades = '{b}' and b = length(a)) from needed;
insert into needed values (11, repeat('y', 30));
select migrator.register_upgrade('needed', 'c', inputs => '{b}') is not null as registered;
\x on
select * from refused($$select migrator.ensure_upgraded('hand.needed', 'b', drive => true)$$);
\x off
-- Waived, it goes on without what it has not got.
select migrator.retry_failed('needed');
select migrator.waive_failed('needed', 'b', '{"id": 11}', 'thirty is right for this one');
select * from needed where id = 11;
select migrator.ensure_upgraded('needed', 'b', drive => true);
-- An input that changes has it derived again, waived or not.
update needed set a = 'short' where id = 11;
select * from needed where id = 11;

-- Waiving is about one upgrade: those before it come first, those behind it go on.
create table chained (id int primary key, a text, b int, c int, d text);
insert into chained values (1, '1'), (2, 'two'), (3, 'three');
select migrator.register_upgrade('chained', 'b', '{"b": "a::int"}') is not null as registered;
select migrator.register_upgrade('chained', 'c', '{"c": "100 / (b - 1)"}') is not null as registered;
select migrator.register_upgrade('chained', 'd', '{"d": "a || c"}') is not null as registered;
call migrator.run_upgrades('chained');
select upgrade, key, sqlstate from migrator.upgrade_failures where relation = 'hand.chained' order by key;
select migrator.waive_failed('chained', 'c', '{"id": 1}');
select migrator.waive_failed('chained', 'b', '{"id": 2}');
select * from chained order by id;
-- Mended by hand, or by a better function: tried again.
update chained set a = '3' where id = 3;
select migrator.retry_failed('chained', 'b', '{"id": 3}');
select migrator.retry_failed('chained');
select * from chained order by id;
-- All that failed at once.
insert into chained values (4, 'four');
update chained set a = 'five', applied_upgrades = '{}' where id = 3;
select upgrade, key, sqlstate from migrator.upgrade_failures where relation = 'hand.chained' order by key, upgrade;
select migrator.waive_failed('chained', 'b');
select * from chained order by id;
select count(*) from migrator.upgrade_failures where relation = 'hand.chained';

-- A value that the table refuses costs its own row, whatever the SQLSTATE that it is refused with.
create table odd (id int primary key, a text, b text);
insert into odd select g, 'a' from generate_series(1, 5) g;
create function refuse() returns trigger language plpgsql as $$
begin
    if new.b like '_____' then raise exception 'not this one' using errcode = new.b; end if;
    return new;
end $$;
create trigger refuse before update on odd for each row execute function refuse();
select migrator.register_upgrade('odd', 'code', inputs => '{a}', outputs => '{b}') is not null as registered;
create temp table handed as select * from migrator.select_batch('odd', 'code', 4);
create function back(a_b text[]) returns jsonb language sql as $$
    select jsonb_agg(jsonb_build_object('key', h.key, 'token', h.token, 'values', jsonb_build_object('b', a_b[(h.key ->> 'id')::int])) order by h.key) from handed h
$$;
select key, applied, reason from migrator.mark_applied('odd', 'code', back('{fits,AB123,54000,fits too}'));
select id, b, applied_upgrades from odd order by id;
select key, sqlstate, message from migrator.upgrade_failures where relation = 'hand.odd' order by key;
-- Where the guard is not in place, nothing is handed out or taken back.
alter table odd disable trigger "~migrator_guard";
\x on
select * from refused($$select migrator.select_batch('hand.odd', 'code')$$);
select * from refused($$select migrator.mark_applied('hand.odd', 'code', hand.back('{x,y,z,z}'))$$);
\x off
select migrator.resume_upgrades('odd');
select key from migrator.select_batch('odd', 'code');
-- A code that somebody caught before is not that of the error which came later, and was nobody's.
create table caught (id int primary key, a text, b text);
insert into caught values (1, 'a');
create function broken(a text) returns text immutable language plpgsql as $$
begin
    begin
        raise exception 'not this one' using errcode = 'AB123';
    exception when others then null;
    end;
    raise exception 'broken' using errcode = 'XX000';
end $$;
select migrator.register_upgrade('caught', 'broken', '{"b": "broken(a)"}') is not null as registered;
call migrator.run_upgrades('caught');
select state, waits_for from migrator.upgrades where relation = 'hand.caught';
-- Nor is anything handed out while the table's upgrades are blocked; what is out can come back.
create table stuck (id int primary key, a text, b text, c text);
insert into stuck values (1, 'a');
create function gone(a text) returns text immutable language plpgsql as $$ begin return (select x from hand.nowhere); end $$;
select migrator.register_upgrade('stuck', 'code', inputs => '{a}', outputs => '{b}') is not null as registered;
create temp table stuck_handed as select * from migrator.select_batch('stuck', 'code');
select migrator.register_upgrade('stuck', 'gone', '{"c": "gone(b)"}') is not null as registered;
update migrator.upgraded set blocked = 'column c is gone', blocked_hint = 'Mend it.' where relation = 'stuck'::regclass;
\x on
select * from refused($$select migrator.select_batch('hand.stuck', 'code')$$);
\x off
select name, state, waits_for, next_step from migrator.upgrades where relation = 'hand.stuck' order by ordinal;
select applied, reason from migrator.mark_applied('stuck', 'code', (select jsonb_agg(to_jsonb(s) || '{"values": {"b": "back"}}') from stuck_handed s));

-- Retired: nothing is handed out or taken back any more.
select migrator.retire_upgrade('article', 'code', incomplete => true);
\x on
select * from refused($$select migrator.select_batch('hand.article', 'code')$$);
select * from refused($$select migrator.mark_applied('hand.article', 'code', '{"key": {"id": 1}, "token": "7e7b1d1c-0000-4000-8000-000000000000", "values": {}}')$$);
select * from refused($$select migrator.ensure_upgraded('hand.article', 'code')$$);

set client_min_messages = warning;
\x off
drop schema hand cascade;
drop owned by regress_hand_worker, regress_hand_reader;
drop role regress_hand_worker, regress_hand_reader;
