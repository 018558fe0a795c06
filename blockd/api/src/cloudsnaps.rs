//! Cloud snapshots: back up, list, inspect, restore, delete.
//!
//! List entries have the field names of similar tools (`ID`, `SrcVolumeID`, …) for scripts; everything in
//! `Metadata` is text.

use crate::{
    ApiError, CredentialRef, GroupName, LabelSelector, Labels, ObjectName, VolumeId, VolumeName, VolumeRef,
    quiesce::HookOptions,
    tasks::{BackupType, TaskLimits},
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

/// Query of `GET /v1/cloudsnaps`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListCloudsnaps {
    /// Only this credential; all by default.
    #[serde(default)]
    pub cred_id: Option<CredentialRef>,
    /// Only this volume, by its name or id at backup time; it may be deleted.
    #[serde(default)]
    pub src: Option<VolumeRef>,
    /// Only this cluster; all by default.
    #[serde(default)]
    pub cluster: Option<Uuid>,
    /// All clusters, as without `cluster`.
    #[serde(default)]
    pub all: bool,
    /// Only this state; [`CloudsnapStatus::Done`] by default.
    #[serde(default)]
    pub status: Option<CloudsnapStatus>,
    /// Only volumes that had all these labels.
    #[serde(default)]
    pub label: Option<LabelSelector>,
    /// Only this cloud snapshot, of any cluster.
    #[serde(default)]
    pub cloudsnap_id: Option<CloudSnapshotId>,
    /// Maximum number of entries, the newest.
    #[serde(default)]
    pub max: Option<u32>,
}

/// State of a cloud snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub enum CloudsnapStatus {
    /// Committed; can be restored.
    #[default]
    Done,
    /// A backup of this daemon is running.
    Active,
    /// A backup of this daemon failed; nothing of it counts.
    Failed,
    /// The manifest cannot be read.
    Damaged,
}

impl CloudsnapStatus {
    /// All states.
    pub const ALL: [Self; 4] = [Self::Done, Self::Active, Self::Failed, Self::Damaged];

    /// Returns the state as written in JSON and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "Done",
            Self::Active => "Active",
            Self::Failed => "Failed",
            Self::Damaged => "Damaged",
        }
    }
}

impl fmt::Display for CloudsnapStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Reply to `GET /v1/cloudsnaps`, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CloudsnapList {
    /// Readable entries.
    pub cloudsnaps: Vec<Cloudsnap>,
    /// Unreadable entries, independent of the requested state.
    pub damaged: Vec<DamagedCloudsnap>,
    /// Stores that could not be listed, if others could.
    pub failed_credentials: Vec<FailedCredential>,
    /// Number of entries without `max`.
    pub total: u64,
}

/// Entry of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "PascalCase")]
pub struct Cloudsnap {
    /// Id.
    #[serde(rename = "ID")]
    pub id: CloudSnapshotId,
    /// Id of the source volume.
    #[serde(rename = "SrcVolumeID")]
    pub src_volume_id: VolumeId,
    /// Name of the source volume.
    pub src_volume_name: String,
    /// Point in time.
    pub timestamp: Timestamp,
    /// Other properties, as text.
    pub metadata: CloudsnapMetadata,
    /// State.
    pub status: CloudsnapStatus,
}

/// Other properties of an entry; each value is JSON text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CloudsnapMetadata {
    /// Origin: `Manual`.
    pub cloudsnap_type: String,
    /// Compression: `lz4`.
    pub compression: String,
    /// Bytes of volume data in this backup, before compression.
    #[serde(with = "decimal")]
    #[schemars(with = "String", regex(pattern = "^[0-9]+$"))]
    pub size_bytes: u64,
    /// Start time; see [`crate::format_time`].
    pub starttime: String,
    /// Status of the entry.
    pub status: CloudsnapStatus,
    /// End time; see [`crate::format_time`].
    pub updatetime: String,
    /// Version of the cloud format, such as `V1.00`.
    pub version: String,
    /// JSON as text; see [`volume_spec_json`].
    pub volume: String,
    /// Name of the source volume.
    pub volumename: String,
    /// Full or incremental.
    pub backup_type: BackupType,
    /// UUID of the credential.
    pub credential: Uuid,
    /// Name of the credential.
    pub credential_name: String,
    /// `true` if encrypted.
    #[serde(with = "boolean")]
    #[schemars(with = "String", regex(pattern = "^(true|false)$"))]
    pub encrypted: bool,
    /// Bytes in the store.
    #[serde(with = "decimal")]
    #[schemars(with = "String", regex(pattern = "^[0-9]+$"))]
    pub stored_bytes: u64,
    /// Dirty bytes at the freeze.
    #[serde(with = "decimal")]
    #[schemars(with = "String", regex(pattern = "^[0-9]+$"))]
    pub dirty_bytes: u64,
    /// Stall time of the freeze, in microseconds.
    #[serde(with = "decimal")]
    #[schemars(with = "String", regex(pattern = "^[0-9]+$"))]
    pub freeze_stall_micros: u64,
    /// Name of the backup, or the generated name of its snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_name: Option<String>,
    /// `true` if pinned on this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<String>,
    /// Expiry date set on this host; see [`crate::format_time`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// Time of the last verification by this host; see [`crate::format_time`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<String>,
    /// Depth of the verification: `quick`, `frames` or `deep`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify_depth: Option<String>,
    /// Result of the verification: `Sound` or `Damaged`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify_result: Option<String>,
}

/// Returns the text of [`CloudsnapMetadata::volume`]:
/// `{"DevSpec":{"size":…,"block_size":4096,"volume_labels":{…}}}`.
pub fn volume_spec_json(size_bytes: u64, labels: &Labels) -> String {
    let block_size = blockd_extent::BLOCK_SIZE_BYTES;
    let spec = serde_json::json!({ "size": size_bytes, "block_size": block_size, "volume_labels": labels });
    serde_json::json!({ "DevSpec": spec }).to_string()
}

/// Entry with an unreadable manifest: it is not Done and cannot be restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DamagedCloudsnap {
    /// Name in place of the id; it may be invalid.
    pub id: String,
    /// UUID of the credential.
    pub credential: Uuid,
    /// Reason, in one line.
    pub reason: String,
}

/// Store that could not be listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailedCredential {
    /// UUID of the credential.
    pub credential: Uuid,
    /// Name.
    pub name: String,
    /// Cause.
    pub error: ApiError,
}

/// Query of `GET /v1/cloudsnaps/inspect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InspectCloudsnap {
    /// Cloud snapshot.
    pub id: CloudSnapshotId,
    /// Credential; all are tried by default.
    #[serde(default)]
    pub cred_id: Option<CredentialRef>,
}

/// Reply to `GET /v1/cloudsnaps/inspect`: the list entry and the manifest's properties.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CloudsnapDetail {
    /// List entry.
    #[serde(flatten)]
    pub entry: Cloudsnap,
    /// Properties of the manifest.
    #[serde(rename = "Detail")]
    pub detail: ManifestDetail,
}

/// Properties of a manifest beyond the list entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ManifestDetail {
    /// Size of the volume in bytes.
    pub volume_size_bytes: u64,
    /// Labels of the volume.
    pub labels: Labels,
    /// Name of the source snapshot.
    pub snapshot_name: String,
    /// Number of its own packs.
    pub packs: u64,
    /// Data blocks of 4 KiB in this backup.
    pub data_blocks: u64,
    /// Zero blocks of 4 KiB in this backup.
    pub zero_blocks: u64,
    /// Cloud snapshots whose data it shares, newest first; they may be deleted.
    pub chain: Vec<CloudSnapshotId>,
    /// Bytes in the store that a restore needs.
    pub chain_stored_bytes: u64,
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

macro_rules! as_json_text {
    ($(#[$doc:meta])* $module:ident, $type:ty) => {
        $(#[$doc])*
        mod $module {
            use serde::{Deserialize, Deserializer, Serializer};

            pub fn serialize<S: Serializer>(value: &$type, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(value)
            }

            pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

as_json_text! {
    /// Number as decimal text.
    decimal, u64
}

as_json_text! {
    /// Boolean as text.
    boolean, bool
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serde documents no unknown-field check beside flattened fields; the requests rely on it.
    #[test]
    fn request_with_flattened_options_refuses_unknown_fields() {
        let request: StartBackup =
            serde_json::from_str(r#"{"volume":"v","full":true,"noRule":true}"#).unwrap();
        assert!(request.options.full && request.hooks.no_rule);
        assert_eq!(
            serde_json::from_value::<StartBackup>(serde_json::to_value(&request).unwrap()).unwrap(),
            request
        );
        for unknown in [r#"{"volume":"v","ful":true}"#, r#"{"volume":"v","quiesce":{"x":1}}"#] {
            let error = serde_json::from_str::<StartBackup>(unknown).unwrap_err().to_string();
            assert!(error.contains("unknown field"), "{error}");
        }
    }

    #[test]
    fn ids_round_trip() {
        for text in [
            "2e4d4b67-95d7-481e-aec5-14223ac55170/590114184663672482-619248560586769719",
            "2e4d4b67-95d7-481e-aec5-14223ac55170/590114184663672482-951325819047337066-incr",
        ] {
            assert_eq!(text.parse::<CloudSnapshotId>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "2e4d4b67-95d7-481e-aec5-14223ac55170",
            "2e4d4b67-95d7-481e-aec5-14223ac55170/1",
            "2e4d4b67-95d7-481e-aec5-14223ac55170/1-2-3",
            "2e4d4b67-95d7-481e-aec5-14223ac55170/01-2",
            "2e4d4b6795d7481eaec514223ac55170/1-2",
            "2E4D4B67-95D7-481E-AEC5-14223AC55170/1-2",
            "2e4d4b67-95d7-481e-aec5-14223ac55170/1-2-incr-incr",
            "../1-2",
        ] {
            assert!(bad.parse::<CloudSnapshotId>().is_err(), "{bad:?} was taken");
        }
    }

    fn entry() -> Cloudsnap {
        let id: CloudSnapshotId = "2e4d4b67-95d7-481e-aec5-14223ac55170/59-61-incr".parse().unwrap();
        Cloudsnap {
            id,
            src_volume_id: id.volume,
            src_volume_name: "vol".into(),
            timestamp: "2019-10-24T19:02:08Z".parse().unwrap(),
            metadata: CloudsnapMetadata {
                cloudsnap_type: "Manual".into(),
                compression: "lz4".into(),
                size_bytes: 2_152_751_104,
                starttime: "Thu, 24 Oct 2019 19:02:08 UTC".into(),
                status: CloudsnapStatus::Done,
                updatetime: "Thu, 24 Oct 2019 19:06:12 UTC".into(),
                version: "V1.00".into(),
                volume: volume_spec_json(1 << 30, &"a=b".parse().unwrap()),
                volumename: "vol".into(),
                backup_type: BackupType::Incremental,
                credential: Uuid::nil(),
                credential_name: "nas".into(),
                encrypted: true,
                stored_bytes: 7,
                dirty_bytes: 8,
                freeze_stall_micros: 9,
                snapshot_name: None,
                pinned: None,
                expires: None,
                verified: None,
                verify_depth: None,
                verify_result: None,
            },
            status: CloudsnapStatus::Done,
        }
    }

    #[test]
    fn list_entry_has_documented_fields() {
        let json = serde_json::to_value(entry()).unwrap();
        for key in ["ID", "SrcVolumeID", "SrcVolumeName", "Timestamp", "Metadata", "Status"] {
            assert!(json.get(key).is_some(), "{key} is missing in {json}");
        }
        assert_eq!(json["Timestamp"], "2019-10-24T19:02:08Z");
        assert_eq!(json["SrcVolumeID"], "59");
        let metadata = json["Metadata"].as_object().unwrap();
        assert!(metadata.values().all(serde_json::Value::is_string), "{metadata:?}");
        assert_eq!(metadata["sizeBytes"], "2152751104");
        let spec: serde_json::Value = serde_json::from_str(metadata["volume"].as_str().unwrap()).unwrap();
        assert_eq!(spec["DevSpec"]["size"], 1 << 30);
        assert_eq!(spec["DevSpec"]["block_size"], 4096);
        assert_eq!(spec["DevSpec"]["volume_labels"]["a"], "b");
        assert_eq!(serde_json::from_value::<Cloudsnap>(json).unwrap(), entry());
    }

    #[test]
    fn detail_extends_list_entry() {
        let detail = ManifestDetail {
            volume_size_bytes: 1 << 30,
            labels: Labels::default(),
            snapshot_name: "s".into(),
            packs: 1,
            data_blocks: 2,
            zero_blocks: 3,
            chain: vec![entry().id],
            chain_stored_bytes: 4,
        };
        let detail = CloudsnapDetail { entry: entry(), detail };
        let json = serde_json::to_value(&detail).unwrap();
        assert_eq!((&json["Status"], &json["Detail"]["packs"]), (&"Done".into(), &1.into()));
        assert_eq!(serde_json::from_value::<CloudsnapDetail>(json).unwrap(), detail);
    }
}
