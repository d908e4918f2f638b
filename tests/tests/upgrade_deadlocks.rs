//! Whoever is in the way of a batch is waited for less long than he waits before he looks for a deadlock: no application is the victim.

use migrator_tests::upgrades::Worker;
use migrator_tests::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

for_each_server!(a_value_that_is_waited_for, writers_in_any_order);

/// `slug` is unique, so that only batches derive it. A writer who has the row of a batch waits for it no longer than a batch lasts: little.
const TABLE: &str = "create table t (id int primary key, title text, slug text unique, n int not null default 0);
    insert into t (id, title) select g, 'Title ' || g from generate_series(1, 4000) g;
    select migrator.register_upgrade('t', 'slug', set => '{\"slug\": \"lower(title)\"}', batch_size => 10, target => '50 ms')";

/// A writer has taken the value that the batch derives for a row, and wants another row of the batch.
async fn a_value_that_is_waited_for(server: Server) -> Result<()> {
    // Deadlocks are looked for after less time than a batch would wait by itself: the writer comes for a row when the batch waits already.
    let cluster = server.cluster(&[("deadlock_timeout", "40ms")]).await?;
    let database = Database::create(&cluster, true).await?;
    let session = database.connect().await?;
    session.run(TABLE).await?;
    let writer = database.connect_as("postgres", "writer").await?;
    writer.run("begin; insert into t (id, title, slug) values (9000, 'taken', 'title 7')").await?;
    let mut worker = Worker::new(&database, "t", "w").await?;
    let pid = worker.session().pid;
    let working = tokio::spawn(async move { worker.run().await });
    let waits = format!("select count(*) from pg_stat_activity where pid = {pid} and wait_event_type = 'Lock'");
    let deadline = Instant::now() + change::PATIENCE;
    while session.number(&waits).await? == 0 {
        ensure!(Instant::now() < deadline && !working.is_finished(), "no batch waited for the writer");
    }
    // When the batch has looked for a deadlock itself, and found none: who comes now is the one who would find it.
    tokio::time::sleep(Duration::from_millis(50)).await;
    for id in [1, 2, 3, 4, 5, 6] {
        writer.run(&format!("update t set n = n + 1 where id = {id}")).await.context("the writer is the victim")?;
    }
    writer.run("rollback").await?;
    let end = working.await??;
    ensure!(end.state == "complete", "{end:?}");
    Ok(())
}

/// Two writers, each with rows of its own in any order, and with values that batches come to, which they take and give back.
async fn writers_in_any_order(server: Server) -> Result<()> {
    let cluster = server.cluster(&[("deadlock_timeout", "400ms")]).await?;
    let database = Database::create(&cluster, true).await?;
    let session = database.connect().await?;
    session.run(TABLE).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..2).map(|number| tokio::spawn(write(database.clone(), number, stop.clone()))).collect();
    let mut one = Worker::new(&database, "t", "one").await?;
    let mut other = Worker::new(&database, "t", "other").await?;
    let until = Instant::now() + Duration::from_secs(6);
    while Instant::now() < until {
        tokio::try_join!(one.step(), other.step())?;
    }
    stop.store(true, Ordering::Relaxed);
    let mut written = 0;
    for writer in writers {
        written += writer.await?.context("a writer failed beside batches")?;
    }
    ensure!(written > 50, "the writers hardly wrote: {written} transactions");
    one.complete(&session).await?;
    let wrong = session.number("select count(*) from t where slug is distinct from lower(title)").await?;
    ensure!(wrong == 0, "{wrong} rows are not upgraded");
    Ok(())
}

/// Its transactions, none of which may fail: nobody but batches writes its rows.
async fn write(database: Database, number: i32, stop: Arc<AtomicBool>) -> Result<usize> {
    let session = database.connect_as("postgres", "writer").await?;
    let mut random = StdRng::seed_from_u64(u64::from(number.unsigned_abs()));
    let mut written = 0;
    while !stop.load(Ordering::Relaxed) {
        let ids: Vec<i32> = (0..4).map(|_| 2 * random.random_range(0..2000) + 1 + number).collect();
        session.run("begin").await?;
        // Nor does one take what the other may.
        let takes = random.random_bool(0.5);
        for id in &ids {
            session.run(&format!("update t set n = n + 1 where id = {id}")).await?;
            if takes {
                // What a batch derives for some row. If one has, and has not committed, this waits for it, with rows in hand.
                let other = 2 * random.random_range(0..2000) + 1 + number;
                let new = 10_000 + 1_000_000 * (number + 1) + random.random_range(0..1_000_000);
                session
                    .run(&format!("insert into t (id, title, slug) values ({new}, 'taken', 'title {other}') on conflict (slug) do nothing"))
                    .await?;
            }
        }
        session.run(if takes { "rollback" } else { "commit" }).await?;
        written += 1;
    }
    Ok(written)
}
