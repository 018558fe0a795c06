//! How long requests to a volume took, and how long those that are under way have been.

use super::histogram::{Counted, Histogram};
use std::{
    cell::Cell,
    sync::{
        LazyLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Threads add to different shards, so that they do not take a cache line from one another.
const SHARDS: usize = 8;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// It reads.
    Read,
    /// It writes.
    Write,
    /// It makes durable.
    Flush,
    /// It trims or zeroes.
    Discard,
}

impl Operation {
    pub(super) const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Flush, Self::Discard];

    pub(super) const fn as_str(self) -> &'static str {
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
    /// The requests that are under way: how many (16 bits), and the sum of when they began (48 bits, which
    /// may wrap around), in ticks. In one number, so that whoever looks sees both as they belong together.
    under_way: [AtomicU64; Operation::ALL.len()],
}

/// A tick has so many bits of nanoseconds: 66 µs.
const TICK_BITS: u32 = 16;
const COUNT_BITS: u32 = 16;

/// When ticks are counted from.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

fn ticks(at: Instant) -> u64 {
    let nanos = at.saturating_duration_since(*EPOCH).as_nanos() >> TICK_BITS;
    u64::try_from(nanos).unwrap_or(u64::MAX)
}

/// A request that is under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct UnderWay<'a> {
    counter: &'a AtomicU64,
    added: u64,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.counter.fetch_sub(self.added, Relaxed);
    }
}

/// The times of one volume.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    shards: [Shard; SHARDS],
}

thread_local! {
    static SHARD: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The shard of this thread.
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
    /// Notes a request that began at an instant and ends now.
    pub(crate) fn note(&self, operation: Operation, began: Instant) {
        self.shards[shard()].took[operation as usize].note(began.elapsed());
    }

    /// A request that began at an instant is under way from now on.
    pub(crate) fn begin(&self, operation: Operation, began: Instant) -> UnderWay<'_> {
        let counter = &self.shards[shard()].under_way[operation as usize];
        let added = ticks(began) << COUNT_BITS | 1;
        counter.fetch_add(added, Relaxed);
        UnderWay { counter, added }
    }

    /// How many requests are under way, and how long all of them have been, to some 100 µs for each.
    pub(crate) fn under_way(&self, operation: Operation) -> (u64, Duration) {
        let now = ticks(Instant::now());
        let (mut count, mut nanos) = (0, 0u64);
        for shard in &self.shards {
            let seen = shard.under_way[operation as usize].load(Relaxed);
            let here = seen & ((1 << COUNT_BITS) - 1);
            // What is above the bits of both sums is not known of either, so it is left out of the
            // difference.
            let ages = (here.wrapping_mul(now).wrapping_sub(seen >> COUNT_BITS)) << COUNT_BITS >> COUNT_BITS;
            // One that began after `now` was taken has no age yet; the sum is below zero then.
            let ages = if ages >> (u64::BITS - COUNT_BITS - 1) == 0 { ages } else { 0 };
            count += here;
            nanos = nanos.saturating_add(ages.saturating_mul(1 << TICK_BITS));
        }
        (count, Duration::from_nanos(nanos))
    }

    /// The times of one operation.
    pub(crate) fn counted(&self, operation: Operation) -> Counted {
        let mut sum = Counted::default();
        self.shards.iter().for_each(|shard| shard.took[operation as usize].add_to(&mut sum));
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_threads_noted_is_told_together() {
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
    fn what_is_under_way_is_told_with_its_age_until_it_is_done() {
        let traffic = Traffic::default();
        assert_eq!(traffic.under_way(Operation::Write), (0, Duration::ZERO));
        let at = *EPOCH;
        let first = traffic.begin(Operation::Write, at);
        let second = std::thread::scope(|scope| {
            scope.spawn(|| traffic.begin(Operation::Write, at + Duration::from_secs(3_600))).join().unwrap()
        });
        let (count, age) = traffic.under_way(Operation::Write);
        // That of the second is not below zero; that of the first is at most what passed since.
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
    fn ages_add_up() {
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
