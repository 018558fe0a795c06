//! Block mapping of files.

use crate::{ExtError, Filesystem, Inode, inode::flag};

/// Range of a file that is either data or a hole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileExtent {
    /// True for data; false for holes and unwritten (preallocated) extents, which read as zeroes.
    pub is_data: bool,
    /// End of the range in the file, in bytes. A range of the same kind may follow.
    pub end_bytes: u64,
}

/// Mapping of consecutive logical blocks of a file; at least one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mapping {
    /// First physical block; `None` for a hole or an unwritten extent.
    pub physical: Option<u64>,
    /// Number of blocks.
    pub len: u64,
}

impl Filesystem {
    /// Returns the mapping from a logical block of a file on.
    pub(crate) fn mapping(&self, inode: &Inode, block: u64) -> Result<Mapping, ExtError> {
        if inode.has(flag::EXTENTS) {
            self.extent_mapping(inode, block)
        } else {
            self.indirect_mapping(inode, block)
        }
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
            let mapping = self.mapping(inode, block)?;
            let mapped_len = mapping.len.saturating_mul(block_len) - within;
            let len = rest.len().min(usize::try_from(mapped_len).unwrap_or(usize::MAX));
            let (part, after) = rest.split_at_mut(len);
            match mapping.physical {
                Some(first) => self.disk().read(first, within as usize, part)?,
                None => part.fill(0),
            }
            (at, rest) = (at + len as u64, after);
        }
        Ok(())
    }
}
