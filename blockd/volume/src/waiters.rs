//! Who waits for flights of a lazy base: for how many, and until when.

use crate::lazy::FetchFailure;
use blockd_extent::{BlockSet, Extent};
use std::{collections::BTreeMap, time::Instant};

/// The most that may wait at once. What waits is small; whoever comes again and again without waiting for the
/// end must not fill the memory all the same.
const MAX_WAITERS: usize = 1 << 16;

/// Called once with what became of everything that was waited for.
pub(crate) type Then = Box<dyn FnOnce(Result<(), FetchFailure>) + Send>;

/// One who waits. Those who came later have higher ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct WaiterId(u64);

struct Waiting {
    flights: usize,
    /// The blocks that are waited for: what else a flight loses is of no concern.
    wanted: Vec<Extent>,
    failure: Option<FetchFailure>,
    until: Option<Instant>,
    then: Then,
}

/// Somebody who is to be told, once no lock is held.
#[must_use = "somebody waits for it"]
pub(crate) struct Call {
    then: Then,
    result: Result<(), FetchFailure>,
}

impl Call {
    pub(crate) fn make(self) {
        (self.then)(self.result);
    }
}

/// Everybody who waits.
#[derive(Default)]
pub(crate) struct Waiters {
    by_id: BTreeMap<WaiterId, Waiting>,
    next: u64,
}

impl Waiters {
    /// Somebody more, who waits for these blocks and so many flights, but not beyond a moment.
    pub(crate) fn add(
        &mut self,
        wanted: Vec<Extent>,
        flights: usize,
        until: Option<Instant>,
        then: Then,
    ) -> WaiterId {
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

    /// One of the flights that somebody waits for has ended, perhaps without some blocks; with the last one,
    /// the wait has. Nothing for who waits no more.
    pub(crate) fn landed(&mut self, id: WaiterId, loss: Option<(&BlockSet, &FetchFailure)>) -> Option<Call> {
        let waiting = self.by_id.get_mut(&id)?;
        waiting.flights = waiting.flights.saturating_sub(1);
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

    /// The next moment at which somebody's time is over. All wait equally long, so whoever came first is
    /// first.
    pub(crate) fn next_end(&self) -> Option<Instant> {
        self.by_id.values().find_map(|waiting| waiting.until)
    }

    /// Those whose time is over wait no longer.
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

    /// Nobody waits any longer, for this reason.
    pub(crate) fn dismiss(&mut self, failure: &FetchFailure) -> Vec<Call> {
        let all = std::mem::take(&mut self.by_id).into_values();
        all.map(|waiting| Call { then: waiting.then, result: Err(failure.clone()) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_may_wait_and_no_more() {
        let mut waiters = Waiters::default();
        while !waiters.is_full() {
            assert!(waiters.len() < MAX_WAITERS);
            waiters.add(vec![], 1, None, Box::new(|_| {}));
        }
        assert_eq!(waiters.len(), MAX_WAITERS);
        assert_eq!(waiters.dismiss(&FetchFailure::Closed).len(), MAX_WAITERS);
        assert_eq!(waiters.len(), 0);
    }
}
