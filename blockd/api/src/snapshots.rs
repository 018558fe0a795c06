//! Local snapshots: create, list, inspect, compare, roll back, delete.

use crate::{
    Epoch, GroupName, GroupRef, LabelSelector, List, SnapshotId, SnapshotName, SnapshotRef, VolumeId,
    VolumeName, VolumeRef,
    quiesce::{HookOptions, QuiesceReport},
};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

/// Maximum number of volumes frozen together.
pub const MAX_GROUP_MEMBERS: usize = 64;

/// Body of `POST /v1/volumes/{volume}/snapshots`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateSnapshot {
    /// Name; [`SnapshotName::from_time`] by default.
    pub name: Option<SnapshotName>,
    /// Hooks around the freeze.
    #[serde(flatten)]
    pub hooks: HookOptions,
}

/// Body of `POST /v1/snapshots/group`. Exactly one selector of volumes must be given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateGroupSnapshot {
    /// Volumes of this group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    /// Volumes with all these labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<LabelSelector>,
    /// Volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeRef>,
    /// Name of each snapshot; [`SnapshotName::from_time`] by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<SnapshotName>,
    /// Hooks around the freeze.
    #[serde(flatten)]
    pub hooks: HookOptions,
}

/// Reply to `POST /v1/snapshots/group`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GroupSnapshot {
    /// Common properties.
    #[serde(flatten)]
    pub group: SnapshotGroup,
    /// Name of each snapshot.
    pub name: SnapshotName,
    /// Time of the freeze.
    pub created_at: Timestamp,
    /// Snapshots by volume.
    #[serde(flatten)]
    pub list: List<Snapshot>,
}

/// Common properties of a group snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotGroup {
    /// Id of the group snapshot.
    pub group_id: Uuid,
    /// Group of volumes, if selected by group.
    pub group: Option<GroupName>,
    /// Number of frozen volumes.
    pub members: u64,
    /// Duration of the write barrier over all volumes, in microseconds.
    pub group_stall_micros: u64,
}

/// Query of `GET /v1/snapshots`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListSnapshots {
    /// Only this volume.
    pub volume: Option<VolumeRef>,
    /// Only this group, or this group snapshot.
    pub group: Option<GroupRef>,
}

/// Local snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Id.
    pub snapshot_id: SnapshotId,
    /// Name of the volume.
    pub volume_name: VolumeName,
    /// Id of the volume.
    pub volume_id: VolumeId,
    /// Name.
    pub name: SnapshotName,
    /// Time of the freeze.
    pub created_at: Timestamp,
    /// Epoch that it ended.
    pub epoch: Epoch,
    /// Stall time of the freeze, in microseconds.
    pub freeze_stall_micros: u64,
    /// Bytes dirtied in its epoch.
    pub dirty_bytes: u64,
    /// Bytes freed by deleting only this snapshot; `None` if the volume is not available.
    pub exclusive_bytes: Option<u64>,
    /// Bytes shared with other snapshots or the volume; `None` if the volume is not available.
    pub shared_bytes: Option<u64>,
    /// State.
    pub state: SnapshotState,
    /// Read-only export: `VOLUME@NAME`.
    pub export: String,
    /// URI of the export; see [`crate::nbd_unix_uri`].
    pub uri: String,
    /// Group snapshot that it belongs to; `None` if taken alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken_with: Option<SnapshotGroup>,
    /// Quiesce report; `None` without steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quiesce: Option<QuiesceReport>,
    /// Pinned.
    #[serde(default)]
    pub pinned: bool,
}

/// Body of `PATCH /v1/snapshots/{snapshot}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MarkSnapshot {
    /// Pin or unpin. A pinned snapshot is deleted only by force, also with its volume.
    pub pinned: bool,
}

/// Query of `DELETE /v1/snapshots/{snapshot}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeleteSnapshot {
    /// Delete a pinned snapshot.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// Query of `GET /v1/volumes/{volume}/diff`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DiffSnapshots {
    /// Older snapshot.
    pub from: SnapshotRef,
    /// Newer snapshot; the current content by default.
    pub to: Option<SnapshotRef>,
    /// Start offset; from [`List::next`].
    pub offset_bytes: Option<u64>,
}

/// Reply to `GET /v1/volumes/{volume}/diff`: extents written, trimmed or zeroed between two points.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotDiff {
    /// Name of the volume.
    pub volume_name: VolumeName,
    /// Name of the older snapshot.
    pub from_snapshot_name: SnapshotName,
    /// Name of the newer snapshot; `None` for the current content.
    pub to_snapshot_name: Option<SnapshotName>,
    /// Size of the volume at the older point, in bytes.
    pub from_size_bytes: u64,
    /// Size of the volume at the newer point, in bytes.
    pub to_size_bytes: u64,
    /// Bytes that changed and have data at the newer point, over all extents.
    pub data_bytes: u64,
    /// Bytes that became zeroes, over all extents.
    pub zero_bytes: u64,
    /// Changed extents, ascending, in whole blocks; `next` is the start offset of the next request.
    #[serde(flatten)]
    pub list: List<DiffExtent>,
}

/// Changed extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiffExtent {
    /// Start offset.
    pub offset_bytes: u64,
    /// Length.
    pub len_bytes: u64,
    /// Content at the newer point.
    pub kind: DiffKind,
}

/// Content of changed bytes at the newer point.
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
    /// Target snapshot.
    pub snapshot: SnapshotRef,
    /// Discard the current content.
    #[serde(default)]
    pub discard: bool,
}

/// Reply to `POST /v1/volumes/{volume}/rollback`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotRestored {
    /// Name of the volume.
    pub volume_name: VolumeName,
    /// Name of the restored snapshot.
    pub snapshot_name: SnapshotName,
    /// Snapshot of the previous state, unless discarded.
    pub kept_snapshot: Option<Snapshot>,
    /// Bytes changed back.
    pub changed_bytes: u64,
    /// Copied bytes of data.
    pub copied_bytes: u64,
}

/// State of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SnapshotState {
    /// Readable.
    Ready,
    /// Deleted; its layer is being merged.
    Deleting,
    /// The volume failed.
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
