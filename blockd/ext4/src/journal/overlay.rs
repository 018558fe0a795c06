//! Overlay of blocks from the journal.

use crate::checksum::crc32c;

/// Journal magic, which the journal escapes at the start of a block.
const ESCAPED: [u8; 4] = 0xc03b_3998_u32.to_be_bytes();

/// The checksum of a block in the journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BlockChecksum {
    /// None, or that of the whole transaction, which was checked.
    None,
    /// The lower half of it.
    Half(u16),
    /// All of it.
    Whole(u32),
}

/// Position of a block in the journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Patch {
    /// The block of the filesystem that it lies in.
    pub log_block: u64,
    /// The transaction that it belongs to.
    pub sequence: u32,
    /// Its checksum, which is checked when it is read.
    pub checksum: BlockChecksum,
    /// The first four bytes must be restored.
    pub escaped: bool,
}

/// The blocks that are to be taken from the journal.
#[derive(Default)]
pub(crate) struct Overlay {
    /// By their numbers, in order. A table without gaps: there may be many, and they are kept.
    patches: Box<[(u64, Patch)]>,
    /// Seed of the checksums of journal blocks.
    checksum_seed: u32,
}

impl Overlay {
    /// Of blocks that are all different ones.
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

    /// Returns true for a block from `first` to `last`.
    pub fn has_any(&self, first: u64, last: u64) -> bool {
        let from = self.patches.partition_point(|(block, _)| *block < first);
        self.patches.get(from).is_some_and(|(block, _)| *block <= last)
    }

    /// Makes of a block as it is in the journal the block that it stands for; says whether its checksum is
    /// right.
    pub fn finish(&self, patch: Patch, bytes: &mut [u8]) -> bool {
        let sum = || crc32c(self.checksum_seed, &[&patch.sequence.to_be_bytes(), bytes]);
        let sound = match patch.checksum {
            BlockChecksum::None => true,
            BlockChecksum::Half(stored) => sum() & 0xffff == u32::from(stored),
            BlockChecksum::Whole(stored) => sum() == stored,
        };
        if sound
            && patch.escaped
            && let Some(first) = bytes.first_chunk_mut()
        {
            *first = ESCAPED;
        }
        sound
    }
}
