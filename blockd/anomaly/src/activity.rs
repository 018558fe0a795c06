//! Activity of a volume between two backups.

use crate::BlockClass;
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Least part of the blocks that is left out: one of this many is sampled. The class of a block costs about
/// 0.9 µs.
const MIN_SAMPLE_OF: u64 = 8;
/// Maximum number of sampled blocks: a profile of these takes at most about 2 MiB.
const MAX_SAMPLED_BLOCKS: u64 = 1 << 20;

/// Sample of the blocks of a volume. It is the same for each backup, and independent of the alignment of
/// files. The sample of a volume that grows becomes a part of the former one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sample {
    /// One of this many blocks, a power of 2.
    of: u64,
}

impl Sample {
    /// Returns the sample of a volume of this size.
    pub fn of_volume(size_bytes: u64) -> Self {
        let blocks = Extent::whole(size_bytes).len_blocks;
        Self { of: blocks.div_ceil(MAX_SAMPLED_BLOCKS).next_power_of_two().max(MIN_SAMPLE_OF) }
    }

    /// Returns true if a block belongs to the sample.
    pub fn contains(self, block: BlockIndex) -> bool {
        // Fibonacci hashing: the upper bits of the product depend on all bits of the number.
        block.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - self.of.ilog2()) == 0
    }

    /// Returns the bytes for which a number of sampled blocks stands.
    const fn estimated_bytes(self, sampled_blocks: u64) -> u64 {
        sampled_blocks * self.of * BLOCK_SIZE_BYTES
    }
}

/// Content of a volume at its last backup.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ContentProfile {
    /// Sampled blocks with compressible data.
    pub compressible: BlockSet,
    /// Files; `None` if the filesystem is unknown.
    pub files: Option<u64>,
    /// The content was replaced since, by a rollback or a restore in place: the next backup shows no
    /// activity.
    pub is_replaced: bool,
}

/// Classes of the blocks of one backup.
#[derive(Clone, PartialEq, Debug)]
pub struct Observation {
    sample: Sample,
    compressible: BlockSet,
    incompressible: BlockSet,
}

/// Activity of a volume between two backups to one location. Bytes are estimates from the sample,
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
    /// Bytes that were compressible at the last backup and now look random.
    pub turned_incompressible_bytes: u64,
    /// Compressible bytes of the volume at the last backup.
    pub compressible_bytes: u64,
    /// Files of the volume at the last backup; `None` if its filesystem was unknown.
    pub files_before: Option<u64>,
    /// Files of the volume; `None` if its filesystem is unknown.
    pub files: Option<u64>,
    /// A user acknowledged it as usual: it is compared at any time of the week.
    #[serde(default)]
    pub usual_at_any_time: bool,
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

impl BackupActivity {
    /// Returns the larger figures of this one and a later one, at the time of the later one. The histories of
    /// volumes with frequent backups consist of these.
    #[must_use]
    pub fn merged_with(self, later: Self) -> Self {
        if self.is_full() || later.is_full() {
            return Self { point_in_time: later.point_in_time, ..if later.is_full() { self } else { later } };
        }
        let deleted = if self.deleted_files() > later.deleted_files() { self } else { later };
        Self {
            point_in_time: later.point_in_time,
            interval_s: self.interval_s.max(later.interval_s),
            dirty_bytes: self.dirty_bytes.max(later.dirty_bytes),
            turned_incompressible_bytes: self
                .turned_incompressible_bytes
                .max(later.turned_incompressible_bytes),
            compressible_bytes: later.compressible_bytes,
            files_before: deleted.files_before,
            files: deleted.files,
            usual_at_any_time: self.usual_at_any_time || later.usual_at_any_time,
        }
    }
}

impl Observation {
    /// Creates an observation without blocks.
    pub fn new(sample: Sample) -> Self {
        Self { sample, compressible: BlockSet::new(), incompressible: BlockSet::new() }
    }

    /// Returns the sample.
    pub const fn sample(&self) -> Sample {
        self.sample
    }

    /// Adds a sampled block of a known class.
    pub fn add_class(&mut self, block: BlockIndex, class: BlockClass) {
        debug_assert!(self.sample.contains(block));
        match class {
            BlockClass::Zero => false,
            BlockClass::Compressible => self.compressible.insert(block),
            BlockClass::Incompressible => self.incompressible.insert(block),
        };
    }

    /// Returns the estimated bytes of data that were observed. Fewer than the backup has mean that an earlier
    /// run uploaded the others.
    pub fn observed_bytes(&self) -> u64 {
        self.sample.estimated_bytes(self.compressible.len_blocks() + self.incompressible.len_blocks())
    }

    /// Returns the estimated bytes that were compressible in `profile` and now look random.
    pub fn turned_incompressible_bytes(&self, profile: &ContentProfile) -> u64 {
        let mut turned = self.incompressible.clone();
        turned.intersect_with(&profile.compressible);
        self.sample.estimated_bytes(turned.len_blocks())
    }
}

impl ContentProfile {
    /// Returns the estimated compressible bytes.
    pub fn compressible_bytes(&self, sample: Sample) -> u64 {
        sample.estimated_bytes(self.compressible.len_blocks())
    }

    /// Removes the blocks that are not in the sample any more, because the volume has grown.
    pub fn restrict(&mut self, sample: Sample) {
        if self.compressible.len_blocks() > MAX_SAMPLED_BLOCKS {
            let blocks = self.compressible.blocks().filter(|block| sample.contains(*block));
            self.compressible = blocks.map(|block| Extent::new(block, 1)).collect();
        }
    }

    /// Forgets the blocks of a backup that was not observed.
    pub fn forget(&mut self, extents: impl IntoIterator<Item = Extent>) {
        extents.into_iter().for_each(|extent| self.compressible.remove_extent(extent));
        self.files = None;
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

    const SAMPLE: Sample = Sample { of: 8 };

    fn sampled(from: u64, count: usize) -> Vec<BlockIndex> {
        (from..).map(BlockIndex).filter(|block| SAMPLE.contains(*block)).take(count).collect()
    }

    #[test]
    fn sample_has_an_eighth_of_the_blocks_of_any_stride() {
        for stride in [1, 2, 8, 32, 256, 4096] {
            let count = (0..8000).filter(|i| SAMPLE.contains(BlockIndex(i * stride))).count();
            assert!((850..1150).contains(&count), "stride {stride}: {count} of 8000");
        }
    }

    #[test]
    fn sample_of_a_larger_volume_is_a_part() {
        let sizes = [1 << 20, 32 << 30, 33 << 30, 1 << 40, 64 << 40];
        assert_eq!(sizes.map(|size| Sample::of_volume(size).of), [8, 8, 16, 256, 16384]);
        let (small, large) = (Sample::of_volume(1 << 30), Sample::of_volume(1 << 40));
        let blocks = (0..100_000).map(BlockIndex).filter(|block| large.contains(*block));
        assert!(blocks.clone().count() > 300 && blocks.clone().all(|block| small.contains(block)));
    }

    #[test]
    fn block_turns_incompressible_once() {
        let (text, noise) = (BlockClass::Compressible, BlockClass::Incompressible);
        let blocks = sampled(0, 3);
        let mut profile = ContentProfile::default();
        let observe = |classes: &[BlockClass]| {
            let mut observation = Observation::new(SAMPLE);
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
        assert_eq!(profile.compressible_bytes(SAMPLE), 2 * 8 * 4096);

        let second = observe(&[noise, noise]);
        assert_eq!(second.turned_incompressible_bytes(&profile), 8 * 4096);
        profile.apply(&second, [Extent::new(blocks[2], 1)]);
        assert_eq!(profile.compressible_bytes(SAMPLE), 0);
        assert_eq!(observe(&[noise, noise, noise]).turned_incompressible_bytes(&profile), 0);
    }
}
