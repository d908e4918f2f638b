//! How a command line names a change.

use crate::db::Trouble;
use crate::store::{Change, Selector, Store, pick};
use clap::Args;

/// At most one of these names a change.
#[derive(Debug, Args)]
#[group(id = "selector", multiple = false)]
pub struct Select {
    /// The change of this table; quote the name as in SQL
    table: Option<String>,
    /// The change of this number
    #[arg(long, value_name = "ID")]
    change: Option<i64>,
    /// The change that was started at this millisecond since 1970
    #[arg(long, value_name = "MS")]
    timestamp: Option<i64>,
    /// The change that was started last
    #[arg(long)]
    latest: bool,
}

impl Select {
    /// Whether any was given.
    pub fn is_given(&self) -> bool {
        self.table.is_some() || self.change.is_some() || self.timestamp.is_some() || self.latest
    }

    /// Asks the server which table is meant.
    async fn selector(&self, store: &Store) -> Result<Selector, Trouble> {
        Ok(match self {
            Select { table: Some(name), .. } => Selector::Table(name.clone(), store.table(name).await?),
            Select { change: Some(id), .. } => Selector::Change(*id),
            Select { timestamp: Some(ms), .. } => Selector::Timestamp(*ms),
            Select { latest: true, .. } => Selector::Latest,
            _ => Selector::None,
        })
    }

    /// The open change that is meant; without a selector the only one.
    pub async fn open_change(&self, store: &Store) -> anyhow::Result<Change> {
        let selector = self.selector(store).await?;
        Ok(pick(&store.changes(false).await?, &selector)?.clone())
    }

    /// The table that is named; none where a change is named otherwise.
    pub async fn table(&self, store: &Store) -> Result<Option<i64>, Trouble> {
        match &self.table {
            Some(name) => store.table(name).await.map(Some),
            None => Ok(None),
        }
    }

    /// The change that is meant, be it over.
    pub async fn any_change(&self, store: &Store) -> anyhow::Result<Change> {
        let selector = self.selector(store).await?;
        Ok(pick(&store.changes(true).await?, &selector)?.clone())
    }
}
