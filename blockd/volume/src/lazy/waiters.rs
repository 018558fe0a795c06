//! Waiters for fetches of a lazy base, with their counts and timeouts.

use crate::lazy::FetchFailure;
use blockd_extent::{BlockSet, Extent};
use std::{collections::BTreeMap, time::Instant};

/// Maximum number of waiters. Each is small; callers that do not wait for the end must still not fill the
/// memory.
const MAX_WAITERS: usize = 1 << 16;

/// Called once with the result of all awaited blocks.
pub(crate) type Then = Box<dyn FnOnce(Result<(), FetchFailure>) + Send>;

/// Id of a waiter, ascending.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct WaiterId(u64);

struct Waiting {
    flights: usize,
    /// Awaited blocks: other losses of a fetch are irrelevant.
    wanted: Vec<Extent>,
    failure: Option<FetchFailure>,
    until: Option<Instant>,
    then: Then,
}

/// Pending call of a waiter, to be made without locks.
#[must_use = "a reader waits for it"]
pub(crate) struct Call {
    then: Then,
    result: Result<(), FetchFailure>,
}

impl Call {
    pub(crate) fn make(self) {
        (self.then)(self.result);
    }
}

/// All waiters.
#[derive(Default)]
pub(crate) struct Waiters {
    by_id: BTreeMap<WaiterId, Waiting>,
    next: u64,
}

impl Waiters {
    /// Adds a waiter for blocks and a number of fetches, with a timeout.
    pub(crate) fn add(
        &mut self,
        wanted: Vec<Extent>,
        flights: usize,
        until: Option<Instant>,
        then: Then,
    ) -> WaiterId {
        assert!(flights > 0 && !wanted.is_empty(), "a waiter without a fetch waits for ever");
        let id = WaiterId(self.next);
        self.next += 1;
        self.by_id.insert(id, Waiting { flights, wanted, failure: None, until, then });
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

    /// Records the end of a fetch, possibly with lost blocks; the last one ends the wait. No effect on
    /// expired waiters.
    pub(crate) fn landed(&mut self, id: WaiterId, loss: Option<(&BlockSet, &FetchFailure)>) -> Option<Call> {
        let waiting = self.by_id.get_mut(&id)?;
        assert!(waiting.flights > 0, "a waiter whose fetches have ended was called");
        waiting.flights -= 1;
        if let Some((lost, failure)) = loss
            && waiting.failure.is_none()
            && waiting.wanted.iter().any(|&wanted| lost.intersection_len(wanted) > 0)
        {
            waiting.failure = Some(failure.clone());
        }
        if waiting.flights > 0 {
            return None;
        }
        let Waiting { then, failure, .. } = self.by_id.remove(&id)?;
        Some(Call { then, result: failure.map_or(Ok(()), Err) })
    }

    /// Returns the next timeout. All timeouts are equal, so the first waiter expires first.
    pub(crate) fn next_end(&self) -> Option<Instant> {
        self.by_id.values().find_map(|waiting| waiting.until)
    }

    /// Expires waiters.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<Call> {
        let timed = self.by_id.iter().filter_map(|(&id, waiting)| Some((id, waiting.until?)));
        let over: Vec<WaiterId> = timed.take_while(|&(_, until)| until <= now).map(|(id, _)| id).collect();
        let over = over.iter().filter_map(|id| self.by_id.remove(id));
        over.map(|waiting| Call {
            then: waiting.then,
            result: Err(waiting.failure.unwrap_or(FetchFailure::Late)),
        })
        .collect()
    }

    /// Fails all waiters.
    pub(crate) fn dismiss(&mut self, failure: &FetchFailure) -> Vec<Call> {
        let all = std::mem::take(&mut self.by_id).into_values();
        all.map(|waiting| Call { then: waiting.then, result: Err(failure.clone()) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_extent::BlockIndex;

    #[test]
    fn so_many_may_wait_and_no_more() {
        let mut waiters = Waiters::default();
        while !waiters.is_full() {
            assert!(waiters.len() < MAX_WAITERS);
            waiters.add(vec![Extent::new(BlockIndex(0), 1)], 1, None, Box::new(|_| {}));
        }
        assert_eq!(waiters.len(), MAX_WAITERS);
        assert_eq!(waiters.dismiss(&FetchFailure::Closed).len(), MAX_WAITERS);
        assert_eq!(waiters.len(), 0);
    }
}
