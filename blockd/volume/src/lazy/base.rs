//! Base of a lazy volume: data files filled from a source, and a log of present blocks.
//!
//! A block is *present* once its content is in the file, for readers of this process. It is *logged* once an
//! `fdatasync` of the data that started later has returned and the log names it; only then does the next
//! process treat it as present. Other blocks are fetched again; the source returns the same content, so a
//! second write is harmless. Only replies of the source are written here: writes of clients go to the head.

mod fetch;
mod hydration;

use crate::{
    error::VolumeError,
    head::log::HeadLog,
    head::volume_dir::VolumeDir,
    io::files,
    layer::data_files::DataFiles,
    lazy::fetch_budget::FetchBudget,
    lazy::in_flight::{FetchRequest, InFlightTable},
    lazy::waiters::{OnDone, PendingCallback},
    lazy::{FetchFailure, LazySource, Urgency},
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Epoch, Extent, VolumeId};
use parking_lot::{Condvar, Mutex, RwLock};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

const BLOCK: usize = BLOCK_SIZE_BYTES as usize;
/// Fetched data between two log records, 64 MiB: about the maximum that is fetched again after a crash.
const LOG_EVERY_BLOCKS: u64 = (64 << 20) / BLOCK_SIZE_BYTES;
/// Maximum number of data ranges that a start examines to find zeroes.
const MAX_DATA_RANGES: usize = 4096;

/// Files of a lazy base and their state.
pub(crate) struct LazyBase {
    volume: VolumeId,
    blocks: u64,
    /// Handles separate from those of the layer, which refers to this base.
    files: DataFiles,
    source: RwLock<Option<Arc<dyn LazySource>>>,
    in_flight: Mutex<InFlightTable>,
    /// True if all blocks are present.
    complete: AtomicBool,
    /// False once the volume was closed; read-locked during writes.
    open: RwLock<bool>,
    log: Mutex<Log>,
    /// Held during a write to the files. The kernel serializes writes to a file, and waiting writers spin,
    /// using CPU time that could decrypt frames or serve readers.
    writing: Mutex<()>,
    /// Extents for which the source was queried for zeroes.
    surveyed: Mutex<BlockSet>,
    /// Shared with all other lazy volumes.
    budget: Arc<FetchBudget>,
}

struct Log {
    log: HeadLog,
    logged: BlockSet,
}

impl LazyBase {
    /// Creates the log of a base, with the durable blocks of its existing files. The caller syncs the
    /// directory.
    pub(crate) fn create_log(
        volume_dir: VolumeDir<'_>,
        file: Epoch,
        durable: &BlockSet,
    ) -> Result<(), VolumeError> {
        let mut log = HeadLog::create(&files::log_path(volume_dir.path, file), volume_dir.identity(file))?;
        if durable.is_empty() { Ok(()) } else { log.append(durable) }
    }

    /// Opens a base.
    pub(crate) fn open(volume_dir: VolumeDir<'_>, file: Epoch) -> Result<Arc<Self>, VolumeError> {
        Self::open_within(volume_dir, file, FetchBudget::of_process())
    }

    fn open_within(
        volume_dir: VolumeDir<'_>,
        file: Epoch,
        budget: Arc<FetchBudget>,
    ) -> Result<Arc<Self>, VolumeError> {
        let data = DataFiles::open(&files::data_path(volume_dir.path, file), volume_dir.size_bytes)?;
        let (log, logged) =
            HeadLog::open(&files::log_path(volume_dir.path, file), volume_dir.identity(file))?;
        let mut in_flight = InFlightTable::new(volume_dir.blocks(), logged.clone());
        for hole in data.holes(volume_dir.size_bytes, MAX_DATA_RANGES)? {
            for run in logged.extents_in(Extent::inside(hole.start, hole.end - hole.start)) {
                in_flight.zero.insert_extent(run);
            }
        }
        let complete = in_flight.is_complete();
        Ok(Arc::new(Self {
            volume: volume_dir.volume,
            blocks: volume_dir.blocks(),
            files: data,
            source: RwLock::default(),
            in_flight: Mutex::new(in_flight),
            complete: AtomicBool::new(complete),
            open: RwLock::new(true),
            log: Mutex::new(Log { log, logged }),
            writing: Mutex::default(),
            surveyed: Mutex::default(),
            budget,
        }))
    }

    pub(crate) fn set_source(&self, source: Arc<dyn LazySource>) {
        *self.source.write() = Some(source);
    }

    pub(crate) fn source(&self) -> Option<Arc<dyn LazySource>> {
        self.source.read().clone()
    }

    /// Returns the source; without one, the failure of a fetch.
    fn source_for_fetch(&self) -> Result<Arc<dyn LazySource>, FetchFailure> {
        let missing = || if *self.open.read() { FetchFailure::NoSource } else { FetchFailure::Closed };
        self.source().ok_or_else(missing)
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// Returns true if a byte range is present; records the read for readahead.
    pub(crate) fn has(self: &Arc<Self>, offset_bytes: u64, len_bytes: u64) -> bool {
        if self.is_complete() {
            return true;
        }
        let extent = Extent::touching(offset_bytes, len_bytes);
        let mut in_flight = self.in_flight.lock();
        let is_present = in_flight.present.contains_extent(extent);
        if is_present {
            in_flight.record_read(extent);
            drop(in_flight);
            self.start_fetches();
        }
        is_present
    }

    /// Returns true if all these blocks are present.
    pub(crate) fn has_all(&self, extents: &[Extent]) -> bool {
        self.is_complete() || {
            let in_flight = self.in_flight.lock();
            extents.iter().all(|&extent| in_flight.present.contains_extent(extent))
        }
    }

    /// Requests blocks: `on_done` runs when they are present or failed. Returns `on_done` if they are
    /// present.
    pub(crate) fn request(self: &Arc<Self>, extents: &[Extent], on_done: OnDone) -> Option<OnDone> {
        if self.is_complete() {
            return Some(on_done);
        }
        if !*self.open.read() {
            on_done(Err(FetchFailure::Closed));
            return None;
        }
        let time_limit = self.source().and_then(|source| source.time_limit());
        let request = {
            let mut in_flight = self.in_flight.lock();
            let deadline = time_limit.and_then(|time_limit| Instant::now().checked_add(time_limit));
            let request = in_flight.request(extents, deadline, on_done);
            extents.iter().for_each(|&extent| in_flight.record_read(extent));
            request
        };
        self.start_fetches();
        match request {
            FetchRequest::Present(on_done) => return Some(on_done),
            FetchRequest::Waiting => self.schedule_timeout_check(),
            FetchRequest::Refused(on_done) => on_done(Err(FetchFailure::TooManyWaiters)),
        }
        None
    }

    /// Schedules the next timeout check through the source's timer.
    fn schedule_timeout_check(self: &Arc<Self>) {
        let Some(source) = self.source() else { return };
        let Some(next) = self.in_flight.lock().next_check_at() else { return };
        let base = Arc::downgrade(self);
        let check = move || {
            let Some(base) = base.upgrade() else { return };
            // A separate statement, which releases the lock: callbacks may request blocks again.
            let callbacks = base.in_flight.lock().expire(Instant::now());
            run_callbacks(callbacks);
            base.schedule_timeout_check();
        };
        source.wake_after(next.saturating_duration_since(Instant::now()), Box::new(check));
    }

    /// Requests blocks and waits until they are present.
    pub(crate) fn fetch_extents(self: &Arc<Self>, extents: &[Extent]) -> Result<(), FetchFailure> {
        wait(|on_done| self.request(extents, on_done).is_none())
    }

    /// Requests a byte range and waits until it is present.
    pub(crate) fn fetch_bytes(
        self: &Arc<Self>,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<(), VolumeError> {
        let extent = Extent::touching(offset_bytes, len_bytes);
        self.fetch_extents(&[extent]).map_err(|failure| self.failed(extent.start, failure))
    }

    /// Queues a background fetch of missing blocks; dropped if the queue is full.
    pub(crate) fn fetch_soon(self: &Arc<Self>, extent: Extent) {
        if !self.is_complete() {
            let whole = Extent::new(BlockIndex(0), self.blocks);
            {
                let mut in_flight = self.in_flight.lock();
                // A hint, dropped to bound memory.
                if in_flight.is_background_full() {
                    return;
                }
                in_flight.launch(extent.intersection(whole), 1, Urgency::Background);
            }
            self.start_fetches();
        }
    }

    pub(crate) fn failed(&self, start: BlockIndex, failure: FetchFailure) -> VolumeError {
        VolumeError::NotFetched { volume: self.volume, start, failure }
    }

    fn try_log(&self) -> Result<(), VolumeError> {
        match self.log.try_lock() {
            Some(mut log) => self.log_with(&mut log),
            // Another thread writes the log.
            None => Ok(()),
        }
    }

    /// Syncs the data of fetched blocks, then logs the blocks.
    pub(crate) fn write_log(&self) -> Result<(), VolumeError> {
        self.log_with(&mut self.log.lock())
    }

    fn log_with(&self, log: &mut Log) -> Result<(), VolumeError> {
        let new = std::mem::take(&mut self.in_flight.lock().unlogged);
        if new.is_empty() {
            return Ok(());
        }
        // The data of `new` is in the page cache, so the sync covers it.
        if let Err(error) = self.files.sync() {
            // The kernel may have dropped pages that it could not write: these blocks must be fetched again.
            // `complete` is cleared under the lock, so that `note_complete` cannot set it from the old state.
            let mut in_flight = self.in_flight.lock();
            self.complete.store(false, Ordering::Release);
            in_flight.invalidate_all_but(&log.logged);
            return Err(error);
        }
        if let Err(error) = log.log.append(&new) {
            self.in_flight.lock().unlogged.union_with(&new);
            return Err(error);
        }
        log.logged.union_with(&new);
        debug_assert!(log.logged.last().is_none_or(|last| last.0 < self.blocks), "only blocks of the base");
        let Log { log, logged } = log;
        if log.may_need_compaction()
            && let Err(error) = log.compact_if_sparse(logged)
        {
            tracing::warn!(volume = %self.volume, %error, "compaction failed on the hydration log: it keeps growing");
        }
        Ok(())
    }

    /// Returns the logged blocks, which the next start treats as present.
    pub(crate) fn logged(&self) -> BlockSet {
        self.log.lock().logged.clone()
    }

    /// Returns the present blocks with data, and the known zeroes.
    pub(crate) fn present(&self) -> (BlockSet, BlockSet) {
        let in_flight = self.in_flight.lock();
        let mut data = in_flight.present.clone();
        data.subtract(&in_flight.zero);
        (data, in_flight.zero.clone())
    }

    /// Reports the known zeroes (`true`) and other blocks (`false`) of an extent, ascending.
    pub(crate) fn split_zeroes<E>(
        &self,
        run: Extent,
        found: &mut dyn FnMut(Extent, bool) -> Result<(), E>,
    ) -> Result<(), E> {
        let zero = self.in_flight.lock().zero.slice(run);
        let mut at = run.start;
        for extent in zero.extents_in(run) {
            if extent.start > at {
                found(Extent::between(at, extent.start), false)?;
            }
            debug_assert!(at <= extent.start && extent.end() <= run.end(), "zeroes are inside the extent");
            found(extent, true)?;
            at = extent.end();
        }
        if at < run.end() { found(Extent::between(at, run.end()), false) } else { Ok(()) }
    }

    /// Returns true if all blocks are present; then later reads skip the table.
    pub(crate) fn note_complete(&self) -> bool {
        let in_flight = self.in_flight.lock();
        let all = in_flight.is_complete();
        if all {
            self.complete.store(true, Ordering::Release);
        }
        all
    }

    /// Closes the base: waits for running writes, refuses later ones, fails all waiters, and writes the log.
    pub(crate) fn close(&self) -> Result<(), VolumeError> {
        *self.open.write() = false;
        let callbacks = self.in_flight.lock().abandon(&FetchFailure::Closed);
        run_callbacks(callbacks);
        // Breaks a reference cycle: outstanding fetches of the source refer to this base.
        *self.source.write() = None;
        self.write_log()
    }

    /// Returns the blocks with data of a complete base.
    pub(crate) fn final_set(&self, size_bytes: u64) -> Result<BlockSet, VolumeError> {
        assert!(self.is_complete(), "an incomplete base has no final set");
        let mut held = BlockSet::from_iter([Extent::new(BlockIndex(0), self.blocks)]);
        held.subtract(&self.in_flight.lock().zero);
        for hole in self.files.holes(size_bytes, 1 << 20)? {
            held.remove_extent(Extent::inside(hole.start, hole.end - hole.start));
        }
        held.optimize();
        Ok(held)
    }
}

/// Runs `request` and waits for its callback if it returns true.
fn wait(request: impl FnOnce(OnDone) -> bool) -> Result<(), FetchFailure> {
    let shared = Arc::new((Mutex::new(None), Condvar::new()));
    let sender = shared.clone();
    let waits = request(Box::new(move |result| {
        *sender.0.lock() = Some(result);
        sender.1.notify_all();
    }));
    if !waits {
        return Ok(());
    }
    let mut result = shared.0.lock();
    loop {
        if let Some(result) = result.take() {
            return result;
        }
        shared.1.wait(&mut result);
    }
}

fn run_callbacks(callbacks: Vec<PendingCallback>) {
    callbacks.into_iter().for_each(PendingCallback::run);
}

#[cfg(test)]
mod tests;
