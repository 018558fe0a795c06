//! Attaching and detaching.

use super::{
    replies::Failure,
    routes::{OperationCall, Routes, detached},
};
use blockd_api::{
    VolumeRef,
    attachments::{DetachVolume, Detached},
    operations,
    roles::Role,
};

pub(super) fn routes() -> Routes {
    Routes::default()
        .detached(operations::ATTACH_VOLUME, async |call| {
            call.engine.devices.attach_volume(&call.path, call.input).await
        })
        .on(operations::DETACH_VOLUME, detach)
}

async fn detach(call: OperationCall<VolumeRef, DetachVolume>) -> Result<Detached, Failure> {
    if call.input.force {
        // Unwritten data is lost.
        call.caller.needs(Role::Admin, "a forced detach")?;
    }
    detached(async move { call.engine.devices.detach_volume(&call.path, &call.input).await }).await
}
