//! Durations of a volume's requests, and the ages of those in flight.

use crate::metrics::histogram::{Counted, Histogram};
use std::{
    cell::Cell,
    sync::{
        LazyLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Number of shards. Threads use different shards to avoid contention on cache lines.
const SHARDS: usize = 8;

/// Kind of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Flush.
    Flush,
    /// Trim or write zeroes.
    Discard,
}

impl Operation {
    pub(crate) const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Flush, Self::Discard];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
        }
    }
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    took: [Histogram; Operation::ALL.len()],
    /// Requests in flight: their number (16 bits), and the sum of their start times in ticks (48 bits, modulo
    /// overflow). Packed into one word, so that a reader sees consistent values.
    under_way: [AtomicU64; Operation::ALL.len()],
}

/// Bits of nanoseconds in a tick: 66 µs.
const TICK_BITS: u32 = 16;
const COUNT_BITS: u32 = 16;

/// Start of the tick count.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

fn ticks(at: Instant) -> u64 {
    let nanos = at.saturating_duration_since(*EPOCH).as_nanos() >> TICK_BITS;
    u64::try_from(nanos).unwrap_or(u64::MAX)
}

/// Request in flight until it is dropped.
#[derive(Debug)]
pub struct ActiveRequest<'a> {
    counter: &'a AtomicU64,
    added: u64,
}

impl Drop for ActiveRequest<'_> {
    fn drop(&mut self) {
        self.counter.fetch_sub(self.added, Relaxed);
    }
}

/// Request metrics of one volume.
#[derive(Debug, Default)]
pub struct Traffic {
    shards: [Shard; SHARDS],
}

thread_local! {
    static SHARD: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Returns the shard of this thread.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    SHARD.with(|shard| {
        shard.get().unwrap_or_else(|| {
            let mine = NEXT.fetch_add(1, Relaxed) % SHARDS;
            shard.set(Some(mine));
            mine
        })
    })
}

impl Traffic {
    /// Records a request that started at `began` and ends now.
    pub fn note(&self, operation: Operation, began: Instant) {
        self.shards[shard()].took[operation as usize].note(began.elapsed());
    }

    /// Counts a request that started at `began` as in flight.
    pub fn begin(&self, operation: Operation, began: Instant) -> ActiveRequest<'_> {
        let counter = &self.shards[shard()].under_way[operation as usize];
        let added = ticks(began) << COUNT_BITS | 1;
        counter.fetch_add(added, Relaxed);
        ActiveRequest { counter, added }
    }

    /// Returns the number of requests in flight and the sum of their ages, with an error of about 100 µs
    /// each.
    pub fn under_way(&self, operation: Operation) -> (u64, Duration) {
        let now = ticks(Instant::now());
        let (mut count, mut nanos) = (0, 0u64);
        for shard in &self.shards {
            let seen = shard.under_way[operation as usize].load(Relaxed);
            let here = seen & ((1 << COUNT_BITS) - 1);
            // Both sums are known modulo 2^48 only, so the difference is reduced to 48 bits.
            let ages = (here.wrapping_mul(now).wrapping_sub(seen >> COUNT_BITS)) << COUNT_BITS >> COUNT_BITS;
            // A request that began after `now` was taken has no age yet; the sum is negative then.
            let ages = if ages >> (u64::BITS - COUNT_BITS - 1) == 0 { ages } else { 0 };
            count += here;
            nanos = nanos.saturating_add(ages.saturating_mul(1 << TICK_BITS));
        }
        (count, Duration::from_nanos(nanos))
    }

    /// Returns the durations of one operation.
    pub fn counted(&self, operation: Operation) -> Counted {
        let mut sum = Counted::default();
        self.shards.iter().for_each(|shard| shard.took[operation as usize].add_to(&mut sum));
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_threads_are_summed() {
        let traffic = Traffic::default();
        std::thread::scope(|scope| {
            for _ in 0..SHARDS + 3 {
                scope.spawn(|| (0..100).for_each(|_| traffic.note(Operation::Write, Instant::now())));
            }
        });
        let written = traffic.counted(Operation::Write);
        assert_eq!(written.buckets.iter().sum::<u64>(), 100 * (SHARDS as u64 + 3));
        assert!(written.nanos > 0);
        assert_eq!(traffic.counted(Operation::Read), Counted::default());
    }

    #[test]
    fn request_in_flight_is_counted_with_its_age() {
        let traffic = Traffic::default();
        assert_eq!(traffic.under_way(Operation::Write), (0, Duration::ZERO));
        let at = *EPOCH;
        let first = traffic.begin(Operation::Write, at);
        let second = std::thread::scope(|scope| {
            scope.spawn(|| traffic.begin(Operation::Write, at + Duration::from_secs(3_600))).join().unwrap()
        });
        let (count, age) = traffic.under_way(Operation::Write);
        // The age of the second is clamped to zero; the age of the first is at most the elapsed time.
        assert!(count == 2 && age <= at.elapsed(), "{age:?}");
        drop(second);
        drop(traffic.begin(Operation::Write, Instant::now()));
        assert_eq!(traffic.under_way(Operation::Read).0, 0);
        while traffic.under_way(Operation::Write).1 < Duration::from_millis(2) {
            std::thread::yield_now();
        }
        let (count, age) = traffic.under_way(Operation::Write);
        assert!(count == 1 && age <= at.elapsed(), "{age:?}");
        drop(first);
        assert_eq!(traffic.under_way(Operation::Write), (0, Duration::ZERO));
    }

    #[test]
    fn ages_of_requests_in_flight_are_summed() {
        let traffic = Traffic::default();
        let at = *EPOCH;
        let many: Vec<_> = (0..1_000).map(|_| traffic.begin(Operation::Flush, at)).collect();
        while at.elapsed() < Duration::from_millis(3) {
            std::thread::yield_now();
        }
        let before = at.elapsed();
        let (count, sum) = traffic.under_way(Operation::Flush);
        let after = at.elapsed();
        assert_eq!(count, 1_000);
        let tick = Duration::from_nanos(1 << TICK_BITS);
        assert!(sum / 1_000 + tick >= before && sum / 1_000 <= after, "{before:?} {sum:?} {after:?}");
        drop(many);
        assert_eq!(traffic.under_way(Operation::Flush).0, 0);
    }
}
