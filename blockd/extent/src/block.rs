//! Blocks, byte offsets and extents.

use serde::{Deserialize, Serialize};
use std::fmt;

/// log2 of [`BLOCK_SIZE_BYTES`].
pub const BLOCK_SHIFT: u32 = 12;
/// Unit of tracking: the size of a page cache page, an ext4 or XFS block and a modern disk sector.
pub const BLOCK_SIZE_BYTES: u64 = 1 << BLOCK_SHIFT;
/// Maximum size of a volume: 64 TiB.
pub const MAX_VOLUME_BYTES: u64 = 64 << 40;
/// Maximum number of blocks of a volume.
pub const MAX_VOLUME_BLOCKS: u64 = MAX_VOLUME_BYTES >> BLOCK_SHIFT;

/// Number of a 4 KiB block in its volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct BlockIndex(pub u64);

impl BlockIndex {
    /// Returns the block that contains a byte.
    pub const fn containing(offset: ByteOffset) -> Self {
        Self(offset.0 >> BLOCK_SHIFT)
    }

    /// Returns the offset of the block.
    pub const fn offset(self) -> ByteOffset {
        ByteOffset(self.0 << BLOCK_SHIFT)
    }
}

impl fmt::Display for BlockIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Offset in a volume, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct ByteOffset(pub u64);

impl fmt::Display for ByteOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Contiguous run of blocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Extent {
    /// First block.
    pub start: BlockIndex,
    /// Number of blocks.
    pub len_blocks: u64,
}

impl Extent {
    /// Creates an extent of `len_blocks` blocks from `start`.
    pub const fn new(start: BlockIndex, len_blocks: u64) -> Self {
        Self { start, len_blocks }
    }

    /// Creates an extent from `start` to `end`, exclusive; empty if `end` is not above `start`.
    pub const fn between(start: BlockIndex, end: BlockIndex) -> Self {
        Self { start, len_blocks: end.0.saturating_sub(start.0) }
    }

    /// Returns all blocks of a volume of this size (the last one may be partial).
    pub const fn whole(size_bytes: u64) -> Self {
        Self { start: BlockIndex(0), len_blocks: size_bytes.div_ceil(BLOCK_SIZE_BYTES) }
    }

    /// Returns the blocks completely inside a byte range; empty if there are none.
    pub const fn inside(offset_bytes: u64, len_bytes: u64) -> Self {
        let start = offset_bytes.div_ceil(BLOCK_SIZE_BYTES);
        let end = (offset_bytes + len_bytes) >> BLOCK_SHIFT;
        Self::between(BlockIndex(start), BlockIndex(end))
    }

    /// Returns the blocks that a byte range touches, completely or in part.
    pub const fn touching(offset_bytes: u64, len_bytes: u64) -> Self {
        if len_bytes == 0 {
            return Self { start: BlockIndex(offset_bytes >> BLOCK_SHIFT), len_blocks: 0 };
        }
        let start = offset_bytes >> BLOCK_SHIFT;
        let end = (offset_bytes + len_bytes).div_ceil(BLOCK_SIZE_BYTES);
        Self::between(BlockIndex(start), BlockIndex(end))
    }

    /// Returns the block after the last one.
    pub const fn end(self) -> BlockIndex {
        BlockIndex(self.start.0 + self.len_blocks)
    }

    /// Returns true for zero blocks.
    pub const fn is_empty(self) -> bool {
        self.len_blocks == 0
    }

    /// Returns the offset, in bytes.
    pub const fn offset_bytes(self) -> u64 {
        self.start.0 << BLOCK_SHIFT
    }

    /// Returns the length, in bytes.
    pub const fn len_bytes(self) -> u64 {
        self.len_blocks << BLOCK_SHIFT
    }

    /// Returns the common blocks.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self::between(self.start.max(other.start), self.end().min(other.end()))
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocks {}..{}", self.start, self.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_ranges_map_to_blocks() {
        assert_eq!(Extent::inside(1, 4095), Extent::between(BlockIndex(1), BlockIndex(1)));
        assert_eq!(Extent::inside(0, 8192), Extent::new(BlockIndex(0), 2));
        assert_eq!(Extent::inside(4095, 4098), Extent::new(BlockIndex(1), 1));
        assert_eq!(Extent::touching(4095, 2), Extent::new(BlockIndex(0), 2));
        assert_eq!(Extent::touching(4096, 1), Extent::new(BlockIndex(1), 1));
        assert!(Extent::touching(4096, 0).is_empty());
        assert_eq!(Extent::whole(4097).len_blocks, 2);
    }

    #[test]
    fn intersections_clip_on_both_sides() {
        let a = Extent::new(BlockIndex(10), 10);
        assert_eq!(a.intersection(Extent::new(BlockIndex(15), 100)), Extent::new(BlockIndex(15), 5));
        assert!(a.intersection(Extent::new(BlockIndex(20), 5)).is_empty());
        assert!(a.intersection(Extent::new(BlockIndex(0), 10)).is_empty());
    }
}
