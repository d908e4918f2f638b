//! The demo: a table with a million rows is changed, swapped, taken back and swapped again while applications write.
//!
//! MIGRATOR_SCALE: pgbench's scale, 100,000 rows each (10). MIGRATOR_DURATION: seconds of writing after each turn (5).
//! Ends with an error if one statement of an application failed or one row is not as it should be.

use migrator_tests::lock_watch::{Holds, LockWatch};
use migrator_tests::program::{self, agent};
use migrator_tests::session::literal;
use migrator_tests::traffic::Traffic;
use migrator_tests::witness::Witness;
use migrator_tests::*;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const TABLE: &str = "public.pgbench_accounts";
const ACTIONS: &str = "alter column aid type bigint, add column note text, add column standing text";
const TRANSFORM: &str = r#"{"standing": "case when abalance < 0 then 'overdrawn' else 'in credit' end"}"#;
const RATE: u32 = 600;

/// One statement that writes two tables: what accounts hold must at every moment be what history says.
const SCRIPT: &str = r"\set aid random(1, 100000 * :scale)
\set delta random(-5000, 5000)
with h as (insert into pgbench_history (tid, bid, aid, delta, mtime) values (1, 1, :aid, :delta, now()))
update pgbench_accounts set abalance = abalance + :delta where aid = :aid;
";

fn main() -> ExitCode {
    program::end(show())
}

fn show() -> Result<()> {
    let begun = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let figures = runtime.block_on(play(begun))?;
    figures.print();
    ensure!(figures.failed == 0, "{} statements of the applications failed", figures.failed);
    ensure!(figures.mismatches == 0, "{} rows are not as they should be", figures.mismatches);
    Ok(())
}

struct Figures {
    rows: i64,
    phases: Vec<(String, Duration)>,
    statements: u64,
    rate: f64,
    longest_statement: Duration,
    holds: Holds,
    failed: u64,
    mismatches: i64,
    whole: Duration,
}

fn number(name: &str, otherwise: u32) -> Result<u32> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name} is a number")),
        Err(_) => Ok(otherwise),
    }
}

/// Prints a line of the story with the time it happened at.
struct Story(Instant);

impl Story {
    fn tell(&self, text: impl AsRef<str>) {
        println!("{:>6.1} s  {}", self.0.elapsed().as_secs_f64(), text.as_ref());
    }

    fn call(&self, sql: &str) {
        self.tell(format!("  sql> {sql}"));
    }

    fn command(&self, line: &str) {
        self.tell(format!("    $ {line}"));
    }
}

async fn play(begun: Instant) -> Result<Figures> {
    let scale = number("MIGRATOR_SCALE", 10)?;
    let after_each = Duration::from_secs(number("MIGRATOR_DURATION", 5)?.into());
    let story = Story(begun);
    let server = Server::newest()?;

    println!("A table is changed while applications write to it.\n");
    story.tell(format!("starting a PostgreSQL {} of its own and filling it with pgbench, scale {scale}", server.major));
    let cluster = server.cluster(&[("fsync", "on"), ("full_page_writes", "on"), ("shared_buffers", "512MB")]).await?;
    let database = Database::create(&cluster, true).await?;
    Traffic::fill(&database, scale).await?;
    let session = database.connect_as("postgres", "demo").await?;
    session.run("create index on pgbench_accounts (bid)").await?;
    session.run("vacuum analyze pgbench_accounts").await?;
    let rows = session.number(&format!("select count(*) from {TABLE}")).await?;
    story.tell(format!("{TABLE} has {} rows, {}", thousands(rows), size(&session).await?));
    story.tell("its columns: ".to_owned() + &columns(&session).await?);

    let traffic = Traffic::start(&database, &[&SCRIPT.replace(":scale", &scale.to_string())], RATE, 4)?;
    let witness = Witness::start(&database, TABLE, 1).await?;
    let live = Instant::now();
    story.tell(format!("pgbench writes now, {RATE} statements a second, and a client that checks its own rows"));
    tokio::time::sleep(after_each).await;

    println!();
    story.tell("a shadow table with the new columns; the live table does not notice");
    story.call(&format!("select migrator.create_shadow('{TABLE}', '{ACTIONS}', transform => '{{\"standing\": …}}')"));
    let mut clock = Clock::new();
    let arguments = format!("actions => {}, transform => {}", literal(ACTIONS), literal(TRANSFORM));
    let change = Change::create_with(&database, TABLE, &arguments).await?;
    clock.phase("create_shadow");

    story.command("migrator prepare pgbench_accounts");
    let phases = PhaseWatch::start(&database, &change);
    let mut prepare = agent(&database)?;
    program::run(prepare.args(["prepare", "pgbench_accounts"])).await?.fine()?;
    clock.phases.extend(phases.stop().await?);
    clock.restart();
    story.tell(format!("copied, indexed, caught up and verified: {}", change.state().await?));

    story.call(&format!("select * from migrator.verify('{TABLE}')"));
    let compared = change.verify().await?;
    clock.phase("verify once more");
    story.tell(format!("{} rows compared, no difference", thousands(compared)));

    println!();
    let mut holds = Holds::default();
    story.call(&format!("select * from migrator.swap('{TABLE}')"));
    watched(&database, &mut holds, change.swap()).await?;
    clock.phase("swap");
    story.tell("swapped. Its columns: ".to_owned() + &columns(&session).await?);
    let driver = change.keep_going(1);
    tokio::time::sleep(after_each).await;
    let first = look(&session, &witness).await?;
    story.tell("the applications go on with the new table; the old one is kept in step");

    clock.restart();
    story.call(&format!("select * from migrator.rollback('{TABLE}')"));
    watched(&database, &mut holds, change.rollback()).await?;
    clock.phase("rollback");
    story.tell("taken back. Its columns: ".to_owned() + &columns(&session).await?);
    let second = look(&session, &witness).await?;
    story.tell(format!("every write of the last {} s is in the old table", after_each.as_secs()));
    tokio::time::sleep(after_each).await;

    println!();
    clock.restart();
    change.wait_for("ready").await?;
    clock.phase("ready again");
    driver.stop().await?;
    story.command("migrator swap pgbench_accounts");
    let mut swap = agent(&database)?;
    let swap = program::run(swap.args(["swap", "pgbench_accounts"]));
    watched(&database, &mut holds, async { swap.await?.fine().map(|_| ()) }).await?;
    clock.phase("second swap");
    story.tell("swapped again. Its columns: ".to_owned() + &columns(&session).await?);
    tokio::time::sleep(after_each).await;
    let third = look(&session, &witness).await?;

    clock.restart();
    story.command("migrator finish pgbench_accounts");
    let mut finish = agent(&database)?;
    program::run(finish.args(["finish", "pgbench_accounts"])).await?.fine()?;
    clock.phase("finish");
    tokio::time::sleep(Duration::from_secs(1)).await;

    let lived = live.elapsed();
    let seen = traffic.stop().await?;
    let balance = out_of_balance(&session).await?;
    let testimony = witness.stop().await?;
    left_behind::nothing_left_behind(&database).await?;
    story.tell("finished: nothing is left of the change but the new table");
    for words in testimony.failed.iter().take(3) {
        println!("          {words}");
    }
    Ok(Figures {
        rows: session.number(&format!("select count(*) from {TABLE}")).await?,
        phases: clock.phases,
        statements: seen.transactions + testimony.statements,
        rate: (seen.transactions + testimony.statements) as f64 / lived.as_secs_f64(),
        longest_statement: seen.longest.max(testimony.longest),
        holds,
        failed: seen.failed + testimony.failed.len() as u64,
        mismatches: first + second + third + balance + testimony.mismatches as i64,
        whole: begun.elapsed(),
    })
}

/// Rows of the accounts whose balance is not what history adds up to, in one snapshot, and a look by the witness.
async fn look(session: &Session, witness: &Witness) -> Result<i64> {
    witness.check().await?;
    out_of_balance(session).await
}

async fn out_of_balance(session: &Session) -> Result<i64> {
    session
        .number(
            "select count(*) from (select aid, sum(delta) as delta from pgbench_history group by aid) h \
             full join (select aid, abalance from pgbench_accounts where aid < 1500000000) a using (aid) \
             where a.aid is null or coalesce(h.delta, 0) <> a.abalance",
        )
        .await
}

/// Runs a step while a second session looks at the locks.
async fn watched(database: &Database, holds: &mut Holds, step: impl Future<Output = Result<()>>) -> Result<()> {
    let watch = LockWatch::start(database, TABLE).await?;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let outcome = step.await;
    let seen = watch.stop().await?;
    holds.each.extend(seen.each);
    holds.widest_gap = holds.widest_gap.max(seen.widest_gap);
    outcome
}

/// Seconds of each phase, as the demo or `migrator.status` saw them.
struct Clock {
    since: Instant,
    phases: Vec<(String, Duration)>,
}

impl Clock {
    fn new() -> Clock {
        Clock { since: Instant::now(), phases: Vec::new() }
    }

    fn restart(&mut self) {
        self.since = Instant::now();
    }

    fn phase(&mut self, name: &str) {
        self.phases.push((name.to_owned(), self.since.elapsed()));
        self.restart();
    }
}

/// Reads the phases of a preparation out of `migrator.status`.
struct PhaseWatch {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    task: tokio::task::JoinHandle<Result<Vec<(String, Duration)>>>,
}

impl PhaseWatch {
    fn start(database: &Database, change: &Change) -> PhaseWatch {
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (stopped, database, id) = (stop.clone(), database.clone(), change.id);
        let task = tokio::spawn(async move {
            let session = database.connect_as("postgres", "demo:phases").await?;
            let mut phases: Vec<(String, Duration)> = Vec::new();
            let mut since = Instant::now();
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                let phase = session.value(&format!("select phase from migrator.status where change = {id}")).await?;
                let elapsed = since.elapsed();
                since = Instant::now();
                match phases.iter_mut().find(|(name, _)| *name == phase) {
                    Some((_, time)) => *time += elapsed,
                    None => phases.push((phase, elapsed)),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            phases.retain(|(name, _)| !matches!(name.as_str(), "created" | "ready"));
            Ok(phases)
        });
        PhaseWatch { stop, task }
    }

    async fn stop(self) -> Result<Vec<(String, Duration)>> {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        self.task.await?
    }
}

async fn columns(session: &Session) -> Result<String> {
    Ok(session
        .value(&format!(
            "select string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' order by attnum) \
             from pg_attribute where attrelid = '{TABLE}'::regclass and attnum > 0 and not attisdropped"
        ))
        .await?)
}

async fn size(session: &Session) -> Result<String> {
    Ok(session.value(&format!("select pg_size_pretty(pg_total_relation_size('{TABLE}'))")).await?)
}

fn thousands(number: i64) -> String {
    let digits = number.to_string();
    let grouped: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap_or_default()).collect();
    grouped.join(",")
}

/// Statements a second below which the demo says that it shows less than it means to.
const ENOUGH: f64 = 500.0;

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

impl Figures {
    fn print(&self) {
        let line = |name: &str, value: String| println!("  {name:<28}{value:>14}");
        println!();
        line("rows", thousands(self.rows));
        for (name, time) in &self.phases {
            line(&name.replace('_', " "), format!("{:.2} s", time.as_secs_f64()));
        }
        line("statements of applications", thousands(self.statements as i64));
        line("  a second", format!("{:.0}", self.rate));
        if self.rate < ENOUGH {
            println!("  (fewer than the {ENOUGH:.0} a second that were meant to be: this machine is busy)");
        }
        line("  longest", milliseconds(self.longest_statement));
        line("longest lock hold", milliseconds(self.holds.longest()));
        line("failed statements", self.failed.to_string());
        line("mismatches", self.mismatches.to_string());
        line("the whole demo", format!("{:.0} s", self.whole.as_secs_f64()));
        println!(
            "\nThe lock hold is the time in which ACCESS EXCLUSIVE was held on the table, {} times, seen by a second session\n\
             that looked at pg_locks every millisecond; the widest gap between two looks was {}.",
            self.holds.each.len(),
            milliseconds(self.holds.widest_gap)
        );
    }
}
