//! Files with blocks that a repair has no source for.

use crate::{
    damaged_files::{MAX_EXTENTS, files_with},
    error::{ServiceError, blocking},
    tasks::LiveTask,
};
use blockd_api::browse::FilePath;
use blockd_cloud::{Manifest, Repository, SnapshotReader};
use blockd_extent::{BlockSet, BlockSource};
use std::sync::Arc;

/// Names the files of a damaged cloud snapshot with lost blocks, as far as its filesystem is readable.
pub(super) async fn lost_files(
    live: &LiveTask,
    repository: &Repository,
    damaged: &Manifest,
    lost: &BlockSet,
) -> Result<Vec<FilePath>, ServiceError> {
    let reader = match SnapshotReader::open(repository, damaged).await {
        Ok(reader) => reader,
        Err(error) => {
            tracing::info!(cloudsnap = %damaged.id(), %error, "the files with lost blocks are unknown");
            return Ok(Vec::new());
        }
    };
    let image: Arc<dyn BlockSource> = Arc::new(reader);
    let extents: Vec<_> = lost.extents().take(MAX_EXTENTS).map(|extent| (0, extent)).collect();
    let cancel = live.cancel.clone();
    blocking(move || Ok::<_, ServiceError>(files_with(&image, &extents, 1, &cancel).concat())).await
}
