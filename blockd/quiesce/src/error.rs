//! Errors of quiesced freezes.

use blockd_extent::VolumeId;
use blockd_volume::{GroupError, VolumeError};

/// Failure around a freeze; no snapshot was taken. A retry can help once its cause is gone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuiesceError {
    /// A command, a filesystem or the crash marker failed.
    #[error("{0}")]
    Failed(String),
    /// The daemon stops.
    #[error("the daemon is stopping")]
    Stopping,
}

impl QuiesceError {
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }
}

/// Failure of a quiesced freeze.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FreezeError {
    /// A volume failed.
    #[error("freeze failed on volume {volume}: {source}")]
    Volume {
        /// The volume.
        volume: VolumeId,
        /// Cause.
        source: VolumeError,
    },
    /// Quiescing failed.
    #[error(transparent)]
    Quiesce(#[from] QuiesceError),
}

impl From<GroupError> for FreezeError {
    fn from(GroupError { volume, source }: GroupError) -> Self {
        Self::Volume { volume, source }
    }
}
