-- The truth about every change. Written only by the extension's functions; read through migrator.status and migrator.log.

do $$
begin
    if getdatabaseencoding() <> 'UTF8' then
        raise exception 'database % has the encoding %, and migrator needs UTF8', current_database(), getdatabaseencoding()
            using errcode = 'feature_not_supported', detail = 'Texts of other encodings could not be read where rows are written. Nothing was changed.';
    end if;
end $$;

create table migrator.change (
    id           bigint generated always as identity primary key,
    kind         text not null default 'table' check (kind in ('table')),
    -- milliseconds since 1970 of the change's start: a second, unique way to name it
    started_ms   bigint not null unique,
    requested_by name not null default session_user,
    table_schema name not null,                     -- where the live table is, and where the shadow goes
    table_name   name not null,
    live         oid not null,                      -- the table of the old shape: live until the swap, then the backup
    shadow       oid not null,                      -- the table of the new shape: the shadow, then the live table
    actions      text,
    transform    jsonb not null default '{}',
    reverse      jsonb not null default '{}',
    on_ready     text not null default 'wait' check (on_ready in ('wait', 'swap')),
    plan         jsonb not null,
    state        text not null check (state in ('created', 'syncing', 'copying', 'indexing', 'catching_up',
                                                'verifying', 'ready', 'swapped', 'finished', 'cancelled')),
    state_since  timestamptz not null default clock_timestamp(),
    created_at   timestamptz not null default clock_timestamp(),
    paused_at    timestamptz,
    postponed_until timestamptz,
    blocked      text,                              -- why nothing can go on, until somebody acts
    blocked_hint text,
    waiting      text,                              -- why nothing goes on just now (a hold), for status
    waiting_since timestamptz,
    held_since   timestamptz,                       -- since when the server's load holds it
    -- capture
    sync_xid     xid8,                              -- the transaction that switched capture on
    capture      text,                              -- fingerprint of the capture triggers; a change of it voids the copy
    filenode     oid,                               -- the live table's file when the copy was laid out
    -- rollback
    rolled_back  integer not null default 0,        -- how often the new shape has been live and was taken back
    swapped_at   timestamptz,
    swap_xid     xid8,
    front_definitions text,                         -- columns and definitions of the new table as the swap made it
    fence_at     timestamptz,                       -- when fence_xid did its work
    fence_xid    xid8,                              -- snapshots older than this miss rows of the table that is not live
    kept         jsonb,                             -- what the swap took from the old table and a rollback gives back
    unvalidated  jsonb not null default '[]',       -- foreign keys added NOT VALID by the last swap
    -- figures
    blocks_total bigint not null default 0,
    rows_copied  bigint not null default 0,
    rows_caught_up bigint not null default 0,
    rows_verified bigint not null default 0,
    rows_mismatched bigint not null default 0,
    verify_rounds integer not null default 0,
    backlog      bigint not null default 0,         -- keys in the log when it was last looked at
    catch_up     jsonb                              -- what a batch of catching up takes, and how fast it goes
);
create unique index change_one_open_live on migrator.change (live) where state not in ('finished', 'cancelled');
create unique index change_one_open_shadow on migrator.change (shadow) where state not in ('finished', 'cancelled');

-- A range of blocks to copy or of keys to verify; the cursor commits with the rows.
create table migrator.chunk (
    change       bigint not null references migrator.change on delete cascade,
    step         text not null check (step in ('copy', 'verify')),
    number       integer not null,
    block_from   bigint,                            -- copy: the next block to read
    block_until  bigint,                            -- copy: the first block behind the chunk
    key_from     text[],                            -- verify: first key, null for none; the old shape's types, as text
    key_until    text[],                            -- verify: first key behind the chunk
    batch_blocks integer not null default 32,       -- what the next batch takes: of blocks …
    batch_rows   integer,                           -- … or, of a range of keys, rows; null: as those before it
    rate         double precision,                  -- copy: blocks a second, a moving average
    weight       double precision,                  -- copy: bytes of WAL for each block, likewise
    rows         bigint not null default 0,
    mismatched   bigint not null default 0,
    done_at      timestamptz,
    primary key (change, step, number)
);

-- Indexes and constraints of the shadow, made after the copy.
create table migrator.build (
    change     bigint not null references migrator.change on delete cascade,
    number     integer not null,
    name       name not null,
    sql        text not null,
    attach     text,
    is_key     boolean not null default false,
    built_at   timestamptz,
    took       interval,
    refused    boolean not null default false,      -- rows stood in its way: what was written since is replayed before the next try
    primary key (change, number)
);

-- Rows that the other shape refuses. They block the swap (or the rollback), never the application.
create table migrator.bad_row (
    change    bigint not null references migrator.change on delete cascade,
    direction text not null check (direction in ('forward', 'reverse')),
    key       jsonb not null,                       -- column of the key -> value as text
    sqlstate  text not null,
    message   text not null,
    seen_at   timestamptz not null default clock_timestamp(),
    primary key (change, direction, key)
);

-- Everything that happened, for `migrator log` and for the one who asks next morning.
create table migrator.event (
    id      bigint generated always as identity primary key,
    change  bigint not null references migrator.change on delete cascade,
    at      timestamptz not null default clock_timestamp(),
    role    name not null default session_user,
    source  text not null default coalesce(nullif(current_setting('application_name', true), ''), 'psql'),
    kind    text not null,
    message text not null,
    detail  jsonb not null default '{}'
);
create index event_change on migrator.event (change, id);

-- The last look at the server's load: one row, shared by all workers, refreshed at most once a second.
create table migrator.load (
    only_row   boolean primary key default true check (only_row),
    sampled_at timestamptz not null default '-infinity',
    decision   jsonb not null default '{}',         -- the signals that are raised, and what each was seen at
    memory     jsonb not null default '{}'          -- what the next look has to know of this one
);
insert into migrator.load default values;

-- What a DBA set for a signal of the load. Signals without a row have the defaults of core/src/load/signal.rs.
create table migrator.signal_limit (
    signal   text primary key,
    enter    double precision not null,             -- seconds, bytes or a number
    leave    double precision not null,
    off      boolean not null default false,
    ignoring text[] not null default '{}',          -- standbys, slots, places, tables
    set_by   name not null,
    set_at   timestamptz not null default clock_timestamp()
);

-- Checks by HTTP that said no, as agents heard it.
create table migrator.http_check (
    address  text primary key,
    said     text not null,
    until    timestamptz not null,                  -- for so long it stands, unless it is heard again
    role     name not null default session_user
);

-- How far the WAL that batches wrote is ahead of the rate that a DBA set: one row, shared by all workers.
create table migrator.wal_pace (
    only_row boolean primary key default true check (only_row),
    rate     double precision,                      -- bytes a second, by which the next was reckoned
    paid_at  timestamptz not null default '-infinity' -- when what was written so far is within the rate
) with (fillfactor = 10);
insert into migrator.wal_pace default values;

-- A signal of the DBA's own. Its text is shown to nobody: it runs with that role's rights.
create table migrator.own_query (
    only_row   boolean primary key default true check (only_row),
    query      text not null,
    timeout_ms bigint not null,
    role       name not null,
    superuser  boolean not null,                    -- whether that role was one when it set the query
    set_at     timestamptz not null default clock_timestamp()
);

select pg_catalog.pg_extension_config_dump('migrator.change', '');
select pg_catalog.pg_extension_config_dump('migrator.chunk', '');
select pg_catalog.pg_extension_config_dump('migrator.build', '');
select pg_catalog.pg_extension_config_dump('migrator.bad_row', '');
select pg_catalog.pg_extension_config_dump('migrator.event', '');
select pg_catalog.pg_extension_config_dump('migrator.signal_limit', '');
select pg_catalog.pg_extension_config_dump('migrator.own_query', '');
select pg_catalog.pg_extension_config_dump('migrator.change_id_seq', '');
select pg_catalog.pg_extension_config_dump('migrator.event_id_seq', '');

-- Anybody may look at the schema; the functions check who may change which table.
grant usage on schema migrator to public;
