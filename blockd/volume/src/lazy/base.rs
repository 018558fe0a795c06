//! Base of a lazy volume: data files filled from a source, and a log of present blocks.
//!
//! A block is *present* once its content is in the file; readers use it from then on. It is *logged* once a
//! later `fdatasync` of the data has returned and the log names it: only then does the next process believe
//! it. Blocks that are not logged are fetched again; the source returns the same content, so writing it twice
//! is harmless. Only replies of the source are written here: writes of guests go to the head.

use crate::{
    error::VolumeError,
    head::Place,
    head::log::{HeadLog, Identity},
    io::files,
    io::storage::Bug,
    layer::data_files::DataFiles,
    lazy::fetch_budget::{FetchBudget, Room, Starter},
    lazy::in_flight::{FetchRequest, InFlightTable},
    lazy::waiters::{Call, Then},
    lazy::{Arrivals, FetchFailure, FetchReply, Hydration, LazySource, Loss, SourceError, Urgency},
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Epoch, Extent, VolumeId};
use parking_lot::{Condvar, Mutex, RwLock};
use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

const BLOCK: usize = BLOCK_SIZE_BYTES as usize;
/// Fetched bytes between two log records: the maximum that a start fetches again.
const LOG_EVERY_BLOCKS: u64 = (64 << 20) / BLOCK_SIZE_BYTES;
/// Length of one survey of the source for zeroes: 16 GiB.
const SURVEY_BLOCKS: u64 = (16 << 30) / BLOCK_SIZE_BYTES;
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
    pub(crate) fn identity(place: Place<'_>, file: Epoch) -> Identity {
        Identity { volume: place.volume, epoch: file, blocks: place.blocks() }
    }

    /// Creates the log of a base with existing files and these durable blocks; the caller syncs the
    /// directory.
    pub(crate) fn create_log(place: Place<'_>, file: Epoch, there: &BlockSet) -> Result<(), VolumeError> {
        let mut log = HeadLog::create(&files::log_path(place.dir, file), Self::identity(place, file))?;
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
        let (log, logged) = HeadLog::open(&files::log_path(place.dir, file), Self::identity(place, file))?;
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

    /// Starts as many fetches as allowed. One thread at a time does so; a source that replies at once calls
    /// back into this.
    fn start_flights(self: &Arc<Self>) {
        {
            let mut flights = self.flights.lock();
            if std::mem::replace(&mut flights.is_starting, true) {
                return;
            }
        }
        loop {
            let (next, room) = {
                let mut flights = self.flights.lock();
                let wanted = flights.peek_to_start();
                let room =
                    wanted.and_then(|(blocks, urgency)| self.budget.take(self.starter(), blocks, urgency));
                let next = room.as_ref().and_then(|_| flights.next_to_start());
                flights.is_starting = next.is_some();
                (next, room)
            };
            let (Some((extent, urgency)), Some(room)) = (next, room) else {
                self.budget.pass_on(&self.starter());
                return;
            };
            let source = match self.source_for_fetch() {
                Ok(source) => source,
                Err(failure) => {
                    drop(room);
                    self.landed(extent, Err(failure), None);
                    continue;
                }
            };
            let flight = BaseFlight {
                base: self.clone(),
                extent,
                // Before the first block is written.
                forgets: self.flights.lock().forgets,
                data: Mutex::default(),
                room: Mutex::new(Some(room)),
            };
            source.fetch(extent, urgency, FetchReply::new(extent, Box::new(flight)));
        }
    }

    fn starter(self: &Arc<Self>) -> Weak<dyn Starter> {
        let base: Weak<Self> = Arc::downgrade(self);
        base
    }

    /// Ends a fetch with the zeroes among its blocks, the number of forgets before its first write, and lost
    /// blocks if any.
    fn landed(
        self: &Arc<Self>,
        extent: Extent,
        kept: Result<(BlockSet, u64), FetchFailure>,
        lost: Option<&(BlockSet, FetchFailure)>,
    ) {
        let (calls, is_time) = {
            let mut flights = self.flights.lock();
            let kept = kept.and_then(|(zero, forgets)| match flights.forgets == forgets {
                true => Ok(zero),
                // A sync failed during the write. The kernel may have dropped part of it, and the next sync
                // does not report that.
                false => {
                    let message = "the disk failed while the blocks were written; they have to come again";
                    Err(SourceError::new(message, true).into())
                }
            });
            let calls = match (&kept, lost) {
                (Ok(zero), Some((lost, failure))) => {
                    flights.landed_without(extent, zero, Some((lost, failure)))
                }
                _ => flights.landed(extent, kept.as_ref()),
            };
            (calls, flights.unlogged.len_blocks() >= LOG_EVERY_BLOCKS)
        };
        tell(calls);
        if is_time && let Err(error) = self.try_log() {
            tracing::warn!(volume = %self.volume, %error, "how far the hydration is cannot be written down for now");
        }
        self.start_flights();
    }

    /// Writes fetched blocks to the files; reports extents that are not zeroes.
    fn keep(
        &self,
        start: BlockIndex,
        data: &[u8],
        mut has_data: impl FnMut(Extent),
    ) -> Result<(), FetchFailure> {
        let open = self.open.read();
        if !*open {
            return Err(FetchFailure::Closed);
        }
        let mut write = |from: usize, to: usize| -> Result<(), FetchFailure> {
            if from < to {
                let offset_bytes = start.0 * BLOCK_SIZE_BYTES + from as u64;
                let turn = self.writing.lock();
                let written = self.files.write(offset_bytes, &data[from..to]);
                drop(turn);
                written.map_err(|error| FetchFailure::Disk(Arc::new(error)))?;
                has_data(Extent::inside(offset_bytes, (to - from) as u64));
            }
            Ok(())
        };
        let mut run_start = 0;
        for (number, block) in data.chunks_exact(BLOCK).enumerate() {
            // The file has a hole there and keeps it: only replies of the source are written.
            if block.iter().all(|&byte| byte == 0) {
                write(run_start, number * BLOCK)?;
                run_start = (number + 1) * BLOCK;
            }
        }
        write(run_start, data.len())
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
        if !self.files.has(Bug::HydrationLoggedBeforeSync)
            && let Err(error) = self.files.sync()
        {
            // The kernel drops pages that it could not write: these blocks must be fetched again.
            if !self.files.has(Bug::FailedSyncForgotten) {
                // Under the lock, so that a thread that saw the blocks present cannot declare the base
                // complete afterwards.
                let mut flights = self.flights.lock();
                self.complete.store(false, Ordering::Release);
                flights.forget_all_but(&log.logged);
            }
            return Err(error);
        }
        if let Err(error) = log.log.append(&new) {
            self.flights.lock().unlogged.union_with(&new);
            return Err(error);
        }
        log.logged.union_with(&new);
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
            found(extent, true)?;
            at = extent.end();
        }
        if at < run.end() { found(Extent::between(at, run.end()), false) } else { Ok(()) }
    }

    pub(crate) fn hydration(&self) -> Hydration {
        let flights = self.flights.lock();
        Hydration {
            total_bytes: self.blocks * BLOCK_SIZE_BYTES,
            done_bytes: flights.there.len_bytes(),
            fetched_bytes: flights.fetched_blocks * BLOCK_SIZE_BYTES,
            waiting: flights.waiting(),
            refused_bytes: flights.refused_blocks() * BLOCK_SIZE_BYTES,
        }
    }

    /// Makes `hydrate_next` retry permanently refused blocks.
    pub(crate) fn retry_refused(&self) {
        self.flights.lock().retry_refused();
    }

    /// Prefers these blocks in hydration.
    pub(crate) fn prefer(&self, extents: &[Extent]) {
        let whole = Extent::new(BlockIndex(0), self.blocks);
        let inside: Vec<Extent> = extents.iter().map(|extent| extent.intersection(whole)).collect();
        self.flights.lock().preferred.push(&inside);
    }

    /// Returns the extent surveyed together with a block.
    fn stretch_of(&self, block: BlockIndex) -> Extent {
        let start = block.0 / SURVEY_BLOCKS * SURVEY_BLOCKS;
        Extent::between(BlockIndex(start), BlockIndex((start + SURVEY_BLOCKS).min(self.blocks)))
    }

    /// Asks the source for zeroes around a block, so that they need not be fetched.
    fn survey(&self, block: BlockIndex) -> Result<(), FetchFailure> {
        let stretch = self.stretch_of(block);
        if self.surveyed.lock().contains(block) {
            return Ok(());
        }
        let source = self.source_for_fetch()?;
        let data = source.data_blocks(stretch)?;
        let open = self.open.read();
        if !*open {
            return Err(FetchFailure::Closed);
        }
        let mut flights = self.flights.lock();
        for gap in data.gaps_in(stretch) {
            // A present block may have data although the source reports zeroes.
            let missing: Vec<Extent> = flights.there.gaps_in(gap).collect();
            for run in missing {
                flights.have(run, &BlockSet::from_iter([run]));
            }
        }
        drop(flights);
        self.surveyed.lock().insert_extent(stretch);
        Ok(())
    }

    /// Returns all blocks that may have data; asks the source where unknown.
    pub(crate) fn data_set(&self) -> Result<BlockSet, VolumeError> {
        let mut at = BlockIndex(0);
        while at.0 < self.blocks && !self.is_complete() {
            self.survey(at).map_err(|failure| self.failed(at, failure))?;
            at = BlockIndex(at.0 + SURVEY_BLOCKS);
        }
        let mut data = BlockSet::from_iter([Extent::new(BlockIndex(0), self.blocks)]);
        data.subtract(&self.flights.lock().zero);
        Ok(data)
    }

    /// Fetches and waits for the next blocks of hydration; returns the bytes, or `None` if all are present,
    /// in flight or refused. Permanently refused blocks are skipped from then on.
    pub(crate) fn hydrate_next(self: &Arc<Self>) -> Result<Option<u64>, VolumeError> {
        loop {
            let mut next = None;
            let mut is_surveyed = true;
            // The wait does not make the background fetch urgent. It is created and joined under one lock, so
            // that it cannot end in between.
            let landed = wait(|then| {
                let mut flights = self.flights.lock();
                next = flights.next_in_background();
                let Some(next) = next else { return false };
                is_surveyed = self.surveyed.lock().contains(next.start);
                if !is_surveyed {
                    return false;
                }
                flights.launch(next, 1, Urgency::Background);
                let waits = flights.join(next, then);
                drop(flights);
                self.start_flights();
                waits
            });
            let Some(next) = next else { return Ok(None) };
            if is_surveyed {
                return match landed {
                    Ok(()) => Ok(Some(next.len_bytes())),
                    Err(failure) => Err(self.failed(next.start, failure)),
                };
            }
            self.survey(next.start).map_err(|failure| {
                if matches!(&failure, FetchFailure::Source(error) if !error.is_retryable()) {
                    self.flights.lock().refuse(self.stretch_of(next.start));
                }
                self.failed(next.start, failure)
            })?;
        }
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
        let calls = self.flights.lock().give_up(&FetchFailure::Closed);
        tell(calls);
        // Outstanding requests of the source refer to this base: a cycle of references.
        *self.source.write() = None;
        self.write_log()
    }

    /// Returns the block sets of a complete base with durable data.
    pub(crate) fn final_set(&self, size_bytes: u64) -> Result<BlockSet, VolumeError> {
        let mut held = BlockSet::from_iter([Extent::new(BlockIndex(0), self.blocks)]);
        held.subtract(&self.flights.lock().zero);
        for hole in self.files.holes(size_bytes, 1 << 20)? {
            held.remove_extent(Extent::inside(hole.start, hole.end - hole.start));
        }
        held.optimize();
        Ok(held)
    }
}

/// Running fetch of a lazy base and its progress.
struct BaseFlight {
    base: Arc<LazyBase>,
    extent: Extent,
    /// Number of forgets before the first write.
    forgets: u64,
    /// Written blocks.
    data: Mutex<BlockSet>,
    room: Mutex<Option<Room>>,
}

impl Arrivals for BaseFlight {
    fn keep(&self, start: BlockIndex, data: &[u8]) -> Result<(), FetchFailure> {
        self.base.keep(start, data, |run| self.data.lock().insert_extent(run))
    }

    fn ended(&self, result: Result<(), Loss>) {
        // Others precede this one's next fetch.
        drop(self.room.lock().take());
        let zero = || {
            let mut zero = BlockSet::from_iter([self.extent]);
            zero.subtract(&self.data.lock());
            zero
        };
        let (kept, lost) = match result {
            Ok(()) => (Ok((zero(), self.forgets)), None),
            Err(Loss { blocks: Some(lost), failure }) => (Ok((zero(), self.forgets)), Some((lost, failure))),
            Err(Loss { blocks: None, failure }) => (Err(failure), None),
        };
        self.base.landed(self.extent, kept, lost.as_ref());
    }
}

impl Starter for LazyBase {
    fn take_turn(self: Arc<Self>) {
        self.start_flights();
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
mod tests {
    use super::*;

    const BLOCKS: u64 = 64;

    fn base(dir: &std::path::Path) -> Arc<LazyBase> {
        let place = Place { dir, volume: VolumeId::from_u64(1), size_bytes: BLOCKS * BLOCK_SIZE_BYTES };
        drop(DataFiles::create(&files::data_path(dir, Epoch(1)), place.size_bytes).unwrap());
        LazyBase::create_log(place, Epoch(1), &BlockSet::new()).unwrap();
        LazyBase::open(place, Epoch(1)).unwrap()
    }

    #[test]
    fn failed_sync_drops_blocks_written_during_it() {
        let dir = tempfile::tempdir().unwrap();
        let base = base(dir.path());
        let extent = Extent::new(BlockIndex(0), 8);
        let data = vec![7; extent.len_bytes() as usize];
        for fails in [true, false] {
            base.flights.lock().launch(extent, 1, Urgency::Background);
            let (told, hears) = std::sync::mpsc::channel();
            assert!(base.flights.lock().join(extent, Box::new(move |result| told.send(result).unwrap())));
            assert_eq!(base.flights.lock().next_to_start(), Some((extent, Urgency::Background)));
            let forgets = base.flights.lock().forgets;
            base.keep(extent.start, &data, |_| {}).unwrap();
            if fails {
                base.flights.lock().forget_all_but(&BlockSet::new());
            }
            base.landed(extent, Ok((BlockSet::new(), forgets)), None);
            match hears.recv().unwrap() {
                Ok(()) => assert!(!fails),
                Err(failure) => assert!(fails && base.failed(extent.start, failure).is_retryable()),
            }
            base.write_log().unwrap();
            assert_eq!(base.has_all(&[extent]), !fails);
            assert_eq!(base.logged().contains_extent(extent), !fails);
        }
    }

    /// Fake source that holds requests until told to reply.
    #[derive(Default)]
    struct Held(Mutex<std::collections::VecDeque<(Extent, FetchReply)>>);

    impl LazySource for Held {
        fn fetch(&self, extent: Extent, _: Urgency, reply: FetchReply) {
            self.0.lock().push_back((extent, reply));
        }

        fn data_blocks(&self, extent: Extent) -> Result<BlockSet, SourceError> {
            Ok(BlockSet::from_iter([extent]))
        }
    }

    #[test]
    fn partial_replies_are_kept_until_completion() {
        const PIECE: usize = 2 * BLOCK;
        let dir = tempfile::tempdir().unwrap();
        let base = base(dir.path());
        let source = Arc::new(Held::default());
        base.set_source(source.clone());
        let extent = Extent::new(BlockIndex(8), 8);
        let ask = || {
            let (told, hears) = std::sync::mpsc::channel();
            let then: Then = Box::new(move |result| told.send(result).unwrap());
            assert!(base.want(&[extent], then).is_none());
            let (asked, reply) = source.0.lock().pop_front().unwrap();
            assert!(asked.start <= extent.start && asked.end() >= extent.end());
            (reply, hears)
        };
        // A fetch that fails midway.
        let (reply, hears) = ask();
        let late = reply.sink();
        late.put(BlockIndex(8), &[1; PIECE]).unwrap();
        reply.end(Err(SourceError::new("the store is gone", true)));
        assert!(hears.recv().unwrap().is_err());
        assert!(late.put(BlockIndex(8), &[9; PIECE]).is_err(), "it was given up");
        // A fetch that returns too much.
        let (reply, hears) = ask();
        let sink = reply.sink();
        for (start, len) in [(u64::MAX, BLOCK), (BLOCKS, BLOCK), (8, 1), (BLOCKS - 1, PIECE)] {
            assert!(sink.put(BlockIndex(start), &vec![9; len]).is_err(), "{start}, {len}");
        }
        assert!(sink.has_failed());
        reply.end(Ok(()));
        let failure = hears.recv().unwrap().unwrap_err();
        assert!(matches!(failure, FetchFailure::Source(error) if !error.is_retryable()));
        // A fetch that arrives, partly twice, with explicit and implicit zeroes.
        let (reply, hears) = ask();
        let sink = reply.sink();
        sink.put(BlockIndex(8), &[2; PIECE]).unwrap();
        sink.put(BlockIndex(12), &[[3; BLOCK], [0; BLOCK]].concat()).unwrap();
        sink.put(BlockIndex(8), &[2; PIECE]).unwrap();
        assert!(!base.has_all(&[extent]), "it may not be all");
        reply.end(Ok(()));
        assert!(hears.recv().unwrap().is_ok());
        assert!(sink.put(BlockIndex(8), &[9; BLOCK]).is_err(), "it may have another owner by now");
        let data = BlockSet::from_iter([Extent::new(BlockIndex(8), 2), Extent::new(BlockIndex(12), 1)]);
        assert_eq!(base.present().0, data);
        let mut found = vec![9; extent.len_bytes() as usize];
        base.files.read(extent.offset_bytes(), &mut found).unwrap();
        let wanted: Vec<u8> = [2, 2, 0, 0, 3, 0, 0, 0].iter().flat_map(|&byte| [byte; BLOCK]).collect();
        assert!(found == wanted);
    }

    /// Fake source that refuses synchronously.
    struct Refusing;

    impl LazySource for Refusing {
        fn fetch(&self, _: Extent, _: Urgency, reply: FetchReply) {
            reply.end(Err(SourceError::new("the store is gone", true)));
        }

        fn data_blocks(&self, extent: Extent) -> Result<BlockSet, SourceError> {
            Ok(BlockSet::from_iter([extent]))
        }
    }

    #[test]
    fn immediate_failure_is_not_counted_as_fetched() {
        let dir = tempfile::tempdir().unwrap();
        let base = base(dir.path());
        base.set_source(Arc::new(Refusing));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Other threads start the fetch and may end it before it is joined.
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    base.start_flights();
                }
            });
            let fetched = (0..2000).filter(|_| !matches!(base.hydrate_next(), Ok(None) | Err(_))).count();
            stop.store(true, Ordering::Relaxed);
            assert_eq!(fetched, 0);
        });
    }

    #[test]
    fn two_readers_in_order_share_one_budget() {
        const MIB_BLOCKS: u64 = (1 << 20) / BLOCK_SIZE_BYTES;
        let (blocks, most) = (96 * MIB_BLOCKS, 16 * MIB_BLOCKS);
        let budget = FetchBudget::new(most, 12 * MIB_BLOCKS);
        let source = Arc::new(Held::default());
        let dirs = [1, 2].map(|_| tempfile::tempdir().unwrap());
        let bases = [1, 2].map(|number: u64| {
            let dir = dirs[number as usize - 1].path();
            let size_bytes = blocks * BLOCK_SIZE_BYTES;
            let place = Place { dir, volume: VolumeId::from_u64(number), size_bytes };
            drop(DataFiles::create(&files::data_path(dir, Epoch(1)), size_bytes).unwrap());
            LazyBase::create_log(place, Epoch(1), &BlockSet::new()).unwrap();
            let base = LazyBase::open_within(place, Epoch(1), budget.clone()).unwrap();
            base.set_source(source.clone());
            base
        });
        let piece = MIB_BLOCKS / 4;
        let mut done = [0, 0];
        let mut came = [true, true].map(|_| Arc::new(AtomicBool::new(true)));
        let mut most_seen = 0;
        while done.iter().any(|&done| done < blocks) {
            for (reader, base) in bases.iter().enumerate() {
                while came[reader].load(Ordering::Relaxed) && done[reader] < blocks {
                    let extent = Extent::new(BlockIndex(done[reader]), piece);
                    done[reader] += piece;
                    came[reader] = Arc::new(AtomicBool::new(false));
                    let tells = came[reader].clone();
                    let then: Then = Box::new(move |result| {
                        assert!(result.is_ok());
                        tells.store(true, Ordering::Relaxed);
                    });
                    if let Some(then) = base.want(&[extent], then) {
                        then(Ok(()));
                    }
                }
            }
            let under_way: u64 = source.0.lock().iter().map(|(extent, _)| extent.len_blocks).sum();
            assert!(under_way <= most, "{under_way} blocks under way");
            most_seen = most_seen.max(under_way);
            assert!(done[0].abs_diff(done[1]) <= 24 * MIB_BLOCKS, "one comes before the other: {done:?}");
            let first = source.0.lock().pop_front();
            if let Some((extent, reply)) = first {
                reply.complete(Ok(vec![0; extent.len_bytes() as usize]));
            } else {
                assert!(done.iter().all(|&done| done == blocks), "nothing is under way: {done:?}");
            }
        }
        assert!(most_seen > most / 2, "{most_seen} of {most} blocks were used");
        while let Some((extent, reply)) = { source.0.lock().pop_front() } {
            reply.complete(Ok(vec![0; extent.len_bytes() as usize]));
        }
        assert!(came.iter().all(|came| came.load(Ordering::Relaxed)));
    }

    #[test]
    fn hints_are_dropped_when_too_many_wait() {
        let dir = tempfile::tempdir().unwrap();
        let base = base(dir.path());
        // Another thread is about to start fetches, so all of them wait.
        base.flights.lock().is_starting = true;
        for block in 0..BLOCKS {
            base.fetch_soon(Extent::new(BlockIndex(block), 1));
        }
        assert!(base.flights.lock().is_background_full());
        let mut started = 0;
        while base.flights.lock().next_to_start().is_some() {
            started += 1;
        }
        assert!(started < BLOCKS * 3 / 4, "{started}");
    }
}
