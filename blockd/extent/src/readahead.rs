//! Readahead: detects sequential reads among those of several readers.

use crate::{BlockIndex, Extent};

/// Maximum number of streams: a filesystem reads several files at once.
const MAX_STREAMS: usize = 8;

/// Limits of a readahead; all lengths in blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadaheadLimits {
    /// Initial window of a stream.
    pub first_window_blocks: u64,
    /// Maximum window; 0 disables the readahead.
    pub max_window_blocks: u64,
    /// Maximum advance of the window: larger ones leave the store idle in between.
    pub max_step_blocks: u64,
    /// Maximum distance of a read from the expected position: reads of several threads overtake each other.
    pub slack_blocks: u64,
    /// Sequential reads that make a stream.
    pub min_reads: u32,
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// End of the furthest read.
    next: u64,
    /// End of the requested blocks.
    ahead: u64,
    window_blocks: u64,
    reads: u32,
    used: u64,
}

/// Sequential read streams. Pure: it receives reads and returns extents to prefetch.
#[derive(Default, Debug)]
pub struct Readahead {
    streams: Vec<Stream>,
    clock: u64,
}

impl Readahead {
    /// Records a read and returns the extent to prefetch, up to the window behind the read. Each block of a
    /// stream is returned once.
    pub fn record(&mut self, limits: &ReadaheadLimits, read: Extent) -> Option<Extent> {
        if read.is_empty() || limits.max_window_blocks == 0 {
            return None;
        }
        self.clock += 1;
        let (start, end) = (read.start.0, read.end().0);
        let slack = limits.slack_blocks;
        let is_near = |stream: &&mut Stream| {
            start.abs_diff(stream.next) <= slack && end.saturating_add(slack) > stream.next
        };
        let nearest = self.streams.iter_mut().filter(is_near);
        let Some(stream) = nearest.min_by_key(|stream| start.abs_diff(stream.next)) else {
            self.add_stream(limits, end);
            return None;
        };
        stream.used = self.clock;
        if end <= stream.next {
            return None;
        }
        stream.next = end;
        stream.ahead = stream.ahead.max(end);
        stream.reads = stream.reads.saturating_add(1);
        let step = (stream.window_blocks / 4).clamp(1, limits.max_step_blocks.max(1));
        let is_filled = stream.ahead - end > stream.window_blocks - step;
        if stream.reads < limits.min_reads || is_filled {
            return None;
        }
        // Whole steps, so that the next one starts where this one ends.
        let until = (end + stream.window_blocks) / step * step;
        let wanted = Extent::between(BlockIndex(stream.ahead), BlockIndex(until.max(stream.ahead)));
        if wanted.is_empty() {
            return None;
        }
        stream.ahead = until;
        stream.window_blocks = (stream.window_blocks * 2).min(limits.max_window_blocks);
        Some(wanted)
    }

    /// Adds a stream in place of the one that was used longest ago.
    fn add_stream(&mut self, limits: &ReadaheadLimits, end: u64) {
        if self.streams.len() >= MAX_STREAMS
            && let Some(oldest) = (0..self.streams.len()).min_by_key(|i| self.streams[*i].used)
        {
            self.streams.swap_remove(oldest);
        }
        let window_blocks = limits.first_window_blocks.min(limits.max_window_blocks);
        self.streams.push(Stream { next: end, ahead: end, window_blocks, reads: 1, used: self.clock });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: ReadaheadLimits = ReadaheadLimits {
        first_window_blocks: 128,
        max_window_blocks: 2048,
        max_step_blocks: 1024,
        slack_blocks: 512,
        min_reads: 3,
    };

    fn extent(start: u64, len: u64) -> Extent {
        Extent::new(BlockIndex(start), len)
    }

    #[test]
    fn sequential_reads_hit_the_readahead_without_gaps() {
        let mut readahead = Readahead::default();
        let (mut ahead, mut largest) = (0, 0);
        for at in (0..100_000).step_by(32) {
            if let Some(next) = readahead.record(&LIMITS, extent(at, 32)) {
                assert!(next.start.0 >= at + 32 && next.start.0 >= ahead, "a block was requested twice");
                assert!(next.start.0 == ahead || ahead == 0, "a block was skipped");
                ahead = next.end().0;
                largest = largest.max(next.len_blocks);
                assert!(ahead - (at + 32) <= LIMITS.max_window_blocks);
            }
            assert!(at < 96 || ahead > at + 32, "no readahead at {at}");
        }
        assert!(largest >= 512, "the largest step is {largest} blocks");
    }

    #[test]
    fn interleaved_streams_are_detected() {
        let mut readahead = Readahead::default();
        let mut found = 0;
        for n in 0..100 {
            for stream in 0..4 {
                found +=
                    u64::from(readahead.record(&LIMITS, extent(stream * 1_000_000 + n * 64, 64)).is_some());
            }
        }
        assert!(found >= 8, "{found}");
    }

    #[test]
    fn overtaking_reads_are_one_stream() {
        let mut readahead = Readahead::default();
        let order = [32, 0, 64, 128, 96, 160, 224, 192, 256, 320, 288];
        assert!(order.iter().any(|at| readahead.record(&LIMITS, extent(*at, 32)).is_some()));
    }

    #[test]
    fn random_reads_trigger_no_readahead() {
        let mut readahead = Readahead::default();
        for i in 0..1000u64 {
            assert_eq!(readahead.record(&LIMITS, extent((i * 7_919_993) % 100_000_000, 8)), None);
        }
        let found =
            (0..20).filter(|i| readahead.record(&LIMITS, extent(5_000_000 + i * 32, 32)).is_some()).count();
        assert!(found > 0);
        let disabled = ReadaheadLimits { max_window_blocks: 0, ..LIMITS };
        assert_eq!(Readahead::default().record(&disabled, extent(0, 8)), None);
    }

    proptest! {
        #[test]
        fn readahead_is_bounded(reads in prop::collection::vec((0u64..5000, 1u64..300), 0..200)) {
            let mut readahead = Readahead::default();
            for (start, len) in reads {
                if let Some(next) = readahead.record(&LIMITS, extent(start, len)) {
                    prop_assert!(!next.is_empty() && next.len_blocks <= LIMITS.max_window_blocks);
                    prop_assert!(next.end().0 <= start + len + LIMITS.max_window_blocks);
                }
                prop_assert!(readahead.streams.len() <= MAX_STREAMS);
            }
        }
    }
}
