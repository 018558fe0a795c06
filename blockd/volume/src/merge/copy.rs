//! Copies of extents between data files of layers, in parts: by sharing extents where the filesystem supports
//! it, else through a buffer.

use crate::{
    error::{VolumeError, VolumeErrorKind},
    layer::data::LayerData,
    layer::data_files::Shared,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, Extent};
use std::sync::atomic::{AtomicU64, Ordering};

/// Length of a copy between two checks for a stop.
const COPY_AT_ONCE_BLOCKS: u64 = (1 << 20) / BLOCK_SIZE_BYTES;
/// Length shared by one call. Both files are locked for reads meanwhile.
const SHARE_AT_ONCE_BLOCKS: u64 = (16 << 20) / BLOCK_SIZE_BYTES;
/// Shorter extents are copied: sharing is a filesystem transaction that splits extents, which takes longer
/// than a short copy (`kernel-notes/sharing.md`).
const MIN_SHARE_BLOCKS: u64 = (32 << 10) / BLOCK_SIZE_BYTES;

/// Copies extents; calls back before each part with its length in bytes, to stop or to throttle the copy. A
/// shared part counts as the shortest one.
pub(crate) struct Copier<'a> {
    /// Allocated by the first copy.
    buf: Vec<u8>,
    go_on: &'a dyn Fn(u64) -> bool,
    can_share: bool,
    shown: &'a Shown,
    /// End of the copied blocks, which are requested in ascending order.
    pub(crate) done_below: BlockIndex,
}

impl<'a> Copier<'a> {
    pub(crate) fn new(go_on: &'a dyn Fn(u64) -> bool, shown: &'a Shown) -> Self {
        Self { buf: vec![], go_on, can_share: true, shown, done_below: BlockIndex(0) }
    }

    /// Returns true if the copy continues.
    pub(crate) fn may_continue(&self) -> bool {
        (self.go_on)(0)
    }

    /// Copies an extent to the same offset; returns false if stopped.
    pub(crate) fn copy(
        &mut self,
        from: &LayerData,
        run: Extent,
        to: &LayerData,
    ) -> Result<bool, VolumeError> {
        let mut at = run.start;
        while at < run.end() {
            let piece = |blocks| Extent::between(at, BlockIndex(at.0 + blocks).min(run.end()));
            let mut done = piece(SHARE_AT_ONCE_BLOCKS);
            let mut is_done = false;
            if self.can_share && done.len_blocks >= MIN_SHARE_BLOCKS {
                if !(self.go_on)(MIN_SHARE_BLOCKS * BLOCK_SIZE_BYTES) {
                    return Ok(false);
                }
                is_done = self.share(from, done, to)?;
            }
            if !is_done {
                done = piece(COPY_AT_ONCE_BLOCKS);
                if !(self.go_on)(done.len_bytes()) {
                    return Ok(false);
                }
                self.copy_piece(from, done, to)?;
            }
            assert!(at < done.end() && done.end() <= run.end(), "a copy advances in its extent");
            debug_assert!(self.done_below <= at, "blocks are copied in ascending order");
            at = done.end();
            self.done_below = at;
            self.shown.add(done.len_bytes());
        }
        Ok(true)
    }

    fn copy_piece(&mut self, from: &LayerData, piece: Extent, to: &LayerData) -> Result<(), VolumeError> {
        self.buf.resize((COPY_AT_ONCE_BLOCKS * BLOCK_SIZE_BYTES) as usize, 0);
        assert!(piece.len_blocks <= COPY_AT_ONCE_BLOCKS, "a part fits the buffer");
        let part = &mut self.buf[..piece.len_bytes() as usize];
        from.read(piece.offset_bytes(), part)?;
        match to.write(piece.offset_bytes(), part) {
            // Sharing takes no space, even where it is slow.
            Err(error) if error.kind() == VolumeErrorKind::NoSpace => match self.share(from, piece, to)? {
                true => Ok(()),
                false => Err(error),
            },
            other => other,
        }
    }

    /// Tries to share a part.
    fn share(&mut self, from: &LayerData, piece: Extent, to: &LayerData) -> Result<bool, VolumeError> {
        if !self.can_share {
            return Ok(false);
        }
        let shared = to.share_from(from, piece.offset_bytes(), piece.len_bytes())?;
        self.can_share = shared != Shared::Never;
        Ok(shared == Shared::Done)
    }
}

/// Progress of a copy in bytes, readable without waiting.
#[derive(Default)]
pub(crate) struct Shown {
    done: AtomicU64,
    total: AtomicU64,
}

impl Shown {
    /// Starts or continues a copy.
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
