//! Cloud snapshots: back up, list, inspect, restore, delete.
//!
//! List entries have the field names of similar tools (`ID`, `SrcVolumeID`, …) for scripts; everything in
//! `Metadata` is text.

mod listing;

pub use listing::*;

use crate::{
    ApiError, CredentialRef, GroupName, LabelSelector, Labels, ObjectName, SnapshotId, VolumeId, VolumeName,
    VolumeRef, quiesce::HookOptions, tasks::TaskLimits,
};
pub use blockd_extent::{BadCloudSnapshotId, CloudSnapshotId};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
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
    /// Force a full backup.
    #[serde(default)]
    pub full: bool,
    /// Name: [`CloudsnapMetadata::snapshot_name`] and [`crate::tasks::Task::label`] of the backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<ObjectName>,
    /// Pin the backup: see [`MarkCloudsnap::pinned`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// Expiry date of the backup: see [`MarkCloudsnap::expires`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

/// Body of `POST /v1/cloudsnaps/backup`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartBackup {
    /// Volume.
    pub volume: VolumeRef,
    /// Credential; optional if there is one.
    #[serde(default)]
    pub cred_id: Option<CredentialRef>,
    /// Additional credentials: the same point in time, read once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<CredentialRef>,
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
            cred_id: None,
            also: Vec::new(),
            limits: TaskLimits::default(),
            options: BackupOptions::default(),
            hooks: HookOptions::default(),
        }
    }
}

/// Reply to `POST /v1/cloudsnaps/backup`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupStarted {
    /// Task of the first credential.
    pub task: Uuid,
    /// Tasks of the additional credentials, in the requested order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Uuid>,
}

/// Body of `POST /v1/cloudsnaps/backup-group`. Exactly one selector of volumes must be given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartGroupBackup {
    /// Volumes of this group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    /// Volumes with all these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<LabelSelector>,
    /// Volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeRef>,
    /// Credential; optional if there is one.
    #[serde(default)]
    pub cred_id: Option<CredentialRef>,
    /// Additional credentials.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<CredentialRef>,
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
    /// Id of the group snapshot.
    pub group_id: Uuid,
    /// Volumes by name.
    pub members: Vec<MemberStarted>,
}

/// Backups of one member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberStarted {
    /// Volume.
    pub volume_id: VolumeId,
    /// Name.
    pub volume: VolumeName,
    /// Tasks, one for each credential, in the requested order.
    pub tasks: Vec<Uuid>,
}

/// Body of `POST /v1/cloudsnaps/restore`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartRestore {
    /// Cloud snapshot.
    pub snap: CloudSnapshotId,
    /// Name of the new volume; generated by default.
    #[serde(default)]
    pub volume: Option<VolumeName>,
    /// Skip damaged extents: they read as zeroes, and the task lists them.
    #[serde(default)]
    pub skip_damaged: bool,
    /// Credential; by default any that has it.
    #[serde(default)]
    pub cred_id: Option<CredentialRef>,
    /// Bandwidth limits.
    #[serde(default)]
    pub limits: TaskLimits,
    /// Labels of the new volume; by default those of the original, including its schedules by label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
}

impl StartRestore {
    /// Creates a request with defaults: any credential, generated name, no limits.
    pub fn of(snap: CloudSnapshotId) -> Self {
        Self {
            snap,
            volume: None,
            skip_damaged: false,
            cred_id: None,
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
    pub task: Uuid,
    /// Id of the new volume.
    pub volume_id: VolumeId,
    /// Name of the new volume.
    pub volume: VolumeName,
    /// Local snapshot that keeps the previous content after an in-place restore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<SnapshotId>,
    /// Schedules that include the new volume by its labels, by name or id.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schedules: Vec<String>,
}

/// Body of `POST /v1/cloudsnaps/delete`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartDelete {
    /// Cloud snapshot.
    pub snap: CloudSnapshotId,
    /// Credential; optional if only one has it.
    #[serde(default)]
    pub cred_id: Option<CredentialRef>,
    /// Delete it although it is pinned or its manifest is damaged (then only its own data is deleted). An
    /// expiry date does not prevent a manual deletion.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

impl StartDelete {
    /// Creates a request with defaults: the only credential that has it, not forced.
    pub fn of(snap: CloudSnapshotId) -> Self {
        Self { snap, cred_id: None, force: false }
    }

    /// Sets the credential.
    #[must_use]
    pub fn under(self, credential: Uuid) -> Self {
        Self { cred_id: Some(CredentialRef::Id(credential)), ..self }
    }
}

/// Body of `POST /v1/cloudsnaps/mark`: pin and expiry date. Omitted fields stay. This host stores them; the
/// retention of other hosts does not know them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MarkCloudsnap {
    /// Cloud snapshot.
    pub snap: CloudSnapshotId,
    /// Credential; all are tried by default.
    #[serde(default)]
    pub cred_id: Option<CredentialRef>,
    /// Pin: no rule or date deletes it, only a forced deletion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<bool>,
    /// Expiry date: kept until then, deleted afterwards independent of rules; but never the last restorable
    /// one of its volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// Remove the expiry date.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub never_expires: bool,
}

/// Reply to `POST /v1/cloudsnaps/mark`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CloudsnapMark {
    /// Cloud snapshot.
    pub id: CloudSnapshotId,
    /// Pin.
    pub pinned: bool,
    /// Expiry date.
    pub expires: Option<Timestamp>,
}

/// Depth of a verification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum VerifyDepth {
    /// Manifests can be read, and their objects exist with the right lengths.
    Quick,
    /// All stored data can be read and decrypted.
    #[default]
    Frames,
    /// All content is restored to memory and compared with unchanged volume data and with the last recorded
    /// checksums.
    Deep,
}

/// Body of `POST /v1/cloudsnaps/verify`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartVerify {
    /// Cloud snapshot; by default all of the credential.
    #[serde(default)]
    pub snap: Option<CloudSnapshotId>,
    /// Depth.
    #[serde(default)]
    pub depth: VerifyDepth,
    /// Credential; optional if there is one.
    #[serde(default)]
    pub cred_id: Option<CredentialRef>,
}

/// Body of `POST /v1/cloudsnaps/gc`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CollectGarbage {
    /// List without deleting.
    #[serde(default)]
    pub dry_run: bool,
    /// Credential; optional if there is one.
    #[serde(default)]
    pub cred_id: Option<CredentialRef>,
}

/// Reply to `POST /v1/cloudsnaps/gc`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GarbageCollected {
    /// True if nothing was deleted by request.
    pub dry_run: bool,
    /// Orphaned objects of interrupted backups that were deleted, or would be.
    pub garbage: Vec<Leftover>,
    /// Unreferenced objects within the grace period.
    pub young: Vec<Leftover>,
    /// Unreadable manifests, one per line; while there is one, no orphaned objects are deleted.
    pub unknown: Vec<String>,
    /// Files or segments of unfinished uploads that were removed, or would be.
    pub unfinished: u64,
    /// Objects deleted.
    pub objects_deleted: u64,
}

/// Orphaned objects of an interrupted backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Leftover {
    /// Id of the cloud snapshot that was not completed, with or without `-incr`.
    pub cloudsnap: String,
    /// Number of objects.
    pub objects: u64,
    /// Total length.
    pub len_bytes: u64,
    /// Time of the first object; `None` if the store does not report it.
    pub since: Option<Timestamp>,
    /// End of the grace period; `None` if the store does not report times.
    pub deleted_from: Option<Timestamp>,
}

#[cfg(test)]
mod tests;
