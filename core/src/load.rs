//! From what was seen of the server to a verdict for everybody who works in batches.

use serde::Deserialize;

/// A look at the server.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Seen {
    /// Largest replay lag of a connected standby, in seconds; none without standbys or without lag.
    pub lag_seconds: Option<f64>,
    /// Names of standbys that were streaming within the last hour and are not any more.
    pub vanished: Option<String>,
    /// Sessions that wait for a lock that one of our workers holds.
    pub waiting: i64,
}

/// What a worker does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// A full batch.
    Go,
    /// A batch divided by the factor, and why.
    Slow(i32, String),
    /// Nothing for now, and why.
    Hold(String),
}

/// Replay lag at which work stops, in seconds.
pub const LAG_ENTER: f64 = 10.0;
/// Replay lag at which it goes on again.
pub const LAG_LEAVE: f64 = 3.0;

/// The verdict; `held` is whether the last one was a hold, for each signal has two thresholds.
pub fn decide(seen: &Seen, held: bool) -> Verdict {
    let limit = if held { LAG_LEAVE } else { LAG_ENTER };
    if let Some(lag) = seen.lag_seconds.filter(|lag| *lag > limit) {
        return Verdict::Hold(format!("a standby is {lag:.0} s behind (goes on below {LAG_LEAVE:.0} s)"));
    }
    if let Some(names) = &seen.vanished {
        return Verdict::Slow(4, format!("standby {names} was streaming within the last hour and is gone"));
    }
    if seen.waiting > 0 {
        return Verdict::Slow(4, format!("{} session(s) wait for a lock of ours", seen.waiting));
    }
    Verdict::Go
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lag(seconds: f64) -> Seen {
        Seen { lag_seconds: Some(seconds), ..Seen::default() }
    }

    #[test]
    fn lag_has_two_thresholds() {
        assert_eq!(decide(&lag(5.0), false), Verdict::Go);
        assert!(matches!(decide(&lag(11.0), false), Verdict::Hold(_)));
        assert!(matches!(decide(&lag(5.0), true), Verdict::Hold(_)));
        assert_eq!(decide(&lag(2.0), true), Verdict::Go);
    }

    #[test]
    fn a_vanished_standby_is_not_no_lag() {
        let seen = Seen { vanished: Some("b/local".into()), ..Seen::default() };
        assert!(matches!(decide(&seen, false), Verdict::Slow(4, _)));
    }

    #[test]
    fn whoever_waits_for_us_slows_us_at_once() {
        assert!(matches!(decide(&Seen { waiting: 1, ..Seen::default() }, false), Verdict::Slow(4, _)));
    }
}
