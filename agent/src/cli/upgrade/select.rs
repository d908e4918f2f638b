//! How a command line names a table with upgrades, and one of them.

use crate::store::{Store, Upgrade, UpgradeFilter, by_table};
use clap::Args;

/// The table that is meant.
#[derive(Debug, Args)]
pub struct Pick {
    /// The table; quote the name as in SQL
    pub(super) table: Option<String>,
}

/// A table with upgrades.
#[derive(Debug)]
pub struct Picked {
    /// Its oid.
    pub table: i64,
    /// Its name.
    pub relation: String,
    /// What is registered, in order.
    pub upgrades: Vec<Upgrade>,
}

/// Why no table or no upgrade was picked.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PickError {
    /// It has none.
    #[error("table {0} has no upgrades")]
    NoneOf(String),
    /// No table has any.
    #[error("no table has upgrades")]
    None,
    /// Not this one.
    #[error("table {relation} has no upgrade {name}")]
    NotThis {
        /// The table.
        relation: String,
        /// The name that was asked for.
        name: String,
    },
    /// Several have.
    #[error("there are upgrades of {} tables; name one: {}", .0.len(), .0.join(", "))]
    Several(Vec<String>),
}

impl PickError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            PickError::NoneOf(_) | PickError::None => "Register one in SQL: select migrator.register_upgrade(…)",
            PickError::NotThis { .. } | PickError::Several(_) => "See them with: migrator upgrade list",
        }
    }
}

impl Pick {
    /// Asks the server which table is meant. Without a name: the only one with upgrades that are not complete, else the
    /// only one with upgrades.
    pub async fn picked(&self, store: &Store) -> anyhow::Result<Picked> {
        let table = match &self.table {
            Some(name) => Some(store.table(name).await?),
            None => None,
        };
        let upgrades = store.upgrades(UpgradeFilter { table, name: None }).await?;
        Ok(pick(upgrades, self.table.as_deref())?)
    }
}

impl Picked {
    /// The upgrade of this name.
    pub fn named(&self, name: &str) -> Result<&Upgrade, PickError> {
        let not_this = || PickError::NotThis { relation: self.relation.clone(), name: name.to_owned() };
        self.upgrades.iter().find(|upgrade| upgrade.name == name).ok_or_else(not_this)
    }
}

fn pick(upgrades: Vec<Upgrade>, asked: Option<&str>) -> Result<Picked, PickError> {
    let tables = by_table(&upgrades);
    let mut open = tables.iter().filter(|(_, of)| of.iter().any(|upgrade| upgrade.is_open()));
    let (table, of_table) = match (&tables[..], open.next(), open.next()) {
        ([], _, _) => return Err(asked.map_or(PickError::None, |name| PickError::NoneOf(name.to_owned()))),
        ([only], _, _) | (_, Some(only), None) => only,
        _ => return Err(PickError::Several(tables.iter().map(|(_, of)| of[0].relation.clone()).collect())),
    };
    let (table, relation) = (*table, of_table[0].relation.clone());
    Ok(Picked {
        table,
        relation,
        upgrades: upgrades.into_iter().filter(|one| one.relation_oid == Some(table)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn upgrade(relation: &str, oid: i64, state: &str) -> Upgrade {
        let value = json!({"relation": relation, "name": "n", "ordinal": 1, "kind": "expression", "state": state,
            "relation_oid": oid});
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_only_table_is_meant_and_of_several_the_only_open_one() {
        let picked = |upgrades, asked| pick(upgrades, asked).map(|picked| (picked.table, picked.upgrades.len()));
        let (a, b) = (|state| upgrade("a", 1, state), |state| upgrade("b", 2, state));
        assert_eq!(picked(vec![], None), Err(PickError::None));
        assert_eq!(picked(vec![], Some("x")), Err(PickError::NoneOf("x".to_owned())));
        assert_eq!(picked(vec![a("complete"), a("running")], None), Ok((1, 2)));
        assert_eq!(picked(vec![a("complete")], None), Ok((1, 1)));
        assert_eq!(picked(vec![a("complete"), b("retiring")], None), Ok((2, 1)));
        let several = Err(PickError::Several(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(picked(vec![a("running"), b("running")], None), several);
        assert_eq!(picked(vec![a("complete"), b("complete")], None), several);
    }
}
