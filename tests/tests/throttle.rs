//! What others need comes first: each signal of the server's load is provoked, slows the copy down or holds it, is told with
//! its reason, and is over when its cause is. What a worker does then is a part of what it did before.

use migrator_tests::change::Advance;
use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::*;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

for_oldest_and_newest_server!(
    sessions_and_disks_and_a_query_of_one_s_own,
    wal_that_cannot_go_and_vacuums,
    standbys,
    a_slowed_step_does_a_part,
    who_may_say_what_is_too_much,
);

/// A copy under way, of many blocks, one block a batch: it is never over, and never waits but for what is provoked.
struct Watched {
    database: Database,
    /// Drives it.
    driver: Session,
    /// Does everything else.
    session: Session,
    change: Change,
}

/// A row a block.
const TABLE: &str =
    "create table busy (id int primary key, v text) with (fillfactor = 10, autovacuum_freeze_max_age = 100000);
    insert into busy select g, repeat('x', 700) from generate_series(1, 4000) g";

impl Watched {
    async fn of(cluster: &Arc<Cluster>) -> Result<Watched> {
        let database = Database::create(cluster, true).await?;
        let session = database.connect().await?;
        session.run(TABLE).await?;
        let change = Change::create(&database, "public.busy", "alter column id type bigint").await?;
        change.until(|advance| advance.state == "copying").await?;
        let driver = change.session().await?;
        Ok(Watched { database, driver, session, change })
    }

    /// One step after a new look at the server.
    async fn look(&self) -> Result<Advance> {
        self.session
            .run("update migrator.chunk set batch_blocks = 1; update migrator.load set sampled_at = '-infinity'")
            .await?;
        let advance = self.change.advance(&self.driver).await?;
        ensure!(advance.state == "copying", "the copy is over, and nothing can be seen any more: {advance:?}");
        Ok(advance)
    }

    /// The same where somebody else may hold what all share: each session then looks once a second.
    async fn look_unshared(&self) -> Result<Advance> {
        Ok(self.change.advance(&self.driver).await?)
    }

    /// Looks until the change is held, or slowed down, for this reason, and says so everywhere.
    async fn until_raised(&self, signal: &str, verdict: &str, words: &str) -> Result<()> {
        self.until_raised_by("", signal, verdict, words).await
    }

    /// The same, where something has to be done before each look.
    async fn until_raised_by(&self, meanwhile: &str, signal: &str, verdict: &str, words: &str) -> Result<()> {
        let deadline = Instant::now() + change::PATIENCE;
        loop {
            self.session.run(meanwhile).await?;
            let advance = self.look().await?;
            let seen = self.signal(signal).await?;
            if seen[0] == verdict && seen[1].contains(words) {
                ensure!(!seen[2].is_empty() && !seen[3].is_empty(), "since when, and what helps? {seen:?}");
                ensure!(advance.reason.contains(words), "{signal}: who drives it does not hear why: {advance:?}");
                let held = advance.step == "wait" && advance.rows == 0;
                ensure!(held == (verdict == "hold"), "{signal} is to {verdict}: {advance:?}");
                ensure!(!advance.wait.is_zero(), "{signal}: who drives it has to rest: {advance:?}");
                let status = self.waits_for().await?;
                ensure!(status.contains(words) && status.contains("(since "), "{signal}: the status says: {status}");
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{signal} is not seen; last: {advance:?}, {seen:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Looks until nothing is in the way of the copy, and the status says nothing of it.
    async fn until_over(&self, signal: &str) -> Result<()> {
        let deadline = Instant::now() + change::PATIENCE;
        loop {
            let advance = self.look().await?;
            // It may be raised again by the next look: another table is vacuumed then.
            let (status, seen) = (self.waits_for().await?, self.signal(signal).await?);
            if advance.reason.is_empty() {
                ensure!(advance.step == "copy" && advance.rows > 0, "{signal} is over, and yet: {advance:?}");
                let quiet = status == "the agent, or call migrator.prepare";
                if quiet && seen[0] == "go" && seen[1].is_empty() {
                    return Ok(());
                }
            }
            ensure!(Instant::now() < deadline, "{signal} is never over; last: {advance:?}, {status}, {seen:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn signal(&self, signal: &str) -> Result<Vec<String>> {
        let sql = format!("select verdict, reason, since, remedy from migrator.signals where signal = '{signal}'");
        self.session.row(&sql).await
    }

    async fn waits_for(&self) -> Result<String> {
        let sql = format!("select waits_for from migrator.status where change = {}", self.change.id);
        Ok(self.session.value(&sql).await?)
    }

    async fn limit(&self, arguments: &str) -> Result<()> {
        self.session.run(&format!("select * from migrator.set_limit({arguments})")).await?;
        Ok(())
    }

    async fn setting(&self, name: &str, value: &str) -> Result<()> {
        self.session.run(&format!("alter system set {name} = '{value}'")).await?;
        self.session.run("select pg_reload_conf()").await?;
        let deadline = Instant::now() + change::PATIENCE;
        // Another session shows it when the first process has passed it on.
        while self
            .database
            .connect()
            .await?
            .value(&format!("select setting = '{value}' from pg_settings where name = '{name}'"))
            .await?
            != "t"
        {
            ensure!(Instant::now() < deadline, "{name} is not set");
        }
        Ok(())
    }

    async fn until(&self, count: &str) -> Result<()> {
        until(&self.session, count).await
    }

    /// What is usual is what is now.
    async fn settle(&self) -> Result<()> {
        self.session.run("update migrator.load set memory = '{}'").await?;
        self.look().await.map(|_| ())
    }

    /// So many sessions that run a statement which lasts, all of them at it.
    async fn sessions(&self, how_many: usize, sql: &'static str) -> Result<Vec<JoinHandle<()>>> {
        let mut tasks = vec![];
        for _ in 0..how_many {
            let session = self.database.connect_as("postgres", "crowd").await?;
            tasks.push(tokio::spawn(async move {
                let _ = session.run(sql).await;
            }));
        }
        let at_it = "select count(*) = {} from pg_stat_activity where application_name = 'crowd' and state = 'active'";
        let deadline = Instant::now() + change::PATIENCE;
        while self.session.value(&at_it.replace("{}", &how_many.to_string())).await? != "t" {
            ensure!(Instant::now() < deadline, "the crowd does not begin: {sql}");
        }
        Ok(tasks)
    }

    async fn end(self) -> Result<()> {
        self.change.cancel().await?;
        nothing_left_behind(&self.database).await
    }
}

async fn until(session: &Session, count: &str) -> Result<()> {
    let deadline = Instant::now() + change::PATIENCE;
    while session.number(count).await? == 0 {
        ensure!(Instant::now() < deadline, "never: {count}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

async fn sessions_and_disks_and_a_query_of_one_s_own(server: Server) -> Result<()> {
    let cluster = server.cluster(&[("autovacuum", "off")]).await?;
    let watched = Watched::of(&cluster).await?;
    let session = &watched.session;
    watched.until_over("replay_lag").await?;

    // Somebody waits for a lock of a worker of ours, who is in the middle of a batch.
    session.run("create table other (id int primary key); insert into other values (1)").await?;
    let other = Change::create(&watched.database, "public.other", "alter column id type bigint").await?;
    other.until(|advance| advance.state == "copying").await?;
    session.run("select pg_advisory_lock(7331)").await?;
    let (worker, works) = (other.session().await?, other.clone());
    let batch = tokio::spawn(async move {
        worker.run("set application_name = 'worker'; set migrator.crash_at = 'copy:wait'").await?;
        anyhow::Ok(works.advance(&worker).await?)
    });
    watched
        .until("select count(*) from pg_stat_activity where application_name = 'worker' and wait_event = 'advisory'")
        .await?;
    let waiter = watched.database.connect_as("postgres", "waiter").await?;
    let lock = format!("begin; lock table {} in share mode; commit", other.rear().await?);
    let waiting = tokio::spawn(async move { waiter.run(&lock).await });
    watched
        .until("select count(*) from pg_stat_activity where application_name = 'waiter' and wait_event_type = 'Lock'")
        .await?;
    // The worker may hold what all share: then each looks for itself.
    let deadline = Instant::now() + change::PATIENCE;
    loop {
        let advance = watched.look_unshared().await?;
        if advance.reason.contains("wait for a lock of ours") {
            ensure!(!advance.wait.is_zero(), "who drives it has to rest: {advance:?}");
            break;
        }
        ensure!(Instant::now() < deadline, "nobody hears of who waits; last: {advance:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    session.run("select pg_advisory_unlock(7331)").await?;
    batch.await??;
    waiting.await??;
    watched.until_over("waiting_sessions").await?;
    other.cancel().await?;

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
    watched.end().await
}

async fn wal_that_cannot_go_and_vacuums(server: Server) -> Result<()> {
    let cluster = server
        .cluster(&[
            ("archive_mode", "on"),
            ("archive_command", "true"),
            ("wal_keep_size", "0"),
            ("autovacuum_naptime", "1"),
            ("autovacuum_vacuum_threshold", "2147483647"),
            ("autovacuum_vacuum_insert_threshold", "-1"),
            ("autovacuum_analyze_threshold", "2147483647"),
            ("autovacuum_vacuum_cost_delay", "100"),
            ("autovacuum_vacuum_cost_limit", "1"),
        ])
        .await?;
    let watched = Watched::of(&cluster).await?;
    let session = &watched.session;
    const WRITE: &str =
        "create table written as select repeat('x', 100) from generate_series(1, 10000); drop table written";
    const SWITCH: &str = "create table written (); drop table written; select pg_switch_wal()";

    // A slot whose reader does not come back keeps WAL …
    watched.limit("'slot_wal', '1 MB'").await?;
    session.run("select pg_create_physical_replication_slot('forgotten', true)").await?;
    watched.until_raised_by(WRITE, "slot_wal", "hold", "nobody reads from replication slot forgotten").await?;
    watched.limit("'slot_wal', '1 MB', ignoring => '{forgotten}'").await?;
    watched.until_over("slot_wal").await?;
    watched.limit("'slot_wal', '1000 GB'").await?;
    watched.until_over("slot_wal").await?;
    // … until it loses what it needs.
    watched.setting("max_slot_wal_keep_size", "16").await?;
    watched.until_raised_by(SWITCH, "slot_wal", "hold", "slot forgotten is about to lose WAL").await?;
    watched.until_raised_by("checkpoint", "slot_wal", "slow", "slot forgotten has lost WAL").await?;
    session.run("select pg_drop_replication_slot('forgotten')").await?;
    watched.until_over("slot_wal").await?;

    // The archive does not take it.
    watched.limit("'archive_ready', '2', '0'").await?;
    watched.setting("archive_command", "false").await?;
    watched.until_raised_by(SWITCH, "archive_ready", "hold", "more than 2 WAL files wait to be archived").await?;
    watched.setting("archive_command", "true").await?;
    session.run(SWITCH).await?;
    watched.until_over("archive_ready").await?;

    // More of it than max_wal_size is made for.
    watched.limit("'requested_checkpoints', '1'").await?;
    watched.until_raised_by("checkpoint", "requested_checkpoints", "slow", "checkpoints were requested").await?;
    watched.limit("'requested_checkpoints'").await?;
    watched.until_over("requested_checkpoints").await?;

    // A vacuum of the table, and one that may not be put off: for a while.
    let vacuum = watched.database.connect_as("postgres", "vacuum").await?;
    vacuum.run("set vacuum_cost_delay = 100; set vacuum_cost_limit = 1").await?;
    let vacuum = tokio::spawn(async move { vacuum.run("vacuum busy").await });
    watched.until_raised("vacuum", "slow", "table public.busy is being vacuumed").await?;
    session.run("select pg_cancel_backend(pid) from pg_stat_activity where application_name = 'vacuum'").await?;
    ensure!(vacuum.await?.is_err(), "the vacuum was over by itself: this tests nothing");
    watched.until_over("vacuum").await?;
    session
        .run(
            "create procedure burn(ids int) language plpgsql as $$
             begin for i in 1..ids loop perform pg_current_xact_id(); commit; end loop; end $$",
        )
        .await?;
    session.run("call burn(101000)").await?;
    watched.until_raised("vacuum", "hold", "table public.busy is being vacuumed to prevent wraparound").await?;
    watched.limit("'vacuum', '1 ms'").await?;
    watched.until_raised("vacuum", "slow", "to prevent wraparound for more than").await?;
    watched.limit("'vacuum'").await?;
    watched.until_raised("vacuum", "hold", "to prevent wraparound").await?;
    watched.setting("autovacuum_vacuum_cost_delay", "0").await?;
    session
        .run(
            "select pg_terminate_backend(pid) from pg_stat_activity where query like 'autovacuum: VACUUM public.busy%'",
        )
        .await?;
    watched.until_over("vacuum").await?;
    watched.end().await
}

async fn standbys(server: Server) -> Result<()> {
    let primary = server.cluster(&[("autovacuum", "off")]).await?;
    let watched = Watched::of(&primary).await?;
    let session = &watched.session;
    let standby = primary.standby().await?;
    let there = standby.connect("postgres").await?;
    until(session, "select count(*) from pg_stat_replication where state = 'streaming'").await?;
    watched.until_over("replay_lag").await?;
    let name = session.value("select application_name from pg_stat_replication").await?;

    // It stops to replay. What it has received is not what its readers see.
    watched.limit("'replay_lag', '500 ms', '200 ms'").await?;
    there.run("select pg_wal_replay_pause()").await?;
    until(&there, "select count(*) where pg_get_wal_replay_pause_state() = 'paused'").await?;
    watched
        .until_raised_by(
            "create table written (); drop table written",
            "replay_lag",
            "hold",
            &format!("standby {name}/local fell more than"),
        )
        .await?;
    there.run("select pg_wal_replay_resume()").await?;
    watched.until_over("replay_lag").await?;
    watched.limit("'replay_lag', '60 s'").await?;

    // Commits wait for one that is not there; ours must not, or nobody could say why.
    watched.driver.run("set synchronous_commit = on").await?;
    watched.setting("synchronous_standby_names", &name).await?;
    watched.until_over("synchronous_standby").await?;
    watched.setting("synchronous_standby_names", "FIRST 2 (a, *)").await?;
    let held = watched.until_raised("synchronous_standby", "hold", "asks for 2 standby(s), of which 1 are there");
    tokio::time::timeout(Duration::from_secs(30), held).await.context("the hold itself waits for the standby")??;
    let by_hand = watched.driver.row("select done, reason, wait_ms from migrator.copy_batch('busy')");
    let by_hand = tokio::time::timeout(Duration::from_secs(30), by_hand).await.context("so does copy_batch")??;
    ensure!(by_hand[0] == "f" && by_hand[1].contains("of which 1 are there") && by_hand[2] == "1000", "{by_hand:?}");
    ensure!(
        watched.driver.value("show synchronous_commit").await? == "on",
        "the session was left with another setting"
    );
    watched.setting("synchronous_standby_names", "").await?;
    watched.until_over("synchronous_standby").await?;

    // It goes away, and comes back.
    let conninfo = there.value("select current_setting('primary_conninfo')").await?;
    standby.cut_off().await?;
    watched.until_raised("lost_standby", "slow", &format!("standby {name}/local was streaming")).await?;
    there.run(&format!("alter system set primary_conninfo = {}", session::literal(&conninfo))).await?;
    there.run("select pg_reload_conf()").await?;
    watched.until_over("lost_standby").await?;
    // Or it does not, and nobody expects it.
    standby.cut_off().await?;
    watched.until_raised("lost_standby", "slow", "was streaming within the last 1 h").await?;
    watched.limit(&format!("'lost_standby', ignoring => '{{{name}}}'")).await?;
    watched.until_over("lost_standby").await?;
    watched.limit("'lost_standby'").await?;
    watched.until_raised("lost_standby", "slow", "was streaming").await?;
    watched.limit("'lost_standby', '1 ms'").await?;
    watched.until_over("lost_standby").await?;
    watched.end().await
}

async fn a_slowed_step_does_a_part(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    // A query that cannot be asked is the plainest way to be slowed to a half.
    session.run(TABLE).await?;
    session.run("create table gauge as select 0 as level").await?;
    session.run("select migrator.set_own_query('select level from public.gauge')").await?;
    let change = Change::create(&database, "public.busy", "alter column id type bigint").await?;
    let driver = change.session().await?;
    change.until(|advance| advance.state == "copying").await?;
    let slow = |slow: bool| {
        let (session, rename) = (&session, if slow { "gauge rename to gone" } else { "gone rename to gauge" });
        async move { session.run(&format!("alter table {rename}; update migrator.load set sampled_at = '-infinity'")).await }
    };
    let chunk = format!("migrator.chunk where change = {} and done_at is null", change.id);

    // The copy: blocks.
    let copied = format!("select coalesce(sum(block_until - block_from), 0) from {chunk} and step = 'copy'");
    for (slowed, expected) in [(false, 20), (true, 10)] {
        if slowed {
            slow(true).await?;
        }
        session
            .run(&format!(
                "update migrator.chunk set batch_blocks = 20, rate = null, weight = null where change = {}",
                change.id
            ))
            .await?;
        let before = session.number(&copied).await?;
        let advance = change.advance(&driver).await?;
        let took = before - session.number(&copied).await?;
        ensure!(advance.step == "copy" && took == expected, "slowed: {slowed}, {took} blocks: {advance:?}");
        ensure!(advance.wait.is_zero() != slowed, "{advance:?}");
    }
    // What it goes by is not what it does: once nothing slows it, it is as fast as before.
    let size = session.number(&format!("select max(batch_blocks) from {chunk}")).await?;
    ensure!(size >= 20, "a slowed batch of 10 left {size}");
    slow(false).await?;

    // Catching up: blocks of the key log, 16 at a time.
    change.until(|advance| advance.state == "catching_up").await?;
    session.run("update busy set v = v where id <= 4000; insert into busy select g, 'n' from generate_series(5001, 25000) g").await?;
    let log = format!(
        "select count(*) from (select from migrator.log_{id}_f_0 union all select from migrator.log_{id}_f_1 union all select from migrator.log_{id}_f_2) l",
        id = change.id
    );
    let mut taken = vec![];
    for slowed in [false, true] {
        if slowed {
            slow(true).await?;
        }
        session.run(&format!("update migrator.change set catch_up = null where id = {}", change.id)).await?;
        let before = session.number(&log).await?;
        let advance = change.advance(&driver).await?;
        ensure!(advance.step == "catch_up", "slowed: {slowed}: {advance:?}");
        taken.push(before - session.number(&log).await?);
    }
    ensure!(
        taken[0] > 1000 && (taken[0] * 2 / 5..=taken[0] * 3 / 5).contains(&taken[1]),
        "of the log it took {taken:?}"
    );
    slow(false).await?;

    // The comparison: rows.
    change.until(|advance| advance.state == "verifying").await?;
    let compared = format!("select sum(rows) from migrator.chunk where change = {} and step = 'verify'", change.id);
    for (slowed, expected) in [(false, 20), (true, 10)] {
        if slowed {
            slow(true).await?;
        }
        session.run(&format!("update migrator.chunk set batch_rows = 20 where change = {}", change.id)).await?;
        let before = session.number(&compared).await?;
        let advance = change.advance(&driver).await?;
        let took = session.number(&compared).await? - before;
        ensure!(advance.step == "verify" && took == expected, "slowed: {slowed}, {took} rows: {advance:?}");
    }
    slow(false).await?;
    change.through().await?;
    nothing_left_behind(&database).await
}

async fn who_may_say_what_is_too_much(server: Server) -> Result<()> {
    let database = server.database().await?;
    let session = database.connect().await?;
    let [owner, operator, other] = ["owner", "operator", "other"].map(|role| format!("{role}_{}", database.name));
    for role in [&owner, &operator, &other] {
        session.run(&format!("create role {role} login")).await?;
    }
    session
        .run(&format!(
            "create table mine (id int primary key); insert into mine values (1); alter table mine owner to {owner};
             create table secret as select 1 as level; create table gauge as select 1 as level; grant select on gauge to {operator}"
        ))
        .await?;
    let change = Change::create(&database, "public.mine", "alter column id type bigint").await?;

    // Everybody may look whose change it is; only whom the DBA trusts may set.
    for (role, signals) in [(&owner, 13), (&other, 0)] {
        let theirs = database.connect_as(role, "test").await?;
        ensure!(theirs.number("select count(*) from migrator.signals").await? == signals, "{role}");
        for call in ["set_limit('replay_lag', '1 h')", "set_own_query('select 1')"] {
            let refusal = theirs.refusal(&format!("select * from migrator.{call}")).await?;
            ensure!(refusal.code == "42501", "{role} {call}: {refusal}");
        }
    }
    session.run(&format!("grant execute on function migrator.set_limit, migrator.set_own_query to {operator}")).await?;
    let operating = database.connect_as(&operator, "test").await?;
    let set = operating.row("select * from migrator.set_limit('replay_lag', '1 h')").await?;
    ensure!(set == ["1 h", "18 min"], "{set:?}");
    let shown = session.row("select enter, leave, set_by from migrator.signals where signal = 'replay_lag'").await?;
    ensure!(shown == ["1 h".to_owned(), "18 min".to_owned(), operator.clone()], "{shown:?}");
    for (call, words) in [
        ("set_limit('lag', '1 h')", "no signal"),
        ("set_limit('replay_lag', '1 h', '2 h')", "cannot be raised at"),
        ("set_limit('free_disk', '2 GB', '1 GB')", "cannot be raised at"),
        ("set_limit('replay_lag', '8 GB')", "not a duration"),
        ("set_limit('slot_wal', '-1')", "not a size"),
        ("set_limit('archive_ready', 'NaN')", "not a number"),
        ("set_limit('lost_standby', '1 h', '1 min')", "no threshold to leave at"),
        ("set_own_query('select 1', timeout => '1 min')", "timeout"),
        ("set_own_query('select 1', timeout => '-1 s')", "timeout"),
        ("set_own_query('select ''NaN''::float8')", "not a number"),
    ] {
        let refusal = operating.refusal(&format!("select * from migrator.{call}")).await?;
        ensure!(
            refusal.code == "22023" && refusal.message.contains(words) && refusal.hint.is_some(),
            "{call}: {refusal}"
        );
    }
    let set = operating.row("select * from migrator.set_limit('replay_lag')").await?;
    ensure!(set == ["10 s", "3 s"], "back to the default: {set:?}");

    // The caller's own statement_timeout ends the call, not only the query, and leaves the session as any error does.
    operating.run("set statement_timeout = '200 ms'").await?;
    let refusal = operating.refusal("select migrator.set_own_query('select 1 from pg_catalog.pg_sleep(20)')").await?;
    ensure!(refusal.code == "57014", "{refusal}");
    operating.run("set statement_timeout = '20 s'").await?;
    let refusal = operating.refusal("select migrator.set_own_query('select 1 from pg_catalog.pg_sleep(20)')").await?;
    ensure!(refusal.code == "57014" && refusal.message.contains("longer than 1000 ms"), "{refusal}");
    operating.run("reset statement_timeout").await?;

    // The query has the rights of who set it, whoever drives the change, and for as long as those are the same.
    let query = "select * from migrator.set_own_query('select level - 1 from public.gauge')";
    let refusal = operating.refusal("select migrator.set_own_query('select level from public.secret')").await?;
    ensure!(refusal.code == "42501" && refusal.hint.is_some(), "{refusal}");
    ensure!(operating.value(query).await? == "0", "what it says now");
    let driver = change.session().await?;
    let reason = || async {
        session.run("update migrator.load set sampled_at = '-infinity'").await?;
        let sql = format!("select reason from migrator.copy_batch(change => {})", change.id);
        driver.value(&sql).await
    };
    change.until(|advance| advance.state == "copying").await?;
    ensure!(reason().await?.is_empty(), "{}", reason().await?);
    session
        .run(&format!(
            "alter table gauge enable row level security; create policy none on gauge to {operator} using (false)"
        ))
        .await?;
    ensure!(reason().await?.is_empty(), "no row for this role, so nothing to say: {}", reason().await?);
    session.run(&format!("revoke select on gauge from {operator}")).await?;
    ensure!(reason().await?.contains("permission denied for table gauge"), "{}", reason().await?);
    session.run(&format!("alter role {operator} superuser")).await?;
    ensure!(reason().await?.contains("was no superuser when it set the query"), "{}", reason().await?);
    session.run(&format!("alter role {operator} nosuperuser; alter role {operator} rename to was_{operator}")).await?;
    ensure!(reason().await?.contains("does not exist"), "{}", reason().await?);
    let found = session.value("select problem from migrator.doctor() where subject = 'signal own_query'").await?;
    ensure!(found.contains("slows down work since"), "doctor says: {found}");
    session.run("select migrator.set_own_query()").await?;
    ensure!(reason().await?.is_empty(), "{}", reason().await?);
    ensure!(
        session.value("select set_by from migrator.signals where signal = 'own_query'").await?.is_empty(),
        "taken away"
    );

    change.cancel().await?;
    nothing_left_behind(&database).await?;
    session.run(&format!("reassign owned by {owner} to postgres; drop owned by {owner}, was_{operator}, {other}; drop role {owner}, was_{operator}, {other}")).await?;
    Ok(())
}
