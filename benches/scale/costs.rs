//! Requests of each operation, recorded from the crates of the product in front of a store in memory.

use crate::fleet::FULL_EVERY;
use blockd_cloud::{
    BackupSpec, CancelToken, DeleteMode, GarbageOptions, Lease, Manifest, ManifestFilter, MemoryCache,
    OpenOptions, Progress, Repository, SnapshotReader, Unchanged, VerifyDepth, VerifyOptions, check_clock,
    collect_garbage, delete_snapshot, unchanged_since, verify,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, BlockSource, Extent};
use blockd_store::{
    DELETE_MAX_KEYS, MeterStore, Request, RequestKind, RequestObserver, Requests, StoreErrorKind,
};
use blockd_testkit::{
    cloud::{FAST_KDF, MemoryVolume, back_up, spec},
    store::MemoryStore,
};
use jiff::Timestamp;
use std::{
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use uuid::Uuid;

/// Blocks of a pack: 64 frames of 128 blocks (`blockd/cloud/FORMAT.md`, "Delta").
const PACK_BLOCKS: u64 = 64 * 128;
/// Bytes of volume data in a pack.
pub const PACK_BYTES: u64 = PACK_BLOCKS * BLOCK_SIZE_BYTES;
/// Bytes that one step of a hydration fetches (`STEP_BYTES` in `blockd/engine/src/restore/lazy/hydrate.rs`).
pub const HYDRATION_STEP_BYTES: u64 = 4 << 20;
/// Deltas of the recorded snapshots: the middle of the chains of 1 to 7 that `full_every` makes.
pub const CHAIN: u64 = 4;
const HOST: Uuid = Uuid::from_u128(0x5ca1e);
const SIZE_BYTES: u64 = 1 << 30;

/// Part of a repository's keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Area {
    Keys,
    Manifests,
    Data,
    Proofs,
    Leases,
    Probe,
}

impl Area {
    pub const ALL: [Self; 6] =
        [Self::Keys, Self::Manifests, Self::Data, Self::Proofs, Self::Leases, Self::Probe];

    /// Returns the prefix of its keys.
    pub const fn prefix(self) -> &'static str {
        [
            "blockd/keys",
            "blockd/manifests/",
            "blockd/data/",
            "blockd/proofs/",
            "blockd/leases/",
            "blockd/probe/",
        ][self as usize]
    }

    fn of(key: &str) -> Self {
        Self::ALL.into_iter().find(|area| key.starts_with(area.prefix())).unwrap_or(Self::Probe)
    }
}

/// Request of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    pub area: Area,
    pub kind: RequestKind,
    /// Listing of all keys of the area: one request for each page.
    pub whole: bool,
}

/// Requests of each operation, in order.
#[derive(Clone, Debug)]
pub struct Scripts {
    /// First backup of a volume, of one pack: `prove_key_slot`, which `make_plan`
    /// (`blockd/engine/src/backup/planning.rs`) calls, then `backup`.
    pub first: Vec<Step>,
    /// Synthetic full backup of one pack on a chain of [`FULL_EVERY`] deltas: `unchanged_since`, then
    /// `backup`.
    pub full: Vec<Step>,
    /// Incremental backup of one pack.
    pub incremental: Vec<Step>,
    /// Checks of `ScheduleRunner::delete_surplus` for one volume (`blockd/engine/src/schedules`).
    pub retention: Vec<Step>,
    /// Deletion of a snapshot of one pack that no other needs (`cloud_snapshots/delete_task.rs`).
    pub deletion: Vec<Step>,
    /// Garbage collection without garbage (`collect_garbage_in`, `maintenance/verify_requests.rs`).
    pub collection: Vec<Step>,
    /// Hourly exchange of proofs and leases (`proofs/import.rs`, `leases.rs`).
    pub exchange: Vec<Step>,
    /// Creation of a lazy volume up to its open reader.
    pub lazy: Vec<Step>,
    /// Hydration of [`HYDRATION_STEP_BYTES`].
    pub hydration: Vec<Step>,
}

#[derive(Default)]
struct Recorder(Mutex<Vec<Step>>);

impl Recorder {
    fn take(&self) -> Vec<Step> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl RequestObserver for Recorder {
    fn started(&self, request: &Request<'_>) {
        let (area, kind) = (Area::of(request.key), request.operation.kind());
        let whole = kind == RequestKind::List && request.key == area.prefix();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Step { area, kind, whole });
    }

    fn ended(&self, _: &Request<'_>, _: Duration, _: Result<u64, StoreErrorKind>) {}
}

struct Subject {
    repository: Repository,
    volume: MemoryVolume,
    cache: MemoryCache,
    recorder: Arc<Recorder>,
}

impl Subject {
    /// Backs up `blocks` from block 0 on; the content does not compress.
    async fn back_up(
        &self,
        snapshot: u64,
        blocks: u64,
        base: Option<&Manifest>,
    ) -> Result<Manifest, Box<dyn Error>> {
        let data = BlockSet::from_iter([Extent::new(BlockIndex(0), blocks)]);
        let spec = spec(snapshot, SIZE_BYTES, data, BlockSet::default(), base);
        Ok(back_up(&self.repository, spec, Arc::new(self.volume.fork())).await?)
    }

    /// Makes a synthetic full backup with one changed block.
    async fn full_backup(&self, snapshot: u64, base: &Manifest) -> Result<Manifest, Box<dyn Error>> {
        let changed = BlockSet::from_iter([Extent::new(BlockIndex(0), 1)]);
        let Unchanged { references, .. } =
            unchanged_since(&self.repository, base, &changed, |_| false).await?;
        let spec = spec(snapshot, SIZE_BYTES, changed, BlockSet::default(), Some(base));
        let spec = BackupSpec { references, synthetic: true, ..spec };
        Ok(back_up(&self.repository, spec, Arc::new(self.volume.fork())).await?)
    }

    /// Fills some blocks with bytes that do not compress.
    fn fill(&self, blocks: u64) {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for block in 0..blocks {
            let words = (0..BLOCK_SIZE_BYTES / 8).flat_map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()
            });
            self.volume.set(block, &words.collect::<Vec<u8>>());
        }
    }

    async fn retention(&self, newest: &Manifest) -> Result<(), Box<dyn Error>> {
        let repository = &self.repository;
        // `check_clock_of`
        repository.prove_key_slot().await?;
        check_clock(&**repository.store(), Timestamp::now).await?;
        repository.list_leases(&ManifestFilter::default()).await?;
        // `prove_for_retention`, `check_quickly`
        repository.prove_key_slot().await?;
        let of_volume = ManifestFilter { cluster: Some(newest.cluster), volume: Some(newest.volume) };
        repository.list_manifests(&of_volume, &self.cache).await?;
        let options = VerifyOptions { depth: VerifyDepth::Quick, ..VerifyOptions::default() };
        let progress = Arc::new(Progress::new(Arc::new(Requests::default())));
        let (ids, cancel) = ([newest.id()], CancelToken::new());
        verify(repository, &ids, &options, &|_| None, &self.cache, progress, &cancel).await?;
        Ok(())
    }

    async fn deletion(&self, surplus: &Manifest) -> Result<(), Box<dyn Error>> {
        self.repository.prove_key_slot().await?;
        let mode = DeleteMode::Checked { host: HOST };
        delete_snapshot(&self.repository, &surplus.id(), &[], &self.cache, mode).await?;
        Ok(())
    }

    async fn collection(&self) -> Result<(), Box<dyn Error>> {
        self.repository.prove_key_slot().await?;
        check_clock(&**self.repository.store(), Timestamp::now).await?;
        let options = GarbageOptions { now: Timestamp::now(), host: HOST, ..GarbageOptions::default() };
        collect_garbage(&self.repository, &options, &self.cache).await?;
        Ok(())
    }

    async fn exchange(&self) -> Result<(), Box<dyn Error>> {
        let all = ManifestFilter::default();
        self.repository.list_manifests(&all, &self.cache).await?;
        self.repository.list_proofs(&all).await?;
        self.repository.list_leases(&all).await?;
        Ok(())
    }

    async fn open_lazy(&self, newest: &Manifest) -> Result<SnapshotReader, Box<dyn Error>> {
        self.repository.prove_key_slot().await?;
        let lease = Lease {
            cloudsnap: newest.id(),
            host: HOST,
            volume: newest.volume,
            host_name: "host".into(),
            renewed: Timestamp::now(),
        };
        self.repository.put_lease(&lease).await?;
        let manifest = self.repository.manifest(&newest.id()).await?;
        Ok(SnapshotReader::open(&self.repository, &manifest).await?)
    }
}

/// Records the requests of all operations.
pub fn record() -> Result<Scripts, Box<dyn Error>> {
    tokio::runtime::Runtime::new()?.block_on(record_all())
}

async fn record_all() -> Result<Scripts, Box<dyn Error>> {
    let recorder = Arc::new(Recorder::default());
    let memory = MemoryStore::with_batches(DELETE_MAX_KEYS);
    memory.set_clock(Timestamp::now().as_second());
    let store = Arc::new(MeterStore::new(Arc::new(memory), recorder.clone()));
    let repository = Repository::open(store, Some("passphrase"), &OpenOptions { kdf: FAST_KDF }).await?;
    let (volume, cache) = (MemoryVolume::default(), MemoryCache::default());
    let subject = Subject { repository, volume, cache, recorder };
    subject.fill(PACK_BLOCKS / 2);
    let log = &subject.recorder;
    log.take();

    subject.repository.prove_key_slot().await?;
    let mut newest = subject.back_up(1, PACK_BLOCKS / 2, None).await?;
    let first = log.take();
    let mut incremental = Vec::new();
    for snapshot in 2..=CHAIN {
        newest = subject.back_up(snapshot, 1, Some(&newest)).await?;
        incremental = log.take();
    }
    let surplus = subject.back_up(CHAIN + 1, 1, Some(&newest)).await?;
    // Known manifests are in the cache of a host.
    subject.exchange().await?;
    log.take();
    subject.exchange().await?;
    let exchange = log.take();
    subject.retention(&newest).await?;
    let retention = log.take();
    subject.collection().await?;
    let collection = log.take();
    let reader = subject.open_lazy(&newest).await?;
    let lazy = log.take();
    // The first read has the pages of the indexes, too.
    let reader = read(reader, 0).await?;
    log.take();
    read(reader, 2 * HYDRATION_STEP_BYTES).await?;
    let hydration = log.take();
    subject.deletion(&surplus).await?;
    let deletion = log.take();
    for snapshot in CHAIN + 2..=FULL_EVERY + 1 {
        newest = subject.back_up(snapshot, 1, Some(&newest)).await?;
    }
    log.take();
    subject.full_backup(FULL_EVERY + 2, &newest).await?;
    let full = log.take();
    Ok(Scripts { first, full, incremental, retention, deletion, collection, exchange, lazy, hydration })
}

/// Reads what one step of a hydration fetches.
async fn read(reader: SnapshotReader, offset_bytes: u64) -> Result<SnapshotReader, Box<dyn Error>> {
    let read = tokio::task::spawn_blocking(move || {
        let mut chunk = vec![0; HYDRATION_STEP_BYTES as usize];
        reader.read_at(offset_bytes, &mut chunk).map(|()| reader)
    });
    Ok(read.await??)
}

/// Returns the number of requests of a kind in a script whose listings have `pages` pages.
pub fn count(script: &[Step], kind: RequestKind, pages: &dyn Fn(Area) -> u64) -> u64 {
    let of_kind = script.iter().filter(|step| step.kind == kind);
    of_kind.map(|step| if step.whole { pages(step.area) } else { 1 }).sum()
}
