//! Plans of restores. A restore is the volumes whose labels name it, under any name; others count for those
//! that are still to be made.

use super::{plan::Plan, resources::ResourceSet, sources::RestoreTarget};
use crate::objects::{
    Object,
    volumes::{ReplacePolicy, Restore, RestoreSource},
};
use blockd_api::{
    ApiError, ErrorCode, RESTORED_BY, VolumeName,
    tasks::TaskStage,
    volumes::{Volume, VolumeState},
};
use uuid::Uuid;

/// Plan of one volume of a restore.
#[derive(Debug)]
pub struct VolumePlan {
    pub volume: VolumeName,
    /// `None` if its cloud snapshot is not listed any more.
    pub target: Option<RestoreTarget>,
    pub plan: Plan,
}

/// Returns the plans of the volumes of a restore: those of its source, or those that it made if the source
/// does not exist any more.
///
/// # Errors
/// There is neither a source nor a volume that was restored from it.
pub fn volume_plans(
    object: &Object,
    restore: &Restore,
    resources: &ResourceSet,
) -> Result<Vec<VolumePlan>, ApiError> {
    let error = match resources.restore_targets(restore) {
        Ok(targets) => {
            return Ok(targets.into_iter().map(|one| plan_target(object, restore, one, resources)).collect());
        }
        Err(error) => error,
    };
    let made: Vec<&Volume> = resources.made_by(RESTORED_BY, object).collect();
    let mut origins = made.iter().filter_map(|volume| resources.origin(volume));
    if made.is_empty() || origins.any(|origin| resources.is_of_other_backup(restore, origin)) {
        return Err(error);
    }
    let planned = |volume: &&Volume| VolumePlan {
        volume: volume.name.clone(),
        target: None,
        plan: match resources.origin(volume) {
            Some(_) => plan_restored(object, volume, resources),
            None => Plan::Kept,
        },
    };
    Ok(made.iter().map(planned).collect())
}

pub fn plan_restore(object: &Object, restore: &Restore, resources: &ResourceSet) -> Plan {
    let volumes = match volume_plans(object, restore, resources) {
        Ok(volumes) => volumes,
        Err(error) => return plan_without_source(object, restore, error, resources),
    };
    let (mut waits, mut resumes, mut creates) = (Vec::new(), Vec::new(), false);
    for one in volumes {
        match one.plan {
            Plan::Wait(tasks) => waits.extend(tasks),
            Plan::Resume(tasks) => resumes.extend(tasks),
            Plan::Create => creates = true,
            refused @ Plan::Refused(..) => return refused,
            _ => {}
        }
    }
    match (creates, resumes.is_empty(), waits.is_empty()) {
        (true, ..) => Plan::Create,
        (_, false, _) => Plan::Resume(resumes),
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
        Ok(()) => Plan::Create,
        Err(error) if error.code == ErrorCode::InvalidRequest => {
            let message = object.document.at("spec.backupName", error.message.clone());
            Plan::Refused(Vec::new(), ApiError { message, ..error })
        }
        Err(error) => Plan::Refused(Vec::new(), object.locate(error)),
    }
}

/// Returns the plan for one volume of a restore: the one that this object made, or that with the name.
fn plan_target(
    object: &Object,
    restore: &Restore,
    target: RestoreTarget,
    resources: &ResourceSet,
) -> VolumePlan {
    let wanted = target.snap.to_string();
    let is_wanted = |volume: &&Volume| resources.origin(volume) == Some(&wanted);
    let is_of_past = |volume: &&Volume| {
        !restore.is_of_all()
            && resources.origin(volume).is_none_or(|origin| resources.was_of_backup(restore, origin))
    };
    let mut made = resources.made_by(RESTORED_BY, object);
    let found = resources.made_by(RESTORED_BY, object).find(is_wanted);
    let found = found.or_else(|| made.find(is_of_past)).or_else(|| resources.volume(&target.volume));
    let name = found.map_or(&target.volume, |volume| &volume.name).clone();
    let plan =
        found.map_or(Plan::Create, |volume| plan_existing(object, restore, volume, &wanted, resources));
    VolumePlan { volume: name, target: Some(target), plan }
}

/// Returns the plan for an existing volume, which is to have the content of a cloud snapshot.
fn plan_existing(
    object: &Object,
    restore: &Restore,
    volume: &Volume,
    wanted: &String,
    resources: &ResourceSet,
) -> Plan {
    let is_made = || resources.made_by(RESTORED_BY, object).any(|made| made.volume_id == volume.volume_id);
    match (resources.origin(volume), restore.replace_policy) {
        (Some(origin), _) if origin == wanted => plan_restored(object, volume, resources),
        // The backup was made again under its name: the restore was of the earlier one.
        (Some(origin), _) if is_made() && resources.was_of_backup(restore, origin) => {
            plan_restored(object, volume, resources)
        }
        // Another restore or a rollback replaced the content: a repeated `apply` must not undo it.
        (None, _) if is_made() => Plan::Kept,
        (_, ReplacePolicy::Delete) => Plan::Create,
        // Other volumes of the backup may be missing.
        (Some(origin), ReplacePolicy::Retain) if !restore.is_of_all() => {
            let cause = format!(
                "volume {} exists and was restored from {origin}: delete it first, or name another one in destinationVolume",
                volume.name
            );
            Plan::refused(object, ErrorCode::VolumeExists, &cause)
        }
        _ => Plan::Kept,
    }
}

/// Returns the plan for a volume with the wanted origin, whose restore may have ended early.
fn plan_restored(object: &Object, volume: &Volume, resources: &ResourceSet) -> Plan {
    let Some(task) = resources.task_of_origin(volume) else { return Plan::Unchanged };
    let is_whole = volume.state == VolumeState::Up && volume.hydration.is_none();
    match task.state.stage {
        TaskStage::Done => Plan::Unchanged,
        stage if !stage.is_over() => Plan::Wait(vec![task.task_id]),
        _ if is_whole => Plan::Unchanged,
        _ if task.resumable => Plan::Resume(vec![task.task_id]),
        _ => {
            let why = task.error.as_ref().map_or("it was stopped", |error| error.message.as_str());
            let cause = format!("its restore cannot go on ({why}): delete volume {} first", volume.name);
            Plan::refused(object, ErrorCode::VolumeFailed, &cause)
        }
    }
}
