//! Signals that come from sessions, from disks, and from a query of one's own.

use crate::watched::Watched;
use migrator_tests::*;
use std::time::{Duration, Instant};

pub async fn sessions_and_disks_and_a_query_of_one_s_own(server: Server) -> Result<()> {
    let cluster = server.cluster(&[("autovacuum", "off")]).await?;
    let watched = Watched::of(&cluster).await?;
    tell(&cluster, watched).await
}

pub async fn the_same_where_rows_are_upgraded(server: Server) -> Result<()> {
    let cluster = server.cluster(&[("autovacuum", "off")]).await?;
    let watched = Watched::of_upgrades(&cluster).await?;
    tell(&cluster, watched).await
}

/// Somebody waits for a lock of a worker of ours, who is in the middle of a batch of the copy.
async fn a_wait_for_the_copy(watched: &Watched) -> Result<()> {
    let session = &watched.session;
    session.run("create table other (id int primary key); insert into other values (1)").await?;
    let other = Change::create(&watched.database, "public.other", "alter column id type bigint").await?;
    other.until(|advance| advance.state == "copying").await?;
    let (worker, works) = (other.session().await?, other.clone());
    let batch = async move {
        worker.run("set application_name = 'worker'; set migrator.crash_at = 'copy:wait'").await?;
        works.advance(&worker).await?;
        Ok(())
    };
    let lock = format!("begin; lock table {} in share mode; commit", other.rear().await?);
    a_wait_for_a_worker(watched, batch, lock).await?;
    other.cancel().await
}

/// The same in the middle of a batch of upgrades.
async fn a_wait_for_a_batch_of_rows(watched: &Watched) -> Result<()> {
    watched
        .session
        .run(
            r#"create table other (id int primary key, v int); insert into other values (1);
             select migrator.register_upgrade('other', 'one', set => '{"v": "1"}')"#,
        )
        .await?;
    let worker = watched.database.connect_as("postgres", "worker").await?;
    worker.run("select * from migrator.step('other')").await?;
    let batch = async move {
        worker.run("set migrator.crash_at = 'step.written:wait'").await?;
        worker.run("select * from migrator.step('other')").await?;
        Ok(())
    };
    a_wait_for_a_worker(watched, batch, "update other set v = v".to_owned()).await
}

async fn a_wait_for_a_worker(
    watched: &Watched,
    batch: impl Future<Output = Result<()>> + Send + 'static,
    waits: String,
) -> Result<()> {
    let session = &watched.session;
    let deadline = Instant::now() + change::PATIENCE;
    loop {
        watched.batches_of(8).await?;
        if watched.step().await?.rows == 8 {
            break;
        }
        ensure!(Instant::now() < deadline, "no whole batch, though nobody waits");
    }
    session.run("select pg_advisory_lock(7331)").await?;
    let batch = tokio::spawn(batch);
    watched
        .until("select count(*) from pg_stat_activity where application_name = 'worker' and wait_event = 'advisory'")
        .await?;
    let waiter = watched.database.connect_as("postgres", "waiter").await?;
    let waiting = tokio::spawn(async move { waiter.run(&waits).await });
    watched
        .until("select count(*) from pg_stat_activity where application_name = 'waiter' and wait_event_type = 'Lock'")
        .await?;
    // The worker may hold what all share: then each looks for itself.
    let deadline = Instant::now() + change::PATIENCE;
    loop {
        watched.batches_of(8).await?;
        let advance = watched.step().await?;
        if advance.reason.contains("wait for a lock of ours") {
            ensure!(!advance.wait.is_zero(), "who drives it has to rest: {advance:?}");
            ensure!((1..=2).contains(&advance.rows), "nothing may be done but a quarter: {advance:?}");
            break;
        }
        ensure!(Instant::now() < deadline, "nobody hears of who waits; last: {advance:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    watched.batches_of(1).await?;
    session.run("select pg_advisory_unlock(7331)").await?;
    batch.await??;
    waiting.await??;
    watched.until_over("waiting_sessions").await
}

async fn tell(cluster: &Cluster, watched: Watched) -> Result<()> {
    let session = &watched.session;
    watched.until_over("replay_lag").await?;

    if watched.upgrades() {
        a_wait_for_a_batch_of_rows(&watched).await?;
    } else {
        a_wait_for_the_copy(&watched).await?;
    }

    // Sessions that wait for one another.
    watched.limit("'lock_waits', '1'").await?;
    let holder = watched.database.connect().await?;
    session.run("create table contended ()").await?;
    holder.run("begin; lock table contended").await?;
    watched.settle().await?;
    let crowd = watched.sessions(6, "table contended").await?;
    watched.until_raised("lock_waits", "slow", "more than usual wait for locks").await?;
    holder.run("commit").await?;
    for session in crowd {
        session.await?;
    }
    watched.until_over("lock_waits").await?;
    watched.limit("'lock_waits'").await?;

    // Sessions at work.
    watched.limit("'active_sessions', '2'").await?;
    watched.settle().await?;
    let crowd = watched.sessions(6, "select pg_sleep(100)").await?;
    watched.until_raised("active_sessions", "slow", "more than usual are at work").await?;
    session.run("select pg_cancel_backend(pid) from pg_stat_activity where application_name = 'crowd'").await?;
    for session in crowd {
        session.await?;
    }
    watched.until_over("active_sessions").await?;
    watched.limit("'active_sessions'").await?;

    // A snapshot that keeps VACUUM back.
    watched.limit("'snapshot_age', '100 ms'").await?;
    holder.run("begin isolation level repeatable read; table contended").await?;
    watched
        .until_raised("snapshot_age", "slow", &format!("session {} (test) has been in a transaction", holder.pid))
        .await?;
    holder.run("commit").await?;
    watched.until_over("snapshot_age").await?;
    holder.run("begin; select pg_current_xact_id(); prepare transaction 'old'").await?;
    watched.until_raised("snapshot_age", "slow", "prepared transaction old").await?;
    holder.run("rollback prepared 'old'").await?;
    watched.until_over("snapshot_age").await?;
    watched.limit("'snapshot_age'").await?;

    // Disks. There is no full one here, but one can ask for more room than any has.
    watched.limit("'free_disk', '100000 TB'").await?;
    watched.until_raised("free_disk", "hold", "is free where the WAL is").await?;
    watched.until_raised("free_disk", "hold", "is free where tablespace pg_default is").await?;
    watched.limit("'free_disk', '100000 TB', ignoring => '{the WAL}'").await?;
    watched.until_raised("free_disk", "hold", "tablespace pg_default").await?;
    ensure!(!watched.waits_for().await?.contains("WAL"), "it was to be ignored: {}", watched.waits_for().await?);
    watched.limit("'free_disk'").await?;
    watched.until_over("free_disk").await?;
    // One that no table of the change is in.
    let folder = cluster.folder("elsewhere")?;
    session.run(&format!("create tablespace elsewhere location '{}'", folder.display())).await?;
    watched.limit("'free_disk', '100000 TB', ignoring => '{the WAL,tablespace pg_default}'").await?;
    ensure!(watched.look().await?.reason.is_empty(), "another tablespace is full, and the change waits");
    ensure!(watched.signal("free_disk").await?[0] == "hold", "nobody saw the other tablespace");
    watched.limit("'free_disk'").await?;
    session.run("drop tablespace elsewhere").await?;

    // A query of one's own, and one that cannot be asked.
    session.run("create table gauge as select 5 as level").await?;
    session.run("select migrator.set_own_query('select level from public.gauge')").await?;
    watched.limit("'own_query', '3', '1'").await?;
    watched.until_raised("own_query", "hold", "own query said more than 3").await?;
    session.run("update gauge set level = 2").await?;
    watched.until_raised("own_query", "hold", "own query said more than 3").await?;
    session.run("update gauge set level = 1").await?;
    watched.until_over("own_query").await?;
    session.run("update gauge set level = null").await?;
    watched.until_over("own_query").await?;
    for (spoil, words) in [
        ("alter table gauge rename to gone", "relation \"public.gauge\" does not exist"),
        ("create view gauge as select 1 as level from pg_sleep(100)", "takes longer than 1000 ms"),
        ("create or replace view gauge as select 2 as level union all select 3", "more than one row"),
        ("drop view gauge; create view gauge as select 'NaN'::float8 as level", "not a number"),
        (
            "drop view gauge; create function public.write() returns int language sql as 'delete from public.gone; select 1'; \
          create view gauge as select public.write() as level",
            "cannot execute DELETE in a read-only transaction",
        ),
    ] {
        session.run(spoil).await?;
        watched.until_raised("own_query", "slow", words).await.context(spoil)?;
        let status = watched.waits_for().await?;
        ensure!(status.contains("the signal own_query cannot be read"), "which one? {status}");
    }
    ensure!(session.number("select count(*) from gone").await? == 1, "the query wrote");
    session.run("drop view gauge; alter table gone rename to gauge").await?;
    watched.until_over("own_query").await?;

    // A check that somebody asks by HTTP: it holds until it says yes, or until nobody says anything.
    session.run("select migrator.report_check('https://status.example/ready', 'it answered 503')").await?;
    watched.until_raised("http_check", "hold", "https://status.example/ready says no: it answered 503").await?;
    session.run("select migrator.report_check('https://status.example/ready')").await?;
    watched.until_over("http_check").await?;
    session.run("select migrator.report_check('https://status.example/ready', 'no', stands => '300 ms')").await?;
    watched.until_raised("http_check", "hold", "says no: no").await?;
    watched.until_over("http_check").await?;
    watched.end().await
}
