//! Beside autovacuum: a plain one gives way to each step, as it does to an ALTER TABLE; one that keeps the server from
//! running out of transaction ids gives way to nobody, so a step says that it waits for it. Applications notice neither.

use migrator_tests::application::Application;
use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::*;
use std::time::{Duration, Instant};

for_oldest_and_newest_server!(a_swap_beside_a_vacuum_against_wraparound, each_step_beside_a_plain_vacuum);

/// Nothing else is vacuumed by itself, and what is takes its time.
const SETTINGS: [(&str, &str); 7] = [
    ("deadlock_timeout", "100ms"),
    ("autovacuum_naptime", "1"),
    ("autovacuum_vacuum_threshold", "2147483647"),
    ("autovacuum_vacuum_insert_threshold", "-1"),
    ("autovacuum_analyze_threshold", "2147483647"),
    ("autovacuum_vacuum_cost_delay", "100"),
    ("autovacuum_vacuum_cost_limit", "1"),
];

/// Waits until an autovacuum of the table is at work, and returns its process.
async fn vacuum_runs(session: &Session) -> Result<i64> {
    let deadline = Instant::now() + change::PATIENCE;
    loop {
        let sql =
            "select coalesce(max(pid), 0) from pg_stat_activity where query like 'autovacuum: VACUUM public.busy%'";
        match session.number(sql).await? {
            0 => ensure!(Instant::now() < deadline, "no autovacuum comes"),
            pid => return Ok(pid),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn a_swap_beside_a_vacuum_against_wraparound(server: Server) -> Result<()> {
    let cluster = server.cluster(&SETTINGS).await?;
    let database = Database::create(&cluster, true).await?;
    let session = database.connect().await?;
    session
        .run(
            "create table busy (id serial primary key, v int default 0) with (autovacuum_freeze_max_age = 100000);
             insert into busy (v) select 0 from generate_series(1, 40000);
             create procedure burn(ids int) language plpgsql as $$
                 begin for i in 1..ids loop perform pg_current_xact_id(); commit; end loop; end $$",
        )
        .await?;
    let change = Change::create(&database, "public.busy", "alter column v type bigint").await?;
    change.until_ready().await?;
    session.run("call burn(101000)").await?;
    let pid = vacuum_runs(&session).await?;
    let application = Application::start(
        &database,
        &[
            "select count(*) from busy where id < 50",
            "update busy set v = v + 1 where id = 7",
            "insert into busy (id) values (default) returning id",
        ],
    )
    .await?;
    let refusal = session.refusal("select * from migrator.swap('busy')").await?;
    ensure!(vacuum_runs(&session).await? == pid, "the vacuum ended meanwhile: this tests nothing");
    ensure!(refusal.code == "55P03", "{refusal}");
    ensure!(
        refusal.message.contains(&pid.to_string())
            && refusal.message.contains("to prevent wraparound")
            && refusal.hint.is_some(),
        "nobody says what is in the way: {refusal}"
    );
    ensure!(change.state().await? == "ready", "refused, and yet: {}", change.told().await?);
    application.never_waited().await?;

    session.run("alter system set autovacuum_vacuum_cost_delay = 0").await?;
    session.run("select pg_reload_conf()").await?;
    session.run(&format!("select pg_terminate_backend({pid})")).await?;
    change.until_in_step().await?;
    change.swap().await?;
    change.finish().await?;
    nothing_left_behind(&database).await
}

async fn each_step_beside_a_plain_vacuum(server: Server) -> Result<()> {
    let cluster = server.cluster(&SETTINGS).await?;
    let database = Database::create(&cluster, true).await?;
    let session = database.connect().await?;
    session
        .run(
            "create table busy (id serial primary key, v int default 0) with (autovacuum_vacuum_threshold = 0, autovacuum_vacuum_scale_factor = 0);
             insert into busy (v) select 0 from generate_series(1, 40000)",
        )
        .await?;
    let application = Application::start(&database, &["update busy set v = v + 1 where id = 7"]).await?;
    let mut change = Change::create(&database, "public.busy", "alter column v type bigint").await?;
    for step in ["start_sync", "cancel", "swap", "finish"] {
        if step == "swap" {
            change = Change::create(&database, "public.busy", "alter column v type bigint").await?;
            change.until_ready().await?;
        }
        let pid = vacuum_runs(&session).await?;
        let call = format!("select * from migrator.{step}(change => {})", change.id);
        session.row(&call).await.with_context(|| format!("{step} beside the autovacuum {pid}"))?;
    }
    application.never_waited().await?;
    nothing_left_behind(&database).await
}
