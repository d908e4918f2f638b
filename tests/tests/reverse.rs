//! The way back: what a rollback brings back, and what it says beforehand that it cannot.

use migrator_tests::change::arguments;
use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::same_rows::fingerprint;
use migrator_tests::session::literal;
use migrator_tests::*;

for_each_server!(
    a_dropped_column_comes_back_with_every_value,
    values_come_back_as_they_were_unless_they_were_changed,
    a_key_that_grew_too_long_is_named_at_once,
    a_column_that_nobody_could_fill_is_refused,
    unique_values_that_move_after_the_swap,
    swapping_and_rolling_back_again_and_again,
    decisions_at_the_wrong_time,
    a_paused_change_can_be_ended,
    writes_that_nobody_saw_after_the_swap,
    writes_that_nobody_saw_after_the_rollback,
    what_was_added_since_the_swap_is_not_lost,
);

async fn a_dropped_column_comes_back_with_every_value(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table staff (id int primary key, name text, salary numeric(9,2) not null default 100, memo text);
             insert into staff select g, 'n' || g, g, case when g % 2 = 0 then 'memo ' || g end from generate_series(1, 500) g",
        )
        .await?;
    let change = Change::create(&database, "public.staff", "drop column salary, drop column memo").await?;
    change.until_ready().await?;
    change.swap().await?;
    session
        .run(
            "update staff set name = upper(name); update staff set id = id + 10000 where id > 490;
             update staff set name = 'last' where id = 7; delete from staff where id = 8; insert into staff values (8, 'again'), (600, 'new')",
        )
        .await?;
    change.until_in_step().await?;
    change.rollback().await?;

    let kept = "select count(*) from staff where id < 491 and id <> 8 \
                and salary = id and memo is not distinct from case when id % 2 = 0 then 'memo ' || id end \
                and name = case id when 7 then 'last' else 'N' || id end";
    ensure!(session.number(kept).await? == 489, "old values are gone: {} are left", session.number(kept).await?);
    let new = "select count(*) from staff where (id = 600 or id > 10000) and salary = 100 and memo is null";
    ensure!(session.number(new).await? == 11, "new rows should have the default: {}", session.number(new).await?);
    change.until_ready().await?;
    change.cancel().await?;
    nothing_left_behind(&database).await
}

async fn values_come_back_as_they_were_unless_they_were_changed(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table prices (id int primary key, price numeric, label text);
             insert into prices select g, g + 0.123456, '  Label ' || g from generate_series(1, 300) g",
        )
        .await?;
    let change = Change::create_with(
        &database,
        "public.prices",
        &format!(
            "actions => {}, {}",
            literal("alter column price type int, alter column label type text"),
            arguments(r#"{"price": "round(price)", "label": "lower(btrim(label))"}"#, r#"{"label": "label"}"#)
        ),
    )
    .await?;
    change.until_ready().await?;
    change.swap().await?;
    ensure!(
        session.value("select price || label from prices where id = 10").await? == "10label 10",
        "transforms did not run"
    );
    session
        .run("update prices set price = 999 where id = 3; update prices set label = 'other' where id = 4; insert into prices values (301, 5, 'new')")
        .await?;
    change.until_in_step().await?;
    change.rollback().await?;
    let told = session
        .value("select string_agg(concat_ws('|', id, price, label), ' ' order by id) from prices where id in (3, 4, 5, 301)")
        .await?;
    ensure!(told == "3|999|  Label 3 4|4.123456|other 5|5.123456|  Label 5 301|5|new", "{told}");
    let untouched = "select count(*) from prices where price = id + 0.123456 and label = '  Label ' || id";
    ensure!(session.number(untouched).await? == 298, "untouched rows were rounded on the way back");
    change.until_ready().await?;
    change.cancel().await?;
    nothing_left_behind(&database).await
}

async fn a_key_that_grew_too_long_is_named_at_once(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run("create table keys (id int primary key, v text); insert into keys select g, g from generate_series(1, 100) g").await?;
    let change = Change::create(&database, "public.keys", "alter column id type bigint").await?;
    change.until_ready().await?;
    change.swap().await?;
    // The application is free to use what the new shape allows.
    session
        .run("insert into keys values (3000000000, 'long'), (101, 'short'); update keys set v = 'x' where id = 5")
        .await?;
    change.until_in_step().await?;
    let unfit = session.value(&format!("select unfit from migrator.status where change = {}", change.id)).await?;
    ensure!(unfit.contains("3000000000"), "status does not name the row that does not fit back: {unfit:?}");
    let refusal = session.refusal(&format!("select * from migrator.rollback(change => {})", change.id)).await?;
    ensure!(format!("{refusal}").contains("3000000000"), "the refusal does not name the row: {refusal}");
    ensure!(session.number("select count(*) from keys").await? == 102, "the refused rollback changed something");

    session.run("delete from keys where id = 3000000000").await?;
    change.until_in_step().await?;
    change.rollback().await?;
    ensure!(session.number("select count(*) from keys").await? == 101, "rows lost");
    ensure!(session.value("select v from keys where id = 5").await? == "x", "an update was lost");
    change.until_ready().await?;
    change.cancel().await?;
    nothing_left_behind(&database).await
}

async fn a_column_that_nobody_could_fill_is_refused(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run("create table strict (id int primary key, must text not null); insert into strict values (1, 'a')")
        .await?;
    let refusal = session.refusal("select migrator.create_shadow('strict', 'drop column must')").await?;
    ensure!(refusal.message.contains("must") && refusal.hint.is_some(), "{refusal}");
    nothing_left_behind(&database).await?;

    let change = Change::create_with(
        &database,
        "public.strict",
        &format!("actions => 'drop column must', {}", arguments("{}", r#"{"must": "'row ' || id"}"#)),
    )
    .await?;
    change.until_ready().await?;
    change.swap().await?;
    session.run("insert into strict values (2)").await?;
    change.until_in_step().await?;
    change.rollback().await?;
    let must = session.value("select string_agg(must, ',' order by id) from strict").await?;
    ensure!(must == "a,row 2", "{must}");
    change.until_ready().await?;
    change.cancel().await?;
    nothing_left_behind(&database).await
}

async fn unique_values_that_move_after_the_swap(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table seats (id int primary key, seat text unique, guest text, extra text default 'old');
             insert into seats select g, 'seat ' || g, 'guest ' || g, 'extra ' || g from generate_series(1, 200) g",
        )
        .await?;
    let change = Change::create(&database, "public.seats", "alter column id type bigint, drop column extra").await?;
    change.until_ready().await?;
    change.swap().await?;
    for round in 0..5 {
        session
            .run(&format!(
                "begin;
                 update seats set seat = null where id <= 100;
                 update seats set seat = 'seat ' || (id + {round}) % 100 + 1 where id <= 100;
                 delete from seats where id = 150; insert into seats values (150, 'seat 150', 'again');
                 update seats set id = -id where id = 110; update seats set id = 110 where id = 111; update seats set id = 111 where id = -110;
                 commit"
            ))
            .await?;
        change.until_in_step().await?;
    }
    let now = fingerprint(&session, "select id, seat, guest from seats").await?;
    change.rollback().await?;
    ensure!(fingerprint(&session, "select id, seat, guest from seats").await? == now, "the rollback changed rows");
    ensure!(
        session.number("select count(*) from seats where extra = 'extra ' || id").await? >= 197,
        "columns that only the old table has lost their values"
    );
    change.until_ready().await?;
    change.cancel().await?;
    nothing_left_behind(&database).await
}

async fn swapping_and_rolling_back_again_and_again(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run("create table turns (id int primary key, v int); insert into turns select g, 0 from generate_series(1, 100) g").await?;
    let change =
        Change::create(&database, "public.turns", "alter column id type bigint, add column w text default 'w'").await?;
    for round in 1..=4 {
        change.until_ready().await?;
        session.run(&format!("update turns set v = v + 1; insert into turns values (1000 + {round}, 0)")).await?;
        change.swap().await?;
        session.run(&format!("update turns set v = v + 1; insert into turns values (2000 + {round}, 0)")).await?;
        change.until_in_step().await?;
        change.rollback().await?;
    }
    ensure!(session.number("select count(*) from turns").await? == 108, "rows lost");
    ensure!(session.number("select count(*) from turns where id <= 100 and v = 8").await? == 100, "updates lost");
    change.until_ready().await?;
    change.cancel().await?;
    nothing_left_behind(&database).await
}

/// All tables with their files and triggers, and what the change knows of itself.
async fn everything(session: &Session) -> Result<String> {
    let tables = "select c.oid, c.relname, c.relnamespace, c.relfilenode, \
                    (select string_agg(concat_ws(' ', t.oid, t.tgname, t.tgenabled), ',' order by t.oid) from pg_trigger t where t.tgrelid = c.oid) \
                  from pg_class c where c.relname like 'times%' or c.relname like 'log_%'";
    let change = "select c.*, (select count(*) from migrator.event) as events, n.spaces from migrator.change c, \
                  (select string_agg(nspname, ',' order by nspname) as spaces from pg_namespace) n";
    Ok(format!("{} {}", fingerprint(session, tables).await?, fingerprint(session, change).await?))
}

/// A call that is refused with this code, says what became of it and what to do, and changes nothing.
async fn refused(session: &Session, call: &str, code: &str, says: &str) -> Result<()> {
    let before = everything(session).await?;
    let refusal = session.refusal(call).await?;
    if session.value("select pg_current_xact_id_if_assigned()").await.is_err() {
        session.run("rollback").await?;
    }
    ensure!(refusal.code == code, "{call}: not {code}: {refusal}");
    ensure!(refusal.detail.contains("Nothing was changed."), "{call}: what became of it is not said: {refusal}");
    ensure!(refusal.hint.as_ref().is_some_and(|hint| hint.contains(says)), "{call}: no way on by {says}: {refusal}");
    ensure!(everything(session).await? == before, "{call}: refused, and yet something was changed");
    Ok(())
}

async fn decisions_at_the_wrong_time(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run("create table times (id int primary key); insert into times values (1)").await?;
    let change = Change::create(&database, "public.times", "alter column id type bigint").await?;
    for (early, code, says) in [
        ("select * from migrator.swap('times')", "55000", "call migrator.prepare('public.times');"),
        ("select * from migrator.rollback('times')", "55000", "select migrator.cancel('public.times');"),
        ("select migrator.finish('times')", "55000", "select migrator.cancel('public.times');"),
        (
            "select migrator.create_shadow('times', 'add column a int')",
            "55006",
            "select migrator.cancel('public.times');",
        ),
    ] {
        refused(&session, early, code, says).await?;
    }
    change.until_ready().await?;
    let inside = "begin; select * from migrator.swap('times')";
    refused(&session, inside, "25001", "in_transaction => true").await?;
    refused(&session, "select migrator.finish('times')", "55000", "select * from migrator.swap('public.times');")
        .await?;
    change.swap().await?;
    for late in [
        "select * from migrator.swap('times')",
        "select migrator.cancel('times')",
        "begin; select * from migrator.rollback('times', in_transaction => true); select * from migrator.rollback('times')",
    ] {
        let (code, says) = if late.starts_with("begin") {
            ("25001", "in_transaction => true")
        } else {
            ("55000", "select * from migrator.rollback('public.times');")
        };
        refused(&session, late, code, says).await?;
    }
    change.finish().await?;
    for over in ["rollback", "finish", "cancel", "swap"] {
        let by_name = format!("select migrator.{over}('times')");
        refused(&session, &by_name, "42704", "select migrator.create_shadow('public.times', 'alter …');").await?;
        let by_id = format!("select migrator.{over}(change => {})", change.id);
        refused(&session, &by_id, "55000", "select migrator.create_shadow('public.times', 'alter …');").await?;
    }
    nothing_left_behind(&database).await
}

/// Capture is off for a while: what is written meanwhile is seen by nobody, and is there all the same after the rollback.
async fn writes_that_nobody_saw_after_the_swap(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table books (id int primary key, title text unique, price numeric, memo text);
             insert into books select g, 'title ' || g, g + 0.25, 'memo ' || g from generate_series(1, 500) g",
        )
        .await?;
    let change = Change::create_with(
        &database,
        "public.books",
        &format!(
            "actions => {}, {}",
            literal("alter column id type bigint, alter column price type int, drop column memo"),
            arguments(r#"{"price": "floor(price)"}"#, "{}")
        ),
    )
    .await?;
    change.until_ready().await?;
    change.swap().await?;
    let start = format!("select migrator.start_sync(change => {})", change.id);
    let early = session.refusal(&start).await?;
    ensure!(early.code == "55000" && early.hint.is_some(), "{early}");
    session.run("update books set title = 'seen' where id = 1").await?;
    for off in [
        "alter table books disable trigger user",
        "drop trigger migrator_capture_ID_update on books; drop trigger migrator_capture_ID_delete on books",
    ] {
        session.run(&off.replace("ID", &change.id.to_string())).await?;
        session
            .run(
                "update books set title = 'unseen ' || id where id between 10 and 19; update books set price = 1000 where id = 20;
                 delete from books where id = (select min(id) from books where id > 30);
                 update books set id = -id where id = (select min(id) from books where id > 40);
                 insert into books select max(id) + 1, 'new ' || max(id), 5 from books",
            )
            .await?;
        let told = change.until(|advance| advance.step == "wait").await?.reason;
        ensure!(told.contains("capture"), "{told}");
        let refusal = session.refusal(&format!("select * from migrator.rollback(change => {})", change.id)).await?;
        ensure!(
            refusal.hint.as_ref().is_some_and(|hint| hint.contains("resume") || hint.contains("start_sync")),
            "{refusal}"
        );
        // A row that the old shape cannot hold is named, as ever.
        session.run("insert into books values (3000000000, 'too long', 1)").await?;
        ensure!(session.value(&start).await? == "swapped", "the state should stay");
        // What has to be compared is much more than an exchange may do.
        let refusal = session.refusal(&format!("select * from migrator.rollback(change => {})", change.id)).await?;
        ensure!(refusal.code == "55006" && refusal.hint.is_some(), "{refusal}");
        change.until_in_step().await?;
        let unfit = session.value(&format!("select unfit from migrator.status where change = {}", change.id)).await?;
        ensure!(unfit.contains("3000000000"), "status does not name the row that does not fit back: {unfit:?}");
        session.run("delete from books where id = 3000000000").await?;
    }
    let now = fingerprint(&session, "select id::bigint, title, floor(price)::int as price from books").await?;
    change.until_in_step().await?;
    change.rollback().await?;
    let then = fingerprint(&session, "select id::bigint, title, floor(price)::int as price from books").await?;
    ensure!(then == now, "the rollback lost writes that capture did not see");
    let kept = "select count(*) from books where price = id + 0.25 and memo = 'memo ' || id";
    ensure!(
        session.number(kept).await? >= 490,
        "{} rows kept what only the old shape has",
        session.number(kept).await?
    );
    change.until_ready().await?;
    change.cancel().await?;
    nothing_left_behind(&database).await
}

/// The same after the rollback: what only the new shape has must not be thrown away with a copy begun anew.
async fn writes_that_nobody_saw_after_the_rollback(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run("create table pets (id int primary key, name text); insert into pets select g, 'pet ' || g from generate_series(1, 300) g")
        .await?;
    let change = Change::create(&database, "public.pets", "add column chip text default 'none'").await?;
    change.until_ready().await?;
    change.swap().await?;
    session.run("update pets set chip = 'chip ' || id where id <= 200").await?;
    change.until_in_step().await?;
    change.rollback().await?;
    change.until_ready().await?;
    session
        .run(
            "alter table pets disable trigger user;
             update pets set name = 'unseen' where id = 5; delete from pets where id = 6; insert into pets values (301, 'unseen');
             alter table pets enable trigger user",
        )
        .await?;
    let told = change.until(|advance| advance.step == "wait").await?.reason;
    ensure!(told.contains("capture"), "{told}");
    session.run(&format!("select migrator.start_sync(change => {})", change.id)).await?;
    change.until_ready().await?;
    change.until_in_step().await?;
    change.swap().await?;
    ensure!(
        session.number("select count(*) from pets where chip = 'chip ' || id").await? == 199,
        "values that only the new shape has are gone: {} are left",
        session.number("select count(*) from pets where chip = 'chip ' || id").await?
    );
    let told = session
        .value("select string_agg(concat_ws('|', id, name, chip), ' ' order by id) from pets where id in (5, 6, 301)")
        .await?;
    ensure!(told == "5|unseen|chip 5 301|unseen|none", "{told}");
    change.finish().await?;
    nothing_left_behind(&database).await
}

/// A pause stops the work that goes on by itself. What somebody decides is done, or it is said what is in the way.
async fn a_paused_change_can_be_ended(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run("create table halts (id int primary key, v text); insert into halts select g, 'v' || g from generate_series(1, 3000) g").await?;
    let change = Change::create(&database, "public.halts", "alter column id type bigint, add column w int").await?;
    let pause = format!("select migrator.pause(change => {})", change.id);
    let resume = format!("select migrator.resume(change => {})", change.id);
    let rollback = format!("select * from migrator.rollback(change => {})", change.id);
    change.until_ready().await?;
    session.run(&pause).await?;
    let refusal = session.refusal(&format!("select * from migrator.swap(change => {})", change.id)).await?;
    ensure!(refusal.hint.as_ref().is_some_and(|hint| hint.contains("resume")), "a swap while paused: {refusal}");
    session.run(&resume).await?;
    change.swap().await?;

    session.run(&pause).await?;
    session.run("update halts set v = 'much' where id <= 2000").await?;
    let refusal = session.refusal(&rollback).await?;
    ensure!(
        refusal.hint.as_ref().is_some_and(|hint| hint.contains("resume")),
        "a rollback with much to replay: {refusal}"
    );
    session.run(&resume).await?;
    change.until_in_step().await?;
    session.run(&pause).await?;
    session.run("update halts set v = 'little' where id = 3; insert into halts values (3001, 'new')").await?;
    ensure!(session.row(&rollback).await?[2] == "t", "the rollback was not done");
    ensure!(session.value("select v from halts where id = 3").await? == "little", "the last write is missing");
    ensure!(session.number("select count(*) from halts").await? == 3001, "rows are missing");
    ensure!(change.state().await? == "paused", "it should still be paused: {}", change.told().await?);

    session.run(&resume).await?;
    change.until_ready().await?;
    change.until_in_step().await?;
    change.swap().await?;
    session.run(&pause).await?;
    change.finish().await?;
    nothing_left_behind(&database).await?;
    let change = Change::create(&database, "public.halts", "add column x int").await?;
    change.until(|advance| advance.state == "copying").await?;
    session.run(&format!("select migrator.pause(change => {})", change.id)).await?;
    change.cancel().await?;
    nothing_left_behind(&database).await
}

/// The old table does not have what was added to the new one since: no rollback loses it without a word.
async fn what_was_added_since_the_swap_is_not_lost(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table grown (id int primary key, v int, w int default 3); insert into grown select g, g from generate_series(1, 50) g;
             create index kept on grown (w)",
        )
        .await?;
    let change = Change::create(&database, "public.grown", "alter column v type bigint").await?;
    change.until_ready().await?;
    change.swap().await?;
    change.until_in_step().await?;
    for (add, undo) in [
        ("alter table grown add column extra text", "alter table grown drop column extra"),
        ("create index grown_v on grown (v)", "drop index grown_v"),
        ("alter table grown add constraint positive check (v > 0)", "alter table grown drop constraint positive"),
        ("alter table grown add constraint once unique (v)", "alter table grown drop constraint once"),
        ("alter table grown alter column v set default 7", "alter table grown alter column v drop default"),
        ("alter table grown alter column w drop default", "alter table grown alter column w set default 3"),
        ("drop index kept", "create index kept on grown (w)"),
        ("alter table grown alter column w set not null", "alter table grown alter column w drop not null"),
        ("alter table grown rename column w to ww", "alter table grown rename column ww to w"),
    ] {
        session.run(add).await?;
        for dry_run in [true, false] {
            let call = format!("select * from migrator.rollback('grown', dry_run => {dry_run})");
            let refusal = session.refusal(&call).await.context(add)?;
            ensure!(
                refusal.code == "55000"
                    && refusal.message.contains("grown")
                    && refusal.message.contains("since the swap"),
                "{add}: {refusal}"
            );
            ensure!(refusal.hint.is_some_and(|hint| hint.contains("finish")), "{add}: no way out is named");
        }
        ensure!(change.state().await? == "swapped", "{add}: refused, and yet: {}", change.told().await?);
        session.run(undo).await?;
        let row = session.row("select rolled_back, reason from migrator.rollback('grown', dry_run => true)").await;
        row.with_context(|| format!("undone with {undo}"))?;
    }
    session.run("update grown set v = 0 where id = 5").await?;
    change.rollback().await?;
    ensure!(session.value("select v from grown where id = 5").await? == "0", "a write is lost");
    change.until_ready().await?;
    change.cancel().await?;
    nothing_left_behind(&database).await
}
