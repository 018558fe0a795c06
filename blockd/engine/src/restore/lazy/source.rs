//! Cloud snapshot as the source of a lazy volume.
//!
//! It is opened on first use, so that a daemon starts while its store is unreachable. The volume's policy
//! limits the wait of a reader. A fetch observes this limit itself; one that had to wait for a slot may
//! exceed it.

use crate::{
    error::{ServiceError, blocking, spawned},
    fingerprints,
    restore::lazy::{LazyVolumes, fetcher::Fetcher},
    tasks::LiveTask,
};
use blockd_api::lazy::StoreLoss;
use blockd_catalog::{DbManifestCache, LazyRow};
use blockd_cloud::{
    CloudError, CloudSnapshotId, Damage, ManifestCache, ManifestKey, Repository, SnapshotReader,
    estimate_read,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, BlockSource, Extent, VolumeId};
use blockd_store::{RequestCounts, Requests};
use blockd_volume::{FetchReply, FetchSink, LazySource, SourceError, Urgency};
use parking_lot::Mutex;
use std::{
    io,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};
use tokio::runtime::Handle;
use uuid::Uuid;

/// Pause before a failed fetch is retried; doubled up to `LONGEST_PAUSE_MS`.
const PAUSE_MS: u64 = 100;
const LONGEST_PAUSE_MS: u64 = 2_000;
/// Number of reads after which damage is reported: an outage during a request may look like damage.
const DAMAGE_ATTEMPTS: u32 = 3;
/// Timeout of the check whether an incomplete snapshot was deleted.
const DELETION_CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// Cloud snapshot that backs a lazy volume.
pub struct CloudSource {
    lazy: Weak<LazyVolumes>,
    fetcher: Arc<Fetcher>,
    handle: Handle,
    row: LazyRow,
    time_limit: Duration,
    reader: tokio::sync::Mutex<Option<SnapshotReader>>,
    requests: Mutex<Option<Arc<Requests>>>,
    /// Error of a deleted snapshot, once it was observed.
    deleted: Mutex<Option<SourceError>>,
}

impl std::fmt::Debug for CloudSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CloudSource").field("cloudsnap", &self.row.cloudsnap).finish_non_exhaustive()
    }
}

/// Returns the error of the first damage.
fn damage_error(damage: &Damage) -> Option<SourceError> {
    let part = damage.parts.first()?;
    let blocks = damage.blocks.first().zip(damage.blocks.last());
    let error = CloudError::Damaged {
        key: part.object.clone(),
        offset_bytes: part.offset_bytes,
        what: part.what.clone(),
        blocks: blocks.map(|(first, last)| Extent::between(first, BlockIndex(last.0 + 1))),
    };
    Some(source_error(&error.into()))
}

/// Store errors may be temporary: a directory is mounted again, credentials are renewed. Damage is permanent.
fn source_error(error: &ServiceError) -> SourceError {
    SourceError::new(error.to_api().message, error.may_change())
}

impl CloudSource {
    /// Creates the source of a volume, on a thread of the runtime.
    pub fn new(lazy: &Arc<LazyVolumes>, row: LazyRow) -> Arc<Self> {
        let config = &lazy.host.settings;
        let timeout_ms = match row.on_store_loss {
            StoreLoss::Stall => config.lazy_stall_ms,
            StoreLoss::Error => config.lazy_error_ms,
        };
        Arc::new(Self {
            lazy: Arc::downgrade(lazy),
            fetcher: Arc::clone(&lazy.fetcher),
            handle: Handle::current(),
            row,
            time_limit: Duration::from_millis(timeout_ms),
            reader: tokio::sync::Mutex::default(),
            requests: Mutex::default(),
            deleted: Mutex::default(),
        })
    }

    /// Returns the error of a deleted snapshot, if it was observed since the last
    /// [`recheck`](Self::recheck).
    pub(crate) fn deleted(&self) -> Option<SourceError> {
        self.deleted.lock().clone()
    }

    /// Returns the volume.
    pub(crate) fn volume(&self) -> VolumeId {
        self.row.volume
    }

    /// Returns the credential and the snapshot.
    pub(crate) fn origin(&self) -> (Uuid, CloudSnapshotId) {
        (self.row.credential, self.row.cloudsnap)
    }

    /// Clears the observed deletion, as the snapshot may have been restored.
    pub(crate) fn recheck(&self) {
        *self.deleted.lock() = None;
    }

    /// Returns the cause of apparent damage: the deletion of the snapshot if its manifest is missing.
    async fn cause_of(&self, error: SourceError) -> SourceError {
        let check = async {
            let lazy = self.lazy.upgrade()?;
            let (repository, _) = lazy.repositories.guest_repository(self.row.credential).await.ok()?;
            match repository.manifest(&self.row.cloudsnap).await {
                Err(CloudError::SnapshotNotFound { store, .. }) => {
                    // The directory of an unmounted disk is empty, too.
                    if let Err(error) = repository.prove_key_slot().await {
                        return Some(SourceError::new(error.to_string(), true));
                    }
                    Some(self.note_deleted(&lazy, &store).await)
                }
                _ => None,
            }
        };
        match error.is_retryable() {
            true => error,
            false => {
                tokio::time::timeout(DELETION_CHECK_TIMEOUT, check).await.ok().flatten().unwrap_or(error)
            }
        }
    }

    /// Reports that another host deleted the snapshot from its store; returns the error of reads.
    pub(crate) async fn note_deleted(&self, lazy: &LazyVolumes, store: &str) -> SourceError {
        let id = &self.row.cloudsnap;
        let message = format!(
            "cloud snapshot {id} was deleted from {store}: the blocks that the volume has not fetched are lost"
        );
        let is_reported = lazy.note_deleted_backing(self.row.volume, &message).await;
        let deleted = SourceError::new(message, false);
        // Otherwise the next read reports it.
        if is_reported {
            *self.deleted.lock() = Some(deleted.clone());
        }
        deleted
    }

    /// Returns the request counts.
    pub fn requests(&self) -> RequestCounts {
        self.requests.lock().as_ref().map(|requests| requests.snapshot()).unwrap_or_default()
    }

    /// Opens the snapshot.
    async fn reader(&self) -> Result<SnapshotReader, SourceError> {
        let mut opened = self.reader.lock().await;
        if let Some(reader) = &*opened {
            return Ok(reader.clone());
        }
        let lazy = self.lazy.upgrade().ok_or_else(|| SourceError::new("the daemon is stopping", true))?;
        let reader = self.open(&lazy).await.map_err(|error| source_error(&error))?;
        *opened = Some(reader.clone());
        Ok(reader)
    }

    async fn open(&self, lazy: &LazyVolumes) -> Result<SnapshotReader, ServiceError> {
        let (repository, requests) = lazy.repositories.guest_repository(self.row.credential).await?;
        let manifest_cache = DbManifestCache::new(Arc::clone(&lazy.db), self.row.credential);
        let key = self.row.cloudsnap.manifest_key();
        let cached = blocking(move || Ok::<_, ServiceError>(manifest_cache.load(&key))).await?;
        let manifest = match cached {
            Some(manifest) => manifest,
            None => repository.manifest(&self.row.cloudsnap).await?,
        };
        let reader = SnapshotReader::open(&repository, &manifest).await?;
        *self.requests.lock() = Some(requests);
        Ok(reader)
    }

    async fn read(&self, extent: Extent) -> Result<Vec<u8>, SourceError> {
        let reader = self.reader().await?;
        reader.read_blocks(extent).await.map_err(|error| source_error(&error.into()))
    }

    /// Writes the remaining blocks to a sink; damaged blocks remain.
    async fn read_to(
        &self,
        left: &Mutex<BlockSet>,
        urgency: Urgency,
        sink: &FetchSink,
    ) -> Result<(), SourceError> {
        let reader = self.reader().await?;
        let wanted: Vec<Extent> = left.lock().extents().collect();
        let mut first = None;
        for extent in wanted {
            let sink = sink.clone();
            let take = move |start, data: &[u8]| sink.put(start, data).map_err(io::Error::other);
            let read = reader.read_sound_blocks_to(extent, urgency == Urgency::Reader, take).await;
            let damage = read.map_err(|error| source_error(&error.into()))?;
            if let Some(lazy) = self.lazy.upgrade() {
                fingerprints::forget_objects(&lazy.host.data_dir, damage.objects());
            }
            first = first.or_else(|| damage_error(&damage));
            let mut left = left.lock();
            left.remove_extent(extent);
            left.union_with(&damage.blocks);
        }
        first.map_or(Ok(()), Err)
    }

    /// Reads an extent on a thread that may block.
    ///
    /// # Errors
    /// It is unavailable within the timeout and the volume's limit, or damaged.
    pub(crate) fn read_blocking(&self, extent: Extent, time_limit: Duration) -> Result<Vec<u8>, SourceError> {
        let read = tokio::time::timeout(time_limit, self.with_retries(|| self.read(extent)));
        let late = || Err(SourceError::new("the store did not respond in time", true));
        self.handle.block_on(async { read.await.unwrap_or_else(|_| late()) })
    }

    /// Retries until success, a permanent error or the timeout.
    async fn with_retries<T, F: Future<Output = Result<T, SourceError>>>(
        &self,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, SourceError> {
        let started = Instant::now();
        let mut pause = Duration::from_millis(PAUSE_MS);
        let mut last = None;
        let mut damaged_reads = 0;
        loop {
            let left = self.time_limit.saturating_sub(started.elapsed());
            let Ok(tried) = tokio::time::timeout(left, attempt()).await else {
                let waited_ms = self.time_limit.as_millis();
                return Err(last.unwrap_or_else(|| {
                    SourceError::new(format!("the store did not respond within {waited_ms} ms"), true)
                }));
            };
            let error = match tried {
                Ok(data) => return Ok(data),
                Err(error) if !error.is_retryable() => {
                    damaged_reads += 1;
                    if damaged_reads >= DAMAGE_ATTEMPTS {
                        return Err(error);
                    }
                    error
                }
                // Also while the daemon stops: to a client an error means lost data, but without a reply it
                // repeats the request to the next daemon.
                Err(error) => error,
            };
            tracing::debug!(volume = %self.row.volume, %error, "a lazy volume waits for its store");
            last = Some(error);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(LONGEST_PAUSE_MS));
        }
    }
}

/// Source shared by a volume and its hydration.
#[derive(Clone, Debug)]
pub struct SharedSource(pub Arc<CloudSource>);

impl LazySource for SharedSource {
    fn fetch(&self, extent: Extent, urgency: Urgency, reply: FetchReply) {
        let source = Arc::clone(&self.0);
        self.0.fetcher.submit(&self.0.handle, move || async move {
            let sink = reply.sink();
            let left = Mutex::new(BlockSet::from_iter([extent]));
            let attempt = || async {
                match source.read_to(&left, urgency, &sink).await {
                    // The volume no longer needs the fetch.
                    Err(_) if sink.has_failed() => Ok(()),
                    result => result,
                }
            };
            let mut result = source.with_retries(attempt).await;
            if let Err(error) = result {
                result = Err(source.cause_of(error).await);
            }
            let left = left.into_inner();
            if let Err(error) = &result {
                tracing::warn!(
                    volume = %source.row.volume,
                    cloudsnap = %source.row.cloudsnap,
                    blocks = ?left.extents().take(4).collect::<Vec<_>>(),
                    %error,
                    "fetching blocks of a lazy volume failed"
                );
            }
            // The end of a fetch executes the waiting requests, which may block.
            tokio::task::spawn_blocking(move || match result {
                Ok(()) => reply.end(Ok(())),
                Err(error) => reply.end_incomplete(left, error),
            });
        });
    }

    fn time_limit(&self) -> Option<Duration> {
        Some(self.0.time_limit)
    }

    fn wake_after(&self, delay: Duration, wake: Box<dyn FnOnce() + Send>) {
        self.0.handle.spawn(async move {
            tokio::time::sleep(delay).await;
            // `wake` executes requests of clients, which may block.
            tokio::task::spawn_blocking(wake);
        });
    }

    fn data_blocks(&self, extent: Extent) -> Result<BlockSet, SourceError> {
        let source = &self.0;
        source.handle.block_on(async {
            let ask = async {
                let found = async {
                    let reader = source.reader().await?;
                    reader.possible_data_blocks(extent).await.map_err(|error| source_error(&error.into()))
                };
                match found.await {
                    Ok(found) => Ok(found),
                    Err(error) => Err(source.cause_of(error).await),
                }
            };
            let answer = tokio::time::timeout(source.time_limit, ask).await;
            answer.unwrap_or_else(|_| Err(SourceError::new("the store did not respond in time", true)))
        })
    }
}

/// Maximum number of blocks per read: 4 MiB.
pub(crate) const CHUNK_BLOCKS: u64 = (4 << 20) / BLOCK_SIZE_BYTES;

/// Cloud snapshot that a task reads.
pub(crate) struct SnapshotSource {
    credential: Uuid,
    id: CloudSnapshotId,
    repository: Repository,
    reader: SnapshotReader,
    requests: Arc<Requests>,
}

impl SnapshotSource {
    /// Opens the cloud snapshot.
    pub(crate) async fn open(
        lazy: &LazyVolumes,
        live: &LiveTask,
        credential: Uuid,
        id: CloudSnapshotId,
    ) -> Result<Self, ServiceError> {
        let (repository, requests) = lazy.repositories.guest_repository(credential).await?;
        let repository = live.limited(&repository, &requests);
        live.count(Arc::clone(&requests));
        let manifest = Box::pin(repository.manifest(&id)).await?;
        let opened = repository.clone();
        let reader = spawned(async move { SnapshotReader::open(&opened, &manifest).await }).await?;
        Ok(Self { credential, id, repository, reader, requests })
    }

    pub(crate) fn credential(&self) -> Uuid {
        self.credential
    }

    pub(crate) fn id(&self) -> CloudSnapshotId {
        self.id
    }

    pub(crate) fn repository(&self) -> &Repository {
        &self.repository
    }

    pub(crate) fn requests(&self) -> RequestCounts {
        self.requests.snapshot()
    }

    /// Reads blocks; those beyond the snapshot's end are zero.
    pub(crate) async fn read_blocks(&self, extent: Extent) -> Result<Vec<u8>, ServiceError> {
        let reader = self.reader.clone();
        spawned(async move { reader.read_blocks(extent).await }).await
    }

    /// Returns the requests that read extents one after the other.
    pub(crate) async fn planned_reads(&self, extents: Vec<Extent>) -> Result<RequestCounts, ServiceError> {
        let reader = self.reader.clone();
        spawned(async move { estimate_read(&reader, extents).await }).await
    }

    /// Returns the blocks that may have data.
    pub(crate) async fn data_blocks(&self) -> Result<BlockSet, ServiceError> {
        let reader = self.reader.clone();
        spawned(async move { reader.data_blocks(Extent::whole(reader.size_bytes())).await }).await
    }
}
