//! Rollback of a volume to a snapshot.
//!
//! No layer is discarded. A new frozen layer on top holds every block changed since the snapshot, with its
//! content in the snapshot; zeroes need no copy. So the restored blocks are dirty relative to every earlier
//! point, and the next incremental backup contains them without a scan. One commit adds the layer and a new
//! head; before it, the volume is unchanged, and new files are garbage.

use crate::{
    error::VolumeError,
    head::Head,
    head::volume_dir::VolumeDir,
    io::files,
    io::reserve,
    layer::data::LayerData,
    layer::data_files::DataFiles,
    layer::set::{LayerSet, SetIdentity},
    layer::stack::{FrozenLayer, Layer, Stack},
    layer::sums::BlockSums,
    merge::copy::Copier,
    meta::{LayerEntry, Meta},
    view::SnapshotView,
    volume::{Volume, head_of},
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Epoch, Extent, SnapshotId};
use std::sync::{Arc, atomic::Ordering};

/// Result of a rollback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RolledBack {
    /// Epoch of the layer with the restored blocks.
    pub epoch: Epoch,
    /// Number of restored blocks.
    pub changed_blocks: u64,
    /// Number of restored blocks with copied data.
    pub copied_blocks: u64,
}

/// Running rollback; allows new epochs again on drop.
struct RollbackGuard<'a>(&'a Volume);

impl Drop for RollbackGuard<'_> {
    fn drop(&mut self) {
        self.0.rollback_progress.end();
        let _admin = self.0.admin.lock();
        self.0.rolling_back.store(false, Ordering::Relaxed);
    }
}

/// Epochs of a rollback's files and of the head that they replace.
#[derive(Clone, Copy)]
struct Plan {
    /// Epoch of the empty head that is replaced.
    old_head: Epoch,
    layer: Epoch,
    new_head: Epoch,
    size_bytes: u64,
}

/// Blocks that a rollback has copied, by the layer that they are from.
#[derive(Default)]
struct Copied(Vec<(Arc<LayerData>, BlockSet)>);

impl Copied {
    fn note(&mut self, from: &Arc<LayerData>, part: Extent) {
        match self.0.iter_mut().find(|(data, _)| Arc::ptr_eq(data, from)) {
            Some((_, blocks)) => blocks.insert_extent(part),
            None => self.0.push((from.clone(), BlockSet::from_iter([part]))),
        }
    }

    /// Returns the damaged blocks, which are not copied and thus damaged in the new layer, too.
    fn damaged(&self) -> BlockSet {
        let mut all = BlockSet::new();
        for (from, blocks) in &self.0 {
            let mut damaged = from.damaged_blocks();
            damaged.intersect_with(blocks);
            all.union_with(&damaged);
        }
        all
    }

    /// Takes over the checksums, so that damage of a copied block is found in its copy. Returns false if
    /// `should_continue` stopped it.
    fn take_sums(&self, sums: &BlockSums, should_continue: &dyn Fn() -> bool) -> bool {
        let take = |(from, blocks): &(Arc<LayerData>, BlockSet)| {
            from.sums().is_none_or(|from| sums.take_from(from, blocks, should_continue))
        };
        self.0.iter().all(take)
    }
}

impl Volume {
    /// Rolls the volume back to a snapshot; durable when the call returns. A volume that has grown since
    /// keeps its size, and the added part reads as zeroes. All snapshots stay; the previous state is lost
    /// unless frozen.
    ///
    /// A write during the rollback makes it fail at its end; reads continue. `should_continue` is called
    /// before each copied part.
    ///
    /// # Errors
    /// The snapshot does not exist, `should_continue` returned false or a write occurred
    /// ([`VolumeError::Busy`]), or the disk is full or fails; the volume is unchanged. If the commit is in
    /// doubt, the volume acknowledges nothing until it is opened again ([`VolumeError::Failed`]).
    pub fn roll_back(
        &self,
        snapshot: SnapshotId,
        should_continue: &dyn Fn() -> bool,
    ) -> Result<RolledBack, VolumeError> {
        let _no_merge = self.pause_merges();
        // Keeps the layers' files open.
        let view = self.view(snapshot)?;
        let (plan, _rolling) = self.begin_rollback()?;
        let made = self.make_rollback(plan, &view, should_continue).and_then(|(layer, head)| {
            let done = RolledBack {
                epoch: layer.epoch,
                changed_blocks: layer.set.held.len_blocks(),
                copied_blocks: layer.set.held.len_blocks() - layer.set.zero.len_blocks(),
            };
            self.commit_rollback(plan, layer, head).map(|()| done)
        });
        let garbage = match &made {
            Ok(_) => Head::remove_files(self.volume_dir(), plan.old_head),
            // An in-doubt commit may reference the files; the next start removes them if not.
            Err(_) if self.failure().is_some() => Ok(()),
            Err(_) => self.remove_rollback(plan),
        };
        if let Err(error) = garbage {
            tracing::warn!(volume = %self.id, %error, "removal failed on the files of a rollback: left to the next start");
        }
        made
    }

    /// Ensures an empty head and prevents new epochs.
    fn begin_rollback(&self) -> Result<(Plan, RollbackGuard<'_>), VolumeError> {
        let mut admin = self.admin.lock();
        self.check_usable()?;
        self.finish_open_layers(&mut admin)?;
        let old = head_of(&self.current()).clone();
        if old.dirty_blocks() > 0 || !old.writers.are_done() {
            let new_head = self.prepare_head(&mut admin, self.size_bytes())?;
            let (old, _) = self.begin_epoch(new_head);
            self.finish_open_layer(&mut admin, &old, None)?;
        }
        // An in-doubt commit may reference the files about to be created.
        self.settle(&admin)?;
        self.rolling_back.store(true, Ordering::Relaxed);
        let layer = admin.next_epoch;
        let old_head = head_of(&self.current()).epoch;
        assert!(old_head < layer, "the layer is above the old head");
        let plan = Plan { old_head, layer, new_head: layer.next(), size_bytes: self.size_bytes() };
        drop(admin);
        Ok((plan, RollbackGuard(self)))
    }

    /// Creates the new layer and the new head, complete and synced.
    fn make_rollback(
        &self,
        plan: Plan,
        view: &SnapshotView,
        should_continue: &dyn Fn() -> bool,
    ) -> Result<(FrozenLayer, Head), VolumeError> {
        let mut set = LayerSet::default();
        for layer in self.current().layers().iter().filter(|layer| layer.epoch() > view.epoch()) {
            if let Layer::Frozen(layer) = layer {
                set.held.union_with(&layer.set.held);
            }
        }
        // Of a failed rollback with the same epochs.
        files::remove_if_exists(&files::sums_path(&self.dir, plan.layer))?;
        files::remove_if_exists(&files::damaged_path(&self.dir, plan.layer))?;
        let data = DataFiles::create(&files::data_path(&self.dir, plan.layer), plan.size_bytes)?.into();
        let mut copied = Copied::default();
        let copies = |_| should_continue();
        let progress = &self.rollback_progress;
        progress.begin(0, set.held.len_bytes());
        let mut copier = Copier::new(&copies, progress);
        // Blocks beyond the snapshot's end did not exist.
        let end = Extent::whole(view.size_bytes()).end();
        let beyond = BlockIndex(plan.size_bytes / BLOCK_SIZE_BYTES).max(end);
        set.zero = set.held.slice(Extent::between(end, beyond));
        let (held, zero) = (&set.held, &mut set.zero);
        // Zeroes that are left out in memory would be copied as data.
        let exact = view.stack.with_zeroes(&self.dir, self.id);
        for extent in held.extents_in(Extent::whole(view.size_bytes())) {
            exact.resolve(extent, &mut |part, source| {
                let Some(from) = source else {
                    zero.insert_extent(part);
                    progress.add(part.len_bytes());
                    return Ok(());
                };
                reserve::check_free("rollback", &self.dir)?;
                copied.note(from, part);
                let mut sound = BlockSet::from_iter([part]);
                sound.subtract(&from.damaged_blocks());
                for part in sound.extents() {
                    if !copier.copy(from, part, &data)? {
                        return Err(self.interrupted("stopped on request"));
                    }
                }
                Ok(())
            })?;
        }
        debug_assert!(set.is_consistent(), "zeroes are held");
        data.sync()?;
        set.held.optimize();
        set.zero.optimize();
        let identity = |epoch| SetIdentity::of(self.id, &LayerEntry::frozen(epoch, plan.size_bytes));
        set.store(&self.dir, identity(plan.layer))?;
        // No block was dirtied in the epoch of the old head.
        LayerSet::default().store(&self.dir, identity(plan.old_head))?;
        let head =
            Head::create(VolumeDir { size_bytes: plan.size_bytes, ..self.volume_dir() }, plan.new_head)?;
        files::sync_dir(&self.dir)?;
        let layer = FrozenLayer::new(&LayerEntry::frozen(plan.layer, plan.size_bytes), data, set);
        if !copied.take_sums(layer.sums(&self.dir, self.id), should_continue) {
            return Err(self.interrupted("stopped on request"));
        }
        let damaged = copied.damaged();
        if !damaged.is_empty() {
            layer.damage(&self.dir, self.id).update(|listed| *listed = damaged)?;
        }
        Ok((layer, head))
    }

    fn interrupted(&self, why: &str) -> VolumeError {
        VolumeError::Busy(format!(
            "rollback failed on volume {}: {why}; the volume is unchanged, try again",
            self.id
        ))
    }

    /// Commits the layer and the new head in place of the old head, unless that was written.
    fn commit_rollback(&self, plan: Plan, layer: FrozenLayer, head: Head) -> Result<(), VolumeError> {
        let mut admin = self.admin.lock();
        let mut current = self.stack.write();
        self.check_usable()?;
        let old_head = head_of(&current).clone();
        // No write enters while the stack is locked. The new layer would hide writes in the old head.
        let is_untouched = old_head.writers.are_done() && old_head.dirty_blocks() == 0;
        if old_head.epoch != plan.old_head || !is_untouched {
            return Err(self.interrupted("a write occurred"));
        }
        let top = [LayerEntry::head(plan.new_head, plan.size_bytes), layer.entry()];
        assert!(admin.next_epoch == plan.layer, "no epoch started during the rollback");
        let mut meta: Meta = admin.clone();
        meta.next_epoch = plan.new_head.next();
        meta.layers.retain(|layer| layer.epoch != plan.old_head);
        meta.layers.splice(0..0, top);
        meta.intervals.extend([plan.old_head, plan.layer]);
        meta.intervals.sort_unstable();
        if let Err(error) = self.commit(&mut admin, meta) {
            // The commit may be on disk. While it is in doubt, no write may be acknowledged: the next start
            // might find the old head hidden by the layer, or not at all.
            if let Err(settling) = self.settle(&admin) {
                self.fail(format!("commit of a rollback is in doubt: {error}; then {settling}"));
            }
            return Err(error);
        }
        let layers = current.layers().iter().filter(|layer| layer.epoch() != plan.old_head).cloned();
        let top = [Layer::Open(Arc::new(head)), Layer::Frozen(Arc::new(layer.with_bounded_memory()))];
        let new = Arc::new(Stack::new(top.into_iter().chain(layers).collect(), &current));
        let old = std::mem::replace(&mut *current, new);
        drop(current);
        drop(old);
        Ok(())
    }

    /// Removes the files of a failed rollback.
    fn remove_rollback(&self, plan: Plan) -> Result<(), VolumeError> {
        // No other layer uses these names: no epoch starts before the rollback ends.
        let _admin = self.admin.lock();
        Head::remove_files(VolumeDir { size_bytes: plan.size_bytes, ..self.volume_dir() }, plan.new_head)?;
        DataFiles::remove(&files::data_path(&self.dir, plan.layer), plan.size_bytes)?;
        files::remove_if_exists(&files::sums_path(&self.dir, plan.layer))?;
        for file in [plan.layer, plan.old_head] {
            files::remove_if_exists(&files::set_path(&self.dir, file, 0))?;
        }
        Ok(())
    }
}
