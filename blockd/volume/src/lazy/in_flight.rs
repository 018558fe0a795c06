//! In-flight table of a lazy base: present blocks, queued and running fetches, and their waiters.
//!
//! Pure state behind one lock. Fetches never overlap, so readers of a block share one fetch (single-flight).
//! Fetches with waiting readers start before background ones, and the number of running fetches is limited.

use crate::{
    lazy::fetch_budget::MAX_FETCH_BLOCKS,
    lazy::hydration_order::{HydrationOrder, STEP_BLOCKS},
    lazy::prefetch_queue::MISS_BLOCKS,
    lazy::waiters::{OnDone, PendingCallback, WaiterId, Waiters},
    lazy::{FetchFailure, Urgency},
};
use blockd_extent::{BlockIndex, BlockSet, Extent, Readahead, ReadaheadLimits};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Instant,
};

/// Maximum number of running fetches of a volume. A [budget](super::fetch_budget) limits the blocks of all
/// volumes together.
const MAX_ACTIVE: usize = 40;
/// Readahead limits of a lazy volume. The window, 128 MiB, equals the data that a restore has in flight: with
/// half of it, sequential readers wait for a slow store twice as often. A step is one fetch, 8 MiB: short
/// ones cost more requests, and the frames at their ends are fetched twice.
const READAHEAD: ReadaheadLimits = ReadaheadLimits {
    first_window_blocks: 256,
    max_window_blocks: 32_768,
    max_step_blocks: MAX_FETCH_BLOCKS,
    slack_blocks: 256,
    min_reads: 2,
};
/// Maximum number of background fetches, among the running and among the queued ones.
const MAX_BACKGROUND: usize = 34;
/// Queued or running fetch.
struct InFlightFetch {
    extent: Extent,
    urgency: Urgency,
    is_active: bool,
    waiters: Vec<FetchWaiter>,
}

/// Waiter among those of one fetch; it may wait for several.
struct FetchWaiter {
    id: WaiterId,
    /// True if the fetch was already running: its source may time out too early for this waiter.
    joined_late: bool,
}

/// Result of a request for blocks.
pub(crate) enum FetchRequest {
    /// All blocks are present; the callback was not called.
    Present(OnDone),
    /// The callback will be called.
    Waiting,
    /// Too many waiters; the callback was not called.
    Refused(OnDone),
}

/// In-flight table of a lazy base.
#[derive(Default)]
pub(crate) struct InFlightTable {
    /// Blocks whose content is in the file (page cache).
    pub(crate) present: BlockSet,
    /// Present blocks that the log does not name yet.
    pub(crate) unlogged: BlockSet,
    /// Present blocks that are known zeroes, holes of the file.
    pub(crate) zero: BlockSet,
    end: BlockIndex,
    by_start: BTreeMap<u64, InFlightFetch>,
    waiters: Waiters,
    /// True while a timeout check is scheduled.
    is_check_scheduled: bool,
    urgent: VecDeque<u64>,
    background: VecDeque<u64>,
    active: usize,
    active_background: usize,
    /// True while a thread starts fetches.
    pub(crate) is_starting: bool,
    readahead: Readahead,
    pub(crate) hydration_order: HydrationOrder,
    pub(crate) fetched_blocks: u64,
    /// Number of invalidations. Data that a fetch wrote across an invalidation may be lost, too.
    pub(crate) invalidations: u64,
    /// Blocks that the source refused permanently; hydration skips them.
    refused: BlockSet,
}

impl InFlightTable {
    /// Creates the table of a base with these durable blocks.
    pub(crate) fn new(blocks: u64, present: BlockSet) -> Self {
        Self { present, end: BlockIndex(blocks), ..Self::default() }
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.present.len_blocks() == self.end.0
    }

    pub(crate) fn waiting(&self) -> u64 {
        self.waiters.len() as u64
    }

    /// Requests blocks. Unless all are present, the callback runs when they are, when a fetch fails, or at
    /// the deadline.
    pub(crate) fn request(
        &mut self,
        wanted: &[Extent],
        deadline: Option<Instant>,
        on_done: OnDone,
    ) -> FetchRequest {
        let gaps: Vec<Extent> = wanted
            .iter()
            .flat_map(|&extent| self.present.gaps_in(extent.intersection(self.full_extent())))
            .collect();
        let Some(first) = gaps.first() else { return FetchRequest::Present(on_done) };
        if self.waiters.is_full() {
            return FetchRequest::Refused(on_done);
        }
        self.hydration_order.record_read(first.start);
        for &gap in &gaps {
            self.launch(gap, MISS_BLOCKS, Urgency::Reader);
        }
        let mut starts: Vec<u64> = gaps.iter().flat_map(|&gap| self.overlapping(gap)).collect();
        starts.sort_unstable();
        starts.dedup();
        assert!(!starts.is_empty(), "each missing block has a fetch");
        let id = self.waiters.add(gaps, starts.len(), deadline, on_done);
        for start in starts {
            if let Some(fetch) = self.by_start.get_mut(&start) {
                fetch.waiters.push(FetchWaiter { id, joined_late: fetch.is_active });
                if fetch.urgency == Urgency::Background {
                    fetch.urgency = Urgency::Reader;
                    if fetch.is_active {
                        assert!(self.active_background > 0, "active background fetches are counted");
                        self.active_background -= 1;
                    } else {
                        self.background.retain(|&queued| queued != start);
                        self.urgent.push_back(start);
                    }
                }
            }
        }
        FetchRequest::Waiting
    }

    /// Waits for the fetches that overlap an extent: the callback runs after the last of them. Returns false,
    /// and drops the callback, without such a fetch.
    pub(crate) fn join(&mut self, extent: Extent, on_done: OnDone) -> bool {
        let starts = self.overlapping(extent);
        if starts.is_empty() {
            return false;
        }
        let id = self.waiters.add(vec![extent], starts.len(), None, on_done);
        for start in starts {
            if let Some(fetch) = self.by_start.get_mut(&start) {
                fetch.waiters.push(FetchWaiter { id, joined_late: false });
            }
        }
        true
    }

    /// Marks all blocks outside of `durable` as missing, after a failed sync.
    pub(crate) fn invalidate_all_but(&mut self, durable: &BlockSet) {
        self.present.intersect_with(durable);
        self.zero.intersect_with(durable);
        self.unlogged = BlockSet::new();
        self.invalidations += 1;
        debug_assert!(self.is_consistent(), "known zeroes are present");
    }

    /// Excludes blocks from hydration that the source refused permanently.
    pub(crate) fn refuse(&mut self, extent: Extent) {
        self.refused.insert_extent(extent);
    }

    /// Includes refused blocks in hydration again.
    pub(crate) fn retry_refused(&mut self) {
        self.refused = BlockSet::new();
    }

    /// Returns the number of missing blocks that the source refused permanently.
    pub(crate) fn refused_blocks(&self) -> u64 {
        let mut refused = self.refused.clone();
        refused.subtract(&self.present);
        refused.len_blocks()
    }

    /// Returns true if the queue of background fetches is full: readahead and hints are dropped then.
    pub(crate) fn is_background_full(&self) -> bool {
        self.background.len() >= MAX_BACKGROUND
    }

    fn full_extent(&self) -> Extent {
        Extent::between(BlockIndex(0), self.end)
    }

    /// Records a read and starts readahead for sequential readers.
    pub(crate) fn record_read(&mut self, extent: Extent) {
        let Some(ahead) = self.readahead.record(&READAHEAD, extent) else { return };
        let ahead = ahead.intersection(self.full_extent());
        if ahead.is_empty() || self.is_background_full() {
            return;
        }
        self.launch(ahead, MISS_BLOCKS, Urgency::Background);
    }

    /// Queues fetches for the blocks of an extent that are neither present nor in flight, extended to
    /// multiples of `unit_blocks`.
    pub(crate) fn launch(&mut self, requested: Extent, unit_blocks: u64, urgency: Urgency) {
        let from = requested.start.0 / unit_blocks * unit_blocks;
        let to = requested.end().0.next_multiple_of(unit_blocks).min(self.end.0);
        let wide = Extent::between(BlockIndex(from), BlockIndex(to));
        let mut free = BlockSet::from_iter([wide]);
        for present in self.present.extents_in(wide) {
            free.remove_extent(present);
        }
        for start in self.overlapping(wide) {
            if let Some(fetch) = self.by_start.get(&start) {
                free.remove_extent(fetch.extent);
            }
        }
        for run in free.extents() {
            if run.intersection(requested).is_empty() {
                continue;
            }
            let mut at = run.start;
            while at < run.end() {
                let end = BlockIndex((at.0 / MAX_FETCH_BLOCKS + 1) * MAX_FETCH_BLOCKS).min(run.end());
                let extent = Extent::between(at, end);
                at = end;
                assert!(
                    (1..=MAX_FETCH_BLOCKS).contains(&extent.len_blocks),
                    "the length of a fetch is bounded"
                );
                debug_assert!(self.overlapping(extent).is_empty(), "fetches do not overlap");
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
    fn overlapping(&self, extent: Extent) -> Vec<u64> {
        let from = extent.start.0.saturating_sub(MAX_FETCH_BLOCKS);
        let near = self.by_start.range(from..extent.end().0);
        near.filter(|(_, fetch)| fetch.extent.end() > extent.start).map(|(&start, _)| start).collect()
    }

    /// Returns length and urgency of the next fetch to start, if the limits allow one.
    pub(crate) fn peek_to_start(&self) -> Option<(u64, Urgency)> {
        if self.active >= MAX_ACTIVE {
            return None;
        }
        let may_hydrate = self.active_background < MAX_BACKGROUND;
        let start = self.urgent.front().or_else(|| self.background.front().filter(|_| may_hydrate))?;
        self.by_start.get(start).map(|fetch| (fetch.extent.len_blocks, fetch.urgency))
    }

    /// Marks the next fetch as running and returns it, if the limits allow one.
    pub(crate) fn next_to_start(&mut self) -> Option<(Extent, Urgency)> {
        if self.active >= MAX_ACTIVE {
            return None;
        }
        let start = match self.urgent.pop_front() {
            Some(start) => start,
            None if self.active_background < MAX_BACKGROUND => self.background.pop_front()?,
            None => return None,
        };
        let fetch = self.by_start.get_mut(&start)?;
        assert!(!fetch.is_active, "a fetch starts once");
        fetch.is_active = true;
        self.active += 1;
        self.active_background += usize::from(fetch.urgency == Urgency::Background);
        assert!(
            self.active <= MAX_ACTIVE && self.active_background <= self.active,
            "running fetches are limited"
        );
        Some((fetch.extent, fetch.urgency))
    }

    /// Ends a fetch, with success and its zero blocks, or a failure. Returns the callbacks to run.
    pub(crate) fn finish_fetch(
        &mut self,
        extent: Extent,
        outcome: Result<&BlockSet, &FetchFailure>,
    ) -> Vec<PendingCallback> {
        match outcome {
            Ok(zero) => self.finish_fetch_partially(extent, zero, None),
            Err(failure) => {
                let all = BlockSet::from_iter([extent]);
                self.finish_fetch_partially(extent, &BlockSet::new(), Some((&all, failure)))
            }
        }
    }

    /// Ends a fetch with failed blocks, if any; only their waiters fail. Hydration skips permanently
    /// refused blocks.
    ///
    /// If a retry can succeed, the fetch runs again for waiters that joined it while it was running.
    pub(crate) fn finish_fetch_partially(
        &mut self,
        extent: Extent,
        zero: &BlockSet,
        loss: Option<(&BlockSet, &FetchFailure)>,
    ) -> Vec<PendingCallback> {
        let Some(fetch) = self.by_start.remove(&extent.start.0) else { return vec![] };
        assert!(fetch.extent == extent, "the extent of a fetch is constant");
        if fetch.is_active {
            assert!(self.active > 0, "active fetches are counted");
            self.active -= 1;
            self.active_background -= usize::from(fetch.urgency == Urgency::Background);
        }
        assert!(self.active_background <= self.active, "background fetches are among the active ones");
        let mut arrived = BlockSet::from_iter([extent]);
        if let Some((lost, failure)) = loss {
            arrived.subtract(lost);
            if matches!(failure, FetchFailure::Source(error) if !error.is_retryable()) {
                lost.extents_in(extent).for_each(|run| self.refuse(run));
            }
        }
        for run in arrived.extents() {
            self.fetched_blocks += run.len_blocks;
            self.mark_present(run, &zero.slice(run));
        }
        let may_succeed = loss.is_some_and(|(_, failure)| failure.is_retryable());
        let mut callbacks = Vec::new();
        let mut late_waiters = Vec::new();
        for FetchWaiter { id, joined_late } in fetch.waiters {
            if joined_late && may_succeed && self.waiters.contains(id) {
                late_waiters.push(FetchWaiter { id, joined_late: false });
            } else {
                callbacks.extend(self.waiters.fetch_ended(id, loss));
            }
        }
        self.retry(extent, late_waiters);
        callbacks
    }

    /// Fetches the part of a failed fetch again that its late waiters need: a retryable failure concerns all
    /// blocks, and a long fetch may have been too slow.
    fn retry(&mut self, extent: Extent, waiters: Vec<FetchWaiter>) {
        if waiters.is_empty() {
            return;
        }
        let wanted = waiters.iter().flat_map(|waiter| self.waiters.wanted(waiter.id));
        let wanted = wanted.map(|wanted| wanted.intersection(extent)).filter(|wanted| !wanted.is_empty());
        let hull = wanted.reduce(|a, b| Extent::between(a.start.min(b.start), a.end().max(b.end())));
        debug_assert!(hull.is_some(), "a waiter of a fetch awaits some of its blocks");
        let hull = hull.unwrap_or(extent);
        let from = BlockIndex(hull.start.0 / MISS_BLOCKS * MISS_BLOCKS).max(extent.start);
        let to = BlockIndex(hull.end().0.next_multiple_of(MISS_BLOCKS)).min(extent.end());
        let retry = InFlightFetch {
            extent: Extent::between(from, to),
            urgency: Urgency::Reader,
            is_active: false,
            waiters,
        };
        self.by_start.insert(from.0, retry);
        self.urgent.push_back(from.0);
    }

    /// Returns the time of the next timeout check, which the caller must schedule; `None` if one is scheduled
    /// or no waiter has a deadline.
    pub(crate) fn next_check_at(&mut self) -> Option<Instant> {
        let next = if self.is_check_scheduled { None } else { self.waiters.next_deadline() };
        self.is_check_scheduled |= next.is_some();
        next
    }

    /// Expires waiters and returns their callbacks. Drops queued reader fetches without waiters.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<PendingCallback> {
        self.is_check_scheduled = false;
        let callbacks = self.waiters.expire(now);
        let Self { urgent, by_start, waiters, .. } = self;
        if !callbacks.is_empty() {
            urgent.retain(|start| {
                let fetch = by_start.get(start);
                let is_wanted =
                    fetch.is_some_and(|fetch| fetch.waiters.iter().any(|waiter| waiters.contains(waiter.id)));
                if !is_wanted {
                    by_start.remove(start);
                }
                is_wanted
            });
        }
        callbacks
    }

    /// Marks blocks as present; those of `zero` are zeroes.
    pub(crate) fn mark_present(&mut self, extent: Extent, zero: &BlockSet) {
        for gap in self.present.gaps_in(extent).collect::<Vec<_>>() {
            self.present.insert_extent(gap);
            self.unlogged.insert_extent(gap);
        }
        self.zero.union_with(zero);
        debug_assert!(
            self.present.last().is_none_or(|last| last < self.end),
            "blocks beyond the end of the base"
        );
        debug_assert!(self.is_consistent(), "known zeroes are present");
    }

    /// Returns true if known zeroes and unlogged blocks are present; for assertions.
    fn is_consistent(&self) -> bool {
        [&self.zero, &self.unlogged].iter().all(|set| {
            let mut missing = (*set).clone();
            missing.subtract(&self.present);
            missing.is_empty()
        })
    }

    /// Drops queued fetches and fails all waiters; returns their callbacks.
    pub(crate) fn abandon(&mut self, failure: &FetchFailure) -> Vec<PendingCallback> {
        self.urgent.clear();
        self.background.clear();
        self.by_start.retain(|_, fetch| fetch.is_active);
        self.waiters.fail_all(failure)
    }

    /// Returns the next extent for hydration, or `None` if each block is present, in flight or refused.
    pub(crate) fn next_in_background(&mut self) -> Option<Extent> {
        let mut order = std::mem::take(&mut self.hydration_order);
        let found = order.next(self.full_extent(), &|extent| self.first_missing(extent));
        self.hydration_order = order;
        found
    }

    /// Returns the first extent that is neither present, in flight nor refused, clipped to one step.
    fn first_missing(&self, extent: Extent) -> Option<Extent> {
        let gaps = self.present.gaps_in(extent).flat_map(|gap| self.refused.gaps_in(gap));
        for gap in gaps {
            let mut at = gap.start;
            while at < gap.end() {
                let end = BlockIndex((at.0 / STEP_BLOCKS + 1) * STEP_BLOCKS).min(gap.end());
                let mut free = Extent::between(at, end);
                for start in self.overlapping(free) {
                    let Some(fetch) = self.by_start.get(&start) else { continue };
                    if fetch.extent.start > free.start {
                        free = Extent::between(free.start, fetch.extent.start);
                        break;
                    }
                    free = Extent::between(fetch.extent.end().min(free.end()), free.end());
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
