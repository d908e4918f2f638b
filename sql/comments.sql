-- What every object is, for `\df+`, `\d+` and docs/reference.md, which is generated from here (make reference).
-- A comment says first what comes of it, then what each argument means, then which errors are its own.
-- Those that any function may raise are said once, in docs/errors.md.

comment on schema migrator is
    'Changes of tables while applications go on reading and writing. Look at migrator.status first.';

-- Beginning

comment on function migrator.create_shadow(regclass, text, jsonb, jsonb, regclass, text) is
$$Begins a change of a table: makes an empty table of the new shape, the shadow, in a schema of its own, and returns the change's id.

Nothing of the live table is locked against readers or writers, read or written. It may run inside a transaction, for instance an application migration: nothing happens before its COMMIT. Somebody has to drive the change from there: the agent, or `call migrator.prepare`. Runs with the caller's rights: the caller must own the table.

- relation: the table. It needs a primary key, or a unique index on NOT NULL columns, that both shapes share.
- actions: what would follow `alter table NAME`, several separated by commas; a RENAME stands alone, behind a semicolon. Null: the shape stays, the rows are written anew.
- transform: column of the new shape → SQL expression over the old row. It reads its own row only: no subquery, nothing volatile. A column without one gets the old column's value by assignment, or its default as it is now.
- reverse: column of the old shape → SQL expression over the new row: what a write made after the swap means in the old shape. Default: an assignment back.
- shadow: an empty table that you made, instead of actions. Its columns are matched by name.
- on_ready: `wait` for somebody to swap, or `swap` as soon as it is ready.

Errors: 42501 not the owner; 0A000 something about the table, its dependants or the actions is not supported, by name; 2BP01 something hangs on the table that cannot follow it, by name; 55000 no key, or live upgrades of the rows do not fit the new shape; 55006 a change of this table is under way; 23502 rows that exist, or rows on the way back, have no value for a NOT NULL column; 42846 no way from one type to the other, or back; 42703 no such column.$$;

comment on function migrator.explain(regclass, text, jsonb, jsonb, regclass) is
$$What create_shadow with the same arguments would begin, and all that would follow. It makes the shadow and takes it away again, so it fails where create_shadow would, and leaves nothing behind.

- relation, actions, transform, reverse, shadow: as for create_shadow.

Up to 200 ms of blocks from all over the table are read and computed as the copy would, with the owner's rights, to tell how long it will take.

Returns a row for each statement, in their order, and at the end what else to know:
- ordinal: the order.
- step: the step of the change; `dependant`, `note` or `disk`.
- object: the table, index, column or other object.
- statement: what is run; null where it is worked out later.
- lock: the lock on the table that the application uses, or, where it says so, on the shadow or the backup.
- held: how long.
- rows: how many it touches, as the last ANALYZE counted them, or the sample.
- bytes: how many it writes; of `disk`, how many are needed and free, null where that cannot be read.
- wal_bytes: how much WAL that makes.
- seconds: how long it takes one connection to read and compute the rows, estimated from the sample; null where that is not known.
- note: what it costs, what cannot be undone, who will notice.

Errors: those of create_shadow.$$;

comment on function migrator.start_sync(regclass, bigint) is
$$Switches capture on: from its commit the key of every row that is written goes into the change's key log. Returns the new state, `syncing`.

Takes SHARE ROW EXCLUSIVE on the live table in attempts of at most 50 ms (where capture was on before: ACCESS EXCLUSIVE, for its triggers are replaced). Also begins anew the copy of a change whose capture was tampered with; after a swap or a rollback the copy is kept, and all rows of both tables are compared instead, so the state returned is the one it has. `advance` and `prepare` call it by themselves.

- relation, change: the table, or the change's id; exactly one of them.

Errors: 25001 inside a transaction block; 55P03 a writer stood in the way of every attempt, named; 55000 capture is on already, or the table's columns were changed since create_shadow.$$;

-- Driving

comment on function migrator.copy_batch(regclass, bigint) is
$$Copies one bounded batch of rows (at most 8 MB of blocks, aimed at 200 ms and 8 MB of WAL) into the shadow. For driving the copy by hand with psql's `\watch`; `advance` does this and all the rest.

- relation, change: the table, or the change's id; exactly one of them.

Returns one row:
- rows: rows copied by this call.
- blocks_done, blocks_total: how far the copy is, in blocks of the live table.
- done: nothing is left to copy.
- wait_ms: milliseconds to sleep before the next call.
- reason: why to sleep, null for no reason.

Errors: 25001 in the transaction that ran start_sync, or in REPEATABLE READ or SERIALIZABLE; 55000 capture is not on, or the change is paused or blocked.$$;

comment on function migrator.advance(bigint) is
$$Does one bounded step of whatever is next for a change: capture on, one batch of the copy, one index, one batch of catch-up or verify; the swap, if the change was created with `on_ready => 'swap'`. This is what agents call in a loop.

Each call is to be a transaction of its own. Any number of sessions may call it at once for one change: batches of the copy, index builds and batches of verify run side by side, everything else takes turns. A killed session loses the step in hand and nothing else.

- change: the change's id.

Returns one row:
- state: the change's state after the step.
- step: what was done: `sync`, `layout`, `copy`, `reconcile`, `build`, `attach`, `catch_up`, `verify`, `ready`, `swap`, `validate`, `idle` or `wait`.
- rows: rows that it touched.
- done: nothing to do before somebody decides: the change is ready, or swapped and in step, or over.
- wait_ms: milliseconds to sleep before the next call, 0 for at once.
- reason: why it waits or slows down: a hold, paused, another worker's turn; null for no reason.
- statement: SQL to run next, outside a transaction: VACUUM of the shadow. The change goes on without it too. Null for none.

Errors: 40001, 40P01, 55P03: call again. 55000: the change is blocked; migrator.status says why and what to do.$$;

comment on procedure migrator.prepare(regclass, bigint) is
$$Drives a change until it is ready to be swapped, committing after each step. The whole change with psql alone: create_shadow, prepare, swap.

It may be stopped and called again at any time. It waits out holds, and ends at `ready`, also when rows do not fit; migrator.status shows those. A change with `on_ready => 'swap'` is swapped by it. It does not VACUUM the shadow, which an agent does.

- relation, change: the table, or the change's id; exactly one of them.

Errors: 25001 inside a transaction block, a function, or a block with EXCEPTION; 57014 Ctrl-C or pg_cancel_backend (statement_timeout does not end it, as a notice says); 55000 the change is paused or blocked.$$;

comment on function migrator.verify(regclass, bigint) is
$$Catches up and compares every row of both tables by a hash of its stored image, in one call and one transaction. Rows that differ are written anew and everything is compared again, up to three rounds.

No change is swapped without having been verified: `advance` and `prepare` do so in batches of about a second, each in a transaction of its own. This is for somebody who wants to know it once more, at a quiet time: until it ends, however large the table, its snapshot keeps VACUUM from removing what was deleted since it began, and nobody else works on the change.

- relation, change: the table, or the change's id; exactly one of them.

Returns one row:
- compared: rows compared in the last round.
- mismatched: rows that differed, all rounds together.
- rounds: how many rounds it took.

Errors: 55000 before the copy is complete, after the swap, or while the change is paused or blocked; 25001 in REPEATABLE READ or SERIALIZABLE.$$;

-- Deciding

comment on function migrator.swap(regclass, bigint, boolean, boolean) is
$$Puts the shadow in the live table's place, in one transaction. The table that was live becomes the backup, in schema migrator_backup_ID, and is kept in step until rollback or finish.

Takes ACCESS EXCLUSIVE on the tables in attempts of at most 50 ms each, waits in between, and gives up after 50: no statement of an application waits longer than one attempt for it. Holds while a snapshot lives that is older than the last large catch-up. Refused while a row does not fit the new shape.

- relation, change: the table, or the change's id. Neither: every change that is ready and neither paused nor postponed and that the caller may change, all in one transaction.
- in_transaction: allow it inside BEGIN. The lock then lasts until COMMIT.
- dry_run: only check whether anything stands in the way. Writes nothing and takes no lock on a table.

Returns one row a change:
- change: its id.
- relation: its table.
- swapped: whether it was swapped, with dry_run always false.
- reason: why not.

Errors: 55P03 no lock within the attempts, or writers are faster than the catch-up: call again; 55006 an old snapshot, its session named; 55000 not ready, paused, blocked, or rows that do not fit; 25001 inside a transaction block. Nothing is changed then.$$;

comment on function migrator.rollback(regclass, bigint, boolean, boolean) is
$$Takes a swap back, in one transaction: the backup is live again, with every write made since the swap that the old shape can hold. Both tables are kept; the change goes on to `ready` and waits there, also if it was begun with `on_ready => 'swap'`.

Locks, holds and attempts are those of swap. Refused while a row written since the swap does not fit the old shape; migrator.status has named the first of them (`unfit`) since it was written.

- relation, change: the table, or the change's id; exactly one of them.
- in_transaction: allow it inside BEGIN. The lock then lasts until COMMIT.
- dry_run: only check whether anything stands in the way. Writes nothing and takes no lock on a table.

Returns one row:
- change: its id.
- relation: its table.
- rolled_back: whether it was taken back, with dry_run always false.
- reason: why not.

Errors: as for swap, but a paused change can be rolled back; 55000 also where the change is not swapped.$$;

comment on function migrator.finish(regclass, bigint, boolean) is
$$Ends a swapped change for good: capture off, the backup and all that belonged to the change dropped. There is no way back after it. Returns the new state, `finished`.

Takes ACCESS EXCLUSIVE on the table in attempts of at most 50 ms. Holds while a snapshot from before the swap lives: until then a trigger keeps its transaction from writing to a table whose rows it does not see.

- relation, change: the table, or the change's id; exactly one of them.
- dry_run: only check whether anything stands in the way, and return the present state.

Errors: 55000 not swapped; 23503 a foreign key is broken by rows; 55006 an old snapshot, its session named; 55P03 no lock within the attempts; 25001 inside a transaction block; 2BP01 something depends on the backup: it is named, and not dropped.$$;

comment on function migrator.cancel(regclass, bigint, boolean) is
$$Gives a change up before its swap: capture off, the shadow and all that belonged to the change dropped. The live table stays as it is. Returns the new state, `cancelled`.

Takes ACCESS EXCLUSIVE on the live table in attempts of at most 50 ms, if capture was on.

- relation, change: the table, or the change's id; exactly one of them.
- dry_run: only check whether it can be cancelled, and return the present state.

Errors: 55000 the change is swapped (rollback or finish end it) or over; 55P03 no lock within the attempts; 25001 inside a transaction block, if capture was on; 2BP01 something depends on the shadow: it is named, and not dropped.$$;

comment on function migrator.pause(regclass, bigint) is
$$Stops all work on a change that goes on by itself, and its swap, until resume; returns `paused`. The step in hand is finished. Capture goes on, so nothing is lost and the key log grows with every row written. Rollback, finish and cancel work on a paused change.

- relation, change: the table, or the change's id; exactly one of them.

Errors: 55000 the change is over.$$;

comment on function migrator.resume(regclass, bigint) is
$$Lets a paused change go on, or a blocked one whose reason is gone; returns the state it goes on in.

- relation, change: the table, or the change's id; exactly one of them.

Errors: 55000 the change is over.$$;

comment on function migrator.postpone(regclass, bigint, timestamptz) is
$$Keeps a change from being swapped by `on_ready => 'swap'` or by swap() without arguments before a time; returns the change's state. It is prepared and kept in step meanwhile. swap() of this very change is still allowed.

- relation, change: the table, or the change's id; exactly one of them.
- until: the time; null lifts an earlier one.

Errors: 55000 the change is over.$$;

comment on function migrator.validate(regclass, bigint) is
$$Validates the foreign keys that the swap added NOT VALID; returns how many there were. Agents do that by themselves after a swap, one at a time.

Takes SHARE UPDATE EXCLUSIVE on the referencing table and ROW SHARE on the referenced one: neither stops a reader or a writer.

- relation, change: the table, or the change's id; exactly one of them.

Errors: 23503 a row refers to nothing: mend it, then call again; 55P03 somebody holds one of the two tables: call again.$$;

comment on function migrator.ensure_changed(regclass, interval) is
$$True when the last change of a table is swapped or finished; an error otherwise. For an application migration that needs the new shape: it fails, and is run again later, instead of meeting the old one.

- relation: the table.
- wait: how long to wait for it before failing. It looks five times a second, and the change does not wait for it. Let it be the first statement of its transaction: what the transaction locked before would stand in the way of the swap.

Errors: 55000 not in time, with what the change waits for, or cancelled; 42704 the table never had a change; 25001 in REPEATABLE READ or SERIALIZABLE.$$;

-- Looking

comment on view migrator.status is
    'The open changes: where each stands, what it waits for, what to do next. Shows the changes of tables that you own, those that you began, and all to members of pg_monitor.';

comment on view migrator.history is
    'All changes, the finished and cancelled ones too, with the columns of migrator.status. Those of a table that is gone are shown to whoever began them and to members of pg_monitor.';

comment on column migrator.history.change is 'Id of the change, for `change => ID`.';
comment on column migrator.history.kind is 'What is changed: `table`.';
comment on column migrator.history.relation is 'The table, quoted and qualified.';
comment on column migrator.history.state is '`paused` or `blocked` if the change is so marked, otherwise the phase.';
comment on column migrator.history.phase is '`created`, `syncing`, `copying`, `indexing`, `catching_up`, `verifying`, `ready`, `swapped`, `finished` or `cancelled`.';
comment on column migrator.history.progress is 'From 0 to 1, an estimate; null once cancelled.';
comment on column migrator.history.rows_done is 'Rows copied, or while verifying compared.';
comment on column migrator.history.rows_total is 'Rows of the table, an estimate of the planner.';
comment on column migrator.history.backlog is 'Keys in the key log when it was last looked at; counting stops at 200,000.';
comment on column migrator.history.eta is 'Time to the end of the phase at the speed so far; null where that is not known.';
comment on column migrator.history.waits_for is 'Whom or what it waits for, and since when.';
comment on column migrator.history.next_step is 'The call that takes it on.';
comment on column migrator.history.started_ms is 'Milliseconds since 1970 of its start: a second, unique name, for `--timestamp`.';
comment on column migrator.history.created_at is 'When it was created.';
comment on column migrator.history.state_since is 'When it came to its phase.';
comment on column migrator.history.on_ready is 'What happens when it is ready: `wait` for somebody, or `swap`. After a rollback: `wait`.';
comment on column migrator.history.bad_rows is 'How many rows do not fit: the new shape before the swap, the old one after it.';
comment on column migrator.history.unfit is 'The first row written since the swap that does not fit the old shape, why, and since when: as long as there is one, rollback is refused.';
comment on column migrator.history.swapped_at is 'When it was swapped last; null after a rollback.';
comment on column migrator.history.live is 'Oid of the table of the old shape: live until the swap, then the backup.';
comment on column migrator.history.shadow is 'Oid of the table of the new shape: the shadow, live after the swap.';

-- status has the same columns.
do $$
declare
    found record;
begin
    for found in
        select a.attname, pg_catalog.col_description(a.attrelid, a.attnum) as words
          from pg_catalog.pg_attribute a where a.attrelid = 'migrator.history'::pg_catalog.regclass and a.attnum > 0
    loop
        execute pg_catalog.format('comment on column migrator.status.%I is %L', found.attname, found.words);
    end loop;
end
$$;

comment on view migrator.bad_rows is
    'Rows that the other shape refuses. They stand in the way of the swap, or of the rollback, never of the application. Each is tried again when it is written, every half minute, and before a swap. Visible as migrator.status is.';
comment on column migrator.bad_rows.change is 'Id of the change.';
comment on column migrator.bad_rows.relation is 'Its table.';
comment on column migrator.bad_rows.direction is '`forward`: does not fit the new shape. `reverse`: does not fit the old one.';
comment on column migrator.bad_rows.key is 'The row''s key: column → value as text.';
comment on column migrator.bad_rows.sqlstate is 'The error with which it was refused.';
comment on column migrator.bad_rows.message is 'Its words.';
comment on column migrator.bad_rows.seen_at is 'When it was first refused.';

comment on view migrator.events is
    'Everything that happened to changes: states, restarts, blocks, bad rows, agents. Visible as migrator.status is.';
comment on column migrator.events.id is 'Order of the events.';
comment on column migrator.events.change is 'Id of the change.';
comment on column migrator.events.relation is 'Its table.';
comment on column migrator.events.at is 'When.';
comment on column migrator.events.role is 'The role that was logged in.';
comment on column migrator.events.source is 'application_name of the session, psql where it had none.';
comment on column migrator.events.kind is 'What happened, one word.';
comment on column migrator.events.message is 'What happened, a sentence.';
comment on column migrator.events.detail is 'Figures and names, as an object.';

-- The load of the server

comment on view migrator.signals is
$$What is watched so that work disturbs nobody: one row for each signal, with its limits, and why it slows work down or holds it.

The server is looked at once a second while somebody drives a change, by one session for all. Shown to members of pg_monitor and to whoever may change one of the tables under way; others see no row. The guide has [what each signal is](guide.md#what-slows-it-down).$$;
comment on column migrator.signals.signal is 'Its name, as set_limit takes it.';
comment on column migrator.signals.verdict is '`go`; `slow`: smaller batches and rests between them; `hold`: none. One that concerns only some tables (a vacuum, a full tablespace) acts on their changes alone.';
comment on column migrator.signals.factor is 'Of `slow`: work goes at this part of its speed, 4 meaning a quarter.';
comment on column migrator.signals.reason is 'Why, as migrator.status tells it in `waits_for`; null with `go`.';
comment on column migrator.signals.since is 'Since when; null with `go`.';
comment on column migrator.signals.value is 'What the last look saw, at its worst; of lock_waits and active_sessions, how many more than usual. Null: nothing to see.';
comment on column migrator.signals.enter is 'It is raised beyond this (free_disk: below it); `off`: it is not watched.';
comment on column migrator.signals.leave is 'Once raised it is over when it is back at this; null: as soon as its cause is gone.';
comment on column migrator.signals.ignoring is 'Standbys, slots, places or tables that are not watched for this signal.';
comment on column migrator.signals.sampled_at is 'When the server was last looked at; null: never.';
comment on column migrator.signals.set_by is 'The role that set the limit, or the own query; null: nobody did, these are the defaults.';
comment on column migrator.signals.set_at is 'When it did.';
comment on column migrator.signals.remedy is 'What helps against what is raised; null with `go`.';

comment on function migrator.set_limit(text, text, text, text[]) is
$$Says when a signal slows work down or holds it, for all changes of this database, from the next look on. What it does not name goes back to the default, so without any of them everything about the signal does. Returns the thresholds that are in force.

Only the extension's owner and superusers may call it, until `grant execute` says otherwise: the limits protect the whole server.

- signal: one of those in migrator.signals.
- enter: it is raised beyond this, and free_disk below it: a duration (`30 s`), a size (`8 GB`) or a number. `off`: the signal is not watched. Of wal_rate: bytes of WAL that batches write in a second, at most.
- leave: once raised it is over when it is back at this. Default: in the proportion of the default thresholds.
- ignoring: names of standbys (application_name), replication slots, tablespaces (`tablespace NAME`, `the WAL`) or tables (for vacuum) that are left out.

Errors: 22023 no such signal, not a threshold of it, or thresholds the wrong way round.$$;

comment on function migrator.set_own_query(text, interval) is
$$Adds a signal of your own, own_query: while the query says more than its limit (0, unless set_limit says otherwise), all work holds. Returns what it says now. Without arguments the query is taken away.

The query runs once a second with the rights of the role that calls this function, in a security-restricted operation, and cannot write. Where the role was no superuser then and is one later, it is not asked any more. A query that fails, or takes too long, does not hold work but slows it to half its speed, and migrator.status names it. Who may call it: as set_limit.

- query: one SELECT of one number, with each object named with its schema. Null: nothing to say.
- timeout: how long it may take, at most 10 s. The worker that asks it waits that long.

Errors: 22023 the timeout is out of bounds, or the answer is no number; and what the query raises, for one that fails now is refused.$$;

comment on function migrator.report_check(text, text, interval) is
$$Says what a check by HTTP answered: while one says no, all work holds, and migrator.signals shows it as http_check. `migrator agent --http-check URL` calls this; other programs may. Nobody may call it but superusers and whom one grants it.

- address: of the check; each has an answer of its own.
- said: what is not well. Null: all is, and nothing holds any more.
- stands: for how long that holds if it is not said again, up to ten minutes: a program that is gone holds nobody.

Errors: 22023 arguments that are too long, or a time out of bounds.$$;

comment on function migrator._signals() is 'Internal: what migrator.signals shows.';

comment on function migrator.log(regclass, bigint) is
$$The events of a change, oldest first.

- relation, change: the table, meaning its last change, or a change's id. Neither: the events of all changes.

Returns the columns of migrator.events.$$;

comment on function migrator.note_event(bigint, text, text, jsonb) is
$$Writes a line into the log of a change and returns its id. Agents note their runs so.

- change: the change's id.
- kind: what happened, one word.
- message: what happened, a sentence.
- detail: figures and names, as an object.$$;

comment on function migrator.doctor() is
$$What is wrong with this server and its changes, worst first; no row when nothing is. Reads only.

Returns:
- severity: `error`, `warning` or `info`.
- subject: the object.
- problem: what is wrong with it.
- remedy: the call that mends it.$$;

comment on function migrator.version() is
    'The version of the library that is loaded. `select extversion from pg_extension` has that of the SQL objects; doctor() tells when they differ.';

-- Internal

comment on function migrator._change_id(regclass, bigint) is
    'Internal: the id of the change that a table or an id names, after the check of the caller''s rights; for the procedures.';

comment on table migrator.change is 'Internal: one row a change. Read migrator.status and migrator.history instead.';

comment on column migrator.change.id is 'Id of the change; names its schemas and its key log.';
comment on column migrator.change.kind is 'What is changed.';
comment on column migrator.change.started_ms is 'Milliseconds since 1970 of its start, unique.';
comment on column migrator.change.requested_by is 'The role that created it.';
comment on column migrator.change.table_schema is 'Schema in which the application finds the table.';
comment on column migrator.change.table_name is 'The table''s name, the same in every schema that it passes through.';
comment on column migrator.change.live is 'Oid of the table of the old shape: live until the swap, then the backup.';
comment on column migrator.change.shadow is 'Oid of the table of the new shape: the shadow, live after the swap.';
comment on column migrator.change.actions is 'Argument of create_shadow.';
comment on column migrator.change.transform is 'Argument of create_shadow.';
comment on column migrator.change.reverse is 'Argument of create_shadow.';
comment on column migrator.change.on_ready is 'Argument of create_shadow; `wait` after a rollback.';
comment on column migrator.change.plan is 'What the change does to each column and key, worked out once by create_shadow.';
comment on column migrator.change.state is 'The state, without the marks `paused` and `blocked`.';
comment on column migrator.change.state_since is 'When it came to that state.';
comment on column migrator.change.created_at is 'When it was created.';
comment on column migrator.change.paused_at is 'When it was paused; null: it is not.';
comment on column migrator.change.postponed_until is 'Before this time it is swapped only by name.';
comment on column migrator.change.blocked is 'Why nothing can go on until somebody acts; null: it is not blocked.';
comment on column migrator.change.blocked_hint is 'What that somebody should do.';
comment on column migrator.change.waiting is 'Why nothing goes on just now.';
comment on column migrator.change.waiting_since is 'Since when.';
comment on column migrator.change.held_since is 'Since when the load of the server holds it.';
comment on column migrator.change.sync_xid is 'The transaction that switched capture on.';
comment on column migrator.change.capture is 'Fingerprint of the capture triggers: when it differs, a write may have been missed.';
comment on column migrator.change.filenode is 'The live table''s file when the copy was laid out; null: the copy begins anew.';
comment on column migrator.change.rolled_back is 'How often it was rolled back.';
comment on column migrator.change.swapped_at is 'When it was swapped last; null after a rollback.';
comment on column migrator.change.swap_xid is 'The transaction of the last swap or rollback.';
comment on column migrator.change.front_definitions is 'Columns, indexes, constraints and defaults of the new table as the swap made it; a rollback is refused while they differ.';
comment on column migrator.change.fence_at is 'When the transaction fence_xid did its work.';
comment on column migrator.change.fence_xid is 'Last large write to the table that is not live: older snapshots miss rows of it.';
comment on column migrator.change.kept is 'What the last exchange took from the table that left and the next one gives back.';
comment on column migrator.change.unvalidated is 'Foreign keys that the last exchange added NOT VALID and that are not validated yet.';
comment on column migrator.change.blocks_total is 'Blocks that the copy reads.';
comment on column migrator.change.rows_copied is 'Rows copied.';
comment on column migrator.change.rows_caught_up is 'Rows written anew by catch-up.';
comment on column migrator.change.rows_verified is 'Rows compared.';
comment on column migrator.change.rows_mismatched is 'Rows that differed when compared.';
comment on column migrator.change.verify_rounds is 'Rounds of verify that found a difference.';
comment on column migrator.change.backlog is 'Keys in the key log when it was last looked at.';
comment on column migrator.change.catch_up is 'Log blocks that the next batch of catching up takes, and how fast it goes.';
comment on sequence migrator.change_id_seq is 'Internal: ids of changes.';

comment on table migrator.chunk is 'Internal: ranges of blocks to copy and of keys to verify. The cursor commits with the rows.';
comment on column migrator.chunk.change is 'Id of the change.';
comment on column migrator.chunk.step is '`copy` or `verify`.';
comment on column migrator.chunk.number is 'Order within the step.';
comment on column migrator.chunk.block_from is 'Next block to read.';
comment on column migrator.chunk.block_until is 'First block behind the chunk.';
comment on column migrator.chunk.key_from is 'Verify: next key, as text; null: from the first.';
comment on column migrator.chunk.key_until is 'Verify: first key behind the chunk, as text; null: to the last.';
comment on column migrator.chunk.batch_blocks is 'Blocks of the next batch.';
comment on column migrator.chunk.batch_rows is 'Verify: rows of the next batch of a range of keys, by the time that the last one took; null: none was taken yet.';
comment on column migrator.chunk.rate is 'Copy: blocks a second, a moving average.';
comment on column migrator.chunk.weight is 'Copy: bytes of WAL for each block, a moving average.';
comment on column migrator.chunk.rows is 'Rows done.';
comment on column migrator.chunk.mismatched is 'Verify: rows that differed.';
comment on column migrator.chunk.done_at is 'When it was done; null: it is not.';

comment on table migrator.build is 'Internal: indexes and constraints of the shadow, made once its rows are there.';
comment on column migrator.build.change is 'Id of the change.';
comment on column migrator.build.number is 'Order.';
comment on column migrator.build.name is 'Name of the index, or of the constraint where there is no index.';
comment on column migrator.build.sql is 'The statement that makes it.';
comment on column migrator.build.attach is 'The statement that makes a constraint of the index.';
comment on column migrator.build.is_key is 'Whether catch-up finds rows by it.';
comment on column migrator.build.built_at is 'When it was made; null: it is not.';
comment on column migrator.build.took is 'How long that took.';
comment on column migrator.build.refused is 'Whether rows stood in its way: what was written since is replayed before it is tried again.';

comment on table migrator.bad_row is 'Internal: read migrator.bad_rows instead.';
comment on column migrator.bad_row.change is 'Id of the change.';
comment on column migrator.bad_row.direction is '`forward`: does not fit the new shape. `reverse`: does not fit the old one.';
comment on column migrator.bad_row.key is 'The row''s key: column → value as text.';
comment on column migrator.bad_row.sqlstate is 'The error with which it was refused.';
comment on column migrator.bad_row.message is 'Its words.';
comment on column migrator.bad_row.seen_at is 'When it was first refused.';

comment on table migrator.event is 'Internal: read migrator.events or migrator.log() instead.';
comment on column migrator.event.id is 'Order of the events.';
comment on column migrator.event.change is 'Id of the change.';
comment on column migrator.event.at is 'When.';
comment on column migrator.event.role is 'The role that was logged in.';
comment on column migrator.event.source is 'application_name of the session, psql where it had none.';
comment on column migrator.event.kind is 'What happened, one word.';
comment on column migrator.event.message is 'What happened, a sentence.';
comment on column migrator.event.detail is 'Figures and names, as an object.';
comment on sequence migrator.event_id_seq is 'Internal: order of the events.';

comment on table migrator.load is 'Internal: the last look at the server''s load, one row, shared by all sessions that work, taken anew at most once a second.';
comment on column migrator.load.only_row is 'True: there is one row.';
comment on column migrator.load.sampled_at is 'When it was taken.';
comment on column migrator.load.decision is 'The signals that are raised, and what each was seen at.';
comment on column migrator.load.memory is 'What the next look has to know of this one: standbys, what is usual, counters.';
comment on table migrator.signal_limit is 'Internal: what set_limit set.';
comment on column migrator.signal_limit.signal is 'The signal.';
comment on column migrator.signal_limit.enter is 'It is raised beyond this: seconds, bytes or a number.';
comment on column migrator.signal_limit.leave is 'It is over at this.';
comment on column migrator.signal_limit.off is 'It is not watched.';
comment on column migrator.signal_limit.ignoring is 'Names that are left out.';
comment on column migrator.signal_limit.set_by is 'Who set it.';
comment on column migrator.signal_limit.set_at is 'When.';
comment on table migrator.http_check is 'Internal: checks by HTTP that said no.';
comment on column migrator.http_check.address is 'Address of the check.';
comment on column migrator.http_check.said is 'What was said.';
comment on column migrator.http_check.until is 'For so long it stands.';
comment on column migrator.http_check.role is 'Who reported it.';
comment on table migrator.wal_pace is 'Internal: how far the WAL that batches wrote is ahead of its rate; one row.';
comment on column migrator.wal_pace.only_row is 'True: there is one row.';
comment on column migrator.wal_pace.rate is 'Bytes a second, by which the next was reckoned.';
comment on column migrator.wal_pace.paid_at is 'When what was written so far is within the rate.';
comment on table migrator.own_query is 'Internal: what set_own_query set; at most one row.';
comment on column migrator.own_query.only_row is 'True: there is one row.';
comment on column migrator.own_query.query is 'The query.';
comment on column migrator.own_query.timeout_ms is 'How long it may take, in milliseconds.';
comment on column migrator.own_query.role is 'Who set it: it runs with the rights of that role.';
comment on column migrator.own_query.superuser is 'Whether that role was a superuser then. If it was none, the query is not asked once it is one.';
comment on column migrator.own_query.set_at is 'When.';

-- alter_table

comment on procedure migrator.alter_table(regclass, text, text, jsonb, jsonb) is
$$Changes a table the cheapest safe way, and says by NOTICE which: in place where that is catalogue work only; NOT VALID, then VALIDATE, for constraints; through a shadow where rows would be rewritten, or read under a lock that stops everybody.

It commits after each of its steps, so it runs outside BEGIN only. What an action would do is tried on an empty clone of the table, which is gone a moment later. Steps in place ask for their lock for at most 50 ms at a time, and run with the rights of the table's owner. Called again with the same words it goes on with what it began. A change through a shadow ends swapped, with the backup kept in step: finish or rollback decide.

- relation: the table. In place also a partitioned one.
- actions: what would follow `alter table NAME`; semicolons separate statements.
- strategy: `auto`; `in_place`, refused where rows of a table of more than 8 MB, its indexes included, would be read or rewritten under a strong lock; `shadow`. Up to 8 MB auto builds an index in place too; it never rewrites rows there, because older transactions would then find the table empty.
- transform, reverse: as for create_shadow. With one of them the change goes through a shadow.

Errors: 25001 inside a transaction block, a function, or a block with EXCEPTION; 42601 not a list of actions; 0A000 not possible this way; 55P03 the table was too busy for a lock; 55006 a change of this table is under way; 23514, 23503 rows that exist break a constraint: it stays, NOT VALID, and the same call goes on when they are mended; 57014 Ctrl-C or pg_cancel_backend (statement_timeout does not end it, as a notice says). All else that ALTER TABLE and create_shadow raise. DETAIL says what was done and what is left.$$;

comment on function migrator.alter_plan(regclass, text, text, jsonb, jsonb) is
$$What alter_table with the same arguments would do. Changes nothing.

- relation, actions, transform, reverse: as for alter_table.
- strategy: as for alter_table; or `concurrently`: like auto, for somebody who can run statements outside a transaction. Where an index has to be built its rows begin with CREATE INDEX CONCURRENTLY, which no CALL can run, and end with the CALL for the rest: run them one after the other.

Returns a row for each statement, in their order:
- ordinal: the order.
- way: `in_place`, `not_valid`, `concurrently` or `shadow`.
- statement: what is run. For a shadow the calls that it comes to; explain has every statement of them.
- lock: the strongest lock on the table.
- held: how long it is kept.
- reason: why this way.$$;

comment on function migrator._alter_steps(regclass, text, text, jsonb, jsonb) is 'Internal: the steps of migrator.alter_table.';
comment on function migrator._alter_step(regclass, text, jsonb, integer) is 'Internal: runs one step of migrator.alter_table in place.';
comment on function migrator._alter_shadow(regclass, text, jsonb, jsonb, jsonb, integer) is 'Internal: begins the change of a step of migrator.alter_table, or finds the one that was begun; gives its id.';
comment on procedure migrator._alter_through_shadow(regclass, bigint) is 'Internal: brings a change of migrator.alter_table to its swap.';
