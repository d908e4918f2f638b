//! Logical replication: rows that a subscription applies are captured, and a table that a subscription writes to, or that
//! is published, is refused by name, for its subscribers would follow the wrong table.

use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::same_rows::{fingerprint, same_rows};
use migrator_tests::subscription::Subscription;
use migrator_tests::*;
use std::time::{Duration, Instant};

for_oldest_and_newest_server!(rows_that_a_subscription_applies, published_tables_are_refused_by_name);

async fn wait_for_rows(session: &Session, like: &Session) -> Result<()> {
    let wanted = fingerprint(like, "table fed").await?;
    let deadline = Instant::now() + change::PATIENCE;
    while fingerprint(session, "table fed").await? != wanted {
        ensure!(Instant::now() < deadline, "the subscription does not apply what was written");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn rows_that_a_subscription_applies(server: Server) -> Result<()> {
    let publisher = Database::create(&server.shared().await?, false).await?;
    let database = server.database().await?;
    let (source, session) = (publisher.connect().await?, database.connect().await?);
    for each in [&source, &session] {
        each.run("create table fed (id int primary key, v text, n int)").await?;
    }
    source.run("insert into fed select g, 'v' || g, g from generate_series(1, 300) g; create publication fed for table fed").await?;
    let change = Change::create(&database, "public.fed", "alter column id type bigint, add column w int").await?;
    change.until_ready().await?;

    // The subscription comes when capture is on: its first rows come by COPY, all others are applied one by one.
    let feed = Subscription::begin(&publisher, &database, "fed").await?;
    let mut writes = vec!["select 1"];
    writes.extend([
        "update fed set v = v || '!' where id % 3 = 0",
        "delete from fed where id % 10 = 0",
        "update fed set id = id + 1000 where id % 7 = 0",
        "insert into fed select g, 'new', g from generate_series(5000, 5020) g",
        "begin; update fed set n = null where id < 20; savepoint a; delete from fed; rollback to a; commit",
        "truncate fed; insert into fed select g, 'again', g from generate_series(1, 30) g",
    ]);
    for write in writes {
        for statement in write.split("; ") {
            source.run(statement).await?;
        }
        wait_for_rows(&session, &source).await.context(write)?;
        change.until_in_step().await?;
        let rear = change.rear().await?;
        same_rows(&session, "select id, v, n from fed", &format!("select id, v, n from {rear}"))
            .await
            .context(write)?;
    }
    // A swap would leave the subscription writing to the backup.
    let says = format!("subscription {}", feed.name);
    let refusal = session.refusal("select * from migrator.swap('fed')").await?;
    ensure!(refusal.message.contains(&says) && refusal.hint.is_some(), "the swap is not refused by name: {refusal}");
    change.cancel().await?;
    let refusal = session.refusal("select migrator.create_shadow('fed', 'alter column id type bigint')").await?;
    ensure!(refusal.message.contains(&says) && refusal.hint.is_some(), "not refused by name: {refusal}");
    nothing_left_behind(&database).await?;

    feed.end().await?;
    let change = Change::create(&database, "public.fed", "alter column id type bigint").await?;
    change.through().await?;
    ensure!(session.number("select count(*) from fed").await? == 30, "rows lost");
    nothing_left_behind(&database).await
}

async fn published_tables_are_refused_by_name(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run("create table told (id int primary key, v text); insert into told values (1, 'a')").await?;
    let publications = [
        "for all tables",
        "for tables in schema public",
        "for table told",
        "for table told (id) where (id > 0) with (publish = 'insert')",
    ];
    for publication in publications {
        session.run(&format!("create publication pub {publication}")).await?;
        for call in ["migrator.create_shadow", "* from migrator.explain"] {
            let refusal = session.refusal(&format!("select {call}('told', 'alter column id type bigint')")).await?;
            ensure!(
                refusal.message.contains("publication pub")
                    && refusal.message.contains("told")
                    && refusal.hint.is_some(),
                "{publication}: {refusal}"
            );
        }
        session.run("drop publication pub").await?;
        nothing_left_behind(&database).await?;
    }
    // Published when the change is nearly done: the swap looks again.
    let change = Change::create(&database, "public.told", "alter column v type varchar(10)").await?;
    change.until_ready().await?;
    for publication in publications {
        session.run(&format!("create publication pub {publication}")).await?;
        let refusal = session.refusal("select * from migrator.swap('told')").await?;
        ensure!(refusal.message.contains("publication pub"), "{publication}: {refusal}");
        session.run("drop publication pub").await?;
    }
    change.through().await?;
    nothing_left_behind(&database).await
}
