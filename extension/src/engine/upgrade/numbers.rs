//! Columns that are upgraded in place are known by number as well. While one has another name nothing can be derived for its rows, but
//! what is written to it is in the new shape all the same, and must not be upgraded when the column has its name again.

use super::table;
use crate::catalog::definition::{self, Column};
use crate::catalog::relation::Relation;
use crate::catalog::spi;
use migrator_core::failure::Failure;
use migrator_core::ident::Ident;
use migrator_core::upgrade::Upgrade;
use pgrx::JsonB;
use serde_json::json;

/// The numbers (`pg_attribute.attnum`) of an upgrade's outputs, in their order.
pub fn of(columns: &[Column], upgrade: &Upgrade) -> Vec<i16> {
    let number = |name: &Ident| columns.iter().find(|column| column.name == *name).map_or(0, |column| column.attnum);
    upgrade.outputs().map(number).collect()
}

/// Writes down where the columns are in this table, which may be another than they were looked up in. Whether the guard has to be told.
/// The caller holds the table's row.
pub fn renew(relation: &Relation) -> Result<bool, Failure> {
    let mut registered = table::registered(relation.oid)?;
    registered.retain(|upgrade| upgrade.definition.in_place && upgrade.state != "retiring");
    if registered.is_empty() {
        return Ok(false);
    }
    let columns = definition::columns(relation.oid)?;
    let mut renewed = false;
    for upgrade in registered {
        let numbers = of(&columns, &upgrade.definition);
        if numbers != upgrade.definition.numbers {
            spi::execute(
                "update migrator.upgrade set definition = definition || $2 where id = $1",
                &[upgrade.id.into(), JsonB(json!({"numbers": numbers})).into()],
            )?;
            renewed = true;
        }
    }
    Ok(renewed)
}
