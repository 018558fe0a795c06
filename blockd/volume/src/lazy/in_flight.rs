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
        let id = self.waiters.add(gaps, starts.len(), until, then);
        for start in starts {
            if let Some(flight) = self.by_start.get_mut(&start) {
                flight.waiters.push(Waiter { id, came_late: flight.is_active });
                if flight.urgency == Urgency::Background {
                    flight.urgency = Urgency::Reader;
                    if flight.is_active {
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
        flight.is_active = true;
        self.active += 1;
        self.active_background += usize::from(flight.urgency == Urgency::Background);
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
        if flight.is_active {
            self.active -= 1;
            self.active_background -= usize::from(flight.urgency == Urgency::Background);
        }
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
    }

    /// Fails all waiters with an error and drops fetches that are not running.
    pub(crate) fn give_up(&mut self, failure: &FetchFailure) -> Vec<Call> {
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
mod tests {
    use super::*;
    use crate::lazy::SourceError;
    use proptest::prelude::*;
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering},
        },
        time::Duration,
    };

    fn at(start: u64, len: u64) -> Extent {
        Extent::new(BlockIndex(start), len)
    }

    fn counting(count: &Arc<AtomicU64>) -> Then {
        let count = count.clone();
        Box::new(move |result| {
            assert!(result.is_ok());
            count.fetch_add(1, Ordering::Relaxed);
        })
    }

    #[test]
    fn concurrent_readers_share_one_fetch() {
        let mut flights = InFlightTable::new(10_000, BlockSet::new());
        let done = Arc::new(AtomicU64::new(0));
        for _ in 0..3 {
            assert!(matches!(flights.want(&[at(70, 2)], None, counting(&done)), FetchRequest::Waits));
        }
        let (extent, urgency) = flights.next_to_start().unwrap();
        assert_eq!((extent, urgency), (at(64, 64), Urgency::Reader));
        assert!(flights.next_to_start().is_none());
        flights.landed(extent, Ok(&BlockSet::new())).into_iter().for_each(Call::make);
        assert_eq!(done.load(Ordering::Relaxed), 3);
        assert!(matches!(flights.want(&[at(64, 64)], None, counting(&done)), FetchRequest::Granted(_)));
    }

    /// Result seen by a waiter: none yet, present, or failed.
    type Told = Arc<parking_lot::Mutex<Option<bool>>>;

    fn telling() -> (Told, Then) {
        let told = Told::default();
        let kept = told.clone();
        (told, Box::new(move |result| assert_eq!(kept.lock().replace(result.is_ok()), None, "told twice")))
    }

    #[test]
    fn late_waiter_ignores_early_failure() {
        for may_succeed in [true, false] {
            let mut flights = InFlightTable::new(10_000, BlockSet::new());
            let (first, then) = telling();
            assert!(matches!(flights.want(&[at(70, 2)], None, then), FetchRequest::Waits));
            let (extent, _) = flights.next_to_start().unwrap();
            let (late, then) = telling();
            // It also waits for a fetch of its own.
            assert!(matches!(flights.want(&[at(80, 2), at(640, 1)], None, then), FetchRequest::Waits));
            let failure = FetchFailure::from(SourceError::new("the time is over", may_succeed));
            flights.landed(extent, Err(&failure)).into_iter().for_each(Call::make);
            assert_eq!((*first.lock(), *late.lock()), (Some(false), None));
            let (other, _) = flights.next_to_start().unwrap();
            flights.landed(other, Ok(&BlockSet::new())).into_iter().for_each(Call::make);
            match may_succeed {
                true => {
                    assert_eq!(*late.lock(), None, "its blocks are not there");
                    assert_eq!(flights.next_to_start(), Some((extent, Urgency::Reader)));
                    // This time it waited from the start.
                    flights.landed(extent, Err(&failure)).into_iter().for_each(Call::make);
                }
                false => assert_eq!(flights.next_to_start(), None),
            }
            assert_eq!(*late.lock(), Some(false));
            assert_eq!((flights.waiting(), flights.next_to_start()), (0, None));
        }
    }

    #[test]
    fn expired_waiters_are_called_and_fetches_dropped() {
        let began = Instant::now();
        let after = |ms| began + Duration::from_millis(ms);
        let mut flights = InFlightTable::new(100_000, BlockSet::new());
        let mut told = vec![];
        for number in 0..MAX_ACTIVE as u64 + 3 {
            let (one, then) = telling();
            let until = Some(after(1000 + number));
            assert!(matches!(flights.want(&[at(number * 1024, 1)], until, then), FetchRequest::Waits));
            told.push(one);
        }
        // The last but one fetch has another waiter without a timeout.
        let place = at((MAX_ACTIVE as u64 + 1) * 1024, 1);
        let (patient, then) = telling();
        assert!(matches!(flights.want(&[place], None, then), FetchRequest::Waits));
        while flights.next_to_start().is_some() {}

        assert_eq!(flights.next_poll_at(), Some(after(1000)));
        assert_eq!(flights.next_poll_at(), None, "a check is scheduled already");
        assert_eq!(flights.poll(after(999)).len(), 0);
        assert_eq!(flights.next_poll_at(), Some(after(1000)));
        flights.poll(after(1001)).into_iter().for_each(Call::make);
        assert_eq!(told.iter().filter(|one| *one.lock() == Some(false)).count(), 2);
        flights.poll(after(5000)).into_iter().for_each(Call::make);
        assert!(told.iter().all(|one| *one.lock() == Some(false)));
        assert_eq!((flights.waiting(), flights.next_poll_at()), (1, None));
        // A running fetch ends and makes room for the only requested one.
        assert_eq!(flights.landed(at(0, MISS_BLOCKS), Ok(&BlockSet::new())).len(), 0);
        let (extent, _) = flights.next_to_start().unwrap();
        assert!(!extent.intersection(place).is_empty());
        assert_eq!(*patient.lock(), None);
        flights.landed(extent, Ok(&BlockSet::new())).into_iter().for_each(Call::make);
        assert_eq!(*patient.lock(), Some(true));
        assert_eq!(flights.next_to_start(), None);
    }

    #[test]
    fn awaited_fetches_start_first() {
        let mut flights = InFlightTable::new(100_000, BlockSet::new());
        flights.launch(at(0, 50_000), 1, Urgency::Background);
        let mut background = 0;
        while let Some((_, urgency)) = flights.next_to_start() {
            assert_eq!(urgency, Urgency::Background);
            background += 1;
        }
        assert_eq!(background, MAX_BACKGROUND);
        let done = Arc::new(AtomicU64::new(0));
        // A waiting fetch and a new one.
        for start in [40_000, 60_000] {
            assert!(matches!(flights.want(&[at(start, 1)], None, counting(&done)), FetchRequest::Waits));
            let (extent, urgency) = flights.next_to_start().unwrap();
            assert!(extent.start.0 <= start && start < extent.end().0);
            assert_eq!(urgency, Urgency::Reader);
        }
    }

    #[test]
    fn hydration_starts_at_reads_and_completes() {
        let mut flights = InFlightTable::new(9000, BlockSet::new());
        let done = Arc::new(AtomicU64::new(0));
        assert!(matches!(flights.want(&[at(5000, 1)], None, counting(&done)), FetchRequest::Waits));
        let (extent, _) = flights.next_to_start().unwrap();
        assert_eq!(flights.landed(extent, Ok(&BlockSet::new())).len(), 1);
        let mut places = vec![];
        while let Some(next) = flights.next_in_background() {
            places.push(next.start.0);
            flights.have(next, &BlockSet::new());
        }
        assert!(flights.is_all_there());
        assert_eq!(places[..2], [4096, 5056], "{places:?}");
        assert_eq!(places[2], 0, "{places:?}");
    }

    #[test]
    fn hydration_skips_refused_blocks() {
        let mut flights = InFlightTable::new(3000, BlockSet::new());
        flights.note_hot(BlockIndex(100));
        flights.refuse(at(0, 1024));
        let mut came = 0;
        while let Some(next) = flights.next_in_background() {
            assert!(next.start.0 >= 1024, "{next:?}");
            flights.have(next, &BlockSet::new());
            came += next.len_blocks;
        }
        assert_eq!((came, flights.refused_blocks()), (1976, 1024));
        flights.retry_refused();
        assert_eq!(flights.next_in_background(), Some(at(0, 1024)));
        assert_eq!(flights.refused_blocks(), 0);
    }

    proptest! {
        /// For requests in any order: fetches never overlap, and each waiter is called exactly once.
        #[test]
        fn waiters_are_called_exactly_once(steps in proptest::collection::vec((0u8..4, 0u64..5000, 1u64..700), 1..120)) {
            let mut flights = InFlightTable::new(5000, BlockSet::new());
            let told = Arc::new(AtomicU64::new(0));
            let mut asked = 0;
            let mut active: Vec<Extent> = vec![];
            let land = |flights: &mut InFlightTable, active: &mut Vec<Extent>, n: usize| {
                if active.is_empty() { return }
                let extent = active.swap_remove(n % active.len());
                for call in flights.landed(extent, Ok(&BlockSet::new())) { call.make() }
            };
            for (what, start, len) in steps {
                match what {
                    0 | 1 => {
                        match flights.want(&[at(start, len.min(5000 - start))], None, counting(&told)) {
                            FetchRequest::Granted(_) | FetchRequest::Refused(_) => {}
                            FetchRequest::Waits => asked += 1,
                        }
                    }
                    2 => {
                        let stretch = at(start, len.min(5000 - start));
                        flights.launch(stretch, 8, Urgency::Background);
                    }
                    _ => land(&mut flights, &mut active, start as usize),
                }
                while let Some((extent, _)) = flights.next_to_start() {
                    prop_assert!(extent.len_blocks <= MAX_FLIGHT_BLOCKS);
                    prop_assert!(active.iter().all(|other| other.intersection(extent).is_empty()));
                    prop_assert_eq!(flights.there.intersection_len(extent), 0);
                    active.push(extent);
                }
            }
            while !active.is_empty() {
                land(&mut flights, &mut active, 0);
                while let Some((extent, _)) = flights.next_to_start() { active.push(extent) }
            }
            prop_assert_eq!(told.load(Ordering::Relaxed), asked);
            prop_assert_eq!(flights.waiting(), 0);
        }
    }
}
