//! Upgrades of rows beside what else happens to a table while workers run: it is emptied, written anew, changed, replicated; and
//! statements that are cancelled by people and by the clock.

use migrator_tests::program::{agent, postgresql, run};
use migrator_tests::same_rows::fingerprint;
use migrator_tests::subscription::Subscription;
use migrator_tests::upgrades::{Worker, states};
use migrator_tests::*;
use std::process::Stdio;
use std::time::{Duration, Instant};

for_newest_server!(a_standby_is_named, redundant_updates_are_suppressed);
for_each_server!(
    a_table_that_is_emptied_and_written_anew,
    a_subscriber_that_compares_whole_rows,
    statements_that_are_cancelled,
    a_swap_beside_running_workers,
    a_database_that_was_dumped_and_restored,
    a_worker_that_waits_for_the_table_holds_nothing_else,
    a_row_that_takes_longer_than_a_lease,
);

const TWICE: &str = "select migrator.register_upgrade('counted', 'twice', '{\"x\": \"x * 2\"}', safe_in_place => true, batch_size => 100)";
const WRONG: &str = "select count(*) from counted where x <> 2 * id or not applied_upgrades @> '{twice}'";

/// A table with so many rows, each to be upgraded exactly once.
async fn counted(server: &Server, rows: u32) -> Result<(Database, Session)> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(&format!(
            "create table counted (id bigint primary key, x bigint not null, note int);
             insert into counted select g, g from generate_series(1, {rows}) g; analyze counted"
        ))
        .await?;
    session.run(TWICE).await?;
    Ok((database, session))
}

async fn until(session: &Session, condition: &str) -> Result<()> {
    let deadline = Instant::now() + change::PATIENCE;
    while session.value(&format!("select {condition}")).await? != "t" {
        ensure!(Instant::now() < deadline, "never so: {condition}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    Ok(())
}

async fn a_table_that_is_emptied_and_written_anew(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run("create table counted (id bigint primary key, x bigint not null, y bigint, note int); insert into counted select g, g from generate_series(1, 6000) g; analyze counted")
        .await?;
    session.run("select migrator.register_upgrade('counted', 'y', '{\"y\": \"x * 2\"}', batch_size => 150)").await?;
    let mut worker = Worker::new(&database, "counted", "w").await?;
    let running = tokio::spawn(async move { worker.run().await.map(|step| (worker, step)) });
    let doings = [
        "vacuum full counted",
        "alter table counted add column late int",
        "cluster counted using counted_pkey",
        "alter table counted alter column note type bigint",
        "alter table counted drop column late",
        "alter table counted rename to count_of; alter table count_of rename to counted",
        "create temp table was as select * from counted; truncate counted; insert into counted select * from was; drop table was",
    ];
    let mut times = 0;
    while !running.is_finished() {
        let doing = doings[times % doings.len()];
        match session.run(doing).await {
            Ok(_) => times += 1,
            Err(error) if error.code == "40P01" => {}
            // It depends on the view of upgrades: told by PostgreSQL, and nothing is changed.
            Err(error) if error.code == "0A000" && doing.contains(" type ") => times += 1,
            Err(error) => return Err(anyhow::Error::from(error).context(doing)),
        }
    }
    let (mut worker, step) = running.await??;
    ensure!(times >= doings.len(), "only {times} of them happened meanwhile");
    ensure!(step.state == "complete", "{step:?} after {times}");
    session.run("select migrator.verify_upgrades('counted')").await?;
    ensure!(worker.run().await?.state == "complete", "{}", states(&session, "counted").await?);
    let wrong = session
        .number("select count(*) from counted where y is distinct from x * 2 or applied_upgrades <> '{y}'")
        .await?;
    ensure!(wrong == 0 && session.number("select count(*) from counted").await? == 6000, "{wrong} rows are wrong");
    Ok(())
}

/// REPLICA IDENTITY FULL: a subscriber finds rows by all their values, old names included.
async fn a_subscriber_that_compares_whole_rows(server: Server) -> Result<()> {
    let (database, source) = counted(&server, 2000).await?;
    let subscriber = Database::create(&server.shared().await?, false).await?;
    let copy = subscriber.connect().await?;
    source.run("alter table counted replica identity full; create publication pub for table counted").await?;
    copy.run("create table counted (id bigint primary key, x bigint not null, note int, applied_upgrades text[])")
        .await?;
    let feed = Subscription::begin(&database, &subscriber, "pub").await?;
    let mut worker = Worker::new(&database, "counted", "w").await?;
    worker.until(|step| step.rows > 0).await?;
    source.run("update counted set note = 1 where id % 3 = 0; delete from counted where id % 100 = 0; insert into counted values (5000, 10000)").await?;
    let step = worker.run().await?;
    ensure!(step.state == "complete", "{step:?}");
    let query = "select id, x, note, applied_upgrades from counted";
    let (wanted, deadline) = (fingerprint(&source, query).await?, Instant::now() + change::PATIENCE);
    while fingerprint(&copy, query).await? != wanted {
        ensure!(Instant::now() < deadline, "the subscriber has other rows");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(source.number(WRONG).await? == 0, "rows are wrong");
    feed.end().await
}

/// What was committed stays, and the next call goes on.
async fn statements_that_are_cancelled(server: Server) -> Result<()> {
    let (database, session) = counted(&server, 12_000).await?;
    for _ in 0..3 {
        // A chunk is its worker's until the lease runs out.
        let lease = "set migrator.lease = '300 ms'";
        let before = session.number("select count(*) from counted where applied_upgrades @> '{twice}'").await?;
        let runner = database.connect().await?;
        runner.run(lease).await?;
        let pid = runner.pid;
        let running = tokio::spawn(async move { runner.run("call migrator.run_upgrades('counted')").await });
        until(&session, &format!("count(*) > {before} from counted where applied_upgrades @> '{{twice}}'")).await?;
        session.run(&format!("select pg_cancel_backend({pid})")).await?;
        let told = running.await?;
        ensure!(told.as_ref().is_err_and(|error| error.code == "57014"), "it was told: {told:?}");
        let half =
            "select count(*) from counted where x <> case when applied_upgrades @> '{twice}' then 2 * id else id end";
        ensure!(session.number(half).await? == 0, "rows and names do not fit");
    }
    // Of a role: CALL is one statement, so it is over after that time; a step is not.
    let role = format!("hasty_{}", database.name);
    session
        .run(&format!(
            "create role {role} login; alter role {role} set statement_timeout = '400ms'; grant usage, create on schema public to {role}; alter table counted owner to {role}"
        ))
        .await?;
    let hasty = database.connect_as(&role, "hasty").await?;
    ensure!(hasty.value("show statement_timeout").await? == "400ms", "the role has no such setting");
    hasty.run("set migrator.lease = '300 ms'").await?;
    let deadline = Instant::now() + change::PATIENCE;
    while let Err(error) = hasty.run("call migrator.run_upgrades('counted')").await {
        ensure!(error.code == "57014" && Instant::now() < deadline, "{error}");
    }
    ensure!(states(&session, "counted").await? == "twice=complete", "{}", states(&session, "counted").await?);
    ensure!(session.number(WRONG).await? == 0, "rows were not upgraded exactly once");
    session.run(&format!("alter table counted owner to postgres; drop owned by {role}; drop role {role}")).await?;
    Ok(())
}

/// Whoever is promoted has to have the library; from here only the standby can be named.
async fn a_standby_is_named(server: Server) -> Result<()> {
    let cluster = server.cluster(&[]).await?;
    let database = Database::create(&cluster, true).await?;
    let session = database.connect().await?;
    let standby = cluster.standby().await?;
    session.run("create table article (id int primary key, content text, size int)").await?;
    let named = "select count(*) from migrator.doctor() where severity = 'info' and subject like 'standby %'";
    ensure!(session.number(named).await? == 0, "nothing needs the library yet");
    session.run("select migrator.register_upgrade('article', 'size', '{\"size\": \"length(content)\"}')").await?;
    ensure!(session.number(named).await? == 1, "the standby is not named");
    drop(standby);
    Ok(())
}

/// `suppress_redundant_updates_trigger`: a batch sets what it has to itself, so no row can be written; each is told.
async fn redundant_updates_are_suppressed(server: Server) -> Result<()> {
    let (database, session) = counted(&server, 50).await?;
    session
        .run("create trigger z_suppress before update on counted for each row execute function suppress_redundant_updates_trigger()")
        .await?;
    let mut worker = Worker::new(&database, "counted", "w").await?;
    // The rows do not even have the new column, so they are not the same.
    ensure!(worker.run().await?.state == "complete", "not complete");
    session.run("select migrator.register_upgrade('counted', 'note', '{\"note\": \"x\"}')").await?;
    let step = worker.run().await?;
    ensure!(step.reason.contains("50 row(s) are set aside"), "{step:?}");
    let told = session.row("select count(*), min(sqlstate), max(sqlstate) from migrator.upgrade_failures").await?;
    ensure!(told == ["50", "02000", "02000"], "{told:?}");
    session.run("drop trigger z_suppress on counted; select migrator.retry_failed('counted')").await?;
    ensure!(worker.run().await?.state == "complete", "not complete without it");
    ensure!(
        session.number("select count(*) from counted where note is distinct from 2 * id").await? == 0,
        "rows are wrong"
    );
    Ok(())
}

/// What is registered names tables by oid: writes go on to be guarded, and doctor says how the rest finds its table again.
async fn a_database_that_was_dumped_and_restored(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    // In the other database the table gets another oid.
    session
        .run("create table before (); create table article (gone int, id int primary key, size int, note text, content text); drop table before;
              alter table article drop column gone; insert into article (id, content) select g, g::text from generate_series(1, 500) g")
        .await?;
    session
        .run(
            "select migrator.register_upgrade('article', 'size', '{\"size\": \"length(content)\"}', batch_size => 100)",
        )
        .await?;
    Worker::new(&database, "article", "w").await?.until(|step| step.state == "verifying").await?;
    let restored = Database::create(database.cluster(), false).await?;
    let file = database.cluster().folder(&format!("dump-{}", database.name))?.join("dump");
    run(postgresql(&database, "pg_dump").args(["-Fc", "-f"]).arg(&file)).await?.fine()?;
    run(postgresql(&restored, "pg_restore").args(["--exit-on-error", "-d", &restored.name]).arg(&file))
        .await?
        .fine()?;
    let session = restored.connect().await?;
    session.run("insert into article (id, content) values (1000, 'abc')").await?;
    ensure!(session.value("select size from article where id = 1000").await? == "3", "a write is not guarded");
    ensure!(session.number("select count(*) from article__current where size is null").await? == 0, "the view");
    let refusal = session.refusal("select * from migrator.step('article')").await?;
    ensure!(refusal.code == "42704", "{refusal}");
    let remedy = session.row("select subject, remedy from migrator.doctor() where severity = 'error'").await?;
    ensure!(remedy[0] == "upgrades of public.article", "{remedy:?}");
    session.run(&remedy[1]).await?;
    ensure!(session.number("select count(*) from migrator.doctor() where severity = 'error'").await? == 0, "still");
    // Its columns have moved up: the one that has the number of the upgrade's is another, and may go.
    session.run("drop view article__current; alter table article drop column note").await?;
    // So has that of names, and one that has its number of before may go as well.
    session
        .run("alter table article add column later int; alter table article drop column later; update article set content = 'abcd' where id = 1000")
        .await?;
    ensure!(session.value("select size from article where id = 1000").await? == "4", "a write is not guarded");
    // The look at every row that was under way says nothing about those that are here; nor does it where the table has the oid
    // that it had.
    let mut worker = Worker::new(&restored, "article", "w").await?;
    for as_dumped in [
        "",
        "update migrator.upgraded set sweep_kind = 'verify', verified_at = null; update migrator.upgrade set state = 'running'",
    ] {
        session
            .run("alter table article disable trigger \"~migrator_guard\"; update article set size = null, applied_upgrades = '{}' where id = 77; \
                  alter table article enable always trigger \"~migrator_guard\"")
            .await?;
        session.run(as_dumped).await?;
        let step = worker.run().await?;
        ensure!(step.state == "complete", "{step:?}");
        let wrong =
            "select count(*) from article where size is distinct from length(content) or applied_upgrades <> '{size}'";
        ensure!(session.number(wrong).await? == 0, "rows are wrong");
    }
    // Whoever resumes tells the guard where the column of names is here.
    let knows = "select substring(convert_from(substr(tgargs, 1, length(tgargs) - 1), 'utf8')::jsonb ->> 'names_at' from 1) || ' ' || attnum \
                 from pg_trigger join pg_attribute on attrelid = tgrelid and attname = 'applied_upgrades' where tgname = '~migrator_guard'";
    ensure!(session.value(knows).await? == "6 5", "{}", session.value(knows).await?);
    session.run("select migrator.resume_upgrades('article')").await?;
    ensure!(session.value(knows).await? == "5 5", "{}", session.value(knows).await?);
    Ok(())
}

/// An exchange holds the table, and then moves what is noted of its upgrades to the other one: it must not meet a worker there who
/// waits for the table.
async fn a_worker_that_waits_for_the_table_holds_nothing_else(server: Server) -> Result<()> {
    let (database, session) = counted(&server, 1000).await?;
    session.run("alter table counted add column made text").await?;
    session.run("select migrator.register_upgrade('counted', 'code', inputs => '{id}', outputs => '{made}')").await?;
    let mut worker = Worker::new(&database, "counted", "w").await?;
    worker.until(|step| step.rows > 0).await?;
    let token = session
        .value("select jsonb_agg(jsonb_build_object('key', key, 'token', token, 'values', '{\"made\": \"x\"}'::jsonb)) from migrator.select_batch('counted', 'code', 5)")
        .await?;
    for call in [
        "select * from migrator.step('counted', 'w')".to_owned(),
        "select * from migrator.select_batch('counted', 'code', 5)".to_owned(),
        format!("select * from migrator.mark_applied('counted', 'code', {})", session::literal(&token)),
    ] {
        session.run("begin; lock table counted in access exclusive mode").await?;
        let caller = database.connect_as("postgres", "caller").await?;
        let pid = caller.pid;
        let waiting = tokio::spawn(async move { caller.rows(&call).await.map(|rows| (rows, call)) });
        until(&session, &format!("cardinality(pg_blocking_pids({pid})) > 0")).await?;
        let books = "update migrator.upgraded set relation = relation; \
                     select from migrator.sweep_chunk for update nowait; select from migrator.upgrade_lease for update nowait; \
                     select from migrator.upgrade for update nowait; select from migrator.upgraded for update nowait";
        let free = session.rows(books).await;
        session.run("rollback").await?;
        let (_, call) = waiting.await??;
        ensure!(free.is_ok(), "while the table is held, {call} holds what an exchange needs: {free:?}");
    }
    Ok(())
}

/// The workers go on after each exchange of the table, and the exchange gets its locks beside them.
async fn a_swap_beside_running_workers(server: Server) -> Result<()> {
    let (database, session) = counted(&server, 41_000).await?;
    let change =
        Change::create(&database, "public.counted", "alter column note type bigint, add column more int").await?;
    change.until_ready().await?;
    let mut command = agent(&database)?;
    command.args(["upgrade", "run", "counted", "--workers", "2"]).kill_on_drop(true);
    let mut workers = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let mut before = 0;
    for way in ["swap", "rollback", "swap"] {
        // In the middle of it.
        let marked = "select count(*) from counted where applied_upgrades @> '{twice}'";
        let deadline = Instant::now() + change::PATIENCE;
        while session.number(marked).await? < before + 2000 {
            ensure!(
                Instant::now() < deadline && workers.try_wait()?.is_none(),
                "the workers do not go on before a {way}"
            );
        }
        before = session.number(marked).await?;
        change.wait_for(if way == "rollback" { "swapped" } else { "ready" }).await?;
        let mut lost = 0;
        while let Err(refusal) = session.rows(&format!("select * from migrator.{way}('public.counted')")).await {
            // 55006: much was written since, which an exchange does not replay itself.
            ensure!(refusal.is_worth_retrying() || refusal.code == "55006", "the {way}: {refusal}");
            lost += i32::from(refusal.code == "55P03");
            ensure!(lost < 3 && Instant::now() < deadline, "the {way} does not get its locks: {refusal}");
            change.advance(&session).await?;
        }
        if way == "rollback" {
            change.until_ready().await?;
        }
    }
    let ended = tokio::time::timeout(change::PATIENCE, workers.wait()).await.context("the workers do not end")??;
    ensure!(ended.success(), "the workers ended with {ended}");
    let kinds = session
        .rows("select x / id as times, applied_upgrades, count(*), min(id), max(id) from counted group by 1, 2 order by 1, 2")
        .await?;
    ensure!(session.number(WRONG).await? == 0, "rows were not upgraded exactly once: {kinds:?}");
    change.until_in_step().await?;
    change.finish().await
}

/// Somebody else who has nothing to do ends whoever is at it for longer than a lease; the next one gets twice as long.
async fn a_row_that_takes_longer_than_a_lease(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(&format!(
            "alter database \"{}\" set migrator.lease = '300 ms';
             create table slow (id int primary key, a int, b int);
             insert into slow select g, g from generate_series(1, 20) g;
             create function slowly(a int) returns int immutable language plpgsql as $$
             begin perform pg_sleep(case when a = 10 then 1.5 else 0 end); return a; end $$;
             select migrator.register_upgrade('slow', 'b', '{{\"b\": \"slowly(a)\"}}')",
            database.name
        ))
        .await?;
    let (mut one, mut other) =
        (Worker::new(&database, "slow", "one").await?, Worker::new(&database, "slow", "other").await?);
    let (end, _) = tokio::try_join!(one.run(), other.run())?;
    ensure!(end.state == "complete", "{end:?}");
    let ended = session.number("select count(*) from migrator.upgrade_events where kind = 'overtaken'").await?;
    ensure!(ended > 0, "nobody was ended");
    ensure!(session.number("select count(*) from slow where b is distinct from a").await? == 0, "rows are wrong");
    Ok(())
}
