//! Local snapshots: create, also of several volumes at once, list, inspect, compare, roll back to, delete.

use crate::{
    Epoch, GroupName, GroupRef, LabelSelector, RuleName, SnapshotId, SnapshotName, SnapshotRef, VolumeId,
    VolumeName, VolumeRef,
    quiesce::{Quiesce, QuiesceReport},
};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

/// The most volumes that can be frozen together.
pub const MAX_GROUP_MEMBERS: usize = 64;

/// Body of `POST /v1/volumes/{volume}/snapshots`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateSnapshot {
    /// Its name; without one it is [`SnapshotName::from_time`] of now.
    #[serde(default)]
    pub name: Option<SnapshotName>,
    /// What is to be done around it.
    #[serde(default, skip_serializing_if = "Quiesce::is_nothing")]
    pub quiesce: Quiesce,
    /// A rule that is followed, in place of those of the volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleName>,
    /// No rule is followed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_rule: bool,
}

/// Body of `POST /v1/snapshots/group`: which volumes, chosen in exactly one way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateGroupSnapshot {
    /// All volumes of this group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    /// All volumes that have all these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<LabelSelector>,
    /// These volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeRef>,
    /// The name of each of the snapshots; without one it is [`SnapshotName::from_time`] of now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<SnapshotName>,
    /// What is to be done around them.
    #[serde(default, skip_serializing_if = "Quiesce::is_nothing")]
    pub quiesce: Quiesce,
    /// A rule that is followed, in place of those of the volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleName>,
    /// No rule is followed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_rule: bool,
}

/// Reply to `POST /v1/snapshots/group`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GroupSnapshot {
    /// What all of them have in common.
    #[serde(flatten)]
    pub group: SnapshotGroup,
    /// The name of each of them.
    pub name: SnapshotName,
    /// When they were frozen.
    pub created: Timestamp,
    /// The snapshots, by volume.
    pub snapshots: Vec<Snapshot>,
}

/// What the snapshots that were taken together have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotGroup {
    /// The id of this one time.
    pub group_id: Uuid,
    /// The group of volumes, if it was named.
    pub group: Option<GroupName>,
    /// How many volumes were frozen.
    pub members: u64,
    /// From the moment the first volume held writes back until the last one let them go, in microseconds.
    pub group_stall_micros: u64,
}

/// Query of `GET /v1/snapshots`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListSnapshots {
    /// Only those of this volume.
    #[serde(default)]
    pub volume: Option<VolumeRef>,
    /// Only those that were taken together of this group, or at this one time.
    #[serde(default)]
    pub group: Option<GroupRef>,
}

/// Reply to `GET /v1/snapshots`, by volume and time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotList {
    /// The snapshots that people made.
    pub snapshots: Vec<Snapshot>,
}

/// A frozen point of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Name of its volume.
    pub volume: VolumeName,
    /// Id of its volume.
    pub volume_id: VolumeId,
    /// Its name.
    pub name: SnapshotName,
    /// When it was frozen.
    pub created: Timestamp,
    /// The epoch that it ended.
    pub epoch: Epoch,
    /// For how long the freeze held writes back, in microseconds.
    pub freeze_stall_micros: u64,
    /// Bytes dirtied in its epoch.
    pub dirty_bytes: u64,
    /// Data that would be given back if it, and no other snapshot, were deleted; `None` if its volume cannot
    /// be asked.
    #[serde(default)]
    pub exclusive_bytes: Option<u64>,
    /// The rest of its data: another snapshot or the volume needs it, too; `None` as there.
    #[serde(default)]
    pub shared_bytes: Option<u64>,
    /// Whether it can be read.
    pub state: SnapshotState,
    /// The read-only export that it is: `VOLUME@NAME`.
    pub export: String,
    /// Where that is served; see [`crate::nbd_unix_uri`].
    pub uri: String,
    /// The others that were taken at the same instant; `None` if it was taken alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_with: Option<SnapshotGroup>,
    /// What was done around it; `None` if nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiesce: Option<QuiesceReport>,
    /// It stays until somebody says otherwise.
    #[serde(default)]
    pub pinned: bool,
}

/// Body of `PATCH /v1/snapshots/{snapshot}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MarkSnapshot {
    /// No schedule deletes it, and nobody else, also with its volume, but by force; or both may again.
    pub pinned: bool,
}

/// Query of `DELETE /v1/snapshots/{snapshot}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeleteSnapshot {
    /// Also if it is pinned.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// Query of `GET /v1/volumes/{volume}/diff`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DiffSnapshots {
    /// The older snapshot.
    pub from: SnapshotRef,
    /// The newer one; without it, the volume as it is now.
    #[serde(default)]
    pub to: Option<SnapshotRef>,
    /// Only extents from here on; what [`SnapshotDiff::next_offset_bytes`] said.
    #[serde(default)]
    pub offset_bytes: Option<u64>,
}

/// Reply to `GET /v1/volumes/{volume}/diff`: what was written, trimmed or zeroed from one point to the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotDiff {
    /// Name of the volume.
    pub volume: VolumeName,
    /// Name of the older snapshot.
    pub from: SnapshotName,
    /// Name of the newer one; `None` for now.
    pub to: Option<SnapshotName>,
    /// Size of the volume at the older point, in bytes.
    pub from_size_bytes: u64,
    /// Size of the volume at the newer point, in bytes.
    pub to_size_bytes: u64,
    /// Bytes that changed and have data at the newer point, over all extents.
    pub data_bytes: u64,
    /// Bytes that became zeroes, over all extents.
    pub zero_bytes: u64,
    /// What changed, in ascending order, in whole blocks.
    pub extents: Vec<DiffExtent>,
    /// Where the next call goes on, if there are more extents.
    #[serde(default)]
    pub next_offset_bytes: Option<u64>,
}

/// A run of bytes that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiffExtent {
    /// Where it begins.
    pub offset_bytes: u64,
    /// How long it is.
    pub length_bytes: u64,
    /// What it holds at the newer point.
    pub kind: DiffKind,
}

/// What changed bytes hold at the newer point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DiffKind {
    /// Data.
    Data,
    /// Zeroes.
    Zero,
}

impl fmt::Display for DiffKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Data => "data",
            Self::Zero => "zero",
        })
    }
}

/// Body of `POST /v1/volumes/{volume}/rollback`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RestoreSnapshot {
    /// What the volume is to become again.
    pub snapshot: SnapshotRef,
    /// Keep no snapshot of what the volume is now.
    #[serde(default)]
    pub discard: bool,
}

/// Reply to `POST /v1/volumes/{volume}/rollback`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotRestored {
    /// Name of the volume.
    pub volume: VolumeName,
    /// Name of the snapshot that it is like now.
    pub snapshot: SnapshotName,
    /// The snapshot of what it was before, unless that was discarded.
    pub kept: Option<Snapshot>,
    /// Bytes that went back.
    pub changed_bytes: u64,
    /// Bytes of them that have data, which was copied.
    pub copied_bytes: u64,
}

/// Whether a snapshot can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SnapshotState {
    /// It can be read.
    Ready,
    /// It is deleted; its layer is being merged.
    Deleting,
    /// Its volume failed.
    Failed,
}

impl fmt::Display for SnapshotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ready => "ready",
            Self::Deleting => "deleting",
            Self::Failed => "failed",
        })
    }
}
