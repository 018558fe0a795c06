//! Sources of restores: cloud snapshots by their id or by the name of a backup, also of one that this command
//! makes.

use super::{
    backups::{is_listed_as, is_of_one_volume, listed},
    resources::ResourceSet,
};
use crate::{
    commands::cloudsnap::list::given_name,
    objects::{
        Kind, Object,
        volumes::{Restore, RestoreSource, with_labels},
    },
};
use blockd_api::{
    ApiError, CredentialName, ErrorCode, Labels, RESTORED_BY, RESTORED_FROM, VolumeName,
    cloudsnaps::{CloudSnapshotId, Cloudsnap},
    volumes::Volume,
};
use std::collections::BTreeSet;

/// Restored volume.
#[derive(Clone, Debug)]
pub struct RestoreTarget {
    pub snap: CloudSnapshotId,
    pub volume: VolumeName,
    /// Labels of a new volume; `None` if the cloud snapshot is not listed.
    pub labels: Option<Labels>,
}

impl RestoreTarget {
    /// Returns the labels of a restore. Its task is forgotten in time: without them, the volume would not be
    /// found under the name of the object, and a later `apply` could restore again.
    ///
    /// # Errors
    /// The name is too long.
    pub fn restore_labels(&self, object: &Object) -> Result<Labels, ApiError> {
        let own = [(RESTORED_FROM, self.snap.to_string()), (RESTORED_BY, object.name.to_string())];
        Ok(with_labels(&Labels::default(), own)?)
    }

    /// Returns the labels of a volume after the restore.
    ///
    /// # Errors
    /// They are too many, or the names of earlier restores too long.
    pub fn labelled(&self, object: &Object, labels: &Labels) -> Result<Labels, ApiError> {
        let own = self.restore_labels(object)?;
        let labels = labels.clone().replaced_by(&own).map_err(|error| {
            ApiError::from(error)
                .with_hint("`blockctl delete VolumeRestore NAME` removes the name of an earlier restore")
        })?;
        let labels = labels.overlaid_by(&own);
        Ok(with_labels(&labels, [])?)
    }
}

impl ResourceSet {
    /// Returns the volumes of a restore.
    ///
    /// # Errors
    /// There is no such backup, it has none of the wanted volumes, or the source is ambiguous.
    pub fn restore_targets(&self, restore: &Restore) -> Result<Vec<RestoreTarget>, ApiError> {
        match (restore.source(), &restore.destination_volume) {
            (Some(RestoreSource::Cloudsnap(snap)), Some(volume)) => {
                let labels = self.listed(snap, None).map(|one| one.labels.clone());
                Ok(vec![RestoreTarget { snap, volume: volume.clone(), labels }])
            }
            (Some(RestoreSource::Backup(name, source)), Some(volume)) => {
                let one = self.source(restore, name, source)?;
                let (snap, labels) = (one.cloud_snapshot_id, Some(one.labels.clone()));
                Ok(vec![RestoreTarget { snap, volume: volume.clone(), labels }])
            }
            (Some(RestoreSource::Backup(name, _)), None) => self.all_targets(restore, name),
            (Some(RestoreSource::Schedule(name)), _) => Err(self.no_scheduled(restore, name)),
            _ => Ok(Vec::new()),
        }
    }

    /// Returns the cloud snapshot of an id, in one location or in any.
    fn listed(&self, id: CloudSnapshotId, location: Option<&CredentialName>) -> Option<&Cloudsnap> {
        let is_in =
            |one: &Cloudsnap| location.is_none_or(|location| one.credential_name == location.as_str());
        self.cloudsnaps.iter().flatten().find(|one| one.cloud_snapshot_id == id && is_in(one))
    }

    /// Returns the cloud snapshots of a name for a restore: those of this host, or of another one.
    ///
    /// # Errors
    /// A location cannot be listed, there are none, one that is needed is being made, or they are those of
    /// several hosts, or several with one short id.
    fn restorable<'a>(&'a self, restore: &'a Restore, name: &'a str) -> Result<Vec<&'a Cloudsnap>, ApiError> {
        let location = restore.location.as_ref();
        if let Some(error) = self.unlisted(&format!("VolumeBackup/{name}"), location) {
            return Err(error);
        }
        let mut found: Vec<&Cloudsnap> = self.backups_named(name, location).collect();
        let is_own = !found.is_empty() || self.under_way(name, location).next().is_some();
        if !is_own {
            let all = self.cloudsnaps.iter().flatten();
            found = all.filter(|one| is_listed_as(one, name, location)).collect();
        }
        // Two locations may lead to one store.
        found.sort_by_key(|one| one.cloud_snapshot_id);
        found.dedup_by_key(|one| one.cloud_snapshot_id);
        if self.awaited(restore).next().is_some() {
            let message =
                format!("VolumeBackup/{name} is not done yet: apply this again when it is, or with --wait");
            return Err(ApiError::new(ErrorCode::CloudsnapNotFound, message));
        }
        if found.is_empty() && !is_own {
            let place = location.map(|location| format!(" in BackupLocation/{location}"));
            let message = format!("there is no VolumeBackup/{name}{}", place.unwrap_or_default());
            let hint = self.hint_about_missing(name);
            return Err(ApiError::new(ErrorCode::CloudsnapNotFound, message).with_hint(hint));
        }
        let mut clusters = found.iter().map(|one| one.cloud_snapshot_id.cluster);
        // Several short ids may be equal; they are no backup of several volumes.
        let are_ids = found.len() > 1 && found.iter().all(|one| given_name(one).is_none());
        match are_ids || clusters.next().is_some_and(|first| clusters.any(|other| other != first)) {
            true => Err(ambiguous(restore, name, &found)),
            false => Ok(found),
        }
    }

    /// Returns the present name of the volume of a backup; the name at its time, if this host has no such
    /// volume.
    pub(super) fn present_name<'a>(&'a self, one: &'a Cloudsnap) -> &'a str {
        let is_own = self.own == Some(one.cloud_snapshot_id.cluster);
        let known = self.volumes.iter().find(|volume| is_own && volume.volume_id == one.volume_id);
        known.map_or(one.volume_name.as_str(), |volume| volume.name.as_str())
    }

    /// Returns the cloud snapshot of a restore of one volume of a backup.
    fn source<'a>(
        &'a self,
        restore: &'a Restore,
        name: &'a str,
        volume: Option<&VolumeName>,
    ) -> Result<&'a Cloudsnap, ApiError> {
        let found = self.restorable(restore, name)?;
        let is_meant =
            |one: &&Cloudsnap| volume.is_none_or(|volume| self.present_name(one) == volume.as_str());
        let meant: Vec<&Cloudsnap> = found.iter().copied().filter(is_meant).collect();
        match (meant.as_slice(), volume) {
            ([one], _) => Ok(one),
            ([], Some(volume)) => {
                let coming: Vec<_> = self.volumes_under_way(name, restore.location.as_ref()).collect();
                Err(self.no_volume(name, volume, &found, &coming))
            }
            (several, _) => Err(ambiguous(restore, name, several)),
        }
    }

    /// Returns the error of a backup that lacks a volume and has others.
    fn no_volume(
        &self,
        name: &str,
        volume: &VolumeName,
        stored: &[&Cloudsnap],
        coming: &[&Volume],
    ) -> ApiError {
        let named = |one: &&Cloudsnap| match (self.present_name(one), one.volume_name.as_str()) {
            (now, then) if now == then => now.to_owned(),
            (now, then) => format!("{now} ({then} at the time of the backup)"),
        };
        let coming = coming.iter().map(|volume| volume.name.to_string());
        let volumes: BTreeSet<String> = stored.iter().map(named).chain(coming).collect();
        let volumes = volumes.into_iter().collect::<Vec<_>>().join(", ");
        let message = format!("VolumeBackup/{name} has no volume {volume}: its volumes are {volumes}");
        ApiError::new(ErrorCode::VolumeNotFound, message)
    }

    /// Returns the volumes of a restore of all volumes of a backup.
    fn all_targets(&self, restore: &Restore, name: &str) -> Result<Vec<RestoreTarget>, ApiError> {
        let found = self.restorable(restore, name)?;
        let mut targets: Vec<RestoreTarget> = Vec::new();
        for one in found.iter().filter(|one| restore.selects(&one.labels)) {
            let (volume, labels) = restore.destination(self.present_name(one), &one.labels)?;
            let id = one.cloud_snapshot_id;
            let volume: VolumeName = volume
                .parse()
                .map_err(|error| ApiError::new(ErrorCode::InvalidRequest, format!("{id}: {error}")))?;
            if targets.iter().any(|other| other.volume == volume) {
                return Err(ambiguous(restore, name, &found));
            }
            targets.push(RestoreTarget { snap: id, volume, labels: Some(labels) });
        }
        match targets.is_empty() {
            true => {
                Err(no_selected_volume(name, found.iter().map(|one| (one.volume_name.as_str(), &one.labels))))
            }
            false => Ok(targets),
        }
    }

    /// Returns true if a cloud snapshot is known to be of another source than that of a restore: it is
    /// another one, or listed as one of another backup or volume. Without a listing, it may be of the source.
    pub fn is_of_other_source(&self, restore: &Restore, id: CloudSnapshotId) -> bool {
        let (name, source) = match restore.source() {
            Some(RestoreSource::Backup(name, source)) => (name, source),
            Some(RestoreSource::Cloudsnap(wanted)) => return id != wanted,
            Some(RestoreSource::Schedule(_)) => return self.listed(id, None).is_some(),
            None => return false,
        };
        let all = || self.cloudsnaps.iter().flatten();
        let is_of_backup = |one: &&Cloudsnap| is_listed_as(one, name, restore.location.as_ref());
        let is_of_volume = |one: &Cloudsnap| {
            source.is_none_or(|source| {
                [one.volume_name.as_str(), self.present_name(one)].contains(&source.as_str())
            })
        };
        let is_it = |one: &&Cloudsnap| one.cloud_snapshot_id == id;
        let mut same = all().filter(is_it).filter(is_of_backup).peekable();
        if same.peek().is_none() {
            return all().any(|one| is_it(&one));
        }
        // Its volume may have had the wanted name in between, unless another volume of the backup had it.
        let had_name = |one: &Cloudsnap| source.is_some_and(|source| one.volume_name == source.as_str());
        !same.any(is_of_volume) && all().filter(is_of_backup).any(had_name)
    }

    /// Checks that objects of this command make the backup of a restore: their own, or a new location that
    /// may have it.
    ///
    /// # Errors
    /// The given error without such an object, or that of a backup that will not have the volumes.
    pub fn expect_backup(&self, restore: &Restore, error: ApiError) -> Result<(), ApiError> {
        let location = restore.location.as_ref();
        if self.makes_location(location) {
            return Ok(());
        }
        let Some(RestoreSource::Backup(name, volume)) = restore.source() else { return Err(error) };
        let coming = self.coming_for(restore, name);
        match volume {
            _ if coming.is_empty() => Err(error),
            Some(volume) if coming.iter().all(|one| one.name != *volume) => {
                let stored: Vec<_> = self.backups_named(name, location).collect();
                Err(self.no_volume(name, volume, &stored, &coming))
            }
            None if !coming.iter().any(|one| restore.selects(&one.labels)) => {
                Err(no_selected_volume(name, coming.iter().map(|one| (one.name.as_str(), &one.labels))))
            }
            _ => Ok(()),
        }
    }

    /// Returns the volumes of the backup of a restore that this command makes.
    fn coming_for(&self, restore: &Restore, name: &str) -> Vec<&Volume> {
        let is_it = |location: Option<&CredentialName>| {
            restore.location.as_ref().is_none_or(|wanted| location == Some(wanted))
        };
        let backups =
            self.file_backups.iter().filter(|(of, backup)| of.as_str() == name && is_it(backup.location()));
        backups.flat_map(|(name, backup)| self.coming(name.as_str(), backup)).collect()
    }

    /// Returns the new volumes of a restore of all volumes of a backup that this command or a task makes.
    pub fn expected_volumes(&self, restore: &Restore) -> Vec<VolumeName> {
        let Some(RestoreSource::Backup(name, _)) = restore.source() else { return Vec::new() };
        let coming = self.coming_for(restore, name).into_iter();
        let sources = coming.chain(self.volumes_under_way(name, restore.location.as_ref()));
        let selected = sources.filter(|source| restore.selects(&source.labels));
        let names =
            selected.filter_map(|source| restore.destination(source.name.as_str(), &source.labels).ok());
        let names = names.map(|(name, _)| name);
        names.filter_map(|name| name.parse().ok()).collect()
    }

    /// Returns true if this command adds a location: this one, or any.
    fn makes_location(&self, location: Option<&CredentialName>) -> bool {
        self.file_objects.iter().any(|(kind, place)| {
            *kind == Kind::BackupLocation
                && location.is_none_or(|location| location.as_str() == place)
                && self.credential(place).is_none()
        })
    }

    /// Returns the error of a restore of a cloud snapshot that is not there.
    pub fn missing_cloudsnap(&self, restore: &Restore) -> Option<ApiError> {
        let (Some(RestoreSource::Cloudsnap(id)), location) = (restore.source(), restore.location.as_ref())
        else {
            return None;
        };
        if self.listed(id, location).is_some() || self.makes_location(location) {
            return None;
        }
        let name = format!("cloud snapshot {id}");
        let place = location.map(|location| format!(" in BackupLocation/{location}"));
        let message = format!("there is no {name}{}", place.unwrap_or_default());
        let missing = || ApiError::new(ErrorCode::CloudsnapNotFound, message);
        Some(self.unlisted(&name, location).unwrap_or_else(missing))
    }
}

/// Returns the error of a backup whose volumes, with their labels, are not selected.
fn no_selected_volume<'a>(name: &str, volumes: impl Iterator<Item = (&'a str, &'a Labels)>) -> ApiError {
    let volumes: Vec<String> = volumes.map(|(volume, labels)| format!("{volume} ({labels})")).collect();
    let message = format!(
        "VolumeBackup/{name} has no volume with the selected labels: its volumes are {}",
        volumes.join(", ")
    );
    ApiError::new(ErrorCode::VolumeNotFound, message)
}

/// Returns the error of several cloud snapshots for one volume, with the fields that select one.
fn ambiguous(restore: &Restore, name: &str, several: &[&Cloudsnap]) -> ApiError {
    let locations: BTreeSet<&str> = several.iter().map(|one| one.credential_name.as_str()).collect();
    let is_single = |location: &&str| {
        let mut there = several.iter().filter(|one| one.credential_name == **location);
        let first = there.next();
        there.all(|one| {
            // Of each volume one, if all are restored.
            restore.is_of_all()
                && first.is_some_and(|first| {
                    first.cloud_snapshot_id.cluster == one.cloud_snapshot_id.cluster
                        && first.volume_id != one.volume_id
                })
        })
    };
    let is_open = !restore.is_of_all() && matches!(restore.source(), Some(RestoreSource::Backup(_, None)));
    let fields = [
        ("sourceVolume", is_open && !is_of_one_volume(several)),
        ("backupLocation", locations.len() > 1),
        ("cloudSnapshotId", locations.len() == 1 || !locations.iter().all(is_single)),
    ];
    let fields: Vec<&str> =
        fields.into_iter().filter_map(|(field, selects)| selects.then_some(field)).collect();
    let message =
        format!("VolumeBackup/{name} is ambiguous ({}): name its {}", listed(several), fields.join(" or "));
    ApiError::new(ErrorCode::InvalidRequest, message)
}
