//! Local snapshots: create, list, compare, roll back to, delete.

use crate::{Epoch, SnapshotId, SnapshotName, SnapshotRef, VolumeId, VolumeName, VolumeRef};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Body of `POST /v1/volumes/{volume}/snapshots`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateSnapshot {
    /// Its name; without one it is [`SnapshotName::from_time`] of now.
    #[serde(default)]
    pub name: Option<SnapshotName>,
}

/// Query of `GET /v1/snapshots`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListSnapshots {
    /// Only those of this volume.
    #[serde(default)]
    pub volume: Option<VolumeRef>,
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
    /// Data that would be given back if it, and no other snapshot, were deleted; `None` if its volume cannot be asked.
    #[serde(default)]
    pub exclusive_bytes: Option<u64>,
    /// The rest of its data: another snapshot or the volume needs it, too; `None` as there.
    #[serde(default)]
    pub shared_bytes: Option<u64>,
    /// Whether it can be read.
    pub state: SnapshotState,
}

/// Query of `GET /v1/volumes/{volume}/diff`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RestoreSnapshot {
    /// What the volume is to become again.
    pub snapshot: SnapshotRef,
    /// Keep no snapshot of what the volume is now.
    #[serde(default)]
    pub discard: bool,
}

/// Reply to `POST /v1/volumes/{volume}/rollback`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
