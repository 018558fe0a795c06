//! Why a secret that lies elsewhere cannot be had. No message has anything of a secret, or of what others
//! wrote.

use blockd_api::ErrorCode;
use std::path::PathBuf;

/// Why a secret could not be fetched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// The daemon was started without credentials.
    #[error(
        "systemd gave blockd no credentials: add LoadCredential={name}:FILE to blockd.service, and restart it"
    )]
    NoCredentials {
        /// The name that was asked for.
        name: String,
    },
    /// There is no such credential.
    #[error(
        "systemd gave blockd no credential {name}: add LoadCredential={name}:FILE to blockd.service, and restart it"
    )]
    NoCredential {
        /// Its name.
        name: String,
    },
    /// It is something that the daemon itself needs.
    #[error("{what} is blockd's own, and no secret of a store: give another one")]
    Own {
        /// What it is.
        what: String,
    },
    /// A file lies where none is taken from.
    #[error("{} does not lie below {}: move it there, or change secrets.file_dir", path.display(), dir.display())]
    Outside {
        /// The file.
        path: PathBuf,
        /// Where files are taken from.
        dir: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// There is no such file.
    #[error("cannot read {}: it is not there", path.display())]
    NoFile {
        /// The file.
        path: PathBuf,
    },
    /// Others may read a file.
    #[error("{} has mode {mode:04o}, so others may read the secret: chmod 600 it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// What is there cannot be a secret.
    #[error("the secret {what}")]
    Unusable {
        /// Why not.
        what: &'static str,
    },
    /// A program that is not run.
    #[error("cannot run {}: {what}", path.display())]
    Command {
        /// The program.
        path: PathBuf,
        /// The reason.
        what: &'static str,
    },
    /// A program that failed.
    #[error("{} failed: {what}", path.display())]
    CommandFailed {
        /// The program.
        path: PathBuf,
        /// The reason.
        what: String,
    },
    /// A fault of the daemon.
    #[error("internal error: {what}")]
    Internal {
        /// What happened.
        what: String,
    },
}

impl ReferenceError {
    /// Returns true if a retry can help: a program may reach its server again later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::CommandFailed { .. })
    }

    /// Its error code in the API.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Internal { .. } => ErrorCode::Internal,
            error if error.is_retryable() => ErrorCode::SecretUnreachable,
            _ => ErrorCode::SecretUnavailable,
        }
    }
}
