//! References of objects to others.

use super::resources::ResourceSet;
use crate::objects::{
    Body, Kind, Object,
    backup::Backup,
    volumes::{VolumeClone, snapshot_of},
};
use blockd_api::{
    ApiError, CredentialName, ErrorCode, ObjectName, VolumeName, schedules::PolicyName, snapshots::Snapshot,
};

impl ResourceSet {
    /// Returns the error of an object that names another one which neither exists nor is made by the call.
    pub fn missing_reference(&self, object: &Object) -> Option<ApiError> {
        match &object.body {
            Body::Backup(backup) | Body::Snapshot(backup) => self.missing_of_backup(backup),
            Body::Schedule(schedule) => {
                let (backup, policy) = (schedule.backup(), schedule.policy());
                let missing = self.missing_of_backup(backup).or_else(|| self.missing_policy(policy?));
                // Restores and clones follow schedules.
                let is_missing = |volume: &&VolumeName| self.volume(volume).is_none();
                missing.or_else(|| backup.volume.iter().find(is_missing).map(no_volume))
            }
            Body::Drill(drill) => {
                let selection = drill.selection();
                let missing = self.missing_of_backup(&selection);
                let missing = missing.or_else(|| self.missing_policy(drill.policy()?));
                let is_missing = |volume: &&VolumeName| self.volume(volume).is_none();
                missing.or_else(|| selection.volume.iter().find(is_missing).map(no_volume))
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

    fn missing_source(&self, clone: &VolumeClone) -> Option<ApiError> {
        let source = clone.source.as_ref()?;
        // A restore of all volumes of a backup may make it.
        let is_it = |one: &Option<VolumeName>| one.as_ref().is_none_or(|one| one == source);
        let volume = self.volume(source);
        if volume.is_none() && !self.file_volumes.iter().any(is_it) {
            return Some(no_volume(source));
        }
        let snapshot = clone.snapshot.as_ref()?;
        // The files take snapshots before they make volumes.
        let is_there = volume.is_some_and(|volume| {
            let has = |one: &Snapshot| one.volume_id == volume.volume_id && one.name == *snapshot;
            let takes = |(name, backup): &(ObjectName, Backup)| {
                name.as_str() == snapshot.as_str()
                    && self.members(backup).any(|member| member.volume_id == volume.volume_id)
            };
            self.snapshots.iter().any(has) || self.file_snapshots.iter().any(takes)
        });
        let missing = format!("there is no snapshot {}", snapshot_of(source, snapshot.clone()));
        let hint = "`blockctl snapshot list` shows the local snapshots";
        (!is_there).then(|| ApiError::new(ErrorCode::SnapshotNotFound, missing).with_hint(hint))
    }
}

/// Hint about missing volumes.
pub const VOLUME_LIST: &str = "`blockctl volume list` shows the volumes";

/// Returns the error of a volume that does not exist.
pub fn no_volume(name: &VolumeName) -> ApiError {
    ApiError::new(ErrorCode::VolumeNotFound, format!("there is no volume {name}")).with_hint(VOLUME_LIST)
}

/// Returns the error of labels that no volume has.
pub fn no_label(labels: &str, first: &str) -> String {
    format!("no volume has the label {labels}; set it with `blockctl volume update VOLUME --label +{first}`")
}
