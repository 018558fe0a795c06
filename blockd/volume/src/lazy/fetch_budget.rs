//! Memory budget of all in-flight fetches of lazy volumes.
//!
//! Fetched data is held in memory until it is written. Each volume has its own limit; this one applies to
//! several volumes together: they take turns, one fetch each, fetches with waiting readers first.
//!
//! No fetch waits while it holds budget: it ends by itself and returns its share, which starts the next turn.
//! A volume that no longer needs its turn passes it on.

use crate::{lazy::Urgency, lazy::in_flight::MAX_FLIGHT_BLOCKS};
use blockd_extent::BLOCK_SIZE_BYTES;
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    sync::{
        Arc, LazyLock, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Budget of all fetches of all volumes: 192 MiB.
const MAX_BLOCKS: u64 = (192 << 20) / BLOCK_SIZE_BYTES;
/// Share of background fetches: 160 MiB, so that readers need not wait for them.
const MAX_BACKGROUND_BLOCKS: u64 = (160 << 20) / BLOCK_SIZE_BYTES;

/// Starter of fetches.
pub(crate) trait Starter: Send + Sync {
    /// Called when there is budget for at least one fetch.
    fn take_turn(self: Arc<Self>);
}

/// Budget of fetches.
pub(crate) struct FetchBudget {
    most_blocks: u64,
    background_most_blocks: u64,
    books: Mutex<BudgetState>,
    /// Number of granted, unused turns, readable without the lock.
    turns: AtomicUsize,
}

#[derive(Default)]
struct BudgetState {
    taken_blocks: u64,
    /// Blocks of background fetches among them.
    background_blocks: u64,
    urgent: VecDeque<Weak<dyn Starter>>,
    background: VecDeque<Weak<dyn Starter>>,
    /// Starters with a turn, and whether it is for background fetches only; each holds budget for the longest
    /// fetch.
    turns: Vec<(Weak<dyn Starter>, bool)>,
    /// A thread is granting turns.
    is_giving: bool,
}

/// Budget of one fetch, returned on drop.
pub(crate) struct Room {
    budget: Arc<FetchBudget>,
    blocks: u64,
    is_background: bool,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.budget.books.lock().free(self.blocks, self.is_background);
        self.budget.give_turns();
    }
}

impl BudgetState {
    fn take(&mut self, blocks: u64, is_background: bool) {
        self.taken_blocks += blocks;
        self.background_blocks += if is_background { blocks } else { 0 };
    }

    fn free(&mut self, blocks: u64, is_background: bool) {
        assert!(blocks <= self.taken_blocks, "only taken blocks are returned");
        assert!(
            !is_background || blocks <= self.background_blocks,
            "only taken background blocks are returned"
        );
        self.taken_blocks -= blocks;
        self.background_blocks -= if is_background { blocks } else { 0 };
    }

    /// Ends a turn; returns true if there was one.
    fn end_turn(&mut self, who: &Weak<dyn Starter>) -> bool {
        let Some(at) = self.turns.iter().position(|(other, _)| is_same(other, who)) else { return false };
        let (_, is_background) = self.turns.swap_remove(at);
        self.free(MAX_FLIGHT_BLOCKS, is_background);
        true
    }

    fn wait(&mut self, who: Weak<dyn Starter>, is_background: bool) {
        let queue = if is_background { &mut self.background } else { &mut self.urgent };
        if !queue.iter().any(|other| is_same(other, &who)) {
            queue.push_back(who);
        }
    }
}

/// The weak reference keeps the allocation, so its address is unique.
fn is_same(one: &Weak<dyn Starter>, other: &Weak<dyn Starter>) -> bool {
    std::ptr::addr_eq(one.as_ptr(), other.as_ptr())
}

impl FetchBudget {
    pub(crate) fn new(most_blocks: u64, background_most_blocks: u64) -> Arc<Self> {
        // Less could never hold the longest fetch.
        let background_most_blocks = background_most_blocks.max(MAX_FLIGHT_BLOCKS);
        Arc::new(Self {
            most_blocks: most_blocks.max(background_most_blocks),
            background_most_blocks,
            books: Mutex::default(),
            turns: AtomicUsize::new(0),
        })
    }

    /// Returns the budget of all volumes of this process.
    pub(crate) fn of_process() -> Arc<Self> {
        static BUDGET: LazyLock<Arc<FetchBudget>> =
            LazyLock::new(|| FetchBudget::new(MAX_BLOCKS, MAX_BACKGROUND_BLOCKS));
        BUDGET.clone()
    }

    fn has_room(&self, books: &BudgetState, blocks: u64, is_background: bool) -> bool {
        books.taken_blocks + blocks <= self.most_blocks
            && (!is_background || books.background_blocks + blocks <= self.background_most_blocks)
    }

    /// Takes budget for a fetch; if there is none, or others wait, `who` gets a turn later.
    pub(crate) fn take(
        self: &Arc<Self>,
        who: Weak<dyn Starter>,
        blocks: u64,
        urgency: Urgency,
    ) -> Option<Room> {
        let is_background = urgency == Urgency::Background;
        assert!(blocks <= MAX_FLIGHT_BLOCKS, "a turn suffices for the longest fetch");
        let mut books = self.books.lock();
        let has_turn = books.end_turn(&who);
        self.turns.store(books.turns.len(), Ordering::Release);
        let is_next =
            has_turn || (books.urgent.is_empty() && (!is_background || books.background.is_empty()));
        if !is_next || !self.has_room(&books, blocks, is_background) {
            books.wait(who, is_background);
            return None;
        }
        books.take(blocks, is_background);
        assert!(books.taken_blocks <= self.most_blocks, "fetches stay within the budget");
        Some(Room { budget: self.clone(), blocks, is_background })
    }

    /// Passes the turn of `who` on, if it has one and nothing to start. Call it without locks that starters
    /// need.
    pub(crate) fn pass_on(&self, who: &Weak<dyn Starter>) {
        if self.turns.load(Ordering::Acquire) == 0 {
            return;
        }
        let had_turn = {
            let mut books = self.books.lock();
            let had_turn = books.end_turn(who);
            self.turns.store(books.turns.len(), Ordering::Release);
            had_turn
        };
        if had_turn {
            self.give_turns();
        }
    }

    /// Grants turns while there is budget. One thread at a time does so: a starter may return budget at once.
    fn give_turns(&self) {
        if std::mem::replace(&mut self.books.lock().is_giving, true) {
            return;
        }
        while let Some(next) = self.next_turn() {
            next.take_turn();
        }
    }

    fn next_turn(&self) -> Option<Arc<dyn Starter>> {
        let mut books = self.books.lock();
        for is_background in [false, true] {
            while self.has_room(&books, MAX_FLIGHT_BLOCKS, is_background) {
                let queue = if is_background { &mut books.background } else { &mut books.urgent };
                let Some(who) = queue.pop_front() else { break };
                // Its volume may be closed.
                let Some(next) = who.upgrade() else { continue };
                books.take(MAX_FLIGHT_BLOCKS, is_background);
                assert!(books.taken_blocks <= self.most_blocks, "turns stay within the budget");
                books.turns.push((who, is_background));
                self.turns.store(books.turns.len(), Ordering::Release);
                return Some(next);
            }
        }
        books.is_giving = false;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Starts its fetches while it gets budget.
    struct Double {
        budget: Arc<FetchBudget>,
        wants: Mutex<VecDeque<(u64, Urgency)>>,
        under_way: Mutex<VecDeque<Room>>,
    }

    impl Double {
        fn new(budget: &Arc<FetchBudget>, wants: &[(u64, Urgency)]) -> Arc<Self> {
            let wants = Mutex::new(wants.iter().copied().collect());
            Arc::new(Self { budget: budget.clone(), wants, under_way: Mutex::default() })
        }

        fn weak(self: &Arc<Self>) -> Weak<dyn Starter> {
            let weak: Weak<Self> = Arc::downgrade(self);
            weak
        }

        fn land(&self) -> bool {
            let first = self.under_way.lock().pop_front();
            first.is_some()
        }

        fn active(&self) -> usize {
            self.under_way.lock().len()
        }
    }

    impl Starter for Double {
        fn take_turn(self: Arc<Self>) {
            loop {
                let Some((blocks, urgency)) = self.wants.lock().front().copied() else { break };
                let Some(room) = self.budget.take(self.weak(), blocks, urgency) else { return };
                self.wants.lock().pop_front();
                self.under_way.lock().push_back(room);
            }
            self.budget.pass_on(&self.weak());
        }
    }

    const LONG: (u64, Urgency) = (MAX_FLIGHT_BLOCKS, Urgency::Background);
    const READ: (u64, Urgency) = (64, Urgency::Reader);

    #[test]
    fn waiters_are_served_fairly_with_readers_first() {
        let budget = FetchBudget::new(5 * MAX_FLIGHT_BLOCKS, 4 * MAX_FLIGHT_BLOCKS);
        let [one, other, third] = [[LONG; 9]; 3].map(|wants| Double::new(&budget, &wants));
        for double in [&one, &other, &third] {
            double.clone().take_turn();
        }
        assert_eq!([&one, &other, &third].map(|double| double.active()), [4, 0, 0], "it was the first");
        // The share of readers suffices for sixteen short fetches.
        let reader = Double::new(&budget, &[READ; 17]);
        reader.clone().take_turn();
        assert_eq!(reader.active(), 16);
        // A waiting reader precedes background fetches that wait longer.
        assert!(one.land());
        assert_eq!([&one, &other, &third, &reader].map(|double| double.active()), [3, 0, 0, 17]);
        while reader.land() {}
        assert_eq!(
            [&one, &other, &third].map(|double| double.active()),
            [4, 0, 0],
            "it has waited the longest"
        );
        let mut seen = vec![];
        while one.land() {
            seen.push([&one, &other, &third].map(|double| double.active()));
            if seen.len() == 4 {
                break;
            }
        }
        assert_eq!(seen, [[3, 1, 0], [2, 1, 1], [2, 1, 1], [1, 2, 1]], "turns go round");
    }

    #[test]
    fn unused_turn_passes_to_next_starter() {
        let budget = FetchBudget::new(MAX_FLIGHT_BLOCKS, MAX_FLIGHT_BLOCKS);
        let [one, gone, idle, last] = [[LONG; 1]; 4].map(|wants| Double::new(&budget, &wants));
        for double in [&one, &gone, &idle, &last] {
            double.clone().take_turn();
        }
        drop(gone);
        idle.wants.lock().clear();
        assert!(one.land());
        assert_eq!((last.active(), idle.active()), (1, 0));
        assert!(last.land());
        let books = budget.books.lock();
        assert_eq!((books.taken_blocks, books.background_blocks, books.turns.len()), (0, 0, 0));
        assert!(books.background.is_empty() && !books.is_giving);
    }
}
