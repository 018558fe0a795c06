//! What can go wrong with a volume, and whether trying again can help.

use crate::lazy::FetchFailure;
use std::{io, path::PathBuf};

/// What kind of failure a [`VolumeError`] is; stable, for callers that map it to a protocol's codes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum VolumeErrorKind {
    /// The request makes no sense for this volume (beyond its end, a size that is no multiple of a block, …).
    InvalidInput,
    /// The filesystem under the volume has no room left.
    NoSpace,
    /// The filesystem under the volume failed.
    Io,
    /// A file of the volume is missing, cut short or altered.
    Damaged,
    /// No such snapshot.
    NotFound,
    /// Something else is using what the request would take away.
    Busy,
    /// The volume was closed.
    Closed,
    /// An earlier sync failed; the volume acknowledges nothing more until it is opened again.
    Failed,
    /// The block sets that an incremental would need are not kept any more.
    IntervalsGone,
    /// The filesystem under the volume cannot do it in the way that was asked for.
    Unsupported,
    /// The source of a lazy volume did not give what was asked for.
    NotFetched,
}

/// A failure of an operation on a volume.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// The caller asked for something that cannot be.
    #[error("{0}")]
    InvalidInput(String),
    /// A system call on one of the volume's files failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the volume does not hold what it must.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not hold.
        what: String,
    },
    /// A file was written by a newer blockd.
    #[error("{} has format version {found}, this blockd reads up to {known}: use a newer blockd", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// The version it has.
        found: u32,
        /// The newest version that is understood.
        known: u32,
    },
    /// A data file cannot be shared with a clone.
    #[error("cannot share {} with a clone: {source}; a clone must be in the same filesystem, and that must allow hard links", path.display())]
    NotShareable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The volume has no such snapshot.
    #[error("volume {volume} has no snapshot {snapshot}")]
    NoSuchSnapshot {
        /// The volume.
        volume: blockd_extent::VolumeId,
        /// The snapshot that was asked for.
        snapshot: blockd_extent::SnapshotId,
    },
    /// What should be changed is in use.
    #[error("{0}")]
    Busy(String),
    /// The volume was closed before the request came.
    #[error("volume {0} is closed")]
    Closed(blockd_extent::VolumeId),
    /// A sync failed earlier, so what was written since may be lost and nothing may be acknowledged.
    #[error("volume {volume} stopped after a failed sync ({reason}); mend the disk and restart blockd")]
    Failed {
        /// The volume.
        volume: blockd_extent::VolumeId,
        /// What failed then.
        reason: String,
    },
    /// Blocks of a lazy volume are not there yet, and could not be had.
    #[error("block {start} of volume {volume} and what follows it could not be fetched: {failure}")]
    NotFetched {
        /// The volume.
        volume: blockd_extent::VolumeId,
        /// The first of the blocks.
        start: blockd_extent::BlockIndex,
        /// Why.
        failure: crate::lazy::FetchFailure,
    },
    /// Blocks of a damaged volume whose content cannot be proven.
    #[error("block {start} and what follows it cannot be had: {why}")]
    Unproven {
        /// The first of the blocks.
        start: blockd_extent::BlockIndex,
        /// Which damage hides them, in one line.
        why: String,
    },
    /// An incremental was asked for since a point whose block sets are gone.
    #[error(
        "the blocks changed in epochs {after} to {until} of volume {volume} are no longer known: a full backup is needed"
    )]
    IntervalsGone {
        /// The volume.
        volume: blockd_extent::VolumeId,
        /// The epoch that the caller has already.
        after: blockd_extent::Epoch,
        /// The epoch that it wants.
        until: blockd_extent::Epoch,
    },
}

impl VolumeError {
    /// The stable kind of this error.
    pub fn kind(&self) -> VolumeErrorKind {
        match self {
            Self::InvalidInput(_) => VolumeErrorKind::InvalidInput,
            Self::Io { source, .. } => match source.raw_os_error() {
                // Both mean "this filesystem takes no more": full, or over quota.
                Some(code) if is_out_of_space(code) => VolumeErrorKind::NoSpace,
                Some(code) if is_unsupported(code) => VolumeErrorKind::Unsupported,
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

    /// Whether the same call may succeed later without anything being mended by hand.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotFetched { failure, .. } => failure.is_retryable(),
            _ => matches!(self.kind(), VolumeErrorKind::NoSpace | VolumeErrorKind::Busy),
        }
    }
}

fn is_unsupported(code: i32) -> bool {
    [rustix::io::Errno::OPNOTSUPP, rustix::io::Errno::NOSYS].iter().any(|errno| errno.raw_os_error() == code)
}

fn is_out_of_space(code: i32) -> bool {
    let space = rustix::io::Errno::NOSPC.raw_os_error();
    let quota = rustix::io::Errno::DQUOT.raw_os_error();
    code == space || code == quota
}

/// Turns a system error into a [`VolumeError`] that says what was being done to which file.
pub(crate) trait IoContext<T> {
    fn during(self, action: &'static str, path: &std::path::Path) -> Result<T, VolumeError>;
}

impl<T, E: Into<io::Error>> IoContext<T> for Result<T, E> {
    fn during(self, action: &'static str, path: &std::path::Path) -> Result<T, VolumeError> {
        self.map_err(|source| VolumeError::Io { action, path: path.to_owned(), source: source.into() })
    }
}
