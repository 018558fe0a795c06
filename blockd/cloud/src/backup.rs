//! Backup: concurrent packs, then the index, then the manifest.
//!
//! Memory is bounded independent of the volume: at most `upload_concurrency` packs exist at once (33 MiB
//! each), one of them twice during its assembly, and 32 MiB of raw blocks, so by default 5 * 33 + 32 MiB, and
//! 100 MiB for a part of the index afterwards; pooled memory is included (192 MiB). In addition some dozen
//! bytes per 32 MiB of blocks, and the block sets.

use crate::{
    CloudError, CloudSnapshotId, FORMAT_VERSION, ManifestKey,
    clock::{MAX_CLOCK_DIFFERENCE_S, RunClock},
    error::random,
    index_writer::{StoredIndex, write_index},
    journal::BackupJournal,
    keys::DataKey,
    manifest::{BackupType, Delta, MAX_CHAIN, Manifest},
    names::DeltaId,
    packing::Packing,
    plan::Layout,
    progress::{CancelToken, Phase, Progress},
    repository::{Repository, run_blocking},
    seal::Sealer,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockSet, BlockSource, Extent, SnapshotId, VolumeId};
use blockd_store::{BlobStore, PutMode, StoreErrorKind, Work};
use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};
use uuid::Uuid;

/// Concurrent object checks after a commit that may be a repetition.
const CHECK_CONCURRENCY: usize = 8;
/// Attempts of each check, over some 40 seconds, in addition to the retries of each request. The snapshot is
/// listed by then, and no other task checks its completeness; afterwards the backup fails, and its resumption
/// checks again.
const CHECK_ATTEMPTS: u32 = 10;
const CHECK_PAUSE: Duration = Duration::from_millis(200);
const MAX_CHECK_PAUSE: Duration = Duration::from_secs(10);

/// Maximum time from the start of a backup to its commit, in seconds: 7 days. See `FORMAT.md`, "Garbage".
pub const BACKUP_LIFETIME_S: i64 = 7 * 24 * 3600;
/// Maximum clock difference of hosts and stores, in seconds: a day.
pub const MAX_CLOCK_SKEW_S: i64 = 24 * 3600;

/// Content of a backup. A resumed backup must have the same content, including the salt.
#[derive(Clone, Debug)]
pub struct BackupSpec {
    /// Installation.
    pub cluster: Uuid,
    /// Volume.
    pub volume: VolumeId,
    /// Snapshot: a random id, unique among the backups of the volume.
    pub snapshot: SnapshotId,
    /// Name of the volume.
    pub volume_name: String,
    /// Name of the snapshot; may be empty.
    pub snapshot_name: String,
    /// Labels of the volume.
    pub labels: BTreeMap<String, String>,
    /// Size of the volume.
    pub size_bytes: u64,
    /// Time of the snapshot.
    pub created: Timestamp,
    /// Start of the backup (of its first run, if resumed).
    pub started: Timestamp,
    /// Blocks to store: all that may hold data, or, with a base, all that may have changed to data.
    pub data: BlockSet,
    /// Blocks known to have become zero since the base; disjoint from `data`.
    pub zero: BlockSet,
    /// Base of an incremental. It may be a snapshot of another volume from which this one was created.
    pub base: Option<Manifest>,
    /// From [`new_delta_salt`], kept for a resumption.
    pub delta_salt: [u8; 32],
    /// Stall time of the freeze.
    pub freeze_stall_micros: u64,
    /// Trigger, such as `Manual`.
    pub trigger: String,
}

impl BackupSpec {
    /// Returns the id of the new cloud snapshot.
    pub fn id(&self) -> CloudSnapshotId {
        CloudSnapshotId {
            cluster: self.cluster,
            volume: self.volume,
            snapshot: self.snapshot,
            incremental: self.base.is_some(),
        }
    }

    pub(crate) fn delta_id(&self) -> DeltaId {
        DeltaId { cluster: self.cluster, volume: self.volume, snapshot: self.snapshot }
    }

    /// Returns an error for a backup whose objects may be collected as garbage.
    fn check_age(&self, now: Timestamp) -> Result<(), CloudError> {
        let age_s = now.as_second().saturating_sub(self.started.as_second());
        // A start in the future comes from a wrong clock.
        if !(-MAX_CLOCK_SKEW_S..=BACKUP_LIFETIME_S).contains(&age_s) {
            return Err(CloudError::Expired { id: self.id(), started: self.started });
        }
        Ok(())
    }

    /// Returns whether the backup began so long ago that its objects are to be checked after the commit.
    fn is_old(&self, now: Timestamp) -> bool {
        now.as_second().saturating_sub(self.started.as_second()) > MAX_CLOCK_DIFFERENCE_S
    }

    fn check(&self) -> Result<(), CloudError> {
        let invalid = |what: String| Err(CloudError::InvalidRequest { what });
        let end = Extent::whole(self.size_bytes).end();
        if self.zero.last().is_some_and(|last| last >= end) {
            return invalid(format!(
                "a zero block lies beyond the end of a volume of {} bytes",
                self.size_bytes
            ));
        }
        let mut both = self.data.clone();
        both.intersect_with(&self.zero);
        if let Some(block) = both.first() {
            return invalid(format!("block {block} is both to be read and known to be zero"));
        }
        let Some(base) = &self.base else { return Ok(()) };
        if base.size_bytes > self.size_bytes {
            return invalid(format!(
                "cloud snapshot {} is of a larger volume and cannot be the base",
                base.id()
            ));
        }
        if base.deltas().any(|delta| delta.snapshot == self.snapshot) {
            return invalid(format!("snapshot {} cannot be its own base", self.snapshot));
        }
        if base.chain.len() + 1 > MAX_CHAIN {
            return invalid(format!("a chain has at most {MAX_CHAIN} snapshots: make a full backup"));
        }
        Ok(())
    }
}

/// Resource options of a backup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackupOptions {
    /// Packs in flight; each takes up to 33 MiB.
    pub upload_concurrency: usize,
    /// Threads that compress and seal; 0 is one per core.
    pub cpu_threads: usize,
    /// Use create-if-absent: an existing object must have the same content. Set it for stores that support
    /// create-if-absent, as tested.
    pub write_once: bool,
    /// An earlier run of this backup may have reached the commit, independent of the journal, which may be
    /// lost.
    pub resumed: bool,
}

impl Default for BackupOptions {
    fn default() -> Self {
        Self { upload_concurrency: 4, cpu_threads: 0, write_once: false, resumed: false }
    }
}

/// Returns the requested number of threads, or that of cores.
pub(crate) fn cpu_threads(asked: usize) -> usize {
    if asked > 0 { asked } else { std::thread::available_parallelism().map_or(1, std::num::NonZero::get) }
}

/// Creates a salt for a new delta.
///
/// # Errors
/// [`CloudError::Internal`] without system randomness.
pub fn new_delta_salt() -> Result<[u8; 32], CloudError> {
    random()
}

/// State shared by all packs of a backup.
pub(crate) struct Job {
    pub spec: Arc<BackupSpec>,
    pub layout: Layout,
    pub key: DataKey,
    pub sealer: Sealer,
    pub store: Arc<dyn BlobStore>,
    pub reader: Arc<dyn BlockSource>,
    pub journal: Arc<dyn BackupJournal>,
    progress: Arc<Progress>,
    pub packing: Packing,
    pub work: Work,
    write_once: bool,
    /// An earlier run may have committed the snapshot, and another host may have deleted it since.
    was_committing: bool,
    /// Start of this run.
    clock: RunClock,
    /// There was an earlier run. The absence of its commit record is not trusted.
    is_resumed: bool,
}

/// Backs up a frozen volume: reads the blocks of the spec, and no others, and stores them as a snapshot.
///
/// It makes no LIST and no HEAD request. Packs recorded in the journal are neither read nor sent again; one
/// byte of each is fetched before the commit, because it may have been deleted since, and a missing pack is
/// created again. After the commit of an incremental the base's manifest is requested once: if another host
/// has deleted it meanwhile, required deltas may be gone too, so the new manifest is deleted. If an earlier
/// attempt may have been the commit, after an earlier run, more than an hour after the start, or after a
/// suspend, one byte of every object is fetched after the commit, because a collector with another clock may
/// have deleted it. [`Progress::was_in_doubt`] reports the first case.
///
/// # Errors
/// [`CloudError::Cancelled`]; [`CloudError::InvalidRequest`]; [`CloudError::BaseDeleted`];
/// [`CloudError::BaseUnknown`] and [`CloudError::NotTakenBack`], after which the snapshot is listed and the
/// backup must be resumed; [`CloudError::DeletedMeanwhile`]; [`CloudError::ReadVolume`];
/// [`CloudError::Journal`]; errors of the store. Stored objects stay for a resume, and do not count as a
/// snapshot.
pub async fn backup(
    repo: &Repository,
    spec: Arc<BackupSpec>,
    reader: Arc<dyn BlockSource>,
    journal: Arc<dyn BackupJournal>,
    options: &BackupOptions,
    progress: Arc<Progress>,
    cancel: &CancelToken,
) -> Result<Manifest, CloudError> {
    repo.check_writable()?;
    let work = run(repo.clone(), spec, reader, journal, *options, progress, cancel.clone());
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(CloudError::Cancelled),
        result = Box::pin(work) => result,
    }
}

async fn run(
    repo: Repository,
    spec: Arc<BackupSpec>,
    reader: Arc<dyn BlockSource>,
    journal: Arc<dyn BackupJournal>,
    options: BackupOptions,
    progress: Arc<Progress>,
    cancel: CancelToken,
) -> Result<Manifest, CloudError> {
    progress.enter(Phase::Planning);
    let clock = RunClock::start();
    spec.check_age(Timestamp::now())?;
    let planned = spec.clone();
    let layout = run_blocking(move || {
        planned.check()?;
        Layout::new(&planned.data, planned.size_bytes)
    });
    let layout = layout.await?;
    let was_committing = journal.may_be_committed();
    let is_resumed = options.resumed || !journal.completed().is_empty();
    let key = repo.key().clone();
    let job = Arc::new(Job {
        sealer: Sealer::new(&key, &spec.delta_id(), &spec.delta_salt),
        spec,
        layout,
        key,
        store: repo.store().clone(),
        work: repo.work().clone(),
        reader,
        journal,
        progress,
        packing: Packing::new(cpu_threads(options.cpu_threads)),
        write_once: options.write_once,
        was_committing,
        clock,
        is_resumed,
    });
    job.progress.begin(job.layout.data_blocks * BLOCK_SIZE_BYTES);
    job.packs(options.upload_concurrency.max(1)).await?;
    job.progress.enter(Phase::Index);
    let index = write_index(&job).await?;
    if !cancel.begin_commit() {
        return Err(CloudError::Cancelled);
    }
    job.progress.enter(Phase::Commit);
    let manifest = job.commit(&repo, index).await?;
    job.progress.enter(Phase::Done);
    Ok(manifest)
}

impl Job {
    async fn packs(self: &Arc<Self>, concurrency: usize) -> Result<(), CloudError> {
        let mut done = vec![false; self.layout.pack_count as usize];
        let mut before = self.journal.completed();
        before.retain(|pack_no| *pack_no < self.layout.pack_count);
        for &pack_no in &before {
            if let Some(done) = done.get_mut(pack_no as usize) {
                *done = true;
                let (first, end) = self.layout.pack_frames(pack_no);
                let blocks: usize = self.layout.frame_sizes(pack_no).iter().sum();
                debug_assert!(end > first);
                self.progress.processed(blocks as u64 * BLOCK_SIZE_BYTES);
            }
        }
        let missing: Vec<u32> =
            (0..self.layout.pack_count).filter(|pack_no| !done[*pack_no as usize]).collect();
        let mut packs =
            futures::stream::iter(missing).map(|pack_no| self.pack(pack_no)).buffer_unordered(concurrency);
        while let Some(pack) = packs.next().await {
            self.progress.processed(pack? as u64);
        }
        drop(packs);
        // As late as possible: the packs of this run take long.
        let mut before = futures::stream::iter(before)
            .map(|pack_no| async move { Ok::<_, CloudError>((pack_no, self.is_stored(pack_no).await?)) })
            .buffer_unordered(concurrency);
        let mut lost = Vec::new();
        while let Some(pack) = before.next().await {
            let (pack_no, is_stored) = pack?;
            if !is_stored {
                lost.push(pack_no);
            }
        }
        if !lost.is_empty() {
            tracing::warn!(
                packs = lost.len(),
                "packs that were stored are gone from the store: they are sent again"
            );
        }
        let mut packs =
            futures::stream::iter(lost).map(|pack_no| self.pack(pack_no)).buffer_unordered(concurrency);
        while let Some(pack) = packs.next().await {
            pack?;
        }
        Ok(())
    }

    /// Checks that no other host is deleting the committed snapshot.
    ///
    /// An earlier attempt may have committed the snapshot, and another host may have deleted it since. A
    /// deletion removes the manifest again after the objects. So if all objects exist now, that second
    /// removal is still to come, and removes this manifest too.
    async fn check_own(&self, manifest: &Manifest) -> Result<(), CloudError> {
        let delta = self.spec.delta_id();
        let packs = (0..self.layout.pack_count).map(|pack_no| async move {
            let is_stored = insist(|| self.is_stored(pack_no)).await?;
            Ok::<_, CloudError>((!is_stored).then(|| delta.pack_key(pack_no)))
        });
        let mut packs = futures::stream::iter(packs).buffer_unordered(CHECK_CONCURRENCY);
        let mut gone: Option<String> = None;
        while let Some(pack) = packs.next().await {
            gone = gone.or(pack?);
        }
        let index_key = delta.index_key();
        if gone.is_none() && !insist(|| self.is_there(&index_key)).await? {
            gone = Some(index_key);
        }
        let Some(object) = gone else { return Ok(()) };
        self.take_back(manifest).await?;
        Err(CloudError::DeletedMeanwhile { id: manifest.id(), object })
    }

    /// Deletes the manifest of a committed snapshot that must not stay.
    async fn take_back(&self, manifest: &Manifest) -> Result<(), CloudError> {
        let manifest_key = manifest.id().manifest_key();
        insist(|| async { Ok(self.store.delete(&manifest_key).await?) }).await.map(drop)
    }

    /// Returns true if a pack recorded by an earlier run is still in the store.
    async fn is_stored(&self, pack_no: u32) -> Result<bool, CloudError> {
        let journal = self.journal.clone();
        let lens = run_blocking(move || journal.frame_lens(pack_no)).await?;
        if lens.unwrap_or_default().iter().all(|len| *len == 0) {
            // Packs of zero blocks only have no object.
            return Ok(true);
        }
        self.is_there(&self.spec.delta_id().pack_key(pack_no)).await
    }

    async fn is_there(&self, object: &str) -> Result<bool, CloudError> {
        match self.store.get_range(object, 0, 1).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind == StoreErrorKind::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads, seals, stores and records one pack; returns its bytes of blocks.
    async fn pack(self: &Arc<Self>, pack_no: u32) -> Result<usize, CloudError> {
        let pack = self.build(pack_no).await?;
        if let Some(body) = pack.body {
            let object = self.spec.delta_id().pack_key(pack_no);
            self.put(&object, body).await?;
        }
        let journal = self.journal.clone();
        run_blocking(move || journal.record(pack_no, &pack.lens)).await?;
        Ok(pack.raw_len_bytes)
    }

    /// Stores an object of the delta.
    ///
    /// No other task writes its key, and every attempt of this one writes the same bytes. If the task runs
    /// twice anyway (its daemon was copied), write-once objects keep the two runs apart: the committing run
    /// has seen that each object is its own.
    pub(crate) async fn put(&self, object: &str, body: Bytes) -> Result<(), CloudError> {
        if !self.write_once {
            return Ok(self.store.put(object, body, PutMode::Overwrite).await?);
        }
        match self.store.put(object, body.clone(), PutMode::CreateIfAbsent).await {
            Err(error) if error.kind == StoreErrorKind::AlreadyExists => {
                match self.store.get(object, body.len() as u64).await {
                    Ok(found) if found == body => Ok(()),
                    Err(error) if error.kind != StoreErrorKind::TooLarge => Err(error.into()),
                    _ => Err(CloudError::Conflict { key: object.to_owned() }),
                }
            }
            result => Ok(result?),
        }
    }

    async fn commit(&self, repo: &Repository, index: StoredIndex) -> Result<Manifest, CloudError> {
        let spec = &self.spec;
        let stored_bytes = index.packs_len_bytes + index.reference.len_bytes;
        let delta = Delta {
            cluster: spec.cluster,
            volume: spec.volume,
            snapshot: spec.snapshot,
            key_id: self.key.key_id(),
            salt: spec.delta_salt,
            index: index.reference,
            pack_count: self.layout.pack_count,
            frames: self.layout.frames,
            data_blocks: self.layout.data_blocks,
            zero_blocks: spec.zero.len_blocks(),
            stored_bytes,
        };
        let chain = spec.base.iter().flat_map(Manifest::deltas).cloned().collect();
        let manifest = Manifest {
            format_version: FORMAT_VERSION,
            cluster: spec.cluster,
            volume: spec.volume,
            snapshot: spec.snapshot,
            volume_name: spec.volume_name.clone(),
            snapshot_name: spec.snapshot_name.clone(),
            labels: spec.labels.clone(),
            size_bytes: spec.size_bytes,
            created: spec.created,
            backup_type: if spec.base.is_some() { BackupType::Incremental } else { BackupType::Full },
            started: spec.started,
            finished: Timestamp::now(),
            trigger: spec.trigger.clone(),
            freeze_stall_micros: spec.freeze_stall_micros,
            dirty_bytes: (self.layout.data_blocks + delta.zero_blocks) * BLOCK_SIZE_BYTES,
            stored_bytes,
            pack_count: self.layout.pack_count,
            requests: self.progress.snapshot().requests,
            encryption: self.key.mode().name().to_owned(),
            compression: "lz4".to_owned(),
            base: spec.base.as_ref().map(Manifest::id),
            delta,
            chain,
        };
        let object = manifest.encode(&self.key, &random()?)?;
        // As late as possible: garbage collection relies on it.
        spec.check_age(Timestamp::now())?;
        let journal = self.journal.clone();
        run_blocking(move || journal.record_commit()).await?;
        let puts = || self.progress.snapshot().requests.put;
        let (manifest, at_once) = repo.put_manifest(manifest, object.into(), puts).await?;
        let in_doubt = self.was_committing || !at_once;
        if in_doubt {
            self.progress.doubt();
        }
        // The clock may have been wrong before the put, or the host may have been suspended during it.
        if let Err(expired) = spec.check_age(Timestamp::now()) {
            self.take_back(&manifest).await?;
            return Err(expired);
        }
        if in_doubt || self.is_resumed || self.clock.is_long() || spec.is_old(Timestamp::now()) {
            self.check_own(&manifest).await?;
        }
        if let Some(base) = &spec.base {
            check_base(self.store.as_ref(), &manifest, base).await?;
        }
        Ok(manifest)
    }
}

/// Retries while the store does not reply.
async fn insist<T, F>(ask: impl Fn() -> F) -> Result<T, CloudError>
where
    F: Future<Output = Result<T, CloudError>>,
{
    let mut pause = CHECK_PAUSE;
    for _ in 1..CHECK_ATTEMPTS {
        match ask().await {
            Err(error) if error.is_retryable() => {
                tracing::debug!(%error, "asked once more about the committed snapshot");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(MAX_CHECK_PAUSE);
            }
            result => return result,
        }
    }
    ask().await
}

/// Checks that the base of a committed snapshot, and with it required deltas, was not deleted before the
/// commit.
///
/// A deletion removes the manifest first, then lists the remaining manifests, then removes deltas that none
/// of them names. If the base's manifest exists now, that listing is still to come and will show this
/// snapshot; if it is gone, the listing may have preceded the commit. Until one of the two is certain, the
/// backup is not done: its resumption checks again.
///
/// # Errors
/// [`CloudError::BaseDeleted`]; the snapshot's manifest is then deleted. [`CloudError::BaseUnknown`] if the
/// store does not reply, [`CloudError::NotTakenBack`] if it does not delete the manifest: the snapshot is
/// listed, but does not count yet.
pub async fn check_base(
    store: &dyn BlobStore,
    manifest: &Manifest,
    base: &Manifest,
) -> Result<(), CloudError> {
    let (id, base) = (manifest.id(), base.id());
    let base_key = base.manifest_key();
    let looked = insist(|| async {
        match store.get_range(&base_key, 0, 1).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind == StoreErrorKind::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    });
    match looked.await {
        Ok(true) => Ok(()),
        Ok(false) => {
            let own_key = id.manifest_key();
            match insist(|| async { Ok(store.delete(&own_key).await?) }).await {
                Ok(_) => Err(CloudError::BaseDeleted { base }),
                Err(source) => Err(CloudError::NotTakenBack { id, base, source: Box::new(source) }),
            }
        }
        Err(source) => Err(CloudError::BaseUnknown { id, base, source: Box::new(source) }),
    }
}
