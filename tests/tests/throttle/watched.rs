//! Work that never ends by itself, a copy or a sweep of upgrades, and what its drivers and its status say of the server's load.

use migrator_tests::change::Advance;
use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::*;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Work under way in many batches, a block or a row each: it is never over, and never waits but for what is provoked.
pub struct Watched {
    pub database: Database,
    /// Drives it.
    pub driver: Session,
    /// Does everything else.
    pub session: Session,
    /// The change; without one, upgrades of the table's rows.
    change: Option<Change>,
}

/// A row a block.
pub const TABLE: &str =
    "create table busy (id int primary key, v text) with (fillfactor = 10, autovacuum_freeze_max_age = 100000);
    insert into busy select g, repeat('x', 700) from generate_series(1, 4000) g";

impl Watched {
    pub async fn of(cluster: &Arc<Cluster>) -> Result<Watched> {
        let database = Database::create(cluster, true).await?;
        let session = database.connect().await?;
        session.run(TABLE).await?;
        let change = Change::create(&database, "public.busy", "alter column id type bigint").await?;
        change.until(|advance| advance.state == "copying").await?;
        let driver = change.session().await?;
        Ok(Watched { database, driver, session, change: Some(change) })
    }

    /// The same where rows are upgraded.
    pub async fn of_upgrades(cluster: &Arc<Cluster>) -> Result<Watched> {
        let database = Database::create(cluster, true).await?;
        let session = database.connect().await?;
        session.run(TABLE).await?;
        session.run("alter table busy add column length int").await?;
        session.run(r#"select migrator.register_upgrade('busy', 'length', set => '{"length": "length(v)"}', batch_size => 1)"#).await?;
        let driver = database.connect_as("postgres", "test:upgrade").await?;
        let watched = Watched { database, driver, session, change: None };
        let deadline = Instant::now() + change::PATIENCE;
        while watched.step().await?.rows == 0 {
            ensure!(Instant::now() < deadline, "the sweep does not begin");
        }
        Ok(watched)
    }

    pub fn upgrades(&self) -> bool {
        self.change.is_none()
    }

    /// What a batch takes that nothing slows down: so many blocks, or rows.
    pub async fn batches_of(&self, size: u32) -> Result<()> {
        let sql = match &self.change {
            Some(change) => format!(
                "update migrator.chunk set batch_blocks = {size}, rate = null, weight = null where change = {}",
                change.id
            ),
            None => format!(
                "update migrator.upgraded set batch_size = {size} where relation = 'busy'::regclass;
                 update migrator.sweep_chunk set batch_rows = {size}, rate = null, weight = null where relation = 'busy'::regclass"
            ),
        };
        self.session.run(&sql).await?;
        Ok(())
    }

    /// One step after a new look at the server.
    pub async fn look(&self) -> Result<Advance> {
        self.session
            .run("update migrator.chunk set batch_blocks = 1; update migrator.load set sampled_at = '-infinity'")
            .await?;
        let advance = self.step().await?;
        let under_way = ["copying", "upgrading", "waiting"].contains(&advance.state.as_str());
        ensure!(under_way, "it is over, and nothing can be seen any more: {advance:?}");
        Ok(advance)
    }

    /// The same where somebody else may hold what all share: each session then looks once a second.
    pub async fn step(&self) -> Result<Advance> {
        if let Some(change) = &self.change {
            return Ok(change.advance(&self.driver).await?);
        }
        let sql = "select state, rows, done, wait_ms, reason, statement from migrator.step('busy')";
        let row = self.driver.row(sql).await?;
        Ok(Advance {
            state: row[0].clone(),
            step: if row[0] == "waiting" { "wait" } else { "batch" }.to_owned(),
            rows: row[1].parse()?,
            done: row[2] == "t",
            wait: Duration::from_millis(row[3].parse()?),
            reason: row[4].clone(),
            statement: row[5].clone(),
        })
    }

    /// Looks until the change is held, or slowed down, for this reason, and says so everywhere.
    pub async fn until_raised(&self, signal: &str, verdict: &str, words: &str) -> Result<()> {
        self.until_raised_by("", signal, verdict, words).await
    }

    /// The same, where something has to be done before each look.
    pub async fn until_raised_by(&self, meanwhile: &str, signal: &str, verdict: &str, words: &str) -> Result<()> {
        let deadline = Instant::now() + change::PATIENCE;
        loop {
            self.session.run(meanwhile).await?;
            let advance = self.look().await?;
            let seen = self.signal(signal).await?;
            if seen[0] == verdict && seen[1].contains(words) {
                ensure!(!seen[2].is_empty() && !seen[3].is_empty(), "since when, and what helps? {seen:?}");
                ensure!(advance.reason.contains(words), "{signal}: who drives it does not hear why: {advance:?}");
                let held = advance.step == "wait" && advance.rows == 0;
                // What leaves a dead row for each that it writes waits until somebody can remove them.
                let holds = verdict == "hold" || (signal == "snapshot_age" && self.upgrades());
                ensure!(held == holds, "{signal} is to {verdict}: {advance:?}");
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
    pub async fn until_over(&self, signal: &str) -> Result<()> {
        let deadline = Instant::now() + change::PATIENCE;
        loop {
            let advance = self.look().await?;
            // It may be raised again by the next look: another table is vacuumed then.
            let (status, seen) = (self.waits_for().await?, self.signal(signal).await?);
            if advance.reason.is_empty() {
                ensure!(advance.step != "wait" && advance.rows > 0, "{signal} is over, and yet: {advance:?}");
                let quiet = ["the agent, or call migrator.prepare", "the agent, or call migrator.run_upgrades"]
                    .contains(&status.as_str());
                if quiet && seen[0] == "go" && seen[1].is_empty() {
                    return Ok(());
                }
            }
            ensure!(Instant::now() < deadline, "{signal} is never over; last: {advance:?}, {status}, {seen:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn signal(&self, signal: &str) -> Result<Vec<String>> {
        let sql = format!("select verdict, reason, since, remedy from migrator.signals where signal = '{signal}'");
        self.session.row(&sql).await
    }

    pub async fn waits_for(&self) -> Result<String> {
        Ok(match &self.change {
            Some(change) => {
                self.session
                    .value(&format!("select waits_for from migrator.status where change = {}", change.id))
                    .await?
            }
            None => self.session.value("select waits_for from migrator.upgrades").await?,
        })
    }

    pub async fn limit(&self, arguments: &str) -> Result<()> {
        self.session.run(&format!("select * from migrator.set_limit({arguments})")).await?;
        Ok(())
    }

    pub async fn setting(&self, name: &str, value: &str) -> Result<()> {
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

    pub async fn until(&self, count: &str) -> Result<()> {
        until(&self.session, count).await
    }

    /// What is usual is what is now.
    pub async fn settle(&self) -> Result<()> {
        self.session.run("update migrator.load set memory = '{}'").await?;
        self.look().await.map(|_| ())
    }

    /// So many sessions that run a statement which lasts, all of them at it.
    pub async fn sessions(&self, how_many: usize, sql: &'static str) -> Result<Vec<JoinHandle<()>>> {
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

    /// Every hold left one line where it began and one where it ended, however many steps it held.
    async fn holds_are_logged(&self) -> Result<()> {
        let log = if self.upgrades() { "upgrade_events" } else { "events" };
        let sql = format!("select kind, message from migrator.{log} where kind in ('held', 'released') order by id");
        let log = self.session.rows(&sql).await?;
        ensure!(!log.is_empty() && log.len() % 2 == 0, "{log:?}");
        for pair in log.chunks(2) {
            let kinds: Vec<&str> = pair.iter().filter_map(|line| line[0].as_deref()).collect();
            ensure!(kinds == ["held", "released"], "{pair:?} of {log:?}");
            let words: Vec<&str> = pair.iter().filter_map(|line| line[1].as_deref()).collect();
            ensure!(words[0].starts_with("held by the load") && words[1].starts_with("goes on after"), "{words:?}");
        }
        Ok(())
    }

    pub async fn end(self) -> Result<()> {
        self.holds_are_logged().await?;
        let Some(change) = &self.change else { return Ok(()) };
        change.cancel().await?;
        nothing_left_behind(&self.database).await
    }
}

/// Waits until there is one.
pub async fn until(session: &Session, count: &str) -> Result<()> {
    let deadline = Instant::now() + change::PATIENCE;
    while session.number(count).await? == 0 {
        ensure!(Instant::now() < deadline, "never: {count}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
