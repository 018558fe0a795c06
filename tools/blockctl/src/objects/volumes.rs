//! New volumes, each created once: restores of backups, and clones with a label of their origin.

use super::document::{FieldError, Spec};
use blockd_api::{
    CredentialName, ObjectName, SnapshotName, SnapshotRef, VolumeName, VolumeRef, cloudsnaps::CloudSnapshotId,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Label of a cloned volume: `SOURCE@SNAPSHOT`.
pub const CLONED_FROM: &str = "cloned-from";
/// Prefix of snapshots that are taken for a clone.
const SNAPSHOT_PREFIX: &str = "clone-";

/// Backup of a restore.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RestoreSource<'a> {
    /// Backup of this name, and of this volume if several volumes have one.
    Backup(&'a ObjectName, Option<&'a VolumeName>),
    /// Cloud snapshot with this id.
    Cloudsnap(CloudSnapshotId),
}

/// Action on an existing volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
enum ReplacePolicy {
    #[default]
    Retain,
    Delete,
}

/// Restore.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Restore {
    /// Backup location.
    #[serde(rename = "backupLocation")]
    pub location: CredentialName,
    backup_name: Option<ObjectName>,
    #[serde(rename = "cloudSnapshotId")]
    cloudsnap_id: Option<CloudSnapshotId>,
    source_volume: Option<VolumeName>,
    /// New volume, which the checks name after the object.
    pub destination_volume: Option<VolumeName>,
    #[serde(default, skip_serializing)]
    replace_policy: ReplacePolicy,
    /// The volume is available at once and fetches blocks on first access.
    #[serde(default, skip_serializing)]
    pub lazy: bool,
    /// Continue past damaged extents.
    #[serde(default, skip_serializing)]
    pub skip_damaged: bool,
}

impl Restore {
    /// Returns the backup.
    pub fn source(&self) -> Option<RestoreSource<'_>> {
        let by_name =
            self.backup_name.as_ref().map(|name| RestoreSource::Backup(name, self.source_volume.as_ref()));
        by_name.or(self.cloudsnap_id.map(RestoreSource::Cloudsnap))
    }
}

impl Spec for Restore {
    fn check(&mut self, name: &str) -> Result<(), FieldError> {
        let refused = |path: &str, message: &str| Err((path.to_owned(), message.to_owned()));
        if self.backup_name.is_some() == self.cloudsnap_id.is_some() {
            return refused("backupName", "one of `backupName` and `cloudSnapshotId` is expected");
        }
        if self.replace_policy == ReplacePolicy::Delete {
            let message = "an existing volume is not replaced: see `blockctl cloudsnap restore --in-place`";
            return refused("replacePolicy", message);
        }
        if self.lazy && self.skip_damaged {
            return refused("skipDamaged", "a lazy volume cannot skip damaged extents");
        }
        name_volume(&mut self.destination_volume, name)
    }
}

/// Clone.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeClone {
    /// Volume to clone.
    #[serde(rename = "sourceVolume")]
    pub source: VolumeName,
    /// Snapshot to clone; a new one by default.
    pub snapshot: Option<SnapshotName>,
    /// New volume, which the checks name after the object.
    pub destination_volume: Option<VolumeName>,
}

impl VolumeClone {
    /// Returns the name of the snapshot; a unique one if it is to be taken.
    pub fn snapshot_name(&self) -> Option<SnapshotName> {
        self.snapshot.clone().or_else(|| format!("{SNAPSHOT_PREFIX}{}", Uuid::new_v4()).parse().ok())
    }

    /// Returns a snapshot of the source.
    pub fn snapshot(&self, name: SnapshotName) -> SnapshotRef {
        SnapshotRef::Named { volume: VolumeRef::Name(self.source.clone()), name }
    }

    /// Returns true if a volume with this origin is the described clone.
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

impl Spec for VolumeClone {
    fn check(&mut self, name: &str) -> Result<(), FieldError> {
        name_volume(&mut self.destination_volume, name)
    }
}

/// Names the new volume of an object after the object, unless it has a name.
fn name_volume(volume: &mut Option<VolumeName>, object: &str) -> Result<(), FieldError> {
    if volume.is_none() {
        let name = object.parse().map_err(|error| ("destinationVolume".to_owned(), format!("{error}")))?;
        *volume = Some(name);
    }
    Ok(())
}
