//! A subscription in one database to a publication in another of the same server, whose slot has to be made first: CREATE SUBSCRIPTION
//! would wait for itself.

use crate::{Database, Result, Session, change};
use anyhow::ensure;
use std::time::{Duration, Instant};

/// The subscription, and the slot that it reads.
pub struct Subscription {
    /// Its name.
    pub name: String,
    slot: String,
    publisher: Session,
    subscriber: Session,
}

impl Subscription {
    /// Begins it; the tables are there in both.
    pub async fn begin(publisher: &Database, subscriber: &Database, publication: &str) -> Result<Subscription> {
        let (name, slot) = (format!("feed_{}", subscriber.name), format!("slot_{}", subscriber.name));
        let connection = format!(
            "host={} port={} user=postgres dbname={}",
            publisher.cluster().socket_folder().display(),
            publisher.cluster().port,
            publisher.name
        );
        let (source, session) = (publisher.connect().await?, subscriber.connect().await?);
        source.run(&format!("select pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await?;
        session
            .run(&format!("create subscription {name} connection '{connection}' publication {publication} with (create_slot = false, slot_name = '{slot}')"))
            .await?;
        Ok(Subscription { name, slot, publisher: source, subscriber: session })
    }

    /// Ends it, and its slot.
    pub async fn end(self) -> Result<()> {
        let Subscription { name, slot, publisher, subscriber } = self;
        subscriber.run(&format!("alter subscription {name} disable")).await?;
        subscriber.run(&format!("alter subscription {name} set (slot_name = none)")).await?;
        subscriber.run(&format!("drop subscription {name}")).await?;
        let idle = format!("select count(*) from pg_replication_slots where slot_name = '{slot}' and active");
        let deadline = Instant::now() + change::PATIENCE;
        while publisher.number(&idle).await? > 0 {
            ensure!(Instant::now() < deadline, "the slot stays in use");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        publisher.run(&format!("select pg_drop_replication_slot('{slot}')")).await?;
        Ok(())
    }
}
