//! Why a secret that lies elsewhere cannot be had. No message has anything of a secret, or of what others wrote.

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
    /// Nothing is known of a Vault.
    #[error(
        "there is no Vault in the configuration: set [vault] with address and token_file, or role_id, in blockd.toml"
    )]
    NoVault,
    /// The Vault fails.
    #[error("vault at {address} {trouble}")]
    Vault {
        /// Where it is.
        address: String,
        /// What is the matter.
        trouble: Trouble,
    },
    /// A fault of the daemon.
    #[error("internal error: {what}")]
    Internal {
        /// What happened.
        what: String,
    },
}

/// What is the matter with a Vault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Trouble {
    /// Nobody answers.
    #[error("cannot be reached ({what}): look at vault.address and ca_certificate, and whether it runs")]
    Unreachable {
        /// What the system said.
        what: String,
    },
    /// It took too long.
    #[error("gave no answer within {timeout_ms} ms")]
    Timeout {
        /// What was waited.
        timeout_ms: u64,
    },
    /// It is sealed.
    #[error("is sealed: unseal it (bao operator unseal)")]
    Sealed,
    /// It was never set up.
    #[error("is not initialized: set it up (bao operator init)")]
    Uninitialized,
    /// It fails, or wants to be left alone.
    #[error("answers {status}")]
    Failing {
        /// The status of its answer.
        status: u16,
    },
    /// It wants somebody else to be asked.
    #[error("answers {status}, but redirections are not followed: give the address of the active node")]
    Redirects {
        /// The status of its answer.
        status: u16,
    },
    /// The token is good no more.
    #[error("refused the token ({status}): renew it in {place}")]
    Token {
        /// The status of its answer.
        status: u16,
        /// Where it is.
        place: String,
    },
    /// The role may not log in.
    #[error("refused the login as role ({status}): look at role_id, and renew the secret id in {place}")]
    Login {
        /// The status of its answer.
        status: u16,
        /// Where the secret id is.
        place: String,
    },
    /// The token is good, but not for this.
    #[error("does not let blockd read {path} (403): give its token or role a policy with `read` there")]
    Policy {
        /// What was to be read.
        path: String,
    },
    /// There is no such secret.
    #[error(
        "has nothing at {path} (404): look at the path, whether it was deleted, and whether that is a key-value store of version 2"
    )]
    Missing {
        /// What was to be read.
        path: String,
    },
    /// The secret has no such field.
    #[error("has no field {field} at {path}: there are {known}")]
    Field {
        /// The field.
        field: String,
        /// The secret.
        path: String,
        /// The fields that there are.
        known: String,
    },
    /// The field is no text.
    #[error("has something at {path} whose field {field} is no text")]
    NoText {
        /// The field.
        field: String,
        /// The secret.
        path: String,
    },
    /// It says too much.
    #[error("gave an answer of more than {most_bytes} bytes")]
    TooLarge {
        /// What is taken.
        most_bytes: usize,
    },
    /// What it says is not understood.
    #[error("gave an answer that is not understood: is it a Vault?")]
    NotUnderstood,
    /// What proves who asks cannot be read.
    #[error("is not asked: {0}")]
    Proof(Box<ReferenceError>),
    /// Its client cannot be made.
    #[error("cannot be asked: {what}")]
    Client {
        /// Why not.
        what: String,
    },
}

impl Trouble {
    /// Whether it may be over by itself.
    pub(super) fn passes(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Timeout { .. }
                | Self::Sealed
                | Self::Uninitialized
                // What the asking itself is wrong with stays so.
                | Self::Failing { status: 412 | 429 | 500.. }
                | Self::Redirects { .. }
        )
    }
}

impl ReferenceError {
    /// Whether the same may succeed later without anybody doing anything here.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Vault { trouble, .. } if trouble.passes())
    }

    /// Whether who keeps the secret was asked, and has none of this name.
    pub fn is_missing(&self) -> bool {
        match self {
            Self::NoCredentials { .. } | Self::NoCredential { .. } | Self::NoFile { .. } => true,
            Self::Vault { trouble, .. } => matches!(trouble, Trouble::Missing { .. } | Trouble::Field { .. }),
            _ => false,
        }
    }

    /// What it is to callers.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Internal { .. } => ErrorCode::Internal,
            error if error.is_retryable() => ErrorCode::SecretUnreachable,
            _ => ErrorCode::SecretUnavailable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_vault_refuses_for_good_does_not_pass() {
        for (status, passes) in
            [(400, false), (405, false), (418, false), (412, true), (429, true), (500, true), (503, true)]
        {
            let error =
                ReferenceError::Vault { address: "v".to_owned(), trouble: Trouble::Failing { status } };
            let code = if passes { ErrorCode::SecretUnreachable } else { ErrorCode::SecretUnavailable };
            assert_eq!((error.is_retryable(), error.code()), (passes, code), "{status}");
        }
    }
}
