//! Deletion of volumes.

use crate::{
    error::{ServiceError, blocking},
    schedules::selection::Candidate,
    volumes::{
        Volumes,
        registry::{EntryState, VolumeEntry},
    },
};
use blockd_api::{Deleted, ErrorCode, VolumeRef, first_names, tasks::ways_to_end};
use blockd_catalog::{LazyRow, RestoreTask, SnapshotRow, TaskRow, TaskSpec, VolumeRow, VolumeState};
use blockd_volume::Volume;
use std::sync::Arc;

impl Volumes {
    /// Deletes a volume with its snapshots; with pinned ones only by force. Its backups stay in the store.
    ///
    /// # Errors
    /// The volume is attached, clients are connected, a browse read is in flight, a task works on it, a
    /// stopped restore made it, or a snapshot is pinned.
    pub async fn delete_volume(
        self: &Arc<Self>,
        wanted: &VolumeRef,
        force: bool,
    ) -> Result<Deleted, ServiceError> {
        self.tasks.stop_background_scrub(self.registry.find(wanted)?.id).await;
        let admission = self.admission.lock().await;
        let entry = self.registry.find(wanted)?;
        // A hydration ends with its volume.
        self.tasks.refuse_if_working(entry.id, &entry.name, |task| !task.spec.is_hydration()).await?;
        self.refuse_stopped_restore(&entry).await?;
        self.attachments.check_delete(entry.id)?;
        if !force {
            self.refuse_pinned(&entry).await?;
        }
        self.readers.release(entry.id);
        let before = entry.begin_delete()?;
        // Resumable backups can never be resumed again.
        let volume_id = entry.id;
        let abandon = || self.runner.abandon_matching(move |task| task.volume == Some(volume_id));
        if let Err(error) = self.snapshots.with_space_reserve(abandon).await {
            tracing::warn!(volume = %entry.id, %error, "abandoning the resumable tasks of the volume failed");
        }
        drop(admission);
        let id = entry.id;
        let mark = || self.db.run(move |tx| VolumeRow::set_state(tx, id, VolumeState::Deleting));
        if let Err(error) = self.snapshots.with_space_reserve(mark).await {
            self.undo_delete(&entry, before, &error).await;
            return Err(error);
        }
        // The deletion is durable from here: the next start completes it.
        let lazy = self.db.run(LazyRow::all).await.unwrap_or_default();
        let lazy = lazy.into_iter().find(|row| row.volume == id);
        let volume = match before {
            EntryState::Up(volume) => Some(volume),
            _ => None,
        };
        if let Err(error) = self.remove_volume_files(&entry, volume).await {
            // A repeated request continues here.
            entry.set_state(EntryState::Failed(format!("its removal failed: {error}")));
            return Err(error);
        }
        self.registry.remove(&entry);
        self.lazy.drop_source(id);
        if let Some(lazy) = lazy {
            self.lazy.leases.release(lazy.credential, lazy.cloudsnap, id);
        }
        // Layers shared with other volumes may be mergeable now.
        self.merger.wake();
        tracing::info!(volume = %id, name = %entry.name, "volume deleted");
        let gone = Candidate { id, name: entry.name.clone(), tags: entry.tags() };
        let warnings = self.schedules.schedules_without(gone).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "listing the schedules without a volume failed");
            Vec::new()
        });
        let name = Some(entry.name.to_string());
        Ok(Deleted { volume_id: Some(id), name, warnings, ..Deleted::default() })
    }

    /// Refuses to delete the volume of a stopped or failed restore, which ends with its task.
    async fn refuse_stopped_restore(&self, entry: &VolumeEntry) -> Result<(), ServiceError> {
        let is_it = |task: &TaskRow| {
            task.volume == Some(entry.id)
                && matches!(task.spec, TaskSpec::Restore(RestoreTask::NewVolume { .. }))
        };
        let Some(task) = self.tasks.resumable_tasks().await?.into_iter().find(is_it) else { return Ok(()) };
        let (name, state, ways) = (&entry.name, task.state.as_str(), ways_to_end(task.id));
        let message = format!("volume {name} is restored in part, by the {state} task {}: {ways}", task.id);
        Err(ServiceError::refused(ErrorCode::VolumeInUse, message))
    }

    /// Refuses to delete a volume with pinned snapshots.
    pub(crate) async fn refuse_pinned(&self, entry: &VolumeEntry) -> Result<(), ServiceError> {
        let id = entry.id;
        let rows = self.db.run(move |tx| SnapshotRow::all(tx, Some(id))).await?;
        let pinned: Vec<_> = rows.iter().filter(|row| row.pinned).map(|row| row.name.as_str()).collect();
        if pinned.is_empty() {
            return Ok(());
        }
        let message = format!(
            "snapshots of volume {} are pinned ({}): unpin them first, or delete it by force",
            entry.name,
            first_names(pinned)
        );
        Err(ServiceError::refused(ErrorCode::SnapshotPinned, message))
    }

    /// Reopens a volume whose row may be in deletion: a failed commit may be durable nevertheless, and then
    /// the next start would delete later writes. If the row cannot be reset, the volume refuses writes.
    pub(crate) async fn undo_delete(&self, entry: &Arc<VolumeEntry>, before: EntryState, why: &ServiceError) {
        let id = entry.id;
        let volume = match &before {
            EntryState::Up(volume) => Some(Arc::clone(volume)),
            // Its next use may open it.
            EntryState::Closed(_) => None,
            // It accepts no writes anyway.
            _ => return entry.undo_delete(before),
        };
        let Err(error) = self.db.run(move |tx| VolumeRow::set_state(tx, id, VolumeState::Up)).await else {
            entry.undo_delete(before);
            self.merger.wake();
            return;
        };
        tracing::error!(volume = %id, name = %entry.name, %error, "reverting the deletion of the volume failed: it may be recorded");
        entry.set_state(EntryState::Failed(format!(
            "its deletion may have been recorded ({why}): delete it again, or restart blockd"
        )));
        let closed = blocking(move || volume.map_or(Ok(()), |volume| volume.close())).await;
        if let Err(error) = closed {
            tracing::warn!(volume = %id, name = %entry.name, %error, "closing the volume failed");
        }
    }

    pub(crate) async fn remove_volume_files(
        &self,
        entry: &Arc<VolumeEntry>,
        volume: Option<Arc<Volume>>,
    ) -> Result<(), ServiceError> {
        let (dir, id) = (self.host.data_dir.volume_dir(entry.id), entry.id);
        let entry = Arc::clone(entry);
        let removed = blocking(move || -> Result<(), blockd_volume::VolumeError> {
            let _layers = entry.layer_changes.lock();
            if let Some(volume) = volume
                && let Err(error) = volume.close()
            {
                // Its content is about to be removed: errors of its close do not matter.
                tracing::debug!(volume = %entry.id, %error, "closing the volume before its removal failed");
            }
            Volume::delete_files(&dir)
        });
        removed.await?;
        self.snapshots.with_space_reserve(|| self.db.run(move |tx| VolumeRow::remove(tx, id))).await
    }
}
