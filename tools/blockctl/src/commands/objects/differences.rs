//! Differences of backups and snapshots that stay: these are made once.

use super::resources::ResourceSet;
use crate::{
    objects::{Body, Object, backup::Backup},
    table::short_time,
};
use blockd_api::{ApiError, ErrorCode, first_names};

/// Returns the error of an object that names volumes which its backup or snapshot lacks: a new one would have
/// another point in time.
pub fn refuse_lacking(object: &Object, backup: &Backup, resources: &ResourceSet) -> Result<(), ApiError> {
    match lacking(object, backup, resources) {
        Some(lacking) if !backup.volume.is_empty() => {
            let message = format!("{lacking}: give a new one another name");
            let message = object.document.at(&object.volumes_field, message);
            Err(ApiError::new(ErrorCode::SnapshotExists, message))
        }
        _ => Ok(()),
    }
}

/// Returns warnings about an object that is not changed.
pub fn warnings_of_unchanged(object: &Object, resources: &ResourceSet) -> Vec<String> {
    let (Body::Backup(backup) | Body::Snapshot(backup)) = &object.body else { return Vec::new() };
    let lacking = lacking(object, backup, resources);
    let selected = lacking.map(|text| format!("{text} of the selected volumes: give a new one another name"));
    selected.into_iter().collect()
}

/// Describes the selected volumes that an existing backup or snapshot lacks.
fn lacking(object: &Object, backup: &Backup, resources: &ResourceSet) -> Option<String> {
    let name = object.name.as_str();
    let (made_at, missing) = match &object.body {
        Body::Snapshot(_) => {
            let of_member = resources.snapshots.iter().filter(|one| {
                one.name.as_str() == name
                    && resources.members(backup).any(|volume| volume.volume_id == one.volume_id)
            });
            (of_member.map(|one| one.created_at).min(), resources.without_snapshot(name, backup))
        }
        _ => {
            let missing = resources.not_backed_up(name, backup);
            (
                resources.backed_up_at(name, backup.location()),
                missing.into_iter().map(|one| one.name.clone()).collect(),
            )
        }
    };
    let made_at = made_at.filter(|_| !missing.is_empty())?;
    Some(format!("{object} of {} lacks {}", short_time(made_at), first_names(missing)))
}
