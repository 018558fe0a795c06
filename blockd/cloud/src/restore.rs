//! Restoring a snapshot into an empty volume.
//!
//! Packs come in side by side and are opened on all cores; each block that is not zero is written exactly once, so
//! the writer needs no order. At most `download_concurrency` packs (33 MiB each) are in memory at once, and up to 64
//! MiB of index pages.

use crate::{
    CloudError, Manifest, Repository, SnapshotReader,
    progress::{CancelToken, Phase, Progress},
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, Extent};
use std::{io, sync::Arc};

/// Takes the blocks of a volume that is being restored.
pub trait BlockWriter: Send + Sync {
    /// Writes whole blocks from `start` on. Called on threads that may block, by several at once, for every block at
    /// most once. The last block of a volume comes whole even if the volume ends within it.
    ///
    /// # Errors
    /// If they cannot be written; the restore fails then.
    fn write_blocks(&self, start: BlockIndex, data: &[u8]) -> io::Result<()>;
}

/// How a restore uses the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RestoreOptions {
    /// Packs in flight at once; each takes up to 33 MiB.
    pub download_concurrency: usize,
    /// Threads that open and decompress; 0 is one for each core.
    pub cpu_threads: usize,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self { download_concurrency: 4, cpu_threads: 0 }
    }
}

/// What a restore did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RestoreSummary {
    /// Blocks that were in the frames read and visible; those of them that are zero were not written.
    pub blocks: u64,
    /// Requests for frames.
    pub frame_requests: u64,
}

/// Restores a snapshot: gives every block that is not zero to the writer, whose volume must read as zeroes before.
///
/// # Errors
/// [`CloudError::Cancelled`]; [`CloudError::Damaged`], which says what is damaged; [`CloudError::WriteVolume`];
/// whatever the store reports. What was written by then is right, but not all.
pub async fn restore(
    repo: &Repository,
    manifest: &Manifest,
    writer: Arc<dyn BlockWriter>,
    options: &RestoreOptions,
    progress: Arc<Progress>,
    cancel: &CancelToken,
) -> Result<RestoreSummary, CloudError> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(CloudError::Cancelled),
        result = Box::pin(run(repo, manifest, writer, options, progress)) => result,
    }
}

async fn run(
    repo: &Repository,
    manifest: &Manifest,
    writer: Arc<dyn BlockWriter>,
    options: &RestoreOptions,
    progress: Arc<Progress>,
) -> Result<RestoreSummary, CloudError> {
    progress.enter(Phase::Planning);
    let reader = SnapshotReader::open_with(repo, manifest, options.cpu_threads).await?;
    progress.begin(manifest.deltas().map(|delta| delta.data_blocks * BLOCK_SIZE_BYTES).sum());
    let sink = move |start: BlockIndex, data: &[u8]| {
        writer.write_blocks(start, data).map_err(|source| CloudError::WriteVolume { start, source })
    };
    let everything = Extent::whole(manifest.size_bytes);
    let totals =
        reader.read_into(everything, Arc::new(sink), options.download_concurrency, Some(&progress)).await?;
    progress.finish();
    Ok(RestoreSummary { blocks: totals.blocks, frame_requests: totals.requests })
}
