//! `blockctl delete`

use super::{
    api, erase, missing, read,
    record::Record,
    resources::{ResourceSet, Scope},
    world_for,
};
use crate::{
    cli::objects::{DeleteArgs, FileArg},
    commands::Context,
    failure::{EXIT_DONE, Failure},
    objects::{Body, Kind, backup::ReclaimPolicy, hook::Hook},
};
use blockd_api::{CredentialRef, RuleName, VolumeRef, rules::RuleTarget};

/// Object to delete.
struct Wanted {
    kind: Kind,
    name: String,
    /// Backups to delete, if a backup was named or has `reclaimPolicy: Delete`.
    backups: Option<erase::Target>,
    /// Assignments to remove with a rule.
    rule: Option<Hook>,
}

/// `delete`: what needs others goes before them.
pub async fn run(context: &Context<'_>, args: DeleteArgs) -> Result<u8, Failure> {
    let (mut wanted, mut world) = match (args.kind, args.name) {
        (Some(kind), Some(name)) => {
            if kind != Kind::VolumeBackup && (args.location.is_some() || args.volume.is_some()) {
                return Err(Failure::usage("--location and --volume belong to VolumeBackup"));
            }
            let id = name.parse().ok();
            let scope = Scope { locations: args.location.clone().map(|location| vec![location]), id };
            let world = super::world_for_kind(context, kind, &scope).await?;
            world.refuse_hidden(kind)?;
            let target = erase::Target {
                name: name.clone(),
                id,
                location: args.location,
                which: erase::DeleteScope::Only(args.volume),
            };
            let is_there = match kind {
                Kind::VolumeBackup => erase::is_there(&world, &target).map_err(api)?,
                _ => world.of(kind).iter().any(|found| found.name == name),
            };
            if !is_there {
                return Err(api(missing(kind, &name)));
            }
            (vec![Wanted { kind, name, backups: Some(target), rule: None }], world)
        }
        _ => {
            let objects = read(&FileArg { file: args.file })?;
            let world = world_for(context, &objects).await?;
            let wanted = objects.into_iter().map(|object| {
                let name = object.name.to_string();
                let backups = match &object.body {
                    Body::Backup(backup) if backup.reclaim_policy == ReclaimPolicy::Delete => {
                        Some(erase::Target {
                            name: name.clone(),
                            id: None,
                            location: Some(backup.location.clone()),
                            which: erase::DeleteScope::All(backup.volumes.clone()),
                        })
                    }
                    _ => None,
                };
                let kind = object.kind();
                let rule = match object.body {
                    Body::Rule(hook) => Some(hook),
                    _ => None,
                };
                Wanted { kind, name, backups, rule }
            });
            (wanted.collect(), world)
        }
    };
    wanted.sort_by_key(|one| std::cmp::Reverse(one.kind));
    let mut record = Record::of(wanted.iter().map(|one| (one.kind, one.name.clone())));
    let ended = delete_all(context, &wanted, &mut world, args.dry_run, &mut record).await;
    record.finish(context, ended)
}

async fn delete_all(
    context: &Context<'_>,
    wanted: &[Wanted],
    world: &mut ResourceSet,
    dry_run: bool,
    record: &mut Record,
) -> Result<u8, Failure> {
    for one in wanted {
        record.begin();
        let result = delete(context, one, world, dry_run).await?;
        record.done(result, &[]);
        let dry = if dry_run { " (dry run)" } else { "" };
        if !context.output.is_json() {
            context.output.line(format!("{}/{} {result}{dry}", one.kind, one.name))?;
        }
    }
    Ok(EXIT_DONE)
}

async fn delete(
    context: &Context<'_>,
    one: &Wanted,
    world: &mut ResourceSet,
    dry_run: bool,
) -> Result<&'static str, Failure> {
    let client = &context.client;
    world.refuse_hidden(one.kind)?;
    let is_said = one.kind == Kind::VolumeBackup && one.backups.is_some();
    if !is_said && !world.of(one.kind).iter().any(|found| found.name == one.name) {
        return Ok("not there");
    }
    match one.kind {
        Kind::BackupLocation => {
            if let (false, Some(found)) =
                (dry_run, world.credentials.iter().find(|found| found.name.as_str() == one.name))
            {
                client.delete_credential(&CredentialRef::Id(found.uuid)).await?;
            }
        }
        Kind::SchedulePolicy => {
            if let (false, Some(found)) =
                (dry_run, world.policies.iter().find(|found| found.name.as_str() == one.name))
            {
                client.delete_policy(&found.name).await?;
            }
        }
        Kind::Rule => {
            if let (false, Some(found)) = (dry_run, world.rule(&one.name)) {
                let name = found.name.clone();
                delete_rule(context, &name, one.rule.as_ref()).await?;
            }
        }
        Kind::VolumeBackupSchedule => {
            let is_meant = |found: &&blockd_api::schedules::Schedule| match &found.name {
                Some(name) => name.as_str() == one.name,
                None => found.uuid.to_string() == one.name,
            };
            if let (false, Some(found)) = (dry_run, world.schedules.iter().find(is_meant)) {
                client.delete_schedule(found.uuid).await?;
            }
        }
        Kind::VolumeBackup => {
            return match &one.backups {
                Some(target) => erase::erase(context, target, world, dry_run).await,
                None => Ok("kept in the store"),
            };
        }
        // Their volumes may be in use, so they stay.
        Kind::VolumeRestore | Kind::VolumeClone => return Ok("kept as a volume"),
    }
    Ok("deleted")
}

/// Deletes a rule. Volumes and groups that its object names are relieved of it first, if nothing else has it.
async fn delete_rule(context: &Context<'_>, name: &RuleName, said: Option<&Hook>) -> Result<(), Failure> {
    let client = &context.client;
    // What had it may be deleted by now.
    let now = client.rule(name).await?;
    let volumes = said.and_then(|hook| hook.volumes.as_deref()).unwrap_or_default();
    let groups = said.and_then(|hook| hook.groups.as_deref()).unwrap_or_default();
    let is_all = now.schedules.is_empty()
        && now.volumes.iter().all(|volume| volumes.contains(volume))
        && now.groups.iter().all(|group| groups.contains(group));
    if is_all {
        for volume in now.volumes {
            let target = RuleTarget { volume: Some(VolumeRef::Name(volume)), group: None };
            client.unassign_rule(name, &target).await?;
        }
        for group in now.groups {
            client.unassign_rule(name, &RuleTarget { volume: None, group: Some(group) }).await?;
        }
    }
    client.delete_rule(name).await?;
    Ok(())
}
