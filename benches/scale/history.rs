//! Cloud snapshots of a volume: the deltas that they need, and the product's retention.

use crate::{
    bucket::PAGE_KEYS,
    fleet::{FULL_EVERY, Kind, Policy, Sources},
};
use blockd_schedule::{Condition, Health, Retention, Snapshot, decide};
use jiff::Timestamp;
use std::error::Error;

/// Number of needed deltas from which on all objects of a volume are listed at once.
const MANY_DELTAS: u64 = 8;

/// Packs and index of a delta.
#[derive(Clone, Copy)]
struct Delta {
    number: u64,
    objects: u64,
}

/// Cloud snapshots and deltas of a volume, oldest first.
#[derive(Clone)]
pub struct History {
    /// Number of the next backup.
    next: u64,
    sources: Sources,
    /// Numbers and times.
    snapshots: Vec<(u64, Timestamp)>,
    deltas: Vec<Delta>,
}

impl History {
    /// Creates the history of a new volume.
    pub const fn new(sources: Sources) -> Self {
        Self { next: 0, sources, snapshots: Vec::new(), deltas: Vec::new() }
    }

    /// Returns the kind of the next backup.
    pub const fn next_kind(&self) -> Kind {
        match self.next {
            0 => Kind::First,
            next if next.is_multiple_of(FULL_EVERY) => Kind::Full,
            _ => Kind::Incremental,
        }
    }

    pub fn add(&mut self, created: Timestamp, packs: u64) {
        self.snapshots.push((self.next, created));
        self.deltas.push(Delta { number: self.next, objects: packs + 1 });
        self.next += 1;
    }

    /// Returns true if a snapshot needs a delta that is not newer: its chain begins with a full backup, which
    /// references earlier ones.
    const fn needs(&self, snapshot: u64, delta: u64) -> bool {
        let full = snapshot - snapshot % FULL_EVERY;
        let is_source = delta.is_multiple_of(FULL_EVERY) || !self.sources.only_full;
        delta >= full || (is_source && delta + self.sources.backups >= full)
    }

    /// Returns the number of deltas that the newest snapshot needs.
    pub fn needed(&self) -> u64 {
        let Some((newest, _)) = self.snapshots.last() else { return 0 };
        self.deltas.iter().filter(|delta| self.needs(*newest, delta.number)).count() as u64
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
        // If the next snapshot does not need a delta, no later one does.
        let is_free = |delta: &Delta| {
            let later = self.snapshots.partition_point(|(number, _)| *number < delta.number);
            self.snapshots.get(later).is_none_or(|(next, _)| !self.needs(*next, delta.number))
        };
        let (freed, kept): (Vec<Delta>, Vec<Delta>) = self.deltas.iter().partition(|delta| is_free(delta));
        self.deltas = kept;
        freed.iter().map(|delta| delta.objects).sum()
    }

    /// Returns the requests that list the deltas of the newest snapshot, or of many the whole volume
    /// (`blockd/cloud/src/delta_listings.rs`).
    pub fn listings(&self) -> u64 {
        match self.needed() {
            few @ ..MANY_DELTAS => few,
            _ => self.objects().div_ceil(PAGE_KEYS),
        }
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
    // A year of monthly snapshots or some weeks of the others, and the deltas that the oldest one needs.
    let days = if policy.interval_s < 86_400 { 35 } else { 400 };
    let days = days + policy.sources().backups as i64 * policy.interval_s / 86_400;
    let mut nominals = Vec::new();
    let mut at = now.checked_sub(jiff::SignedDuration::from_hours(24 * days))?;
    while let Some(next) = policy.when.next_after(at).filter(|next| *next <= now) {
        nominals.push(next);
        at = next;
    }
    let after = |skipped: usize| {
        let mut history = History::new(policy.sources());
        for nominal in nominals.iter().skip(skipped) {
            history.add(*nominal, policy.packs(history.next_kind()));
            history.expire(&policy.retain, *nominal);
        }
        history
    };
    Ok((0..FULL_EVERY as usize).map(after).collect())
}
