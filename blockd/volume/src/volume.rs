//! Open volume: its stack of layers and their locking.
//!
//! The data path holds only a read lock, for the few instructions that load the stack and enter the head's
//! writers. Every change of layers holds `admin`, writes `volume.meta`, and then replaces the stack.

use crate::{
    error::{VolumeError, check_range},
    head::discarded::DiscardedWrites,
    head::place::Place,
    head::{Head, SyncFailure},
    io::flusher::{Flusher, SharedFailure},
    layer::stack::{Layer, Stack},
    merge::copy::Shown,
    merge::note::Progress,
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
/// All methods may be called from any thread; those not named `try_…` may wait for the disk.
pub struct Volume {
    pub(crate) dir: PathBuf,
    pub(crate) id: VolumeId,
    /// Only grows, under the write lock of `stack`: a thread that has seen a size enters a head of that size.
    size_bytes: AtomicU64,
    /// Replaced, never changed. Writers enter the head under the read lock, so after the write lock was held
    /// no write enters the old head: this is the barrier of a freeze.
    pub(crate) stack: RwLock<Arc<Stack>>,
    pub(crate) admin: Mutex<Meta>,
    /// Held by a merge, or to exclude merges; taken before `admin`. Contains the progress of a stopped merge.
    pub(crate) merging: Mutex<Option<Progress>>,
    /// Number of operations waiting for a merge to pause.
    pub(crate) merge_makes_way: AtomicU64,
    pub(crate) merge_shown: Shown,
    pub(crate) rollback_shown: Shown,
    /// Last committed snapshots, readable without waiting for a freeze and its disk. Read the stack first:
    /// the layer of a snapshot exists as long as the snapshot is listed here.
    pub(crate) kept: RwLock<Vec<(SnapshotId, Epoch)>>,
    pub(crate) pins: Arc<Pins>,
    pub(crate) counters: Counters,
    pub(crate) discarded: Mutex<Option<DiscardedWrites>>,
    flusher: Flusher,
    /// A failed commit may have replaced `volume.meta`; accessed under `admin`.
    meta_in_doubt: AtomicBool,
    /// A rollback builds its layer: no new epoch may start. Accessed under `admin`.
    pub(crate) rolling_back: AtomicBool,
    closed: AtomicBool,
    /// The close was completed.
    closed_cleanly: AtomicBool,
    failed: OnceLock<String>,
}

/// Number of open views for each snapshot's epoch.
#[derive(Default)]
pub(crate) struct Pins(pub(crate) Mutex<HashMap<Epoch, usize>>);

impl Pins {
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
    /// Disk space of its layers that is not shared with other volumes, in bytes.
    pub allocated_bytes: u64,
    /// Disk space shared with clones or the source volume, in bytes.
    pub shared_bytes: u64,
    /// Approximate memory of its block sets, in bytes.
    pub tracking_bytes: u64,
    /// Reads since it was opened.
    pub reads: u64,
    /// Writes, trims and zeroings since it was opened.
    pub writes: u64,
    /// Flushes since it was opened, including FUA writes.
    pub flushes: u64,
    /// Bytes read since it was opened.
    pub bytes_read: u64,
    /// Bytes written since it was opened, without trimmed and zeroed ones.
    pub bytes_written: u64,
}

/// Remaining merges of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MergeStats {
    /// Number of layers to be merged into their neighbours, one after the other.
    pub layers: u64,
    /// Bytes copied by the running merge, including earlier processes.
    pub done_bytes: u64,
    /// Total bytes of the running merge; 0 without one.
    pub total_bytes: u64,
}

/// Write in progress: the freeze of its stack cannot finish before it ends.
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
        // The stack is built only by `open`, `freeze` and `merge`, which all put an open layer on top.
        _ => unreachable!("the topmost layer of a volume is its head"),
    }
}

fn kept(meta: &Meta) -> Vec<(SnapshotId, Epoch)> {
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
            kept: RwLock::new(kept(&meta)),
            merge_shown: Shown::default(),
            rollback_shown: Shown::default(),
            admin: Mutex::new(meta),
            merging: Mutex::new(None),
            merge_makes_way: AtomicU64::new(0),
            pins: Arc::default(),
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

    pub(crate) fn place(&self) -> Place<'_> {
        Place { dir: &self.dir, volume: self.id, size_bytes: self.size_bytes() }
    }

    /// Replaces the stack by one with a new head: the barrier. Returns the stall time.
    pub(crate) fn exchange(&self, new: Arc<Stack>) -> Duration {
        let size_bytes = head_of(&new).size_bytes;
        assert!(size_bytes >= self.size_bytes(), "a volume never shrinks");
        let asked = Instant::now();
        let old = {
            let mut current = self.stack.write();
            let old = std::mem::replace(&mut *current, new);
            self.size_bytes.store(size_bytes, Ordering::Release);
            old
        };
        let stall = asked.elapsed();
        drop(old);
        stall
    }

    pub(crate) fn current(&self) -> Arc<Stack> {
        self.stack.read().clone()
    }

    /// Starts a write: enters the head, so that its freeze waits for the end of the write.
    pub(crate) fn enter(&self) -> Result<StackGuard, VolumeError> {
        let stack = self.stack.read();
        // Under the lock, so that `close` can wait for earlier writes.
        self.check_usable()?;
        head_of(&stack).writers.enter();
        Ok(StackGuard(stack.clone()))
    }

    /// Returns the reason of a failed volume, which acknowledges nothing.
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
    /// After a failed sync the volume acknowledges nothing ([`VolumeError::Failed`]): the kernel drops pages
    /// that it could not write, so a later successful sync proves nothing. A full disk is not such a failure.
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

    /// Fails the volume: it acknowledges nothing until it is opened again.
    pub(crate) fn fail(&self, reason: String) {
        tracing::error!(volume = %self.id, reason, "the volume stops");
        let _ = self.failed.set(reason);
    }

    fn sync_once(&self) -> Result<(), VolumeError> {
        if let Some(reason) = self.failed.get() {
            return Err(VolumeError::Failed { volume: self.id, reason: reason.clone() });
        }
        let stack = self.current();
        // Bottom up, so that no block of a newer layer is durable before those of older layers.
        for layer in stack.layers().iter().rev() {
            if let Layer::Open(head) = layer {
                self.sync_head(head)?;
            }
        }
        Ok(())
    }

    /// Excludes merges; a running one pauses and continues later.
    pub(crate) fn keep_merges_out(&self) -> MutexGuard<'_, Option<Progress>> {
        self.merge_makes_way.fetch_add(1, Ordering::Relaxed);
        let alone = self.merging.lock();
        self.merge_makes_way.fetch_sub(1, Ordering::Relaxed);
        alone
    }

    pub(crate) fn sync_head(&self, head: &Head) -> Result<(), VolumeError> {
        self.stop_if_lost(head.sync())
    }

    /// Syncs the maps of open layers. Call it about once a minute: a map whose writeback failed is written
    /// again before the kernel drops its pages.
    ///
    /// # Errors
    /// A map cannot be written again. On a full disk the next call retries; after another error the volume
    /// acknowledges nothing.
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
                tracing::error!(volume = %self.id, %error, "a sync failed; the volume stops");
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
        *self.kept.write() = kept(&new);
        *admin = new;
        Ok(())
    }

    /// Ensures that `volume.meta` equals `admin`; call it before creating or changing files that a failed
    /// commit may name.
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

    /// Flushes and closes the volume; the next open finds all block sets exact without the map.
    ///
    /// # Errors
    /// The flush fails. The volume is closed anyway; another call retries the flush.
    pub fn close(&self) -> Result<(), VolumeError> {
        self.closed.store(true, Ordering::Release);
        // All writes have entered before; no further ones enter.
        drop(self.stack.write());
        // A running merge or freeze ends first; later ones are refused.
        let _no_merge = self.keep_merges_out();
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

    /// Disables or enables tracking until the next freeze, to measure its cost. Writes without tracking are
    /// lost.
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
        let (rollback_done_bytes, rollback_total_bytes) = self.rollback_shown.read();
        // One after the other: taking the read lock of `kept` recursively deadlocks with a waiting writer.
        let merge = self.merge_stats(&stack);
        let snapshots = self.kept.read().len() as u64;
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
