//! References of objects to others.

use super::resources::ResourceSet;
use crate::objects::{
    Body, Kind, Object,
    backup::Backup,
    volumes::{VolumeClone, snapshot_of},
};
use blockd_api::{ApiError, CredentialName, ErrorCode, VolumeName, schedules::PolicyName};

impl ResourceSet {
    /// Returns the error of an object that names another one which neither exists nor is made by the call.
    pub fn missing_reference(&self, object: &Object) -> Option<ApiError> {
        match &object.body {
            Body::Backup(backup) | Body::Snapshot(backup) => self.missing_of_backup(backup),
            Body::Schedule(schedule) => {
                let (backup, policy) = (schedule.backup(), schedule.policy());
                let missing = self.missing_of_backup(backup).or_else(|| self.missing_policy(policy?));
                missing.or_else(|| backup.volume.iter().find_map(|volume| self.missing_volume(volume)))
            }
            Body::Restore(restore) => {
                let missing = restore.location.as_ref().and_then(|location| self.missing_location(location));
                missing.or_else(|| self.missing_cloudsnap(restore))
            }
            Body::Clone(clone) => self.missing_source(clone),
            Body::Location(_) | Body::Policy(_) | Body::Rule(_) => None,
        }
    }

    fn missing(&self, kind: Kind, name: &str, is_there: bool) -> Option<ApiError> {
        let is_there = is_there || self.file_objects.contains(&(kind, name.to_owned()));
        (!is_there).then(|| kind.missing(name))
    }

    fn missing_location(&self, name: &CredentialName) -> Option<ApiError> {
        self.missing(Kind::BackupLocation, name.as_str(), self.credential(name.as_str()).is_some())
    }

    fn missing_policy(&self, name: &PolicyName) -> Option<ApiError> {
        let is_there = self.policies.iter().any(|policy| policy.name == *name);
        self.missing(Kind::SchedulePolicy, name.as_str(), is_there)
    }

    /// Returns the error of a missing location or rule. Rules may be hidden.
    fn missing_of_backup(&self, backup: &Backup) -> Option<ApiError> {
        let missing = backup.backup_location.iter().find_map(|name| self.missing_location(name));
        missing.or_else(|| {
            let rule = backup.rule().filter(|_| self.rules_hidden.is_none())?;
            self.missing(Kind::Rule, rule.as_str(), self.rule(rule.as_str()).is_some())
        })
    }

    fn missing_volume(&self, name: &VolumeName) -> Option<ApiError> {
        // A restore of all volumes of a backup may make it.
        let is_it = |one: &Option<VolumeName>| one.as_ref().is_none_or(|one| one == name);
        let is_there = self.volume(name).is_some() || self.file_volumes.iter().any(is_it);
        (!is_there).then(|| ApiError::new(ErrorCode::VolumeNotFound, format!("there is no volume {name}")))
    }

    fn missing_source(&self, clone: &VolumeClone) -> Option<ApiError> {
        let source = clone.source.as_ref()?;
        if let Some(error) = self.missing_volume(source) {
            return Some(error);
        }
        let (snapshot, volume) = (clone.snapshot.as_ref()?, self.volume(source)?);
        let is_it = |id, name: &str| id == volume.volume_id && name == snapshot.as_str();
        let is_there = self.snapshots.iter().any(|one| is_it(one.volume_id, one.name.as_str()))
            || self.file_objects.contains(&(Kind::VolumeSnapshot, snapshot.to_string()));
        let missing = format!("there is no snapshot {}", snapshot_of(source, snapshot.clone()));
        (!is_there).then(|| ApiError::new(ErrorCode::SnapshotNotFound, missing))
    }
}
