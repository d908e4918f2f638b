//! Rows that the other shape refuses: the application never notices, the change names them, and goes on when they fit.

use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::same_rows::same_rows;
use migrator_tests::*;

for_each_server!(
    rows_that_do_not_fit_hold_the_swap,
    rows_that_stop_fitting_while_the_change_is_ready,
    a_unique_index_over_equal_values,
    only_the_bad_rows_are_set_aside,
    one_bad_row_among_thousands_costs_little,
    rows_that_do_not_fit_after_a_truncate,
);

/// Drives a change until it is ready or says that something is in its way.
async fn as_far_as_it_goes(change: &Change) -> Result<String> {
    let session = change.session().await?;
    let deadline = std::time::Instant::now() + change::PATIENCE;
    while std::time::Instant::now() < deadline {
        match change.advance(&session).await {
            Ok(advance) if advance.done => return change.told().await,
            Ok(advance) => tokio::time::sleep(advance.wait.min(std::time::Duration::from_millis(100))).await,
            Err(error) if error.is_worth_retrying() => {}
            Err(error) => return Ok(format!("{error} {}", change.told().await?)),
        }
    }
    bail!("neither ready nor refused: {}", change.told().await?)
}

const TABLE: &str = "create table notes (id int primary key, code text, amount int);
    insert into notes select g, 'c' || g, g from generate_series(1, 3000) g";

async fn refused_swap(session: &Session, change: &Change, keys: &[&str]) -> Result<()> {
    let refusal = session.refusal(&format!("select * from migrator.swap(change => {})", change.id)).await?;
    ensure!(refusal.hint.is_some(), "the refusal has no hint: {refusal}");
    let named = session
        .value(&format!("select string_agg(key::text, ' ') from migrator.bad_rows where change = {}", change.id))
        .await?;
    for key in keys {
        ensure!(
            named.contains(key) || format!("{refusal}").contains(key),
            "row {key} is named neither in the refusal nor in bad_rows: {refusal}; {named}"
        );
    }
    Ok(())
}

async fn rows_that_do_not_fit_hold_the_swap(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(TABLE).await?;
    session
        .run("update notes set code = 'much too long' where id in (1, 1500, 3000); update notes set code = null where id = 77; update notes set amount = -5 where id = 99")
        .await?;
    let change = Change::create(
        &database,
        "public.notes",
        "alter column code type varchar(6), alter column code set not null, add constraint positive check (amount > 0)",
    )
    .await?;
    let told = as_far_as_it_goes(&change).await?;
    refused_swap(&session, &change, &["1500", "77", "99", "3000"]).await.with_context(|| told)?;

    // The application writes what its own table allows.
    session.run("update notes set code = 'even longer than that' where id = 1; insert into notes values (4000, 'again too long', -1)").await?;
    as_far_as_it_goes(&change).await?;
    refused_swap(&session, &change, &["4000"]).await?;

    session
        .run("update notes set code = 'short', amount = 1 where length(code) > 6 or code is null or amount <= 0")
        .await?;
    change.until_ready().await?;
    change.until_in_step().await?;
    let rear = change.rear().await?;
    same_rows(
        &session,
        "select id, code::text, amount from notes",
        &format!("select id, code::text, amount from {rear}"),
    )
    .await?;
    change.swap().await?;
    change.finish().await?;
    session.refusal("insert into notes values (5000, 'too long again', 1)").await?;
    nothing_left_behind(&database).await
}

async fn rows_that_stop_fitting_while_the_change_is_ready(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(TABLE).await?;
    let change = Change::create(&database, "public.notes", "alter column code type varchar(6)").await?;
    change.until_ready().await?;
    session.run("update notes set code = 'no longer short' where id = 5; insert into notes values (6000, 'no longer short', 1)").await?;
    // Even without anybody having looked: the swap finds out by itself.
    refused_swap(&session, &change, &[]).await?;
    as_far_as_it_goes(&change).await?;
    refused_swap(&session, &change, &["6000"]).await?;
    session.run("delete from notes where id = 6000; update notes set id = 7000, code = 'short' where id = 5").await?;
    change.until_ready().await?;
    change.until_in_step().await?;
    change.swap().await?;
    ensure!(session.number("select count(*) from notes").await? == 3000, "rows lost");
    change.finish().await?;
    nothing_left_behind(&database).await
}

async fn a_unique_index_over_equal_values(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(TABLE).await?;
    session.run("update notes set code = 'twice' where id in (10, 20)").await?;
    let change = Change::create(&database, "public.notes", "add unique (code)").await?;
    let told = as_far_as_it_goes(&change).await?;
    ensure!(told.contains("twice") || told.contains("code"), "nobody says which values are equal: {told}");
    session.refusal(&format!("select * from migrator.swap(change => {})", change.id)).await?;
    session.run("update notes set amount = 0 where id = 10; insert into notes values (8000, 'twice', 1)").await?;
    change.cancel().await?;
    nothing_left_behind(&database).await
}

/// Bad rows first, last, and many side by side: all others go over.
async fn only_the_bad_rows_are_set_aside(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(TABLE).await?;
    session.run("update notes set code = 'not a number' where id in (1, 3000) or id between 1000 and 1060; update notes set code = id where code <> 'not a number'").await?;
    let change = Change::create(&database, "public.notes", "alter column code type int using code::int").await?;
    as_far_as_it_goes(&change).await?;
    let rear = change.rear().await?;
    let sql = format!("select count(*) from {rear} r join notes n using (id) where r.code::text = n.code");
    ensure!(session.number(&sql).await? == 3000 - 63, "of 2937 good rows {} are there", session.number(&sql).await?);
    let bad = format!("select bad_rows from migrator.status where change = {}", change.id);
    ensure!(session.number(&bad).await? == 63, "{} rows are called bad", session.number(&bad).await?);
    session.run("update notes set code = '0' where code = 'not a number'").await?;
    change.until_ready().await?;
    change.until_in_step().await?;
    ensure!(session.number(&bad).await? == 0, "rows that fit now are still called bad");
    change.swap().await?;
    change.finish().await?;
    nothing_left_behind(&database).await
}

/// A subtransaction that writes takes a transaction number: how many the steps took shows what they cost.
async fn one_bad_row_among_thousands_costs_little(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table notes (id int primary key, code text, place int unique deferrable);
             insert into notes select g, 'c' || g, g from generate_series(1, 5000) g",
        )
        .await?;
    let change = Change::create(&database, "public.notes", "alter column code type varchar(6)").await?;
    let numbers = "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint";
    // While it is copied (without an index), and when it is in step.
    change.until(|advance| advance.state == "copying").await?;
    for (round, until) in [("during the copy", "indexing"), ("in step", "ready")] {
        // Values go round in circles through all of the log, and one key is in it again and again.
        session.run("update notes set place = (place % 5000) + 1").await?;
        session.run("update notes set code = 'much too long' where id = 2500").await?;
        for _ in 0..50 {
            session.run("update notes set code = code || '!' where id = 2500").await?;
        }
        let before = session.number(numbers).await?;
        if until == "indexing" {
            change.until(|advance| advance.state == until).await?;
        } else {
            change.until_in_step().await?;
        }
        let spent = session.number(numbers).await? - before;
        ensure!(spent < 600, "one bad row among 5,000 took {spent} transaction numbers {round}");
        let bad = session.value("select string_agg(key::text, ',') from migrator.bad_rows").await?;
        ensure!(bad == r#"{"id": "2500"}"#, "set aside {round}: {bad}");
        if until == "indexing" {
            change.until(|advance| advance.done).await?;
        }
    }
    let rear = change.rear().await?;
    same_rows(
        &session,
        "select id, code::text, place from notes where id <> 2500",
        &format!("select id, code::text, place from {rear}"),
    )
    .await?;
    session.run("update notes set code = 'short' where id = 2500").await?;
    change.until_in_step().await?;
    change.swap().await?;
    change.finish().await?;
    nothing_left_behind(&database).await
}

async fn rows_that_do_not_fit_after_a_truncate(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(TABLE).await?;
    let change = Change::create(&database, "public.notes", "alter column code type varchar(6)").await?;
    change.until_ready().await?;
    session
        .run("truncate notes; insert into notes select g, case g when 77 then 'much too long' else 'd' || g end, g from generate_series(1, 500) g")
        .await?;
    as_far_as_it_goes(&change).await?;
    refused_swap(&session, &change, &["77"]).await?;
    session.run("update notes set code = 'short' where id = 77").await?;
    change.until_in_step().await?;
    change.swap().await?;
    ensure!(session.number("select count(*) from notes where code like 'd%'").await? == 499, "rows lost");
    change.finish().await?;
    nothing_left_behind(&database).await
}
