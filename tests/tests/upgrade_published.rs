//! Upgrades beside logical replication: where all tables are published, those in which upgrades are written down too; and in a table
//! that a subscription writes to.

use migrator_tests::program::{postgresql, run};
use migrator_tests::subscription::Subscription;
use migrator_tests::upgrades::{Worker, states};
use migrator_tests::*;
use std::time::{Duration, Instant};

for_each_server!(where_all_tables_are_published, every_table_of_ours_has_a_key);
for_oldest_and_newest_server!(what_a_subscription_takes_away);

/// A row that is updated or deleted in a published table is told to subscribers by its key.
async fn every_table_of_ours_has_a_key(server: Server) -> Result<()> {
    let session = server.database().await?.connect().await?;
    let without = session
        .value(
            "select coalesce(string_agg(c.relname, ', '), '') from pg_class c where c.relnamespace = 'migrator'::regnamespace and c.relkind in ('r', 'p') \
               and not exists (select from pg_index i where i.indrelid = c.oid and (i.indisprimary and c.relreplident = 'd' or i.indisreplident))",
        )
        .await?;
    ensure!(without.is_empty(), "no primary key and no replica identity: {without}");
    Ok(())
}

async fn where_all_tables_are_published(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run("create table page (id int primary key, a text, b int, c int); insert into page select g, case g when 7 then 'bad' else g::text end from generate_series(1, 300) g; \
              create publication everything for all tables; \
              select migrator.register_upgrade('page', 'b', '{\"b\": \"a::int\"}')")
        .await?;
    let second = "select migrator.register_upgrade('page', 'c', '{\"c\": \"b + 1\"}')";
    let told = run(postgresql(&database, "psql").args(["-X", "-v", "ON_ERROR_STOP=1", "-c", second])).await?;
    ensure!(told.code == 0 && told.stderr.contains("own tables are published too (everything)"), "{}", told.stderr);
    let mut worker = Worker::new(&database, "page", "w").await?;
    let step = worker.run().await?;
    ensure!(step.state == "waiting" && step.reason.starts_with("1 row(s) are set aside"), "{step:?}");
    session.run("update page set a = '7' where id = 7; select migrator.retry_failed('page')").await?;
    worker.complete(&session).await?;

    // More rows than are listed: a sweep takes the note away, and so does whoever retires.
    for way in ["sweep", "retire"] {
        session.run("update page set a = 'bad'").await?;
        ensure!(session.number("select count(*) from migrator.upgrade_unnoted").await? > 0, "nothing was noted");
        if way == "sweep" {
            session.run("update page set a = id::text").await?;
            worker.complete(&session).await?;
        } else {
            session.run("select migrator.retire_upgrade('page', 'b', incomplete => true)").await?;
        }
        let left = "select count(*) from migrator.upgrade_unnoted n join migrator.upgrade g on g.id = n.upgrade where g.name = 'b'";
        ensure!(session.number(left).await? == 0, "notes are left after a {way}");
    }
    session.run("select migrator.retire_upgrade('page', 'c', incomplete => true)").await?;
    worker.run().await?;
    ensure!(states(&session, "page").await?.is_empty(), "{}", states(&session, "page").await?);
    session.run("select migrator.forget_upgrades('page')").await?;
    ensure!(session.number("select count(*) from migrator.upgraded").await? == 0, "it was not forgotten");
    Ok(())
}

/// The publisher's application knows nothing of the upgrades, and its rows have nothing in their outputs.
async fn what_a_subscription_takes_away(server: Server) -> Result<()> {
    let publisher = Database::create(&server.shared().await?, false).await?;
    let database = server.database().await?;
    let (source, session) = (publisher.connect().await?, database.connect().await?);
    for each in [&source, &session] {
        each.run("create table article (id int primary key, headline text, content text, size int default 0, lead text, slug text)").await?;
    }
    source
        .run("insert into article select g, 'Headline ' || g, 'Content of ' || g from generate_series(1, 50) g; create publication articles for table article")
        .await?;
    let feed = Subscription::begin(&publisher, &database, "articles").await?;
    until(&session, "count(*) = 50 from article").await?;
    session
        .run("select migrator.register_upgrade('article', 'parts', '{\"size\": \"length(content)\", \"lead\": \"left(content, 7)\"}'); \
              create unique index on article (slug); select migrator.register_upgrade('article', 'slug', '{\"slug\": \"lower(content)\"}')")
        .await?;
    let mut worker = Worker::new(&database, "article", "w").await?;
    worker.complete(&session).await?;

    source.run("update article set headline = 'Other' where id <= 20; update article set content = 'Rewritten ' || id where id between 11 and 20").await?;
    until(&session, "count(*) = 10 from article where headline = 'Other' and content like 'Rewritten%'").await?;
    let wrong = "select count(*) from article where size is distinct from length(content) or lead is distinct from left(content, 7) or not applied_upgrades @> '{parts}'";
    ensure!(session.number(wrong).await? == 0, "values are gone under the name");
    let gone =
        "select count(*) from article where slug is distinct from lower(content) and applied_upgrades @> '{slug}'";
    ensure!(session.number(gone).await? == 0, "values that batches make are gone under the name");
    ensure!(session.number("select count(*) from article where slug is null").await? == 20, "no value was taken away");
    let refusal = session.refusal("select migrator.ensure_upgraded('article', 'slug')").await?;
    ensure!(refusal.code == "55000", "{refusal}");
    session.run("select migrator.verify_upgrades('article')").await?;
    worker.complete(&session).await?;
    ensure!(
        session.number("select count(*) from article where slug is distinct from lower(content)").await? == 0,
        "no batch made them"
    );

    let refusal = session
        .refusal("select migrator.register_upgrade('article', 'trimmed', '{\"headline\": \"btrim(headline)\"}', safe_in_place => true)")
        .await?;
    ensure!(refusal.code == "0A000" && refusal.message.contains(&feed.name) && refusal.hint.is_some(), "{refusal}");

    feed.end().await
}

async fn until(session: &Session, condition: &str) -> Result<()> {
    let deadline = Instant::now() + change::PATIENCE;
    while session.value(&format!("select {condition}")).await? != "t" {
        ensure!(Instant::now() < deadline, "never so: {condition}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
