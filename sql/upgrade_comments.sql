-- What every object of upgrades of rows is. The other objects, and how a comment is written: comments.sql.

-- Registering

comment on function migrator.register_upgrade(regclass, text, jsonb, regprocedure, text[], text[], integer, boolean, integer, integer, interval, text, text) is
$$Registers a named upgrade of a table's rows, and returns its id. A row gets it once, and remembers the name in its column applied_upgrades, which is added where it is missing.

From the commit on every row that is written is upgraded with the write, and readers of the view see all rows as they will be; the rows that are there get it in batches, which somebody has to drive: the agent, or `call migrator.run_upgrades`. Several upgrades of a table are applied in their order, each to what the one before made, and all of them in one write of the row.

The column is added under ACCESS EXCLUSIVE and the guard, a trigger, under SHARE ROW EXCLUSIVE, in attempts of at most 50 ms. Only the catalog is written. It may run inside a transaction, for instance an application migration; the locks then last until its COMMIT. Expressions run with the rights of the table's owner, under the caller's settings of now.

- relation: the table. It needs a primary key, or a unique index on NOT NULL columns. Partitioned tables as a whole.
- name: what rows remember. Never used again for something else.
- set: column → SQL expression over the row. It reads its own row only: no subquery, nothing volatile. A null that comes of it is a value like others.
- function: instead of set, a function that takes a row of the table and returns one; `outputs` says which columns are taken from it. Neither set nor function: application code does it, by select_batch and mark_applied.
- inputs: the columns that the outputs are made from. When one changes, they are made again. For set they are found by themselves; for a function all others; for application code they have to be named.
- outputs: the columns that a function or application code writes.
- ordinal: its place in the order, behind those that there are; the next one, if left out.
- safe_in_place: allows an output among the inputs, for instance `x * 2`. It says that nothing which runs writes values of the old form any more.
- batch_size, cleanup_batch_size: rows of a batch; sized by the time they take, if left out. The latter where nothing but retired names is left to take off.
- target: what a batch should take, 200 ms if left out.
- view_name: of the view, in the table's schema. `TABLE__current`, if left out.
- strategy: `rows`: in batches. `rewrite`: by a change of the table, with the same expressions, which swaps by itself. `auto` chooses by the table's size, the part of its rows that lacks the upgrade, the number of its indexes and the free disk, tries whether such a change can be begun, and says which and why.

Errors: 42501 not the owner; 55000 no key, or a change of the table that is under way makes something else of what the upgrade reads; 42710 the name is taken, or rows still have it; 42703 no such column; 0A000 the table, an expression or the combination with another upgrade is not supported, by name; 55006 applied_upgrades would be added while a change of the table is open; 22023 arguments that do not go together; 42P07, 42622 the view needs a name; 42804 types that do not fit; 25001 a name that was used before, in REPEATABLE READ or SERIALIZABLE; 55P03 the table was too busy for a lock.$$;

comment on function migrator.explain_upgrade(regclass, text, jsonb, regprocedure, text[], text[], integer, boolean, integer, integer, interval, text, text) is
$$What register_upgrade with the same arguments would do. Changes nothing.

- relation, name, set, function, inputs, outputs, ordinal, safe_in_place, batch_size, cleanup_batch_size, target, view_name, strategy: as for register_upgrade.

Returns a row for each statement, in their order:
- ordinal: the order.
- step: the call that runs it.
- object: the table or column.
- statement: what is run; null where it is worked out later.
- lock: the lock on the table.
- held: how long.
- rows, bytes, wal_bytes, seconds: rows that are written, bytes of their new versions, bytes of WAL, and how long one connection reads and computes them: estimates from a sample of the table. Null: nobody knows.
- note: what else to know.

Errors: those of register_upgrade.$$;

comment on function migrator.retire_upgrade(regclass, text, boolean) is
$$Retires an upgrade: its name means nothing any more, at once, and rows lose it. Returns how: `at once` where no live upgrade is left, the column can be made anew and no change of the table is open, `in batches` otherwise: as rows are written, and by the batches of step. The name can be used again when no row has it.

Takes SHARE ROW EXCLUSIVE on the table, ACCESS EXCLUSIVE for `at once`, in attempts of at most 50 ms.

- relation: the table.
- name: the upgrade.
- incomplete: retire it though rows lack it, which then never get it. Otherwise this call looks at all rows itself whether one lacks it, and, for the last upgrade of a table, whether one has a name that is not registered.

Errors: 42501 not the owner; 42704 no such upgrade; 55000 not complete, retired already, or brought by a change that is not over; 25001 in REPEATABLE READ or SERIALIZABLE; 55P03 the table was too busy for a lock.$$;

comment on function migrator.forget_upgrades(regclass) is
$$Makes a table whose upgrades are all retired one that never had any: the view that shows rows as they will be goes, the guard, and column applied_upgrades, if migrator added it and the last look at every row found no names in it that nobody registered. Returns whether the column went. The log in migrator.upgrade_events stays.

Takes ACCESS EXCLUSIVE on the table, in attempts of at most 50 ms.

- relation: the table. Of one that was dropped while it had upgrades its oid, as doctor gives it: only what is written down of it is left, which the owner of the extension may remove, and whoever is a member of each role that registered an upgrade of it; not while a table that was restored from a dump has its guard.

Errors: 42501 not the owner; 42704 no upgrades; 55000 an upgrade is not retired, or rows still have its name, or a restored table has the guard; 55006 the column would go while a change of the table is open; 2BP01 something depends on the view or the column; 25001 in REPEATABLE READ or SERIALIZABLE; 55P03 the table was too busy for a lock.$$;

-- Reading

comment on function migrator.current(anyelement) is
$$A row with all its pending upgrades applied, in their order, up to the first that fails or is left to application code. Nothing is written. The view of the table calls it for rows that are not done, and shows in pending_upgrades what they lack even so.

- row: a row of a table with upgrades: `select migrator.current(t) from article t`.

Expressions run as the table's owner, so only who has SELECT on the table, or on all of its columns, may have them run.

Errors: 42501 no SELECT on the table; 42809 not a row of a table; 42704 the table has no upgrades.$$;

comment on function migrator.pending(anyelement) is
$$The names of the upgrades that a row has not got, in their order.

- row: a row of a table with upgrades.

Errors: 42809 not a row of a table; 42704 the table has no upgrades.$$;

-- Batches

comment on function migrator.step(regclass, text) is
$$Does one bounded step of a table's upgrades: a batch of rows, each of which gets everything that it lacks in one write, or whatever has to happen between batches. This is what agents call in a loop; in psql, `\watch` does.

Each call is to be a transaction of its own. Any number of sessions may call it at once for one table. Rows that others have locked are not waited for, and done later. A killed session loses the batch in hand and nothing else.

- relation: the table.
- worker: a name that goes on with the same range of rows in another session; null: this session.

Returns one row:
- state: `upgrading`, `verifying`, `cleaning`, `complete`, `paused`, `blocked` or `waiting`.
- rows: rows written, or looked at.
- failed: rows that were set aside.
- done: nothing is left that a step could do now.
- wait_ms: milliseconds to sleep before the next call, 0 for at once.
- reason: why it waits or slows down; null for no reason.
- statement: SQL to run next, outside a transaction: VACUUM of the table. The upgrades go on without it too. Null for none.
- eta: how long the sweep under way will take, at the speed that it had so far; null where nobody knows.

Errors: 42501 not the owner; 42704 no upgrades; 25001 inside BEGIN, or in REPEATABLE READ or SERIALIZABLE; 40001, 40P01, 55P03: call again.$$;

comment on procedure migrator.run_upgrades(regclass) is
$$Runs the batches of a table's upgrades until nothing is left that they could do, committing after each. What is left then, rows that were set aside or that application code has to do, it says by NOTICE.

It may be stopped and called again at any time. It waits out holds.

- relation: the table.

Errors: 2D000 inside a transaction block; 55000 paused or blocked; 57014 Ctrl-C, pg_cancel_backend or statement_timeout; all else that step raises.$$;

comment on function migrator.pause_upgrades(regclass) is
$$Stops a table's batches, and the handing out of rows, until resume_upgrades. The batch in hand is finished; rows that application code has in hand can come back; rows that are written are upgraded as before.

- relation: the table.

Errors: 42501 not the owner; 42704 no upgrades.$$;

comment on function migrator.resume_upgrades(regclass) is
$$Lets a table's paused batches go on, or blocked ones whose reason is gone.

- relation: the table.

Errors: 42501 not the owner; 42704 no upgrades.$$;

comment on function migrator.verify_upgrades(regclass) is
$$Has every row of a table looked at again by the next steps: upgrades that are complete count as running until they did. For after somebody has restored rows, or written them while triggers were switched off.

A row that has a name counts as one that has the upgrade. If its inputs were changed while the guard was off, its outputs are still those of before, which nobody can see from the name: take the name off such rows, and they are made anew: update … set applied_upgrades = array_remove(applied_upgrades, 'name') where …

- relation: the table.

Errors: 42501 not the owner; 42704 no upgrades.$$;

-- By application code

comment on function migrator.select_batch(regclass, text, integer, boolean, interval) is
$$Hands out rows for application code to upgrade: rows that lack the upgrade, oldest key first, each to one worker at a time. Any number of workers may call it at once, from any driver and through any pooler. Nothing is locked: between this call and mark_applied a worker holds no transaction, and only the token counts. No row: nothing is to be done now.

A row is handed out when it has all upgrades before this one. One whose lease ran out, or that came back because somebody has changed it, is handed out again at once; one that failed after 10 seconds, and twice as long each time after. While the load of the server holds work back, no row comes, and a notice says why; while it slows work down, a part of them. A call costs the same at the end of a table as at its beginning; only the first that finds nothing looks at every row.

Commit after it: rows are handed out by one transaction at a time. Whoever has SELECT and UPDATE on the table may call it, unless row-level security is on for it; and its owner.

- relation: the table.
- upgrade: its name.
- limit: rows, at most, 1 to 10,000. Named, it is written `"limit" => 100`. A call also ends at 16 MB.
- applied: hand out rows that have the name, of any upgrade, to write them anew or to look at them. At the end no row comes; a new pass begins when the time of a lease has gone by.
- lease: how long a worker may take for all rows of the call, 1 second to 1 day. When it has run out and nobody else has got the row, mark_applied still takes it.

Returns a row for each row:
- key: its key: column → value as text.
- row: all its columns, as to_jsonb() gives them.
- token: what mark_applied has to be given.
- lease_until: until when nobody else gets it.

Errors: 42501 no right to the table; 42704 no such upgrade; 42809 an upgrade that is done in the server; 55000 paused, blocked, retired, the guard is not in place, or more than 100 rows and a thousandth of the table failed; 55P03 another transaction that has handed out rows is open for half a minute; 40001 in REPEATABLE READ or SERIALIZABLE: call again; 22023 limit or lease.$$;

comment on function migrator.mark_applied(regclass, text, jsonb) is
$$Takes back what application code made of rows: values and name are written together, each row in one UPDATE, with all upgrades behind it that need no application code. Each row is answered by itself.

Nothing is overwritten: a row whose inputs are not what they were when it was handed out is not written, and comes back as it is now. A value that the table refuses costs its own row: that is set aside in migrator.upgrade_failures. Called again with the same token, because the answer was lost, it says again what it said, for five minutes after the lease.

Values are read as jsonb_populate_record() does, under the caller's settings: numbers that a language cannot hold may be given as text. Columns that are not given stay. Rows are written with the rights of the table's owner, with row-level security off; constraints that are deferred are checked at once, so in a transaction that has put checks of this table off to its end the call is refused.

- relation: the table.
- upgrade: its name.
- rows: an object for each row, or an array of them: `key` and `token` as select_batch gave them; `values`, column → value, `{}` where only the name is to be set; or `error`, what went wrong in the application, and the row is set aside with that. Only columns that were declared as outputs; without such a declaration no column of the key, of the inputs, or of other upgrades.

Returns a row for each:
- key: the row's key.
- applied: whether the row has its values and the name.
- reason: why not; for a value that was refused SQLSTATE and message.
- row: where it was not applied, the row as it is now; null where it is gone.

Errors: 42501 no right to the table; 42704 no such upgrade; 55000 retired, or the guard is not in place; 22023 not such objects, or a column that may not be written; 42703 no such column. Nothing is written then, and the leases stay.$$;

comment on function migrator.ensure_upgraded(regclass, text, interval, boolean) is
$$Returns when every row of a table has an upgrade; an error otherwise. For an application migration that needs it: it fails, and is run again later. Looks five times a second, each time under a new snapshot. An upgrade that was complete when it was retired counts. Where rows can come without it (application code does it, or a write might be refused for its value, or a partition came), this call looks at all rows itself.

- relation: the table.
- name: the upgrade.
- wait: how long to wait, not at all by default.
- drive: do the batches oneself, in this one transaction, until nothing is left to do, or for as long as `wait` says: for small tables, and where there is no agent. Rows stay locked until COMMIT, and an error takes back what was done.

Errors: 55000 not complete, with what it waits for and the call that helps; 42704 no such upgrade; 42501 not the owner; 25001 in REPEATABLE READ or SERIALIZABLE.$$;

comment on function migrator.retry_failed(regclass, text, jsonb) is
$$Tries rows again that were set aside, now; those of application code are handed out at once. Returns how many of them are not set aside any more, or are to be handed out. Rows that an application has mended are found by themselves.

- relation: the table.
- name: the upgrade; null: all of the table's.
- key: one row: column → value.

Errors: 42501 not the owner; 42704 no such upgrade, or that row is not set aside; 42P01 and the like: an expression fails for every row.$$;

comment on function migrator.waive_failed(regclass, text, jsonb, text) is
$$Lets rows that were set aside be as they are: each keeps what it has and gets the name, and upgrades behind it go on. Who did it and why stays in migrator.upgrade_events. Returns how many. When an input of such a row changes later, its outputs are made from it like any other's.

- relation: the table.
- name: the upgrade.
- key: one row: column → value; null: all that failed in this upgrade. Of these, rows in other sessions' hands, or that lack an upgrade before this one, are left, with a warning.
- reason: for the log.

Errors: 42501 not the owner; 42704 no such upgrade, or that row is not set aside; 55000 that row cannot be waived now.$$;

-- Views

comment on view migrator.upgrades is
    'Upgrades of rows that are registered, of your tables: how far each is, what it waits for, and the call that comes next. Retired ones until no row has their name. Numbers of rows are estimates by the last ANALYZE.';
comment on column migrator.upgrades.relation is 'The table.';
comment on column migrator.upgrades.name is 'What rows remember.';
comment on column migrator.upgrades.ordinal is 'Place in the order of the table''s upgrades.';
comment on column migrator.upgrades.kind is '`expression`, `function` or `application`.';
comment on column migrator.upgrades.state is '`running`, `complete`, `retiring`; `paused` or `blocked` where that keeps it from going on.';
comment on column migrator.upgrades.progress is 'From 0 to 1, the look at every row at the end included; null where nobody can say.';
comment on column migrator.upgrades.rows_done is 'Rows that have it; of a sweep under way, rows that it has passed.';
comment on column migrator.upgrades.rows_pending is 'Rows that lack it.';
comment on column migrator.upgrades.failed is 'Rows that are set aside: see migrator.upgrade_failures.';
comment on column migrator.upgrades.rows_per_second is 'Rows that the sweep under way passes each second.';
comment on column migrator.upgrades.eta is 'How long the sweep under way will take.';
comment on column migrator.upgrades.waits_for is 'What has to happen next, and by whom.';
comment on column migrator.upgrades.next_step is 'The call to make.';
comment on column migrator.upgrades.strategy is '`rows` or `rewrite`.';
comment on column migrator.upgrades.change is 'The table change that brings it to the rows, while it does: strategy `rewrite`.';
comment on column migrator.upgrades.in_place is 'Whether an output is among the inputs.';
comment on column migrator.upgrades.inputs is 'Columns that the outputs are made from.';
comment on column migrator.upgrades.outputs is 'Columns that it writes.';
comment on column migrator.upgrades.lent is 'Rows that application code has in hand.';
comment on column migrator.upgrades.requested_by is 'Who registered it.';
comment on column migrator.upgrades.registered_at is 'When.';
comment on column migrator.upgrades.completed_at is 'When a look at every row found none that lacks it.';
comment on column migrator.upgrades.id is 'Its id.';

comment on view migrator.upgrade_failures is
    'Rows for which an upgrade failed, of your tables: each as it was. An application never notices; the upgrade is complete when none is left. A row that has been mended is taken off the list by the next look at every row. See retry_failed and waive_failed.';
comment on column migrator.upgrade_failures.relation is 'The table.';
comment on column migrator.upgrade_failures.upgrade is 'The upgrade that failed; those behind it wait.';
comment on column migrator.upgrade_failures.key is 'The row''s key: column → value as text.';
comment on column migrator.upgrade_failures.sqlstate is 'The error; P0001 for what application code says of itself.';
comment on column migrator.upgrade_failures.message is 'Its words; null for who may not read the table''s rows.';
comment on column migrator.upgrade_failures."row" is 'The row as it was then; null for who may not read the table''s rows.';
comment on column migrator.upgrade_failures.seen_at is 'When it failed last.';
comment on column migrator.upgrade_failures.attempts is 'How often; 0: it is tried again at once.';

comment on view migrator.upgrade_events is 'What happened to the upgrades of your tables, in order of id.';
comment on column migrator.upgrade_events.id is 'Order of the events.';
comment on column migrator.upgrade_events.relation is 'The table.';
comment on column migrator.upgrade_events.at is 'When.';
comment on column migrator.upgrade_events.role is 'The role that was logged in.';
comment on column migrator.upgrade_events.source is 'application_name of the session, psql where it had none.';
comment on column migrator.upgrade_events.kind is 'What happened, one word.';
comment on column migrator.upgrade_events.message is 'What happened, a sentence.';
comment on column migrator.upgrade_events.detail is 'Figures and names, as an object.';

-- Tables

comment on table migrator.upgraded is 'Internal: tables with upgrades, and how far the sweep over each is. Read migrator.upgrades instead.';
comment on column migrator.upgraded.relation is 'Oid of the table.';
comment on column migrator.upgraded.key is 'The columns that name a row.';
comment on column migrator.upgraded.view_schema is 'Schema of the view.';
comment on column migrator.upgraded.view_name is 'The view that shows rows as they will be.';
comment on column migrator.upgraded.column_added is 'Whether applied_upgrades was added by migrator.';
comment on column migrator.upgraded.generation is 'How often the definitions have changed.';
comment on column migrator.upgraded.batch_size is 'Rows of a batch; null: sized by time.';
comment on column migrator.upgraded.cleanup_batch_size is 'The same where only names are taken off.';
comment on column migrator.upgraded.target_ms is 'What a batch should take, in milliseconds.';
comment on column migrator.upgraded.paused_at is 'Since when it is paused.';
comment on column migrator.upgraded.blocked is 'Why nothing goes on until somebody acts.';
comment on column migrator.upgraded.blocked_hint is 'What to do about that.';
comment on column migrator.upgraded.forgiven is 'Rows that were set aside when somebody had a blocked run go on: they do not count against what may fail.';
comment on column migrator.upgraded.waiting is 'Why nothing goes on just now.';
comment on column migrator.upgraded.waiting_since is 'Since when.';
comment on column migrator.upgraded.held_since is 'Since when the load of the server holds it.';
comment on column migrator.upgraded.sweep is 'Number of the last sweep.';
comment on column migrator.upgraded.sweep_kind is '`upgrade` or `verify`; null: none is under way.';
comment on column migrator.upgraded.sweep_generation is 'The definitions that it applies, or looked for.';
comment on column migrator.upgraded.sweep_began is 'When it began.';
comment on column migrator.upgraded.rows_total is 'Rows at its beginning, an estimate.';
comment on column migrator.upgraded.rows_vacuumed is 'Rows that it had written at the last VACUUM that was asked for.';
comment on column migrator.upgraded.vacuum_asked_at is 'When that was.';
comment on column migrator.upgraded.verified_at is 'When the last look at every row ended; -infinity: there is reason for another.';
comment on column migrator.upgraded.verify_took is 'How long that took.';
comment on column migrator.upgraded.lacking is 'Rows that a batch could do something for, by that look.';
comment on column migrator.upgraded.repeated is 'Passes over all rows in a row that were begun because the look before had found such rows; from the second on they wait.';
comment on column migrator.upgraded.strangers is 'Rows that have a name which nobody registered here, by the last such look.';
comment on column migrator.upgraded.partitions is 'The guards, by pg_trigger.oid, of partitions whose rows were looked at, or have names from their beginning.';
comment on column migrator.upgraded.may_be_left is 'Whether something has been there, since the last look at all rows began, by which a guard leaves rows to batches.';
comment on column migrator.upgraded.view_query is 'What the view was made of last.';

comment on table migrator.upgrade is 'Internal: upgrades. Read migrator.upgrades instead.';
comment on column migrator.upgrade.id is 'Id of the upgrade.';
comment on column migrator.upgrade.relation is 'Oid of the table.';
comment on column migrator.upgrade.name is 'What rows remember.';
comment on column migrator.upgrade.ordinal is 'Place in the order of the table''s upgrades.';
comment on column migrator.upgrade.kind is '`expression`, `function` or `application`.';
comment on column migrator.upgrade.set is 'The expressions as they were registered.';
comment on column migrator.upgrade.function is 'The function as it was registered.';
comment on column migrator.upgrade.definition is 'What the guard has to know of it, and the settings of its registration.';
comment on column migrator.upgrade.numbers is 'Numbers of the columns that it writes, in their order, and of applied_upgrades: one that was dropped and added again has another. Null: not known.';
comment on column migrator.upgrade.state is '`running`, `complete`, `retiring` or `retired`.';
comment on column migrator.upgrade.strategy is '`rows` or `rewrite`.';
comment on column migrator.upgrade.change is 'Id of the table change that does it.';
comment on column migrator.upgrade.requested_by is 'Who registered it.';
comment on column migrator.upgrade.registered_at is 'When.';
comment on column migrator.upgrade.completed_at is 'When a look at every row found none that lacks it.';
comment on column migrator.upgrade.retired_at is 'When it was retired.';
comment on column migrator.upgrade.gone_at is 'When no row had its name any more.';
comment on sequence migrator.upgrade_id_seq is 'Internal: ids of upgrades.';

comment on table migrator.sweep_chunk is 'Internal: ranges of keys of a sweep. The cursor commits with the rows.';
comment on column migrator.sweep_chunk.relation is 'Oid of the table.';
comment on column migrator.sweep_chunk.sweep is 'Number of the sweep.';
comment on column migrator.sweep_chunk.number is 'Order within the sweep.';
comment on column migrator.sweep_chunk.key_after is 'The last key that was passed, as text; null: from the first.';
comment on column migrator.sweep_chunk.key_until is 'The last key of the chunk, as text; null: to the last that was there.';
comment on column migrator.sweep_chunk.batch_rows is 'Rows of the next batch.';
comment on column migrator.sweep_chunk.rate is 'Rows a second, a moving average.';
comment on column migrator.sweep_chunk.weight is 'Bytes of WAL for each row, a moving average.';
comment on column migrator.sweep_chunk.worker is 'Who has it.';
comment on column migrator.sweep_chunk.lease_until is 'Until when nobody else takes it.';
comment on column migrator.sweep_chunk.skipped is 'Keys of rows that others had locked.';
comment on column migrator.sweep_chunk.rows is 'Rows passed.';
comment on column migrator.sweep_chunk.written is 'Rows written.';
comment on column migrator.sweep_chunk.pending is 'Verify: rows that a batch could do something for.';
comment on column migrator.sweep_chunk.counts is 'Verify: rows that lack each upgrade, then rows that have each retired name.';
comment on column migrator.sweep_chunk.done_at is 'When it was done; null: it is not.';

comment on table migrator.upgrade_failure is 'Internal: read migrator.upgrade_failures instead.';
comment on column migrator.upgrade_failure.relation is 'Oid of the table.';
comment on column migrator.upgrade_failure.upgrade is 'Id of the upgrade.';
comment on column migrator.upgrade_failure.key is 'The row''s key: column → value as text.';
comment on column migrator.upgrade_failure.sqlstate is 'The error.';
comment on column migrator.upgrade_failure.message is 'Its words.';
comment on column migrator.upgrade_failure."row" is 'The row as it was.';
comment on column migrator.upgrade_failure.seen_at is 'When it failed last.';
comment on column migrator.upgrade_failure.attempts is 'How often; 0: application code is to try it again at once.';
comment on column migrator.upgrade_failure.sweep is 'Number of the last sweep in one of whose batches it failed, and against whose rows it counts; null: it failed elsewhere.';

comment on table migrator.upgrade_unnoted is 'Internal: failures of which no more is known than that there was one. The next sweep finds the rows.';
comment on column migrator.upgrade_unnoted.id is 'Number of the note: a key, so that notes can be taken away where all tables are published.';
comment on column migrator.upgrade_unnoted.relation is 'Oid of the table in which it failed. An exchange moves the upgrade to another.';
comment on column migrator.upgrade_unnoted.upgrade is 'The upgrade that failed.';

comment on table migrator.upgrade_lease is 'Internal: rows that application code has in hand, and for some minutes those that it had.';
comment on column migrator.upgrade_lease.relation is 'Oid of the table.';
comment on column migrator.upgrade_lease.upgrade is 'Id of the upgrade.';
comment on column migrator.upgrade_lease.key is 'The row''s key: column → value as text.';
comment on column migrator.upgrade_lease.token is 'What whoever gives the row back has to know.';
comment on column migrator.upgrade_lease.image is 'Hash of the inputs when it was handed out.';
comment on column migrator.upgrade_lease.until is 'Until when nobody else gets the row.';
comment on column migrator.upgrade_lease.marked is 'Whether the row had the name when it was handed out.';
comment on column migrator.upgrade_lease.applied is 'Whether what came back was written.';

comment on table migrator.upgrade_cursor is 'Internal: how far the rows of an upgrade were handed out to application code.';
comment on column migrator.upgrade_cursor.upgrade is 'Id of the upgrade.';
comment on column migrator.upgrade_cursor.key_after is 'Rows that lack it: go on behind this key, as text; null: from the first.';
comment on column migrator.upgrade_cursor.idle_until is 'A look at every row found nothing: until then a call looks at some only.';
comment on column migrator.upgrade_cursor.marked_after is 'Rows that have it: go on behind this key.';
comment on column migrator.upgrade_cursor.marked_ended is 'When such a pass came to the end.';
comment on column migrator.upgrade_cursor.rows_done is 'Rows that came back and whose leases are forgotten.';

comment on table migrator.upgrade_event is 'Internal: read migrator.upgrade_events instead.';
comment on column migrator.upgrade_event.id is 'Order of the events.';
comment on column migrator.upgrade_event.relation is 'Oid of the table.';
comment on column migrator.upgrade_event.at is 'When.';
comment on column migrator.upgrade_event.role is 'The role that was logged in.';
comment on column migrator.upgrade_event.source is 'application_name of the session, psql where it had none.';
comment on column migrator.upgrade_event.kind is 'What happened, one word.';
comment on column migrator.upgrade_event.message is 'What happened, a sentence.';
comment on column migrator.upgrade_event.detail is 'Figures and names, as an object.';
comment on sequence migrator.upgrade_event_id_seq is 'Internal: order of the events.';
comment on sequence migrator.upgrade_unnoted_id_seq is 'Internal: numbers of notes.';

comment on function migrator._counts(boolean) is 'Internal: counts a row that the batch in hand looks at, and returns what it is given, or false where the batch has no time for more rows.';
comment on function migrator._ends(bigint, tid) is 'Internal: whether a batch of so many rows ends with the row at this place.';
comment on function migrator._run_upgrades() is 'Internal: how migrator.run_upgrades begins; refuses where it cannot commit.';
comment on function migrator._in_time() is 'Internal: whether the batch in hand may write one more row.';
