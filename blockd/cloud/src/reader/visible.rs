//! Iteration over the pages of a snapshot's layers, with the blocks of each that no newer layer hides.

use super::{SnapshotReader, bulk::BulkRead};
use crate::{CloudError, cache::SharedDelta, index::Page};
use blockd_extent::{BlockIndex, BlockSet, Extent};
use std::sync::Arc;

/// Blocks of a region, the unit of the iteration; index pages do not cross regions.
const REGION_BLOCKS: u64 = crate::plan::PAGE_SPAN_BLOCKS;

impl SnapshotReader {
    /// Iterates over the pages of all layers, with the visible data and reference blocks of each.
    pub(crate) fn visible<'a>(&'a self, extent: Extent, what: &'a BulkRead<'a>) -> VisiblePages<'a> {
        let whole = extent.intersection(Extent::whole(self.inner.size_bytes));
        VisiblePages {
            reader: self,
            what,
            next_start: whole.start.0,
            end: whole.end().0,
            region: Extent::between(whole.start, whole.start),
            left: BlockSet::new(),
            level: 0,
            pages: 0..0,
        }
    }
}

/// A page of a delta with the blocks that no newer delta hides.
pub(crate) struct VisiblePage {
    pub delta: Arc<SharedDelta>,
    pub number: usize,
    pub page: Arc<Page>,
    /// Data and reference blocks.
    pub visible: BlockSet,
    pub region: Extent,
}

/// Iterator over the pages of all deltas, region by region, from the newest delta down.
pub(crate) struct VisiblePages<'a> {
    reader: &'a SnapshotReader,
    what: &'a BulkRead<'a>,
    /// First block of the next region.
    next_start: u64,
    end: u64,
    region: Extent,
    /// Blocks of the region that are in no page so far.
    left: BlockSet,
    /// Next delta.
    level: usize,
    /// Pages of the current delta in the region.
    pages: std::ops::Range<usize>,
}

impl VisiblePages<'_> {
    /// Returns the next page; `None` after the last one.
    pub(crate) async fn next(&mut self) -> Result<Option<VisiblePage>, CloudError> {
        loop {
            let Some(number) = self.pages.next() else {
                if !self.next_delta() {
                    return Ok(None);
                }
                continue;
            };
            let delta = &self.reader.inner.deltas[self.level - 1];
            let page = match (self.reader.inner.cache.page(delta, number).await, self.what.damage) {
                (Err(error @ CloudError::Damaged { .. }), Some(damage)) => {
                    // The blocks of a damaged page are lost, and so are those that it may hide.
                    let range = delta.reader.root.pages.get(number).map_or(self.region, |page| page.range);
                    let lost: Vec<_> = self.left.extents_in(range).collect();
                    damage.add(error, lost);
                    self.left.remove_extent(range);
                    continue;
                }
                (page, _) => page?,
            };
            let Some(page) = page else { continue };
            let mut visible = page.data.clone();
            visible.union_with(&page.referenced);
            visible.intersect_with(&self.left);
            let before = self.left.len_blocks();
            self.left.subtract(&visible);
            self.left.subtract(&page.zero);
            debug_assert!(
                self.left.len_blocks() + visible.len_blocks() <= before,
                "two deltas provide the same block"
            );
            let region = self.region;
            return Ok(Some(VisiblePage { delta: Arc::clone(delta), number, page, visible, region }));
        }
    }

    /// Advances to the next delta of the region, or to the newest one of the next region; returns false at
    /// the end.
    fn next_delta(&mut self) -> bool {
        if self.left.is_empty() || self.level == self.reader.inner.deltas.len() {
            if self.next_start >= self.end {
                return false;
            }
            let end = ((self.next_start / REGION_BLOCKS + 1) * REGION_BLOCKS).min(self.end);
            assert!(end > self.next_start, "no progress at block {end}");
            self.region = Extent::between(BlockIndex(self.next_start), BlockIndex(end));
            self.next_start = end;
            self.left = BlockSet::from_iter([self.region]);
            if let Some(skip) = self.what.skip {
                self.left.subtract(&skip.slice(self.region));
            }
            self.level = 0;
            if self.reader.inner.deltas.is_empty() {
                return true;
            }
        }
        let delta = &self.reader.inner.deltas[self.level];
        self.pages = delta.reader.root.pages_in(self.region);
        self.level += 1;
        true
    }
}
