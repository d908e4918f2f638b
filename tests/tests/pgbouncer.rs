//! Applications behind PgBouncer, pooling sessions or transactions: a swap and its rollback pass them by.

use migrator_tests::bouncer::Bouncer;
use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::program;
use migrator_tests::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

for_oldest_and_newest_server!(clients_of_a_session_pool, clients_of_a_transaction_pool);

async fn clients_of_a_session_pool(server: Server) -> Result<()> {
    clients(server, "session").await
}

async fn clients_of_a_transaction_pool(server: Server) -> Result<()> {
    clients(server, "transaction").await
}

async fn clients(server: Server, mode: &'static str) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    session.run("create table counted (id int primary key, n int not null); insert into counted select g, 0 from generate_series(1, 1000) g").await?;
    let Some(bouncer) = Bouncer::start(&database, mode).await? else { return Ok(()) };

    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut clients = Vec::new();
    for number in 0..4_i32 {
        let client = bouncer.connect().await?;
        let (stop, done) = (stop.clone(), done.clone());
        clients.push(tokio::spawn(async move {
            let prepared = match mode {
                "session" => Some(client.client().prepare("update counted set n = n + 1 where id = $1::int").await?),
                _ => None,
            };
            while !stop.load(Ordering::Relaxed) {
                let touched = match &prepared {
                    Some(prepared) => client.client().execute(prepared, &[&(number + 1)]).await?,
                    None => client
                        .run(&format!("begin; update counted set n = n + 1 where id = {}; commit", number + 1))
                        .await
                        .map(|_| 1)?,
                };
                ensure!(touched == 1, "a client's UPDATE missed its row");
                done.fetch_add(1, Ordering::Relaxed);
                client.rows("select n from counted where id = 1").await?;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Ok(())
        }));
    }
    let change = Change::create(&database, "public.counted", "alter column id type bigint, add column w int").await?;
    let driver = change.keep_going(1);
    change.wait_for("ready").await?;
    for _ in 0..2 {
        change.swap().await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        change.rollback().await?;
        change.wait_for("ready").await?;
    }
    change.swap().await?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await??;
    }
    driver.stop().await?;
    change.finish().await?;
    calls_of_ours(&bouncer).await?;
    if mode == "session" {
        the_agent(&bouncer, &database).await?;
    }
    let sum = session.number("select sum(n) from counted").await?;
    ensure!(sum as u64 == done.load(Ordering::Relaxed), "{sum} updates are there of {}", done.load(Ordering::Relaxed));
    ensure!(sum > 20, "the clients hardly did anything");
    bouncer.stop().await?;
    nothing_left_behind(&database).await
}

/// A whole change, each of its calls through the pooler: in psql's manner, one statement at a time.
async fn calls_of_ours(bouncer: &Bouncer) -> Result<()> {
    let client = bouncer.connect().await?;
    let change = client.value("select migrator.create_shadow('public.counted', 'add column x text')").await?;
    let calls = [
        ("call migrator.prepare('public.counted')".to_owned(), "ready"),
        ("select * from migrator.swap('public.counted')".to_owned(), "swapped"),
        ("select * from migrator.rollback('public.counted')".to_owned(), "catching_up"),
        (format!("call migrator.prepare(change => {change})"), "ready"),
        ("select * from migrator.swap()".to_owned(), "swapped"),
        ("select migrator.finish('public.counted')".to_owned(), "finished"),
    ];
    for (call, state) in calls {
        client.run(&call).await?;
        let is = client.value(&format!("select phase from migrator.history where change = {change}")).await?;
        ensure!(is == state, "after {call}: {is}, not {state}");
    }
    client.value("select count(x) from public.counted").await?;
    Ok(())
}

/// The agent behind a pooler of sessions.
async fn the_agent(bouncer: &Bouncer, database: &Database) -> Result<()> {
    let actions = "alter column n type bigint";
    let commands: [&[&str]; 4] = [
        &["alter", "public.counted", actions, "--strategy", "shadow", "--swap"],
        &["rollback", "public.counted"],
        &["prepare", "public.counted"],
        &["cancel", "public.counted"],
    ];
    for command in commands {
        let mut program = program::agent(database)?;
        let outcome = program::run(program.envs(bouncer.environment()).args(command)).await?;
        outcome.fine().with_context(|| format!("migrator {} through the pooler", command.join(" ")))?;
    }
    Ok(())
}
