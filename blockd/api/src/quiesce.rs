//! Bringing applications and filesystems to rest around a snapshot: what is asked for, and what was done.

use crate::RuleName;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How long a command may take if nothing is said, in seconds.
pub const DEFAULT_COMMAND_TIMEOUT_S: u64 = 60;
/// The longest that a command may take, in seconds.
pub const MAX_COMMAND_TIMEOUT_S: u64 = 600;
/// The longest command, in bytes.
pub const MAX_COMMAND_BYTES: usize = 4096;
/// How much of what a command says is kept, in bytes: the last of it.
pub const MAX_OUTPUT_BYTES: usize = 4096;
/// The longest name of a user, in bytes.
const MAX_USER_BYTES: usize = 64;

/// What becomes of a snapshot when what is to be done before it fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// There is none.
    #[default]
    Abort,
    /// It is taken all the same, as a crash would leave the volumes; the failure is told of.
    Continue,
}

impl OnFailure {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The word for it.
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

/// What is to be done around a snapshot; nothing, if nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Quiesce {
    /// Freeze the filesystems that are mounted from the volumes' devices, and thaw them when the barrier is
    /// passed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub freeze_fs: bool,
    /// A command for `/bin/sh -c`, run by the daemon before everything else. If it fails, there is no
    /// snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_command: Option<String>,
    /// A command for `/bin/sh -c`, run by the daemon after the snapshot, also if that or the first command
    /// failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_command: Option<String>,
    /// How long each of the commands may take, in seconds; [`DEFAULT_COMMAND_TIMEOUT_S`] if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_timeout_s: Option<u64>,
    /// The user of the daemon's host as whom the commands run; the daemon's own without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// What becomes of the snapshot when the command before it, or a freeze of a filesystem, fails.
    #[serde(default, skip_serializing_if = "OnFailure::is_default")]
    pub on_failure: OnFailure,
}

impl Quiesce {
    /// Whether nothing is to be done.
    pub fn is_nothing(&self) -> bool {
        !self.freeze_fs && self.pre_command.is_none() && self.post_command.is_none()
    }

    /// Whether there is a command.
    pub fn has_command(&self) -> bool {
        self.pre_command.is_some() || self.post_command.is_some()
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
        if let Some(user) = &self.user {
            let is_name = |c: char| c.is_ascii_alphanumeric() || "._-$@\\".contains(c);
            if user.is_empty()
                || user.len() > MAX_USER_BYTES
                || user.starts_with('-')
                || !user.chars().all(is_name)
            {
                return Err(format!("{user:?} is no name of a user"));
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
        for step in self.steps.iter_mut().filter(|step| step.kind.is_command()) {
            "(hidden)".clone_into(&mut step.target);
            step.error = step.short_error().map(str::to_owned);
            step.output = None;
        }
    }

    /// What failed, in a line for everybody: nothing of what commands are or say is in it.
    pub fn failures(&self) -> impl Iterator<Item = String> {
        self.steps.iter().filter_map(QuiesceStep::failure)
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
    /// The rule that wants it, if it is one of a rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleName>,
    /// When it was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// How long it took, in microseconds.
    pub duration_micros: u64,
    /// The exit status of a command that ended by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_status: Option<i32>,
    /// What failed, in one line; `None` if nothing did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What a command said on stdout and stderr, the last [`MAX_OUTPUT_BYTES`] of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}

impl QuiesceStep {
    /// What failed, without what a command said.
    pub fn short_error(&self) -> Option<&str> {
        let error = self.error.as_deref()?;
        match self.kind.is_command() {
            true => Some(error.split_once(": ").map_or(error, |(short, _)| short)),
            false => Some(error),
        }
    }

    /// What it was that failed, and how, for everybody.
    pub fn failure(&self) -> Option<String> {
        let error = self.short_error()?;
        let rule = self.rule.as_ref().map(|rule| format!(" of rule {rule}")).unwrap_or_default();
        Some(match self.kind {
            QuiesceKind::FreezeFs => format!("the freeze of {} failed: {error}", self.target),
            QuiesceKind::ThawFs => format!("the thaw of {} failed: {error}", self.target),
            kind => format!("the {kind}{rule} failed ({error})"),
        })
    }
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

impl QuiesceKind {
    /// Whether it is a command.
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
        let as_user = |user: &str| Quiesce { user: Some(user.to_owned()), ..with("true", None) };
        assert_eq!(as_user("postgres").check(), Ok(()));
        for user in ["", "-x", "a b", "root;"] {
            assert!(as_user(user).check().unwrap_err().contains("no name of a user"), "{user}");
        }
    }

    #[test]
    fn what_everybody_sees_has_nothing_of_what_commands_are_or_say() {
        let step = QuiesceStep {
            kind: QuiesceKind::PostCommand,
            target: "unlock planted".to_owned(),
            rule: Some("pg".parse().unwrap()),
            started: None,
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
