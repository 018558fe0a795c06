//! Block maps of ext2 and ext3 (section "Direct/Indirect Block Addressing"), which have no checksums.

use crate::{ExtError, Filesystem, Inode, bytes::le32, map::Mapping};

const DIRECT: u64 = 12;
/// Offsets of the indirect, double-indirect and triple-indirect pointers in `i_block`.
pub(crate) const INDIRECT_AT: [usize; 3] = [48, 52, 56];

impl Filesystem {
    pub(crate) fn indirect_mapping(&self, inode: &Inode, block: u64) -> Result<Mapping, ExtError> {
        if block < DIRECT {
            return self.pointer_mapping(inode, &inode.block[..48], block);
        }
        let per_block = (self.disk().block_len() / 4) as u64;
        let mut within = block - DIRECT;
        let mut span = per_block;
        for (levels, at) in INDIRECT_AT.into_iter().enumerate() {
            if within < span {
                return self.indirect_block_mapping(inode, le32(&inode.block, at), within, span, levels);
            }
            within -= span;
            span *= per_block;
        }
        Ok(Mapping { physical: None, len: u64::MAX - block })
    }

    /// Returns the mapping of the block `within` among the `span` blocks below an indirect block, with
    /// `levels` further levels of indirect blocks.
    fn indirect_block_mapping(
        &self,
        inode: &Inode,
        mut pointer: u32,
        mut within: u64,
        mut span: u64,
        levels: usize,
    ) -> Result<Mapping, ExtError> {
        let per_block = (self.disk().block_len() / 4) as u64;
        for level in (0..=levels).rev() {
            if pointer == 0 {
                return Ok(Mapping { physical: None, len: span - within });
            }
            if !self.disk().contains(pointer.into(), 1) {
                return inode.damaged("indirect block outside of the filesystem");
            }
            let bytes = self.disk().block(pointer.into())?;
            if level == 0 {
                return self.pointer_mapping(inode, &bytes, within);
            }
            span /= per_block;
            pointer = le32(&bytes, (within / span) as usize * 4);
            within %= span;
        }
        inode.damaged("too many levels of indirect blocks")
    }

    /// Returns the mapping of the block pointer at `index`, with the pointers after it that continue it.
    fn pointer_mapping(&self, inode: &Inode, pointers: &[u8], index: u64) -> Result<Mapping, ExtError> {
        let mut rest =
            pointers.chunks_exact(4).map(|pointer| u64::from(le32(pointer, 0))).skip(index as usize);
        let first = rest.next().unwrap_or(0);
        let mut len = 1;
        for pointer in rest {
            if pointer != if first == 0 { 0 } else { first + len } {
                break;
            }
            len += 1;
        }
        if first != 0 && !self.disk().contains(first, len) {
            return inode.damaged("block pointer outside of the filesystem");
        }
        Ok(Mapping { physical: (first != 0).then_some(first), len })
    }
}
