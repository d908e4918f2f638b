//! A small real application from one version to the next: the old one and the new one write the same rows at the same time
//! while they are upgraded, by SQL and by the application's own code; then the old one goes, then the names. Behind PgBouncer,
//! each version some processes of its own (`clients/typescript/example`), which read what they must see at every moment and say what
//! the database acknowledged.

use migrator_tests::bouncer::Bouncer;
use migrator_tests::change::PATIENCE;
use migrator_tests::program::{find, run};
use migrator_tests::servers::top;
use migrator_tests::upgrades::states;
use migrator_tests::*;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

for_each_server!(an_application_that_evolves);

/// What the processes said, in no order: the database counts the edits of a row.
type Said = Arc<Mutex<Vec<Value>>>;

/// A running process of the application.
struct Process {
    name: String,
    child: Child,
    said: Said,
    listening: JoinHandle<()>,
}

impl Process {
    fn start(bouncer: &Bouncer, version: &str, seed: u64) -> Result<Process> {
        let mut child = Command::new("node")
            .arg(top().join("clients/typescript/dist/example").join(format!("{version}.js")))
            .envs(bouncer.environment())
            .env("SEED", (seed % 1_000_000_007).to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let said = Said::default();
        let (lines, out) = (said.clone(), child.stdout.take().context("its output is piped")?);
        let listening = tokio::spawn(async move {
            let mut out = BufReader::new(out).lines();
            while let Ok(Some(line)) = out.next_line().await {
                let line = serde_json::from_str(&line).unwrap_or(Value::Null);
                lines.lock().expect("nobody panics with it").push(line);
            }
        });
        Ok(Process { name: version.to_owned(), child, said, listening })
    }

    fn count(&self) -> usize {
        self.said.lock().expect("nobody panics with it").len()
    }

    /// Until it has said so many things more.
    async fn more(&mut self, lines: usize) -> Result<()> {
        let (deadline, enough) = (Instant::now() + PATIENCE, self.count() + lines);
        while self.count() < enough {
            if let Some(ended) = self.child.try_wait()? {
                bail!("{} ended with {ended}, see what it printed", self.name);
            }
            ensure!(Instant::now() < deadline, "{} does nothing", self.name);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Ends it as it wants to end, and gives what it said.
    async fn stop(mut self) -> Result<Vec<Value>> {
        drop(self.child.stdin.take());
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await.context("it does not end")??;
        ensure!(ended.success(), "{} ended with {ended}, see what it printed", self.name);
        self.listening.await?;
        let said = self.said.lock().expect("nobody panics with it");
        Ok(said.clone())
    }
}

/// Somebody who calls `step` again and again through the pooler.
fn drive(bouncer: &Arc<Bouncer>, stop: &Arc<AtomicBool>) -> JoinHandle<Result<()>> {
    let (bouncer, stop) = (bouncer.clone(), stop.clone());
    tokio::spawn(async move {
        let session = bouncer.connect().await?;
        while !stop.load(Ordering::Relaxed) {
            let step = match session.rows("select state, wait_ms, reason from migrator.step('article', 'driver')").await
            {
                Ok(rows) => rows.concat().into_iter().map(Option::unwrap_or_default).collect::<Vec<_>>(),
                Err(error) if error.is_worth_retrying() => continue,
                Err(error) => return Err(error.into()),
            };
            ensure!(step[0] != "blocked", "{step:?}");
            tokio::time::sleep(Duration::from_millis(step[1].parse::<u64>()?.min(100))).await;
        }
        Ok(())
    })
}

/// What was said is what is there: each edit once, and each column as the last edit that wrote it left it.
async fn nothing_is_lost(session: &Session, said: Vec<Value>) -> Result<()> {
    let mut articles: BTreeMap<i64, BTreeMap<i64, Value>> = BTreeMap::new();
    for id in 1..=600 {
        let first = serde_json::json!({"headline": "headline", "content": format!("content {id}\n\n{id}.jpg"), "status": "live"});
        articles.entry(id).or_default().insert(0, first);
    }
    for edit in said {
        let id = edit["id"].as_str().context("an edit of no article")?.parse()?;
        let number = edit["edits"].as_i64().context("an edit without its number")?;
        let twice = articles.entry(id).or_default().insert(number, edit);
        ensure!(twice.is_none(), "article {id}: edit {number} was acknowledged twice: {twice:?}");
    }
    let rows = session.rows("select id, edits, headline, content, status from article").await?;
    let mut there = BTreeMap::new();
    for row in rows {
        let row: Vec<String> = row.into_iter().map(Option::unwrap_or_default).collect();
        there.insert(row[0].parse::<i64>()?, row);
    }
    for (id, edits) in articles {
        let last = edits.keys().next_back().copied().unwrap_or(0);
        ensure!(edits.len() as i64 == last + 1, "article {id}: an edit was lost, or never acknowledged");
        let gone = edits[&last]["deleted"] == true;
        let Some(row) = there.remove(&id) else {
            ensure!(gone, "article {id} is lost");
            continue;
        };
        ensure!(!gone && row[1] == last.to_string(), "article {id} has {} edits of {last}", row[1]);
        for (column, is) in ["headline", "content", "status"].into_iter().zip(&row[2..]) {
            let written = edits.values().rev().find_map(|edit| edit[column].as_str());
            ensure!(written == Some(is), "{column} of article {id} is {is:?}, and was written as {written:?}");
        }
    }
    ensure!(there.is_empty(), "articles that nobody wrote: {:?}", there.keys());
    Ok(())
}

/// What `toBlocks` makes, in SQL, and the flag.
const WRONG: &str = r"select count(*) from article where is_live is distinct from (status = 'live')
    or blocks is distinct from (select jsonb_agg(jsonb_build_object('kind', case when p ~ '\.jpg$' then 'image' else 'text' end, 'value', p) order by n)
       from unnest(string_to_array(content, e'\n\n')) with ordinality as piece(p, n))";

async fn an_application_that_evolves(server: Server) -> Result<()> {
    if find("node").is_none() || find("npm").is_none() {
        story::skipped(&format!("an application on {}", server.major), "node and npm are not installed");
        return Ok(());
    }
    let database = server.database().await?;
    let Some(bouncer) = Bouncer::start(&database, "transaction").await?.map(Arc::new) else { return Ok(()) };
    run(Command::new(top().join("tools/test-clients")).arg("--build")).await?.fine()?;
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let session = bouncer.connect().await?;
    session
        .run(
            "create table article (id bigint generated always as identity primary key, headline text not null, content text not null,
                 status text not null default 'live', edits int not null default 0);
             create function count_edit() returns trigger language plpgsql as 'begin new.edits := old.edits + 1; return new; end';
             create trigger count_edit before update of headline, content, status on article for each row execute function count_edit();
             insert into article (headline, content) select 'headline', format(e'content %s\\n\\n%s.jpg', n, n) from generate_series(1, 600) n",
        )
        .await?;
    let mut said = Vec::new();
    let mut old = [Process::start(&bouncer, "old", seed)?, Process::start(&bouncer, "old", seed ^ 1)?];
    for process in &mut old {
        process.more(30).await?;
    }

    // The new shape, while the old version writes.
    session.run("alter table article add column is_live boolean, add column blocks jsonb").await?;
    session
        .run("select migrator.register_upgrade('article', 'live', '{\"is_live\": \"status = ''live''\"}', batch_size => 40)")
        .await?;
    session
        .run("select migrator.register_upgrade('article', 'blocks', inputs => '{content}', outputs => '{blocks}')")
        .await?;
    let mut new = [Process::start(&bouncer, "new", seed ^ 2)?, Process::start(&bouncer, "new", seed ^ 3)?];
    for process in &mut new {
        process.more(30).await?;
    }
    ensure!(
        session.number("select count(*) from article where not applied_upgrades @> '{live,blocks}'").await? > 0,
        "there is nothing left to upgrade while both versions write"
    );
    let stop = Arc::new(AtomicBool::new(false));
    let driver = drive(&bouncer, &stop);
    let mut workers = [Process::start(&bouncer, "worker", seed ^ 4)?, Process::start(&bouncer, "worker", seed ^ 5)?];
    for process in workers.iter_mut().chain(&mut old).chain(&mut new) {
        process.more(if process.name == "worker" { 5 } else { 150 }).await?;
    }

    // The old version goes; the new one writes on while what it has left behind is done.
    for process in old {
        said.extend(process.stop().await?);
    }
    for name in ["live", "blocks"] {
        ensured(&session, name).await?;
    }
    let shown = "select count(*) from article__current where pending_upgrades <> '{}'";
    ensure!(session.number(shown).await? == 0, "complete, and rows lack a name");
    ensure!(session.number(WRONG).await? == 0, "complete, and rows are wrong");
    for process in &mut new {
        process.more(50).await?;
    }
    for process in new {
        said.extend(process.stop().await?);
    }
    let mut applied = 0;
    for process in workers {
        applied += process.stop().await?.iter().filter_map(|line| line["applied"].as_i64()).sum::<i64>();
    }
    ensure!(applied > 300, "the workers did only {applied} rows");

    // A version that knows no names writes while they go.
    let mut newest = Process::start(&bouncer, "newest", seed ^ 6)?;
    newest.more(20).await?;
    let rows_lose_it = session.value("select migrator.retire_upgrade('article', 'live')").await?;
    ensure!(rows_lose_it == "in batches", "{rows_lose_it}");
    newest.more(20).await?;
    session.value("select migrator.retire_upgrade('article', 'blocks')").await?;
    let deadline = Instant::now() + PATIENCE;
    while !states(&session, "article").await?.is_empty() {
        ensure!(Instant::now() < deadline, "still there: {}", states(&session, "article").await?);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    newest.more(20).await?;
    said.extend(newest.stop().await?);
    stop.store(true, Ordering::Relaxed);
    driver.await??;
    ensure!(
        session.number("select count(*) from article where applied_upgrades <> '{}'").await? == 0,
        "names are left"
    );
    ensure!(session.number(WRONG).await? == 0, "rows are wrong");
    nothing_is_lost(&session, said).await
}

/// As a migration of the application would ask for it.
async fn ensured(session: &Session, name: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let ask = format!("select migrator.ensure_upgraded('article', '{name}', wait => '2 s')");
    while let Err(error) = session.run(&ask).await {
        ensure!(error.code == "55000" && Instant::now() < deadline, "{error}");
    }
    Ok(())
}
