//! Volumes: create, list, inspect, change, delete.

use crate::{
    GroupName, LabelSelector, Labels, RuleName, SnapshotRef, VolumeId, VolumeName,
    anomalies::AnomalyPolicy,
    attachments::Attachment,
    cloudsnaps::LastProof,
    lazy::{Hydration, InPlaceProgress},
};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

/// Body of `POST /v1/volumes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateVolume {
    /// Name of the volume and of its export.
    pub name: VolumeName,
    /// Size in bytes; see [`crate::check_volume_size`].
    pub size_bytes: u64,
    /// Labels.
    #[serde(default)]
    pub labels: Labels,
    /// Consistency group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
}

/// Query of `DELETE /v1/volumes/{volume}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeleteVolume {
    /// Delete pinned snapshots too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// Body of `PATCH /v1/volumes/{volume}`; omitted fields stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateVolume {
    /// New name of the volume and of its export. Refused while clients are connected; schedules, rules and
    /// backups follow the volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<VolumeName>,
    /// Larger size in bytes; see [`crate::check_volume_size`]. A volume never shrinks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Read-only state for NBD clients. Connected clients are not notified; their writes are refused or
    /// accepted from then on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// New labels; they replace all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
    /// Acknowledges discarded writes: flushes of clients no longer fail.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub acknowledge_discarded_writes: bool,
    /// New consistency group; `null` for none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::given")]
    pub group: Option<Option<GroupName>>,
}

/// Body of `POST /v1/volumes/{volume}/clone`: a new volume from a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CloneVolume {
    /// Name of the new volume and of its export.
    pub name: VolumeName,
    /// Snapshot.
    pub snapshot: SnapshotRef,
    /// Labels of the new volume.
    #[serde(default)]
    pub labels: Labels,
}

/// Reply to `POST /v1/volumes/{volume}/check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeCheck {
    /// Name of the volume.
    pub volume_name: VolumeName,
    /// True without findings.
    pub sound: bool,
    /// Checked layers.
    pub layers: u64,
    /// Layers shared with another volume.
    pub shared_layers: u64,
    /// Checked block sets of past epochs.
    pub intervals: u64,
    /// Findings, one per line.
    pub findings: Vec<String>,
}

/// Query of `GET /v1/volumes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListVolumes {
    /// Only volumes with all these labels.
    pub label: Option<LabelSelector>,
    /// Only volumes of this group.
    pub group: Option<GroupName>,
}

/// Clients that may hold state from before a loss of acknowledged writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SurvivingClients {
    /// Clients on other hosts: the daemon's host has booted since.
    Remote,
    /// All clients, including kernel devices of the daemon's host.
    All,
}

/// Acknowledged writes that a start may have discarded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiscardedWrites {
    /// Clients that may have survived. The first FLUSH of each of their connections fails.
    pub clients: SurvivingClients,
    /// Reason, in words.
    pub cause: String,
    /// Time of the start that found the loss.
    pub found_at: Timestamp,
}

/// Volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// Id.
    pub volume_id: VolumeId,
    /// Name.
    pub name: VolumeName,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Read-only for NBD clients.
    #[serde(default)]
    pub read_only: bool,
    /// Labels.
    pub labels: Labels,
    /// Consistency group.
    pub group: Option<GroupName>,
    /// Own rule for freezes; that of the group by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule_name: Option<RuleName>,
    /// Creation time.
    pub created_at: Timestamp,
    /// State.
    pub state: VolumeState,
    /// Reason of a failure, or the way to complete an interrupted restore, in one line.
    pub state_reason: Option<String>,
    /// Acknowledged writes that a start may have discarded, until an administrator acknowledges it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discarded_writes: Option<DiscardedWrites>,
    /// URI of the export; see [`crate::nbd_unix_uri`].
    pub uri: String,
    /// Bytes that are damaged on the disk and not repaired: their reads fail.
    #[serde(default, skip_serializing_if = "crate::tasks::is_zero")]
    pub damaged_bytes: u64,
    /// End of the last complete scrub; `None` without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_scrub_at: Option<Timestamp>,
    /// Anomaly policy: that of its label, or else of the daemon.
    #[serde(default)]
    pub anomaly_policy: AnomalyPolicy,
    /// Day of the learning period of [`LEARNING_DAYS`](crate::anomalies::LEARNING_DAYS), in which only large
    /// anomalies are detected, 0 before the first observed backup; of several locations, that of the one
    /// that is observed for the shortest time. `None` afterwards, or if the policy is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anomaly_learning_day: Option<u64>,
    /// NBD connections.
    pub connections: u64,
    /// Attachment to a device of this host.
    pub attachment: Option<Attachment>,
    /// Bytes dirtied since the last freeze or growth.
    pub dirty_bytes: u64,
    /// Bytes on disk of its layers, not shared with other volumes.
    pub allocated_bytes: u64,
    /// Bytes on disk shared with clones or the source volume.
    #[serde(default)]
    pub shared_bytes: u64,
    /// Number of local snapshots.
    pub snapshot_count: u64,
    /// Point in time of the newest of its snapshots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_snapshot_at: Option<Timestamp>,
    /// Layers in its stack, including the head.
    pub layers: u64,
    /// Running merges; `None` without any.
    pub merge: Option<MergeProgress>,
    /// Running rollback; `None` without one.
    pub rollback: Option<RollbackProgress>,
    /// Incomplete in-place restore; `None` without one.
    pub in_place_restore: Option<InPlaceProgress>,
    /// Hydration state of a lazy volume; `None` if complete.
    pub hydration: Option<Hydration>,
    /// I/O counters since it was opened.
    pub io: VolumeIo,
    /// Newest backup under each credential, as far as this host knows.
    pub last_backups: Vec<LastBackup>,
}

/// Layers being merged in the background, also across restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MergeProgress {
    /// Number of layers; merged one after the other.
    pub layers: u64,
    /// Bytes copied or moved by the running merge.
    pub done_bytes: u64,
    /// Total bytes of the running merge; 0 without one.
    pub total_bytes: u64,
}

/// Running rollback to a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RollbackProgress {
    /// Bytes restored.
    pub done_bytes: u64,
    /// Total bytes to restore.
    pub total_bytes: u64,
}

/// State of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum VolumeState {
    /// Served.
    Up,
    /// Being restored; not served yet.
    Restoring,
    /// Could not be opened, or failed; not served.
    Failed,
}

impl fmt::Display for VolumeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Up => "up",
            Self::Restoring => "restoring",
            Self::Failed => "failed",
        })
    }
}

/// I/O counters of a volume since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeIo {
    /// Read requests.
    pub reads: u64,
    /// Write requests, including trims and zeroes.
    pub writes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flushes.
    pub flushes: u64,
}

/// Last backup of a volume under a credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastBackup {
    /// Credential.
    pub credential_id: Uuid,
    /// Name.
    pub credential_name: String,
    /// Id of the cloud snapshot.
    pub cloud_snapshot_id: String,
    /// Point in time.
    pub created_at: Timestamp,
    /// Incremental backups since the last full one; 0 if this one is full.
    pub incrementals_since_full: u64,
    /// Last proof that read a backup of the volume there and found it sound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_proof: Option<LastProof>,
}
