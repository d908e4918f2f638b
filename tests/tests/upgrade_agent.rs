//! The program and upgrades of rows: it brings all rows up over several connections, a kill -9 costs nothing, people can
//! stop it, look at it and decide about what it set aside, and the daemon does all of it by itself.

use migrator_tests::change::PATIENCE;
use migrator_tests::program::{Outcome, agent, daemon, run, say, terminate};
use migrator_tests::upgrades::states;
use migrator_tests::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::process::Child;
use tokio::task::JoinHandle;

for_each_server!(beside_writers_and_with_lost_connections, each_row_once_whenever_it_is_killed);
for_newest_server!(
    two_daemons_and_two_tables,
    told_to_stop,
    a_table_that_is_renamed_meanwhile,
    paused_and_resumed_at_run_time,
    rows_that_are_set_aside,
    a_right_that_comes_later,
    what_is_shown_and_what_a_dry_run_writes
);

/// A table whose upgrade must not be done twice to a row, and not to one that was written in the new shape.
fn counted(rows: i64) -> String {
    format!(
        "create table counted (id bigint primary key, x bigint not null, touched int not null default 0);
         insert into counted (id, x) select g, g from generate_series(1, {rows}) g; analyze counted"
    )
}

/// So many rows are two chunks at least, for two workers: 20,000 each, by a sample which may be wrong by a quarter.
const TWO_CHUNKS: i64 = 60_000;
const FEW: i64 = 8_000;
fn twice(batch: i64) -> String {
    format!(
        "select migrator.register_upgrade('counted', 'twice', '{{\"x\": \"x * 2\"}}', safe_in_place => true, batch_size => {batch})"
    )
}

const WRONG: &str = "select count(*) from counted where x <> 2 * id or not applied_upgrades @> '{twice}'";

/// Clients that insert rows of the new shape and touch other columns, until they are told to stop.
struct Writers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Result<Vec<i64>>>>,
}

impl Writers {
    fn start(database: &Database) -> Writers {
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = (1..3).map(|number| tokio::spawn(write(database.clone(), number, stop.clone()))).collect();
        Writers { stop, tasks }
    }

    /// Insists that no write was refused, and that each acknowledged one is there, once.
    async fn end(self, session: &Session) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let (mut touches, mut inserted) = (0, 0);
        for task in self.tasks {
            let written = task.await??;
            touches += written.iter().filter(|id| **id == 0).count();
            inserted += written.iter().filter(|id| **id > 0).count();
            let ids: Vec<String> = written.iter().filter(|id| **id > 0).map(i64::to_string).collect();
            let found = format!("select count(*) from counted where id in (0, {})", ids.join(", "));
            ensure!(session.number(&found).await? == i64::try_from(ids.len())?, "rows that were written are not there");
        }
        ensure!(touches > 10 && inserted > 10, "the writers hardly wrote: {touches} updates, {inserted} inserts");
        let found = session.number("select sum(touched) from counted").await?;
        ensure!(found == i64::try_from(touches)?, "of {touches} updates {found} are there");
        Ok(())
    }
}

/// The ids that it inserted, and a zero for each update.
async fn write(database: Database, number: i64, stop: Arc<AtomicBool>) -> Result<Vec<i64>> {
    let session = database.connect_as("postgres", "writer").await?;
    let mut random = StdRng::seed_from_u64(number.unsigned_abs());
    let mut written = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let id = number * 1_000_000 + i64::try_from(written.len())?;
        let (id, sql) = match random.random_bool(0.3) {
            true => (id, format!("insert into counted (id, x) values ({id}, {})", 2 * id)),
            false => {
                let some = random.random_range(1..FEW);
                (0, format!("update counted set touched = touched + 1 where id = {some}"))
            }
        };
        match session.run(&sql).await {
            Ok(_) => written.push(id),
            Err(error) if error.is_worth_retrying() => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(written)
}

/// A command in the background; it is killed with the value.
fn begin(database: &Database, arguments: &[&str]) -> Result<Child> {
    let mut command = agent(database)?;
    command.args(arguments).kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    Ok(command.spawn()?)
}

/// Waits until a query says yes.
async fn until(session: &Session, condition: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while session.value(&format!("select {condition}")).await? != "t" {
        ensure!(Instant::now() < deadline, "never so: {condition}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    Ok(())
}

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("this is no JSON: {text}"))
}

/// Workers of the program that are in the middle of something.
const AT_WORK: &str = "from pg_stat_activity where application_name ~ '^migrator:upgrade:[0-9]' and datname = current_database() and state <> 'idle'";

async fn beside_writers_and_with_lost_connections(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(&counted(TWO_CHUNKS)).await?;
    session.run("alter table counted add column half bigint").await?;
    session.run(&twice(500)).await?;
    session.run("select migrator.register_upgrade('counted', 'half', '{\"half\": \"x / 2\"}')").await?;
    let writers = Writers::start(&database);
    let child = begin(&database, &["upgrade", "run", "counted", "--workers", "3"])?;
    // As a restarted pooler or an impatient administrator would, at any point of a batch.
    for number in 0..3 {
        let worker = format!(
            "from pg_stat_activity where application_name = 'migrator:upgrade:{number}' and datname = current_database() \
             and state = 'active' and query like '%migrator.step(%'"
        );
        let deadline = Instant::now() + PATIENCE;
        while session.number(&format!("select count(pg_terminate_backend(pid)) {worker}")).await? == 0 {
            ensure!(Instant::now() < deadline, "worker {number} never takes a turn");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    let ended = child.wait_with_output().await?;
    let told = String::from_utf8_lossy(&ended.stderr).into_owned();
    ensure!(ended.status.code() == Some(0), "it ended with {}: {told}", ended.status);
    // One line each: whoever lost a connection has a new one for its next call.
    ensure!((1..=3).contains(&told.matches("no connection").count()), "three connections were ended: {told}");
    ensure!(told.contains("public.counted running: "), "no progress was shown: {told}");
    ensure!(states(&session, "counted").await? == "twice=complete half=complete", "{told}");
    writers.end(&session).await?;
    let wrong =
        session.number(&format!("{WRONG} or half is distinct from id or not applied_upgrades @> '{{half}}'")).await?;
    ensure!(wrong == 0, "{wrong} rows were not upgraded exactly once");
    until(&session, "vacuum_count > 0 from pg_stat_user_tables where relname = 'counted'").await?;
    let again = say(&database, &["upgrade", "run"]).await?.fine()?;
    ensure!(again == "upgrades of public.counted are complete: twice, half\n", "{again}");
    Ok(())
}

async fn each_row_once_whenever_it_is_killed(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(&counted(TWO_CHUNKS)).await?;
    session.run(&twice(500)).await?;
    let writers = Writers::start(&database);
    let done = "coalesce((select rows_done from migrator.upgrades), 0)";
    let mut kills = 0;
    while kills < 5 {
        let mut child = begin(&database, &["upgrade", "run", "counted", "--workers", "2"])?;
        let before = session.number(&format!("select {done}")).await?;
        let deep = before + 1000 + 300 * kills;
        until(&session, &format!("{done} > {deep} and exists (select {AT_WORK})")).await?;
        child.start_kill()?;
        child.wait().await?;
        kills += 1;
        ensure!(states(&session, "counted").await? == "twice=running", "too fast to be killed {kills} times");
    }
    // Who is started now goes on with the chunks that the dead one had.
    say(&database, &["upgrade", "run", "counted", "--workers", "2"]).await?.fine()?;
    writers.end(&session).await?;
    let wrong = session.number(WRONG).await?;
    ensure!(wrong == 0, "{wrong} rows were not upgraded exactly once");
    Ok(())
}

async fn two_daemons_and_two_tables(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(&counted(FEW)).await?;
    session.run("create table \"Order Items; --\" (id int primary key, v text, w int); insert into \"Order Items; --\" select g, g::text from generate_series(1, 3000) g").await?;
    let daemons = [daemon(&database, &["--jobs", "2"])?, daemon(&database, &["--jobs", "2"])?];
    let looks =
        "count(*) = 4 from pg_stat_activity where application_name = 'migrator:look' and datname = current_database()";
    until(&session, looks).await?;
    // They run already.
    session.run(&twice(500)).await?;
    session.run("select migrator.register_upgrade('\"Order Items; --\"', 'number', '{\"w\": \"v::int\"}')").await?;
    let change = Change::create(&database, "public.\"Order Items; --\"", "add column more int").await?;
    until(&session, "bool_and(state = 'complete') from migrator.upgrades").await?;
    ensure!(session.number(WRONG).await? == 0, "rows were not upgraded exactly once");
    ensure!(
        session.number("select count(*) from \"Order Items; --\" where w is distinct from id").await? == 0,
        "rows lack it"
    );
    change.wait_for("ready").await?;
    change.cancel().await?;
    // One more, when everything rests; and a name that goes in batches, for there is another upgrade.
    session.run("alter table counted add column half bigint").await?;
    session.run("select migrator.register_upgrade('counted', 'half', '{\"half\": \"x / 2\"}')").await?;
    until(&session, "bool_and(state = 'complete') and count(*) = 3 from migrator.upgrades").await?;
    say(&database, &["upgrade", "retire", "counted", "--name", "twice"]).await?.fine()?;
    until(&session, "not exists (select from migrator.upgrades where name = 'twice')").await?;
    ensure!(
        session.number("select count(*) from counted where half <> id or applied_upgrades <> '{half}'").await? == 0,
        "names are left"
    );
    for mut child in daemons {
        terminate(&child).await?;
        let ended = tokio::time::timeout(PATIENCE, child.wait()).await.context("SIGTERM does not end it")??;
        ensure!(ended.code() == Some(0), "a daemon ended with {ended}");
    }
    Ok(())
}

async fn told_to_stop(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(&counted(FEW)).await?;
    session.run(&twice(100)).await?;
    let child = begin(&database, &["upgrade", "run", "counted"])?;
    until(
        &session,
        &format!("exists (select from migrator.upgrades where rows_done > 1000) and exists (select {AT_WORK})"),
    )
    .await?;
    terminate(&child).await?;
    let ended = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.context("SIGTERM does not end it")??;
    let told = String::from_utf8_lossy(&ended.stderr).into_owned();
    ensure!(ended.status.code() == Some(2), "it ended with {}: {told}", ended.status);
    ensure!(told.contains("nothing is lost: go on with `migrator upgrade run public.counted`"), "{told}");
    ensure!(!told.contains("57014"), "the batch in hand was broken off: {told}");
    ensure!(session.number(&format!("select count(*) {AT_WORK}")).await? == 0, "its sessions are still at work");
    let half =
        "select count(*) from counted where x <> case when applied_upgrades @> '{twice}' then 2 * id else id end";
    ensure!(session.number(half).await? == 0, "rows and names do not fit");
    ensure!(states(&session, "counted").await? == "twice=running", "it was too fast to be stopped");
    say(&database, &["upgrade", "run", "counted", "--name", "twice"]).await?.fine()?;
    ensure!(session.number(WRONG).await? == 0, "rows were not upgraded exactly once");
    Ok(())
}

/// The program was given a name, and goes on with the table that had it.
async fn a_table_that_is_renamed_meanwhile(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(&counted(FEW)).await?;
    session.run(&twice(100)).await?;
    let child = begin(&database, &["upgrade", "run", "counted"])?;
    until(&session, "exists (select from migrator.upgrades where rows_done > 1000)").await?;
    session.run("alter table counted rename to renamed").await?;
    ensure!(states(&session, "renamed").await? == "twice=running", "it was too fast");
    let ended = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.context("it does not end")??;
    ensure!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    ensure!(session.number(&WRONG.replace("counted", "renamed")).await? == 0, "it said complete too early");
    Ok(())
}

async fn paused_and_resumed_at_run_time(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run(&counted(FEW)).await?;
    session.run(&twice(100)).await?;
    let _daemon = daemon(&database, &["--jobs", "2"])?;
    until(&session, "exists (select from migrator.upgrades where rows_done > 1000)").await?;
    let paused = say(&database, &["upgrade", "pause"]).await?.fine()?;
    ensure!(paused == "upgrades of public.counted are paused\n", "{paused}");
    // What began before it was paused ends; what begins from now on sees that it is.
    let since = session.value("select clock_timestamp()").await?;
    until(&session, &format!("not exists (select {AT_WORK} and query_start <= '{since}')")).await?;
    let marked = "select count(*) from counted where applied_upgrades @> '{twice}'";
    let before = session.number(marked).await?;
    // The daemon asks, and asks again.
    for _ in 0..2 {
        let asked = session.value("select coalesce(max(query_start), '-infinity') from pg_stat_activity where application_name ~ '^migrator:upgrade:[0-9]'").await?;
        until(&session, &format!("exists (select from pg_stat_activity where application_name ~ '^migrator:upgrade:[0-9]' and query_start > '{asked}')")).await?;
    }
    ensure!(session.number(marked).await? == before && before < FEW, "a paused table was upgraded: {before} rows");
    let status = json(&say(&database, &["status", "--json"]).await?.fine()?)?;
    ensure!(status["upgrades"][0]["state"] == "paused", "{status}");
    // In the foreground too: who waits for a paused table goes on when it does.
    let waiting = begin(&database, &["upgrade", "run", "counted"])?;
    until(
        &session,
        "count(*) = 3 from pg_stat_activity where application_name = 'migrator:look' and datname = current_database()",
    )
    .await?;
    say(&database, &["upgrade", "resume", "counted"]).await?.fine()?;
    ensure!(waiting.wait_with_output().await?.status.code() == Some(0), "who waited was told something else");
    ensure!(session.number(WRONG).await? == 0, "rows were not upgraded exactly once");
    Ok(())
}

async fn rows_that_are_set_aside(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session
        .run(
            "create table article (id int primary key, content text, size int);
             insert into article select g, case when g in (3, 500, 2000) then 'bad' || g else g::text end from generate_series(1, 2000) g;
             create function number(text) returns int immutable language sql as 'select $1::int'",
        )
        .await?;
    session.run("select migrator.register_upgrade('article', 'size', '{\"size\": \"number(content)\"}')").await?;
    let Outcome { code, stdout, .. } = say(&database, &["upgrade", "run", "article"]).await?;
    ensure!(code == 1, "rows are set aside, and it ends with {code}: {stdout}");
    ensure!(stdout.contains("not complete, waiting: 3 row(s) are set aside"), "{stdout}");
    ensure!(stdout.contains("HINT: select migrator.retry_failed('public.article', 'size');"), "{stdout}");
    let status = say(&database, &["upgrade", "status", "article", "--name", "size"]).await?.fine()?;
    ensure!(
        status.contains("set aside          3\n") && status.contains("{\"id\":\"500\"}") && status.contains("22P02"),
        "{status}"
    );
    let findings = json(&say(&database, &["doctor", "--json"]).await?.fine()?)?;
    let of_it = findings["findings"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|one| one["subject"] == "upgrade size of public.article");
    ensure!(of_it.is_some_and(|one| one["severity"] == "warning"), "doctor does not tell of it: {findings}");

    // In vain; then for one row; then for those that a better function can do; and the last one stays as it is.
    let Outcome { code, stdout, .. } = say(&database, &["upgrade", "retry"]).await?;
    ensure!(
        code == 1 && stdout.starts_with("0 row(s) of public.article are not set aside any more\n"),
        "{code}: {stdout}"
    );
    session.run("create or replace function number(text) returns int immutable language sql as $$ select case when $1 = 'bad2000' then 'x' else replace($1, 'bad', '') end::int $$").await?;
    let one =
        say(&database, &["upgrade", "retry", "article", "--name", "size", "--key", "{\"id\": 500}"]).await?.fine()?;
    ensure!(one == "1 row(s) of public.article are not set aside any more\n", "{one}");
    let rest = say(&database, &["upgrade", "retry", "article", "--json"]).await?;
    let told = json(&rest.stdout)?;
    ensure!(rest.code == 1 && told["rows"] == 1 && told["failures"][0]["key"]["id"] == "2000", "{told}");
    let waived =
        ["upgrade", "waive", "article", "--name", "size", "--key", "{\"id\": \"2000\"}", "--reason", "nobody reads it"];
    let waived = say(&database, &waived).await?.fine()?;
    ensure!(waived == "1 row(s) of public.article were waived\n", "{waived}");
    ensure!(
        session
            .value(
                "select string_agg(coalesce(size, 0)::text, ' ' order by id) from article where id in (3, 500, 2000)"
            )
            .await?
            == "3 500 0",
        "other values"
    );
    let done = say(&database, &["upgrade", "run", "article", "--json"]).await?.fine()?;
    ensure!(json(&done)?["state"] == "complete", "{done}");
    let log = say(&database, &["log", "article"]).await?.fine()?;
    ensure!(log.contains("nobody reads it") && log.contains(" complete "), "{log}");

    // Blocked: no row is to blame but what was registered.
    session.run("alter table article add column other int; create function broken(text) returns int immutable language plpgsql as 'begin return (select x from nowhere); end'").await?;
    session.run("select migrator.register_upgrade('article', 'other', '{\"other\": \"broken(content)\"}')").await?;
    let Outcome { code, stdout, .. } = say(&database, &["upgrade", "run", "article"]).await?;
    ensure!(code == 1 && stdout.contains("not complete, blocked: ") && stdout.contains("nowhere"), "{code}: {stdout}");
    ensure!(stdout.contains("HINT: ") && stdout.contains("migrator.resume_upgrades"), "{stdout}");
    let doctor = say(&database, &["doctor"]).await?;
    ensure!(doctor.code == 1 && doctor.stdout.contains("upgrades of public.article"), "{}", doctor.stdout);
    session.run("create or replace function broken(text) returns int immutable language sql as 'select 1'").await?;
    say(&database, &["upgrade", "resume", "article"]).await?.fine()?;
    say(&database, &["upgrade", "run", "article"]).await?.fine().map(drop)
}

/// What only somebody can mend he mends where nobody sees it: it is tried again and again, and told once.
async fn a_right_that_comes_later(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    let (owner, program) = (format!("owner_{}", database.name), format!("program_{}", database.name));
    session.run(&counted(FEW)).await?;
    session
        .run(&format!(
            "drop role if exists {owner}, {program}; create role {owner}; create role {program} login; grant pg_monitor to {program}; \
             alter table counted owner to {owner}"
        ))
        .await?;
    session.run(&twice(500)).await?;
    let refused = run(agent(&database)?.env("PGUSER", &program).args(["upgrade", "run", "counted"])).await?;
    ensure!(
        refused.code == 2 && refused.stderr.contains("must be owner of table"),
        "{}: {}",
        refused.code,
        refused.stderr
    );

    let log = tempfile::NamedTempFile::new()?;
    let mut command = agent(&database)?;
    command.args(["agent", "--jobs", "2"]).env("PGUSER", &program).env("NO_COLOR", "1").kill_on_drop(true);
    let mut daemon = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.reopen()?).spawn()?;
    let told = || std::fs::read_to_string(log.path());
    let deadline = Instant::now() + PATIENCE;
    while !told()?.contains("must be owner of table") {
        ensure!(Instant::now() < deadline, "it never says why: {}", told()?);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // It has been told no twice.
    let asked = "select coalesce(max(query_start), '-infinity') from pg_stat_activity where application_name ~ '^migrator:upgrade:[0-9]' and datname = current_database()";
    let since = session.value(asked).await?;
    until(&session, &format!("({asked}) > '{since}'")).await?;
    session.run(&format!("grant {owner} to {program}")).await?;
    until(&session, "bool_and(state = 'complete') from migrator.upgrades").await?;
    ensure!(session.number(WRONG).await? == 0, "rows were not upgraded exactly once");
    terminate(&daemon).await?;
    let ended = tokio::time::timeout(PATIENCE, daemon.wait()).await.context("SIGTERM does not end it")??;
    ensure!(ended.code() == Some(0), "it ended with {ended}");
    let times = told()?.matches("stopped; others go on").count();
    ensure!(times == 1, "it was told {times} times: {}", told()?);
    session.run(&format!("drop owned by {owner}, {program} cascade; drop role {owner}, {program}")).await?;
    Ok(())
}

async fn what_is_shown_and_what_a_dry_run_writes(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    let nothing = say(&database, &["upgrade", "status"]).await?;
    ensure!(nothing.code == 1 && nothing.stdout == "no upgrade is under way\n", "{}", nothing.stdout);
    let none = say(&database, &["upgrade", "run"]).await?;
    ensure!(
        none.code == 2 && none.stderr.contains("no table has upgrades") && none.stderr.contains("HINT: "),
        "{}",
        none.stderr
    );
    session
        .run(
            "create table article (id int primary key, content text, size int, n int default 0);
             insert into article select g, case when g = 7 then 'bad' else g::text end from generate_series(1, 1000) g; analyze article;
             create table other (id int primary key, v int)",
        )
        .await?;
    session.run("select migrator.register_upgrade('article', 'size', '{\"size\": \"content::int\"}')").await?;
    session
        .run("select migrator.register_upgrade('article', 'by hand', inputs => '{content}', outputs => '{n}')")
        .await?;
    session.run("select migrator.register_upgrade('other', 'v', '{\"v\": \"id\"}')").await?;

    // Two tables have some: one has to be named, and its upgrade rightly.
    let which = say(&database, &["upgrade", "run"]).await?;
    ensure!(which.code == 2 && which.stderr.contains("public.article, public.other"), "{}", which.stderr);
    let which = say(&database, &["upgrade", "retry", "article", "--name", "sise", "--json"]).await?;
    ensure!(
        which.code == 2 && json(&which.stdout)?["error"]["message"] == "table public.article has no upgrade sise",
        "{}",
        which.stdout
    );
    say(&database, &["upgrade", "run", "other"]).await?.fine()?;
    let left = say(&database, &["upgrade", "run", "article"]).await?;
    ensure!(left.code == 1, "{}", left.stdout);

    let list = json(&say(&database, &["upgrade", "list", "--json"]).await?.fine()?)?;
    let shape = |upgrade: &Value| {
        format!(
            "{} {} {} {} {}",
            upgrade["relation"], upgrade["name"], upgrade["ordinal"], upgrade["kind"], upgrade["state"]
        )
    };
    let shapes: Vec<String> = list["upgrades"].as_array().context("no array")?.iter().map(shape).collect();
    ensure!(
        list["version"] == 1
            && shapes
                == [
                    r#""public.article" "size" 1 "expression" "running""#,
                    r#""public.article" "by hand" 2 "application" "running""#,
                    r#""public.other" "v" 1 "expression" "complete""#,
                ],
        "{shapes:?}"
    );
    let status = json(&say(&database, &["upgrade", "status", "article", "--json"]).await?.fine()?)?;
    ensure!(status["upgrades"][0]["failed"] == 1 && status["failures"][0]["row"]["content"] == "bad", "{status}");
    let all = json(&say(&database, &["status", "--json"]).await?.fine()?)?;
    ensure!(
        all["changes"] == Value::Array(vec![]) && all["upgrades"].as_array().is_some_and(|open| open.len() == 2),
        "{all}"
    );
    for (command, kinds) in [("status", 2), ("list", 2)] {
        let shown = say(&database, &[command]).await?.fine()?;
        ensure!(
            shown.lines().filter(|line| line.contains(" upgrade ") && line.contains("public.article")).count() == kinds,
            "{shown}"
        );
    }
    ensure!(
        say(&database, &["list", "--all"]).await?.fine()?.contains("public.other"),
        "list --all leaves complete ones out"
    );

    // A table's log tells of both, by time.
    Change::create(&database, "public.article", "add column more int").await?.cancel().await?;
    session.run("select migrator.pause_upgrades('article')").await?;
    let log = json(&say(&database, &["log", "article", "--json"]).await?.fine()?)?;
    let events: Vec<&Value> = log["events"].as_array().context("no array")?.iter().collect();
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["kind"].as_str()).collect();
    ensure!(
        kinds.first() == Some(&"registered") && kinds.last() == Some(&"paused") && kinds.contains(&"state"),
        "{kinds:?}"
    );
    ensure!(events.is_sorted_by_key(|event| event["at"].as_str()), "{log}");
    session.run("select migrator.resume_upgrades('article')").await?;

    // In sessions that cannot write.
    for (command, code, shown) in [
        (&["upgrade", "run", "article"][..], 0, "public.article  size"),
        (&["upgrade", "pause", "article"], 0, "upgrades of public.article would be paused: size, by hand"),
        (&["upgrade", "resume", "article"], 0, "upgrades of public.article would go on: size, by hand"),
        (&["upgrade", "verify", "article"], 0, "would have every row looked at again: size, by hand"),
        (&["upgrade", "retry", "article"], 0, "1 row(s) of public.article would be tried again"),
        (&["upgrade", "retry", "article", "--key", "{\"id\": 8}"], 1, "0 row(s)"),
        (
            &["upgrade", "waive", "article", "--name", "size", "--key", "{\"id\": 7}"],
            0,
            "1 row(s) of public.article would be waived",
        ),
        (&["upgrade", "retire", "article", "--name", "size"], 1, "it cannot be retired yet"),
        (&["upgrade", "retire", "other", "--name", "v"], 0, "upgrade v of public.other would be retired"),
    ] {
        let mut dry = agent(&database)?;
        dry.args(command).arg("--dry-run").env("PGOPTIONS", "-c default_transaction_read_only=on");
        let Outcome { code: ended, stdout, stderr } = run(&mut dry).await?;
        ensure!(ended == code && stdout.contains(shown), "{command:?} ends with {ended}: {stdout}{stderr}");
        let document = json(&run(dry.arg("--json")).await?.stdout)?;
        ensure!(document["dry_run"] == true && document["version"] == 1, "{document}");
    }
    let early = say(&database, &["upgrade", "retire", "article", "--name", "size"]).await?;
    ensure!(early.code == 2 && early.stderr.contains("is not complete"), "{}", early.stderr);
    let at_once = json(&say(&database, &["upgrade", "retire", "other", "--name", "v", "--json"]).await?.fine()?)?;
    ensure!(at_once["rows_lose_it"] == "at once", "{at_once}");
    Ok(())
}
