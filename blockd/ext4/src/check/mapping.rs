//! Blocks of an inode: extent trees and indirect blocks.
//!
//! Each block is claimed before it is read, and read only by its first owner: that bounds the time of the
//! check.

use super::{finding::Problem, limits::Stop, state::Check};
use crate::{
    Inode, Structure,
    bytes::le32,
    extents::{ENTRY_LEN, Extent, MAX_BLOCKS, Node, child},
    indirect::INDIRECT_AT,
};
use std::ops::Range;

/// Blocks of an inode.
#[derive(Default)]
pub(super) struct Mapped {
    /// Number of blocks, with those of the tree.
    pub blocks: u64,
    /// Number of blocks without those of the tree.
    pub leaves: u64,
    /// End of the logical blocks, and of those that are written.
    pub end: u64,
    pub written_end: u64,
    /// The blocks violate the format or belong to another owner, too.
    pub is_broken: bool,
}

impl Mapped {
    fn add(&mut self, first: u64, len: u64, is_written: bool) {
        self.blocks += len;
        self.leaves += len;
        self.end = self.end.max(first + len);
        if is_written {
            self.written_end = self.written_end.max(first + len);
        }
    }
}

impl Check<'_> {
    /// Claims blocks of an inode; the first failure is a finding.
    fn claim_of(&mut self, inode: &Inode, mapped: &mut Mapped, first: u64, len: u64) -> Result<bool, Stop> {
        if len == 0 || !self.fs.disk().contains(first, len) {
            self.break_off(inode, mapped, "block outside of the filesystem");
            return Ok(false);
        }
        let claimed = self.claims.claim(first..first + len, &mut self.memory)?;
        if let Some(block) = claimed {
            if !mapped.is_broken {
                self.add(Structure::Inode(inode.number), Problem::ClaimedTwice { block });
            }
            mapped.is_broken = true;
        }
        Ok(claimed.is_none())
    }

    fn break_off(&mut self, inode: &Inode, mapped: &mut Mapped, reason: &'static str) {
        if !mapped.is_broken {
            self.add_damage(Structure::Inode(inode.number), reason);
        }
        (mapped.is_broken, self.is_incomplete) = (true, true);
    }

    /// Claims the blocks of an extent tree from a node on. Nodes are nested at most as deep as the format
    /// permits.
    pub fn claim_extents(
        &mut self,
        inode: &Inode,
        bytes: &[u8],
        depth: Option<u16>,
        range: Range<u64>,
        mapped: &mut Mapped,
    ) -> Result<(), Stop> {
        let node = Node::parse(inode, bytes, depth);
        let Some(node) = self.found(node)? else {
            mapped.is_broken = true;
            return Ok(());
        };
        let mut at = range.start;
        let mut entries = node.entries.chunks_exact(ENTRY_LEN).peekable();
        while let Some(entry) = entries.next() {
            let first = u64::from(le32(entry, 0));
            let next = entries.peek().map_or(range.end, |next| u64::from(le32(next, 0)));
            if first < at || first >= range.end {
                self.break_off(inode, mapped, "extent tree entries out of order");
                return Ok(());
            }
            if node.depth == 0 {
                let extent = Extent::decode(entry);
                at = first + extent.len;
                if at > range.end {
                    self.break_off(inode, mapped, "overlapping extents");
                    return Ok(());
                }
                self.claim_of(inode, mapped, extent.start, extent.len)?;
                mapped.add(first, extent.len, extent.is_written);
                continue;
            }
            at = first + 1;
            if !self.claim_of(inode, mapped, child(entry), 1)? {
                continue;
            }
            mapped.blocks += 1;
            self.count_read(bytes.len() as u64)?;
            let below = self.fs.extent_node(inode, child(entry));
            match self.found(below)? {
                Some(below) => {
                    self.claim_extents(inode, &below, Some(node.depth - 1), first..next, mapped)?;
                }
                None => mapped.is_broken = true,
            }
        }
        Ok(())
    }

    /// Claims the blocks of a whole extent tree.
    pub fn claim_tree(&mut self, inode: &Inode) -> Result<Mapped, Stop> {
        let mut mapped = Mapped::default();
        self.claim_extents(inode, &inode.block, None, 0..MAX_BLOCKS, &mut mapped)?;
        Ok(mapped)
    }

    /// Claims the blocks of a block map.
    pub fn claim_map(&mut self, inode: &Inode) -> Result<Mapped, Stop> {
        let mut mapped = Mapped::default();
        self.claim_pointers(inode, &inode.block[..INDIRECT_AT[0]], 0, &mut mapped)?;
        let per_block = (self.fs.disk().block_len() / 4) as u64;
        let (mut first, mut span) = (INDIRECT_AT[0] as u64 / 4, per_block);
        for at in INDIRECT_AT {
            self.claim_indirect(inode, le32(&inode.block, at), first, span, &mut mapped)?;
            (first, span) = (first + span, span * per_block);
        }
        Ok(mapped)
    }

    /// Claims an indirect block and the `span` blocks below it; at most three levels are nested.
    fn claim_indirect(
        &mut self,
        inode: &Inode,
        pointer: u32,
        first: u64,
        span: u64,
        mapped: &mut Mapped,
    ) -> Result<(), Stop> {
        if pointer == 0 || !self.claim_of(inode, mapped, pointer.into(), 1)? {
            return Ok(());
        }
        mapped.blocks += 1;
        let Some(bytes) = self.read_block(pointer.into())? else {
            mapped.is_broken = true;
            return Ok(());
        };
        let per_block = (bytes.len() / 4) as u64;
        if span <= per_block {
            return self.claim_pointers(inode, &bytes, first, mapped);
        }
        let below = span / per_block;
        for (pointer, index) in bytes.chunks_exact(4).zip(0..) {
            self.claim_indirect(inode, le32(pointer, 0), first + index * below, below, mapped)?;
        }
        Ok(())
    }

    fn claim_pointers(
        &mut self,
        inode: &Inode,
        pointers: &[u8],
        first: u64,
        mapped: &mut Mapped,
    ) -> Result<(), Stop> {
        let mut pointers = pointers.chunks_exact(4).map(|pointer| u64::from(le32(pointer, 0))).zip(first..);
        let mut rest = pointers.next();
        while let Some((start, at)) = rest {
            let mut len = 1;
            rest = pointers.next();
            while let Some((next, _)) = rest
                && start != 0
                && next == start + len
            {
                len += 1;
                rest = pointers.next();
            }
            if start != 0 {
                self.claim_of(inode, mapped, start, len)?;
                mapped.add(at, len, true);
            }
        }
        Ok(())
    }

    /// Claims the block of the resize inode. The other blocks of its map are those that the groups reserve
    /// for descriptors.
    pub fn claim_resize(&mut self, inode: &Inode) -> Result<(), Stop> {
        let (mut mapped, pointer) = (Mapped::default(), le32(&inode.block, INDIRECT_AT[1]));
        if pointer == 0 || !self.claim_of(inode, &mut mapped, pointer.into(), 1)? {
            return Ok(());
        }
        let Some(bytes) = self.read_block(pointer.into())? else { return Ok(()) };
        for block in bytes.chunks_exact(4).map(|pointer| u64::from(le32(pointer, 0))).filter(|at| *at != 0) {
            if !self.claims.contains(block) {
                self.break_off(inode, &mut mapped, "block that is not reserved for descriptors");
                break;
            }
        }
        Ok(())
    }
}
