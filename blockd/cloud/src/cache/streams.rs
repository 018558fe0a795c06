//! Readahead: detection of sequential readers.

use blockd_extent::{BlockIndex, Extent};

/// Maximum number of streams of a snapshot.
const MAX_STREAMS: usize = 8;
/// Maximum distance of a read from the expected position of a stream: the kernel's own readahead has several
/// requests in flight, in any order.
const SLACK_BLOCKS: u64 = 512;
/// Sequential reads that make a stream.
const MIN_READS: u32 = 3;
/// Initial window of a stream.
const MIN_WINDOW_BLOCKS: u64 = 128;

#[derive(Clone, Copy)]
struct Stream {
    /// Expected position of the next read.
    next: u64,
    /// End of the requested readahead.
    ahead: u64,
    window: u64,
    reads: u32,
    used: u64,
}

/// Read streams of a snapshot.
pub(crate) struct Streams {
    streams: Vec<Stream>,
    clock: u64,
    window_most_blocks: u64,
}

impl Streams {
    /// Creates an empty table with a maximum window in blocks; 0 disables readahead.
    pub fn new(window_most_blocks: u64) -> Self {
        Self { streams: Vec::new(), clock: 0, window_most_blocks }
    }

    /// Records a read and returns the extent to read ahead. Each block of a stream is returned once.
    pub fn note(&mut self, read: Extent) -> Option<Extent> {
        if read.is_empty() || self.window_most_blocks == 0 {
            return None;
        }
        self.clock += 1;
        let (start, end) = (read.start.0, read.end().0);
        let near = |stream: &&mut Stream| {
            start.abs_diff(stream.next) <= SLACK_BLOCKS && end.saturating_add(SLACK_BLOCKS) > stream.next
        };
        let Some(stream) = self.streams.iter_mut().filter(near).min_by_key(|s| start.abs_diff(s.next)) else {
            if self.streams.len() >= MAX_STREAMS
                && let Some(oldest) = (0..self.streams.len()).min_by_key(|i| self.streams[*i].used)
            {
                self.streams.swap_remove(oldest);
            }
            self.streams.push(Stream {
                next: end,
                ahead: end,
                window: MIN_WINDOW_BLOCKS.min(self.window_most_blocks),
                reads: 1,
                used: self.clock,
            });
            return None;
        };
        stream.used = self.clock;
        if end <= stream.next {
            return None;
        }
        stream.next = end;
        stream.reads = stream.reads.saturating_add(1);
        let from = stream.ahead.max(end);
        // In steps large enough for requests and small enough to keep the store busy.
        if stream.reads < MIN_READS || from - end > stream.window / 4 * 3 {
            return None;
        }
        let until = end + stream.window;
        stream.window = (stream.window * 2).min(self.window_most_blocks);
        stream.ahead = until;
        Some(Extent::between(BlockIndex(from), BlockIndex(until)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extent(start: u64, len: u64) -> Extent {
        Extent::new(BlockIndex(start), len)
    }

    #[test]
    fn sequential_reads_hit_the_readahead() {
        let mut streams = Streams::new(2048);
        let (mut ahead, mut largest) = (0, 0);
        for at in (0..100_000).step_by(32) {
            if let Some(next) = streams.note(extent(at, 32)) {
                assert!(next.start.0 >= at + 32 && next.start.0 >= ahead, "nothing is asked for twice");
                assert!(next.start.0 == ahead || ahead == 0, "and nothing is left out");
                ahead = next.end().0;
                largest = largest.max(next.len_blocks);
                assert!(ahead - (at + 32) <= 2048);
            }
            assert!(at < 96 || ahead > at + 32, "at {at} there is nothing ahead");
        }
        assert!(largest >= 512, "it reads ahead in large steps: {largest}");
    }

    #[test]
    fn requests_in_any_order_are_one_stream() {
        let mut streams = Streams::new(2048);
        let order = [32, 0, 64, 128, 96, 160, 224, 192, 256, 320, 288];
        assert!(order.iter().any(|at| streams.note(extent(*at, 32)).is_some()));
    }

    #[test]
    fn random_reads_trigger_no_readahead() {
        let mut streams = Streams::new(2048);
        for i in 0..1000u64 {
            assert_eq!(streams.note(extent((i * 7_919_993) % 100_000_000, 8)), None);
        }
        let found = (0..20).filter(|i| streams.note(extent(5_000_000 + i * 32, 32)).is_some()).count();
        assert!(found > 0);
        assert_eq!(Streams::new(0).note(extent(0, 8)), None);
    }

    proptest! {
        #[test]
        fn readahead_is_bounded(reads in prop::collection::vec((0u64..5000, 1u64..300), 0..200)) {
            let mut streams = Streams::new(1024);
            for (start, len) in reads {
                if let Some(next) = streams.note(extent(start, len)) {
                    prop_assert!(next.len_blocks <= 1024 && !next.is_empty());
                    prop_assert!(next.end().0 <= start + len + 1024);
                }
                prop_assert!(streams.streams.len() <= MAX_STREAMS);
            }
        }
    }
}
