//! Rows that are handed out to application code: to one worker at a time, whoever dies, stops or comes late; and nothing
//! that somebody else has written is lost.

use migrator_tests::session::literal;
use migrator_tests::upgrades::Worker;
use migrator_tests::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

for_each_server!(
    workers_share_the_rows_through_a_pool,
    keys_of_every_kind_in_sessions_of_every_kind,
    workers_that_do_not_come_back,
    rows_that_somebody_holds,
    the_last_call_costs_what_the_first_did,
    waiting_for_an_upgrade,
);

/// What begins the answer for a row that could not be looked at: it stays in hand.
const HELD: &str = "another session holds the row";

/// A row in hand.
#[derive(Debug, Clone)]
struct Row {
    key: String,
    token: String,
    content: String,
    times: i64,
}

async fn take(session: &Session, limit: i32, lease: &str) -> Result<Vec<Row>> {
    let sql = format!(
        "select key, token, \"row\" ->> 'content', \"row\" ->> 'times' from migrator.select_batch('article', 'code', {limit}, lease => '{lease}')"
    );
    let rows = session.rows(&sql).await?;
    rows.into_iter()
        .map(|row| {
            let mut row = row.into_iter().map(Option::unwrap_or_default);
            let mut next = || row.next().unwrap_or_default();
            Ok(Row { key: next(), token: next(), content: next(), times: next().parse()? })
        })
        .collect()
}

/// Gives rows back with what was made of them; the answers: key, whether it was applied, why not.
async fn give(session: &Session, rows: &[Row]) -> Result<Vec<(String, bool, String)>> {
    let rows: Vec<String> = rows
        .iter()
        .map(|row| {
            format!(
                r#"{{"key": {}, "token": "{}", "values": {{"made": "{}", "times": {}}}}}"#,
                row.key,
                row.token,
                row.content.to_uppercase(),
                row.times + 1
            )
        })
        .collect();
    let sql = format!(
        "select key, applied, reason from migrator.mark_applied('article', 'code', {})",
        literal(&format!("[{}]", rows.join(", ")))
    );
    let answers = session.rows(&sql).await?;
    Ok(answers
        .into_iter()
        .map(|answer| {
            let mut answer = answer.into_iter().map(Option::unwrap_or_default);
            let mut next = || answer.next().unwrap_or_default();
            (next(), next() == "t", next())
        })
        .collect())
}

fn keys(rows: &[Row]) -> Vec<i64> {
    rows.iter()
        .filter_map(|row| row.key.chars().filter(char::is_ascii_digit).collect::<String>().parse().ok())
        .collect()
}

async fn article(database: &Database, rows: i32) -> Result<Session> {
    let session = database.connect().await?;
    session
        .run(&format!(
            "create table article (id bigint primary key, content text, made text, slug text unique, times int not null default 0, note int);
             insert into article (id, content) select g, 'content ' || g from generate_series(1, {rows}) g; analyze article"
        ))
        .await?;
    session
        .run("select migrator.register_upgrade('article', 'code', inputs => '{content}', outputs => '{made,times,slug}')")
        .await?;
    Ok(session)
}

/// What several workers know together.
#[derive(Default)]
struct Ledger {
    in_hand: BTreeSet<String>,
    applied: BTreeMap<String, i64>,
    came_back: u64,
}

/// Five workers and three connections: every statement goes through whichever is free, as behind a pooler of transactions.
async fn workers_share_the_rows_through_a_pool(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = article(&database, 1500).await?;
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let pool = {
        let mut pool = Vec::new();
        for _ in 0..3 {
            pool.push(Mutex::new(database.connect_as("postgres", "pool").await?));
        }
        Arc::new(pool)
    };
    let (ledger, stop) = (Arc::new(Mutex::new(Ledger::default())), Arc::new(AtomicBool::new(false)));
    let mut workers = Vec::new();
    for number in 0..5 {
        let (pool, ledger, stop) = (pool.clone(), ledger.clone(), stop.clone());
        workers.push(tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(seed + number);
            loop {
                let was_stopped = stop.load(Ordering::Relaxed);
                let rows = {
                    // Together with the ledger, which sees rows in the order in which they were handed out.
                    let session = pool[random.random_range(0..3)].lock().await;
                    let mut ledger = ledger.lock().await;
                    let rows = take(&session, 40, "1 minute").await?;
                    for row in &rows {
                        ensure!(ledger.in_hand.insert(row.key.clone()), "{} was handed out twice", row.key);
                    }
                    rows
                };
                if rows.is_empty() && was_stopped {
                    return Ok(());
                }
                let mut rows = rows;
                while !rows.is_empty() {
                    tokio::time::sleep(Duration::from_millis(random.random_range(0..10))).await;
                    let session = pool[random.random_range(0..3)].lock().await;
                    let mut ledger = ledger.lock().await;
                    let mut answers = give(&session, &rows).await?;
                    ensure!(answers.len() == rows.len(), "{} answers for {} rows", answers.len(), rows.len());
                    if random.random_bool(0.2) {
                        // The answer was lost: the same rows again, and what was applied is not applied twice.
                        for (first, again) in answers.iter_mut().zip(give(&session, &rows).await?) {
                            ensure!(!first.1 || again.1, "{} was applied, and then it was not: {}", first.0, again.2);
                            if first.2.starts_with(HELD) {
                                *first = again; // nothing was decided the first time
                            }
                        }
                    }
                    for (key, applied, reason) in answers {
                        if reason.starts_with(HELD) {
                            continue; // still ours
                        }
                        ensure!(applied || reason.starts_with("its inputs changed"), "{key}: {reason}");
                        ledger.in_hand.remove(&key);
                        rows.retain(|row| row.key != key);
                        if applied {
                            *ledger.applied.entry(key).or_default() += 1;
                        } else {
                            ledger.came_back += 1;
                        }
                    }
                }
            }
        }));
    }
    // An application that knows nothing of it.
    let application = database.connect_as("postgres", "application").await?;
    let (begun, mut random, mut next) = (Instant::now(), StdRng::seed_from_u64(seed ^ 1), 10_000);
    // On a busy machine it takes longer until a row changes while it is in hand.
    while begun.elapsed() < Duration::from_millis(900)
        || (ledger.lock().await.came_back == 0 && begun.elapsed() < Duration::from_secs(30))
    {
        let id = random.random_range(1..1500);
        let sql = match random.random_range(0..4) {
            0 => {
                next += 1;
                format!("insert into article (id, content) values ({next}, 'late {next}')")
            }
            1 => format!("update article set note = {id} where id = {id}"),
            _ => format!(
                "update article set content = 'changed {}' where id between {id} and {id} + 5",
                random.random_range(1..1000)
            ),
        };
        application.run(&sql).await?;
    }
    stop.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.await??;
    }
    let ledger = ledger.lock().await;
    ensure!(ledger.in_hand.is_empty(), "still in hand: {:?}", ledger.in_hand);
    ensure!(ledger.came_back > 0, "no row was changed while it was in hand");
    let wrong = session
        .number(
            "select count(*) from article where made is distinct from upper(content) or applied_upgrades <> '{code}'",
        )
        .await?;
    ensure!(wrong == 0, "{wrong} rows are not what their inputs make");
    for row in session.rows("select jsonb_build_object('id', id::text), times from article").await? {
        let mut row = row.into_iter().flatten();
        let (key, times) = (row.next().unwrap_or_default(), row.next().unwrap_or_default());
        let told = ledger.applied.get(&key).copied().unwrap_or(0);
        ensure!(times.parse::<i64>()? == told, "{key} was written {times} times, and applied {told} times");
    }
    session.run("call migrator.run_upgrades('article')").await?;
    session.run("select migrator.ensure_upgraded('article', 'code')").await?;
    Ok(())
}

/// Keys that look otherwise in other sessions, composite ones, partitions; and a table that another one replaces meanwhile.
async fn keys_of_every_kind_in_sessions_of_every_kind(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    let other = database.connect().await?;
    other
        .run("set timezone = 'Asia/Kolkata'; set datestyle = 'SQL, DMY'; set intervalstyle = 'sql_standard'; set extra_float_digits = -3; set bytea_output = 'escape'")
        .await?;
    let kinds = [
        (
            "at timestamptz primary key",
            "select timestamptz '2024-03-09 20:00:00.123456+00' + g * interval '37 min' from generate_series(1, 60) g",
        ),
        (
            "day date, span interval, primary key (day, span)",
            "select date '2024-02-03', g * interval '1 day 01:02:03' from generate_series(1, 60) g",
        ),
        (
            "f float8, b bytea, primary key (f, b)",
            "select g / 3.0, decode(lpad(to_hex(g), 4, '0'), 'hex') from generate_series(1, 60) g",
        ),
        ("c char(8) collate \"C\" primary key", "select 'k' || g from generate_series(1, 60) g"),
        (
            "\"a \"\"{}\" text, u uuid, primary key (\"a \"\"{}\", u)",
            "select e'it''s \\\\ {\"x\"}', gen_random_uuid() from generate_series(1, 60) g",
        ),
        ("n numeric primary key", "select g::numeric / 100 from generate_series(1, 60) g"),
    ];
    for (number, (columns, rows)) in kinds.into_iter().enumerate() {
        let table = format!("kind_{number}");
        session.run(&format!("create table {table} ({columns}); insert into {table} {rows}")).await?;
        session.run(&format!("alter table {table} add v text, add w text")).await?;
        ferry(&session, &other, &table, 60).await.with_context(|| format!("a key of {columns}"))?;
    }
    session
        .run(
            "create table parted (a int, b int, v text, w text, primary key (a, b)) partition by list (b);
             create table parted_1 partition of parted for values in (1); create table parted_2 partition of parted default;
             insert into parted select g, g % 3 from generate_series(1, 60) g",
        )
        .await?;
    ferry(&session, &other, "parted", 60).await.context("a partitioned table")?;

    // Handed out, and the table is another one when the rows come back.
    article(&database, 50).await?;
    let rows = take(&session, 20, "1 minute").await?;
    let change =
        Change::create(&database, "public.article", "alter column note type bigint, add column more int").await?;
    change.until_ready().await?;
    change.swap().await?;
    let answers = give(&session, &rows).await?;
    ensure!(answers.len() == 20 && answers.iter().all(|answer| answer.1), "after a swap: {answers:?}");
    ensure!(keys(&take(&session, 100, "1 minute").await?) == (21..=50).collect::<Vec<i64>>(), "the rest after a swap");
    change.until_in_step().await?;
    change.finish().await
}

/// All rows of a table out in one session and back in another.
async fn ferry(out: &Session, back: &Session, table: &str, rows: u64) -> Result<()> {
    out.run(&format!("select migrator.register_upgrade('{table}', 'code', inputs => '{{w}}', outputs => '{{v}}')"))
        .await?;
    let mut done = 0;
    // Whose turn it is changes with every call.
    for turn in 0.. {
        let (taker, giver) = if turn % 2 == 0 { (out, back) } else { (back, out) };
        let taken = taker
            .value(&format!(
                "select jsonb_agg(jsonb_build_object('key', key, 'token', token, 'values', '{{\"v\": \"made\"}}'::jsonb)) from migrator.select_batch('{table}', 'code', 25)"
            ))
            .await?;
        if taken.is_empty() {
            break;
        }
        let answers = giver
            .row(&format!("select count(*) filter (where applied), coalesce(min(reason), '') from migrator.mark_applied('{table}', 'code', {})", literal(&taken)))
            .await?;
        done += answers[0].parse::<u64>()?;
        ensure!(answers[1].is_empty() && turn < 10, "turn {turn}: {answers:?}");
    }
    ensure!(done == rows, "{done} of {rows} rows came back");
    let wrong = out
        .number(&format!(
            "select count(*) from {table} where v is distinct from 'made' or applied_upgrades <> '{{code}}'"
        ))
        .await?;
    ensure!(wrong == 0, "{wrong} rows are not done");
    Ok(())
}

async fn workers_that_do_not_come_back(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = article(&database, 2000).await?;
    let (first, second) = (database.connect().await?, database.connect().await?);
    // Gone, or stopped past its lease: its rows are the next that are handed out, and its token is worth nothing.
    let lost = take(&first, 10, "1 second").await?;
    ensure!(keys(&take(&second, 10, "1 minute").await?) == (11..=20).collect::<Vec<i64>>(), "others go on meanwhile");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let again = take(&second, 10, "1 second").await?;
    ensure!(keys(&again) == (1..=10).collect::<Vec<i64>>(), "not the rows of a lease that ran out: {:?}", keys(&again));
    for turn in ["while the other works", "after the other"] {
        let late = give(&first, &lost).await?;
        ensure!(late.iter().all(|answer| !answer.1 && answer.2.starts_with("the token is not")), "{turn}: {late:?}");
        let answers = give(&second, &again).await?;
        ensure!(answers.iter().all(|answer| answer.1), "{turn}: {answers:?}");
    }
    ensure!(session.number("select sum(times) from article").await? == 10, "rows were written twice, or not at all");
    // Late, and nobody was quicker.
    let late = take(&first, 10, "1 second").await?;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    ensure!(give(&first, &late).await?.iter().all(|answer| answer.1), "a lease that nobody took over");

    // In the middle of giving back: while that transaction lasts nobody else gets the rows; when it dies, nothing was written.
    let held = take(&first, 5, "1 second").await?;
    first.run("begin").await?;
    give(&first, &held).await?;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let others = take(&second, 5, "1 minute").await?;
    ensure!(keys(&others).iter().all(|key| !keys(&held).contains(key)), "rows that are being given back");
    let asked = give(&second, &held).await?;
    ensure!(asked.iter().all(|answer| !answer.1 && answer.2.starts_with("another call")), "{asked:?}");
    session.run(&format!("select pg_terminate_backend({}, 10000)", first.pid)).await?;
    ensure!(give(&second, &held).await?.iter().all(|answer| answer.1), "the same tokens, after the session died");
    ensure!(session.number("select sum(times) from article").await? == 25, "rows were written twice, or not at all");

    // An error at the end of either call takes back all of it.
    session.run("set migrator.crash_at = 'select_batch.lent:error'").await?;
    ensure!(take(&session, 5, "1 minute").await.is_err(), "the crash point was not met");
    session.run("set migrator.crash_at = 'mark_applied.written:error'").await?;
    let rows = take(&session, 5, "1 minute").await?;
    ensure!(keys(&rows) == (41..=45).collect::<Vec<i64>>(), "rows that were not handed out: {:?}", keys(&rows));
    ensure!(give(&session, &rows).await.is_err(), "the crash point was not met");
    session.run("reset migrator.crash_at").await?;
    ensure!(give(&session, &rows).await?.iter().all(|answer| answer.1), "after an error");
    Ok(())
}

async fn rows_that_somebody_holds(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = article(&database, 30).await?;
    let (holder, worker) = (database.connect().await?, database.connect().await?);
    let begun = Instant::now();
    // A row that is locked is not waited for, and stays in hand.
    let rows = take(&worker, 3, "1 minute").await?;
    holder.run("begin; update article set note = 1 where id = 2").await?;
    let answers = give(&worker, &rows).await?;
    let applied: Vec<bool> = answers.iter().map(|answer| answer.1).collect();
    ensure!(applied == [true, false, true] && answers[1].2.starts_with("another session holds"), "{answers:?}");
    ensure!(!keys(&take(&session, 3, "1 minute").await?).contains(&2), "a row in hand was handed out");
    holder.run("commit").await?;
    ensure!(give(&worker, &rows).await?.iter().all(|answer| answer.1), "the lock is gone, and the inputs are the same");
    // A unique value that somebody has inserted and not committed: the others are written.
    let rows = worker
        .value("select jsonb_agg(jsonb_build_object('key', key, 'token', token, 'values', jsonb_build_object('slug', 's' || (key ->> 'id')))) from migrator.select_batch('article', 'code', 3)")
        .await?;
    let give_slugs = format!(
        "select applied, coalesce(reason, '') from migrator.mark_applied('article', 'code', {}) order by key ->> 'id'",
        literal(&rows)
    );
    holder.run("begin; insert into article (id, slug, applied_upgrades) values (900, 's8', '{code}')").await?;
    let answers = worker.rows(&give_slugs).await?;
    ensure!(answers[0][0].as_deref() == Some("t") && answers[2][0].as_deref() == Some("t"), "{answers:?}");
    ensure!(answers[1][1].as_deref().is_some_and(|why| why.starts_with("a lock")), "{answers:?}");
    holder.run("commit").await?;
    let answers = worker.rows(&give_slugs).await?;
    ensure!(answers[1][1].as_deref().is_some_and(|why| why.starts_with("23505")), "{answers:?}");
    // Handing out waits for a transaction that has handed out, and goes on behind it.
    holder.run("begin").await?;
    let mine = take(&holder, 5, "1 minute").await?;
    let waiting = async { take(&worker, 5, "1 minute").await };
    let ending = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        holder.run("commit").await.map_err(anyhow::Error::from)
    };
    let (theirs, ended) = tokio::join!(waiting, ending);
    ended?;
    let (mine, theirs) = (keys(&mine), keys(&theirs?));
    ensure!(
        mine.len() == 5 && theirs.len() == 5 && !theirs.iter().any(|key| mine.contains(key)),
        "{mine:?} and {theirs:?}"
    );
    ensure!(begun.elapsed() < Duration::from_secs(20), "somebody waited for a lock: {:?}", begun.elapsed());
    Ok(())
}

async fn the_last_call_costs_what_the_first_did(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = article(&database, 5000).await?;
    let mut costs = Vec::new();
    for call in 0..50 {
        let plan = session
            .value("explain (analyze, buffers, costs off, timing off, summary off, format json) select * from migrator.select_batch('article', 'code', 100)")
            .await?;
        let plan: serde_json::Value = serde_json::from_str(&plan)?;
        let plan = &plan[0]["Plan"];
        ensure!(plan["Actual Rows"].as_f64() == Some(100.0), "call {call}: {plan}");
        costs.push(
            ["Shared Hit Blocks", "Shared Read Blocks"].iter().filter_map(|what| plan[what].as_i64()).sum::<i64>(),
        );
        session
            .run(
                "update article set applied_upgrades = '{code}' where id in (select (key ->> 'id')::bigint from migrator.upgrade_lease where not applied);
                 update migrator.upgrade_lease set applied = true where not applied",
            )
            .await?;
    }
    let (early, late) = (costs[1..6].iter().sum::<i64>(), costs[45..].iter().sum::<i64>());
    ensure!(late <= early * 6 / 5, "blocks of the calls: {costs:?}");
    ensure!(take(&session, 100, "1 minute").await?.is_empty(), "there should be nothing left");
    // What comes up behind the cursor is found, though a moment ago there was nothing.
    session.run("update article set content = 'changed' where id = 7").await?;
    ensure!(keys(&take(&session, 100, "1 minute").await?) == [7], "a row that was changed");
    Ok(())
}

async fn waiting_for_an_upgrade(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run("create table waited (id int primary key, a text, b int, c text); insert into waited select g, 'a' || g from generate_series(1, 2000) g").await?;
    session.run("select migrator.register_upgrade('waited', 'b', '{\"b\": \"length(a)\"}', batch_size => 100)").await?;
    let begun = Instant::now();
    let refusal = session.refusal("select migrator.ensure_upgraded('waited', 'b', wait => '300 ms')").await?;
    ensure!(refusal.code == "55000" && begun.elapsed() >= Duration::from_millis(300), "{refusal}");
    ensure!(
        refusal.hint.clone().unwrap_or_default().contains("call migrator.run_upgrades('public.waited')"),
        "{refusal}"
    );
    // Somebody else does it meanwhile.
    let mut worker = Worker::new(&database, "waited", "worker").await?;
    let (waited, worked) =
        tokio::join!(session.run("select migrator.ensure_upgraded('waited', 'b', wait => '1 minute')"), worker.run());
    waited?;
    ensure!(worked?.state == "complete", "the worker");
    // Or it does it itself, in one transaction with what depends on it.
    session.run("select migrator.register_upgrade('waited', 'c', '{\"c\": \"upper(a)\"}')").await?;
    session
        .run("begin; select migrator.ensure_upgraded('waited', 'c', drive => true); alter table waited alter b set not null; commit")
        .await?;
    ensure!(session.number("select count(*) from waited where applied_upgrades = '{b,c}'").await? == 2000, "driven");
    // That takes longer than a worker's lease, and is in nobody's way: whoever works beside it waits for it, as it waits for them.
    session
        .run("create function slow(text) returns text immutable language plpgsql as $$ begin perform pg_sleep(0.01); return $1; end $$")
        .await?;
    for (table, before, behind) in [("driven", 0, 60), ("helped", 60, 0)] {
        session.run(&format!("create table {table} (id int primary key, a text, b text); insert into {table} select g, 'a' from generate_series(1, 60) g")).await?;
        session
            .run(&format!(
                "select migrator.register_upgrade('{table}', 'b', '{{\"b\": \"slow(a)\"}}', batch_size => 20)"
            ))
            .await?;
        let mut beside = Worker::new(&database, table, "beside").await?;
        beside.session().run("set migrator.lease = '100 ms'").await?;
        beside.step().await?;
        let driving = async {
            tokio::time::sleep(Duration::from_millis(before)).await;
            session.run(&format!("select migrator.ensure_upgraded('{table}', 'b', drive => true)")).await
        };
        let working = async {
            tokio::time::sleep(Duration::from_millis(behind)).await;
            beside.until(|step| step.state == "complete").await
        };
        let (driven, worked) = tokio::join!(driving, working);
        driven.with_context(|| table.to_owned())?;
        worked.with_context(|| table.to_owned())?;
    }
    Ok(())
}
