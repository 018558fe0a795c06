//! `blockctl cloudsnap delete --src`: deletion of all cloud snapshots of a volume.

use super::snapshots::{DeleteArgs, refuse_kept};
use crate::{
    failure::{EXIT_DONE, Exit, Failure, FailureBody},
    output::Context,
    table::{Width, counted, short_time},
    wait::{exit_status, follow, tell},
};
use blockd_api::{
    ApiError, ClientError, CredentialRef, ErrorCode, List, VolumeId, VolumeName, VolumeRef,
    cloudsnaps::{CloudSnapshotId, Cloudsnap, CloudsnapList, DamagedCloudsnap, ListCloudsnaps, StartDelete},
    first_names, operations,
    tasks::Task,
};
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeSet;
use uuid::Uuid;

/// Ended deletions of the cloud snapshots of a volume, and the error of the first one that did not start.
#[derive(Serialize, JsonSchema)]
pub struct VolumeDeletions {
    #[serde(flatten)]
    list: List<Task>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<FailureBody>,
}

/// Returns the error for a name or id of neither a volume nor a listed cloud snapshot.
fn unknown(args: &DeleteArgs, volume: &VolumeRef) -> Failure {
    let at = args.credential.cred_id.as_ref().map_or_else(String::new, |location| format!(" at {location}"));
    let message = format!("volume {volume} neither exists nor has cloud snapshots of this host{at}");
    ApiError::new(ErrorCode::VolumeNotFound, message).into()
}

/// Returns the error for a location that could not be listed.
fn unlisted(volume: &VolumeRef, name: &str, error: &ApiError) -> Failure {
    let message = format!("listing the cloud snapshots of volume {volume} failed at {name}: {error}");
    let hint = "nothing was deleted; --cred-id names the only location to delete from";
    ApiError::new(error.code, message).with_hint(hint).into()
}

/// Returns the only former volume of a name with cloud snapshots of this host.
///
/// # Errors
/// No or several former volumes had the name, or a location cannot be listed.
async fn former_volume(
    context: &Context<'_>,
    args: &DeleteArgs,
    name: &VolumeName,
    here: Uuid,
) -> Result<VolumeId, Failure> {
    let volume = VolumeRef::Name(name.clone());
    let query = ListCloudsnaps {
        credential: args.credential.cred_id.clone(),
        volume: Some(volume.clone()),
        cluster_id: Some(here),
        ..ListCloudsnaps::default()
    };
    let list = context.client.call(operations::LIST_CLOUDSNAPS, &query).await?;
    if let Some(failed) = list.failed_credentials.first() {
        return Err(unlisted(&volume, &failed.credential_name, &failed.error));
    }
    let own = list.list.items.iter().filter(|one| one.cloud_snapshot_id.cluster == here);
    let former: BTreeSet<VolumeId> = own.map(|one| one.volume_id).collect();
    match (former.len(), former.first()) {
        (1, Some(id)) => Ok(*id),
        (0, _) | (_, None) => Err(unknown(args, &volume)),
        (count, _) => Err(Failure::usage(format!(
            "{count} former volumes had the name {name}: {}",
            first_names(former)
        ))
        .with_hint("give the id of one")),
    }
}

/// Lists the cloud snapshots that this host made of a volume at one location, or separately at each, where
/// one that cannot be listed is an error.
async fn list_each(
    context: &Context<'_>,
    args: &DeleteArgs,
    volume: &VolumeRef,
    (here, id): (Uuid, VolumeId),
) -> Result<(Vec<Cloudsnap>, Vec<DamagedCloudsnap>), Failure> {
    let list_at = async |credential: CredentialRef| -> Result<CloudsnapList, ClientError> {
        let query = ListCloudsnaps {
            credential: Some(credential),
            volume: Some(VolumeRef::Id(id)),
            cluster_id: Some(here),
            ..ListCloudsnaps::default()
        };
        context.client.call(operations::LIST_CLOUDSNAPS, &query).await
    };
    if let Some(only) = &args.credential.cred_id {
        let list = list_at(only.clone()).await?;
        return Ok((list.list.items, list.damaged));
    }
    let (mut items, mut damaged) = (Vec::new(), Vec::new());
    for one in context.client.call(operations::LIST_CREDENTIALS, &()).await?.items {
        match list_at(CredentialRef::Id(one.credential_id)).await {
            Ok(list) => {
                items.extend(list.list.items);
                damaged.extend(list.damaged);
            }
            Err(ClientError::Api(error)) => return Err(unlisted(volume, one.name.as_str(), &error)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok((items, damaged))
}

/// Returns the cloud snapshots that this host made of a volume with their credentials, and their description.
async fn listed(
    context: &Context<'_>,
    args: &DeleteArgs,
    volume: &VolumeRef,
) -> Result<(Vec<(CloudSnapshotId, Uuid)>, String), Failure> {
    let here = context.client.call(operations::GET_STATUS, &()).await?.cluster_id;
    let present = match context.client.call_at(operations::GET_VOLUME, volume, &()).await {
        Ok(found) => Some(found.volume_id),
        Err(ClientError::Api(error)) if error.code == ErrorCode::VolumeNotFound => None,
        Err(error) => return Err(error.into()),
    };
    let wanted = match (present, volume) {
        (Some(id), _) => id,
        (None, VolumeRef::Id(id)) => *id,
        (None, VolumeRef::Name(name)) => former_volume(context, args, name, here).await?,
    };
    let (mut items, damaged) = list_each(context, args, volume, (here, wanted)).await?;
    items.retain(|one| one.cloud_snapshot_id.cluster == here && one.volume_id == wanted);
    if !args.force {
        items.iter().try_for_each(|one| refuse_kept(one, here))?;
    }
    let damaged = damaged.iter();
    let damaged = damaged.filter_map(|one| {
        let location = one.location_id.unwrap_or(one.credential_id);
        Some((one.cloud_snapshot_id.parse().ok()?, one.credential_id, location))
    });
    let is_wanted = |id: &CloudSnapshotId| id.cluster == here && id.volume == wanted;
    let damaged: Vec<_> = damaged.filter(|(id, ..)| is_wanted(id)).collect();
    if let (Some((id, ..)), false) = (damaged.first(), args.force) {
        let message = format!("the manifest of cloud snapshot {id} is unreadable");
        let hint = "nothing was deleted; --force deletes such a manifest too";
        return Err(ApiError::new(ErrorCode::CloudsnapDamaged, message).with_hint(hint).into());
    }
    let times = items.iter().map(|one| one.created_at);
    let span = times.clone().min().zip(times.max());
    let span = span.map_or_else(String::new, |(oldest, newest)| {
        format!(", of {} to {},", short_time(oldest), short_time(newest))
    });
    let items = items.iter().map(|one| (one.cloud_snapshot_id, one.credential_id, one.location()));
    // Two credentials may be of one location.
    let mut seen = BTreeSet::new();
    let all = items.chain(damaged).filter(|(id, _, location)| seen.insert((*id, *location)));
    let all: Vec<_> = all.map(|(id, credential, _)| (id, credential)).collect();
    if all.is_empty() && present.is_none() {
        return Err(unknown(args, volume));
    }
    let count = counted(all.len() as u64, "cloud snapshot");
    let are = if all.len() == 1 { "is" } else { "are" };
    Ok((all, format!("{count} of volume {volume} ({wanted}){span} {are} deleted permanently.")))
}

/// Deletes cloud snapshots, one after the other, up to the first failure; adds the ended tasks to `ended`.
async fn delete_each(
    context: &Context<'_>,
    force: bool,
    all: Vec<(CloudSnapshotId, Uuid)>,
    ended: &mut Vec<Task>,
) -> Exit {
    let mut deleted = BTreeSet::new();
    for (cloud_snapshot_id, credential) in all {
        let credential = Some(CredentialRef::Id(credential));
        let request = StartDelete { cloud_snapshot_id, credential, force };
        // Two credentials may lead to one store.
        let is_gone = |error: &ApiError| {
            error.code == ErrorCode::CloudsnapNotFound && deleted.contains(&cloud_snapshot_id)
        };
        let started = match context.client.call(operations::START_DELETE, &request).await {
            Err(ClientError::Api(error)) if is_gone(&error) => continue,
            started => started?,
        };
        context.output.warn(&started.warnings);
        let task = follow(&context.client, started.task_id, context.output).await?;
        if task.error.as_ref().is_some_and(is_gone) {
            continue;
        }
        if !context.output.is_json() {
            tell(context, &task, Width::Narrow)?;
        }
        let exit = exit_status(&task);
        ended.push(task);
        if exit != EXIT_DONE {
            return Ok(exit);
        }
        deleted.insert(cloud_snapshot_id);
    }
    Ok(EXIT_DONE)
}

/// Deletes all cloud snapshots that this host made of a volume, one after the other, up to the first failure.
pub async fn delete_all(context: &Context<'_>, args: &DeleteArgs, volume: &VolumeRef) -> Exit {
    let output = context.output;
    if !args.yes.is_deliberate() {
        let message =
            format!("without --yes, delete requires the complete id of a cloud snapshot, not --src {volume}");
        let hint = format!("blockctl cloudsnap list --src {volume}");
        return Err(Failure::usage(message).with_hint(hint));
    }
    let (all, consequence) = listed(context, args, volume).await?;
    if !all.is_empty() {
        args.yes.confirm(output, &consequence)?;
    }
    let mut ended = Vec::new();
    let exit = delete_each(context, args.force, all, &mut ended).await;
    if output.is_json() {
        let (status, error) = match exit {
            Ok(status) => (status, None),
            Err(failure) => (failure.exit_status(), Some(failure.document().error)),
        };
        output.document(&VolumeDeletions { list: List::from(ended), error })?;
        return Ok(status);
    }
    if exit.is_ok() && ended.is_empty() {
        output.line(format!("Volume {volume} has no cloud snapshots of this host."))?;
    }
    exit
}
