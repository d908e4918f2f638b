-- What every call about a change refuses: the SQLSTATE, what became of it, and the call that helps.
\set SHOW_CONTEXT never
select setval('migrator.change_id_seq', 6000) as ignored \gset
create schema refusals;
set search_path = refusals;
set client_min_messages = warning;
create table orders (id int primary key, note text);
insert into orders values (1, 'a');
create role regress_refusals_stranger;
grant usage on schema refusals to regress_refusals_stranger;

-- Which change? None is named, two are, one that never was, a table without one.
select migrator.start_sync(); \echo :LAST_ERROR_SQLSTATE
select * from migrator.copy_batch(); \echo :LAST_ERROR_SQLSTATE
call migrator.prepare(); \echo :LAST_ERROR_SQLSTATE
select * from migrator.verify(); \echo :LAST_ERROR_SQLSTATE
select * from migrator.rollback(); \echo :LAST_ERROR_SQLSTATE
select migrator.finish(); \echo :LAST_ERROR_SQLSTATE
select migrator.cancel(); \echo :LAST_ERROR_SQLSTATE
select migrator.pause(); \echo :LAST_ERROR_SQLSTATE
select migrator.resume(); \echo :LAST_ERROR_SQLSTATE
select migrator.postpone(); \echo :LAST_ERROR_SQLSTATE
select migrator.validate(); \echo :LAST_ERROR_SQLSTATE
select migrator.start_sync('orders', 1); \echo :LAST_ERROR_SQLSTATE
select * from migrator.copy_batch('orders', 1); \echo :LAST_ERROR_SQLSTATE
call migrator.prepare('orders', 1); \echo :LAST_ERROR_SQLSTATE
select * from migrator.verify('orders', 1); \echo :LAST_ERROR_SQLSTATE
select * from migrator.swap('orders', 1); \echo :LAST_ERROR_SQLSTATE
select * from migrator.rollback('orders', 1); \echo :LAST_ERROR_SQLSTATE
select migrator.finish('orders', 1); \echo :LAST_ERROR_SQLSTATE
select migrator.cancel('orders', 1); \echo :LAST_ERROR_SQLSTATE
select migrator.pause('orders', 1); \echo :LAST_ERROR_SQLSTATE
select migrator.resume('orders', 1); \echo :LAST_ERROR_SQLSTATE
select migrator.postpone('orders', 1); \echo :LAST_ERROR_SQLSTATE
select migrator.validate('orders', 1); \echo :LAST_ERROR_SQLSTATE
select migrator.start_sync(change => 999999); \echo :LAST_ERROR_SQLSTATE
select * from migrator.copy_batch(change => 999999); \echo :LAST_ERROR_SQLSTATE
call migrator.prepare(change => 999999); \echo :LAST_ERROR_SQLSTATE
select * from migrator.verify(change => 999999); \echo :LAST_ERROR_SQLSTATE
select * from migrator.swap(change => 999999); \echo :LAST_ERROR_SQLSTATE
select * from migrator.rollback(change => 999999); \echo :LAST_ERROR_SQLSTATE
select migrator.finish(change => 999999); \echo :LAST_ERROR_SQLSTATE
select migrator.cancel(change => 999999); \echo :LAST_ERROR_SQLSTATE
select migrator.pause(change => 999999); \echo :LAST_ERROR_SQLSTATE
select migrator.resume(change => 999999); \echo :LAST_ERROR_SQLSTATE
select migrator.postpone(change => 999999); \echo :LAST_ERROR_SQLSTATE
select migrator.validate(change => 999999); \echo :LAST_ERROR_SQLSTATE
select * from migrator.advance(999999); \echo :LAST_ERROR_SQLSTATE
select migrator.note_event(999999, 'note', 'a note'); \echo :LAST_ERROR_SQLSTATE
select migrator.start_sync('orders'); \echo :LAST_ERROR_SQLSTATE
select * from migrator.copy_batch('orders'); \echo :LAST_ERROR_SQLSTATE
call migrator.prepare('orders'); \echo :LAST_ERROR_SQLSTATE
select * from migrator.verify('orders'); \echo :LAST_ERROR_SQLSTATE
select * from migrator.swap('orders'); \echo :LAST_ERROR_SQLSTATE
select * from migrator.rollback('orders'); \echo :LAST_ERROR_SQLSTATE
select migrator.finish('orders'); \echo :LAST_ERROR_SQLSTATE
select migrator.cancel('orders'); \echo :LAST_ERROR_SQLSTATE
select migrator.pause('orders'); \echo :LAST_ERROR_SQLSTATE
select migrator.resume('orders'); \echo :LAST_ERROR_SQLSTATE
select migrator.postpone('orders'); \echo :LAST_ERROR_SQLSTATE
select migrator.validate('orders'); \echo :LAST_ERROR_SQLSTATE
select migrator.ensure_changed('orders'); \echo :LAST_ERROR_SQLSTATE

-- Not begun yet.
select migrator.create_shadow('orders', 'alter id type bigint') as change \gset
select migrator.create_shadow('orders', 'add column a int'); \echo :LAST_ERROR_SQLSTATE
select * from migrator.copy_batch('orders'); \echo :LAST_ERROR_SQLSTATE
select * from migrator.verify('orders'); \echo :LAST_ERROR_SQLSTATE
select * from migrator.swap('orders'); \echo :LAST_ERROR_SQLSTATE
select * from migrator.rollback('orders'); \echo :LAST_ERROR_SQLSTATE
select migrator.finish('orders'); \echo :LAST_ERROR_SQLSTATE
select migrator.ensure_changed('orders'); \echo :LAST_ERROR_SQLSTATE

-- Not in a transaction block, not in a function, not under an old snapshot.
begin;
select migrator.start_sync('orders'); \echo :LAST_ERROR_SQLSTATE
rollback;
begin;
call migrator.prepare('orders'); \echo :LAST_ERROR_SQLSTATE
rollback;
create function prepares() returns void language plpgsql as $$ begin call migrator.prepare('refusals.orders'); end $$;
select prepares(); \echo :LAST_ERROR_SQLSTATE
do $$ begin call migrator.prepare('refusals.orders'); exception when undefined_table then null; end $$; \echo :LAST_ERROR_SQLSTATE
set default_transaction_isolation = 'repeatable read';
select * from migrator.advance(:change); \echo :LAST_ERROR_SQLSTATE
select * from migrator.copy_batch('orders'); \echo :LAST_ERROR_SQLSTATE
call migrator.prepare('orders'); \echo :LAST_ERROR_SQLSTATE
select migrator.ensure_changed('orders'); \echo :LAST_ERROR_SQLSTATE
reset default_transaction_isolation;

-- Not by somebody else.
set role regress_refusals_stranger;
select migrator.start_sync('orders'); \echo :LAST_ERROR_SQLSTATE
select * from migrator.copy_batch('orders'); \echo :LAST_ERROR_SQLSTATE
call migrator.prepare('orders'); \echo :LAST_ERROR_SQLSTATE
select * from migrator.verify('orders'); \echo :LAST_ERROR_SQLSTATE
select * from migrator.swap('orders'); \echo :LAST_ERROR_SQLSTATE
select * from migrator.rollback('orders'); \echo :LAST_ERROR_SQLSTATE
select migrator.finish('orders'); \echo :LAST_ERROR_SQLSTATE
select migrator.cancel('orders'); \echo :LAST_ERROR_SQLSTATE
select migrator.pause('orders'); \echo :LAST_ERROR_SQLSTATE
select migrator.resume('orders'); \echo :LAST_ERROR_SQLSTATE
select migrator.postpone('orders'); \echo :LAST_ERROR_SQLSTATE
select migrator.validate('orders'); \echo :LAST_ERROR_SQLSTATE
select * from migrator.advance(:change); \echo :LAST_ERROR_SQLSTATE
select migrator.note_event(:change, 'note', 'a note'); \echo :LAST_ERROR_SQLSTATE
select migrator.ensure_changed('orders'); \echo :LAST_ERROR_SQLSTATE
reset role;

-- On its way, paused, blocked.
select migrator.start_sync('orders');
select migrator.start_sync('orders'); \echo :LAST_ERROR_SQLSTATE
select migrator.pause('orders');
select * from migrator.copy_batch('orders'); \echo :LAST_ERROR_SQLSTATE
select * from migrator.verify('orders'); \echo :LAST_ERROR_SQLSTATE
select * from migrator.swap('orders'); \echo :LAST_ERROR_SQLSTATE
call migrator.prepare('orders'); \echo :LAST_ERROR_SQLSTATE
select migrator.resume('orders');
select step from migrator.advance(:change);
alter table orders disable trigger user;
select reason from migrator.advance(:change);
select * from migrator.advance(:change); \echo :LAST_ERROR_SQLSTATE
select * from migrator.copy_batch('orders'); \echo :LAST_ERROR_SQLSTATE
select * from migrator.verify('orders'); \echo :LAST_ERROR_SQLSTATE
select * from migrator.swap('orders'); \echo :LAST_ERROR_SQLSTATE
call migrator.prepare('orders'); \echo :LAST_ERROR_SQLSTATE
alter table orders enable trigger user;
select migrator.start_sync('orders');
call migrator.prepare('orders');

-- Ready.
select * from migrator.rollback('orders'); \echo :LAST_ERROR_SQLSTATE
select migrator.finish('orders'); \echo :LAST_ERROR_SQLSTATE
select migrator.start_sync('orders'); \echo :LAST_ERROR_SQLSTATE
begin;
select * from migrator.swap('orders'); \echo :LAST_ERROR_SQLSTATE
rollback;
begin;
select migrator.cancel('orders'); \echo :LAST_ERROR_SQLSTATE
rollback;
set default_transaction_isolation = 'repeatable read';
select * from migrator.verify('orders'); \echo :LAST_ERROR_SQLSTATE
select * from migrator.swap('orders'); \echo :LAST_ERROR_SQLSTATE
reset default_transaction_isolation;
select migrator.pause('orders');
select * from migrator.swap('orders'); \echo :LAST_ERROR_SQLSTATE
select migrator.resume('orders');
create index orders_note on orders (note);
select * from migrator.swap('orders'); \echo :LAST_ERROR_SQLSTATE
drop index orders_note;
select swapped from migrator.swap('orders');

-- Swapped.
select * from migrator.swap('orders'); \echo :LAST_ERROR_SQLSTATE
select migrator.cancel('orders'); \echo :LAST_ERROR_SQLSTATE
select migrator.start_sync('orders'); \echo :LAST_ERROR_SQLSTATE
select * from migrator.verify('orders'); \echo :LAST_ERROR_SQLSTATE
select migrator.create_shadow('orders', 'add column a int'); \echo :LAST_ERROR_SQLSTATE
begin;
select * from migrator.rollback('orders'); \echo :LAST_ERROR_SQLSTATE
rollback;
begin;
select migrator.finish('orders'); \echo :LAST_ERROR_SQLSTATE
rollback;
alter table orders add column late int;
select * from migrator.rollback('orders'); \echo :LAST_ERROR_SQLSTATE
alter table orders drop column late;
select format('create view kept as select id from migrator_backup_%s.orders', :change) \gexec
select migrator.finish('orders'); \echo :LAST_ERROR_SQLSTATE
drop view kept;
select migrator.finish('orders');

-- Over.
select migrator.start_sync(change => :change); \echo :LAST_ERROR_SQLSTATE
select * from migrator.copy_batch(change => :change); \echo :LAST_ERROR_SQLSTATE
call migrator.prepare(change => :change);
select * from migrator.verify(change => :change); \echo :LAST_ERROR_SQLSTATE
select * from migrator.swap(change => :change); \echo :LAST_ERROR_SQLSTATE
select * from migrator.rollback(change => :change); \echo :LAST_ERROR_SQLSTATE
select migrator.finish(change => :change); \echo :LAST_ERROR_SQLSTATE
select migrator.cancel(change => :change); \echo :LAST_ERROR_SQLSTATE
select migrator.pause(change => :change); \echo :LAST_ERROR_SQLSTATE
select migrator.resume(change => :change); \echo :LAST_ERROR_SQLSTATE
select migrator.postpone(change => :change); \echo :LAST_ERROR_SQLSTATE
select migrator.validate(change => :change);

-- A row that the new shape refuses; a table that is gone.
select migrator.create_shadow('orders', 'alter note type varchar(3)') as change \gset
call migrator.prepare('orders');
insert into orders values (2, 'too long');
select * from migrator.swap('orders'); \echo :LAST_ERROR_SQLSTATE
drop table orders cascade;
select * from migrator.advance(:change); \echo :LAST_ERROR_SQLSTATE
select * from migrator.swap(change => :change); \echo :LAST_ERROR_SQLSTATE
select migrator.cancel(change => :change);
-- … after the swap: what is left of it is not dropped.
create table orders (id int primary key, note text);
select migrator.create_shadow('orders', 'alter id type bigint') as change \gset
call migrator.prepare('orders');
select swapped from migrator.swap('orders');
drop table orders;
select * from migrator.advance(:change); \echo :LAST_ERROR_SQLSTATE
select * from migrator.rollback(change => :change); \echo :LAST_ERROR_SQLSTATE
select migrator.finish(change => :change); \echo :LAST_ERROR_SQLSTATE
select format('alter table migrator_backup_%s.orders set schema refusals', :change) \gexec
select migrator.finish(change => :change);

-- A change that somebody cancels is no longer waited for.
create table gone (id int primary key);
select migrator.create_shadow('gone', 'add column a int') as change \gset
select migrator.cancel('gone');
select migrator.ensure_changed('gone'); \echo :LAST_ERROR_SQLSTATE

drop schema refusals cascade;
drop role regress_refusals_stranger;
select count(*) from migrator.status;
