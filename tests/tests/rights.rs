//! Whose rights are used for what: an owner changes their own table and no other; what an owner wrote never runs with
//! more than the owner's rights, whoever drives; rows that policies hide are not lost.

use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::same_rows::fingerprint;
use migrator_tests::session::literal;
use migrator_tests::*;

for_each_server!(
    an_owner_without_further_rights,
    others_are_refused,
    code_of_the_owner_never_runs_as_superuser,
    rows_hidden_by_policies,
    a_hostile_search_path,
    a_table_that_changes_hands,
    a_partitioned_shadow_that_changes_hands,
    a_role_with_a_statement_timeout,
    code_of_a_view_owner_gets_no_right_to_create,
);

/// Roles belong to the whole server, so each database has its own.
async fn role(session: &Session, database: &Database, name: &str) -> Result<String> {
    let role = format!("{name}_{}", database.name);
    session.run(&format!("drop role if exists {role}; create role {role} login")).await?;
    Ok(role)
}

async fn drop_roles(session: &Session, roles: &[&String]) -> Result<()> {
    for role in roles {
        session.run(&format!("drop owned by {role} cascade; drop role {role}")).await?;
    }
    Ok(())
}

/// Drives a change to its end as some role, through swap, rollback and swap.
async fn all_the_way_as(database: &Database, role: &str, arguments: &str, table: &str) -> Result<()> {
    let owner = database.connect_as(role, "test:owner").await?;
    let change = Change::create_in(database, &owner, table, arguments).await?;
    for turn in ["swap", "rollback", "swap"] {
        let deadline = std::time::Instant::now() + change::PATIENCE;
        loop {
            let advance = change.advance(&owner).await;
            match advance {
                Ok(advance) if advance.done => break,
                Ok(advance) => tokio::time::sleep(advance.wait).await,
                Err(error) if error.is_worth_retrying() => {}
                Err(error) => return Err(error.into()),
            }
            ensure!(std::time::Instant::now() < deadline, "{}", change.told().await?);
        }
        let row = owner.row(&format!("select * from migrator.{turn}(change => {})", change.id)).await?;
        ensure!(row[2] == "t", "{turn}: {row:?}");
    }
    owner.run(&format!("select migrator.validate(change => {})", change.id)).await?;
    owner.run(&format!("select migrator.finish(change => {})", change.id)).await?;
    Ok(())
}

async fn an_owner_without_further_rights(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    let owner = role(&session, &database, "owner").await?;
    session
        .run(&format!(
            "create schema closed; create table closed.things (id serial primary key, v text, up int references closed.things);
             insert into closed.things (v) select 'v' || g from generate_series(1, 500) g;
             create index on closed.things (v); create view closed.seen as select id, v from closed.things;
             alter table closed.things owner to {owner}; grant usage on schema closed to {owner}"
        ))
        .await?;
    let before = fingerprint(&session, "select id, v, up from closed.things").await?;
    all_the_way_as(
        &database,
        &owner,
        "actions => 'alter column v type varchar(100), add column w int'",
        "closed.things",
    )
    .await?;
    ensure!(fingerprint(&session, "select id, v, up from closed.things").await? == before, "rows changed");
    let now = session.value("select relowner::regrole from pg_class where oid = 'closed.things'::regclass").await?;
    ensure!(now == owner, "the table belongs to {now}");
    nothing_left_behind(&database).await?;
    session.run("drop schema closed cascade").await?;
    drop_roles(&session, &[&owner]).await
}

async fn others_are_refused(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    let (owner, other) = (role(&session, &database, "owner").await?, role(&session, &database, "other").await?);
    session
        .run(&format!(
            "create table mine (id int primary key); insert into mine select g from generate_series(1, 10) g;
             alter table mine owner to {owner}; grant all on mine to {other}"
        ))
        .await?;
    let stranger = database.connect_as(&other, "stranger").await?;
    let refusal = stranger.refusal("select migrator.create_shadow('mine', 'add column a int')").await?;
    ensure!(refusal.code == "42501", "{refusal}");
    let change = Change::create(&database, "public.mine", "add column a int").await?;
    for call in [
        "advance(ID)",
        "copy_batch(change => ID)",
        "start_sync(change => ID)",
        "swap(change => ID)",
        "rollback(change => ID)",
        "finish(change => ID)",
        "cancel(change => ID)",
        "pause(change => ID)",
        "resume(change => ID)",
        "verify(change => ID)",
        "validate(change => ID)",
    ] {
        let sql = format!("select * from migrator.{}", call.replace("ID", &change.id.to_string()));
        let refusal = stranger.refusal(&sql).await?;
        ensure!(matches!(refusal.code.as_str(), "42501" | "42704" | "P0002" | "22023"), "{sql}: {refusal}");
    }
    for table in ["change", "chunk", "build", "bad_row", "event", "load"] {
        let refusal = stranger.refusal(&format!("select * from migrator.{table}")).await?;
        ensure!(refusal.code == "42501", "{table}: {refusal}");
    }
    for view in ["status", "history", "bad_rows", "events", &format!("log(change => {})", change.id)] {
        let seen = stranger.number(&format!("select count(*) from migrator.{view}")).await;
        ensure!(!matches!(seen, Ok(rows) if rows > 0), "a stranger sees {seen:?} rows of {view}");
    }
    ensure!(stranger.number("select count(*) from migrator.status").await? == 0, "a stranger sees the change");
    // Writing goes on as before for those who may write: capture asks for no right of theirs.
    change.until_ready().await?;
    stranger.run("insert into mine values (11); delete from mine where id = 1").await?;
    change.swap().await?;
    stranger.run("insert into mine values (12); delete from mine where id = 2").await?;
    change.finish().await?;
    stranger.run("insert into mine values (13)").await?;
    ensure!(session.number("select count(*) from mine").await? == 11, "rows lost");
    nothing_left_behind(&database).await?;
    session.run("drop table mine").await?;
    drop_roles(&session, &[&owner, &other]).await
}

async fn code_of_the_owner_never_runs_as_superuser(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    let owner = role(&session, &database, "owner").await?;
    // Every place where an owner's own function can stand. Each tells, for ever, when it runs as somebody else.
    session
        .run(&format!(
            "create schema trap; grant all on schema trap to {owner}; create sequence trap.caught; grant all on sequence trap.caught to {owner};
             set role {owner};
             create function trap.spring(v anyelement) returns anyelement immutable language plpgsql as $$
                 begin
                     if current_user <> '{owner}' then perform nextval('trap.caught'); end if;
                     return v;
                 end $$;
             create function trap.spring_default() returns int volatile language plpgsql as $$
                 begin
                     if current_user <> '{owner}' then perform nextval('trap.caught'); end if;
                     return 7;
                 end $$;
             create function trap.spring_trigger() returns trigger language plpgsql as $$
                 begin
                     if current_user <> '{owner}' then perform nextval('trap.caught'); end if;
                     return new;
                 end $$;
             create domain trap.wary as int check (trap.spring(value) is not null);
             create table trap.bait (id int primary key, v text, d trap.wary, n int default trap.spring_default(),
                 g text generated always as (trap.spring(v)) stored,
                 check (trap.spring(v) is not null or v is null), unique (v));
             create index on trap.bait ((trap.spring(v)));
             create index on trap.bait (id) where trap.spring(v) <> 'x';
             create trigger t before insert or update on trap.bait for each row execute function trap.spring_trigger();
             insert into trap.bait (id, v, d) select g, 'v' || g, g from generate_series(1, 200) g;
             reset role"
        ))
        .await?;
    let change = Change::create_with(
        &database,
        "trap.bait",
        &format!(
            "actions => {}, {}",
            literal("alter column id type bigint, add column w text, add constraint c check (trap.spring(id) > 0), alter column d type bigint using trap.spring(d)"),
            change::arguments(r#"{"w": "trap.spring(v)"}"#, r#"{"d": "trap.spring(d)::int"}"#)
        ),
    )
    .await?;
    let as_owner = database.connect_as(&owner, "owner").await?;
    let write = "update trap.bait set v = v || '!' where id % 7 = 0; insert into trap.bait (id, v, d) values ((select max(id) + 1 from trap.bait), 'new' || (select max(id) from trap.bait), 5)";
    change.until_ready().await?;
    as_owner.run(write).await?;
    change.until_in_step().await?;
    change.verify().await?;
    change.swap().await?;
    as_owner.run(write).await?;
    change.until_in_step().await?;
    change.rollback().await?;
    as_owner.run(write).await?;
    change.until_ready().await?;
    change.swap().await?;
    change.finish().await?;
    ensure!(
        session.value("select is_called from trap.caught").await? == "f",
        "the owner's code ran {} times with somebody else's rights",
        session.value("select last_value from trap.caught").await?
    );
    nothing_left_behind(&database).await?;
    session.run("drop schema trap cascade").await?;
    drop_roles(&session, &[&owner]).await
}

async fn rows_hidden_by_policies(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    let (owner, reader) = (role(&session, &database, "owner").await?, role(&session, &database, "reader").await?);
    session
        .run(&format!(
            "create schema hidden; grant all on schema hidden to {owner}; grant usage on schema hidden to {reader};
             create table hidden.rows (id int primary key, who text);
             insert into hidden.rows select g, case when g % 3 = 0 then '{reader}' else 'nobody' end from generate_series(1, 300) g;
             alter table hidden.rows owner to {owner};
             alter table hidden.rows enable row level security;
             create policy own on hidden.rows for select to public using (who = current_user);
             create policy add on hidden.rows for insert to {reader} with check (who = current_user);
             grant select (id, who), insert on hidden.rows to {reader} with grant option"
        ))
        .await?;
    all_the_way_as(&database, &owner, "actions => 'alter column id type bigint, add column w int'", "hidden.rows")
        .await?;
    ensure!(session.number("select count(*) from hidden.rows").await? == 300, "rows that a policy hides were lost");
    let view = database.connect_as(&reader, "reader").await?;
    ensure!(view.number("select count(id) from hidden.rows").await? == 100, "a reader sees other rows than before");
    view.run(&format!("insert into hidden.rows (id, who) values (1000, '{reader}')")).await?;
    view.refusal("insert into hidden.rows (id, who) values (1001, 'nobody')").await?;

    // FORCE on an owner who is subject to it: all rows go over, or it is refused before anything is made.
    session.run("alter table hidden.rows force row level security").await?;
    match session.number("select migrator.create_shadow('hidden.rows', 'alter column who type varchar(200)')").await {
        Err(error) => ensure!(error.to_string().contains("row"), "refused without saying why: {error}"),
        Ok(id) => {
            Change::of(&database, id).through().await?;
            ensure!(
                session.number("select count(*) from hidden.rows").await? == 301,
                "rows that FORCE hides were lost"
            );
        }
    }
    nothing_left_behind(&database).await?;
    drop(view);
    session.run("drop schema hidden cascade").await?;
    drop_roles(&session, &[&owner, &reader]).await
}

async fn a_hostile_search_path(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table plain (id int primary key, v text); insert into plain select g, 'v' || g from generate_series(1, 200) g;
             create schema evil;
             create table evil.caught (what text);
             create function evil.count(text) returns bigint language sql as 'insert into evil.caught values ($1) returning 0::bigint';
             create function evil.format(text, variadic text[]) returns text language plpgsql as $$ begin insert into evil.caught values ('format'); return 'select 1'; end $$;
             create function evil.lies(int, int) returns boolean language plpgsql immutable as $$ begin return false; end $$;
             create operator evil.= (leftarg = int, rightarg = int, procedure = evil.lies);
             create function evil.lies(text, text) returns boolean language plpgsql as $$ begin insert into evil.caught values ('='); return false; end $$;
             create operator evil.= (leftarg = text, rightarg = text, procedure = evil.lies);
             create function evil.lies(jsonb, text) returns text language plpgsql as $$ begin insert into evil.caught values ('->>'); return $2; end $$;
             create operator evil.->> (leftarg = jsonb, rightarg = text, procedure = evil.lies);
             create table evil.pg_class (oid oid, relname text); create table evil.change (id int); create table evil.plain (id int);
             create function evil.notes(text) returns boolean language plpgsql as $$ begin insert into evil.caught values ('a type'); return true; end $$;
             create domain evil.text as pg_catalog.text check (evil.notes(value)); create type evil.record as (id int)",
        )
        .await?;
    let hostile = database.connect().await?;
    hostile.run("set search_path = evil, pg_catalog, public").await?;
    let change =
        Change::create_in(&database, &hostile, "public.plain", "actions => 'alter column id type bigint'").await?;
    hostile.run(&format!("call migrator.prepare(change => {})", change.id)).await?;
    hostile.run("update public.plain set v = 'x' where v like 'v1%'; delete from public.plain where id > 190").await?;
    change.until_in_step().await?;
    for call in ["verify", "swap"] {
        hostile.run(&format!("select * from migrator.{call}(change => {})", change.id)).await?;
    }
    hostile.run(&format!("select * from migrator.rollback(change => {})", change.id)).await?;
    hostile.run(&format!("call migrator.prepare(change => {})", change.id)).await?;
    hostile.run(&format!("select * from migrator.swap(change => {})", change.id)).await?;
    hostile.run(&format!("select migrator.finish(change => {})", change.id)).await?;
    // In several steps, and through a shadow.
    for actions in ["alter v set not null, add check (length(v) > 0)", "alter id type numeric"] {
        hostile.run(&format!("call migrator.alter_table('public.plain', {})", literal(actions))).await?;
    }
    hostile.run("select migrator.finish('public.plain')").await?;
    let rows = session.number("select count(*) from public.plain").await?;
    ensure!(rows == 190, "hostile operators decided: {rows} rows are left");
    let caught = session.value("select string_agg(distinct what, ', ') from evil.caught").await?;
    ensure!(caught.is_empty(), "functions of a hostile search_path ran: {caught}");
    // No path is pinned for what commits, so it can rely on none.
    let pinned = "select string_agg(proname, ', ') from pg_proc where pronamespace = 'migrator'::regnamespace \
                  and prokind = 'p' and (proconfig is not null or prosecdef)";
    ensure!(session.value(pinned).await?.is_empty(), "cannot commit: {}", session.value(pinned).await?);
    nothing_left_behind(&database).await
}

/// The partitions of a shadow that the user made stay in the user's schema: they follow the owner too.
async fn a_partitioned_shadow_that_changes_hands(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    let (first, second) = (role(&session, &database, "first").await?, role(&session, &database, "second").await?);
    session
        .run(&format!(
            "create schema estate; grant usage, create on schema estate to {first}, {second};
             create table estate.plots (id int primary key, v text);
             insert into estate.plots select g, 'v' || g from generate_series(1, 300) g;
             alter table estate.plots owner to {first}; set role {first};
             create table estate.plots_new (id int primary key, v text) partition by range (id);
             create table estate.plots_low partition of estate.plots_new for values from (minvalue) to (100);
             create table estate.plots_high partition of estate.plots_new for values from (100) to (maxvalue);
             reset role"
        ))
        .await?;
    let change = Change::create_with(&database, "estate.plots", "shadow => 'estate.plots_new'").await?;
    change.until(|advance| advance.state == "copying").await?;
    session.run(&format!("alter table estate.plots owner to {second}")).await?;
    change.until_ready().await?;
    change.swap().await?;
    let owners =
        "select string_agg(distinct c.relowner::regrole::text, ',') from pg_class c where c.relname like 'plots%'";
    ensure!(session.value(owners).await? == second, "the old owner kept {}", session.value(owners).await?);
    ensure!(session.number("select count(*) from estate.plots").await? == 300, "rows are missing");
    change.finish().await?;
    session.run("drop schema estate cascade").await?;
    drop_roles(&session, &[&first, &second]).await
}

/// Neither of the two owners has any right but that of the owner; the second takes over in every state, and
/// keeps the table.
async fn a_table_that_changes_hands(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    let (first, second) = (role(&session, &database, "first").await?, role(&session, &database, "second").await?);
    session
        .run(&format!(
            "create schema estate; grant usage on schema estate to {first}, {second};
             create table estate.deeds (id int generated always as identity primary key, v text, n int);
             insert into estate.deeds (v, n) select 'v' || g, g from generate_series(1, 2000) g;
             create index on estate.deeds (v); alter table estate.deeds owner to {first}"
        ))
        .await?;
    let mut change = Change::create(&database, "estate.deeds", "alter column n type bigint").await?;
    let (mut owner, mut other) = (&first, &second);
    let write =
        "update estate.deeds set v = v || '.' where id % 10 = 0; insert into estate.deeds (v, n) values ('new', 0)";
    for state in ["created", "copying", "indexing", "catching_up", "ready", "swapped", "rollback"] {
        if !matches!(state, "created" | "rollback") {
            if state == "swapped" {
                change.swap().await?;
            } else {
                change.until(|advance| advance.state == state).await?;
            }
        }
        (owner, other) = (other, owner);
        session.run(write).await?;
        session.run(&format!("alter table estate.deeds owner to {owner}")).await?;
        if state == "rollback" {
            change.rollback().await?;
        } else {
            let end = if state == "swapped" { "swapped" } else { "ready" };
            change.until(|advance| advance.done && advance.rows == 0 && advance.state == end).await?;
        }
        let rear = change.rear().await?;
        let belongs =
            "select string_agg(distinct c.relowner::regrole::text, ',') from pg_class c where c.relname like 'deeds%'";
        ensure!(session.value(belongs).await? == *owner, "{state}: {}", session.value(belongs).await?);
        // The one who gave it away sees no copy of it either.
        let refusal = database.connect_as(other, "test:before").await?.refusal(&format!("select from {rear}")).await?;
        ensure!(refusal.code == "42501", "{state}: {refusal}");
        if matches!(state, "created" | "copying" | "indexing" | "catching_up") {
            change.cancel().await?;
            change = Change::create(&database, "estate.deeds", "alter column n type bigint").await?;
        }
    }
    // Both tables at once, and what the old owner was granted is gone.
    change.until_ready().await?;
    session
        .run(&format!(
            "reassign owned by {owner} to {other}; drop owned by {owner}; grant usage on schema estate to {owner}"
        ))
        .await?;
    session.run(write).await?;
    change.until_in_step().await?;
    let swapped = session.row(&format!("select * from migrator.swap(change => {})", change.id)).await?;
    ensure!(swapped[2] == "t", "{swapped:?}");
    change.until_in_step().await?;
    ensure!(session.number("select count(*) from estate.deeds").await? == 2000 + 8, "rows lost");
    change.finish().await?;
    let now = session.value("select relowner::regrole from pg_class where oid = 'estate.deeds'::regclass").await?;
    ensure!(now == *other, "the table belongs to {now}, not to {other}");
    nothing_left_behind(&database).await?;
    session.run("drop schema estate cascade").await?;
    drop_roles(&session, &[&first, &second]).await
}

/// The role's limits are made for its application. A build that takes longer gets through all the same; Ctrl-C ends it, and
/// what was done before is kept.
async fn a_role_with_a_statement_timeout(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    let owner = role(&session, &database, "hurried").await?;
    session
        .run(&format!(
            "create table slow (id int primary key, v int); insert into slow select g, g from generate_series(1, 20) g;
             create function slowly(v int) returns int immutable language plpgsql as $$ begin perform pg_sleep(0.05); return v; end $$;
             create index on slow (slowly(v)); alter table slow owner to {owner};
             alter role {owner} set statement_timeout = '800ms'"
        ))
        .await?;
    if database.major() >= 17 {
        session.run(&format!("alter role {owner} set transaction_timeout = '900ms'")).await?;
    }
    let client = database.connect_as(&owner, "test:owner").await?;
    client.refusal("select pg_sleep(1)").await?;
    let client = database.connect_as(&owner, "test:owner").await?;
    let change = Change::create(&database, "public.slow", "alter column id type bigint").await?;
    change.until(|advance| advance.state == "indexing").await?;
    let step = format!("select step, reason from migrator.advance({})", change.id);
    // The first build is disturbed.
    let caller = database.connect_as(&owner, "test:owner").await?;
    let building = format!(
        "select count(*) from pg_stat_activity where pid = {} and state = 'active' and wait_event = 'PgSleep'",
        caller.pid
    );
    let cancel = format!("select pg_cancel_backend({})", caller.pid);
    let one_step = step.clone();
    let stepping = tokio::spawn(async move {
        loop {
            if let Err(error) = caller.value(&one_step).await {
                return error;
            }
        }
    });
    while session.number(&building).await? == 0 {
        ensure!(!stepping.is_finished(), "no build was begun: {}", stepping.await?);
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    session.run(&cancel).await?;
    ensure!(stepping.await?.code == "57014", "the build should have been cancelled");
    while client.value(&step).await? == "build" {}
    // And the call that does all the rest.
    client.run(&format!("call migrator.prepare(change => {})", change.id)).await?;
    ensure!(change.state().await? == "ready", "{}", change.told().await?);
    client.refusal("select pg_sleep(1)").await?;
    change.swap().await?;
    change.finish().await?;
    nothing_left_behind(&database).await?;
    session.run("drop table slow; drop function slowly").await?;
    drop_roles(&session, &[&owner]).await
}

/// A view's text runs its owner's code, here in the check of a domain whose array it has as a literal, which tries to make a table beside the view where the
/// owner may not. The view is replaced once and made anew once.
async fn code_of_a_view_owner_gets_no_right_to_create(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    let owner = role(&session, &database, "viewer").await?;
    session
        .run(&format!(
            "create schema shop; create schema theirs authorization {owner};
             create table shop.goods (id int primary key, v text); insert into shop.goods select g, 'v' || g from generate_series(1, 100) g;
             grant usage, create on schema shop to {owner}; grant select on shop.goods to {owner};
             set role {owner};
             create function theirs.grabs(v text) returns boolean language plpgsql as $$
                 begin
                     execute 'create table if not exists shop.grabbed ()';
                     return true;
                 exception when others then
                     return true;
                 end $$;
             create domain theirs.grabbing as text check (theirs.grabs(value));
             create view shop.kept as select v, '{{x}}'::theirs.grabbing[] as x from shop.goods;
             create view shop.anew as select id, v, '{{x}}'::theirs.grabbing[] as x from shop.goods;
             reset role; drop table if exists shop.grabbed; revoke create on schema shop from {owner};
             grant select on shop.anew to public; comment on view shop.kept is 'kept'"
        ))
        .await?;
    let change = Change::create(&database, "shop.goods", "alter column id type bigint").await?;
    change.until_ready().await?;
    for turn in ["swap", "rollback"] {
        if turn == "swap" {
            change.swap().await?
        } else {
            change.rollback().await?
        }
        ensure!(
            session.value("select to_regclass('shop.grabbed') is null").await? == "t",
            "the view owner's code made a table in the schema while the {turn} lasted"
        );
        let views = session
            .value("select string_agg(concat_ws(' ', relname, relnamespace::regnamespace, relowner::regrole, obj_description(oid)), ', ' order by relname) from pg_class where relname in ('kept', 'anew')")
            .await?;
        ensure!(views == format!("anew shop {owner}, kept shop {owner} kept"), "{views}");
        let rows = session.number("select count(*) from shop.kept join shop.anew using (v)").await?;
        ensure!(rows == 100, "the views show {rows} rows");
    }
    let may = session.value(&format!("select has_schema_privilege('{owner}', 'shop', 'create')")).await?;
    ensure!(may == "f", "the right was left to the view's owner");
    change.until_ready().await?;
    change.cancel().await?;
    nothing_left_behind(&database).await?;
    session.run("drop schema shop cascade; drop schema theirs cascade").await?;
    drop_roles(&session, &[&owner]).await
}
