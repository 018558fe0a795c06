//! Differences of objects that stay, because they are made once.

use super::{
    clones::clone_plans,
    resources::ResourceSet,
    restore_plans::{VolumePlan, volume_plans},
    sources::RestoreTarget,
};
use crate::{
    objects::{Body, Object, backup::Backup, volumes::Restore},
    table::short_time,
};
use blockd_api::{ApiError, ErrorCode, VolumeName, cloudsnaps::Cloudsnap, first_names, volumes::Volume};
use jiff::{SignedDuration, Timestamp};

/// Maximum time from the request of a backup to its snapshot, for the comparison of its expiry.
const MAX_START: SignedDuration = SignedDuration::from_mins(5);

/// Returns the error of an object whose backup or snapshot lacks volumes that it names, or all that it
/// selects: a new one would have another point in time.
pub fn refuse_lacking(object: &Object, backup: &Backup, resources: &ResourceSet) -> Result<(), ApiError> {
    let Some((made_at, missing)) = lacking(object, backup, resources) else { return Ok(()) };
    let names = first_names(missing.iter().map(|volume| &volume.name));
    let lack = match backup.volume.is_empty() {
        false => format!("lacks {names}"),
        true if missing.len() == resources.members(backup).count() => {
            format!("has none of the selected volumes ({names})")
        }
        true => return Ok(()),
    };
    let message = format!("{object} of {} {lack}: give a new one another name", short_time(made_at));
    let message = object.document.at(&object.volumes_field, message);
    Err(ApiError::new(ErrorCode::SnapshotExists, message))
}

/// Differences of an object that is not changed.
#[derive(Default)]
pub struct Unchanged {
    pub warnings: Vec<String>,
    /// The file of a finished restore or clone names volumes that it neither has nor makes.
    pub lacks_volumes: bool,
}

/// Returns the differences of an object that is not changed.
pub fn differences(object: &Object, resources: &ResourceSet) -> Unchanged {
    let (pairs, earlier): (Vec<_>, _) = match &object.body {
        Body::Location(location) if location.is_other() => {
            let warnings = kept_default(object, resources).into_iter().collect();
            return Unchanged { warnings, lacks_volumes: false };
        }
        Body::Backup(backup) | Body::Snapshot(backup) => {
            let warnings = selected_differences(object, backup, resources);
            return Unchanged { warnings, lacks_volumes: false };
        }
        Body::Restore(restore) => {
            let planned = volume_plans(object, restore, resources).unwrap_or_default();
            let earlier = earlier(object, restore, &planned, resources);
            let name = |target: Option<RestoreTarget>| {
                target.map(|target| target.volume).or_else(|| restore.destination_volume.clone())
            };
            (planned.into_iter().filter_map(|one| Some((name(one.target)?, one.volume))).collect(), earlier)
        }
        Body::Clone(clone) => {
            let plans = clone_plans(object, clone, resources).unwrap_or_default().into_iter();
            let pairs = plans.filter_map(|one| Some((one.name, one.volume?.name.clone())));
            (pairs.collect(), Unchanged::default())
        }
        _ => return Unchanged::default(),
    };
    let renamed: Vec<String> = pairs
        .into_iter()
        .filter(|(name, now)| name != now)
        .map(|(name, now)| {
            format!("{object} has volume {now} and makes no {name}: give a new one another name")
        })
        .collect();
    let lacks_volumes = earlier.lacks_volumes || !renamed.is_empty();
    Unchanged { warnings: [renamed, earlier.warnings].concat(), lacks_volumes }
}

/// Describes a location that is the default and is not to be it, if the files make no other one the default.
fn kept_default(object: &Object, resources: &ResourceSet) -> Option<String> {
    let is_default = resources.credential(object.name.as_str())?.is_default;
    let text = format!("ignored: {object} stays the default until another location is");
    (is_default && !resources.files_set_default).then(|| object.document.at("location.default", text))
}

/// Describes selected volumes that an existing backup or snapshot lacks, and another expiry.
fn selected_differences(object: &Object, backup: &Backup, resources: &ResourceSet) -> Vec<String> {
    let selected = lacking(object, backup, resources).map(|(made_at, missing)| {
        let names = first_names(missing.iter().map(|volume| &volume.name));
        format!(
            "{object} of {} lacks {names} of the selected volumes: give a new one another name",
            short_time(made_at)
        )
    });
    selected.into_iter().chain(other_expiry(object, backup, resources)).collect()
}

/// Describes the volumes of a restore whose cloud snapshots are none of its source any more, and those that
/// it does not make, as it is of an earlier backup.
fn earlier(object: &Object, restore: &Restore, planned: &[VolumePlan], resources: &ResourceSet) -> Unchanged {
    let targets = match resources.restore_targets(restore) {
        Ok(targets) => targets,
        Err(error) if restore.is_of_all() => {
            let warnings = vec![format!("{object} makes no more volumes: {}", error.message)];
            return Unchanged { warnings, lacks_volumes: false };
        }
        Err(_) => return Unchanged::default(),
    };
    let is_planned = |volume: &VolumeName| planned.iter().any(|one| one.volume == *volume);
    let is_earlier = restore.is_of_all() && planned.iter().all(|one| one.target.is_none());
    let missing =
        targets.iter().map(|target| &target.volume).filter(|volume| is_earlier && !is_planned(volume));
    let missing: Vec<String> = missing
        .map(|volume| {
            format!("{object} is of an earlier backup and makes no {volume}: give a new one another name")
        })
        .collect();
    let volumes = resources.restored_by(object).filter(|made| is_planned(&made.name));
    let of = volumes.filter_map(|volume| Some((&volume.name, resources.content_by(object, volume)?)));
    let others = of.filter(|(_, id)| targets.iter().all(|target| target.snap != *id));
    let text = |(name, id)| {
        format!(
            "{object} has volume {name} of cloud snapshot {id}, which its source lacks now: give a new one another name"
        )
    };
    let lacks_volumes = !missing.is_empty();
    Unchanged { warnings: others.map(text).chain(missing).collect(), lacks_volumes }
}

/// Returns the time of an existing backup or snapshot, and the selected volumes that it neither has nor gets.
fn lacking<'a>(
    object: &Object,
    backup: &'a Backup,
    resources: &'a ResourceSet,
) -> Option<(Timestamp, Vec<&'a Volume>)> {
    let name = object.name.as_str();
    let (made_at, missing) = match &object.body {
        Body::Snapshot(_) => (resources.snapshot_at(name), resources.without_snapshot(name, backup)),
        _ => (resources.backed_up_at(name, backup.location()), resources.not_backed_up(name, backup)),
    };
    Some((made_at.filter(|_| !missing.is_empty())?, missing))
}

/// Describes the time to live of the file, if an existing backup has another one: it is that of a new backup.
fn other_expiry(object: &Object, backup: &Backup, resources: &ResourceSet) -> Option<String> {
    let ttl = backup.ttl()?;
    let stored = resources.backups_named(object.name.as_str(), backup.location());
    let mut stored = stored.filter(|one| resources.is_backup_of(backup, one));
    // The time to live begins at the request, before the snapshot.
    let is_other = |one: &&Cloudsnap| {
        let left = one.expires_at.map(|expires_at| expires_at.duration_since(one.created_at));
        left.is_none_or(|left| left > ttl || left < ttl - MAX_START)
    };
    let expires_at = stored.find(is_other)?.expires_at;
    let expires = expires_at.map_or("does not expire".to_owned(), |at| format!("expires {}", short_time(at)));
    let message = format!("ignored: {object} exists and {expires}; `blockctl cloudsnap expire` changes that");
    Some(object.document.at("spec.ttl", message))
}

impl ResourceSet {
    /// Returns the time of the local snapshots of a name, of the first one; `None` without any.
    pub fn snapshot_at(&self, name: &str) -> Option<Timestamp> {
        let named = self.snapshots.iter().filter(|one| one.name.as_str() == name);
        named.map(|one| one.created_at).min()
    }

    /// Returns the selected volumes without a local snapshot of a name.
    fn without_snapshot<'a>(&'a self, name: &str, backup: &'a Backup) -> Vec<&'a Volume> {
        let is_missing = |volume: &&Volume| {
            !self.snapshots.iter().any(|one| one.volume_id == volume.volume_id && one.name.as_str() == name)
        };
        self.members(backup).filter(is_missing).collect()
    }
}
