//! Mounts of snapshots, and files in cloud snapshots.

use super::{Body, Failure, Input, Reply, caller::Caller, passed_fds::Descriptor, routes::Routes};
use axum::{extract::State, http::header::CONTENT_TYPE, response::IntoResponse};
use blockd_api::{
    browse::{BrowseMount, HandMount, ReadFile},
    operations,
};
use blockd_engine::{core::Core, error::ServiceError};
use std::sync::Arc;

pub(super) fn routes() -> Routes {
    Routes::default()
        .on(operations::LIST_MOUNTS, async |call| in_turn(call.core, |core| Ok(core.list_browse())).await)
        .on(operations::MOUNT, async |call| {
            in_turn(call.core, move |core| core.mount_browse(&call.input)).await
        })
        .raw(operations::HAND_MOUNT, serve_handed)
        .on(operations::UNMOUNT, async |call| {
            in_turn(call.core, move |core| core.unmount_browse(&call.input)).await
        })
        .on(operations::LIST_FILES, async |call| {
            let query = call.input;
            let list = move |core: &Arc<Core>| {
                core.snapshot_files(&query.snap, query.cred_id.as_ref())?.list(&query)
            };
            in_turn(call.core, list).await
        })
        .raw(operations::READ_FILE, read_file)
        .on(operations::LIST_FILE_RUNS, async |call| {
            let query = call.input;
            let runs = move |core: &Arc<Core>| {
                core.snapshot_files(&query.snap, query.cred_id.as_ref())?.runs(&query)
            };
            in_turn(call.core, runs).await
        })
}

/// Runs blocking store access on a thread of its own, within a limit.
async fn in_turn<R: Send + 'static>(
    core: Arc<Core>,
    work: impl FnOnce(&Arc<Core>) -> Result<R, ServiceError> + Send + 'static,
) -> Result<R, ServiceError> {
    let worker = Arc::clone(&core);
    core.browse.requests.run(move || work(&worker)).await
}

async fn serve_handed(
    State(core): State<Arc<Core>>,
    caller: Caller,
    Descriptor(descriptor): Descriptor,
    Body(request): Body<HandMount>,
) -> Result<Reply<BrowseMount>, Failure> {
    let serve = move |core: &Arc<Core>| core.serve_handed(request, descriptor, caller.user);
    Ok(Reply(in_turn(core, serve).await?))
}

/// Streams a file.
async fn read_file(
    State(core): State<Arc<Core>>,
    Input(query): Input<ReadFile>,
) -> Result<impl IntoResponse, Failure> {
    let read = move |core: &Arc<Core>| core.snapshot_files(&query.snap, query.cred_id.as_ref())?.read(&query);
    Ok(([(CONTENT_TYPE, "application/octet-stream")], in_turn(core, read).await?))
}
