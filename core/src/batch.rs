//! How large the next batch is: aimed at a time, at most doubled, quartered on overshoot, never nothing.
//!
//! Two ways to know how fast the work goes, and one rule for the step from one batch to the next. [`Aim::next`] goes by the
//! last batch alone. [`Pace`] goes by moving averages of speed and of WAL, commit included, and is what all work that writes
//! shares: the copy counts in blocks, catching up in blocks of the key log, upgrades in rows.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What batches of one kind aim at.
#[derive(Debug, Clone, Copy)]
pub struct Aim {
    /// What a batch should take.
    pub time: Duration,
    /// The largest batch, however fast.
    pub most: i32,
}

/// What a batch that writes should take, its commit included.
pub const TARGET: Duration = Duration::from_millis(200);

/// No batch aims at more WAL than this.
pub const WAL_BYTES: u64 = 8 << 20;

/// The copy, in blocks: at most 8 MB of rows.
pub const COPY: Aim = Aim { time: TARGET, most: 1024 };

/// Catching up, in blocks of the key log: some 3,000 keys of a bigint.
pub const CATCH_UP: Aim = Aim { time: TARGET, most: 16 };

/// The comparison, in rows of a range of keys. A batch holds its snapshot for as long as it takes, and with it VACUUM back.
pub const COMPARE_ROWS: Aim = Aim { time: Duration::from_secs(1), most: 50_000 };

/// The comparison, in blocks.
pub const COMPARE_BLOCKS: Aim = Aim { time: Duration::from_secs(1), most: 4096 };

impl Aim {
    /// The size of the batch after one of `size`, of which `done` was there to do and took `took`.
    pub fn next(&self, size: i32, done: i32, took: Duration) -> i32 {
        self.step(size, done, self.time.as_secs_f64() / took.as_secs_f64().max(0.000_1))
    }

    /// The size of the batch after one of `size`, of which `done` was there to do, where `ratio` times as much would have
    /// been right.
    ///
    /// A batch that was cut short, because it had to go slow or by the end of its chunk, shrinks the next where even the part
    /// took too long. The next grows where that part's speed would let a whole one be larger: work that goes slow from its
    /// beginning has to come to its pace too. Of a small part the speed says nothing.
    fn step(&self, size: i32, done: i32, ratio: f64) -> i32 {
        let size = size.max(1);
        let done = done.clamp(1, size);
        let part = f64::from(done) / f64::from(size);
        let next = if ratio < 1.0 {
            f64::from(done) * ratio.max(0.25)
        } else if part >= SMALL_PART {
            f64::from(size) * (ratio * part).clamp(1.0, 2.0)
        } else {
            f64::from(size)
        };
        (next as i32).clamp(1, self.most)
    }
}

/// A part of a batch below which its speed says nothing of the whole.
const SMALL_PART: f64 = 0.125;

/// The part of a batch that is done when work goes at one `factor`th of its speed: never nothing.
pub fn divided(size: i32, factor: i32) -> i32 {
    (size / factor.max(1)).max(1)
}

/// How long to rest after a divided batch, so that work fills one `factor`th of the time.
pub fn rest(factor: i32) -> Duration {
    TARGET - TARGET / u32::try_from(factor).unwrap_or(1).max(1)
}

/// The same after a step of any length: an index build is not followed by a rest of hours.
pub fn rest_after(factor: i32, took: Duration) -> Duration {
    let rest = took * u32::try_from(factor - 1).unwrap_or(0);
    rest.min(Duration::from_secs(1))
}

/// A batch that was done.
#[derive(Debug, Clone, Copy)]
pub struct Batch {
    /// How much: blocks or rows, as the aim counts.
    pub done: i32,
    /// WAL that it wrote, in bytes; 0 where nobody knows.
    pub bytes: u64,
    /// How long it took, with its commit as far as that is known.
    pub took: Duration,
}

/// How fast work of one kind goes: what is kept from one batch to the next, beside its progress.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// What the next batch takes, when nothing slows it.
    pub size: i32,
    /// Moving average of blocks or rows a second.
    #[serde(default)]
    pub rate: Option<f64>,
    /// Moving average of bytes of WAL for each block or row.
    #[serde(default)]
    pub weight: Option<f64>,
}

/// What the newest batch counts for in a moving average.
const NEWEST: f64 = 0.3;
/// How many times what was aimed at is an overshoot.
const OVERSHOOT: f64 = 2.0;

impl Pace {
    /// Before the first batch.
    pub fn of(size: i32) -> Pace {
        Pace { size: size.max(1), rate: None, weight: None }
    }

    /// After a batch, of at most [`size`](Self::size).
    #[must_use]
    pub fn after(self, aim: Aim, batch: Batch) -> Pace {
        let done = f64::from(batch.done.max(1));
        let took = batch.took.as_secs_f64().max(0.000_1);
        let bytes = batch.bytes as f64;
        let rate = average(self.rate, done / took);
        let weight = average(self.weight, bytes / done);
        let over = took > aim.time.as_secs_f64() * OVERSHOOT || bytes > WAL_BYTES as f64 * OVERSHOOT;
        let wanted = (rate * aim.time.as_secs_f64()).min(WAL_BYTES as f64 / weight.max(f64::MIN_POSITIVE));
        let ratio = if over { 0.25 } else { wanted / done };
        Pace { size: aim.step(self.size, batch.done, ratio), rate: Some(rate), weight: Some(weight) }
    }

    /// After a batch that was to have this size and was cut short, because what it did took as much as any may: the next one has no
    /// more than was done. Where that was most of it, work is only somewhat slower than usual, which says little of what it will be.
    #[must_use]
    pub fn cut(self, aim: Aim, batch: Batch, size: i32) -> Pace {
        let done = f64::from(batch.done.max(1));
        let (rate, weight) = (done / batch.took.as_secs_f64().max(0.000_1), batch.bytes as f64 / done);
        let mostly = batch.done > size / 2;
        let kept = |before: Option<f64>, now| if mostly { average(before, now) } else { now };
        let (rate, weight) = (kept(self.rate, rate), kept(self.weight, weight));
        let wanted = (rate * aim.time.as_secs_f64()).min(WAL_BYTES as f64 / weight.max(f64::MIN_POSITIVE));
        let size = wanted.clamp(done * 0.25, done).max(1.0);
        Pace { size: size as i32, rate: Some(rate), weight: Some(weight) }
    }
}

fn average(before: Option<f64>, now: f64) -> f64 {
    before.filter(|before| before.is_finite()).map_or(now, |before| before + NEWEST * (now - before))
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
    fn a_small_part_of_a_batch_shrinks_the_next_and_lets_none_grow() {
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

    const ROWS: Aim = Aim { time: TARGET, most: 100_000 };

    /// Batches of rows that take so long and write so much, one after the other, at one `factor`th.
    fn run(mut pace: Pace, batches: u32, factor: i32, per_row: Duration, commit: Duration, bytes: u64) -> Pace {
        for _ in 0..batches {
            let done = divided(pace.size, factor);
            let rows = u32::try_from(done).unwrap();
            let batch = Batch { done, bytes: bytes * u64::from(rows), took: per_row * rows + commit };
            pace = pace.after(ROWS, batch);
        }
        pace
    }

    #[test]
    fn batches_come_to_the_time_aimed_at_commit_included() {
        let commit = Duration::from_millis(50);
        let pace = run(Pace::of(10), 30, 1, Duration::from_millis(1), commit, 100);
        assert!((140..=160).contains(&pace.size), "150 rows of 1 ms and a commit of 50 ms make 200 ms: {pace:?}");
    }

    #[test]
    fn wide_rows_are_bounded_by_their_wal() {
        let pace = run(Pace::of(10), 40, 1, Duration::from_micros(10), Duration::ZERO, 100 << 10);
        assert!((78..=82).contains(&pace.size), "8 MB are 81 rows of 100 KB: {pace:?}");
    }

    #[test]
    fn a_pace_at_most_doubles_and_quarters_at_once() {
        let fast = Batch { done: 100, bytes: 0, took: Duration::from_micros(1) };
        assert_eq!(Pace::of(100).after(ROWS, fast).size, 200);
        // However good the average is: one batch that takes far too long is enough.
        let steady = Pace { size: 1000, rate: Some(1e9), weight: Some(1.0) };
        let slow = Batch { done: 1000, bytes: 0, took: TARGET * 3 };
        assert_eq!(steady.after(ROWS, slow).size, 250);
        let heavy = Batch { done: 1000, bytes: 3 * WAL_BYTES, took: TARGET };
        assert_eq!(steady.after(ROWS, heavy).size, 250);
    }

    #[test]
    fn one_slow_batch_among_many_is_an_exception() {
        let steady = run(Pace::of(200), 20, 1, Duration::from_millis(1), Duration::ZERO, 100);
        let after = steady.after(ROWS, Batch { done: steady.size, bytes: 0, took: TARGET * 3 / 2 });
        assert!(after.size > steady.size * 8 / 10, "{steady:?} -> {after:?}");
    }

    #[test]
    fn going_slow_divides_each_batch_and_changes_no_pace() {
        let (row, commit) = (Duration::from_millis(1), Duration::from_millis(30));
        let steady = run(Pace::of(10), 30, 1, row, commit, 100);
        let slowed = run(steady, 100, 4, row, commit, 100);
        assert_eq!(slowed.size, steady.size, "as large as before, once nothing slows it");
        assert_eq!(divided(steady.size, 4), steady.size / 4);
        assert_eq!(divided(2, 4), 1);
        assert_eq!(divided(100, 0), 100);
        assert_eq!(rest(4), TARGET * 3 / 4);
        assert_eq!(rest(1), Duration::ZERO);
        assert_eq!(rest_after(4, TARGET / 4), rest(4));
        assert_eq!(rest_after(4, Duration::from_millis(250)), Duration::from_millis(750));
        assert_eq!(rest_after(2, Duration::from_secs(3600)), Duration::from_secs(1));
        assert_eq!(rest_after(1, Duration::from_secs(3600)), Duration::ZERO);
    }

    #[test]
    fn what_goes_slow_from_its_beginning_comes_to_its_pace_too() {
        let pace = run(Pace::of(10), 60, 4, Duration::from_micros(100), Duration::from_millis(5), 100);
        assert!((1500..2000).contains(&pace.size), "a quarter of it and the commit take 50 ms: {pace:?}");
        let distant = run(Pace::of(100), 60, 4, Duration::from_micros(100), Duration::from_millis(150), 100);
        assert_eq!(distant.size, 100, "where the commit alone takes longer, nothing is known, and nothing shrinks");
        let (mut size, row) = (500, Duration::from_micros(20));
        for _ in 0..20 {
            let done = divided(size, 4);
            size = COMPARE_ROWS.next(size, done, row * u32::try_from(done).unwrap());
        }
        assert!(size > 45_000, "{size} rows");
    }

    #[test]
    fn a_batch_that_was_cut_short_says_how_large_the_next_is() {
        let aim = Aim { time: TARGET, most: 1000 };
        let took = Batch { done: 5, bytes: 5 << 20, took: TARGET };
        let pace = Pace { size: 500, rate: Some(1e6), weight: Some(10.0) }.cut(aim, took, 500);
        assert_eq!(pace, Pace { size: 5, rate: Some(25.0), weight: Some(f64::from(1 << 20)) });
        assert_eq!(Pace::of(1).cut(aim, Batch { done: 0, ..took }, 1).size, 1);
        // Rows that are heavier or slower than what was aimed at.
        assert_eq!(Pace::of(80).cut(aim, Batch { done: 16, bytes: 16 << 20, took: TARGET }, 80).size, 8);
        assert_eq!(Pace::of(80).cut(aim, Batch { done: 16, bytes: 0, took: TARGET * 10 }, 80).size, 4);
    }

    #[test]
    fn a_batch_that_was_cut_at_its_end_hardly_changes_the_next() {
        let aim = Aim { time: TARGET, most: 1000 };
        let before = Pace { size: 100, rate: Some(500.0), weight: Some(100.0) };
        let pace = before.cut(aim, Batch { done: 90, bytes: 9000, took: TARGET * 2 }, 100);
        assert_eq!(pace.size, 83, "of {:?}", pace.rate);
        let pace = before.cut(aim, Batch { done: 90, bytes: 9000, took: TARGET }, 100);
        assert_eq!(pace.size, 90, "never more than was done");
    }

    #[test]
    fn a_pace_survives_being_stored() {
        let pace = run(Pace::of(10), 3, 1, Duration::from_millis(1), Duration::ZERO, 100);
        let text = serde_json::to_string(&pace).unwrap();
        assert_eq!(serde_json::from_str::<Pace>(&text).unwrap(), pace);
        assert_eq!(serde_json::from_str::<Pace>(r#"{"size": 7}"#).unwrap(), Pace::of(7));
    }
}
