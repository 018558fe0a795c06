//! BackupActivity of a volume between two backups.

use crate::BlockClass;
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One of this many blocks is sampled. The class of a block costs about 0.9 µs.
const SAMPLE_OF: u64 = 8;

/// Returns true if a block belongs to the sample. It is the same for each backup, and independent of the
/// alignment of files.
pub fn is_sampled(block: BlockIndex) -> bool {
    // Fibonacci hashing: the upper bits of the product depend on all bits of the number.
    block.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SAMPLE_OF.ilog2()) == 0
}

/// Returns the bytes for which a number of sampled blocks stands.
const fn estimated_bytes(sampled_blocks: u64) -> u64 {
    sampled_blocks * SAMPLE_OF * BLOCK_SIZE_BYTES
}

/// Content of a volume at its last backup.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ContentProfile {
    /// Sampled blocks with compressible data.
    pub compressible: BlockSet,
    /// Files; `None` if the filesystem is unknown.
    pub files: Option<u64>,
}

/// Classes of the blocks of one backup.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Observation {
    compressible: BlockSet,
    incompressible: BlockSet,
}

/// BackupActivity of a volume between two backups to one location. Bytes are estimates from the sample,
/// except for dirty bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupActivity {
    /// Point in time of the backup.
    pub point_in_time: Timestamp,
    /// Seconds since the point in time of its base; 0 for a full backup.
    pub interval_s: u64,
    /// Bytes of data blocks in the backup.
    pub dirty_bytes: u64,
    /// Bytes of data that look random.
    pub incompressible_bytes: u64,
    /// Bytes that were compressible at the last backup and now look random.
    pub turned_incompressible_bytes: u64,
    /// Compressible bytes of the volume at the last backup.
    pub compressible_bytes: u64,
    /// Files of the volume at the last backup; `None` if its filesystem was unknown.
    pub files_before: Option<u64>,
    /// Files of the volume; `None` if its filesystem is unknown.
    pub files: Option<u64>,
}

impl BackupActivity {
    /// Returns true for a full backup, which says nothing about the rate of changes.
    pub const fn is_full(&self) -> bool {
        self.interval_s == 0
    }

    /// Returns by how much the number of files fell; 0 if it is unknown.
    pub fn deleted_files(&self) -> u64 {
        self.files_before.zip(self.files).map_or(0, |(before, after)| before.saturating_sub(after))
    }
}

impl Observation {
    /// Adds a block, if it is sampled.
    pub fn add(&mut self, block: BlockIndex, bytes: &[u8]) {
        if is_sampled(block) {
            self.add_class(block, BlockClass::of(bytes));
        }
    }

    /// Adds a sampled block of a known class.
    pub fn add_class(&mut self, block: BlockIndex, class: BlockClass) {
        debug_assert!(is_sampled(block));
        match class {
            BlockClass::Zero => false,
            BlockClass::Compressible => self.compressible.insert(block),
            BlockClass::Incompressible => self.incompressible.insert(block),
        };
    }

    /// Returns the estimated bytes of data that were observed. Fewer than the backup has mean that an earlier
    /// run uploaded the others.
    pub fn observed_bytes(&self) -> u64 {
        estimated_bytes(self.compressible.len_blocks() + self.incompressible.len_blocks())
    }

    /// Returns the estimated bytes of data that look random.
    pub fn incompressible_bytes(&self) -> u64 {
        estimated_bytes(self.incompressible.len_blocks())
    }

    /// Returns the estimated bytes that were compressible in `profile` and now look random.
    pub fn turned_incompressible_bytes(&self, profile: &ContentProfile) -> u64 {
        let mut turned = self.incompressible.clone();
        turned.intersect_with(&profile.compressible);
        estimated_bytes(turned.len_blocks())
    }
}

impl ContentProfile {
    /// Returns the estimated compressible bytes.
    pub fn compressible_bytes(&self) -> u64 {
        estimated_bytes(self.compressible.len_blocks())
    }

    /// Applies a backup: its data blocks have the observed classes, its `zero` extents none.
    pub fn apply(&mut self, observation: &Observation, zero: impl IntoIterator<Item = Extent>) {
        for extent in zero {
            self.compressible.remove_extent(extent);
        }
        self.compressible.subtract(&observation.incompressible);
        self.compressible.union_with(&observation.compressible);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampled(from: u64, count: usize) -> Vec<BlockIndex> {
        (from..).map(BlockIndex).filter(|block| is_sampled(*block)).take(count).collect()
    }

    #[test]
    fn sample_has_an_eighth_of_the_blocks_of_any_stride() {
        for stride in [1, 2, 8, 32, 256, 4096] {
            let count = (0..8000).filter(|i| is_sampled(BlockIndex(i * stride))).count();
            assert!((850..1150).contains(&count), "stride {stride}: {count} of 8000");
        }
    }

    #[test]
    fn block_turns_incompressible_once() {
        let (text, noise) = (BlockClass::Compressible, BlockClass::Incompressible);
        let blocks = sampled(0, 3);
        let mut profile = ContentProfile::default();
        let observe = |classes: &[BlockClass]| {
            let mut observation = Observation::default();
            blocks.iter().zip(classes).for_each(|(block, class)| observation.add_class(*block, *class));
            observation
        };
        let first = observe(&[text, noise, text]);
        assert_eq!(
            first.turned_incompressible_bytes(&profile),
            0,
            "nothing is known before the first backup"
        );
        profile.apply(&first, []);
        assert_eq!(profile.compressible_bytes(), 2 * 8 * 4096);

        let second = observe(&[noise, noise]);
        assert_eq!(second.turned_incompressible_bytes(&profile), 8 * 4096);
        profile.apply(&second, [Extent::new(blocks[2], 1)]);
        assert_eq!(profile.compressible_bytes(), 0);
        assert_eq!(observe(&[noise, noise, noise]).turned_incompressible_bytes(&profile), 0);
    }
}
