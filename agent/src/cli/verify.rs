//! `migrator verify`

use super::Outcome;
use super::context::Context;
use super::output::{self, Output, count};
use super::selector::Select;
use crate::db::Limits;
use crate::engine::interruptible;
use clap::Args;
use serde_json::json;

/// Compare both tables of a change by the hash of every row
///
/// Rows that differ are mended and compared again. Exit status 1 when some still differ.
#[derive(Debug, Args)]
pub struct Verify {
    #[command(flatten)]
    select: Select,
    #[command(flatten)]
    pub(super) output: Output,
}

impl Verify {
    pub(super) async fn run(self, context: Context) -> anyhow::Result<Outcome> {
        let store = context.store("verify", Limits::Work).await?;
        let change = self.select.open_change(&store).await?;
        let verified = interruptible(&context.signals, &store, store.verify(change.change)).await?;
        if self.output.json {
            output::document(&json!({"change": change.change, "relation": change.relation, "verify": verified}));
        } else {
            output::line(&format!(
                "{}: {} rows compared, {} differ",
                change.relation,
                count(Some(verified.compared)),
                count(Some(verified.mismatched))
            ));
        }
        Ok(if verified.mismatched == 0 { Outcome::Done } else { Outcome::Negative })
    }
}
