//! Quotas by key, such as connections of one address.

use parking_lot::Mutex;
use std::{collections::HashMap, hash::Hash, sync::Arc};

/// Slots in use by key: at most `PER_KEY` of one key and `TOTAL` of all.
#[derive(Debug)]
pub struct Quota<K, const PER_KEY: usize, const TOTAL: usize>(Arc<Mutex<HashMap<K, usize>>>);

/// One slot of a quota, released on drop.
#[derive(Debug)]
pub struct Slot<K: Eq + Hash> {
    used: Arc<Mutex<HashMap<K, usize>>>,
    key: K,
}

impl<K, const PER_KEY: usize, const TOTAL: usize> Default for Quota<K, PER_KEY, TOTAL> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Clone + Eq + Hash, const PER_KEY: usize, const TOTAL: usize> Quota<K, PER_KEY, TOTAL> {
    /// Takes a slot; `None` if this key or all together have too many.
    pub fn take(&self, key: K) -> Option<Slot<K>> {
        let mut used = self.0.lock();
        let (of_key, total) = (used.get(&key).copied().unwrap_or(0), used.values().sum::<usize>());
        if of_key >= PER_KEY || total >= TOTAL {
            return None;
        }
        used.insert(key.clone(), of_key + 1);
        Some(Slot { used: Arc::clone(&self.0), key })
    }
}

impl<K: Eq + Hash> Drop for Slot<K> {
    fn drop(&mut self) {
        let mut used = self.used.lock();
        match used.get_mut(&self.key) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(used.remove(&self.key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quota_bounds_each_key_and_the_total() {
        let quota = Quota::<u32, 16, 64>::default();
        let mut taken: Vec<Slot<u32>> = (0..16).map(|_| quota.take(7).unwrap()).collect();
        assert!(quota.take(7).is_none());
        taken.extend((100..).map_while(|key| quota.take(key)));
        assert_eq!(taken.len(), 64);
        taken.remove(0);
        assert!(quota.take(7).is_some());
        taken.clear();
        assert!(quota.0.lock().is_empty());
    }
}
