//! Failures of commands, their exit statuses and JSON form.

use blockd_api::{ApiError, ClientError, ErrorCode, NameError};
use schemars::JsonSchema;
use serde::Serialize;
use std::{fmt::Display, io, path::Path};
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
    /// The command failed otherwise.
    #[error("{message}")]
    Local {
        /// Code of the JSON form.
        code: &'static str,
        /// Exit status.
        exit_status: u8,
        /// Cause.
        message: String,
        /// Next action.
        hint: Option<String>,
    },
}

impl From<NameError> for Failure {
    fn from(error: NameError) -> Self {
        Self::usage(error.to_string())
    }
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

    /// Creates a failure of this host without a hint.
    pub fn local(code: &'static str, exit_status: u8, message: impl Into<String>) -> Self {
        Self::Local { code, exit_status, message: message.into(), hint: None }
    }

    /// Creates a failure to write a file or directory.
    pub fn write(path: &Path, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        let failure =
            Self::local("cannot_write", EXIT_FAILED, format!("cannot write {}: {error}", path.display()));
        match error.kind() {
            io::ErrorKind::AlreadyExists => failure.with_hint("the existing file is kept: name another file"),
            _ => failure,
        }
    }

    /// Creates a failure to write to stdout.
    pub fn stdout(error: impl Into<io::Error>) -> Self {
        Self::local("cannot_write", EXIT_FAILED, format!("cannot write to stdout: {}", error.into()))
    }

    /// Creates a failure to read or copy an image.
    pub fn image(image: impl Display, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        let (code, exit_status) = match error.kind() {
            io::ErrorKind::Interrupted => ("interrupted", EXIT_INTERRUPTED),
            _ => ("cannot_copy", EXIT_FAILED),
        };
        Self::local(code, exit_status, format!("copy of {image} failed: {error}"))
    }

    /// Creates a failure of the async runtime.
    pub fn runtime(error: impl Into<io::Error>) -> Self {
        Self::local(ErrorCode::Internal.as_str(), EXIT_FAILED, format!("cannot start: {}", error.into()))
    }

    /// Creates the failure of a wait that the user interrupted.
    pub fn interrupted(task: Uuid, others: &[Uuid]) -> Self {
        let message = match others {
            [] => format!("stopped waiting: task {task} continues"),
            others => {
                let others: Vec<String> = others.iter().map(ToString::to_string).collect();
                format!("stopped waiting: tasks {task}, {} are not stopped", others.join(", "))
            }
        };
        Self::local("interrupted", EXIT_INTERRUPTED, message).with_hint(status_hint(task))
    }

    /// Creates the failure of a wait without a daemon.
    pub fn lost(task: Uuid, error: &ClientError) -> Self {
        let message = format!("lost the connection to blockd while waiting for task {task}: {error}");
        let hint = format!("the task continues when blockd is back; {}", status_hint(task));
        Self::local("connection_lost", EXIT_UNREACHABLE, message).with_hint(hint)
    }

    /// Adds the next action; errors of the API have their own.
    #[must_use]
    pub fn with_hint(mut self, next: impl Into<String>) -> Self {
        if let Self::Usage { hint, .. } | Self::Local { hint, .. } = &mut self {
            *hint = Some(next.into());
        }
        self
    }

    /// Creates a usage error from an error of the parser.
    pub fn from_clap(error: &clap::Error) -> Self {
        use clap::error::ErrorKind;
        if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            return Self::usage("a command is missing").with_hint("see `blockctl --help`");
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
            Self::Usage { .. } => EXIT_USAGE,
            Self::Client(error) => client_exit_status(error),
            Self::Local { exit_status, .. } => *exit_status,
        }
    }

    /// Remedy.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Usage { hint, .. } | Self::Local { hint, .. } => hint.clone(),
            Self::Client(error) => hint_of(error),
        }
    }

    /// Returns the code of the JSON form.
    pub fn code(&self) -> &str {
        match self {
            Self::Usage { .. } => "usage",
            Self::Client(ClientError::Api(error)) => error.code.as_str(),
            Self::Client(error) if error.is_unreachable() => "unreachable",
            Self::Client(ClientError::Timeout { .. }) => "timeout",
            Self::Client(ClientError::Broken { .. }) => "connection_lost",
            Self::Client(_) => "bad_reply",
            Self::Local { code, .. } => code,
        }
    }

    /// Returns the JSON form.
    pub fn document(&self) -> FailureDocument {
        let error =
            FailureBody { code: self.code().to_owned(), message: self.to_string(), hint: self.hint() };
        FailureDocument { error }
    }
}

/// Returns the next action after a failed call.
pub fn hint_of(error: &ClientError) -> Option<String> {
    match error {
        ClientError::Api(error) => next_action(error),
        error => error.hint().map(str::to_owned),
    }
}

/// Returns the next action after an error of the daemon, with the settings to check as options.
pub fn next_action(error: &ApiError) -> Option<String> {
    let option = |setting: &String| match setting.as_str() {
        // The secret itself is no argument.
        "google-json-key" | "encryption-passphrase" => format!("--{setting}-file"),
        setting => format!("--{setting}"),
    };
    let options: Vec<String> = error.settings.iter().map(option).collect();
    error.next_action(&options)
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
