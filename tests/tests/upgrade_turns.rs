//! Upgrades of one table, and two sessions that do something about them at the same moment: every interleaving here is held open by a
//! lock or an open transaction.

use migrator_tests::upgrades::Worker;
use migrator_tests::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

// Twenty seconds pass before somebody is told that the table is too busy.
for_newest_server!(a_reader_of_the_view);
for_each_server!(
    a_failure_that_commits_after_the_end,
    a_failure_that_could_not_be_noted,
    registered_while_another_is_retired,
    two_who_register_first,
    registered_between_two_looks,
    a_trigger_that_comes_later,
    a_key_that_becomes_another,
    a_note_that_a_sweep_takes_away,
    a_note_and_an_exchange,
    registered_behind_a_swap,
    a_look_that_is_old,
    verified_beside_a_writer,
    a_row_of_the_books_in_other_hands,
);

const PAGE: &str = "create table page (id int primary key, content text, size int, words int); \
    insert into page (id, content) select g, g::text from generate_series(1, 200) g";

/// A database with pages.
async fn pages(server: &Server) -> Result<(Database, Session)> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(PAGE).await?;
    Ok((database, session))
}

/// What users are told of the upgrades.
async fn shown(session: &Session) -> Result<String> {
    let each = "select coalesce(string_agg(name || '=' || state, ' ' order by ordinal), '') from migrator.upgrades";
    Ok(session.value(each).await?)
}

fn register(name: &str, column: &str, expression: &str) -> String {
    format!("select migrator.register_upgrade('page', '{name}', '{{\"{column}\": \"{expression}\"}}')")
}

/// Waits until somebody waits for a lock of this kind.
async fn somebody_waits(session: &Session, kind: &str) -> Result<()> {
    let deadline = Instant::now() + change::PATIENCE;
    let waiting = format!("select count(*) from pg_locks where locktype = '{kind}' and not granted");
    while session.number(&waiting).await? == 0 {
        ensure!(Instant::now() < deadline, "nobody came to wait for a lock of kind {kind}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// A writer in whose statement the upgrade failed is open while every row is looked at, and commits when it is said to be complete.
async fn a_failure_that_commits_after_the_end(server: Server) -> Result<()> {
    let (database, session) = pages(&server).await?;
    session.run(&register("number", "size", "content::int")).await?;
    let mut worker = Worker::new(&database, "page", "w").await?;
    worker.until(|step| step.state == "verifying").await?;
    let writer = database.connect_as("postgres", "writer").await?;
    writer.run("begin").await?;
    writer.run("update page set content = 'no number' where id = 7").await?;
    ensure!(worker.run().await?.state == "complete", "the old version of the row has the name");
    writer.run("commit").await?;
    ensure!(shown(&session).await? == "number=running", "{}", shown(&session).await?);
    let refusal = session.refusal("select migrator.ensure_upgraded('page', 'number')").await?;
    ensure!(refusal.code == "55000" && refusal.to_string().contains("not complete"), "{refusal}");
    let refusal = session.refusal("select migrator.retire_upgrade('page', 'number')").await?;
    ensure!(refusal.code == "55000" && refusal.to_string().contains("not complete"), "{refusal}");
    let step = worker.run().await?;
    ensure!(step.state == "waiting" && step.reason.contains("1 row(s) are set aside"), "{step:?}");
    session.run("update page set content = '7' where id = 7").await?;
    ensure!(worker.run().await?.state == "complete", "{}", shown(&session).await?);
    session.run("select migrator.ensure_upgraded('page', 'number')").await?;
    Ok(())
}

/// Somebody holds the place where a failure is noted: the writer does not wait for him, and every row is looked at again.
async fn a_failure_that_could_not_be_noted(server: Server) -> Result<()> {
    let (database, session) = pages(&server).await?;
    session.run(&register("number", "size", "content::int")).await?;
    let mut worker = Worker::new(&database, "page", "w").await?;
    ensure!(worker.run().await?.state == "complete", "{}", shown(&session).await?);
    let holder = database.connect_as("postgres", "holder").await?;
    holder.run("begin").await?;
    holder
        .run("insert into migrator.upgrade_failure (relation, upgrade, key, sqlstate, message) select relation, id, '{\"id\": \"7\"}', '00000', 'held' from migrator.upgrade")
        .await?;
    session.run("update page set content = 'no number' where id = 7").await?;
    holder.run("rollback").await?;
    ensure!(session.number("select count(*) from migrator.upgrade_failure").await? == 0, "it was noted after all");
    ensure!(shown(&session).await? == "number=running", "{}", shown(&session).await?);
    let refusal = session.refusal("select migrator.ensure_upgraded('page', 'number')").await?;
    ensure!(refusal.code == "55000", "{refusal}");
    let step = worker.run().await?;
    ensure!(step.state == "waiting" && step.reason.contains("1 row(s) are set aside"), "{step:?}");
    session.run("update page set content = '7' where id = 7").await?;
    ensure!(worker.run().await?.state == "complete", "{}", shown(&session).await?);
    Ok(())
}

/// Has an upgrade fail for page 7 while somebody holds the place where that is noted: nobody knows the row.
async fn unnoted(database: &Database, session: &Session) -> Result<()> {
    let holder = database.connect_as("postgres", "holder").await?;
    holder.run("begin").await?;
    holder
        .run("insert into migrator.upgrade_failure (relation, upgrade, key, sqlstate, message) select relation, id, '{\"id\": \"7\"}', '00000', 'held' from migrator.upgrade")
        .await?;
    session.run("update page set content = 'no number' where id = 7").await?;
    holder.run("rollback").await?;
    ensure!(session.number("select count(*) from migrator.upgrade_unnoted").await? == 1, "it was noted after all");
    Ok(())
}

/// From the sweep that takes the note away until it comes to the row nothing else says that one lacks the upgrade.
async fn a_note_that_a_sweep_takes_away(server: Server) -> Result<()> {
    let (database, session) = pages(&server).await?;
    session.run(&register("number", "size", "content::int")).await?;
    let mut worker = Worker::new(&database, "page", "w").await?;
    ensure!(worker.run().await?.state == "complete", "{}", shown(&session).await?);
    unnoted(&database, &session).await?;
    let end = worker.until(|step| step.done || step.state == "upgrading").await?;
    ensure!(end.state == "upgrading", "{end:?}");
    ensure!(session.number("select count(*) from migrator.upgrade_unnoted").await? == 0, "the note is there still");
    ensure!(session.number("select count(*) from migrator.upgrade_failure").await? == 0, "the row was found already");
    ensure!(shown(&session).await? == "number=running", "{}", shown(&session).await?);
    for call in
        ["select migrator.ensure_upgraded('page', 'number')", "select migrator.retire_upgrade('page', 'number')"]
    {
        let refusal = session.refusal(call).await?;
        ensure!(refusal.code == "55000" && refusal.to_string().contains("not complete"), "{refusal}");
    }
    let step = worker.run().await?;
    ensure!(step.state == "waiting" && step.reason.contains("1 row(s) are set aside"), "{step:?}");
    session.run("update page set content = '7' where id = 7").await?;
    ensure!(worker.run().await?.state == "complete", "{}", shown(&session).await?);
    Ok(())
}

/// What is noted of a row that nobody knows goes with its upgrade to the table that takes its place.
async fn a_note_and_an_exchange(server: Server) -> Result<()> {
    let (database, session) = pages(&server).await?;
    session.run(&register("number", "size", "content::int")).await?;
    let mut worker = Worker::new(&database, "page", "w").await?;
    ensure!(worker.run().await?.state == "complete", "{}", shown(&session).await?);
    let change = Change::create(&database, "page", "alter column words type bigint").await?;
    change.until_ready().await?;
    unnoted(&database, &session).await?;
    change.until_ready().await?;
    change.swap().await?;
    ensure!(shown(&session).await? == "number=running", "{}", shown(&session).await?);
    let step = worker.run().await?;
    ensure!(step.state == "waiting" && step.reason.contains("1 row(s) are set aside"), "{step:?}");
    Ok(())
}

/// The first upgrade of a table is registered while the table is exchanged for another one: not for the one that is put aside.
async fn registered_behind_a_swap(server: Server) -> Result<()> {
    let (database, session) = pages(&server).await?;
    // It would not be added while the change is open.
    session.run("alter table page add column applied_upgrades text[] not null default '{}'").await?;
    let change = Change::create(&database, "page", "alter column words type bigint").await?;
    change.until_ready().await?;
    session.run("select pg_advisory_lock(7331)").await?;
    let swapping = database.connect_as("postgres", "swapping").await?;
    let id = change.id;
    let swap = tokio::spawn(async move {
        swapping.run("set migrator.crash_at = 'swap:wait'").await?;
        swapping.run(&format!("select migrator.swap(change => {id})")).await?;
        Ok::<_, anyhow::Error>(())
    });
    somebody_waits(&session, "advisory").await?;
    let other = database.connect_as("postgres", "other").await?;
    let registering = tokio::spawn(async move { other.refusal(&register("size", "size", "length(content)")).await });
    somebody_waits(&session, "relation").await?;
    session.run("select pg_advisory_unlock(7331)").await?;
    swap.await??;
    let refusal = registering.await??;
    ensure!(refusal.code == "40001", "{refusal}");
    session.run(&register("size", "size", "length(content)")).await?;
    let mut worker = Worker::new(&database, "page", "w").await?;
    ensure!(worker.run().await?.state == "complete", "{}", shown(&session).await?);
    Ok(())
}

/// A name that somebody else has written is not lost with the column because an earlier look at all rows met none.
async fn a_look_that_is_old(server: Server) -> Result<()> {
    let (database, session) = pages(&server).await?;
    session.run(&register("size", "size", "length(content)")).await?;
    let mut worker = Worker::new(&database, "page", "w").await?;
    worker.run().await?;
    session.run("update page set applied_upgrades = applied_upgrades || '{stranger}' where id = 5").await?;
    session.run("select migrator.verify_upgrades('page')").await?;
    session.run("select migrator.retire_upgrade('page', 'size', incomplete => true)").await?;
    worker.run().await?;
    let left = session
        .value("select string_agg(id || applied_upgrades::text, ' ') from page where applied_upgrades <> '{}'")
        .await?;
    ensure!(left == "5{stranger}", "{left}");
    Ok(())
}

/// A writer is just saying that an upgrade is not complete any more: he is not waited for, and what he takes back is said all the same.
async fn verified_beside_a_writer(server: Server) -> Result<()> {
    let (database, session) = pages(&server).await?;
    session.run(&register("number", "size", "content::int")).await?;
    let mut worker = Worker::new(&database, "page", "w").await?;
    worker.run().await?;
    let writer = database.connect_as("postgres", "writer").await?;
    writer.run("begin").await?;
    writer.run("update page set content = 'no number' where id = 7").await?;
    // Should it wait after all.
    session.run("set lock_timeout = '10s'").await?;
    session.run("select migrator.verify_upgrades('page')").await?;
    writer.run("rollback").await?;
    ensure!(shown(&session).await? == "number=running", "{}", shown(&session).await?);
    ensure!(worker.run().await?.state == "complete", "{}", shown(&session).await?);
    Ok(())
}

/// Somebody has the table's row in the books, and may be about to wait for the table: a step waits for nothing of his.
async fn a_row_of_the_books_in_other_hands(server: Server) -> Result<()> {
    let (database, session) = pages(&server).await?;
    session.run(&register("size", "size", "length(content)")).await?;
    let mut worker = Worker::new(&database, "page", "w").await?;
    session.run("alter table page disable trigger \"~migrator_guard\"").await?;
    let holder = database.connect_as("postgres", "holder").await?;
    holder.run("begin; select from migrator.upgraded for no key update").await?;
    // Should it wait after all.
    worker.session().run("set statement_timeout = '10s'").await?;
    let step = worker.step().await?;
    ensure!(step.state == "waiting" && !step.done, "{step:?}");
    // People are waited for, but not for ever.
    session.run("set statement_timeout = '30s'").await?;
    for call in ["pause_upgrades", "verify_upgrades"] {
        let refusal = session.refusal(&format!("select migrator.{call}('page')")).await?;
        ensure!(refusal.code == "55P03" && refusal.to_string().contains("another session"), "{refusal}");
    }
    holder.run("rollback").await?;
    let step = worker.step().await?;
    ensure!(step.state == "blocked", "{step:?}");
    Ok(())
}

/// Who retires one upgrade while another is being registered must not put back a guard that does not know of it.
async fn registered_while_another_is_retired(server: Server) -> Result<()> {
    let (database, session) = pages(&server).await?;
    session.run(&register("size", "size", "length(content)")).await?;
    let mut worker = Worker::new(&database, "page", "w").await?;
    worker.run().await?;
    let other = database.connect_as("postgres", "other").await?;
    other.run("begin").await?;
    other.run(&register("words", "words", "length(content) * 2")).await?;
    let retiring = tokio::spawn(async move {
        session.value("select migrator.retire_upgrade('page', 'size')").await?;
        Ok::<_, anyhow::Error>(session)
    });
    let witness = database.connect().await?;
    let deadline = Instant::now() + change::PATIENCE;
    while witness.number("select count(*) from pg_locks where not granted").await? == 0 {
        ensure!(Instant::now() < deadline, "retiring does not wait for the one who registers");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    other.run("commit").await?;
    let session = retiring.await??;
    session.run("insert into page (id, content) values (1000, 'four')").await?;
    let born = session.value("select words || ' ' || applied_upgrades::text from page where id = 1000").await?;
    ensure!(born == "8 {words}", "the guard knows something else: {born}");
    worker.run().await?;
    ensure!(shown(&session).await? == "words=complete", "{}", shown(&session).await?);
    Ok(())
}

/// Both are the first of their table: the second waits for the first, and comes behind it.
async fn two_who_register_first(server: Server) -> Result<()> {
    let (database, session) = pages(&server).await?;
    let other = database.connect_as("postgres", "other").await?;
    session.run("begin").await?;
    session.run(&register("size", "size", "length(content)")).await?;
    let second = tokio::spawn(async move {
        other.run(&register("words", "words", "length(content) * 2")).await?;
        Ok::<_, anyhow::Error>(())
    });
    let witness = database.connect().await?;
    somebody_waits(&witness, "transactionid").await?;
    session.run("commit").await?;
    second.await??;
    let mut worker = Worker::new(&database, "page", "w").await?;
    ensure!(worker.run().await?.state == "complete", "{}", shown(&session).await?);
    let order = session
        .value("select string_agg(name || ' ' || ordinal, ', ' order by ordinal) from migrator.upgrades")
        .await?;
    ensure!(order == "size 1, words 2", "{order}");
    ensure!(
        session.number("select count(*) from page where applied_upgrades <> '{size,words}'").await? == 0,
        "rows lack one of them"
    );
    Ok(())
}

/// A step compares what is registered with what stands on the table; between its two looks somebody registers.
async fn registered_between_two_looks(server: Server) -> Result<()> {
    let (database, session) = pages(&server).await?;
    session.run(&register("size", "size", "length(content)")).await?;
    let mut worker = Worker::new(&database, "page", "w").await?;
    session.run("select pg_advisory_lock(7331)").await?;
    worker.session().run("set migrator.crash_at = 'guard.compared:wait'").await?;
    let step = tokio::spawn(async move {
        let step = worker.step().await?;
        worker.session().run("set migrator.crash_at = ''").await?;
        Ok::<_, anyhow::Error>((worker, step))
    });
    somebody_waits(&session, "advisory").await?;
    session.run(&register("words", "words", "length(content) * 2")).await?;
    session.run("select pg_advisory_unlock(7331)").await?;
    let (mut worker, step) = step.await??;
    ensure!(step.state != "blocked", "a table whose guard is as it should be is blocked: {step:?}");
    ensure!(worker.run().await?.state == "complete", "{}", shown(&session).await?);
    Ok(())
}

/// A BEFORE trigger that fires behind the guard is no fault of the registration's: it is noticed when it is there.
async fn a_trigger_that_comes_later(server: Server) -> Result<()> {
    let (database, session) = pages(&server).await?;
    session.run(&register("size", "size", "length(content)")).await?;
    let mut worker = Worker::new(&database, "page", "w").await?;
    worker.run().await?;
    let findings = "select coalesce(string_agg(subject || ': ' || problem, '; ' order by subject), 'none') from migrator.doctor() where subject like '%page%'";
    ensure!(session.value(findings).await? == "none", "{}", session.value(findings).await?);
    session
        .run("create function shout() returns trigger language plpgsql as 'begin new.content := upper(new.content) || ''!''; return new; end'")
        .await?;
    session.run("create trigger \"~~late\" before update on page for each row execute function shout()").await?;
    let found = session.value(findings).await?;
    ensure!(found.contains("trigger \"~~late\"") && found.contains("behind the guard"), "{found}");
    session.run("select migrator.verify_upgrades('page')").await?;
    let step = worker.run().await?;
    ensure!(step.state == "blocked" && step.reason.contains("~~late"), "{step:?}");
    let refusal = session.refusal("select migrator.resume_upgrades('page')").await?;
    ensure!(refusal.code == "0A000" && refusal.to_string().contains("~~late"), "{refusal}");
    session.run("alter trigger \"~~late\" on page rename to a_early").await?;
    session.run("select migrator.resume_upgrades('page')").await?;
    ensure!(worker.run().await?.state == "complete", "{}", shown(&session).await?);
    session.run("update page set content = 'abc' where id = 3").await?;
    ensure!(session.number("select size from page where id = 3").await? == 4, "the guard did not see the other's work");
    for (doing, problem) in [
        ("alter table page disable trigger \"~migrator_guard\"", "switched off"),
        ("drop trigger \"~migrator_guard\" on page", "is gone"),
        (
            "drop trigger \"~migrator_guard\" on page; create trigger \"~migrator_guard\" before update on page for each row execute function shout(); alter table page enable always trigger \"~migrator_guard\"",
            "another trigger has its name",
        ),
        (
            "drop trigger \"~migrator_guard\" on page; create trigger \"~migrator_guard\" before insert or update on page for each row \
             execute function migrator._guard('{\"key\": [\"id\"], \"upgrades\": [], \"settings\": []}'); alter table page enable always trigger \"~migrator_guard\"",
            "was overwritten",
        ),
    ] {
        session.run(doing).await?;
        let found = session.value(findings).await?;
        ensure!(found.contains(problem), "after {doing}: {found}");
        session.run("select migrator.resume_upgrades('page')").await?;
        ensure!(session.value(findings).await? == "none", "after {doing}: {}", session.value(findings).await?);
    }
    Ok(())
}

/// The key by which rows are found goes, and another one comes.
async fn a_key_that_becomes_another(server: Server) -> Result<()> {
    let (database, session) = pages(&server).await?;
    session.run("alter table page add column code text; update page set code = 'c' || id; alter table page alter column code set not null").await?;
    session.run("update page set content = 'no number' where id = 9").await?;
    session.run(&register("number", "size", "content::int")).await?;
    let mut worker = Worker::new(&database, "page", "w").await?;
    worker.run().await?;
    session.run("alter table page drop constraint page_pkey, add primary key (code); update page set id = 1").await?;
    session.run("select migrator.verify_upgrades('page')").await?;
    let step = worker.run().await?;
    ensure!(step.state == "blocked" && step.reason.contains("(id) is not a key"), "{step:?}");
    session.run("select migrator.resume_upgrades('page')").await?;
    let step = worker.run().await?;
    ensure!(step.state == "waiting" && step.reason.contains("1 row(s) are set aside"), "{step:?}");
    let key = session.value("select string_agg(key::text, ' ') from migrator.upgrade_failures").await?;
    ensure!(key == "{\"code\": \"c9\"}", "{key}");
    session.run("update page set content = '9' where code = 'c9'").await?;
    ensure!(worker.run().await?.state == "complete", "{}", shown(&session).await?);
    // What is registered anew takes the key that the table has.
    session.run("alter table page drop constraint page_pkey; update page set id = substr(code, 2)::int; alter table page add primary key (id)").await?;
    session.run(&register("words", "words", "length(content)")).await?;
    ensure!(worker.run().await?.state == "complete", "{}", shown(&session).await?);
    ensure!(
        session.number("select count(*) from page where words is null or size <> id").await? == 0,
        "rows are wrong"
    );
    Ok(())
}

/// Whoever reads the view for long is named, and writers of the table do not wait for him, nor for those who would change the view.
async fn a_reader_of_the_view(server: Server) -> Result<()> {
    let (database, session) = pages(&server).await?;
    session.run(&register("first", "size", "length(content)")).await?;
    let mut worker = Worker::new(&database, "page", "w").await?;
    worker.complete(&session).await?;
    let reader = database.connect_as("postgres", "test:reader").await?;
    reader.run("begin; select count(*) from page__current").await?;
    let (writer, stop) = (database.connect().await?, Arc::new(AtomicBool::new(false)));
    let stopped = Arc::clone(&stop);
    let writing = tokio::spawn(async move {
        writer.run("set lock_timeout = '20 ms'").await?;
        let mut written = 0;
        while !stopped.load(Ordering::Relaxed) {
            written += writer.run("update page set content = id::text where id = 1").await?;
        }
        Ok::<_, SqlError>(written)
    });
    let refusal = session.refusal(&register("second", "words", "length(content)")).await?;
    ensure!(refusal.code == "55P03" && refusal.message.contains("test:reader"), "{refusal}");
    stop.store(true, Ordering::Relaxed);
    ensure!(writing.await?? > 50, "hardly a row was written");
    reader.run("commit").await?;
    // What leaves the view as it is does not ask for it: here the end of a cleanup.
    session.run(&register("second", "words", "length(content)")).await?;
    worker.complete(&session).await?;
    session.run("select migrator.retire_upgrade('page', 'first')").await?;
    reader.run("begin; select count(*) from page__current").await?;
    let end = worker.run().await?;
    ensure!(end.state == "complete", "{end:?}");
    reader.run("commit").await?;
    Ok(())
}
