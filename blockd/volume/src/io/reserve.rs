//! Disk space reserve for operations that free space.
//!
//! Deleting a snapshot writes to the database and commits a new `volume.meta`; the merge of its layers copies
//! blocks and writes a set. On a full disk all of that fails, so the space would never be freed. A
//! preallocated file in the data directory reserves some. An operation that finds the disk full
//! [releases](Reserve::release) it and is retried. From then on, and until the file is [whole
//! again](Reserve::refill), other allocations are refused as on a full disk: clients' writes, and zeroing
//! that keeps its space, except to blocks whose data the head has; hydration; restores; and rollbacks. The
//! file is not filled while such an operation runs, and not before there is room for all of it: on a full
//! disk an attempt takes the last blocks for a moment, and a database write at that moment fails.
//!
//! The file is truncated and synced, not overwritten: on a filesystem that copies on write, overwriting takes
//! space. The sync ends the filesystem's transaction, before which ext4, XFS and btrfs may not use freed
//! blocks again.

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
/// Divisor of the filesystem size for the reserve, within the two bounds.
const PART: u64 = 128;
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
pub(crate) fn check_free(action: &'static str, path: &Path) -> Result<(), VolumeError> {
    match is_released() {
        true => Err(no_space(action, path)),
        false => Ok(()),
    }
}

/// Returns the error of a full disk.
pub(crate) fn no_space(action: &'static str, path: &Path) -> VolumeError {
    VolumeError::Io { action, path: path.to_owned(), source: rustix::io::Errno::NOSPC.into() }
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
    /// The file has its full length.
    is_whole: bool,
    /// Operations that use the released space.
    users: usize,
}

/// Released space, as long as an operation uses it.
#[derive(Debug)]
pub struct Released(Arc<Reserve>);

impl Drop for Released {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        assert!(state.users > 0, "an operation gives released space back once");
        state.users -= 1;
    }
}

impl Reserve {
    /// Opens or creates the reserve of a data directory, and fills it if there is space. On a full disk it
    /// stays empty until [`refill`](Self::refill) finds space; writes of clients are not refused for that.
    ///
    /// # Errors
    /// The file cannot be opened, or the filesystem does not report its size.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let mut how = std::fs::OpenOptions::new();
        let file = how.write(true).create(true).truncate(false).open(data_dir.join(NAME))?;
        let found = rustix::fs::fstatvfs(&file)?;
        let len_bytes = (found.f_blocks * found.f_frsize / PART).clamp(MIN_BYTES, MAX_BYTES) & !4095;
        let reserve = Self { file, len_bytes, state: Mutex::new(State { is_whole: false, users: 0 }) };
        reserve.refill();
        Ok(reserve)
    }

    /// Releases the space for an operation that found the disk full, to be retried; `None` if there is none.
    /// Until it is refilled, released space goes to each further operation: what it finds is free, as clients
    /// take none.
    pub fn release(self: &Arc<Self>) -> Option<Released> {
        let mut state = self.state.lock();
        if state.is_whole {
            IS_RELEASED.store(true, Ordering::Relaxed);
            state.is_whole = false;
            if let Err(error) = self.file.set_len(0).and_then(|()| self.file.sync_all()) {
                tracing::warn!(%error, "the disk is full, and its space reserve cannot be released");
                return None;
            }
            tracing::warn!(
                bytes = self.len_bytes,
                "the disk is full: its space reserve is released to free space"
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
        if state.is_whole || state.users > 0 || !self.has_room() {
            return state.is_whole;
        }
        let filled = rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, self.len_bytes)
            .map_err(io::Error::from)
            .and_then(|()| self.file.sync_all());
        match filled {
            Ok(()) => {
                state.is_whole = true;
                if IS_RELEASED.swap(false, Ordering::Relaxed) {
                    tracing::info!("the disk has space again: its space reserve is whole");
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the space reserve is not whole yet");
                // A partial reserve would take space without being useful.
                if let Err(error) = self.file.set_len(0) {
                    tracing::debug!(%error, "the space reserve keeps a part");
                }
            }
        }
        state.is_whole
    }

    /// Returns true if the filesystem has room for the whole reserve, or does not report its free space.
    fn has_room(&self) -> bool {
        rustix::fs::fstatvfs(&self.file)
            .map_or(true, |found| found.f_bavail.saturating_mul(found.f_frsize) > self.len_bytes)
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        IS_RELEASED.store(false, Ordering::Relaxed);
    }
}
