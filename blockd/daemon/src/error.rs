//! One error for everything that the daemon does on request, and the one place where it becomes an
//! [`ApiError`].

use crate::{db::DbError, secrets::SecretsError};
use blockd_api::{ApiError, ErrorCode};
use blockd_cloud::{
    ClockUnknownCause, CloudError,
    store::{ProbeError, StoreError, StoreErrorKind},
};
use blockd_volume::{VolumeError, VolumeErrorKind};
use std::path::PathBuf;

/// Why something that was asked for was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// Refused by the daemon itself, with its words for the caller.
    #[error("{0}")]
    Refused(#[from] ApiError),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// A volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The cloud side failed.
    #[error(transparent)]
    Cloud(Box<CloudError>),
    /// A store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A store does not do what is needed.
    #[error(transparent)]
    Probe(Box<ProbeError>),
    /// Secrets cannot be sealed or opened.
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// A file of the daemon's own failed.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The daemon is stopping; what was begun goes on after the next start.
    #[error("the daemon is stopping")]
    Stopping,
    /// A fault of the daemon.
    #[error("internal error: {0}")]
    Internal(String),
}

impl From<CloudError> for ServiceError {
    fn from(error: CloudError) -> Self {
        match error {
            CloudError::Store(error) => Self::Store(error),
            error => Self::Cloud(Box::new(error)),
        }
    }
}

impl From<ProbeError> for ServiceError {
    fn from(error: ProbeError) -> Self {
        Self::Probe(Box::new(error))
    }
}

impl From<blockd_api::NameError> for ServiceError {
    fn from(error: blockd_api::NameError) -> Self {
        Self::Refused(error.into())
    }
}

impl ServiceError {
    /// A refusal.
    pub fn refused(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::Refused(ApiError::new(code, message))
    }

    /// Whether the same request can succeed later without anybody doing anything about it.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused(error) => error.is_retryable(),
            Self::Db(error) => error.is_retryable(),
            Self::Volume(error) => error.is_retryable(),
            Self::Cloud(error) => error.is_retryable(),
            Self::Store(error) => error.is_retryable(),
            Self::Probe(error) => error.store_error().is_some_and(StoreError::is_retryable),
            Self::Secrets(error) => error.is_retryable(),
            Self::Stopping => true,
            Self::File { .. } | Self::Internal(_) => false,
        }
    }

    /// Whether it may be another answer later, also if somebody has to do something about it first: a
    /// directory is mounted again, credentials or a token are renewed.
    pub fn may_change(&self) -> bool {
        let is_secret =
            || matches!(self.to_api().code, ErrorCode::SecretUnavailable | ErrorCode::SecretUnreachable);
        self.is_retryable() || matches!(self, Self::Store(_)) || is_secret()
    }

    /// Whether it means that a task was told to stop, rather than that something failed.
    pub fn is_cancelled(&self) -> bool {
        match self {
            Self::Stopping => true,
            Self::Cloud(error) => matches!(**error, CloudError::Cancelled),
            _ => false,
        }
    }

    /// The same with a hint that fits what was being done, where there is one for its code.
    #[must_use]
    pub fn with_hint(
        self,
        hint: impl FnOnce(ErrorCode, Option<StoreErrorKind>) -> Option<&'static str>,
    ) -> Self {
        let mut error = self.to_api();
        match hint(error.code, self.store_kind()) {
            Some(hint) => {
                error.hint = Some(hint.to_owned());
                Self::Refused(error)
            }
            None => self,
        }
    }

    /// What went wrong at a store, if that is what it was.
    fn store_kind(&self) -> Option<StoreErrorKind> {
        match self {
            Self::Store(error) => Some(error.kind),
            Self::Probe(error) => error.store_error().map(|error| error.kind),
            _ => None,
        }
    }

    /// The next action where the error of the cloud side, and not its code, determines it.
    pub(crate) fn cloud_hint(&self) -> Option<&'static str> {
        match self {
            Self::Cloud(error) => cloud_hint(error),
            _ => None,
        }
    }

    /// The error as callers see it.
    pub fn to_api(&self) -> ApiError {
        let code = match self {
            // It may quote what was given.
            Self::Refused(error) => return ApiError { message: one_line(&error.message), ..error.clone() },
            Self::Db(error) if error.is_full() => ErrorCode::NoSpace,
            Self::Db(_) | Self::Internal(_) => ErrorCode::Internal,
            Self::File { source, .. } => io_code(source, ErrorCode::Internal),
            Self::Volume(error) => volume_code(error),
            Self::Cloud(error) => cloud_code(error),
            Self::Store(error) => store_code(error),
            Self::Probe(error) => error.store_error().map_or(ErrorCode::StoreFailed, store_code),
            Self::Secrets(_) => ErrorCode::SecretUnavailable,
            Self::Stopping => ErrorCode::ShuttingDown,
        };
        ApiError {
            code,
            message: one_line(&self.to_string()),
            hint: self.cloud_hint().or_else(|| hint(code, self.store_kind())).map(str::to_owned),
        }
    }
}

/// Line breaks in messages of others become spaces: a message is one line.
pub(crate) fn one_line(message: &str) -> String {
    message.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

fn io_code(error: &std::io::Error, otherwise: ErrorCode) -> ErrorCode {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorCode::NoSpace,
        _ => otherwise,
    }
}

fn volume_code(error: &VolumeError) -> ErrorCode {
    match error.kind() {
        VolumeErrorKind::InvalidInput => ErrorCode::InvalidRequest,
        VolumeErrorKind::NoSpace => ErrorCode::NoSpace,
        VolumeErrorKind::NotFound => ErrorCode::SnapshotNotFound,
        VolumeErrorKind::Busy => ErrorCode::SnapshotInUse,
        VolumeErrorKind::Closed => ErrorCode::ShuttingDown,
        _ => ErrorCode::VolumeFailed,
    }
}

pub(crate) fn cloud_code(error: &CloudError) -> ErrorCode {
    match error {
        CloudError::Store(error) => store_code(error),
        CloudError::BaseUnknown { source, .. } | CloudError::NotTakenBack { source, .. } => {
            cloud_code(source)
        }
        CloudError::WrongPassphrase { .. } | CloudError::UnknownKey { .. } => ErrorCode::WrongPassphrase,
        CloudError::WriteKeyMissing { .. } | CloudError::WriteKeyNotNewest { .. } => {
            ErrorCode::WriteKeyRefused
        }
        CloudError::EncryptedRepository { .. } => ErrorCode::PassphraseRequired,
        CloudError::PlainRepository { .. } => ErrorCode::RepositoryNotEncrypted,
        CloudError::Damaged { .. } | CloudError::UnsupportedVersion { .. } => ErrorCode::CloudsnapDamaged,
        CloudError::SnapshotNotFound { .. }
        | CloudError::BaseDeleted { .. }
        | CloudError::DeletedMeanwhile { .. } => ErrorCode::CloudsnapNotFound,
        CloudError::BadId { .. } | CloudError::InvalidRequest { .. } => ErrorCode::InvalidRequest,
        CloudError::TooManyKeys { .. }
        | CloudError::KeySlotsLeftOut { .. }
        | CloudError::Conflict { .. }
        | CloudError::Unsettled { .. }
        | CloudError::KeySlotMissing { .. }
        | CloudError::TooManyDeltas { .. }
        | CloudError::CollectionTimeout { .. }
        | CloudError::ClockDiffers { .. }
        | CloudError::KeySlotsGone { .. } => ErrorCode::StoreFailed,
        CloudError::ClockUnknown { cause: ClockUnknownCause::NoRoom, .. } => ErrorCode::StoreFull,
        CloudError::ClockUnknown { .. } => ErrorCode::StoreFailed,
        CloudError::ReadVolume { source, .. } => io_code(source, ErrorCode::VolumeFailed),
        CloudError::WriteVolume { source, .. } => io_code(source, ErrorCode::VolumeFailed),
        CloudError::Journal { source, .. } | CloudError::Cache { source, .. } => {
            io_code(source, ErrorCode::Internal)
        }
        CloudError::Cancelled => ErrorCode::TaskStopped,
        _ => ErrorCode::Internal,
    }
}

/// The next action where a listing has no end.
pub(crate) const ENDLESS_HINT: &str =
    "check who writes to the store: its listing is larger, or slower, than backups explain";

fn cloud_hint(error: &CloudError) -> Option<&'static str> {
    Some(match error {
        CloudError::ClockDiffers { .. } => {
            "set the clock of this host, for example with chrony or systemd-timesyncd; if it is right, that of the store"
        }
        CloudError::ClockUnknown { cause, .. } => match cause {
            ClockUnknownCause::NotListed => {
                "wait until the store lists new objects again; the check is repeated before the next deletion"
            }
            ClockUnknownCause::NoTime => {
                "delete cloud snapshots with `blockctl cloudsnap delete`, or use a store whose listings have times"
            }
            ClockUnknownCause::NoRoom => {
                "delete cloud snapshots with `blockctl cloudsnap delete`, or raise the quota of the store"
            }
        },
        CloudError::TooManyDeltas { .. } | CloudError::CollectionTimeout { .. } => ENDLESS_HINT,
        _ => return None,
    })
}

fn store_code(error: &StoreError) -> ErrorCode {
    match error.kind {
        StoreErrorKind::Unauthorized
        | StoreErrorKind::WrongClock
        | StoreErrorKind::WrongRegion
        | StoreErrorKind::WrongStyle => ErrorCode::StoreUnauthorized,
        StoreErrorKind::BucketMissing => ErrorCode::BucketMissing,
        StoreErrorKind::Unreachable | StoreErrorKind::WrongScheme => ErrorCode::StoreUnreachable,
        StoreErrorKind::Timeout | StoreErrorKind::Throttled => ErrorCode::StoreTimeout,
        StoreErrorKind::NoSpace => ErrorCode::StoreFull,
        StoreErrorKind::BadKey | StoreErrorKind::Misconfigured => ErrorCode::InvalidRequest,
        _ => ErrorCode::StoreFailed,
    }
}

/// What to do about a store that fails like that, whichever it is.
pub(crate) fn store_hint(kind: StoreErrorKind) -> Option<&'static str> {
    Some(match kind {
        StoreErrorKind::WrongClock => {
            "look at `timedatectl` on the host of blockd: its clock should be synchronised (NTP)"
        }
        StoreErrorKind::WrongRegion => {
            "look at --s3-region, and at --s3-endpoint if it names a region: both are those of the bucket"
        }
        StoreErrorKind::WrongStyle => {
            "make the credentials with --disable-path-style: the store takes no bucket in the path"
        }
        StoreErrorKind::WrongScheme => {
            "look at --s3-disable-ssl (plain HTTP), at http:// or https:// in the endpoint, and at the port"
        }
        _ => return None,
    })
}

fn hint(code: ErrorCode, store: Option<StoreErrorKind>) -> Option<&'static str> {
    if let Some(hint) = store.and_then(store_hint) {
        return Some(hint);
    }
    Some(match code {
        ErrorCode::StoreUnauthorized => {
            "the store refuses what the credentials were made with: try `blockctl credentials validate`; `blockctl credentials update` gives them new keys"
        }
        ErrorCode::BucketMissing => {
            "make the bucket or directory first, or look at --bucket, --path and --disable-path-style"
        }
        ErrorCode::StoreUnreachable => "look at whether the server runs, and `blockctl credentials inspect`",
        ErrorCode::WrongPassphrase => "look at --encryption-passphrase or --encryption-passphrase-file",
        ErrorCode::PassphraseRequired => "give --encryption-passphrase or --encryption-passphrase-file",
        ErrorCode::RepositoryNotEncrypted => {
            "leave --encryption-passphrase away, or use another bucket or directory"
        }
        ErrorCode::StoreFull => {
            "make room where the backups go: `blockctl cloudsnap delete`, or a larger place"
        }
        ErrorCode::NoSpace => {
            "delete snapshots that are not needed, or make room on the filesystem of the data directory"
        }
        _ => return None,
    })
}

/// Runs blocking work on a thread that may block.
///
/// # Errors
/// Those of the work; or it panicked.
pub async fn blocking<R, E>(work: impl FnOnce() -> Result<R, E> + Send + 'static) -> Result<R, ServiceError>
where
    R: Send + 'static,
    E: Into<ServiceError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Into::into),
        Err(error) => Err(ServiceError::Internal(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_line_and_codes_are_told_apart() {
        assert_eq!(one_line("a\n  b\r\n\nc "), "a b c");
        let quoted = ServiceError::refused(ErrorCode::InvalidRequest, "unknown field `a\nb`").to_api();
        assert_eq!(quoted.message, "unknown field `a b`");
        let full = std::io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
        let error = ServiceError::File { action: "write", path: "/x".into(), source: full };
        assert_eq!(error.to_api().code, ErrorCode::NoSpace);
        let wrong = CloudError::WrongPassphrase { store: "s".into(), slots: 1 };
        let api = ServiceError::from(wrong).to_api();
        assert_eq!(api.code, ErrorCode::WrongPassphrase);
        assert!(api.hint.is_some_and(|hint| hint.contains("--encryption-passphrase")));
        assert!(ServiceError::from(CloudError::Cancelled).is_cancelled());
    }
}
