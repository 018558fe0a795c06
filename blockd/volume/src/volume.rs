//! An open volume: its stack of layers, and who may change it.
//!
//! The data path holds no lock but a read lock for the few instructions in which it picks the stack and
//! enters the head's writers. Everything that changes which layers there are holds `admin`, writes
//! `volume.meta`, and then puts a new stack in the place of the old one.

use crate::{
    copy::Shown,
    discarded::DiscardedWrites,
    error::VolumeError,
    flusher::{Flusher, SharedFailure},
    head::{Head, Place, SyncFailure},
    merge::MergeStats,
    merge_note::Progress,
    meta::Meta,
    stack::{Layer, Stack},
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

/// A volume that is open for reading and writing.
///
/// All methods may be called from any thread; those that are not named `try_…` may wait for the disk.
pub struct Volume {
    pub(crate) dir: PathBuf,
    pub(crate) id: VolumeId,
    /// Only ever grows, and only under the write lock of `stack`: whoever has seen a size enters a head that
    /// has it.
    size_bytes: AtomicU64,
    /// Replaced, never changed. Entering the head's writers happens under the read lock, so that after the
    /// write lock was held nobody enters the old head any more: that is the whole barrier of a freeze.
    pub(crate) stack: RwLock<Arc<Stack>>,
    pub(crate) admin: Mutex<Meta>,
    /// One merge at a time, or what excludes merges; taken before `admin`. How far a merge has come that was
    /// stopped.
    pub(crate) merging: Mutex<Option<Progress>>,
    /// How many wait for a merge to make way.
    pub(crate) merge_makes_way: AtomicU64,
    pub(crate) merge_shown: Shown,
    pub(crate) rollback_shown: Shown,
    /// The snapshots as they were committed last, for those who may not wait for a freeze and its disk.
    /// Whoever looks at the stack too looks at that first: a layer below which a snapshot ends is there as
    /// long as the snapshot is here.
    pub(crate) kept: RwLock<Vec<(SnapshotId, Epoch)>>,
    pub(crate) pins: Arc<Pins>,
    pub(crate) counters: Counters,
    pub(crate) discarded: Mutex<Option<DiscardedWrites>>,
    flusher: Flusher,
    /// A commit failed that may have replaced `volume.meta` all the same; changed and asked under `admin`.
    meta_in_doubt: AtomicBool,
    /// A rollback builds its layer: no new epoch may begin meanwhile. Changed and asked under `admin`.
    pub(crate) rolling_back: AtomicBool,
    closed: AtomicBool,
    /// Closing got to its end.
    closed_cleanly: AtomicBool,
    failed: OnceLock<String>,
}

/// How many views are open on each snapshot's epoch.
#[derive(Default)]
pub(crate) struct Pins(pub(crate) Mutex<HashMap<Epoch, usize>>);

impl Pins {
    pub(crate) fn are_on(&self, epoch: Epoch) -> bool {
        self.0.lock().contains_key(&epoch)
    }
}

/// What was done with a volume since it was opened.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) reads: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) bytes_read: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
}

/// The state of a volume in numbers.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct VolumeStats {
    /// Its size, in bytes.
    pub size_bytes: u64,
    /// What was dirtied since the last freeze or growth, in bytes of whole blocks.
    pub head_dirty_bytes: u64,
    /// How many layers it has, the head included.
    pub layers: u64,
    /// How many snapshots it has.
    pub snapshots: u64,
    /// What is left to be merged.
    pub merge: MergeStats,
    /// How much of a rollback is done that is under way, in bytes of what has to go back.
    pub rollback_done_bytes: u64,
    /// How much has to go back in a rollback that is under way, in bytes; 0 if none is.
    pub rollback_total_bytes: u64,
    /// Disk space that the data of its layers takes and that no other volume shares, in bytes.
    pub allocated_bytes: u64,
    /// Disk space of data that it shares with clones or with the volume that it is a clone of, in bytes.
    pub shared_bytes: u64,
    /// About how much memory its block sets take, in bytes.
    pub tracking_bytes: u64,
    /// Reads since it was opened.
    pub reads: u64,
    /// Writes, trims and zeroings since it was opened.
    pub writes: u64,
    /// Flushes since it was opened, forced unit accesses included.
    pub flushes: u64,
    /// Bytes read since it was opened.
    pub bytes_read: u64,
    /// Bytes written since it was opened, trimmed and zeroed ones not counted.
    pub bytes_written: u64,
}

/// A write that is under way: the stack it belongs to cannot be frozen for good until it ends.
pub(crate) struct Entered(Arc<Stack>);

impl Entered {
    pub(crate) fn stack(&self) -> &Arc<Stack> {
        &self.0
    }

    pub(crate) fn head(&self) -> &Arc<Head> {
        head_of(&self.0)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.head().writers.leave();
    }
}

/// The head of a volume's stack.
pub(crate) fn head_of(stack: &Stack) -> &Arc<Head> {
    match stack.layers().first() {
        Some(Layer::Open(head)) => head,
        // A volume's stack is only ever built by `open`, `freeze` and `merge`, all of which put an open layer
        // on top.
        _ => unreachable!("the topmost layer of a volume is its head"),
    }
}

fn kept(meta: &Meta) -> Vec<(SnapshotId, Epoch)> {
    meta.snapshots.iter().map(|snapshot| (snapshot.id, snapshot.epoch)).collect()
}

impl Volume {
    pub(crate) fn assemble(dir: PathBuf, meta: Meta, stack: Stack) -> Arc<Self> {
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

    /// The id that the volume was made with.
    pub fn id(&self) -> VolumeId {
        self.id
    }

    /// The size of the volume, in bytes. It may [grow](Self::grow), never shrink.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    /// The folder that holds the volume's files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn place(&self) -> Place<'_> {
        Place { dir: &self.dir, volume: self.id, size_bytes: self.size_bytes() }
    }

    /// Puts a stack with a new head in place: the barrier. Says how long writers could not enter.
    pub(crate) fn exchange(&self, new: Arc<Stack>) -> Duration {
        let size_bytes = head_of(&new).size_bytes;
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

    /// Begins a write: picks the head and makes a freeze of it wait for the end of the write.
    pub(crate) fn enter(&self) -> Result<Entered, VolumeError> {
        let stack = self.stack.read();
        // Under the lock, so that `close` can wait for the writes that came before it.
        self.check_usable()?;
        head_of(&stack).writers.enter();
        Ok(Entered(stack.clone()))
    }

    /// Why the volume acknowledges nothing more, if a sync failed.
    pub fn failure(&self) -> Option<&str> {
        self.failed.get().map(String::as_str)
    }

    /// Refuses when the volume is closed or has failed.
    pub(crate) fn check_usable(&self) -> Result<(), VolumeError> {
        if let Some(reason) = self.failed.get() {
            return Err(VolumeError::Failed { volume: self.id, reason: reason.clone() });
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(VolumeError::Closed(self.id));
        }
        Ok(())
    }

    /// Refuses a range that does not lie inside the volume.
    pub(crate) fn check_range(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), VolumeError> {
        match offset_bytes.checked_add(len_bytes) {
            Some(end) if end <= self.size_bytes() => Ok(()),
            _ => Err(VolumeError::InvalidInput(format!(
                "{len_bytes} bytes at offset {offset_bytes} do not lie inside volume {}, which has {} bytes",
                self.id,
                self.size_bytes()
            ))),
        }
    }

    /// Makes every write, trim and zeroing that was answered before the call survive a power cut.
    ///
    /// # Errors
    /// Once a sync has failed the volume acknowledges nothing more ([`VolumeError::Failed`]): the kernel
    /// drops what it could not write, so a later sync that succeeds proves nothing. A full disk is no such
    /// failure.
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

    /// Stops the volume: it acknowledges nothing more until it is opened again.
    pub(crate) fn fail(&self, reason: String) {
        tracing::error!(volume = %self.id, reason, "the volume stops");
        let _ = self.failed.set(reason);
    }

    fn sync_once(&self) -> Result<(), VolumeError> {
        if let Some(reason) = self.failed.get() {
            return Err(VolumeError::Failed { volume: self.id, reason: reason.clone() });
        }
        let stack = self.current();
        // Bottom up, so that no block of a newer layer is durable before an older layer's.
        for layer in stack.layers().iter().rev() {
            if let Layer::Open(head) = layer {
                self.sync_head(head)?;
            }
        }
        Ok(())
    }

    /// Keeps merges out; one that is under way makes way, and goes on later where it was.
    pub(crate) fn keep_merges_out(&self) -> MutexGuard<'_, Option<Progress>> {
        self.merge_makes_way.fetch_add(1, Ordering::Relaxed);
        let alone = self.merging.lock();
        self.merge_makes_way.fetch_sub(1, Ordering::Relaxed);
        alone
    }

    pub(crate) fn sync_head(&self, head: &Head) -> Result<(), VolumeError> {
        self.stop_if_lost(head.sync())
    }

    /// Makes the disk take the maps of the layers that take writes. Of use every minute or so: a map whose
    /// writeback failed is written again before the kernel drops its pages.
    ///
    /// # Errors
    /// If a map cannot be written again. On a full disk it is tried again by the next call; after another
    /// error the volume acknowledges nothing more.
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

    /// Makes `new` what `volume.meta` says.
    pub(crate) fn commit(&self, admin: &mut Meta, new: Meta) -> Result<(), VolumeError> {
        self.meta_in_doubt.store(true, Ordering::Relaxed);
        new.store(&self.dir)?;
        self.meta_in_doubt.store(false, Ordering::Relaxed);
        *self.kept.write() = kept(&new);
        *admin = new;
        Ok(())
    }

    /// Makes sure that `volume.meta` says what `admin` does: to be called before files are made or changed
    /// that a commit which failed may have named.
    pub(crate) fn settle(&self, admin: &Meta) -> Result<(), VolumeError> {
        if self.meta_in_doubt.load(Ordering::Relaxed) {
            admin.store(&self.dir)?;
            self.meta_in_doubt.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether `volume.meta` may say something else than `admin`.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.meta_in_doubt.load(Ordering::Relaxed)
    }

    /// Flushes, and refuses everything from now on; the next open finds all sets exact without looking at the
    /// map.
    ///
    /// # Errors
    /// If the flush fails. The volume is closed all the same; another call tries the flush again.
    pub fn close(&self) -> Result<(), VolumeError> {
        self.closed.store(true, Ordering::Release);
        // Whoever entered did so before; nobody enters any more.
        drop(self.stack.write());
        // A merge or a freeze that is under way ends first; a later one is refused.
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

    /// Leaves the tracking of writes out until the next freeze, or takes it up: only to measure what it
    /// costs. What is written meanwhile is lost.
    #[cfg(feature = "untracked")]
    pub fn set_tracking(&self, tracked: bool) {
        head_of(&self.current()).untracked.store(!tracked, Ordering::Relaxed);
    }

    /// The state of the volume in numbers.
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
        // One after the other: whoever holds the lock of `kept` for reading and takes it again waits for a
        // writer that waits for him.
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
