//! Local snapshots: create, also of several volumes at once, list, inspect, delete.

use crate::{
    Epoch, GroupName, GroupRef, LabelSelector, SnapshotId, SnapshotName, VolumeId, VolumeName, VolumeRef,
    quiesce::{Quiesce, QuiesceReport},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

/// The most volumes that can be frozen together.
pub const MAX_GROUP_MEMBERS: usize = 64;

/// Body of `POST /v1/volumes/{volume}/snapshots`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateSnapshot {
    /// Its name; without one it is [`SnapshotName::from_time`] of now.
    #[serde(default)]
    pub name: Option<SnapshotName>,
    /// What is to be done around it.
    #[serde(default, skip_serializing_if = "Quiesce::is_nothing")]
    pub quiesce: Quiesce,
}

/// Body of `POST /v1/snapshots/group`: which volumes, chosen in exactly one way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// Reply to `POST /v1/snapshots/group`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotList {
    /// The snapshots that people made.
    pub snapshots: Vec<Snapshot>,
}

/// A frozen point of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Whether it can be read.
    pub state: SnapshotState,
    /// The others that were taken at the same instant; `None` if it was taken alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_with: Option<SnapshotGroup>,
    /// What was done around it; `None` if nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiesce: Option<QuiesceReport>,
}

/// Whether a snapshot can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
