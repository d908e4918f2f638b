-- Rows that the new shape refuses are set aside: the change becomes ready without them, and only the swap is refused.
create table public.bad (id integer primary key, word text not null);
insert into public.bad select n, 'ok' from generate_series(1, 1000) n;
update public.bad set word = 'much too long' where id in (5, 900);
select migrator.create_shadow('public.bad', 'alter column word type varchar(4), alter column word drop not null') is not null as begun;
call migrator.prepare('public.bad');
select state, bad_rows from migrator.status where relation = 'public.bad';
select key, direction, sqlstate, message from migrator.bad_rows where relation = 'public.bad' order by key;
select * from migrator.verify('public.bad');
select swapped from migrator.swap('public.bad'); \echo :LAST_ERROR_SQLSTATE
-- Mended, they are taken in by themselves.
update public.bad set word = 'fine' where id = 5;
delete from public.bad where id = 900;
select swapped from migrator.swap('public.bad');
select count(*), max(word) filter (where id = 5) as mended from public.bad;
-- The same on the way back.
update public.bad set word = null where id = 7;
select step from migrator.advance((select change from migrator.status where relation = 'public.bad'));
select bad_rows, unfit like '{"id": "7"}: %' as named from migrator.status where relation = 'public.bad';
select rolled_back from migrator.rollback('public.bad'); \echo :LAST_ERROR_SQLSTATE
update public.bad set word = 'some' where id = 7;
select rolled_back from migrator.rollback('public.bad');
select id, word from public.bad where id in (5, 7);
select migrator.cancel('public.bad');
drop table public.bad;
