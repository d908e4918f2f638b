//! How long an application waits for a change: never longer than one attempt at the locks, however long others hold
//! the table, and not at all while the change is prepared.

use migrator_tests::application::Application;
use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

for_each_server!(
    a_start_behind_an_open_writer,
    an_end_behind_a_long_reader,
    a_swap_beside_vacuum_and_index_builds,
    a_long_build_blinds_nobody,
    a_swap_beside_an_index_build_of_the_table,
    an_end_behind_readers_of_the_other_table,
    serializable_readers_are_in_nobodys_way,
    a_log_is_given_back_without_a_writer_waiting,
);
for_oldest_and_newest_server!(
    a_swap_behind_a_long_reader,
    a_swap_behind_a_prepared_transaction,
    referenced_tables_wait_no_longer,
    validation_gives_way_to_whoever_locks_both_tables,
);

const STATEMENTS: [&str; 3] = [
    "select count(*) from busy where id < 50",
    "update busy set v = v + 1 where id = 7",
    "insert into busy (id) values (default) returning id",
];

async fn busy(server: &Server) -> Result<(Database, Session)> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run("create table busy (id serial primary key, v int default 0); insert into busy (v) select 0 from generate_series(1, 2000)")
        .await?;
    Ok((database, session))
}

/// Asks for something again and again for a while; it must not come about.
async fn in_vain(database: &Database, sql: &str, time: Duration) -> Result<String> {
    let session = database.connect_as("postgres", "test:change").await?;
    let deadline = Instant::now() + time;
    // A whole series of attempts lasts longer than a test should.
    session.run(&format!("set statement_timeout = {}", time.as_millis())).await?;
    let mut why = String::new();
    while Instant::now() < deadline {
        match session.rows(sql).await {
            Ok(rows) => {
                let row = rows.into_iter().next().unwrap_or_default();
                ensure!(!row.iter().any(|value| value.as_deref() == Some("t")), "this went through: {sql}");
                why = format!("{row:?}");
            }
            Err(error) if matches!(error.code.as_str(), "55P03" | "55006" | "57014") => why = error.to_string(),
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(why)
}

async fn a_swap_behind_a_long_reader(server: Server) -> Result<()> {
    let (database, _session) = busy(&server).await?;
    let change = Change::create(&database, "public.busy", "alter column id type bigint").await?;
    change.until_ready().await?;
    let application = Application::start(&database, &STATEMENTS).await?;
    let reader = database.connect_as("postgres", "reader").await?;
    reader.run("begin").await?;
    reader.run("select * from busy limit 1").await?;
    // This series goes to its end, and then says who is in the way. Somebody replays what is written meanwhile.
    let driver = change.keep_going(1);
    let swap = database.connect_as("postgres", "test:change").await?;
    let why = swap.refusal(&format!("select * from migrator.swap(change => {})", change.id)).await?;
    driver.stop().await?;
    ensure!(why.to_string().contains(&reader.pid.to_string()), "nobody says which session is in the way: {why}");
    reader.run("commit").await?;
    change.swap().await?;
    reader.run("begin; select * from busy limit 1").await?;
    in_vain(
        &database,
        &format!("select rolled_back, reason from migrator.rollback(change => {})", change.id),
        Duration::from_secs(3),
    )
    .await?;
    reader.run("commit").await?;
    change.rollback().await?;
    application.never_waited().await?;
    change.until_ready().await?;
    change.cancel().await?;
    nothing_left_behind(&database).await
}

async fn a_swap_behind_a_prepared_transaction(server: Server) -> Result<()> {
    let (database, session) = busy(&server).await?;
    let change = Change::create(&database, "public.busy", "alter column id type bigint").await?;
    change.until_ready().await?;
    let application = Application::start(&database, &STATEMENTS).await?;
    session.run("begin").await?;
    session.run("update busy set v = 1000 where id = 9").await?;
    session.run(&format!("prepare transaction 'held_{}'", database.name)).await?;
    in_vain(
        &database,
        &format!("select swapped, reason from migrator.swap(change => {})", change.id),
        Duration::from_secs(3),
    )
    .await?;
    session.run(&format!("commit prepared 'held_{}'", database.name)).await?;
    change.swap().await?;
    ensure!(
        session.value("select v from busy where id = 9").await? == "1000",
        "the prepared transaction's row is lost"
    );
    application.never_waited().await?;
    change.finish().await?;
    nothing_left_behind(&database).await
}

async fn a_start_behind_an_open_writer(server: Server) -> Result<()> {
    let (database, _session) = busy(&server).await?;
    let change = Change::create(&database, "public.busy", "alter column id type bigint").await?;
    let application = Application::start(&database, &STATEMENTS).await?;
    let writer = database.connect_as("postgres", "writer").await?;
    writer.run("begin").await?;
    writer.run("update busy set v = 4711 where id = 11").await?;
    in_vain(
        &database,
        &format!("select migrator.start_sync(change => {}) <> 'created'", change.id),
        Duration::from_secs(4),
    )
    .await?;
    ensure!(
        change.state().await? == "created",
        "capture was switched on beside an open writer: {}",
        change.told().await?
    );
    writer.run("commit").await?;
    change.until_ready().await?;
    let rear = change.rear().await?;
    let session = database.connect().await?;
    ensure!(
        session.value(&format!("select v from {rear} where id = 11")).await? == "4711",
        "the open writer's row is lost"
    );
    application.never_waited().await?;
    change.cancel().await?;
    nothing_left_behind(&database).await
}

async fn an_end_behind_a_long_reader(server: Server) -> Result<()> {
    let (database, _session) = busy(&server).await?;
    let application = Application::start(&database, &STATEMENTS).await?;
    let reader = database.connect_as("postgres", "reader").await?;
    for verb in ["cancel", "finish"] {
        let change = Change::create(&database, "public.busy", "alter column v type bigint").await?;
        change.until_ready().await?;
        if verb == "finish" {
            change.swap().await?;
        }
        reader.run("begin").await?;
        reader.run("select * from busy limit 1").await?;
        let state = if verb == "cancel" { "cancelled" } else { "finished" };
        in_vain(
            &database,
            &format!("select migrator.{verb}(change => {}) = '{state}'", change.id),
            Duration::from_secs(3),
        )
        .await?;
        reader.run("commit").await?;
        if verb == "cancel" {
            change.cancel().await?
        } else {
            change.finish().await?
        }
        nothing_left_behind(&database).await?;
    }
    application.never_waited().await
}

async fn a_swap_beside_vacuum_and_index_builds(server: Server) -> Result<()> {
    let (database, session) = busy(&server).await?;
    session.run("insert into busy (v) select g from generate_series(1, 100000) g").await?;
    let change = Change::create(&database, "public.busy", "alter column id type bigint").await?;
    change.until_ready().await?;
    let application = Application::start(&database, &STATEMENTS).await?;
    session.run("create table beside as select g from generate_series(1, 300000) g").await?;
    for slow in ["vacuum (disable_page_skipping) busy", "create index concurrently on beside (g)"] {
        let worker = database.connect_as("postgres", "worker").await?;
        worker.run("set vacuum_cost_delay = 20; set vacuum_cost_limit = 50").await?;
        let slow = tokio::spawn(async move { worker.run(slow).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        change.swap().await?;
        slow.await??;
        change.rollback().await?;
        change.until_ready().await?;
    }
    application.never_waited().await?;
    change.cancel().await?;
    nothing_left_behind(&database).await
}

/// CREATE INDEX CONCURRENTLY of the table itself holds it for as long as the oldest writer lives. A swap would lose the
/// index, and says so; what ends the change names the session that builds it.
async fn a_swap_beside_an_index_build_of_the_table(server: Server) -> Result<()> {
    let (database, session) = busy(&server).await?;
    let change = Change::create(&database, "public.busy", "alter column id type bigint").await?;
    change.until_ready().await?;
    let application = Application::start(&database, &STATEMENTS).await?;
    let writer = database.connect_as("postgres", "writer").await?;
    writer.run("begin; update busy set v = 4711 where id = 11").await?;
    let builder = database.connect_as("postgres", "builder").await?;
    let pid = builder.pid;
    let build = tokio::spawn(async move { builder.run("create index concurrently busy_v on busy (v)").await });
    let waits = format!("select count(*) from pg_locks where pid = {pid} and not granted");
    let deadline = Instant::now() + change::PATIENCE;
    while session.number(&waits).await? == 0 {
        ensure!(Instant::now() < deadline && !build.is_finished(), "the build does not wait: this tests nothing");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    session.run("set deadlock_timeout = '10ms'").await?;
    let refusal = session.refusal("select * from migrator.swap('busy')").await?;
    ensure!(refusal.code == "55000" && refusal.message.contains("indexes"), "{refusal}");
    let refusal = session.refusal("select migrator.cancel('busy')").await?;
    ensure!(refusal.code == "55P03" && refusal.message.contains(&pid.to_string()), "{refusal}");
    application.never_waited().await?;
    writer.run("commit").await?;
    build.await??;
    let refusal = session.refusal("select * from migrator.swap('busy')").await?;
    ensure!(refusal.code == "55000" && refusal.message.contains("indexes"), "{refusal}");
    session.run("drop index busy_v").await?;
    change.swap().await?;
    ensure!(session.value("select v from busy where id = 11").await? == "4711", "the writer's row is lost");
    change.finish().await?;
    nothing_left_behind(&database).await
}

async fn referenced_tables_wait_no_longer(server: Server) -> Result<()> {
    let (database, session) = busy(&server).await?;
    session
        .run(
            "create table above (id int primary key); insert into above select g from generate_series(1, 100) g;
             alter table busy add up int references above;
             create table below (id serial primary key, busy int references busy);
             create view seen as select id, v from busy; create view seen2 as select * from seen",
        )
        .await?;
    let change = Change::create(&database, "public.busy", "add column w int").await?;
    change.until_ready().await?;
    let application = Application::start(
        &database,
        &[
            "select count(*) from above",
            "insert into below (busy) values (7)",
            "select count(*) from seen2",
            "update busy set up = 3 where id = 5",
            "update above set id = id where id = 9",
        ],
    )
    .await?;
    let reader = database.connect_as("postgres", "reader").await?;
    for table in ["above", "below", "seen2"] {
        reader.run("begin").await?;
        reader.run(&format!("select * from {table} limit 1")).await?;
        // Whether a reader of these is in the way is the change's business; that nobody waits for long is ours.
        let swapping = change.clone();
        let swap = tokio::spawn(async move { swapping.swap().await });
        tokio::time::sleep(Duration::from_secs(2)).await;
        reader.run("commit").await?;
        swap.await??;
        change.rollback().await?;
        change.until_ready().await?;
    }
    application.never_waited().await?;
    change.cancel().await?;
    nothing_left_behind(&database).await
}

/// One worker is in a build for long, and somebody waits for a lock of it: the worker of another change, who saw nothing
/// of that when the build began, slows down all the same; and the change can be paused.
async fn a_long_build_blinds_nobody(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table long (id int primary key, v int unique); insert into long select g from generate_series(1, 100) g;
             create table other (id int primary key); insert into other select g from generate_series(1, 100) g",
        )
        .await?;
    let long = Change::create(&database, "public.long", "alter column id type bigint").await?;
    let other = Change::create(&database, "public.other", "alter column id type bigint").await?;
    long.until(|advance| advance.state == "indexing").await?;

    session.run("update migrator.load set sampled_at = '-infinity'").await?;
    let build = build_that_lasts(&session, &long).await?;
    let waiter = database.connect_as("postgres", "waiter").await?;
    let shadow = long.rear().await?;
    let waiting =
        tokio::spawn(
            async move { waiter.run(&format!("begin; lock table {shadow} in row exclusive mode; commit")).await },
        );
    until(
        &session,
        "select count(*) from pg_stat_activity where application_name = 'waiter' and wait_event_type = 'Lock'",
    )
    .await?;
    let advance = other.advance(&other.session().await?).await?;
    ensure!(advance.reason.contains("wait for a lock of ours"), "the other worker does not hear of it: {advance:?}");
    session.run("select pg_advisory_unlock(7331)").await?;
    build.await??;
    waiting.await??;

    // What it waited for is over with the next look.
    session.run(&format!("update migrator.change set waiting = 'something' where id = {}", long.id)).await?;
    let build = build_that_lasts(&session, &long).await?;
    session.run(&format!("set lock_timeout = '2s'; select migrator.pause(change => {})", long.id)).await?;
    session.run("reset lock_timeout; select pg_advisory_unlock(7331)").await?;
    build.await??;
    for change in [long, other] {
        change.cancel().await?;
    }
    nothing_left_behind(&database).await
}

/// A worker that stands at the end of a build until `session` gives its advisory lock back.
async fn build_that_lasts(session: &Session, change: &Change) -> Result<tokio::task::JoinHandle<Result<()>>> {
    session.run("select pg_advisory_lock(7331)").await?;
    let (builder, builds) = (change.session().await?, change.clone());
    builder.run("set application_name = 'builder'; set migrator.crash_at = 'build:wait'").await?;
    let build = tokio::spawn(async move {
        while builds.advance(&builder).await?.step != "build" {}
        Ok(())
    });
    until(
        session,
        "select count(*) from pg_stat_activity where application_name = 'builder' and wait_event = 'advisory'",
    )
    .await?;
    Ok(build)
}

async fn until(session: &Session, count: &str) -> Result<()> {
    let deadline = Instant::now() + change::PATIENCE;
    while session.number(count).await? == 0 {
        ensure!(Instant::now() < deadline, "never: {count}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Looks, as often as it can, who waits for a table or holds it exclusively; 0 rows is what should be seen.
async fn in_the_way(session: &Session, table: &str) -> Result<i64> {
    let sql = format!(
        "select count(*) from pg_locks where locktype = 'relation' and relation = {table} \
         and (not granted or mode = 'AccessExclusiveLock')"
    );
    session.number(&sql).await
}

/// Readers of the shadow or the backup keep its end waiting, and nobody who uses the live table: that one is not even
/// asked for before the other is held.
async fn an_end_behind_readers_of_the_other_table(server: Server) -> Result<()> {
    let (database, session) = busy(&server).await?;
    for verb in ["cancel", "finish"] {
        let change = Change::create(&database, "public.busy", "alter column v type bigint").await?;
        change.until_ready().await?;
        if verb == "finish" {
            change.swap().await?;
            change.until_in_step().await?;
        }
        let live = session.value("select 'busy'::regclass::oid").await?;
        let rear = change.rear().await?;
        // One after the other and overlapping, none old enough to be noticed beforehand.
        let stop = Arc::new(AtomicBool::new(false));
        let mut readers = Vec::new();
        for number in 0..2 {
            let (reader, stop) = (database.connect_as("postgres", "reader").await?, stop.clone());
            let read = format!("select count(*), pg_sleep(0.4) from (select from {rear} limit 1) r");
            readers.push(tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(200 * number)).await;
                while !stop.load(Ordering::Relaxed) {
                    reader.run(&read).await?;
                }
                Ok::<(), SqlError>(())
            }));
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
        let worker = database.connect_as("postgres", "test:change").await?;
        worker.run("set statement_timeout = '800ms'").await?;
        let call = format!("select migrator.{verb}(change => {})", change.id);
        let ending = tokio::spawn(async move { worker.value(&call).await });
        while !ending.is_finished() {
            ensure!(in_the_way(&session, &live).await? == 0, "{verb} holds up the live table for readers of {rear}");
        }
        let refusal = ending.await?;
        ensure!(refusal.is_err(), "{verb} dropped a table that is being read: {refusal:?}");
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.await??;
        }
        if verb == "cancel" {
            change.cancel().await?
        } else {
            change.finish().await?
        }
        nothing_left_behind(&database).await?;
    }
    Ok(())
}

/// VALIDATE may wait for long; the lock under which a segment of the log is emptied must not last as long.
async fn a_log_is_given_back_without_a_writer_waiting(server: Server) -> Result<()> {
    let (database, session) = busy(&server).await?;
    session
        .run("create table above (id int primary key); insert into above values (0), (1); alter table busy add foreign key (v) references above")
        .await?;
    let change = Change::create(&database, "public.busy", "alter column id type bigint").await?;
    change.until_ready().await?;
    change.swap().await?;
    // Pages without a row in every segment of the log, as writers leave them that roll back.
    let sizes =
        format!("select sum(pg_relation_size(oid)) from pg_class where relname ~ '^log_{}_r_[0-9]$'", change.id);
    for segment in 0..3 {
        session.run("begin").await?;
        session
            .run(&format!("insert into migrator.log_{}_r_{segment} select g from generate_series(1, 100) g", change.id))
            .await?;
        session.run("rollback").await?;
    }
    let full = session.number(&sizes).await?;
    let beside = database.connect_as("postgres", "vacuum").await?;
    beside.run("begin; lock table busy in share update exclusive mode").await?;
    let worker = change.session().await?;
    let pid = worker.pid;
    let advancing = change.clone();
    let advance = tokio::spawn(async move { advancing.advance(&worker).await.map(|advance| (worker, advance)) });
    let waits = format!("select count(*) from pg_locks where pid = {pid} and not granted");
    let deadline = Instant::now() + change::PATIENCE;
    while session.number(&waits).await? == 0 {
        ensure!(Instant::now() < deadline && !advance.is_finished(), "the step does not wait: this tests nothing");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let held = format!(
        "select coalesce(string_agg(relation::regclass::text || ' ' || mode, ', '), '') from pg_locks \
         where pid = {pid} and locktype = 'relation' and relation::regclass::text like 'migrator.log%' and mode = 'AccessExclusiveLock'"
    );
    let held = session.value(&held).await?;
    ensure!(held.is_empty(), "while a foreign key is validated, writers of the table wait for {held}");
    session.run("update busy set v = 1 where id = 7").await?;
    beside.run("commit").await?;
    let (worker, mut advance) = advance.await??;
    // A step waits for a moment only; on a busy machine that may be over before we let go, and the row that was written come first.
    while ["idle", "catch_up"].contains(&advance.step.as_str()) {
        ensure!(Instant::now() < deadline, "the foreign key is never validated: {advance:?}");
        advance = change.advance(&worker).await?;
    }
    ensure!(advance.step == "validate", "the step was not the one that waits: {advance:?}");
    // And it is given back, when it is its segment's turn and nothing waits.
    let deadline = Instant::now() + change::PATIENCE;
    while session.number(&sizes).await? >= full {
        ensure!(Instant::now() < deadline, "the space of a drained log is never given back");
        let advance = change.advance(&worker).await?;
        tokio::time::sleep(advance.wait.min(Duration::from_millis(100))).await;
    }
    change.finish().await?;
    nothing_left_behind(&database).await
}

/// What SERIALIZABLE transactions have read is noted in pg_locks as well, even after their end. It keeps nobody out.
async fn serializable_readers_are_in_nobodys_way(server: Server) -> Result<()> {
    let (database, session) = busy(&server).await?;
    let change = Change::create(&database, "public.busy", "alter column v type bigint").await?;
    change.until_ready().await?;
    change.swap().await?;
    change.until_in_step().await?;
    // As long as this one is open, what the other has read counts.
    let open = database.connect_as("postgres", "serializable").await?;
    open.run("begin isolation level serializable; select count(*) from pg_class").await?;
    let reader = database.connect_as("postgres", "serializable").await?;
    reader.run("begin isolation level serializable; select count(*) from busy; commit").await?;
    let noted = "select count(*) from pg_locks where locktype = 'relation' and relation = 'busy'::regclass and mode = 'SIReadLock'";
    ensure!(session.number(noted).await? > 0, "nothing is noted: this tests nothing");
    let row = session.row("select * from migrator.rollback('busy')").await?;
    ensure!(row[2] == "t", "{row:?}");
    open.run("commit").await?;
    change.until_ready().await?;
    change.cancel().await?;
    nothing_left_behind(&database).await
}

/// TRUNCATE of both, for instance, has the one and asks for the other when validation has the other and asks for the one.
async fn validation_gives_way_to_whoever_locks_both_tables(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table parents (id int primary key); insert into parents select generate_series(1, 50);
             create table children (id int primary key, parent int references parents); insert into children select g, g from generate_series(1, 50) g",
        )
        .await?;
    let change = Change::create(&database, "public.parents", "alter column id type bigint").await?;
    change.until_ready().await?;
    change.swap().await?;
    let application = database.connect_as("postgres", "application").await?;
    let validate = format!("select migrator.validate(change => {})", change.id);
    let alter = "call migrator.alter_table('children', 'validate constraint up')";
    session
        .run(
            "create table elders (id int primary key); insert into elders select generate_series(1, 50);
             alter table children add constraint up foreign key (id) references elders not valid",
        )
        .await?;
    for (call, parents) in [(validate.as_str(), "parents"), (alter, "elders")] {
        application.run("set deadlock_timeout = '150ms'; begin").await?;
        application.run(&format!("lock table {parents} in access exclusive mode")).await?;
        let caller = database.connect_as("postgres", "caller").await?;
        caller.run("set deadlock_timeout = '150ms'").await?;
        let pid = caller.pid;
        let owned = call.to_owned();
        let calling = tokio::spawn(async move { caller.run(&owned).await });
        // Longer than the server waits before it looks for a circle: from now on only the application's own wait could find one.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(250) && !calling.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let locked = application.run("lock table children in access exclusive mode; commit").await;
        locked.with_context(|| format!("the application was ended by {call} of {pid}"))?;
        let outcome = calling.await?;
        ensure!(outcome.as_ref().err().is_none_or(|error| error.is_worth_retrying()), "{call}: {outcome:?}");
    }
    session.run(&validate).await?;
    session.run(alter).await?;
    ensure!(
        session.number("select count(*) from pg_constraint where contype = 'f' and not convalidated").await? == 0,
        "not all is validated"
    );
    change.finish().await?;
    nothing_left_behind(&database).await
}
