//! Upgrades of rows under live writers: every row once, none forgotten, nobody waits.

use migrator_tests::program::postgresql;
use migrator_tests::upgrades::{Step, Worker, states};
use migrator_tests::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

for_each_server!(
    old_and_new_writers_while_rows_are_upgraded,
    retired_names,
    a_row_that_somebody_holds_is_done_later,
    inserts_faster_than_the_sweep,
    what_happens_to_the_table_meanwhile,
    retired_while_a_name_is_forgotten,
    registered_while_the_last_rows_are_looked_at,
    a_guard_that_was_switched_off,
    a_guard_that_changes_while_it_is_looked_at,
    by_watch,
);

const ARTICLE: &str = "create table article (id bigint generated always as identity primary key, headline text not null, content text, \
    size int, summary text, n int not null default 0)";

/// A database with so many articles.
async fn articles(server: &Server, rows: u32) -> Result<(Database, Session)> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(ARTICLE).await?;
    let rows = format!("select 'h', g::text from generate_series(1, {rows}) g");
    session.run(&format!("insert into article (headline, content) {rows}")).await?;
    Ok((database, session))
}

/// The same where they are to get their `size`, and a worker for it. `sizes`: what else to say when that is registered.
async fn unsized_articles(server: &Server, rows: u32, sizes: &str) -> Result<(Database, Session, Worker)> {
    let (database, session) = articles(server, rows).await?;
    let upgrade = format!("'size', '{{\"size\": \"length(content)\"}}'{sizes}");
    session.run(&format!("select migrator.register_upgrade('article', {upgrade})")).await?;
    let worker = Worker::new(&database, "article", "w").await?;
    Ok((database, session, worker))
}

async fn every_size_fits(session: &Session, what: &str) -> Result<()> {
    let wrong = session.number("select count(*) from article where size is distinct from length(content)").await?;
    ensure!(wrong == 0, "{what}: {wrong} sizes are wrong");
    Ok(())
}

/// Old writers know `content`, new ones write `summary` themselves; the sweep goes over the table again and again.
async fn old_and_new_writers_while_rows_are_upgraded(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(ARTICLE).await?;
    session.run("insert into article (headline, content) select 'h' || g, repeat('x', g % 50) from generate_series(1, 5000) g").await?;
    let stop = Arc::new(AtomicBool::new(false));
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut writers = Vec::new();
    for number in 0..4_u64 {
        let (database, stop) = (database.clone(), stop.clone());
        writers.push(tokio::spawn(async move {
            let session = database.connect_as("postgres", "writer").await?;
            let mut random = StdRng::seed_from_u64(seed + number);
            let mut statements = 0_i64;
            while !stop.load(Ordering::Relaxed) {
                let id = random.random_range(1..6000);
                let length = random.random_range(0..50);
                let sql = match random.random_range(0..8) {
                    0 => format!("insert into article (headline, content) values ('new', repeat('y', {length}))"),
                    1 => format!("update article set content = repeat('z', {length}) where id = {id}"),
                    2 => format!("update article set headline = 'other', n = n + 1 where id = {id}"),
                    3 => format!("delete from article where id = {id} and id % 7 = 0"),
                    4 => format!("begin; update article set content = 'rolled back' where id = {id}; rollback"),
                    // As an object-relational mapper does it: the whole row, names included, as it was read before.
                    5 => format!(
                        "do $$ declare a article; begin select * into a from article where id = {id}; if not found then return; end if; perform pg_sleep(0.002); \
                         update article set headline = a.headline, content = a.content, size = a.size, summary = a.summary, applied_upgrades = a.applied_upgrades where id = {id}; \
                         exception when undefined_column then null; end $$"
                    ),
                    6 => format!("begin; savepoint a; update article set content = repeat('s', {length}) where id = {id}; rollback to a; update article set content = repeat('t', {length}) where id = {id}; commit"),
                    _ => "insert into article (headline, content) select 'many', repeat('m', g) from generate_series(1, 5) g".to_owned(),
                };
                match session.run(&sql).await {
                    Ok(_) => statements += 1,
                    Err(error) if error.code == "40P01" || error.code == "40001" => {
                        session.run("rollback").await?;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Ok::<i64, anyhow::Error>(statements)
        }));
    }
    session.run("select migrator.register_upgrade('article', 'size', '{\"size\": \"length(content)\"}')").await?;
    let mut first = Worker::new(&database, "article", "first").await?;
    let mut second = Worker::new(&database, "article", "second").await?;
    let (one, two) = tokio::join!(first.run(), second.run());
    ensure!(
        one?.state == "complete" && two?.state == "complete",
        "not complete: {}",
        states(&session, "article").await?
    );
    // A second upgrade that sees what the first made, while the writers go on.
    session
        .run("select migrator.register_upgrade('article', 'summary', '{\"summary\": \"left(content, 10) || size\"}')")
        .await?;
    first.run().await?;
    ensure!(
        states(&session, "article").await? == "size=complete summary=complete",
        "{}",
        states(&session, "article").await?
    );
    let wrong = "select count(*) from article where size is distinct from length(content) or summary is distinct from left(content, 10) || length(content) \
                 or not applied_upgrades @> '{size,summary}'";
    ensure!(session.number(wrong).await? == 0, "rows differ from what their inputs make while writers write");
    tokio::time::sleep(Duration::from_millis(300)).await;
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        ensure!(writer.await?? > 50, "the writers hardly wrote");
    }
    ensure!(session.number(wrong).await? == 0, "rows differ from what their inputs make");
    ensure!(
        session.number("select count(*) from article__current where pending_upgrades <> '{}'").await? == 0,
        "the view says otherwise"
    );
    ensure!(session.number("select count(*) from migrator.upgrade_failure").await? == 0, "rows failed");
    Ok(())
}

/// The batch does not wait, nor does the application; the row is done when it is free.
async fn a_row_that_somebody_holds_is_done_later(server: Server) -> Result<()> {
    let (database, session, mut worker) = unsized_articles(&server, 2000, "").await?;
    let holder = database.connect_as("postgres", "holder").await?;
    holder.run("begin; select * from article where id in (7, 1999) for update").await?;
    let step = worker.until(|step| step.reason.contains("locked by other sessions")).await?;
    ensure!(step.reason.starts_with("2 row(s)"), "{step:?}");
    ensure!(session.number("select count(*) from article where size is null").await? == 2, "others are not done");
    // Whoever holds the row can write it, and takes rows that a batch has done.
    holder
        .run("update article set content = 'held' where id = 7; update article set n = 1 where id = 8; commit")
        .await?;
    worker.complete(&session).await?;
    ensure!(session.value("select size from article where id = 7").await? == "4", "the row that was held");
    Ok(())
}

async fn inserts_faster_than_the_sweep(server: Server) -> Result<()> {
    let (database, session, mut worker) = unsized_articles(&server, 3000, ", batch_size => 100").await?;
    let (stop, inserted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
    let (writer, stopped, count) = (database.connect_as("postgres", "writer").await?, stop.clone(), inserted.clone());
    let writing = tokio::spawn(async move {
        while !stopped.load(Ordering::Relaxed) {
            writer
                .run("insert into article (headline, content) select 'n', g::text from generate_series(1, 500) g")
                .await?;
            count.fetch_add(500, Ordering::Relaxed);
        }
        Ok::<(), anyhow::Error>(())
    });
    let mut before = 0;
    // Each step of the sweep is slower than what is inserted meanwhile.
    let step = loop {
        let step = worker.step().await?;
        if step.done || step.state == "verifying" {
            break step;
        }
        let deadline = Instant::now() + change::PATIENCE;
        while inserted.load(Ordering::Relaxed) < before + 500 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        before = inserted.load(Ordering::Relaxed);
    };
    stop.store(true, Ordering::Relaxed);
    writing.await??;
    ensure!(inserted.load(Ordering::Relaxed) > 3000, "hardly anything was inserted: {step:?}");
    worker.complete(&session).await?;
    every_size_fits(&session, "at the end").await?;
    Ok(())
}

async fn what_happens_to_the_table_meanwhile(server: Server) -> Result<()> {
    let (_, session, mut worker) = unsized_articles(&server, 3000, ", batch_size => 300").await?;
    let doings = [
        "vacuum full article",
        "alter table article add column late int",
        "alter table article alter column headline set statistics 500",
        "cluster article using article_pkey",
        "alter table article drop column late",
        "alter table article rename to articles; alter table articles rename to article",
        "alter table article replica identity full",
    ];
    for doing in doings {
        worker.until(|step| step.rows > 0 || step.done).await?;
        session.run(doing).await.with_context(|| doing.to_owned())?;
    }
    let settings =
        "set statement_timeout = '5s'; set lock_timeout = '1s'; set idle_in_transaction_session_timeout = '5s'";
    worker.session().run(settings).await?;
    worker.complete(&session).await?;
    every_size_fits(&session, "after all of these").await?;
    // Emptied and filled again.
    session.run("truncate article; insert into article (headline, content) select 'h', g::text from generate_series(1, 100) g").await?;
    every_size_fits(&session, "rows that are new").await?;
    // A column that an upgrade needs goes: nobody's writes fail, and it is told.
    session.run("alter table article rename column content to body").await?;
    ensure!(session.run("insert into article (headline, body) values ('x', 'yyy')").await? == 1, "an insert failed");
    let refusal = session.refusal("begin; call migrator.run_upgrades('article')").await?;
    ensure!(refusal.code == "25001", "{refusal}");
    session.run("rollback").await?;
    let within = "do $$ begin call migrator.run_upgrades('article'); exception when others then raise; end $$";
    let refusal = session.refusal(within).await?;
    ensure!(refusal.code == "25001" && refusal.message.contains("migrator.run_upgrades"), "{refusal}");
    let refusal = session.refusal("begin; select * from migrator.step('article')").await;
    session.run("rollback").await?;
    ensure!(refusal?.code == "25001", "a step inside BEGIN");
    session.run("alter table article rename column body to content").await?;
    session.run("select migrator.verify_upgrades('article')").await?;
    worker.complete(&session).await?;
    every_size_fits(&session, "at the end").await?;
    Ok(())
}

/// A name means nothing at once, goes with writes and batches, and cannot be used again before it is gone.
async fn retired_names(server: Server) -> Result<()> {
    let (database, session) = articles(&server, 3000).await?;
    for name in ["size", "summary"] {
        let expression = if name == "size" { "length(content)" } else { "content" };
        session.run(&format!("select migrator.register_upgrade('article', '{name}', '{{\"{name}\": \"{expression}\"}}', cleanup_batch_size => 500)")).await?;
    }
    let refusal = session.refusal("select migrator.retire_upgrade('article', 'size')").await?;
    ensure!(refusal.code == "55000" && refusal.to_string().contains("not complete"), "{refusal}");
    let mut worker = Worker::new(&database, "article", "w").await?;
    worker.run().await?;
    ensure!(
        session.value("select migrator.retire_upgrade('article', 'size')").await? == "in batches",
        "not in batches"
    );
    let refusal =
        session.refusal("select migrator.register_upgrade('article', 'size', '{\"n\": \"length(headline)\"}')").await?;
    ensure!(refusal.code == "42710", "{refusal}");
    worker.until(|step| step.rows > 0).await?;
    // An old application writes the name again, behind and before the cleanup.
    session.run("update article set applied_upgrades = '{size,summary}' where id in (1, 2999)").await?;
    ensure!(
        session.value("select applied_upgrades from article where id = 1").await? == "{summary}",
        "the name came back"
    );
    worker.run().await?;
    ensure!(
        session.number("select count(*) from article where applied_upgrades <> '{summary}'").await? == 0,
        "names are left"
    );
    ensure!(states(&session, "article").await? == "summary=complete", "{}", states(&session, "article").await?);
    // Now the name is free; the last live one goes without a row being written.
    session.run("select migrator.register_upgrade('article', 'size', '{\"n\": \"length(headline)\"}')").await?;
    worker.run().await?;
    ensure!(
        session.number("select count(*) from article where n <> 1").await? == 0,
        "the name did not mean the new upgrade"
    );
    session.value("select migrator.retire_upgrade('article', 'size')").await?;
    let before = session
        .value("select pg_relation_filenode('article') || ' ' || (select max(xmin::text::bigint) from article)")
        .await?;
    ensure!(session.value("select migrator.retire_upgrade('article', 'summary')").await? == "at once", "not at once");
    let after = session
        .value("select pg_relation_filenode('article') || ' ' || (select max(xmin::text::bigint) from article)")
        .await?;
    ensure!(before == after, "rows were written: {before}, {after}");
    ensure!(
        session.number("select count(*) from article where applied_upgrades <> '{}'").await? == 0,
        "names are left"
    );
    ensure!(
        session.number("select count(*) from article__current where pending_upgrades <> '{}'").await? == 0,
        "the view"
    );
    Ok(())
}

/// Whoever retires an upgrade waits for the one who forgets the name of another, and nobody who uses the table waits for both.
async fn retired_while_a_name_is_forgotten(server: Server) -> Result<()> {
    let (database, session, mut worker) = unsized_articles(&server, 500, "").await?;
    session.run("select migrator.register_upgrade('article', 'summary', '{\"summary\": \"content\"}')").await?;
    worker.complete(&session).await?;
    session.value("select migrator.retire_upgrade('article', 'size')").await?;
    session.run("select pg_advisory_lock(7331)").await?;
    worker.session().run("set migrator.crash_at = 'step.forgotten:wait'").await?;
    let forgetting = tokio::spawn(async move { worker.run().await.map(|step| (worker, step)) });
    let waits = "count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    let deadline = Instant::now() + change::PATIENCE;
    while session.number(&format!("select {waits} and application_name = 'test:w'")).await? == 0 {
        ensure!(Instant::now() < deadline, "the worker never came to forget the name");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let retirer = database.connect_as("postgres", "retirer").await?;
    let retiring =
        tokio::spawn(async move { retirer.value("select migrator.retire_upgrade('article', 'summary')").await });
    while session.number(&format!("select {waits} and application_name = 'retirer'")).await? == 0 {
        ensure!(Instant::now() < deadline && !retiring.is_finished(), "who retires did not wait");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let held = "select string_agg(mode, ' ') from pg_locks join pg_stat_activity using (pid) where relation = 'article'::regclass and application_name = 'retirer' and mode ~ 'Exclusive'";
    let held = session.value(held).await?;
    session.run("select pg_advisory_unlock(7331)").await?;
    ensure!(held.is_empty(), "who waits holds the table: {held}");
    let (_, step) = forgetting.await??;
    ensure!(step.done && step.state != "blocked", "{step:?}");
    ensure!(retiring.await?? == "at once", "not at once");
    ensure!(states(&session, "article").await?.is_empty(), "{}", states(&session, "article").await?);
    Ok(())
}

/// Between the last look at a row and the word complete somebody registers another upgrade: nobody has looked for that one.
async fn registered_while_the_last_rows_are_looked_at(server: Server) -> Result<()> {
    let (_, session, mut worker) = unsized_articles(&server, 500, "").await?;
    worker.until(|step| step.state == "verifying" && step.rows > 0).await?;
    let ending = stopped_at(&session, worker, "step.alone").await?;
    session.run("select migrator.register_upgrade('article', 'summary', '{\"summary\": \"upper(content)\"}')").await?;
    session.run("select pg_advisory_unlock(7331)").await?;
    let (mut worker, step) = ending.await??;
    let now = states(&session, "article").await?;
    ensure!(now.ends_with("summary=running"), "after {step:?}: {now}");
    worker.complete(&session).await?;
    ensure!(
        session.number("select count(*) from article where summary is null").await? == 0,
        "complete, and rows lack it"
    );
    Ok(())
}

/// A worker's next step, in a task of its own, that has come to a crash point and waits there for the advisory lock of this session.
async fn stopped_at(session: &Session, mut worker: Worker, point: &str) -> Result<JoinHandle<Result<(Worker, Step)>>> {
    session.run("select pg_advisory_lock(7331)").await?;
    worker.session().run(&format!("set migrator.crash_at = '{point}:wait'")).await?;
    let step = tokio::spawn(async move {
        let step = worker.step().await?;
        worker.session().run("set migrator.crash_at = ''").await?;
        Ok((worker, step))
    });
    let deadline = Instant::now() + change::PATIENCE;
    let waits = "select count(*) from pg_locks where locktype = 'advisory' and not granted and database = (select oid from pg_database where datname = current_database())";
    while session.number(waits).await? == 0 {
        ensure!(Instant::now() < deadline, "the worker never came to {point}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(step)
}

/// Somebody registers or retires between a step's look at the definition and its look at the trigger: nothing is wrong. Names that go at
/// once wait for the step, which holds the table.
async fn a_guard_that_changes_while_it_is_looked_at(server: Server) -> Result<()> {
    let (_, session, mut worker) = unsized_articles(&server, 500, "").await?;
    worker.complete(&session).await?;
    for doing in [
        "select migrator.register_upgrade('article', 'summary', '{\"summary\": \"upper(content)\"}')",
        "select migrator.retire_upgrade('article', 'summary', incomplete => true)",
    ] {
        let step = stopped_at(&session, worker, "guard.compared").await?;
        session.run(doing).await?;
        session.run("select pg_advisory_unlock(7331)").await?;
        let (after, step) = step.await??;
        ensure!(step.state != "blocked", "after {doing}: {step:?}");
        worker = after;
    }
    let step = worker.run().await?;
    ensure!(step.state == "complete", "{step:?}");
    Ok(())
}

async fn a_guard_that_was_switched_off(server: Server) -> Result<()> {
    let (_, session, mut worker) = unsized_articles(&server, 500, "").await?;
    for doing in [
        "alter table article disable trigger all; alter table article enable trigger all",
        "drop trigger \"~migrator_guard\" on article",
        "alter table article rename column content to body",
    ] {
        session.run(doing).await?;
        let step = worker.run().await?;
        ensure!(step.state == "blocked", "after {doing}: {step:?}");
        if doing.contains("rename") {
            let refusal = session.refusal("select migrator.resume_upgrades('article')").await?;
            ensure!(refusal.code == "42703", "{refusal}");
            session.run("alter table article rename column body to content").await?;
        }
        session.run("select migrator.resume_upgrades('article')").await?;
        ensure!(worker.run().await?.state == "complete", "after {doing}: {}", states(&session, "article").await?);
        session.run("update article set content = content || '0' where id = 3").await?;
        every_size_fits(&session, doing).await?;
    }
    Ok(())
}

/// As the documentation has it: psql's own loop, which somebody ends when it is done.
async fn by_watch(server: Server) -> Result<()> {
    let (database, session, _) = unsized_articles(&server, 3000, ", batch_size => 400").await?;
    let script = tempfile::NamedTempFile::new()?;
    std::fs::write(script.path(), "select * from migrator.step('public.article') \\watch 0.1\n")?;
    let mut psql = postgresql(&database, "psql")
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f"])
        .arg(script.path())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let deadline = Instant::now() + change::PATIENCE;
    while states(&session, "article").await? != "size=complete" {
        ensure!(psql.try_wait()?.is_none(), "psql ended by itself");
        ensure!(Instant::now() < deadline, "not complete: {}", states(&session, "article").await?);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    psql.kill().await?;
    every_size_fits(&session, "by psql").await
}
