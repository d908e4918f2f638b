//! How large the next batch is: aimed at a time, at most doubled, quartered on overshoot.

use std::time::Duration;

/// What a batch should take, its share of the commit aside.
pub const TARGET: Duration = Duration::from_millis(150);
/// No batch reads more blocks than these: 8 MB of rows, hence about 8 MB of WAL.
pub const MOST_BLOCKS: i32 = 1024;

/// The number of blocks for the batch after one of `blocks` that took `took`.
pub fn next(blocks: i32, took: Duration) -> i32 {
    let blocks = blocks.max(1);
    let wanted = if took > TARGET * 4 {
        blocks / 4
    } else {
        let ratio = TARGET.as_secs_f64() / took.as_secs_f64().max(0.000_1);
        (f64::from(blocks) * ratio.clamp(0.25, 2.0)) as i32
    };
    wanted.clamp(1, MOST_BLOCKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_doubled_quartered_on_overshoot_and_never_nothing() {
        assert_eq!(next(100, Duration::from_micros(1)), 200);
        assert_eq!(next(100, TARGET), 100);
        assert_eq!(next(100, Duration::from_secs(5)), 25);
        assert_eq!(next(1, Duration::from_secs(50)), 1);
        assert_eq!(next(MOST_BLOCKS, Duration::from_millis(1)), MOST_BLOCKS);
    }
}
