//! Disk space reserve for operations that free space.
//!
//! Deleting a snapshot writes to the database and commits a new `volume.meta`; the merge of its layers copies
//! blocks and writes a set. On a full disk each of these steps fails, and the space would never be freed. A
//! preallocated file in the data directory reserves space for them. An operation that finds the disk full
//! [releases](Reserve::release) the reserve and retries. Until the reserve is [refilled](Reserve::refill),
//! other allocations are refused as on a full disk: clients' writes and zeroing with kept space, except to
//! blocks whose data the head holds; hydration; restores; and rollbacks. The reserve is not refilled while
//! such an operation runs, nor before the filesystem has space for all of it: on a full disk an attempt takes
//! the last blocks temporarily, and a concurrent database write fails.
//!
//! The file is truncated and synced, not overwritten: on a copy-on-write filesystem overwriting takes space.
//! The sync ends the filesystem's transaction; until then ext4, XFS and btrfs do not reuse freed blocks.

use crate::error::VolumeError;
use parking_lot::Mutex;
use rustix::fs::FallocateFlags;
use std::{
    fs::File,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Name of the file.
const NAME: &str = "space.reserve";
/// Divisor of the filesystem size that gives the size of the reserve, within the two bounds.
const SIZE_DIVISOR: u64 = 128;
const MIN_BYTES: u64 = 256 << 10;
const MAX_BYTES: u64 = 64 << 20;

/// True while the reserve of this process's data directory is released.
static IS_RELEASED: AtomicBool = AtomicBool::new(false);

/// Returns true if writes of clients that need space are refused.
#[inline]
pub(crate) fn is_released() -> bool {
    IS_RELEASED.load(Ordering::Relaxed)
}

/// Returns an error as on a full disk while the reserve is released.
pub(crate) fn check_free(operation: &'static str, path: &Path) -> Result<(), VolumeError> {
    match is_released() {
        true => Err(no_space(operation, path)),
        false => Ok(()),
    }
}

/// Returns the error of a full disk.
pub(crate) fn no_space(operation: &'static str, path: &Path) -> VolumeError {
    VolumeError::Io { operation, path: path.to_owned(), source: rustix::io::Errno::NOSPC.into() }
}

/// Space reserve of a data directory. A process has at most one.
#[derive(Debug)]
pub struct Reserve {
    file: File,
    len_bytes: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// True if the file has its full length.
    is_complete: bool,
    /// Number of operations that use the released space.
    users: usize,
}

/// Released space; held by an operation while it uses the space.
#[derive(Debug)]
pub struct Released(Arc<Reserve>);

impl Drop for Released {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        assert!(state.users > 0, "an operation returns released space once");
        state.users -= 1;
    }
}

impl Reserve {
    /// Opens or creates the reserve of a data directory, and fills it if the disk has space. On a full disk
    /// it stays empty until [`refill`](Self::refill) finds space; clients' writes are not refused meanwhile.
    ///
    /// # Errors
    /// The file cannot be opened, or the filesystem does not report its size.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(data_dir.join(NAME))?;
        let found = rustix::fs::fstatvfs(&file)?;
        let len_bytes = (found.f_blocks * found.f_frsize / SIZE_DIVISOR).clamp(MIN_BYTES, MAX_BYTES) & !4095;
        let reserve = Self { file, len_bytes, state: Mutex::new(State { is_complete: false, users: 0 }) };
        reserve.refill();
        Ok(reserve)
    }

    /// Releases the reserve for an operation that found the disk full and will be retried; `None` if the
    /// reserve is empty. Until the refill, further operations share the released space: clients cannot
    /// allocate any of it.
    pub fn release(self: &Arc<Self>) -> Option<Released> {
        let mut state = self.state.lock();
        if state.is_complete {
            IS_RELEASED.store(true, Ordering::Relaxed);
            state.is_complete = false;
            if let Err(error) = self.file.set_len(0).and_then(|()| self.file.sync_all()) {
                tracing::warn!(%error, "release failed on the space reserve of a full disk");
                return None;
            }
            tracing::warn!(
                bytes = self.len_bytes,
                "disk full: space reserve released for operations that free space"
            );
        } else if !IS_RELEASED.load(Ordering::Relaxed) {
            return None;
        }
        state.users += 1;
        Some(Released(Arc::clone(self)))
    }

    /// Refills the reserve if there is enough space and no operation uses it; returns true if it is complete.
    pub fn refill(&self) -> bool {
        let mut state = self.state.lock();
        if state.is_complete || state.users > 0 || !self.has_space() {
            return state.is_complete;
        }
        let filled = rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, self.len_bytes)
            .map_err(io::Error::from)
            .and_then(|()| self.file.sync_all());
        match filled {
            Ok(()) => {
                state.is_complete = true;
                if IS_RELEASED.swap(false, Ordering::Relaxed) {
                    tracing::info!("space reserve refilled: clients' writes are accepted again");
                }
            }
            Err(error) => {
                tracing::debug!(%error, "refill failed on the space reserve");
                // A partial reserve would only waste space.
                if let Err(error) = self.file.set_len(0) {
                    tracing::debug!(%error, "truncate failed on the partial space reserve");
                }
            }
        }
        state.is_complete
    }

    /// Returns true if the filesystem has space for the complete reserve, or does not report its free space.
    fn has_space(&self) -> bool {
        rustix::fs::fstatvfs(&self.file)
            .map_or(true, |found| found.f_bavail.saturating_mul(found.f_frsize) > self.len_bytes)
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        IS_RELEASED.store(false, Ordering::Relaxed);
    }
}
