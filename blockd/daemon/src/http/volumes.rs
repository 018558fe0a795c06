//! Volumes.

use super::{
    replies::Failure,
    routes::{OperationCall, Routes, detached},
};
use blockd_api::{
    VolumeRef, operations,
    roles::Role,
    volumes::{UpdateVolume, Volume},
};

pub(super) fn routes() -> Routes {
    Routes::default()
        .on(operations::LIST_VOLUMES, async |call| call.engine.volumes.list_volumes(&call.input).await)
        .detached(operations::CREATE_VOLUME, async |call| call.engine.volumes.create_volume(call.input).await)
        .on(operations::GET_VOLUME, async |call| call.engine.volumes.inspect_volume(&call.path).await)
        .on(operations::UPDATE_VOLUME, update)
        .detached(operations::DELETE_VOLUME, async |call| {
            let volume = call.engine.names.whole_volume(&call.path)?;
            call.engine.volumes.delete_volume(&volume, call.input.force).await
        })
        .on(operations::CHECK_VOLUME, async |call| call.engine.volumes.check_volume(&call.path).await)
        .detached(operations::CLONE_VOLUME, async |call| {
            call.engine.volumes.clone_volume(&call.path, call.input).await
        })
}

async fn update(call: OperationCall<VolumeRef, UpdateVolume>) -> Result<Volume, Failure> {
    let OperationCall { engine, caller, path: volume, input: request, .. } = call;
    // Groups and labels determine the schedules.
    if request != (UpdateVolume { size_bytes: request.size_bytes, ..UpdateVolume::default() }) {
        caller.needs(Role::Admin, "changing anything but the size of a volume")?;
    }
    detached(async move { engine.volumes.update_volume(&volume, request).await }).await
}
