//! Reads of a snapshot: each block comes from the newest delta that holds it.
//!
//! A [`SnapshotReader`] reads in two ways. Bulk reads ([`bulk`]) take the fewest requests and bypass the
//! frame caches: the deltas are read newest first, each for the blocks that no newer one has, page by page,
//! so that no page and no pack is read twice. Random reads ([`random`], through [`BlockSource`]) take the
//! fewest round trips: the pages of all deltas are requested concurrently, and frames stay in memory. Both
//! share the index pages.
//!
//! [`BlockSource`]: blockd_extent::BlockSource

mod ahead;
mod bulk;
mod random;
mod references;
mod run;
mod visible;

pub(crate) use bulk::BulkRead;
use bulk::SharedBulkMemory;
use references::Source;

use crate::{
    CloudError, CloudSnapshotId, Manifest, Repository, SnapshotCache,
    backup::cpu_threads,
    cache::{CacheShared, SharedDelta},
    manifest::Delta,
    names::DeltaId,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockSet, Extent, Readahead, ReadaheadLimits};
use blockd_store::Work;
use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};
use tokio::{runtime::Handle, sync::Semaphore};

/// Snapshot open for reading. Clones share its state.
#[derive(Clone)]
pub struct SnapshotReader {
    inner: Arc<Inner>,
}

struct Inner {
    id: CloudSnapshotId,
    size_bytes: u64,
    /// Layers, newest first.
    deltas: Vec<Arc<SharedDelta>>,
    /// Deltas that references of the layers may name.
    sources: BTreeMap<DeltaId, Source>,
    repo: Repository,
    cache: Arc<CacheShared>,
    limits: ReadaheadLimits,
    readahead: Mutex<Readahead>,
    /// Data blocks of one extent.
    map: Mutex<Option<(Extent, Arc<BlockSet>)>>,
    bulk_memory: SharedBulkMemory,
    urgent_memory: SharedBulkMemory,
    runtime: Handle,
    cores: Arc<Semaphore>,
    work: Work,
}

impl std::fmt::Debug for SnapshotReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotReader").field("id", &self.inner.id).finish_non_exhaustive()
    }
}

impl SnapshotReader {
    /// Opens a snapshot with a cache of its own: reads the roots of its deltas' indexes and checks them
    /// against the manifest.
    ///
    /// # Errors
    /// [`CloudError::Damaged`]; [`CloudError::UnknownKey`]; errors of the store.
    pub async fn open(repo: &Repository, manifest: &Manifest) -> Result<Self, CloudError> {
        Self::open_with(repo, manifest, 0).await
    }

    pub(crate) async fn open_with(
        repo: &Repository,
        manifest: &Manifest,
        threads: usize,
    ) -> Result<Self, CloudError> {
        SnapshotCache::of_one_reader().reader(repo, manifest, threads).await
    }

    fn new(
        cache: Arc<CacheShared>,
        repo: &Repository,
        manifest: &Manifest,
        deltas: Vec<Arc<SharedDelta>>,
        threads: usize,
    ) -> Self {
        assert_eq!(deltas.len(), manifest.layers().count(), "a reader for each layer");
        debug_assert!(deltas.iter().zip(manifest.layers()).all(|(open, delta)| open.salt == delta.salt));
        // Readahead data must stay in memory until it is read.
        let ahead = cache.options.readahead_bytes.min(cache.options.memory_bytes / 8 * 3);
        let limits = ReadaheadLimits {
            first_window_blocks: 128,
            max_window_blocks: ahead / BLOCK_SIZE_BYTES,
            max_step_blocks: u64::MAX,
            // The kernel's own readahead has several requests in flight, in any order.
            slack_blocks: 512,
            min_reads: 3,
        };
        Self {
            inner: Arc::new(Inner {
                id: manifest.id(),
                size_bytes: manifest.size_bytes,
                sources: references::sources(manifest, &deltas),
                repo: repo.clone(),
                deltas,
                cache,
                limits,
                readahead: Mutex::default(),
                map: Mutex::default(),
                bulk_memory: SharedBulkMemory::default(),
                urgent_memory: SharedBulkMemory::default(),
                runtime: Handle::current(),
                cores: Arc::new(Semaphore::new(cpu_threads(threads))),
                work: repo.work().clone(),
            }),
        }
    }

    /// Returns the snapshot's id.
    pub fn id(&self) -> CloudSnapshotId {
        self.inner.id
    }
}

impl SnapshotCache {
    /// Opens a snapshot: reads the index roots of its deltas concurrently and checks them against the
    /// manifest. Must be called in a runtime, on which it runs background work.
    ///
    /// # Errors
    /// [`CloudError::Damaged`]; [`CloudError::UnknownKey`]; errors of the store, with a timeout after the
    /// stall timeout.
    pub async fn snapshot(
        &self,
        repo: &Repository,
        manifest: &Manifest,
    ) -> Result<SnapshotReader, CloudError> {
        self.reader(repo, manifest, 0).await
    }

    pub(crate) async fn reader(
        &self,
        repo: &Repository,
        manifest: &Manifest,
        threads: usize,
    ) -> Result<SnapshotReader, CloudError> {
        // Divided equally in advance, because the roots are read concurrently.
        let keep = self.shared.index_keep_bytes / manifest.deltas().count() as u64;
        let deltas: Vec<Delta> = manifest.layers().cloned().collect();
        let opened = futures::stream::iter(deltas)
            .map(|delta| async move { self.shared.delta(repo, &delta, keep).await })
            .buffered(self.shared.open_concurrency)
            .try_collect::<Vec<_>>();
        let opened = self.shared.with_stall_timeout(repo.store().describe(), "the index", opened).await?;
        Ok(SnapshotReader::new(self.shared.clone(), repo, manifest, opened, threads))
    }
}
