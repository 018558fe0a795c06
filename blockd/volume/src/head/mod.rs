//! Head: the layer that takes writes.
//!
//! A write stores its data in the page cache, sets the bits of its blocks in the [live map](live_map),
//! adds new blocks to a roaring set, and is acknowledged. A sync makes first the data durable, then the new
//! blocks in the [log](log). A freeze replaces the head; the tracked blocks *are* the dirty set.

pub(crate) mod discarded;
pub(crate) mod live_map;
pub(crate) mod log;
mod mount;
pub(crate) mod place;
mod regions;

use crate::{
    error::{VolumeError, VolumeErrorKind},
    head::discarded::{DiscardCause, DiscardedWrites},
    head::live_map::{BlockState, LiveMap},
    head::log::HeadLog,
    head::place::{OpenOptions, Place, Recovery},
    head::regions::Regions,
    io::files,
    layer::data::LayerData,
    layer::data_files::{DataFiles, ZeroHow},
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

/// Maximum number of data ranges that a start examines to find zeroes: a more fragmented head reports its
/// other zeroes as data instead of delaying the start.
const MAX_RANGES: usize = 4096;

/// Layer that takes writes, or took them until an unfinished freeze.
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
    /// Blocks zeroed with their space kept. Not stored across restarts.
    kept: Mutex<BlockSet>,
    /// True after writes since the last sync of the data.
    unsynced: AtomicBool,
    /// True after a failed sync; accessed under the lock of the log.
    lost: AtomicBool,
    #[cfg(feature = "untracked")]
    pub(crate) untracked: AtomicBool,
}

/// Blocks that the head holds.
#[derive(Default)]
struct Tracked {
    /// Blocks that the log names, or is about to name.
    logged: BlockSet,
    /// Blocks added since; disjoint from `logged`.
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
    pub(crate) fn create(place: Place<'_>, epoch: Epoch) -> Result<Self, VolumeError> {
        let data = DataFiles::create(&files::data_path(place.dir, epoch), place.size_bytes)?;
        let map = LiveMap::create(&files::map_path(place.dir, epoch), place.identity(epoch))?;
        let log = HeadLog::create(&files::log_path(place.dir, epoch), place.identity(epoch))?;
        Ok(Self::with(place, epoch, data, map, log, Tracked::default()))
    }

    /// Checks that [`recover`](Self::recover) would find its files, without changing evidence that
    /// distinguishes damage from a power cut.
    pub(crate) fn check_recoverable(place: Place<'_>, epoch: Epoch) -> Result<(), VolumeError> {
        DataFiles::open(&files::data_path(place.dir, epoch), place.size_bytes)?;
        HeadLog::inspect(&files::log_path(place.dir, epoch), place.identity(epoch)).map(drop)
    }

    /// Recovers a head after a clean stop, the death of the process, or a power cut. A loss of acknowledged
    /// writes is recorded before the map that proves it is replaced.
    pub(crate) fn recover(
        place: Place<'_>,
        epoch: Epoch,
        options: &OpenOptions,
    ) -> Result<Self, VolumeError> {
        let data = DataFiles::open(&files::data_path(place.dir, epoch), place.size_bytes)?;
        let (log, logged) = HeadLog::open(&files::log_path(place.dir, epoch), place.identity(epoch))?;
        let map_path = files::map_path(place.dir, epoch);
        let believe = options.recovery == Recovery::Auto;
        let opened = LiveMap::open(&map_path, place.identity(epoch), believe)?;
        let mut found = match opened {
            Ok(found) => Some(found),
            Err(rejected) => {
                rejected.report(place, options.serves_remote)?;
                // Before the sync, which may be the only one to report a failed writeback: the next start
                // must not believe the map.
                if !rejected.why.is_final() {
                    files::remove_if_there(&map_path)?;
                }
                None
            }
        };
        // The kernel has dropped data of the previous process that it could not write back, and reports that
        // only to the first sync after the next open: the bits then stand for lost data, as after a power
        // cut.
        if let Err(error) = data.sync() {
            tracing::error!(volume = %place.volume, %error, "data was lost: going back to what was flushed");
            if let Some(lost) = found.take() {
                lost.map.disown();
                if !lost.clean {
                    DiscardedWrites::now(DiscardCause::WritebackFailed).record(place.dir)?;
                }
            }
        }
        let mut unlogged = BlockSet::new();
        let map = match found {
            Some(found) => {
                unlogged = found.map.snapshot_of_held();
                unlogged.subtract(&logged);
                if found.clean && !unlogged.is_empty() {
                    tracing::error!(volume = %place.volume, blocks = unlogged.len_blocks(), "the log lacks blocks of a head that was closed cleanly; the map has them");
                }
                if !found.clean {
                    tracing::info!(volume = %place.volume, blocks = unlogged.len_blocks(), "took over the unsynced blocks of a process that died");
                }
                found.map.add_all(&logged)?;
                found.map
            }
            None => {
                // Pages that could not be written back are still in memory as clean pages: they would read as
                // written until they are evicted, and as older data afterwards.
                data.drop_cache()?;
                let map = LiveMap::replace(&map_path, place.identity(epoch), &logged)?;
                files::sync_dir(place.dir)?;
                map
            }
        };
        if let Err(error) = find_zeroes(&data, &map, [&logged, &unlogged], place.size_bytes) {
            tracing::warn!(volume = %place.volume, %error, "what was zeroed is reported as data");
        }
        let head = Self::with(place, epoch, data, map, log, Tracked { logged, unlogged });
        head.unsynced.store(true, Ordering::Release);
        debug_assert!(head.disagreements() == 0, "the map and the tracking of a recovered head agree");
        Ok(head)
    }

    fn with(
        place: Place<'_>,
        epoch: Epoch,
        data: DataFiles,
        map: LiveMap,
        log: HeadLog,
        tracked: Tracked,
    ) -> Self {
        assert!(place.size_bytes.is_multiple_of(BLOCK_SIZE_BYTES), "a volume consists of whole blocks");
        Self {
            epoch,
            size_bytes: place.size_bytes,
            data: Arc::new(data.into()),
            map: Arc::new(map),
            regions: Regions::new(),
            writers: Writers::default(),
            tracked: Mutex::new(tracked),
            log: Mutex::new(log),
            kept: Mutex::default(),
            unsynced: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            #[cfg(feature = "untracked")]
            untracked: AtomicBool::new(false),
        }
    }

    /// Removes the existing files of a head.
    pub(crate) fn remove_files(place: Place<'_>, epoch: Epoch) -> Result<(), VolumeError> {
        DataFiles::remove(&files::data_path(place.dir, epoch), place.size_bytes)?;
        Self::remove_tracking_files(place.dir, epoch)
    }

    /// Removes the map and the log.
    pub(crate) fn remove_tracking_files(dir: &Path, epoch: Epoch) -> Result<(), VolumeError> {
        files::remove_if_there(&files::map_path(dir, epoch))?;
        files::remove_if_there(&files::log_path(dir, epoch))
    }

    /// Writes bytes of blocks that are completely written or already held. The caller has locked their
    /// regions.
    pub(crate) fn write(&self, offset_bytes: u64, data: &[u8]) -> Result<(), VolumeError> {
        #[cfg(feature = "untracked")]
        if self.untracked.load(Ordering::Relaxed) {
            self.unsynced.store(true, Ordering::Release);
            return self.data.write(offset_bytes, data);
        }
        let touched = Extent::touching(offset_bytes, data.len() as u64);
        assert!(touched.end().0 <= self.size_bytes / BLOCK_SIZE_BYTES, "a write beyond the end of the head");
        // Before the data: a reader then finds either zeroes or the new data in the file.
        self.map.clear_zero(touched);
        let written = self.data.write(offset_bytes, data);
        // Also after a failure: part of the data may be in held blocks, which a freeze would otherwise treat
        // as durable.
        self.unsynced.store(true, Ordering::Release);
        written?;
        self.note_held(touched)?;
        debug_assert!(self.map.holds_all(touched), "a write is acknowledged without its bits");
        Ok(())
    }

    /// Zeroes blocks. The caller has locked their regions exclusively; `marked` are the extents that would
    /// otherwise read as something else.
    pub(crate) fn zero(&self, extent: Extent, marked: &[Extent], how: ZeroHow) -> Result<(), VolumeError> {
        let (offset_bytes, len_bytes) = (extent.offset_bytes(), extent.len_bytes());
        assert!(extent.end().0 <= self.size_bytes / BLOCK_SIZE_BYTES, "zeroes beyond the end of the head");
        let zeroed = self.data.zero(offset_bytes, len_bytes, how);
        // Also after a failure, as for a write.
        self.unsynced.store(true, Ordering::Release);
        zeroed?;
        match how.keep_space {
            true => self.kept.lock().insert_extent(extent),
            false => self.kept.lock().remove_extent(extent),
        }
        for &run in marked {
            self.map.set_zero(run);
            self.note_held(run)?;
            debug_assert!(self.states(run).all(|(_, state)| state == BlockState::Zero), "zeroes are marked");
        }
        Ok(())
    }

    /// Sets the bits of blocks whose data is in the page cache: readers, the next process and the next sync
    /// find them from here on.
    fn note_held(&self, extent: Extent) -> Result<(), VolumeError> {
        if self.map.holds_all(extent) {
            return Ok(());
        }
        // The lock before the bit: a thread that finds a bit set relies on the next sync to cover its block.
        self.map.set_held(extent, || self.tracked.lock(), |tracked, new| tracked.unlogged.insert_extent(new))
    }

    /// Syncs the map, or writes it again from memory if writeback failed.
    ///
    /// # Errors
    /// The map cannot be written: acknowledged blocks would not survive the death of the process, and the
    /// next start would record a loss. The head is lost unless the disk is full.
    pub(crate) fn sync_map(&self) -> Result<(), SyncFailure> {
        match self.map.sync() {
            Ok(()) => Ok(()),
            Err(failure) if failure.may_retry => Err(SyncFailure::Refused(failure.error)),
            Err(failure) => {
                let _log = self.log.lock();
                Err(self.lose(failure.error))
            }
        }
    }

    /// Returns the number of blocks dirtied since the last freeze.
    pub(crate) fn dirty_blocks(&self) -> u64 {
        let tracked = self.tracked.lock();
        tracked.logged.len_blocks() + tracked.unlogged.len_blocks()
    }

    /// Returns the approximate memory of the tracking.
    pub(crate) fn tracking_bytes(&self) -> u64 {
        let tracked = self.tracked.lock();
        tracked.logged.heap_bytes_estimate() + tracked.unlogged.heap_bytes_estimate()
    }

    /// Makes all acknowledged writes durable: first the data, then the log of its blocks.
    pub(crate) fn sync(&self) -> Result<(), SyncFailure> {
        let mut log = self.log.lock();
        if self.lost.load(Ordering::Acquire) {
            return Err(SyncFailure::Lost(VolumeError::Io {
                action: "sync",
                path: std::path::PathBuf::from("a head whose data was lost"),
                source: rustix::io::Errno::IO.into(),
            }));
        }
        // The data of each block in here is in the page cache, so the sync below covers it.
        let new = {
            let mut tracked = self.tracked.lock();
            let new = std::mem::take(&mut tracked.unlogged);
            tracked.logged.union_with(&new);
            new
        };
        debug_assert!(new.last().is_none_or(|last| self.map.is_held(last)), "only held blocks are logged");
        if self.unsynced.swap(false, Ordering::AcqRel) || !new.is_empty() {
            self.data.sync().map_err(|error| self.lose(error))?;
        }
        if new.is_empty() {
            return Ok(());
        }
        if let Err(error) = log.append(&new) {
            let mut tracked = self.tracked.lock();
            tracked.logged.subtract(&new);
            tracked.unlogged.union_with(&new);
            self.unsynced.store(true, Ordering::Release);
            return Err(match error.kind() {
                VolumeErrorKind::NoSpace => SyncFailure::Refused(error),
                _ => self.lose(error),
            });
        }
        let all = self.tracked.lock();
        if log.wants_compaction(&all.logged) {
            let logged = all.logged.clone();
            drop(all);
            if let Err(error) = log.compact(&logged) {
                tracing::warn!(%error, "the log of the head could not be rewritten; it goes on growing");
            }
        }
        Ok(())
    }

    /// Records that data may be lost: callers of this and later syncs get an error, in this process and in
    /// the next.
    fn lose(&self, error: VolumeError) -> SyncFailure {
        self.lost.store(true, Ordering::Release);
        self.map.disown();
        SyncFailure::Lost(error)
    }

    /// Returns the current block sets; during writes, each block is of some recent moment.
    pub(crate) fn present_set(&self) -> LayerSet {
        let held = {
            let tracked = self.tracked.lock();
            let mut all = tracked.logged.clone();
            all.union_with(&tracked.unlogged);
            all
        };
        let mut zero = BlockSet::new();
        if !held.is_empty() {
            zero = self.map.zero_set();
            zero.intersect_with(&held);
        }
        LayerSet { held, zero }
    }

    /// Returns the number of blocks that differ between the map and the tracking. Writes may be in progress.
    pub(crate) fn disagreements(&self) -> u64 {
        // Bits are set under this lock, so both are consistent.
        let tracked = self.tracked.lock();
        let mut noted = tracked.logged.clone();
        noted.union_with(&tracked.unlogged);
        let map = self.map.snapshot_of_held();
        let (mut only_noted, mut only_map) = (noted.clone(), map.clone());
        only_noted.subtract(&map);
        only_map.subtract(&noted);
        only_noted.len_blocks() + only_map.len_blocks()
    }

    /// Returns the block sets of a synced head without further writes.
    pub(crate) fn final_set(&self) -> LayerSet {
        debug_assert!(self.writers.are_done(), "the set of a head with writers is not final");
        let LayerSet { mut held, mut zero } = self.present_set();
        held.optimize();
        zero.optimize();
        LayerSet { held, zero }
    }

    /// Marks the map durably as equal to the log, for the next start. All writes were flushed.
    pub(crate) fn mark_clean(&self) -> Result<(), VolumeError> {
        if !self.tracked.lock().unlogged.is_empty() {
            return Ok(());
        }
        debug_assert!(self.disagreements() == 0, "a head that is closed cleanly has the map of its log");
        // A failed sync may drop bits of the map, and no later sync reports it; the log names all of them.
        self.map.set_clean(true).inspect_err(|_| self.map.disown())
    }

    pub(crate) fn holds(&self, block: BlockIndex) -> bool {
        self.map.is_held(block)
    }

    /// Returns the blocks of a range that were zeroed with their space kept, as far as known, even if written
    /// since.
    pub(crate) fn kept_space(&self, range: Extent) -> BlockSet {
        self.kept.lock().slice(range)
    }

    /// Returns the state of a block; blocks beyond the end of a shorter head are absent.
    pub(crate) fn state(&self, block: BlockIndex) -> BlockState {
        self.map.state_of(block)
    }

    /// Returns the extents of a range by state.
    pub(crate) fn states(&self, range: Extent) -> impl Iterator<Item = (Extent, BlockState)> + '_ {
        self.map.states(range)
    }
}

/// Marks held blocks as zeroes where the data file has holes. There are no writers yet.
fn find_zeroes(
    data: &DataFiles,
    map: &LiveMap,
    held: [&BlockSet; 2],
    size_bytes: u64,
) -> Result<(), VolumeError> {
    if held.iter().all(|set| set.is_empty()) {
        return Ok(());
    }
    for hole in data.holes(size_bytes, MAX_RANGES)? {
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
        assert!(before > 0, "a writer leaves once");
        if before == 1 {
            // The lock ensures that a waiter is either before its check or asleep.
            drop(self.idle.lock());
            self.changed.notify_all();
        }
    }

    pub(crate) fn are_done(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Waits until no write is in progress; useful once no new one can start.
    pub(crate) fn wait_until_done(&self) {
        let mut idle = self.idle.lock();
        while !self.are_done() {
            self.changed.wait(&mut idle);
        }
    }
}

#[cfg(test)]
mod tests;
