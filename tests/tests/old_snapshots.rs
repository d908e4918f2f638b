//! Transactions whose snapshot is older than a swap: they are waited for, or told, but never silently wrong.

use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::*;
use std::time::{Duration, Instant};

for_each_server!(
    a_snapshot_older_than_the_change_is_waited_for,
    a_writer_with_a_snapshot_from_before_the_swap,
    prepared_statements_go_on,
    callers_with_an_old_snapshot_are_refused,
    much_that_an_old_snapshot_does_not_see,
    a_swap_by_itself_waits_and_catches_up,
    a_reader_that_began_later_is_not_to_blame,
);
for_newest_server!(a_comparison_of_slow_rows_takes_few_at_a_time);

const TABLE: &str = "create table kept (id int primary key, v int not null); insert into kept select g, 0 from generate_series(1, 500) g";

async fn a_snapshot_older_than_the_change_is_waited_for(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(TABLE).await?;
    session.run("create table elsewhere (id int)").await?;
    let old = database.connect_as("postgres", "old reader").await?;
    old.run("begin isolation level repeatable read").await?;
    old.run("select * from elsewhere").await?;

    let change = Change::create(&database, "public.kept", "alter column id type bigint").await?;
    // Whether the preparation itself waits is its business; a swap under that snapshot must not happen.
    let driver = change.keep_going(1);
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut said = String::new();
    while Instant::now() < deadline {
        match session.rows(&format!("select swapped, reason from migrator.swap(change => {})", change.id)).await {
            Ok(rows) => {
                ensure!(
                    rows[0][0].as_deref() != Some("t"),
                    "swapped under a snapshot that cannot see the new table's rows"
                );
                said = format!("{rows:?}");
            }
            Err(error) => said = error.to_string(),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let told = change.told().await? + &said;
    ensure!(told.contains(&old.pid.to_string()), "nothing names the session {} that is waited for: {told}", old.pid);
    ensure!(old.value("select count(*) from kept").await? == "500", "the old reader misses rows");
    old.run("commit").await?;
    change.wait_for("ready").await?;
    change.swap().await?;
    driver.stop().await?;
    change.finish().await?;
    nothing_left_behind(&database).await
}

async fn a_writer_with_a_snapshot_from_before_the_swap(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(TABLE).await?;
    session.run("create table elsewhere (id int)").await?;
    let change = Change::create(&database, "public.kept", "alter column id type bigint").await?;
    for turn in ["swap", "rollback"] {
        if turn == "swap" {
            change.until_ready().await?;
        }
        for level in ["repeatable read", "serializable"] {
            let writer = database.connect_as("postgres", "writer").await?;
            writer.run(&format!("begin isolation level {level}")).await?;
            writer.run("select * from elsewhere").await?;
            // Rows that are written now, and caught up now, are what the writer's snapshot cannot see in the other table.
            // They are few: a large catch-up would make the exchange wait for that snapshot.
            session.run("update kept set v = v + 1 where id <= 100").await?;
            change.until_in_step().await?;
            let (sql, back) = match turn {
                "swap" => ("select swapped from migrator.swap('kept')", "rollback"),
                _ => ("select rolled_back from migrator.rollback('kept')", "swap"),
            };
            ensure!(session.value(sql).await? == "t", "{turn}, {level}: not exchanged");
            let refusal = writer.refusal("update kept set v = 100 where id = 7").await?;
            ensure!(refusal.code == "40001", "{turn}, {level}: {refusal}");
            writer.run("rollback").await?;
            // Tried again, as 40001 asks for, it finds its row.
            writer.run(&format!("begin isolation level {level}")).await?;
            ensure!(writer.run("update kept set v = 100 where id = 7").await? == 1, "{turn}, {level}: no row");
            writer.run("commit").await?;
            // Back to where we were, for the next level.
            if back == "rollback" {
                change.rollback().await?;
                change.until_ready().await?;
            } else {
                change.until_ready().await?;
                change.swap().await?;
            }
        }
        if turn == "swap" {
            change.swap().await?;
        }
    }
    // The fence goes when nobody needs it any more: new transactions of every level write freely.
    change.until_in_step().await?;
    for level in ["read committed", "repeatable read", "serializable"] {
        session.run(&format!("begin isolation level {level}")).await?;
        session.run("update kept set v = v + 1 where id = 8").await?;
        session.run("commit").await?;
    }
    change.finish().await?;
    nothing_left_behind(&database).await
}

/// Statements prepared before a swap go on after it, where their result types stay; so do cursors and PL/pgSQL.
async fn prepared_statements_go_on(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(TABLE).await?;
    session
        .run("create function bump(key int) returns int language plpgsql as $$ declare n int; begin update kept set v = v + 1 where id = key returning v into n; return n; end $$")
        .await?;
    let client = database.connect().await?;
    let select = client.client().prepare("select v from kept where id = 3").await?;
    let star = client.client().prepare("select * from kept where id = 3").await?;
    let update = client.client().prepare("update kept set v = v + 1 where id = $1::int").await?;
    let insert = client.client().prepare("insert into kept (id, v) values ($1::int, 0)").await?;
    let change = Change::create(&database, "public.kept", "alter column id type bigint, add column w text").await?;
    change.until_ready().await?;
    for turn in 0..4_i32 {
        for _ in 0..6 {
            client.client().query(&select, &[]).await?;
            ensure!(client.client().execute(&update, &[&3]).await? == 1, "a prepared UPDATE missed its row");
            client.value("select bump(3)").await?;
        }
        ensure!(client.client().execute(&insert, &[&(1000 + turn)]).await? == 1, "a prepared INSERT did nothing");
        if turn % 2 == 0 {
            change.swap().await?;
            // Only where the result's own columns changed, the server says so.
            let told = client.client().query(&star, &[]).await.expect_err("its columns have changed");
            let told = told.as_db_error().map(|error| error.message().to_owned());
            ensure!(told.as_deref() == Some("cached plan must not change result type"), "{told:?}");
        } else {
            change.until_in_step().await?;
            change.rollback().await?;
            change.until_ready().await?;
            client.client().query(&star, &[]).await?;
        }
    }
    ensure!(client.value("select v from kept where id = 3").await? == "48", "updates were lost");
    change.cancel().await?;
    nothing_left_behind(&database).await
}

/// What reads the log and takes keys from it needs a new snapshot for each statement, and one newer than capture.
async fn callers_with_an_old_snapshot_are_refused(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(TABLE).await?;
    let change = Change::create(&database, "public.kept", "alter column id type bigint").await?;
    let id = change.id;
    let both = format!(
        "do $$ begin perform migrator.start_sync(change => {id}); perform migrator.copy_batch(change => {id}); end $$"
    );
    let refusal = session.refusal(&both).await?;
    ensure!(refusal.code == "55000" || refusal.code == "25001", "{refusal}");
    let both = both.replace("migrator.copy_batch(change => ", "migrator.advance(");
    let refusal = session.refusal(&both).await?;
    ensure!(refusal.code == "25001" && refusal.message.contains("start_sync"), "{refusal}");
    ensure!(change.state().await? == "created", "refused, and yet: {}", change.told().await?);

    let mut calls = vec![format!("migrator.advance({id})"), format!("migrator.copy_batch(change => {id})")];
    change.until(|advance| advance.state == "copying").await?;
    for stop in ["copying", "ready", "swapped"] {
        match stop {
            "ready" => {
                change.until_ready().await?;
                calls.extend([
                    format!("migrator.verify(change => {id})"),
                    format!("migrator.swap(change => {id}, in_transaction => true)"),
                ]);
            }
            "swapped" => {
                change.swap().await?;
                calls = vec![
                    format!("migrator.advance({id})"),
                    format!("migrator.rollback(change => {id}, in_transaction => true)"),
                ];
            }
            _ => {}
        }
        for level in ["repeatable read", "serializable"] {
            for call in &calls {
                session.run(&format!("begin isolation level {level}")).await?;
                let refusal = session.refusal(&format!("select * from {call}")).await?;
                session.run("rollback").await?;
                let wrong_state = call.contains("copy_batch") && stop == "ready" && refusal.code == "55000";
                ensure!(refusal.code == "25001" || wrong_state, "{call} in {level}, {stop}: {refusal}");
            }
        }
    }
    change.finish().await?;
    nothing_left_behind(&database).await
}

async fn reader_with_a_snapshot(database: &Database) -> Result<Session> {
    let old = database.connect_as("postgres", "old reader").await?;
    old.run("begin isolation level repeatable read").await?;
    old.run("select count(*) from pg_class").await?;
    Ok(old)
}

/// An exchange replays few keys itself: rows that it wrote would be missing for whoever has a snapshot by then.
async fn much_that_an_old_snapshot_does_not_see(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(TABLE).await?;
    let change = Change::create(&database, "public.kept", "alter column id type bigint").await?;
    change.until_ready().await?;
    session.run("insert into kept select g, g from generate_series(1001, 21000) g").await?;
    let old = reader_with_a_snapshot(&database).await?;
    let refusal = session.refusal("select * from migrator.swap('kept')").await?;
    ensure!(refusal.code == "55006" && refusal.hint.is_some(), "{refusal}");
    // Replayed in transactions of their own, and still not seen by the old snapshot: now that one is in the way.
    change.until_in_step().await?;
    let refusal = session.refusal("select * from migrator.swap('kept')").await?;
    ensure!(refusal.code == "55006" && refusal.message.contains(&old.pid.to_string()), "{refusal}");
    ensure!(old.value("select count(*) from kept").await? == "20500", "the old reader misses rows");
    old.run("commit").await?;
    change.swap().await?;
    change.finish().await?;
    nothing_left_behind(&database).await
}

/// `on_ready => 'swap'` behind an old snapshot: it says for whom it waits, and the log does not grow meanwhile.
async fn a_swap_by_itself_waits_and_catches_up(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(TABLE).await?;
    let old = reader_with_a_snapshot(&database).await?;
    let change =
        Change::create_with(&database, "public.kept", "actions => 'alter column id type bigint', on_ready => 'swap'")
            .await?;
    let named = |reason: &str| reason.contains(&old.pid.to_string());
    change.until(|advance| advance.state == "ready" && named(&advance.reason)).await?;
    session.run("insert into kept select g, g from generate_series(1001, 6000) g").await?;
    let rear = change.rear().await?;
    let worker = change.session().await?;
    let deadline = Instant::now() + change::PATIENCE;
    while session.number(&format!("select count(*) from {rear}")).await? < 5500 {
        ensure!(Instant::now() < deadline, "nothing is replayed while the swap waits: {}", change.told().await?);
        change.advance(&worker).await?;
    }
    let told = session.value(&format!("select waits_for from migrator.status where change = {}", change.id)).await?;
    ensure!(named(&told), "status does not say for whom it waits: {told}");
    ensure!(old.value("select count(*) from kept").await? == "500", "the old reader sees other rows than before");
    old.run("commit").await?;
    change.until(|advance| advance.state == "swapped").await?;
    change.until_in_step().await?;
    change.finish().await?;
    nothing_left_behind(&database).await
}

/// The oldest open writer, in whatever database, gives every snapshot its xmin: that alone makes no reader old.
async fn a_reader_that_began_later_is_not_to_blame(server: Server) -> Result<()> {
    let (database, elsewhere) = (server.database().await?, Database::create(&server.shared().await?, false).await?);
    let (session, writer) = (database.connect().await?, elsewhere.connect().await?);
    session.run(TABLE).await?;
    writer.run("create table w (id int)").await?;
    writer.run("begin").await?;
    writer.run("insert into w values (1)").await?;
    let change = Change::create(&database, "public.kept", "alter column id type bigint").await?;
    change.until_ready().await?;
    // As if the last large catch-up were long ago.
    session
        .run(&format!("update migrator.change set fence_at = fence_at - interval '1 hour' where id = {}", change.id))
        .await?;
    let later = reader_with_a_snapshot(&database).await?;
    change.swap().await?;
    ensure!(later.value("select count(*) from kept").await? == "500", "a reader misses rows");
    later.run("commit").await?;
    writer.run("rollback").await?;
    change.finish().await?;
    nothing_left_behind(&database).await
}

/// A batch of the comparison is a statement, and its snapshot lasts as long: where rows are slow, fewer are taken.
async fn a_comparison_of_slow_rows_takes_few_at_a_time(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table slow (id int primary key, v int);
             alter table slow alter id set statistics 0; -- so that all keys are one chunk
             insert into slow select g, g from generate_series(1, 2000) g;
             create function slowly(v int) returns int immutable language plpgsql as $$
                 begin
                     perform pg_sleep(nullif(current_setting('test.seconds', true), '')::float8);
                     return v;
                 end $$",
        )
        .await?;
    let arguments = r#"actions => 'add column w int', transform => '{"w": "slowly(v)"}'"#;
    let change = Change::create_with(&database, "public.slow", arguments).await?;
    change.until(|advance| advance.state == "verifying").await?;
    let advance = format!("select state, step, rows from migrator.advance({})", change.id);
    session.run("set test.seconds = 0.003").await?;
    let mut batches: Vec<(i64, Duration)> = vec![];
    loop {
        let begun = Instant::now();
        let row = session.row(&advance).await?;
        if row[1] == "verify" {
            batches.push((row[2].parse()?, begun.elapsed()));
        }
        if row[0] != "verifying" {
            break;
        }
        if batches.len() == 2 {
            session.run("reset test.seconds").await?;
        }
    }
    ensure!(batches.iter().all(|(_, took)| *took < Duration::from_secs(5)), "a batch lasts too long: {batches:?}");
    ensure!(batches[1].0 * 5 < batches[0].0 * 4, "a slow batch is not followed by a smaller one: {batches:?}");
    let grown = batches.windows(2).skip(1).all(|pair| pair[1].0 <= pair[0].0 * 2);
    ensure!(grown && batches[3].0 > batches[2].0, "quick batches are not doubled: {batches:?}");
    let rows: i64 = batches.iter().map(|(rows, _)| rows).sum();
    ensure!(rows == 2000, "{rows} rows were compared: {batches:?}");
    change.cancel().await?;
    nothing_left_behind(&database).await
}
