//! Volumes.

use super::{Body, HandlerResult, Input, Named, Reply, caller::Caller, detached};
use crate::core::Core;
use axum::extract::State;
use blockd_api::{
    Deleted, VolumeRef,
    roles::Role,
    volumes::{
        CloneVolume, CreateVolume, DeleteVolume, ListVolumes, UpdateVolume, Volume, VolumeCheck, VolumeList,
    },
};
use std::sync::Arc;

pub(super) async fn create(
    State(core): State<Arc<Core>>,
    Body(request): Body<CreateVolume>,
) -> HandlerResult<Volume> {
    detached(async move { core.create_volume(request).await }).await
}

pub(super) async fn check(
    State(core): State<Arc<Core>>,
    Named(volume): Named<VolumeRef>,
) -> HandlerResult<VolumeCheck> {
    Ok(Reply(core.check_volume(&volume).await?))
}

pub(super) async fn clone(
    State(core): State<Arc<Core>>,
    Named(volume): Named<VolumeRef>,
    Body(request): Body<CloneVolume>,
) -> HandlerResult<Volume> {
    detached(async move { core.clone_volume(&volume, request).await }).await
}

pub(super) async fn list(
    State(core): State<Arc<Core>>,
    Input(query): Input<ListVolumes>,
) -> HandlerResult<VolumeList> {
    Ok(Reply(core.list_volumes(&query).await?))
}

pub(super) async fn inspect(
    State(core): State<Arc<Core>>,
    Named(volume): Named<VolumeRef>,
) -> HandlerResult<Volume> {
    Ok(Reply(core.inspect_volume(&volume).await?))
}

pub(super) async fn update(
    State(core): State<Arc<Core>>,
    caller: Caller,
    Named(volume): Named<VolumeRef>,
    Body(request): Body<UpdateVolume>,
) -> HandlerResult<Volume> {
    // Groups and labels determine the schedules.
    if request != (UpdateVolume { size_bytes: request.size_bytes, ..UpdateVolume::default() }) {
        caller.needs(Role::Admin, "changing anything but the size of a volume")?;
    }
    detached(async move { core.update_volume(&volume, request).await }).await
}

pub(super) async fn delete(
    State(core): State<Arc<Core>>,
    Named(volume): Named<VolumeRef>,
    Input(query): Input<DeleteVolume>,
) -> HandlerResult<Deleted> {
    detached(async move { core.delete_volume(&core.whole_volume(&volume)?, query.force).await }).await
}
