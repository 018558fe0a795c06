//! Layout of a delta, determined before any read.
//!
//! The set of blocks alone determines the frame of each block, the pack of each frame and the index page of
//! each extent. So packs can be created in any order, by any run, and are always the same.

use crate::{CloudError, frame::FRAME_BLOCKS};
use blockd_extent::{BlockIndex, BlockSet, Extent, MAX_VOLUME_BYTES};

/// Data and reference blocks of a full index page.
pub(crate) const PAGE_BLOCKS: u64 = 131_072;
/// Alignment of page boundaries in blocks (1 TiB of the volume), which bounds the set of a page.
pub(crate) const PAGE_SPAN_BLOCKS: u64 = 1 << 28;
/// Frames of a full pack.
pub(crate) const PACK_FRAMES: u64 = 64;
const FRAME: u64 = FRAME_BLOCKS as u64;

/// Extent of the volume that one index page describes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageSpan {
    /// Extent.
    pub range: Extent,
    /// Number of its first frame in the delta.
    pub frame_base: u64,
    /// Number of its first data block among the delta's.
    pub rank_base: u64,
    /// Number of data blocks.
    pub data_blocks: u64,
    /// Number of reference blocks.
    pub reference_blocks: u64,
}

impl PageSpan {
    pub fn frames(&self) -> u64 {
        self.data_blocks.div_ceil(FRAME)
    }
}

/// Layout of the data and reference blocks of a delta.
pub(crate) struct Layout {
    pub pages: Vec<PageSpan>,
    pub frames: u64,
    pub data_blocks: u64,
    pub reference_blocks: u64,
    pub pack_count: u32,
}

impl Layout {
    /// Determines the layout of a delta with these data and reference blocks, which are disjoint, on a
    /// volume of this size.
    ///
    /// # Errors
    /// [`CloudError::InvalidRequest`] if the volume exceeds the maximum size, or blocks are beyond its end.
    pub fn new(data: &BlockSet, references: &BlockSet, size_bytes: u64) -> Result<Self, CloudError> {
        let invalid = |what: String| CloudError::InvalidRequest { what };
        if size_bytes == 0 || size_bytes > MAX_VOLUME_BYTES {
            return Err(invalid(format!(
                "a volume has from 1 to {MAX_VOLUME_BYTES} bytes, not {size_bytes}"
            )));
        }
        let whole = Extent::whole(size_bytes);
        let mut mapped = data.clone();
        mapped.union_with(references);
        debug_assert_eq!(mapped.len_blocks(), data.len_blocks() + references.len_blocks(), "disjoint");
        if let Some(last) = mapped.last().filter(|last| *last >= whole.end()) {
            return Err(invalid(format!("block {last} is beyond the end of a volume of {size_bytes} bytes")));
        }
        let mut pages = Vec::new();
        let (mut frame_base, mut rank_base, mut mapped_base, mut lo) = (0, 0, 0, 0);
        while lo < whole.end().0 {
            let span_end = (lo / PAGE_SPAN_BLOCKS + 1) * PAGE_SPAN_BLOCKS;
            let limit = span_end.min(whole.end().0);
            // The page ends at the first block that does not fit, at the latest at the limit.
            let (hi, mapped_blocks) = match mapped.select(mapped_base + PAGE_BLOCKS) {
                Some(next) if next.0 < limit => (next.0, PAGE_BLOCKS),
                _ => (limit, mapped.rank(BlockIndex(limit)) - mapped_base),
            };
            let range = Extent::between(BlockIndex(lo), BlockIndex(hi));
            assert!(hi > lo && mapped_blocks <= PAGE_BLOCKS.min(hi - lo), "page {lo}..{hi}: {mapped_blocks}");
            let data_blocks = data.rank(range.end()) - rank_base;
            let reference_blocks = mapped_blocks - data_blocks;
            let page = PageSpan { range, frame_base, rank_base, data_blocks, reference_blocks };
            frame_base += page.frames();
            rank_base += data_blocks;
            mapped_base += mapped_blocks;
            pages.push(page);
            lo = hi;
        }
        assert_eq!(rank_base, data.len_blocks(), "the pages hold all data blocks");
        assert!(frame_base <= rank_base, "no frame is empty");
        let pack_count = frame_base.div_ceil(PACK_FRAMES) as u32;
        let reference_blocks = mapped_base - rank_base;
        Ok(Self { pages, frames: frame_base, data_blocks: rank_base, reference_blocks, pack_count })
    }

    /// Returns the first frame of a pack and the one after its last.
    pub fn pack_frames(&self, pack_no: u32) -> (u64, u64) {
        let first = u64::from(pack_no) * PACK_FRAMES;
        assert!(first < self.frames, "pack {pack_no} is not in the layout");
        (first, (first + PACK_FRAMES).min(self.frames))
    }

    /// Returns the rank of a frame's first block among the data blocks; their total for the frame after the
    /// last.
    fn rank_of_frame(&self, frame: u64) -> u64 {
        let page = self.pages.partition_point(|page| page.frame_base <= frame).saturating_sub(1);
        match self.pages.get(page) {
            Some(page) if frame - page.frame_base < page.frames() => {
                page.rank_base + (frame - page.frame_base) * FRAME
            }
            _ => self.data_blocks,
        }
    }

    /// Returns the numbers of blocks of a pack's frames, in order.
    pub fn frame_sizes(&self, pack_no: u32) -> Vec<usize> {
        let (first, end) = self.pack_frames(pack_no);
        let sizes: Vec<usize> = (first..end)
            .map(|frame| (self.rank_of_frame(frame + 1) - self.rank_of_frame(frame)) as usize)
            .collect();
        debug_assert!(sizes.iter().all(|size| (1..=FRAME_BLOCKS).contains(size)));
        sizes
    }

    /// Returns the blocks of the frames `first..end`, ascending.
    pub fn frame_extents(&self, data: &BlockSet, first: u64, end: u64) -> Vec<Extent> {
        debug_assert!(first <= end && end <= self.frames, "frames {first}..{end} of {}", self.frames);
        let (first, end) = (self.rank_of_frame(first), self.rank_of_frame(end));
        match (data.select(first), end.checked_sub(1).and_then(|last| data.select(last))) {
            (Some(first), Some(last)) => {
                data.extents_in(Extent::between(first, BlockIndex(last.0 + 1))).collect()
            }
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(runs: &[(u64, u64)]) -> BlockSet {
        runs.iter().map(|(start, len)| Extent::new(BlockIndex(*start), *len)).collect()
    }

    fn check(data: &BlockSet, size_bytes: u64) -> Layout {
        let layout = Layout::new(data, &BlockSet::new(), size_bytes).unwrap();
        // Pages tile the volume.
        let mut next = BlockIndex(0);
        let (mut frames, mut blocks) = (0, 0);
        for page in &layout.pages {
            assert_eq!(page.range.start, next);
            assert!(!page.range.is_empty() && page.data_blocks <= PAGE_BLOCKS);
            assert_eq!(page.range.start.0 / PAGE_SPAN_BLOCKS, (page.range.end().0 - 1) / PAGE_SPAN_BLOCKS);
            assert_eq!(page.data_blocks, data.intersection_len(page.range));
            assert_eq!((page.frame_base, page.rank_base), (frames, blocks));
            next = page.range.end();
            frames += page.frames();
            blocks += page.data_blocks;
        }
        assert_eq!(next, Extent::whole(size_bytes).end());
        assert_eq!((frames, blocks), (layout.frames, data.len_blocks()));
        // Packs, one after the other, are the data.
        let mut all = BlockSet::new();
        for pack in 0..layout.pack_count {
            let (first, end) = layout.pack_frames(pack);
            let sizes = layout.frame_sizes(pack);
            // The frames by the chunk, each with its blocks.
            let mut extents = Vec::new();
            for (nth, sizes) in sizes.chunks(5).enumerate() {
                let from = first + 5 * nth as u64;
                let chunk = layout.frame_extents(data, from, (from + 5).min(end));
                let blocks = sizes.iter().sum::<usize>() as u64;
                assert_eq!(chunk.iter().map(|extent| extent.len_blocks).sum::<u64>(), blocks);
                extents.extend(chunk);
            }
            assert!(sizes.iter().all(|size| (1..=FRAME_BLOCKS).contains(size)));
            assert_eq!(extents.iter().map(|e| e.len_blocks).sum::<u64>(), sizes.iter().sum::<usize>() as u64);
            for extent in extents {
                assert_eq!(all.intersection_len(extent), 0);
                assert!(all.last().is_none_or(|last| last < extent.start));
                all.insert_extent(extent);
            }
        }
        assert!(all == *data);
        layout
    }

    #[test]
    fn plan_of_a_clean_volume_has_pages_and_no_packs() {
        let layout = check(&BlockSet::new(), 3 << 40);
        assert_eq!((layout.pages.len(), layout.pack_count), (3, 0));
    }

    #[test]
    fn sparse_volume_of_16_tib_has_one_page_per_tib() {
        let runs: Vec<_> = (0..16).map(|tib| ((tib << 28) + 12_345, 100)).collect();
        let layout = check(&set(&runs), 16 << 40);
        assert_eq!((layout.pages.len(), layout.frames, layout.pack_count), (16, 16, 1));
    }

    #[test]
    fn full_pages_end_at_their_last_frame() {
        let layout = check(&set(&[(10, 3 * PAGE_BLOCKS + 1)]), 4 << 30);
        assert_eq!(layout.pages.len(), 4);
        assert_eq!(layout.pages[1].range.start, BlockIndex(10 + PAGE_BLOCKS));
        assert_eq!(layout.pages[3].data_blocks, 1);
        assert_eq!(layout.pack_count, 3 * 16 + 1);
    }

    #[test]
    fn reference_blocks_count_for_pages_but_not_for_frames() {
        let (data, references) = (set(&[(0, 1), (PAGE_BLOCKS, 40)]), set(&[(1, PAGE_BLOCKS - 1)]));
        let layout = Layout::new(&data, &references, 4 << 30).unwrap();
        let counts: Vec<_> =
            layout.pages.iter().map(|page| (page.data_blocks, page.reference_blocks)).collect();
        assert_eq!(counts, [(1, PAGE_BLOCKS - 1), (40, 0)]);
        assert_eq!(layout.pages[1].range.start, BlockIndex(PAGE_BLOCKS));
        assert_eq!((layout.frames, layout.data_blocks, layout.reference_blocks), (2, 41, PAGE_BLOCKS - 1));
        assert_eq!(layout.frame_sizes(0), [1, 40]);
        assert!(Layout::new(&BlockSet::new(), &set(&[(1, 1)]), 4096).is_err());
    }

    #[test]
    fn exactly_full_pages_are_not_followed_by_an_empty_one() {
        let layout = check(&set(&[(10, PAGE_BLOCKS)]), 4 << 30);
        assert_eq!(layout.pages.len(), 1);
    }

    #[test]
    fn blocks_beyond_the_end_are_refused() {
        assert!(Layout::new(&set(&[(1, 1)]), &BlockSet::new(), 4096).is_err());
        assert!(Layout::new(&BlockSet::new(), &BlockSet::new(), 0).is_err());
        assert!(Layout::new(&BlockSet::new(), &BlockSet::new(), MAX_VOLUME_BYTES + 1).is_err());
        check(&set(&[(1, 1)]), 4097);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn planned_blocks_cover_the_dirty_set(runs in prop::collection::vec((0u64..1 << 20, 1u64..60_000), 0..12), at_border: bool) {
            let base = if at_border { PAGE_SPAN_BLOCKS - (1 << 19) } else { 0 };
            let runs: Vec<_> = runs.iter().map(|(start, len)| (base + start, *len)).collect();
            check(&set(&runs), 2 << 40);
        }
    }
}
