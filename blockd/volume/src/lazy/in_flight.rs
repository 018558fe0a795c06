//! In-flight table of a lazy base: present blocks, running fetches and their waiters.
//!
//! Pure state behind one lock (single-flight): at most one fetch at a time requests a block, and fetches do
//! not overlap. Fetches with waiting readers start before background ones, and their number is bounded.

use crate::{
    lazy::prefetch_queue::PrefetchQueue,
    lazy::waiters::{Call, Then, WaiterId, Waiters},
    lazy::{FetchFailure, Urgency},
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent, Readahead, ReadaheadLimits};
use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    time::Instant,
};

/// Length fetched around a missed block: 256 KiB, two frames of a cloud snapshot.
pub(crate) const MISS_BLOCKS: u64 = (256 << 10) / BLOCK_SIZE_BYTES;
/// Maximum length of a fetch: 4 MiB.
pub(crate) const MAX_FLIGHT_BLOCKS: u64 = (4 << 20) / BLOCK_SIZE_BYTES;
/// Maximum number of running fetches of a volume; each holds its blocks in memory, so at most 160 MiB. All
/// volumes together have a [budget](super::fetch_budget).
const MAX_ACTIVE: usize = 40;
/// Readahead of a lazy volume. The window is as large as what a restore has in flight, 128 MiB: with half of
/// it, sequential readers wait for a slow store twice as often. A step is one fetch, 4 MiB.
const READAHEAD: ReadaheadLimits = ReadaheadLimits {
    first_window_blocks: 256,
    max_window_blocks: 32_768,
    max_step_blocks: 1024,
    slack_blocks: 256,
    min_reads: 2,
};
/// Maximum number of background fetches among them; others wait or are dropped. A whole readahead window is
/// 32.
const MAX_BACKGROUND: usize = 34;
/// Maximum number of remembered hot places.
const MAX_HOT: usize = 256;
/// Length of the hot area around a read: 4 MiB.
const HOT_BLOCKS: u64 = MAX_FLIGHT_BLOCKS;

struct InFlightFetch {
    extent: Extent,
    urgency: Urgency,
    is_active: bool,
    waiters: Vec<Waiter>,
}

/// Waiter of a fetch.
struct Waiter {
    id: WaiterId,
    /// The fetch was already running: its source may time out too early for this waiter.
    came_late: bool,
}

/// Result of a request.
pub(crate) enum FetchRequest {
    /// All blocks are present; `then` was not called.
    Granted(Then),
    /// `then` will be called.
    Waits,
    /// Too many waiters; `then` was not called.
    Refused(Then),
}

/// In-flight table of a lazy base.
#[derive(Default)]
pub(crate) struct InFlightTable {
    /// Blocks whose content is in the file (page cache).
    pub(crate) there: BlockSet,
    /// Blocks among them that the log does not name yet.
    pub(crate) unlogged: BlockSet,
    /// Blocks among them that are known zeroes, holes of the file.
    pub(crate) zero: BlockSet,
    end: BlockIndex,
    by_start: BTreeMap<u64, InFlightFetch>,
    waiters: Waiters,
    /// A timeout check is scheduled.
    is_timed: bool,
    urgent: VecDeque<u64>,
    background: VecDeque<u64>,
    active: usize,
    active_background: usize,
    /// A thread is starting fetches.
    pub(crate) is_starting: bool,
    readahead: Readahead,
    pub(crate) preferred: PrefetchQueue,
    hot: VecDeque<BlockIndex>,
    hot_known: HashSet<u64>,
    cursor: BlockIndex,
    pub(crate) fetched_blocks: u64,
    /// Number of times that blocks were forgotten: data written meanwhile may be lost, too.
    pub(crate) forgets: u64,
    /// Blocks that the source refused permanently: hydration skips them.
    refused: BlockSet,
}

impl InFlightTable {
    /// Creates the table of a base with these durable blocks.
    pub(crate) fn new(blocks: u64, there: BlockSet) -> Self {
        Self { there, end: BlockIndex(blocks), ..Self::default() }
    }

    pub(crate) fn is_all_there(&self) -> bool {
        self.there.len_blocks() == self.end.0
    }

    pub(crate) fn waiting(&self) -> u64 {
        self.waiters.len() as u64
    }

    /// Requests blocks. `then` is kept until they are present or `until` has passed, unless all are present.
    pub(crate) fn want(&mut self, wanted: &[Extent], until: Option<Instant>, then: Then) -> FetchRequest {
        let gaps: Vec<Extent> = wanted
            .iter()
            .flat_map(|&extent| self.there.gaps_in(extent.intersection(self.full_extent())))
            .collect();
        let Some(first) = gaps.first() else { return FetchRequest::Granted(then) };
        if self.waiters.is_full() {
            return FetchRequest::Refused(then);
        }
        self.note_hot(first.start);
        for &gap in &gaps {
            self.launch(gap, MISS_BLOCKS, Urgency::Reader);
        }
        let mut starts: Vec<u64> = gaps.iter().flat_map(|&gap| self.overlapping(gap)).collect();
        starts.sort_unstable();
        starts.dedup();
        assert!(!starts.is_empty(), "a fetch ends the wait for missing blocks");
        let id = self.waiters.add(gaps, starts.len(), until, then);
        for start in starts {
            if let Some(flight) = self.by_start.get_mut(&start) {
                flight.waiters.push(Waiter { id, came_late: flight.is_active });
                if flight.urgency == Urgency::Background {
                    flight.urgency = Urgency::Reader;
                    if flight.is_active {
                        assert!(self.active_background > 0, "active background fetches are counted");
                        self.active_background -= 1;
                    } else {
                        self.background.retain(|&queued| queued != start);
                        self.urgent.push_back(start);
                    }
                }
            }
        }
        FetchRequest::Waits
    }

    /// Calls `then` when the running fetches of an extent have ended; returns false without a call if there
    /// are none.
    pub(crate) fn join(&mut self, stretch: Extent, then: Then) -> bool {
        let starts = self.overlapping(stretch);
        if starts.is_empty() {
            return false;
        }
        let id = self.waiters.add(vec![stretch], starts.len(), None, then);
        for start in starts {
            if let Some(flight) = self.by_start.get_mut(&start) {
                flight.waiters.push(Waiter { id, came_late: false });
            }
        }
        true
    }

    /// Forgets all blocks that are not in `sure`.
    pub(crate) fn forget_all_but(&mut self, sure: &BlockSet) {
        self.there.intersect_with(sure);
        self.zero.intersect_with(sure);
        self.unlogged = BlockSet::new();
        self.forgets += 1;
        debug_assert!(self.is_consistent(), "known zeroes are present");
    }

    /// Excludes blocks from hydration that the source refused permanently.
    pub(crate) fn refuse(&mut self, stretch: Extent) {
        self.refused.insert_extent(stretch);
    }

    /// Includes refused blocks in hydration again.
    pub(crate) fn retry_refused(&mut self) {
        self.refused = BlockSet::new();
    }

    /// Returns the number of refused, missing blocks.
    pub(crate) fn refused_blocks(&self) -> u64 {
        let mut refused = self.refused.clone();
        refused.subtract(&self.there);
        refused.len_blocks()
    }

    /// Returns true if so many background fetches wait that hints are dropped.
    pub(crate) fn is_background_full(&self) -> bool {
        self.background.len() >= MAX_BACKGROUND
    }

    fn full_extent(&self) -> Extent {
        Extent::between(BlockIndex(0), self.end)
    }

    /// Records a read and starts readahead for sequential readers.
    pub(crate) fn note_read(&mut self, extent: Extent) {
        let Some(ahead) = self.readahead.record(&READAHEAD, extent) else { return };
        let ahead = ahead.intersection(self.full_extent());
        if ahead.is_empty() || self.is_background_full() {
            return;
        }
        self.launch(ahead, MISS_BLOCKS, Urgency::Background);
    }

    /// Creates fetches for the blocks of an extent that are neither present nor in flight, extended to
    /// multiples of `unit_blocks`.
    pub(crate) fn launch(&mut self, stretch: Extent, unit_blocks: u64, urgency: Urgency) {
        let from = stretch.start.0 / unit_blocks * unit_blocks;
        let to = stretch.end().0.next_multiple_of(unit_blocks).min(self.end.0);
        let wide = Extent::between(BlockIndex(from), BlockIndex(to));
        let mut free = BlockSet::from_iter([wide]);
        for present in self.there.extents_in(wide) {
            free.remove_extent(present);
        }
        for start in self.overlapping(wide) {
            if let Some(flight) = self.by_start.get(&start) {
                free.remove_extent(flight.extent);
            }
        }
        for run in free.extents() {
            if run.intersection(stretch).is_empty() {
                continue;
            }
            let mut at = run.start;
            while at < run.end() {
                let end = BlockIndex((at.0 / MAX_FLIGHT_BLOCKS + 1) * MAX_FLIGHT_BLOCKS).min(run.end());
                let extent = Extent::between(at, end);
                at = end;
                assert!(
                    (1..=MAX_FLIGHT_BLOCKS).contains(&extent.len_blocks),
                    "the length of a fetch is bounded"
                );
                debug_assert!(self.overlapping(extent).is_empty(), "one fetch requests a block");
                self.by_start.insert(
                    extent.start.0,
                    InFlightFetch { extent, urgency, is_active: false, waiters: vec![] },
                );
                match urgency {
                    Urgency::Reader => self.urgent.push_back(extent.start.0),
                    Urgency::Background => self.background.push_back(extent.start.0),
                }
            }
        }
    }

    /// Returns the starts of fetches that overlap an extent.
    fn overlapping(&self, stretch: Extent) -> Vec<u64> {
        let from = stretch.start.0.saturating_sub(MAX_FLIGHT_BLOCKS);
        let near = self.by_start.range(from..stretch.end().0);
        near.filter(|(_, flight)| flight.extent.end() > stretch.start).map(|(&start, _)| start).collect()
    }

    /// Returns length and urgency of the next fetch to start, if allowed.
    pub(crate) fn peek_to_start(&self) -> Option<(u64, Urgency)> {
        if self.active >= MAX_ACTIVE {
            return None;
        }
        let may_hydrate = self.active_background < MAX_BACKGROUND;
        let start = self.urgent.front().or_else(|| self.background.front().filter(|_| may_hydrate))?;
        self.by_start.get(start).map(|flight| (flight.extent.len_blocks, flight.urgency))
    }

    /// Takes the next fetch to start, if allowed.
    pub(crate) fn next_to_start(&mut self) -> Option<(Extent, Urgency)> {
        if self.active >= MAX_ACTIVE {
            return None;
        }
        let start = match self.urgent.pop_front() {
            Some(start) => start,
            None if self.active_background < MAX_BACKGROUND => self.background.pop_front()?,
            None => return None,
        };
        let flight = self.by_start.get_mut(&start)?;
        assert!(!flight.is_active, "a fetch starts once");
        flight.is_active = true;
        self.active += 1;
        self.active_background += usize::from(flight.urgency == Urgency::Background);
        assert!(
            self.active <= MAX_ACTIVE && self.active_background <= self.active,
            "running fetches are bounded"
        );
        Some((flight.extent, flight.urgency))
    }

    /// Ends a fetch: its blocks, with the zeroes among them, are present, or it failed. Returns the calls to
    /// make.
    pub(crate) fn landed(&mut self, extent: Extent, outcome: Result<&BlockSet, &FetchFailure>) -> Vec<Call> {
        match outcome {
            Ok(zero) => self.landed_without(extent, zero, None),
            Err(failure) => {
                let all = BlockSet::from_iter([extent]);
                self.landed_without(extent, &BlockSet::new(), Some((&all, failure)))
            }
        }
    }

    /// Ends a partially failed fetch: an error for waiters of the failed blocks only. Permanently failed
    /// blocks are excluded from hydration.
    ///
    /// If a retry can succeed, the fetch runs once more for waiters that joined it while it was running.
    pub(crate) fn landed_without(
        &mut self,
        extent: Extent,
        zero: &BlockSet,
        loss: Option<(&BlockSet, &FetchFailure)>,
    ) -> Vec<Call> {
        let Some(flight) = self.by_start.remove(&extent.start.0) else { return vec![] };
        assert!(flight.extent == extent, "a fetch ends as it began");
        if flight.is_active {
            assert!(self.active > 0, "active fetches are counted");
            self.active -= 1;
            self.active_background -= usize::from(flight.urgency == Urgency::Background);
        }
        assert!(self.active_background <= self.active, "background fetches are among the active ones");
        let mut came = BlockSet::from_iter([extent]);
        if let Some((lost, failure)) = loss {
            came.subtract(lost);
            if matches!(failure, FetchFailure::Source(error) if !error.is_retryable()) {
                lost.extents_in(extent).for_each(|run| self.refuse(run));
            }
        }
        for run in came.extents() {
            self.fetched_blocks += run.len_blocks;
            self.have(run, &zero.slice(run));
        }
        let may_succeed = loss.is_some_and(|(_, failure)| failure.is_retryable());
        let mut calls = Vec::new();
        let mut late = Vec::new();
        for Waiter { id, came_late } in flight.waiters {
            if came_late && may_succeed && self.waiters.contains(id) {
                late.push(Waiter { id, came_late: false });
            } else {
                calls.extend(self.waiters.landed(id, loss));
            }
        }
        // Nothing arrived: only a permanent loss leaves the other blocks present.
        if !late.is_empty() {
            let again = InFlightFetch { extent, urgency: Urgency::Reader, is_active: false, waiters: late };
            self.by_start.insert(extent.start.0, again);
            self.urgent.push_back(extent.start.0);
        }
        calls
    }

    /// Returns the time of the next timeout check, unless one is scheduled; the caller schedules it.
    pub(crate) fn next_poll_at(&mut self) -> Option<Instant> {
        let next = if self.is_timed { None } else { self.waiters.next_end() };
        self.is_timed |= next.is_some();
        next
    }

    /// Expires waiters and returns the calls to make. Fetches without waiters are not started.
    pub(crate) fn poll(&mut self, now: Instant) -> Vec<Call> {
        self.is_timed = false;
        let calls = self.waiters.expire(now);
        let Self { urgent, by_start, waiters, .. } = self;
        if !calls.is_empty() {
            urgent.retain(|start| {
                let flight = by_start.get(start);
                let is_wanted =
                    flight.is_some_and(|flight| flight.waiters.iter().any(|who| waiters.contains(who.id)));
                if !is_wanted {
                    by_start.remove(start);
                }
                is_wanted
            });
        }
        calls
    }

    /// Records present blocks; those of `zero` are zeroes.
    pub(crate) fn have(&mut self, extent: Extent, zero: &BlockSet) {
        for gap in self.there.gaps_in(extent).collect::<Vec<_>>() {
            self.there.insert_extent(gap);
            self.unlogged.insert_extent(gap);
        }
        self.zero.union_with(zero);
        debug_assert!(
            self.there.last().is_none_or(|last| last < self.end),
            "blocks beyond the end of the base"
        );
        debug_assert!(self.is_consistent(), "known zeroes are present");
    }

    /// Returns true if known zeroes and blocks to log are present; for assertions.
    fn is_consistent(&self) -> bool {
        [&self.zero, &self.unlogged].iter().all(|set| {
            let mut missing = (*set).clone();
            missing.subtract(&self.there);
            missing.is_empty()
        })
    }

    /// Fails all waiters with an error and drops fetches that are not running.
    pub(crate) fn abandon(&mut self, failure: &FetchFailure) -> Vec<Call> {
        self.urgent.clear();
        self.background.clear();
        self.by_start.retain(|_, flight| flight.is_active);
        self.waiters.dismiss(failure)
    }

    fn note_hot(&mut self, block: BlockIndex) {
        let place = block.0 / HOT_BLOCKS;
        if self.hot_known.insert(place) {
            self.hot.push_back(block);
            if self.hot.len() > MAX_HOT
                && let Some(oldest) = self.hot.pop_front()
            {
                self.hot_known.remove(&(oldest.0 / HOT_BLOCKS));
            }
        }
    }

    /// Returns the next extent for hydration: around recent reads, newest first, then preferred extents, then
    /// the rest in order; `None` if all is present or in flight.
    pub(crate) fn next_in_background(&mut self) -> Option<Extent> {
        while let Some(hot) = self.hot.pop_back() {
            let place = hot.0 / HOT_BLOCKS;
            self.hot_known.remove(&place);
            let around =
                Extent::new(BlockIndex(place * HOT_BLOCKS), HOT_BLOCKS).intersection(self.full_extent());
            if let Some(found) = self.first_missing(around) {
                self.hot.push_back(hot);
                self.hot_known.insert(place);
                return Some(found);
            }
        }
        while let Some(first) = self.preferred.first() {
            if let Some(found) = self.first_missing(first.intersection(self.full_extent())) {
                return Some(found);
            }
            self.preferred.pop();
        }
        let behind = Extent::between(self.cursor.min(self.end), self.end);
        let found = self.first_missing(behind).or_else(|| self.first_missing(self.full_extent()))?;
        self.cursor = found.end();
        Some(found)
    }

    /// Returns the first extent that is neither present nor in flight, clipped to one fetch.
    fn first_missing(&self, stretch: Extent) -> Option<Extent> {
        let gaps = self.there.gaps_in(stretch).flat_map(|gap| self.refused.gaps_in(gap));
        for gap in gaps {
            let mut at = gap.start;
            while at < gap.end() {
                let end = BlockIndex((at.0 / MAX_FLIGHT_BLOCKS + 1) * MAX_FLIGHT_BLOCKS).min(gap.end());
                let mut free = Extent::between(at, end);
                for start in self.overlapping(free) {
                    let Some(flight) = self.by_start.get(&start) else { continue };
                    if flight.extent.start > free.start {
                        free = Extent::between(free.start, flight.extent.start);
                        break;
                    }
                    free = Extent::between(flight.extent.end().min(free.end()), free.end());
                }
                if !free.is_empty() {
                    return Some(free);
                }
                at = end;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
