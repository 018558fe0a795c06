//! Cloud snapshots: back up, list, inspect, restore, delete.

mod listing;

pub use listing::*;

use crate::{
    ApiError, Compression, CredentialRef, GroupName, GroupSnapshotRef, LabelSelector, Labels, List,
    ObjectName, SnapshotId, SnapshotName, SnapshotRef, VolumeId, VolumeName, VolumeRef, costs::CostEstimate,
    quiesce::HookOptions, schedules::ScheduleSummary, tasks::TaskLimits,
};
pub use blockd_extent::{BadCloudSnapshotId, CloudSnapshotId};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

impl From<BadCloudSnapshotId> for ApiError {
    fn from(error: BadCloudSnapshotId) -> Self {
        Self::new(crate::ErrorCode::InvalidRequest, error.to_string())
    }
}

/// Options of a backup that its task stores.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupOptions {
    /// Force a full backup, which references what the location stores.
    #[serde(default)]
    pub full: bool,
    /// Store all data again, with `full`: a new copy without references.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reupload: bool,
    /// Name: [`Cloudsnap::name`] and [`crate::tasks::Task::name`] of the backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<ObjectName>,
    /// Labels of the backup, beside those of its volume: [`Cloudsnap::backup_labels`].
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Pin the backup: see [`MarkCloudsnap::pinned`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// Expiry date of the backup: see [`MarkCloudsnap::expires_at`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// Compression; by default that of the schedule or location.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
}

/// Body of `POST /v1/cloudsnaps/backup`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartBackup {
    /// Volume.
    pub volume: VolumeRef,
    /// Existing local snapshot of the volume to back up; by default a new one is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotRef>,
    /// Keep the new local snapshot after the backup, under the name of the backup or
    /// [`SnapshotName::from_time`](crate::SnapshotName::from_time).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_local: bool,
    /// Credentials; optional if there is one. Several get the same point in time, read once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub credentials: Vec<CredentialRef>,
    /// Bandwidth limits of each task.
    #[serde(default)]
    pub limits: TaskLimits,
    /// Options of each backup.
    #[serde(flatten)]
    pub options: BackupOptions,
    /// Hooks around the freeze.
    #[serde(flatten)]
    pub hooks: HookOptions,
}

impl StartBackup {
    /// Creates a request with defaults: the only credential, scheduled backup type, no limits.
    pub fn of(volume: VolumeRef) -> Self {
        Self {
            volume,
            snapshot: None,
            keep_local: false,
            credentials: Vec::new(),
            limits: TaskLimits::default(),
            options: BackupOptions::default(),
            hooks: HookOptions::default(),
        }
    }
}

/// Body of `POST /v1/cloudsnaps/backup-group`. Exactly one selector of volumes must be given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartGroupBackup {
    /// Volumes of this group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    /// Volumes with all these labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<LabelSelector>,
    /// Volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeRef>,
    /// Volumes of this local group snapshot, which is backed up; otherwise a new one is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_group: Option<GroupSnapshotRef>,
    /// Keep the new local snapshots after the backup, as for one volume.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_local: bool,
    /// Credentials; optional if there is one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub credentials: Vec<CredentialRef>,
    /// Bandwidth limits of each task.
    #[serde(default)]
    pub limits: TaskLimits,
    /// Options of each backup.
    #[serde(flatten)]
    pub options: BackupOptions,
    /// Hooks around the freeze.
    #[serde(flatten)]
    pub hooks: HookOptions,
}

/// Reply to `POST /v1/cloudsnaps/backup-group`. All volumes are frozen together, or no backup is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GroupBackupStarted {
    /// Id of the group backup.
    pub group_id: Uuid,
    /// Volumes by name.
    #[serde(flatten)]
    pub list: List<MemberStarted>,
}

/// Backups of one member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberStarted {
    /// Volume.
    pub volume_id: VolumeId,
    /// Name.
    pub volume_name: VolumeName,
    /// Tasks, one for each credential, in the requested order.
    pub task_ids: Vec<Uuid>,
}

/// Body of `POST /v1/cloudsnaps/restore`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartRestore {
    /// Cloud snapshot.
    pub cloud_snapshot_id: CloudSnapshotId,
    /// Name of the new volume; generated by default.
    pub volume_name: Option<VolumeName>,
    /// Skip damaged extents: they read as zeroes, and the task lists them.
    #[serde(default)]
    pub skip_damaged: bool,
    /// Credential; by default any that has it.
    pub credential: Option<CredentialRef>,
    /// Bandwidth limits.
    #[serde(default)]
    pub limits: TaskLimits,
    /// Labels of the new volume; by default those of the original, including its schedules by label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
}

impl StartRestore {
    /// Creates a request with defaults: any credential, generated name, no limits.
    pub fn of(cloud_snapshot_id: CloudSnapshotId) -> Self {
        Self {
            cloud_snapshot_id,
            volume_name: None,
            skip_damaged: false,
            credential: None,
            limits: TaskLimits::default(),
            labels: None,
        }
    }
}

/// Reply to `POST /v1/cloudsnaps/restore`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreStarted {
    /// Task.
    pub task_id: Uuid,
    /// Id of the new volume.
    pub volume_id: VolumeId,
    /// Name of the new volume.
    pub volume_name: VolumeName,
    /// Local snapshot that keeps the previous content after an in-place restore.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_snapshot_id: Option<SnapshotId>,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_snapshot_name: Option<SnapshotName>,
    /// Schedules that include the new volume by its labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schedules: Vec<ScheduleSummary>,
}

/// Body of `POST /v1/cloudsnaps/delete`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartDelete {
    /// Cloud snapshot.
    pub cloud_snapshot_id: CloudSnapshotId,
    /// Credential; optional if only one has it.
    pub credential: Option<CredentialRef>,
    /// Delete it although it is pinned, another host made or leases it, or its manifest is damaged (then only
    /// its own data is deleted). An expiry date does not prevent a manual deletion.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// Reply to `POST /v1/cloudsnaps/delete`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeleteStarted {
    /// Task.
    pub task_id: Uuid,
    /// Leases of other hosts that the forced deletion overrides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl StartDelete {
    /// Creates a request with defaults: the only credential that has it, not forced.
    pub fn of(cloud_snapshot_id: CloudSnapshotId) -> Self {
        Self { cloud_snapshot_id, credential: None, force: false }
    }

    /// Sets the credential.
    #[must_use]
    pub fn under(self, credential: Uuid) -> Self {
        Self { credential: Some(CredentialRef::Id(credential)), ..self }
    }
}

/// Body of `POST /v1/cloudsnaps/mark`: pin and expiry date. Omitted fields stay. This host stores them; the
/// retention of other hosts does not know them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MarkCloudsnap {
    /// Cloud snapshot.
    pub cloud_snapshot_id: CloudSnapshotId,
    /// Credential; all are tried by default.
    pub credential: Option<CredentialRef>,
    /// Pin: no rule or date deletes it, only a forced deletion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pinned: Option<bool>,
    /// Expiry date: kept until then, deleted afterwards independent of rules; but never the last restorable
    /// one of its volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// Remove the expiry date.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub never_expires: bool,
    /// Set the expiry date although another host made it. Pins and the removal of a date need no force.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// Reply to `POST /v1/cloudsnaps/mark`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CloudsnapMark {
    /// Cloud snapshot.
    pub cloud_snapshot_id: CloudSnapshotId,
    /// Pin.
    pub pinned: bool,
    /// Expiry date.
    pub expires_at: Option<Timestamp>,
}

/// Depth of a verification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum VerifyDepth {
    /// Manifests can be read, and their objects exist with the right lengths.
    Quick,
    /// All stored data can be read and decrypted.
    #[default]
    Full,
    /// All content is restored to memory and compared with unchanged volume data and with the last recorded
    /// checksums.
    Deep,
}

impl fmt::Display for VerifyDepth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Quick => "quick",
            Self::Full => "full",
            Self::Deep => "deep",
        })
    }
}

/// Body of `POST /v1/cloudsnaps/verify`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StartVerify {
    /// Cloud snapshot; by default all of the credential.
    pub cloud_snapshot_id: Option<CloudSnapshotId>,
    /// Depth.
    pub depth: VerifyDepth,
    /// Credential; optional if there is one.
    pub credential: Option<CredentialRef>,
}

/// Body of `POST /v1/cloudsnaps/repair`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartRepair {
    /// Damaged cloud snapshot. Later ones that need its damaged blocks are repaired, too.
    pub cloud_snapshot_id: CloudSnapshotId,
    /// Credential; all are tried by default.
    pub credential: Option<CredentialRef>,
    /// Credential of the only location to take lost blocks from; by default the volume and all locations.
    #[serde(default)]
    pub from: Option<CredentialRef>,
    /// Report what can be repaired without storing anything.
    #[serde(default)]
    pub dry_run: bool,
}

/// Body of `POST /v1/cloudsnaps/gc`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CollectGarbage {
    /// List without deleting.
    pub dry_run: bool,
    /// Credential; optional if there is one.
    pub credential: Option<CredentialRef>,
    /// Maximum number of requests, egress and cost; a repeated collection continues. Bandwidth limits are
    /// refused.
    #[serde(skip_serializing_if = "TaskLimits::is_unlimited")]
    pub limits: TaskLimits,
}

/// Reply to `POST /v1/cloudsnaps/gc`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GarbageCollected {
    /// Credential.
    pub credential_id: Uuid,
    /// Name of the credential.
    pub credential_name: String,
    /// True if nothing was deleted by request.
    pub dry_run: bool,
    /// Orphaned objects of interrupted backups that were deleted, or would be.
    pub garbage: Vec<Leftover>,
    /// Unreferenced objects within the grace period.
    pub in_grace_period: Vec<Leftover>,
    /// Unreadable manifests, one per line; while there is one, no orphaned objects are deleted.
    pub unreadable_manifests: Vec<String>,
    /// Files or segments of unfinished uploads that were removed, or would be.
    pub unfinished_uploads: u64,
    /// Leases of lazy volumes that have expired or hold nothing and were removed, or would be.
    #[serde(default)]
    pub leases: u64,
    /// Objects deleted.
    pub objects_deleted: u64,
    /// Costs: those of the collection, or, of one that deletes nothing, those that it would have.
    pub costs: CostEstimate,
}

/// Orphaned objects of an interrupted backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Leftover {
    /// Id of the cloud snapshot that was not completed, with or without `-incr`.
    pub cloud_snapshot_id: String,
    /// Number of objects.
    pub objects: u64,
    /// Total length.
    pub len_bytes: u64,
    /// Time of the first object; `None` if the store does not report it.
    pub first_object_at: Option<Timestamp>,
    /// End of the grace period; `None` if the store does not report times.
    pub deletable_at: Option<Timestamp>,
}

#[cfg(test)]
mod tests;
