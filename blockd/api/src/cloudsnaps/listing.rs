//! Listing and inspection of cloud snapshots.

use crate::{ApiError, CredentialRef, LabelSelector, Labels, VolumeId, VolumeRef, tasks::BackupType};
use blockd_extent::CloudSnapshotId;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

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
    /// Only this state; [`CloudsnapStatus::Done`] and [`CloudsnapStatus::Damaged`] by default.
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
    /// A backup of this daemon failed; there is no cloud snapshot.
    Failed,
    /// The manifest cannot be read, or the last verification on this host found damage.
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
    /// Origin: `Manual` or `Scheduled`.
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
