//! Maps of blocks in the way of ext2 (section "Direct/Indirect Block Addressing"). They have no checksums.

use crate::{ExtError, Filesystem, Inode, bytes::le32, map::BlockRun};

const DIRECT: u64 = 12;
/// Offsets of the indirect, double-indirect and triple-indirect pointers in `i_block`.
const INDIRECT_AT: [usize; 3] = [48, 52, 56];

impl Filesystem {
    pub(crate) fn indirect_run(&self, inode: &Inode, block: u64) -> Result<BlockRun, ExtError> {
        if block < DIRECT {
            return self.pointer_run(inode, &inode.block[..48], block);
        }
        let per_block = (self.disk().block_len() / 4) as u64;
        let mut within = block - DIRECT;
        let mut span = per_block;
        for (levels, at) in INDIRECT_AT.into_iter().enumerate() {
            if within < span {
                return self.below(inode, le32(&inode.block, at), within, span, levels);
            }
            within -= span;
            span *= per_block;
        }
        Ok(BlockRun { stored: None, len: u64::MAX - block })
    }

    /// The run at `within` in what a pointer leads to: so many levels of pointers above the last one, for
    /// `span` blocks.
    fn below(
        &self,
        inode: &Inode,
        mut pointer: u32,
        mut within: u64,
        mut span: u64,
        levels: usize,
    ) -> Result<BlockRun, ExtError> {
        let per_block = (self.disk().block_len() / 4) as u64;
        for level in (0..=levels).rev() {
            if pointer == 0 {
                return Ok(BlockRun { stored: None, len: span - within });
            }
            if !self.disk().has(pointer.into(), 1) {
                return inode.damaged("its map leads to where there is nothing");
            }
            let bytes = self.disk().block(pointer.into())?;
            if level == 0 {
                return self.pointer_run(inode, &bytes, within);
            }
            span /= per_block;
            pointer = le32(&bytes, (within / span) as usize * 4);
            within %= span;
        }
        inode.damaged("its map is deeper than it can be")
    }

    /// The run at one of some pointers to blocks: those behind it that continue it belong to it.
    fn pointer_run(&self, inode: &Inode, pointers: &[u8], index: u64) -> Result<BlockRun, ExtError> {
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
        if first != 0 && !self.disk().has(first, len) {
            return inode.damaged("its map leads to where there is nothing");
        }
        Ok(BlockRun { stored: (first != 0).then_some(first), len })
    }
}
