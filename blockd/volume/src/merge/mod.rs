//! Merge of two adjacent layers that no snapshot separates.
//!
//! The lower layer of a pair must not be a snapshot or open as one. Then the layer that needs the smaller
//! copy is merged into the other. *Down*: blocks of the upper layer overwrite those of the lower one, which
//! the upper layer hides until the commit. *Up*: blocks that only the lower layer holds are copied into the
//! file of the upper one, whose block set does not name them until the commit. The commit replaces
//! `volume.meta`. Before it, the volume is unchanged, and the merge resumes from its last
//! [note] or restarts; after it, the files of the other layer are garbage.

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
    merge::note::{LayerVersion, MergeNote, Pair},
    volume::{MergeStats, OpenViews, Volume},
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Epoch, Extent};
use std::sync::{Arc, atomic::Ordering};

/// Copied bytes between two syncs and progress notes of a merge: the maximum that is copied again after a
/// crash. Small, because operations that pause the merge wait for the sync.
const NOTE_EVERY_BYTES: u64 = 64 << 20;

impl Volume {
    /// Merges one pair of layers that no snapshot separates; returns false if there is none. The removed
    /// layer's space is free when [`wait_for_removed_files`](crate::wait_for_removed_files) returns.
    ///
    /// Blocks: a background thread calls it until it returns false. `should_continue` is called before each
    /// part of at most 1 MiB with its length in bytes, and may delay the part, or stop the merge by returning
    /// false. A call with 0 only checks for a stop.
    ///
    /// Also returns false if another operation pauses the merge. The next call resumes a stopped merge; after
    /// a process crash it repeats up to 64 MiB.
    ///
    /// # Errors
    /// The disk is full or fails; the volume is unchanged, and a retry is possible. On a full disk the space
    /// of the copied blocks is freed first.
    pub fn merge_next(&self, should_continue: &dyn Fn(u64) -> bool) -> Result<bool, VolumeError> {
        self.merge_next_with_progress(should_continue, NOTE_EVERY_BYTES)
    }

    /// Runs [`merge_next`](Self::merge_next) with a progress note after each `note_every_bytes` copied bytes.
    ///
    /// # Errors
    /// As for [`merge_next`](Self::merge_next).
    pub fn merge_next_with_progress(
        &self,
        should_continue: &dyn Fn(u64) -> bool,
        note_every_bytes: u64,
    ) -> Result<bool, VolumeError> {
        let mut note = self.merging.lock();
        let should_continue =
            |bytes| self.merge_pause_requests.load(Ordering::Relaxed) == 0 && should_continue(bytes);
        self.check_usable()?;
        let Some((upper, lower, is_bottom)) = self.find_pair(note.map(|last| last.pair)) else {
            self.merge_progress.end();
            return Ok(false);
        };
        // After a failure the merge restarts.
        let last = note.take();
        // An in-doubt commit of an earlier attempt changes which blocks the upper layer hides.
        self.settle(&self.admin.lock())?;
        let mut only_lower = lower.set.held.clone();
        only_lower.subtract(&upper.set.held);
        let is_down = merges_down(&upper, &lower, &only_lower)?;
        let (from, target, blocks) = match is_down {
            true => (&upper, &lower, &upper.set.held),
            false => (&lower, &upper, &only_lower),
        };
        let data = match is_down {
            true => self.extended_data(&lower, upper.size_bytes)?,
            false => upper.data.clone(),
        };
        assert!(upper.epoch > lower.epoch && upper.size_bytes >= lower.size_bytes, "the layers are in order");
        assert!(!data.are_shared()?, "a merge writes no shared file");
        let pair = Pair { from: LayerVersion::of(from), to: LayerVersion::of(target) };
        let start = self.resume_at(last, pair, target)?;
        let (from_sums, sums) = (from.sums(&self.dir, self.id), target.sums(&self.dir, self.id));
        let may_continue = || should_continue(0);
        let end = BlockIndex(from.size_bytes / BLOCK_SIZE_BYTES).max(start);
        // Those of the copied blocks were forgotten before the copy.
        if !sums.forget(&blocks.slice(Extent::between(start, end)), &may_continue)? {
            *note = Some(MergeNote { pair, next: start });
            return Ok(false);
        }
        let merge_copy = MergeCopy { volume: self, pair, from, blocks, data: &data, note_every_bytes };
        let copied = merge_copy.copy(start, &should_continue).and_then(|stopped| match stopped {
            None => data.sync().map(|()| None),
            stopped => Ok(stopped),
        });
        match copied {
            Ok(None) => {}
            Ok(Some(next)) => {
                *note = Some(MergeNote { pair, next });
                return Ok(false);
            }
            Err(error) => {
                self.merge_progress.end();
                if error.kind() == VolumeErrorKind::NoSpace {
                    self.free_copied_blocks(target, blocks, &data);
                }
                return Err(error);
            }
        }
        if !sums.take_from(from_sums, blocks, &may_continue) {
            *note = Some(MergeNote { pair, next: end });
            return Ok(false);
        }
        let exact = |layer: &FrozenLayer| layer.set_with_zeroes(&self.dir, self.id).into_owned();
        let set = merged_set(&exact(&upper), exact(&lower), is_bottom);
        let merged = FrozenLayer {
            epoch: upper.epoch,
            file: target.file,
            generation: target.generation + 1,
            size_bytes: upper.size_bytes,
            data,
            set,
            has_all_zeroes: true,
        };
        let committed =
            self.take_damage(from, target, blocks).and_then(|()| self.commit_merge(&upper, &lower, merged));
        self.merge_progress.end();
        committed.map(|()| true)
    }

    /// Takes over the damaged blocks of the other layer, which were not copied. The target's own ones among
    /// the blocks are overwritten.
    fn take_damage(
        &self,
        from: &FrozenLayer,
        target: &FrozenLayer,
        blocks: &BlockSet,
    ) -> Result<(), VolumeError> {
        if from.data.damage().is_none() && target.data.damage().is_none() {
            return Ok(());
        }
        let mut taken = from.data.damaged_blocks();
        taken.intersect_with(blocks);
        target.damage(&self.dir, self.id).update(|listed| {
            listed.subtract(blocks);
            listed.union_with(&taken);
        })
    }

    /// Returns the first block to copy: the end of this merge's progress, or 0.
    fn resume_at(
        &self,
        last: Option<MergeNote>,
        pair: Pair,
        target: &FrozenLayer,
    ) -> Result<BlockIndex, VolumeError> {
        if let Some(last) = last.filter(|last| last.pair == pair) {
            // The open and the extension truncate data beyond the target's own size.
            return Ok(last.next.min(BlockIndex(target.size_bytes / BLOCK_SIZE_BYTES)));
        }
        // This merge may overwrite blocks that the note of another merge covers.
        MergeNote::remove_if_exists(&self.dir)?;
        Ok(BlockIndex(0))
    }

    /// Returns the data files of a layer, extended to the size of the upper layer.
    fn extended_data(&self, layer: &FrozenLayer, size_bytes: u64) -> Result<Arc<LayerData>, VolumeError> {
        if layer.size_bytes == size_bytes {
            return Ok(layer.data.clone());
        }
        let base = files::data_path(&self.dir, layer.file);
        let data = DataFiles::extend(&base, layer.size_bytes, size_bytes)?;
        files::sync_dir(&self.dir)?;
        let (sums, damage) = (layer.sums(&self.dir, self.id), layer.damage(&self.dir, self.id));
        Ok(Arc::new(LayerData::from(data).with_sums(sums.clone()).with_damage(damage.clone())))
    }

    /// Returns the pair of a stopped merge if still mergeable, otherwise the topmost [mergeable] pair. While
    /// `merging` is held, no layer becomes shared: clones take this lock.
    fn find_pair(&self, stopped: Option<Pair>) -> Option<(Arc<FrozenLayer>, Arc<FrozenLayer>, bool)> {
        let admin = self.admin.lock();
        let stack = self.current();
        let is_kept = |epoch| admin.snapshots.iter().any(|snapshot| snapshot.epoch == epoch);
        let pairs = || {
            let bottom = stack.layers().len().saturating_sub(1);
            mergeable(&stack, &self.open_views, &is_kept)
                .map(move |(at, upper, lower)| (upper.clone(), lower.clone(), at + 1 == bottom))
        };
        let is_stopped = |upper: &FrozenLayer, lower: &FrozenLayer| {
            let (upper, lower) = (LayerVersion::of(upper), LayerVersion::of(lower));
            stopped
                .is_some_and(|Pair { from, to }| (from, to) == (upper, lower) || (from, to) == (lower, upper))
        };
        pairs().find(|(upper, lower, _)| is_stopped(upper, lower)).or_else(|| pairs().next())
    }

    /// Returns the remaining merges, without waiting for a freeze or merge.
    pub(crate) fn merge_stats(&self, stack: &Stack) -> MergeStats {
        let kept = self.committed_snapshots.read();
        let is_kept = |epoch| kept.iter().any(|point| point.1 == epoch);
        let layers = mergeable(stack, &self.open_views, &is_kept).count() as u64;
        let (done_bytes, total_bytes) = self.merge_progress.read();
        MergeStats { layers, done_bytes, total_bytes }
    }

    /// Frees the space of copied blocks that the target of a merge does not hold yet, for writers.
    fn free_copied_blocks(&self, target: &FrozenLayer, blocks: &BlockSet, data: &LayerData) {
        // The note would claim that the blocks are copied.
        if let Err(error) = MergeNote::remove(&self.dir) {
            tracing::warn!(volume = %self.id, %error, "free failed on the copied blocks of a merge");
            return;
        }
        let mut taken = blocks.clone();
        taken.subtract(&target.set.held);
        for extent in taken.extents() {
            if let Err(error) = data.punch(extent.offset_bytes(), extent.len_bytes(), true) {
                tracing::warn!(volume = %self.id, %error, "free failed on the copied blocks of a merge");
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
        assert!(merged.epoch == upper.epoch, "the merged layer replaces the upper one");
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
        let removed_layer = if merged.file == upper.file { lower } else { upper };
        self.commit(&mut admin, meta)?;
        let merged = Layer::Frozen(Arc::new(merged.with_bounded_memory()));
        self.replace_layers(|layer| match layer.epoch() {
            epoch if epoch == upper.epoch => Some(merged.clone()),
            epoch if epoch == lower.epoch => None,
            _ => Some(layer.clone()),
        });
        // Older stacks and views keep the removed files open and readable; the closer frees their space.
        let removed =
            DataFiles::remove(&files::data_path(&self.dir, removed_layer.file), removed_layer.size_bytes)
                .and_then(|()| {
                    removed_layer.sums(&self.dir, self.id).remove()?;
                    files::remove_if_exists(&files::damaged_path(&self.dir, removed_layer.file))?;
                    files::remove_if_exists(&MergeNote::path(&self.dir))?;
                    for old in [upper, lower] {
                        let is_interval = old.generation == 0 && admin.intervals.contains(&old.file);
                        if !is_interval {
                            files::remove_if_exists(&files::set_path(&self.dir, old.file, old.generation))?;
                        }
                    }
                    Ok(())
                });
        if let Err(error) = removed {
            tracing::warn!(volume = %self.id, %error, "removal failed on the files of a merged layer: left to the next start");
        }
        Ok(())
    }
}

/// Returns the mergeable pairs of adjacent frozen layers, top first, with the index of the upper one:
/// the lower layer is not a snapshot (`is_kept`), in an open view or lazy, and at most one layer is shared
/// with another volume.
fn mergeable<'a>(
    stack: &'a Stack,
    open_views: &'a OpenViews,
    is_kept: &'a dyn Fn(Epoch) -> bool,
) -> impl Iterator<Item = (usize, &'a Arc<FrozenLayer>, &'a Arc<FrozenLayer>)> {
    // A lazy base cannot be merged.
    let is_lazy = |layer: &FrozenLayer| layer.data.lazy().is_some();
    // Unknown counts as shared: the file must not be written.
    let is_shared = |layer: &FrozenLayer| layer.data.are_shared().unwrap_or(true);
    stack.layers().windows(2).enumerate().filter_map(move |(at, two)| match two {
        [Layer::Frozen(upper), Layer::Frozen(lower)]
            if !(is_kept(lower.epoch)
                || open_views.are_on(lower.epoch)
                || is_lazy(lower)
                || is_shared(upper) && is_shared(lower)) =>
        {
            Some((at, upper, lower))
        }
        _ => None,
    })
}

/// Returns true if the upper layer is merged into the lower one, the smaller copy. Shared files must not be
/// written; `find_pair` returns a pair with at least one unshared layer.
fn merges_down(upper: &FrozenLayer, lower: &FrozenLayer, only_lower: &BlockSet) -> Result<bool, VolumeError> {
    Ok(match (upper.data.are_shared()?, lower.data.are_shared()?) {
        (false, false) => upper.set.held.len_blocks() <= only_lower.len_blocks(),
        (upper_is_shared, _) => upper_is_shared,
    })
}

/// Copy phase of a merge.
struct MergeCopy<'a> {
    volume: &'a Volume,
    pair: Pair,
    from: &'a FrozenLayer,
    blocks: &'a BlockSet,
    data: &'a LayerData,
    note_every_bytes: u64,
}

impl MergeCopy<'_> {
    /// Copies the blocks into the target's files, data from `start` on. Returns the next block if stopped.
    fn copy(
        &self,
        start: BlockIndex,
        should_continue: &dyn Fn(u64) -> bool,
    ) -> Result<Option<BlockIndex>, VolumeError> {
        let progress = &self.volume.merge_progress;
        let mut copier = Copier::new(should_continue, progress);
        copier.done_below = start;
        let mut zero = self.from.set_with_zeroes(&self.volume.dir, self.volume.id).into_owned().zero;
        zero.intersect_with(self.blocks);
        for extent in zero.extents() {
            if !copier.may_continue() {
                return Ok(Some(start));
            }
            self.data.punch(extent.offset_bytes(), extent.len_bytes(), false)?;
        }
        let mut data = self.blocks.clone();
        data.subtract(&zero);
        data.subtract(&self.from.data.damaged_blocks());
        let end = BlockIndex(self.from.size_bytes / BLOCK_SIZE_BYTES).max(start);
        let rest = Extent::between(start, end);
        let total_bytes = data.len_bytes();
        progress.begin(total_bytes - data.intersection_len(rest) * BLOCK_SIZE_BYTES, total_bytes);
        let note_every_blocks = (self.note_every_bytes / BLOCK_SIZE_BYTES).max(1);
        let mut unnoted_blocks = 0;
        for extent in data.extents_in(rest) {
            let mut at = extent.start;
            while at < extent.end() {
                let room = BlockIndex(at.0 + (note_every_blocks - unnoted_blocks));
                let part = Extent::between(at, room.min(extent.end()));
                assert!(!part.is_empty(), "a part ends at the next note");
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

    /// Syncs the copied data and stores a progress note. A failed note only means more repeated copying.
    fn note(&self, next: BlockIndex) -> Result<(), VolumeError> {
        self.data.sync()?;
        let note = MergeNote { pair: self.pair, next };
        if let Err(error) = note.store(&self.volume.dir, self.volume.id) {
            tracing::debug!(volume = %self.volume.id, %error, "write failed on the progress note of a merge");
        }
        Ok(())
    }
}

/// Merges the block sets of two layers. At the bottom of the stack, zeroes need not be held: they
/// hide no layer.
fn merged_set(upper: &LayerSet, lower: LayerSet, is_bottom: bool) -> LayerSet {
    let blocks = upper.held.len_blocks().max(lower.held.len_blocks());
    let mut set = lower;
    set.cover_with(upper);
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
