//! Failures of commands, their exit statuses and JSON form.

use blockd_api::{ApiError, ClientError, ErrorCode, browse::FilePath};
use schemars::JsonSchema;
use serde::Serialize;
use std::{io, path::PathBuf};
use uuid::Uuid;

/// Success.
pub const EXIT_DONE: u8 = 0;
/// Failure.
pub const EXIT_FAILED: u8 = 1;
/// Invalid command line.
pub const EXIT_USAGE: u8 = 2;
/// The daemon cannot be reached.
pub const EXIT_UNREACHABLE: u8 = 3;
/// The request conflicts with an existing object.
pub const EXIT_CONFLICT: u8 = 5;
/// An object waits for a running backup.
pub const EXIT_WAITING: u8 = 6;
/// The user pressed Ctrl-C.
pub const EXIT_INTERRUPTED: u8 = 130;

/// Exit status of a command.
pub type Exit = Result<u8, Failure>;

/// Failure of a command.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Invalid command line.
    #[error("{message}")]
    Usage {
        /// Cause.
        message: String,
        /// Next action.
        hint: Option<String>,
    },
    /// An API call failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A secret could not be read.
    #[error("cannot read the {what} from {from}: {reason}")]
    Secret {
        /// Name of the secret.
        what: &'static str,
        /// File, `stdin`, or variable.
        from: String,
        /// Reason.
        reason: String,
    },
    /// A file could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// File or directory.
        path: PathBuf,
        /// Reason.
        source: io::Error,
    },
    /// The target of a copied file exists.
    #[error("copy failed on {}: it exists already", path.display())]
    Exists {
        /// File or link.
        path: PathBuf,
    },
    /// An image could not be read or copied.
    #[error("copy of {image} failed: {source}")]
    Image {
        /// Image.
        image: String,
        /// Reason.
        source: io::Error,
    },
    /// Stdout could not be written.
    #[error("cannot write to stdout: {source}")]
    Stdout {
        /// Reason.
        source: io::Error,
    },
    /// A file in a snapshot is shorter than its recorded length.
    #[error("{path} in the snapshot ends at byte {at_bytes}, before its length")]
    Short {
        /// File.
        path: FilePath,
        /// Bytes that could be read.
        at_bytes: u64,
    },
    /// Directories in a snapshot are nested too deeply.
    #[error("{path} in the snapshot is nested more than {most} directories deep")]
    TooDeep {
        /// Directory.
        path: FilePath,
        /// Maximum depth.
        most: usize,
    },
    /// A snapshot has more files than the limit of one command.
    #[error("there are more than {most} files below {path} in the snapshot")]
    TooManyFiles {
        /// Directory of the files.
        path: FilePath,
        /// Maximum number of files.
        most: usize,
    },
    /// The async runtime could not be created.
    #[error("cannot start: {source}")]
    Runtime {
        /// Reason.
        source: io::Error,
    },
    /// The user did not confirm a destructive command.
    #[error("cancelled: nothing was changed")]
    Declined,
    /// Ctrl-C while waiting for a task.
    #[error("stopped waiting: task {task} continues")]
    Interrupted {
        /// Task.
        task: Uuid,
    },
    /// The daemon became unreachable during a wait.
    #[error("lost the connection to blockd while waiting for task {task}: {source}")]
    Lost {
        /// Task.
        task: Uuid,
        /// Last error.
        source: ClientError,
    },
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Client(error.into())
    }
}

/// JSON form of a failure: `{"error": {"code": …, "message": …, "hint": …}}`.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct FailureDocument {
    /// Error.
    pub error: FailureBody,
}

/// Error of a document.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct FailureBody {
    code: String,
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// Creates a usage error without a hint.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: None }
    }

    /// Creates a usage error from an error of the parser.
    pub fn from_clap(error: &clap::Error) -> Self {
        use clap::error::ErrorKind;
        if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            let hint = Some("see `blockctl --help`".to_owned());
            return Self::Usage { message: "a command is missing".to_owned(), hint };
        }
        let text = error.render().to_string();
        let mut paragraphs =
            text.split("\n\n").map(|lines| lines.split_whitespace().collect::<Vec<_>>().join(" "));
        let message = paragraphs.next().unwrap_or_default();
        let message = message.strip_prefix("error: ").unwrap_or(&message).to_owned();
        let hint = paragraphs.find(|text| text.starts_with("tip: ") || text.starts_with("Usage: "));
        Self::Usage { message, hint: hint.map(|hint| hint.trim_start_matches("tip: ").to_owned()) }
    }

    /// Returns the exit status.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Usage { .. } | Self::Secret { .. } => EXIT_USAGE,
            Self::Client(error) => client_exit_status(error),
            Self::Exists { .. } => EXIT_CONFLICT,
            Self::Lost { .. } => EXIT_UNREACHABLE,
            Self::Interrupted { .. } => EXIT_INTERRUPTED,
            Self::Write { .. } | Self::Stdout { .. } | Self::Runtime { .. } | Self::Declined => EXIT_FAILED,
            Self::Image { source, .. } if source.kind() == io::ErrorKind::Interrupted => EXIT_INTERRUPTED,
            Self::Image { .. } | Self::Short { .. } | Self::TooDeep { .. } => EXIT_FAILED,
            Self::TooManyFiles { .. } => EXIT_USAGE,
        }
    }

    /// Remedy.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Usage { hint, .. } => hint.clone(),
            Self::Client(error) => error.hint().map(str::to_owned),
            Self::Write { source, .. } if source.kind() == io::ErrorKind::AlreadyExists => {
                Some("the existing file is kept: name another file".into())
            }
            Self::Exists { .. } => Some(
                "--overwrite replaces existing files, --skip-existing keeps them and copies the others"
                    .into(),
            ),
            Self::Interrupted { task } => Some(status_hint(*task)),
            Self::TooDeep { .. } => {
                Some("copy a subdirectory, or mount the image (`blockctl browse mount DIR`)".into())
            }
            Self::TooManyFiles { .. } => Some("name a subdirectory".into()),
            Self::Lost { task, .. } => {
                Some(format!("the task continues when blockd is back; {}", status_hint(*task)))
            }
            _ => None,
        }
    }

    fn code(&self) -> &str {
        match self {
            Self::Usage { .. } => "usage",
            Self::Secret { .. } => "unreadable_secret",
            Self::Client(ClientError::Api(error)) => error.code.as_str(),
            Self::Client(error) if error.is_unreachable() => "unreachable",
            Self::Client(ClientError::Timeout { .. }) => "timeout",
            Self::Client(ClientError::Broken { .. }) => "connection_lost",
            Self::Client(_) => "bad_reply",
            Self::Write { .. } | Self::Stdout { .. } => "cannot_write",
            Self::Image { source, .. } if source.kind() == io::ErrorKind::Interrupted => "interrupted",
            Self::Image { .. } => "cannot_copy",
            Self::Exists { .. } => "file_exists",
            Self::Runtime { .. } => ErrorCode::Internal.as_str(),
            Self::Short { .. } => ErrorCode::CloudsnapDamaged.as_str(),
            Self::TooDeep { .. } => "too_deep",
            Self::TooManyFiles { .. } => "too_many_files",
            Self::Interrupted { .. } => "interrupted",
            Self::Declined => "declined",
            Self::Lost { .. } => "connection_lost",
        }
    }

    /// Returns the JSON form.
    pub fn document(&self) -> FailureDocument {
        let error =
            FailureBody { code: self.code().to_owned(), message: self.to_string(), hint: self.hint() };
        FailureDocument { error }
    }
}

fn status_hint(task: Uuid) -> String {
    format!(
        "see `blockctl cloudsnap status --name {task}`, or wait again with `blockctl cloudsnap status --name {task} --wait`"
    )
}

fn client_exit_status(error: &ClientError) -> u8 {
    match error {
        ClientError::Api(error) => error.code.exit_status(),
        ClientError::Timeout { .. } | ClientError::Broken { .. } => EXIT_UNREACHABLE,
        error if error.is_unreachable() => EXIT_UNREACHABLE,
        _ => EXIT_FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parser_errors_become_one_line() {
        let error =
            crate::cli::command().try_get_matches_from(["blockctl", "volume", "creat", "x"]).unwrap_err();
        let Failure::Usage { message, hint } = Failure::from_clap(&error) else {
            panic!("not a usage error")
        };
        assert_eq!(message, "unrecognized subcommand 'creat'");
        assert!(hint.unwrap().contains("create"));
        let error = crate::cli::command().try_get_matches_from(["blockctl"]).unwrap_err();
        assert_eq!(Failure::from_clap(&error).to_string(), "a command is missing");
    }
}
