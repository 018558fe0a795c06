//! Merge of two neighbouring layers that no snapshot separates.
//!
//! The lower layer of a pair must be neither a snapshot nor read as one; then either layer can take in the
//! other, so that less is copied. *Down*: blocks of the upper layer overwrite those of the lower one,
//! invisibly, because the upper layer hides them until the commit. *Up*: blocks that only the lower layer
//! holds are copied into the upper one's file, whose block set does not name them until the commit. The
//! commit is one `volume.meta`; before it, nothing has changed, and the merge continues from its last
//! [note](crate::merge::note) or restarts; after it, the rest is garbage.

pub(crate) mod copy;
pub(crate) mod note;

use crate::{
    error::{VolumeError, VolumeErrorKind},
    io::files,
    layer::data::LayerData,
    layer::data_files::DataFiles,
    layer::set::{LayerSet, SetIdentity},
    layer::stack::{FrozenLayer, Layer, Stack},
    merge::copy::Copier,
    merge::note::{LayerVersion, Pair, Progress},
    volume::{MergeStats, Pins, Volume},
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Epoch, Extent};
use std::sync::{Arc, atomic::Ordering};

/// Copied bytes between two syncs and progress notes of a merge: the maximum that is copied twice. Small
/// enough for a short wait of operations that pause the merge.
const NOTE_EVERY_BYTES: u64 = 64 << 20;

impl Volume {
    /// Merges one pair of layers that no snapshot separates; returns false if there is none. The removed
    /// layer's space is free when [`wait_for_removed_files`](crate::wait_for_removed_files) returns.
    ///
    /// Blocks; meant for a background thread, which calls it until it returns false. `go_on` is called before
    /// each part of at most 1 MiB with its length in bytes, and may delay it, or stop the merge by returning
    /// false; with 0 it only checks for a stop.
    ///
    /// Also returns false to let a waiting operation proceed. A stopped merge continues where it was; after
    /// the death of the process, up to 64 MiB earlier.
    ///
    /// # Errors
    /// The disk is full or fails; nothing is changed, and it may be called again. On a full disk the merge's
    /// space is freed first.
    pub fn merge_next(&self, go_on: &dyn Fn(u64) -> bool) -> Result<bool, VolumeError> {
        self.merge_next_noting(go_on, NOTE_EVERY_BYTES)
    }

    /// Runs [`merge_next`](Self::merge_next) with a progress note after so many copied bytes.
    ///
    /// # Errors
    /// As for [`merge_next`](Self::merge_next).
    pub fn merge_next_noting(
        &self,
        go_on: &dyn Fn(u64) -> bool,
        note_every_bytes: u64,
    ) -> Result<bool, VolumeError> {
        let mut progress = self.merging.lock();
        let go_on = |bytes| self.merge_makes_way.load(Ordering::Relaxed) == 0 && go_on(bytes);
        self.check_usable()?;
        let Some((upper, lower, is_bottom)) = self.find_pair(progress.map(|last| last.pair)) else {
            self.merge_shown.end();
            return Ok(false);
        };
        // After any failure from here on, the merge restarts.
        let last = progress.take();
        // The commit of an earlier attempt may stand; then other blocks are hidden.
        self.settle(&self.admin.lock())?;
        let only_lower = {
            let mut only = lower.set.held.clone();
            only.subtract(&upper.set.held);
            only
        };
        // Files shared with a clone must not be written; `find_pair` has found a pair with at least one
        // unshared layer.
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
        assert!(upper.epoch > lower.epoch && upper.size_bytes >= lower.size_bytes, "neighbours in order");
        assert!(!data.are_shared()?, "a merge writes no shared file");
        let pair = Pair { from: LayerVersion::of(from), to: LayerVersion::of(target) };
        let start = self.resume_at(last, pair, target)?;
        let work = Work { volume: self, pair, from, blocks, data: &data, note_every_bytes };
        let copied = work.copy(start, &go_on).and_then(|stopped| match stopped {
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
                self.merge_shown.end();
                if error.kind() == VolumeErrorKind::NoSpace {
                    self.give_back(target, blocks, &data);
                }
                return Err(error);
            }
        }
        let set = merged_set(&upper.set, &lower.set, is_bottom);
        let merged = FrozenLayer {
            epoch: upper.epoch,
            file: target.file,
            generation: target.generation + 1,
            size_bytes: upper.size_bytes,
            data,
            set,
        };
        let committed = self.commit_merge(&upper, &lower, merged);
        self.merge_shown.end();
        committed.map(|()| true)
    }

    /// Returns the first block to copy: behind the last note of this merge, or 0.
    fn resume_at(
        &self,
        last: Option<Progress>,
        pair: Pair,
        target: &FrozenLayer,
    ) -> Result<BlockIndex, VolumeError> {
        if let Some(last) = last.filter(|last| last.pair == pair) {
            // Data beyond the target's own end was truncated when it was opened or extended.
            return Ok(last.next.min(BlockIndex(target.size_bytes / BLOCK_SIZE_BYTES)));
        }
        // A note of another merge covers blocks that this one may overwrite.
        Progress::forget_if_there(&self.dir)?;
        Ok(BlockIndex(0))
    }

    /// Returns the data files of a layer, extended to the size of the layer that it takes in.
    fn long_enough(&self, layer: &FrozenLayer, size_bytes: u64) -> Result<Arc<LayerData>, VolumeError> {
        if layer.size_bytes == size_bytes {
            return Ok(layer.data.clone());
        }
        let base = files::data_path(&self.dir, layer.file);
        let data = DataFiles::extend(&base, layer.size_bytes, size_bytes)?;
        files::sync_dir(&self.dir)?;
        Ok(Arc::new(data.into()))
    }

    /// Returns the highest pair whose lower layer is needed by no snapshot or reader, with at most one layer
    /// shared with another volume; the pair of a stopped merge comes first. Sharing is stable while `merging`
    /// is held: only a clone adds to it.
    fn find_pair(&self, begun: Option<Pair>) -> Option<(Arc<FrozenLayer>, Arc<FrozenLayer>, bool)> {
        let admin = self.admin.lock();
        let stack = self.current();
        let is_kept = |epoch| admin.snapshots.iter().any(|snapshot| snapshot.epoch == epoch);
        let pairs = || {
            let bottom = stack.layers().len().saturating_sub(1);
            mergeable(&stack, &self.pins, &is_kept)
                .map(move |(at, upper, lower)| (upper.clone(), lower.clone(), at + 1 == bottom))
        };
        let is_begun = |upper: &FrozenLayer, lower: &FrozenLayer| {
            let (upper, lower) = (LayerVersion::of(upper), LayerVersion::of(lower));
            begun
                .is_some_and(|Pair { from, to }| (from, to) == (upper, lower) || (from, to) == (lower, upper))
        };
        pairs().find(|(upper, lower, _)| is_begun(upper, lower)).or_else(|| pairs().next())
    }

    /// Returns the remaining merges, as far as known without waiting.
    pub(crate) fn merge_stats(&self, stack: &Stack) -> MergeStats {
        let kept = self.kept.read();
        let is_kept = |epoch| kept.iter().any(|point| point.1 == epoch);
        let layers = mergeable(stack, &self.pins, &is_kept).count() as u64;
        let (done_bytes, total_bytes) = self.merge_shown.read();
        MergeStats { layers, done_bytes, total_bytes }
    }

    /// Frees the space of copied blocks that the target of a merge does not hold yet: writers need it more.
    fn give_back(&self, target: &FrozenLayer, blocks: &BlockSet, data: &LayerData) {
        // A note claims that they are copied.
        if let Err(error) = Progress::forget(&self.dir) {
            tracing::warn!(volume = %self.id, %error, "space that a merge took is not given back");
            return;
        }
        let mut taken = blocks.clone();
        taken.subtract(&target.set.held);
        for run in taken.extents() {
            if let Err(error) = data.punch(run.offset_bytes(), run.len_bytes(), true) {
                tracing::warn!(volume = %self.id, %error, "space that a merge took is not given back");
                return;
            }
        }
    }

    fn commit_merge(
        &self,
        upper: &FrozenLayer,
        lower: &FrozenLayer,
        merged: FrozenLayer,
    ) -> Result<(), VolumeError> {
        assert!(merged.epoch == upper.epoch, "the merged layer has the place of the upper one");
        assert!([upper.file, lower.file].contains(&merged.file), "a merge creates no file");
        merged.set.store(&self.dir, SetIdentity::of(self.id, &merged.entry()))?;

        let mut admin = self.admin.lock();
        let mut meta = admin.clone();
        meta.layers.retain(|entry| entry.epoch != lower.epoch);
        for entry in &mut meta.layers {
            if entry.epoch == upper.epoch {
                *entry = merged.entry();
            }
        }
        let gone = if merged.file == upper.file { lower } else { upper };
        self.commit(&mut admin, meta)?;
        let merged = Layer::Frozen(Arc::new(merged));
        self.replace_layers(|layer| match layer.epoch() {
            epoch if epoch == upper.epoch => Some(merged.clone()),
            epoch if epoch == lower.epoch => None,
            _ => Some(layer.clone()),
        });
        // Open files of older stacks and views stay readable until these are dropped; the closer frees their
        // space.
        let removed =
            DataFiles::remove(&files::data_path(&self.dir, gone.file), gone.size_bytes).and_then(|()| {
                files::remove_if_there(&Progress::path(&self.dir))?;
                for old in [upper, lower] {
                    let is_interval = old.generation == 0 && admin.intervals.contains(&old.file);
                    if !is_interval {
                        files::remove_if_there(&files::set_path(&self.dir, old.file, old.generation))?;
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

/// Returns mergeable pairs of neighbours, top first, with the index of the upper one: the lower one is not
/// needed according to `is_kept` and `pins`, and at most one is shared.
fn mergeable<'a>(
    stack: &'a Stack,
    pins: &'a Pins,
    is_kept: &'a dyn Fn(Epoch) -> bool,
) -> impl Iterator<Item = (usize, &'a Arc<FrozenLayer>, &'a Arc<FrozenLayer>)> {
    // An incomplete lazy base cannot take part in a merge.
    let is_lazy = |layer: &FrozenLayer| layer.data.lazy().is_some();
    // If sharing is unknown, the file is not written.
    let is_shared = |layer: &FrozenLayer| layer.data.are_shared().unwrap_or(true);
    stack.layers().windows(2).enumerate().filter_map(move |(at, two)| match two {
        [Layer::Frozen(upper), Layer::Frozen(lower)]
            if !(is_kept(lower.epoch)
                || pins.are_on(lower.epoch)
                || is_lazy(lower)
                || is_shared(upper) && is_shared(lower)) =>
        {
            Some((at, upper, lower))
        }
        _ => None,
    })
}

/// Data copied by a merge.
struct Work<'a> {
    volume: &'a Volume,
    pair: Pair,
    from: &'a FrozenLayer,
    blocks: &'a BlockSet,
    data: &'a LayerData,
    note_every_bytes: u64,
}

impl Work<'_> {
    /// Copies the blocks into the target's files, data from `start` on; returns the position if stopped.
    fn copy(
        &self,
        start: BlockIndex,
        go_on: &dyn Fn(u64) -> bool,
    ) -> Result<Option<BlockIndex>, VolumeError> {
        let shown = &self.volume.merge_shown;
        let mut copier = Copier::new(go_on, shown);
        copier.done_below = start;
        let mut zero = self.from.set.zero.clone();
        zero.intersect_with(self.blocks);
        for run in zero.extents() {
            if !copier.may_continue() {
                return Ok(Some(start));
            }
            self.data.punch(run.offset_bytes(), run.len_bytes(), false)?;
        }
        let mut data = self.blocks.clone();
        data.subtract(&zero);
        let end = BlockIndex(self.from.size_bytes / BLOCK_SIZE_BYTES).max(start);
        let rest = Extent::between(start, end);
        let total_bytes = data.len_bytes();
        shown.begin(total_bytes - data.intersection_len(rest) * BLOCK_SIZE_BYTES, total_bytes);
        let note_every_blocks = (self.note_every_bytes / BLOCK_SIZE_BYTES).max(1);
        let mut unnoted_blocks = 0;
        for run in data.extents_in(rest) {
            let mut at = run.start;
            while at < run.end() {
                let room = BlockIndex(at.0 + (note_every_blocks - unnoted_blocks));
                let part = Extent::between(at, room.min(run.end()));
                assert!(!part.is_empty(), "a note is due before the room for it is used up");
                if !copier.copy(&self.from.data, part, self.data)? {
                    return Ok(Some(copier.done_below));
                }
                at = part.end();
                unnoted_blocks += part.len_blocks;
                if unnoted_blocks == note_every_blocks {
                    self.note(at)?;
                    unnoted_blocks = 0;
                }
            }
        }
        Ok(None)
    }

    /// Syncs copied data and stores the progress. A failed note only costs time.
    fn note(&self, next: BlockIndex) -> Result<(), VolumeError> {
        self.data.sync()?;
        let note = Progress { pair: self.pair, next };
        if let Err(error) = note.store(&self.volume.dir, self.volume.id) {
            tracing::debug!(volume = %self.volume.id, %error, "how far a merge is was not written down");
        }
        Ok(())
    }
}

/// Returns the block sets of two layers as one. At the bottom there are no layers that zeroes must hide.
fn merged_set(upper: &LayerSet, lower: &LayerSet, is_bottom: bool) -> LayerSet {
    let mut set = lower.clone();
    set.cover_with(upper);
    let blocks = upper.held.len_blocks().max(lower.held.len_blocks());
    assert!(set.held.len_blocks() >= blocks, "a merge loses no block");
    if is_bottom {
        set.held.subtract(&set.zero);
        set.zero = BlockSet::new();
    }
    set.held.optimize();
    set.zero.optimize();
    debug_assert!(set.is_consistent(), "zeroes are held");
    set
}
