//! What one batch of an upgrade may take, whatever its rows cost and whoever holds them.

use migrator_tests::upgrades::{Step, Worker};
use migrator_tests::*;
use std::time::{Duration, Instant};

for_each_server!(
    slow_rows,
    the_time_that_was_asked_for,
    rows_that_are_slow_to_come,
    a_look_for_the_end_that_reads_the_rows,
    a_look_at_all_rows_that_is_slow,
    slow_rows_under_a_short_timeout,
    heavy_rows,
    many_rows_that_somebody_holds,
    many_rows_that_fail,
    rows_that_batches_passed,
    a_row_that_is_slow_to_fail,
    chunks_without_statistics,
    the_time_that_is_left,
);

/// Steps to the end, or to where they are blocked.
async fn steps(worker: &mut Worker) -> Result<Vec<Step>> {
    let mut steps = vec![];
    loop {
        let step = worker.step().await?;
        let done = step.done;
        steps.push(step);
        if done {
            return Ok(steps);
        }
        ensure!(steps.len() < 500, "no end: {:?}", steps.last());
    }
}

fn most(steps: &[Step]) -> i64 {
    steps.iter().filter(|step| step.state == "upgrading").map(|step| step.rows).max().unwrap_or(0)
}

/// A table `t` of so many rows, an upgrade by a function that sleeps, and a worker.
async fn sleepy(server: &Server, rows: u32, milliseconds: u32, options: &str) -> Result<(Session, Worker)> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(&format!(
            "create table t (id int primary key, a int, b int);
             insert into t select g, g from generate_series(1, {rows}) g;
             create function later(a int) returns int immutable language plpgsql as $$ begin perform pg_sleep({milliseconds} / 1000.0); return a; end $$;
             select migrator.register_upgrade('t', 'b', '{{\"b\": \"later(a)\"}}' {options})"
        ))
        .await?;
    let worker = Worker::new(&database, "t", "w").await?;
    Ok((session, worker))
}

async fn all_upgraded(session: &Session) -> Result<()> {
    let left = session.number("select count(*) from t where b is distinct from a or applied_upgrades <> '{b}'").await?;
    ensure!(left == 0, "{left} rows are not upgraded");
    Ok(())
}

/// The time is over long before the rows of the first batch are.
async fn slow_rows(server: Server) -> Result<()> {
    let (session, mut worker) = sleepy(&server, 40, 40, "").await?;
    let steps = steps(&mut worker).await?;
    // 150 ms of 200, 40 ms a row, and the row that was begun before they were over.
    ensure!(most(&steps) <= 5, "{steps:?}");
    all_upgraded(&session).await
}

/// `target` is what a batch of the table goes by.
async fn the_time_that_was_asked_for(server: Server) -> Result<()> {
    let (session, mut worker) = sleepy(&server, 60, 10, ", target => '100 ms'").await?;
    let short = steps(&mut worker).await?;
    ensure!(most(&short) <= 9, "{short:?}");
    all_upgraded(&session).await?;
    // All of them fit.
    let (session, mut worker) = sleepy(&server, 60, 10, ", target => '1 minute'").await?;
    let long = steps(&mut worker).await?;
    ensure!(most(&long) == 60, "{long:?}");
    all_upgraded(&session).await
}

/// A step that is held up at its first row, for as long as its whole batch should take.
async fn held_up(session: &Session, mut worker: Worker, point: &str) -> Result<(Worker, Step)> {
    session.run("select pg_advisory_lock(7331)").await?;
    worker.session().run(&format!("set migrator.crash_at = '{point}:wait'")).await?;
    let pid = worker.session().pid;
    let batch = tokio::spawn(async move {
        let step = worker.step().await;
        (worker, step)
    });
    let deadline = Instant::now() + change::PATIENCE;
    let waits = format!("select count(*) from pg_locks where locktype = 'advisory' and not granted and pid = {pid}");
    while session.number(&waits).await? == 0 {
        ensure!(Instant::now() < deadline && !batch.is_finished(), "{point}: no row was looked at");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    session.run("select pg_advisory_unlock(7331)").await?;
    let (worker, step) = batch.await?;
    worker.session().run("set migrator.crash_at = ''").await?;
    Ok((worker, step?))
}

/// Rows that nobody has in memory: the first takes all the time that a batch has, while its end is looked for, or while its rows are
/// locked. It is a batch of its own, and those that were not looked at come next.
async fn rows_that_are_slow_to_come(server: Server) -> Result<()> {
    for point in ["step.passed", "step.looked"] {
        let (session, mut worker) = sleepy(&server, 400, 0, "").await?;
        let begun = worker.step().await?;
        ensure!(begun.state == "upgrading" && begun.rows == 0, "{begun:?}");
        let (mut worker, step) = held_up(&session, worker, point).await?;
        ensure!(step.state == "upgrading" && step.rows == 1, "{point}: {step:?}");
        let at = session
            .value("select coalesce(key_after::text, '') from migrator.sweep_chunk order by number limit 1")
            .await?;
        ensure!(at == "{1}", "{point}: the cursor is at {at:?}");
        let end = worker.run().await?;
        ensure!(end.state == "complete", "{point}: {end:?}");
        all_upgraded(&session).await?;
    }
    Ok(())
}

/// Where all pages are visible an index alone could tell the end of a batch; the scan that locks would then meet all that has to come
/// from the disk when its time is over. Each row of a batch is fetched by the key's index twice: in the look, and to be locked.
async fn a_look_for_the_end_that_reads_the_rows(server: Server) -> Result<()> {
    let (session, mut worker) = sleepy(&server, 20_000, 0, ", batch_size => 400, target => '1 minute'").await?;
    let visible =
        "select (relallvisible > 0 and relallvisible = relpages)::int from pg_class where oid = 't'::regclass";
    let deadline = Instant::now() + change::PATIENCE;
    while session.number(visible).await? == 0 {
        ensure!(Instant::now() < deadline, "somebody's snapshot is too old for pages to be visible");
        session.run("vacuum (freeze, analyze) t").await?;
    }
    ensure!(worker.step().await?.rows == 0, "the first step only begins");
    let fetched = "select sum(idx_tup_fetch) from pg_stat_user_indexes where relid = 't'::regclass";
    worker.session().run("select pg_stat_force_next_flush()").await?;
    let before = session.number(fetched).await?;
    let step = worker.step().await?;
    ensure!(step.state == "upgrading" && step.rows >= 50, "{step:?}");
    worker.session().run("select pg_stat_force_next_flush()").await?;
    let read = session.number(fetched).await? - before;
    ensure!(read >= 2 * step.rows, "{read} fetches for {} rows", step.rows);
    Ok(())
}

/// The look at all rows ends with its time as well: it goes on behind the row that it came to, and says complete of no row that it
/// has not seen.
async fn a_look_at_all_rows_that_is_slow(server: Server) -> Result<()> {
    let (session, mut worker) = sleepy(&server, 400, 0, "").await?;
    worker.until(|step| step.state == "verifying").await?;
    session
        .run(
            "alter table t disable trigger \"~migrator_guard\"; update t set b = null, applied_upgrades = '{}' where id in (1, 400); \
              alter table t enable always trigger \"~migrator_guard\"",
        )
        .await?;
    let (mut worker, step) = held_up(&session, worker, "step.passed").await?;
    ensure!(step.state == "verifying" && step.rows == 1, "{step:?}");
    let chunk =
        session.row("select key_after, rows, pending from migrator.sweep_chunk order by number limit 1").await?;
    ensure!(chunk == ["{1}", "1", "1"], "{chunk:?}");
    let end = worker.run().await?;
    ensure!(end.state == "complete", "{end:?}");
    all_upgraded(&session).await
}

/// However batches end, the sweep counts each row that its cursor has passed, and once: some are in other hands, and most lack nothing.
async fn rows_that_batches_passed(server: Server) -> Result<()> {
    let (session, mut worker) = sleepy(&server, 2000, 20, "").await?;
    session
        .run(
            "alter table t disable trigger \"~migrator_guard\"; update t set b = a, applied_upgrades = '{b}' where id % 40 <> 2; \
              alter table t enable always trigger \"~migrator_guard\"",
        )
        .await?;
    let holder = worker.database().connect().await?;
    holder.run("begin; select from t where id in (82, 402) for update").await?;
    let passed = "select sum(k.rows), (select count(*) from t where id <= max((k.key_after)[1]::int)), count(*) filter (where k.key_after is not null and k.done_at is null) \
                  from migrator.sweep_chunk k";
    let (mut steps, mut middle) = (vec![], 0);
    while steps.len() < 100 {
        let step = worker.step().await?;
        if step.state != "upgrading" || step.reason.contains("locked by other sessions") {
            break;
        }
        steps.push(step);
        let [rows, there, under_way] = &session.row(passed).await?[..] else { bail!("three values") };
        ensure!(rows == there || there.is_empty(), "{rows} rows are counted of {there}: {steps:?}");
        middle += i32::from(under_way == "1");
    }
    ensure!(middle > 2, "no batch ended early: {steps:?}");
    ensure!(steps.len() < 40, "batches became small: {steps:?}");
    holder.run("rollback").await?;
    let end = worker.run().await?;
    ensure!(end.state == "complete", "{end:?}");
    all_upgraded(&session).await
}

/// A batch whose first row takes more than its time and then fails looks for the row that fails in no other way than by that one.
async fn a_row_that_is_slow_to_fail(server: Server) -> Result<()> {
    let (session, mut worker) = sleepy(&server, 500, 0, "").await?;
    session
        .run(
            "create sequence tried; create or replace function later(a int) returns int immutable language plpgsql as $$ begin \
                 if a = 1 then perform nextval('tried'), pg_sleep(0.3); raise 'no' using errcode = '22023'; end if; return a; end $$",
        )
        .await?;
    let steps = steps(&mut worker).await?;
    ensure!(steps.iter().map(|step| step.failed).sum::<i64>() == 1, "{steps:?}");
    // By the statement for the range, by itself, and to see how far it goes.
    let tried = session.number("select last_value from tried").await?;
    ensure!(tried <= 3, "{tried} times: {steps:?}");
    ensure!(session.number("select count(*) from t where b = a").await? == 499, "rows are missing: {steps:?}");
    Ok(())
}

/// The caller's own statement_timeout would cut every step off, and the next one would begin with the same rows.
async fn slow_rows_under_a_short_timeout(server: Server) -> Result<()> {
    let (session, mut worker) = sleepy(&server, 24, 100, ", target => '1 minute'").await?;
    worker.session().run("set statement_timeout = '2s'").await?;
    let steps = steps(&mut worker).await?;
    ensure!(most(&steps) <= 12, "{steps:?}");
    all_upgraded(&session).await
}

/// Values that are wider than anything that came before.
async fn heavy_rows(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    // A megabyte that does not get smaller by compression, made from a few bytes.
    session
        .run(
            "create table t (id int primary key, a int, b text);
             insert into t select g, g from generate_series(1, 40) g;
             create function wide(a int) returns text immutable language sql as
                 $$ select string_agg(md5(a || '.' || g), '') from generate_series(1, 32768) g $$;
             alter table t alter column b set storage external;
             select migrator.register_upgrade('t', 'b', '{\"b\": \"wide(a)\"}')",
        )
        .await?;
    let mut worker = Worker::new(&database, "t", "w").await?;
    let steps = steps(&mut worker).await?;
    // 12 MB, and the row that was begun before they were full.
    ensure!(most(&steps) <= 13, "{steps:?}");
    let left = session.number("select count(*) from t where length(b) is distinct from 1048576").await?;
    ensure!(left == 0, "{left} rows are not upgraded");
    Ok(())
}

async fn many_rows_that_somebody_holds(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table t (id int primary key, a int, b int); insert into t select g, g from generate_series(1, 30000) g;
             select migrator.register_upgrade('t', 'b', '{\"b\": \"a\"}')",
        )
        .await?;
    let holder = database.connect().await?;
    holder.run("begin; select from t where id between 2001 and 16000 for update").await?;
    let mut worker = Worker::new(&database, "t", "w").await?;
    let step = worker.until(|step| step.reason.contains("locked by other sessions")).await?;
    let held: i64 = step.reason.split(' ').next().unwrap_or_default().parse()?;
    // Those of its own chunk, each known by its key; the list does not grow for ever.
    ensure!((1..=14_000).contains(&held), "{step:?}");
    let before = session.number("select count(*) from t where id <= 2000 and applied_upgrades = '{b}'").await?;
    ensure!(before == 2000, "{before} of the rows before the locked ones");
    holder.run("commit").await?;
    let end = worker.run().await?;
    ensure!(end.state == "complete", "{end:?}");
    all_upgraded(&session).await
}

/// No batch sets more than a hundred aside, a run is blocked by them, and who has it go on need not do so for every row.
async fn many_rows_that_fail(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table t (id int primary key, a int, b int); insert into t select g, case when g between 2001 and 2320 then 0 else 1 end from generate_series(1, 4000) g;
             select migrator.register_upgrade('t', 'b', '{\"b\": \"1 / a\"}')",
        )
        .await?;
    let mut worker = Worker::new(&database, "t", "w").await?;
    let mut blocked = 0;
    loop {
        let steps = steps(&mut worker).await?;
        ensure!(steps.iter().all(|step| step.failed <= 100), "{steps:?}");
        let Some(last) = steps.last().filter(|step| step.state == "blocked") else { break };
        blocked += 1;
        let aside = session.number("select count(*) from migrator.upgrade_failures").await?;
        ensure!(aside > 100 * blocked, "blocked after {aside} rows, for the time {blocked}: {last:?}");
        session.run("select migrator.resume_upgrades('t')").await?;
    }
    ensure!(blocked > 0, "nobody was asked");
    let counts = session
        .row("select count(*) filter (where b = 1 and applied_upgrades = '{b}'), (select count(*) from migrator.upgrade_failures) from t")
        .await?;
    ensure!(counts == ["3680", "320"], "{counts:?}");
    let again = session.number("select count(*) from migrator.upgrade_failures where attempts > 1").await?;
    ensure!(again == 0, "{again} rows were tried again");
    Ok(())
}

/// Several workers find something to do though nobody has analyzed the table, and its key begins with a constant.
async fn chunks_without_statistics(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table t (tenant int, id int, a int, b int, primary key (tenant, id)) with (autovacuum_enabled = off);
             insert into t select 7, g, g from generate_series(1, 100000) g;
             select migrator.register_upgrade('t', 'b', '{\"b\": \"a\"}')",
        )
        .await?;
    let mut worker = Worker::new(&database, "t", "w").await?;
    worker.until(|step| step.rows > 0).await?;
    let chunks = session.number("select count(*) from migrator.sweep_chunk").await?;
    ensure!((3..=8).contains(&chunks), "{chunks} chunks");
    let mut other = Worker::new(&database, "t", "other").await?;
    ensure!(other.step().await?.rows > 0, "the second worker found nothing to do");
    let (end, _) = tokio::try_join!(worker.run(), other.run())?;
    ensure!(end.state == "complete", "{end:?}");
    all_upgraded(&session).await
}

/// Half of the rows took a thousand seconds: the other half takes as long. Said by the step, and by the view.
async fn the_time_that_is_left(server: Server) -> Result<()> {
    let (session, mut worker) = sleepy(&server, 4000, 0, ", batch_size => 500").await?;
    session.run("analyze t").await?;
    let half = "count(*) >= 2000 from t where applied_upgrades = '{b}'";
    while session.value(&format!("select {half}")).await? == "f" {
        ensure!(!worker.step().await?.done, "all at once");
    }
    session.run("update migrator.upgraded set sweep_began = clock_timestamp() - interval '1000 s'").await?;
    let seen = session.number("select extract(epoch from eta)::int from migrator.upgrades").await?;
    ensure!((500..2000).contains(&seen), "the view says {seen} s");
    let told = session.number("select extract(epoch from eta)::int from migrator.step('t', 'w')").await?;
    ensure!((300..2000).contains(&told) && told < seen, "the step says {told} s, the view said {seen} s before");
    steps(&mut worker).await?;
    ensure!(session.value("select eta is null from migrator.upgrades").await? == "t", "a complete upgrade has an eta");
    all_upgraded(&session).await
}
