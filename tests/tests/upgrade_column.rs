//! A change of the table begins while somebody is about to add or drop the column of names, and neither has seen the other: he sees
//! it as soon as he has the table, or what is written down of it. And upgrades that come between a swap and its rollback.

use migrator_tests::program::{postgresql, run};
use migrator_tests::upgrades::Worker;
use migrator_tests::*;
use std::time::Instant;

for_each_server!(not_added, not_dropped, not_made_anew, registered_and_begun_at_once, registered_before_a_rollback);

const TABLE: &str = "create table article (id int primary key, headline text not null, shouted text);
    insert into article (id, headline) select g, 'headline ' || g from generate_series(1, 10) g";
const REGISTER: &str =
    r#"select migrator.register_upgrade('article', 'shout', set => '{"shouted": "upper(headline)"}')"#;

/// Somebody begins a change, and has not committed it; another waits for the table, or for its row; then the change is there. What the
/// other was told.
async fn as_a_change_begins(
    database: &Database,
    session: &Session,
    call: &'static str,
) -> Result<Result<String, SqlError>> {
    as_it_is_done(database, session, "select migrator.create_shadow('article', 'alter column id type bigint')", call)
        .await
}

/// The same of any two calls.
async fn as_it_is_done(
    database: &Database,
    session: &Session,
    first: &str,
    call: &'static str,
) -> Result<Result<String, SqlError>> {
    let beginner = database.connect().await?;
    beginner.run("begin").await?;
    beginner.run(first).await?;
    let caller = database.connect().await?;
    let pid = caller.pid;
    let call = tokio::spawn(async move { caller.value(call).await });
    // The table is not even asked for while somebody is in the way; what keeps autovacuum from it is taken before.
    let asks = format!(
        "select count(*) from pg_locks where pid = {pid} and (not granted or relation = 'article'::regclass and mode = 'ShareUpdateExclusiveLock')"
    );
    let deadline = Instant::now() + change::PATIENCE;
    while session.number(&asks).await? == 0 {
        ensure!(!call.is_finished() && Instant::now() < deadline, "it waits for nothing");
        tokio::task::yield_now().await;
    }
    beginner.run("commit").await?;
    Ok(call.await?)
}

/// The change goes its way: to its swap, and back.
async fn there_and_back(database: &Database, session: &Session) -> Result<()> {
    let change = Change::of(database, session.number("select max(id) from migrator.change").await?);
    change.until_ready().await?;
    change.swap().await?;
    change.rollback().await?;
    change.cancel().await
}

async fn not_added(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(TABLE).await?;
    let refusal = as_a_change_begins(&database, &session, REGISTER).await?.expect_err("the column was added");
    ensure!(refusal.code == "55006" && refusal.message.contains("is already part of change"), "{refusal}");
    ensure!(session.number("select count(*) from migrator.upgrades").await? == 0, "it is registered");
    there_and_back(&database, &session).await?;
    session.run(REGISTER).await?;
    Ok(())
}

async fn not_dropped(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(TABLE).await?;
    session.run(REGISTER).await?;
    session.run("call migrator.run_upgrades('article')").await?;
    let how = session.value("select migrator.retire_upgrade('article', 'shout')").await?;
    ensure!(how == "at once", "{how}");
    let call = "select migrator.forget_upgrades('article')";
    let refusal = as_a_change_begins(&database, &session, call).await?.expect_err("the column was dropped");
    ensure!(refusal.code == "55006" && refusal.message.contains("is already part of change"), "{refusal}");
    there_and_back(&database, &session).await?;
    // Nobody has looked at all rows since, so the column stays: the rest goes.
    session.run(call).await?;
    ensure!(session.number("select count(*) from migrator.upgraded").await? == 0, "it is not forgotten");
    Ok(())
}

async fn not_made_anew(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(TABLE).await?;
    session.run(REGISTER).await?;
    session.run("call migrator.run_upgrades('article')").await?;
    let call = "select migrator.retire_upgrade('article', 'shout')";
    let how = as_a_change_begins(&database, &session, call).await??;
    ensure!(how == "in batches", "{how}");
    there_and_back(&database, &session).await?;
    session.run("call migrator.run_upgrades('article')").await?;
    ensure!(session.number("select count(*) from article where applied_upgrades <> '{}'").await? == 0, "names stayed");
    Ok(())
}

/// An upgrade that reads a column, and a change that makes something else of it: whoever commits later sees the other.
async fn registered_and_begun_at_once(server: Server) -> Result<()> {
    const BEGIN: &str = r#"select migrator.create_shadow('article', transform => '{"headline": "btrim(headline)"}')"#;
    const SECOND: &str =
        r#"select migrator.register_upgrade('article', 'second', set => '{"shouted": "upper(headline)"}')"#;
    const FIRST: &str = r#"select migrator.register_upgrade('article', 'first', set => '{"first": "id"}')"#;
    for (first, call, said) in
        [(SECOND, BEGIN, "cannot get other values"), (BEGIN, SECOND, "cannot be registered beside change")]
    {
        let database = server.database().await?;
        let session = database.connect().await?;
        session.run(TABLE).await?;
        session.run("alter table article add column first int").await?;
        session.run(FIRST).await?;
        let refusal = as_it_is_done(&database, &session, first, call).await?.expect_err("neither saw the other");
        ensure!(refusal.code == "55000" && refusal.message.contains(said), "{refusal}");
    }
    Ok(())
}

/// Its view shows what the table before does not have: who registers it hears so, and the way that he is told leads back.
async fn registered_before_a_rollback(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table t (id int primary key, a int, d int, applied_upgrades text[] not null default '{}');
             insert into t select g, g from generate_series(1, 100) g",
        )
        .await?;
    let change = Change::create(&database, "public.t", "add column more int default 7").await?;
    change.until_ready().await?;
    change.swap().await?;
    let register = "select migrator.register_upgrade('t', 'd', '{\"d\": \"a + 1\"}')";
    let told = run(postgresql(&database, "psql").args(["-X", "-v", "ON_ERROR_STOP=1", "-c", register])).await?;
    let warning = format!("WARNING:  view public.t__current is in the way of a rollback of change {}", change.id);
    ensure!(told.code == 0 && told.stderr.contains(&warning) && told.stderr.contains("column more"), "{}", told.stderr);
    let back = format!("select migrator.rollback(change => {})", change.id);
    let refusal = session.refusal(&back).await?;
    ensure!(refusal.message.contains("view public.t__current uses column more"), "{refusal}");
    let Some((_, calls)) = told.stderr.split_once("go back: ") else { bail!("no way back in {}", told.stderr) };
    let mut calls = calls.split(';').map(str::trim);
    session.run(calls.next().unwrap_or_default()).await?;
    ensure!(calls.next() == Some(back.as_str()), "{}", told.stderr);
    session.run("insert into t (id, a) values (101, 101)").await?;
    change.rollback().await?;
    session.run("select migrator.resume_upgrades('t')").await?;
    Worker::new(&database, "t", "w").await?.complete(&session).await?;
    let wrong = session.number("select count(*) from t__current where d is distinct from a + 1").await?;
    ensure!(wrong == 0 && session.number("select count(*) from t__current").await? == 101, "{wrong} rows are wrong");
    change.cancel().await
}
