//! Quiescing of applications and filesystems around a snapshot: options and reports.

use crate::RuleName;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Default timeout of a command, in seconds.
pub const DEFAULT_COMMAND_TIMEOUT_SECONDS: u64 = 60;
/// Maximum timeout of a command, in seconds.
pub const MAX_COMMAND_TIMEOUT_SECONDS: u64 = 600;
/// Maximum length of a command, in bytes.
pub const MAX_COMMAND_BYTES: usize = 4096;
/// Maximum kept output of a command, in bytes: its end.
pub const MAX_OUTPUT_BYTES: usize = 4096;
/// Maximum length of a user name, in bytes.
const MAX_USER_BYTES: usize = 64;

/// Action after a failed pre-command or filesystem freeze.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// Take no snapshot.
    #[default]
    Abort,
    /// Take a crash-consistent snapshot and report the failure.
    Continue,
}

impl OnFailure {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Abort => "abort",
            Self::Continue => "continue",
        }
    }
}

impl fmt::Display for OnFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Hooks around a freeze: options of the request, or a rule; those of the volumes by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HookOptions {
    /// Quiesce options, instead of rules.
    #[serde(default, skip_serializing_if = "Quiesce::is_nothing")]
    pub quiesce: Quiesce,
    /// Rule used instead of those of the volumes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule_name: Option<RuleName>,
    /// Use no rule.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_rule: bool,
}

/// Quiesce options of a snapshot; none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Quiesce {
    /// Freeze filesystems on the volumes' devices around the write barrier, for at most 10 seconds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub freeze_fs: bool,
    /// Pre-command for `/bin/sh -c`. If it fails, no snapshot is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pre_command: Option<String>,
    /// Post-command for `/bin/sh -c`. It always runs, also after a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub post_command: Option<String>,
    /// Timeout of each command, in seconds; [`DEFAULT_COMMAND_TIMEOUT_SECONDS`] by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command_timeout_seconds: Option<u64>,
    /// User of the commands on the daemon's host; the daemon's by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Action after a failed pre-command or filesystem freeze.
    #[serde(default, skip_serializing_if = "OnFailure::is_default")]
    pub on_failure: OnFailure,
}

impl Quiesce {
    /// Returns true if no option is set.
    pub fn is_nothing(&self) -> bool {
        !self.freeze_fs && self.pre_command.is_none() && self.post_command.is_none()
    }

    /// Returns true if a command is set.
    pub fn has_command(&self) -> bool {
        self.pre_command.is_some() || self.post_command.is_some()
    }

    /// Checks the options.
    ///
    /// # Errors
    /// A command is empty or too long, or the timeout is out of range.
    pub fn check(&self) -> Result<(), String> {
        for (what, command) in [("pre-command", &self.pre_command), ("post-command", &self.post_command)] {
            let Some(command) = command else { continue };
            if command.trim().is_empty() {
                return Err(format!("the {what} is empty: give a command for /bin/sh, or omit it"));
            }
            if command.len() > MAX_COMMAND_BYTES || command.contains('\0') {
                return Err(format!(
                    "the {what} cannot be run: give at most {MAX_COMMAND_BYTES} bytes, none of them zero"
                ));
            }
        }
        if let Some(user) = &self.user {
            let is_name = |c: char| c.is_ascii_alphanumeric() || "._-$@\\".contains(c);
            if user.is_empty()
                || user.len() > MAX_USER_BYTES
                || user.starts_with('-')
                || !user.chars().all(is_name)
            {
                return Err(format!("{user:?} is not a valid user name"));
            }
        }
        match self.command_timeout_seconds {
            Some(seconds) if !(1..=MAX_COMMAND_TIMEOUT_SECONDS).contains(&seconds) => Err(format!(
                "{seconds} s is out of range for a command: give 1 s to {MAX_COMMAND_TIMEOUT_SECONDS} s"
            )),
            _ => Ok(()),
        }
    }
}

/// Quiesce report of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuiesceReport {
    /// Steps in start order.
    pub steps: Vec<QuiesceStep>,
}

impl QuiesceReport {
    /// Removes commands and their output; duration and result stay.
    pub fn hide_commands(&mut self) {
        for step in self.steps.iter_mut().filter(|step| step.kind.is_command()) {
            "(hidden)".clone_into(&mut step.target);
            step.error = step.short_error().map(str::to_owned);
            step.output = None;
        }
    }

    /// Returns failures without commands and their output.
    pub fn failures(&self) -> impl Iterator<Item = String> {
        self.steps.iter().filter_map(QuiesceStep::failure)
    }
}

/// Quiesce step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuiesceStep {
    /// Kind of step.
    pub kind: QuiesceKind,
    /// Command or mount point.
    pub target: String,
    /// Rule of the step, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule_name: Option<RuleName>,
    /// Start time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// Duration, in microseconds.
    pub duration_micros: u64,
    /// Exit status of a command that exited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_status: Option<i32>,
    /// Error, in one line; `None` on success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Output of a command, the last [`MAX_OUTPUT_BYTES`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}

impl QuiesceStep {
    /// Returns the error without output of a command.
    pub fn short_error(&self) -> Option<&str> {
        let error = self.error.as_deref()?;
        match self.kind.is_command() {
            true => Some(error.split_once(": ").map_or(error, |(short, _)| short)),
            false => Some(error),
        }
    }

    /// Returns step and error, visible to every role.
    pub fn failure(&self) -> Option<String> {
        let error = self.short_error()?;
        let rule = self.rule_name.as_ref().map(|rule| format!(" of rule {rule}")).unwrap_or_default();
        Some(match self.kind {
            QuiesceKind::FreezeFs => format!("the freeze of {} failed: {error}", self.target),
            QuiesceKind::ThawFs => format!("the thaw of {} failed: {error}", self.target),
            kind => format!("the {kind}{rule} failed ({error})"),
        })
    }
}

/// Kind of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum QuiesceKind {
    /// Pre-command.
    PreCommand,
    /// Filesystem freeze.
    FreezeFs,
    /// Filesystem thaw.
    ThawFs,
    /// Post-command.
    PostCommand,
}

impl QuiesceKind {
    /// Returns true for commands.
    pub const fn is_command(self) -> bool {
        matches!(self, Self::PreCommand | Self::PostCommand)
    }
}

impl fmt::Display for QuiesceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::PreCommand => "pre-command",
            Self::FreezeFs => "freeze-fs",
            Self::ThawFs => "thaw-fs",
            Self::PostCommand => "post-command",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_command_is_refused() {
        let with = |command: &str, seconds| Quiesce {
            pre_command: Some(command.to_owned()),
            command_timeout_seconds: seconds,
            ..Quiesce::default()
        };
        assert_eq!(with("true", None).check(), Ok(()));
        assert_eq!(with("true", Some(600)).check(), Ok(()));
        assert!(with(" ", None).check().unwrap_err().contains("empty"));
        assert!(with(&"x".repeat(4097), None).check().unwrap_err().contains("4096 bytes"));
        for seconds in [0, 601] {
            assert!(with("true", Some(seconds)).check().unwrap_err().contains("1 s to 600 s"));
        }
        assert!(Quiesce::default().is_nothing() && !with("true", None).is_nothing());
        let as_user = |user: &str| Quiesce { user: Some(user.to_owned()), ..with("true", None) };
        assert_eq!(as_user("postgres").check(), Ok(()));
        for user in ["", "-x", "a b", "root;"] {
            assert!(as_user(user).check().unwrap_err().contains("is not a valid user name"), "{user}");
        }
    }

    #[test]
    fn public_failures_hide_commands_and_output() {
        let step = QuiesceStep {
            kind: QuiesceKind::PostCommand,
            target: "unlock planted".to_owned(),
            rule_name: Some("pg".parse().unwrap()),
            started_at: None,
            duration_micros: 7,
            exit_status: Some(3),
            error: Some("exit status 3: planted".to_owned()),
            output: Some("planted".to_owned()),
        };
        let mut report = QuiesceReport { steps: vec![step] };
        let told: Vec<String> = report.failures().collect();
        assert_eq!(told, ["the post-command of rule pg failed (exit status 3)"]);
        report.hide_commands();
        let shown = serde_json::to_string(&report).unwrap();
        assert!(!shown.contains("planted") && shown.contains("exit status 3"), "{shown}");
    }
}
