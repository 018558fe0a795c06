//! Freezing a volume: from one instant on, new writes go to a fresh head.
//!
//! The fresh head is made and committed to `volume.meta` before the instant, so that what is acknowledged
//! into it is found again whatever happens. The instant itself is the exchange of one pointer under a lock
//! that writers hold for a few instructions: nothing is copied, read or waited for. Writes that were under
//! way finish in the old head; when they have, it is synced, its sets are written down, and the snapshot is
//! committed.

use crate::{
    error::VolumeError,
    files,
    group::freeze_group,
    head::{Head, Place},
    layer_set::SetIdentity,
    meta::{LayerEntry, Meta, SnapshotEntry},
    stack::{FrozenLayer, Layer, Stack},
    storage::Bug,
    volume::{Volume, head_of},
};
use blockd_extent::{BLOCK_SIZE_BYTES, Epoch, SnapshotId};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// What a freeze did.
#[derive(Clone, Copy, Debug)]
pub struct Frozen {
    /// The epoch that ended: everything written in it and before is in the snapshot.
    pub epoch: Epoch,
    /// How long writers could not enter: from the moment the barrier was asked for until it was released.
    pub stall: Duration,
    /// How many blocks were dirtied in that epoch.
    pub dirty_blocks: u64,
}

/// A snapshot of a volume.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SnapshotInfo {
    /// Its id.
    pub id: SnapshotId,
    /// The last epoch whose writes are in it.
    pub epoch: Epoch,
    /// When it was made, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// The size that the volume had then, in bytes.
    pub size_bytes: u64,
    /// How long its freeze kept writers waiting.
    pub stall: Duration,
    /// Data that its own layer holds, in bytes: what the snapshot costs as long as nothing is merged into it.
    pub layer_bytes: u64,
}

impl Volume {
    /// Makes a snapshot: a point that never changes, durable when the call returns.
    ///
    /// # Errors
    /// If the volume is closed or has failed, the id is taken, or the disk is full or fails. There is no
    /// snapshot then, and the volume goes on with nothing lost and no dirty block forgotten.
    pub fn freeze(&self, snapshot: SnapshotId) -> Result<Frozen, VolumeError> {
        // A group of one.
        let frozen = freeze_group(&[(self, snapshot)]).map_err(|error| error.source)?;
        let unheard_of = || VolumeError::Busy(format!("volume {} was not frozen: try again", self.id));
        frozen.members.first().copied().ok_or_else(unheard_of)
    }

    /// Lets writes go to a new head; the old one, and how long writers could not enter. The caller holds
    /// `admin`.
    pub(crate) fn begin_epoch(&self, new_head: Arc<Head>) -> (Arc<Head>, Duration) {
        // Only holders of `admin` replace the stack, so it can be built before the barrier.
        let old = self.current();
        let stall = self.exchange(Arc::new(old.below(new_head)));
        (head_of(&old).clone(), stall)
    }

    /// Makes the next head, of this size, and commits that it is there. An empty head on top changes nothing
    /// that anybody reads.
    pub(crate) fn prepare_head(&self, admin: &mut Meta, size_bytes: u64) -> Result<Arc<Head>, VolumeError> {
        if self.rolling_back.load(Ordering::Relaxed) {
            let what = format!("volume {} is being rolled back to a snapshot: try again later", self.id);
            return Err(VolumeError::Busy(what));
        }
        // The commit of an attempt before may stand, and names the files that are made here.
        self.settle(admin)?;
        let epoch = admin.next_epoch;
        let place = Place { size_bytes, ..self.place() };
        let made = Head::create(place, epoch).and_then(|head| {
            files::sync_dir(&self.dir)?;
            let mut meta = admin.clone();
            meta.next_epoch = epoch.next();
            meta.size_bytes = size_bytes;
            meta.layers.insert(
                0,
                LayerEntry { epoch, file: epoch, generation: 0, open: true, lazy: false, size_bytes },
            );
            match head.data.has(Bug::HeadNotCommitted) {
                true => *admin = meta,
                false => self.commit(admin, meta)?,
            }
            Ok(Arc::new(head))
        });
        // The failed commit may have reached the disk all the same: its files go only once the old one
        // stands.
        if made.is_err() && self.settle(admin).is_ok() {
            let _ = Head::remove_files(place, epoch);
        }
        made
    }

    /// Freezes those layers that a failed or interrupted freeze left open below the head.
    pub(crate) fn finish_open_layers(&self, admin: &mut Meta) -> Result<(), VolumeError> {
        let stack = self.current();
        for layer in stack.layers()[1..].iter().rev() {
            if let Layer::Open(head) = layer {
                self.finish_open_layer(admin, head, None)?;
            }
        }
        Ok(())
    }

    /// Turns an old head into a frozen layer once its last write is done, and commits that, with the snapshot
    /// that it is made for if any; says how many blocks were dirtied in its epoch.
    pub(crate) fn finish_open_layer(
        &self,
        admin: &mut Meta,
        head: &Arc<Head>,
        snapshot: Option<SnapshotEntry>,
    ) -> Result<u64, VolumeError> {
        head.writers.wait_until_done();
        if !head.data.has(Bug::FreezeWithoutSync) {
            self.sync_head(head)?;
        }
        let set = head.final_set();
        let dirty_blocks = set.held.len_blocks();
        let identity = SetIdentity {
            volume: self.id,
            file: head.epoch,
            generation: 0,
            blocks: head.size_bytes / BLOCK_SIZE_BYTES,
        };
        set.store(&self.dir, identity)?;
        let mut meta = admin.clone();
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
        };
        let frozen = Layer::Frozen(Arc::new(frozen));
        self.replace_layers(|layer| match layer.epoch() == head.epoch {
            true => Some(frozen.clone()),
            false => Some(layer.clone()),
        });
        Head::remove_tracking_files(&self.dir, head.epoch).unwrap_or_else(|error| {
            tracing::warn!(volume = %self.id, %error, "files of an old head stay until the next start");
        });
        Ok(dirty_blocks)
    }

    /// Puts a stack in place whose layers are what `change` makes of the present ones. The caller holds
    /// `admin`.
    pub(crate) fn replace_layers(&self, change: impl FnMut(&Layer) -> Option<Layer>) {
        let old = self.current();
        let layers = old.layers().iter().filter_map(change).collect();
        let new = Arc::new(Stack::new(layers, &old));
        let old = std::mem::replace(&mut *self.stack.write(), new);
        drop(old);
    }

    /// The snapshots, oldest first.
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        let admin = self.admin.lock();
        let stack = self.current();
        let layer_of = |epoch| {
            stack.layers().iter().find_map(|layer| match layer {
                Layer::Frozen(layer) if layer.epoch == epoch => Some(layer),
                _ => None,
            })
        };
        let mut all: Vec<_> = admin
            .snapshots
            .iter()
            .map(|entry| SnapshotInfo {
                id: entry.id,
                epoch: entry.epoch,
                created_unix_ms: entry.created_unix_ms,
                stall: Duration::from_nanos(entry.stall_ns),
                size_bytes: layer_of(entry.epoch).map_or(0, |layer| layer.size_bytes),
                layer_bytes: layer_of(entry.epoch).map_or(0, |layer| layer.set.data().len_bytes()),
            })
            .collect();
        all.sort_unstable_by_key(|snapshot| snapshot.epoch);
        all
    }

    /// Forgets a snapshot, durably. Its layer stays until [`merge_next`](Self::merge_next) has merged it.
    ///
    /// # Errors
    /// If there is no such snapshot, somebody reads it, or the disk fails.
    pub fn delete_snapshot(&self, snapshot: SnapshotId) -> Result<(), VolumeError> {
        let mut admin = self.admin.lock();
        self.check_usable()?;
        let entry = self.find_snapshot(&admin, snapshot)?;
        if self.pins.are_on(entry.epoch) {
            return Err(VolumeError::Busy(format!(
                "snapshot {snapshot} of volume {} is being read",
                self.id
            )));
        }
        self.forget_snapshot(&mut admin, snapshot)
    }

    /// Commits that a snapshot is no more.
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
