//! Attaching and detaching.

use super::{Body, HandlerResult, Named, caller::Caller, detached};
use crate::core::Core;
use axum::extract::State;
use blockd_api::{
    VolumeRef,
    attachments::{AttachVolume, Attachment, DetachVolume, Detached},
    roles::Role,
};
use std::sync::Arc;

pub(super) async fn attach(
    State(core): State<Arc<Core>>,
    Named(volume): Named<VolumeRef>,
    Body(request): Body<AttachVolume>,
) -> HandlerResult<Attachment> {
    detached(async move { core.attach_volume(&volume, request).await }).await
}

pub(super) async fn detach(
    State(core): State<Arc<Core>>,
    caller: Caller,
    Named(volume): Named<VolumeRef>,
    Body(request): Body<DetachVolume>,
) -> HandlerResult<Detached> {
    if request.force {
        // Unwritten data is lost.
        caller.needs(Role::Admin, "a forced detach")?;
    }
    detached(async move { core.detach_volume(&volume, &request).await }).await
}
