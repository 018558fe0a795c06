//! Histogram of durations with bucket bounds that are powers of four.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Upper bounds of the buckets in microseconds; one more bucket holds longer durations.
pub(super) const BOUNDS_MICROS: [u64; 13] =
    [1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216];
const BUCKETS: usize = BOUNDS_MICROS.len() + 1;

/// Histogram that any thread may add to.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
}

/// Snapshot of a histogram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Count of each bucket, excluding the smaller ones.
    pub(super) buckets: [u64; BUCKETS],
    /// Sum of the durations.
    pub(super) nanos: u64,
}

impl Counted {
    /// Returns the number of durations.
    pub fn total(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Returns the sum of the durations, in nanoseconds.
    pub fn nanos(&self) -> u64 {
        self.nanos
    }
}

impl Histogram {
    pub(super) fn note(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(nanos)].fetch_add(1, Relaxed);
        self.nanos.fetch_add(nanos, Relaxed);
    }

    pub(super) fn add_to(&self, sum: &mut Counted) {
        for (sum, bucket) in sum.buckets.iter_mut().zip(&self.buckets) {
            *sum += bucket.load(Relaxed);
        }
        sum.nanos = sum.nanos.wrapping_add(self.nanos.load(Relaxed));
    }
}

/// Returns the index of the first bucket whose bound is not below.
fn bucket(nanos: u64) -> usize {
    // Bound i is 4^i µs: the index is half the number of binary digits of the microseconds minus one.
    let micros = nanos.div_ceil(1_000);
    let digits = u64::BITS - micros.saturating_sub(1).leading_zeros();
    (digits.div_ceil(2) as usize).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_is_counted_in_the_first_bucket_that_fits() {
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
        assert_eq!(counted.buckets[1..6], [1, 2, 1, 0, 1]);
    }
}
