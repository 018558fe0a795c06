//! Local snapshots: create, list, delete.

use crate::{Epoch, SnapshotId, SnapshotName, VolumeId, VolumeName, VolumeRef};
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
    /// Whether it can be read.
    pub state: SnapshotState,
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
