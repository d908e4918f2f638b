//! A column that an upgrade writes is dropped and comes back under its name: rows carry the name of the upgrade and lack its values.

use migrator_tests::program::{postgresql, run};
use migrator_tests::upgrades::{Worker, states};
use migrator_tests::*;

for_each_server!(
    an_output_that_was_added_again,
    names_that_were_added_again,
    names_of_another_shape_and_of_partitions,
    names_of_application_code,
    names_that_were_copied_to_another_column,
    a_guard_below_a_table_that_was_attached,
    an_output_that_a_rollback_took,
    a_column_that_changed_its_name_for_a_while
);

async fn sized(server: &Server) -> Result<(Database, Session, Worker)> {
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
    Ok((database, session, worker))
}

const LOST: &str = "column size of table public.page was dropped and added again: rows that carry the name of upgrade size lack its values";

async fn an_output_that_was_added_again(server: Server) -> Result<()> {
    let (_, session, mut worker) = sized(&server).await?;
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
    let (database, session, mut worker) = sized(&server).await?;
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
    const DOCTOR: &str = "select string_agg(problem || ': ' || remedy, ' ') from migrator.doctor() where subject = 'column applied_upgrades of public.page'";
    let finding = session.value(DOCTOR).await?;
    ensure!(finding.contains("is not there"), "{finding}");
    session.run(&format!("{EMPTY} alter table page alter column words set default 5")).await?;
    let finding = session.value(DOCTOR).await?;
    ensure!(
        finding.contains("dropped and added again") && finding.contains("resume_upgrades('public.page')"),
        "{finding}"
    );
    // Writers hear of it once, and what they write is left alone.
    let told = run(postgresql(&database, "psql").args([
        "-X",
        "-v",
        "ON_ERROR_STOP=1",
        "-c",
        "update page set words = 5 where id < 5",
    ]))
    .await?;
    ensure!(
        told.code == 0 && told.stderr.contains("WARNING:  column applied_upgrades of table page is not the one"),
        "{}",
        told.stderr
    );
    session.run("insert into page (id, body, cents) values (51, 'new', 5100)").await?;
    ensure!(session.number("select count(*) from page where applied_upgrades <> '{}'").await? == 0, "rows have names");
    let refusal = session.refusal("select migrator.current(p) from page p where id = 2").await?;
    ensure!(
        refusal.code == "42703" && refusal.message.contains("has not the column applied_upgrades any more"),
        "{refusal}"
    );
    session.run("delete from page where id = 51").await?;
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

const EMPTY: &str = "alter table page add column applied_upgrades text[] not null default '{}';";

/// Where columns have other numbers: in a table that took the place of another, and in partitions, each of which counts by itself.
async fn names_of_another_shape_and_of_partitions(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    const PAGE: &str =
        "(gone int, id int primary key, cents int, note text, applied_upgrades text[] not null default '{}')";
    const PARTITIONS: &str = "create table low partition of page for values from (0) to (20);
        create table high (away int, applied_upgrades text[] not null default '{}', more int, gone int, note text, cents int, id int not null);
        alter table high drop column away, drop column more; alter table page attach partition high for values from (20) to (100);";
    const ROWS: &str = "alter table page drop column gone; insert into page select g, g from generate_series(1, 50) g;";
    // What an application wrote over an output stays; and what is made in place is not made twice, which partitions do not allow.
    for (partitioned, set) in [(false, "cents * 100"), (true, "id * 100")] {
        let (by, partitions) = if partitioned { ("partition by range (id)", PARTITIONS) } else { ("", "") };
        session.run(&format!("create table page {PAGE} {by}; {partitions} {ROWS}")).await?;
        let in_place = !partitioned;
        session
            .run(&format!("select migrator.register_upgrade('page', 'cents', '{{\"cents\": \"{set}\"}}', safe_in_place => {in_place})"))
            .await?;
        let mut worker = Worker::new(&database, "page", "w").await?;
        worker.complete(&session).await?;
        session.run("update page set cents = 7 where id in (7, 27)").await?;
        if !partitioned {
            let change = Change::create(&database, "public.page", "alter column note type varchar(100)").await?;
            change.until_ready().await?;
            change.swap().await?;
            change.finish().await?;
            worker.complete(&session).await?;
        }
        session
            .run(&format!(
                "alter table page drop column applied_upgrades cascade; {EMPTY} update page set note = 'seen'"
            ))
            .await?;
        let wrong = session
            .number("select count(*) from page where cents <> case when id in (7, 27) then 7 else id * 100 end or applied_upgrades <> '{}'")
            .await?;
        ensure!(wrong == 0, "{by}: {wrong} rows were upgraded once more");
        let step = worker.run().await?;
        ensure!(step.state == "blocked" && step.reason.contains("dropped and added again"), "{by}: {step:?}");
        // Retired as the hint says, there is room for another, of which the guard knows where its names are.
        session
            .run("select migrator.retire_upgrade('page', 'cents', incomplete => true); select migrator.resume_upgrades('page')")
            .await?;
        worker.run().await?;
        session
            .run("alter table page add column loud text; select migrator.register_upgrade('page', 'loud', '{\"loud\": \"upper(note)\"}')")
            .await?;
        session.run("update page set cents = cents where id in (7, 27)").await?;
        let guarded =
            session.number("select count(*) from page where loud = 'SEEN' and applied_upgrades = '{loud}'").await?;
        ensure!(guarded == 2, "{by}: the guard made {guarded} rows");
        worker.complete(&session).await?;
        session.run("drop table page cascade").await?;
    }
    Ok(())
}

/// Application code neither gets rows nor marks them.
async fn names_of_application_code(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table page (id int primary key, size int); insert into page select generate_series(1, 50); \
              select migrator.register_upgrade('page', 'code', inputs => '{id}', outputs => '{size}')",
        )
        .await?;
    let select = "select jsonb_build_object('key', key, 'token', token, 'values', '{\"size\": 1}'::jsonb) from migrator.select_batch('page', 'code', 1)";
    let mark = |given: String| {
        format!("select migrator.mark_applied('page', 'code', jsonb_build_array({}::jsonb))", session::literal(&given))
    };
    session.run(&mark(session.value(select).await?)).await?;
    let given = session.value(select).await?;
    session.run(&format!("alter table page drop column applied_upgrades cascade; {EMPTY}")).await?;
    for call in [select.to_owned(), mark(given)] {
        let refusal = session.refusal(&call).await?;
        ensure!(refusal.code == "55000" && refusal.message.contains("dropped and added again"), "{call}: {refusal}");
        let hint = refusal.hint.unwrap_or_default();
        ensure!(hint.contains("select migrator.retire_upgrade('public.page', 'code', incomplete => true);"), "{hint}");
    }
    ensure!(session.number("select count(*) from page where size is not null").await? == 1, "rows were written");
    Ok(())
}

/// Somebody gives the table another column of names, with all that was in the one before: nothing is lost, and the guard has to be told.
async fn names_that_were_copied_to_another_column(server: Server) -> Result<()> {
    let (_, session, mut worker) = sized(&server).await?;
    session
        .run(
            "drop view page__current; alter table page add column names text[] not null default '{}'; update page set names = applied_upgrades; \
              alter table page rename applied_upgrades to before; alter table page rename names to applied_upgrades",
        )
        .await?;
    worker.run().await?;
    session.run("alter table page drop column before").await?;
    let step = worker.run().await?;
    ensure!(step.state == "blocked" && step.reason.contains("is not the one that was put there"), "{step:?}");
    session.run("select migrator.resume_upgrades('page')").await?;
    session.run("update page set body = 'longer' where id = 5").await?;
    ensure!(session.number("select size from page where id = 5").await? == 6, "a write is not guarded");
    worker.complete(&session).await
}

/// A table with upgrades becomes a partition of another one, whose columns have other numbers.
async fn a_guard_below_a_table_that_was_attached(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table page (id int primary key, size int, applied_upgrades text[] not null default '{}') partition by range (id);
             create table leaf partition of page for values from (0) to (100);
             insert into page select generate_series(1, 50);
             select migrator.register_upgrade('page', 'size', '{\"size\": \"id * 2\"}');
             create table above (id int primary key, size int, gone int, applied_upgrades text[] not null default '{}') partition by range (id);
             alter table above drop column gone; alter table above attach partition page for values from (0) to (100);
             insert into above (id) values (51); update above set id = id where id = 7",
        )
        .await?;
    let done = "select count(*) from leaf where size = id * 2 and applied_upgrades = '{size}' and id in (7, 51)";
    ensure!(session.number(done).await? == 2, "writes are not guarded");
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
    let (_, session, mut worker) = sized(&server).await?;
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
