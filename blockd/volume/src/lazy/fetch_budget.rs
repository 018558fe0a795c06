//! Memory budget of all in-flight fetches of lazy volumes.
//!
//! Fetched data is held in memory until it is written. Each volume has its own limit; this budget limits all
//! volumes together. When budget is free, waiting volumes get grants of one fetch each, round-robin, those
//! with waiting readers first.
//!
//! A fetch that holds budget never waits for more. It returns its share when it ends, which issues the next
//! grants. A volume releases a grant that it does not need.

use crate::lazy::Urgency;
use blockd_extent::BLOCK_SIZE_BYTES;
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    sync::{
        Arc, LazyLock, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Maximum length of a fetch, that of readahead: 8 MiB.
pub(crate) const MAX_FETCH_BLOCKS: u64 = (8 << 20) / BLOCK_SIZE_BYTES;
/// Budget of all fetches of all volumes: 192 MiB.
const MAX_BLOCKS: u64 = (192 << 20) / BLOCK_SIZE_BYTES;
/// Part of the budget for background fetches: 160 MiB. The rest is reserved for readers.
const MAX_BACKGROUND_BLOCKS: u64 = (160 << 20) / BLOCK_SIZE_BYTES;

/// Starter of fetches.
pub(crate) trait FetchStarter: Send + Sync {
    /// Starts fetches. Called after a grant of budget for one fetch.
    fn on_grant(self: Arc<Self>);
}

/// Budget of fetches.
pub(crate) struct FetchBudget {
    max_blocks: u64,
    max_background_blocks: u64,
    state: Mutex<BudgetState>,
    /// Number of unused grants, readable without the lock.
    grants: AtomicUsize,
}

#[derive(Default)]
struct BudgetState {
    taken_blocks: u64,
    /// Blocks of background fetches among them.
    background_blocks: u64,
    urgent: VecDeque<Waiting>,
    background: VecDeque<Waiting>,
    grants: Vec<Grant>,
    /// True while a thread issues grants.
    is_granting: bool,
}

/// Starter that waits for budget.
struct Waiting {
    starter: Weak<dyn FetchStarter>,
    /// Length of its next fetch.
    blocks: u64,
}

/// Budget of a starter that has not started its fetch yet.
struct Grant {
    starter: Weak<dyn FetchStarter>,
    blocks: u64,
    is_background: bool,
}

/// Budget of one fetch, returned on drop.
pub(crate) struct BudgetShare {
    budget: Arc<FetchBudget>,
    blocks: u64,
    is_background: bool,
}

impl Drop for BudgetShare {
    fn drop(&mut self) {
        self.budget.state.lock().free(self.blocks, self.is_background);
        self.budget.issue_grants();
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

    /// Ends the grant of a starter; returns true if it had one.
    fn end_grant(&mut self, starter: &Weak<dyn FetchStarter>) -> bool {
        let Some(at) = self.grants.iter().position(|grant| is_same(&grant.starter, starter)) else {
            return false;
        };
        let Grant { blocks, is_background, .. } = self.grants.swap_remove(at);
        self.free(blocks, is_background);
        true
    }

    fn enqueue(&mut self, starter: Weak<dyn FetchStarter>, blocks: u64, is_background: bool) {
        let queue = if is_background { &mut self.background } else { &mut self.urgent };
        match queue.iter_mut().find(|waiting| is_same(&waiting.starter, &starter)) {
            Some(waiting) => waiting.blocks = blocks,
            None => queue.push_back(Waiting { starter, blocks }),
        }
    }
}

/// Compares starters by address, which is unique while a weak reference keeps the allocation.
fn is_same(one: &Weak<dyn FetchStarter>, other: &Weak<dyn FetchStarter>) -> bool {
    std::ptr::addr_eq(one.as_ptr(), other.as_ptr())
}

impl FetchBudget {
    pub(crate) fn new(max_blocks: u64, max_background_blocks: u64) -> Arc<Self> {
        // At least the longest fetch, which could never start otherwise.
        let max_background_blocks = max_background_blocks.max(MAX_FETCH_BLOCKS);
        Arc::new(Self {
            max_blocks: max_blocks.max(max_background_blocks),
            max_background_blocks,
            state: Mutex::default(),
            grants: AtomicUsize::new(0),
        })
    }

    /// Returns the budget of all volumes of this process.
    pub(crate) fn of_process() -> Arc<Self> {
        static BUDGET: LazyLock<Arc<FetchBudget>> =
            LazyLock::new(|| FetchBudget::new(MAX_BLOCKS, MAX_BACKGROUND_BLOCKS));
        BUDGET.clone()
    }

    fn has_budget(&self, state: &BudgetState, blocks: u64, is_background: bool) -> bool {
        state.taken_blocks + blocks <= self.max_blocks
            && (!is_background || state.background_blocks + blocks <= self.max_background_blocks)
    }

    /// Takes budget for a fetch. Without free budget, or while others wait, queues `starter` for a grant and
    /// returns `None`.
    pub(crate) fn take(
        self: &Arc<Self>,
        starter: Weak<dyn FetchStarter>,
        blocks: u64,
        urgency: Urgency,
    ) -> Option<BudgetShare> {
        let is_background = urgency == Urgency::Background;
        assert!(blocks <= MAX_FETCH_BLOCKS, "the budget suffices for a fetch");
        let mut state = self.state.lock();
        let has_grant = state.end_grant(&starter);
        self.grants.store(state.grants.len(), Ordering::Release);
        let is_next =
            has_grant || (state.urgent.is_empty() && (!is_background || state.background.is_empty()));
        if !is_next || !self.has_budget(&state, blocks, is_background) {
            state.enqueue(starter, blocks, is_background);
            return None;
        }
        state.take(blocks, is_background);
        assert!(state.taken_blocks <= self.max_blocks, "fetches stay within the budget");
        Some(BudgetShare { budget: self.clone(), blocks, is_background })
    }

    /// Releases the grant of a starter with nothing to start, if it has one. Starters run inside: hold none
    /// of their locks.
    pub(crate) fn release_grant(&self, starter: &Weak<dyn FetchStarter>) {
        if self.grants.load(Ordering::Acquire) == 0 {
            return;
        }
        let had_grant = {
            let mut state = self.state.lock();
            let had_grant = state.end_grant(starter);
            self.grants.store(state.grants.len(), Ordering::Release);
            had_grant
        };
        if had_grant {
            self.issue_grants();
        }
    }

    /// Issues grants while there is budget. Only one thread does so at a time, because a starter may return
    /// budget immediately.
    fn issue_grants(&self) {
        if std::mem::replace(&mut self.state.lock().is_granting, true) {
            return;
        }
        while let Some(next) = self.next_grant() {
            next.on_grant();
        }
    }

    fn next_grant(&self) -> Option<Arc<dyn FetchStarter>> {
        let mut state = self.state.lock();
        for is_background in [false, true] {
            loop {
                let queue = if is_background { &state.background } else { &state.urgent };
                let Some(blocks) = queue.front().map(|waiting| waiting.blocks) else { break };
                if !self.has_budget(&state, blocks, is_background) {
                    break;
                }
                let queue = if is_background { &mut state.background } else { &mut state.urgent };
                let Some(Waiting { starter, blocks }) = queue.pop_front() else { break };
                // `None`: its volume was dropped.
                let Some(next) = starter.upgrade() else { continue };
                state.take(blocks, is_background);
                assert!(state.taken_blocks <= self.max_blocks, "grants stay within the budget");
                state.grants.push(Grant { starter, blocks, is_background });
                self.grants.store(state.grants.len(), Ordering::Release);
                return Some(next);
            }
        }
        state.is_granting = false;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fake that starts its fetches as budget permits.
    struct FakeStarter {
        budget: Arc<FetchBudget>,
        queued: Mutex<VecDeque<(u64, Urgency)>>,
        active: Mutex<VecDeque<BudgetShare>>,
    }

    impl FakeStarter {
        fn new(budget: &Arc<FetchBudget>, queued: &[(u64, Urgency)]) -> Arc<Self> {
            let queued = Mutex::new(queued.iter().copied().collect());
            Arc::new(Self { budget: budget.clone(), queued, active: Mutex::default() })
        }

        fn weak(self: &Arc<Self>) -> Weak<dyn FetchStarter> {
            let weak: Weak<Self> = Arc::downgrade(self);
            weak
        }

        fn finish_one(&self) -> bool {
            let first = self.active.lock().pop_front();
            first.is_some()
        }

        fn active(&self) -> usize {
            self.active.lock().len()
        }
    }

    impl FetchStarter for FakeStarter {
        fn on_grant(self: Arc<Self>) {
            loop {
                let Some((blocks, urgency)) = self.queued.lock().front().copied() else { break };
                let Some(share) = self.budget.take(self.weak(), blocks, urgency) else { return };
                self.queued.lock().pop_front();
                self.active.lock().push_back(share);
            }
            self.budget.release_grant(&self.weak());
        }
    }

    const LONG: (u64, Urgency) = (MAX_FETCH_BLOCKS, Urgency::Background);
    const READ: (u64, Urgency) = (MAX_FETCH_BLOCKS / 16, Urgency::Reader);

    #[test]
    fn waiters_are_served_fairly_with_readers_first() {
        let budget = FetchBudget::new(5 * MAX_FETCH_BLOCKS, 4 * MAX_FETCH_BLOCKS);
        let [one, other, third] = [[LONG; 9]; 3].map(|queued| FakeStarter::new(&budget, &queued));
        for starter in [&one, &other, &third] {
            starter.clone().on_grant();
        }
        assert_eq!(
            [&one, &other, &third].map(|starter| starter.active()),
            [4, 0, 0],
            "the first starter takes all budget"
        );
        // The budget reserved for readers suffices for sixteen short fetches.
        let reader = FakeStarter::new(&budget, &[READ; 17]);
        reader.clone().on_grant();
        assert_eq!(reader.active(), 16);
        // A waiting reader precedes background fetches that wait longer.
        assert!(one.finish_one());
        assert_eq!([&one, &other, &third, &reader].map(|starter| starter.active()), [3, 0, 0, 17]);
        while reader.finish_one() {}
        assert_eq!(
            [&one, &other, &third].map(|starter| starter.active()),
            [4, 0, 0],
            "the longest waiter gets the grant"
        );
        let mut seen = vec![];
        while one.finish_one() {
            seen.push([&one, &other, &third].map(|starter| starter.active()));
            if seen.len() == 4 {
                break;
            }
        }
        assert_eq!(seen, [[3, 1, 0], [2, 1, 1], [2, 1, 1], [1, 2, 1]], "grants are round-robin");
    }

    #[test]
    fn unused_grant_passes_to_next_starter() {
        let budget = FetchBudget::new(MAX_FETCH_BLOCKS, MAX_FETCH_BLOCKS);
        let [one, dropped, idle, last] = [[LONG; 1]; 4].map(|queued| FakeStarter::new(&budget, &queued));
        for starter in [&one, &dropped, &idle, &last] {
            starter.clone().on_grant();
        }
        drop(dropped);
        idle.queued.lock().clear();
        assert!(one.finish_one());
        assert_eq!((last.active(), idle.active()), (1, 0));
        assert!(last.finish_one());
        let state = budget.state.lock();
        assert_eq!((state.taken_blocks, state.background_blocks, state.grants.len()), (0, 0, 0));
        assert!(state.background.is_empty() && !state.is_granting);
    }
}
