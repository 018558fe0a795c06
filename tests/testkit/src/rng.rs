//! Pseudorandom numbers, repeatable by a seed.

use std::hash::{BuildHasher, RandomState};

/// A splitmix64 generator.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Creates the generator of a test. Prints the seed; `BLOCKD_TEST_SEED` sets it.
    ///
    /// # Panics
    /// `BLOCKD_TEST_SEED` is not a number.
    #[allow(clippy::expect_used, reason = "a failed test panics")]
    pub fn of_test(name: &str) -> Self {
        let seed = match std::env::var("BLOCKD_TEST_SEED") {
            Ok(text) => text.parse().expect("BLOCKD_TEST_SEED must be a decimal number"),
            Err(_) => RandomState::new().hash_one(name),
        };
        eprintln!("{name}: repeat this run with BLOCKD_TEST_SEED={seed}");
        Self(seed)
    }

    /// Creates a generator with a fixed seed.
    pub const fn fixed(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `end`, which must not be zero.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next_u64() % end
    }

    /// Returns a number from `from` to `to`, both included.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    /// Returns true once in `n` times on average.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Returns incompressible bytes.
    pub fn bytes(&mut self, len_bytes: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len_bytes as usize + 8);
        while (bytes.len() as u64) < len_bytes {
            bytes.extend_from_slice(&self.next_u64().to_le_bytes());
        }
        bytes.truncate(len_bytes as usize);
        bytes
    }
}
