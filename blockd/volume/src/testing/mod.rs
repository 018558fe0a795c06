//! Simulated disk with faults, lost writes and power cuts; for tests only.
//!
//! A [`Disk`] is attached to a directory. From then on every call on its files passes through it:
//! [faults](Fault) replace calls, and beside the files, which model the page cache, the disk tracks durable
//! data. A sync costs nothing and makes data durable; after a [power cut](Disk::power_cut), a random part of
//! unsynced data survives in a separate directory. A [disk that lies](Lie) tests the tests.
//!
//! Model: sectors and length of a file reach the disk at any time between write and sync, in any order, but
//! never revert; a name is durable only after a sync of its directory, each name independently, and a rename
//! is atomic; after a failed sync the kernel treats dropped pages as clean, so that they read as written
//! until they are [evicted](Disk::evict).

mod crash;
mod disk;
mod fault;
mod node;
mod watch;

pub use disk::{Attached, Disk, Operation};
pub use fault::{Fault, FaultError, Lie, OpKind};
pub(crate) use watch::Watch;

/// Seeded splitmix64 generator.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Creates a generator.
    pub fn new(seed: u64) -> Self {
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

    /// Returns true with probability 1 in `times`.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}
