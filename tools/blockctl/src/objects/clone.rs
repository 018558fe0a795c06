//! Clones: each is made once, as a new volume with a label that names its origin.

use super::values::name_volume;
use blockd_api::{ObjectName, SnapshotName, SnapshotRef, VolumeName, VolumeRef};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Label of a cloned volume: `SOURCE@SNAPSHOT`.
pub const CLONED_FROM: &str = "cloned-from";
/// Prefix of snapshots that are taken for a clone.
const SNAPSHOT_PREFIX: &str = "clone-";

/// Clone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeClone {
    /// Volume to clone.
    #[serde(rename = "sourceVolume")]
    pub source: VolumeName,
    /// Snapshot to clone; a new one by default.
    pub snapshot: Option<SnapshotName>,
    destination_volume: Option<VolumeName>,
}

impl VolumeClone {
    /// Names the new volume.
    ///
    /// # Errors
    /// Field and cause.
    pub fn check(&mut self, name: &ObjectName) -> Result<(), (&'static str, String)> {
        name_volume(&mut self.destination_volume, name)
    }

    /// Returns the new volume, which [`check`](Self::check) names.
    pub fn target(&self) -> &str {
        self.destination_volume.as_ref().map_or("", VolumeName::as_str)
    }

    /// Returns the name of the snapshot; a unique one if it is to be taken.
    pub fn snapshot_name(&self) -> Option<SnapshotName> {
        self.snapshot.clone().or_else(|| format!("{SNAPSHOT_PREFIX}{}", Uuid::new_v4()).parse().ok())
    }

    /// Returns a snapshot of the source.
    pub fn snapshot(&self, name: SnapshotName) -> SnapshotRef {
        SnapshotRef::Named { volume: VolumeRef::Name(self.source.clone()), name }
    }

    /// Returns true if a clone with this origin is the one described here.
    pub fn is_of(&self, origin: &str) -> bool {
        origin.split_once('@').is_some_and(|(source, snapshot)| {
            source == self.source.as_str()
                && match &self.snapshot {
                    Some(wanted) => snapshot == wanted.as_str(),
                    None => snapshot.starts_with(SNAPSHOT_PREFIX),
                }
        })
    }
}
