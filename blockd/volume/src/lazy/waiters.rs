//! Waiters for fetches of a lazy base, with their outstanding fetches and deadlines.

use crate::lazy::FetchFailure;
use blockd_extent::{BlockSet, Extent};
use std::{collections::BTreeMap, time::Instant};

/// Maximum number of waiters: bounds memory, because callers may request without blocking.
const MAX_WAITERS: usize = 1 << 16;

/// Callback of a waiter; runs once with the result for all awaited blocks.
pub(crate) type OnDone = Box<dyn FnOnce(Result<(), FetchFailure>) + Send>;

/// Id of a waiter, ascending.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct WaiterId(u64);

struct Waiter {
    fetches: usize,
    /// Awaited blocks. Failures of other blocks of a fetch are ignored.
    wanted: Vec<Extent>,
    failure: Option<FetchFailure>,
    deadline: Option<Instant>,
    on_done: OnDone,
}

/// Callback with its result, to be run without locks.
#[must_use = "a reader waits for the callback"]
pub(crate) struct PendingCallback {
    on_done: OnDone,
    result: Result<(), FetchFailure>,
}

impl PendingCallback {
    pub(crate) fn run(self) {
        (self.on_done)(self.result);
    }
}

/// All waiters.
#[derive(Default)]
pub(crate) struct Waiters {
    by_id: BTreeMap<WaiterId, Waiter>,
    next: u64,
}

impl Waiters {
    /// Adds a waiter for blocks, with its number of outstanding fetches and its deadline.
    pub(crate) fn add(
        &mut self,
        wanted: Vec<Extent>,
        fetches: usize,
        deadline: Option<Instant>,
        on_done: OnDone,
    ) -> WaiterId {
        assert!(fetches > 0 && !wanted.is_empty(), "a waiter has an outstanding fetch");
        let id = WaiterId(self.next);
        self.next += 1;
        self.by_id.insert(id, Waiter { fetches, wanted, failure: None, deadline, on_done });
        id
    }

    pub(crate) fn is_full(&self) -> bool {
        self.by_id.len() >= MAX_WAITERS
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(crate) fn contains(&self, id: WaiterId) -> bool {
        self.by_id.contains_key(&id)
    }

    /// Returns the awaited blocks of a waiter; none of an expired one.
    pub(crate) fn wanted(&self, id: WaiterId) -> &[Extent] {
        self.by_id.get(&id).map_or(&[], |waiter| &waiter.wanted)
    }

    /// Records the end of a fetch, with its failed blocks if any. Returns the callback after the waiter's
    /// last fetch; `None` for an expired waiter.
    pub(crate) fn fetch_ended(
        &mut self,
        id: WaiterId,
        loss: Option<(&BlockSet, &FetchFailure)>,
    ) -> Option<PendingCallback> {
        let waiting = self.by_id.get_mut(&id)?;
        assert!(waiting.fetches > 0, "a waiter has an outstanding fetch");
        waiting.fetches -= 1;
        if let Some((lost, failure)) = loss
            && waiting.failure.is_none()
            && waiting.wanted.iter().any(|&wanted| lost.intersection_len(wanted) > 0)
        {
            waiting.failure = Some(failure.clone());
        }
        if waiting.fetches > 0 {
            return None;
        }
        let Waiter { on_done, failure, .. } = self.by_id.remove(&id)?;
        Some(PendingCallback { on_done, result: failure.map_or(Ok(()), Err) })
    }

    /// Returns the next deadline. All timeouts are equal, so waiters expire in order of their ids.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.by_id.values().find_map(|waiting| waiting.deadline)
    }

    /// Removes the expired waiters and returns their callbacks.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<PendingCallback> {
        let timed = self.by_id.iter().filter_map(|(&id, waiting)| Some((id, waiting.deadline?)));
        let over: Vec<WaiterId> =
            timed.take_while(|&(_, deadline)| deadline <= now).map(|(id, _)| id).collect();
        let over = over.iter().filter_map(|id| self.by_id.remove(id));
        over.map(|waiting| PendingCallback {
            on_done: waiting.on_done,
            result: Err(waiting.failure.unwrap_or(FetchFailure::TimedOut)),
        })
        .collect()
    }

    /// Removes all waiters and returns their callbacks, with a failure.
    pub(crate) fn fail_all(&mut self, failure: &FetchFailure) -> Vec<PendingCallback> {
        let all = std::mem::take(&mut self.by_id).into_values();
        all.map(|waiting| PendingCallback { on_done: waiting.on_done, result: Err(failure.clone()) })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_extent::BlockIndex;

    #[test]
    fn number_of_waiters_is_limited() {
        let mut waiters = Waiters::default();
        while !waiters.is_full() {
            assert!(waiters.len() < MAX_WAITERS);
            waiters.add(vec![Extent::new(BlockIndex(0), 1)], 1, None, Box::new(|_| {}));
        }
        assert_eq!(waiters.len(), MAX_WAITERS);
        assert_eq!(waiters.fail_all(&FetchFailure::Closed).len(), MAX_WAITERS);
        assert_eq!(waiters.len(), 0);
    }
}
