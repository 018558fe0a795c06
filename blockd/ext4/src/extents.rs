//! Extent trees (section "Extent Tree").

use crate::{
    ExtError, Filesystem, Inode,
    bytes::{join, le16, le32},
    checksum::crc32c,
    map::Mapping,
};
use std::sync::Arc;

const MAGIC: u16 = 0xf30a;
const HEADER_LEN: usize = 12;
pub(crate) const ENTRY_LEN: usize = 12;
/// Maximum depth of a tree that maps 2³² blocks.
const MAX_DEPTH: u16 = 5;
/// Maximum length of a written extent. Longer values encode unwritten extents, offset by this length.
const MAX_WRITTEN_LEN: u16 = 1 << 15;
/// Maximum number of logical blocks of a file.
pub(crate) const MAX_BLOCKS: u64 = 1 << 32;

/// Extent tree node with a verified header.
pub(crate) struct Node<'a> {
    pub depth: u16,
    pub entries: &'a [u8],
}

/// Extent: consecutive blocks.
pub(crate) struct Extent {
    /// First logical block.
    pub first: u64,
    /// Number of blocks.
    pub len: u64,
    /// First physical block.
    pub start: u64,
    pub is_written: bool,
}

/// Returns the physical block of the node that an entry of an index node leads to.
pub(crate) fn child(entry: &[u8]) -> u64 {
    join(le16(entry, 8), le32(entry, 4))
}

impl Extent {
    /// Decodes an entry of a leaf, without a check.
    pub fn decode(entry: &[u8]) -> Self {
        let len = le16(entry, 4);
        let is_written = len <= MAX_WRITTEN_LEN;
        Self {
            first: le32(entry, 0).into(),
            len: u64::from(if is_written { len } else { len - MAX_WRITTEN_LEN }),
            start: join(le16(entry, 6), le32(entry, 8)),
            is_written,
        }
    }
}

impl<'a> Node<'a> {
    /// Parses an extent node; `depth` is its expected depth, if known.
    pub(crate) fn parse(inode: &Inode, bytes: &'a [u8], depth: Option<u16>) -> Result<Self, ExtError> {
        if le16(bytes, 0) != MAGIC {
            return inode.damaged("invalid magic number of an extent tree node");
        }
        let (count, max, own_depth) =
            (usize::from(le16(bytes, 2)), usize::from(le16(bytes, 4)), le16(bytes, 6));
        if count > max || max > (bytes.len() - HEADER_LEN) / ENTRY_LEN {
            return inode.damaged("invalid number of entries of an extent tree node");
        }
        if own_depth > MAX_DEPTH || depth.is_some_and(|depth| depth != own_depth) {
            return inode.damaged("invalid depth of an extent tree node");
        }
        if count == 0 && own_depth > 0 {
            return inode.damaged("extent tree index node without entries");
        }
        Ok(Self { depth: own_depth, entries: &bytes[HEADER_LEN..HEADER_LEN + count * ENTRY_LEN] })
    }

    /// Returns the last entry that starts at or before a logical block, and the start of the next one or
    /// `end`.
    fn find(&self, inode: &Inode, block: u64, end: u64) -> Result<(Option<&'a [u8]>, u64), ExtError> {
        let mut found: Option<&[u8]> = None;
        for entry in self.entries.chunks_exact(ENTRY_LEN) {
            let first = u64::from(le32(entry, 0));
            if found.is_some_and(|found| u64::from(le32(found, 0)) >= first) {
                return inode.damaged("extent tree entries out of order");
            }
            if first > block {
                return Ok((found, first.min(end)));
            }
            found = Some(entry);
        }
        Ok((found, end))
    }
}

impl Filesystem {
    pub(crate) fn extent_mapping(&self, inode: &Inode, block: u64) -> Result<Mapping, ExtError> {
        let hole = |end: u64| Ok(Mapping { physical: None, len: end - block });
        if block >= MAX_BLOCKS {
            return hole(u64::MAX);
        }
        let mut held: Option<Arc<[u8]>> = None;
        let (mut depth, mut end) = (None, MAX_BLOCKS);
        // Each iteration descends one level, so the depth bounds the loop.
        loop {
            let bytes = held.as_deref().unwrap_or(&inode.block);
            let node = Node::parse(inode, bytes, depth)?;
            let (found, next) = node.find(inode, block, end)?;
            end = next;
            let Some(entry) = found else { return hole(end) };
            if node.depth > 0 {
                depth = Some(node.depth - 1);
                held = Some(self.extent_node(inode, child(entry))?);
                continue;
            }
            let Extent { first, len, start, is_written } = Extent::decode(entry);
            if len == 0 || !self.disk().contains(start, len) {
                return inode.damaged("extent outside of the filesystem");
            }
            let extent_end = first + len;
            if block >= extent_end {
                return hole(end);
            }
            let physical = is_written.then(|| start + (block - first));
            return Ok(Mapping { physical, len: extent_end.min(end) - block });
        }
    }

    /// Reads a node outside of the inode and verifies its checksum.
    pub(crate) fn extent_node(&self, inode: &Inode, block: u64) -> Result<Arc<[u8]>, ExtError> {
        if !self.disk().contains(block, 1) {
            return inode.damaged("extent tree node outside of the filesystem");
        }
        // Only extent tree nodes are recorded as verified, each with the seed of its inode: a hit was
        // verified as a node of this inode.
        if let Some(bytes) = self.disk().checked_block(block, inode.checksum_seed) {
            return Ok(bytes);
        }
        let bytes = self.disk().block(block)?;
        if self.superblock().has_checksums() {
            // The checksum follows the entries up to `eh_max`.
            let at = HEADER_LEN + usize::from(le16(&bytes, 4)) * ENTRY_LEN;
            if at + 4 > bytes.len() || crc32c(inode.checksum_seed, &[&bytes[..at]]) != le32(&bytes, at) {
                return inode.damaged("checksum mismatch of an extent tree node");
            }
            self.disk().set_checked(block, inode.checksum_seed);
        }
        Ok(bytes)
    }
}
