//! Schedules of backups and drills, schedule policies and runs.

mod policies;
mod run_state;

pub use policies::*;
pub use run_state::RunState;

use crate::{
    Compression, CredentialName, CredentialRef, GroupName, LabelSelector, Labels, List, ObjectName, RuleName,
    SnapshotId, SnapshotName, VolumeId, VolumeName, VolumeRef, drills::DrillOptions,
};
use blockd_extent::CloudSnapshotId;
use blockd_schedule::{Jitter, Recurrence, Retention, Verdict};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

/// Maximum number of rules of a schedule or policy.
pub const MAX_RULES: usize = 16;
/// Maximum number of credentials of a schedule.
pub const MAX_TARGETS: usize = 8;
/// Maximum number of runs in a reply.
pub const MAX_HISTORY: u32 = 10_000;

/// Recurrence of runs and retention of their backups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Time.
    pub when: Recurrence,
    /// Retention of this rule's backups; by default they count with the schedule's others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retain: Option<Retention>,
}

/// Volumes of a schedule: exactly one is set. All but a single volume are resolved at each run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// One volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeRef>,
    /// Volumes of a group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    /// Volumes with all these labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<LabelSelector>,
    /// All volumes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

/// Volumes of a schedule in replies: exactly one of volume, group, label and all is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SelectedVolumes {
    /// One volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_id: Option<VolumeId>,
    /// Its name; `None` if it is deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_name: Option<VolumeName>,
    /// Volumes of a group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    /// Volumes with all these labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<LabelSelector>,
    /// All volumes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

/// Priority of waiting runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    /// After all others.
    Low,
    /// Normal.
    #[default]
    Normal,
    /// Before all others.
    High,
}

impl Priority {
    /// All values.
    pub const ALL: [Self; 3] = [Self::Low, Self::Normal, Self::High];

    /// Returns the name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Retention at one location.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetainAt {
    /// Credential of the schedule.
    pub credential: CredentialRef,
    /// Retention there, overriding the schedule and its rules.
    pub retain: Retention,
}

/// Retention of the backups under one credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CredentialRetention {
    /// Credential of the schedule.
    pub credential_id: Uuid,
    /// Its name.
    pub credential_name: Option<CredentialName>,
    /// Retention there.
    pub retain: Retention,
}

/// Body of `POST /v1/schedules`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateSchedule {
    /// Unique name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<ObjectName>,
    /// Volumes.
    pub selector: Selector,
    /// Credentials; optional if there is one. With `local` and without credentials, only local snapshots are
    /// made.
    #[serde(default)]
    pub credentials: Vec<CredentialRef>,
    /// Retention of local snapshots of the same freezes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<Retention>,
    /// Retention of single credentials.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retain_at: Vec<RetainAt>,
    /// Rules in addition to those of the policy.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// Policy whose current rules apply too.
    pub policy_name: Option<PolicyName>,
    /// Retention of backups whose rule has none.
    #[serde(default)]
    pub retain: Retention,
    /// Make full backups only.
    #[serde(default)]
    pub full: bool,
    /// Store all data again in each full backup:
    /// [`BackupOptions::reupload`](crate::cloudsnaps::BackupOptions::reupload).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reupload: bool,
    /// Compression of the backups; by default that of each location.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// Maximum start delay of a run; by default a tenth of the interval of each rule, at most 30 minutes, and
    /// none for cron and calendar expressions and for schedules of local snapshots only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter_seconds: Option<Jitter>,
    /// Priority of runs.
    #[serde(default)]
    pub priority: Priority,
    /// Rule used instead of those of the volumes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule_name: Option<RuleName>,
    /// Labels of the backups: [`BackupOptions::labels`](crate::cloudsnaps::BackupOptions::labels).
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Drill the newest cloud snapshots instead of making backups; without retention and rules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drill: Option<DrillOptions>,
    /// Paused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
}

/// Body of `PATCH /v1/schedules/{schedule}`; omitted fields stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateSchedule {
    /// New rules. Their past runs are not made up for.
    pub rules: Option<Vec<Rule>>,
    /// New policy.
    pub policy_name: Option<PolicyName>,
    /// New retention.
    pub retain: Option<Retention>,
    /// New retention of local snapshots; `null` makes none and keeps existing ones.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::given")]
    pub local: Option<Option<Retention>>,
    /// New retention of single credentials; replaces all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retain_at: Option<Vec<RetainAt>>,
    /// Make full backups only, or not.
    pub full: Option<bool>,
    /// Store all data again in each full backup, or not; without full backups, it is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reupload: Option<bool>,
    /// New compression of the backups; `null` for that of each location.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::given")]
    pub compression: Option<Option<Compression>>,
    /// New maximum start delay; `null` for the default.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::given")]
    pub jitter_seconds: Option<Option<Jitter>>,
    /// New priority.
    pub priority: Option<Priority>,
    /// New rule; `null` for the volumes' rules.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::given")]
    pub rule_name: Option<Option<RuleName>>,
    /// Labels of future backups; they replace all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
    /// New options of drills, for a schedule of drills.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drill: Option<DrillOptions>,
    /// Pause or resume; runs skipped while paused are not made up for.
    pub paused: Option<bool>,
}

/// Schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    /// Id.
    pub schedule_id: Uuid,
    /// Name, if any.
    pub name: Option<ObjectName>,
    /// Volumes.
    pub selector: SelectedVolumes,
    /// Credentials.
    pub credential_ids: Vec<Uuid>,
    /// Their names, in the same order.
    #[serde(default)]
    pub credential_names: Vec<CredentialName>,
    /// Retention of local snapshots; `None` makes none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<Retention>,
    /// Retention of single credentials.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retain_at: Vec<CredentialRetention>,
    /// State of each copy: the local one first, then one for each credential.
    #[serde(default)]
    pub copies: Vec<CopyState>,
    /// Rules without those of the policy.
    pub rules: Vec<Rule>,
    /// Policy.
    pub policy_name: Option<PolicyName>,
    /// Retention of backups whose rule has none.
    pub retain: Retention,
    /// Make full backups only.
    pub full: bool,
    /// Store all data again in each full backup.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reupload: bool,
    /// Compression of the backups; `None` for that of each location.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// Maximum start delay of a run; `None` for the default of each rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter_seconds: Option<Jitter>,
    /// Priority of runs.
    pub priority: Priority,
    /// Rule used instead of those of the volumes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule_name: Option<RuleName>,
    /// Labels of the backups.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Options of a schedule of drills, which makes no backups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drill: Option<DrillOptions>,
    /// Paused.
    pub paused: bool,
    /// Creation time.
    pub created_at: Timestamp,
    /// Time of the next run; `None` if paused or finished.
    pub next_run_at: Option<Timestamp>,
    /// Time of the last started run.
    pub last_run_at: Option<Timestamp>,
    /// Time since which the next run is overdue by minutes: the scheduler is blocked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overdue_at: Option<Timestamp>,
    /// No volume is selected: nothing is protected. Never set for a schedule of all volumes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub without_volume: bool,
    /// Warnings, only in replies to creation and change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Times of the runs, as text.
    pub schedule: String,
}

/// Reference to a schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleSummary {
    /// Id.
    pub schedule_id: Uuid,
    /// Name, if any.
    pub schedule_name: Option<ObjectName>,
}

impl fmt::Display for ScheduleSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.schedule_name {
            Some(name) => write!(f, "{name}"),
            None => write!(f, "{}", self.schedule_id),
        }
    }
}

/// State of one copy of a schedule, over all its volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CopyState {
    /// Credential; `None` for local snapshots.
    pub credential_id: Option<Uuid>,
    /// Its name.
    pub credential_name: Option<CredentialName>,
    /// Retention, except for rules with their own.
    pub retain: Retention,
    /// Number of kept backups.
    pub kept: u64,
    /// Point in time of the newest.
    pub newest_at: Option<Timestamp>,
    /// State of the last run.
    pub last_state: Option<RunState>,
}

/// Reply to `GET /v1/schedules` and `GET /v1/drill-schedules`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleList {
    /// Schedules, oldest first.
    #[serde(flatten)]
    pub list: List<Schedule>,
    /// Schedules that this host cannot read. They make no backups, and none of their backups is deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<UnreadableSchedule>,
}

/// Schedule that the daemon cannot read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UnreadableSchedule {
    /// Id, for deletion.
    pub schedule_id: String,
    /// Description of the violation.
    pub cause: String,
}

/// Run of a schedule for one volume and credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// Sequence number, ascending.
    pub run_id: u64,
    /// Schedule.
    pub schedule_id: Uuid,
    /// Name of the schedule, if any, also of a deleted one.
    pub schedule_name: Option<ObjectName>,
    /// Rule of the run; `None` for a manual run.
    pub when: Option<Recurrence>,
    /// Scheduled time.
    pub planned_at: Timestamp,
    /// Start time.
    pub started_at: Timestamp,
    /// Number of missed runs that this one makes up for.
    pub missed: u32,
    /// Volume; `None` if the schedule selected none.
    pub volume_id: Option<VolumeId>,
    /// Name.
    pub volume_name: Option<VolumeName>,
    /// Credential; `None` for a local snapshot.
    pub credential_id: Option<Uuid>,
    /// Its name; `None` if it was deleted.
    pub credential_name: Option<CredentialName>,
    /// True for a local snapshot.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub local: bool,
    /// Local snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<SnapshotId>,
    /// State.
    pub state: RunState,
    /// Task, once started.
    pub task_id: Option<Uuid>,
    /// Cloud snapshot.
    pub cloud_snapshot_id: Option<CloudSnapshotId>,
    /// Time at which its failed backup resumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Timestamp>,
    /// Number of times that its failed backup resumed.
    #[serde(default, skip_serializing_if = "crate::tasks::is_zero")]
    pub retries: u64,
    /// End time.
    pub completed_at: Option<Timestamp>,
    /// Reason of a failed, skipped, retrying or waiting run; for a completed one, failures of its hooks.
    pub reason: Option<String>,
}

/// Body of `POST /v1/schedules/{schedule}/run`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunSchedule {
    /// Only these of its volumes; all by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_ids: Option<Vec<VolumeId>>,
}

/// Query of `GET /v1/schedule-runs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListRuns {
    /// Only this schedule.
    pub schedule_id: Option<Uuid>,
    /// Only schedules with this id prefix, including deleted ones.
    pub schedule_id_prefix: Option<String>,
    /// Only this volume.
    pub volume: Option<VolumeRef>,
    /// Maximum number, the newest, at most [`MAX_HISTORY`]; 100 by default.
    pub max: Option<u32>,
}

/// Retention verdict on a cloud or local snapshot of a schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JudgedSnapshot {
    /// Run that made it.
    pub run_id: u64,
    /// Volume.
    pub volume_id: Option<VolumeId>,
    /// Its name.
    pub volume_name: Option<VolumeName>,
    /// True for a local snapshot, false for a cloud snapshot.
    pub local: bool,
    /// Cloud snapshot.
    pub cloud_snapshot_id: Option<CloudSnapshotId>,
    /// Credential of the cloud snapshot.
    pub credential_id: Option<Uuid>,
    /// Its name; `None` if it was deleted.
    pub credential_name: Option<CredentialName>,
    /// Local snapshot.
    pub snapshot_id: Option<SnapshotId>,
    /// Its name; `None` if it was deleted.
    pub snapshot_name: Option<SnapshotName>,
    /// Point in time.
    pub created_at: Timestamp,
    /// Verdict and reason.
    pub verdict: Verdict,
    /// Former rule that made it, whose retention still applies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub former_rule: Option<String>,
}
