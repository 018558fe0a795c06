//! Merging two neighbouring layers that no snapshot needs apart.
//!
//! Of a pair, the lower one must be no snapshot and be read by nobody; then either one may take the other in, and the one
//! that has to copy less does. *Down*: the upper layer's blocks overwrite the lower one's, which nobody sees, because
//! the upper one lies above them until the commit. *Up*: blocks that only the lower one holds go into the upper one's
//! file, where its set does not name them until the commit. The commit is one `volume.meta`; before it, everything is as
//! it was and the work is simply done again, after it, what is left over is garbage.

use crate::{
    copy::Copier,
    data_files::{DataFiles, remove_if_there},
    error::{VolumeError, VolumeErrorKind},
    files,
    layer_set::SetIdentity,
    meta::LayerEntry,
    stack::{FrozenLayer, Layer},
    storage::Bug,
    volume::Volume,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Epoch, Extent};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

impl Volume {
    /// Merges one pair of layers, if there is one that no snapshot needs apart; says whether it did.
    ///
    /// Blocks; meant for a background thread, which calls it until it says `false`. When `stop` becomes true it returns
    /// `false` soon, with nothing changed.
    ///
    /// # Errors
    /// If the disk is full or fails; nothing is changed then, and it may be called again.
    pub fn merge_next(&self, stop: &AtomicBool) -> Result<bool, VolumeError> {
        self.merge_next_paced(&|_| !stop.load(Ordering::Relaxed))
    }

    /// The same for a thread that has other reasons to stop, or wants to go slowly: `go_on` is asked before each piece of
    /// at most 1 MiB is copied, is told its length in bytes, and may take its time; with 0 it is only asked.
    ///
    /// It also returns `false` when somebody waits for the merge to make way. A merge that was stopped goes on where it
    /// was, as long as the volume stays open.
    ///
    /// # Errors
    /// As [`merge_next`](Self::merge_next). If the disk is full, the space that the merge took is given back first.
    pub fn merge_next_paced(&self, go_on: &dyn Fn(u64) -> bool) -> Result<bool, VolumeError> {
        let mut progress = self.merging.lock();
        // Whatever fails from here on, it is done again from the start.
        let last = progress.take();
        let go_on = |bytes| self.merge_makes_way.load(Ordering::Relaxed) == 0 && go_on(bytes);
        self.check_usable()?;
        let Some((upper, lower, is_bottom)) = self.find_pair() else { return Ok(false) };
        // The commit of an attempt before may stand, and then it is other blocks that nobody sees.
        self.settle(&self.admin.lock())?;
        let only_lower = {
            let mut only = lower.set.held.clone();
            only.subtract(&upper.set.held);
            only
        };
        // Nothing may be written to what a clone shares; `find_pair` has found a pair that has one of its own.
        let is_down = match (upper.data.are_shared()?, lower.data.are_shared()?) {
            (false, false) => upper.set.held.len_blocks() <= only_lower.len_blocks(),
            (upper_is_shared, _) => upper_is_shared,
        };
        let (from, target, blocks) = match is_down {
            true => (&upper, &lower, &upper.set.held),
            false => (&lower, &upper, &only_lower),
        };
        let data = match is_down {
            true => self.long_enough(&lower, upper.size_bytes)?,
            false => upper.data.clone(),
        };
        let pair = Pair::of(from, target);
        let start = last.filter(|last| last.pair == pair).map_or(BlockIndex(0), |last| last.next);
        let copied = copy(from, blocks, &data, start, &go_on).and_then(|stopped| match stopped {
            None if data.has(Bug::MergeWithoutSync) => Ok(None),
            None => data.sync().map(|()| None),
            stopped => Ok(stopped),
        });
        match copied {
            Ok(None) => {}
            Ok(Some(next)) => {
                *progress = Some(Progress { pair, next });
                return Ok(false);
            }
            Err(error) => {
                if error.kind() == VolumeErrorKind::NoSpace {
                    give_back(target, blocks, &data);
                }
                return Err(error);
            }
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

    /// The highest pair whose lower layer no snapshot and no reader needs as a point of its own, and of which another volume
    /// shares at most one. What is shared stays so until `merging` is free: only a clone shares more.
    fn find_pair(&self) -> Option<(Arc<FrozenLayer>, Arc<FrozenLayer>, bool)> {
        let admin = self.admin.lock();
        let stack = self.current();
        let needed = |layer: &FrozenLayer| {
            admin.snapshots.iter().any(|snapshot| snapshot.epoch == layer.epoch)
                || self.pins.are_on(layer.epoch)
        };
        // What cannot be told is not written to.
        let is_shared = |layer: &FrozenLayer| layer.data.are_shared().unwrap_or(true);
        (0..stack.layers().len().saturating_sub(1)).find_map(|at| {
            match (&stack.layers()[at], &stack.layers()[at + 1]) {
                (Layer::Frozen(upper), Layer::Frozen(lower))
                    if !(needed(lower) || is_shared(upper) && is_shared(lower)) =>
                {
                    Some((upper.clone(), lower.clone(), at + 2 == stack.layers().len()))
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

/// How far a merge has come that was stopped.
pub(crate) struct Progress {
    pair: Pair,
    /// The data of all blocks below this one was copied.
    next: BlockIndex,
}

/// What is merged into what: file and generation of both.
#[derive(PartialEq, Eq)]
struct Pair([(Epoch, u32); 2]);

impl Pair {
    fn of(from: &FrozenLayer, to: &FrozenLayer) -> Self {
        Self([(from.file, from.generation), (to.file, to.generation)])
    }
}

/// Gives the space back that blocks took which the target of a merge does not hold: writers need it more.
fn give_back(target: &FrozenLayer, blocks: &BlockSet, data: &DataFiles) {
    let mut taken = blocks.clone();
    taken.subtract(&target.set.held);
    for run in taken.extents() {
        if let Err(error) = data.punch(run.offset_bytes(), run.len_bytes(), true) {
            tracing::warn!(%error, "space that a merge took is not given back");
            return;
        }
    }
}

/// Copies blocks of a layer into another one's file, their data from `start` on; the block that it came to, if it was
/// stopped.
fn copy(
    from: &FrozenLayer,
    blocks: &BlockSet,
    to: &DataFiles,
    start: BlockIndex,
    go_on: &dyn Fn(u64) -> bool,
) -> Result<Option<BlockIndex>, VolumeError> {
    let mut copier = Copier::new(go_on);
    copier.done_below = start;
    let mut zero = from.set.zero.clone();
    zero.intersect_with(blocks);
    for run in zero.extents() {
        if !copier.goes_on() {
            return Ok(Some(start));
        }
        to.punch(run.offset_bytes(), run.len_bytes(), false)?;
    }
    let mut data = blocks.clone();
    data.subtract(&zero);
    let end = BlockIndex(from.size_bytes / BLOCK_SIZE_BYTES).max(start);
    for run in data.extents_in(Extent::between(start, end)) {
        if !copier.copy(&from.data, run, to)? {
            return Ok(Some(copier.done_below));
        }
    }
    Ok(None)
}
