//! Tasks: backups, restores and deletes that run in the background.

use crate::{ApiError, CredentialName, ObjectName, VolumeName, quiesce::QuiesceReport, roles::Role};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// Reply to what starts a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskStarted {
    /// The task.
    pub task: Uuid,
}

/// Query of `GET /v1/tasks`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListTasks {
    /// Only those whose id begins like this.
    #[serde(default)]
    pub name: Option<String>,
}

/// Query of `GET /v1/tasks/{task}`: a long poll.
///
/// The reply comes as soon as the task's version is above `since_version`, at the latest after `wait_ms`;
/// with neither it comes at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WaitTask {
    /// How long to wait, in milliseconds, at most [`crate::MAX_WAIT_MS`].
    #[serde(default)]
    pub wait_ms: Option<u64>,
    /// The version that is known.
    #[serde(default)]
    pub since_version: Option<u64>,
}

/// Reply to `GET /v1/tasks`, newest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskList {
    /// The tasks.
    pub tasks: Vec<Task>,
}

/// A task as it is now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// Its id.
    pub name: Uuid,
    /// What it does.
    #[serde(rename = "type")]
    pub kind: TaskKind,
    /// What whoever asked for it called it; only of backups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<ObjectName>,
    /// The cloud snapshot that it makes, restores or deletes; `None` while that is not decided.
    pub source_volume: Option<String>,
    /// The volume that is backed up, or restored into; `None` for a delete.
    pub volume: Option<VolumeName>,
    /// How far it is: `Backup-Active`, `Restore-Done`, …
    pub state: TaskState,
    /// Host that runs it.
    pub node: String,
    /// Its credential.
    pub credential: Uuid,
    /// Name of its credential; `None` when that is gone.
    pub credential_name: Option<CredentialName>,
    /// What it is at, in a word or two for people: `planning`, `uploading`, `committing`.
    pub phase: String,
    /// Bytes that it has to work through; 0 while that is not known.
    pub bytes_total: u64,
    /// Bytes that it has worked through.
    pub bytes_processed: u64,
    /// Bytes sent to the store.
    pub bytes_uploaded: u64,
    /// Bytes got from the store.
    pub bytes_downloaded: u64,
    /// Bytes that were dirty when it began, for a backup.
    pub bytes_dirty: u64,
    /// Requests made to the store.
    pub requests: Requests,
    /// For how long the freeze held writes back, in microseconds, for a backup.
    pub freeze_stall_micros: Option<u64>,
    /// What was done around the freeze, for a backup; `None` if nothing was. What commands are and say is for
    /// admins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiesce: Option<QuiesceReport>,
    /// The caller, schedule or daemon that started it.
    pub owner: TaskOwner,
    /// When it was asked for.
    pub started: Timestamp,
    /// When it ended.
    pub completed: Option<Timestamp>,
    /// Seconds from start to end, or to now.
    pub time_elapsed: f64,
    /// Full or incremental, for a backup, as soon as that is decided.
    pub backup_type: Option<BackupType>,
    /// Why it failed; `None` unless it did.
    pub error: Option<ApiError>,
    /// Whether it ended without being done, and can be taken up again where it was.
    #[serde(default)]
    pub resumable: bool,
    /// What a verification, or a restore past damage, found.
    #[serde(default)]
    pub findings: Option<Findings>,
    /// How often it went on after a restart of the daemon.
    pub resumed: u64,
    /// Grows with each change, for long polls.
    pub version: u64,
}

/// The originator of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "kind")]
pub enum TaskOwner {
    /// The daemon itself: retention, background verification, a hydration after a restart.
    Daemon,
    /// A schedule.
    Schedule {
        /// Its id.
        id: Uuid,
    },
    /// A caller of the control API.
    Caller {
        /// Name of its socket, or the name in its certificate.
        name: String,
        /// Its role when it started the task.
        role: Role,
        /// Its user id, over a unix socket.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uid: Option<u32>,
    },
}

impl fmt::Display for TaskOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Daemon => f.write_str("daemon"),
            Self::Schedule { id } => write!(f, "schedule {id}"),
            Self::Caller { name, role, uid: Some(uid) } => write!(f, "{name} (uid {uid}, {role})"),
            Self::Caller { name, role, uid: None } => write!(f, "{name} ({role})"),
        }
    }
}

/// Body of `POST /v1/tasks/{task}/stop`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StopTask {
    /// Give it up: nothing is kept to take it up again. Also of a task that was stopped or failed before.
    #[serde(default)]
    pub discard: bool,
}

/// Body of `POST /v1/tasks/{task}/limit`, and part of what starts a task: how much it may move in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaskLimits {
    /// Bytes that it may send in a second; as many as it can otherwise.
    #[serde(default)]
    pub limit_upload_bytes_per_s: Option<u64>,
    /// Bytes that it may fetch in a second; as many as it can otherwise.
    #[serde(default)]
    pub limit_download_bytes_per_s: Option<u64>,
}

/// What a verification, or a restore past damage, found. Lists are cut to what a person can read; the counts
/// are whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Findings {
    /// Cloud snapshots that were looked at.
    pub snapshots: u64,
    /// Those of them that are damaged.
    pub damaged_snapshots: Vec<String>,
    /// Objects that were looked at.
    pub objects: u64,
    /// Bytes of blocks that were brought back.
    pub block_bytes: u64,
    /// Bytes of blocks that were compared with a volume on this host, or with what was recorded.
    pub compared_bytes: u64,
    /// What is damaged.
    pub damage: Vec<DamageFinding>,
    /// How much is damaged, what is not listed included.
    pub damage_total: u64,
}

/// Something in a store that is damaged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DamageFinding {
    /// The object.
    pub object: String,
    /// Where in it, in bytes.
    pub offset_bytes: u64,
    /// What is wrong.
    pub what: String,
    /// The cloud snapshots that lose something with it.
    pub affects: Vec<AffectedCloudsnap>,
}

/// What a cloud snapshot loses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AffectedCloudsnap {
    /// The cloud snapshot.
    pub cloudsnap: String,
    /// How many bytes of it cannot be read; 0 if that cannot be told.
    pub lost_bytes: u64,
    /// Which, the first of them.
    pub ranges: Vec<ByteRange>,
}

/// A stretch of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ByteRange {
    /// Where it begins, in bytes.
    pub offset_bytes: u64,
    /// How long it is, in bytes.
    pub len_bytes: u64,
}

/// Requests to a store, by kind; every attempt counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Requests {
    /// PUTs, parts of multipart uploads included.
    pub put: u64,
    /// GETs, ranged ones included.
    pub get: u64,
    /// LISTs, by page.
    pub list: u64,
    /// DELETEs.
    pub delete: u64,
    /// HEADs.
    pub head: u64,
}

/// What a task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum TaskKind {
    /// Makes a cloud snapshot of a volume.
    Backup,
    /// Makes a volume of a cloud snapshot.
    Restore,
    /// Deletes a cloud snapshot.
    Delete,
    /// Proves that cloud snapshots can be read.
    Verify,
}

impl TaskKind {
    const ALL: [Self; 4] = [Self::Backup, Self::Restore, Self::Delete, Self::Verify];

    /// The word before the dash of a state.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Backup => "Backup",
            Self::Restore => "Restore",
            Self::Delete => "Delete",
            Self::Verify => "Verify",
        }
    }
}

/// How far a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TaskStage {
    /// It waits for its turn.
    Pending,
    /// It runs.
    Active,
    /// It did what it should.
    Done,
    /// It did not, and will not by itself.
    Failed,
    /// Somebody stopped it; it can be taken up again.
    Stopped,
}

impl TaskStage {
    const ALL: [Self; 5] = [Self::Pending, Self::Active, Self::Done, Self::Failed, Self::Stopped];

    /// The word after the dash of a state.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Active => "Active",
            Self::Done => "Done",
            Self::Failed => "Failed",
            Self::Stopped => "Stopped",
        }
    }

    /// Whether the task has ended.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Stopped)
    }
}

/// What a task does and how far it is, written `Backup-Active`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TaskState {
    /// What it does.
    pub kind: TaskKind,
    /// How far it is.
    pub stage: TaskStage,
}

/// A text that is no state of a task.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not the state of a task: expected such as Backup-Active")]
pub struct BadTaskState {
    /// The text as it was given.
    pub given: String,
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.kind.title(), self.stage.title())
    }
}

impl FromStr for TaskState {
    type Err = BadTaskState;
    fn from_str(text: &str) -> Result<Self, BadTaskState> {
        let parse = || {
            let (kind, stage) = text.split_once('-')?;
            let kind = TaskKind::ALL.into_iter().find(|known| known.title() == kind)?;
            let stage = TaskStage::ALL.into_iter().find(|known| known.title() == stage)?;
            Some(Self { kind, stage })
        };
        parse().ok_or_else(|| BadTaskState { given: text.to_owned() })
    }
}

impl TryFrom<String> for TaskState {
    type Error = BadTaskState;
    fn try_from(text: String) -> Result<Self, BadTaskState> {
        text.parse()
    }
}

impl From<TaskState> for String {
    fn from(state: TaskState) -> Self {
        state.to_string()
    }
}

/// Whether a backup carries everything or what changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BackupType {
    /// Everything that is not zero.
    Full,
    /// What changed since the backup before it.
    Incremental,
}

impl fmt::Display for BackupType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Full => "full",
            Self::Incremental => "incremental",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_round_trip() {
        for kind in TaskKind::ALL {
            for stage in TaskStage::ALL {
                let state = TaskState { kind, stage };
                assert_eq!(state.to_string().parse(), Ok(state));
            }
        }
        for bad in ["", "Backup", "Backup-", "backup-Active", "Backup-Active-", "Done-Backup"] {
            assert!(bad.parse::<TaskState>().is_err(), "{bad}");
        }
    }
}
