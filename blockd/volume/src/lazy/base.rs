//! Base of a lazy volume: data files filled from a source, and a log of present blocks.
//!
//! A block is *present* once its content is in the file; readers use it from then on. It is *logged* once a
//! later `fdatasync` of the data has returned and the log names it: only then does the next process believe
//! it. Blocks that are not logged are fetched again; the source returns the same content, so writing it twice
//! is harmless. Only replies of the source are written here: writes of guests go to the head.

mod fetch;
mod hydration;

use crate::{
    error::VolumeError,
    head::log::HeadLog,
    head::place::Place,
    io::files,
    layer::data_files::DataFiles,
    lazy::fetch_budget::FetchBudget,
    lazy::in_flight::{FetchRequest, InFlightTable},
    lazy::waiters::{Call, Then},
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
/// Fetched bytes between two log records: the maximum that a start fetches again.
const LOG_EVERY_BLOCKS: u64 = (64 << 20) / BLOCK_SIZE_BYTES;
/// Maximum number of data ranges that a start examines to find zeroes.
const MAX_RANGES: usize = 4096;

/// Files of a lazy base and their state.
pub(crate) struct LazyBase {
    volume: VolumeId,
    blocks: u64,
    /// Separate handles: those of the layer refer to this.
    files: DataFiles,
    source: RwLock<Option<Arc<dyn LazySource>>>,
    flights: Mutex<InFlightTable>,
    /// All blocks are present.
    complete: AtomicBool,
    /// False once the volume was closed; read-locked during writes.
    open: RwLock<bool>,
    log: Mutex<Log>,
    /// Held by the writer of the files. The kernel allows one write to a file at a time and the others spin,
    /// using CPU that could decrypt frames or serve readers.
    writing: Mutex<()>,
    /// Extents that were surveyed for zeroes.
    surveyed: Mutex<BlockSet>,
    /// Shared with all other lazy volumes.
    budget: Arc<FetchBudget>,
}

struct Log {
    log: HeadLog,
    logged: BlockSet,
}

impl LazyBase {
    /// Creates the log of a base with existing files and these durable blocks; the caller syncs the
    /// directory.
    pub(crate) fn create_log(place: Place<'_>, file: Epoch, there: &BlockSet) -> Result<(), VolumeError> {
        let mut log = HeadLog::create(&files::log_path(place.dir, file), place.identity(file))?;
        if there.is_empty() { Ok(()) } else { log.append(there) }
    }

    /// Opens a base.
    pub(crate) fn open(place: Place<'_>, file: Epoch) -> Result<Arc<Self>, VolumeError> {
        Self::open_within(place, file, FetchBudget::of_process())
    }

    fn open_within(
        place: Place<'_>,
        file: Epoch,
        budget: Arc<FetchBudget>,
    ) -> Result<Arc<Self>, VolumeError> {
        let data = DataFiles::open(&files::data_path(place.dir, file), place.size_bytes)?;
        let (log, logged) = HeadLog::open(&files::log_path(place.dir, file), place.identity(file))?;
        let mut flights = InFlightTable::new(place.blocks(), logged.clone());
        for hole in data.holes(place.size_bytes, MAX_RANGES)? {
            for run in logged.extents_in(Extent::inside(hole.start, hole.end - hole.start)) {
                flights.zero.insert_extent(run);
            }
        }
        let complete = flights.is_all_there();
        Ok(Arc::new(Self {
            volume: place.volume,
            blocks: place.blocks(),
            files: data,
            source: RwLock::default(),
            flights: Mutex::new(flights),
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

    /// Returns the source, or an error without one.
    fn source_for_fetch(&self) -> Result<Arc<dyn LazySource>, FetchFailure> {
        let missing = || if *self.open.read() { FetchFailure::NoSource } else { FetchFailure::Closed };
        self.source().ok_or_else(missing)
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// Returns true if a byte range is present; informs readahead.
    pub(crate) fn has(self: &Arc<Self>, offset_bytes: u64, len_bytes: u64) -> bool {
        if self.is_complete() {
            return true;
        }
        let extent = Extent::touching(offset_bytes, len_bytes);
        let mut flights = self.flights.lock();
        let is_there = flights.there.contains_extent(extent);
        if is_there {
            flights.note_read(extent);
            drop(flights);
            self.start_flights();
        }
        is_there
    }

    /// Returns true if all these blocks are present.
    pub(crate) fn has_all(&self, extents: &[Extent]) -> bool {
        self.is_complete() || {
            let flights = self.flights.lock();
            extents.iter().all(|&extent| flights.there.contains_extent(extent))
        }
    }

    /// Requests blocks and calls `then` when they are present or failed. Returns `then` if they are already
    /// present.
    pub(crate) fn want(self: &Arc<Self>, wanted: &[Extent], then: Then) -> Option<Then> {
        if self.is_complete() {
            return Some(then);
        }
        if !*self.open.read() {
            then(Err(FetchFailure::Closed));
            return None;
        }
        let time_limit = self.source().and_then(|source| source.time_limit());
        let wish = {
            let mut flights = self.flights.lock();
            let until = time_limit.and_then(|time_limit| Instant::now().checked_add(time_limit));
            let wish = flights.want(wanted, until, then);
            wanted.iter().for_each(|&extent| flights.note_read(extent));
            wish
        };
        self.start_flights();
        match wish {
            FetchRequest::Granted(then) => return Some(then),
            FetchRequest::Waits => self.mind_the_time(),
            FetchRequest::Refused(then) => then(Err(FetchFailure::TooMany)),
        }
        None
    }

    /// Schedules the next timeout check with the source.
    fn mind_the_time(self: &Arc<Self>) {
        let Some(source) = self.source() else { return };
        let Some(next) = self.flights.lock().next_poll_at() else { return };
        let base = Arc::downgrade(self);
        let poll = move || {
            let Some(base) = base.upgrade() else { return };
            // A separate statement: callbacks may request again, and the lock is held to the end of this one.
            let calls = base.flights.lock().poll(Instant::now());
            tell(calls);
            base.mind_the_time();
        };
        source.wake_after(next.saturating_duration_since(Instant::now()), Box::new(poll));
    }

    /// Waits until blocks are present.
    pub(crate) fn fetch_extents(self: &Arc<Self>, wanted: &[Extent]) -> Result<(), FetchFailure> {
        wait(|then| self.want(wanted, then).is_none())
    }

    /// Waits until a byte range is present; errors are those of the volume.
    pub(crate) fn fetch_bytes(
        self: &Arc<Self>,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<(), VolumeError> {
        let extent = Extent::touching(offset_bytes, len_bytes);
        self.fetch_extents(&[extent]).map_err(|failure| self.failed(extent.start, failure))
    }

    /// Requests blocks in the background.
    pub(crate) fn fetch_soon(self: &Arc<Self>, extent: Extent) {
        if !self.is_complete() {
            let whole = Extent::new(BlockIndex(0), self.blocks);
            {
                let mut flights = self.flights.lock();
                // Only a hint: many of them must not fill the memory.
                if flights.is_background_full() {
                    return;
                }
                flights.launch(extent.intersection(whole), 1, Urgency::Background);
            }
            self.start_flights();
        }
    }

    pub(crate) fn failed(&self, start: BlockIndex, failure: FetchFailure) -> VolumeError {
        VolumeError::NotFetched { volume: self.volume, start, failure }
    }

    fn try_log(&self) -> Result<(), VolumeError> {
        match self.log.try_lock() {
            Some(mut log) => self.log_with(&mut log),
            // Another thread does it.
            None => Ok(()),
        }
    }

    /// Makes fetched blocks durable, then logs them.
    pub(crate) fn write_log(&self) -> Result<(), VolumeError> {
        self.log_with(&mut self.log.lock())
    }

    fn log_with(&self, log: &mut Log) -> Result<(), VolumeError> {
        let new = std::mem::take(&mut self.flights.lock().unlogged);
        if new.is_empty() {
            return Ok(());
        }
        // The data of `new` is in the page cache, so the sync covers it.
        if let Err(error) = self.files.sync() {
            // The kernel drops pages that it could not write: these blocks must be fetched again. Under the
            // lock, so that a thread that saw the blocks present cannot declare the base complete afterwards.
            let mut flights = self.flights.lock();
            self.complete.store(false, Ordering::Release);
            flights.forget_all_but(&log.logged);
            return Err(error);
        }
        if let Err(error) = log.log.append(&new) {
            self.flights.lock().unlogged.union_with(&new);
            return Err(error);
        }
        log.logged.union_with(&new);
        debug_assert!(log.logged.last().is_none_or(|last| last.0 < self.blocks), "only blocks of the base");
        if log.log.wants_compaction(&log.logged)
            && let Err(error) = log.log.compact(&log.logged)
        {
            tracing::warn!(volume = %self.volume, %error, "the log of the hydration could not be rewritten; it goes on growing");
        }
        Ok(())
    }

    /// Returns the blocks that a start believes to be present.
    pub(crate) fn logged(&self) -> BlockSet {
        self.log.lock().logged.clone()
    }

    /// Returns present blocks with data, and known zeroes.
    pub(crate) fn present(&self) -> (BlockSet, BlockSet) {
        let flights = self.flights.lock();
        let mut data = flights.there.clone();
        data.subtract(&flights.zero);
        (data, flights.zero.clone())
    }

    /// Splits an extent into known zeroes (`true`) and the rest.
    pub(crate) fn cut<E>(
        &self,
        run: Extent,
        found: &mut dyn FnMut(Extent, bool) -> Result<(), E>,
    ) -> Result<(), E> {
        let zero = self.flights.lock().zero.slice(run);
        let mut at = run.start;
        for extent in zero.extents_in(run) {
            if extent.start > at {
                found(Extent::between(at, extent.start), false)?;
            }
            debug_assert!(at <= extent.start && extent.end() <= run.end(), "zeroes lie in the extent");
            found(extent, true)?;
            at = extent.end();
        }
        if at < run.end() { found(Extent::between(at, run.end()), false) } else { Ok(()) }
    }

    /// Returns true if all blocks are present, and remembers it.
    pub(crate) fn note_complete(&self) -> bool {
        let flights = self.flights.lock();
        let all = flights.is_all_there();
        if all {
            self.complete.store(true, Ordering::Release);
        }
        all
    }

    /// Stops writing and fails all waiters. Waits for running writes.
    pub(crate) fn close(&self) -> Result<(), VolumeError> {
        *self.open.write() = false;
        let calls = self.flights.lock().abandon(&FetchFailure::Closed);
        tell(calls);
        // Outstanding requests of the source refer to this base: a cycle of references.
        *self.source.write() = None;
        self.write_log()
    }

    /// Returns the block sets of a complete base with durable data.
    pub(crate) fn final_set(&self, size_bytes: u64) -> Result<BlockSet, VolumeError> {
        assert!(self.is_complete(), "an incomplete base has no final set");
        let mut held = BlockSet::from_iter([Extent::new(BlockIndex(0), self.blocks)]);
        held.subtract(&self.flights.lock().zero);
        for hole in self.files.holes(size_bytes, 1 << 20)? {
            held.remove_extent(Extent::inside(hole.start, hole.end - hole.start));
        }
        held.optimize();
        Ok(held)
    }
}

/// Waits for the result of a request, unless it needs no wait.
fn wait(ask: impl FnOnce(Then) -> bool) -> Result<(), FetchFailure> {
    let shared = Arc::new((Mutex::new(None), Condvar::new()));
    let teller = shared.clone();
    let waits = ask(Box::new(move |result| {
        *teller.0.lock() = Some(result);
        teller.1.notify_all();
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

fn tell(calls: Vec<Call>) {
    calls.into_iter().for_each(Call::make);
}

#[cfg(test)]
mod tests;
