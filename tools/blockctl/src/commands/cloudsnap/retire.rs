//! `blockctl cloudsnap delete --src`: deletion of all cloud snapshots of a volume.

use super::snapshots::{DeleteArgs, refuse_kept};
use crate::{
    failure::{EXIT_DONE, Exit, Failure},
    output::Context,
    table::{Width, counted, short_time},
    wait::{exit_status, follow, tell},
};
use blockd_api::{
    ApiError, ClientError, CredentialRef, ErrorCode, List, VolumeId, VolumeRef,
    cloudsnaps::{CloudSnapshotId, CloudsnapList, ListCloudsnaps, StartDelete},
    first_names, operations,
};
use std::collections::BTreeSet;
use uuid::Uuid;

/// Returns the volume of a name: the present one, or the only former one with cloud snapshots.
///
/// # Errors
/// Several former volumes had the name, or the call fails.
async fn volume_id(
    context: &Context<'_>,
    volume: &VolumeRef,
    list: &CloudsnapList,
) -> Result<Option<VolumeId>, Failure> {
    match context.client.call_at(operations::GET_VOLUME, volume, &()).await {
        Ok(found) => return Ok(Some(found.volume_id)),
        Err(ClientError::Api(error)) if error.code == ErrorCode::VolumeNotFound => {}
        Err(error) => return Err(error.into()),
    }
    if let VolumeRef::Id(id) = volume {
        return Ok(Some(*id));
    }
    let former: BTreeSet<VolumeId> = list.list.items.iter().map(|one| one.volume_id).collect();
    match former.len() {
        0 | 1 => Ok(former.into_iter().next()),
        count => Err(Failure::usage(format!(
            "{count} former volumes had the name {volume}: {}",
            first_names(former)
        ))
        .with_hint("give the id of one")),
    }
}

/// Returns the cloud snapshots that this host made of a volume with their credentials, and their description.
async fn listed(
    context: &Context<'_>,
    args: &DeleteArgs,
    volume: &VolumeRef,
) -> Result<(Vec<(CloudSnapshotId, Uuid)>, String), Failure> {
    let here = context.client.call(operations::GET_STATUS, &()).await?.cluster_id;
    let query = ListCloudsnaps {
        credential: args.credential.cred_id.clone(),
        volume: Some(volume.clone()),
        cluster_id: Some(here),
        ..ListCloudsnaps::default()
    };
    let mut list = context.client.call(operations::LIST_CLOUDSNAPS, &query).await?;
    list.list.items.retain(|one| one.cloud_snapshot_id.cluster == here);
    if let Some(failed) = list.failed_credentials.first() {
        let (name, error) = (&failed.credential_name, &failed.error);
        let message = format!("listing the cloud snapshots of volume {volume} failed at {name}: {error}");
        let hint = "nothing was deleted; --cred-id names the only location to delete from";
        return Err(ApiError::new(error.code, message).with_hint(hint).into());
    }
    let wanted = volume_id(context, volume, &list).await?;
    let is_wanted = |id: &CloudSnapshotId| id.cluster == here && Some(id.volume) == wanted;
    list.list.items.retain(|one| Some(one.volume_id) == wanted);
    if !args.force {
        list.list.items.iter().try_for_each(|one| refuse_kept(one, here))?;
    }
    let damaged = list.damaged.iter();
    let damaged = damaged.filter_map(|one| Some((one.cloud_snapshot_id.parse().ok()?, one.credential_id)));
    let damaged: Vec<_> = damaged.filter(|(id, _)| is_wanted(id)).collect();
    if let (Some((id, _)), false) = (damaged.first(), args.force) {
        let message = format!("the manifest of cloud snapshot {id} is unreadable");
        let hint = "nothing was deleted; --force deletes such a manifest too";
        return Err(ApiError::new(ErrorCode::CloudsnapDamaged, message).with_hint(hint).into());
    }
    let times: Vec<_> = list.list.items.iter().map(|one| one.created_at).collect();
    let span = times.iter().min().zip(times.iter().max());
    let span = span.map_or_else(String::new, |(oldest, newest)| {
        format!(", of {} to {},", short_time(*oldest), short_time(*newest))
    });
    let items = list.list.items.iter().map(|one| (one.cloud_snapshot_id, one.credential_id));
    let all: Vec<_> = items.chain(damaged).collect();
    let count = counted(all.len() as u64, "cloud snapshot");
    let are = if all.len() == 1 { "is" } else { "are" };
    let id = wanted.map_or_else(String::new, |id| format!(" ({id})"));
    Ok((all, format!("{count} of volume {volume}{id}{span} {are} deleted permanently.")))
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
    let (mut exit, mut ended) = (EXIT_DONE, Vec::new());
    for (cloud_snapshot_id, credential) in all {
        let credential = Some(CredentialRef::Id(credential));
        let request = StartDelete { cloud_snapshot_id, credential, force: args.force };
        let started = context.client.call(operations::START_DELETE, &request).await?;
        let task = follow(&context.client, started.task_id, output).await?;
        if !output.is_json() {
            tell(context, &task, Width::Narrow)?;
        }
        exit = exit_status(&task);
        ended.push(task);
        if exit != EXIT_DONE {
            break;
        }
    }
    match (output.is_json(), ended.is_empty()) {
        (true, _) => drop(output.document(&List::from(ended))?),
        (false, true) => drop(output.line(format!("Volume {volume} has no cloud snapshots of this host."))?),
        (false, false) => {}
    }
    Ok(exit)
}
