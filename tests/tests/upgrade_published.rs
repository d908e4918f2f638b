//! Upgrades where all tables are published: those in which they are written down too.

use migrator_tests::upgrades::{Worker, states};
use migrator_tests::*;

for_each_server!(where_all_tables_are_published, every_table_of_ours_has_a_key);

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
              select migrator.register_upgrade('page', 'b', '{\"b\": \"a::int\"}'); select migrator.register_upgrade('page', 'c', '{\"c\": \"b + 1\"}')")
        .await?;
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
