//! Errors of the API: a stable code, one line of text, and often a hint.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! error_codes {
    ($($(#[$doc:meta])* $variant:ident, $text:literal, $status:literal, $exit:literal, $retry:literal;)*) => {
        /// Stable error code for programs: each has one HTTP status and one exit status of `blockctl`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* $variant,)*
        }

        impl ErrorCode {
            /// All codes.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Returns the code as written in JSON.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// Returns the HTTP status of a reply with this code.
            pub const fn http_status(self) -> u16 {
                match self { $(Self::$variant => $status,)* }
            }

            /// Returns the exit status of `blockctl` for this code.
            pub const fn exit_status(self) -> u8 {
                match self { $(Self::$variant => $exit,)* }
            }

            /// Returns true if a retry of the same request can succeed.
            pub const fn is_retryable(self) -> bool {
                match self { $(Self::$variant => $retry,)* }
            }
        }
    };
}

error_codes! {
    /// The request is invalid: a bad name, size, id, label or field.
    InvalidRequest, "invalid_request", 400, 2, false;
    /// The request names no credential, and there are several or none.
    CredentialRequired, "credential_required", 400, 2, false;
    /// The body exceeds the limit.
    RequestTooLarge, "request_too_large", 413, 2, false;
    /// Unknown path; the versions differ.
    NoSuchAddress, "no_such_address", 404, 1, false;
    /// The path does not support the method; the versions differ.
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
    /// No snapshots are mounted at this directory.
    MountNotFound, "mount_not_found", 404, 4, false;
    /// The snapshot has no supported filesystem.
    NoFiles, "no_files", 422, 1, false;
    /// No task of this id.
    TaskNotFound, "task_not_found", 404, 4, false;
    /// There is no such anomaly.
    AnomalyNotFound, "anomaly_not_found", 404, 4, false;
    /// No schedule of this id.
    ScheduleNotFound, "schedule_not_found", 404, 4, false;
    /// A schedule of this name exists.
    ScheduleExists, "schedule_exists", 409, 5, false;
    /// No policy of this name.
    PolicyNotFound, "policy_not_found", 404, 4, false;
    /// A policy of this name exists.
    PolicyExists, "policy_exists", 409, 5, false;
    /// A schedule uses the policy.
    PolicyInUse, "policy_in_use", 409, 5, false;
    /// No rule of this name.
    RuleNotFound, "rule_not_found", 404, 4, false;
    /// A rule of this name exists.
    RuleExists, "rule_exists", 409, 5, false;
    /// The rule is assigned to a volume, group or schedule.
    RuleInUse, "rule_in_use", 409, 5, false;
    /// A volume of this name exists.
    VolumeExists, "volume_exists", 409, 5, false;
    /// The volume has a snapshot of this name.
    SnapshotExists, "snapshot_exists", 409, 5, false;
    /// A credential of this name or location exists.
    CredentialExists, "credential_exists", 409, 5, false;
    /// The volume has connections, or a task uses it.
    VolumeInUse, "volume_in_use", 409, 5, true;
    /// The volume is attached with other options.
    VolumeAttached, "volume_attached", 409, 5, false;
    /// The volume is not attached.
    VolumeNotAttached, "volume_not_attached", 409, 5, false;
    /// The device is mounted, held, or used by another program.
    DeviceInUse, "device_in_use", 409, 5, true;
    /// The kernel has no nbd driver.
    NbdModuleMissing, "nbd_module_missing", 501, 1, false;
    /// The daemon lacks the privilege.
    NotPermitted, "not_permitted", 403, 1, false;
    /// The caller's role does not allow the operation, or it has no role.
    Forbidden, "forbidden", 403, 1, false;
    /// The kernel refused the operation.
    DeviceFailed, "device_failed", 500, 1, false;
    /// A pre-command or a filesystem freeze failed: no snapshot was taken.
    QuiesceFailed, "quiesce_failed", 422, 1, false;
    /// The snapshot is being read by a task.
    SnapshotInUse, "snapshot_in_use", 409, 5, true;
    /// The snapshot is pinned.
    SnapshotPinned, "snapshot_pinned", 409, 5, false;
    /// A task uses the credential.
    CredentialInUse, "credential_in_use", 409, 5, true;
    /// The data key of new backups is missing or not the newest; nothing is written until a key is created or
    /// accepted.
    WriteKeyRefused, "write_key_refused", 409, 5, false;
    /// A task uses the cloud snapshot.
    CloudsnapInUse, "cloudsnap_in_use", 409, 5, true;
    /// The cloud snapshot is pinned.
    CloudsnapPinned, "cloudsnap_pinned", 409, 5, false;
    /// Another host made the cloud snapshot.
    CloudsnapOfOtherHost, "cloudsnap_of_other_host", 409, 5, false;
    /// The volume is still being restored.
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
    /// The object store is full.
    StoreFull, "store_full", 507, 1, false;
    /// The object store did not reply in time.
    StoreTimeout, "store_timeout", 504, 1, true;
    /// The object store failed for another reason, or lacks a feature.
    StoreFailed, "store_failed", 502, 1, false;
    /// The passphrase opens no key slot of the store.
    WrongPassphrase, "wrong_passphrase", 422, 1, false;
    /// The repository is encrypted, and no passphrase was given.
    PassphraseRequired, "passphrase_required", 422, 1, false;
    /// The repository is not encrypted, and a passphrase was given.
    RepositoryNotEncrypted, "repository_not_encrypted", 422, 1, false;
    /// An object is damaged, missing, or misplaced.
    CloudsnapDamaged, "cloudsnap_damaged", 502, 1, false;
    /// A restore drill found that the cloud snapshot cannot be used as restored.
    DrillFailed, "drill_failed", 422, 1, false;
    /// A restore drill reached its timeout, and has no result.
    DrillTimeout, "drill_timeout", 504, 1, true;
    /// The data directory is full.
    NoSpace, "no_space", 507, 1, false;
    /// An external secret is invalid, or stored secrets cannot be opened because the key file is missing or
    /// differs.
    SecretUnavailable, "secret_unavailable", 502, 1, false;
    /// An external secret cannot be read at the moment.
    SecretUnreachable, "secret_unreachable", 503, 1, true;
    /// The task reached one of its limits of requests, egress or cost; it can be resumed with a higher one.
    BudgetExhausted, "budget_exhausted", 409, 1, false;
    /// The task was stopped.
    TaskStopped, "task_stopped", 409, 1, true;
    /// The task has ended, or has no checkpoint to resume from.
    TaskEnded, "task_ended", 409, 5, false;
    /// The daemon is stopping.
    ShuttingDown, "shutting_down", 503, 3, true;
    /// Internal error of the daemon.
    Internal, "internal", 500, 1, false;
    /// Code unknown to this version.
    Unknown, "unknown", 500, 1, false;
}

impl ErrorCode {
    /// Parses a code; an unknown one becomes [`ErrorCode::Unknown`].
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

/// Error of a request or task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{message}")]
#[serde(rename_all = "camelCase")]
pub struct ApiError {
    /// Stable code.
    pub code: ErrorCode,
    /// One line with operation, object and cause. Never contains a secret.
    pub message: String,
    /// Next action, unless the message implies it.
    pub hint: Option<String>,
    /// Settings of a backup location to check: names of the options of `blockctl credentials create`, without
    /// `--`. Each front end spells them in its own way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<String>,
}

impl ApiError {
    /// Creates an error without a hint.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, settings: Vec::new() }
    }

    /// Adds a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds settings to check.
    #[must_use]
    pub fn with_settings(mut self, settings: &[&str]) -> Self {
        self.settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        self
    }

    /// Returns the next action; `spelled` are the settings to check, as the front end names them.
    pub fn next_action(&self, spelled: &[String]) -> Option<String> {
        let check = match spelled {
            [] => None,
            [only] => Some(format!("check {only}")),
            [first @ .., last] => Some(format!("check {} and {last}", first.join(", "))),
        };
        match (check, &self.hint) {
            (Some(check), Some(hint)) => Some(format!("{check}; {hint}")),
            (check, hint) => check.or_else(|| hint.clone()),
        }
    }

    /// Returns true if a retry of the same request can succeed.
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

/// Body of failed replies: `{"error": {"code": …, "message": …, "hint": …}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    /// Error.
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
    fn error_body_has_documented_shape() {
        let error = ApiError::new(ErrorCode::VolumeNotFound, "no volume \"x\"");
        let json = serde_json::to_string(&ErrorBody { error: error.clone() }).unwrap();
        assert_eq!(json, r#"{"error":{"code":"volume_not_found","message":"no volume \"x\"","hint":null}}"#);
        let error = error.with_settings(&["s3-region"]);
        let json = serde_json::to_string(&error).unwrap();
        assert!(json.ends_with(r#""hint":null,"settings":["s3-region"]}"#), "{json}");
        assert_eq!(error.next_action(&["--a".into()]).as_deref(), Some("check --a"));
        let error = error.with_hint("repeat it");
        let spelled = ["--a", "--b", "--c"].map(str::to_owned);
        assert_eq!(error.next_action(&spelled).as_deref(), Some("check --a, --b and --c; repeat it"));
        assert_eq!(error.next_action(&[]).as_deref(), Some("repeat it"));
        let error = ApiError { hint: None, settings: Vec::new(), ..error };
        let without_hint = r#"{"error":{"code":"volume_not_found","message":"no volume \"x\""}}"#;
        assert_eq!(serde_json::from_str::<ErrorBody>(without_hint).unwrap().error, error);
    }
}
