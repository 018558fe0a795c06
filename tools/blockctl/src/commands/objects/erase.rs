//! Deletes backups.

use super::{
    api,
    plan::{is_backup_of, is_task_of, listed, place, unlisted},
    resources::{ResourceSet, backup_name},
};
use crate::{commands::Context, failure::Failure, objects::backup::Volumes, wait::follow};
use blockd_api::{
    ApiError, CredentialName, ErrorCode, VolumeName,
    cloudsnaps::{CloudSnapshotId, Cloudsnap, StartDelete},
    tasks::{StopTask, Task, TaskKind, TaskStage},
};

/// Selection of volumes.
#[derive(Debug)]
pub enum DeleteScope {
    /// Of this one, or of any: one backup at most.
    Only(Option<VolumeName>),
    /// Of those that an object says: all there are.
    All(Volumes),
}

/// Backups to delete.
#[derive(Debug)]
pub struct Target {
    /// Name.
    pub name: String,
    /// The one with this id, if the name is one.
    pub id: Option<CloudSnapshotId>,
    /// Location; all by default.
    pub location: Option<CredentialName>,
    /// Selection of volumes.
    pub which: DeleteScope,
}

/// Returns the stored backups of a name.
fn named<'a>(world: &'a ResourceSet, target: &'a Target) -> impl Iterator<Item = &'a Cloudsnap> {
    world.cloudsnaps.iter().flatten().filter(|found| {
        let is_meant = match target.id {
            Some(id) => found.id == id,
            None => backup_name(found) == target.name,
        };
        is_meant
            && target.location.as_ref().is_none_or(|place| found.metadata.credential_name == place.as_str())
    })
}

/// The backups of the name that are not done.
fn tasks<'a>(world: &'a ResourceSet, target: &'a Target) -> impl Iterator<Item = &'a Task> {
    world.tasks.iter().filter(|task| {
        task.state.kind == TaskKind::Backup
            && (!task.state.stage.is_over() || task.resumable)
            && task.label.as_ref().is_some_and(|label| label.as_str() == target.name)
            && target.location.as_ref().is_none_or(|place| task.credential_name.as_ref() == Some(place))
            && match &target.which {
                DeleteScope::Only(volume) => {
                    volume.as_ref().is_none_or(|volume| task.volume.as_ref() == Some(volume))
                }
                DeleteScope::All(volumes) => is_task_of(world, volumes, task),
            }
    })
}

/// Returns true for an existing backup of the name.
///
/// # Errors
/// A location that may have it cannot be listed.
pub fn is_there(world: &ResourceSet, target: &Target) -> Result<bool, ApiError> {
    let is_stored = named(world, target).next().is_some();
    // An id is of one cloud snapshot, wherever else it may be.
    if !(target.id.is_some() && is_stored) {
        let unknown = match &target.location {
            Some(location) => unlisted(world, location),
            None => world.credentials.iter().find_map(|one| unlisted(world, &one.name)),
        };
        if let Some(error) = unknown {
            let message = format!("VolumeBackup/{}: {}", target.name, error.message);
            return Err(ApiError { message, ..error });
        }
    }
    Ok(is_stored || tasks(world, target).next().is_some())
}

/// The cloud snapshots that go.
///
/// # Errors
/// There are several, and it is not said which.
fn chosen<'a>(world: &'a ResourceSet, target: &'a Target) -> Result<Vec<&'a Cloudsnap>, ApiError> {
    let mut found: Vec<&Cloudsnap> = named(world, target)
        .filter(|one| match &target.which {
            DeleteScope::Only(volume) => {
                volume.as_ref().is_none_or(|volume| volume.as_str() == one.src_volume_name)
            }
            DeleteScope::All(volumes) => is_backup_of(world, volumes, one),
        })
        .collect();
    // Two locations may lead to one place.
    found.sort_by_key(|one| one.id);
    found.dedup_by_key(|one| one.id);
    if matches!(target.which, DeleteScope::Only(_)) && found.len() > 1 {
        let what = format!(
            "VolumeBackup/{} is there several times ({}): say which with --location and --volume, or give its id in place of the name",
            target.name,
            listed(&found)
        );
        return Err(ApiError::new(ErrorCode::InvalidRequest, what));
    }
    Ok(found)
}

/// Deletes them and says what was done.
pub async fn erase(
    context: &Context<'_>,
    target: &Target,
    world: &ResourceSet,
    dry_run: bool,
) -> Result<&'static str, Failure> {
    let client = &context.client;
    if !is_there(world, target).map_err(api)? {
        return Ok("not there");
    }
    let (found, tasks) = (chosen(world, target).map_err(api)?, tasks(world, target).collect::<Vec<_>>());
    if let Some(task) = tasks.iter().find(|task| !task.state.stage.is_over()) {
        let what = format!(
            "VolumeBackup/{} is being made: see `blockctl cloudsnap stop --name {} --discard`",
            target.name, task.name
        );
        return Err(api(ApiError::new(ErrorCode::CloudsnapNotDone, what)));
    }
    if found.is_empty() && tasks.is_empty() {
        return Ok("not there");
    }
    // Before anything goes: one of several that is refused leaves the others.
    if let Some(one) = found.iter().find(|one| one.metadata.pinned.as_deref() == Some("true")) {
        let what = format!(
            "VolumeBackup/{}: cloud snapshot {} is pinned: see `blockctl cloudsnap unpin --snap {}`",
            target.name, one.id, one.id
        );
        return Err(api(ApiError::new(ErrorCode::CloudsnapPinned, what)));
    }
    for task in tasks {
        if !dry_run {
            client.stop_task(task.name, &StopTask { discard: true }).await?;
        }
    }
    for one in found {
        if dry_run {
            continue;
        }
        let place = one.metadata.credential_name.parse().ok().map(|name| place(&name));
        // It is short, and what needs the place cannot go before.
        let started = client.start_delete(&StartDelete { cred_id: place, ..StartDelete::of(one.id) }).await?;
        let ended = follow(client, started.task, context.output).await?;
        if ended.state.stage != TaskStage::Done {
            let stopped = || {
                let what = format!("the deletion of {} was stopped (task {})", one.id, ended.name);
                ApiError::new(ErrorCode::TaskStopped, what)
            };
            return Err(api(ended.error.clone().unwrap_or_else(stopped)));
        }
    }
    Ok("deleted")
}
