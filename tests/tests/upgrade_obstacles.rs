//! What keeps a row from being written for an upgrade, or from losing a retired name: it is set aside, and the rest goes on.

use migrator_tests::upgrades::Worker;
use migrator_tests::*;

for_each_server!(
    a_row_that_cannot_lose_a_retired_name,
    a_row_that_cannot_lose_the_last_name,
    a_row_whose_function_has_no_record,
    a_table_that_cannot_be_published,
    another_column_in_the_place_of_the_names,
    a_table_named_like_a_keyword,
    retired_though_incomplete,
);

async fn refused(session: &Session, sql: &str, code: &str) -> Result<()> {
    let refusal = session.refusal(sql).await?;
    ensure!(refusal.code == code, "{sql}: {refusal}");
    Ok(())
}

/// `a` and `b` are complete, and row 5 cannot be written any more.
async fn lay_out(database: &Database) -> Result<(Session, Worker)> {
    let session = database.connect().await?;
    session
        .run(
            "create table t (id int primary key, n int, a int, b int);
             insert into t (id, n) select g, g from generate_series(1, 1000) g;
             select migrator.register_upgrade('t', 'a', set => '{\"a\": \"n + 1\"}');
             select migrator.register_upgrade('t', 'b', inputs => '{n}', outputs => '{b}');
             update t set b = n + 2, applied_upgrades = '{a,b}', a = n + 1",
        )
        .await?;
    let mut worker = Worker::new(database, "t", "w").await?;
    worker.complete(&session).await?;
    session.run("alter table t add constraint closed check (n <> 5) not valid").await?;
    Ok((session, worker))
}

const FAILED: &str =
    "select string_agg(upgrade || ' ' || (key ->> 'id') || ' ' || sqlstate, ', ') from migrator.upgrade_failures";

async fn a_row_that_cannot_lose_a_retired_name(server: Server) -> Result<()> {
    let database = server.database().await?;
    let (session, mut worker) = lay_out(&database).await?;
    session.run("select migrator.retire_upgrade('t', 'b')").await?;
    let step = worker.run().await?;
    ensure!(step.state == "waiting" && step.reason.starts_with("1 row(s) are set aside"), "{step:?}");
    let failed = session.value(FAILED).await?;
    ensure!(failed == "b 5 23514", "set aside: {failed}");
    let left = session.value("select array_agg(id)::text from t where applied_upgrades @> '{b}'").await?;
    ensure!(left == "{5}", "rows that have the name: {left}");
    session.run("select migrator.ensure_upgraded('t', 'a')").await?;
    // Nothing goes round: what is left waits for somebody.
    let again = worker.run().await?;
    let sweeps = session.number("select sweep from migrator.upgraded").await?;
    let after = worker.run().await?;
    ensure!(again.state == "waiting" && after.state == "waiting", "{again:?} {after:?}");
    ensure!(session.number("select sweep from migrator.upgraded").await? == sweeps, "another sweep began");
    refused(&session, "select migrator.waive_failed('t', 'b')", "55000").await?;

    session.run("alter table t drop constraint closed").await?;
    ensure!(session.number("select migrator.retry_failed('t', 'b')").await? == 1, "the row was not tried again");
    worker.complete(&session).await?;
    ensure!(session.number("select count(*) from t where applied_upgrades <> '{a}'").await? == 0, "a name is left");
    ensure!(session.number("select count(*) from migrator.upgrade_failures").await? == 0, "a failure is left");
    session.run("select migrator.register_upgrade('t', 'b', set => '{\"b\": \"n + 2\"}')").await?;
    Ok(())
}

/// No live upgrade is left; and it is mended without anybody being told.
async fn a_row_that_cannot_lose_the_last_name(server: Server) -> Result<()> {
    let database = server.database().await?;
    let (session, mut worker) = lay_out(&database).await?;
    // An index on the column keeps the names from going all at once.
    session.run("create index on t using gin (applied_upgrades); select migrator.retire_upgrade('t', 'a'); select migrator.retire_upgrade('t', 'b')").await?;
    let step = worker.run().await?;
    ensure!(step.state == "waiting" && step.reason.starts_with("1 row(s) are set aside"), "{step:?}");
    ensure!(session.value(FAILED).await?.ends_with(" 5 23514"), "{}", session.value(FAILED).await?);
    session.run("alter table t drop constraint closed; update t set n = 6 where id = 5").await?;
    let step = worker.run().await?;
    ensure!(step.state == "complete", "{step:?}");
    ensure!(session.number("select count(*) from t where applied_upgrades <> '{}'").await? == 0, "a name is left");
    Ok(())
}

/// PL/pgSQL raises 55000 for a record that has no value yet, and people do for rows that are closed.
async fn a_row_whose_function_has_no_record(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create function upper_case(a text) returns text immutable language plpgsql as $$
                 declare r record; begin if a <> 'bad' then select upper(a) as x into r; end if; return r.x; end $$;
             create table t (id int primary key, n text, b text);
             insert into t select g, case g when 500 then 'bad' else 'x' end from generate_series(1, 1000) g;
             select migrator.register_upgrade('t', 'b', set => '{\"b\": \"upper_case(n)\"}')",
        )
        .await?;
    let mut worker = Worker::new(&database, "t", "w").await?;
    let step = worker.run().await?;
    ensure!(step.state == "waiting" && step.reason.starts_with("1 row(s) are set aside"), "{step:?}");
    ensure!(session.value(FAILED).await? == "b 500 55000", "{}", session.value(FAILED).await?);
    ensure!(session.number("select count(*) from t where b = 'X'").await? == 999, "the others are not done");

    // Likewise for what application code brings back: the row that is closed costs nothing but itself.
    session
        .run(
            "create function closed() returns trigger language plpgsql as $$ begin
                 if old.id = 7 and new.c is distinct from old.c then raise object_not_in_prerequisite_state; end if; return new; end $$;
             create trigger closed before update on t for each row execute function closed();
             alter table t add column c text;
             select migrator.waive_failed('t', 'b');
             select migrator.register_upgrade('t', 'c', inputs => '{n}', outputs => '{c}')",
        )
        .await?;
    let back = session
        .row(
            "with handed as materialized (select key, token from migrator.select_batch('t', 'c', 20))
             select count(*) filter (where m.applied), string_agg(m.key ->> 'id', ',') filter (where not m.applied) from migrator.mark_applied('t', 'c',
                 (select jsonb_agg(jsonb_build_object('key', key, 'token', token, 'values', jsonb_build_object('c', 'd'))) from handed)) m",
        )
        .await?;
    ensure!(back == ["19", "7"], "{back:?}");
    Ok(())
}

/// The guard never takes something else for the names, and says what is wrong.
async fn another_column_in_the_place_of_the_names(server: Server) -> Result<()> {
    for other in [
        "int not null default 7",
        "jsonb default '[1]'",
        "text default 'a long text, or what looks like it'",
        "int[] default '{1,2,3}'",
    ] {
        let database = server.database().await?;
        let session = database.connect().await?;
        session
            .run(&format!(
                "create table t (id int primary key, n text, a int); insert into t select g, 'x' from generate_series(1, 100) g;
                 select migrator.register_upgrade('t', 'a', set => '{{\"a\": \"length(n)\"}}');
                 update t set n = 'has the name' where id = 50;
                 alter table t rename column applied_upgrades to names; alter table t add column applied_upgrades {other};
                 insert into t (id, n) values (1000, 'written'); update t set n = 'yy' where id <= 10 or id = 50"
            ))
            .await?;
        refused(&session, "select migrator.current(t) from t", "42703").await?;
        refused(&session, "select migrator.pending(t) from t", "42703").await?;
        let mut worker = Worker::new(&database, "t", "w").await?;
        let step = worker.run().await?;
        ensure!(
            step.state == "blocked" && step.reason.contains("column applied_upgrades of table public.t is another one"),
            "{other}: {step:?}"
        );
        let refusal = session.refusal("select migrator.resume_upgrades('t')").await?;
        let hint = refusal.hint.clone().unwrap_or_default();
        ensure!(refusal.code == "42703" && hint.ends_with("take the name off those."), "{refusal}");
        session
            .run("alter table t drop column applied_upgrades; alter table t rename column names to applied_upgrades")
            .await?;
        session.run("select migrator.resume_upgrades('t')").await?;
        // As the hint says.
        let named = "select string_agg(id::text, ' ') from t where 'a' = any (applied_upgrades) and a is distinct from length(n)";
        ensure!(session.value(named).await? == "50", "{other}");
        session.run("update t set applied_upgrades = array_remove(applied_upgrades, 'a') where id = 50").await?;
        worker.complete(&session).await?;
        let wrong = session
            .number("select count(*) from t where a is distinct from length(n) or applied_upgrades <> '{a}'")
            .await?;
        ensure!(wrong == 0, "{other}: {wrong} rows are not upgraded");
    }
    Ok(())
}

/// The calls that a hint names find what they are to find.
async fn a_table_named_like_a_keyword(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table \"user\" (id int primary key, n text, a int); insert into \"user\" select g, 'x' from generate_series(1, 101) g;
             select migrator.register_upgrade('\"user\"', 'a', set => '{\"a\": \"n::int\"}')",
        )
        .await?;
    let mut worker = Worker::new(&database, "\"user\"", "w").await?;
    let step = worker.run().await?;
    ensure!(step.state == "blocked", "{step:?}");
    let hint = session.value("select blocked_hint from migrator.upgraded").await?;
    let look = hint.split(';').next().unwrap_or_default();
    let seen = session.rows(look).await?;
    ensure!(seen.len() == 1 && seen[0].last().is_some_and(|count| count.as_deref() == Some("101")), "{look}: {seen:?}");
    Ok(())
}

/// Whoever retires it though it may be incomplete has nobody told later that it was complete.
async fn retired_though_incomplete(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table t (id int primary key, n text, a int); insert into t select g, 'x' from generate_series(1, 10) g;
             select migrator.register_upgrade('t', 'code', inputs => '{n}', outputs => '{a}');
             update t set a = 1, applied_upgrades = '{code}'",
        )
        .await?;
    session.run("call migrator.run_upgrades('t')").await?;
    session.run("insert into t (id, n) values (99, 'new')").await?;
    refused(&session, "select migrator.retire_upgrade('t', 'code')", "55000").await?;
    session.run("select migrator.retire_upgrade('t', 'code', incomplete => true)").await?;
    refused(&session, "select migrator.ensure_upgraded('t', 'code')", "55000").await?;
    session.run("call migrator.run_upgrades('t')").await?;
    refused(&session, "select migrator.ensure_upgraded('t', 'code')", "55000").await?;
    Ok(())
}

/// The same code, of the table: no row is set aside for it, no lease is lost, and all goes on when it is mended.
async fn a_table_that_cannot_be_published(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table t (id int primary key, n text, a int, b text); insert into t select g, 'x' from generate_series(1, 300) g;
             select migrator.register_upgrade('t', 'a', set => '{\"a\": \"length(n)\"}');
             select migrator.register_upgrade('t', 'code', inputs => '{n}', outputs => '{b}');
             update t set a = 1, applied_upgrades = '{a}' where id <= 3",
        )
        .await?;
    let mut worker = Worker::new(&database, "t", "w").await?;
    worker.until(|step| step.state == "upgrading").await?;
    let lent = session
        .value("select jsonb_agg(jsonb_build_object('key', key, 'token', token, 'values', '{\"b\": \"c\"}'::jsonb)) from migrator.select_batch('t', 'code', 3)")
        .await?;
    session.run("alter table t replica identity nothing; create publication p for table t").await?;
    let back = format!("select * from migrator.mark_applied('t', 'code', {})", session::literal(&lent));
    for call in ["select * from migrator.step('t', 'w')", back.as_str()] {
        let refusal = session.refusal(call).await?;
        ensure!(refusal.code == "55000" && refusal.message.contains("replica identity"), "{call}: {refusal}");
    }
    let aside = session.number("select count(*) from migrator.upgrade_failures").await?;
    ensure!(aside == 0, "{aside} rows are set aside for what is the table's");
    session.run("alter table t replica identity default").await?;
    let applied = session.number(&format!("select count(*) filter (where applied) from ({back}) x")).await?;
    ensure!(applied == 3, "{applied} of 3 rows came back");
    worker.run().await?;
    let left = session.number("select count(*) from t where a is distinct from length(n)").await?;
    ensure!(left == 0, "{left} rows are not upgraded");
    Ok(())
}
