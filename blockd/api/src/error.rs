//! Errors as they travel: a stable code, one line of text, and often a hint.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! error_codes {
    ($($(#[$doc:meta])* $variant:ident, $text:literal, $status:literal, $exit:literal, $retry:literal;)*) => {
        /// What went wrong, for programs: each has one HTTP status and one exit status of `blockctl`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* $variant,)*
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The code as it stands in JSON.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// The HTTP status of a reply with this code.
            pub const fn http_status(self) -> u16 {
                match self { $(Self::$variant => $status,)* }
            }

            /// The exit status of `blockctl` after an error with this code.
            pub const fn exit_status(self) -> u8 {
                match self { $(Self::$variant => $exit,)* }
            }

            /// Whether the same request can succeed later with nothing else changed.
            pub const fn is_retryable(self) -> bool {
                match self { $(Self::$variant => $retry,)* }
            }
        }
    };
}

error_codes! {
    /// The request is wrong in itself: a bad name, size, id, label or field.
    InvalidRequest, "invalid_request", 400, 2, false;
    /// There are several credentials, or none, and the request names none.
    CredentialRequired, "credential_required", 400, 2, false;
    /// The body is longer than is taken.
    RequestTooLarge, "request_too_large", 413, 2, false;
    /// No such address; the two sides are of different versions.
    NoSuchAddress, "no_such_address", 404, 1, false;
    /// The address does not take this method; the two sides are of different versions.
    MethodNotAllowed, "method_not_allowed", 405, 1, false;
    /// No volume of this name or id.
    VolumeNotFound, "volume_not_found", 404, 4, false;
    /// No snapshot of this name or id.
    SnapshotNotFound, "snapshot_not_found", 404, 4, false;
    /// No credential of this name or id.
    CredentialNotFound, "credential_not_found", 404, 4, false;
    /// No cloud snapshot of this id in the store.
    CloudsnapNotFound, "cloudsnap_not_found", 404, 4, false;
    /// No such file inside the snapshot.
    FileNotFound, "file_not_found", 404, 4, false;
    /// No snapshots are mounted there.
    MountNotFound, "mount_not_found", 404, 4, false;
    /// There is no filesystem in the snapshot whose files could be shown.
    NoFiles, "no_files", 422, 1, false;
    /// No task of this id.
    TaskNotFound, "task_not_found", 404, 4, false;
    /// No schedule of this id.
    ScheduleNotFound, "schedule_not_found", 404, 4, false;
    /// A schedule of this name is there already.
    ScheduleExists, "schedule_exists", 409, 5, false;
    /// No policy of this name.
    PolicyNotFound, "policy_not_found", 404, 4, false;
    /// A policy of this name is there already.
    PolicyExists, "policy_exists", 409, 5, false;
    /// A schedule uses the policy.
    PolicyInUse, "policy_in_use", 409, 5, false;
    /// No rule of this name.
    RuleNotFound, "rule_not_found", 404, 4, false;
    /// A rule of this name is there already.
    RuleExists, "rule_exists", 409, 5, false;
    /// A volume, a group or a schedule has the rule.
    RuleInUse, "rule_in_use", 409, 5, false;
    /// A volume of this name is there already.
    VolumeExists, "volume_exists", 409, 5, false;
    /// The volume has a snapshot of this name already.
    SnapshotExists, "snapshot_exists", 409, 5, false;
    /// A credential of this name, or for this very place, is there already.
    CredentialExists, "credential_exists", 409, 5, false;
    /// The volume has connections, or a task works on it.
    VolumeInUse, "volume_in_use", 409, 5, true;
    /// The volume is attached already, in another way.
    VolumeAttached, "volume_attached", 409, 5, false;
    /// The volume is not attached.
    VolumeNotAttached, "volume_not_attached", 409, 5, false;
    /// The device is mounted or held, or belongs to somebody else.
    DeviceInUse, "device_in_use", 409, 5, true;
    /// The kernel has no nbd driver.
    NbdModuleMissing, "nbd_module_missing", 501, 1, false;
    /// The daemon lacks the rights for it.
    NotPermitted, "not_permitted", 403, 1, false;
    /// The caller's role does not allow it, or it has none.
    Forbidden, "forbidden", 403, 1, false;
    /// The kernel refused.
    DeviceFailed, "device_failed", 500, 1, false;
    /// A command that was to run before the snapshot failed, or a filesystem could not be frozen: there is no
    /// snapshot.
    QuiesceFailed, "quiesce_failed", 422, 1, false;
    /// The snapshot is being read by a task.
    SnapshotInUse, "snapshot_in_use", 409, 5, true;
    /// Somebody said that the snapshot stays.
    SnapshotPinned, "snapshot_pinned", 409, 5, false;
    /// A task uses the credential.
    CredentialInUse, "credential_in_use", 409, 5, true;
    /// The data key of new backups is missing, or is not the newest; nothing is written until a key is made
    /// or accepted.
    WriteKeyRefused, "write_key_refused", 409, 5, false;
    /// A task uses the cloud snapshot.
    CloudsnapInUse, "cloudsnap_in_use", 409, 5, true;
    /// Somebody said that the cloud snapshot stays.
    CloudsnapPinned, "cloudsnap_pinned", 409, 5, false;
    /// The volume is not there yet: it is being restored.
    VolumeNotReady, "volume_not_ready", 409, 5, true;
    /// The volume could not be opened, or failed; its state has the reason.
    VolumeFailed, "volume_failed", 500, 1, false;
    /// The cloud snapshot exists but is not Done.
    CloudsnapNotDone, "cloudsnap_not_done", 409, 5, false;
    /// The object store cannot be reached.
    StoreUnreachable, "store_unreachable", 502, 1, true;
    /// The object store refuses the access key or secret key.
    StoreUnauthorized, "store_unauthorized", 502, 1, false;
    /// The bucket or directory does not exist.
    BucketMissing, "bucket_missing", 502, 1, false;
    /// The object store has no room left.
    StoreFull, "store_full", 507, 1, false;
    /// The object store did not answer in time.
    StoreTimeout, "store_timeout", 504, 1, true;
    /// The object store failed in another way, or does not do what is needed.
    StoreFailed, "store_failed", 502, 1, false;
    /// The passphrase opens nothing that is in the store.
    WrongPassphrase, "wrong_passphrase", 422, 1, false;
    /// The store holds encrypted backups, and no passphrase was given.
    PassphraseRequired, "passphrase_required", 422, 1, false;
    /// The store holds backups without encryption, and a passphrase was given.
    RepositoryNotEncrypted, "repository_not_encrypted", 422, 1, false;
    /// Something in the store is damaged, missing, or not in its place.
    CloudsnapDamaged, "cloudsnap_damaged", 502, 1, false;
    /// The data directory has no room left.
    NoSpace, "no_space", 507, 1, false;
    /// A secret that lies elsewhere is refused or cannot be one, or stored ones cannot be opened: the key
    /// file is missing or another one.
    SecretUnavailable, "secret_unavailable", 502, 1, false;
    /// A secret that lies elsewhere cannot be had at the moment.
    SecretUnreachable, "secret_unreachable", 503, 1, true;
    /// The task was stopped before it was done.
    TaskStopped, "task_stopped", 409, 1, true;
    /// The task has ended, or nothing of it was kept to take it up again.
    TaskEnded, "task_ended", 409, 5, false;
    /// The daemon is stopping.
    ShuttingDown, "shutting_down", 503, 3, true;
    /// A fault of the daemon itself.
    Internal, "internal", 500, 1, false;
    /// A code that this version does not know.
    Unknown, "unknown", 500, 1, false;
}

impl ErrorCode {
    /// The code that is written like this; what is not known becomes [`ErrorCode::Unknown`].
    pub fn from_text(text: &str) -> Self {
        Self::ALL.iter().copied().find(|code| code.as_str() == text).unwrap_or(Self::Unknown)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self::from_text(&text))
    }
}

/// An error as the daemon tells it, of a request or of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{message}")]
#[serde(rename_all = "camelCase")]
pub struct ApiError {
    /// What went wrong, for programs.
    pub code: ErrorCode,
    /// One line that says what was wrong with what, and what would be right. Never holds a secret.
    pub message: String,
    /// What to do about it, where that is not plain from the message.
    #[serde(default)]
    pub hint: Option<String>,
}

impl ApiError {
    /// An error without a hint.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// The same with a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Whether the same request can succeed later with nothing else changed.
    pub fn is_retryable(&self) -> bool {
        self.code.is_retryable()
    }
}

impl From<crate::NameError> for ApiError {
    fn from(error: crate::NameError) -> Self {
        Self::new(ErrorCode::InvalidRequest, error.to_string())
    }
}

impl From<crate::PairsError> for ApiError {
    fn from(error: crate::PairsError) -> Self {
        Self::new(ErrorCode::InvalidRequest, error.to_string())
    }
}

impl From<crate::SizeError> for ApiError {
    fn from(error: crate::SizeError) -> Self {
        Self::new(ErrorCode::InvalidRequest, error.to_string())
    }
}

/// The body of every reply that is not a success: `{"error": {"code": …, "message": …, "hint": …}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    /// The error.
    pub error: ApiError,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn codes_are_distinct_and_round_trip() {
        let texts: HashSet<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(texts.len(), ErrorCode::ALL.len());
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_text(code.as_str()), *code);
            assert!(
                (400..600).contains(&code.http_status()) && (1..=5).contains(&code.exit_status()),
                "{code}"
            );
        }
        assert_eq!(ErrorCode::from_text("of_next_year"), ErrorCode::Unknown);
    }

    #[test]
    fn not_found_and_conflict_have_their_exit_status() {
        for code in ErrorCode::ALL {
            let text = code.as_str();
            assert_eq!(text.ends_with("_not_found"), code.exit_status() == 4, "{text}");
            if text.ends_with("_exists") || text.ends_with("_in_use") {
                assert_eq!((code.http_status(), code.exit_status()), (409, 5), "{text}");
            }
        }
    }

    #[test]
    fn the_body_has_its_shape() {
        let error = ApiError::new(ErrorCode::VolumeNotFound, "no volume \"x\"");
        let json = serde_json::to_string(&ErrorBody { error: error.clone() }).unwrap();
        assert_eq!(json, r#"{"error":{"code":"volume_not_found","message":"no volume \"x\"","hint":null}}"#);
        let without_hint = r#"{"error":{"code":"volume_not_found","message":"no volume \"x\""}}"#;
        assert_eq!(serde_json::from_str::<ErrorBody>(without_hint).unwrap().error, error);
    }
}
