//! Readahead: detects sequential reads of a lazy volume.
//!
//! Pure: it receives reads and returns extents to prefetch. It distinguishes a few streams, because a
//! filesystem reads several files at once.

use blockd_extent::{BlockIndex, Extent};

/// Number of streams.
const STREAMS: usize = 8;
/// Initial window of a stream, in blocks: 1 MiB.
const FIRST_WINDOW_BLOCKS: u64 = 256;
/// Maximum window: 128 MiB, as much as a restore has in flight. With half of that, sequential readers wait
/// for a slow store twice as often.
const MAX_WINDOW_BLOCKS: u64 = 32_768;
/// Length requested when the window advances: 4 MiB, one fetch. Larger steps would leave the store idle in
/// between.
const STEP_BLOCKS: u64 = 1024;
/// Maximum gap between reads of a stream: reads of several threads overtake each other.
const SLACK_BLOCKS: u64 = 256;
/// Sequential reads that make a stream.
const READS_IN_ORDER: u32 = 2;

#[derive(Clone, Copy)]
struct Stream {
    /// End of the furthest read.
    next: BlockIndex,
    /// End of the requested blocks.
    ahead: BlockIndex,
    window_blocks: u64,
    reads: u32,
    used: u64,
}

/// Sequential read streams.
#[derive(Default)]
pub(crate) struct Readahead {
    streams: Vec<Stream>,
    clock: u64,
}

impl Readahead {
    /// Records a read; returns blocks to prefetch.
    pub(crate) fn read(&mut self, extent: Extent) -> Option<Extent> {
        self.clock += 1;
        let clock = self.clock;
        let belongs = |stream: &&mut Stream| {
            let from = stream.next.0.saturating_sub(SLACK_BLOCKS);
            (from..=stream.next.0 + SLACK_BLOCKS).contains(&extent.start.0)
        };
        let Some(stream) = self.streams.iter_mut().find(belongs) else {
            let new = Stream {
                next: extent.end(),
                ahead: extent.end(),
                window_blocks: FIRST_WINDOW_BLOCKS,
                reads: 1,
                used: clock,
            };
            if self.streams.len() < STREAMS {
                self.streams.push(new);
            } else if let Some(oldest) = self.streams.iter_mut().min_by_key(|stream| stream.used) {
                *oldest = new;
            }
            return None;
        };
        stream.used = clock;
        if extent.end() <= stream.next {
            return None;
        }
        stream.next = extent.end();
        stream.ahead = stream.ahead.max(stream.next);
        stream.reads += 1;
        let step = STEP_BLOCKS.min(stream.window_blocks / 2);
        if stream.reads < READS_IN_ORDER || stream.ahead.0 - stream.next.0 > stream.window_blocks - step {
            return None;
        }
        // Whole fetches, so that the next one starts where this one ends.
        let end = (stream.next.0 + stream.window_blocks) / step * step;
        let wanted = Extent::between(stream.ahead, BlockIndex(end.max(stream.ahead.0)));
        if wanted.is_empty() {
            return None;
        }
        stream.ahead = wanted.end();
        stream.window_blocks = (stream.window_blocks * 2).min(MAX_WINDOW_BLOCKS);
        Some(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: u64, len: u64) -> Extent {
        Extent::new(BlockIndex(start), len)
    }

    #[test]
    fn sequential_reads_trigger_gapless_readahead() {
        let mut ahead = Readahead::default();
        let mut end = 8;
        for n in 0..20_000u64 {
            if let Some(wanted) = ahead.read(at(n * 8, 8)) {
                assert!(
                    n > 0 && wanted.start.0 >= end && wanted.start.0 <= end.max((n + 1) * 8),
                    "{n}: {wanted:?}"
                );
                end = wanted.end().0;
                assert!(end - (n + 1) * 8 <= MAX_WINDOW_BLOCKS);
            }
            assert!(n == 0 || end > (n + 1) * 8, "{n}: nothing is on its way");
        }
        let mut random = Readahead::default();
        for n in 0..1000 {
            assert_eq!(random.read(at((n * 7919) % 1000 * 100_000, 8)), None);
        }
    }

    #[test]
    fn interleaved_streams_are_detected() {
        let mut ahead = Readahead::default();
        let mut found = 0;
        for n in 0..100 {
            for stream in 0..4 {
                found += u64::from(ahead.read(at(stream * 1_000_000 + n * 64, 64)).is_some());
            }
        }
        assert!(found >= 8, "{found}");
    }
}
