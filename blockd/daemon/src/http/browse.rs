//! Mounts of snapshots, and the files inside cloud snapshots.

use super::{Answer, Asked, Body, Failure, Reply};
use crate::{core::Core, error::blocking};
use axum::{extract::State, http::header::CONTENT_TYPE, response::IntoResponse};
use blockd_api::browse::{
    BrowseMount, BrowseMountList, FileList, ListFiles, MountBrowse, ReadFile, UnmountBrowse, Unmounted,
};
use std::sync::Arc;

pub(super) async fn mounts(State(core): State<Arc<Core>>) -> Answer<BrowseMountList> {
    Ok(Reply(blocking(move || Ok::<_, crate::error::ServiceError>(core.list_browse())).await?))
}

pub(super) async fn mount(
    State(core): State<Arc<Core>>,
    Body(request): Body<MountBrowse>,
) -> Answer<BrowseMount> {
    Ok(Reply(blocking(move || core.mount_browse(&request)).await?))
}

pub(super) async fn unmount(
    State(core): State<Arc<Core>>,
    Body(request): Body<UnmountBrowse>,
) -> Answer<Unmounted> {
    Ok(Reply(blocking(move || core.unmount_browse(&request)).await?))
}

pub(super) async fn list_files(
    State(core): State<Arc<Core>>,
    Asked(query): Asked<ListFiles>,
) -> Answer<FileList> {
    let list = move || core.snapshot_files(&query.snap, query.cred_id.as_ref())?.list(&query);
    Ok(Reply(blocking(list).await?))
}

/// The bytes of a file as they are.
pub(super) async fn read_file(
    State(core): State<Arc<Core>>,
    Asked(query): Asked<ReadFile>,
) -> Result<impl IntoResponse, Failure> {
    let read = move || core.snapshot_files(&query.snap, query.cred_id.as_ref())?.read(&query);
    Ok(([(CONTENT_TYPE, "application/octet-stream")], blocking(read).await?))
}
