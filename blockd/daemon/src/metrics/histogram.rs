//! How long things took, in buckets whose bounds are powers of four.
//!
//! From 16 µs to 65 ms each of them is counted in four finer ones, none of which ends above 1.5 times where it begins: to tell
//! whether what 99 of 100 requests take has grown by half.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Upper bounds of the buckets in microseconds; there is one more for what takes longer.
pub(super) const BOUNDS_MICROS: [u64; 13] =
    [1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216];
const BUCKETS: usize = BOUNDS_MICROS.len() + 1;

/// The first bucket that is cut into finer ones, and the first behind them that is not.
const CUT: std::ops::Range<usize> = 3..9;
/// How many finer ones each of those is cut into.
const PARTS: usize = 4;
/// How many buckets there are with the finer ones.
pub(crate) const FINE_BUCKETS: usize = BUCKETS + (CUT.end - CUT.start) * (PARTS - 1);

/// Counters that any thread may add to.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    buckets: [AtomicU64; FINE_BUCKETS],
    nanos: AtomicU64,
}

/// A histogram as it stood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    /// How many there were in each bucket, those of smaller ones not included.
    pub(super) buckets: [u64; BUCKETS],
    /// The same in the finer ones.
    fine: [u64; FINE_BUCKETS],
    /// How long all of them took.
    pub(super) nanos: u64,
}

impl Counted {
    /// How many there were.
    pub(crate) fn total(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// How long all of them took, in nanoseconds.
    pub(crate) fn nanos(&self) -> u64 {
        self.nanos
    }

    /// How many there were in each of the finer buckets, shorter times first.
    pub(crate) fn fine(&self) -> &[u64; FINE_BUCKETS] {
        &self.fine
    }
}

impl Histogram {
    pub(super) fn note(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[fine_bucket(nanos)].fetch_add(1, Relaxed);
        self.nanos.fetch_add(nanos, Relaxed);
    }

    pub(super) fn add_to(&self, sum: &mut Counted) {
        for (fine, bucket) in self.buckets.iter().enumerate() {
            let count = bucket.load(Relaxed);
            sum.fine[fine] += count;
            sum.buckets[whole_of(fine)] += count;
        }
        sum.nanos = sum.nanos.wrapping_add(self.nanos.load(Relaxed));
    }
}

/// The first of the finer buckets whose bound is not below.
pub(crate) fn fine_bucket(nanos: u64) -> usize {
    // Bound i is 4^i µs: half the number of binary digits that count the microseconds, less the bound itself.
    let micros = nanos.div_ceil(1_000);
    let below = micros.saturating_sub(1);
    let digits = (u64::BITS - below.leading_zeros()) as usize;
    let whole = digits.div_ceil(2).min(BUCKETS - 1);
    if whole < CUT.start {
        return whole;
    }
    if whole >= CUT.end {
        return whole + (CUT.end - CUT.start) * (PARTS - 1);
    }
    // Two powers of two, and by the next digit the two halves of each.
    let half = (below >> (digits - 2)) as usize & 1;
    let part = (digits + 1 - 2 * whole) * 2 + half;
    CUT.start + (whole - CUT.start) * PARTS + part
}

/// The bucket that a finer one is part of.
fn whole_of(fine: usize) -> usize {
    let end = CUT.start + (CUT.end - CUT.start) * PARTS;
    if fine < CUT.start {
        fine
    } else if fine < end {
        CUT.start + (fine - CUT.start) / PARTS
    } else {
        CUT.end + fine - end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_the_first_bucket_that_holds_it() {
        let bucket = |nanos| whole_of(fine_bucket(nanos));
        for micros in (0..6_000).chain(BOUNDS_MICROS.iter().flat_map(|bound| [bound - 1, *bound, bound + 1]))
        {
            let expected = BOUNDS_MICROS.iter().position(|bound| micros <= *bound);
            assert_eq!(bucket(micros * 1_000), expected.unwrap_or(BUCKETS - 1), "{micros} µs");
        }
        assert_eq!((bucket(1_001), bucket(u64::MAX)), (1, BUCKETS - 1));
        let histogram = Histogram::default();
        [3, 5, 16, 17, 300].into_iter().for_each(|micros| histogram.note(Duration::from_micros(micros)));
        let mut counted = Counted::default();
        histogram.add_to(&mut counted);
        assert_eq!((counted.total(), counted.nanos()), (5, 341_000));
        assert_eq!(counted.buckets[..6], [0, 1, 2, 1, 0, 1]);
        assert_eq!(counted.fine().iter().sum::<u64>(), 5);
    }

    #[test]
    fn from_16_microseconds_to_65_milliseconds_no_bucket_ends_above_one_and_a_half_times_its_beginning() {
        let mut first_of: [Option<u64>; FINE_BUCKETS] = [None; FINE_BUCKETS];
        let mut before = 0;
        for micros in 0..=70_000u64 {
            let fine = fine_bucket(micros * 1_000);
            assert!((before..=before + 1).contains(&fine), "{micros} µs: {fine} after {before}");
            before = fine;
            let first = *first_of[fine].get_or_insert(micros);
            if (17..=65_536).contains(&micros) {
                assert!(
                    micros * 2 <= first.saturating_sub(1) * 3,
                    "{micros} µs and {first} µs are in one bucket"
                );
            }
        }
        assert_eq!(fine_bucket(u64::MAX), FINE_BUCKETS - 1);
    }
}
