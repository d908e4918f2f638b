//! A table with an upgrade that must not be done twice to a row, and an application that writes to it and remembers what it was told.

use crate::upgrades::Worker;
use crate::{Database, Result, Session, change};
use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Rows that were there have twice their number; rows that came meanwhile were written as new ones.
pub const WRONG: &str = "select count(*) from counted where x <> 2 * id or not applied_upgrades @> '{twice}'";

/// Rows whose value is not what their names say, at any time.
pub const UNFIT: &str =
    "select count(*) from counted where x <> case when applied_upgrades @> '{twice}' then 2 * id else id end";

/// The table with so many rows, and upgrade `twice` with batches of so many.
pub async fn lay_out(session: &Session, rows: i64, batch: i64) -> Result<()> {
    session
        .run(&format!(
            "create table counted (id bigint primary key, x bigint not null, touched int not null default 0);
             insert into counted (id, x) select g, g from generate_series(1, {rows}) g"
        ))
        .await?;
    session
        .run(&format!("select migrator.register_upgrade('counted', 'twice', '{{\"x\": \"x * 2\"}}', safe_in_place => true, batch_size => {batch}, cleanup_batch_size => {batch})"))
        .await?;
    Ok(())
}

/// Rows of the sweep that committed batches have written.
pub const WRITTEN: &str =
    "select coalesce(sum(written), 0) from migrator.sweep_chunk where relation = 'counted'::regclass";

/// Goes into the middle of a sweep: some more batches are committed, and some are to come.
pub async fn go_into_the_middle(database: &Database) -> Result<()> {
    let mut worker = Worker::new(database, "counted", "one").await?;
    let before = worker.session().number(WRITTEN).await?;
    while worker.session().number(WRITTEN).await? < before + 300 {
        let step = worker.until(|step| step.rows > 0 || step.done).await?;
        ensure!(step.state == "upgrading", "it is not in the middle of a sweep: {step:?}");
    }
    Ok(())
}

/// What a writer was told. Whatever it heard no answer of is in doubt: done or not.
#[derive(Default)]
struct Ledger {
    inserted: Vec<i64>,
    perhaps_inserted: Vec<i64>,
    touched: BTreeMap<i64, i64>,
    perhaps_touched: BTreeMap<i64, i64>,
}

/// Writers that touch other columns and insert rows of the new shape, whatever happens to the server.
pub struct Application {
    rows: i64,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicUsize>,
    writers: Vec<JoinHandle<Result<Ledger>>>,
}

impl Application {
    /// Two writers, for a table with the rows from 1 to this one.
    pub fn start(database: &Database, rows: i64) -> Application {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let writers = (1..3)
            .map(|number| tokio::spawn(write(database.clone(), number, rows, stop.clone(), written.clone())))
            .collect();
        Application { rows, stop, written, writers }
    }

    /// Waits until so many more of its statements were acknowledged.
    pub async fn more(&self, statements: usize) -> Result<()> {
        let (deadline, before) = (Instant::now() + change::PATIENCE, self.written.load(Ordering::Relaxed));
        while self.written.load(Ordering::Relaxed) < before + statements {
            ensure!(Instant::now() < deadline, "the application hardly writes");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// Ends it. Nothing that was acknowledged is lost, nothing is there twice, and nothing that it did not write.
    pub async fn end(self, session: &Session) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Ledger::default();
        for writer in self.writers {
            let ledger = writer.await??;
            all.inserted.extend(ledger.inserted);
            all.perhaps_inserted.extend(ledger.perhaps_inserted);
            let add = |to: &mut BTreeMap<i64, i64>, of: BTreeMap<i64, i64>| {
                of.into_iter().for_each(|(id, times)| *to.entry(id).or_default() += times);
            };
            add(&mut all.touched, ledger.touched);
            add(&mut all.perhaps_touched, ledger.perhaps_touched);
        }
        ensure!(all.inserted.len() > 10 && all.touched.len() > 10, "the application hardly wrote");
        let mut found = BTreeMap::new();
        for row in session.rows("select id, touched from counted").await? {
            let [Some(id), Some(touched)] = row.as_slice() else { anyhow::bail!("a row without values: {row:?}") };
            found.insert(id.parse::<i64>()?, touched.parse::<i64>()?);
        }
        for id in (1..=self.rows).chain(all.inserted.iter().copied()) {
            let there = *found.get(&id).with_context(|| format!("row {id} is lost"))?;
            let told = all.touched.get(&id).copied().unwrap_or(0);
            let most = told + all.perhaps_touched.get(&id).copied().unwrap_or(0);
            ensure!((told..=most).contains(&there), "row {id} was touched {told} to {most} times, and has {there}");
        }
        let strange = |id: &&i64| **id > self.rows && !all.inserted.contains(id) && !all.perhaps_inserted.contains(id);
        if let Some(id) = found.keys().find(strange) {
            anyhow::bail!("nobody wrote row {id}");
        }
        Ok(())
    }
}

async fn write(
    database: Database,
    number: i64,
    rows: i64,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicUsize>,
) -> Result<Ledger> {
    let mut random = StdRng::seed_from_u64(number.unsigned_abs());
    let (mut ledger, mut next, mut session) = (Ledger::default(), number * 1_000_000, None);
    while !stop.load(Ordering::Relaxed) {
        if session.is_none() {
            session = database.connect_as("postgres", "writer").await.ok();
        }
        let Some(open) = &session else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let new = random.random_bool(0.5);
        let (id, sql) = if new {
            next += 1;
            (next, format!("insert into counted (id, x) values ({next}, {})", 2 * next))
        } else {
            // A row that is written is upgraded: most are left to batches, however long this takes.
            let id = 8 * random.random_range(1..=rows / 8);
            (id, format!("update counted set touched = touched + 1 where id = {id}"))
        };
        let lost = match open.run(&sql).await {
            Ok(_) => false,
            Err(error) if error.is_lost() => true,
            Err(error) if error.is_worth_retrying() => continue,
            Err(error) => return Err(error.into()),
        };
        match (new, lost) {
            (true, false) => ledger.inserted.push(id),
            (true, true) => ledger.perhaps_inserted.push(id),
            (false, false) => *ledger.touched.entry(id).or_default() += 1,
            (false, true) => *ledger.perhaps_touched.entry(id).or_default() += 1,
        }
        if lost {
            session = None;
        } else {
            written.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(ledger)
}
