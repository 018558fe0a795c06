//! How long requests to a volume took.

use super::histogram::{Counted, Histogram};
use std::{
    cell::Cell,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Instant,
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
struct Shard([Histogram; Operation::ALL.len()]);

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
        self.shards[shard()].0[operation as usize].note(began.elapsed());
    }

    /// The times of one operation.
    pub(crate) fn counted(&self, operation: Operation) -> Counted {
        let mut sum = Counted::default();
        self.shards.iter().for_each(|shard| shard.0[operation as usize].add_to(&mut sum));
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
}
