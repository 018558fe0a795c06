//! Block status: allocation of a range, and blocks dirtied since a snapshot, without reading data.
//!
//! Both are derived from the block sets of the layers, exact to the block, and only for the requested range.
//!
//! A block without data in any layer is a hole, with one exception: until the head is frozen or the process
//! ends, it records blocks that were zeroed with their space kept. Kept space is useless in a frozen layer,
//! because the next write goes to another file.

use crate::{
    error::VolumeError,
    head::Head,
    layer::stack::{Layer, Stack},
    view::SnapshotView,
    volume::Volume,
};
use blockd_extent::{Epoch, Extent, SnapshotId};

/// Maximum number of layer extents examined by one call, to bound its duration.
const MAX_STEPS: usize = 1 << 16;
/// Maximum length of one readahead request.
const PREFETCH_BYTES: u64 = 64 << 20;

/// Allocation state of blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allocation {
    /// Data.
    Data,
    /// Zeroes without allocated space.
    Hole,
    /// Zeroes with allocated space.
    Zero,
}

/// Byte range in one allocation state, relative to the end of the previous one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AllocationExtent {
    /// Length, in bytes.
    pub len_bytes: u64,
    /// Allocation state.
    pub allocation: Allocation,
}

/// Dirty or clean byte range, relative to the end of the previous one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirtyExtent {
    /// Length, in bytes.
    pub len_bytes: u64,
    /// True if the blocks were written, trimmed or zeroed.
    pub dirty: bool,
}

/// Early end of a search: the limit of results or steps was reached.
pub(crate) struct LimitReached;

/// Joins adjacent extents of equal state to maximal byte ranges, clipped to the requested range.
pub(crate) struct RangeCollector<T> {
    pub(crate) found: Vec<(u64, T)>,
    offset_bytes: u64,
    end_bytes: u64,
    max_ranges: usize,
    steps: usize,
}

impl<T: Copy + PartialEq> RangeCollector<T> {
    pub(crate) fn new(offset_bytes: u64, len_bytes: u64, max_ranges: usize) -> Self {
        Self { found: Vec::new(), offset_bytes, end_bytes: offset_bytes + len_bytes, max_ranges, steps: 0 }
    }

    pub(crate) fn range(&self) -> Extent {
        Extent::touching(self.offset_bytes, self.end_bytes - self.offset_bytes)
    }

    pub(crate) fn add(&mut self, extent: Extent, state: T) -> Result<(), LimitReached> {
        let from = extent.offset_bytes().max(self.offset_bytes);
        let len_bytes = (extent.offset_bytes() + extent.len_bytes()).min(self.end_bytes) - from;
        debug_assert!(len_bytes > 0, "extents are inside the range");
        self.steps += 1;
        let full = self.found.len() >= self.max_ranges;
        match self.found.last_mut() {
            Some(last) if last.1 == state => last.0 += len_bytes,
            _ if full => return Err(LimitReached),
            _ => self.found.push((len_bytes, state)),
        }
        if self.steps >= MAX_STEPS { Err(LimitReached) } else { Ok(()) }
    }
}

fn allocation(
    stack: &Stack,
    offset_bytes: u64,
    len_bytes: u64,
    max_extents: usize,
) -> impl Iterator<Item = AllocationExtent> {
    let mut ranges = RangeCollector::new(offset_bytes, len_bytes, max_extents);
    let head = match stack.layers().first() {
        Some(Layer::Open(head)) => Some(head),
        _ => None,
    };
    // Reaching the limit is not a failure.
    let _ = stack.resolve(ranges.range(), &mut |extent, source| match source {
        Some(data) => match data.lazy() {
            // Missing blocks of a lazy volume may have data.
            Some(base) => base.split_zeroes(extent, &mut |part, is_zero| {
                ranges.add(part, if is_zero { Allocation::Hole } else { Allocation::Data })
            }),
            None => ranges.add(extent, Allocation::Data),
        },
        None => add_zeroes(&mut ranges, head.map(AsRef::as_ref), extent),
    });
    ranges.found.into_iter().map(|(len_bytes, allocation)| AllocationExtent { len_bytes, allocation })
}

/// Splits an extent of zeroes by allocated space.
fn add_zeroes(
    ranges: &mut RangeCollector<Allocation>,
    head: Option<&Head>,
    extent: Extent,
) -> Result<(), LimitReached> {
    let Some(head) = head else { return ranges.add(extent, Allocation::Hole) };
    let mut at = extent.start;
    for kept in head.allocated_zeroes(extent).extents() {
        if kept.start > at {
            ranges.add(Extent::between(at, kept.start), Allocation::Hole)?;
        }
        ranges.add(kept, Allocation::Zero)?;
        at = kept.end();
    }
    if at < extent.end() { ranges.add(Extent::between(at, extent.end()), Allocation::Hole) } else { Ok(()) }
}

fn dirty_after(
    stack: &Stack,
    epoch: Epoch,
    offset_bytes: u64,
    len_bytes: u64,
    max_extents: usize,
) -> impl Iterator<Item = DirtyExtent> {
    let mut ranges = RangeCollector::new(offset_bytes, len_bytes, max_extents);
    // Reaching the limit is not a failure.
    let _ = stack.dirtied_after(epoch, ranges.range(), &mut |extent, dirty| ranges.add(extent, dirty));
    ranges.found.into_iter().map(|(len_bytes, dirty)| DirtyExtent { len_bytes, dirty })
}

impl Volume {
    /// Returns the allocation of a range, ascending from `offset_bytes`. The result may end before the range:
    /// after `max_extents` entries, or after 65,536 examined extents. It has at least one entry unless the
    /// range is empty.
    ///
    /// # Errors
    /// The range is not inside the volume, or the volume is closed or has failed.
    pub fn allocation(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        max_extents: usize,
    ) -> Result<Vec<AllocationExtent>, VolumeError> {
        self.check_usable()?;
        self.check_range(offset_bytes, len_bytes)?;
        Ok(allocation(&self.current(), offset_bytes, len_bytes, max_extents).collect())
    }

    /// Returns the parts of a range that were written, trimmed or zeroed since a snapshot, exact to the
    /// block, without zeroes that were already zeroes. The result may end before the range, as for
    /// [`allocation`](Self::allocation).
    ///
    /// # Errors
    /// As for [`allocation`](Self::allocation), or the snapshot does not exist.
    pub fn dirty_since(
        &self,
        snapshot: SnapshotId,
        offset_bytes: u64,
        len_bytes: u64,
        max_extents: usize,
    ) -> Result<Vec<DirtyExtent>, VolumeError> {
        self.check_usable()?;
        self.check_range(offset_bytes, len_bytes)?;
        // The stack first: a snapshot that still exists afterwards has kept the layers above it separate.
        // Not under `admin`: a freeze holds it while it waits for the disk.
        let stack = self.current();
        let found =
            self.committed_snapshots.read().iter().find(|point| point.0 == snapshot).map(|point| point.1);
        let epoch = found.ok_or(VolumeError::NoSuchSnapshot { volume: self.id, snapshot })?;
        Ok(dirty_after(&stack, epoch, offset_bytes, len_bytes, max_extents).collect())
    }

    /// Starts readahead of the first 64 MiB of a range, with fetches in a lazy volume; does not wait.
    ///
    /// # Errors
    /// As for [`allocation`](Self::allocation), or the disk fails.
    pub fn will_need(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), VolumeError> {
        self.check_usable()?;
        self.check_range(offset_bytes, len_bytes)?;
        will_need(&self.current(), offset_bytes, len_bytes)
    }
}

impl SnapshotView {
    /// Returns [`Volume::allocation`] of the snapshot.
    ///
    /// # Errors
    /// The range is not inside the snapshot.
    pub fn allocation(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        max_extents: usize,
    ) -> Result<Vec<AllocationExtent>, VolumeError> {
        self.check_range(offset_bytes, len_bytes)?;
        Ok(allocation(&self.stack, offset_bytes, len_bytes, max_extents).collect())
    }

    /// Returns [`Volume::dirty_since`] of the snapshot: blocks dirtied between an older snapshot and this
    /// one. The older one must have existed when the view was opened.
    ///
    /// # Errors
    /// The range is not inside the snapshot, or the older snapshot did not exist.
    pub fn dirty_since(
        &self,
        snapshot: SnapshotId,
        offset_bytes: u64,
        len_bytes: u64,
        max_extents: usize,
    ) -> Result<Vec<DirtyExtent>, VolumeError> {
        self.check_range(offset_bytes, len_bytes)?;
        let point = self.points.iter().find(|point| point.0 == snapshot);
        let epoch = point.ok_or(VolumeError::NoSuchSnapshot { volume: self.volume, snapshot })?.1;
        Ok(dirty_after(&self.stack, epoch, offset_bytes, len_bytes, max_extents).collect())
    }

    /// Runs [`Volume::will_need`] on the snapshot.
    ///
    /// # Errors
    /// The range is not inside the snapshot, or the disk fails.
    pub fn will_need(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), VolumeError> {
        self.check_range(offset_bytes, len_bytes)?;
        will_need(&self.stack, offset_bytes, len_bytes)
    }
}

fn will_need(stack: &Stack, offset_bytes: u64, len_bytes: u64) -> Result<(), VolumeError> {
    let range = Extent::touching(offset_bytes, len_bytes.min(PREFETCH_BYTES));
    stack.resolve(range, &mut |extent, source| match source {
        Some(data) => data.will_need(extent.offset_bytes(), extent.len_bytes()),
        None => Ok(()),
    })
}
