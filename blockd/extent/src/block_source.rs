//! Read access to the blocks of a snapshot or image.
//!
//! Three similar interfaces stay separate: the NBD server's device also writes and suspends requests, the
//! source of a lazy volume delivers blocks in any order until a deadline, and `blockd-ext4` does not depend
//! on this crate.

use crate::Extent;
use std::{io, ops::Range};

/// Byte range that is either data or known zeroes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DataRange {
    /// The range has data.
    pub is_data: bool,
    /// End of the range, in bytes. A range of the same kind may follow.
    pub end_bytes: u64,
}

/// Content of a snapshot or image, which never changes. Called concurrently on threads that may block.
pub trait BlockSource: Send + Sync {
    /// Returns the size in bytes.
    fn size_bytes(&self) -> u64;

    /// Fills `buf` from `offset_bytes` on. May block for a bounded time.
    ///
    /// # Errors
    /// The bytes are unavailable, or not inside the source.
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Reads like [`read_at`](Self::read_at) if that is possible without waiting. After `false`, the content
    /// of `buf` is unspecified.
    ///
    /// # Errors
    /// Those of [`read_at`](Self::read_at).
    fn try_read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<bool> {
        let _ = (offset_bytes, buf);
        Ok(false)
    }

    /// Returns the range around the byte at `offset_bytes`, which must be inside the source. May block for a
    /// bounded time.
    ///
    /// # Errors
    /// The allocation is unavailable.
    fn range_at(&self, offset_bytes: u64) -> io::Result<DataRange> {
        let _ = offset_bytes;
        Ok(DataRange { is_data: true, end_bytes: self.size_bytes() })
    }

    /// Reads the blocks of `extents` consecutively into `buf`, which has exactly their length. Bytes beyond
    /// the end of the source are zero.
    ///
    /// # Errors
    /// Those of [`read_at`](Self::read_at).
    fn read_extents(&self, extents: &[Extent], buf: &mut [u8]) -> io::Result<()> {
        debug_assert_eq!(extents.iter().map(|extent| extent.len_bytes()).sum::<u64>(), buf.len() as u64);
        let mut rest = buf;
        for extent in extents {
            let (out, behind) = rest.split_at_mut(extent.len_bytes() as usize);
            let inside = extent.len_bytes().min(self.size_bytes().saturating_sub(extent.offset_bytes()));
            let (out, beyond) = out.split_at_mut(inside as usize);
            beyond.fill(0);
            if !out.is_empty() {
                self.read_at(extent.offset_bytes(), out)?;
            }
            rest = behind;
        }
        Ok(())
    }

    /// Announces reads of byte ranges, which a remote source fetches concurrently into its cache. The caller
    /// bounds what it announces, so that it stays there until it is read. A hint: nothing fails.
    fn will_need(&self, ranges: &[Range<u64>]) {
        let _ = ranges;
    }

    /// Returns true if a read may wait for more than local disks: it must not run on shared threads then.
    fn may_wait(&self) -> bool {
        false
    }
}
