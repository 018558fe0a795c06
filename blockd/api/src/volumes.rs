//! Volumes: create, list, inspect, change, delete.

use crate::{
    GroupName, LabelSelector, Labels, RuleName, SnapshotRef, VolumeId, VolumeName,
    attachments::Attachment,
    lazy::{GoingBack, Hydration},
};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use uuid::Uuid;

/// Body of `POST /v1/volumes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateVolume {
    /// Its name, and the name of its export.
    pub name: VolumeName,
    /// Its size in bytes; see [`crate::check_volume_size`].
    pub size_bytes: u64,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
    /// The group that it is frozen with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
}

/// Query of `DELETE /v1/volumes/{volume}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeleteVolume {
    /// Also if snapshots of it are pinned.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// Body of `PATCH /v1/volumes/{volume}`: what is to be changed, and nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateVolume {
    /// A larger size in bytes; see [`crate::check_volume_size`]. A volume never shrinks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Whether NBD clients may only read it. Those that are connected keep what they were told, but what they
    /// write is refused from then on, or taken again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// The labels that it has from now on, in place of all that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
    /// Acknowledges that a start may have discarded acknowledged writes: clients are no longer told.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub acknowledge_discarded_writes: bool,
    /// The group that it is frozen with from now on; `null`: none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    pub group: Option<Option<GroupName>>,
}

/// A field that was given, be it as `null`.
pub(crate) fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    value: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(value).map(Some)
}

/// Body of `POST /v1/volumes/{volume}/clone`: a new volume that begins as what `{volume}` was at a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CloneVolume {
    /// The name of the new volume, and of its export.
    pub name: VolumeName,
    /// The snapshot.
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
    pub volume: VolumeName,
    /// Whether nothing is wrong.
    pub sound: bool,
    /// Layers that were looked at.
    pub layers: u64,
    /// Layers that share data with another volume.
    pub shared_layers: u64,
    /// Kept block sets of past epochs that were looked at.
    pub intervals: u64,
    /// What is wrong, a line each.
    pub findings: Vec<String>,
}

/// Query of `GET /v1/volumes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListVolumes {
    /// Only volumes that have all these labels.
    #[serde(default)]
    pub label: Option<LabelSelector>,
    /// Only volumes of this group.
    #[serde(default)]
    pub group: Option<GroupName>,
}

/// Reply to `GET /v1/volumes`, by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeList {
    /// The volumes.
    pub volumes: Vec<Volume>,
}

/// Clients that may hold state from before a loss of acknowledged writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SurvivingClients {
    /// Clients on other hosts: the daemon's host has booted since.
    Remote,
    /// All clients, kernel devices of the daemon's host included.
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
    pub found: Timestamp,
}

/// A volume as it is now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Its name.
    pub name: VolumeName,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Whether NBD clients may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// Its labels.
    pub labels: Labels,
    /// The group that it is frozen with.
    #[serde(default)]
    pub group: Option<GroupName>,
    /// The rule of its own, which is followed around freezes; without one, that of its group is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleName>,
    /// When it was made.
    pub created: Timestamp,
    /// Whether it is served.
    pub state: VolumeState,
    /// Why it failed, in one line; `None` unless it did.
    pub state_reason: Option<String>,
    /// Acknowledged writes that a start may have discarded, until an administrator acknowledges it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discarded_writes: Option<DiscardedWrites>,
    /// Where it is served; see [`crate::nbd_unix_uri`].
    pub uri: String,
    /// NBD connections to it.
    pub connections: u64,
    /// Its device on this host, if it is attached.
    #[serde(default)]
    pub attachment: Option<Attachment>,
    /// Bytes dirtied since the last freeze or growth.
    pub dirty_bytes: u64,
    /// Bytes that its layers take on disk, and that no other volume shares.
    pub allocated_bytes: u64,
    /// Bytes on disk that it shares with clones, or with the volume that it is a clone of.
    #[serde(default)]
    pub shared_bytes: u64,
    /// Snapshots that people made of it.
    pub snapshot_count: u64,
    /// Layers in its stack, the head included.
    pub layers: u64,
    /// The layers that are being merged, because no snapshot needs them any more; `None`: there are none.
    #[serde(default)]
    pub merging: Option<Merging>,
    /// How far a rollback is that is under way; `None`: none is.
    #[serde(default)]
    pub rolling_back: Option<RollingBack>,
    /// How far a restore in place is, or was when it ended before it was done; `None`: there is none.
    #[serde(default)]
    pub going_back: Option<GoingBack>,
    /// How much is there of a volume that began as a cloud snapshot; `None`: all of it.
    #[serde(default)]
    pub hydration: Option<Hydration>,
    /// What was read and written since it was opened.
    pub io: VolumeIo,
    /// The last backup under each credential.
    pub last_backups: Vec<LastBackup>,
}

/// Layers that are being merged in the background, by this daemon or by the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Merging {
    /// How many there are; they are merged one after the other.
    pub layers: u64,
    /// Bytes that the merge which is under way has copied, or moved without copying.
    pub done_bytes: u64,
    /// Bytes that it copies in all; 0 if none is under way.
    pub total_bytes: u64,
}

/// A rollback to a snapshot that is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RollingBack {
    /// Bytes of those that have to go back which are done.
    pub done_bytes: u64,
    /// Bytes that have to go back.
    pub total_bytes: u64,
}

/// Whether a volume is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum VolumeState {
    /// It is served.
    Up,
    /// A restore is filling it; it is not served yet.
    Restoring,
    /// It could not be opened, or failed; it is not served.
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

/// What was read from and written to a volume since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeIo {
    /// Read requests.
    pub reads: u64,
    /// Write requests, trims and zeroes included.
    pub writes: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Flushes.
    pub flushes: u64,
}

/// The last backup of a volume under one credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastBackup {
    /// The credential.
    pub credential: Uuid,
    /// Its name.
    pub credential_name: String,
    /// Id of the cloud snapshot.
    pub cloudsnap_id: String,
    /// The point in time that it holds.
    pub time: Timestamp,
    /// Incremental backups since the last full one; 0 if this one is full.
    pub incrementals_since_full: u64,
}
