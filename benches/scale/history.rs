//! Cloud snapshots of a volume: chains of deltas, and the product's retention.

use crate::fleet::{FULL_EVERY, Policy};
use blockd_schedule::{Condition, Health, Retention, Snapshot, decide};
use jiff::Timestamp;
use std::error::Error;

/// Packs and index of a delta.
#[derive(Clone, Copy)]
struct Delta {
    number: u64,
    objects: u64,
}

/// Cloud snapshots and deltas of a volume, oldest first.
#[derive(Clone, Default)]
pub struct History {
    /// Number of the next backup.
    next: u64,
    /// Numbers and times.
    snapshots: Vec<(u64, Timestamp)>,
    deltas: Vec<Delta>,
}

impl History {
    /// Returns true if the next backup is full.
    pub const fn is_next_full(&self) -> bool {
        self.next.is_multiple_of(FULL_EVERY)
    }

    pub fn add(&mut self, created: Timestamp, packs: u64) {
        self.snapshots.push((self.next, created));
        self.deltas.push(Delta { number: self.next, objects: packs + 1 });
        self.next += 1;
    }

    /// Deletes surplus snapshots; returns for each the number of objects of deltas that no other one needs.
    pub fn expire(&mut self, retain: &Retention, now: Timestamp) -> Vec<u64> {
        let snapshot = |&(id, created): &(u64, Timestamp)| Snapshot {
            id,
            created,
            condition: Condition::Done,
            health: Health::Unverified,
            pinned: false,
            held: false,
            expires: None,
        };
        let judged: Vec<_> = self.snapshots.iter().map(snapshot).collect();
        let verdicts = decide(&judged, retain, now).into_iter();
        let surplus = verdicts.filter(|(_, verdict)| verdict.is_delete());
        surplus.map(|(id, _)| self.delete(id)).collect()
    }

    fn delete(&mut self, id: u64) -> u64 {
        self.snapshots.retain(|(number, _)| *number != id);
        let chain = id / FULL_EVERY;
        let newest = self.snapshots.iter().map(|(number, _)| *number).filter(|it| it / FULL_EVERY == chain);
        // The newest snapshot of a chain needs all deltas before its own.
        let first_free = newest.max().map_or(chain * FULL_EVERY, |newest| newest + 1);
        let is_free = |delta: &Delta| {
            delta.number / FULL_EVERY == chain && delta.number >= first_free && delta.number <= id
        };
        let freed = self.deltas.iter().filter(|delta| is_free(delta)).map(|delta| delta.objects).sum();
        self.deltas.retain(|delta| !is_free(delta));
        freed
    }

    pub fn snapshots(&self) -> u64 {
        self.snapshots.len() as u64
    }

    /// Returns the number of objects below `blockd/data/`.
    pub fn objects(&self) -> u64 {
        self.deltas.iter().map(|delta| delta.objects).sum()
    }
}

/// Returns the histories of volumes at `now` whose schedule has run long enough to delete as many snapshots
/// as it makes, one for each position in a chain.
pub fn settled(policy: &Policy, now: Timestamp) -> Result<Vec<History>, Box<dyn Error>> {
    // A year of monthly snapshots, and some weeks of the others.
    let days = if policy.interval_s < 86_400 { 35 } else { 400 };
    let mut nominals = Vec::new();
    let mut at = now.checked_sub(jiff::SignedDuration::from_hours(24 * days))?;
    while let Some(next) = policy.when.next_after(at).filter(|next| *next <= now) {
        nominals.push(next);
        at = next;
    }
    let after = |skipped: usize| {
        let mut history = History::default();
        for nominal in nominals.iter().skip(skipped) {
            history.add(*nominal, policy.packs(history.is_next_full()));
            history.expire(&policy.retain, *nominal);
        }
        history
    };
    Ok((0..FULL_EVERY as usize).map(after).collect())
}
