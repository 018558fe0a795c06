//! Block status: allocation of a range, and blocks dirtied since a snapshot, without reading data.
//!
//! Both come from the block sets of the layers, exact to the block, extent by extent and only as far as
//! requested.
//!
//! A block without data in any layer is a hole, with one exception: the head remembers blocks that were
//! zeroed with their space kept, until it is frozen or the process ends. In a frozen layer kept space has no
//! use, because the next write goes to another file.

use crate::{
    error::VolumeError,
    head::Head,
    layer::stack::{Layer, Stack},
    view::SnapshotView,
    volume::Volume,
};
use blockd_extent::{Epoch, Extent, SnapshotId};

/// Maximum number of layer extents examined by a call, which bounds its duration.
const STEPS: usize = 1 << 16;
/// Maximum length of one readahead request.
const PREFETCH_BYTES: u64 = 64 << 20;

/// Allocation state of blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allocation {
    /// Data.
    Data,
    /// Zeroes without space.
    Hole,
    /// Zeroes with allocated space.
    Zero,
}

/// Byte range of one allocation state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AllocationRun {
    /// Length, in bytes.
    pub len_bytes: u64,
    /// Allocation state.
    pub allocation: Allocation,
}

/// Byte range that is dirty, or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirtyRun {
    /// Length, in bytes.
    pub len_bytes: u64,
    /// True if the blocks were written, trimmed or zeroed.
    pub dirty: bool,
}

/// Signal that enough was found.
pub(crate) struct LimitReached;

/// Joins extents to maximal byte ranges, clipped to the requested range.
pub(crate) struct Runs<T> {
    pub(crate) found: Vec<(u64, T)>,
    offset_bytes: u64,
    end_bytes: u64,
    most: usize,
    steps: usize,
}

impl<T: Copy + PartialEq> Runs<T> {
    pub(crate) fn new(offset_bytes: u64, len_bytes: u64, most: usize) -> Self {
        Self { found: Vec::new(), offset_bytes, end_bytes: offset_bytes + len_bytes, most, steps: 0 }
    }

    pub(crate) fn range(&self) -> Extent {
        Extent::touching(self.offset_bytes, self.end_bytes - self.offset_bytes)
    }

    pub(crate) fn add(&mut self, run: Extent, what: T) -> Result<(), LimitReached> {
        let from = run.offset_bytes().max(self.offset_bytes);
        let len_bytes = (run.offset_bytes() + run.len_bytes()).min(self.end_bytes) - from;
        debug_assert!(len_bytes > 0, "only extents of the range are found");
        self.steps += 1;
        let full = self.found.len() >= self.most;
        match self.found.last_mut() {
            Some(last) if last.1 == what => last.0 += len_bytes,
            _ if full => return Err(LimitReached),
            _ => self.found.push((len_bytes, what)),
        }
        if self.steps >= STEPS { Err(LimitReached) } else { Ok(()) }
    }
}

fn allocation(
    stack: &Stack,
    offset_bytes: u64,
    len_bytes: u64,
    max_runs: usize,
) -> impl Iterator<Item = AllocationRun> {
    let mut runs = Runs::new(offset_bytes, len_bytes, max_runs);
    let head = match stack.layers().first() {
        Some(Layer::Open(head)) => Some(head),
        _ => None,
    };
    // Reaching the limit is not a failure.
    let _ = stack.resolve(runs.range(), &mut |run, source| match source {
        Some(data) => match data.lazy() {
            // Missing blocks of a lazy volume may be data.
            Some(base) => base.cut(run, &mut |part, is_zero| {
                runs.add(part, if is_zero { Allocation::Hole } else { Allocation::Data })
            }),
            None => runs.add(run, Allocation::Data),
        },
        None => add_zeroes(&mut runs, head.map(AsRef::as_ref), run),
    });
    runs.found.into_iter().map(|(len_bytes, allocation)| AllocationRun { len_bytes, allocation })
}

/// Splits an extent of zeroes by allocated space.
fn add_zeroes(runs: &mut Runs<Allocation>, head: Option<&Head>, run: Extent) -> Result<(), LimitReached> {
    let Some(head) = head else { return runs.add(run, Allocation::Hole) };
    let mut at = run.start;
    for kept in head.kept_space(run).extents() {
        if kept.start > at {
            runs.add(Extent::between(at, kept.start), Allocation::Hole)?;
        }
        runs.add(kept, Allocation::Zero)?;
        at = kept.end();
    }
    if at < run.end() { runs.add(Extent::between(at, run.end()), Allocation::Hole) } else { Ok(()) }
}

fn dirty_after(
    stack: &Stack,
    epoch: Epoch,
    offset_bytes: u64,
    len_bytes: u64,
    max_runs: usize,
) -> impl Iterator<Item = DirtyRun> {
    let mut runs = Runs::new(offset_bytes, len_bytes, max_runs);
    // Reaching the limit is not a failure.
    let _ = stack.dirtied_after(epoch, runs.range(), &mut |run, dirty| runs.add(run, dirty));
    runs.found.into_iter().map(|(len_bytes, dirty)| DirtyRun { len_bytes, dirty })
}

impl Volume {
    /// Returns the allocation of a range, ascending from `offset_bytes`. The result may end before the range:
    /// after `max_runs` entries, or after many examined extents; it has at least one entry.
    ///
    /// # Errors
    /// The range is not inside the volume, or the volume is closed or has failed.
    pub fn allocation(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        max_runs: usize,
    ) -> Result<Vec<AllocationRun>, VolumeError> {
        self.check_usable()?;
        self.check_range(offset_bytes, len_bytes)?;
        Ok(allocation(&self.current(), offset_bytes, len_bytes, max_runs).collect())
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
        max_runs: usize,
    ) -> Result<Vec<DirtyRun>, VolumeError> {
        self.check_usable()?;
        self.check_range(offset_bytes, len_bytes)?;
        // The stack first: a snapshot that still exists afterwards has kept the layers above it separate.
        // `admin` would also work, but it is held while a freeze waits for its disk.
        let stack = self.current();
        let found = self.kept.read().iter().find(|point| point.0 == snapshot).map(|point| point.1);
        let epoch = found.ok_or(VolumeError::NoSuchSnapshot { volume: self.id, snapshot })?;
        Ok(dirty_after(&stack, epoch, offset_bytes, len_bytes, max_runs).collect())
    }

    /// Asks the kernel to read up to 64 MiB of a range ahead; does not wait.
    ///
    /// # Errors
    /// As for [`allocation`](Self::allocation), or the disk fails.
    pub fn prefetch(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), VolumeError> {
        self.check_usable()?;
        self.check_range(offset_bytes, len_bytes)?;
        prefetch(&self.current(), offset_bytes, len_bytes)
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
        max_runs: usize,
    ) -> Result<Vec<AllocationRun>, VolumeError> {
        self.check_range(offset_bytes, len_bytes)?;
        Ok(allocation(&self.stack, offset_bytes, len_bytes, max_runs).collect())
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
        max_runs: usize,
    ) -> Result<Vec<DirtyRun>, VolumeError> {
        self.check_range(offset_bytes, len_bytes)?;
        let point = self.points.iter().find(|point| point.0 == snapshot);
        let epoch = point.ok_or(VolumeError::NoSuchSnapshot { volume: self.volume, snapshot })?.1;
        Ok(dirty_after(&self.stack, epoch, offset_bytes, len_bytes, max_runs).collect())
    }

    /// Runs [`Volume::prefetch`] on the snapshot.
    ///
    /// # Errors
    /// The range is not inside the snapshot, or the disk fails.
    pub fn prefetch(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), VolumeError> {
        self.check_range(offset_bytes, len_bytes)?;
        prefetch(&self.stack, offset_bytes, len_bytes)
    }
}

fn prefetch(stack: &Stack, offset_bytes: u64, len_bytes: u64) -> Result<(), VolumeError> {
    let range = Extent::touching(offset_bytes, len_bytes.min(PREFETCH_BYTES));
    stack.resolve(range, &mut |run, source| match source {
        Some(data) => data.will_need(run.offset_bytes(), run.len_bytes()),
        None => Ok(()),
    })
}
