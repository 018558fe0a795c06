//! Backing snapshot of a lazy volume under test.

use super::model::{SECTOR_BYTES, SECTORS_PER_BLOCK, Version, content_of};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent};
use blockd_volume::{FetchReply, LazySource, SourceError, Urgency};

/// Versions that no write has.
const FIRST: Version = 1 << 40;

/// Source that replies at once. Every third block is zeroes; the sectors of the others have distinct
/// versions.
pub struct VersionSource {
    blocks: u64,
}

impl VersionSource {
    pub fn new(blocks: u64) -> Self {
        Self { blocks }
    }

    fn version(sector: u64) -> Version {
        if (sector / SECTORS_PER_BLOCK).is_multiple_of(3) { 0 } else { FIRST + sector }
    }

    pub fn sectors(&self) -> Vec<Version> {
        (0..self.blocks * SECTORS_PER_BLOCK).map(Self::version).collect()
    }
}

impl LazySource for VersionSource {
    fn fetch(&self, extent: Extent, _: Urgency, reply: FetchReply) {
        let start = extent.offset_bytes() / SECTOR_BYTES;
        let sectors = start..start + extent.len_bytes() / SECTOR_BYTES;
        reply.complete(Ok(sectors.flat_map(|sector| content_of(sector, Self::version(sector))).collect()));
    }

    fn data_blocks(&self, extent: Extent) -> Result<BlockSet, SourceError> {
        assert!(extent.end().0 * BLOCK_SIZE_BYTES <= self.blocks * BLOCK_SIZE_BYTES);
        // Half of the blocks of zeroes count as data.
        let is_known_zero = |block: u64| block.is_multiple_of(6);
        let blocks = (extent.start.0..extent.end().0).filter(|&block| !is_known_zero(block));
        Ok(blocks.map(|block| Extent::new(BlockIndex(block), 1)).collect())
    }
}
