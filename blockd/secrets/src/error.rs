//! Errors of external secrets. No message contains a part of a secret or of a program's output.

use blockd_api::ErrorCode;
use std::path::PathBuf;

/// Error of an external secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// The daemon was started without credentials.
    #[error(
        "systemd passed no credentials to blockd: add LoadCredential={name}:FILE to blockd.service, and restart it"
    )]
    NoCredentials {
        /// Requested name.
        name: String,
    },
    /// Unknown credential.
    #[error(
        "systemd passed no credential {name} to blockd: add LoadCredential={name}:FILE to blockd.service, and restart it"
    )]
    NoCredential {
        /// Its name.
        name: String,
    },
    /// The credential belongs to the daemon itself.
    #[error("{what} is blockd's own key, not the secret of a store: give another one")]
    Own {
        /// Purpose.
        what: String,
    },
    /// File outside of the permitted directory.
    #[error("{} is not below {}: move it there, or change secrets.file_dir", path.display(), dir.display())]
    Outside {
        /// File.
        path: PathBuf,
        /// Permitted directory.
        dir: PathBuf,
    },
    /// Unreadable file.
    #[error("read failed on {}: {what}", path.display())]
    File {
        /// File.
        path: PathBuf,
        /// Cause.
        what: String,
    },
    /// Missing file.
    #[error("read failed on {}: it does not exist", path.display())]
    NoFile {
        /// File.
        path: PathBuf,
    },
    /// File that other users can read.
    #[error("{} has mode {mode:04o}, so others may read the secret: chmod 600 it", path.display())]
    Exposed {
        /// File.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Content that cannot be a secret.
    #[error("the secret {what}")]
    Unusable {
        /// Cause.
        what: &'static str,
    },
    /// Refused program.
    #[error("refused to run {}: {what}", path.display())]
    Command {
        /// The program.
        path: PathBuf,
        /// The reason.
        what: &'static str,
    },
    /// Failed program.
    #[error("{} failed: {what}", path.display())]
    CommandFailed {
        /// The program.
        path: PathBuf,
        /// The reason.
        what: String,
    },
    /// Internal error.
    #[error("internal error: {what}")]
    Internal {
        /// Cause.
        what: String,
    },
}

impl ReferenceError {
    /// Returns true if a retry can help: a program may reach its server again later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::CommandFailed { .. })
    }

    /// Returns the error code of the API.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Internal { .. } => ErrorCode::Internal,
            error if error.is_retryable() => ErrorCode::SecretUnreachable,
            _ => ErrorCode::SecretUnavailable,
        }
    }
}
