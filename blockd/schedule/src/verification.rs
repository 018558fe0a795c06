//! Plan of the background verification: the next backups to read, and the time for reading all of them.
//!
//! The unit is a chain: reading a backup reads every backup that it is based on. Backups that were never read
//! come first, the newest one before others, so that a new one is proven soon; then the chain with the oldest
//! proof. New backups alone could use up the budget: every second turn is that of a chain whose last proof is
//! older than the period, if there is one.

use jiff::{SignedDuration, Timestamp};

const DAY_S: u64 = 24 * 3600;

/// Chain of backups that is read together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VerifyChain {
    /// Point in time of its newest backup.
    pub newest: Timestamp,
    /// Time of the oldest one of the last proofs, or attempts, of its backups; `None` if one was never read.
    pub read: Option<Timestamp>,
    /// Bytes that a verification reads.
    pub read_bytes: u64,
    /// Requests of a verification.
    pub requests: u64,
}

/// Daily budget of the background verification.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VerifyBudget {
    /// Bytes read.
    pub bytes_per_day: u64,
    /// Requests.
    pub requests_per_day: u64,
}

impl VerifyBudget {
    /// Returns the time that a verification of this cost takes up; at least one second.
    pub fn time_for(&self, read_bytes: u64, requests: u64) -> SignedDuration {
        let share = |cost: u64, budget: u64| {
            (u128::from(cost) * u128::from(DAY_S)).div_ceil(u128::from(budget.max(1)))
        };
        let seconds =
            share(read_bytes, self.bytes_per_day).max(share(requests, self.requests_per_day)).max(1);
        // A century stands for never.
        SignedDuration::from_secs(seconds.min(u128::from(100 * 365 * DAY_S)) as i64)
    }

    /// Returns the time for reading all chains once.
    pub fn period(&self, chains: &[VerifyChain]) -> SignedDuration {
        let times = chains.iter().map(|chain| self.time_for(chain.read_bytes, chain.requests));
        times.fold(SignedDuration::ZERO, SignedDuration::saturating_add)
    }

    /// Returns the budget that reads all chains within a time, in the proportion of this one; `None` if this
    /// one does.
    pub fn raised_to(&self, chains: &[VerifyChain], max: SignedDuration) -> Option<Self> {
        let (period, max) = (self.period(chains).as_secs(), max.as_secs().max(1));
        let raised = |budget: u64| {
            let needed =
                (u128::from(budget) * u128::from(period.unsigned_abs())).div_ceil(max.unsigned_abs().into());
            u64::try_from(needed).unwrap_or(u64::MAX)
        };
        (period > max).then(|| Self {
            bytes_per_day: raised(self.bytes_per_day),
            requests_per_day: raised(self.requests_per_day),
        })
    }
}

/// Turn of a verification.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Turn {
    /// New backups come first.
    #[default]
    New,
    /// The last verification was of a new backup: chains that were not read for a period come first.
    Overdue,
}

/// Returns the index of the chain to read, and the turn after it; `None` if all were read after `before`.
/// `overdue` is a period ago.
pub fn next_chain(
    chains: &[VerifyChain],
    turn: Turn,
    before: Timestamp,
    overdue: Timestamp,
) -> Option<(usize, Turn)> {
    let indexed = || chains.iter().enumerate();
    let oldest =
        indexed().filter_map(|(at, chain)| Some((chain.read.filter(|read| *read < before)?, at))).min();
    let new = indexed().filter(|(_, chain)| chain.read.is_none()).max_by_key(|(_, chain)| chain.newest);
    match (oldest, new) {
        (Some((read, at)), Some(_)) if turn == Turn::Overdue && read < overdue => Some((at, Turn::New)),
        (_, Some((at, _))) => Some((at, Turn::Overdue)),
        (Some((_, at)), None) => Some((at, Turn::New)),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests;
