//! Restore of a snapshot into an empty volume.
//!
//! Packs are fetched concurrently and decrypted on all cores while they arrive; each nonzero block is written
//! exactly once, in any order. Chunks of frames have 32 MiB from their arrival until they are written; index
//! pages take up to 64 MiB. A [`Window`](crate::window::Window) limits the requests.

use crate::{
    CloudError, Damage, Manifest, Repository, SnapshotReader,
    damage::DamageList,
    frame::BLOCK,
    progress::{CancelToken, Phase, Progress},
    reader::BulkRead,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent};
use std::{io, sync::Arc};

/// Writer of restored blocks.
pub trait BlockWriter: Send + Sync {
    /// Writes whole blocks from `start` on. Called concurrently on threads that may block, at most once for
    /// each block. The last block of a volume is passed whole even if the volume ends within it.
    ///
    /// # Errors
    /// The write failed; the restore fails then.
    fn write_blocks(&self, start: BlockIndex, data: &[u8]) -> io::Result<()>;

    /// Called with extents whose non-zero blocks have all been written. An implementation that records them
    /// durably, after the written data is durable, can exclude them from a later run with
    /// [`RestoreRequest::skip`]. Called like [`write_blocks`](Self::write_blocks).
    ///
    /// # Errors
    /// The record failed; the restore fails then.
    fn settled(&self, extents: &[Extent]) -> io::Result<()> {
        let _ = extents;
        Ok(())
    }
}

/// Options of a restore.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RestoreOptions {
    /// Maximum number of concurrent requests; their number follows latency and bandwidth.
    pub download_concurrency: usize,
    /// Threads that decrypt and decompress; 0 is one for each core.
    pub cpu_threads: usize,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self { download_concurrency: 32, cpu_threads: 0 }
    }
}

/// Restore request.
#[derive(Clone, Default, Debug)]
pub struct RestoreRequest {
    /// Blocks that an earlier run restored.
    pub skip: BlockSet,
    /// Skips damaged blocks and lists them in the summary. A damaged root of an index still fails the
    /// restore, as the blocks below it are unknown.
    pub skip_damaged: bool,
}

/// Summary of a restore.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct RestoreSummary {
    /// Visible blocks in the frames read, including zero blocks, which were not written.
    pub blocks: u64,
    /// Requests for frames.
    pub frame_requests: u64,
    /// Skipped damage, if requested.
    pub damage: Damage,
}

/// Restores a snapshot: passes every non-zero block to the writer, whose volume must read as zeroes before,
/// except the blocks of an earlier run.
///
/// # Errors
/// [`CloudError::Cancelled`]; [`CloudError::Damaged`] with the damage, with [`RestoreRequest::skip_damaged`]
/// only for an index root; [`CloudError::WriteVolume`]; errors of the store. Blocks written by then are
/// correct, but incomplete.
pub async fn restore(
    repo: &Repository,
    manifest: &Manifest,
    writer: Arc<dyn BlockWriter>,
    request: &RestoreRequest,
    options: &RestoreOptions,
    progress: Arc<Progress>,
    cancel: &CancelToken,
) -> Result<RestoreSummary, CloudError> {
    cancel.guard(run(repo, manifest, writer, request, options, progress)).await
}

async fn run(
    repo: &Repository,
    manifest: &Manifest,
    writer: Arc<dyn BlockWriter>,
    request: &RestoreRequest,
    options: &RestoreOptions,
    progress: Arc<Progress>,
) -> Result<RestoreSummary, CloudError> {
    progress.enter(Phase::Planning);
    let reader = SnapshotReader::open_with(repo, manifest, options.cpu_threads).await?;
    let listed: u64 = manifest.layers().map(|delta| delta.data_blocks + delta.reference_blocks).sum();
    progress.begin(listed * BLOCK_SIZE_BYTES);
    // Blocks restored by an earlier run count as processed.
    progress.processed(request.skip.len_blocks() * BLOCK_SIZE_BYTES);
    let settled_writer = writer.clone();
    let settled = move |extents: &[Extent]| {
        debug_assert!(extents.is_sorted_by(|a, b| a.end() <= b.start), "settled extents are ascending");
        let start = extents.first().map_or(BlockIndex(0), |first| first.start);
        settled_writer.settled(extents).map_err(|source| CloudError::WriteVolume { start, source })
    };
    let end = Extent::whole(manifest.size_bytes).end();
    let sink = move |start: BlockIndex, data: &[u8]| {
        debug_assert!(!data.is_empty() && data.len().is_multiple_of(BLOCK), "{} bytes", data.len());
        assert!(start.0 + (data.len() / BLOCK) as u64 <= end.0, "a block behind the end of the volume");
        writer.write_blocks(start, data).map_err(|source| CloudError::WriteVolume { start, source })
    };
    let everything = Extent::whole(manifest.size_bytes);
    let damage = request.skip_damaged.then(Arc::<DamageList>::default);
    let what = BulkRead {
        progress: Some(&progress),
        skip: Some(&request.skip),
        settled: Some(Arc::new(settled)),
        damage: damage.as_ref(),
        ..BulkRead::default()
    };
    let totals = reader.read_in_bulk(everything, Arc::new(sink), options.download_concurrency, &what).await?;
    debug_assert!(request.skip_damaged || totals.blocks <= listed, "{} of {listed} blocks", totals.blocks);
    progress.finish();
    let damage = damage.map(|list| list.take()).unwrap_or_default();
    Ok(RestoreSummary { blocks: totals.blocks, frame_requests: totals.requests, damage })
}
