//! Mounts of snapshots, and files in cloud snapshots.

use super::{Body, Failure, HandlerResult, Input, Reply, caller::Caller, passed_fds::Descriptor};
use crate::{core::Core, error::ServiceError};
use axum::{extract::State, http::header::CONTENT_TYPE, response::IntoResponse};
use blockd_api::browse::{
    BrowseMount, BrowseMountList, FileList, FileRuns, HandMount, ListFileRuns, ListFiles, MountBrowse,
    ReadFile, UnmountBrowse, Unmounted,
};
use std::sync::Arc;

/// Runs blocking store access on a thread of its own, within a limit.
async fn in_turn<R: Send + 'static>(
    core: Arc<Core>,
    work: impl FnOnce(&Arc<Core>) -> Result<R, ServiceError> + Send + 'static,
) -> Result<R, ServiceError> {
    let worker = Arc::clone(&core);
    core.browse.requests.run(move || work(&worker)).await
}

pub(super) async fn mounts(State(core): State<Arc<Core>>) -> HandlerResult<BrowseMountList> {
    Ok(Reply(in_turn(core, |core| Ok(core.list_browse())).await?))
}

pub(super) async fn mount(
    State(core): State<Arc<Core>>,
    Body(request): Body<MountBrowse>,
) -> HandlerResult<BrowseMount> {
    Ok(Reply(in_turn(core, move |core| core.mount_browse(&request)).await?))
}

pub(super) async fn serve_handed(
    State(core): State<Arc<Core>>,
    caller: Caller,
    Descriptor(descriptor): Descriptor,
    Body(request): Body<HandMount>,
) -> HandlerResult<BrowseMount> {
    let serve = move |core: &Arc<Core>| core.serve_handed(request, descriptor, caller.user);
    Ok(Reply(in_turn(core, serve).await?))
}

pub(super) async fn unmount(
    State(core): State<Arc<Core>>,
    Body(request): Body<UnmountBrowse>,
) -> HandlerResult<Unmounted> {
    Ok(Reply(in_turn(core, move |core| core.unmount_browse(&request)).await?))
}

pub(super) async fn list_files(
    State(core): State<Arc<Core>>,
    Input(query): Input<ListFiles>,
) -> HandlerResult<FileList> {
    let list = move |core: &Arc<Core>| core.snapshot_files(&query.snap, query.cred_id.as_ref())?.list(&query);
    Ok(Reply(in_turn(core, list).await?))
}

/// Streams a file.
pub(super) async fn read_file(
    State(core): State<Arc<Core>>,
    Input(query): Input<ReadFile>,
) -> Result<impl IntoResponse, Failure> {
    let read = move |core: &Arc<Core>| core.snapshot_files(&query.snap, query.cred_id.as_ref())?.read(&query);
    Ok(([(CONTENT_TYPE, "application/octet-stream")], in_turn(core, read).await?))
}

pub(super) async fn list_file_runs(
    State(core): State<Arc<Core>>,
    Input(query): Input<ListFileRuns>,
) -> HandlerResult<FileRuns> {
    let runs = move |core: &Arc<Core>| core.snapshot_files(&query.snap, query.cred_id.as_ref())?.runs(&query);
    Ok(Reply(in_turn(core, runs).await?))
}
