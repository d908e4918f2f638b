//! What registering would do, without doing it.

use super::install;
use super::register::{self, Request};
use super::{rewrite, table};
use crate::catalog::lock;
use migrator_core::failure::Failure;
use migrator_core::upgrade::{COLUMN, Upgrade};

/// One step.
pub struct Row {
    pub step: &'static str,
    pub object: String,
    pub statement: Option<String>,
    pub lock: Option<&'static str>,
    pub held: Option<String>,
    pub note: Option<String>,
}

/// The steps, in order.
pub fn rows(request: &Request) -> Result<Vec<Row>, Failure> {
    let wish = register::understand(request)?;
    let table = wish.relation.name.plain();
    let held = format!("attempts of at most {} ms, taken only when nobody is in the way", lock::DEADLINE.as_millis());
    let mut rows = vec![];
    if wish.adds_column {
        rows.push(Row {
            step: "register_upgrade",
            object: format!("{table}.{COLUMN}"),
            statement: Some(install::add_column(&wish.relation)),
            lock: Some(lock::Mode::AccessExclusive.name()),
            held: Some(held.clone()),
            note: Some("only the catalog is written".to_owned()),
        });
    }
    let mut definition = table::define(wish.key.clone(), &wish.others);
    definition.settings.push(request.settings.clone());
    definition.upgrades.push(Upgrade { settings: definition.settings.len() - 1, ..wish.upgrade.clone() });
    for statement in install::trigger(&wish.relation, &definition) {
        rows.push(Row {
            step: "register_upgrade",
            object: table.clone(),
            statement: Some(statement),
            lock: Some(lock::Mode::ShareRowExclusive.name()),
            held: Some(held.clone()),
            note: wish.upgrade.deferred.then(|| {
                "derived in batches only: a derived value could make an application's statement fail".to_owned()
            }),
        });
    }
    let chosen = rewrite::choose(request, &wish)?;
    if chosen.rewrite {
        rows.push(Row {
            step: "create_shadow",
            object: table,
            statement: None,
            lock: None,
            held: None,
            note: Some(format!(
                "the table is written anew, as by migrator.create_shadow(…, on_ready => 'swap'): {}",
                chosen.why
            )),
        });
        return Ok(rows);
    }
    rows.push(Row {
        step: "step",
        object: table.clone(),
        statement: None,
        lock: Some("ROW EXCLUSIVE"),
        held: Some("one batch".to_owned()),
        note: Some(if wish.upgrade.is_application() {
            "application code does it: migrator.select_batch hands the rows out".to_owned()
        } else {
            "every row is written once, in batches; rows that somebody else holds are left for later".to_owned()
        }),
    });
    Ok(rows)
}
