//! Pages that a random read of an extent needs.

use super::references::Referenced;
use crate::index::Page;
use blockd_extent::{BlockSet, Extent};
use std::sync::Arc;

/// Pages of all layers for one extent of the volume, with at most one page per layer; newest first.
pub(super) struct FrameRun {
    pub range: Extent,
    /// Index of the layer, number of the page, and the page.
    pub pages: Vec<(usize, usize, Arc<Page>)>,
    /// Pages of sources that the visible references need; none if only the layers are loaded.
    pub referenced: Vec<Referenced>,
}

impl FrameRun {
    /// Returns true if a page has references, visible or not.
    pub(super) fn has_references(&self) -> bool {
        self.pages.iter().any(|(_, _, page)| !page.references.is_empty())
    }

    /// Reports for each layer, newest first, the data and reference blocks read from it.
    pub(super) fn visible(&self, mut report: impl FnMut(usize, usize, &Page, BlockSet)) {
        let mut left = BlockSet::from_iter([self.range]);
        for (level, number, page) in &self.pages {
            let mut visible = page.data.slice(self.range);
            if !page.references.is_empty() {
                visible.union_with(&page.referenced.slice(self.range));
            }
            visible.intersect_with(&left);
            left.subtract(&visible);
            left.subtract(&page.zero.slice(self.range));
            debug_assert!(visible.len_blocks() <= self.range.len_blocks);
            if !visible.is_empty() {
                report(*level, *number, page, visible);
            }
            if left.is_empty() {
                return;
            }
        }
    }
}
