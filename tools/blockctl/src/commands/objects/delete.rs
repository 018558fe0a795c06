//! `blockctl delete`

use super::{
    args::DeleteArgs,
    backups::{BackupTarget, DeleteScope, delete_cloudsnap, refuse_kept},
    record::Record,
    resources::{ResourceSet, Scope, schedule_name},
};
use crate::{
    failure::{EXIT_DONE, Exit, Failure},
    objects::{Body, Kind, Object, ReclaimPolicy, hook::Hook, read_all},
    output::Context,
    table::counted,
};
use blockd_api::{
    CredentialRef, RuleName, SnapshotRef,
    cloudsnaps::CloudSnapshotId,
    operations,
    schedules::{Schedule, UpdateSchedule},
    tasks::TaskOwner,
};
use blockd_schedule::KeepReason;

/// Object to delete.
struct Deletion {
    kind: Kind,
    name: String,
    /// Backups to delete, if a backup was named or has `reclaimPolicy: Delete`.
    backups: Option<BackupTarget>,
    /// Backups of a schedule are deleted with it.
    reclaims: bool,
    /// Assignments to remove with a rule.
    rule: Option<Hook>,
}

impl Deletion {
    fn new(kind: Kind, name: &str) -> Self {
        Self { kind, name: name.to_owned(), backups: None, reclaims: false, rule: None }
    }

    /// Returns the deletion of an object of a file. Its reclaim policy wins over the stored one.
    fn of(object: Object, resources: &ResourceSet) -> Self {
        let (kind, name) = (object.kind, object.name.to_string());
        let mut deletion = Self::new(kind, &name);
        match object.body {
            Body::Backup(backup) => {
                let location = backup.location().cloned();
                let policy = backup.reclaim_policy.or_else(|| {
                    let mut stored = resources.backups_named(&name, location.as_ref());
                    stored.find_map(|one| ReclaimPolicy::of(&one.backup_labels))
                });
                let target = BackupTarget { name, id: None, location, scope: DeleteScope::All(backup) };
                deletion.backups = Some(target).filter(|_| policy == Some(ReclaimPolicy::Delete));
            }
            Body::Schedule(schedule) => {
                deletion.reclaims = resources.reclaims(&name, schedule.backup().reclaim_policy);
            }
            Body::Rule(hook) => deletion.rule = Some(hook),
            _ => {}
        }
        deletion
    }
}

/// Deletes objects, each before those that it depends on.
pub async fn run(context: &Context<'_>, args: DeleteArgs) -> Exit {
    let (mut wanted, resources) = match (args.kind, args.name) {
        (Some(kind), Some(name)) => {
            if kind != Kind::VolumeBackup && (args.location.is_some() || args.volume.is_some()) {
                return Err(Failure::usage("--location and --volume belong to VolumeBackup"));
            }
            let (id, location) = (name.parse().ok(), args.location);
            let scope = Scope { locations: location.clone().map(|location| vec![location]), id };
            let resources = ResourceSet::load_kinds(context, &[kind], &scope).await?;
            let scope = DeleteScope::One(args.volume);
            let target = BackupTarget { name: name.clone(), id, location, scope };
            let exists = match kind {
                Kind::VolumeBackup => {
                    let (found, tasks) = target.selected(&resources)?;
                    !found.is_empty() || !tasks.is_empty()
                }
                _ => resources.find(kind, &name).is_some(),
            };
            if !exists {
                return Err(kind.missing(&name));
            }
            let reclaims = kind == Kind::VolumeBackupSchedule && resources.reclaims(&name, None);
            let backups = (kind == Kind::VolumeBackup).then_some(target);
            (vec![Deletion { backups, reclaims, ..Deletion::new(kind, &name) }], resources)
        }
        _ => {
            let mut objects = read_all(&args.file)?.objects;
            let resources = ResourceSet::load_for(context, &mut objects).await?;
            (objects.into_iter().map(|object| Deletion::of(object, &resources)).collect(), resources)
        }
    };
    wanted.sort_by_key(|one| std::cmp::Reverse(one.kind));
    if args.yes.must_ask() && !args.dry_run {
        let mut consequences = Vec::new();
        for one in &wanted {
            consequences.extend(consequence(context, one, &resources).await?);
        }
        if !consequences.is_empty() {
            args.yes.confirm(context.output, &consequences.join("; "))?;
        }
    }
    let mut record = Record::of(wanted.iter().map(|one| (one.kind, one.name.clone())));
    let ended = delete_all(context, &wanted, &resources, args.dry_run, &mut record).await;
    record.finish(context, ended)
}

/// Describes the loss of a deletion; `None` for an object that stays.
async fn consequence(
    context: &Context<'_>,
    one: &Deletion,
    resources: &ResourceSet,
) -> Result<Option<String>, Failure> {
    let lost = match (&one.backups, resources.schedule(&one.name)) {
        (Some(target), _) => target.selected(resources)?.0.len(),
        (None, Some(schedule)) if one.reclaims => {
            backups_of_schedule(context, schedule, resources).await?.len()
        }
        _ => 0,
    };
    let stays = matches!(one.kind, Kind::VolumeBackup | Kind::VolumeRestore | Kind::VolumeClone);
    Ok(match lost {
        0 if stays || resources.find(one.kind, &one.name).is_none() => None,
        0 => Some(format!("{}/{} is deleted", one.kind, one.name)),
        _ => {
            let lost = counted(lost as u64, "cloud snapshot");
            Some(format!("{}/{} is deleted permanently with {lost}", one.kind, one.name))
        }
    })
}

async fn delete_all(
    context: &Context<'_>,
    wanted: &[Deletion],
    resources: &ResourceSet,
    dry_run: bool,
    record: &mut Record,
) -> Exit {
    for one in wanted {
        record.begin();
        let result = delete(context, one, resources, dry_run).await?;
        record.done(result);
        let dry = if dry_run { " (dry run)" } else { "" };
        if !context.output.is_json() {
            context.output.line(format!("{}/{} {result}{dry}", one.kind, one.name))?;
        }
    }
    Ok(EXIT_DONE)
}

async fn delete(
    context: &Context<'_>,
    one: &Deletion,
    resources: &ResourceSet,
    dry_run: bool,
) -> Result<&'static str, Failure> {
    let (client, name) = (&context.client, one.name.as_str());
    resources.refuse_hidden(one.kind)?;
    if let Some(target) = &one.backups {
        return target.delete(context, resources, dry_run).await;
    }
    if resources.find(one.kind, name).is_none() {
        return Ok("not there");
    }
    match one.kind {
        Kind::VolumeBackup => return Ok("kept in the store"),
        // Their volumes may be in use.
        Kind::VolumeRestore | Kind::VolumeClone => return Ok("kept as a volume"),
        Kind::VolumeBackupSchedule => {
            if let Some(found) = resources.schedule(name) {
                delete_schedule(context, found, one.reclaims, resources, dry_run).await?;
            }
        }
        _ if dry_run => {}
        Kind::BackupLocation => {
            if let Some(found) = resources.credential(name) {
                let id = CredentialRef::Id(found.credential_id);
                client.call_at(operations::DELETE_CREDENTIAL, &id, &()).await?;
            }
        }
        Kind::SchedulePolicy => {
            if let Some(found) = resources.policies.iter().find(|policy| policy.name.as_str() == name) {
                client.call_at(operations::DELETE_POLICY, &found.name, &()).await?;
            }
        }
        Kind::VolumeSnapshot => {
            for one in resources.snapshots.iter().filter(|one| one.name.as_str() == name) {
                let id = SnapshotRef::Id(one.snapshot_id);
                client.call_at(operations::DELETE_SNAPSHOT, &id, &Default::default()).await?;
            }
        }
        Kind::Rule => {
            if let Some(found) = resources.rule(name) {
                delete_rule(context, &found.name, one.rule.as_ref()).await?;
            }
        }
    }
    Ok("deleted")
}

/// Deletes a schedule, perhaps after its backups: a repeated command continues.
async fn delete_schedule(
    context: &Context<'_>,
    schedule: &Schedule,
    reclaims: bool,
    resources: &ResourceSet,
    dry_run: bool,
) -> Result<(), Failure> {
    let (client, id) = (&context.client, &schedule.schedule_id);
    let backups = match reclaims {
        true => backups_of_schedule(context, schedule, resources).await?,
        false => Vec::new(),
    };
    if dry_run {
        return Ok(());
    }
    if reclaims {
        // No run starts meanwhile.
        let pause = UpdateSchedule { paused: Some(true), ..UpdateSchedule::default() };
        client.call_at(operations::UPDATE_SCHEDULE, id, &pause).await?;
    }
    for (snapshot, credential) in backups {
        delete_cloudsnap(context, snapshot, Some(credential)).await?;
    }
    client.call_at(operations::DELETE_SCHEDULE, id, &()).await?;
    Ok(())
}

/// Returns the backups of a schedule and their locations.
///
/// # Errors
/// A backup is running or pinned: nothing is deleted if one of several cannot be.
async fn backups_of_schedule(
    context: &Context<'_>,
    schedule: &Schedule,
    resources: &ResourceSet,
) -> Result<Vec<(CloudSnapshotId, CredentialRef)>, Failure> {
    let plan = context.client.call_at(operations::PLAN_RETENTION, &schedule.schedule_id, &()).await?;
    let owner = TaskOwner::Schedule { schedule_id: schedule.schedule_id };
    let tasks = resources.tasks.iter().filter(|task| task.owner == owner);
    let pinned = plan.cloud_snapshots.iter().find(|one| one.verdict.is_kept_as(KeepReason::Pinned));
    let object = format!("a backup of VolumeBackupSchedule/{}", schedule_name(schedule));
    refuse_kept(&object, tasks, pinned.map(|one| one.cloud_snapshot_id))?;
    let backups = plan.cloud_snapshots.into_iter();
    Ok(backups.map(|one| (one.cloud_snapshot_id, CredentialRef::Id(one.credential_id))).collect())
}

/// Deletes a rule. If its object has all current targets, they are unassigned first.
async fn delete_rule(context: &Context<'_>, name: &RuleName, hook: Option<&Hook>) -> Result<(), Failure> {
    let client = &context.client;
    // Targets may have been deleted since the resources were loaded.
    let current = client.call_at(operations::GET_RULE, name, &()).await?;
    let targets: Vec<_> = Hook::of(&current).targets().into_iter().flatten().flatten().collect();
    let given: Vec<_> = hook.map(Hook::targets).into_iter().flatten().flatten().flatten().collect();
    if current.schedule_ids.is_empty() && targets.iter().all(|target| given.contains(target)) {
        for target in &targets {
            client.call_at(operations::UNASSIGN_RULE, name, target).await?;
        }
    }
    client.call_at(operations::DELETE_RULE, name, &()).await?;
    Ok(())
}
