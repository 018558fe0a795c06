//! Open volume: stack of layers and locking.
//!
//! The data path holds only a read lock, for the few instructions that load the stack and register a write in
//! the head. Every change of layers holds `admin`, commits `volume.meta`, and then replaces the stack. The
//! commit of a [rollback](crate::rollback) also holds the write lock, so that no write enters meanwhile.

use crate::{
    error::{VolumeError, check_range},
    head::discarded::DiscardedWrites,
    head::volume_dir::VolumeDir,
    head::{Head, SyncFailure},
    io::flusher::{Flusher, SharedFailure},
    layer::stack::{Layer, Stack},
    merge::copy::CopyProgress,
    merge::note::MergeNote,
    meta::Meta,
};
use blockd_extent::{BLOCK_SIZE_BYTES, Epoch, SnapshotId, VolumeId};
use parking_lot::{Mutex, MutexGuard, RwLock};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Volume open for reading and writing.
///
/// Methods may be called from any thread. `try_…` methods never sync or fetch, and read from the page cache
/// only; a write to the page cache may wait for the disk. Other methods wait.
pub struct Volume {
    pub(crate) dir: PathBuf,
    pub(crate) id: VolumeId,
    /// Only grows, under the write lock of `stack`, so that a thread that has read a size enters a head of at
    /// least that size.
    size_bytes: AtomicU64,
    /// Immutable stack, replaced on changes. Writers enter the head under the read lock, so no write enters
    /// the old head after the write lock was held: the barrier of a freeze.
    pub(crate) stack: RwLock<Arc<Stack>>,
    /// Committed metadata; the lock serializes all changes of layers and snapshots.
    pub(crate) admin: Mutex<Meta>,
    /// Held by a merge, or to exclude merges; taken before `admin`. Contains the progress of a stopped merge.
    pub(crate) merging: Mutex<Option<MergeNote>>,
    /// Number of operations waiting for a merge to pause.
    pub(crate) merge_pause_requests: AtomicU64,
    pub(crate) merge_progress: CopyProgress,
    pub(crate) rollback_progress: CopyProgress,
    /// Committed snapshots, readable while a freeze holds `admin` and waits for the disk. Read the stack
    /// first: while a snapshot is listed here, the stack has its layer.
    pub(crate) committed_snapshots: RwLock<Vec<(SnapshotId, Epoch)>>,
    pub(crate) open_views: Arc<OpenViews>,
    pub(crate) counters: Counters,
    pub(crate) discarded: Mutex<Option<DiscardedWrites>>,
    flusher: Flusher,
    /// True if a failed commit may have replaced `volume.meta`. Written under `admin`.
    meta_in_doubt: AtomicBool,
    /// True during a rollback: no new epoch may start. Accessed under `admin`.
    pub(crate) rolling_back: AtomicBool,
    closed: AtomicBool,
    /// True after a completed close.
    closed_cleanly: AtomicBool,
    /// Cause, once the volume has failed.
    failed: OnceLock<String>,
}

/// Number of open views for each snapshot's epoch.
#[derive(Default)]
pub(crate) struct OpenViews(pub(crate) Mutex<HashMap<Epoch, usize>>);

impl OpenViews {
    pub(crate) fn are_on(&self, epoch: Epoch) -> bool {
        self.0.lock().contains_key(&epoch)
    }
}

/// I/O counters of a volume since it was opened.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) reads: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) bytes_read: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
}

/// Statistics of a volume.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct VolumeStats {
    /// Size, in bytes.
    pub size_bytes: u64,
    /// Bytes dirtied since the last freeze or growth, in whole blocks.
    pub head_dirty_bytes: u64,
    /// Number of layers, including the head.
    pub layers: u64,
    /// Number of snapshots.
    pub snapshots: u64,
    /// Remaining merges.
    pub merge: MergeStats,
    /// Restored bytes of a running rollback.
    pub rollback_done_bytes: u64,
    /// Total bytes of a running rollback; 0 without one.
    pub rollback_total_bytes: u64,
    /// Disk space of the layers that is not shared with other volumes, in bytes.
    pub allocated_bytes: u64,
    /// Disk space shared with clones or the source volume, in bytes.
    pub shared_bytes: u64,
    /// Approximate memory of the block sets, in bytes.
    pub tracking_bytes: u64,
    /// Reads since the volume was opened.
    pub reads: u64,
    /// Writes, trims and zeroings since the volume was opened.
    pub writes: u64,
    /// Flushes since the volume was opened, including FUA writes.
    pub flushes: u64,
    /// Bytes read since the volume was opened.
    pub bytes_read: u64,
    /// Bytes written since the volume was opened, without trimmed and zeroed ones.
    pub bytes_written: u64,
}

/// Remaining merges of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MergeStats {
    /// Number of remaining merges of two adjacent layers.
    pub layers: u64,
    /// Bytes copied by the running merge, including by earlier processes.
    pub done_bytes: u64,
    /// Total bytes of the running merge; 0 without one.
    pub total_bytes: u64,
}

/// Guard of a write in progress, with its stack. The freeze of the head waits until it is dropped.
pub(crate) struct StackGuard(Arc<Stack>);

impl StackGuard {
    pub(crate) fn stack(&self) -> &Arc<Stack> {
        &self.0
    }

    pub(crate) fn head(&self) -> &Arc<Head> {
        head_of(&self.0)
    }
}

impl Drop for StackGuard {
    fn drop(&mut self) {
        self.head().writers.leave();
    }
}

/// Returns the head of a volume's stack.
pub(crate) fn head_of(stack: &Stack) -> &Arc<Head> {
    match stack.layers().first() {
        Some(Layer::Open(head)) => head,
        // Every stack of a volume is built with an open layer on top.
        _ => unreachable!("the topmost layer of a volume is its head"),
    }
}

fn snapshot_points(meta: &Meta) -> Vec<(SnapshotId, Epoch)> {
    meta.snapshots.iter().map(|snapshot| (snapshot.id, snapshot.epoch)).collect()
}

impl Volume {
    pub(crate) fn assemble(dir: PathBuf, meta: Meta, stack: Stack) -> Arc<Self> {
        assert!(head_of(&stack).size_bytes == meta.size_bytes, "the head has the size of the volume");
        assert!(stack.layers().len() == meta.layers.len(), "each committed layer is in the stack");
        Arc::new(Self {
            dir,
            id: meta.volume,
            size_bytes: AtomicU64::new(meta.size_bytes),
            stack: RwLock::new(Arc::new(stack)),
            committed_snapshots: RwLock::new(snapshot_points(&meta)),
            merge_progress: CopyProgress::default(),
            rollback_progress: CopyProgress::default(),
            admin: Mutex::new(meta),
            merging: Mutex::new(None),
            merge_pause_requests: AtomicU64::new(0),
            open_views: Arc::default(),
            counters: Counters::default(),
            discarded: Mutex::new(None),
            flusher: Flusher::default(),
            meta_in_doubt: AtomicBool::new(false),
            rolling_back: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            closed_cleanly: AtomicBool::new(false),
            failed: OnceLock::new(),
        })
    }

    /// Returns the volume's id.
    pub fn id(&self) -> VolumeId {
        self.id
    }

    /// Returns the size, in bytes. It may [grow](Self::grow), never shrink.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    /// Returns the directory of the volume's files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn volume_dir(&self) -> VolumeDir<'_> {
        VolumeDir { path: &self.dir, volume: self.id, size_bytes: self.size_bytes() }
    }

    /// Replaces the stack for growth and rollback; snapshots use `freeze/group.rs`. Returns the stall time.
    pub(crate) fn exchange(&self, new: Arc<Stack>) -> Duration {
        let size_bytes = head_of(&new).size_bytes;
        assert!(size_bytes >= self.size_bytes(), "a volume never shrinks");
        let requested_at = Instant::now();
        let old = {
            let mut current = self.stack.write();
            let old = std::mem::replace(&mut *current, new);
            self.size_bytes.store(size_bytes, Ordering::Release);
            old
        };
        let stall = requested_at.elapsed();
        drop(old);
        stall
    }

    pub(crate) fn current(&self) -> Arc<Stack> {
        self.stack.read().clone()
    }

    /// Registers a write in the head, so that its freeze waits for the write.
    pub(crate) fn enter(&self) -> Result<StackGuard, VolumeError> {
        let stack = self.stack.read();
        // Under the lock, so that `close` waits for all writes that passed this check.
        self.check_usable()?;
        head_of(&stack).writers.enter();
        Ok(StackGuard(stack.clone()))
    }

    /// Returns the cause if the volume has failed.
    pub fn failure(&self) -> Option<&str> {
        self.failed.get().map(String::as_str)
    }

    /// Returns an error if the volume is closed or has failed.
    pub(crate) fn check_usable(&self) -> Result<(), VolumeError> {
        if let Some(reason) = self.failed.get() {
            return Err(VolumeError::Failed { volume: self.id, reason: reason.clone() });
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(VolumeError::Closed(self.id));
        }
        Ok(())
    }

    /// Returns an error for a range that is not inside the volume.
    pub(crate) fn check_range(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), VolumeError> {
        check_range(offset_bytes, len_bytes, self.size_bytes())
    }

    /// Makes every write, trim and zeroing acknowledged before the call durable.
    ///
    /// # Errors
    /// After a failed sync the volume refuses all requests ([`VolumeError::Failed`]): the kernel drops
    /// pages that it could not write, so a later successful sync would not prove durability. A full disk is
    /// not such a failure if only the log could not grow.
    pub fn flush(&self) -> Result<(), VolumeError> {
        self.check_usable()?;
        self.counters.flushes.fetch_add(1, Ordering::Relaxed);
        self.sync_open_layers()
    }

    pub(crate) fn sync_open_layers(&self) -> Result<(), VolumeError> {
        match self.flusher.flush(|| self.sync_once()) {
            Ok(own) => own,
            Err(SharedFailure) => {
                self.check_usable()?;
                Err(self.no_space("sync"))
            }
        }
    }

    /// Marks the volume as failed: it refuses all requests until it is opened again.
    pub(crate) fn fail(&self, reason: String) {
        tracing::error!(volume = %self.id, reason, "volume stopped");
        let _ = self.failed.set(reason);
    }

    fn sync_once(&self) -> Result<(), VolumeError> {
        if let Some(reason) = self.failed.get() {
            return Err(VolumeError::Failed { volume: self.id, reason: reason.clone() });
        }
        let stack = self.current();
        // Bottom up, so that no block of a newer layer is logged before those of older layers.
        for layer in stack.layers().iter().rev() {
            if let Layer::Open(head) = layer {
                self.sync_head(head)?;
            }
        }
        Ok(())
    }

    /// Excludes merges; a running one pauses and continues later.
    pub(crate) fn pause_merges(&self) -> MutexGuard<'_, Option<MergeNote>> {
        self.merge_pause_requests.fetch_add(1, Ordering::Relaxed);
        let guard = self.merging.lock();
        self.merge_pause_requests.fetch_sub(1, Ordering::Relaxed);
        guard
    }

    pub(crate) fn sync_head(&self, head: &Head) -> Result<(), VolumeError> {
        self.stop_if_lost(head.sync())
    }

    /// Syncs the live maps of open layers. Call it about once a minute: a map whose writeback failed is then
    /// rewritten before the kernel drops its pages.
    ///
    /// # Errors
    /// A map cannot be rewritten. On a full disk the next call retries; after any other error the volume
    /// refuses all requests.
    pub fn sync_maps(&self) -> Result<(), VolumeError> {
        self.check_usable()?;
        for layer in self.current().layers() {
            if let Layer::Open(head) = layer {
                self.stop_if_lost(head.sync_map())?;
            }
        }
        Ok(())
    }

    fn stop_if_lost(&self, synced: Result<(), SyncFailure>) -> Result<(), VolumeError> {
        match synced {
            Ok(()) => Ok(()),
            Err(SyncFailure::Refused(error)) => Err(error),
            Err(SyncFailure::Lost(error)) => {
                tracing::error!(volume = %self.id, %error, "sync failed: volume stopped");
                let _ = self.failed.set(error.to_string());
                Err(error)
            }
        }
    }

    /// Commits `new` to `volume.meta`.
    pub(crate) fn commit(&self, admin: &mut Meta, new: Meta) -> Result<(), VolumeError> {
        assert!(new.volume == self.id, "a commit of another volume");
        assert!(new.size_bytes >= admin.size_bytes, "a volume never shrinks");
        self.meta_in_doubt.store(true, Ordering::Relaxed);
        new.store(&self.dir)?;
        self.meta_in_doubt.store(false, Ordering::Relaxed);
        *self.committed_snapshots.write() = snapshot_points(&new);
        *admin = new;
        Ok(())
    }

    /// Ensures that `volume.meta` equals `admin`. Call it before creating or changing files that an in-doubt
    /// commit may reference.
    pub(crate) fn settle(&self, admin: &Meta) -> Result<(), VolumeError> {
        if self.meta_in_doubt.load(Ordering::Relaxed) {
            admin.store(&self.dir)?;
            self.meta_in_doubt.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Returns true if `volume.meta` may differ from `admin`.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.meta_in_doubt.load(Ordering::Relaxed)
    }

    /// Flushes and closes the volume. The next open needs no map: the log has all blocks.
    ///
    /// # Errors
    /// The flush fails. The volume is closed anyway; another call retries the flush.
    pub fn close(&self) -> Result<(), VolumeError> {
        self.closed.store(true, Ordering::Release);
        // Waits for writes that are entering; no further ones can enter.
        drop(self.stack.write());
        // A running merge or freeze ends first; later ones are refused.
        let _no_merge = self.pause_merges();
        let _no_freeze = self.admin.lock();
        if self.closed_cleanly.load(Ordering::Relaxed) {
            return Ok(());
        }
        let stack = self.current();
        let hydrated = stack.lazy().map_or(Ok(()), |base| base.close());
        for layer in stack.layers() {
            if let Layer::Open(head) = layer {
                head.writers.wait_until_done();
            }
        }
        if let Some(reason) = self.failed.get() {
            return Err(VolumeError::Failed { volume: self.id, reason: reason.clone() });
        }
        self.sync_open_layers()?;
        hydrated?;
        for layer in stack.layers() {
            if let Layer::Open(head) = layer {
                head.mark_clean()?;
            }
        }
        self.closed_cleanly.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Disables or enables tracking until the next freeze, to measure its cost. Untracked writes are lost.
    #[cfg(feature = "untracked")]
    pub fn set_tracking(&self, tracked: bool) {
        head_of(&self.current()).untracked.store(!tracked, Ordering::Relaxed);
    }

    /// Returns statistics of the volume.
    pub fn stats(&self) -> VolumeStats {
        let stack = self.current();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let tracking = |layer: &Layer| match layer {
            Layer::Open(head) => head.tracking_bytes(),
            Layer::Frozen(layer) => {
                layer.set.held.heap_bytes_estimate() + layer.set.zero.heap_bytes_estimate()
            }
        };
        let (mut allocated_bytes, mut shared_bytes) = (0, 0);
        for layer in stack.layers() {
            let data = layer.data();
            let is_shared = data.are_shared().unwrap_or(false);
            *(if is_shared { &mut shared_bytes } else { &mut allocated_bytes }) += data.allocated_bytes();
        }
        let (rollback_done_bytes, rollback_total_bytes) = self.rollback_progress.read();
        // One after the other: taking the read lock of `committed_snapshots` recursively deadlocks with a
        // waiting writer.
        let merge = self.merge_stats(&stack);
        let snapshots = self.committed_snapshots.read().len() as u64;
        VolumeStats {
            size_bytes: self.size_bytes(),
            head_dirty_bytes: head_of(&stack).dirty_blocks() * BLOCK_SIZE_BYTES,
            layers: stack.layers().len() as u64,
            snapshots,
            merge,
            rollback_done_bytes,
            rollback_total_bytes,
            allocated_bytes,
            shared_bytes,
            tracking_bytes: stack.layers().iter().map(tracking).sum::<u64>() + stack.cover_bytes(),
            reads: count(&self.counters.reads),
            writes: count(&self.counters.writes),
            flushes: count(&self.counters.flushes),
            bytes_read: count(&self.counters.bytes_read),
            bytes_written: count(&self.counters.bytes_written),
        }
    }
}

#[cfg(test)]
mod tests;
