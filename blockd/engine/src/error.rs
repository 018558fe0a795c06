//! Error type of all daemon operations, and its conversion to an [`ApiError`].

use blockd_api::{ApiError, ErrorCode, credentials::InvalidConfig};
use blockd_catalog::DbError;
use blockd_cloud::{ClockUnknownCause, CloudError};
use blockd_secrets::SecretsError;
use blockd_store::{ProbeError, StoreError, StoreErrorKind};
use blockd_volume::{VolumeError, VolumeErrorKind};
use futures::FutureExt;
use std::path::PathBuf;
use tokio::sync::oneshot;
use tracing::Instrument;

/// Reasons why an operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// Refused by the daemon, with a message for the client.
    #[error("{0}")]
    Refused(#[from] ApiError),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// A volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A cloud operation failed.
    #[error(transparent)]
    Cloud(Box<CloudError>),
    /// A store request failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A store lacks a required feature.
    #[error(transparent)]
    Probe(Box<ProbeError>),
    /// Secrets cannot be sealed or unsealed.
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// An operation on one of the daemon's files failed.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// Operation.
        action: &'static str,
        /// File.
        path: PathBuf,
        /// Cause reported by the system.
        source: std::io::Error,
    },
    /// The daemon is stopping; the task resumes after the next start.
    #[error("the daemon is stopping")]
    Stopping,
    /// A bug in the daemon.
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

impl From<InvalidConfig> for ServiceError {
    fn from(error: InvalidConfig) -> Self {
        Self::Refused(ApiError::new(ErrorCode::InvalidRequest, error.message).with_settings(&error.settings))
    }
}

impl From<blockd_api::NameError> for ServiceError {
    fn from(error: blockd_api::NameError) -> Self {
        Self::Refused(error.into())
    }
}

impl ServiceError {
    /// Creates a refusal.
    pub fn refused(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::Refused(ApiError::new(code, message))
    }

    /// Returns true if the same request can succeed later without an administrator's action.
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

    /// Returns true if a later retry can have another result, also after an administrator's action:
    /// remounting a directory, rotating credentials or a token.
    pub fn may_change(&self) -> bool {
        let is_secret =
            || matches!(self.to_api().code, ErrorCode::SecretUnavailable | ErrorCode::SecretUnreachable);
        self.is_retryable()
            || matches!(self, Self::Store(error) if error.kind != StoreErrorKind::BudgetExhausted)
            || is_secret()
    }

    /// Returns the phase of a task that waits before it retries after this error.
    pub fn waiting_phase(&self) -> &'static str {
        match self.to_api().code {
            ErrorCode::NoSpace => "waiting for free space",
            _ => "waiting for the store",
        }
    }

    /// Returns true if the task was stopped, rather than failed.
    pub fn is_cancelled(&self) -> bool {
        match self {
            Self::Stopping => true,
            Self::Cloud(error) => matches!(**error, CloudError::Cancelled),
            _ => false,
        }
    }

    /// Adds an operation-specific hint, if there is one for the error's code.
    #[must_use]
    pub fn with_hint(self, hint: impl FnOnce(ErrorCode, Option<StoreErrorKind>) -> Option<Advice>) -> Self {
        let error = self.to_api();
        match hint(error.code, self.store_kind()) {
            Some(advice) => Self::Refused(advice.on(error)),
            None => self,
        }
    }

    /// Returns the kind of a store error.
    fn store_kind(&self) -> Option<StoreErrorKind> {
        match self {
            Self::Store(error) => Some(error.kind),
            Self::Probe(error) => error.store_error().map(|error| error.kind),
            _ => None,
        }
    }

    /// Returns the next action for a cloud error whose code does not determine it.
    pub fn cloud_hint(&self) -> Option<&'static str> {
        match self {
            Self::Cloud(error) => cloud_hint(error),
            _ => None,
        }
    }

    /// Converts the error for the API.
    pub fn to_api(&self) -> ApiError {
        let code = match self {
            // The message may quote input with line breaks.
            Self::Refused(error) => {
                let hint = error.hint.clone().or_else(|| missing_hint(error.code).map(str::to_owned));
                return ApiError { message: one_line(&error.message), hint, ..error.clone() };
            }
            Self::Db(error) if error.is_full() => ErrorCode::NoSpace,
            Self::Db(_) | Self::Internal(_) => ErrorCode::Internal,
            Self::File { source, .. } => io_code(source, ErrorCode::Internal),
            Self::Volume(error) => volume_code(error),
            Self::Cloud(error) => cloud_code(error),
            Self::Store(error) => store_code(error),
            Self::Probe(error) => error.store_error().map_or(ErrorCode::StoreFailed, store_code),
            Self::Secrets(SecretsError::Create { source, .. }) => {
                io_code(source, ErrorCode::SecretUnavailable)
            }
            Self::Secrets(_) => ErrorCode::SecretUnavailable,
            Self::Stopping => ErrorCode::ShuttingDown,
        };
        let advice = self.cloud_hint().map(Advice::of).or_else(|| hint(code, self.store_kind()));
        let error = ApiError::new(code, one_line(&self.to_string()));
        match advice {
            Some(advice) => advice.on(error),
            None => error,
        }
    }
}

/// Next action after an error: settings to check, or a text, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advice {
    /// Settings of a location.
    pub settings: &'static [&'static str],
    /// Text; may be empty.
    pub text: &'static str,
}

impl Advice {
    /// Creates advice without settings.
    pub const fn of(text: &'static str) -> Self {
        Self { settings: &[], text }
    }

    /// Creates advice to check settings.
    pub const fn check(settings: &'static [&'static str]) -> Self {
        Self { settings, text: "" }
    }

    /// Adds another way.
    #[must_use]
    pub const fn or(self, text: &'static str) -> Self {
        Self { text, ..self }
    }

    /// Puts the advice on an error.
    fn on(self, error: ApiError) -> ApiError {
        let hint = Some(self.text.to_owned()).filter(|text| !text.is_empty());
        ApiError { hint, ..error.with_settings(self.settings) }
    }
}

/// Replaces the line breaks of a message by spaces.
pub fn one_line(message: &str) -> String {
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

/// Returns the code of an error of the cloud format.
pub fn cloud_code(error: &CloudError) -> ErrorCode {
    match error {
        CloudError::Store(error) => store_code(error),
        CloudError::BaseUnknown { source, .. } | CloudError::CommitNotUndone { source, .. } => {
            cloud_code(source)
        }
        CloudError::WrongPassphrase { .. } | CloudError::UnknownKey { .. } => ErrorCode::WrongPassphrase,
        CloudError::WriteKeyMissing { .. } | CloudError::WriteKeyNotNewest { .. } => {
            ErrorCode::WriteKeyRefused
        }
        CloudError::Leased { .. } => ErrorCode::CloudsnapInUse,
        CloudError::EncryptedRepository { .. } => ErrorCode::PassphraseRequired,
        CloudError::PlainRepository { .. } => ErrorCode::RepositoryNotEncrypted,
        CloudError::Damaged { .. }
        | CloudError::SourceDamaged { .. }
        | CloudError::UnsupportedVersion { .. } => ErrorCode::CloudsnapDamaged,
        CloudError::SnapshotNotFound { .. }
        | CloudError::NeededDeleted { .. }
        | CloudError::DeletedConcurrently { .. } => ErrorCode::CloudsnapNotFound,
        CloudError::InvalidRequest { .. } => ErrorCode::InvalidRequest,
        CloudError::TooManyKeys { .. }
        | CloudError::KeySlotsLeftOut { .. }
        | CloudError::Conflict { .. }
        | CloudError::JournalLost { .. }
        | CloudError::Unsettled { .. }
        | CloudError::KeySlotMissing { .. }
        | CloudError::TooManyDeltas { .. }
        | CloudError::CollectionTimeout { .. }
        | CloudError::ClockDiffers { .. }
        | CloudError::KeySlotsGone { .. } => ErrorCode::StoreFailed,
        CloudError::ClockUnknown { cause: ClockUnknownCause::NoRoom, .. } => ErrorCode::StoreFull,
        CloudError::ClockUnknown { .. } => ErrorCode::StoreFailed,
        CloudError::ReadVolume { source, .. } | CloudError::CompareVolume { source, .. } => {
            io_code(source, ErrorCode::VolumeFailed)
        }
        CloudError::WriteVolume { source, .. } => io_code(source, ErrorCode::VolumeFailed),
        CloudError::Journal { source, .. } | CloudError::Cache { source, .. } => {
            io_code(source, ErrorCode::Internal)
        }
        CloudError::Cancelled => ErrorCode::TaskStopped,
        _ => ErrorCode::Internal,
    }
}

/// Next action for a listing without an end.
pub const ENDLESS_HINT: &str =
    "check who writes to the store: its listing is larger, or slower, than backups explain";

/// Next action for blocks of `VOLUME` that do not match their checksums.
pub(crate) const ALTERED_BLOCKS_HINT: &str = "the disk altered data: check it and the kernel log; `blockctl volume scrub VOLUME --repair --wait` repairs the blocks from cloud snapshots that prove their content";

fn cloud_hint(error: &CloudError) -> Option<&'static str> {
    Some(match error {
        CloudError::ReadVolume { source, .. } | CloudError::CompareVolume { source, .. }
            if source.kind() == std::io::ErrorKind::InvalidData =>
        {
            ALTERED_BLOCKS_HINT
        }
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
        CloudError::UnknownKey { .. } => {
            "run `blockctl credentials rekey` with the passphrase: it loads data keys of other hosts"
        }
        CloudError::KeySlotMissing { .. } => {
            "mount the disk, or set the right bucket with `blockctl credentials update`; then run `blockctl credentials validate`"
        }
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
        StoreErrorKind::BudgetExhausted => ErrorCode::BudgetExhausted,
        StoreErrorKind::BadKey | StoreErrorKind::Misconfigured => ErrorCode::InvalidRequest,
        StoreErrorKind::NotFound
        | StoreErrorKind::AlreadyExists
        | StoreErrorKind::Archived
        | StoreErrorKind::ShortBody
        | StoreErrorKind::Altered
        | StoreErrorKind::RangeBeyondEnd
        | StoreErrorKind::TooLarge
        | StoreErrorKind::Unsupported
        | StoreErrorKind::Other => ErrorCode::StoreFailed,
    }
}

/// Returns the provider-independent next action for a store error.
pub fn store_hint(kind: StoreErrorKind) -> Option<Advice> {
    Some(match kind {
        StoreErrorKind::Archived => {
            Advice::check(&["s3-storage-class"]).or("restore the object from the archive class first, and check the lifecycle rules of the bucket: backups need a class that is read at once")
        }
        StoreErrorKind::WrongClock => {
            Advice::of("check `timedatectl` on this host: its clock should be synchronised (NTP)")
        }
        StoreErrorKind::WrongRegion => {
            Advice::check(&["s3-region", "s3-endpoint"]).or("a region that the endpoint names must match the bucket")
        }
        StoreErrorKind::WrongStyle => {
            Advice::check(&["disable-path-style"]).or("the store does not accept the bucket in the path")
        }
        StoreErrorKind::WrongScheme => {
            Advice::check(&["s3-disable-ssl", "s3-endpoint"]).or("scheme (http:// or https://) and port must be those of the server")
        }
        _ => return None,
    })
}

/// Returns the command that lists the objects of a kind, for an error that there is no such one.
fn missing_hint(code: ErrorCode) -> Option<&'static str> {
    Some(match code {
        ErrorCode::VolumeNotFound => "`blockctl volume list` shows the volumes",
        ErrorCode::SnapshotNotFound => "`blockctl snapshot list` shows the local snapshots",
        ErrorCode::CloudsnapNotFound => "`blockctl cloudsnap list` shows the cloud snapshots",
        ErrorCode::FileNotFound => "`blockctl cloudsnap catalog` lists the files of a cloud snapshot",
        ErrorCode::MountNotFound => "`blockctl browse list` shows the mounts",
        ErrorCode::TaskNotFound => "`blockctl cloudsnap status` shows the tasks",
        ErrorCode::ScheduleNotFound => "`blockctl cloudsnap schedules list` shows the schedules",
        ErrorCode::PolicyNotFound => "`blockctl sched-policy list` shows the policies",
        ErrorCode::RuleNotFound => "`blockctl rule list` shows the rules",
        _ => return None,
    })
}

/// Returns the next action for an error code, or for the store error that caused it.
pub fn hint(code: ErrorCode, store: Option<StoreErrorKind>) -> Option<Advice> {
    if let Some(hint) = store.and_then(store_hint) {
        return Some(hint);
    }
    Some(match code {
        ErrorCode::StoreUnauthorized => Advice::of(
            "the store refuses the access key: run `blockctl credentials validate`; `blockctl credentials update` sets a new key",
        ),
        ErrorCode::BucketMissing => Advice::of(
            "mount the disk or network filesystem of the directory, or restore the bucket: `blockctl credentials inspect` shows where it is",
        ),
        ErrorCode::StoreUnreachable => {
            Advice::of("check whether the server runs, and `blockctl credentials inspect`")
        }
        ErrorCode::WrongPassphrase | ErrorCode::PassphraseRequired => {
            Advice::check(&["encryption-passphrase"])
        }
        ErrorCode::RepositoryNotEncrypted => {
            Advice::check(&["encryption-passphrase"]).or("omit it, or use another bucket or directory")
        }
        ErrorCode::StoreFull => {
            Advice::of("free space in the backup location with `blockctl cloudsnap delete`, or enlarge it")
        }
        ErrorCode::CloudsnapDamaged => Advice::of(
            "`blockctl cloudsnap restore --skip-damaged` restores what can be read; another cloud snapshot may be sound: `blockctl cloudsnap list`",
        ),
        ErrorCode::NoSpace => Advice::of(
            "delete unneeded snapshots or volumes, or free space on the filesystem of the data directory",
        ),
        _ => return missing_hint(code).map(Advice::of),
    })
}

/// Runs blocking work on a blocking thread.
///
/// # Errors
/// The work failed or panicked.
pub async fn blocking<R, E>(work: impl FnOnce() -> Result<R, E> + Send + 'static) -> Result<R, ServiceError>
where
    R: Send + 'static,
    E: Into<ServiceError> + Send + 'static,
{
    let (reply, answer) = oneshot::channel();
    // One type for all work: the compiler generates much code for each type of task.
    let work: Box<dyn FnOnce() + Send> = Box::new(move || drop(reply.send(work())));
    tokio::task::spawn_blocking(work).await.map_err(|error| ServiceError::Internal(error.to_string()))?;
    answer.await.map_err(|error| ServiceError::Internal(error.to_string()))?.map_err(Into::into)
}

/// Runs a future on a task of its own, which continues if the caller is dropped.
///
/// # Errors
/// The work failed or panicked.
pub async fn spawned<R, E, F>(work: F) -> Result<R, ServiceError>
where
    F: Future<Output = Result<R, E>> + Send + 'static,
    R: Send + 'static,
    E: Into<ServiceError> + Send + 'static,
{
    let (reply, answer) = oneshot::channel();
    let work = async move { drop(reply.send(work.await)) }.boxed();
    let ran = tokio::spawn(work.in_current_span()).await;
    ran.map_err(|error| ServiceError::Internal(error.to_string()))?;
    answer.await.map_err(|error| ServiceError::Internal(error.to_string()))?.map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io, sync::Arc};

    #[test]
    fn api_error_has_a_code_and_a_message_of_one_line() {
        assert_eq!(one_line("a\n  b\r\n\nc "), "a b c");
        let quoted = ServiceError::refused(ErrorCode::InvalidRequest, "unknown field `a\nb`").to_api();
        assert_eq!(quoted.message, "unknown field `a b`");
        let full = std::io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
        let error = ServiceError::File { action: "write", path: "/x".into(), source: full };
        assert_eq!(error.to_api().code, ErrorCode::NoSpace);
        assert_eq!(error.waiting_phase(), "waiting for free space");
        let full = Arc::new(io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error()));
        let api = ServiceError::from(SecretsError::Create { path: "/x".into(), source: full }).to_api();
        assert!(api.hint.is_some_and(|hint| hint.contains("free space")), "{}", api.message);
        let wrong = CloudError::WrongPassphrase { store: "s".into(), slots: 1 };
        let api = ServiceError::from(wrong).to_api();
        assert_eq!(api.code, ErrorCode::WrongPassphrase);
        assert_eq!(api.settings, ["encryption-passphrase"]);
        assert!(ServiceError::from(CloudError::Cancelled).is_cancelled());
        let unreachable = ServiceError::refused(ErrorCode::StoreUnreachable, "s");
        assert_eq!(unreachable.waiting_phase(), "waiting for the store");
        let archived = StoreError::new(StoreErrorKind::Archived, "GET", "k", "s");
        let api = ServiceError::from(CloudError::Store(archived)).to_api();
        assert!(api.hint.is_some_and(|hint| hint.contains("archive class first")), "{}", api.message);
    }

    #[test]
    fn missing_object_has_the_command_that_lists_its_kind() {
        let error = ServiceError::refused(ErrorCode::RuleNotFound, "there is no rule pg").to_api();
        assert_eq!(error.hint.as_deref(), Some("`blockctl rule list` shows the rules"));
        let own = ApiError::new(ErrorCode::RuleNotFound, "there is no rule pg").with_hint("create it");
        assert_eq!(ServiceError::Refused(own.clone()).to_api(), own);
    }
}
