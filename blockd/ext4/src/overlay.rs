//! Overlay of blocks that the journal replaces.

use crate::checksum::crc32c;

/// Journal magic number, which is escaped at the start of a data block.
const ESCAPED: [u8; 4] = 0xc03b_3998_u32.to_be_bytes();

/// Checksum of a block in the journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BlockChecksum {
    /// No checksum per block.
    None,
    /// Low half of the CRC-32C (checksum v2).
    Low(u16),
    /// CRC-32C (checksum v3).
    Full(u32),
}

/// Copy of a block in the journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Patch {
    /// Physical block of the copy.
    pub log_block: u64,
    /// Sequence number of its transaction.
    pub sequence: u32,
    /// Checksum, verified on read.
    pub checksum: BlockChecksum,
    /// The first four bytes, the magic number, must be restored.
    pub escaped: bool,
}

/// Blocks that the journal replaces.
#[derive(Default)]
pub(crate) struct Overlay {
    /// Sorted by block number, in an array without spare capacity: it is kept while the filesystem is open.
    patches: Box<[(u64, Patch)]>,
    /// Seed of the checksums of journal blocks.
    checksum_seed: u32,
}

impl Overlay {
    /// Creates an overlay of distinct blocks.
    pub fn new(checksum_seed: u32, patches: impl Iterator<Item = (u64, Patch)>) -> Self {
        let mut patches: Box<[_]> = patches.collect();
        patches.sort_unstable_by_key(|(block, _)| *block);
        Self { patches, checksum_seed }
    }

    pub fn len(&self) -> u32 {
        u32::try_from(self.patches.len()).unwrap_or(u32::MAX)
    }

    pub fn get(&self, block: u64) -> Option<Patch> {
        let index = self.patches.binary_search_by_key(&block, |(block, _)| *block).ok()?;
        self.patches.get(index).map(|(_, patch)| *patch)
    }

    /// Returns true if the overlay has a block from `first` to `last`, inclusive.
    pub fn has_any(&self, first: u64, last: u64) -> bool {
        let from = self.patches.partition_point(|(block, _)| *block < first);
        self.patches.get(from).is_some_and(|(block, _)| *block <= last)
    }

    /// Converts a copy in the journal to the block that it replaces. Returns false if its checksum does not
    /// match.
    pub fn unescape(&self, patch: Patch, bytes: &mut [u8]) -> bool {
        let sum = || crc32c(self.checksum_seed, &[&patch.sequence.to_be_bytes(), bytes]);
        let is_valid = match patch.checksum {
            BlockChecksum::None => true,
            BlockChecksum::Low(stored) => sum() & 0xffff == u32::from(stored),
            BlockChecksum::Full(stored) => sum() == stored,
        };
        if is_valid
            && patch.escaped
            && let Some(first) = bytes.first_chunk_mut()
        {
            *first = ESCAPED;
        }
        is_valid
    }
}
