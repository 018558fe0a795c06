//! What a client can learn of a range without reading it: where there is data, and what was dirtied since a
//! snapshot.
//!
//! Both are answered from the block sets of the layers, exact to the block, run by run and only as far as was
//! asked.
//!
//! A block that no layer has data for is a hole, with one exception: where the head was told to zero blocks
//! and keep their space, it remembers that until it is frozen or the process ends. In a frozen layer space
//! that was kept is of no use to anybody, because the next write goes to another file.

use crate::{
    error::VolumeError,
    head::Head,
    stack::{Layer, Stack},
    view::SnapshotView,
    volume::Volume,
};
use blockd_extent::{Epoch, Extent, SnapshotId};

/// After how many runs of the layers a call stops, however few runs they add up to: what one call may take.
const STEPS: usize = 1 << 16;
/// How much one request to read ahead is worth.
const PREFETCH_BYTES: u64 = 64 << 20;

/// Whether blocks have data, and whether they have space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allocation {
    /// They have data.
    Data,
    /// They read as zeroes and take no space.
    Hole,
    /// They read as zeroes, and space is kept for them.
    Zero,
}

/// A run of bytes with the same allocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AllocationRun {
    /// Its length, in bytes.
    pub len_bytes: u64,
    /// What it is.
    pub allocation: Allocation,
}

/// A run of bytes that were dirtied, or were not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirtyRun {
    /// Its length, in bytes.
    pub len_bytes: u64,
    /// Whether its blocks were written, trimmed or zeroed since.
    pub dirty: bool,
}

/// Says that enough was found.
pub(crate) struct Enough;

/// Puts runs of blocks together to the longest runs of bytes, cut to the range that was asked for.
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

    pub(crate) fn add(&mut self, run: Extent, what: T) -> Result<(), Enough> {
        let from = run.offset_bytes().max(self.offset_bytes);
        let len_bytes = (run.offset_bytes() + run.len_bytes()).min(self.end_bytes) - from;
        self.steps += 1;
        let full = self.found.len() >= self.most;
        match self.found.last_mut() {
            Some(last) if last.1 == what => last.0 += len_bytes,
            _ if full => return Err(Enough),
            _ => self.found.push((len_bytes, what)),
        }
        if self.steps >= STEPS { Err(Enough) } else { Ok(()) }
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
    // That there is enough is no failure.
    let _ = stack.resolve(runs.range(), &mut |run, source| match source {
        Some(data) => match data.lazy() {
            // What is not fetched yet may be data.
            Some(base) => base.cut(run, &mut |part, is_zero| {
                runs.add(part, if is_zero { Allocation::Hole } else { Allocation::Data })
            }),
            None => runs.add(run, Allocation::Data),
        },
        None => add_zeroes(&mut runs, head.map(AsRef::as_ref), run),
    });
    runs.found.into_iter().map(|(len_bytes, allocation)| AllocationRun { len_bytes, allocation })
}

/// Cuts a run that reads as zeroes into what has space and what has not.
fn add_zeroes(runs: &mut Runs<Allocation>, head: Option<&Head>, run: Extent) -> Result<(), Enough> {
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
    // That there is enough is no failure.
    let _ = stack.dirtied_after(epoch, runs.range(), &mut |run, dirty| runs.add(run, dirty));
    runs.found.into_iter().map(|(len_bytes, dirty)| DirtyRun { len_bytes, dirty })
}

impl Volume {
    /// Where a range has data, in ascending order, from `offset_bytes` on. It may end before the range does:
    /// after `max_runs` runs, or when it has looked at many; never before the first run.
    ///
    /// # Errors
    /// If the range does not lie inside the volume, or the volume is closed or has failed.
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

    /// Which parts of a range were written, trimmed or zeroed since a snapshot was frozen, exact to the
    /// block; what was zeroed that was zeroes then is not among them. It may end before the range does, as
    /// [`allocation`](Self::allocation).
    ///
    /// # Errors
    /// As there; or if there is no such snapshot (any more).
    pub fn dirty_since(
        &self,
        snapshot: SnapshotId,
        offset_bytes: u64,
        len_bytes: u64,
        max_runs: usize,
    ) -> Result<Vec<DirtyRun>, VolumeError> {
        self.check_usable()?;
        self.check_range(offset_bytes, len_bytes)?;
        // First the stack: a snapshot that is still there afterwards has kept the layers above it apart from
        // those below. `admin` would do as well, but it is held while a freeze waits for its disk.
        let stack = self.current();
        let found = self.kept.read().iter().find(|point| point.0 == snapshot).map(|point| point.1);
        let epoch = found.ok_or(VolumeError::NoSuchSnapshot { volume: self.id, snapshot })?;
        Ok(dirty_after(&stack, epoch, offset_bytes, len_bytes, max_runs).collect())
    }

    /// Asks the kernel to read a range into memory, up to 64 MiB of it, and does not wait for that.
    ///
    /// # Errors
    /// As [`allocation`](Self::allocation); or if the disk fails.
    pub fn prefetch(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), VolumeError> {
        self.check_usable()?;
        self.check_range(offset_bytes, len_bytes)?;
        prefetch(&self.current(), offset_bytes, len_bytes)
    }
}

impl SnapshotView {
    /// [`Volume::allocation`] of the snapshot.
    ///
    /// # Errors
    /// If the range does not lie inside the snapshot.
    pub fn allocation(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        max_runs: usize,
    ) -> Result<Vec<AllocationRun>, VolumeError> {
        self.check_range(offset_bytes, len_bytes)?;
        Ok(allocation(&self.stack, offset_bytes, len_bytes, max_runs).collect())
    }

    /// [`Volume::dirty_since`] of the snapshot: what was dirtied between an older one and this one. The older
    /// one must have been there when the view was opened.
    ///
    /// # Errors
    /// If the range does not lie inside the snapshot, or there was no such older snapshot.
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

    /// [`Volume::prefetch`] of the snapshot.
    ///
    /// # Errors
    /// If the range does not lie inside the snapshot, or the disk fails.
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
