//! Failover to a standby that lost the last commits: the change is there what it was, goes on or back, and the rows are
//! those that the standby knows of.

use migrator_tests::counted::{UNFIT, WRITTEN, WRONG, go_into_the_middle, lay_out};
use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::program::{self, agent, postgresql};
use migrator_tests::same_rows::{fingerprint, same_rows};
use migrator_tests::upgrades::Worker;
use migrator_tests::*;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

for_oldest_and_newest_server!(
    a_standby_that_lost_the_last_commits,
    a_standby_that_lost_the_last_batches,
    a_standby_without_the_library,
);

/// What was committed is on its way to the standby, and not in a buffer.
const SENT: [(&str, &str); 1] = [("synchronous_commit", "on")];
const ROWS: &str = "select id, v, n from kept";
const WRITE: &str = "update kept set n = n + 1 where id % 50 = 3; delete from kept where id in (select max(id) from kept); \
                     insert into kept (v) select 'new ' || g from generate_series(1, 20) g";

/// Steps without the pauses that a lost standby asks for, which are not what is tested here.
async fn hurry(change: &Change, enough: impl Fn(&change::Advance) -> bool) -> Result<()> {
    let session = change.session().await?;
    let deadline = Instant::now() + change::PATIENCE;
    loop {
        match change.advance(&session).await {
            Ok(advance) if enough(&advance) => return Ok(()),
            Err(error) if !error.is_worth_retrying() => return Err(error.into()),
            last => ensure!(Instant::now() < deadline, "change {} does not get there; last: {last:?}", change.id),
        }
    }
}

/// The primary's power goes, and the standby takes over, without what was written since it was cut off.
async fn fail_over(primary: &Cluster, standby: Arc<Cluster>, name: &str) -> Result<(Arc<Cluster>, Database, Session)> {
    primary.die().await?;
    standby.promote().await?;
    let database = Database::of(&standby, name);
    let session = database.connect().await?;
    Ok((standby, database, session))
}

async fn a_standby_that_lost_the_last_commits(server: Server) -> Result<()> {
    let primary = server.cluster(&SENT).await?;
    let database = Database::create(&primary, true).await?;
    let session = database.connect().await?;
    session
        .run(
            "create table kept (id serial primary key, v text, n int default 0);
             insert into kept (v) select repeat('x', 300) from generate_series(1, 60000) g",
        )
        .await?;
    let standby = Arc::new(primary.standby().await?);
    let change =
        Change::create(&database, "public.kept", "alter column id type bigint, add column w int default 7").await?;

    // Whoever switches capture on, or puts a guard on a table, hears that the standby needs the library too.
    session.run("create table guarded (id int primary key, a text, b text)").await?;
    let start = format!("select migrator.start_sync(change => {})", change.id);
    let register = "select migrator.register_upgrade('guarded', 'b', '{\"b\": \"upper(a)\"}')";
    for sql in [start.as_str(), register] {
        let said = program::run(postgresql(&database, "psql").args(["-X", "-c", sql])).await?;
        ensure!(
            said.stderr.contains("WARNING") && said.stderr.contains("standby"),
            "{sql} does not warn of standbys: {}",
            said.stderr
        );
    }
    session.run("drop table guarded cascade").await?;
    let doctor =
        session.value("select string_agg(problem || remedy, ' ') from migrator.doctor() where subject like 'standby%'");
    ensure!(doctor.await?.contains("installed"), "doctor does not tell that the standby needs the library");

    // Lost in the middle of the copy: writes, the rest of the copy, and even a swap.
    change.until(|advance| advance.step == "copy" && advance.rows > 0).await?;
    session.run(WRITE).await?;
    standby.follows(&primary).await?;
    let there = program::run(agent(&Database::of(&standby, &database.name))?.arg("doctor")).await?;
    ensure!(there.code != 2, "doctor does not answer on a standby: {}", there.stderr);
    standby.cut_off().await?;
    // It is not waited for: it is to miss what comes now. Nor does the promoted server wait for itself, who has not heard of this.
    session.run("select migrator.set_limit('lost_standby', ignoring => '{walreceiver}')").await?;
    let known = fingerprint(&session, ROWS).await?;
    session.run(WRITE).await?;
    hurry(&change, |advance| advance.state == "ready").await?;
    change.swap().await?;
    session.run("insert into kept (id, v) values (3000000000, 'lost')").await?;
    let (primary, database, session) = fail_over(&primary, standby, &database.name).await?;

    ensure!(fingerprint(&session, ROWS).await? == known, "the promoted standby has other rows than it was sent");
    let change = Change::of(&database, change.id);
    ensure!(change.state().await? == "copying", "{}", change.told().await?);
    session.run(WRITE).await?;
    hurry(&change, |advance| advance.state == "ready").await?;
    hurry(&change, |advance| advance.done && advance.rows == 0).await?;
    let rear = change.rear().await?;
    same_rows(&session, ROWS, &ROWS.replace("kept", &rear)).await?;
    change.swap().await?;
    session.run(WRITE).await?;

    // Lost after the swap: writes, and the rollback.
    let standby = Arc::new(primary.standby().await?);
    standby.follows(&primary).await?;
    standby.cut_off().await?;
    // It is not waited for: it is to miss what comes now. Nor does the promoted server wait for itself, who has not heard of this.
    session.run("select migrator.set_limit('lost_standby', ignoring => '{walreceiver}')").await?;
    let known = fingerprint(&session, ROWS).await?;
    session.run(WRITE).await?;
    hurry(&change, |advance| advance.done && advance.rows == 0).await?;
    change.rollback().await?;
    let (_primary, database, session) = fail_over(&primary, standby, &database.name).await?;
    let change = Change::of(&database, change.id);
    ensure!(change.state().await? == "swapped", "{}", change.told().await?);
    ensure!(fingerprint(&session, ROWS).await? == known, "the promoted standby has other rows than it was sent");
    session.run(WRITE).await?;
    let now = fingerprint(&session, ROWS).await?;
    hurry(&change, |advance| advance.done && advance.rows == 0).await?;
    change.rollback().await?;
    ensure!(fingerprint(&session, ROWS).await? == now, "the rollback on the promoted standby changed rows");
    change.cancel().await?;
    nothing_left_behind(&database).await
}

/// Batches of upgrades commit without waiting for anybody: rows, names and how far the sweep came are lost together.
async fn a_standby_that_lost_the_last_batches(server: Server) -> Result<()> {
    let primary = server.cluster(&SENT).await?;
    let database = Database::create(&primary, true).await?;
    let session = database.connect().await?;
    lay_out(&session, 16_000, 100).await?;
    session
        .run(
            "create table handed (id int primary key, a text, b text); insert into handed select g, 'a' from generate_series(1, 9) g;
             select migrator.register_upgrade('handed', 'code', inputs => '{a}', outputs => '{b}')",
        )
        .await?;
    let standby = Arc::new(primary.standby().await?);
    go_into_the_middle(&database).await?;
    standby.follows(&primary).await?;
    standby.cut_off().await?;
    // It is not waited for: it is to miss what comes now.
    session.run("select migrator.set_limit('lost_standby', ignoring => '{walreceiver}')").await?;
    go_into_the_middle(&database).await?;
    session.run("update counted set touched = 1 where id % 16 = 3; delete from counted where id % 1000 = 7").await?;
    let lent = session
        .value(
            "select jsonb_agg(jsonb_build_object('key', key, 'token', token, 'values', '{\"b\": \"c\"}'::jsonb)) from migrator.select_batch('handed', 'code', 3)",
        )
        .await?;
    let written = session.number(WRITTEN).await?;
    let (primary, database, session) = fail_over(&primary, standby, &database.name).await?;

    let (there, unfit) = (session.number(WRITTEN).await?, session.number(UNFIT).await?);
    ensure!(there < written, "the standby lost no batch: this shows nothing");
    ensure!(unfit == 0, "{unfit} rows and their names do not fit on the promoted standby");
    let late = format!(
        "select count(*) filter (where applied), count(*) from migrator.mark_applied('handed', 'code', {})",
        session::literal(&lent)
    );
    ensure!(session.row(&late).await? == ["0", "3"], "rows came back that were never handed out here");
    let mut worker = Worker::new(&database, "counted", "one").await?;
    worker.complete(&session).await?;
    let wrong = session.number(WRONG).await?;
    ensure!(wrong == 0, "{wrong} rows are not upgraded once");

    // A cleanup, which ends where the standby cannot hear of it.
    session.run("alter table counted add column y int; select migrator.register_upgrade('counted', 'y', set => '{\"y\": \"touched\"}')").await?;
    worker.complete(&session).await?;
    session.run("select migrator.retire_upgrade('counted', 'twice')").await?;
    worker.until(|step| step.rows > 0).await?;
    let standby = Arc::new(primary.standby().await?);
    standby.follows(&primary).await?;
    standby.cut_off().await?;
    session.run("select migrator.set_limit('lost_standby', ignoring => '{walreceiver}')").await?;
    const NAMED: &str = "select count(*) from counted where applied_upgrades @> '{twice}'";
    worker.complete(&session).await?;
    ensure!(session.number(NAMED).await? == 0, "the cleanup did not end");
    let (_primary, database, session) = fail_over(&primary, standby, &database.name).await?;
    ensure!(session.number(NAMED).await? > 0, "the standby heard of the whole cleanup: this shows nothing");
    let mut worker = Worker::new(&database, "counted", "two").await?;
    worker.complete(&session).await?;
    let wrong = session
        .number("select count(*) from counted where x <> 2 * id or applied_upgrades <> '{y}' or y <> touched")
        .await?;
    ensure!(wrong == 0, "{wrong} rows are not as they should be after the cleanup");
    let gone = session.value("select state from migrator.upgrade where name = 'twice'").await?;
    ensure!(gone == "retired", "the name is {gone}");
    Ok(())
}

/// The folder under which everything of a server is, as tools/get-servers laid it out.
fn root(server: &Server) -> Result<&Path> {
    let name = format!("pg{}", server.major);
    let root = server.bin.ancestors().find(|folder| folder.file_name().is_some_and(|last| *last == *name));
    root.with_context(|| format!("{} lies in no folder {name}", server.bin.display()))
}

/// Where an installation has its libraries.
async fn libraries(server: &Server) -> Result<PathBuf> {
    let mut pg_config = tokio::process::Command::new(server.program("pg_config"));
    Ok(program::run(pg_config.arg("--pkglibdir")).await?.fine()?.trim().into())
}

/// What the guide says of it: doctor tells beforehand, writes fail once it is promoted, and the files alone mend that.
async fn a_standby_without_the_library(server: Server) -> Result<()> {
    // Where the server's user can reach it.
    let beside = root(&server)?.parent().context("an installation lies in a folder")?;
    let folder = tempfile::Builder::new().prefix("bare.").tempdir_in(beside)?;
    let bare = folder.path().join(format!("pg{}", server.major));
    let copied = tokio::process::Command::new("cp").arg("-al").arg(root(&server)?).arg(&bare).status().await?;
    let opened = tokio::process::Command::new("chmod").arg("755").arg(folder.path()).status().await?;
    ensure!(copied.success() && opened.success(), "the installation cannot be copied");
    let bare = Server { major: server.major, bin: bare.join(server.bin.strip_prefix(root(&server)?)?) };
    let library = libraries(&bare).await?.join("migrator.so");
    std::fs::remove_file(&library)?;

    let primary = server.cluster(&SENT).await?;
    let database = Database::create(&primary, true).await?;
    let session = database.connect().await?;
    session
        .run("create table kept (id int primary key); insert into kept select g from generate_series(1, 100) g")
        .await?;
    let standby = Arc::new(primary.standby_of(&bare).await?);
    let change = Change::create(&database, "public.kept", "alter column id type bigint").await?;
    change.until(|advance| advance.state == "syncing").await?;
    standby.follows(&primary).await?;
    let told = program::run(agent(&Database::of(&standby, &database.name))?.arg("doctor")).await?;
    ensure!(told.code != 0, "doctor finds nothing wrong: {}", told.stdout);
    let told = told.stdout + &told.stderr;
    ensure!(
        told.contains("migrator") && told.contains("could not access file"),
        "doctor does not say what is missing: {told}"
    );

    let (_standby, database, session) = fail_over(&primary, standby, &database.name).await?;
    let refusal = session.refusal("insert into kept values (101)").await?;
    ensure!(refusal.message.contains("could not access file"), "{refusal}");
    std::fs::copy(libraries(&server).await?.join("migrator.so"), &library)?;
    session.run("insert into kept values (101)").await?;
    let change = Change::of(&database, change.id);
    hurry(&change, |advance| advance.state == "ready").await?;
    change.swap().await?;
    ensure!(session.number("select count(*) from kept").await? == 101, "rows lost");
    change.finish().await?;
    nothing_left_behind(&database).await
}
