//! How large the next batch is: aimed at a time, at most doubled, quartered on overshoot.

use std::time::Duration;

/// What batches of one kind aim at.
#[derive(Debug, Clone, Copy)]
pub struct Aim {
    /// What a batch should take, its share of the commit aside.
    pub time: Duration,
    /// The largest batch, however fast.
    pub most: i32,
}

/// The copy, in blocks: at most 8 MB of rows, hence about 8 MB of WAL.
pub const COPY: Aim = Aim { time: Duration::from_millis(150), most: 1024 };

/// The comparison, in rows of a range of keys. A batch holds its snapshot for as long as it takes, and with it VACUUM back.
pub const COMPARE_ROWS: Aim = Aim { time: Duration::from_secs(1), most: 50_000 };

/// The comparison, in blocks.
pub const COMPARE_BLOCKS: Aim = Aim { time: Duration::from_secs(1), most: 4096 };

impl Aim {
    /// The size of the batch after one of `size`, of which `done` was there to do and took `took`.
    ///
    /// A batch that was cut short, by the end of its chunk, takes no longer than a whole one: it may shrink the next, but
    /// not let it grow.
    pub fn next(&self, size: i32, done: i32, took: Duration) -> i32 {
        let size = size.max(1);
        let done = done.clamp(1, size);
        let ratio = (self.time.as_secs_f64() / took.as_secs_f64().max(0.000_1)).clamp(0.25, 2.0);
        let next = if ratio < 1.0 {
            f64::from(done) * ratio
        } else if done > size / 2 {
            f64::from(size) * ratio
        } else {
            f64::from(size)
        };
        (next as i32).clamp(1, self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_doubled_quartered_on_overshoot_and_never_nothing() {
        assert_eq!(COPY.next(100, 100, Duration::from_micros(1)), 200);
        assert_eq!(COPY.next(100, 100, COPY.time), 100);
        assert_eq!(COPY.next(100, 100, Duration::from_secs(5)), 25);
        assert_eq!(COPY.next(1, 1, Duration::from_secs(50)), 1);
        assert_eq!(COPY.next(COPY.most, COPY.most, Duration::from_millis(1)), COPY.most);
    }

    #[test]
    fn a_batch_that_was_cut_short_shrinks_the_next_and_lets_none_grow() {
        let aim = COMPARE_ROWS;
        assert_eq!(aim.next(1000, 100, Duration::from_millis(1)), 1000);
        assert_eq!(aim.next(1000, 100, Duration::from_secs(2)), 50);
        assert_eq!(aim.next(1000, 0, Duration::from_millis(1)), 1000);
        assert_eq!(aim.next(1000, 900, Duration::from_millis(1)), 2000);
    }

    #[test]
    fn rows_of_one_speed_soon_take_the_time_aimed_at() {
        for per_row in [Duration::from_micros(2), Duration::from_millis(1), Duration::from_millis(10)] {
            let mut size = 500;
            for _ in 0..10 {
                let took = per_row * u32::try_from(size).unwrap();
                assert!(took <= Duration::from_secs(5), "{size} rows of {per_row:?}");
                size = COMPARE_ROWS.next(size, size, took);
            }
            let wanted = 1.0 / per_row.as_secs_f64();
            assert!(f64::from(size) >= (wanted * 0.9).min(50_000.0), "{size} rows of {per_row:?}");
        }
    }
}
