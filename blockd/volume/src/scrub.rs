//! Scrub: reads the data of all frozen layers from the medium, compares it with the checksums of its blocks,
//! stores those that are missing, and lists damaged blocks, so that reads of them fail.
//!
//! [`repair`](Volume::repair) writes the content of a listed block again. The caller has it from a backup of
//! the volume; the layers prove that the block is the same in both, and the checksum, if it is known, that it
//! is the content of the block.

use crate::{
    error::VolumeError,
    layer::data::LayerData,
    layer::medium::MediumReader,
    layer::set::LayerSet,
    layer::stack::{FrozenLayer, Layer},
    layer::sums::sum_of,
    merge::note::MergeNote,
    volume::Volume,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Epoch, Extent};
use parking_lot::MutexGuard;
use std::{collections::HashMap, sync::Arc, time::Duration};

/// Maximum number of blocks that a step reads, while it excludes merges: 256 KiB.
const STEP_BLOCKS: u64 = 64;
/// Maximum length of a read, for which requests of guests wait at the disk: 64 KiB.
const READ_BLOCKS: u64 = 16;
/// Maximum wait of a step for a merge.
const MERGE_WAIT: Duration = Duration::from_millis(500);

/// Position of a scrub: the next block to read. Layers are read in ascending order, the oldest one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ScrubPosition {
    /// Last epoch of the layer.
    pub epoch: Epoch,
    /// Block.
    pub block: BlockIndex,
}

impl ScrubPosition {
    /// Begin of a scrub.
    pub const START: Self = Self { epoch: Epoch(0), block: BlockIndex(0) };
}

/// Result of a step of a scrub.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScrubStep {
    /// Read bytes.
    pub read_bytes: u64,
    /// Blocks found damaged, which were not listed before, by layer.
    pub found: Vec<LayerDamage>,
    /// Number of blocks found damaged that exceed the limit of the list: reads of them do not fail.
    pub unlisted_blocks: u64,
    /// Position of the next step; `None` at the end.
    pub next: Option<ScrubPosition>,
}

/// Damaged blocks of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerDamage {
    /// Epoch that names the layer's files.
    pub file: Epoch,
    /// Last epoch of the layer: the snapshots of this and later epochs may have the blocks.
    pub epoch: Epoch,
    /// Blocks.
    pub blocks: BlockSet,
    /// Blocks among them that the medium could not read; the others have another checksum.
    pub unreadable: BlockSet,
}

/// Result of a repair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Repaired {
    /// Repaired blocks.
    pub blocks: BlockSet,
    /// Blocks whose offered content has not their checksum.
    pub mismatched: BlockSet,
    /// Blocks that the medium did not return as they were written.
    pub failed: BlockSet,
}

impl Volume {
    /// Returns the bytes that a complete scrub reads.
    pub fn scrub_bytes(&self) -> u64 {
        let stack = self.current();
        stack.layers().iter().filter_map(scrubbed).map(|layer| layer.set.data_bytes()).sum()
    }

    /// Scrubs up to 256 KiB from a position on. Yields to a merge: then it reads nothing.
    ///
    /// A listed block that can be read again, with its checksum, is removed from the list.
    ///
    /// # Errors
    /// The volume is closed or has failed, or the filesystem fails otherwise than by an unreadable block.
    pub fn scrub_step(&self, from: ScrubPosition) -> Result<ScrubStep, VolumeError> {
        self.check_usable()?;
        // A merge writes to blocks of its lower layer.
        let Some(_no_merge) = self.merging.try_lock_for(MERGE_WAIT) else {
            return Ok(ScrubStep { next: Some(from), ..ScrubStep::default() });
        };
        let stack = self.current();
        let layers = stack.layers().iter().rev().filter_map(scrubbed);
        let mut step = ScrubStep::default();
        for layer in layers.filter(|layer| layer.epoch >= from.epoch) {
            let first = if layer.epoch == from.epoch { from.block } else { BlockIndex(0) };
            let end = BlockIndex(layer.size_bytes / BLOCK_SIZE_BYTES).max(first);
            let blocks = step_of(&layer.set, Extent::between(first, end));
            if blocks.is_empty() {
                continue;
            }
            let next = blocks.last().map_or(end, |last| BlockIndex(last.0 + 1));
            step.next = Some(ScrubPosition { epoch: layer.epoch, block: next });
            step.read_bytes = blocks.len_bytes();
            self.scrub_blocks(layer, &blocks, &mut step)?;
            return Ok(step);
        }
        Ok(step)
    }

    /// Reads and compares blocks of a layer.
    fn scrub_blocks(
        &self,
        layer: &FrozenLayer,
        blocks: &BlockSet,
        step: &mut ScrubStep,
    ) -> Result<(), VolumeError> {
        let (listed, sums) = (layer.data.damaged_blocks(), layer.sums(&self.dir, self.id));
        let mut reader = MediumReader::new(layer.data.files(), READ_BLOCKS);
        let (mut unreadable, mut found, mut again) = (BlockSet::new(), vec![], vec![]);
        for extent in blocks.extents() {
            for start in (extent.start.0..extent.end().0).step_by(READ_BLOCKS as usize) {
                let end = BlockIndex(start + READ_BLOCKS).min(extent.end());
                let read = reader.read(Extent::between(BlockIndex(start), end))?;
                let of = (start..).map(BlockIndex).zip(read.data.chunks_exact(BLOCK_SIZE_BYTES as usize));
                for (block, content) in of.filter(|(block, _)| !read.unreadable.contains(*block)) {
                    let to = if listed.contains(block) { &mut again } else { &mut found };
                    to.push((block, sum_of(content)));
                }
                unreadable.union_with(&read.unreadable);
            }
        }
        let mut damaged = unreadable.clone();
        damaged.union_with(&set_of(sums.check(&found).into_iter()));
        self.unlist_sound(layer, &again)?;
        damaged.subtract(&listed);
        if damaged.is_empty() {
            return Ok(());
        }
        let left = layer.damage(&self.dir, self.id).add(&damaged)?;
        step.unlisted_blocks += left.len_blocks();
        unreadable.intersect_with(&damaged);
        step.found.push(LayerDamage { file: layer.file, epoch: layer.epoch, blocks: damaged, unreadable });
        Ok(())
    }

    /// Removes listed blocks from the list that were read with their known checksums.
    fn unlist_sound(&self, layer: &FrozenLayer, read: &[(BlockIndex, u32)]) -> Result<(), VolumeError> {
        if read.is_empty() {
            return Ok(());
        }
        let known = layer.sums(&self.dir, self.id).known(&set_of(read.iter().map(|(block, _)| *block)));
        let known: HashMap<BlockIndex, u32> = known.into_iter().collect();
        let sound = read.iter().filter(|(block, sum)| known.get(block) == Some(sum));
        let sound = set_of(sound.map(|(block, _)| *block));
        layer.damage(&self.dir, self.id).update(|listed| listed.subtract(&sound))
    }

    /// Returns the listed damaged blocks, by layer, the oldest one first.
    pub fn damage(&self) -> Vec<LayerDamage> {
        let stack = self.current();
        let layers = stack.layers().iter().rev().filter_map(scrubbed);
        let damage = layers.map(|layer| LayerDamage {
            file: layer.file,
            epoch: layer.epoch,
            blocks: layer.data.damaged_blocks(),
            unreadable: BlockSet::new(),
        });
        damage.filter(|damage| !damage.blocks.is_empty()).collect()
    }

    /// Returns the listed damaged blocks of a layer whose content is provably that of the volume at the end
    /// of an epoch: no write reached them between the two.
    ///
    /// # Errors
    /// The filesystem fails.
    pub fn repairable(&self, file: Epoch, at: Epoch) -> Result<BlockSet, VolumeError> {
        match self.layer_of(file) {
            Some(layer) => self.unchanged(&layer, at),
            None => Ok(BlockSet::new()),
        }
    }

    /// Writes listed damaged blocks of a layer with their content at the end of an epoch, durably, and
    /// removes them from the list. Skips blocks that are not [`repairable`](Self::repairable) from this
    /// epoch, or are not listed any more, and content without the checksum of its block. A clone that shares
    /// the layer's files has the same content in the block, and finds it sound in its next scrub.
    ///
    /// # Errors
    /// A clone shares the layer's files, but not their checksums ([`VolumeError::Busy`]), or the filesystem
    /// fails; the blocks stay on the list.
    pub fn repair(
        &self,
        file: Epoch,
        at: Epoch,
        blocks: &[(BlockIndex, &[u8])],
    ) -> Result<Repaired, VolumeError> {
        let _no_merge: MutexGuard<'_, Option<MergeNote>> = self.pause_merges();
        self.check_usable()?;
        let mut done = Repaired::default();
        let Some(layer) = self.layer_of(file) else { return Ok(done) };
        let sums = layer.sums(&self.dir, self.id);
        // Another volume with sums of its own may have stored that of the damaged content.
        let volumes = layer.data.files().volumes()?;
        if layer.data.are_shared()? && (volumes == 1 || sums.volumes()? != volumes) {
            return Err(VolumeError::Busy(format!(
                "repair failed on volume {}: a clone has the files of the damaged layer, but not its checksums",
                self.id
            )));
        }
        let proven = self.unchanged(&layer, at)?;
        let known: HashMap<BlockIndex, u32> = sums.known(&proven).into_iter().collect();
        let mut accepted = Vec::new();
        for &(block, content) in blocks.iter().filter(|(block, _)| proven.contains(*block)) {
            assert!(content.len() as u64 == BLOCK_SIZE_BYTES, "the content is of one block");
            let sum = sum_of(content);
            match known.get(&block).is_none_or(|known| *known == sum) {
                true => accepted.push((block, content, sum)),
                false => {
                    done.mismatched.insert(block);
                }
            }
        }
        accepted.sort_unstable_by_key(|(block, _, _)| *block);
        // A clone that reads a block meanwhile must not store the sum of a mix of old and new.
        let expected: Vec<_> = accepted.iter().map(|&(block, _, sum)| (block, sum)).collect();
        let stored_before: BlockSet = set_of(sums.check(&expected).into_iter());
        accepted.retain(|(block, _, _)| !stored_before.contains(*block));
        done.mismatched.union_with(&stored_before);
        for (block, content, _) in &accepted {
            // The block is on the list, durably: until it leaves, no read returns a mix.
            layer.data.files().write(block.0 * BLOCK_SIZE_BYTES, content)?;
        }
        layer.data.files().sync()?;
        read_back(&layer.data, &accepted, &mut done)?;
        layer.damage(&self.dir, self.id).update(|listed| listed.subtract(&done.blocks))?;
        Ok(done)
    }

    fn layer_of(&self, file: Epoch) -> Option<Arc<FrozenLayer>> {
        let stack = self.current();
        let layers = stack.layers().iter().filter_map(scrubbed);
        layers.into_iter().find(|layer| layer.file == file).cloned()
    }

    /// Returns the listed blocks of a layer that no write has reached between the end of its epoch and that
    /// of another one.
    fn unchanged(&self, layer: &FrozenLayer, at: Epoch) -> Result<BlockSet, VolumeError> {
        let mut blocks = layer.data.damaged_blocks();
        blocks.intersect_with(&layer.set.data());
        if blocks.is_empty() || at == layer.epoch {
            return Ok(blocks);
        }
        if at > layer.epoch {
            // A layer has the writes after the epoch of the one below it.
            let stack = self.current();
            for pair in stack.layers().windows(2) {
                if pair[0].epoch() > layer.epoch && pair[1].epoch() < at {
                    blocks.subtract(&pair[0].set().held);
                }
            }
            return Ok(blocks);
        }
        match self.changes(Some(at), layer.epoch) {
            Ok(changes) => {
                blocks.subtract(&changes.data);
                blocks.subtract(&changes.zero);
                Ok(blocks)
            }
            Err(VolumeError::IntervalsGone { .. }) => Ok(BlockSet::new()),
            Err(error) => Err(error),
        }
    }
}

/// Reads written blocks from the medium, and sorts them by the result.
fn read_back(
    data: &LayerData,
    written: &[(BlockIndex, &[u8], u32)],
    done: &mut Repaired,
) -> Result<(), VolumeError> {
    for (block, _, _) in written {
        data.files().drop_cache_of(block.0 * BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES)?;
    }
    let mut reader = MediumReader::new(data.files(), 1);
    for &(block, content, _) in written {
        let read = reader.read(Extent::new(block, 1))?;
        let is_back = read.unreadable.is_empty() && read.data == content;
        if is_back { &mut done.blocks } else { &mut done.failed }.insert(block);
    }
    Ok(())
}

/// Returns a layer that a scrub reads: a frozen one, not a lazy base.
fn scrubbed(layer: &Layer) -> Option<&Arc<FrozenLayer>> {
    match layer {
        Layer::Frozen(layer) if layer.data.lazy().is_none() => Some(layer),
        _ => None,
    }
}

/// Returns the first blocks with data of a layer in a range, as many as a step reads. The sets of a large
/// layer are not copied.
fn step_of(set: &LayerSet, range: Extent) -> BlockSet {
    let mut blocks = BlockSet::new();
    for held in set.held.extents_in(range) {
        let mut at = held.start;
        let ends = set.zero.extents_in(held).chain([Extent::new(held.end(), 0)]);
        for zero in ends {
            let left = STEP_BLOCKS - blocks.len_blocks();
            let data = Extent::between(at, zero.start);
            if !data.is_empty() {
                blocks.insert_extent(Extent::new(data.start, data.len_blocks.min(left)));
            }
            if data.len_blocks >= left {
                return blocks;
            }
            at = zero.end();
        }
    }
    blocks
}

fn set_of(blocks: impl Iterator<Item = BlockIndex>) -> BlockSet {
    blocks.map(|block| Extent::new(block, 1)).collect()
}
