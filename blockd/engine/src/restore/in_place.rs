//! A volume goes back to a cloud snapshot: what differs is fetched and written, and nothing else.
//!
//! Clients are kept out until it is over, across restarts too. First the volume is frozen: that is what it
//! was before, and the point that its block sets are compared at. Then, in ascending order, each block that
//! may differ becomes what the cloud snapshot has. Doing a part again writes the same, so a run that was cut
//! off goes on from the last flush.
//!
//! While the store is gone it waits. One that was stopped or failed after it began to write has left a
//! mixture: clients stay out until it is resumed and done, or given up.
//!
//! Which blocks may differ follows from the block sets that this host keeps, if the cloud snapshot is the
//! last backup of the volume there or stands in that one's chain. Otherwise everything is compared.

use crate::{
    error::{ServiceError, blocking, spawned},
    host::Host,
    restore::lazy::{
        LazyVolumes,
        hydrate::{PAUSE, wait},
        source::{CHUNK_BLOCKS, SnapshotSource},
    },
    snapshots::{Snapshots, first, freeze::Wanted},
    tasks::{LiveTask, Tasks},
    volumes::{
        merger::Wake,
        registry::{Registry, RollbackMark, VolumeEntry},
    },
};
use blockd_api::{ErrorCode, SnapshotName, SnapshotRef, tasks::TaskStage};
use blockd_catalog::{Chain, Db, InPlaceRestore, SnapshotRow, SnapshotState, TaskRow};
use blockd_cloud::{Manifest, changed_blocks};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent, SnapshotId, VolumeId};
use blockd_volume::{Volume, VolumeError, VolumeErrorKind};
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{collections::HashMap, future::Future, sync::Arc};

const BLOCK: usize = BLOCK_SIZE_BYTES as usize;
/// Bytes between two flushes with recorded progress.
const NOTE_EVERY_BYTES: u64 = 64 << 20;

/// Work of in-place restores.
pub struct InPlaceWork {
    pub(crate) lazy: Arc<LazyVolumes>,
    pub(crate) db: Arc<Db>,
    pub(crate) going_back: Mutex<HashMap<VolumeId, RollbackMark>>,
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
            let _ = self.keep_clients_out(task);
        }
        Ok(())
    }

    /// Fences the volume of an in-place restore, unless it is fenced; does nothing for other tasks.
    ///
    /// # Errors
    /// The volume is gone, not open or in use.
    pub fn keep_clients_out(&self, task: &TaskRow) -> Result<(), ServiceError> {
        let Some(id) = task.volume.filter(|_| task.spec.is_in_place()) else { return Ok(()) };
        if self.going_back.lock().contains_key(&id) {
            return Ok(());
        }
        let gone = || ServiceError::refused(ErrorCode::VolumeNotFound, "the volume is gone");
        let (_, mark) = self.registry.by_id(id).ok_or_else(gone)?.begin_rollback()?;
        mark.set_reason(fence_reason(task));
        self.going_back.lock().insert(id, mark);
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
            "was restored in part only from cloud snapshot {}: resume it, `blockctl cloudsnap resume --name {}`",
            row.cloudsnap, row.id
        ),
        _ => format!("is being restored in place from cloud snapshot {} by task {}", row.cloudsnap, row.id),
    }
}

/// Updates the message to fenced clients.
fn warn_fenced_clients(work: &InPlaceWork, row: &TaskRow) {
    let going_back = work.going_back.lock();
    if let Some(mark) = row.volume.and_then(|id| going_back.get(&id)) {
        mark.set_reason(fence_reason(row));
    }
}

/// Removes the fence.
pub fn release(work: &InPlaceWork, row: &TaskRow) {
    if let Some(volume) = row.volume {
        work.going_back.lock().remove(&volume);
    }
}

pub(crate) async fn run(
    work: &Arc<InPlaceWork>,
    live: &Arc<LiveTask>,
    asked: InPlaceRestore,
) -> Result<TaskRow, ServiceError> {
    let row = live.view();
    warn_fenced_clients(work, &row);
    let result = run_to_the_end(work, live, asked).await;
    if result.is_err() {
        // The state may stay.
        warn_fenced_clients(work, &TaskRow { state: TaskStage::Failed, ..live.view() });
    }
    result
}

async fn run_to_the_end(
    work: &Arc<InPlaceWork>,
    live: &Arc<LiveTask>,
    asked: InPlaceRestore,
) -> Result<TaskRow, ServiceError> {
    let row = live.view();
    let gone = || ServiceError::refused(ErrorCode::VolumeNotFound, "the volume is gone");
    let entry = row.volume.and_then(|id| work.registry.by_id(id)).ok_or_else(gone)?;
    let volume = entry.volume()?;
    live.update(|row| {
        row.state = TaskStage::Active;
        row.detail.phase = "planning".into();
    });
    let before = {
        let _slot = work.tasks.slot(&live.cancel).await?;
        frozen(work, &entry, asked.before).await?
    };
    work.host.failpoints.reached("going back frozen")?;
    let mut pause = PAUSE;
    loop {
        let started_at = live.view().detail.bytes_processed;
        let error = match go_back(work, live, &volume, &before).await {
            Ok(()) => break,
            Err(error) => error,
        };
        if error.is_cancelled() {
            return Err(error);
        }
        // Store errors may be temporary: a directory is mounted again, credentials are renewed.
        if !error.may_change() {
            return Err(in_part(error, &live.view(), &entry, &before));
        }
        tracing::info!(volume = %entry.id, %error, "the restore waits");
        if live.view().detail.bytes_processed > started_at {
            pause = PAUSE;
        }
        live.detail(|detail| {
            detail.phase = "waiting for the store".into();
            detail.note = Some(error.to_api().message);
        });
        wait(live, &mut pause).await?;
    }
    work.host.failpoints.reached("going back done")?;
    live.detail(|detail| detail.phase = "done".into());
    let done = work.tasks.finish(live, |_| Ok(())).await?;
    release(work, &done);
    if asked.discard
        && let Err(error) = work.snapshots.delete_snapshot(&SnapshotRef::Id(asked.before), false).await
    {
        tracing::warn!(volume = %entry.id, snapshot = %asked.before, %error, "what the volume was before stays");
    }
    work.merger.wake();
    Ok(done)
}

/// Returns the error of a permanently failed restore, with its consequence for the volume.
fn in_part(error: ServiceError, row: &TaskRow, entry: &VolumeEntry, before: &SnapshotRow) -> ServiceError {
    if !has_started(row) {
        return error;
    }
    let message = format!(
        "volume {} went back in part only ({error}): it is a mixture of what it was and of the cloud snapshot, and clients \
         are kept out. Resume task {} to go on, or give it up (stop it with discard) and roll back to snapshot {}",
        entry.name, row.id, before.name
    );
    ServiceError::refused(error.to_api().code, message)
}

/// Runs remote work until the task is cancelled: a store may be silent for long.
async fn unless_stopped<T>(
    live: &LiveTask,
    work: impl Future<Output = Result<T, ServiceError>>,
) -> Result<T, ServiceError> {
    tokio::select! {
        biased;
        () = live.cancel.cancelled() => Err(ServiceError::Stopping),
        done = work => done,
    }
}

/// Resumes at the last flush.
async fn go_back(
    work: &Arc<InPlaceWork>,
    live: &LiveTask,
    volume: &Arc<Volume>,
    before: &SnapshotRow,
) -> Result<(), ServiceError> {
    // Other tasks may move data while this one waits for a store.
    let _slot = work.tasks.slot(&live.cancel).await?;
    let row = live.view();
    let done_below = row.detail.restored_below;
    let source =
        unless_stopped(live, SnapshotSource::open(&work.lazy, live, row.credential, row.cloudsnap)).await?;
    let (blocks, how) = unless_stopped(live, differing(work, volume, before, &source)).await?;
    let end = BlockIndex(volume.size_bytes() / BLOCK_SIZE_BYTES);
    let total_bytes = blocks.len_bytes();
    let left = blocks.slice(Extent::between(BlockIndex(done_below).min(end), end));
    tracing::info!(volume = %volume.id(), cloudsnap = %row.cloudsnap, how, bytes = total_bytes, "the volume goes back");
    live.detail(|detail| {
        detail.phase = "data".into();
        detail.note = Some(how.to_owned());
        detail.bytes_total = total_bytes;
        detail.bytes_processed = total_bytes - left.len_bytes();
    });
    work.tasks.store_progress(live).await;
    write_all(work, live, volume, &source, &left).await
}

/// Returns the snapshot of the previous content: that of an earlier run, or a new one.
async fn frozen(
    work: &InPlaceWork,
    entry: &Arc<VolumeEntry>,
    before: SnapshotId,
) -> Result<SnapshotRow, ServiceError> {
    let id = entry.id;
    let rows = work.db.run(move |tx| SnapshotRow::all(tx, Some(id))).await?;
    let is_it = |row: &SnapshotRow| row.id == before && row.state == SnapshotState::Ready;
    if let Some(row) = rows.into_iter().find(is_it) {
        return Ok(row);
    }
    let wanted = Wanted {
        members: vec![(Arc::clone(entry), before)],
        name: SnapshotName::before_restore(Timestamp::now()),
        internal: false,
        group: None,
        quiesce_rules: Vec::new(),
        schedule: None,
    };
    first(work.snapshots.freeze_together(wanted).await?)
}

/// Returns the blocks that may differ, and the source of this knowledge.
async fn differing(
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
        return Ok((blocks, "the blocks that differ are known from the block sets"));
    }
    let (frozen, until) = (Arc::clone(volume), before.epoch);
    let mut blocks = blocking(move || frozen.changes(None, until)).await?.data;
    blocks.union_with(&source.data_blocks().await?);
    Ok((blocks, "everything is compared, because the blocks that differ are not known here"))
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
        Err(error) if crate::repositories::opening::is_missing_or_damaged(&error) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let (repository, since) = (source.repository().clone(), source.id().snapshot);
    spawned(async move { changed_blocks(&repository, &tip, since).await }).await
}

async fn write_all(
    work: &InPlaceWork,
    live: &LiveTask,
    volume: &Arc<Volume>,
    source: &SnapshotSource,
    blocks: &BlockSet,
) -> Result<(), ServiceError> {
    let downloaded_before = live.view().detail.bytes_downloaded;
    let mut unnoted_bytes = 0;
    for run in blocks.extents() {
        let mut at = run.start;
        while at < run.end() {
            let piece = Extent::between(at, BlockIndex(at.0 + CHUNK_BLOCKS).min(run.end()));
            at = piece.end();
            let data = unless_stopped(live, source.read_blocks(piece)).await?;
            // A write is always awaited: the fence must not end during a write.
            let target = Arc::clone(volume);
            blocking(move || write_piece(&target, piece, &data)).await?;
            unnoted_bytes += piece.len_bytes();
            let requests = source.requests();
            live.detail(|detail| {
                detail.bytes_processed += piece.len_bytes();
                detail.bytes_downloaded = downloaded_before + requests.bytes_down;
                detail.requests = requests;
            });
            if unnoted_bytes >= NOTE_EVERY_BYTES {
                unnoted_bytes = 0;
                note(work, live, volume, at).await?;
            }
        }
    }
    note(work, live, volume, BlockIndex(volume.size_bytes() / BLOCK_SIZE_BYTES)).await
}

/// Records that all blocks below a limit are durable.
async fn note(
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
fn write_piece(volume: &Volume, piece: Extent, wanted: &[u8]) -> Result<(), VolumeError> {
    let mut found = vec![0; wanted.len()];
    volume.read(piece.offset_bytes(), &mut found)?;
    let differs = |at: usize| found[at * BLOCK..][..BLOCK] != wanted[at * BLOCK..][..BLOCK];
    let is_zero = |at: usize| wanted[at * BLOCK..][..BLOCK].iter().all(|&byte| byte == 0);
    let blocks = piece.len_blocks as usize;
    let mut at = 0;
    while at < blocks {
        if !differs(at) {
            at += 1;
            continue;
        }
        let zero = is_zero(at);
        let end = (at..blocks).find(|&next| !differs(next) || is_zero(next) != zero).unwrap_or(blocks);
        let offset_bytes = piece.offset_bytes() + (at * BLOCK) as u64;
        match zero {
            true => volume.write_zeroes(offset_bytes, ((end - at) * BLOCK) as u64, false, false)?,
            false => volume.write(offset_bytes, &wanted[at * BLOCK..end * BLOCK], false)?,
        }
        at = end;
    }
    Ok(())
}
