//! Transactions whose snapshot is older than a swap: they are waited for, or told, but never silently wrong.

use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::*;
use std::time::Duration;

for_each_server!(
    a_snapshot_older_than_the_change_is_waited_for,
    a_writer_with_a_snapshot_from_before_the_swap,
    prepared_statements_go_on,
    callers_with_an_old_snapshot_are_refused,
);

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
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    let mut said = String::new();
    while std::time::Instant::now() < deadline {
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
            session.run("update kept set v = v + 1").await?;
            change.until_in_step().await?;
            let exchanged = {
                let sql = if turn == "swap" {
                    "select swapped from migrator.swap('kept')"
                } else {
                    "select rolled_back from migrator.rollback('kept')"
                };
                matches!(session.rows(sql).await, Ok(rows) if rows[0][0].as_deref() == Some("t"))
            };
            match writer.run("update kept set v = 100 where id = 7").await {
                Ok(touched) => {
                    ensure!(touched == 1, "{turn}: an old {level} writer touched {touched} rows of one, silently")
                }
                Err(error) => ensure!(error.code == "40001", "{turn}, {level}: {error}"),
            }
            writer.run("rollback").await?;
            if exchanged {
                // Back to where we were, for the next level.
                if turn == "swap" {
                    change.rollback().await?;
                    change.until_ready().await?;
                } else {
                    change.until_ready().await?;
                    change.swap().await?;
                }
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
