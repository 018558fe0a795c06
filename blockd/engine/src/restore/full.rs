//! Restore: a new volume is filled in a temporary directory, which is renamed when it is complete.
//!
//! The volume's row is `restoring` until then. An interrupted run resumes with the missing blocks; after the
//! rename only the rows are left.

use crate::{
    error::{ServiceError, blocking, spawned},
    fingerprints,
    host::Host,
    repositories::Repositories,
    restore::checkpoint::{self, Checkpoint, RestoredBlocks, Writer},
    tasks::{LiveTask, Tasks, clean_files, findings, secrets},
    volumes::{
        merger::Wake,
        registry::{EntryState, Registry, VolumeEntry},
    },
};
use blockd_api::ErrorCode;
use blockd_catalog::{Db, DbError, DbManifestCache, TaskRow, VolumeRow, VolumeState};
use blockd_cloud::{
    BlockWriter, Manifest, ManifestCache, ManifestKey, Progress, RestoreOptions, RestoreRequest, restore,
};
use blockd_extent::VolumeId;
use blockd_volume::{OpenOptions, RestoreTarget, Volume, VolumeError};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use uuid::Uuid;

/// Work of restores into new volumes.
pub struct RestoreWork {
    pub(crate) db: Arc<Db>,
    pub(crate) host: Arc<Host>,
    pub(crate) merger: Arc<Wake>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
    pub(crate) tasks: Arc<Tasks>,
}

fn volume_id(row: &TaskRow) -> Result<VolumeId, ServiceError> {
    row.volume.ok_or_else(|| ServiceError::Internal("a restore without a volume".into()))
}

pub(crate) async fn run(
    work: &Arc<RestoreWork>,
    live: &Arc<LiveTask>,
    skip_damaged: bool,
) -> Result<TaskRow, ServiceError> {
    let row = live.view();
    let id = volume_id(&row)?;
    let entry = work.registry.by_id(id).ok_or_else(|| {
        ServiceError::refused(ErrorCode::VolumeNotFound, format!("volume {id} no longer exists"))
    })?;
    let dir = work.host.data_dir.volume_dir(id);
    work.host.failpoints.reached("restore accepted")?;
    let volume = match restored_volume(dir.clone()).await? {
        Some(volume) => volume,
        None => fill(work, live, &entry, dir, skip_damaged).await?,
    };
    work.host.failpoints.reached("restore written")?;
    let done = work.tasks.finish(live, move |tx| VolumeRow::set_state(tx, id, VolumeState::Up)).await?;
    work.host.failpoints.reached("restore committed")?;
    entry.set_state(EntryState::Up(volume));
    if let Err(error) = clean_files(&work.tasks, done.id).await {
        tracing::warn!(%error, "cleanup of the restore failed; the next start retries");
    }
    work.merger.wake();
    Ok(done)
}

/// Opens the volume if an earlier run had renamed it.
async fn restored_volume(dir: PathBuf) -> Result<Option<Arc<Volume>>, ServiceError> {
    blocking(move || -> Result<_, VolumeError> {
        if !dir.exists() {
            return Ok(None);
        }
        Volume::open(&dir, &OpenOptions::default()).map(Some)
    })
    .await
}

async fn fill(
    work: &RestoreWork,
    live: &LiveTask,
    entry: &VolumeEntry,
    dir: PathBuf,
    skip_damaged: bool,
) -> Result<Arc<Volume>, ServiceError> {
    let row = live.view();
    let _slot = secrets::slot(&work.tasks, live).await?;
    let (repository, requests) = work.repositories.task_repository(row.credential).await?;
    let repository = live.limited(&repository, &requests);
    let progress = Arc::new(Progress::new(requests));
    live.begin(Arc::clone(&progress));
    work.tasks.store_progress(live).await;

    let manifest_cache = DbManifestCache::new(Arc::clone(&work.db), row.credential);
    let key = row.cloudsnap.manifest_key();
    let cached = blocking(move || Ok::<_, ServiceError>(manifest_cache.load(&key))).await?;
    let manifest: Manifest = match cached {
        Some(manifest) => manifest,
        None => repository.manifest(&row.cloudsnap).await?,
    };
    let (id, task, file) = (entry.id, live.id, checkpoint::path(&work.host.data_dir.task_dir(live.id)));
    let wanted = manifest.clone();
    let every_bytes = work.host.settings.intervals.record_every_bytes;
    let (writer, restored) =
        blocking(move || resume_or_create(&dir, id, task, (&file, every_bytes), &wanted)).await?;
    if !restored.settled.is_empty() {
        tracing::info!(
            restored_blocks = restored.settled.len_blocks(),
            "restore resumed from its checkpoint"
        );
    }
    let options = RestoreOptions {
        download_concurrency: work.host.settings.download_concurrency,
        cpu_threads: work.host.settings.cpu_threads,
    };
    let request = RestoreRequest { skip: restored.settled, skip_damaged };
    let (blocks, cancel) = (Arc::clone(&writer) as Arc<dyn BlockWriter>, live.cancel.clone());
    let result = spawned(async move {
        restore(&repository, &manifest, blocks, &request, &options, progress, &cancel).await
    })
    .await;
    let failed = result.is_err();
    let volume = blocking(move || -> Result<Option<Arc<Volume>>, VolumeError> {
        if failed && let Err(error) = writer.checkpoint() {
            // A resumed restore fetches these blocks again.
            tracing::warn!(%error, "writing the checkpoint of the restore failed");
        }
        match writer.take() {
            // The end of the task decides about the incomplete volume.
            Some(_) if failed => Ok(None),
            Some(target) => target.finish().map(Some),
            None => Ok(None),
        }
    })
    .await;
    let summary = result?;
    tracing::debug!(blocks = summary.blocks, requests = summary.frame_requests, "blocks restored");
    if !summary.damage.is_empty() {
        let id = row.cloudsnap.to_string();
        fingerprints::forget_objects(&work.host.data_dir, summary.damage.objects());
        live.detail(|detail| detail.findings = Some(findings::of_restore(&id, &summary.damage)));
    }
    volume?.ok_or_else(|| ServiceError::Internal("the restored volume is gone".into()))
}

/// Opens the incomplete volume of an earlier run with its restored blocks, or creates an empty one.
fn resume_or_create(
    dir: &Path,
    id: VolumeId,
    task: Uuid,
    (file, every_bytes): (&Path, u64),
    manifest: &Manifest,
) -> Result<(Arc<Writer>, RestoredBlocks), ServiceError> {
    let failed = |action| move |source| ServiceError::File { action, path: file.to_owned(), source };
    if let Some(Checkpoint { restored, fingerprint, end }) =
        checkpoint::load(file, task, manifest).map_err(failed("read"))?
        && let Some(target) =
            RestoreTarget::reopen(dir, id, manifest.size_bytes, restored.written.clone(), fingerprint)?
    {
        let writer = Writer::append(target, file, end, every_bytes).map_err(failed("open"))?;
        return Ok((Arc::new(writer), restored));
    }
    checkpoint::forget(file).map_err(failed("remove"))?;
    let target = RestoreTarget::create(dir, id, manifest.size_bytes)?;
    let writer = Writer::begin(target, file, task, manifest, every_bytes).map_err(failed("write"))?;
    Ok((Arc::new(writer), RestoredBlocks::default()))
}

pub(crate) fn mark_failed(tx: &rusqlite::Transaction<'_>, row: &TaskRow) -> Result<(), DbError> {
    match row.volume {
        Some(volume) => VolumeRow::set_state(tx, volume, VolumeState::Deleting),
        None => Ok(()),
    }
}

/// Removes the files of an incomplete volume, but not its rows: a resumed restore starts again.
pub(crate) async fn remove_files(work: &RestoreWork, row: &TaskRow) -> Result<(), ServiceError> {
    let (dir, file) = (
        work.host.data_dir.volume_dir(volume_id(row)?),
        checkpoint::path(&work.host.data_dir.task_dir(row.id)),
    );
    blocking(move || {
        // The checkpoint goes first: it must not outlive its blocks.
        let forgotten = checkpoint::forget(&file);
        forgotten.map_err(|source| ServiceError::File { action: "remove", path: file, source })?;
        Ok::<_, ServiceError>(RestoreTarget::discard(&dir)?)
    })
    .await
}

/// Removes an incomplete volume.
pub(crate) async fn clean_up(work: &RestoreWork, row: &TaskRow) -> Result<(), ServiceError> {
    let id = volume_id(row)?;
    let dir = work.host.data_dir.volume_dir(id);
    blocking(move || remove_incomplete(&dir)).await?;
    work.db.run(move |tx| VolumeRow::remove(tx, id)).await?;
    if let Some(entry) = work.registry.by_id(id) {
        work.registry.remove(&entry);
    }
    clean_files(&work.tasks, row.id).await
}

/// Removes the files of a complete or incomplete volume.
pub fn remove_incomplete(dir: &Path) -> Result<(), VolumeError> {
    Volume::delete_files(dir)?;
    RestoreTarget::discard(dir)
}
