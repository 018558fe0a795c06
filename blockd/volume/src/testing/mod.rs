//! A disk that fails, forgets and loses power on command; for tests only.
//!
//! A [`Disk`] is attached to a folder. From then on every call on a file in it passes through:
//! [faults](Fault) are put in the place of calls, and beside the files, which are what the page cache holds,
//! the disk remembers what is durable. A sync is free and moves the one to the other; when the [power is
//! cut](Disk::power_cut), what was not synced survives in part, drawn at random, in a folder of its own.
//! [Planted bugs](Bug) are tests of the tests that use this.
//!
//! What is modelled: a file's sectors and its length reach the disk each at any time between write and sync,
//! in any order, but never go back; a name is durable only after a sync of its folder, each name for itself,
//! and a rename replaces atomically; after a failed sync the kernel calls the dropped pages clean, so that
//! they read as written until they are [evicted](Disk::evict).

mod crash;
mod disk;
mod node;
mod watch;

pub use crate::storage::Bug;
pub use disk::{Attached, Disk, Fault, FaultError, OpKind, Operation};
pub(crate) use watch::Watch;

/// A splitmix64 generator: random numbers that a seed repeats.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator with this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not zero.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next_u64() % end
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}
