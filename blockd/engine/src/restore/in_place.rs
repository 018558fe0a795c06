//! In-place restore: reverts a volume to a cloud snapshot by writing only the blocks that differ.
//!
//! Clients are fenced until the restore has ended, across restarts of the daemon as well. First a snapshot of
//! the volume is taken: it keeps the previous content and ends the compared block sets. Then each block that
//! may differ is compared with the cloud snapshot and written, in ascending order. Writes are idempotent, so
//! an interrupted run resumes at the last flush.
//!
//! The restore waits while the store is unavailable. If it is stopped or fails after its first write, the
//! volume is a mixture of both states: clients stay fenced until the restore is resumed and done, or
//! abandoned, which rolls the volume back to the snapshot.
//!
//! The blocks that may differ are known from the block sets of this host if the cloud snapshot is the last
//! backup of the volume in its repository, or in the chain of that backup. Otherwise all blocks are compared.

use crate::{
    error::{ServiceError, blocking, spawned},
    host::{Admission, Host},
    restore::labels::{before_first_write, with_labels},
    restore::lazy::{
        LazyVolumes,
        hydrate::{PAUSE, wait},
        source::{CHUNK_BLOCKS, SnapshotSource},
    },
    snapshots::{Snapshots, freeze::FreezeRequest},
    tasks::{LiveTask, Tasks},
    volumes::{
        merger::Wake,
        registry::{Registry, RollbackMark, VolumeEntry},
    },
};
use blockd_api::{
    ApiError, ErrorCode, Labels, SnapshotName, SnapshotRef,
    tasks::{TaskStage, ways_to_end},
};
use blockd_catalog::{ActivityRow, Chain, Db, InPlaceRestore, SnapshotRow, SnapshotState, TaskRow};
use blockd_cloud::{Manifest, changed_blocks};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent, SnapshotId, VolumeId};
use blockd_volume::{Volume, VolumeError, VolumeErrorKind};
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{collections::HashMap, future::Future, sync::Arc};

const BLOCK: usize = BLOCK_SIZE_BYTES as usize;
/// Bytes between two flushes; each flush records the progress.
const FLUSH_EVERY_BYTES: u64 = 64 << 20;

/// Work of in-place restores.
pub struct InPlaceWork {
    pub(crate) admission: Arc<Admission>,
    pub(crate) lazy: Arc<LazyVolumes>,
    pub(crate) db: Arc<Db>,
    /// Fences of the volumes with unfinished in-place restores.
    pub(crate) fences: Mutex<HashMap<VolumeId, RollbackMark>>,
    pub(crate) host: Arc<Host>,
    pub(crate) merger: Arc<Wake>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) tasks: Arc<Tasks>,
}

impl InPlaceWork {
    /// Fences the volumes of unfinished in-place restores, before the first client is served.
    ///
    /// # Errors
    /// The database fails.
    pub async fn fence_volumes_in_rollback(&self) -> Result<(), ServiceError> {
        let mut tasks = self.db.run(TaskRow::unfinished).await?;
        tasks.extend(self.tasks.resumable_tasks().await?);
        for task in tasks.iter().filter(|task| task.spec.is_in_place()) {
            // A volume that cannot be fenced is not open to clients either.
            let _ = self.fence_volume(task);
        }
        Ok(())
    }

    /// Fences the volume of an in-place restore, unless it is fenced; does nothing for other tasks.
    ///
    /// # Errors
    /// The volume does not exist, is not open or is in use.
    pub fn fence_volume(&self, task: &TaskRow) -> Result<(), ServiceError> {
        let Some(id) = task.volume.filter(|_| task.spec.is_in_place()) else { return Ok(()) };
        if self.fences.lock().contains_key(&id) {
            return Ok(());
        }
        let gone = || ServiceError::refused(ErrorCode::VolumeNotFound, "the volume no longer exists");
        let (_, mark) = self.registry.by_id(id).ok_or_else(gone)?.begin_rollback()?;
        mark.set_reason(fence_reason(task));
        self.fences.lock().insert(id, mark);
        Ok(())
    }
}

/// Returns true if an in-place restore may have written: until it is done, its volume is a mixture.
pub fn has_started(row: &TaskRow) -> bool {
    // Stored before the first write.
    row.detail.bytes_total > 0
}

/// Returns the message to fenced clients, after the name of the volume.
pub(crate) fn fence_reason(row: &TaskRow) -> String {
    match row.state {
        TaskStage::Failed | TaskStage::Stopped => format!(
            "is partially restored from cloud snapshot {} by task {}: {}",
            row.cloudsnap,
            row.id,
            ways_to_end(row.id)
        ),
        _ => format!("is being restored in place from cloud snapshot {} by task {}", row.cloudsnap, row.id),
    }
}

/// Updates the message to fenced clients.
fn update_fence(work: &InPlaceWork, row: &TaskRow) {
    let fences = work.fences.lock();
    if let Some(mark) = row.volume.and_then(|id| fences.get(&id)) {
        mark.set_reason(fence_reason(row));
    }
}

/// Rolls the volume of an unfinished restore back to its content before the restore. The returned mark
/// fences clients, and a resume is refused, until the task is abandoned. A failure changes nothing: the
/// restore can be resumed.
///
/// # Errors
/// The disk is full or fails, the daemon stops, or another request abandons the restore.
pub(crate) async fn undo(
    work: &InPlaceWork,
    row: &TaskRow,
    asked: &InPlaceRestore,
) -> Result<Option<RollbackMark>, ServiceError> {
    let Some(entry) = row.volume.and_then(|id| work.registry.by_id(id)).filter(|_| has_started(row)) else {
        return Ok(None);
    };
    let volume = entry.volume()?;
    // Without a fence in the table, nothing resumes the restore meanwhile.
    let mark = work.fences.lock().remove(&entry.id).ok_or_else(|| {
        let message = format!("restore task {} of volume {} is being discarded", row.id, entry.name);
        ServiceError::refused(ErrorCode::VolumeInUse, message)
    })?;
    mark.set_reason(format!("is being rolled back to its content before restore task {}", row.id));
    // A resume after a crash must not rely on blocks that the rollback takes away.
    let mut from_start = row.clone();
    from_start.detail.restored_below = 0;
    let stored = work.db.run(move |tx| from_start.put(tx)).await.map_err(ServiceError::from);
    let done = match stored {
        Ok(()) => work.snapshots.roll_back(&entry, volume, asked.before).await,
        Err(error) => Err(error),
    };
    match done {
        Ok(_) => {}
        // Nothing else can end the restore of a cloud snapshot that is lost, too.
        Err(ServiceError::Volume(error)) if error.kind() == VolumeErrorKind::NotFound => {
            tracing::warn!(volume = %entry.id, snapshot = %asked.before, "the snapshot of the previous content is missing: the volume stays partially restored");
        }
        Err(error) => {
            mark.set_reason(fence_reason(row));
            work.fences.lock().insert(entry.id, mark);
            return Err(error);
        }
    }
    work.host.failpoints.reached("in-place restore undone")?;
    Ok(Some(mark))
}

/// Removes the fence.
pub fn release(work: &InPlaceWork, row: &TaskRow) {
    if let Some(volume) = row.volume {
        work.fences.lock().remove(&volume);
    }
}

pub(crate) async fn run(
    work: &Arc<InPlaceWork>,
    live: &Arc<LiveTask>,
    asked: InPlaceRestore,
) -> Result<TaskRow, ServiceError> {
    let row = live.view();
    update_fence(work, &row);
    let result = run_fenced(work, live, asked).await;
    if result.is_err() {
        // The fence outlives the task if the task is kept for a resume.
        update_fence(work, &TaskRow { state: TaskStage::Failed, ..live.view() });
    }
    result
}

async fn run_fenced(
    work: &Arc<InPlaceWork>,
    live: &Arc<LiveTask>,
    asked: InPlaceRestore,
) -> Result<TaskRow, ServiceError> {
    let row = live.view();
    let gone = || ServiceError::refused(ErrorCode::VolumeNotFound, "the volume no longer exists");
    let entry = row.volume.and_then(|id| work.registry.by_id(id)).ok_or_else(gone)?;
    let volume = entry.volume()?;
    live.update(|row| {
        row.state = TaskStage::Active;
        row.detail.phase = "planning".into();
    });
    let before = {
        let _slot = work.tasks.slot(&live.cancel).await?;
        frozen(work, &entry, asked.before, row.created).await?
    };
    work.host.failpoints.reached("in-place restore frozen")?;
    let mut pause = PAUSE;
    loop {
        let started_at = live.view().detail.bytes_processed;
        let error = match revert_blocks(work, live, &volume, &before, &asked.labels).await {
            Ok(()) => break,
            Err(error) => error,
        };
        if error.is_cancelled() {
            return Err(error);
        }
        // Store errors may be temporary: a directory is mounted again, credentials are renewed.
        if !error.may_change() {
            return Err(partial_restore(error, &live.view(), &entry, &before));
        }
        let phase = error.waiting_phase();
        tracing::info!(volume = %entry.id, %error, "in-place restore {phase}");
        if live.view().detail.bytes_processed > started_at {
            pause = PAUSE;
        }
        live.detail(|detail| {
            detail.phase = phase.into();
            detail.note = Some(error.to_api().message);
        });
        wait(live, &mut pause).await?;
    }
    work.host.failpoints.reached("in-place restore written")?;
    live.detail(|detail| detail.phase = "done".into());
    set_labels(work, &entry, &asked.labels).await?;
    let volume = entry.id;
    // The change of the content is no anomaly.
    let done = work.tasks.finish(live, move |tx| ActivityRow::mark_replaced(tx, volume)).await?;
    release(work, &done);
    drop_previous(work, &asked, asked.discard).await;
    work.merger.wake();
    Ok(done)
}

/// Deletes the snapshot of the previous content if none is to be kept.
pub(crate) async fn drop_previous(work: &InPlaceWork, asked: &InPlaceRestore, discard: bool) {
    if !discard {
        return;
    }
    match work.snapshots.delete_snapshot(&SnapshotRef::Id(asked.before), false).await {
        Err(error) if error.to_api().code != ErrorCode::SnapshotNotFound => {
            tracing::warn!(snapshot = %asked.before, %error, "deleting the snapshot of the previous content failed");
        }
        _ => {}
    }
}

/// Sets the labels that were asked for: what the volume contains now is known.
///
/// # Errors
/// A user added too many labels meanwhile. Without those of its object, the restore would happen again.
async fn set_labels(work: &InPlaceWork, entry: &VolumeEntry, labels: &Labels) -> Result<(), ServiceError> {
    if labels.is_empty() {
        return Ok(());
    }
    let admission = work.admission.lock().await;
    let tags = with_labels(entry.tags(), labels).map_err(|error| {
        let message = format!("setting the labels of the restore failed on volume {}: {error}", entry.name);
        let hint = "remove labels of the volume with `blockctl volume update`, then resume the task";
        ServiceError::Refused(ApiError::new(ErrorCode::InvalidRequest, message).with_hint(hint))
    })?;
    entry.change_tags(&work.db, &admission, |_| tags).await
}

/// Returns the error of a permanently failed restore, with its consequence for the volume.
fn partial_restore(
    error: ServiceError,
    row: &TaskRow,
    entry: &VolumeEntry,
    before: &SnapshotRow,
) -> ServiceError {
    if !has_started(row) {
        return error;
    }
    let message = format!(
        "in-place restore failed on volume {}: {error}; the volume is a mixture of its previous state and the cloud snapshot, \
         and clients are fenced: resume task {}, or stop it with --discard, which rolls back to snapshot {}",
        entry.name, row.id, before.name
    );
    ServiceError::refused(error.to_api().code, message)
}

/// Runs a store request until the task is cancelled: a store may be unresponsive for long.
async fn cancellable<T>(
    live: &LiveTask,
    work: impl Future<Output = Result<T, ServiceError>>,
) -> Result<T, ServiceError> {
    tokio::select! {
        biased;
        () = live.cancel.cancelled() => Err(ServiceError::Stopping),
        done = work => done,
    }
}

/// Writes the differing blocks, from the last recorded flush on.
async fn revert_blocks(
    work: &Arc<InPlaceWork>,
    live: &LiveTask,
    volume: &Arc<Volume>,
    before: &SnapshotRow,
    labels: &Labels,
) -> Result<(), ServiceError> {
    // Other tasks may move data while this one waits for a store.
    let _slot = work.tasks.slot(&live.cancel).await?;
    let row = live.view();
    let done_below = row.detail.restored_below;
    let source =
        cancellable(live, SnapshotSource::open(&work.lazy, live, row.credential, row.cloudsnap)).await?;
    let (blocks, how) = cancellable(live, differing(work, volume, before, &source)).await?;
    let end = BlockIndex(volume.size_bytes() / BLOCK_SIZE_BYTES);
    let total_bytes = blocks.len_bytes();
    let left = blocks.slice(Extent::between(BlockIndex(done_below).min(end), end));
    tracing::info!(volume = %volume.id(), cloudsnap = %row.cloudsnap, how, bytes = total_bytes, "reverting the volume");
    live.detail(|detail| {
        detail.phase = "data".into();
        detail.note = Some(how.to_owned());
        detail.bytes_total = total_bytes;
        detail.bytes_processed = total_bytes - left.len_bytes();
    });
    // A restart would take the volume for unchanged without this row.
    let started = live.view();
    work.db.run(move |tx| started.put_progress(tx)).await?;
    if let Some(entry) = work.registry.by_id(volume.id()) {
        let admission = work.admission.lock().await;
        let tags = before_first_write(entry.tags(), labels)?;
        entry.change_tags(&work.db, &admission, |_| tags).await?;
    }
    write_all(work, live, volume, &source, &left).await
}

/// Returns the snapshot of the previous content: that of an earlier run, or a new one.
async fn frozen(
    work: &InPlaceWork,
    entry: &Arc<VolumeEntry>,
    before: SnapshotId,
    created: Timestamp,
) -> Result<SnapshotRow, ServiceError> {
    let id = entry.id;
    let rows = work.db.run(move |tx| SnapshotRow::all(tx, Some(id))).await?;
    let is_it = |row: &SnapshotRow| row.id == before && row.state == SnapshotState::Ready;
    if let Some(row) = rows.into_iter().find(is_it) {
        return Ok(row);
    }
    let wanted = FreezeRequest {
        members: vec![(Arc::clone(entry), before)],
        name: SnapshotName::before_restore(created),
        internal: false,
        group: None,
        quiesce_rules: Vec::new(),
        schedule: None,
    };
    work.snapshots.freeze_alone(wanted).await
}

/// Returns the blocks that may differ, and a note on how they were determined.
pub(super) async fn differing(
    work: &InPlaceWork,
    volume: &Arc<Volume>,
    before: &SnapshotRow,
    source: &SnapshotSource,
) -> Result<(BlockSet, &'static str), ServiceError> {
    let (id, credential) = (volume.id(), source.credential());
    let chain = work.db.run(move |tx| Chain::find(tx, id, credential)).await?;
    if let Some(chain) = chain
        && let Some(mut blocks) = changed_since(volume, &chain, before).await?
        && let Some(between) = between(source, &chain).await?
    {
        blocks.union_with(&between);
        return Ok((blocks, "the blocks that may differ are known from changed-block tracking"));
    }
    let (frozen, until) = (Arc::clone(volume), before.epoch);
    let mut blocks = blocking(move || frozen.changes(None, until)).await?.data;
    blocks.union_with(&source.data_blocks().await?);
    Ok((blocks, "all blocks are compared, because changed-block tracking does not cover the cloud snapshot"))
}

/// Returns the blocks written since the last backup; `None` if unknown.
async fn changed_since(
    volume: &Arc<Volume>,
    chain: &Chain,
    before: &SnapshotRow,
) -> Result<Option<BlockSet>, ServiceError> {
    let (volume, since, until) = (Arc::clone(volume), chain.epoch, before.epoch);
    blocking(move || match volume.changes(Some(since), until) {
        Ok(changes) => {
            let mut blocks = changes.data;
            blocks.union_with(&changes.zero);
            Ok(Some(blocks))
        }
        Err(error)
            if matches!(error.kind(), VolumeErrorKind::IntervalsGone | VolumeErrorKind::InvalidInput) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    })
    .await
}

/// Returns the blocks changed by the backups after the cloud snapshot; `None` if it is not in the chain of
/// the last one.
async fn between(source: &SnapshotSource, chain: &Chain) -> Result<Option<BlockSet>, ServiceError> {
    if chain.cloudsnap == source.id() {
        return Ok(Some(BlockSet::new()));
    }
    let tip: Manifest = match source.repository().manifest(&chain.cloudsnap).await {
        Ok(tip) => tip,
        Err(error) if crate::repositories::opening::is_unusable_base(&error) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let (repository, since) = (source.repository().clone(), source.id().snapshot);
    spawned(async move { changed_blocks(&repository, &tip, since).await }).await
}

/// Returns the extents that are read one after the other.
pub(super) fn chunks(blocks: &BlockSet) -> impl Iterator<Item = Extent> + '_ {
    blocks.extents().flat_map(|extent| {
        let starts = (extent.start.0..extent.end().0).step_by(CHUNK_BLOCKS as usize);
        starts.map(move |at| Extent::between(BlockIndex(at), BlockIndex(at + CHUNK_BLOCKS).min(extent.end())))
    })
}

async fn write_all(
    work: &InPlaceWork,
    live: &LiveTask,
    volume: &Arc<Volume>,
    source: &SnapshotSource,
    blocks: &BlockSet,
) -> Result<(), ServiceError> {
    let mut unflushed_bytes = 0;
    for chunk in chunks(blocks) {
        let data = cancellable(live, source.read_blocks(chunk)).await;
        // A write is always awaited: the fence must not end during a write.
        let (target, data) = (Arc::clone(volume), data?);
        blocking(move || write_differing(&target, chunk, &data)).await?;
        unflushed_bytes += chunk.len_bytes();
        live.detail(|detail| detail.bytes_processed += chunk.len_bytes());
        if unflushed_bytes >= FLUSH_EVERY_BYTES {
            unflushed_bytes = 0;
            record_progress(work, live, volume, chunk.end()).await?;
        }
    }
    record_progress(work, live, volume, BlockIndex(volume.size_bytes() / BLOCK_SIZE_BYTES)).await
}

/// Flushes the volume, and records that all blocks below a limit are restored.
async fn record_progress(
    work: &InPlaceWork,
    live: &LiveTask,
    volume: &Arc<Volume>,
    below: BlockIndex,
) -> Result<(), ServiceError> {
    let volume = Arc::clone(volume);
    blocking(move || volume.flush()).await?;
    live.detail(|detail| detail.restored_below = below.0);
    work.tasks.store_progress(live).await;
    Ok(())
}

/// Writes the differing blocks of an extent, so that no other block becomes dirty.
fn write_differing(volume: &Volume, chunk: Extent, wanted: &[u8]) -> Result<(), VolumeError> {
    let mut found = vec![0; wanted.len()];
    volume.read(chunk.offset_bytes(), &mut found)?;
    let differs = |at: usize| found[at * BLOCK..][..BLOCK] != wanted[at * BLOCK..][..BLOCK];
    let is_zero = |at: usize| wanted[at * BLOCK..][..BLOCK].iter().all(|&byte| byte == 0);
    let blocks = chunk.len_blocks as usize;
    let mut at = 0;
    while at < blocks {
        if !differs(at) {
            at += 1;
            continue;
        }
        let zero = is_zero(at);
        let end = (at..blocks).find(|&next| !differs(next) || is_zero(next) != zero).unwrap_or(blocks);
        let offset_bytes = chunk.offset_bytes() + (at * BLOCK) as u64;
        match zero {
            true => volume.write_zeroes(offset_bytes, ((end - at) * BLOCK) as u64, false, false)?,
            false => volume.write(offset_bytes, &wanted[at * BLOCK..end * BLOCK], false)?,
        }
        at = end;
    }
    Ok(())
}
