//! The bench: what a change costs, side by side with pg_repack and with a blocking ALTER TABLE, on PostgreSQL 15.
//!
//! MIGRATOR_SCALE: millions of rows (2). `--rounds N`: how often each is measured, in turn (3); medians count.
//! `--only PART,…`: of whole, copy, capture, lock, upgrades, late, guard. `--json` prints the results as JSON; they are also in
//! target/bench.json. `--check` ends with an error when a limit is broken.

mod beside;
mod guarded;
mod late;
mod sweep;
mod turns;
mod upgrades;

use migrator_tests::lock_watch::LockWatch;
use migrator_tests::program::{agent, postgresql};
use migrator_tests::servers::target;
use migrator_tests::traffic::Traffic;
use migrator_tests::*;
use serde_json::json;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The same for everybody who is measured: nothing is left to checkpoints and autovacuum.
const SETTINGS: [(&str, &str); 9] = [
    ("fsync", "on"),
    ("synchronous_commit", "on"),
    ("full_page_writes", "on"),
    ("wal_level", "replica"),
    ("shared_buffers", "1GB"),
    ("maintenance_work_mem", "256MB"),
    ("max_wal_size", "16GB"),
    ("checkpoint_timeout", "1h"),
    ("autovacuum", "off"),
];

/// Connections that work at the same time, for migrator and for pg_repack alike.
const JOBS: &str = "2";

const PARTS: [&str; 7] = ["whole", "copy", "capture", "lock", "upgrades", "late", "guard"];

struct Wishes {
    rows: i64,
    rounds: usize,
    only: Vec<String>,
    json: bool,
    check: bool,
}

/// One line of the result.
struct Line {
    name: &'static str,
    ours: f64,
    theirs: Option<f64>,
    unit: &'static str,
    limit: f64,
    note: String,
}

impl Line {
    /// What the limit is about: a ratio where there is something to compare with, the value itself otherwise.
    fn measure(&self) -> f64 {
        self.theirs.map_or(self.ours, |theirs| self.ours / theirs)
    }

    fn passes(&self) -> bool {
        self.measure() <= self.limit
    }
}

fn main() -> ExitCode {
    program::end(bench())
}

fn bench() -> Result<()> {
    let wishes = wishes()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (version, lines) = runtime.block_on(measure(&wishes))?;
    let result = json!({
        "format": 1,
        "postgresql": version,
        "rows": wishes.rows,
        "rounds": wishes.rounds,
        "results": lines.iter().map(|line| json!({
            "name": line.name, "ours": line.ours, "theirs": line.theirs, "unit": line.unit,
            "measure": line.measure(), "limit": line.limit, "pass": line.passes(), "note": line.note,
        })).collect::<Vec<_>>(),
    });
    std::fs::create_dir_all(target())?;
    std::fs::write(target().join("bench.json"), serde_json::to_string_pretty(&result)?)?;
    if wishes.json {
        println!("{}", serde_json::to_string_pretty(&result)?);
    } else {
        print(&version, &wishes, &lines);
    }
    let broken: Vec<&str> = lines.iter().filter(|line| !line.passes()).map(|line| line.name).collect();
    ensure!(!wishes.check || broken.is_empty(), "over the limit: {}", broken.join(", "));
    Ok(())
}

fn wishes() -> Result<Wishes> {
    let scale: f64 = std::env::var("MIGRATOR_SCALE").ok().map_or(Ok(2.0), |text| text.parse())?;
    let mut wishes = Wishes { rows: (scale * 1e6) as i64, rounds: 3, only: vec![], json: false, check: false };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--json" => wishes.json = true,
            "--check" => wishes.check = true,
            "--only" => {
                let parts = arguments.next().unwrap_or_default();
                wishes.only = parts.split(',').map(str::to_string).collect();
                let known = wishes.only.iter().all(|part| PARTS.contains(&part.as_str()));
                ensure!(known, "--only takes some of {}, with commas between them", PARTS.join(", "));
            }
            "--rounds" => wishes.rounds = arguments.next().context("--rounds takes a number")?.parse()?,
            other => bail!("unknown argument {other}: --only PART,…, --rounds N, --json, --check"),
        }
    }
    Ok(wishes)
}

fn print(version: &str, wishes: &Wishes, lines: &[Line]) {
    println!("\nPostgreSQL {version}, {} rows, medians of {} rounds\n", wishes.rows, wishes.rounds);
    println!("{:<44}{:>12}{:>12}{:>9}{:>9}", "", "migrator", "other", "measure", "limit");
    for line in lines {
        let other = line.theirs.map_or(String::new(), |theirs| format!("{theirs:.2} {}", line.unit));
        println!(
            "{:<44}{:>12}{:>12}{:>9.2}{:>9.2}  {}  {}",
            line.name,
            format!("{:.2} {}", line.ours, line.unit),
            other,
            line.measure(),
            line.limit,
            if line.passes() { "PASS" } else { "FAIL" },
            line.note
        );
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[length / 2],
        length => (sorted[length / 2 - 1] + sorted[length / 2]) / 2.0,
    }
}

async fn timed<T>(work: impl Future<Output = Result<T>>) -> Result<(f64, T)> {
    let begun = Instant::now();
    let value = work.await?;
    Ok((begun.elapsed().as_secs_f64(), value))
}

async fn measure(wishes: &Wishes) -> Result<(String, Vec<Line>)> {
    let server = Server::of(15)?.context("the bench needs PostgreSQL 15: make setup")?;
    let cluster = server.cluster(&SETTINGS).await?;
    let database = Database::create(&cluster, true).await?;
    let session = database.connect().await?;
    let version = session.value("show server_version").await?;
    let repack = session.run("create extension pg_repack").await.is_ok() && server.program("pg_repack").exists();
    if !repack {
        eprintln!("pg_repack is not installed in this server: that comparison is left out (make setup-extras)");
    }
    eprintln!("filling a table of {} rows", wishes.rows);
    session
        .run(&format!(
            "create unlogged table base as select g::int as id, (g::bigint * 7919 % 1000003)::int as a, md5(g::text) as b,
                 timestamptz '2020-01-01' + g * interval '1 second' as c, (g % 10000) / 100.0 as d, repeat('x', (g % 60)::int) as e
             from generate_series(1, {}) g",
            wishes.rows
        ))
        .await?;

    // Every page of the shared buffers is touched once, or whoever is measured first pays for it.
    for _ in 0..2 {
        fresh(&session).await?;
    }
    let wanted = |part: &str| wishes.only.is_empty() || wishes.only.iter().any(|only| only == part);
    let mut lines = vec![];
    if wanted("whole") {
        lines.extend(whole_changes(&database, &session, wishes, repack).await?);
    }
    if wanted("copy") {
        lines.extend(copy_alone(&database, &session, wishes).await?);
    }
    if wanted("capture") {
        lines.push(captured_updates(&database, &session, wishes).await?);
    }
    if wanted("lock") {
        lines.push(lock_hold(&database, &session, wishes).await?);
    }
    session.run("drop table if exists big, base").await?;
    if wanted("upgrades") {
        // Servers of their own: what runs in one for long keeps VACUUM in all its databases from removing rows.
        let clusters = [server.cluster(&SETTINGS).await?, server.cluster(&SETTINGS).await?];
        let others = [&Database::create(&clusters[0], false).await?, &Database::create(&clusters[1], false).await?];
        let places = upgrades::Places { database: &database, session: &session, others, rows: wishes.rows };
        lines.extend(upgrades::measure(&places, wishes.rounds).await?);
    }
    if wanted("late") {
        lines.push(late::measure(&database, &session, wishes.rows).await?);
    }
    if wanted("guard") {
        lines.extend(guarded::measure(&database, &session, wishes.rounds).await?);
    }
    Ok((version, lines))
}

/// The table as every measurement finds it: new, indexed, vacuumed, on disk.
async fn fresh(session: &Session) -> Result<()> {
    session
        .run(
            "drop table if exists big;
             create table big (id int, a int not null, b text not null, c timestamptz not null, d numeric, e text);
             insert into big select * from base;
             alter table big add primary key (id); create index big_a on big (a)",
        )
        .await?;
    session.run("vacuum (freeze, analyze) big").await?;
    session.run("checkpoint").await?;
    Ok(())
}

async fn whole_changes(database: &Database, session: &Session, wishes: &Wishes, repack: bool) -> Result<Vec<Line>> {
    let (mut ours, mut repacked, mut altered, mut memory) = (vec![], vec![], vec![], 0_f64);
    for round in 1..=wishes.rounds {
        fresh(session).await?;
        let (seconds, peak) = timed(change_by_agent(database)).await?;
        session.run("select migrator.finish('big')").await?;
        ours.push(seconds);
        memory = memory.max(peak);
        if repack {
            fresh(session).await?;
            let mut command = postgresql(database, "pg_repack");
            command.args(["--no-order", "--table=big", "--jobs", JOBS, &format!("--dbname={}", database.name)]);
            let run = async { program::run(&mut command).await?.fine() };
            repacked.push(timed(run).await?.0);
        }
        fresh(session).await?;
        let alter = async {
            session.run("alter table big alter column id type bigint").await?;
            session.run("analyze big").await?;
            Ok(())
        };
        altered.push(timed(alter).await?.0);
        eprintln!(
            "round {round}: whole change {seconds:.1} s, pg_repack {:.1} s, ALTER TABLE {:.1} s",
            repacked.last().unwrap_or(&f64::NAN),
            altered[altered.len() - 1]
        );
    }
    let mut lines = vec![];
    if repack {
        lines.push(Line {
            name: "whole change / pg_repack",
            ours: median(&ours),
            theirs: Some(median(&repacked)),
            unit: "s",
            limit: 1.2,
            note: "create_shadow to swap; verify, VACUUM and ANALYZE included".into(),
        });
    }
    lines.push(Line {
        name: "whole change / blocking ALTER TABLE",
        ours: median(&ours),
        theirs: Some(median(&altered)),
        unit: "s",
        limit: f64::INFINITY,
        note: "for comparison: it blocks everybody all the time".into(),
    });
    lines.push(Line {
        name: "memory of the agent",
        ours: memory,
        theirs: None,
        unit: "MiB",
        limit: 64.0,
        note: "highest resident size".into(),
    });
    Ok(lines)
}

/// A whole change by the program, to the swap; returns its highest resident size in MiB.
async fn change_by_agent(database: &Database) -> Result<f64> {
    let mut command = agent(database)?;
    command
        .args([
            "alter",
            "big",
            "alter column id type bigint",
            "--strategy",
            "shadow",
            "--swap",
            "--jobs",
            JOBS,
            "--quiet",
        ])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true);
    let mut child = command.spawn()?;
    let status = format!("/proc/{}/status", child.id().context("it runs")?);
    let mut peak = 0_f64;
    loop {
        if let Ok(text) = std::fs::read_to_string(&status)
            && let Some(line) = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))
        {
            peak = peak.max(line.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap_or(0.0) / 1024.0);
        }
        if let Ok(ended) = tokio::time::timeout(Duration::from_millis(10), child.wait()).await {
            let ended = ended?;
            ensure!(ended.success(), "migrator alter ended with {ended}");
            return Ok(peak);
        }
    }
}

async fn copy_alone(database: &Database, session: &Session, wishes: &Wishes) -> Result<Vec<Line>> {
    let (mut ours, mut theirs, mut late) = (vec![], vec![], vec![]);
    for round in 1..=wishes.rounds {
        fresh(session).await?;
        session.run("create table plain (like big)").await?;
        let insert = async { Ok(session.run("insert into plain select * from big").await?) };
        theirs.push(timed(insert).await?.0);
        session.run("drop table plain").await?;
        session.run("checkpoint").await?;

        let change = Change::create(database, "public.big", "alter column id type bigint").await?;
        session.run("select migrator.start_sync('public.big')").await?;
        let mut batches: Vec<(f64, f64)> = vec![];
        let begun = Instant::now();
        loop {
            let (seconds, row) =
                timed(session.row("select rows, done, wait_ms from migrator.copy_batch('public.big')")).await?;
            let rows: f64 = row[0].parse()?;
            if rows > 0.0 {
                batches.push((seconds, rows));
            }
            if row[1] == "t" {
                break;
            }
            tokio::time::sleep(Duration::from_millis(row[2].parse().unwrap_or(0))).await;
        }
        ours.push(begun.elapsed().as_secs_f64());
        change.cancel().await?;

        // The first batches look for their size; from the second tenth on they have it.
        let costs: Vec<f64> = batches.iter().map(|(seconds, rows)| seconds / rows * 1e6).collect();
        let (tenth, quarter) = (costs.len() / 10, (costs.len() / 4).max(1));
        late.push((median(&costs[tenth..(tenth + quarter).min(costs.len())]), median(&costs[costs.len() - quarter..])));
        eprintln!(
            "round {round}: copy {:.2} s in {} batches, INSERT … SELECT {:.2} s",
            ours[ours.len() - 1],
            batches.len(),
            theirs[theirs.len() - 1]
        );
    }
    let (early, last): (Vec<f64>, Vec<f64>) = late.into_iter().unzip();
    Ok(vec![
        Line {
            name: "copy alone / one INSERT … SELECT",
            ours: median(&ours),
            theirs: Some(median(&theirs)),
            unit: "s",
            limit: 1.3,
            note: "one connection".into(),
        },
        Line {
            name: "late batch / early batch, a row",
            ours: median(&last),
            theirs: Some(median(&early)),
            unit: "µs",
            limit: 1.25,
            note: "medians of the last and of the first quarter".into(),
        },
    ])
}

async fn captured_updates(database: &Database, session: &Session, wishes: &Wishes) -> Result<Line> {
    let (mut with, mut without) = (vec![], vec![]);
    let update = "update big set d = d + 1 where id <= 200000";
    for round in 1..=wishes.rounds {
        for captured in [round % 2 == 0, round % 2 != 0] {
            fresh(session).await?;
            let change = Change::create(database, "public.big", "alter column a type bigint").await?;
            if captured {
                session.run("select migrator.start_sync('public.big')").await?;
            }
            let run = async { Ok(session.run(update).await?) };
            let (seconds, rows) = timed(run).await?;
            ensure!(rows == 200_000.min(wishes.rows as u64), "the UPDATE touched {rows} rows");
            if captured {
                with.push(seconds)
            } else {
                without.push(seconds)
            }
            change.cancel().await?;
        }
        eprintln!(
            "round {round}: UPDATE with capture {:.2} s, without {:.2} s",
            with[with.len() - 1],
            without[without.len() - 1]
        );
    }
    Ok(Line {
        name: "UPDATE of 200,000 rows, with capture / without",
        ours: median(&with),
        theirs: Some(median(&without)),
        unit: "s",
        limit: 1.4,
        note: "one statement".into(),
    })
}

async fn lock_hold(database: &Database, session: &Session, wishes: &Wishes) -> Result<Line> {
    fresh(session).await?;
    let change = Change::create(database, "public.big", "alter column id type bigint").await?;
    let driver = change.keep_going(2);
    change.wait_for("ready").await?;
    let script = format!("\\set id random(1, {})\nupdate big set d = d + 1 where id = :id;\n", wishes.rows);
    let traffic = Traffic::start(database, &[&script], 1000, 4)?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (mut holds, mut gap) = (vec![], Duration::ZERO);
    for round in 0..wishes.rounds.max(5) {
        for swap in [true, false] {
            change.wait_for(if swap { "ready" } else { "swapped" }).await?;
            tokio::time::sleep(Duration::from_millis(500)).await;
            let watch = LockWatch::start(database, "public.big").await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
            if swap {
                change.swap().await?
            } else {
                change.rollback().await?
            }
            let seen = watch.stop().await?;
            gap = gap.max(seen.widest_gap);
            // The last hold is the one that went through; those before it were attempts given up.
            let hold = seen.each.last().context("the lock was never seen")?.as_secs_f64() * 1000.0;
            eprintln!("round {}: {} held the lock {hold:.1} ms", round + 1, if swap { "swap" } else { "rollback" });
            holds.push(hold);
        }
    }
    let seen = traffic.stop().await?;
    ensure!(seen.failed == 0, "{} statements of the traffic failed", seen.failed);
    change.wait_for("ready").await?;
    driver.stop().await?;
    change.cancel().await?;
    Ok(Line {
        name: "lock hold of swap and rollback",
        ours: median(&holds),
        theirs: None,
        unit: "ms",
        limit: 10.0,
        note: format!(
            "at 1,000 writes/s, by a second session; longest {:.1} ms, widest gap between looks {:.1} ms, longest statement of the traffic {:.0} ms",
            holds.iter().copied().fold(0.0, f64::max),
            gap.as_secs_f64() * 1000.0,
            seen.longest.as_secs_f64() * 1000.0
        ),
    })
}
