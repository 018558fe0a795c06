//! `blockctl delete`

use super::{
    api, erase, missing, read,
    world::{Scope, World},
    world_for,
};
use crate::{
    cli::objects::{DeleteArgs, FileArg},
    commands::Context,
    failure::{EXIT_DONE, Failure},
    objects::{Body, Kind},
};
use blockd_api::CredentialRef;
use serde_json::json;

/// What is to go.
struct Wanted {
    kind: Kind,
    name: String,
    /// The backups that go, if it is one, and if somebody named it or its object says that what it made goes with it.
    backups: Option<erase::Target>,
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
            let target = erase::Target {
                name: name.clone(),
                id,
                location: args.location,
                which: erase::Which::Only(args.volume),
            };
            let is_there = match kind {
                Kind::VolumeBackup => erase::is_there(&world, &target).map_err(api)?,
                _ => world.of(kind).iter().any(|found| found.name == name),
            };
            if !is_there {
                return Err(api(missing(kind, &name)));
            }
            (vec![Wanted { kind, name, backups: Some(target) }], world)
        }
        _ => {
            let objects = read(&FileArg { file: args.file })?;
            let world = world_for(context, &objects).await?;
            let wanted = objects.into_iter().map(|object| {
                let name = object.name.to_string();
                let backups = match &object.body {
                    Body::Backup(backup) if backup.reclaim => Some(erase::Target {
                        name: name.clone(),
                        id: None,
                        location: Some(backup.location.clone()),
                        which: erase::Which::All(backup.volumes.clone()),
                    }),
                    _ => None,
                };
                Wanted { kind: object.kind(), name, backups }
            });
            (wanted.collect(), world)
        }
    };
    wanted.sort_by_key(|one| std::cmp::Reverse(one.kind));
    let mut documents = Vec::new();
    for one in &wanted {
        let result = delete(context, one, &mut world, args.dry_run).await?;
        let dry = if args.dry_run { " (dry run)" } else { "" };
        if !context.output.is_json() {
            context.output.line(format!("{}/{} {result}{dry}", one.kind, one.name))?;
        }
        documents.push(json!({ "kind": one.kind.as_str(), "name": one.name, "result": result }));
    }
    if context.output.is_json() {
        context.output.document(&json!({ "objects": documents }))?;
    }
    Ok(EXIT_DONE)
}

async fn delete(
    context: &Context<'_>,
    one: &Wanted,
    world: &mut World,
    dry_run: bool,
) -> Result<&'static str, Failure> {
    let client = &context.client;
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
        // Their volumes are in use, maybe: that is for whoever knows.
        Kind::VolumeRestore | Kind::VolumeClone => return Ok("kept as a volume"),
    }
    Ok("deleted")
}
