//! Copies of extents between data files of layers, in parts: by extent sharing where the filesystem supports
//! it, otherwise through a buffer.

use crate::{
    error::{VolumeError, VolumeErrorKind},
    layer::data::LayerData,
    layer::data_files::ShareOutcome,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, Extent};
use std::sync::atomic::{AtomicU64, Ordering};

/// Maximum length of one copied part.
const MAX_COPY_BLOCKS: u64 = (1 << 20) / BLOCK_SIZE_BYTES;
/// Maximum length of one shared part. The call locks both files, also for reads.
const MAX_SHARE_BLOCKS: u64 = (16 << 20) / BLOCK_SIZE_BYTES;
/// Minimum length of a shared part. Sharing is a filesystem transaction that splits extents and takes longer
/// than a short copy (`kernel-notes/sharing.md`).
const MIN_SHARE_BLOCKS: u64 = (32 << 10) / BLOCK_SIZE_BYTES;

/// Copier of extents. Calls `should_continue` before each part with its length in bytes, to throttle or stop
/// the copy. A shared part counts as the shortest one.
pub(crate) struct Copier<'a> {
    /// Allocated on first use.
    buf: Vec<u8>,
    should_continue: &'a dyn Fn(u64) -> bool,
    can_share: bool,
    progress: &'a CopyProgress,
    /// End of the copied blocks; extents are copied in ascending order.
    pub(crate) done_below: BlockIndex,
}

impl<'a> Copier<'a> {
    pub(crate) fn new(should_continue: &'a dyn Fn(u64) -> bool, progress: &'a CopyProgress) -> Self {
        Self { buf: vec![], should_continue, can_share: true, progress, done_below: BlockIndex(0) }
    }

    /// Returns false if the copy should stop.
    pub(crate) fn may_continue(&self) -> bool {
        (self.should_continue)(0)
    }

    /// Copies an extent to the same offset; returns false if stopped.
    pub(crate) fn copy(
        &mut self,
        from: &LayerData,
        extent: Extent,
        to: &LayerData,
    ) -> Result<bool, VolumeError> {
        let mut at = extent.start;
        while at < extent.end() {
            let next_part = |blocks| Extent::between(at, BlockIndex(at.0 + blocks).min(extent.end()));
            let mut done = next_part(MAX_SHARE_BLOCKS);
            let mut is_done = false;
            if self.can_share && done.len_blocks >= MIN_SHARE_BLOCKS {
                if !(self.should_continue)(MIN_SHARE_BLOCKS * BLOCK_SIZE_BYTES) {
                    return Ok(false);
                }
                is_done = self.share(from, done, to)?;
            }
            if !is_done {
                done = next_part(MAX_COPY_BLOCKS);
                if !(self.should_continue)(done.len_bytes()) {
                    return Ok(false);
                }
                self.copy_part(from, done, to)?;
            }
            assert!(at < done.end() && done.end() <= extent.end(), "a copy advances in its extent");
            debug_assert!(self.done_below <= at, "blocks are copied in ascending order");
            at = done.end();
            self.done_below = at;
            self.progress.add(done.len_bytes());
        }
        Ok(true)
    }

    fn copy_part(&mut self, from: &LayerData, part: Extent, to: &LayerData) -> Result<(), VolumeError> {
        self.buf.resize((MAX_COPY_BLOCKS * BLOCK_SIZE_BYTES) as usize, 0);
        assert!(part.len_blocks <= MAX_COPY_BLOCKS, "a part fits the buffer");
        let buf = &mut self.buf[..part.len_bytes() as usize];
        from.read(part.offset_bytes(), buf)?;
        match to.write(part.offset_bytes(), buf) {
            // Sharing allocates no data blocks.
            Err(error) if error.kind() == VolumeErrorKind::NoSpace => match self.share(from, part, to)? {
                true => Ok(()),
                false => Err(error),
            },
            other => other,
        }
    }

    /// Tries to share a part.
    fn share(&mut self, from: &LayerData, part: Extent, to: &LayerData) -> Result<bool, VolumeError> {
        if !self.can_share {
            return Ok(false);
        }
        let outcome = to.share_from(from, part.offset_bytes(), part.len_bytes())?;
        self.can_share = outcome != ShareOutcome::Unsupported;
        Ok(outcome == ShareOutcome::Shared)
    }
}

/// Progress of a copy in bytes, readable without a lock.
#[derive(Default)]
pub(crate) struct CopyProgress {
    done: AtomicU64,
    total: AtomicU64,
}

impl CopyProgress {
    /// Starts or resumes a copy.
    pub(crate) fn begin(&self, done_bytes: u64, total_bytes: u64) {
        self.done.store(done_bytes, Ordering::Relaxed);
        self.total.store(total_bytes, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn end(&self) {
        self.begin(0, 0);
    }

    /// Returns copied and total bytes; zero without a running copy.
    pub(crate) fn read(&self) -> (u64, u64) {
        let total = self.total.load(Ordering::Relaxed);
        (self.done.load(Ordering::Relaxed).min(total), total)
    }
}
