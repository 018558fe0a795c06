//! LRU map bounded by bytes.

use hashlink::LruCache;
use std::hash::Hash;

/// Map that evicts the least recently used entries beyond a total size, as reported by callers.
pub(crate) struct Lru<K, V> {
    entries: LruCache<K, (u64, V)>,
    bytes: u64,
    max_bytes: u64,
}

impl<K: Copy + Eq + Hash, V> Lru<K, V> {
    /// Creates a map of at most `max_bytes`.
    pub fn new(max_bytes: u64) -> Self {
        Self { entries: LruCache::new_unbounded(), bytes: 0, max_bytes }
    }

    /// Returns the value of a key and marks it as used.
    pub fn get(&mut self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    /// Returns true if the key is present, without marking it as used.
    pub fn contains(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    /// Inserts a value and returns the evicted ones; a value larger than the capacity is among them.
    pub fn insert(&mut self, key: K, value: V, len_bytes: u64) -> Vec<(K, V)> {
        let mut gone: Vec<(K, V)> = self.remove(&key).map(|value| (key, value)).into_iter().collect();
        if len_bytes > self.max_bytes {
            gone.push((key, value));
            return gone;
        }
        self.entries.insert(key, (len_bytes, value));
        self.bytes += len_bytes;
        while self.bytes > self.max_bytes
            && let Some((key, (len_bytes, value))) = self.entries.remove_lru()
        {
            self.bytes -= len_bytes;
            gone.push((key, value));
        }
        assert!(self.bytes <= self.max_bytes, "{} of {} bytes", self.bytes, self.max_bytes);
        debug_assert!(self.entries.contains_key(&key), "the new entry was evicted");
        gone
    }

    /// Removes a key.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let (len_bytes, value) = self.entries.remove(key)?;
        self.bytes -= len_bytes;
        Some(value)
    }

    /// Returns the total size of the entries in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The model is a list with the most recently used entry at its end.
        #[test]
        fn lru_keeps_the_latest_used_entries(steps in prop::collection::vec((0u8..3, 0u8..12, 1u64..40), 0..200)) {
            let mut lru = Lru::new(100);
            let mut model: Vec<(u8, u64)> = Vec::new();
            for (what, key, len) in steps {
                let at = model.iter().position(|(other, _)| *other == key);
                match what {
                    0 => {
                        let before: Vec<u8> = model.iter().map(|(key, _)| *key).collect();
                        at.map(|at| model.remove(at));
                        while model.iter().map(|(_, len)| len).sum::<u64>() + len > 100 {
                            model.remove(0);
                        }
                        model.push((key, len));
                        let gone = lru.insert(key, len, len);
                        for (gone, _) in gone {
                            prop_assert!(before.contains(&gone));
                        }
                    }
                    1 => {
                        let expected = at.map(|at| model.remove(at));
                        expected.into_iter().for_each(|used| model.push(used));
                        prop_assert_eq!(lru.get(&key).copied(), expected.map(|(_, len)| len));
                    }
                    _ => {
                        let expected = at.map(|at| model.remove(at).1);
                        prop_assert_eq!(lru.remove(&key), expected);
                    }
                }
                prop_assert_eq!(lru.bytes(), model.iter().map(|(_, len)| len).sum::<u64>());
                for key in 0..12 {
                    prop_assert_eq!(lru.contains(&key), model.iter().any(|(other, _)| *other == key));
                }
            }
        }
    }

    #[test]
    fn oversized_entry_displaces_no_other() {
        let mut lru = Lru::new(10);
        lru.insert(1, 'a', 5);
        assert_eq!(lru.insert(2, 'b', 11), [(2, 'b')]);
        assert!(lru.contains(&1) && lru.bytes() == 5);
    }
}
