//! Tasks: backups, restores and deletes that run in the background.

use crate::{
    ApiError, CredentialName, ErrorCode, Labels, ObjectName, VolumeId, VolumeName, costs::Money,
    quiesce::QuiesceReport, roles::Role, text::as_text,
};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// Reply to requests that start a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskStarted {
    /// Task.
    pub task_id: Uuid,
}

/// Query of `GET /v1/tasks`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListTasks {
    /// Only tasks with this id prefix.
    pub id_prefix: Option<String>,
}

/// Query of `GET /v1/tasks/{task}`: a long poll.
///
/// The reply is sent when the task's version exceeds `since_version`, at the latest after `wait_millis`;
/// without both it is sent at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WaitTask {
    /// Maximum wait, in milliseconds, up to [`crate::MAX_WAIT_MILLIS`].
    pub wait_millis: Option<u64>,
    /// Known version.
    pub since_version: Option<u64>,
}

/// Task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// Id.
    pub task_id: Uuid,
    /// Kind.
    #[serde(rename = "type")]
    pub kind: TaskKind,
    /// Name given by the caller; only for backups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<ObjectName>,
    /// Cloud snapshot that it makes, restores or deletes; `None` while undecided.
    pub cloud_snapshot_id: Option<String>,
    /// Group snapshot of a group backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_id: Option<Uuid>,
    /// Volume that is backed up or restored; `None` for a delete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_id: Option<VolumeId>,
    /// Name of the volume at the start of the task; `None` for cloud snapshots of other hosts and of deleted
    /// volumes.
    pub volume_name: Option<VolumeName>,
    /// State: `Backup-Active`, `Restore-Done`, …
    pub state: TaskState,
    /// Host that runs it.
    pub node: String,
    /// Credential; `None` of a scrub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential_id: Option<Uuid>,
    /// Name of the credential; `None` if deleted.
    pub credential_name: Option<CredentialName>,
    /// Phase: `planning`, `data`, `index`, `commit`, `done`, or `waiting for` and a secret reference.
    pub phase: String,
    /// Total bytes; 0 while unknown.
    pub total_bytes: u64,
    /// Processed bytes.
    pub processed_bytes: u64,
    /// Bytes sent to the store.
    pub uploaded_bytes: u64,
    /// Bytes received from the store.
    pub downloaded_bytes: u64,
    /// Bytes of data and zero blocks that the backup contains.
    pub dirty_bytes: u64,
    /// Store requests.
    pub requests: Requests,
    /// Stall time of the freeze, in microseconds, for a backup.
    pub freeze_stall_micros: Option<u64>,
    /// Quiesce report of a backup; `None` without steps. Commands and their output are visible to admins
    /// only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quiesce: Option<QuiesceReport>,
    /// Caller, schedule or daemon that started it.
    pub owner: TaskOwner,
    /// Time of the request.
    pub started_at: Timestamp,
    /// End time.
    pub completed_at: Option<Timestamp>,
    /// Seconds from start to end, or to now.
    pub elapsed_seconds: f64,
    /// Full or incremental, for a backup, once decided.
    pub backup_type: Option<BackupType>,
    /// Error of a failed task.
    pub error: Option<ApiError>,
    /// True if it can be resumed.
    #[serde(default)]
    pub resumable: bool,
    /// Labels that an in-place restore sets when it is done; `None` for other tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
    /// Findings of a verification, or of a restore that skips damage.
    pub findings: Option<Findings>,
    /// Note, such as the reason of a full backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Limits of its own.
    #[serde(default, skip_serializing_if = "TaskLimits::is_unlimited")]
    pub limits: TaskLimits,
    /// Number of continuations after daemon restarts.
    pub resumed: u64,
    /// Version, incremented by each change, for long polls.
    pub version: u64,
}

/// Originator of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "kind")]
pub enum TaskOwner {
    /// The daemon itself: retention, background verification, a hydration after a restart.
    Daemon,
    /// Schedule.
    Schedule {
        /// Id.
        schedule_id: Uuid,
    },
    /// A caller of the control API.
    Caller {
        /// Name of its socket, or the name in its certificate.
        name: String,
        /// Role at the start of the task.
        role: Role,
        /// User id, for a Unix socket.
        #[serde(skip_serializing_if = "Option::is_none")]
        uid: Option<u32>,
    },
}

impl fmt::Display for TaskOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Daemon => f.write_str("daemon"),
            Self::Schedule { schedule_id } => write!(f, "schedule {schedule_id}"),
            Self::Caller { name, role, uid: Some(uid) } => write!(f, "{name} (uid {uid}, {role})"),
            Self::Caller { name, role, uid: None } => write!(f, "{name} ({role})"),
        }
    }
}

/// Body of `POST /v1/tasks/{task}/stop`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StopTask {
    /// Discard the checkpoint, also of a task that was stopped or failed before.
    pub discard: bool,
}

/// Limits of a task; body of `POST /v1/tasks/{task}/limit`. A task that would exceed a maximum ends with
/// [`ErrorCode::BudgetExhausted`](crate::ErrorCode), and is resumed with a higher one. All runs of the task
/// count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaskLimits {
    /// Upload limit, in bytes per second; `None` is unlimited.
    pub limit_upload_bytes_per_second: Option<u64>,
    /// Download limit, in bytes per second; `None` is unlimited.
    pub limit_download_bytes_per_second: Option<u64>,
    /// Maximum number of store requests, with repeated ones; `None` is unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u64>,
    /// Maximum number of bytes received from the store; `None` is unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_egress_bytes: Option<u64>,
    /// Maximum price of requests and egress, by the price table of the location; `None` is unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cost: Option<Money>,
}

impl TaskLimits {
    /// No limits.
    pub const NONE: Self = Self {
        limit_upload_bytes_per_second: None,
        limit_download_bytes_per_second: None,
        max_requests: None,
        max_egress_bytes: None,
        max_cost: None,
    };

    /// Returns true with a bandwidth limit.
    pub fn has_bandwidth(&self) -> bool {
        self.limit_upload_bytes_per_second.is_some() || self.limit_download_bytes_per_second.is_some()
    }

    /// Returns true without a limit.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

pub(crate) fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Findings of a verification, a scrub, a repair, or a restore that skips damage. Lists are truncated,
/// counts complete.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Findings {
    /// Verified cloud snapshots.
    pub snapshots: u64,
    /// Damaged cloud snapshots.
    pub damaged_snapshots: Vec<String>,
    /// Checked objects, found or not.
    pub objects: u64,
    /// Restored bytes of blocks.
    pub block_bytes: u64,
    /// Bytes of blocks compared with a volume of this host, or with recorded checksums.
    pub compared_bytes: u64,
    /// Damaged bytes of volumes that a scrub repaired, or bytes of cloud snapshots that a repair can store or
    /// has stored again.
    #[serde(skip_serializing_if = "is_zero")]
    pub repaired_bytes: u64,
    /// Damage.
    pub damage: Vec<DamageFinding>,
    /// Number of damaged parts, including unlisted ones.
    pub damage_total: u64,
}

/// Damaged part of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DamageFinding {
    /// Object.
    pub object: String,
    /// Offset in the object, in bytes.
    pub offset_bytes: u64,
    /// Description.
    pub cause: String,
    /// Affected cloud snapshots.
    pub affects: Vec<AffectedCloudsnap>,
    /// Files with the damaged part, by path in the volume, for damage in ext2, ext3 and ext4 that a scrub
    /// finds or a repair has no source for; below `/pN` in partition N. A search is bounded: there may be
    /// others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<crate::browse::FilePath>,
}

/// Loss of a cloud snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AffectedCloudsnap {
    /// Cloud snapshot.
    pub cloud_snapshot_id: String,
    /// Unreadable bytes; 0 if unknown.
    pub lost_bytes: u64,
    /// First unreadable ranges.
    pub ranges: Vec<ByteRange>,
}

/// Byte range of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ByteRange {
    /// Start offset, in bytes.
    pub offset_bytes: u64,
    /// Length, in bytes.
    pub len_bytes: u64,
}

/// Body of `POST /v1/scrub`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StartScrub {
    /// Volume, by name or id; all volumes by default.
    pub volume: Option<crate::VolumeRef>,
    /// Maximum number of bytes to read; the next scrub with a budget continues there. All data by default.
    pub budget_bytes: Option<u64>,
    /// Repair damaged blocks from cloud snapshots.
    pub repair: bool,
    /// Limit of reads, in bytes per second.
    pub limit_bytes_per_second: Option<u64>,
}

/// Store requests by kind; each attempt counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Requests {
    /// PUT requests, including parts of multipart uploads.
    pub put: u64,
    /// GET requests, including ranged ones.
    pub get: u64,
    /// LIST requests, by page.
    pub list: u64,
    /// DELETE requests.
    pub delete: u64,
    /// HEAD requests.
    pub head: u64,
}

/// Declares an enum with the words of its values.
macro_rules! words {
    ($(#[$of_type:meta])* $name:ident { $($(#[$doc:meta])* $value:ident = $word:literal,)+ }) => {
        $(#[$of_type])*
        pub enum $name {
            $($(#[$doc])* $value,)+
        }

        impl $name {
            /// All values.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$value),+];

            /// Returns the word of the API, the database, messages and metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$value => $word,)+ }
            }

            /// Returns the part of a [`TaskState`].
            pub const fn title(self) -> &'static str {
                match self { $(Self::$value => stringify!($value),)+ }
            }
        }
    };
}

words! {
    /// Kind of a task.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "lowercase")]
    TaskKind {
        /// Creates a cloud snapshot of a volume.
        Backup = "backup",
        /// Restores a cloud snapshot to a volume.
        Restore = "restore",
        /// Deletes a cloud snapshot.
        Delete = "delete",
        /// Verifies cloud snapshots.
        Verify = "verify",
        /// Tests a restore of a cloud snapshot.
        Drill = "drill",
        /// Scrubs the local data of volumes.
        Scrub = "scrub",
        /// Repairs a damaged cloud snapshot.
        Repair = "repair",
    }
}

impl fmt::Display for TaskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

words! {
    /// Stage of a task.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    TaskStage {
        /// Waiting.
        Pending = "pending",
        /// Running.
        Active = "active",
        /// Completed.
        Done = "done",
        /// Failed.
        Failed = "failed",
        /// Stopped; it can be resumed.
        Stopped = "stopped",
    }
}

impl TaskStage {
    /// Returns true if the task has ended.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Stopped)
    }
}

/// Kind and stage of a task, such as `Backup-Active`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TaskState {
    /// Kind.
    pub kind: TaskKind,
    /// Stage.
    pub stage: TaskStage,
}

/// Text that is not a task state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not the state of a task: expected such as Backup-Active")]
pub struct BadTaskState {
    /// Given text.
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

as_text!(TaskState);

/// Returns the commands that end a stopped or failed task with a checkpoint.
pub fn ways_to_end(task: Uuid) -> String {
    format!("`blockctl cloudsnap resume --name {task}` resumes it, {}", way_to_abandon(task))
}

fn way_to_abandon(task: Uuid) -> String {
    format!("`blockctl cloudsnap stop --name {task} --discard` abandons it")
}

impl Task {
    /// Returns true if the task ended at its budget: without a higher one, it would do so at once again.
    pub fn is_at_budget(&self) -> bool {
        self.error.as_ref().is_some_and(|error| error.code == ErrorCode::BudgetExhausted)
    }

    /// Returns the commands that end the task, which has a checkpoint.
    pub fn ways_to_end(&self) -> String {
        let id = self.task_id;
        if !self.is_at_budget() {
            return ways_to_end(id);
        }
        let resume = format!("blockctl cloudsnap resume --name {id} --max-requests N");
        format!(
            "`{resume}` (or --max-egress, --max-cost) continues with a higher limit, {}",
            way_to_abandon(id)
        )
    }
}

/// Type of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BackupType {
    /// All nonzero data.
    Full,
    /// Changes since the previous backup.
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
