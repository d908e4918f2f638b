//! Who looks at the server, and how often: one for all, whatever table they work on.

use migrator_tests::*;

async fn works(worker: &Session, table: &str) -> Result<bool> {
    Ok(worker.value(&format!("select rows > 0 from migrator.step('{table}')")).await? == "t")
}

/// A look that is no second old serves whoever steps; the first that finds an older one looks for all.
pub async fn one_look_serves_all(server: Server) -> Result<()> {
    let cluster = server.cluster(&[("autovacuum", "off")]).await?;
    let database = Database::create(&cluster, true).await?;
    let session = database.connect().await?;
    session
        .run(
            r#"create table gauge as select 0 as level; select migrator.set_own_query('select level from public.gauge');
               create table one (id int primary key, v int); insert into one select generate_series(1, 1000);
               create table two (id int primary key, v int); insert into two select generate_series(1, 1000);
               select migrator.register_upgrade(t::regclass, 'v', set => '{"v": "1"}', batch_size => 1) from unnest('{one,two}'::text[]) t"#,
        )
        .await?;
    let (one, two) = (database.connect().await?, database.connect().await?);
    one.run("select * from migrator.step('one')").await?;
    two.run("select * from migrator.step('two')").await?;
    // Now and then, without waiting for seconds to pass.
    const FRESH: &str = "update migrator.load set sampled_at = clock_timestamp() + interval '1 hour'";
    const OLD: &str = "update migrator.load set sampled_at = clock_timestamp() - interval '1.001 s'";
    ensure!(works(&one, "one").await? && works(&two, "two").await?, "held by nothing");

    session.run(FRESH).await?;
    session.run("update gauge set level = 9").await?;
    ensure!(works(&one, "one").await? && works(&two, "two").await?, "looked though somebody just has");
    session.run(OLD).await?;
    ensure!(!works(&one, "one").await?, "nobody looked");
    session.run(FRESH).await?;
    session.run("update gauge set level = 0").await?;
    ensure!(!works(&two, "two").await?, "did not go by what the other one saw");
    let held = "select bool_and(waits_for like '%own query said%') from migrator.upgrades";
    ensure!(session.value(held).await? == "t", "who is held does not say why");
    session.run(OLD).await?;
    ensure!(works(&two, "two").await?, "held by a look that is over");
    ensure!(works(&one, "one").await?, "held though the other one saw that nothing is in the way");
    Ok(())
}
