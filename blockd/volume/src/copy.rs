//! Copying blocks from one layer's data files to another's, a piece at a time.

use crate::{data_files::DataFiles, error::VolumeError};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, Extent};

/// How much is copied between two looks at whether to go on.
const AT_ONCE_BLOCKS: u64 = (1 << 20) / BLOCK_SIZE_BYTES;

/// Copies runs of blocks; asks before each piece whether it shall go on, and says how many bytes come next. Whoever is
/// asked may take its time, which is how copying is slowed down.
pub(crate) struct Copier<'a> {
    buf: Vec<u8>,
    go_on: &'a dyn Fn(u64) -> bool,
    /// Every block below this one was copied, of those that were asked for in ascending order.
    pub(crate) done_below: BlockIndex,
}

impl<'a> Copier<'a> {
    pub(crate) fn new(go_on: &'a dyn Fn(u64) -> bool) -> Self {
        let buf = vec![0; (AT_ONCE_BLOCKS * BLOCK_SIZE_BYTES) as usize];
        Self { buf, go_on, done_below: BlockIndex(0) }
    }

    /// Whether nobody wants it to stop.
    pub(crate) fn goes_on(&self) -> bool {
        (self.go_on)(0)
    }

    /// Copies a run to the same place; `false` if it was stopped.
    pub(crate) fn copy(
        &mut self,
        from: &DataFiles,
        run: Extent,
        to: &DataFiles,
    ) -> Result<bool, VolumeError> {
        let mut at = run.start;
        while at < run.end() {
            let piece = Extent::between(at, BlockIndex(at.0 + AT_ONCE_BLOCKS).min(run.end()));
            if !(self.go_on)(piece.len_bytes()) {
                return Ok(false);
            }
            let part = &mut self.buf[..piece.len_bytes() as usize];
            from.read(piece.offset_bytes(), part)?;
            to.write(piece.offset_bytes(), part)?;
            at = piece.end();
            self.done_below = at;
        }
        Ok(true)
    }
}
