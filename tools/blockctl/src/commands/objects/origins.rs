//! Origins of restored volumes, and backups that do not exist yet.

use super::{backups::is_named, resources::ResourceSet};
use crate::objects::{
    Kind,
    volumes::{Restore, RestoreSource},
};
use blockd_api::{CredentialName, ObjectName, RESTORED_FROM, cloudsnaps::Cloudsnap, volumes::Volume};
use std::collections::BTreeSet;

impl ResourceSet {
    /// Returns true if a volume was restored from the backup of a restore, or from one that is not listed any
    /// more.
    pub fn is_restored(&self, restore: &Restore, volume: &Volume) -> bool {
        let (Some(RestoreSource::Backup(name, source)), location) = (restore.source(), &restore.location)
        else {
            return false;
        };
        let task = self.restore_task(volume);
        let place = task.and_then(|task| task.credential_name.as_ref());
        if location.is_some() && place.is_some() && place != location.as_ref() {
            return false;
        }
        let origin = task.and_then(|task| task.cloud_snapshot_id.as_ref());
        let Some(origin) = origin.or_else(|| volume.labels.as_map().get(RESTORED_FROM)) else { return false };
        let is_meant = |one: &Cloudsnap| {
            let names = [one.volume_name.as_str(), self.present_name(one)];
            is_named(one, name.as_str(), location.as_ref())
                && source.is_none_or(|source| names.contains(&source.as_str()))
        };
        let mut listed = self.cloudsnaps.iter().flatten();
        listed.find(|one| one.cloud_snapshot_id.to_string() == *origin).is_none_or(is_meant)
    }

    /// Returns true if an object of this command may make a backup: its own, or a new location that has it.
    pub fn makes_backup(&self, name: &ObjectName, location: Option<&CredentialName>) -> bool {
        let is_new = |(kind, place): &(Kind, String)| {
            *kind == Kind::BackupLocation
                && location.is_none_or(|location| location.as_str() == place)
                && self.credential(place).is_none()
        };
        let is_made = self.backups_named(name.as_str(), location).next().is_some();
        self.file_objects.iter().any(is_new)
            || (!is_made && self.file_objects.contains(&(Kind::VolumeBackup, name.to_string())))
    }

    /// Returns the present names of the volumes of a backup, and the former ones: of this host, or of others
    /// if it has none.
    pub fn volumes_of(&self, name: &ObjectName, location: Option<&CredentialName>) -> String {
        let named = |one: &Cloudsnap| match (self.present_name(one), one.volume_name.as_str()) {
            (now, then) if now == then => now.to_owned(),
            (now, then) => format!("{now} ({then} at the time of the backup)"),
        };
        let mut found: Vec<&Cloudsnap> = self.backups_named(name.as_str(), location).collect();
        if found.is_empty() {
            let all = self.cloudsnaps.iter().flatten();
            found.extend(all.filter(|one| is_named(one, name.as_str(), location)));
        }
        found.into_iter().map(named).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
    }
}
