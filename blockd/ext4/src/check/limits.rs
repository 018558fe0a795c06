//! Limits of a check.

use super::finding::Unchecked;
use crate::ExtError;

/// Limits of a check. A check that reaches one ends there and names it in
/// [`Report::unchecked`](super::Report::unchecked).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Memory for block sets and inode tables, in bytes; a filesystem of 1 TiB with ten million files needs
    /// up to 150 MiB.
    pub memory_bytes: u64,
    /// Bytes read from the image, including those from the cache.
    pub read_bytes: u64,
}

impl Default for Limits {
    /// Returns 256 MiB of memory and 1 TiB of reads.
    fn default() -> Self {
        Self { memory_bytes: 256 << 20, read_bytes: 1 << 40 }
    }
}

/// End of a check before its last step.
pub(super) enum Stop {
    Failed(ExtError),
    Limit(Unchecked),
}

/// Rest of a limit, in bytes.
pub(super) struct Budget(u64);

impl Budget {
    pub fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    pub fn take(&mut self, bytes: u64) -> Result<(), Stop> {
        self.0 = self.0.checked_sub(bytes).ok_or(Stop::Limit(Unchecked::MemoryLimit))?;
        Ok(())
    }

    pub fn give_back(&mut self, bytes: u64) {
        self.0 += bytes;
    }
}
