//! Iterators over the extents of a set, and over its gaps.

use super::{BlockSet, join, split};
use crate::{BlockIndex, Extent};

/// Extents of a [`BlockSet`] inside a range.
pub struct ExtentsIn<'a> {
    pub(super) set: &'a BlockSet,
    pub(super) next: u64,
    pub(super) end: u64,
    pub(super) current: Option<(usize, roaring::bitmap::Iter<'a>)>,
}

impl ExtentsIn<'_> {
    /// Opens the iterator of the shard of `next`.
    pub(super) fn open_shard(&mut self) {
        self.current = None;
        if self.next >= self.end {
            return;
        }
        let (shard, low) = split(self.next);
        let (last_shard, last) = split(self.end - 1);
        let high = if shard == last_shard { last } else { u32::MAX };
        if let Some(bitmap) = self.set.shards.get(shard) {
            self.current = Some((shard, bitmap.range(low..=high)));
        }
    }

    /// Returns the next extent, which ends at the end of its shard at the latest.
    fn next_in_shards(&mut self) -> Option<Extent> {
        while self.next < self.end {
            let Some((shard, runs)) = &mut self.current else {
                self.next = self.end;
                return None;
            };
            if let Some(run) = runs.next_range() {
                let start = join(*shard, *run.start());
                let end = BlockIndex(join(*shard, *run.end()).0 + 1);
                self.next = end.0;
                let extent = Extent::between(start, end);
                if split(self.next).1 == 0 {
                    self.open_shard();
                }
                return Some(extent);
            }
            self.next = ((*shard as u64) + 1) << 32;
            self.open_shard();
        }
        None
    }
}

impl Iterator for ExtentsIn<'_> {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        let mut extent = self.next_in_shards()?;
        // An extent at the end of a shard may continue in the next one.
        while split(extent.end().0).1 == 0 && self.next < self.end {
            let (shard, _) = split(extent.end().0);
            let continues = self.set.shards.get(shard).is_some_and(|bitmap| bitmap.contains(0));
            if !continues {
                break;
            }
            match self.next_in_shards() {
                Some(more) => extent.len_blocks += more.len_blocks,
                None => break,
            }
        }
        Some(extent)
    }
}

/// Extents of a range that are not in a [`BlockSet`].
pub struct GapsIn<'a> {
    pub(super) members: ExtentsIn<'a>,
    pub(super) next: BlockIndex,
    pub(super) end: BlockIndex,
}

impl Iterator for GapsIn<'_> {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        while self.next < self.end {
            let from = self.next;
            let (gap_end, resume) = match self.members.next() {
                Some(run) => (run.start, run.end()),
                None => (self.end, self.end),
            };
            self.next = resume;
            if gap_end > from {
                return Some(Extent::between(from, gap_end));
            }
        }
        None
    }
}
