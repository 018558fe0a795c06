//! Mounts of snapshots, and files in cloud snapshots.

use super::{
    caller::Caller,
    extractors::{Body, Input},
    passed_fds::Descriptor,
    replies::{Failure, Reply},
    routes::Routes,
};
use axum::{extract::State, http::header::CONTENT_TYPE, response::IntoResponse};
use blockd_api::{
    browse::{BrowseMount, HandMount, ReadFile},
    operations,
};
use blockd_engine::error::ServiceError;
use blockd_views::browse::Browser;
use std::sync::Arc;

pub(super) fn routes() -> Routes {
    Routes::default()
        .on(operations::LIST_MOUNTS, async |call| {
            in_turn(call.browser, |browser| Ok(browser.list_browse())).await
        })
        .raw(operations::HAND_MOUNT, serve_passed)
        .on(operations::UNMOUNT, async |call| {
            in_turn(call.browser, move |browser| browser.unmount_browse(&call.input)).await
        })
        .on(operations::LIST_FILES, async |call| {
            let query = call.input;
            let list = move |browser: &Arc<Browser>| {
                browser.snapshot_files(&query.cloud_snapshot_id, query.credential.as_ref())?.list(&query)
            };
            in_turn(call.browser, list).await
        })
        .raw(operations::READ_FILE, read_file)
        .on(operations::LIST_FILE_RANGES, async |call| {
            let query = call.input;
            let ranges = move |browser: &Arc<Browser>| {
                browser.snapshot_files(&query.cloud_snapshot_id, query.credential.as_ref())?.ranges(&query)
            };
            in_turn(call.browser, ranges).await
        })
}

/// Runs blocking store access on a thread of its own, within a limit.
async fn in_turn<R: Send + 'static>(
    browser: Arc<Browser>,
    work: impl FnOnce(&Arc<Browser>) -> Result<R, ServiceError> + Send + 'static,
) -> Result<R, ServiceError> {
    let worker = Arc::clone(&browser);
    browser.browse.requests.run(move || work(&worker)).await
}

async fn serve_passed(
    State(browser): State<Arc<Browser>>,
    caller: Caller,
    Descriptor(descriptor): Descriptor,
    Body(request): Body<HandMount>,
) -> Result<Reply<BrowseMount>, Failure> {
    let serve = move |browser: &Arc<Browser>| browser.serve_passed(request, descriptor, caller.user);
    Ok(Reply(in_turn(browser, serve).await?))
}

/// Streams a file.
async fn read_file(
    State(browser): State<Arc<Browser>>,
    Input(query): Input<ReadFile>,
) -> Result<impl IntoResponse, Failure> {
    let read = move |browser: &Arc<Browser>| {
        browser.snapshot_files(&query.cloud_snapshot_id, query.credential.as_ref())?.read(&query)
    };
    Ok(([(CONTENT_TYPE, "application/octet-stream")], in_turn(browser, read).await?))
}
