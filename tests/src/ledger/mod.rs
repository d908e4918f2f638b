//! Random writes from several connections, with a ledger that knows what the tables must hold.
//!
//! Each client owns the rows whose keys leave its number as remainder, so what it was told by the server is all
//! that decides about them: after every acknowledged commit the expected content is known exactly. A commit whose
//! answer was lost is looked up in the `mark` table, which each transaction updates too.

mod client;
mod model;
mod writes;

pub use model::{Model, Order};

use crate::change::PATIENCE;
use crate::same_rows::fingerprint;
use crate::{Database, Result, Session};
use anyhow::{Context, ensure};
use client::Client;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, RwLock};
use tokio::task::JoinHandle;

/// The tables that the clients write to. `orders` is the one to change.
const SCHEMA: &str = r"
    create table customers (id int primary key, name text not null);
    create table orders (
        id int primary key,
        code text unique,
        slot int not null unique deferrable initially deferred,
        customer int references customers on update cascade on delete cascade,
        parent int,
        amount numeric(12,2) not null default 0,
        note text,
        touched int not null default 0,
        span int4range generated always as (int4range(slot * 10, slot * 10 + 5)) stored,
        exclude using gist (span with &&) deferrable initially deferred
    );
    alter table orders add foreign key (parent) references orders on update cascade on delete cascade
        deferrable initially deferred;
    create table lines (
        id int primary key,
        part_of int not null references orders on update cascade on delete cascade,
        quantity int not null
    );
    create index on orders (customer);
    create index on orders (parent);
    create index on lines (part_of);
    create table audit (client int not null, what text not null);
    create table mark (client int primary key, transaction bigint not null);

    insert into orders (id, code, slot, note)
        select g, 'cold ' || g, g, case when g % 50 = 0 then repeat(md5(g::text), 100) else repeat('x', g % 60) end
        from generate_series(1000000, 1000000 + COLD_ROWS - 1) g;

    -- The clients' own number, from a key: the remainder, also of negative keys.
    create function owner_of(key bigint, clients bigint) returns int immutable language sql
        return ((key % clients + clients) % clients)::int;
    create function touch() returns trigger language plpgsql as $$
        begin
            new.touched := case tg_op when 'INSERT' then 1 else old.touched + 1 end;
            return new;
        end $$;
    create trigger touch before insert or update on orders for each row execute function touch();
    create function audit() returns trigger language plpgsql as $$
        begin
            insert into audit values (owner_of(coalesce(new.id, old.id), CLIENTS), tg_op);
            return null;
        end $$;
    create trigger audit after insert or update or delete on orders for each row execute function audit();
";

/// What all clients have in common.
struct Shared {
    database: Database,
    clients: i64,
    seed: u64,
    /// The clients hold it for reading during a transaction; who wants them at rest takes it for writing.
    gate: RwLock<()>,
    stop: AtomicBool,
    /// Whether a lost connection is part of the test.
    crashes: AtomicBool,
    transactions: AtomicU64,
    statements: AtomicU64,
    retries: AtomicU64,
    models: Vec<Mutex<Model>>,
    /// Number and hash of the rows that no client touches, until somebody truncates the table.
    cold: Mutex<String>,
}

/// Keys from here on are of rows that no client touches: they make the copy long.
const COLD: i64 = 1_000_000;
const NOTHING_COLD: &str = "0:";

/// Live clients and what they know.
pub struct Ledger {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<Result<()>>>,
}

/// What the clients did so far.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    /// Transactions that ended as the client meant them to.
    pub transactions: u64,
    /// Statements in them.
    pub statements: u64,
    /// REPEATABLE READ transactions that the server asked to try again.
    pub retries: u64,
}

impl Ledger {
    /// Makes the tables with so many orders that the clients own and so many that nobody touches, and prints the seed: MIGRATOR_TEST_SEED, or a new one.
    pub async fn lay_out(database: &Database, clients: i64, rows: i64, cold: i64) -> Result<Ledger> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.subsec_nanos() as u64;
        let seed = match std::env::var("MIGRATOR_TEST_SEED") {
            Ok(text) => text.parse().context("MIGRATOR_TEST_SEED is a number")?,
            Err(_) => now,
        };
        println!("seed of the ledger in {}: MIGRATOR_TEST_SEED={seed}", database.name);

        let session = database.connect().await?;
        let schema = SCHEMA.replace("CLIENTS", &clients.to_string()).replace("COLD_ROWS", &cold.to_string());
        session.run(&schema).await?;
        session.run(&format!("insert into mark select g, 0 from generate_series(0, {clients} - 1) g")).await?;
        session
            .run(&format!(
                "insert into customers select g, 'customer ' || g from generate_series(0, 10 * {clients} - 1) g;
                 insert into orders (id, code, slot, customer, amount, note)
                     select g, 'c' || owner_of(g, {clients}) || '-' || g, g, owner_of(g, 10 * {clients}), g, 'note ' || g
                     from generate_series(0, {rows} - 1) g;
                 insert into lines select g, g, 1 from generate_series(0, {rows} - 1, 3) g"
            ))
            .await?;
        let mut models = Vec::new();
        for client in 0..clients {
            models.push(Mutex::new(Model::of_start(client, clients, rows)));
        }
        let shared = Arc::new(Shared {
            database: database.clone(),
            clients,
            seed,
            gate: RwLock::new(()),
            stop: AtomicBool::new(false),
            crashes: AtomicBool::new(false),
            transactions: AtomicU64::new(0),
            statements: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            models,
            cold: Mutex::new(cold_rows(&session).await?),
        });
        Ok(Ledger { shared, tasks: Vec::new() })
    }

    /// Starts the clients.
    pub fn start(&mut self) {
        for number in 0..self.shared.clients {
            let client = Client::new(self.shared.clone(), number);
            self.tasks.push(tokio::spawn(client.live()));
        }
    }

    /// From now on a lost connection is no failure: the client looks what became of its transaction and goes on.
    pub fn expect_crashes(&self) {
        self.shared.crashes.store(true, Ordering::Relaxed);
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        Counts {
            transactions: self.shared.transactions.load(Ordering::Relaxed),
            statements: self.shared.statements.load(Ordering::Relaxed),
            retries: self.shared.retries.load(Ordering::Relaxed),
        }
    }

    /// Insists that no client has ended: one ends only with a failure.
    pub async fn all_well(&mut self) -> Result<()> {
        while let Some(position) = self.tasks.iter().position(JoinHandle::is_finished) {
            let outcome = self.tasks.swap_remove(position).await?;
            self.shared.stop.store(true, Ordering::Relaxed);
            outcome.with_context(|| format!("a client failed, MIGRATOR_TEST_SEED={}", self.shared.seed))?;
        }
        Ok(())
    }

    /// Lets the clients live for a while, and insists that all is well meanwhile.
    pub async fn live(&mut self, time: Duration) -> Result<()> {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            self.all_well().await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.all_well().await
    }

    /// Waits until the clients did so many more transactions.
    pub async fn more(&mut self, transactions: u64) -> Result<()> {
        let goal = self.counts().transactions + transactions;
        let deadline = Instant::now() + PATIENCE;
        while self.counts().transactions < goal {
            self.all_well().await?;
            ensure!(Instant::now() < deadline, "the clients hardly get anything done: {:?}", self.counts());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Compares the tables with the ledger while the clients are at rest, and runs `meanwhile` on the same still life.
    pub async fn check<F: Future<Output = Result<()>>>(&mut self, meanwhile: impl FnOnce() -> F) -> Result<()> {
        self.all_well().await?;
        {
            let _at_rest = self.shared.gate.write().await;
            let session = self.shared.database.connect().await?;
            self.compare(&session).await.with_context(|| format!("MIGRATOR_TEST_SEED={}", self.shared.seed))?;
            meanwhile().await?;
        }
        self.all_well().await
    }

    async fn compare(&self, session: &Session) -> Result<()> {
        let (mut orders, mut lines, mut customers) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (number, model) in self.shared.models.iter().enumerate() {
            let model = model.lock().await;
            orders.extend(model.orders.iter().map(|(id, order)| (*id, order.to_string())));
            lines.extend(model.lines.iter().map(|(id, (order, quantity))| (*id, format!("{order}|{quantity}"))));
            customers.extend(model.customers.iter().map(|id| (*id, String::new())));
            let written = session.number(&format!("select count(*) from audit where client = {number}")).await?;
            ensure!(
                written == model.fired,
                "client {number}: the trigger of orders fired {written} times for {} changed rows",
                model.fired
            );
        }
        let sql = "select id, concat_ws('|', coalesce(code, '-'), slot, coalesce(customer::text, '-'), \
                   coalesce(parent::text, '-'), amount, coalesce('=' || note, '-'), touched) from orders where id < 1000000";
        same("orders", session, sql, orders).await?;
        ensure!(*self.shared.cold.lock().await == cold_rows(session).await?, "rows changed that nobody touched");
        same("lines", session, "select id, concat_ws('|', part_of, quantity) from lines", lines).await?;
        same("customers", session, "select id, '' from customers", customers).await
    }

    /// Ends the clients and insists that none failed.
    pub async fn stop(mut self) -> Result<Counts> {
        self.all_well().await?;
        self.shared.stop.store(true, Ordering::Relaxed);
        for task in self.tasks.drain(..) {
            task.await?.with_context(|| format!("a client failed, MIGRATOR_TEST_SEED={}", self.shared.seed))?;
        }
        let session = self.shared.database.connect().await?;
        self.compare(&session).await?;
        Ok(self.counts())
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

async fn cold_rows(session: &Session) -> Result<String> {
    let columns = "id, code, slot, customer, parent, amount, note, touched, span";
    fingerprint(session, &format!("select {columns} from orders where id >= {COLD}")).await
}

async fn same(table: &str, session: &Session, sql: &str, expected: BTreeMap<i64, String>) -> Result<()> {
    let mut found = BTreeMap::new();
    for row in session.rows(sql).await? {
        let mut row = row.into_iter().map(Option::unwrap_or_default);
        let id: i64 = row.next().unwrap_or_default().parse()?;
        ensure!(found.insert(id, row.next().unwrap_or_default()).is_none(), "{table}: {id} is there twice");
    }
    let wrong: Vec<String> = expected
        .keys()
        .chain(found.keys().filter(|id| !expected.contains_key(id)))
        .filter(|id| expected.get(id) != found.get(id))
        .map(|id| format!("{id}: expected {:?}, found {:?}", expected.get(id), found.get(id)))
        .collect();
    ensure!(
        wrong.is_empty(),
        "{} of {} rows of {table} are not as the clients were told:\n  {}",
        wrong.len(),
        expected.len(),
        wrong.iter().take(10).cloned().collect::<Vec<_>>().join("\n  ")
    );
    Ok(())
}
