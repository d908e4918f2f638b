//! How long something that failed is left alone: longer each time, until it works or fails in another way.

use super::decide::Action;
use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use std::time::Duration;

/// The delays after failures in a row.
#[derive(Debug, Default)]
pub struct Delays(Option<(Action, ExponentialBackoff)>);

impl Delays {
    /// The next one, after a failure that asks for this action.
    pub fn next(&mut self, action: Action) -> Duration {
        let same = self.0.take().filter(|(of, _)| *of == action);
        let (_, delays) = self.0.insert(same.unwrap_or_else(|| (action, delays(action))));
        delays.next().unwrap_or(Duration::from_secs(30))
    }

    /// Something worked.
    pub fn reset(&mut self) {
        self.0 = None;
    }
}

fn delays(action: Action) -> ExponentialBackoff {
    let (least, most) = match action {
        Action::Retry => (Duration::from_millis(10), Duration::from_secs(1)),
        // Somebody has to mend it, who may take days, and does not say when he has.
        Action::Stop => (Duration::from_secs(1), Duration::from_secs(150)),
        _ => (Duration::from_millis(200), Duration::from_secs(30)),
    };
    ExponentialBuilder::new().with_min_delay(least).with_max_delay(most).without_max_times().with_jitter().build()
}
