//! What somebody without rights wrote, in every place where such code can stand, never runs with an administrator's
//! rights when the administrator drives the change.

use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::*;

for_oldest_and_newest_server!(
    code_in_types_and_expressions,
    code_put_on_the_shadow_and_the_backup,
    code_of_a_cast_in_a_foreign_key,
    code_in_a_view_of_somebody_who_may_only_read,
    a_schema_that_somebody_else_made,
    what_doctor_tells_a_user_without_rights,
    checks_put_off_before_upgrades_of_rows,
);

/// A role without rights with a schema of its own, and in it functions that tell, for ever, when they run as a superuser
/// or can become one. Sequences forget nothing, whatever is rolled back.
async fn mallory(session: &Session, database: &Database) -> Result<(String, Session)> {
    let role = format!("mallory_{}", database.name);
    session
        .run(&format!(
            "create role {role} login; create schema m authorization {role};
             create sequence m.caught; grant all on sequence m.caught to {role}"
        ))
        .await?;
    // Sessions of mallory's own: one that a superuser lent by SET ROLE could be taken back.
    let own = database.connect_as(&role, "mallory").await?;
    own.run(
            "create sequence m.ran;
             create function m.strike() returns void language plpgsql as $$
                 begin
                     perform nextval('m.ran');
                     if (select rolsuper from pg_catalog.pg_roles where rolname = current_user) then perform nextval('m.caught'); end if;
                     begin
                         execute 'reset role';
                         if (select rolsuper from pg_catalog.pg_roles where rolname = current_user) then perform nextval('m.caught'); end if;
                     exception when others then null;
                     end;
                 end $$;
             create function m.spring(v anyelement) returns anyelement immutable language plpgsql as $$
                 begin perform m.strike(); return v; end $$;
             create function m.yes(v int) returns boolean immutable language plpgsql as $$
                 begin perform m.strike(); return true; end $$;
             create function m.pull() returns trigger language plpgsql as $$
                 begin perform m.strike(); return case tg_op when 'DELETE' then old else new end; end $$"
        )
        .await?;
    Ok((role, own))
}

/// Insists that the code ran, or else nothing was tried, and never with rights that are not mallory's.
async fn never_caught(session: &Session) -> Result<()> {
    ensure!(session.value("select is_called from m.ran").await? == "t", "nothing of mallory's ran: this tests nothing");
    ensure!(
        session.value("select is_called from m.caught").await? == "f",
        "mallory's code ran {} times with a superuser's rights",
        session.value("select last_value from m.caught").await?
    );
    Ok(())
}

async fn gone(session: &Session, role: &str) -> Result<()> {
    session.run(&format!("drop owned by {role} cascade; drop schema if exists m cascade; drop role {role}")).await?;
    Ok(())
}

/// There, back, and there for good, driven by the superuser, with writes of the owner at each stop.
async fn all_the_way(database: &Database, change: &Change, role: &str, write: &str) -> Result<()> {
    let owner = database.connect_as(role, "owner").await?;
    change.until_ready().await?;
    owner.run(write).await?;
    change.until_in_step().await?;
    change.verify().await?;
    change.swap().await?;
    owner.run(write).await?;
    change.until_in_step().await?;
    change.rollback().await?;
    change.until_ready().await?;
    change.swap().await?;
    change.until_in_step().await?;
    change.finish().await
}

async fn code_in_types_and_expressions(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    let (role, own) = mallory(&session, &database).await?;
    // A literal of a domain, or of an array of it, runs the domain's check whenever the text is read.
    own
        .run(
            "create domain m.dom as int check (m.yes(value));
             create type m.pair as (d m.dom, t text);
             create table m.t (id int primary key, v int, d m.dom default 3, ds m.dom[] default '{4,5}', p m.pair default '(6,x)',
                 g int generated always as (v + array_length('{1}'::m.dom[], 1)) stored,
                 constraint c check (v <> all ('{-1,-2}'::m.dom[])));
             alter table m.t add constraint later check (v <> all ('{-3}'::m.dom[])) not valid;
             create index on m.t ((v = any ('{1,2}'::m.dom[])));
             create index on m.t (v) where v = any ('{1,2}'::m.dom[]);
             create statistics m.s on (v = any ('{1,2}'::m.dom[])), (m.spring(v)) from m.t;
             create policy own on m.t using (v <> all ('{-1}'::m.dom[])) with check (m.yes(v));
             create trigger tr before update on m.t for each row when (new.v <> all ('{-1}'::m.dom[])) execute function m.pull();
             create view m.seen as select id, v, v = any ('{1,2}'::m.dom[]) as hit from m.t;
             create view m.seen_again with (security_barrier) as select *, '{7}'::m.dom[] as more from m.seen;
             insert into m.t (id, v) select g, g from generate_series(1, 50) g"
        )
        .await?;
    let actions = "alter column id type bigint, add column w m.dom default 8, add constraint n check (w <> all ('{-1}'::m.dom[]))";
    session
        .rows(&format!(
            "select * from migrator.explain('m.t', {}, {})",
            session::literal(actions),
            session::literal(r#"{"w": "m.spring(id)"}"#)
        ))
        .await?;
    let change = Change::create(&database, "m.t", actions).await?;
    all_the_way(
        &database,
        &change,
        &role,
        "update m.t set v = v + 1 where id < 9; insert into m.t (id, v) select max(id) + 1, 1 from m.t",
    )
    .await?;
    never_caught(&session).await?;

    // alter_table reads and tries the same definitions; this default has it end in a change.
    session
        .run("call migrator.alter_table('m.t', 'alter column v set default 9, add constraint o check (v <> all (''{-7}''::m.dom[])), add column x m.dom default m.spring(1)')")
        .await?;
    Change::of(&database, session.number("select change from migrator.status").await?).finish().await?;
    never_caught(&session).await?;
    nothing_left_behind(&database).await?;
    gone(&session, &role).await
}

async fn code_put_on_the_shadow_and_the_backup(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    let (role, own) = mallory(&session, &database).await?;
    own.run("create table m.t (id int primary key, v int); insert into m.t select g, g from generate_series(1, 50) g")
        .await?;
    let change = Change::create(&database, "m.t", "alter column v type bigint").await?;
    let on = |table: &str| {
        format!(
            "create trigger a before truncate on {table} for each statement execute function m.pull();
             create trigger b before insert or update or delete on {table} for each row execute function m.pull();
             create trigger c after insert or update or delete on {table} for each statement execute function m.pull();
             alter table {table} enable always trigger a; alter table {table} enable always trigger b; alter table {table} enable always trigger c"
        )
    };
    let late = |table: &str| {
        format!(
            "create constraint trigger d after insert or delete on {table} deferrable initially deferred for each row execute function m.pull();
             alter table {table} enable always trigger d"
        )
    };
    let shadow = change.rear().await?;
    // The owner of the table owns the shadow. Whatever becomes of the change: it is not the administrator's code.
    own.run(&on(&shadow)).await?;
    let driver = change.session().await?;
    for _ in 0..6 {
        let _ = change.advance(&driver).await;
    }
    own.run("alter table m.t disable trigger user; alter table m.t enable trigger user").await?;
    let _ = change.advance(&driver).await;
    let _ = driver.run(&format!("select migrator.start_sync(change => {})", change.id)).await;
    for _ in 0..3 {
        let _ = change.advance(&driver).await;
    }
    never_caught(&session).await?;
    own.run(&late(&shadow)).await?;
    for _ in 0..6 {
        let _ = change.advance(&driver).await;
    }
    never_caught(&session).await?;
    change.cancel().await?;
    nothing_left_behind(&database).await?;

    let change = Change::create(&database, "m.t", "alter column v type bigint").await?;
    change.until_ready().await?;
    change.swap().await?;
    let backup = change.rear().await?;
    own.run(&on(&backup)).await?;
    own.run(&late(&backup)).await?;
    own.run("update m.t set v = v + 1; delete from m.t where id = 9; truncate m.t; insert into m.t values (1, 1)")
        .await?;
    for _ in 0..5 {
        let _ = change.advance(&driver).await;
    }
    let _ = driver.rows(&format!("select * from migrator.rollback(change => {})", change.id)).await;
    let state = change.state().await?;
    let end = if state == "swapped" { "finish" } else { "cancel" };
    driver.run(&format!("select migrator.{end}(change => {})", change.id)).await?;
    never_caught(&session).await?;
    nothing_left_behind(&database).await?;
    gone(&session, &role).await
}

async fn code_of_a_cast_in_a_foreign_key(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    let (role, own) = mallory(&session, &database).await?;
    own.run(
        "create table m.p (id int primary key); insert into m.p values (1);
             create type m.e as enum ('1');
             create function m.e2i(x m.e) returns int language plpgsql as $$ begin perform m.strike(); return 1; end $$;
             create cast (m.e as int) with function m.e2i(m.e) as implicit;
             create table m.c (id int primary key, r m.e references m.p, v int); insert into m.c values (1, '1', 1);
             create table m.q (id int primary key, c int references m.c); insert into m.q values (1, 1)",
    )
    .await?;
    for table in ["m.c", "m.p"] {
        let change = Change::create(&database, table, "add column w int").await?;
        change.until_ready().await?;
        change.swap().await?;
        session.run(&format!("select migrator.validate(change => {})", change.id)).await?;
        change.until_in_step().await?;
        change.rollback().await?;
        change.until_ready().await?;
        change.swap().await?;
        change.finish().await?;
        never_caught(&session).await?;
    }
    let valid = session
        .value(
            "select bool_and(convalidated) from pg_constraint where contype = 'f' and connamespace = 'm'::regnamespace",
        )
        .await?;
    ensure!(valid == "t", "a foreign key stayed NOT VALID");
    nothing_left_behind(&database).await?;
    gone(&session, &role).await
}

/// Somebody who may SELECT from the administrator's own table may build a view on it, and the swap makes views anew.
async fn code_in_a_view_of_somebody_who_may_only_read(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    let (role, own) = mallory(&session, &database).await?;
    session
        .run(&format!(
            "create table v (id int primary key, n int); insert into v select g, g from generate_series(1, 50) g; grant select on v to {role}"
        ))
        .await?;
    own.run(
        "create domain m.dd as int check (m.yes(value));
             create view m.vv as select id, n = any ('{1}'::m.dd[]) as hit from v;
             create view m.vvv as select * from m.vv where id <> all ('{-1}'::m.dd[])",
    )
    .await?;
    let change = Change::create(&database, "public.v", "add column note text").await?;
    change.until_ready().await?;
    change.swap().await?;
    change.until_in_step().await?;
    change.rollback().await?;
    change.until_ready().await?;
    change.swap().await?;
    change.finish().await?;
    never_caught(&session).await?;
    ensure!(own.number("select count(*) from m.vvv").await? == 50, "the views lost their rows");
    nothing_left_behind(&database).await?;
    gone(&session, &role).await
}

/// Who owns a schema may drop what is in it: no table is moved into a schema that somebody else made first.
async fn a_schema_that_somebody_else_made(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    let (role, own) = mallory(&session, &database).await?;
    session
        .run(&format!(
            "grant create on database {} to {role}; create table b (id int primary key, n int); insert into b select g, g from generate_series(1, 50) g",
            database.name
        ))
        .await?;
    let stranger = own;
    let change = Change::create(&database, "public.b", "alter column n type bigint").await?;
    // The shadow's schema of the next change is taken: it gets another number.
    stranger.run(&format!("create schema migrator_shadow_{}", change.id + 1)).await?;
    change.until_ready().await?;
    let backup = format!("migrator_backup_{}", change.id);
    stranger.run(&format!("create schema {backup}")).await?;
    let refusal = session.refusal("select * from migrator.swap('b')").await?;
    ensure!(refusal.message.contains(&backup) && refusal.hint.is_some(), "{refusal}");
    ensure!(change.state().await? == "ready", "refused, and yet: {}", change.told().await?);
    ensure!(session.number("select count(*) from b where n = id").await? == 50, "rows lost");
    ensure!(
        session.value(&format!("select to_regclass('{backup}.b')")).await?.is_empty(),
        "the live table lies in a schema of somebody else"
    );
    stranger.run(&format!("drop schema {backup}")).await?;
    change.swap().await?;
    stranger.refusal(&format!("drop table {backup}.b")).await?;
    stranger.refusal(&format!("create table {backup}.mine (id int)")).await?;
    change.rollback().await?;
    change.until_ready().await?;
    change.swap().await?;

    // What somebody with the right put beside the backup is theirs: named, not dropped.
    session.run(&format!("create table {backup}.kept as select 1 as one")).await?;
    let refusal = session.refusal("select migrator.finish('b')").await?;
    ensure!(refusal.to_string().contains("kept"), "what is in the way is not named: {refusal}");
    ensure!(session.number(&format!("select one from {backup}.kept")).await? == 1, "somebody's table is lost");
    session.run(&format!("drop table {backup}.kept")).await?;
    change.finish().await?;

    let next = Change::create(&database, "public.b", "add column w int").await?;
    ensure!(next.id != change.id + 1, "the shadow lies in a schema of somebody else");
    next.cancel().await?;
    stranger.run(&format!("drop schema migrator_shadow_{}", change.id + 1)).await?;
    nothing_left_behind(&database).await?;
    gone(&session, &role).await
}

async fn what_doctor_tells_a_user_without_rights(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    let (role, own) = mallory(&session, &database).await?;
    let table = "create table TABLE (id int primary key, code text); insert into TABLE select g, 'ssn ' || g / 2 from generate_series(1, 50) g";
    session.run(&table.replace("TABLE", "secret")).await?;
    own.run(&table.replace("TABLE", "m.own")).await?;
    // Both are blocked by an index that cannot be built: the words hold a value of the table.
    for table in ["public.secret", "m.own"] {
        let change = Change::create(&database, table, "add unique (code)").await?;
        let _ = change.until_ready().await;
        ensure!(change.state().await? == "blocked", "this should be blocked: {}", change.told().await?);
    }
    let all = "select string_agg(concat_ws(' ', d.subject, d.problem, d.remedy), '; ') from migrator.doctor() d";
    let told = session.value(all).await?;
    ensure!(told.contains("secret") && told.contains("m.own"), "doctor does not tell of both: {told}");
    // A schema that looks like one of ours and is none, for its number is too long, does not stop doctor.
    session.run("create schema migrator_shadow_99999999999999999999").await?;
    let told = own.value(all).await?;
    session.run("drop schema migrator_shadow_99999999999999999999").await?;
    ensure!(told.contains("m.own"), "doctor tells an owner nothing of their own table: {told}");
    ensure!(!told.contains("secret"), "doctor tells a stranger of others' tables: {told}");
    session.run("select migrator.cancel('secret')").await?;
    session.run("select migrator.cancel('m.own')").await?;
    nothing_left_behind(&database).await?;
    gone(&session, &role).await
}

/// What the caller of his own transaction put off to its end is done then, as himself: not by a call that has checks done at once.
async fn checks_put_off_before_upgrades_of_rows(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    let (role, own) = mallory(&session, &database).await?;
    own.run(
        "create table m.parent (id int primary key);
         create table m.t (id int primary key, v text, o text, w int, p int references m.parent deferrable initially deferred);
         create table m.other (id int);
         create constraint trigger late after insert on m.t deferrable initially deferred for each row execute function m.pull();
         create constraint trigger late after insert on m.other deferrable initially deferred for each row execute function m.pull();
         insert into m.t (id, v) select g, case g when 1 then 'no number' else '1' end from generate_series(1, 4) g",
    )
    .await?;
    own.run(
        "select migrator.register_upgrade('m.t', 'number', set => '{\"p\": \"nullif(v::int, 1)\"}');
         select migrator.register_upgrade('m.t', 'code', inputs => '{v}', outputs => '{o}')",
    )
    .await?;
    own.run("call migrator.run_upgrades('m.t')").await?;
    let taken = own
        .value(
            "select jsonb_agg(jsonb_build_object('key', key, 'token', token, 'values', '{\"o\": \"z\"}'::jsonb)) from migrator.select_batch('m.t', 'code', 3)",
        )
        .await?;
    own.run("select migrator.register_upgrade('m.t', 'later', set => '{\"w\": \"id\"}')").await?;
    let back = format!("select * from migrator.mark_applied('m.t', 'code', {})", session::literal(&taken));
    let calls = [
        back.as_str(),
        "select migrator.retry_failed('m.t')",
        "select migrator.waive_failed('m.t', 'number')",
        "select migrator.ensure_upgraded('m.t', 'later', drive => true)",
    ];
    for put_off in ["insert into m.t (id, v) values (99, '1')", "insert into m.other values (1)"] {
        for call in calls {
            own.run("begin").await?;
            own.run(put_off).await?;
            let refusal = own.refusal(call).await?;
            own.run("rollback").await?;
            ensure!(refusal.code == "25001", "{put_off}; {call}: {refusal}");
        }
    }
    never_caught(&session).await?;
    // Done first, as himself; and what is wrong with a row of his own is not said of another one.
    own.run("begin; insert into m.t (id, v, p) values (99, '1', 77); insert into m.parent values (77); set constraints all immediate")
        .await?;
    let applied = own.value(&format!("select count(*) filter (where applied) from ({back}) x")).await?;
    own.run("commit").await?;
    ensure!(applied == "3", "{applied} of 3 rows came back");
    never_caught(&session).await?;
    gone(&session, &role).await
}
