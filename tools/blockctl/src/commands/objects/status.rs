//! Contents and states of objects that are written from resources.

use crate::objects::{Kind, ReclaimPolicy};
use blockd_api::{
    CredentialName, SnapshotId, VolumeId, VolumeName,
    cloudsnaps::{CloudSnapshotId, CloudsnapStatus, LastProof},
    events::Severity,
    schedules::RunState,
    snapshots::SnapshotState,
    tasks::BackupType,
    volumes::VolumeState,
};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

/// Names, or the only one.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Names {
    /// The only name.
    One(String),
    /// None or several.
    Several(Vec<String>),
}

/// State of a backup location.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocationStatus {
    pub credential_id: Uuid,
    pub created_at: Timestamp,
    /// Kind of the keys or identity.
    pub authentication: Option<String>,
    pub conditional_put: bool,
    pub write_bytes_per_second: Option<u64>,
}

/// State of a policy.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// Times of its rules.
    pub schedule: String,
    /// Retention of its rules.
    pub retain: Option<String>,
}

/// State of a rule.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RuleStatus {
    /// Schedules that use it.
    pub schedule_ids: Vec<Uuid>,
    /// Problem that prevents its use.
    pub problem: Option<String>,
    /// Volumes and groups.
    pub assigned_to: Vec<String>,
}

/// Local snapshot of one or several volumes.
#[derive(Serialize, JsonSchema)]
pub struct SnapshotSpec {
    pub volume: Names,
}

/// State of a local snapshot.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotStatus {
    pub created_at: Option<Timestamp>,
    pub volume_count: usize,
    pub volumes: Vec<SnapshotMember>,
}

/// Local snapshot of a volume.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotMember {
    pub volume_name: VolumeName,
    pub snapshot_id: SnapshotId,
    pub state: SnapshotState,
}

/// Backup of one or several volumes.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupSpec {
    /// Absent if it was deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_location: Option<String>,
    /// Volumes at the time of the backup.
    pub volume: Names,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reclaim_policy: Option<ReclaimPolicy>,
}

/// Restore into one or several volumes.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreSpec {
    /// Absent if the daemon has forgotten the task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_location: Option<CredentialName>,
    pub cloud_snapshot_id: Names,
    pub destination_volume: Names,
}

/// State of a backup or restore.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TransferStatus {
    /// `Initial`, `Volumes` or `Final`.
    pub stage: String,
    /// State in the words of custom resources, such as `Successful`.
    pub status: String,
    pub created_at: Timestamp,
    pub elapsed_seconds: f64,
    /// Cluster of the host that made it; `None` for this host.
    pub cluster_id: Option<Uuid>,
    /// Cloud snapshot, of a single volume.
    pub cloud_snapshot_id: Option<String>,
    /// Cause of a failure.
    pub reason: Option<String>,
    pub stored_bytes: u64,
    pub done_count: usize,
    pub volume_count: usize,
    pub volumes: Vec<TransferMember>,
    pub conditions: Vec<Condition>,
}

/// Backup or restore of a volume: stored, or its task.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum TransferMember {
    /// Stored backup.
    #[serde(rename_all = "camelCase")]
    Stored {
        volume_name: String,
        cloud_snapshot_id: CloudSnapshotId,
        status: CloudsnapStatus,
        created_at: Timestamp,
        backup_type: BackupType,
        size_bytes: u64,
        stored_bytes: u64,
        last_proof: Option<LastProof>,
    },
    /// Task.
    #[serde(rename_all = "camelCase")]
    Task {
        volume_name: Option<VolumeName>,
        /// `None` for a restore whose task the daemon has forgotten.
        task_id: Option<Uuid>,
        status: String,
        started_at: Timestamp,
        completed_at: Option<Timestamp>,
        cloud_snapshot_id: Option<String>,
        reason: Option<String>,
    },
}

impl TransferMember {
    /// Returns the id of the cloud snapshot.
    pub fn cloud_snapshot_id(&self) -> Option<String> {
        match self {
            Self::Stored { cloud_snapshot_id, .. } => Some(cloud_snapshot_id.to_string()),
            Self::Task { cloud_snapshot_id, .. } => cloud_snapshot_id.clone(),
        }
    }
}

/// State of a schedule.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleStatus {
    pub schedule_id: Uuid,
    pub created_at: Timestamp,
    pub next_run_at: Option<Timestamp>,
    pub last_run_at: Option<Timestamp>,
    /// `active` or `paused`.
    pub state: String,
    /// Volumes, in words.
    pub selected: String,
    /// Backup locations.
    pub credential_names: Vec<CredentialName>,
    /// Times, in words.
    pub schedule: String,
    /// Retention of backups, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<String>,
    pub conditions: Vec<Condition>,
}

/// One or several volumes cloned from snapshots.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CloneSpec {
    pub source_volume: Names,
    pub snapshot: Names,
    pub destination_volume: Names,
}

/// State of cloned volumes.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CloneStatus {
    pub stage: String,
    pub status: String,
    pub created_at: Option<Timestamp>,
    pub volumes: Vec<CloneMember>,
}

/// Cloned volume.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CloneMember {
    pub volume_name: VolumeName,
    pub volume_id: VolumeId,
    /// Volume and snapshot that it was cloned from.
    pub origin: String,
    /// State of the volume.
    pub state: VolumeState,
}

/// Condition of an object.
#[derive(Default, Serialize, JsonSchema)]
pub struct Condition {
    /// `Complete`, `Succeeded`, `Active` or `Covering`.
    #[serde(rename = "type")]
    pub kind: String,
    pub status: bool,
    /// State in the words of custom resources.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Cause of a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Run of a described schedule.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunSummary {
    pub started_at: Timestamp,
    pub volume_name: Option<VolumeName>,
    pub state: RunState,
    pub cloud_snapshot_id: Option<CloudSnapshotId>,
    pub reason: Option<String>,
}

/// Event of a described object.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EventSummary {
    pub occurred_at: Timestamp,
    pub severity: Severity,
    pub kind: String,
    pub message: String,
}

/// Difference of a field.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct FieldChange {
    /// Path of the field.
    pub path: String,
    /// Current value.
    pub is: Option<Value>,
    /// Wanted value.
    pub should: Option<Value>,
}

/// Difference between an object of a file and its resource.
#[derive(Serialize, JsonSchema)]
pub struct ObjectDifference {
    pub kind: Kind,
    pub name: String,
    /// Result that `apply` would have.
    pub result: String,
    /// Differing fields.
    pub changes: Vec<FieldChange>,
    /// Reason why it cannot be applied.
    pub reason: Option<String>,
    /// Warnings about fields of the file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}
