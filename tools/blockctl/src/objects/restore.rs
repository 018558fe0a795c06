//! Restores: each is made once, as a new volume.

use super::values::name_volume;
use blockd_api::{CredentialName, ObjectName, VolumeName, cloudsnaps::CloudSnapshotId};
use serde::{Deserialize, Serialize};

/// Backup of a restore.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Source<'a> {
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Restore {
    /// Backup location.
    #[serde(rename = "backupLocation")]
    pub location: CredentialName,
    backup_name: Option<ObjectName>,
    #[serde(rename = "cloudSnapID")]
    cloudsnap_id: Option<CloudSnapshotId>,
    source_volume: Option<VolumeName>,
    destination_volume: Option<VolumeName>,
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
    /// Checks what the types do not, and names the new volume.
    ///
    /// # Errors
    /// Field and cause.
    pub fn check(&mut self, name: &ObjectName) -> Result<(), (&'static str, String)> {
        if self.backup_name.is_some() == self.cloudsnap_id.is_some() {
            return Err(("backupName", "one of `backupName` and `cloudSnapID` is expected".to_owned()));
        }
        if self.replace_policy == ReplacePolicy::Delete {
            let message = "an existing volume is not replaced: see `blockctl cloudsnap restore --in-place`";
            return Err(("replacePolicy", message.to_owned()));
        }
        if self.lazy && self.skip_damaged {
            return Err(("skipDamaged", "a lazy volume cannot skip damaged extents".to_owned()));
        }
        name_volume(&mut self.destination_volume, name)
    }

    /// Returns the new volume, which [`check`](Self::check) names.
    pub fn target(&self) -> &str {
        self.destination_volume.as_ref().map_or("", VolumeName::as_str)
    }

    /// Returns the backup.
    pub fn source(&self) -> Option<Source<'_>> {
        let by_name = self.backup_name.as_ref().map(|name| Source::Backup(name, self.source_volume.as_ref()));
        by_name.or(self.cloudsnap_id.map(Source::Cloudsnap))
    }
}
