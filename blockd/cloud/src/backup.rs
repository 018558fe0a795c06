//! Backup: stores packs concurrently, then the index, then the manifest.
//!
//! Memory depends neither on the volume's size nor on the store's latency: packs have 97 MiB from their
//! assembly to the end of their upload, chunks of blocks 2 MiB each, at most 32 MiB. Blocks are read and
//! sealed while packs are uploaded, until that memory is in use; a [`Window`] limits the uploads. The index
//! takes up to 100 MiB afterwards. A pack that the store already has, such as one that an earlier run did not
//! record, is fetched for comparison: its memory is needed twice. In addition some dozen bytes per 32 MiB of
//! blocks, and the block sets.

use crate::{
    CloudError, Compression, CompressionLevel, ManifestKey,
    adaptive::{AdaptiveLevel, Stage},
    backup_spec::BackupSpec,
    clock::RunClock,
    index_writer::write_index,
    job::{Job, Levels, Packing, Recorder},
    journal::BackupJournal,
    manifest::Manifest,
    plan::Layout,
    progress::{CancelToken, Phase, Progress},
    repository::{Repository, run_blocking, run_request},
    seal::Sealer,
    window::Window,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockSource};
use blockd_store::{RequestCounts, Reservation, StoreError, StoreErrorKind};
use futures::StreamExt;
use jiff::Timestamp;
use std::{
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

/// Resource options of a backup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UploadOptions {
    /// Maximum number of concurrent uploads of packs; their number follows latency and bandwidth.
    pub upload_concurrency: usize,
    /// Memory of packs; the description of this module has the other memory.
    pub memory_bytes: usize,
    /// Threads that compress and seal; 0 is one per core.
    pub cpu_threads: usize,
    /// Use create-if-absent: an existing object must have the same content. Set it for stores that support
    /// create-if-absent, as tested.
    pub write_once: bool,
    /// An earlier run of this backup may have stored packs or reached the commit, even if the journal is
    /// lost. With levels chosen for each pack, stored packs may then differ: [`CloudError::JournalLost`].
    pub resumed: bool,
    /// Compression. A resumed backup has the same one.
    pub compression: Compression,
}

impl Default for UploadOptions {
    fn default() -> Self {
        Self {
            upload_concurrency: 32,
            memory_bytes: TRANSFER_MEMORY_BYTES,
            cpu_threads: 0,
            write_once: false,
            resumed: false,
            compression: Compression::Fixed(CompressionLevel::Zstd(1)),
        }
    }
}

/// Memory of the packs in flight of a backup: three packs without compression, or more shorter ones.
pub const TRANSFER_MEMORY_BYTES: usize = 97 << 20;

/// Returns the requested number of threads; for 0, the number of cores.
pub(crate) fn cpu_threads(asked: usize) -> usize {
    if asked > 0 { asked } else { std::thread::available_parallelism().map_or(1, std::num::NonZero::get) }
}

/// Backs up a frozen volume: reads only the blocks of the spec and stores them as a snapshot.
///
/// It makes no LIST and no HEAD request. Packs recorded in the journal are neither read nor sent again; one
/// byte of each is fetched before the commit, because it may have been deleted since, and a missing pack is
/// created again. After the commit of an incremental the base's manifest is requested once: if another host
/// has deleted it, required deltas may be gone too, so the new manifest is deleted. If an earlier attempt may
/// have been the commit, after an earlier run, more than an hour after the start, or after a suspend, one
/// byte of every object is fetched after the commit, because a collector with another clock may have deleted
/// it. [`Progress::was_in_doubt`] reports the first case.
///
/// # Errors [`CloudError::Cancelled`]; the error of the commit check of `cancel`;
/// [`CloudError::InvalidRequest`]; [`CloudError::NeededDeleted`]; [`CloudError::BaseUnknown`] and
/// [`CloudError::CommitNotUndone`], after which the snapshot is listed and the backup must be resumed;
/// [`CloudError::DeletedConcurrently`]; [`CloudError::ReadVolume`]; [`CloudError::Journal`];
/// [`CloudError::JournalLost`]; errors of the store. Stored objects stay for a resume, and do not count as a
/// snapshot.
pub async fn backup(
    repo: &Repository,
    spec: Arc<BackupSpec>,
    reader: Arc<dyn BlockSource>,
    journal: Arc<dyn BackupJournal>,
    options: &UploadOptions,
    progress: Arc<Progress>,
    cancel: &CancelToken,
) -> Result<Manifest, CloudError> {
    repo.check_writable()?;
    let recorder = Recorder::new(journal);
    let run = run(repo.clone(), spec, reader, recorder.clone(), *options, progress, cancel.clone());
    let outcome = cancel.guard(run).await;
    recorder.finish().await;
    outcome
}

async fn run(
    repo: Repository,
    spec: Arc<BackupSpec>,
    reader: Arc<dyn BlockSource>,
    recorder: Recorder,
    options: UploadOptions,
    progress: Arc<Progress>,
    cancel: CancelToken,
) -> Result<Manifest, CloudError> {
    progress.enter(Phase::Planning);
    spec.check_age(Timestamp::now())?;
    let job = Arc::new(job_of(&repo, spec, reader, recorder, &options, progress).await?);
    job.progress.begin(job.layout.data_blocks * BLOCK_SIZE_BYTES);
    let recorded = job.recorded().await?;
    let budget = CommitBudget::reserve(&job, &recorded)?;
    job.packs(options.upload_concurrency.max(1), recorded, &budget).await?;
    budget.begin_closing()?;
    job.progress.enter(Phase::Index);
    let index = write_index(&job).await?;
    run_blocking(move || cancel.begin_commit()).await?;
    job.progress.enter(Phase::Commit);
    let manifest = job.commit(&repo, index).await?;
    job.progress.enter(Phase::Done);
    Ok(manifest)
}

/// Lays out a backup of `spec`, which it checks.
///
/// # Errors
/// [`CloudError::InvalidRequest`].
pub(crate) async fn job_of(
    repo: &Repository,
    spec: Arc<BackupSpec>,
    reader: Arc<dyn BlockSource>,
    recorder: Recorder,
    options: &UploadOptions,
    progress: Arc<Progress>,
) -> Result<Job, CloudError> {
    let clock = RunClock::start();
    let planned = spec.clone();
    let layout = run_blocking(move || {
        planned.check()?;
        Layout::new(&planned.data, &planned.references.blocks(), planned.size_bytes)
    });
    let layout = Arc::new(layout.await?);
    let was_committing = recorder.journal().may_be_committed();
    let is_resumed = options.resumed || !recorder.journal().completed().is_empty();
    let key = repo.key().clone();
    let levels = Levels {
        compression: options.compression,
        adaptive: AdaptiveLevel::default(),
        recorder: recorder.clone(),
        work: repo.work().clone(),
    };
    Ok(Job {
        sealer: Sealer::new(&key, &spec.delta_id(), &spec.delta_salt),
        spec,
        layout,
        key,
        store: repo.store().clone(),
        work: repo.work().clone(),
        reader,
        recorder,
        packing: Packing::new(cpu_threads(options.cpu_threads), options.memory_bytes),
        uploads: Window::new(options.upload_concurrency, progress.latency()),
        progress,
        write_once: options.write_once,
        levels,
        was_committing,
        clock,
        is_resumed,
    })
}

/// Packs of earlier runs, by the journal.
struct Recorded {
    all: Vec<u32>,
    /// Those with an object: packs of zero blocks only have none.
    stored: Vec<u32>,
}

/// Requests of the checks and the commit, which are reserved before the first request of a run and for each
/// further pack: a run that cannot commit ends before it repeats what earlier runs spent, and a commit is not
/// left in doubt.
struct CommitBudget<'a> {
    job: &'a Job,
    reservation: Reservation,
    /// Recorded packs that are not checked yet.
    unchecked: AtomicU64,
    /// Packs with an object.
    stored: AtomicU64,
    /// Packs that are neither recorded nor stored by this run.
    missing: AtomicU64,
    /// A pack exceeded the budget of the task.
    is_exhausted: AtomicBool,
}

impl<'a> CommitBudget<'a> {
    fn reserve(job: &'a Job, recorded: &Recorded) -> Result<Self, CloudError> {
        let stored = recorded.stored.len() as u64;
        let missing = u64::from(job.layout.pack_count) - recorded.all.len() as u64;
        let last = last_requests(job, stored, stored);
        let reservation = job.progress.reserve(last, next_run(job, stored, missing));
        let reservation = reservation.map_err(|limit| Self::exhausted(job, limit))?;
        let is_exhausted = AtomicBool::new(false);
        let (missing, unchecked, stored) = (missing.into(), stored.into(), stored.into());
        Ok(Self { job, reservation, unchecked, stored, missing, is_exhausted })
    }

    fn exhausted(job: &Job, limit: String) -> CloudError {
        let (kind, key) = (StoreErrorKind::BudgetExhausted, job.spec.id().manifest_key());
        StoreError::new(kind, "PUT", &key, job.store.describe()).with_detail(limit).into()
    }

    /// Returns the last requests of this run, and those of another one in its place.
    fn remaining(&self) -> (RequestCounts, RequestCounts) {
        let (stored, missing) = (self.stored.load(Relaxed), self.missing.load(Relaxed));
        (last_requests(self.job, self.unchecked.load(Relaxed), stored), next_run(self.job, stored, missing))
    }

    fn set(&self) -> Result<(), CloudError> {
        let (last, next_run) = self.remaining();
        self.reservation.set(last, Some(next_run)).map_err(|limit| Self::exhausted(self.job, limit))
    }

    /// Reserves the checks of a stored pack.
    fn stored(&self) -> Result<(), CloudError> {
        self.stored.fetch_add(1, Relaxed);
        self.missing.fetch_sub(1, Relaxed);
        self.set()
    }

    /// Releases the checks of recorded packs, which follow.
    fn begin_checks(&self) -> Result<(), CloudError> {
        self.unchecked.store(0, Relaxed);
        self.set()
    }

    /// Begins the requests of the index and the commit. They are made only if the budget of the task has all
    /// of them.
    fn begin_closing(&self) -> Result<(), CloudError> {
        let (last, next_run) = self.remaining();
        self.reservation.begin_closing(last, Some(next_run)).map_err(|limit| Self::exhausted(self.job, limit))
    }
}

/// Returns the requests of the checks of `unchecked` packs, and of the commit of a backup with `stored` ones.
fn last_requests(job: &Job, unchecked: u64, stored: u64) -> RequestCounts {
    let mut get = unchecked + job.spec.owners().count() as u64;
    if job.was_committing || job.is_resumed || job.clock.may_become_long() {
        get += 1 + stored;
    }
    RequestCounts { put: 2, get, bytes_down: get, ..RequestCounts::default() }
}

/// Returns the requests of a resumed run with `stored` recorded packs: it checks all of them, before and
/// after its commit, and stores `missing` ones.
fn next_run(job: &Job, stored: u64, missing: u64) -> RequestCounts {
    let get = stored + job.spec.owners().count() as u64 + 1 + stored + missing;
    RequestCounts { put: missing + 2, get, bytes_down: get, ..RequestCounts::default() }
}

impl Job {
    /// Returns the packs that the journal has.
    async fn recorded(self: &Arc<Self>) -> Result<Recorded, CloudError> {
        let job = Arc::clone(self);
        run_blocking(move || {
            let mut all = job.recorder.journal().completed();
            all.retain(|pack_no| *pack_no < job.layout.pack_count);
            let mut stored = Vec::with_capacity(all.len());
            for &pack_no in &all {
                if job.has_object(pack_no)? {
                    stored.push(pack_no);
                }
            }
            Ok(Recorded { all, stored })
        })
        .await
    }

    async fn packs(
        self: &Arc<Self>,
        concurrency: usize,
        recorded: Recorded,
        budget: &CommitBudget<'_>,
    ) -> Result<(), CloudError> {
        let mut done = vec![false; self.layout.pack_count as usize];
        for &pack_no in &recorded.all {
            if let Some(done) = done.get_mut(pack_no as usize) {
                *done = true;
                let blocks: usize = self.layout.frame_sizes(pack_no).iter().sum();
                self.progress.processed(blocks as u64 * BLOCK_SIZE_BYTES);
            }
        }
        let missing: Vec<u32> =
            (0..self.layout.pack_count).filter(|pack_no| !done[*pack_no as usize]).collect();
        let mut exhausted = None;
        let mut packs = futures::stream::iter(missing)
            .take_while(|_| ready(!budget.is_exhausted.load(Relaxed)))
            .map(|pack_no| self.pack(pack_no, Some(budget)))
            .buffer_unordered(concurrency);
        while let Some(pack) = packs.next().await {
            match pack {
                Ok(len_bytes) => self.progress.processed(len_bytes as u64),
                // The uploads in flight are completed and recorded: their requests are spent.
                Err(CloudError::Store(error)) if error.kind == StoreErrorKind::BudgetExhausted => {
                    budget.is_exhausted.store(true, Relaxed);
                    exhausted = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        drop(packs);
        if let Some(error) = exhausted {
            return Err(error.into());
        }
        // Checks recorded packs as late as possible: the packs of this run take long.
        budget.begin_checks()?;
        let mut recorded = futures::stream::iter(recorded.stored)
            .map(|pack_no| async move { Ok::<_, CloudError>((pack_no, self.is_stored(pack_no).await?)) })
            .buffer_unordered(concurrency);
        // Each block is in a pack of this run or of an earlier one.
        debug_assert_eq!(
            self.progress.snapshot().bytes_processed,
            self.layout.data_blocks * BLOCK_SIZE_BYTES,
            "blocks in no pack"
        );
        let mut lost = Vec::new();
        while let Some(pack) = recorded.next().await {
            let (pack_no, is_stored) = pack?;
            if !is_stored {
                lost.push(pack_no);
            }
        }
        if !lost.is_empty() {
            tracing::warn!(packs = lost.len(), "stored packs are missing from the store: storing them again");
        }
        let mut packs =
            futures::stream::iter(lost).map(|pack_no| self.pack(pack_no, None)).buffer_unordered(concurrency);
        while let Some(pack) = packs.next().await {
            pack?;
        }
        Ok(())
    }

    /// Without its journal, a resumed backup may choose other levels than those of its stored packs.
    fn cause_of(&self, error: CloudError) -> CloudError {
        match error {
            CloudError::Conflict { key }
                if self.is_resumed && self.levels.compression == Compression::Auto =>
            {
                CloudError::JournalLost { found: format!("{key} exists with other content") }
            }
            other => other,
        }
    }

    /// Reads, seals, stores and records one pack, which is a new one with `budget`; returns its bytes of
    /// blocks. Skips a pack that has not begun when the budget is exhausted.
    async fn pack(
        self: &Arc<Self>,
        pack_no: u32,
        budget: Option<&CommitBudget<'_>>,
    ) -> Result<usize, CloudError> {
        let is_wanted = || budget.is_none_or(|budget| !budget.is_exhausted.load(Relaxed));
        let Some(pack) = self.build(pack_no, is_wanted).await? else { return Ok(0) };
        let is_empty = pack.lens.iter().all(|len| *len == 0);
        assert_eq!(pack.body.is_none(), is_empty, "a pack has an object if a frame has bytes");
        if let Some(body) = pack.body {
            let object = self.spec.delta_id().pack_key(pack_no);
            let (in_flight, len_bytes) = (self.uploads.enter().await, body.len() as u64);
            let _sending = self.levels.adaptive.enter(Stage::Sending);
            let job = self.clone();
            let put = run_request(async move { job.put(&object, body).await });
            put.await.map_err(|error| self.cause_of(error))?;
            in_flight.complete(len_bytes);
        }
        let level = pack.level;
        self.recorder.write(move |journal| journal.record(pack_no, level, &pack.lens)).await?;
        if let Some(budget) = budget.filter(|_| !is_empty) {
            budget.stored()?;
        }
        Ok(pack.raw_len_bytes)
    }
}
