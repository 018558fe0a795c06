//! Bringing applications and filesystems to rest around a snapshot: what is asked for, and what was done.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How long a command may take if nothing is said, in seconds.
pub const DEFAULT_COMMAND_TIMEOUT_S: u64 = 60;
/// The longest that a command may take, in seconds.
pub const MAX_COMMAND_TIMEOUT_S: u64 = 600;
/// The longest command, in bytes.
pub const MAX_COMMAND_BYTES: usize = 4096;

/// What is to be done around a snapshot; nothing, if nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Quiesce {
    /// Freeze the filesystems that are mounted from the volumes' devices, and thaw them when the barrier is passed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub freeze_fs: bool,
    /// A command for `/bin/sh -c`, run by the daemon before everything else. If it fails, there is no snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_command: Option<String>,
    /// A command for `/bin/sh -c`, run by the daemon after the snapshot, also if that or the first command failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_command: Option<String>,
    /// How long each of the commands may take, in seconds; [`DEFAULT_COMMAND_TIMEOUT_S`] if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_timeout_s: Option<u64>,
}

impl Quiesce {
    /// Whether nothing is to be done.
    pub fn is_nothing(&self) -> bool {
        !self.freeze_fs && self.pre_command.is_none() && self.post_command.is_none()
    }

    /// Whether anything is to be done once the snapshot is there.
    pub fn is_something_after(&self) -> bool {
        self.post_command.is_some()
    }

    /// What is wrong with it, if anything is.
    ///
    /// # Errors
    /// A command is empty or too long, or the time is none that a command may have.
    pub fn check(&self) -> Result<(), String> {
        for (what, command) in [("pre-command", &self.pre_command), ("post-command", &self.post_command)] {
            let Some(command) = command else { continue };
            if command.trim().is_empty() {
                return Err(format!("the {what} is empty: give a command for /bin/sh, or leave it away"));
            }
            if command.len() > MAX_COMMAND_BYTES || command.contains('\0') {
                return Err(format!(
                    "the {what} cannot be run: give at most {MAX_COMMAND_BYTES} bytes, none of them zero"
                ));
            }
        }
        match self.command_timeout_s {
            Some(seconds) if !(1..=MAX_COMMAND_TIMEOUT_S).contains(&seconds) => {
                Err(format!("{seconds} s is no time for a command: give 1 s to {MAX_COMMAND_TIMEOUT_S} s"))
            }
            _ => Ok(()),
        }
    }
}

/// What was done around a snapshot, in the order in which it was begun.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuiesceReport {
    /// The steps.
    pub steps: Vec<QuiesceStep>,
}

impl QuiesceReport {
    /// Takes out what commands were and what they said; that they ran, how long and how they ended stays.
    pub fn hide_commands(&mut self) {
        let is_command =
            |step: &&mut QuiesceStep| matches!(step.kind, QuiesceKind::PreCommand | QuiesceKind::PostCommand);
        for step in self.steps.iter_mut().filter(is_command) {
            "(hidden)".clone_into(&mut step.target);
            if let Some(error) = &mut step.error {
                "(hidden)".clone_into(error);
            }
        }
    }
}

/// One thing that was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuiesceStep {
    /// What it was.
    pub kind: QuiesceKind,
    /// The command as it was given, or the mount point.
    pub target: String,
    /// How long it took, in microseconds.
    pub duration_micros: u64,
    /// The exit status of a command that ended by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_status: Option<i32>,
    /// What failed, in one line; `None` if nothing did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum QuiesceKind {
    /// The command before.
    PreCommand,
    /// A filesystem was brought to rest.
    FreezeFs,
    /// A filesystem was let go.
    ThawFs,
    /// The command after.
    PostCommand,
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
    fn what_cannot_be_run_is_refused() {
        let with = |command: &str, seconds| Quiesce {
            pre_command: Some(command.to_owned()),
            command_timeout_s: seconds,
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
    }
}
