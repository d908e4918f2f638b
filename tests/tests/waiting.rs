//! Changes that wait: paused, postponed or blocked, they do nothing by themselves, and go on where they were when somebody
//! says so. And what doctor says of that which nobody waits for any more.

use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::same_rows::fingerprint;
use migrator_tests::*;

for_oldest_and_newest_server!(
    a_paused_change_stands_still,
    a_postponed_change_is_left_alone,
    a_blocked_change_goes_on_when_it_is_mended,
    what_doctor_finds_left_behind,
);

/// Everything that a step could move: the other table, the log, the cursors, the change itself.
async fn everything(session: &Session, change: &Change, rear: &str) -> Result<String> {
    let mut all = String::new();
    let id = change.id;
    for query in [
        format!("select * from {rear}"),
        format!("select * from migrator.change where id = {id}"),
        format!("select * from migrator.chunk where change = {id}"),
        format!("select * from migrator.build where change = {id}"),
        format!("select * from migrator.event where change = {id}"),
        "select relname, relfilenode from pg_class where relname like 'halts%'".to_owned(),
    ] {
        all += &fingerprint(session, &query).await?;
        all.push(' ');
    }
    Ok(all)
}

/// Keys that wait in the log.
async fn waiting(session: &Session, change: &Change, letter: char) -> Result<i64> {
    let log: Vec<String> =
        (0..3).map(|segment| format!("(select count(*) from migrator.log_{}_{letter}_{segment})", change.id)).collect();
    session.number(&format!("select {}", log.join(" + "))).await
}

async fn a_paused_change_stands_still(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run("create table halts (id int primary key, v text); insert into halts select g, 'v' || g from generate_series(1, 3000) g").await?;
    let change = Change::create(&database, "public.halts", "alter column id type bigint, add column w int").await?;
    let other = change.session().await?;
    for state in ["copying", "indexing", "verifying", "ready", "swapped"] {
        if state == "swapped" {
            change.swap().await?;
        } else {
            change.until(|advance| advance.state == state).await?;
        }
        let rear = change.rear().await?;
        ensure!(session.value("select migrator.pause('halts')").await? == "paused", "pause does not say so");
        let letter = if state == "swapped" { 'r' } else { 'f' };
        let before = (everything(&session, &change, &rear).await?, waiting(&session, &change, letter).await?);
        session.run("update halts set v = v || '.' where id = 7").await?;
        for driver in [&session, &other, &session] {
            let advance = change.advance(driver).await?;
            let (step, reason) = (advance.step.as_str(), advance.reason.as_str());
            ensure!(step == "wait" && reason == "paused" && !advance.done, "{state}: {advance:?}");
            ensure!(advance.wait.as_millis() >= 500, "{state}: callers are told to come back at once: {advance:?}");
        }
        let after = (everything(&session, &change, &rear).await?, waiting(&session, &change, letter).await?);
        ensure!(after.0 == before.0, "{state}: paused, and yet something was done: {}", change.told().await?);
        ensure!(after.1 == before.1 + 1, "{state}: a write was not captured: {} after {} keys", after.1, before.1);
        ensure!(session.value("select migrator.resume('halts')").await? == state, "it should go on in {state}");
    }
    change.until_in_step().await?;
    let (front, rear) =
        ("select id::bigint, v from halts", format!("select id::bigint, v from {}", change.rear().await?));
    ensure!(fingerprint(&session, front).await? == fingerprint(&session, &rear).await?, "the tables differ at the end");
    change.finish().await?;
    nothing_left_behind(&database).await
}

async fn a_postponed_change_is_left_alone(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run("create table later (id int primary key, v text); insert into later select g, 'v' from generate_series(1, 50) g").await?;
    let begin = "actions => 'alter column id type bigint', on_ready => 'swap'";
    let change = Change::create_with(&database, "public.later", begin).await?;
    let postpone = |until: &str| format!("select migrator.postpone('later', until => {until})");
    let swap_all = "select swapped, coalesce(reason, '') from migrator.swap()";
    session.run(&postpone("now() + interval '1 day'")).await?;
    change.until_ready().await?;
    session.run("update later set v = 'written'").await?;
    for _ in 0..3 {
        let advance = change.until(|advance| advance.done).await?;
        ensure!(advance.state == "ready", "postponed, and yet {advance:?}");
    }
    let rear = format!("select count(*) from {} where v = 'written'", change.rear().await?);
    ensure!(session.number(&rear).await? == 50, "it should be kept in step");
    let told = session.value("select waits_for from migrator.status").await?;
    ensure!(told.starts_with("postponed until"), "status says: {told}");
    let row = session.row(swap_all).await?;
    ensure!(row[0] == "f" && row[1].contains("postponed"), "swap() takes it: {row:?}");
    // Until a time that has come, or no more: it goes by itself.
    session.run(&postpone("now() - interval '1 second'")).await?;
    change.until(|advance| advance.state == "swapped").await?;

    change.rollback().await?;
    change.until_ready().await?;
    session.run(&postpone("now() + interval '1 day'")).await?;
    ensure!(session.row(swap_all).await?[0] == "f", "swap() takes it");
    session.run(&postpone("null")).await?;
    ensure!(session.row(swap_all).await?[0] == "t", "swap() leaves it out");
    change.rollback().await?;
    change.until_ready().await?;
    // Whoever names it means it.
    session.run(&postpone("now() + interval '1 day'")).await?;
    ensure!(session.row("select swapped from migrator.swap('later')").await?[0] == "t", "swap('later') leaves it out");
    change.finish().await?;
    nothing_left_behind(&database).await
}

/// What was mended since is seen by the next try.
async fn a_blocked_change_goes_on_when_it_is_mended(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table seats (id int primary key, seat text); insert into seats select g, 'seat ' || g from generate_series(1, 500) g;
             update seats set seat = 'taken' where id in (10, 20)",
        )
        .await?;
    let change = Change::create(&database, "public.seats", "add unique (seat), add column row int").await?;
    let status =
        format!("select state || ': ' || coalesce(waits_for, '') from migrator.status where change = {}", change.id);
    for _ in 0..2 {
        let mut refusal = None;
        while refusal.is_none() {
            refusal = change.advance(&session).await.err();
        }
        let refusal = refusal.context("the loop ends with one")?;
        ensure!(refusal.code == "55000" && refusal.message.contains("taken"), "{refusal}");
        let told = session.value(&status).await?;
        ensure!(told.starts_with("blocked: ") && told.contains("taken"), "status says: {told}");
        // Not mended: it goes on, and comes to the same.
        ensure!(session.value("select migrator.resume('seats')").await? == "indexing", "resume does not say so");
        ensure!(!session.value(&status).await?.starts_with("blocked"), "resumed, and still blocked");
    }
    session.run("update seats set seat = 'free' where id = 20; insert into seats values (501, 'taken 2')").await?;
    change.until_ready().await?;
    change.swap().await?;
    ensure!(session.refusal("insert into seats values (502, 'taken')").await?.code == "23505", "nothing is unique");
    ensure!(session.number("select count(*) from seats").await? == 501, "rows are missing");
    change.finish().await?;
    nothing_left_behind(&database).await
}

async fn what_doctor_finds_left_behind(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    let found = "select string_agg(concat_ws(' | ', severity, subject, problem, remedy), '\n' order by subject) from migrator.doctor()";
    session
        .run(
            "create table \"Old; Halts\" (id serial primary key, v text); create table held (id int primary key, v text);
             insert into held values (1, 'v')",
        )
        .await?;
    ensure!(session.value(found).await?.is_empty(), "nothing is wrong, and yet: {}", session.value(found).await?);
    // A prepared transaction is named when it holds the table, however young it is.
    let change = Change::create(&database, "public.held", "add column w int").await?;
    change.until_ready().await?;
    let gid = format!("it's_{}", database.name);
    let prepare = format!("prepare transaction {}", session::literal(&gid));
    session.run("begin").await?;
    session.run("update held set v = 'w'").await?;
    session.run(&prepare).await?;
    let told = session.value(found).await?;
    let commit = format!("commit prepared {};", session::literal(&gid));
    ensure!(told.starts_with("warning | prepared transaction") && told.contains("holds public.held"), "{told}");
    ensure!(told.contains(&commit) && told.contains("rollback prepared"), "no way out: {told}");
    session.run(&commit).await?;
    ensure!(session.value(found).await?.is_empty(), "committed, and yet: {}", session.value(found).await?);
    change.cancel().await?;

    // Somebody dropped the extension in the middle of a change; a dump of one schema brought a trigger along.
    let change = Change::create(&database, r#"public."Old; Halts""#, "alter column id type bigint").await?;
    change.until(|advance| advance.state == "copying").await?;
    session.run("drop extension migrator cascade; create extension migrator").await?;
    session
        .run(
            "create trigger migrator_capture_77_insert after insert on \"Old; Halts\" for each statement execute function migrator._capture('77', 'f', '1', '');
             create schema migrator_backup_77; create table migrator_backup_77.\"Order's\" (id int); create view migrator_backup_77.seen as select * from migrator_backup_77.\"Order's\";
             create view needs as select * from migrator_backup_77.seen",
        )
        .await?;
    let rows = session.rows("select severity, subject, remedy from migrator.doctor() order by subject").await?;
    let subjects: Vec<&str> = rows.iter().filter_map(|row| row[1].as_deref()).collect();
    let expected = [
        "schema migrator_backup_77",
        &format!("schema migrator_shadow_{}", change.id),
        r#"trigger migrator_capture_77_insert on public."Old; Halts""#,
    ];
    ensure!(subjects == expected, "found: {subjects:?}");
    // What it says is to be run is run: it drops nothing of anybody else's.
    for row in rows {
        let remedy = row[2].clone().unwrap_or_default();
        ensure!(row[0].as_deref() == Some("error") && !remedy.to_lowercase().contains("cascade"), "{row:?}");
        let calls = remedy.find("drop ").map(|at| &remedy[at..]).context("no call")?;
        if remedy.contains("migrator_backup_77") {
            ensure!(session.refusal(calls).await?.code == "2BP01", "somebody's view was dropped by: {calls}");
            session.run("drop view needs").await?;
        }
        session.run(calls).await.with_context(|| remedy.clone())?;
    }
    ensure!(session.value(found).await?.is_empty(), "mended, and yet: {}", session.value(found).await?);
    session.run("insert into \"Old; Halts\" (v) values ('still there')").await?;
    nothing_left_behind(&database).await
}
