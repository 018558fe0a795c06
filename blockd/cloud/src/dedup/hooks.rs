//! Hooks: a sample of the known fingerprints in memory.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

/// Maximum number of hooks: 36 MiB. All fingerprints of 6 GiB of blocks are hooks, one of 256 of 1.5 TiB.
const MAX_HOOKS: usize = 1_800_000;

/// Hasher of keys that are already random.
#[derive(Default)]
pub(super) struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, key: u64) {
        // The lowest bits of hooks are zero.
        self.0 = key.rotate_right(32);
    }
}

/// Table from the first 8 bytes of a fingerprint to the source and the number of its entry. If it is full,
/// only fingerprints with one more zero bit stay.
pub(super) struct Hooks {
    found: HashMap<u64, (u32, u32), BuildHasherDefault<Identity>>,
    bits: u32,
    max: usize,
}

impl Hooks {
    pub fn new() -> Self {
        Self { found: HashMap::default(), bits: 0, max: MAX_HOOKS }
    }

    /// Returns the number of zero bits that hooks have if `entries` entries are inserted.
    pub fn bits_for(entries: u64) -> u32 {
        (entries / MAX_HOOKS as u64).checked_ilog2().map_or(0, |bits| bits + 1)
    }

    /// Inserts a hook, unless there is one of an earlier source.
    pub fn insert(&mut self, prefix: u64, source: u32, number: u32) {
        if prefix.trailing_zeros() < self.bits {
            return;
        }
        self.found.entry(prefix).or_insert((source, number));
        while self.found.len() > self.max {
            self.bits += 1;
            self.found.retain(|prefix, _| prefix.trailing_zeros() >= self.bits);
        }
    }

    pub fn get(&self, prefix: u64) -> Option<(u32, u32)> {
        self.found.get(&prefix).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_table_keeps_a_sample() {
        let mut hooks = Hooks { max: 100, ..Hooks::new() };
        (1..=1000).for_each(|prefix| hooks.insert(prefix, 1, prefix as u32));
        assert_eq!(hooks.bits, 4);
        assert_eq!(hooks.found.len(), 1000 >> 4);
        assert_eq!((hooks.get(16), hooks.get(17)), (Some((1, 16)), None));
        hooks.insert(16, 2, 5);
        assert_eq!(hooks.get(16), Some((1, 16)), "the earlier source stays");
        assert_eq!([0, 1_800_000, 3_600_000, 7_200_001].map(Hooks::bits_for), [0, 1, 2, 3]);
    }
}
