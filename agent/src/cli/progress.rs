//! Progress of one change, or of one table's upgrades: a bar on a terminal, a line every few seconds elsewhere, nothing where nobody reads it.

use super::logging::Sink;
use super::output::{count, duration, rate, share};
use crate::store::Change;
use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};

/// How often a line is written where there is no terminal.
const EVERY: Duration = Duration::from_secs(5);

/// Where something stands.
#[derive(Debug, Default)]
pub struct Look {
    /// What it is: the table.
    pub title: String,
    /// What is shown beside it.
    pub state: String,
    /// Rows a second are counted within a phase, where there is one.
    pub phase: Option<String>,
    /// 0 to 1.
    pub progress: Option<f64>,
    /// Rows done.
    pub rows_done: Option<i64>,
    /// Of so many.
    pub rows_total: Option<i64>,
    /// Rows a second, where the database knows.
    pub rate: Option<f64>,
    /// Time to go.
    pub eta_seconds: Option<f64>,
    /// Why it does not go on, if it does not.
    pub reason: Option<String>,
}

impl Look {
    /// At a change, and why its last call did nothing, if it did nothing.
    pub fn at_change(change: &Change, reason: Option<&str>) -> Look {
        // What a paused or blocked change waits for, its row says; what one that is driven waits for, its last call.
        let reason = if change.can_advance() { reason } else { change.waits_for.as_deref() };
        Look {
            title: change.relation.clone(),
            state: change.state.clone(),
            phase: Some(change.phase.clone()),
            progress: change.progress,
            rows_done: change.rows_done,
            rows_total: change.rows_total,
            rate: None,
            eta_seconds: change.eta_seconds,
            reason: reason.map(str::to_owned),
        }
    }
}

/// Shows something while it is driven.
pub struct Progress {
    shown: Shown,
    pace: Pace,
}

enum Shown {
    Nothing,
    Bar(ProgressBar),
    Lines { last: Option<(Instant, String)> },
}

impl Progress {
    /// Silent where it would be in the way: for machines and for whoever asked for quiet.
    pub fn new(silent: bool, log: &Sink) -> Progress {
        let shown = if silent {
            Shown::Nothing
        } else if Term::stderr().is_term() {
            let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr());
            // The template is a constant of ours.
            if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:24}] {msg}") {
                bar.set_style(style.progress_chars("=> "));
            }
            log.beside(&bar);
            Shown::Bar(bar)
        } else {
            Shown::Lines { last: None }
        };
        Progress { shown, pace: Pace::default() }
    }

    /// Shows where it stands now.
    pub fn show(&mut self, mut look: Look, now: Instant) {
        if let Some(phase) = &look.phase {
            look.rate = look.rate.or_else(|| self.pace.rate(phase, look.rows_done, now));
        }
        match &mut self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => {
                bar.set_prefix(format!("{} {}", look.title, look.state));
                bar.set_message(figures(&look));
                // Between 0 and 1000, so exact.
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                bar.set_position((look.progress.unwrap_or(0.0).clamp(0.0, 1.0) * 1000.0) as u64);
            }
            Shown::Lines { last } => {
                let due = last.as_ref().is_none_or(|(at, state)| *state != look.state || now >= *at + EVERY);
                if due {
                    eprintln!("{} {}: {}", look.title, look.state, figures(&look));
                    *last = Some((now, look.state));
                }
            }
        }
    }

    /// Takes the bar away.
    pub fn end(&self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}

fn figures(look: &Look) -> String {
    let mut parts = vec![share(look.progress)];
    // The total is an estimate, and none before the table was ever analyzed.
    match (look.rows_done, look.rows_total) {
        (Some(done), Some(total)) if total >= done && total > 0 => {
            parts.push(format!("{} of {} rows", count(Some(done)), count(Some(total))));
        }
        (Some(done), _) => parts.push(format!("{} rows", count(Some(done)))),
        (None, _) => {}
    }
    if look.rate.is_some() {
        parts.push(format!("{} rows/s", rate(look.rate)));
    }
    if look.eta_seconds.is_some() {
        parts.push(format!("{} to go", duration(look.eta_seconds)));
    }
    if let Some(reason) = look.reason.as_deref().filter(|reason| !reason.is_empty()) {
        parts.push(format!("waits: {reason}"));
    }
    parts.join(", ")
}

/// Rows a second, over the last looks; begins anew with each phase.
#[derive(Default)]
struct Pace {
    phase: String,
    looks: std::collections::VecDeque<(Instant, i64)>,
}

impl Pace {
    fn rate(&mut self, phase: &str, rows: Option<i64>, now: Instant) -> Option<f64> {
        let rows = rows?;
        if self.phase != phase || self.looks.back().is_some_and(|(_, before)| *before > rows) {
            self.looks.clear();
            phase.clone_into(&mut self.phase);
        }
        self.looks.push_back((now, rows));
        if self.looks.len() > 10 {
            self.looks.pop_front();
        }
        let (first, since) = self.looks.front().copied()?;
        let seconds = now.duration_since(first).as_secs_f64();
        // Differences of rows within ten looks are far below what an f64 holds exactly.
        #[allow(clippy::cast_precision_loss)]
        (seconds > 0.5).then(|| (rows - since) as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_that_of_its_phase() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(pace.rate("copying", Some(0), at(0)), None);
        assert_eq!(pace.rate("copying", Some(3000), at(3)), Some(1000.0));
        assert_eq!(pace.rate("verifying", Some(4000), at(4)), None, "another phase counts anew");
        assert_eq!(pace.rate("verifying", None, at(5)), None);
        assert_eq!(pace.rate("verifying", Some(100), at(6)), None, "so does one that began again");
    }
}
