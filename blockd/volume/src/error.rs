//! Errors of volume operations and their classification.

use crate::lazy::FetchFailure;
use blockd_extent::{BlockIndex, Epoch, SnapshotId, VolumeId};
use rustix::io::Errno;
use std::{io, path::PathBuf};

/// Kind of a [`VolumeError`], for mapping to protocol codes. Exhaustive, so that a new kind gets a code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VolumeErrorKind {
    /// Invalid request (beyond the end, size not a multiple of the block size, …).
    InvalidInput,
    /// The filesystem of the volume is full.
    NoSpace,
    /// The filesystem of the volume failed.
    Io,
    /// A file of the volume is truncated, corrupted, or of a newer format.
    Damaged,
    /// Unknown snapshot.
    NotFound,
    /// The object is in use or exists.
    Busy,
    /// The volume is closed.
    Closed,
    /// The volume stopped after an earlier failure; it refuses all requests until it is opened again.
    Failed,
    /// A block set of the requested interval was deleted.
    IntervalsGone,
    /// The filesystem of the volume does not support the request.
    Unsupported,
    /// Fetch from the source of a lazy volume failed.
    NotFetched,
}

/// Failure of a volume operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// Invalid request.
    #[error("{0}")]
    InvalidInput(String),
    /// A system call on a file of the volume failed.
    #[error("{operation} failed on {}: {source}", path.display())]
    Io {
        /// Operation.
        operation: &'static str,
        /// File.
        path: PathBuf,
        /// System error.
        source: io::Error,
    },
    /// A file of the volume has invalid content.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// File.
        path: PathBuf,
        /// Failed check.
        what: String,
    },
    /// A file has a newer format.
    #[error("open failed on {}: format version {found} is newer than {known}, the newest supported one; use a newer blockd", path.display())]
    NewerFormat {
        /// File.
        path: PathBuf,
        /// Version found.
        found: u32,
        /// Newest supported version.
        known: u32,
    },
    /// A data file cannot be shared with a clone.
    #[error("clone failed on {}: {source}; source and clone must be on one filesystem that supports hard links", path.display())]
    NotShareable {
        /// File.
        path: PathBuf,
        /// System error.
        source: io::Error,
    },
    /// The snapshot does not exist.
    #[error("volume {volume} has no snapshot {snapshot}")]
    NoSuchSnapshot {
        /// Volume.
        volume: VolumeId,
        /// Requested snapshot.
        snapshot: SnapshotId,
    },
    /// The object is in use or exists.
    #[error("{0}")]
    Busy(String),
    /// The volume is closed.
    #[error("volume {0} is closed")]
    Closed(VolumeId),
    /// The state on disk is in doubt, as after a failed sync, so the volume refuses all requests.
    #[error("volume {volume} stopped: {reason}; repair the disk and restart blockd")]
    Failed {
        /// Volume.
        volume: VolumeId,
        /// First failure.
        reason: String,
    },
    /// Missing blocks of a lazy volume could not be fetched.
    #[error("fetch failed on volume {volume} from block {start} on: {failure}")]
    NotFetched {
        /// Volume.
        volume: VolumeId,
        /// First of the blocks.
        start: BlockIndex,
        /// Cause.
        failure: FetchFailure,
    },
    /// Blocks do not have the checksums of their first read.
    #[error(
        "volume {volume} is damaged: block {first} does not match its checksum ({len_blocks} such blocks in this read)"
    )]
    DamagedBlocks {
        /// Volume.
        volume: VolumeId,
        /// First of the blocks.
        first: BlockIndex,
        /// Number of such blocks in the read, which need not be adjacent.
        len_blocks: u64,
    },
    /// A scrub has found these blocks damaged; they are not repaired yet.
    #[error(
        "read failed on volume {volume}: block {first} is damaged ({len_blocks} such blocks in this read)"
    )]
    UnreadableBlocks {
        /// Volume.
        volume: VolumeId,
        /// First of the blocks.
        first: BlockIndex,
        /// Number of such blocks in the read.
        len_blocks: u64,
    },
    /// The content of blocks of a damaged volume cannot be proven.
    #[error("read failed from block {start} on: unproven content: {why}")]
    Unproven {
        /// First of the blocks.
        start: BlockIndex,
        /// Damage that affects them, in one line.
        why: String,
    },
    /// A block set since the requested epoch was deleted.
    #[error(
        "changed blocks of volume {volume} after epoch {after} are unknown: a block set up to epoch {until} was deleted"
    )]
    IntervalsGone {
        /// Volume.
        volume: VolumeId,
        /// Base epoch of the caller.
        after: Epoch,
        /// Requested epoch.
        until: Epoch,
    },
}

impl VolumeError {
    /// Returns the stable kind of the error.
    pub fn kind(&self) -> VolumeErrorKind {
        match self {
            Self::InvalidInput(_) => VolumeErrorKind::InvalidInput,
            Self::Io { source, .. } => match source.raw_os_error().map(Errno::from_raw_os_error) {
                // Full, or over quota.
                Some(Errno::NOSPC | Errno::DQUOT) => VolumeErrorKind::NoSpace,
                Some(Errno::OPNOTSUPP | Errno::NOSYS) => VolumeErrorKind::Unsupported,
                _ => VolumeErrorKind::Io,
            },
            Self::NotShareable { .. } => VolumeErrorKind::Unsupported,
            Self::Damaged { .. }
            | Self::DamagedBlocks { .. }
            | Self::UnreadableBlocks { .. }
            | Self::NewerFormat { .. }
            | Self::Unproven { .. } => VolumeErrorKind::Damaged,
            Self::NoSuchSnapshot { .. } => VolumeErrorKind::NotFound,
            Self::Busy(_) => VolumeErrorKind::Busy,
            Self::Closed(_) => VolumeErrorKind::Closed,
            Self::Failed { .. } => VolumeErrorKind::Failed,
            Self::IntervalsGone { .. } => VolumeErrorKind::IntervalsGone,
            Self::NotFetched { failure, .. } => match failure {
                FetchFailure::Disk(error) => error.kind(),
                FetchFailure::Closed => VolumeErrorKind::Closed,
                FetchFailure::NoSource
                | FetchFailure::Source(_)
                | FetchFailure::TimedOut
                | FetchFailure::TooManyWaiters => VolumeErrorKind::NotFetched,
            },
        }
    }

    /// Returns true if a retry can succeed without manual repair.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotFetched { failure, .. } => failure.is_retryable(),
            _ => matches!(self.kind(), VolumeErrorKind::NoSpace | VolumeErrorKind::Busy),
        }
    }
}

/// Returns an error for a range that is not inside a volume or snapshot of this size.
pub(crate) fn check_range(offset_bytes: u64, len_bytes: u64, size_bytes: u64) -> Result<(), VolumeError> {
    match offset_bytes.checked_add(len_bytes) {
        Some(end) if end <= size_bytes => Ok(()),
        _ => Err(VolumeError::InvalidInput(format!(
            "{len_bytes} bytes at offset {offset_bytes} exceed the volume size of {size_bytes} bytes"
        ))),
    }
}

/// Adds operation and file to a system error.
pub(crate) trait IoContext<T> {
    fn during(self, operation: &'static str, path: &std::path::Path) -> Result<T, VolumeError>;
}

impl<T, E: Into<io::Error>> IoContext<T> for Result<T, E> {
    fn during(self, operation: &'static str, path: &std::path::Path) -> Result<T, VolumeError> {
        self.map_err(|source| VolumeError::Io { operation, path: path.to_owned(), source: source.into() })
    }
}
