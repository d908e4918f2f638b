-- Upgrades of rows: what is registered, how far the sweep is, what failed, what is lent out.

-- A table whose rows are upgraded.
create table migrator.upgraded (
    relation     oid primary key,
    key          name[] not null,                   -- the columns that name a row
    view_schema  name,
    view_name    name,                              -- rows as they will be; null where there is none
    column_added boolean not null,                  -- whether applied_upgrades is ours
    generation   integer not null default 0,        -- how often the definitions have changed
    batch_size   integer check (batch_size > 0),    -- rows, at most; null: sized by time
    cleanup_batch_size integer check (cleanup_batch_size > 0),
    target_ms    integer not null default 200 check (target_ms between 10 and 60000),
    paused_at    timestamptz,
    blocked      text,                              -- why nothing can go on, until somebody acts
    blocked_hint text,
    forgiven     bigint not null default 0,         -- rows that were set aside when somebody had a blocked run go on
    waiting      text,                              -- why nothing goes on just now, for the views
    waiting_since timestamptz,
    held_since   timestamptz,                       -- since when the server's load holds it
    -- the sweep: every row of the table that was there when it began, once
    sweep        bigint not null default 0,         -- its number; each has chunks of its own
    sweep_kind   text check (sweep_kind in ('upgrade', 'verify')),  -- null: none is under way
    sweep_generation integer,                       -- the definitions that it applies, or looked for
    sweep_began  timestamptz,
    rows_total   bigint not null default 0,         -- estimate
    rows_vacuumed bigint not null default 0,        -- rows of this sweep at the last VACUUM that was asked for
    vacuum_asked_at timestamptz,                    -- when that was
    verified_at  timestamptz,                       -- when the last look at all rows ended
    verify_took  interval,
    lacking      bigint,                            -- rows that a batch could do something for, by that look
    repeated     integer not null default 0,        -- upgrade sweeps in a row that were begun because the look before found such rows
    strangers    bigint,                            -- rows that have a name which nobody registered here, by the last such look
    partitions   oid[],                             -- the guards of those whose rows were looked at, or have names from their beginning
    may_be_left  boolean not null default false,    -- whether something has been there, since the last look at all rows began, by which a guard leaves rows to batches
    view_query   text                               -- what the view was made of last
);

-- One upgrade. Its definition as the guard has it is in the arguments of the trigger.
create table migrator.upgrade (
    id           bigint generated always as identity primary key,
    relation     oid not null references migrator.upgraded on delete cascade on update cascade,
    name         text not null,
    ordinal      integer not null,                  -- order of application
    kind         text not null check (kind in ('expression', 'function', 'application')),
    set          jsonb,                             -- as it was registered
    function     text,                              -- likewise
    definition   jsonb not null,                    -- core's Upgrade
    numbers      smallint[],                        -- of its outputs, pg_attribute.attnum, in their order, and of applied_upgrades; null: not known
    state        text not null default 'running' check (state in ('running', 'complete', 'retiring', 'retired')),
    strategy     text not null default 'rows' check (strategy in ('rows', 'rewrite')),
    change       bigint,                            -- the table change that does it, where the strategy is rewrite
    requested_by name not null default session_user,
    registered_at timestamptz not null default clock_timestamp(),
    completed_at timestamptz,
    retired_at   timestamptz,
    gone_at      timestamptz                        -- when the last row had lost the name
);
create unique index upgrade_live_name on migrator.upgrade (relation, name) where state <> 'retired';
create unique index upgrade_live_ordinal on migrator.upgrade (relation, ordinal) where state in ('running', 'complete');

-- A range of keys of the sweep. The cursor commits with the rows.
create table migrator.sweep_chunk (
    relation     oid not null references migrator.upgraded on delete cascade on update cascade,
    sweep        bigint not null,
    number       integer not null,
    key_after    text[],                            -- the last key that was passed; null: from the first
    key_until    text[],                            -- the last key of the chunk; null: to the last that was there
    batch_rows   integer not null default 500,
    rate         double precision,                  -- rows a second, moving average
    weight       double precision,                  -- bytes of WAL a row, moving average
    worker       text,
    lease_until  timestamptz,
    skipped      jsonb not null default '[]',       -- keys that somebody else held
    rows         bigint not null default 0,         -- passed
    written      bigint not null default 0,
    pending      bigint not null default 0,         -- verify: rows that a batch could do something for
    counts       bigint[],                          -- verify: rows that lack each upgrade, then rows that have each retired name
    done_at      timestamptz,
    primary key (relation, sweep, number)
);

-- Rows for which an upgrade failed: left as they were.
create table migrator.upgrade_failure (
    relation     oid not null references migrator.upgraded on delete cascade on update cascade,
    upgrade      bigint not null references migrator.upgrade on delete cascade,
    key          jsonb not null,                    -- column of the key -> value as text
    sqlstate     text not null,
    message      text not null,
    "row"        jsonb,                             -- as it was
    seen_at      timestamptz not null default clock_timestamp(),
    attempts     integer not null default 1,
    sweep        bigint,                            -- the last whose batch it failed in; null: none
    primary key (relation, upgrade, key)
);

-- Failures of which no more is known: the row could not be named in upgrade_failure without waiting for somebody. There is nothing
-- here that two writers could wait for one another over: the number is no one's but the writer's. It is there because a table that is
-- published, as with FOR ALL TABLES, loses no row without a key. The next sweep finds the rows. An exchange moves the upgrade to another table.
create table migrator.upgrade_unnoted (
    id           bigint generated always as identity primary key,
    relation     oid not null,                      -- where it failed
    upgrade      bigint not null
);

-- Rows that application code has in hand, and for some minutes those that it had, for one who asks again.
create table migrator.upgrade_lease (
    relation     oid not null references migrator.upgraded on delete cascade on update cascade,
    upgrade      bigint not null references migrator.upgrade on delete cascade,
    key          jsonb not null,
    token        uuid not null default pg_catalog.gen_random_uuid(),
    image        bigint not null,                   -- of the declared inputs when it was handed out
    until        timestamptz not null,
    marked       boolean not null default false,    -- whether the row had the name when it was handed out
    applied      boolean not null default false,    -- what came back was written
    primary key (relation, upgrade, key)
) with (fillfactor = 70);
create index upgrade_lease_until on migrator.upgrade_lease (upgrade, until);

-- How far rows were handed out. Whoever hands out holds it.
create table migrator.upgrade_cursor (
    upgrade      bigint primary key references migrator.upgrade on delete cascade,
    key_after    text[],                            -- rows that lack the name: behind this key; null: from the first
    idle_until   timestamptz,                       -- a whole pass found nothing: until then a call looks at a part of the table only
    marked_after text[],                            -- rows that have it, likewise
    marked_ended timestamptz,                       -- when such a pass came to the end
    rows_done    bigint not null default 0          -- rows whose leases ended well and are forgotten
) with (fillfactor = 50);

create table migrator.upgrade_event (
    id       bigint generated always as identity primary key,
    relation oid not null,
    at       timestamptz not null default clock_timestamp(),
    role     name not null default session_user,
    source   text not null default coalesce(nullif(current_setting('application_name', true), ''), 'psql'),
    kind     text not null,
    message  text not null,
    detail   jsonb not null default '{}'
);
create index upgrade_event_relation on migrator.upgrade_event (relation, id);

select pg_catalog.pg_extension_config_dump('migrator.upgraded', '');
select pg_catalog.pg_extension_config_dump('migrator.upgrade', '');
select pg_catalog.pg_extension_config_dump('migrator.upgrade_failure', '');
select pg_catalog.pg_extension_config_dump('migrator.upgrade_unnoted', '');
select pg_catalog.pg_extension_config_dump('migrator.upgrade_event', '');
select pg_catalog.pg_extension_config_dump('migrator.upgrade_id_seq', '');
select pg_catalog.pg_extension_config_dump('migrator.upgrade_unnoted_id_seq', '');
select pg_catalog.pg_extension_config_dump('migrator.upgrade_event_id_seq', '');
