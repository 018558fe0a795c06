//! Random reads of snapshots with shared caches.
//!
//! [`SnapshotCache`] is the shared state: index pages and decrypted frames in memory, stored frames and pages
//! on disk, and the in-flight table, so that concurrent requests fetch a frame once. `SnapshotReader`s read
//! through it.
//!
//! A first read takes four sequential requests, independent of the snapshot's size: the manifest, the roots
//! of all deltas concurrently, the pages of all deltas for the range concurrently, and the frames. All
//! returned data was authenticated or checked against the manifest; an entry of the disk cache that fails the
//! check is fetched from the store.
//!
//! A read waits for the store at most for the stall timeout. Errors are not cached: the next read tries
//! again. A damaged frame fails only the reads that need it; the log names the object and the offset.

mod disk;
pub(crate) mod frames;
mod index_store;
mod lru;
#[cfg(test)]
mod tests;

pub(crate) use lru::Lru;

use crate::{
    CloudError, Repository,
    fetch::{DeltaReader, NOT_WHOLE},
    frame::FrameMemory,
    index::Page,
    manifest::Delta,
    wanted::{FetchJob, WantedFrame, group},
};
use blockd_store::{BlobStore, StoreError, StoreErrorKind};
use disk::{DiskCache, PieceKey};
use frames::{Frames, Obligation};
use index_store::IndexStore;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use uuid::Uuid;

/// Maximum memory of cached index pages.
const MAX_PAGES_BYTES: u64 = 32 << 20;
/// Maximum memory of small indexes of a snapshot that are kept whole.
const INDEX_KEEP_BYTES: u64 = 4 << 20;
/// Both limits for a reader with a cache of its own: a restore or a lazy volume.
const MAX_OWN_PAGES_BYTES: u64 = 64 << 20;
const OWN_INDEX_KEEP_BYTES: u64 = 16 << 20;
/// Concurrent requests of roots or pages.
pub(crate) const INDEX_CONCURRENCY: usize = 32;
/// Concurrent requests of roots (up to 16 MiB each) by a reader with a cache of its own.
const OWN_OPEN_CONCURRENCY: usize = 8;
/// Timeout of a reader that waits for another reader's request of the same index page.
const PAGE_LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// Number of locks for single-flight reads of pages.
const PAGE_LOCKS: usize = 64;
/// Maximum number of frame requests of readers in flight, also of those whose frames are being opened.
const FETCH_CONCURRENCY: usize = 20;
/// Maximum number of readahead requests beside them.
const AHEAD_CONCURRENCY: usize = 12;
/// Maximum number of requests whose frames are being added to the disk cache. If the disk is slower than the
/// store, the frames of further ones are not kept.
const KEEP_CONCURRENCY: usize = 24;
/// Maximum gap that is read to merge two requests.
const MAX_GAP_BYTES: u32 = 64 << 10;
/// Maximum length of a frame request.
const MAX_FETCH_BYTES: u32 = 2 << 20;

/// Options of a cache.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CacheOptions {
    /// Directory of the disk cache, used by one process at a time; `None` disables it.
    pub dir: Option<PathBuf>,
    /// Maximum bytes of its files.
    pub disk_bytes: u64,
    /// Maximum bytes of decrypted frames in memory.
    pub memory_bytes: u64,
    /// Timeout of a read that waits for the store.
    pub stall_timeout: Duration,
    /// Maximum readahead of a sequential reader, in bytes; 0 disables it.
    pub readahead_bytes: u64,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            dir: None,
            disk_bytes: 4 << 30,
            memory_bytes: 56 << 20,
            stall_timeout: Duration::from_secs(30),
            readahead_bytes: 32 << 20,
        }
    }
}

/// Counters of a cache since it was opened.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct CacheCounters {
    /// Frames fetched from the store.
    pub frames_fetched: u64,
    /// Requests for these frames.
    pub frame_requests: u64,
    /// Frames read from the disk cache.
    pub frames_from_disk: u64,
    /// Damaged entries of the disk cache.
    pub damaged_pieces: u64,
    /// Total size of the disk cache's files in bytes.
    pub disk_bytes: u64,
    /// Size of the frames in memory in bytes.
    pub memory_bytes: u64,
}

/// Cache shared by readers of any number of snapshots. Clones share it.
#[derive(Clone)]
pub struct SnapshotCache {
    pub(crate) shared: Arc<CacheShared>,
}

impl std::fmt::Debug for SnapshotCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotCache").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

/// Identity of a delta and its store.
type DeltaKey = (String, Uuid, [u8; 32]);

#[derive(Default)]
struct Counters {
    fetched: AtomicU64,
    requests: AtomicU64,
    from_disk: AtomicU64,
}

pub(crate) struct CacheShared {
    pub options: CacheOptions,
    pub disk: Option<Arc<DiskCache>>,
    pub frames: Arc<Frames>,
    memory: Arc<FrameMemory>,
    pub index_keep_bytes: u64,
    /// Maximum number of concurrent requests of roots.
    pub open_concurrency: usize,
    pages: Mutex<Lru<(u64, usize), Arc<Page>>>,
    page_locks: [tokio::sync::Mutex<()>; PAGE_LOCKS],
    deltas: Mutex<HashMap<DeltaKey, Weak<SharedDelta>>>,
    next_delta: AtomicU64,
    pub fetches: Arc<Semaphore>,
    pub keeping: Arc<Semaphore>,
    pub ahead: Arc<Semaphore>,
    counters: Counters,
}

/// Open delta, shared by the chains of open snapshots.
pub(crate) struct SharedDelta {
    /// Unique number in this cache.
    pub number: u64,
    pub reader: Arc<DeltaReader>,
    key_id: Uuid,
    pub salt: [u8; 32],
    /// Store without the cache.
    store: Arc<dyn BlobStore>,
}

impl SharedDelta {
    fn piece(&self, frame: &WantedFrame) -> PieceKey {
        let (offset_bytes, len_bytes) = frame.place();
        PieceKey::new(self.key_id, &self.salt, &self.reader.pack_key_of(frame), offset_bytes, len_bytes)
    }
}

impl SnapshotCache {
    /// Opens a cache; blocks while it lists its directory.
    ///
    /// # Errors
    /// [`CloudError::Cache`] if the directory cannot be created or listed.
    pub fn open(options: CacheOptions) -> Result<Self, CloudError> {
        let disk = match &options.dir {
            Some(dir) => Some(Arc::new(DiskCache::open(dir, options.disk_bytes)?)),
            None => None,
        };
        Ok(Self::new(options, disk, MAX_PAGES_BYTES, INDEX_KEEP_BYTES, INDEX_CONCURRENCY))
    }

    /// Creates a cache of index pages for one reader, without a timeout beyond the store's own.
    pub(crate) fn of_one_reader() -> Self {
        let stall_timeout = Duration::MAX;
        let options =
            CacheOptions { dir: None, disk_bytes: 0, memory_bytes: 0, stall_timeout, readahead_bytes: 0 };
        Self::new(options, None, MAX_OWN_PAGES_BYTES, OWN_INDEX_KEEP_BYTES, OWN_OPEN_CONCURRENCY)
    }

    fn new(
        options: CacheOptions,
        disk: Option<Arc<DiskCache>>,
        max_pages_bytes: u64,
        index_keep_bytes: u64,
        open_concurrency: usize,
    ) -> Self {
        Self {
            shared: Arc::new(CacheShared {
                disk,
                frames: Arc::new(Frames::new(options.memory_bytes)),
                memory: Arc::default(),
                options,
                index_keep_bytes,
                open_concurrency,
                pages: Mutex::new(Lru::new(max_pages_bytes)),
                page_locks: std::array::from_fn(|_| tokio::sync::Mutex::default()),
                deltas: Mutex::default(),
                next_delta: AtomicU64::new(1),
                fetches: Arc::new(Semaphore::new(FETCH_CONCURRENCY)),
                keeping: Arc::new(Semaphore::new(KEEP_CONCURRENCY)),
                ahead: Arc::new(Semaphore::new(AHEAD_CONCURRENCY)),
                counters: Counters::default(),
            }),
        }
    }

    /// Returns the counters.
    pub fn counters(&self) -> CacheCounters {
        let CacheShared { counters, disk, frames, .. } = &*self.shared;
        CacheCounters {
            frames_fetched: counters.fetched.load(Relaxed),
            frame_requests: counters.requests.load(Relaxed),
            frames_from_disk: counters.from_disk.load(Relaxed),
            damaged_pieces: disk.as_ref().map_or(0, |disk| disk.damaged()),
            disk_bytes: disk.as_ref().map_or(0, |disk| disk.bytes()),
            memory_bytes: frames.bytes(),
        }
    }
}

impl CacheShared {
    /// Awaits a request to the store, up to the stall timeout.
    pub async fn with_stall_timeout<T>(
        &self,
        store: &str,
        what: &str,
        work: impl Future<Output = Result<T, CloudError>>,
    ) -> Result<T, CloudError> {
        match tokio::time::timeout(self.options.stall_timeout, work).await {
            Ok(result) => result,
            Err(_) => {
                let waited = format!("waited {} ms", self.options.stall_timeout.as_millis());
                Err(StoreError::new(StoreErrorKind::Timeout, "GET", what, store).with_detail(waited).into())
            }
        }
    }

    pub async fn delta(
        &self,
        repo: &Repository,
        delta: &Delta,
        keep: u64,
    ) -> Result<Arc<SharedDelta>, CloudError> {
        let place = format!("{} {}", repo.store().describe(), delta.id().prefix());
        let key = (place, delta.key_id, delta.salt);
        if let Some(open) = self.deltas.lock().get(&key).and_then(Weak::upgrade) {
            return Ok(open);
        }
        let reader = match &self.disk {
            None => DeltaReader::open(repo, delta, &mut keep.clone()).await?,
            Some(disk) => {
                let through = |look_first| {
                    let names = (delta.key_id, delta.salt);
                    let store = IndexStore::new(repo.store().clone(), disk.clone(), names, look_first);
                    repo.with_store(Arc::new(store))
                };
                match DeltaReader::open(&through(true), delta, &mut keep.clone()).await {
                    Err(CloudError::Damaged { .. }) => {
                        DeltaReader::open(&through(false), delta, &mut keep.clone()).await?
                    }
                    opened => opened?,
                }
            }
        };
        let open = Arc::new(SharedDelta {
            number: self.next_delta.fetch_add(1, Relaxed),
            reader: Arc::new(reader),
            key_id: delta.key_id,
            salt: delta.salt,
            store: repo.store().clone(),
        });
        let mut deltas = self.deltas.lock();
        deltas.retain(|_, delta| delta.strong_count() > 0);
        // A concurrent call may have opened the delta: two copies are harmless.
        deltas.insert(key, Arc::downgrade(&open));
        Ok(open)
    }

    /// Returns an index page of a delta if it is in memory; `Some(None)` if it is known to be empty.
    pub fn ready_page(&self, delta: &SharedDelta, number: usize) -> Option<Option<Arc<Page>>> {
        if delta.reader.root.pages.get(number).is_none_or(|page| page.sealed_len == 0) {
            return Some(None);
        }
        self.pages.lock().get(&(delta.number, number)).map(|page| Some(page.clone()))
    }

    pub async fn page(
        &self,
        delta: &Arc<SharedDelta>,
        number: usize,
    ) -> Result<Option<Arc<Page>>, CloudError> {
        if let Some(known) = self.ready_page(delta, number) {
            return Ok(known);
        }
        let read = async {
            // Single-flight: concurrent readers of a page wait for the first request, but not without limit:
            // their own requests may succeed when the first stalls.
            let lock = (delta.number as usize).wrapping_mul(31).wrapping_add(number) % PAGE_LOCKS;
            let _guard = tokio::time::timeout(PAGE_LOCK_TIMEOUT, self.page_locks[lock].lock()).await;
            if let Some(known) = self.ready_page(delta, number) {
                return Ok(known);
            }
            let page = match (delta.reader.page(number).await, &self.disk) {
                (Err(CloudError::Damaged { .. }), Some(disk)) => {
                    let names = (delta.key_id, delta.salt);
                    let fresh = IndexStore::new(delta.store.clone(), disk.clone(), names, false);
                    delta.reader.page_from(&fresh, number).await
                }
                (page, _) => page,
            };
            let Some(page) = page?.map(Arc::new) else { return Ok(None) };
            self.pages.lock().insert((delta.number, number), page.clone(), page.heap_bytes as u64);
            Ok(Some(page))
        };
        self.with_stall_timeout(delta.store.describe(), "a page of an index", read).await
    }

    /// Loads frames from the disk cache and returns the missing ones. Blocks.
    pub fn fetch_from_disk(
        &self,
        delta: &SharedDelta,
        wanted: Vec<(WantedFrame, Obligation)>,
    ) -> Vec<(WantedFrame, Obligation)> {
        let Some(disk) = &self.disk else { return wanted };
        let (mut room, mut missing) = (Vec::new(), Vec::new());
        for (frame, flight) in wanted {
            let open = |stored: &mut [u8]| delta.reader.open_frame(&frame, stored, &self.memory).ok();
            let opened = disk.open_piece(&delta.piece(&frame), &mut room, open);
            match opened {
                Some(opened) => {
                    self.counters.from_disk.fetch_add(1, Relaxed);
                    flight.complete(Ok(Arc::new(opened)));
                }
                None => missing.push((frame, flight)),
            }
        }
        missing
    }

    /// Fetches ascending frames of a delta with concurrent requests, which continue when all waiters are
    /// gone.
    pub fn fetch(
        self: &Arc<Self>,
        runtime: &Handle,
        delta: &Arc<SharedDelta>,
        wanted: Vec<(WantedFrame, Obligation)>,
        limit: &Arc<Semaphore>,
    ) {
        debug_assert!(
            wanted.is_sorted_by(|(a, _), (b, _)| a.ordinal() < b.ordinal()),
            "frames are ascending"
        );
        let (frames, flights): (Vec<_>, Vec<_>) = wanted.into_iter().unzip();
        let mut flights = flights.into_iter();
        for job in group(frames, MAX_GAP_BYTES, MAX_FETCH_BYTES) {
            let flights: Vec<Obligation> = flights.by_ref().take(job.frames.len()).collect();
            let (shared, delta, limit) = (self.clone(), delta.clone(), limit.clone());
            runtime.spawn(async move { shared.fetch_job(&delta, job, flights, &limit).await });
        }
        debug_assert!(flights.next().is_none(), "no request fetches some of the frames");
    }

    async fn fetch_job(
        &self,
        delta: &Arc<SharedDelta>,
        job: FetchJob,
        flights: Vec<Obligation>,
        limit: &Arc<Semaphore>,
    ) {
        assert_eq!(job.frames.len(), flights.len(), "an obligation for each frame");
        match self.fetch_bytes(delta, &job, limit).await {
            Ok((start, bytes, permit)) => {
                let (delta, disk, memory) = (delta.clone(), self.disk.clone(), self.memory.clone());
                let keeping = Arc::clone(&self.keeping);
                self.counters.fetched.fetch_add(flights.len() as u64, Relaxed);
                let opened = tokio::task::spawn_blocking(move || {
                    let opened = open_all(&delta, &memory, &job.frames, flights, (start, &bytes));
                    // Held until now: otherwise received bytes would gather while the processor is slow.
                    drop(permit);
                    if let Some((disk, kept)) = disk.zip(keeping.try_acquire().ok()) {
                        keep_all(&delta, &disk, opened, (start, &bytes));
                        drop(kept);
                    }
                });
                // After a panic the dropped obligations fail their waiters.
                let _ = opened.await;
            }
            // A truncated pack, or one without its header: readable frames are fetched one by one.
            Err(error @ CloudError::Damaged { .. }) if job.frames.len() > 1 => {
                tracing::warn!(%error, "pack is damaged: fetching its frames one by one");
                for (frame, flight) in job.frames.iter().zip(flights) {
                    let alone = FetchJob::alone(job.pack_no(), frame.clone());
                    Box::pin(self.fetch_job(delta, alone, vec![flight], limit)).await;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "read failed on cloud snapshot");
                let error = Arc::new(error);
                flights.into_iter().for_each(|flight| flight.complete(Err(error.clone())));
            }
        }
    }

    async fn fetch_bytes(
        &self,
        delta: &SharedDelta,
        job: &FetchJob,
        limit: &Arc<Semaphore>,
    ) -> Result<(u32, bytes::Bytes, Option<OwnedSemaphorePermit>), CloudError> {
        let object = job.frames.first().map_or_else(String::new, |frame| delta.reader.pack_key_of(frame));
        let work = async {
            // Cannot fail: the semaphores are never closed.
            let permit = Arc::clone(limit).acquire_owned().await.ok();
            self.counters.requests.fetch_add(1, Relaxed);
            let (start, bytes) = delta.reader.fetch(job).await?;
            Ok((start, bytes, permit))
        };
        self.with_stall_timeout(delta.store.describe(), &object, work).await
    }
}

/// Opens frames for their waiters, and returns the sound ones.
fn open_all<'a>(
    delta: &SharedDelta,
    memory: &Arc<FrameMemory>,
    frames: &'a [WantedFrame],
    flights: Vec<Obligation>,
    (start, bytes): (u32, &[u8]),
) -> Vec<&'a WantedFrame> {
    let mut room = Vec::new();
    let mut good = Vec::with_capacity(frames.len());
    for (frame, flight) in frames.iter().zip(flights) {
        let opened = match frame.stored(start, bytes) {
            Some(stored) => {
                room.clear();
                room.extend_from_slice(stored);
                delta.reader.open_frame(frame, &mut room, memory)
            }
            None => Err(delta.reader.damaged_frame(frame, NOT_WHOLE)),
        };
        match opened {
            Ok(opened) => {
                good.push(frame);
                flight.complete(Ok(Arc::new(opened)));
            }
            Err(error) => {
                tracing::error!(%error, "frame of a cloud snapshot is damaged");
                flight.complete(Err(Arc::new(error)));
            }
        }
    }
    debug_assert!(good.len() <= frames.len() && good.is_sorted_by_key(|frame| frame.ordinal()));
    good
}

/// Adds frames to the disk cache. Their waiters have the results: it must not delay them.
fn keep_all(delta: &SharedDelta, disk: &DiskCache, frames: Vec<&WantedFrame>, (start, bytes): (u32, &[u8])) {
    for frame in frames {
        if let Some(stored) = frame.stored(start, bytes) {
            disk.put(&delta.piece(frame), stored);
        }
    }
}
