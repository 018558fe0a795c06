//! Listing and inspection of cloud snapshots.

use super::VerifyDepth;
use crate::{
    ApiError, Compression, CompressionLevel, CredentialRef, LabelSelector, Labels, List, ObjectName,
    VolumeId, VolumeRef,
    tasks::{BackupType, ByteRange},
};
use blockd_extent::CloudSnapshotId;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

/// Query of `GET /v1/cloudsnaps`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ListCloudsnaps {
    /// Only this credential; all by default.
    pub credential: Option<CredentialRef>,
    /// Only this volume. A name selects the backups of the volume that has it on this host now, also those
    /// under its former names, and those that any volume of any host made under this name. The id of a volume
    /// of this host selects its backups by this host, any other id those of all hosts.
    pub volume: Option<VolumeRef>,
    /// Only this cluster; all by default.
    pub cluster_id: Option<Uuid>,
    /// All clusters, as without `cluster`.
    pub all: bool,
    /// Only this state; [`CloudsnapStatus::Done`] and [`CloudsnapStatus::Damaged`] by default.
    pub status: Option<CloudsnapStatus>,
    /// Only these labels of the backup or of its volume; a label of the backup hides one of the volume.
    pub label: Option<LabelSelector>,
    /// Only backups of this name.
    pub name: Option<ObjectName>,
    /// Only this cloud snapshot, of any cluster.
    pub cloud_snapshot_id: Option<CloudSnapshotId>,
    /// Maximum number of entries, the newest.
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
    /// A backup of this daemon was stopped; there is no cloud snapshot.
    Stopped,
    /// The manifest is damaged, or the last verification found damage.
    Damaged,
    /// The manifest is intact, but this host lacks its data key, or its format is newer.
    Unreadable,
}

impl CloudsnapStatus {
    /// All states.
    pub const ALL: [Self; 6] =
        [Self::Done, Self::Active, Self::Failed, Self::Stopped, Self::Damaged, Self::Unreadable];

    /// Returns the state as written in JSON and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "Done",
            Self::Active => "Active",
            Self::Failed => "Failed",
            Self::Stopped => "Stopped",
            Self::Damaged => "Damaged",
            Self::Unreadable => "Unreadable",
        }
    }
}

impl fmt::Display for CloudsnapStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Reply to `GET /v1/cloudsnaps`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CloudsnapList {
    /// Readable entries, oldest first.
    #[serde(flatten)]
    pub list: List<Cloudsnap>,
    /// Unreadable entries, independent of the requested state.
    pub damaged: Vec<DamagedCloudsnap>,
    /// Stores that could not be listed, if others could.
    pub failed_credentials: Vec<FailedCredential>,
    /// Number of entries without `max`.
    pub total: u64,
}

/// Cloud snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cloudsnap {
    /// Id.
    pub cloud_snapshot_id: CloudSnapshotId,
    /// Name of the backup, or the generated name of its snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Id of the source volume.
    pub volume_id: VolumeId,
    /// Name of the source volume.
    pub volume_name: String,
    /// Size of the source volume, in bytes; 0 if unknown.
    pub volume_size_bytes: u64,
    /// Labels of the source volume.
    #[serde(default)]
    pub labels: Labels,
    /// Labels of the backup.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub backup_labels: Labels,
    /// Point in time.
    pub created_at: Timestamp,
    /// State.
    pub status: CloudsnapStatus,
    /// Origin: `Manual` or `Scheduled`.
    pub trigger: String,
    /// Full or incremental.
    pub backup_type: BackupType,
    /// Damaged cloud snapshot that this one replaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repairs: Option<CloudSnapshotId>,
    /// Start time of the backup.
    pub started_at: Timestamp,
    /// End time of the backup; `None` while it is running.
    pub completed_at: Option<Timestamp>,
    /// Credential.
    pub credential_id: Uuid,
    /// Name of the credential.
    pub credential_name: String,
    /// Id of the location: equal for all credentials of one bucket, container or directory, and another one
    /// for a copy of it. `None` of backups that are not done, and if the location cannot be identified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location_id: Option<Uuid>,
    /// Version of the cloud format.
    pub format_version: u16,
    /// Compression of this backup.
    pub compression: CompressionReport,
    /// True if encrypted.
    pub encrypted: bool,
    /// Bytes of volume data in this backup, before compression.
    pub size_bytes: u64,
    /// Bytes in the store.
    pub stored_bytes: u64,
    /// Bytes of volume data that this backup references in others, before compression.
    #[serde(default)]
    pub referenced_bytes: u64,
    /// Bytes of data and zero blocks in this backup.
    pub dirty_bytes: u64,
    /// Stall time of the freeze, in microseconds.
    pub freeze_stall_micros: u64,
    /// True if pinned on this host, or leased by another one.
    #[serde(default)]
    pub pinned: bool,
    /// Lazy volumes of other hosts that need it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leases: Vec<CloudsnapLease>,
    /// Origin of the pin, if pinned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pinned_by: Option<PinOrigin>,
    /// Expiry date set on this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// Last proof by a verification.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_proof: Option<LastProof>,
    /// Last restore drill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_drill: Option<LastDrill>,
}

/// Compression of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CompressionReport {
    /// Compression of the request; `None` if this version does not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Compression>,
    /// Use of each level that this version knows; empty of backups that are not done.
    pub levels: Vec<LevelUse>,
}

/// Packs of one compression level.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LevelUse {
    /// Level. Frames that it does not shorten are uncompressed.
    pub level: CompressionLevel,
    /// Number of packs.
    pub packs: u32,
    /// Bytes of their blocks, zero blocks included.
    pub data_bytes: u64,
    /// Bytes of their frames.
    pub stored_bytes: u64,
}

/// Last restore drill of a cloud snapshot by a host of the location. It reads a part of the content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastDrill {
    /// Id.
    pub drill_id: Uuid,
    /// End of the drill.
    pub ended_at: Timestamp,
    /// True if no step failed.
    pub passed: bool,
    /// True if it passed without the check of a filesystem or a probe.
    #[serde(default)]
    pub unchecked: bool,
    /// Name of the host.
    pub host: String,
    /// Version of its blockd.
    pub version: String,
}

impl Cloudsnap {
    /// Returns the id of the location, or that of the credential if the location is not identified.
    #[must_use]
    pub fn location(&self) -> Uuid {
        self.location_id.unwrap_or(self.credential_id)
    }
}

/// Origin of a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PinOrigin {
    /// A user.
    User,
    /// An anomaly after the backup, until it is acknowledged.
    Anomaly,
    /// A lazy volume of another host.
    Lease,
}

/// Lease of a cloud snapshot: a lazy volume of another host that needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CloudsnapLease {
    /// Name of the host, or the id of its installation.
    pub host: String,
    /// The lazy volume.
    pub volume_id: VolumeId,
    /// Time at which the lease expires unless the host renews it; `None` if the location reports no time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

/// Last proof of a cloud snapshot: the result of a verification by a host of the location.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastProof {
    /// Time.
    pub proven_at: Timestamp,
    /// Kind.
    pub kind: VerifyDepth,
    /// True if no damage was found.
    pub sound: bool,
    /// Name of the host, or the id of its installation.
    pub host: String,
    /// Version of its blockd.
    pub version: String,
}

/// Entry with an unreadable manifest: it is not Done and cannot be restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DamagedCloudsnap {
    /// Name in place of the id; it may be invalid.
    pub cloud_snapshot_id: String,
    /// [`CloudsnapStatus::Damaged`] or [`CloudsnapStatus::Unreadable`].
    pub status: CloudsnapStatus,
    /// UUID of the credential.
    pub credential_id: Uuid,
    /// Name.
    pub credential_name: String,
    /// Id of the location, as that of a readable entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location_id: Option<Uuid>,
    /// Point in time, if this host has a copy of the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// Time of the manifest by the clock of the store, if it reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_at: Option<Timestamp>,
    /// Reason, in one line.
    pub reason: String,
    /// Next action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Store that could not be listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailedCredential {
    /// UUID of the credential.
    pub credential_id: Uuid,
    /// Name.
    pub credential_name: String,
    /// Cause.
    pub error: ApiError,
}

/// Query of `GET /v1/cloudsnaps/inspect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InspectCloudsnap {
    /// Cloud snapshot.
    pub cloud_snapshot_id: CloudSnapshotId,
    /// Credential; all are tried by default.
    pub credential: Option<CredentialRef>,
}

/// Reply to `GET /v1/cloudsnaps/inspect`: the list entry and the manifest's properties.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CloudsnapDetail {
    /// List entry.
    #[serde(flatten)]
    pub entry: Cloudsnap,
    /// Properties of the manifest.
    pub detail: ManifestDetail,
}

/// Properties of a manifest beyond the list entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ManifestDetail {
    /// Number of its own packs.
    pub packs: u64,
    /// Data blocks of 4 KiB in this backup.
    pub data_blocks: u64,
    /// Zero blocks of 4 KiB in this backup.
    pub zero_blocks: u64,
    /// Cloud snapshots whose data it shares, newest first; they may be deleted.
    pub chain: Vec<CloudSnapshotId>,
    /// Number of further cloud snapshots whose data it references; they may be deleted.
    #[serde(default)]
    pub reference_sources: u64,
    /// Bytes in the store that a restore needs.
    pub chain_stored_bytes: u64,
    /// Unreadable bytes that this host found, if damaged; 0 if they are unknown.
    #[serde(default, skip_serializing_if = "crate::tasks::is_zero")]
    pub lost_bytes: u64,
    /// First unreadable ranges.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost_ranges: Vec<ByteRange>,
    /// Next action on this host, if damaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
}
