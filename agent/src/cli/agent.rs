//! `migrator agent`

use super::Outcome;
use super::context::Context;
use super::run::default_jobs;
use crate::db::{Class, Limits};
use crate::engine::{Changes, Check, End, Goal, UpgradeGoal, Upgrades};
use crate::store::Unfit;
use clap::Args;
use tracing::{info, warn};

/// Run as a daemon: drive every open change until it is ready, keep ready and swapped ones in step, bring rows up
///
/// Changes that were created with on_ready => 'swap' are swapped too. Upgrades of rows are driven on connections of their
/// own, as many again, as soon as they are registered. Any number of agents may run for one database.
/// SIGTERM or SIGINT: finish the batch in hand, then exit; a second one ends it at once. After a kill the next agent
/// goes on where the last one was.
///
/// Example: migrator agent --database postgresql://db/shop --jobs 4 --log-format json
#[derive(Debug, Args)]
pub struct Agent {
    /// Connections for work on tables, and as many for upgrades of rows, each beside one that looks [default: the cores of this machine, 2 to 4]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Ask this address once a second: an answer 2xx lets work go on, any other, or none within 5 s, holds it, and
    /// migrator.signals says so. Needs: grant execute on function migrator.report_check to THIS_ROLE
    #[arg(long, value_name = "URL", env = "MIGRATOR_HTTP_CHECK", hide_env_values = true)]
    http_check: Option<String>,
}

impl Agent {
    pub(super) async fn run(self, context: Context) -> anyhow::Result<Outcome> {
        let jobs = self.jobs.or(context.jobs).unwrap_or_else(default_jobs).max(1);
        // What is wrong from the start is said at once; a server that is not up yet is waited for.
        match context.store("look", Limits::Short).await {
            Ok(_) => {}
            Err(Unfit::Trouble(trouble)) if trouble.class() != Class::Stop => {
                warn!(error = %trouble, "the server cannot be reached yet");
            }
            Err(unfit) => return Err(unfit.into()),
        }
        let check = self.check(&context).await?;
        info!(target_database = %context.target, jobs, version = env!("CARGO_PKG_VERSION"), "agent started");
        let changes = Changes::drive(context.target.clone(), Goal::Every, jobs, context.signals.clone());
        let upgrades = Upgrades::drive(context.target.clone(), UpgradeGoal::Every, jobs, context.signals.clone());
        let stop = context.signals.stop.clone();
        let checking = async {
            if let Some(check) = check {
                check.run(stop).await;
            }
        };
        let (changes, upgrades, ()) = tokio::join!(changes.run(|_, _| {}), upgrades.run(|_, _| {}), checking);
        if let End::Failed(unfit) = changes {
            return Err(unfit.into());
        }
        if let End::Failed(unfit) = upgrades {
            return Err(unfit.into());
        }
        info!("agent stopped");
        Ok(Outcome::Done)
    }

    /// The user's own check, asked once before anything is done.
    async fn check(&self, context: &Context) -> anyhow::Result<Option<Check>> {
        let Some(url) = &self.http_check else { return Ok(None) };
        let mut check = Check::of(url, context.target.clone())?;
        match check.once().await {
            Err(unfit) if unfit.class() == Class::Stop => Err(unfit.into()),
            _ => Ok(Some(check)),
        }
    }
}
