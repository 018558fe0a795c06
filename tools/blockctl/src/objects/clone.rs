//! Clones, once each: the new volume is what tells that it was done, with a label that says what it is a
//! clone of.

use super::Fields;
use blockd_api::{ObjectName, SnapshotName, SnapshotRef, VolumeName, VolumeRef};
use serde_json::{Value, json};
use uuid::Uuid;

/// The label of a volume that an object made, with what it is a clone of.
pub const CLONED_FROM: &str = "cloned-from";
/// How the names of snapshots begin that are taken for a clone.
const TAKEN: &str = "clone-";

/// A clone.
#[derive(Clone, Debug, PartialEq)]
pub struct Clone {
    /// Of which volume.
    pub source: VolumeName,
    /// As it was at this snapshot; at one that is taken for it otherwise.
    pub snapshot: Option<SnapshotName>,
    /// The new volume, if it is called otherwise than the object.
    pub volume: Option<VolumeName>,
}

impl Clone {
    /// What the new volume is called.
    pub fn target<'a>(&'a self, name: &'a ObjectName) -> &'a str {
        self.volume.as_ref().map_or(name.as_str(), VolumeName::as_str)
    }

    /// The name of the snapshot that it begins as: one that no snapshot has yet, if it is taken for it.
    pub fn snapshot_name(&self) -> Option<SnapshotName> {
        self.snapshot.clone().or_else(|| format!("{TAKEN}{}", Uuid::new_v4()).parse().ok())
    }

    /// The snapshot of this name, of its source.
    pub fn snapshot(&self, name: SnapshotName) -> SnapshotRef {
        SnapshotRef::Named { volume: VolumeRef::Name(self.source.clone()), name }
    }

    /// Whether a clone with this label is what is meant.
    pub fn is_of(&self, origin: &str) -> bool {
        origin.split_once('@').is_some_and(|(source, snapshot)| {
            source == self.source.as_str()
                && match &self.snapshot {
                    Some(wanted) => snapshot == wanted.as_str(),
                    None => snapshot.starts_with(TAKEN),
                }
        })
    }

    /// As it is written.
    pub fn view(&self, name: &ObjectName) -> Value {
        let mut view =
            json!({ "sourceVolume": self.source.as_str(), "destinationVolume": self.target(name) });
        if let Some(snapshot) = &self.snapshot {
            view["snapshot"] = snapshot.as_str().into();
        }
        view
    }
}

/// Reads what is below `spec`.
pub fn read(fields: &mut Fields<'_>) -> Option<Clone> {
    if !fields.has("spec") {
        fields.missing("spec");
    }
    let mut spec = fields.fields("spec")?;
    let source = spec.required("sourceVolume");
    let (snapshot, volume) = (spec.parsed("snapshot"), spec.parsed("destinationVolume"));
    spec.finish();
    Some(Clone { source: source?, snapshot, volume })
}
