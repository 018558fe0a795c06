//! Head: the layer that takes writes.
//!
//! A write stores its data in the page cache, sets the bits of its blocks in the [live map](live_map), adds
//! new blocks to a roaring set, and is then acknowledged. A sync first makes the data durable, then appends
//! the new blocks to the [log]. A freeze replaces the head; its tracked blocks *are* the dirty set.

pub(crate) mod discarded;
pub(crate) mod live_map;
pub(crate) mod log;
mod mount;
mod regions;
pub(crate) mod volume_dir;

use crate::{
    error::{VolumeError, VolumeErrorKind},
    head::discarded::{DiscardCause, DiscardedWrites},
    head::live_map::{BlockState, LiveMap},
    head::log::HeadLog,
    head::regions::Regions,
    head::volume_dir::{OpenOptions, Recovery, VolumeDir},
    io::files,
    layer::data::LayerData,
    layer::data_files::{DataFiles, ZeroOptions},
    layer::set::LayerSet,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Epoch, Extent};
use parking_lot::{Condvar, Mutex};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// Maximum number of data ranges that a start examines to find zeroes, to bound its duration: the remaining
/// zeroes of a more fragmented head count as data.
const MAX_DATA_RANGES: usize = 4096;

/// Layer that takes writes, or whose freeze is unfinished.
pub(crate) struct Head {
    pub(crate) epoch: Epoch,
    /// Size of the volume while this is the head.
    pub(crate) size_bytes: u64,
    pub(crate) data: Arc<LayerData>,
    pub(crate) map: Arc<LiveMap>,
    pub(crate) regions: Regions,
    pub(crate) writers: Writers,
    tracked: Mutex<Tracked>,
    log: Mutex<HeadLog>,
    /// Blocks zeroed with their space kept. Not persistent.
    allocated_zeroes: Mutex<BlockSet>,
    /// True if data was written since the last sync.
    unsynced: AtomicBool,
    /// True after a failed sync; accessed under the lock of the log.
    lost: AtomicBool,
    #[cfg(feature = "untracked")]
    pub(crate) untracked: AtomicBool,
}

/// Blocks that the head holds, beside the bits of the map. All other held blocks are *logged*: the log names
/// them, or a running sync is logging them. No set of them is kept, so that neither the memory nor the work
/// of a sync grows with it.
#[derive(Default)]
struct Tracked {
    /// Number of held blocks.
    held_blocks: u64,
    /// Blocks added since the last sync.
    unlogged: BlockSet,
}

/// Failure of a sync.
pub(crate) enum SyncFailure {
    /// Written data could not be made durable: the state on disk is unknown.
    Lost(VolumeError),
    /// Nothing was lost; a retry can succeed.
    Refused(VolumeError),
}

impl Head {
    /// Creates an empty head; durable once the directory is synced.
    pub(crate) fn create(volume_dir: VolumeDir<'_>, epoch: Epoch) -> Result<Self, VolumeError> {
        let data = DataFiles::create(&files::data_path(volume_dir.path, epoch), volume_dir.size_bytes)?;
        let map = LiveMap::create(&files::map_path(volume_dir.path, epoch), volume_dir.identity(epoch))?;
        let log = HeadLog::create(&files::log_path(volume_dir.path, epoch), volume_dir.identity(epoch))?;
        Ok(Self::with(volume_dir, epoch, data, map, log, Tracked::default()))
    }

    /// Checks the files for [`recover`](Self::recover) without changing the log, which distinguishes damage
    /// from a power cut.
    pub(crate) fn check_recoverable(volume_dir: VolumeDir<'_>, epoch: Epoch) -> Result<(), VolumeError> {
        DataFiles::open(&files::data_path(volume_dir.path, epoch), volume_dir.size_bytes)?;
        LiveMap::check_version(&files::map_path(volume_dir.path, epoch))?;
        HeadLog::inspect(&files::log_path(volume_dir.path, epoch), volume_dir.identity(epoch)).map(drop)
    }

    /// Recovers a head after a clean stop, a process crash, or a power cut. Records a loss of acknowledged
    /// writes before it replaces the map, which is the evidence. A map with the mark of a clean stop, the
    /// evidence that nothing was lost, stays until it is replaced: the next start would take a missing map
    /// for a loss.
    pub(crate) fn recover(
        volume_dir: VolumeDir<'_>,
        epoch: Epoch,
        options: &OpenOptions,
    ) -> Result<Self, VolumeError> {
        let data = DataFiles::open(&files::data_path(volume_dir.path, epoch), volume_dir.size_bytes)?;
        let (log, logged) =
            HeadLog::open(&files::log_path(volume_dir.path, epoch), volume_dir.identity(epoch))?;
        let map_path = files::map_path(volume_dir.path, epoch);
        let trust_map = options.recovery == Recovery::Auto;
        let opened = LiveMap::open(&map_path, volume_dir.identity(epoch), trust_map)?;
        let mut found = match opened {
            Ok(found) => Some(found),
            Err(rejected) => {
                rejected.report(volume_dir, options.serves_remote)?;
                // Before the sync: it may be the only one that reports a failed writeback, so the next start
                // must not trust the map. The log names all blocks of a map with the clean mark, so trusting
                // it loses nothing.
                if !rejected.why.is_final() && !rejected.clean {
                    files::remove_if_exists(&map_path)?;
                }
                None
            }
        };
        // The kernel may have dropped data of the previous process after a failed writeback. It
        // reports that only to the first sync after the open. Bits of the map then refer to lost
        // data, as after a power cut.
        if let Err(error) = data.sync() {
            tracing::error!(volume = %volume_dir.volume, %error, "sync failed on the data of a head: recovering to the last flush");
            if let Some(lost) = found.take().filter(|lost| !lost.clean) {
                lost.map.invalidate();
                DiscardedWrites::now(DiscardCause::WritebackFailed).record(volume_dir.path)?;
            }
        }
        let mut unlogged = BlockSet::new();
        let map = match found {
            Some(found) => {
                unlogged = found.map.held_set();
                unlogged.subtract(&logged);
                if found.clean && !unlogged.is_empty() {
                    tracing::error!(volume = %volume_dir.volume, blocks = unlogged.len_blocks(), "log of a cleanly closed head lacks blocks of the map: using the map");
                }
                if !found.clean && !unlogged.is_empty() {
                    tracing::info!(volume = %volume_dir.volume, blocks = unlogged.len_blocks(), "recovered unflushed blocks of a crashed process from the live map");
                }
                found.map.add_all(&logged)?;
                // A start in another boot must not find the clean mark. Also if the mark is not set in the
                // page cache: after a failed sync of an earlier start it may be set on disk.
                found.map.set_clean(false)?;
                found.map
            }
            None => {
                // After a failed writeback, pages stay in memory as clean: reads would return their data
                // until they are evicted, and older data afterwards.
                data.drop_cache()?;
                let map = LiveMap::replace(&map_path, volume_dir.identity(epoch), &logged)?;
                files::sync_dir(volume_dir.path)?;
                map
            }
        };
        if let Err(error) = find_zeroes(&data, &map, [&logged, &unlogged], volume_dir.size_bytes) {
            tracing::warn!(volume = %volume_dir.volume, %error, "scan for holes failed on a head: its zeroes are reported as data");
        }
        let tracked = Tracked { held_blocks: logged.len_blocks() + unlogged.len_blocks(), unlogged };
        let head = Self::with(volume_dir, epoch, data, map, log, tracked);
        head.unsynced.store(true, Ordering::Release);
        debug_assert!(head.count_mismatches() == 0, "map and tracked set of a recovered head are equal");
        Ok(head)
    }

    fn with(
        volume_dir: VolumeDir<'_>,
        epoch: Epoch,
        data: DataFiles,
        map: LiveMap,
        log: HeadLog,
        tracked: Tracked,
    ) -> Self {
        assert!(volume_dir.size_bytes.is_multiple_of(BLOCK_SIZE_BYTES), "a volume consists of whole blocks");
        Self {
            epoch,
            size_bytes: volume_dir.size_bytes,
            data: Arc::new(data.into()),
            map: Arc::new(map),
            regions: Regions::new(),
            writers: Writers::default(),
            tracked: Mutex::new(tracked),
            log: Mutex::new(log),
            allocated_zeroes: Mutex::default(),
            unsynced: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            #[cfg(feature = "untracked")]
            untracked: AtomicBool::new(false),
        }
    }

    /// Removes the existing files of a head.
    pub(crate) fn remove_files(volume_dir: VolumeDir<'_>, epoch: Epoch) -> Result<(), VolumeError> {
        DataFiles::remove(&files::data_path(volume_dir.path, epoch), volume_dir.size_bytes)?;
        Self::remove_tracking_files(volume_dir.path, epoch)
    }

    /// Removes the map and the log.
    pub(crate) fn remove_tracking_files(dir: &Path, epoch: Epoch) -> Result<(), VolumeError> {
        files::remove_if_exists(&files::map_path(dir, epoch))?;
        files::remove_if_exists(&files::log_path(dir, epoch))
    }

    /// Writes data. Each block is overwritten completely or already held. The caller has locked the regions.
    pub(crate) fn write(&self, offset_bytes: u64, data: &[u8]) -> Result<(), VolumeError> {
        #[cfg(feature = "untracked")]
        if self.untracked.load(Ordering::Relaxed) {
            self.unsynced.store(true, Ordering::Release);
            return self.data.write(offset_bytes, data);
        }
        let touched = Extent::touching(offset_bytes, data.len() as u64);
        assert!(touched.end().0 <= self.size_bytes / BLOCK_SIZE_BYTES, "a write beyond the end of the head");
        // Before the data, so that a concurrent reader finds zeroes or the new data in the file.
        self.map.clear_zero(touched);
        let written = self.data.write(offset_bytes, data);
        // Also after a failure: held blocks may be partially written, and a freeze must sync them.
        self.unsynced.store(true, Ordering::Release);
        written?;
        self.note_held(touched)?;
        debug_assert!(self.map.holds_all(touched), "a write sets the bits of its blocks");
        Ok(())
    }

    /// Zeroes blocks and marks the extents of `marked`, those that may be nonzero, as held zeroes. The caller
    /// has locked the regions exclusively.
    pub(crate) fn zero(
        &self,
        extent: Extent,
        marked: &[Extent],
        options: ZeroOptions,
    ) -> Result<(), VolumeError> {
        let (offset_bytes, len_bytes) = (extent.offset_bytes(), extent.len_bytes());
        assert!(extent.end().0 <= self.size_bytes / BLOCK_SIZE_BYTES, "zeroes beyond the end of the head");
        let zeroed = self.data.zero(offset_bytes, len_bytes, options);
        // Also after a failure, as for a write.
        self.unsynced.store(true, Ordering::Release);
        zeroed?;
        match options.keep_space {
            true => self.allocated_zeroes.lock().insert_extent(extent),
            false => self.allocated_zeroes.lock().remove_extent(extent),
        }
        for &zeroed in marked {
            self.map.set_zero(zeroed);
            self.note_held(zeroed)?;
            debug_assert!(
                self.states(zeroed).all(|(_, state)| state == BlockState::Zero),
                "zeroes are marked"
            );
        }
        Ok(())
    }

    /// Sets the bits of blocks whose data is in the page cache, for readers, the next process and the
    /// next sync.
    fn note_held(&self, extent: Extent) -> Result<(), VolumeError> {
        if self.map.holds_all(extent) {
            return Ok(());
        }
        // The lock before the bit: a thread that sees the bit relies on the next sync to cover the block.
        self.map.set_held(
            extent,
            || self.tracked.lock(),
            |tracked, new| {
                tracked.held_blocks += new.len_blocks;
                tracked.unlogged.insert_extent(new);
            },
        )
    }

    /// Syncs the map; rewrites it from memory if writeback failed.
    ///
    /// # Errors
    /// The map cannot be written: after a process crash the next start would record a loss. The head is lost
    /// unless the disk is full.
    pub(crate) fn sync_map(&self) -> Result<(), SyncFailure> {
        match self.map.sync() {
            Ok(()) => Ok(()),
            Err(failure) if failure.may_retry => Err(SyncFailure::Refused(failure.error)),
            Err(failure) => {
                let _log = self.log.lock();
                Err(self.mark_lost(failure.error))
            }
        }
    }

    /// Returns the number of blocks dirtied since the last freeze or growth.
    pub(crate) fn dirty_blocks(&self) -> u64 {
        self.tracked.lock().held_blocks
    }

    /// Returns the approximate memory of the bitmaps and of the tracked set, in bytes.
    pub(crate) fn tracking_bytes(&self) -> u64 {
        self.map.heap_bytes() + self.tracked.lock().unlogged.heap_bytes_estimate()
    }

    /// Makes all acknowledged writes durable: first the data, then the log of its blocks.
    pub(crate) fn sync(&self) -> Result<(), SyncFailure> {
        let mut log = self.log.lock();
        if self.lost.load(Ordering::Acquire) {
            return Err(SyncFailure::Lost(VolumeError::Io {
                operation: "sync",
                path: std::path::PathBuf::from("a head with lost data"),
                source: rustix::io::Errno::IO.into(),
            }));
        }
        // The data of these blocks is in the page cache, so the sync below covers it.
        let new = std::mem::take(&mut self.tracked.lock().unlogged);
        debug_assert!(new.last().is_none_or(|last| self.map.is_held(last)), "only held blocks are logged");
        if self.unsynced.swap(false, Ordering::AcqRel) || !new.is_empty() {
            self.data.sync().map_err(|error| self.mark_lost(error))?;
        }
        if new.is_empty() {
            return Ok(());
        }
        if let Err(error) = log.append(&new) {
            self.tracked.lock().unlogged.union_with(&new);
            self.unsynced.store(true, Ordering::Release);
            return Err(match error.kind() {
                VolumeErrorKind::NoSpace => SyncFailure::Refused(error),
                _ => self.mark_lost(error),
            });
        }
        if log.may_need_compaction()
            && let Err(error) = log.compact_if_sparse(&self.logged())
        {
            tracing::warn!(%error, "compaction failed on the log of the head: it keeps growing");
        }
        Ok(())
    }

    /// Returns the blocks that the log names. The caller holds the lock of the log, so no sync is running.
    fn logged(&self) -> BlockSet {
        // The bits first: the block of a bit that is not logged is in `unlogged` as soon as its writer
        // releases the lock under which it sets both.
        let mut logged = self.map.held_set();
        logged.subtract(&self.tracked.lock().unlogged);
        logged
    }

    /// Marks the head as lost: all later syncs fail, and later processes reject the map.
    fn mark_lost(&self, error: VolumeError) -> SyncFailure {
        self.lost.store(true, Ordering::Release);
        self.map.invalidate();
        SyncFailure::Lost(error)
    }

    /// Returns the current block sets. Not a consistent point in time while writes run.
    pub(crate) fn current_set(&self) -> LayerSet {
        let held = self.map.held_set();
        let mut zero = BlockSet::new();
        if !held.is_empty() {
            zero = self.map.zero_set();
            zero.intersect_with(&held);
        }
        LayerSet { held, zero }
    }

    /// Returns the number of blocks that differ between the map and the tracked ones. Writes may be in
    /// progress.
    fn count_mismatches(&self) -> u64 {
        // Bits are set under this lock, so both are of one point in time.
        let tracked = self.tracked.lock();
        let map = self.map.held_set();
        let mut only_tracked = tracked.unlogged.clone();
        only_tracked.subtract(&map);
        only_tracked.len_blocks() + map.len_blocks().abs_diff(tracked.held_blocks)
    }

    /// Returns the number of blocks that the map has as logged and the log does not name, or that the log
    /// names and the map lacks. Writes may be in progress; flushes wait.
    pub(crate) fn count_log_mismatches(&self) -> Result<u64, VolumeError> {
        let log = self.log.lock();
        let (mut missed, mut named) = (self.logged(), log.named()?);
        missed.subtract(&named);
        // A record of a failed sync may name blocks that are still unlogged.
        named.subtract(&self.map.held_set());
        Ok(missed.len_blocks() + named.len_blocks())
    }

    /// Returns the block sets of a synced head that takes no more writes.
    pub(crate) fn final_set(&self) -> LayerSet {
        debug_assert!(self.writers.are_done(), "the head has no writers");
        let LayerSet { mut held, mut zero } = self.current_set();
        held.optimize();
        zero.optimize();
        LayerSet { held, zero }
    }

    /// Marks the map, durably, as equal to the log. No effect while blocks are unlogged.
    pub(crate) fn mark_clean(&self) -> Result<(), VolumeError> {
        if !self.tracked.lock().unlogged.is_empty() {
            return Ok(());
        }
        debug_assert!(self.count_mismatches() == 0, "map and tracked set of a cleanly closed head are equal");
        // A failed sync may drop bits of the map, and no later sync reports it. The log names all blocks.
        self.map.set_clean(true).inspect_err(|_| self.map.invalidate())
    }

    pub(crate) fn holds(&self, block: BlockIndex) -> bool {
        self.map.is_held(block)
    }

    /// Returns the blocks of a range that this process zeroed with their space kept, also if written since.
    pub(crate) fn allocated_zeroes(&self, range: Extent) -> BlockSet {
        self.allocated_zeroes.lock().slice(range)
    }

    /// Returns the state of a block; a block beyond the end of the head is absent.
    pub(crate) fn state(&self, block: BlockIndex) -> BlockState {
        self.map.state_of(block)
    }

    /// Returns the extents of a range by state.
    pub(crate) fn states(&self, range: Extent) -> impl Iterator<Item = (Extent, BlockState)> + '_ {
        self.map.states(range)
    }
}

/// Marks held blocks as zeroes where the data file has holes. The head has no writers yet.
fn find_zeroes(
    data: &DataFiles,
    map: &LiveMap,
    held: [&BlockSet; 2],
    size_bytes: u64,
) -> Result<(), VolumeError> {
    if held.iter().all(|set| set.is_empty()) {
        return Ok(());
    }
    for hole in data.holes(size_bytes, MAX_DATA_RANGES)? {
        let blocks = Extent::inside(hole.start, hole.end - hole.start);
        for extent in held.iter().flat_map(|set| set.extents_in(blocks)) {
            map.set_zero(extent);
        }
    }
    Ok(())
}

/// Counter of writes in progress in a head.
#[derive(Default)]
pub(crate) struct Writers {
    count: AtomicU64,
    idle: Mutex<()>,
    changed: Condvar,
}

impl Writers {
    pub(crate) fn enter(&self) {
        self.count.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn leave(&self) {
        let before = self.count.fetch_sub(1, Ordering::AcqRel);
        assert!(before > 0, "a writer has entered");
        if before == 1 {
            // The lock ensures that a waiter either has not checked yet or is waiting.
            drop(self.idle.lock());
            self.changed.notify_all();
        }
    }

    pub(crate) fn are_done(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Waits until no write is in progress. The caller ensures that no new one can start.
    pub(crate) fn wait_until_done(&self) {
        let mut idle = self.idle.lock();
        while !self.are_done() {
            self.changed.wait(&mut idle);
        }
    }
}

#[cfg(test)]
mod tests;
