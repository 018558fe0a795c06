//! Restores of one volume, or of all volumes of a backup.

use super::{
    made_volumes::restored_from,
    object_plans::plan,
    plan::Plan,
    resources::ResourceSet,
    restore_plans::{VolumePlan, foreseen_plans, volume_plans},
    scheduled::several_points,
    sources::RestoreTarget,
};
use crate::{
    commands::cloudsnap::{
        restore::{note_on_previous, note_on_schedules},
        snapshots::source_volume,
    },
    confirm::YesArg,
    failure::Failure,
    objects::{
        Body, Object,
        volumes::{ReplacePolicy, Restore, RestoreSource},
    },
    output::Context,
};
use blockd_api::{
    ApiError, ByteSize, CredentialRef, ErrorCode, RESTORED_BEFORE, RESTORED_BY, VolumeId, VolumeName,
    VolumeRef,
    cloudsnaps::{Cloudsnap, StartRestore},
    lazy::{StartInPlace, StartLazyRestore, StoreLoss},
    operations,
    tasks::TaskLimits,
    volumes::Volume,
};
use uuid::Uuid;

/// Loss by a restore into existing volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replacement {
    pub text: String,
    /// Another volume may get the name of one meanwhile.
    ids: Vec<VolumeId>,
    /// Error of a script: a volume is not known to have its origin in the volume of the backup.
    unrelated: Option<ApiError>,
}

impl Replacement {
    /// Refuses, in a script without `--yes`, to replace the content of a volume that has only the name of the
    /// wanted one: a finished restore finds such a volume after its own one is deleted.
    ///
    /// # Errors
    /// The volume is another one than that of the backup.
    pub fn refuse_unrelated(&self, yes: YesArg) -> Result<(), Failure> {
        match &self.unrelated {
            Some(error) if !yes.is_deliberate() => Err(error.clone().into()),
            _ => Ok(()),
        }
    }
}

/// Returns the loss by a restore into existing volumes; `None` if it replaces none.
pub fn consequence(object: &Object, resources: &ResourceSet) -> Option<Replacement> {
    let Body::Restore(restore) = &object.body else { return None };
    if restore.replace_policy != ReplacePolicy::Delete {
        return None;
    }
    if !matches!(plan(object, resources), Plan::Create | Plan::Await(..)) {
        return None;
    }
    let planned = foreseen_plans(object, restore, resources);
    let creates = planned.iter().filter(|one| matches!(one.plan, Plan::Create));
    let replaced: Vec<_> = creates.filter_map(|one| Some((one, resources.volume(&one.volume)?))).collect();
    let source = |one: &VolumePlan| one.target.as_ref().and_then(|target| other_source(target, resources));
    let name = |one: &VolumePlan| {
        let source = source(one).map(|source| format!(" (by that of another volume, {source})"));
        format!("volume {}{}", one.volume, source.unwrap_or_default())
    };
    let volumes = match restore.source() {
        // Another object makes its location.
        Some(RestoreSource::Backup(name, _)) if planned.is_empty() && !resources.volumes.is_empty() => {
            format!("the existing volumes of VolumeBackup/{name}")
        }
        Some(RestoreSource::Schedule(name)) if !resources.volumes.is_empty() => {
            format!("the existing volumes of the newest backup of schedule {name}")
        }
        _ => replaced.iter().map(|(one, _)| name(one)).collect::<Vec<_>>().join(" and "),
    };
    let ids = replaced.iter().map(|(_, volume)| volume.volume_id).collect();
    let text = format!("{object} replaces the content of {volumes}, which is kept as a snapshot");
    let unrelated = replaced.iter().find_map(|(one, volume)| {
        let target = one.target.as_ref().filter(|target| !has_origin(volume, target))?;
        let source = other_source(target, resources)?;
        let message = format!(
            "{object}: its backup is of another volume, {source}, not of the existing {}",
            volume.name
        );
        let hint =
            "`--yes` replaces the content; with another name in the file, the restore makes a new volume";
        Some(ApiError::new(ErrorCode::VolumeExists, message).with_hint(hint))
    });
    (!volumes.is_empty()).then_some(Replacement { text, ids, unrelated })
}

/// Returns true for a volume that a restore made from the volume of a target, or whose content another one
/// replaced since.
fn has_origin(volume: &Volume, target: &RestoreTarget) -> bool {
    let labels = volume.labels.as_map();
    match restored_from(volume) {
        Some(from) => (from.cluster, from.volume) == (target.snap.cluster, target.snap.volume),
        None => [RESTORED_BY, RESTORED_BEFORE].iter().any(|label| labels.contains_key(*label)),
    }
}

/// Names the source of a restore into an existing volume if that is of another volume.
fn other_source(target: &RestoreTarget, resources: &ResourceSet) -> Option<String> {
    let mut listed = resources.cloudsnaps.iter().flatten();
    let source = listed.find(|one| one.cloud_snapshot_id == target.snap).zip(resources.own);
    let is_own = |(one, here): &(&Cloudsnap, Uuid)| {
        let volume = resources.volume(&target.volume);
        target.snap.cluster == *here && volume.is_some_and(|volume| volume.volume_id == one.volume_id)
    };
    source.filter(|source| !is_own(source)).map(|(one, here)| {
        let size = ByteSize::from_bytes(one.volume_size_bytes);
        format!("{}, {size}", source_volume(one, here))
    })
}

/// Returns the existing volumes that a restore keeps.
pub fn kept_volumes(object: &Object, resources: &ResourceSet) -> Vec<VolumeName> {
    let Body::Restore(restore) = &object.body else { return Vec::new() };
    let planned = foreseen_plans(object, restore, resources).into_iter();
    planned.filter(|one| matches!(one.plan, Plan::Kept)).map(|one| one.volume).collect()
}

/// Returns warnings about the volumes of a restore that starts: none to replace, several points in time, and
/// those that only other backups of its schedule have.
pub fn warnings_of_new(object: &Object, resources: &ResourceSet) -> Vec<String> {
    if let Body::Rule(hook) = &object.body {
        let is_none = !hook.selectors.is_empty() && hook.volumes.iter().flatten().next().is_none();
        let text = "no volume has these labels: the rule is assigned to none";
        return is_none.then(|| object.document.at("spec.selectors", text)).into_iter().collect();
    }
    let Body::Restore(restore) = &object.body else { return Vec::new() };
    if resources.restored_by(object).next().is_some() {
        return Vec::new();
    }
    if let Some(volume) = &restore.destination_volume {
        let is_default = !object.document.is_written("spec.destinationVolume");
        let replaces = restore.replace_policy == ReplacePolicy::Delete;
        let text = format!(
            "nothing is replaced: without `destinationVolume`, the restore is into volume {volume}, named after it"
        );
        let text = object.document.at("spec.replacePolicy", text);
        let is_meant = is_default && replaces && resources.volume(volume).is_none();
        return is_meant.then_some(text).into_iter().collect();
    }
    let targets = resources.restore_targets(restore).unwrap_or_default();
    let is_target = |one: &&Cloudsnap| targets.iter().any(|target| target.snap == one.cloud_snapshot_id);
    let found: Vec<&Cloudsnap> = resources.cloudsnaps.iter().flatten().filter(is_target).collect();
    let texts = several_points(&found).into_iter().chain(resources.lacking_of_schedule(restore, &found));
    texts.map(|text| object.document.at(restore.source_field(), text)).collect()
}

/// Starts or resumes the restores that are not done, and returns their tasks.
pub async fn start_restore(
    context: &Context<'_>,
    object: &Object,
    restore: &Restore,
    resources: &ResourceSet,
) -> Result<Vec<Uuid>, Failure> {
    let planned = volume_plans(object, restore, resources)?;
    let is_coming = |one: &&VolumePlan| matches!(one.plan, Plan::Create) && one.target.is_none();
    if let Some(one) = planned.iter().find(is_coming) {
        let cause = format!("the cloud snapshot of volume {} is not made yet", one.volume);
        let message = format!("{object}: {cause}: apply this again when it is");
        return Err(ApiError::new(ErrorCode::CloudsnapNotFound, message).into());
    }
    let mut tasks = Vec::new();
    for one in planned {
        match (one.plan, one.target) {
            (Plan::Create, Some(target)) => match resources.volume(&one.volume) {
                Some(volume) => tasks.push(replace(context, object, restore, &target, volume).await?),
                None => tasks.extend(start(context, object, restore, target).await?),
            },
            (Plan::Wait(running), _) => tasks.extend(running),
            (Plan::Resume { ended, .. }, _) => {
                for task in &ended {
                    context.client.call_at(operations::RESUME_TASK, task, &()).await?;
                }
                tasks.extend(ended);
            }
            (Plan::Refused(_, error), _) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(tasks)
}

async fn start(
    context: &Context<'_>,
    object: &Object,
    restore: &Restore,
    target: RestoreTarget,
) -> Result<Option<Uuid>, Failure> {
    let client = &context.client;
    let labels = target.labels.as_ref().map(|labels| target.labelled(object, labels)).transpose()?;
    let RestoreTarget { snap: cloud_snapshot_id, volume, .. } = target;
    let (volume_name, skip_damaged) = (Some(volume), restore.skip_damaged);
    let credential = restore.location.clone().map(CredentialRef::Name);
    let (volume, schedules, task) = if restore.lazy {
        let on_store_loss = StoreLoss::default();
        let request = StartLazyRestore {
            cloud_snapshot_id,
            volume_name,
            credential,
            hydrate: true,
            on_store_loss,
            labels,
        };
        let started = client.call(operations::START_LAZY_RESTORE, &request).await?;
        (started.volume_name, started.schedules, started.task_id)
    } else {
        let request = StartRestore {
            volume_name,
            credential,
            skip_damaged,
            labels,
            ..StartRestore::of(cloud_snapshot_id)
        };
        let started = client.call(operations::START_RESTORE, &request).await?;
        (started.volume_name, started.schedules, Some(started.task_id))
    };
    if let Some(note) = note_on_schedules(&volume, &schedules).filter(|_| !context.output.is_json()) {
        context.output.note(note);
    }
    Ok(task)
}

/// Restores into an existing volume.
async fn replace(
    context: &Context<'_>,
    object: &Object,
    restore: &Restore,
    target: &RestoreTarget,
    volume: &Volume,
) -> Result<Uuid, Failure> {
    let (client, cloud_snapshot_id) = (&context.client, target.snap);
    let request = StartInPlace {
        cloud_snapshot_id,
        volume: VolumeRef::Id(volume.volume_id),
        credential: restore.location.clone().map(CredentialRef::Name),
        discard: false,
        labels: target.restore_labels(object)?,
        limits: TaskLimits::default(),
    };
    let started = client.call(operations::START_IN_PLACE, &request).await?;
    if let Some(note) = note_on_previous(&started).filter(|_| !context.output.is_json()) {
        context.output.note(note);
    }
    Ok(started.task_id)
}
