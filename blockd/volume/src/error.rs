//! Errors of volume operations, and whether a retry can help.

use crate::lazy::FetchFailure;
use blockd_extent::{BlockIndex, Epoch, SnapshotId, VolumeId};
use rustix::io::Errno;
use std::{io, path::PathBuf};

/// Kind of a [`VolumeError`]; stable, for mapping to protocol codes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum VolumeErrorKind {
    /// Invalid request (beyond the end, size not a multiple of the block size, …).
    InvalidInput,
    /// The filesystem of the volume is full.
    NoSpace,
    /// The filesystem of the volume failed.
    Io,
    /// A file of the volume is missing, truncated or altered.
    Damaged,
    /// Unknown snapshot.
    NotFound,
    /// The object is in use.
    Busy,
    /// The volume was closed.
    Closed,
    /// An earlier sync failed; the volume acknowledges no writes until it is opened again.
    Failed,
    /// The block sets of the requested interval are no longer kept.
    IntervalsGone,
    /// The filesystem of the volume does not support the request.
    Unsupported,
    /// The source of a lazy volume did not deliver.
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
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// Operation.
        action: &'static str,
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
    #[error("{} has format version {found}, this blockd reads up to {known}: use a newer blockd", path.display())]
    NewerFormat {
        /// File.
        path: PathBuf,
        /// Version found.
        found: u32,
        /// Newest supported version.
        known: u32,
    },
    /// A data file cannot be shared with a clone.
    #[error("cannot share {} with a clone: {source}; a clone must be in the same filesystem, and that must allow hard links", path.display())]
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
    /// The object is in use.
    #[error("{0}")]
    Busy(String),
    /// The volume was closed before the request.
    #[error("volume {0} is closed")]
    Closed(VolumeId),
    /// An earlier sync failed: later writes may be lost, and no write may be acknowledged.
    #[error("volume {volume} stopped after a failed sync ({reason}); mend the disk and restart blockd")]
    Failed {
        /// Volume.
        volume: VolumeId,
        /// Cause of that failure.
        reason: String,
    },
    /// Missing blocks of a lazy volume could not be fetched.
    #[error("block {start} of volume {volume} and what follows it could not be fetched: {failure}")]
    NotFetched {
        /// Volume.
        volume: VolumeId,
        /// First of the blocks.
        start: BlockIndex,
        /// Cause.
        failure: FetchFailure,
    },
    /// The content of blocks of a damaged volume cannot be proven.
    #[error("block {start} and what follows it cannot be had: {why}")]
    Unproven {
        /// First of the blocks.
        start: BlockIndex,
        /// Damage that hides them, in one line.
        why: String,
    },
    /// The block sets since the base of an incremental are gone.
    #[error(
        "the blocks changed in epochs {after} to {until} of volume {volume} are no longer known: a full backup is needed"
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
            Self::Damaged { .. } | Self::NewerFormat { .. } | Self::Unproven { .. } => {
                VolumeErrorKind::Damaged
            }
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
                | FetchFailure::Late
                | FetchFailure::TooMany => VolumeErrorKind::NotFetched,
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
            "{len_bytes} bytes at offset {offset_bytes} do not lie inside the {size_bytes} bytes of the volume"
        ))),
    }
}

/// Adds operation and file to a system error.
pub(crate) trait IoContext<T> {
    fn during(self, action: &'static str, path: &std::path::Path) -> Result<T, VolumeError>;
}

impl<T, E: Into<io::Error>> IoContext<T> for Result<T, E> {
    fn during(self, action: &'static str, path: &std::path::Path) -> Result<T, VolumeError> {
        self.map_err(|source| VolumeError::Io { action, path: path.to_owned(), source: source.into() })
    }
}
