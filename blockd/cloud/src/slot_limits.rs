//! Limits on the number and cost of key slots.
//!
//! An attacker with write access to the bucket can store many slots whose Argon2id parameters take 1 GiB of
//! locked memory and minutes each. So slots that this host does not know are limited in number, memory and
//! work, and the oldest ones are tried first: slots that are added later do not prevent the genuine ones from
//! being opened.

use crate::{
    keys::{KdfParams, KeySlot},
    repository::KnownKeys,
};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Maximum number of key slots that are read.
pub(crate) const MAX_SLOTS: usize = 64;
/// Maximum memory of Argon2id for an unknown slot, unless this host's own slots take more; the default of new
/// slots is 64 MiB.
const MAX_MEMORY_KIB: u32 = 256 << 10;
/// Maximum total work for unknown slots, in KiB of memory times passes: that of 64 slots with the default
/// parameters, 64 MiB and 3 passes.
const MAX_WORK: u64 = 64 * (64 << 10) * 3;

/// Returns the ids of the slots to read (those that this host knows, then the others, oldest first) and the
/// number of omitted ones.
pub(crate) fn select(listed: &BTreeMap<Uuid, i64>, known: &KnownKeys) -> (Vec<Uuid>, usize) {
    let mut ids: Vec<Uuid> = known.slots.iter().map(|slot| slot.key_id).collect();
    let mut others: Vec<(i64, Uuid)> =
        listed.iter().filter(|(id, _)| !ids.contains(id)).map(|(id, stored)| (*stored, *id)).collect();
    others.sort_unstable();
    ids.extend(others.into_iter().map(|(_, id)| id));
    let left_out = ids.len().saturating_sub(MAX_SLOTS.max(known.slots.len()));
    ids.truncate(ids.len() - left_out);
    debug_assert!(known.slots.iter().all(|slot| ids.contains(&slot.key_id)), "an own slot is left out");
    debug_assert!(ids.len() <= MAX_SLOTS.max(known.slots.len()));
    (ids, left_out)
}

/// Remaining work budget for unknown slots.
#[derive(Debug)]
pub(crate) struct UnlockBudget {
    max_memory_kib: u32,
    work: u64,
    /// Number of slots that were not tried.
    pub left_out: usize,
}

impl UnlockBudget {
    pub fn new(known: &KnownKeys) -> Self {
        let own = known.slots.iter().map(|slot| slot.kdf.m_kib).max();
        Self { max_memory_kib: MAX_MEMORY_KIB.max(own.unwrap_or(0)), work: MAX_WORK, left_out: 0 }
    }

    /// Returns true if a slot may be tried, and subtracts its work.
    pub fn take(&mut self, slot: &KeySlot) -> bool {
        let KdfParams { m_kib, t, .. } = slot.kdf;
        let work = u64::from(m_kib) * u64::from(t);
        let is_affordable = m_kib <= self.max_memory_kib && work <= self.work;
        if is_affordable {
            self.work -= work;
        } else {
            self.left_out += 1;
            tracing::warn!(key_id = %slot.key_id, memory_kib = m_kib, passes = t, "key slot skipped: its Argon2id parameters exceed the limits");
        }
        is_affordable
    }
}
