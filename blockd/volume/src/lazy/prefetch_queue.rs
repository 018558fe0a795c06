//! Queue of extents of a lazy volume that hydration prefers.

use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, Extent};
use std::collections::VecDeque;

/// Length and alignment of a fetch for a missed block: 512 KiB, a frame of a cloud snapshot.
pub(crate) const MISS_BLOCKS: u64 = (512 << 10) / BLOCK_SIZE_BYTES;
/// Unit of the queue.
const UNIT_BLOCKS: u64 = MISS_BLOCKS;
/// Maximum number of queued extents.
const MAX_PREFERRED: usize = 131_072;

/// Bounded queue of extents.
#[derive(Default)]
pub(crate) struct PrefetchQueue(VecDeque<Extent>);

impl PrefetchQueue {
    /// Queues the units that contain these extents.
    pub(crate) fn push(&mut self, extents: &[Extent]) {
        let mut last = None;
        for extent in extents.iter().filter(|extent| !extent.is_empty()) {
            let (first, end) = (extent.start.0 / UNIT_BLOCKS, extent.end().0.div_ceil(UNIT_BLOCKS));
            let whole = Extent::between(BlockIndex(first * UNIT_BLOCKS), BlockIndex(end * UNIT_BLOCKS));
            if self.0.len() >= MAX_PREFERRED {
                return;
            }
            if last.replace(whole) != Some(whole) {
                self.0.push_back(whole);
            }
        }
    }

    /// Returns the extent to fetch next.
    pub(crate) fn first(&self) -> Option<Extent> {
        self.0.front().copied()
    }

    /// Drops the first extent, after it was fetched.
    pub(crate) fn pop(&mut self) {
        self.0.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: u64, len: u64) -> Extent {
        Extent::new(BlockIndex(start), len)
    }

    #[test]
    fn prefetch_queue_yields_aligned_units_in_order() {
        let mut preferred = PrefetchQueue::default();
        preferred.push(&[at(140, 1), at(160, 2), at(5000, 0), at(3, 200), at(140, 1)]);
        let mut seen = vec![];
        while let Some(first) = preferred.first() {
            seen.push(first);
            preferred.pop();
        }
        assert_eq!(seen, [at(128, 128), at(0, 256), at(128, 128)]);
        preferred.push(&[at(0, 1); 3]);
        (0..2 * MAX_PREFERRED as u64).for_each(|unit| preferred.push(&[at(unit * UNIT_BLOCKS, 1)]));
        assert_eq!(preferred.0.len(), MAX_PREFERRED);
    }
}
