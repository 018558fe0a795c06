//! `blockctl delete`

use super::{
    args::DeleteArgs,
    backups::{BackupTarget, DeleteScope},
    record::Record,
    resources::{ResourceSet, Scope},
};
use crate::{
    failure::{EXIT_DONE, Exit, Failure},
    objects::{Body, Kind, Object, backup::ReclaimPolicy, hook::Hook, read_all},
    output::Context,
};
use blockd_api::{CredentialRef, RuleName, SnapshotRef, operations};

/// Object to delete.
struct Deletion {
    kind: Kind,
    name: String,
    /// Backups to delete, if a backup was named or has `reclaimPolicy: Delete`.
    backups: Option<BackupTarget>,
    /// Assignments to remove with a rule.
    rule: Option<Hook>,
}

impl From<Object> for Deletion {
    fn from(object: Object) -> Self {
        let (kind, name) = (object.kind, object.name.to_string());
        let (backups, rule) = match object.body {
            Body::Backup(backup) if backup.reclaim_policy == ReclaimPolicy::Delete => {
                let (location, scope) = (backup.location().cloned(), DeleteScope::All(backup));
                (Some(BackupTarget { name: name.clone(), id: None, location, scope }), None)
            }
            Body::Rule(hook) => (None, Some(hook)),
            _ => (None, None),
        };
        Self { kind, name, backups, rule }
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
            let resources = ResourceSet::load_kind(context, kind, &scope).await?;
            let target =
                BackupTarget { name: name.clone(), id, location, scope: DeleteScope::One(args.volume) };
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
            (vec![Deletion { kind, name, backups: Some(target), rule: None }], resources)
        }
        _ => {
            let mut objects = read_all(&args.file)?.objects;
            let resources = ResourceSet::load_for(context, &mut objects).await?;
            (objects.into_iter().map(Deletion::from).collect(), resources)
        }
    };
    wanted.sort_by_key(|one| std::cmp::Reverse(one.kind));
    let mut record = Record::of(wanted.iter().map(|one| (one.kind, one.name.clone())));
    let ended = delete_all(context, &wanted, &resources, args.dry_run, &mut record).await;
    record.finish(context, ended)
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
    if let (Kind::VolumeBackup, Some(target)) = (one.kind, &one.backups) {
        return target.delete(context, resources, dry_run).await;
    }
    if resources.find(one.kind, name).is_none() {
        return Ok("not there");
    }
    match one.kind {
        Kind::VolumeBackup => return Ok("kept in the store"),
        // Their volumes may be in use.
        Kind::VolumeRestore | Kind::VolumeClone => return Ok("kept as a volume"),
        _ if dry_run => {}
        Kind::BackupLocation => {
            if let Some(found) = resources.credential(name) {
                client
                    .call_at(operations::DELETE_CREDENTIAL, &CredentialRef::Id(found.credential_id), &())
                    .await?;
            }
        }
        Kind::SchedulePolicy => {
            if let Some(found) = resources.policies.iter().find(|policy| policy.name.as_str() == name) {
                client.call_at(operations::DELETE_POLICY, &found.name, &()).await?;
            }
        }
        Kind::VolumeSnapshot => {
            for one in resources.snapshots.iter().filter(|one| one.name.as_str() == name) {
                client
                    .call_at(
                        operations::DELETE_SNAPSHOT,
                        &SnapshotRef::Id(one.snapshot_id),
                        &Default::default(),
                    )
                    .await?;
            }
        }
        Kind::Rule => {
            if let Some(found) = resources.rule(name) {
                delete_rule(context, &found.name, one.rule.as_ref()).await?;
            }
        }
        Kind::VolumeBackupSchedule => {
            if let Some(found) = resources.schedule(name) {
                client.call_at(operations::DELETE_SCHEDULE, &found.schedule_id, &()).await?;
            }
        }
    }
    Ok("deleted")
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
