//! Order of hydration: around recent reads, newest first, then preferred extents, then the rest in order.

use crate::lazy::prefetch_queue::PrefetchQueue;
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, Extent};
use std::collections::{HashSet, VecDeque};

/// Maximum number of hot areas.
const MAX_HOT: usize = 256;
/// Maximum length of a fetch of hydration: 4 MiB. A reader of one of its blocks waits for all of it.
pub(crate) const STEP_BLOCKS: u64 = (4 << 20) / BLOCK_SIZE_BYTES;
/// Length and alignment of the hot area around a read.
const HOT_BLOCKS: u64 = STEP_BLOCKS;

/// Order of hydration.
#[derive(Default)]
pub(crate) struct HydrationOrder {
    pub(crate) preferred: PrefetchQueue,
    /// Blocks of recent reads, in different areas; the newest last.
    hot: VecDeque<BlockIndex>,
    /// Numbers of their areas.
    hot_known: HashSet<u64>,
    /// End of the last extent of the rest.
    cursor: BlockIndex,
}

impl HydrationOrder {
    /// Records a read that missed a block.
    pub(crate) fn record_read(&mut self, block: BlockIndex) {
        let area = block.0 / HOT_BLOCKS;
        if self.hot_known.insert(area) {
            self.hot.push_back(block);
            if self.hot.len() > MAX_HOT
                && let Some(oldest) = self.hot.pop_front()
            {
                self.hot_known.remove(&(oldest.0 / HOT_BLOCKS));
            }
        }
    }

    /// Returns the next extent of a volume, or `None` if nothing is missing. `first_missing` returns the
    /// first extent to fetch within an extent.
    pub(crate) fn next(
        &mut self,
        whole: Extent,
        first_missing: &dyn Fn(Extent) -> Option<Extent>,
    ) -> Option<Extent> {
        while let Some(hot) = self.hot.pop_back() {
            let area = hot.0 / HOT_BLOCKS;
            self.hot_known.remove(&area);
            let around = Extent::new(BlockIndex(area * HOT_BLOCKS), HOT_BLOCKS).intersection(whole);
            if let Some(found) = first_missing(around) {
                self.hot.push_back(hot);
                self.hot_known.insert(area);
                return Some(found);
            }
        }
        while let Some(first) = self.preferred.first() {
            if let Some(found) = first_missing(first.intersection(whole)) {
                return Some(found);
            }
            self.preferred.pop();
        }
        let rest = Extent::between(self.cursor.min(whole.end()), whole.end());
        let found = first_missing(rest).or_else(|| first_missing(whole))?;
        self.cursor = found.end();
        Some(found)
    }
}
