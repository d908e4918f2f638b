//! How long an attempt at several locks may make others wait: one deadline for all of them.
//!
//! `lock_timeout` counts each lock anew. With a time-out of 50 ms each, five tables made a reader wait 208 ms; so each
//! lock is asked for with what the ones before it have left.

use std::time::{Duration, Instant};

/// The end of an attempt.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// An attempt that begins now and lasts so long.
    #[must_use]
    pub fn after(now: Instant, lasts: Duration) -> Self {
        Self(now + lasts)
    }

    /// The `lock_timeout` for the next lock, in milliseconds; None when the attempt is over. Never 0, which would mean no limit.
    #[must_use]
    pub fn lock_timeout(self, now: Instant) -> Option<u128> {
        Some(self.0.saturating_duration_since(now).as_millis()).filter(|left| *left > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_locks_get_what_the_earlier_ones_left() {
        let begun = Instant::now();
        let deadline = Deadline::after(begun, Duration::from_millis(50));
        let at = |ms| deadline.lock_timeout(begun + Duration::from_millis(ms));
        assert_eq!(at(0), Some(50));
        assert_eq!(at(45), Some(5), "five tables that are free after 45 ms each do not make 225 ms");
        assert_eq!(at(50), None, "0 would be no limit at all");
        assert_eq!(at(70), None);
    }

    #[test]
    fn less_than_a_millisecond_is_nothing() {
        let begun = Instant::now();
        assert_eq!(Deadline::after(begun, Duration::from_micros(900)).lock_timeout(begun), None);
    }
}
