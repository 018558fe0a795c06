//! A restore: a new volume is filled beside its final place and moved there when it is whole.
//!
//! The volume's row is `restoring` until then. A run that was cut off starts over; one that was cut off after the
//! move only has its rows to set.

use super::{LiveTask, backup::to_io, clean_files};
use crate::{
    cloud,
    core::Core,
    db::{Catalog, DbError, TaskRow, VolumeRow, VolumeState},
    error::{ServiceError, blocking},
    registry::{EntryState, VolumeEntry},
};
use blockd_api::ErrorCode;
use blockd_cloud::{BlockWriter, Manifest, ManifestCache, Progress, RestoreOptions};
use blockd_extent::{BlockIndex, VolumeId};
use blockd_volume::{OpenOptions, RestoreTarget, Volume, VolumeError};
use parking_lot::RwLock;
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A volume being filled, as the cloud side writes it. Taken away when told, not when the last thread lets go.
struct Writer {
    target: RwLock<Option<RestoreTarget>>,
}

impl BlockWriter for Writer {
    fn write_blocks(&self, start: BlockIndex, data: &[u8]) -> io::Result<()> {
        let target = self.target.read();
        let target = target.as_ref().ok_or_else(|| io::Error::other("the restore is over"))?;
        target.write_blocks(start, data).map_err(to_io)
    }
}

fn volume_id(row: &TaskRow) -> Result<VolumeId, ServiceError> {
    row.volume.ok_or_else(|| ServiceError::Internal("a restore without a volume".into()))
}

pub(super) async fn run(core: &Arc<Core>, live: &Arc<LiveTask>) -> Result<TaskRow, ServiceError> {
    let row = live.view();
    let id = volume_id(&row)?;
    let entry = core.registry.by_id(id).ok_or_else(|| {
        ServiceError::refused(ErrorCode::VolumeNotFound, format!("there is no volume {id} any more"))
    })?;
    let dir = core.volume_dir(id);
    core.reached("restore accepted")?;
    let volume = match already_whole(dir.clone()).await? {
        Some(volume) => volume,
        None => fill(core, live, &entry, dir).await?,
    };
    core.reached("restore in place")?;
    let done = core.finish(live, move |tx| VolumeRow::set_state(tx, id, VolumeState::Up)).await?;
    core.reached("restore committed")?;
    entry.set_state(EntryState::Up(volume));
    if let Err(error) = clean_files(core, done.id).await {
        tracing::warn!(%error, "what the restore left behind is removed at the next start");
    }
    core.merger.wake();
    Ok(done)
}

/// The volume, if an earlier run had moved it to its place.
async fn already_whole(dir: PathBuf) -> Result<Option<Arc<Volume>>, ServiceError> {
    blocking(move || -> Result<_, VolumeError> {
        if !dir.exists() {
            return Ok(None);
        }
        Volume::open(&dir, &OpenOptions::default()).map(Some)
    })
    .await
}

async fn fill(
    core: &Core,
    live: &LiveTask,
    entry: &VolumeEntry,
    dir: PathBuf,
) -> Result<Arc<Volume>, ServiceError> {
    let row = live.view();
    let _slot = core.tasks.slot(&core.stopping).await?;
    let (repository, requests) = core.task_repository(row.credential).await?;
    let progress = Arc::new(Progress::new(requests));
    live.begin(Arc::clone(&progress));
    core.store_progress(live).await;

    let catalog = Catalog::new(Arc::clone(&core.db), row.credential);
    let key = row.cloudsnap.manifest_key();
    let cached = blocking(move || Ok::<_, ServiceError>(catalog.load(&key))).await?;
    let manifest: Manifest = match cached {
        Some(manifest) => manifest,
        None => repository.manifest(&row.cloudsnap).await?,
    };
    let (id, size_bytes) = (entry.id, manifest.size_bytes);
    let target = blocking(move || RestoreTarget::create(&dir, id, size_bytes)).await?;
    let writer = Arc::new(Writer { target: RwLock::new(Some(target)) });
    let options = RestoreOptions {
        download_concurrency: core.config.download_concurrency,
        cpu_threads: core.config.cpu_threads,
    };
    let result = cloud::restore(
        repository,
        manifest,
        Arc::clone(&writer) as Arc<dyn BlockWriter>,
        options,
        progress,
        core.stopping.clone(),
    )
    .await;
    let failed = result.is_err();
    let volume = blocking(move || -> Result<Option<Arc<Volume>>, VolumeError> {
        // Waits for writes that still run, and keeps later ones out.
        match writer.target.write().take() {
            Some(target) if failed => target.abandon().map(|()| None),
            Some(target) => target.finish().map(Some),
            None => Ok(None),
        }
    })
    .await;
    let summary = result?;
    tracing::debug!(?summary, "restored");
    volume?.ok_or_else(|| ServiceError::Internal("the restored volume is gone".into()))
}

pub(super) fn mark_failed(tx: &rusqlite::Transaction<'_>, row: &TaskRow) -> Result<(), DbError> {
    match row.volume {
        Some(volume) => VolumeRow::set_state(tx, volume, VolumeState::Deleting),
        None => Ok(()),
    }
}

/// Removes the half volume.
pub(super) async fn clean_up(core: &Core, row: &TaskRow) -> Result<(), ServiceError> {
    let id = volume_id(row)?;
    let dir = core.volume_dir(id);
    blocking(move || remove_half(&dir)).await?;
    core.db.run(move |tx| VolumeRow::remove(tx, id)).await?;
    if let Some(entry) = core.registry.by_id(id) {
        core.registry.remove(&entry);
    }
    clean_files(core, row.id).await
}

/// Removes a volume's files, whole or half restored.
pub(crate) fn remove_half(dir: &Path) -> Result<(), VolumeError> {
    Volume::delete_files(dir)?;
    RestoreTarget::discard(dir)
}
