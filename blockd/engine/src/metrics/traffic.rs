//! Durations and failures of a volume's requests, and the number of those in flight.

use crate::metrics::histogram::{Counted, Histogram};
use blockd_nbd::DeviceErrorKind;
use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::Instant,
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
    in_flight: [AtomicU64; Operation::ALL.len()],
}

/// Request in flight until it is dropped.
#[derive(Debug)]
pub struct ActiveRequest<'a> {
    counter: &'a AtomicU64,
}

impl Drop for ActiveRequest<'_> {
    fn drop(&mut self) {
        let before = self.counter.fetch_sub(1, Relaxed);
        debug_assert!(before > 0, "a request ended twice");
    }
}

/// Request metrics of one volume.
#[derive(Debug, Default)]
pub struct Traffic {
    shards: [Shard; SHARDS],
    failed: [[AtomicU64; DeviceErrorKind::ALL.len()]; Operation::ALL.len()],
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

    /// Counts a failed request.
    pub fn note_failure(&self, operation: Operation, kind: DeviceErrorKind) {
        self.failed[operation as usize][kind as usize].fetch_add(1, Relaxed);
    }

    /// Returns the number of failed requests of a kind.
    pub fn failed(&self, operation: Operation, kind: DeviceErrorKind) -> u64 {
        self.failed[operation as usize][kind as usize].load(Relaxed)
    }

    /// Counts a request as in flight until the guard is dropped.
    pub fn begin(&self, operation: Operation) -> ActiveRequest<'_> {
        let counter = &self.shards[shard()].in_flight[operation as usize];
        counter.fetch_add(1, Relaxed);
        ActiveRequest { counter }
    }

    /// Returns the number of requests in flight.
    pub fn in_flight(&self, operation: Operation) -> u64 {
        self.shards.iter().map(|shard| shard.in_flight[operation as usize].load(Relaxed)).sum()
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
    fn request_is_in_flight_until_its_guard_is_dropped() {
        let traffic = Traffic::default();
        let here = traffic.begin(Operation::Write);
        let there =
            std::thread::scope(|scope| scope.spawn(|| traffic.begin(Operation::Write)).join().unwrap());
        assert_eq!((traffic.in_flight(Operation::Write), traffic.in_flight(Operation::Read)), (2, 0));
        drop((here, there));
        assert_eq!(traffic.in_flight(Operation::Write), 0);
    }
}
