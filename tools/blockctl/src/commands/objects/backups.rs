//! Backups of a name: their volumes, and their deletion.

use super::{
    backup_locations::refuse_locations,
    resources::{ResourceSet, backup_name},
};
use crate::{
    backup_names::{short_name, without_host},
    commands::cloudsnap::{list::short_host, snapshots::refuse_kept as refuse_kept_by_daemon},
    failure::Failure,
    objects::{
        backup::Backup,
        volumes::{Restore, RestoreSource},
    },
    output::Context,
    wait::follow,
};
use blockd_api::{
    ApiError, CredentialName, CredentialRef, ErrorCode, VolumeId, VolumeName,
    cloudsnaps::{CloudSnapshotId, Cloudsnap, PinOrigin, StartDelete},
    operations,
    schedules::{Schedule, ScheduleSummary},
    snapshots::Snapshot,
    tasks::{StopTask, Task, TaskKind, TaskStage},
    volumes::Volume,
};
use jiff::Timestamp;
use std::collections::BTreeSet;
use uuid::Uuid;

/// Result of a deletion that keeps cloud snapshots.
pub const IN_STORE: &str = "kept in the store";

/// Volume of a backup or snapshot: its id, if it is known, and its name.
type Origin<'a> = (Option<VolumeId>, &'a str);

fn origin_of(one: &Cloudsnap) -> Origin<'_> {
    (Some(one.volume_id), &one.volume_name)
}

fn origin_of_task(task: &Task) -> Origin<'_> {
    (task.volume_id, task.volume_name.as_ref().map_or("", VolumeName::as_str))
}

fn is_named(one: &Cloudsnap, name: &str, location: Option<&CredentialName>) -> bool {
    backup_name(one) == name && location.is_none_or(|location| is_in_location(one, location))
}

/// Returns true for a name as lists show it, or an id: also of a volume whose backup has a name.
pub(super) fn is_listed_as(one: &Cloudsnap, name: &str, location: Option<&CredentialName>) -> bool {
    let (id, own_name) = (one.cloud_snapshot_id, backup_name(one));
    let wanted = without_host(name, id.cluster).unwrap_or(name);
    let is_it = wanted == own_name || wanted == short_name(&own_name) || name == id.to_string();
    is_it && location.is_none_or(|location| is_in_location(one, location))
}

pub(super) fn is_in_location(one: &Cloudsnap, location: &CredentialName) -> bool {
    one.credential_name == location.as_str()
}

fn is_origin(volume: &Volume, (id, name): Origin<'_>) -> bool {
    id.map_or(volume.name.as_str() == name, |id| volume.volume_id == id)
}

fn is_member(backup: &Backup, volume: &Volume) -> bool {
    backup.all_volumes
        || backup.volume.contains(&volume.name)
        || (backup.group.is_some() && volume.group == backup.group)
        || backup.selectors.iter().any(|label| volume.labels.matches(label))
}

impl ResourceSet {
    /// Returns the stored backups of a name of this host, in one location or in all.
    pub fn backups_named<'a>(
        &'a self,
        name: &'a str,
        location: Option<&'a CredentialName>,
    ) -> impl Iterator<Item = &'a Cloudsnap> {
        let is_own = |one: &&Cloudsnap| self.own.is_none_or(|own| own == one.cloud_snapshot_id.cluster);
        self.cloudsnaps.iter().flatten().filter(move |one| is_listed_as(one, name, location)).filter(is_own)
    }

    /// Returns a name as lists show it without the id of this host.
    pub(super) fn without_own_host<'a>(&self, name: &'a str) -> &'a str {
        self.own.and_then(|own| without_host(name, own)).unwrap_or(name)
    }

    /// Returns the first digits of the id of a host as lists show it.
    pub(super) fn short_host(&self, cluster: Uuid) -> String {
        let listed = self.cloudsnaps.iter().flatten();
        short_host(cluster, &listed.map(|one| one.cloud_snapshot_id.cluster.to_string()).collect())
    }

    /// Returns the backup tasks of a name, which may be that of lists, to one location or to all.
    pub(super) fn tasks_named<'a>(
        &'a self,
        name: &'a str,
        location: Option<&'a CredentialName>,
    ) -> impl Iterator<Item = &'a Task> {
        let name = self.without_own_host(name);
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

    /// Returns the running tasks of the backup of a restore: of its volume, or of all.
    pub fn awaited<'a>(&'a self, restore: &'a Restore) -> impl Iterator<Item = &'a Task> {
        let (name, volume) = match restore.source() {
            Some(RestoreSource::Backup(name, volume)) => (Some(name), volume),
            _ => (None, None),
        };
        let tasks = name.into_iter().flat_map(|name| self.under_way(name, restore.location.as_ref()));
        // A task has the name of its start.
        let is_of = move |name: &VolumeName, task: &Task| match self.volume(name) {
            Some(volume) => is_origin(volume, origin_of_task(task)),
            None => task.volume_name.as_ref() == Some(name),
        };
        tasks.filter(move |task| volume.is_none_or(|name| is_of(name, task)))
    }

    /// Returns the volumes with a running backup of a name.
    pub(super) fn volumes_under_way<'a>(
        &'a self,
        name: &'a str,
        location: Option<&'a CredentialName>,
    ) -> impl Iterator<Item = &'a Volume> {
        let of_task = |task| self.volumes.iter().find(move |volume| is_origin(volume, origin_of_task(task)));
        self.under_way(name, location).filter_map(of_task)
    }

    /// Returns the selected volumes.
    pub fn members<'a>(&'a self, backup: &'a Backup) -> impl Iterator<Item = &'a Volume> {
        self.volumes.iter().filter(move |volume| is_member(backup, volume))
    }

    /// Returns the schedules that back up a new volume.
    pub fn schedules_of(&self, volume: &Volume) -> Vec<ScheduleSummary> {
        let covers =
            |one: &&Schedule| self.schedule_spec(one).is_some_and(|spec| is_member(spec.backup(), volume));
        let summary = |one: &Schedule| ScheduleSummary {
            schedule_id: one.schedule_id,
            schedule_name: one.name.clone(),
        };
        self.schedules.iter().filter(covers).map(summary).collect()
    }

    fn selects(&self, backup: &Backup, origin: Origin<'_>) -> bool {
        // Of a deleted volume, the name is all that is known.
        let is_gone = |wanted: &VolumeName| wanted.as_str() == origin.1 && self.volume(wanted).is_none();
        self.members(backup).any(|volume| is_origin(volume, origin)) || backup.volume.iter().any(is_gone)
    }

    /// Returns true if a cloud snapshot belongs to a selected volume.
    pub fn is_backup_of(&self, backup: &Backup, one: &Cloudsnap) -> bool {
        self.selects(backup, origin_of(one))
    }

    /// Returns true if a task backs up a selected volume.
    pub fn is_task_of(&self, backup: &Backup, task: &Task) -> bool {
        self.selects(backup, origin_of_task(task))
    }

    /// Returns true if a volume has a finished or running backup of a name.
    fn is_backed_up(&self, name: &str, backup: &Backup, volume: &Volume) -> bool {
        let stored = self.backups_named(name, backup.location()).map(origin_of);
        let running = self.under_way(name, backup.location()).map(origin_of_task);
        stored.chain(running).any(|origin| is_origin(volume, origin))
    }

    /// Returns the ended tasks that make the missing backup of a volume if they are resumed.
    fn resumable_of<'a>(
        &'a self,
        name: &'a str,
        backup: &'a Backup,
        volume: &'a Volume,
    ) -> impl Iterator<Item = &'a Task> {
        let ended = self.tasks_named(name, backup.location()).filter(|task| task.resumable);
        let is_missing = !self.is_backed_up(name, backup, volume);
        ended.filter(move |task| is_missing && is_origin(volume, origin_of_task(task)))
    }

    /// Returns the ended tasks of a backup that can be resumed.
    pub fn resumable(&self, name: &str, backup: &Backup) -> Vec<Uuid> {
        let tasks = self.members(backup).flat_map(|volume| self.resumable_of(name, backup, volume));
        tasks.map(|task| task.task_id).collect()
    }

    /// Returns the volumes that `apply` adds to a backup: all of a new one, those of an interrupted one. The
    /// local snapshot of an interrupted backup has the point in time of the others.
    pub fn coming<'a>(&'a self, name: &str, backup: &'a Backup) -> Vec<&'a Volume> {
        let is_new = self.backed_up_at(name, backup.location()).is_none();
        let comes = |volume: &&Volume| is_new || self.resumable_of(name, backup, volume).next().is_some();
        self.members(backup).filter(comes).collect()
    }

    /// Returns the selected volumes that a backup neither has nor gets.
    pub fn not_backed_up<'a>(&'a self, name: &str, backup: &'a Backup) -> Vec<&'a Volume> {
        let coming = self.coming(name, backup);
        let is_missing = |volume: &&Volume| {
            !self.is_backed_up(name, backup, volume)
                && !coming.iter().any(|one| one.volume_id == volume.volume_id)
        };
        self.members(backup).filter(is_missing).collect()
    }

    /// Returns the time of the backups of a name of this host, of the first one; `None` without any.
    pub fn backed_up_at(&self, name: &str, location: Option<&CredentialName>) -> Option<Timestamp> {
        let stored = self.backups_named(name, location).map(|one| one.created_at);
        stored.chain(self.under_way(name, location).map(|task| task.started_at)).min()
    }

    /// Returns the error of a location that could not be listed: of this one, or of any.
    pub fn unlisted(&self, object: &str, location: Option<&CredentialName>) -> Option<ApiError> {
        let is_it = |name: &str| location.is_none_or(|location| location.as_str() == name);
        let (name, error) = self.unlisted.iter().find(|(name, _)| is_it(name))?;
        let message = format!("{object}: BackupLocation/{name} cannot be listed: {}", error.message);
        Some(ApiError { message, ..error.clone() })
    }
}

/// Stored or interrupted backup of a name: if it is stored, its location, and the name of its volume.
type Candidate<'a> = (bool, &'a str, &'a str);

/// Returns true if backups are more than one: several stored ones, or those of several volumes.
fn is_ambiguous<'a>(all: impl Iterator<Item = &'a Candidate<'a>> + Clone) -> bool {
    let mut volumes = all.clone().map(|(.., volume)| volume);
    let first = volumes.next();
    all.filter(|(is_stored, ..)| *is_stored).count() > 1 || volumes.any(|volume| Some(volume) != first)
}

/// Returns the options that select one of several backups, the fewest; `None` if only an id does.
fn selecting_options(all: &[Candidate<'_>]) -> Option<&'static str> {
    let selects = |by_location: bool, by_volume: bool| {
        let is_one = |(_, location, volume): &Candidate<'_>| {
            let is_same = |other: &&Candidate<'_>| {
                (!by_location || other.1 == *location) && (!by_volume || other.2 == *volume)
            };
            !is_ambiguous(all.iter().filter(is_same))
        };
        all.iter().all(is_one)
    };
    let options = [
        ("--volume", selects(false, true)),
        ("--location", selects(true, false)),
        ("--location and --volume", selects(true, true)),
    ];
    options.into_iter().find_map(|(options, selects)| selects.then_some(options))
}

/// Returns true if cloud snapshots have the same volume.
pub(super) fn is_of_one_volume(several: &[&Cloudsnap]) -> bool {
    several.iter().all(|one| one.volume_id == several[0].volume_id)
}

/// Formats cloud snapshots for a message.
pub(super) fn listed(several: &[&Cloudsnap]) -> String {
    let one = |one: &&Cloudsnap| {
        format!("{} of {} in {}", one.cloud_snapshot_id, one.volume_name, one.credential_name)
    };
    several.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Volumes of deleted backups or local snapshots.
#[derive(Debug)]
pub enum DeleteScope {
    /// A volume by its name, or any: at most one backup or snapshot.
    One(Option<VolumeName>),
    /// Volumes of an object: all of their backups or snapshots.
    All(Box<Backup>),
}

impl DeleteScope {
    fn has(&self, resources: &ResourceSet, origin: Origin<'_>) -> bool {
        match self {
            Self::One(volume) => volume.as_ref().is_none_or(|volume| volume.as_str() == origin.1),
            Self::All(volumes) => resources.selects(volumes, origin),
        }
    }

    /// Returns the local snapshots of a name to delete.
    ///
    /// # Errors
    /// The name is ambiguous.
    pub fn snapshots<'a>(
        &self,
        name: &str,
        resources: &'a ResourceSet,
    ) -> Result<Vec<&'a Snapshot>, ApiError> {
        let is_meant = |one: &&Snapshot| {
            one.name.as_str() == name && self.has(resources, (Some(one.volume_id), one.volume_name.as_str()))
        };
        let found: Vec<&Snapshot> = resources.snapshots.iter().filter(is_meant).collect();
        if matches!(self, Self::One(_)) && found.len() > 1 {
            let message = format!(
                "VolumeSnapshot/{name} is ambiguous ({}): add --volume, or delete those of an object with -f",
                found.iter().map(|one| snapshot_name(one)).collect::<Vec<_>>().join(", ")
            );
            return Err(ApiError::new(ErrorCode::InvalidRequest, message));
        }
        Ok(found)
    }
}

/// Returns the name of a local snapshot with that of its volume.
pub fn snapshot_name(one: &Snapshot) -> String {
    format!("{}@{}", one.volume_name, one.name)
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
                one.cloud_snapshot_id == *id
                    && location.as_ref().is_none_or(|location| is_in_location(one, location))
            }
            None => {
                is_named(one, name, location.as_ref())
                    && resources.own.is_none_or(|own| own == one.cloud_snapshot_id.cluster)
            }
        };
        resources.cloudsnaps.iter().flatten().filter(is_meant).collect()
    }

    /// Returns the tasks of the name that run or can be resumed.
    fn tasks<'a>(&'a self, resources: &'a ResourceSet) -> Vec<&'a Task> {
        let tasks = resources.tasks_named(&self.name, self.location.as_ref());
        let tasks = tasks.filter(|task| !task.state.stage.is_over() || task.resumable);
        tasks.filter(|task| self.scope.has(resources, origin_of_task(task))).collect()
    }

    /// Returns the cloud snapshots and tasks to delete; none without a backup of the name.
    ///
    /// # Errors
    /// A location could not be listed, the name is ambiguous, or a backup is running, pinned or needed.
    pub fn selected<'a>(
        &'a self,
        resources: &'a ResourceSet,
    ) -> Result<(Vec<&'a Cloudsnap>, Vec<&'a Task>), Failure> {
        let (mut found, tasks) = (self.stored(resources), self.tasks(resources));
        let object = format!("VolumeBackup/{}", self.name);
        // An id selects one cloud snapshot, in any location.
        let is_found_by_id = self.id.is_some() && !found.is_empty();
        if let Some(error) = resources.unlisted(&object, self.location.as_ref()).filter(|_| !is_found_by_id) {
            return Err(error.into());
        }
        found.retain(|one| self.scope.has(resources, origin_of(one)));
        // Two credentials may be of one location. A copy of a location has the same ids.
        found.sort_by_key(|one| (one.cloud_snapshot_id, one.location()));
        found.dedup_by_key(|one| (one.cloud_snapshot_id, one.location()));
        match &self.scope {
            DeleteScope::One(_) => refuse_ambiguous(&object, &found, &tasks)?,
            DeleteScope::All(_) => refuse_locations(&object, &found, &tasks)?,
        }
        let backups: Vec<_> = found.iter().map(|one| (one.cloud_snapshot_id, one.pinned)).collect();
        refuse_kept(&object, resources, tasks.iter().copied(), &backups)?;
        Ok((found, tasks))
    }

    /// Returns the cloud snapshots that stay although their volumes were selected at the time: they are of
    /// other volumes than those with the name or label now.
    pub fn left<'a>(&'a self, resources: &'a ResourceSet) -> Vec<&'a Cloudsnap> {
        let DeleteScope::All(backup) = &self.scope else { return Vec::new() };
        let was_selected = |one: &&Cloudsnap| {
            backup.all_volumes
                || backup.volume.iter().any(|volume| volume.as_str() == one.volume_name)
                || backup.selectors.iter().any(|label| one.labels.matches(label))
        };
        let stored = self.stored(resources).into_iter().filter(was_selected);
        stored.filter(|one| !resources.is_backup_of(backup, one)).collect()
    }

    /// Deletes the backups and returns the result.
    pub async fn delete(
        &self,
        context: &Context<'_>,
        resources: &ResourceSet,
        dry_run: bool,
    ) -> Result<&'static str, Failure> {
        let (found, tasks) = self.selected(resources)?;
        if found.is_empty() && tasks.is_empty() {
            return Ok(if self.left(resources).is_empty() { "not there" } else { IN_STORE });
        }
        if dry_run {
            return Ok("deleted");
        }
        for task in tasks {
            let discard = StopTask { discard: true };
            context.client.call_at(operations::STOP_TASK, &task.task_id, &discard).await?;
        }
        for one in found {
            // The location may be deleted next.
            let credential = one.credential_name.parse().ok().map(CredentialRef::Name);
            delete_cloudsnap(context, one.cloud_snapshot_id, credential).await?;
        }
        Ok("deleted")
    }
}

/// Refuses to delete more than one backup by a name.
fn refuse_ambiguous(object: &str, found: &[&Cloudsnap], tasks: &[&Task]) -> Result<(), ApiError> {
    // A running one is refused in its own words.
    let ended = tasks.iter().filter(|task| task.state.stage.is_over());
    let stored = found.iter().map(|one| (true, one.credential_name.as_str(), one.volume_name.as_str()));
    let interrupted = ended.clone().map(|task| {
        let location = task.credential_name.as_ref().map_or("-", CredentialName::as_str);
        (false, location, origin_of_task(task).1)
    });
    let all: Vec<Candidate<'_>> = stored.chain(interrupted).collect();
    if !is_ambiguous(all.iter()) {
        return Ok(());
    }
    let tasks = ended.zip(&all[found.len()..]);
    let tasks =
        tasks.map(|(task, (_, location, volume))| format!("task {} of {volume} in {location}", task.task_id));
    let stored = (!found.is_empty()).then(|| listed(found));
    let listed = stored.into_iter().chain(tasks).collect::<Vec<_>>().join(", ");
    let options = selecting_options(&all).map(|options| format!("add {options}"));
    // Copies have one id.
    let ids: BTreeSet<CloudSnapshotId> = found.iter().map(|one| one.cloud_snapshot_id).collect();
    let id =
        (!ids.is_empty() && ids.len() == found.len()).then(|| "give the id instead of the name".to_owned());
    let advice = options.into_iter().chain(id).collect::<Vec<_>>().join(", or ");
    let message = format!("{object} is ambiguous ({listed}): {advice}");
    Err(ApiError::new(ErrorCode::InvalidRequest, message))
}

/// Refuses to delete backups, all of them, if a task is making one, or one is pinned, leased by another host
/// or needed by a lazy volume.
pub fn refuse_kept<'a>(
    object: &str,
    resources: &ResourceSet,
    mut tasks: impl Iterator<Item = &'a Task>,
    backups: &[(CloudSnapshotId, bool)],
) -> Result<(), Failure> {
    let is_needed = |volume: &&Volume| {
        let base = volume.hydration.as_ref().map(|hydration| hydration.cloud_snapshot_id.as_str());
        base.is_some_and(|base| backups.iter().any(|(id, _)| id.to_string() == base))
    };
    let (code, message) = if let Some(task) = tasks.find(|task| !task.state.stage.is_over()) {
        let hint = format!("see `blockctl cloudsnap stop --name {} --discard`", task.task_id);
        (ErrorCode::CloudsnapNotDone, format!("{object} is being made: {hint}"))
    } else if let Some((id, _)) = backups.iter().find(|(_, is_pinned)| *is_pinned) {
        let is_leased =
            |one: &&Cloudsnap| one.cloud_snapshot_id == *id && one.pinned_by == Some(PinOrigin::Lease);
        if let Some(leased) = resources.cloudsnaps.iter().flatten().find(is_leased) {
            return refuse_kept_by_daemon(leased, id.cluster);
        }
        let hint = format!("see `blockctl cloudsnap unpin --snap {id}`");
        (ErrorCode::CloudsnapPinned, format!("{object}: cloud snapshot {id} is pinned: {hint}"))
    } else if let Some(volume) = resources.volumes.iter().find(is_needed) {
        let hint = "wait until it is hydrated, or delete the volume";
        (ErrorCode::CloudsnapInUse, format!("{object} is needed by lazy volume {}: {hint}", volume.name))
    } else {
        return Ok(());
    };
    Err(ApiError::new(code, message).into())
}

/// Deletes a cloud snapshot and waits for it.
pub async fn delete_cloudsnap(
    context: &Context<'_>,
    id: CloudSnapshotId,
    credential: Option<CredentialRef>,
) -> Result<(), Failure> {
    let request = StartDelete { credential, ..StartDelete::of(id) };
    let started = context.client.call(operations::START_DELETE, &request).await?;
    let ended = follow(&context.client, started.task_id, context.output).await?;
    if ended.state.stage == TaskStage::Done {
        return Ok(());
    }
    let message = format!("the deletion of {id} was stopped (task {})", ended.task_id);
    Err(ended.error.unwrap_or_else(|| ApiError::new(ErrorCode::TaskStopped, message)).into())
}
