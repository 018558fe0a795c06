//! Block mapping of files.

use crate::{ExtError, Filesystem, Inode, inode::flag};

/// A run of bytes of a file that are all stored somewhere, or all zeroes that are stored nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The blocks have data. Unwritten allocated blocks have none.
    pub is_data: bool,
    /// End of the extent in the file, in bytes. An extent of the same kind may follow.
    pub end_bytes: u64,
}

/// A run of blocks of a file, of one at least.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BlockRun {
    /// The first of them in the filesystem; none if they are zeroes that are stored nowhere.
    pub stored: Option<u64>,
    /// Number of blocks.
    pub len: u64,
}

impl Filesystem {
    /// Returns the extent at a block of a file. There are fewer than 2³² × 2³² of them in any image.
    pub(crate) fn block_run(&self, inode: &Inode, block: u64) -> Result<BlockRun, ExtError> {
        if inode.has(flag::EXTENTS) { self.extent_run(inode, block) } else { self.indirect_run(inode, block) }
    }

    /// Fills `buf` with bytes of a file from `offset_bytes` on, without a check of its size.
    pub(crate) fn read_blocks(
        &self,
        inode: &Inode,
        offset_bytes: u64,
        buf: &mut [u8],
    ) -> Result<(), ExtError> {
        let block_len = self.disk().block_len() as u64;
        let (mut at, mut rest) = (offset_bytes, buf);
        while !rest.is_empty() {
            let (block, within) = (at / block_len, at % block_len);
            let run = self.block_run(inode, block)?;
            let in_run = run.len.saturating_mul(block_len) - within;
            let now = rest.len().min(usize::try_from(in_run).unwrap_or(usize::MAX));
            let (piece, behind) = rest.split_at_mut(now);
            match run.stored {
                Some(first) => self.disk().read(first, within as usize, piece)?,
                None => piece.fill(0),
            }
            (at, rest) = (at + now as u64, behind);
        }
        Ok(())
    }
}
