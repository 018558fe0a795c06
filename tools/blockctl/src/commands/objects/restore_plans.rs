//! Plans of restores.
//!
//! Labels decide which volumes a restore has: those whose `restored-by` or `restored-before` names it, under
//! any name. An in-place restore sets them at its end; until then, its task names them. Tasks are forgotten
//! in time: they tell only the progress, as long as they run or can be resumed.
//!
//! - `restored-from` is the cloud snapshot of the content. A volume without it has other content since, and
//!   is kept, as is one that another object restored since (`restored-before`): objects that are applied in
//!   a loop do not replace the content of each other. A volume of another source than that of the object is
//!   none of its volumes.
//! - A restore happens once. If its volumes have an earlier backup of its name, and none has the backup as it
//!   is now, nothing is added. Otherwise, the missing volumes are made.
//! - Another volume of the name is restored into or kept, as the object says, also if it was restored from
//!   the same cloud snapshot: it has been written since. A restore of another origin has to end first.

use super::{made_volumes::restored_from, plan::Plan, resources::ResourceSet, sources::RestoreTarget};
use crate::objects::{
    Object,
    volumes::{ReplacePolicy, Restore, RestoreSource},
};
use blockd_api::{
    ApiError, ErrorCode, VolumeName,
    cloudsnaps::CloudSnapshotId,
    tasks::{Task, ways_to_end},
    volumes::{Volume, VolumeState},
};
use uuid::Uuid;

/// Plan of one volume of a restore.
#[derive(Debug)]
pub struct VolumePlan {
    pub volume: VolumeName,
    /// `None` if it is of an earlier backup, or of one that is not listed: any more, or yet.
    pub target: Option<RestoreTarget>,
    pub plan: Plan,
}

/// Returns the plans of the volumes of a restore: those of its source, or those that it made of an earlier
/// one.
///
/// # Errors
/// There is neither a source nor a volume that was restored from it, or some may be missing.
pub fn volume_plans(
    object: &Object,
    restore: &Restore,
    resources: &ResourceSet,
) -> Result<Vec<VolumePlan>, ApiError> {
    let planner = Planner::new(object, restore, resources);
    match resources.restore_targets(restore) {
        Ok(targets) if planner.may_have(&targets) => {
            let coming = planner.expected().filter(|one| targets.iter().all(|it| it.volume != one.volume));
            let planned = targets.iter().map(|target| planner.plan_target(target, &targets));
            Ok(planned.chain(coming.filter(|_| restore.is_of_all())).collect())
        }
        Err(error) if planner.made.is_empty() || planner.may_lack_volumes() => Err(error),
        _ => Ok(planner.plans_of_made()),
    }
}

/// Returns the plans of the volumes of a restore; without its cloud snapshots those that are expected of a
/// backup of this call, or of one that is running.
pub fn foreseen_plans(object: &Object, restore: &Restore, resources: &ResourceSet) -> Vec<VolumePlan> {
    let planned = volume_plans(object, restore, resources);
    planned.unwrap_or_else(|_| Planner::new(object, restore, resources).expected().collect())
}

pub fn plan_restore(object: &Object, restore: &Restore, resources: &ResourceSet) -> Plan {
    match volume_plans(object, restore, resources) {
        Ok(volumes) => plan_of_all(volumes),
        Err(error) => plan_without_source(object, restore, error, resources),
    }
}

/// Returns the plan for the volumes of a restore together.
fn plan_of_all(volumes: Vec<VolumePlan>) -> Plan {
    let (mut waits, mut resumes, mut creates) = (Vec::new(), Vec::new(), false);
    for one in volumes {
        match one.plan {
            Plan::Wait(tasks) => waits.extend(tasks),
            Plan::Resume { ended, .. } => resumes.extend(ended),
            Plan::Create => creates = true,
            refused @ Plan::Refused(..) => return refused,
            _ => {}
        }
    }
    match (creates, resumes.is_empty(), waits.is_empty()) {
        (true, ..) => Plan::Create,
        (_, false, _) => Plan::Resume { ended: resumes, running: waits },
        (_, _, false) => Plan::Wait(waits),
        _ => Plan::Unchanged,
    }
}

/// Returns the plan for a restore without known cloud snapshots: its backup is being made, or the error.
fn plan_without_source(object: &Object, restore: &Restore, error: ApiError, resources: &ResourceSet) -> Plan {
    let awaited: Vec<Uuid> = resources.awaited(restore).map(|task| task.task_id).collect();
    if let (Some(RestoreSource::Backup(name, _)), false) = (restore.source(), awaited.is_empty()) {
        return Plan::Await(format!("VolumeBackup/{name}"), awaited);
    }
    match resources.expect_backup(restore, error) {
        Ok(()) => match foreseen_plans(object, restore, resources) {
            unknown if unknown.is_empty() => Plan::Create,
            expected => plan_of_all(expected),
        },
        Err(error) if error.code == ErrorCode::InvalidRequest => {
            let message = object.document.at(restore.source_field(), error.message.clone());
            Plan::Refused(Vec::new(), ApiError { message, ..error })
        }
        Err(error) => Plan::Refused(Vec::new(), object.locate(error)),
    }
}

/// Planner of the volumes of a restore.
struct Planner<'a> {
    object: &'a Object,
    restore: &'a Restore,
    resources: &'a ResourceSet,
    /// Volumes of the restore.
    made: Vec<&'a Volume>,
}

impl<'a> Planner<'a> {
    fn new(object: &'a Object, restore: &'a Restore, resources: &'a ResourceSet) -> Self {
        let mut planner = Self { object, restore, resources, made: Vec::new() };
        let is_of_source = |volume: &&Volume| {
            planner.content_of(volume).is_none_or(|id| !resources.is_of_other_source(restore, id))
        };
        planner.made = resources.restored_by(object).filter(is_of_source).collect();
        planner
    }

    /// Returns the cloud snapshot whose content a volume of the restore has or gets.
    fn content_of(&self, volume: &Volume) -> Option<CloudSnapshotId> {
        self.resources.content_by(self.object, volume)
    }

    /// Returns true if the volumes of the restore have one of these cloud snapshots, or none that is known.
    fn may_have(&self, targets: &[RestoreTarget]) -> bool {
        let mut contents = self.made.iter().filter_map(|volume| self.content_of(volume)).peekable();
        contents.peek().is_none() || contents.any(|id| targets.iter().any(|target| target.snap == id))
    }

    /// Returns true if the backup has an unknown number of volumes.
    fn may_lack_volumes(&self) -> bool {
        let is_listed = self.resources.unlisted("", self.restore.location.as_ref()).is_none();
        let is_done = self.resources.awaited(self.restore).next().is_none();
        self.restore.is_of_all() && !(is_listed && is_done)
    }

    /// Returns the plans of the volumes whose cloud snapshots this command or a task makes.
    fn expected(&self) -> impl Iterator<Item = VolumePlan> {
        let names = match &self.restore.destination_volume {
            Some(volume) => vec![volume.clone()],
            None => self.resources.expected_volumes(self.restore),
        };
        names.into_iter().map(|volume| {
            let plan = match self.resources.volume(&volume) {
                Some(found) if self.made.iter().any(|one| one.volume_id == found.volume_id) => {
                    self.plan_made(found)
                }
                Some(found) => self.plan_other(found, None),
                None => Plan::Create,
            };
            VolumePlan { volume, target: None, plan }
        })
    }

    fn plans_of_made(&self) -> Vec<VolumePlan> {
        let planned = |volume: &&Volume| VolumePlan {
            volume: volume.name.clone(),
            target: None,
            plan: self.plan_made(volume),
        };
        self.made.iter().map(planned).collect()
    }

    /// Returns the plan for one volume of a restore: the one that it made, or that with the name.
    fn plan_target(&self, target: &RestoreTarget, targets: &[RestoreTarget]) -> VolumePlan {
        let source = |id: CloudSnapshotId| (id.cluster, id.volume);
        let has_it = |volume: &&&Volume| self.content_of(volume) == Some(target.snap);
        let has_earlier =
            |volume: &&&Volume| self.content_of(volume).map(source) == Some(source(target.snap));
        // Of a renamed volume with other content, the source is unknown.
        let may_be_it = |volume: &&&Volume| {
            self.content_of(volume).is_none() && targets.iter().all(|other| other.volume != volume.name)
        };
        let made = || self.made.iter();
        let found = made().find(has_it).or_else(|| made().find(has_earlier));
        let found = found.or_else(|| made().find(|volume| volume.name == target.volume));
        let other = self.resources.volume(&target.volume);
        let (volume, plan, labels) = match (found.or_else(|| made().find(may_be_it)), other) {
            (Some(made), _) => (&made.name, self.plan_made(made), Some(&made.labels)),
            (None, Some(other)) => {
                (&other.name, self.plan_other(other, Some(target.snap)), Some(&other.labels))
            }
            (None, None) => (&target.volume, Plan::Create, target.labels.as_ref()),
        };
        let plan = match labels.map(|labels| target.labelled(self.object, labels)) {
            Some(Err(error)) if matches!(plan, Plan::Create) => {
                let (object, cause) = (self.object, &error.message);
                let message = format!("{object}: volume {volume} with the labels of this restore: {cause}");
                Plan::Refused(Vec::new(), ApiError { message, ..error })
            }
            _ => plan,
        };
        VolumePlan { volume: volume.clone(), target: Some(target.clone()), plan }
    }

    /// Returns the plan for a volume of the restore.
    fn plan_made(&self, volume: &Volume) -> Plan {
        match (self.resources.restore_by(self.object, volume), self.content_of(volume)) {
            (Some(task), _) => plan_task(task),
            (None, Some(_)) => Plan::Unchanged,
            // Another restore or a rollback replaced the content: a repeated `apply` must not undo it.
            (None, None) => Plan::Kept,
        }
    }

    /// Returns the plan for a volume with the name of one of the restore.
    fn plan_other(&self, volume: &Volume, wanted: Option<CloudSnapshotId>) -> Plan {
        let from = restored_from(volume).filter(|_| volume.state != VolumeState::Restoring);
        let policy = self.restore.replace_policy;
        let task = self.resources.blocking_restore(volume, policy == ReplacePolicy::Delete);
        match (task, from, policy) {
            // Other volumes of the backup may be missing.
            (.., ReplacePolicy::Retain) if self.restore.is_of_all() => Plan::Kept,
            (Some(task), ..) => Plan::Refused(Vec::new(), other_restore(self.object, volume, task)),
            // Its content may have changed since another restore of the same cloud snapshot.
            (.., ReplacePolicy::Delete) => Plan::Create,
            (_, Some(from), _) if wanted != Some(from) => {
                let cause = format!(
                    "volume {} exists and was restored from {from}: delete it first, or name another one in destinationVolume",
                    volume.name
                );
                Plan::refused(self.object, ErrorCode::VolumeExists, &cause)
            }
            _ => Plan::Kept,
        }
    }
}

/// Returns the error of a volume that a restore of another origin is changing, or has left half done.
fn other_restore(object: &Object, volume: &Volume, task: &Task) -> ApiError {
    let id = task.task_id;
    let message = format!("{object}: volume {} is the target of another restore, task {id}", volume.name);
    let hint = match task.state.stage.is_over() {
        true => ways_to_end(id),
        false => format!("`blockctl cloudsnap status --name {id}` shows its progress"),
    };
    ApiError::new(ErrorCode::VolumeInUse, message).with_hint(hint)
}

/// Returns the plan for a volume that an unfinished task restores.
fn plan_task(task: &Task) -> Plan {
    match task.state.stage.is_over() {
        true => Plan::Resume { ended: vec![task.task_id], running: Vec::new() },
        false => Plan::Wait(vec![task.task_id]),
    }
}
