//! `migrator doctor`

use super::Outcome;
use super::context::Context;
use super::output::{self, Output, or_dash};
use crate::db::Limits;
use crate::store::{Finding, Unfit};
use clap::Args;
use serde_json::json;

/// Say what is wrong with this server and its changes, and the call that mends it
///
/// Exit status 1 when something is an error.
#[derive(Debug, Args)]
pub struct Doctor {
    #[command(flatten)]
    pub(super) output: Output,
}

impl Doctor {
    pub(super) async fn run(self, context: Context) -> anyhow::Result<Outcome> {
        let findings = match context.store("doctor", Limits::Short).await {
            Ok(store) => store.doctor().await?,
            // No connection is an error; a database that does not fit is a finding.
            Err(unfit @ Unfit::Trouble(_)) => return Err(unfit.into()),
            Err(unfit) => vec![Finding {
                severity: "error".to_owned(),
                subject: Some("extension".to_owned()),
                problem: Some(unfit.to_string()),
                remedy: unfit.hint(),
            }],
        };
        if self.output.json {
            output::document(&json!({ "findings": findings }));
        } else if findings.is_empty() {
            output::line("nothing is wrong");
        } else {
            let row = |finding: &Finding| {
                vec![
                    finding.severity.clone(),
                    or_dash(finding.subject.as_deref()),
                    or_dash(finding.problem.as_deref()),
                    or_dash(finding.remedy.as_deref()),
                ]
            };
            output::table(&["SEVERITY", "SUBJECT", "PROBLEM", "REMEDY"], findings.iter().map(row));
        }
        let sick = findings.iter().any(|finding| finding.severity == "error");
        Ok(if sick { Outcome::Negative } else { Outcome::Done })
    }
}
