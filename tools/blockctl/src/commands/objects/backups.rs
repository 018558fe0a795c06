//! Backups of a name: their volumes, the source of a restore, and their deletion.

use super::resources::{ResourceSet, backup_name, is_volume};
use crate::{
    failure::Failure,
    objects::{
        backup::Backup,
        volumes::{Restore, RestoreSource},
    },
    output::Context,
    wait::follow,
};
use blockd_api::{
    ApiError, CredentialName, CredentialRef, ErrorCode, VolumeId, VolumeName, VolumeRef,
    cloudsnaps::{CloudSnapshotId, Cloudsnap, StartDelete},
    operations,
    schedules::Selector,
    tasks::{StopTask, Task, TaskKind, TaskStage},
    volumes::Volume,
};

/// Volume of a backup: its id, if it is known, and its name.
type Origin<'a> = (Option<VolumeId>, &'a str);

fn origin_of(one: &Cloudsnap) -> Origin<'_> {
    (Some(one.volume_id), &one.volume_name)
}

fn origin_of_task(task: &Task) -> Origin<'_> {
    let id =
        task.cloud_snapshot_id.as_ref().and_then(|id| id.parse::<CloudSnapshotId>().ok()).map(|id| id.volume);
    (id, task.volume_name.as_ref().map_or("", VolumeName::as_str))
}

fn is_named(one: &Cloudsnap, name: &str, location: Option<&CredentialName>) -> bool {
    backup_name(one) == name && location.is_none_or(|location| is_in(one, location))
}

fn is_in(one: &Cloudsnap, location: &CredentialName) -> bool {
    one.credential_name == location.as_str()
}

fn is_origin(volume: &Volume, (id, name): Origin<'_>) -> bool {
    id.map_or(volume.name.as_str() == name, |id| volume.volume_id == id)
}

impl ResourceSet {
    /// Returns the stored backups of a name, in one location or in all.
    pub fn backups_named<'a>(
        &'a self,
        name: &'a str,
        location: Option<&'a CredentialName>,
    ) -> impl Iterator<Item = &'a Cloudsnap> {
        self.cloudsnaps.iter().flatten().filter(move |one| is_named(one, name, location))
    }

    /// Returns the backup tasks of a name, to one location or to all.
    fn tasks_named<'a>(
        &'a self,
        name: &'a str,
        location: Option<&'a CredentialName>,
    ) -> impl Iterator<Item = &'a Task> {
        self.tasks.iter().filter(move |task| {
            task.state.kind == TaskKind::Backup
                && task.name.as_ref().is_some_and(|one| one.as_str() == name)
                && location.is_none_or(|location| task.credential_name.as_ref() == Some(location))
        })
    }

    /// Returns the running backup tasks of a name in a location.
    pub fn under_way<'a>(
        &'a self,
        name: &'a str,
        location: Option<&'a CredentialName>,
    ) -> impl Iterator<Item = &'a Task> {
        self.tasks_named(name, location).filter(|task| !task.state.stage.is_over())
    }

    /// Returns the selected volumes.
    pub fn members<'a>(&'a self, volumes: &Selector) -> impl Iterator<Item = &'a Volume> {
        self.volumes.iter().filter(move |volume| {
            volumes.volume.as_ref().is_some_and(|wanted| is_volume(volume, wanted))
                || (volumes.group.is_some() && volume.group == volumes.group)
                || volumes.label.as_ref().is_some_and(|label| volume.labels.matches(label))
        })
    }

    fn selects(&self, volumes: &Selector, origin: Origin<'_>) -> bool {
        // Of a deleted volume, the name is all that is known.
        let is_gone = |wanted: &VolumeName| wanted.as_str() == origin.1 && self.volume(wanted).is_none();
        self.members(volumes).any(|volume| is_origin(volume, origin))
            || matches!(&volumes.volume, Some(VolumeRef::Name(wanted)) if is_gone(wanted))
    }

    /// Returns true if a cloud snapshot belongs to a selected volume.
    pub fn is_backup_of(&self, volumes: &Selector, one: &Cloudsnap) -> bool {
        self.selects(volumes, origin_of(one))
    }

    /// Returns true if a task backs up a selected volume.
    pub fn is_task_of(&self, volumes: &Selector, task: &Task) -> bool {
        self.selects(volumes, origin_of_task(task))
    }

    /// Returns the selected volumes without a finished or running backup of a name.
    pub fn not_backed_up(&self, name: &str, backup: &Backup) -> Vec<&Volume> {
        let is_missing = |volume: &&Volume| {
            let mut stored = self.backups_named(name, backup.location()).map(origin_of);
            let mut running = self.under_way(name, backup.location()).map(origin_of_task);
            !stored.any(|origin| is_origin(volume, origin))
                && !running.any(|origin| is_origin(volume, origin))
        };
        let volumes = backup.selector();
        self.members(&volumes).filter(is_missing).collect()
    }

    /// Returns the error of a location that could not be listed: of this one, or of any.
    pub fn unlisted(&self, object: &str, location: Option<&CredentialName>) -> Option<ApiError> {
        let is_it = |name: &str| location.is_none_or(|location| location.as_str() == name);
        let (name, error) = self.unlisted.iter().find(|(name, _)| is_it(name))?;
        let message = format!("{object}: BackupLocation/{name} cannot be listed: {}", error.message);
        Some(ApiError { message, ..error.clone() })
    }

    /// Returns the cloud snapshot of a restore.
    pub fn source(&self, restore: &Restore) -> Result<CloudSnapshotId, ApiError> {
        let (name, volume) = match restore.source() {
            Some(RestoreSource::Cloudsnap(id)) => return Ok(id),
            Some(RestoreSource::Backup(name, volume)) => (name, volume),
            None => return Err(ApiError::new(ErrorCode::InvalidRequest, "the restore names no backup")),
        };
        let (location, missing) = (Some(&restore.location), ErrorCode::CloudsnapNotFound);
        let is_meant = |one: &&Cloudsnap| volume.is_none_or(|volume| one.volume_name == volume.as_str());
        let found: Vec<&Cloudsnap> = self.backups_named(name.as_str(), location).filter(is_meant).collect();
        let (code, message) = match found.as_slice() {
            [one] => return Ok(one.cloud_snapshot_id),
            [] if self.under_way(name.as_str(), location).next().is_some() => {
                (missing, "is not done yet: apply this again when it is, or with --wait".to_owned())
            }
            [] => {
                let message = format!(
                    "there is no VolumeBackup/{name} of this host in BackupLocation/{}: name a backup of another host by its cloudSnapshotId",
                    restore.location
                );
                return Err(ApiError::new(missing, message));
            }
            several => {
                let message =
                    format!("is ambiguous ({}): name its sourceVolume or cloudSnapshotId", listed(several));
                (ErrorCode::InvalidRequest, message)
            }
        };
        Err(ApiError::new(code, format!("VolumeBackup/{name} {message}")))
    }
}

/// Formats cloud snapshots for a message.
fn listed(several: &[&Cloudsnap]) -> String {
    let one = |one: &&Cloudsnap| {
        format!("{} of {} in {}", one.cloud_snapshot_id, one.volume_name, one.credential_name)
    };
    several.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Volumes of deleted backups.
#[derive(Debug)]
pub enum DeleteScope {
    /// A volume by its name, or any: at most one backup.
    One(Option<VolumeName>),
    /// Volumes of an object: all of their backups.
    All(Selector),
}

/// Backups to delete.
#[derive(Debug)]
pub struct BackupTarget {
    pub name: String,
    /// Id, if the name is one.
    pub id: Option<CloudSnapshotId>,
    /// Location; all by default.
    pub location: Option<CredentialName>,
    pub scope: DeleteScope,
}

impl BackupTarget {
    fn stored<'a>(&'a self, resources: &'a ResourceSet) -> Vec<&'a Cloudsnap> {
        let Self { name, id, location, .. } = self;
        let is_meant = |one: &&Cloudsnap| match id {
            Some(id) => {
                one.cloud_snapshot_id == *id && location.as_ref().is_none_or(|location| is_in(one, location))
            }
            None => is_named(one, name, location.as_ref()),
        };
        resources.cloudsnaps.iter().flatten().filter(is_meant).collect()
    }

    fn has(&self, resources: &ResourceSet, origin: Origin<'_>) -> bool {
        match &self.scope {
            DeleteScope::One(volume) => volume.as_ref().is_none_or(|volume| volume.as_str() == origin.1),
            DeleteScope::All(volumes) => resources.selects(volumes, origin),
        }
    }

    /// Returns the tasks of the name that run or can be resumed.
    fn tasks<'a>(&'a self, resources: &'a ResourceSet) -> Vec<&'a Task> {
        let tasks = resources.tasks_named(&self.name, self.location.as_ref());
        let tasks = tasks.filter(|task| !task.state.stage.is_over() || task.resumable);
        tasks.filter(|task| self.has(resources, origin_of_task(task))).collect()
    }

    /// Returns true for an existing backup of the name.
    pub fn exists(&self, resources: &ResourceSet) -> Result<bool, Failure> {
        let is_stored = !self.stored(resources).is_empty();
        // An id selects one cloud snapshot, in any location.
        if !(self.id.is_some() && is_stored) {
            let object = format!("VolumeBackup/{}", self.name);
            if let Some(error) = resources.unlisted(&object, self.location.as_ref()) {
                return Err(error.into());
            }
        }
        Ok(is_stored || !self.tasks(resources).is_empty())
    }

    fn refused(&self, code: ErrorCode, message: &str) -> Failure {
        ApiError::new(code, format!("VolumeBackup/{}{message}", self.name)).into()
    }

    /// Returns the cloud snapshots and tasks to delete.
    fn selected<'a>(
        &'a self,
        resources: &'a ResourceSet,
    ) -> Result<(Vec<&'a Cloudsnap>, Vec<&'a Task>), Failure> {
        let (mut found, tasks) = (self.stored(resources), self.tasks(resources));
        found.retain(|one| self.has(resources, origin_of(one)));
        // Two locations may lead to one store.
        found.sort_by_key(|one| one.cloud_snapshot_id);
        found.dedup_by_key(|one| one.cloud_snapshot_id);
        if matches!(self.scope, DeleteScope::One(_)) && found.len() > 1 {
            let message = format!(
                " is ambiguous ({}): add --location and --volume, or give the id instead of the name",
                listed(&found)
            );
            return Err(self.refused(ErrorCode::InvalidRequest, &message));
        }
        if let Some(task) = tasks.iter().find(|task| !task.state.stage.is_over()) {
            let message =
                format!(" is being made: see `blockctl cloudsnap stop --name {} --discard`", task.task_id);
            return Err(self.refused(ErrorCode::CloudsnapNotDone, &message));
        }
        // Nothing is deleted if one of several cannot be.
        if let Some(one) = found.iter().find(|one| one.pinned) {
            let id = one.cloud_snapshot_id;
            let message =
                format!(": cloud snapshot {id} is pinned: see `blockctl cloudsnap unpin --snap {id}`");
            return Err(self.refused(ErrorCode::CloudsnapPinned, &message));
        }
        Ok((found, tasks))
    }

    /// Deletes the backups and returns the result.
    pub async fn delete(
        &self,
        context: &Context<'_>,
        resources: &ResourceSet,
        dry_run: bool,
    ) -> Result<&'static str, Failure> {
        let client = &context.client;
        if !self.exists(resources)? {
            return Ok("not there");
        }
        let (found, tasks) = self.selected(resources)?;
        if found.is_empty() && tasks.is_empty() {
            return Ok("not there");
        }
        if dry_run {
            return Ok("deleted");
        }
        for task in tasks {
            client.call_at(operations::STOP_TASK, &task.task_id, &StopTask { discard: true }).await?;
        }
        for one in found {
            let credential = one.credential_name.parse().ok().map(CredentialRef::Name);
            // The location may be deleted next.
            let started = client
                .call(
                    operations::START_DELETE,
                    &StartDelete { credential, ..StartDelete::of(one.cloud_snapshot_id) },
                )
                .await?;
            let ended = follow(client, started.task_id, context.output).await?;
            if ended.state.stage != TaskStage::Done {
                let message =
                    format!("the deletion of {} was stopped (task {})", one.cloud_snapshot_id, ended.task_id);
                let stopped = || ApiError::new(ErrorCode::TaskStopped, message);
                return Err(ended.error.unwrap_or_else(stopped).into());
            }
        }
        Ok("deleted")
    }
}
