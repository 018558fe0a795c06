//! Copying blocks from one layer's data files to another's, a piece at a time.

use crate::{data_files::DataFiles, error::VolumeError};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, Extent};

/// How much is copied between two looks at whether to go on.
const AT_ONCE_BLOCKS: u64 = (1 << 20) / BLOCK_SIZE_BYTES;

/// Copies runs of blocks; asks before each piece whether it shall go on.
pub(crate) struct Copier<'a> {
    buf: Vec<u8>,
    go_on: &'a dyn Fn() -> bool,
}

impl<'a> Copier<'a> {
    pub(crate) fn new(go_on: &'a dyn Fn() -> bool) -> Self {
        Self { buf: vec![0; (AT_ONCE_BLOCKS * BLOCK_SIZE_BYTES) as usize], go_on }
    }

    /// Whether nobody wants it to stop.
    pub(crate) fn goes_on(&self) -> bool {
        (self.go_on)()
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
            if !self.goes_on() {
                return Ok(false);
            }
            let piece = Extent::between(at, BlockIndex(at.0 + AT_ONCE_BLOCKS).min(run.end()));
            let part = &mut self.buf[..piece.len_bytes() as usize];
            from.read(piece.offset_bytes(), part)?;
            to.write(piece.offset_bytes(), part)?;
            at = piece.end();
        }
        Ok(true)
    }
}
