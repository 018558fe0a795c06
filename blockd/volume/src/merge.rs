//! Merging two neighbouring layers that no snapshot needs apart.
//!
//! Of a pair, the lower one must be no snapshot and be read by nobody; then either one may take the other in, and the one
//! that has to copy less does. *Down*: the upper layer's blocks overwrite the lower one's, which nobody sees, because
//! the upper one lies above them until the commit. *Up*: blocks that only the lower one holds go into the upper one's
//! file, where its set does not name them until the commit. The commit is one `volume.meta`; before it, everything is as
//! it was and the work is simply done again, after it, what is left over is garbage.

use crate::{
    data_files::{DataFiles, remove_if_there},
    error::VolumeError,
    files,
    layer_set::SetIdentity,
    meta::LayerEntry,
    stack::{FrozenLayer, Layer},
    storage::Bug,
    volume::Volume,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// How much is copied between two looks at the stop flag.
const COPY_AT_ONCE_BLOCKS: u64 = (1 << 20) / BLOCK_SIZE_BYTES;

impl Volume {
    /// Merges one pair of layers, if there is one that no snapshot needs apart; says whether it did.
    ///
    /// Blocks; meant for a background thread, which calls it until it says `false`. When `stop` becomes true it returns
    /// `false` soon, with nothing changed.
    ///
    /// # Errors
    /// If the disk is full or fails; nothing is changed then, and it may be called again.
    pub fn merge_next(&self, stop: &AtomicBool) -> Result<bool, VolumeError> {
        let _alone = self.merging.lock();
        self.check_usable()?;
        let Some((upper, lower, is_bottom)) = self.find_pair() else { return Ok(false) };
        // The commit of an attempt before may stand, and then it is other blocks that nobody sees.
        self.settle(&self.admin.lock())?;
        let only_lower = {
            let mut only = lower.set.held.clone();
            only.subtract(&upper.set.held);
            only
        };
        let (target, data, copied) = if upper.set.held.len_blocks() <= only_lower.len_blocks() {
            let data = self.long_enough(&lower, upper.size_bytes)?;
            let copied = copy(&upper, &upper.set.held, &data, stop)?;
            (&lower, data, copied)
        } else {
            (&upper, upper.data.clone(), copy(&lower, &only_lower, &upper.data, stop)?)
        };
        if !copied {
            return Ok(false);
        }
        if !data.has(Bug::MergeWithoutSync) {
            data.sync()?;
        }
        let mut set = lower.set.clone();
        set.cover_with(&upper.set);
        if data.has(Bug::MergeForgetsZeroes) {
            set.held.subtract(&upper.set.zero);
            set.zero.subtract(&upper.set.zero);
        }
        if is_bottom {
            // Below there is nothing that the zeroes would have to hide.
            set.held.subtract(&set.zero);
            set.zero = BlockSet::new();
        }
        set.held.optimize();
        let merged = FrozenLayer {
            epoch: upper.epoch,
            file: target.file,
            generation: target.generation + 1,
            size_bytes: upper.size_bytes,
            data,
            set,
        };
        self.commit_merge(&upper, &lower, merged)?;
        Ok(true)
    }

    /// The data files of a layer, made as long as the volume is in the layer that it takes in.
    fn long_enough(&self, layer: &FrozenLayer, size_bytes: u64) -> Result<Arc<DataFiles>, VolumeError> {
        if layer.size_bytes == size_bytes {
            return Ok(layer.data.clone());
        }
        let base = files::data_path(&self.dir, layer.file);
        let data = DataFiles::extend(&base, layer.size_bytes, size_bytes)?;
        files::sync_dir(&self.dir)?;
        Ok(Arc::new(data))
    }

    /// The highest pair whose lower layer no snapshot and no reader needs as a point of its own.
    fn find_pair(&self) -> Option<(Arc<FrozenLayer>, Arc<FrozenLayer>, bool)> {
        let admin = self.admin.lock();
        let stack = self.current();
        let needed = |layer: &FrozenLayer| {
            admin.snapshots.iter().any(|snapshot| snapshot.epoch == layer.epoch)
                || self.pins.are_on(layer.epoch)
        };
        (0..stack.layers.len().saturating_sub(1)).find_map(|at| {
            match (&stack.layers[at], &stack.layers[at + 1]) {
                (Layer::Frozen(upper), Layer::Frozen(lower)) if !needed(lower) => {
                    Some((upper.clone(), lower.clone(), at + 2 == stack.layers.len()))
                }
                _ => None,
            }
        })
    }

    fn commit_merge(
        &self,
        upper: &FrozenLayer,
        lower: &FrozenLayer,
        merged: FrozenLayer,
    ) -> Result<(), VolumeError> {
        let blocks = merged.size_bytes / BLOCK_SIZE_BYTES;
        let identity =
            SetIdentity { volume: self.id, file: merged.file, generation: merged.generation, blocks };
        merged.set.store(&self.dir, identity)?;

        let mut admin = self.admin.lock();
        let mut meta = admin.clone();
        meta.layers.retain(|entry| entry.epoch != lower.epoch);
        for entry in &mut meta.layers {
            if entry.epoch == upper.epoch {
                *entry = LayerEntry {
                    epoch: merged.epoch,
                    file: merged.file,
                    generation: merged.generation,
                    open: false,
                    size_bytes: merged.size_bytes,
                };
            }
        }
        let gone = if merged.file == upper.file { lower } else { upper };
        if merged.data.has(Bug::RemoveBeforeCommit) {
            DataFiles::remove(&files::data_path(&self.dir, gone.file), gone.size_bytes)?;
        }
        self.commit(&mut admin, meta)?;
        let merged = Layer::Frozen(Arc::new(merged));
        self.replace_layers(|layer| match layer.epoch() {
            epoch if epoch == upper.epoch => Some(merged.clone()),
            epoch if epoch == lower.epoch => None,
            _ => Some(layer.clone()),
        });
        // The open files of older stacks and views stay readable until those are gone.
        let removed =
            DataFiles::remove(&files::data_path(&self.dir, gone.file), gone.size_bytes).and_then(|()| {
                for old in [upper, lower] {
                    let is_interval = old.generation == 0 && admin.intervals.contains(&old.file);
                    if !is_interval {
                        remove_if_there(&files::set_path(&self.dir, old.file, old.generation))?;
                    }
                }
                Ok(())
            });
        if let Err(error) = removed {
            tracing::warn!(volume = %self.id, %error, "files of a merged layer stay until the next start");
        }
        Ok(())
    }
}

/// Copies blocks of a layer into another one's file; `false` if it was stopped.
fn copy(
    from: &FrozenLayer,
    blocks: &BlockSet,
    to: &DataFiles,
    stop: &AtomicBool,
) -> Result<bool, VolumeError> {
    let mut buf = vec![0; (COPY_AT_ONCE_BLOCKS * BLOCK_SIZE_BYTES) as usize];
    let mut zero = from.set.zero.clone();
    zero.intersect_with(blocks);
    for run in zero.extents() {
        if stop.load(Ordering::Relaxed) {
            return Ok(false);
        }
        to.punch(run.offset_bytes(), run.len_bytes(), false)?;
    }
    let mut data = blocks.clone();
    data.subtract(&zero);
    for run in data.extents() {
        let mut at = run.start;
        while at < run.end() {
            if stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
            let piece = Extent::between(at, BlockIndex(at.0 + COPY_AT_ONCE_BLOCKS).min(run.end()));
            let part = &mut buf[..piece.len_bytes() as usize];
            from.data.read(piece.offset_bytes(), part)?;
            to.write(piece.offset_bytes(), part)?;
            at = piece.end();
        }
    }
    Ok(true)
}
