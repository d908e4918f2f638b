//! The program `migrator`: each command does what the function of its name does, a kill -9 at any time costs nothing,
//! two of them do not get in each other's way, and its memory does not grow with the table.

use migrator_tests::ledger::Ledger;
use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::program::{self, agent};
use migrator_tests::*;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::Child;

for_each_server!(
    a_change_by_commands,
    a_small_table_is_not_rewritten_in_place,
    a_daemon_that_is_killed_again_and_again,
    two_daemons,
    a_daemon_that_is_told_to_stop
);

async fn say(database: &Database, arguments: &[&str]) -> Result<program::Outcome> {
    program::run(agent(database)?.args(arguments)).await
}

fn daemon(database: &Database) -> Result<Child> {
    let mut command = agent(database)?;
    Ok(command
        .arg("agent")
        .kill_on_drop(true)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?)
}

async fn a_change_by_commands(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run("create table goods (id int primary key, v text); insert into goods select g, 'v' || g from generate_series(1, 20000) g").await?;
    let altered =
        say(&database, &["alter", "goods", "alter column id type bigint, add column w int", "--strategy", "shadow"])
            .await?
            .fine();
    altered.context("alter")?;
    let status = say(&database, &["status", "--json"]).await?.fine().context("status")?;
    ensure!(status.contains("ready"), "{status}");
    serde_json::from_str::<serde_json::Value>(&status).context("status --json is no JSON")?;
    for command in [
        vec!["list"],
        vec!["verify", "goods"],
        vec!["swap", "goods", "--dry-run"],
        vec!["swap", "goods"],
        vec!["rollback", "goods"],
        vec!["prepare", "goods"],
        vec!["swap", "--latest"],
        vec!["log", "goods"],
        vec!["finish", "goods"],
        vec!["doctor"],
    ] {
        say(&database, &command).await?.fine().with_context(|| command.join(" "))?;
    }
    ensure!(session.value("select pg_typeof(id) from goods limit 1").await? == "bigint", "the change is not there");
    ensure!(session.number("select count(*) from goods").await? == 20_000, "rows lost");
    nothing_left_behind(&database).await?;

    // Answers that are no: nothing to swap; and errors: no such table, nobody there.
    ensure!(say(&database, &["swap", "goods"]).await?.code != 0, "swap without a change says yes");
    ensure!(say(&database, &["alter", "nothing", "add column a int"]).await?.code == 2, "an error is exit code 2");
    let nobody = say(&database, &["status", "--database", "postgresql://127.0.0.1:1/none"]).await?;
    ensure!(nobody.code == 2 && !nobody.stderr.is_empty(), "exit code {}", nobody.code);
    Ok(())
}

/// However small: under a lock that stops everybody a table is rewritten for those only who ask for it.
async fn a_small_table_is_not_rewritten_in_place(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run("create table small (id int primary key); insert into small select g from generate_series(1, 50) g")
        .await?;
    // This transaction would find the table empty after a rewrite.
    let old = database.connect_as("postgres", "old").await?;
    old.run("begin isolation level repeatable read; select 1").await?;
    let file = session.value("select pg_relation_filenode('small')").await?;
    say(&database, &["alter", "small", "add column note text"]).await?.fine().context("catalogue work")?;
    ensure!(session.number("select count(*) from migrator.history").await? == 0, "a column was added through a shadow");
    say(&database, &["alter", "small", "alter column id type bigint"]).await?.fine().context("a new type")?;
    ensure!(session.value("select pg_relation_filenode('small')").await? == file, "the table was rewritten in place");
    ensure!(old.number("select count(*) from small").await? == 50, "an older transaction finds the table empty");
    old.run("commit").await?;
    ensure!(session.value("select state from migrator.status").await? == "ready", "there should be a change, ready");
    say(&database, &["cancel", "small"]).await?.fine().context("cancel")?;
    say(&database, &["alter", "small", "alter column id type bigint", "--strategy", "in-place"])
        .await?
        .fine()
        .context("in place")?;
    ensure!(session.value("select pg_typeof(id) from small limit 1").await? == "bigint", "the change is not there");
    nothing_left_behind(&database).await
}

async fn a_daemon_that_is_killed_again_and_again(server: Server) -> Result<()> {
    let database = server.database().await?;
    let mut ledger = Ledger::lay_out(&database, 2, 400, 30_000).await?;
    ledger.start();
    let session = database.connect().await?;
    session
        .run("select migrator.create_shadow('public.orders', 'alter column id type bigint, add column w text', on_ready => 'swap')")
        .await?;
    let change = Change::of(&database, session.number("select change from migrator.status").await?);
    let deadline = Instant::now() + Duration::from_secs(120);
    let mut kills = 0;
    let mut longer = 100;
    while change.state().await? != "swapped" {
        let mut child = daemon(&database)?;
        ledger.live(Duration::from_millis(longer)).await?;
        child.start_kill()?;
        child.wait().await?;
        kills += 1;
        longer += 50;
        ensure!(Instant::now() < deadline, "killed {kills} times and not done: {}", change.told().await?);
    }
    ensure!(kills > 1, "the daemon was too fast to be killed: make the table longer");
    ledger.check(async || Ok(())).await?;
    let mut child = daemon(&database)?;
    ledger.more(10).await?;
    change.rollback().await?;
    ledger.check(async || Ok(())).await?;
    // on_ready => 'swap' still holds after a rollback only if somebody asks again; what is sure is that no write is lost.
    ledger.more(10).await?;
    child.start_kill()?;
    child.wait().await?;
    ledger.check(async || Ok(())).await?;
    if change.state().await? == "swapped" {
        change.finish().await?
    } else {
        change.cancel().await?
    }
    ledger.stop().await?;
    nothing_left_behind(&database).await
}

async fn two_daemons(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table twin1 (id int primary key, v text); insert into twin1 select g, repeat('x', 100) from generate_series(1, 50000) g;
             create table twin2 (id int primary key, v text); insert into twin2 select g, repeat('x', 100) from generate_series(1, 50000) g",
        )
        .await?;
    let daemons = (daemon(&database)?, daemon(&database)?);
    let one = Change::create(&database, "public.twin1", "alter column id type bigint").await?;
    let two =
        Change::create_with(&database, "public.twin2", "actions => 'alter column id type bigint', on_ready => 'swap'")
            .await?;
    one.wait_for("ready").await?;
    two.wait_for("swapped").await?;
    one.swap().await?;
    session.run("update twin1 set v = 'y' where id % 100 = 0; update twin2 set v = 'y' where id % 100 = 0").await?;
    one.rollback().await?;
    two.rollback().await?;
    for table in ["twin1", "twin2"] {
        let sql = format!("select count(*) filter (where v = 'y') || ' of ' || count(*) from {table}");
        ensure!(session.value(&sql).await? == "500 of 50000", "{table}: {}", session.value(&sql).await?);
    }
    drop(daemons);
    for change in [one, two] {
        if change.state().await? == "swapped" { change.finish().await? } else { change.cancel().await? }
    }
    nothing_left_behind(&database).await
}

async fn a_daemon_that_is_told_to_stop(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run("create table long (id int primary key, v text); insert into long select g, repeat('x', 300) from generate_series(1, 200000) g").await?;
    let mut child = daemon(&database)?;
    let change = Change::create(&database, "public.long", "alter column id type bigint").await?;
    tokio::time::sleep(Duration::from_millis(400)).await;
    let pid = child.id().context("the daemon ended by itself")?;
    program::run(tokio::process::Command::new("kill").args(["-TERM", &pid.to_string()])).await?.fine()?;
    let status =
        tokio::time::timeout(Duration::from_secs(20), child.wait()).await.context("SIGTERM does not end it")??;
    ensure!(status.code() == Some(0), "it ended with {status}");
    let open = "select count(*) from pg_stat_activity where application_name like 'migrator%' and state <> 'idle'";
    ensure!(session.number(open).await? == 0, "its sessions are still at work");
    change.cancel().await?;
    nothing_left_behind(&database).await
}
