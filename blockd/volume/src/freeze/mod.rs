//! Freeze of a volume: writes after one point in time go to a new head.
//!
//! The new head is created and committed to `volume.meta` before the barrier, so recovery finds acknowledged
//! writes in it after any crash. The barrier exchanges one pointer under a lock that writers hold for a few
//! instructions; it does no I/O. It does not wait for writes in progress, whose I/O would stall all new
//! writes: they are unanswered, so they may belong to the snapshot, and they finish in the old head. Then the
//! old head is synced, its block sets are written, and the snapshot is committed.

pub(crate) mod group;
pub(crate) mod intervals;

use crate::{
    error::VolumeError,
    freeze::group::freeze_group,
    head::Head,
    head::volume_dir::VolumeDir,
    io::files,
    layer::set::SetIdentity,
    layer::stack::{FrozenLayer, Layer, Stack},
    meta::{LayerEntry, Meta, SnapshotEntry},
    volume::{Volume, head_of},
};
use blockd_extent::{Epoch, SnapshotId};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// Result of a freeze.
#[derive(Clone, Copy, Debug)]
pub struct Frozen {
    /// Epoch that ended; the snapshot contains its writes and all earlier ones.
    pub epoch: Epoch,
    /// Stall time of writers: from the lock request of the barrier to its release.
    pub stall: Duration,
    /// Blocks dirtied in that epoch.
    pub dirty_blocks: u64,
}

/// Snapshot of a volume.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SnapshotInfo {
    /// Id.
    pub id: SnapshotId,
    /// Last epoch of the snapshot.
    pub epoch: Epoch,
    /// Creation time, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Size of the volume at that time, in bytes.
    pub size_bytes: u64,
    /// Stall time of its freeze.
    pub stall: Duration,
    /// Data of its own layer, in bytes.
    pub layer_bytes: u64,
}

impl SnapshotInfo {
    /// Returns the snapshots of a volume with these frozen layers, oldest first.
    pub(crate) fn list<'a>(
        meta: &Meta,
        layers: &(impl Iterator<Item = &'a Arc<FrozenLayer>> + Clone),
    ) -> Vec<Self> {
        let mut all: Vec<_> = meta
            .snapshots
            .iter()
            .map(|entry| {
                let layer = layers.clone().find(|layer| layer.epoch == entry.epoch);
                Self {
                    id: entry.id,
                    epoch: entry.epoch,
                    created_unix_ms: entry.created_unix_ms,
                    stall: Duration::from_nanos(entry.stall_ns),
                    size_bytes: layer.map_or(0, |layer| layer.size_bytes),
                    layer_bytes: layer.map_or(0, |layer| layer.set.data().len_bytes()),
                }
            })
            .collect();
        all.sort_unstable_by_key(|snapshot| snapshot.epoch);
        all
    }
}

impl Volume {
    /// Takes a snapshot; durable when the call returns.
    ///
    /// # Errors
    /// The volume is closed or has failed, the id exists, or the disk is full or fails. Then there is no
    /// snapshot, and the volume continues without lost writes or dirty blocks.
    pub fn freeze(&self, snapshot: SnapshotId) -> Result<Frozen, VolumeError> {
        let frozen = freeze_group(&[(self, snapshot)]).map_err(|error| error.source)?;
        Ok(frozen.members[0])
    }

    /// Redirects writes to a new head, for growth and rollback; returns the old one and the stall time. The
    /// caller holds `admin`.
    pub(crate) fn begin_epoch(&self, new_head: Arc<Head>) -> (Arc<Head>, Duration) {
        // Only holders of `admin` replace the stack, so it can be built before the barrier.
        let old = self.current();
        assert!(new_head.epoch > head_of(&old).epoch, "epochs ascend");
        assert!(new_head.size_bytes >= head_of(&old).size_bytes, "a volume never shrinks");
        debug_assert!(new_head.dirty_blocks() == 0, "a new head is empty");
        let stall = self.exchange(Arc::new(old.below(new_head)));
        (head_of(&old).clone(), stall)
    }

    /// Creates and commits the next head of this size. Reads do not change: the head is empty.
    pub(crate) fn prepare_head(&self, admin: &mut Meta, size_bytes: u64) -> Result<Arc<Head>, VolumeError> {
        if self.rolling_back.load(Ordering::Relaxed) {
            let message = format!("rollback in progress on volume {}: try again later", self.id);
            return Err(VolumeError::Busy(message));
        }
        // An in-doubt commit may reference the files created here.
        self.settle(admin)?;
        let epoch = admin.next_epoch;
        assert!(admin.layers.iter().all(|layer| layer.epoch < epoch), "an epoch is used once");
        let volume_dir = VolumeDir { size_bytes, ..self.volume_dir() };
        let made = Head::create(volume_dir, epoch).and_then(|head| {
            files::sync_dir(&self.dir)?;
            let mut meta = admin.clone();
            meta.next_epoch = epoch.next();
            meta.size_bytes = size_bytes;
            meta.layers.insert(0, LayerEntry::head(epoch, size_bytes));
            self.commit(admin, meta)?;
            Ok(Arc::new(head))
        });
        // The failed commit may be on disk: remove its files only once the previous one is restored.
        if made.is_err() && self.settle(admin).is_ok() {
            let _ = Head::remove_files(volume_dir, epoch);
        }
        made
    }

    /// Freezes open layers below the head, left by a failed or interrupted freeze.
    pub(crate) fn finish_open_layers(&self, admin: &mut Meta) -> Result<(), VolumeError> {
        let stack = self.current();
        for layer in stack.layers()[1..].iter().rev() {
            if let Layer::Open(head) = layer {
                self.finish_open_layer(admin, head, None)?;
            }
        }
        Ok(())
    }

    /// Freezes an old head after its last write and commits the layer, with its snapshot if any. Returns the
    /// number of blocks dirtied in its epoch.
    pub(crate) fn finish_open_layer(
        &self,
        admin: &mut Meta,
        head: &Arc<Head>,
        snapshot: Option<SnapshotEntry>,
    ) -> Result<u64, VolumeError> {
        head.writers.wait_until_done();
        self.sync_head(head)?;
        let set = head.final_set();
        let dirty_blocks = set.held.len_blocks();
        let entry = LayerEntry::frozen(head.epoch, head.size_bytes);
        set.store(&self.dir, SetIdentity::of(self.id, &entry))?;
        let mut meta = admin.clone();
        debug_assert!(meta.layers.iter().any(|layer| layer.file == head.epoch), "the head is committed");
        for layer in &mut meta.layers {
            if layer.file == head.epoch {
                layer.open = false;
            }
        }
        meta.intervals.push(head.epoch);
        meta.intervals.sort_unstable();
        meta.snapshots.extend(snapshot);
        self.commit(admin, meta)?;

        let frozen = FrozenLayer {
            epoch: head.epoch,
            file: head.epoch,
            generation: 0,
            size_bytes: head.size_bytes,
            data: head.data.clone(),
            set,
            has_all_zeroes: true,
        };
        debug_assert!(frozen.set.held.len_blocks() == head.dirty_blocks(), "a frozen head is not written");
        let frozen = Layer::Frozen(Arc::new(frozen.with_bounded_memory()));
        self.replace_layers(|layer| match layer.epoch() == head.epoch {
            true => Some(frozen.clone()),
            false => Some(layer.clone()),
        });
        Head::remove_tracking_files(&self.dir, head.epoch).unwrap_or_else(|error| {
            tracing::warn!(volume = %self.id, %error, "removal failed on the map and log of an old head: left to the next start");
        });
        Ok(dirty_blocks)
    }

    /// Replaces or removes (`None`) each layer of the stack by `change`. The caller holds `admin`.
    pub(crate) fn replace_layers(&self, change: impl FnMut(&Layer) -> Option<Layer>) {
        let old = self.current();
        let layers = old.layers().iter().filter_map(change).collect();
        let new = Arc::new(Stack::new(layers, &old));
        let old = std::mem::replace(&mut *self.stack.write(), new);
        drop(old);
    }

    /// Returns the snapshots, oldest first.
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        let admin = self.admin.lock();
        let stack = self.current();
        let frozen = stack.layers().iter().filter_map(|layer| match layer {
            Layer::Frozen(layer) => Some(layer),
            Layer::Open(_) => None,
        });
        SnapshotInfo::list(&admin, &frozen)
    }

    /// Deletes a snapshot, durably. Its layer stays until [`merge_next`](Self::merge_next) has merged it.
    ///
    /// # Errors
    /// The snapshot does not exist or is open for reading, or the disk fails.
    pub fn delete_snapshot(&self, snapshot: SnapshotId) -> Result<(), VolumeError> {
        let mut admin = self.admin.lock();
        self.check_usable()?;
        let entry = self.find_snapshot(&admin, snapshot)?;
        if self.open_views.are_on(entry.epoch) {
            return Err(VolumeError::Busy(format!(
                "delete failed on snapshot {snapshot} of volume {}: it is open for reading",
                self.id
            )));
        }
        self.forget_snapshot(&mut admin, snapshot)
    }

    /// Commits the deletion of a snapshot.
    pub(crate) fn forget_snapshot(&self, admin: &mut Meta, snapshot: SnapshotId) -> Result<(), VolumeError> {
        let mut meta = admin.clone();
        meta.snapshots.retain(|entry| entry.id != snapshot);
        self.commit(admin, meta)?;
        Ok(())
    }

    pub(crate) fn find_snapshot(
        &self,
        admin: &Meta,
        snapshot: SnapshotId,
    ) -> Result<SnapshotEntry, VolumeError> {
        let found = admin.snapshots.iter().find(|entry| entry.id == snapshot);
        found.copied().ok_or(VolumeError::NoSuchSnapshot { volume: self.id, snapshot })
    }
}
