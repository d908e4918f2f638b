//! A column that an upgrade writes is dropped and comes back under its name: rows carry the name of the upgrade and lack its values.

use migrator_tests::upgrades::{Worker, states};
use migrator_tests::*;

for_each_server!(
    an_output_that_was_added_again,
    names_that_were_added_again,
    an_output_that_a_rollback_took,
    a_column_that_changed_its_name_for_a_while
);

async fn sized(server: &Server) -> Result<(Session, Worker)> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run("create table page (gone int, id int primary key, body text, size int, words int); alter table page drop column gone; \
              insert into page select g, g::text from generate_series(1, 50) g; \
              select migrator.register_upgrade('page', 'size', '{\"size\": \"length(body)\", \"words\": \"1\"}'); \
              alter table page add column twice int; select migrator.register_upgrade('page', 'twice', '{\"twice\": \"id * 2\"}')")
        .await?;
    let mut worker = Worker::new(&database, "page", "w").await?;
    worker.complete(&session).await?;
    Ok((session, worker))
}

const LOST: &str = "column size of table public.page was dropped and added again: rows that carry the name of upgrade size lack its values";

async fn an_output_that_was_added_again(server: Server) -> Result<()> {
    let (session, mut worker) = sized(&server).await?;
    session.run("drop view page__current; alter table page drop column size").await?;
    let step = worker.run().await?;
    ensure!(step.state == "blocked" && step.reason.contains("column size"), "{step:?}");
    let hint = session.value("select blocked_hint from migrator.upgraded").await?;
    ensure!(hint.contains("one that is added under that name is empty"), "{hint}");
    session.run("alter table page add column size int").await?;

    // Before anybody has stepped, and for who resumes.
    let refusal = session.refusal("select migrator.ensure_upgraded('page', 'size', wait => '0 s')").await?;
    ensure!(refusal.detail.contains(LOST), "{refusal}");
    let refusal = session.refusal("select migrator.retire_upgrade('page', 'size')").await?;
    ensure!(refusal.detail.contains(LOST), "{refusal}");
    for _ in 0..2 {
        let refusal = session.refusal("select migrator.resume_upgrades('page')").await?;
        ensure!(refusal.message == LOST && refusal.hint.is_some(), "{refusal}");
    }
    // Nor is it forgotten by giving the table another shape.
    let refusal = session.refusal("select migrator.create_shadow('page', 'alter column words type bigint')").await?;
    ensure!(refusal.message == LOST && refusal.hint.is_some(), "{refusal}");
    session.run("update migrator.upgraded set blocked = null, blocked_hint = null").await?;
    let step = worker.run().await?;
    ensure!(step.state == "blocked" && step.reason.contains(LOST), "{step:?}");
    ensure!(states(&session, "page").await? == "size=running twice=complete", "{}", states(&session, "page").await?);
    let refusal =
        session.refusal("select migrator.ensure_upgraded('page', 'size', wait => '0 s', drive => true)").await?;
    ensure!(refusal.code == "55000" && refusal.message.contains("is not complete"), "{refusal}");

    // What the hint says.
    let hint = session.value("select blocked_hint from migrator.upgraded").await?;
    ensure!(hint.contains("migrator.retire_upgrade('public.page', 'size', incomplete => true)"), "{hint}");
    session
        .run("select migrator.retire_upgrade('public.page', 'size', incomplete => true); select migrator.resume_upgrades('public.page'); \
              select migrator.register_upgrade('page', 'size again', '{\"size\": \"length(body)\", \"words\": \"1\"}')")
        .await?;
    worker.complete(&session).await?;
    let wrong = "select count(*) from page where size is distinct from length(body) or applied_upgrades <> '{twice,size again}'";
    ensure!(session.number(wrong).await? == 0, "rows are wrong");
    Ok(())
}

/// No row has a name any more, and yet each has its upgrades: what is made in place is not made twice, and what an application wrote
/// stays.
async fn names_that_were_added_again(server: Server) -> Result<()> {
    let (session, mut worker) = sized(&server).await?;
    session
        .run(
            "alter table page add column cents int; update page set cents = id; \
              select migrator.register_upgrade('page', 'cents', '{\"cents\": \"cents * 100\"}', safe_in_place => true)",
        )
        .await?;
    worker.complete(&session).await?;
    session.run("update page set twice = 7 where id = 1").await?;
    session.run("alter table page add column more int; alter table page drop column applied_upgrades cascade").await?;
    // Nor does who registers another one bring it back.
    const MORE: &str = "select migrator.register_upgrade('page', 'more', '{\"more\": \"id\"}')";
    let refusal = session.refusal(MORE).await?;
    ensure!(refusal.code == "42703" && refusal.message.contains("is not there"), "{refusal}");
    session.run("alter table page add column applied_upgrades text[] not null default '{}'").await?;
    let step = worker.run().await?;
    let said = "column applied_upgrades of table public.page was dropped and added again: nobody can tell which rows have upgrade";
    ensure!(step.state == "blocked" && step.reason.contains(said), "{step:?}");
    for call in [
        MORE,
        "select migrator.resume_upgrades('page')",
        "select migrator.create_shadow('page', 'alter column words type bigint')",
    ] {
        let refusal = session.refusal(call).await?;
        ensure!(refusal.code == "55000" && refusal.message.starts_with(said), "{call}: {refusal}");
    }
    // One after the other, as the hints say.
    let mut hint = session.value("select blocked_hint from migrator.upgraded").await?;
    for left in [2, 1, 0] {
        let Some((_, call)) = hint.split_once(": select ") else { bail!("no call in {hint:?}") };
        session.run(&format!("select {}", call.split(';').next().unwrap_or_default())).await?;
        if left > 0 {
            let refusal = session.refusal("select migrator.resume_upgrades('page')").await?;
            hint = refusal.hint.clone().unwrap_or_default();
            let view = session.value("select to_regclass('page__current') is null").await?;
            ensure!(view == "t", "a view shows rows upgraded once more");
        }
    }
    session.run("select migrator.resume_upgrades('page')").await?;
    let end = worker.run().await?;
    ensure!(end.state == "complete" && states(&session, "page").await?.is_empty(), "{end:?}");
    let wrong = "select count(*) from page where cents <> id * 100 or twice <> case id when 1 then 7 else id * 2 end or size <> length(body)";
    ensure!(session.number(wrong).await? == 0, "rows were upgraded twice");
    Ok(())
}

/// It was in the shape that a rollback gave up, and comes again by hand: rows have the name and not its values.
async fn an_output_that_a_rollback_took(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table t (id int primary key, applied_upgrades text[] not null default '{}');
             insert into t select generate_series(1, 50)",
        )
        .await?;
    let change = Change::create(&database, "public.t", "add column d int").await?;
    change.until_ready().await?;
    change.swap().await?;
    session.run("select migrator.register_upgrade('t', 'd', '{\"d\": \"id * 2\"}')").await?;
    let mut worker = Worker::new(&database, "t", "w").await?;
    worker.complete(&session).await?;
    session.run("drop view t__current").await?;
    change.until_in_step().await?;
    change.rollback().await?;
    change.cancel().await?;
    let step = worker.run().await?;
    ensure!(step.state == "blocked" && step.reason.contains("column d of table public.t"), "{step:?}");
    session.run("alter table t add column d int").await?;
    let refusal = session.refusal("select migrator.resume_upgrades('t')").await?;
    ensure!(refusal.code == "55000" && refusal.message.contains("lack its values"), "{refusal}");
    let refusal = session.refusal("select migrator.ensure_upgraded('t', 'd', wait => '0 s')").await?;
    ensure!(refusal.code == "55000", "{refusal}");
    Ok(())
}

/// Nothing is lost.
async fn a_column_that_changed_its_name_for_a_while(server: Server) -> Result<()> {
    let (session, mut worker) = sized(&server).await?;
    session.run("alter table page rename size to length").await?;
    let step = worker.run().await?;
    ensure!(step.state == "blocked" && step.reason.contains("column size"), "{step:?}");
    session.run("alter table page rename length to size; select migrator.resume_upgrades('page')").await?;
    worker.complete(&session).await?;
    ensure!(
        session.number("select count(*) from page where size is distinct from length(body)").await? == 0,
        "rows are wrong"
    );
    Ok(())
}
