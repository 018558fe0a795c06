//! Taking, listing and deleting local snapshots, and what backups do with their own.

use crate::{
    core::{Core, random_id},
    db::{Chain, DbError, SnapshotRow, SnapshotState, TaskRow},
    error::{ServiceError, blocking},
    registry::{EntryState, VolumeEntry},
};
use blockd_api::{
    Deleted, ErrorCode, SnapshotName, SnapshotRef, VolumeRef,
    snapshots::{self as api, CreateSnapshot, ListSnapshots, SnapshotList},
};
use blockd_extent::{Epoch, SnapshotId};
use blockd_volume::{Volume, VolumeErrorKind};
use jiff::Timestamp;
use std::sync::Arc;

impl Core {
    /// Freezes a point of a volume.
    ///
    /// # Errors
    /// The volume cannot be used, it has a snapshot of that name, or the freeze failed.
    pub async fn create_snapshot(
        &self,
        wanted: &VolumeRef,
        request: CreateSnapshot,
    ) -> Result<api::Snapshot, ServiceError> {
        let entry = self.registry.find(wanted)?;
        let id = SnapshotId::from_u64(random_id()?);
        let name = request.name.unwrap_or_else(|| SnapshotName::from_time(Timestamp::now()));
        let row = self.freeze(&entry, id, name, false).await?;
        self.forget_intervals(&entry).await;
        tracing::info!(volume = %entry.id, snapshot = %id, name = %row.name, stall_micros = row.freeze_stall_micros, "snapshot taken");
        Ok(to_api(&row, &entry))
    }

    /// Row, then freeze, then row: a crash between leaves a row that says what to undo.
    pub(crate) async fn freeze(
        &self,
        entry: &Arc<VolumeEntry>,
        id: SnapshotId,
        name: SnapshotName,
        internal: bool,
    ) -> Result<SnapshotRow, ServiceError> {
        let volume = entry.volume()?;
        let mut row = SnapshotRow {
            id,
            volume: entry.id,
            name,
            created: Timestamp::now(),
            state: SnapshotState::Creating,
            internal,
            epoch: Epoch(0),
            dirty_bytes: 0,
            freeze_stall_micros: 0,
        };
        let new = row.clone();
        self.db.run(move |tx| new.insert(tx)).await.map_err(|error: DbError| {
            if error.is_conflict() {
                let message =
                    format!("volume {} has a snapshot {} already: choose another name", entry.name, row.name);
                ServiceError::refused(ErrorCode::SnapshotExists, message)
            } else {
                error.into()
            }
        })?;
        // The time stands for the instant of the freeze, so it is taken beside it.
        let frozen_volume = Arc::clone(&volume);
        let frozen =
            blocking(move || frozen_volume.freeze(id).map(|frozen| (frozen, Timestamp::now()))).await;
        match frozen {
            Ok((frozen, now)) => {
                row.state = SnapshotState::Ready;
                row.created = now;
                row.epoch = frozen.epoch;
                row.dirty_bytes = frozen.dirty_blocks * blockd_extent::BLOCK_SIZE_BYTES;
                row.freeze_stall_micros = micros_up(frozen.stall);
                let ready = row.clone();
                if let Err(error) = self.db.run(move |tx| ready.update(tx)).await {
                    // Nobody was told of it. What cannot be undone now is undone by the next start.
                    if let Err(undo) = self.drop_snapshot(volume, id).await {
                        tracing::warn!(volume = %entry.id, snapshot = %id, error = %undo, "a snapshot that could not be recorded is left until the next start");
                    }
                    return Err(error.into());
                }
                show(entry, &row).await;
                Ok(row)
            }
            Err(error) => {
                self.db.run(move |tx| SnapshotRow::remove(tx, id)).await?;
                Err(error)
            }
        }
    }

    /// The snapshots that people made; of one volume, if it is named.
    ///
    /// # Errors
    /// There is no such volume.
    pub async fn list_snapshots(&self, query: &ListSnapshots) -> Result<SnapshotList, ServiceError> {
        let volume = query.volume.as_ref().map(|wanted| self.registry.find(wanted)).transpose()?;
        let volume = volume.map(|entry| entry.id);
        let rows = self.db.run(move |tx| SnapshotRow::all(tx, volume)).await?;
        let mut snapshots = Vec::new();
        for entry in self.registry.all() {
            let shown = |row: &&SnapshotRow| {
                row.volume == entry.id && !row.internal && row.state != SnapshotState::Creating
            };
            snapshots.extend(rows.iter().filter(shown).map(|row| to_api(row, &entry)));
        }
        Ok(SnapshotList { snapshots })
    }

    /// Deletes a snapshot; its layer is merged in the background.
    ///
    /// # Errors
    /// There is none, or somebody reads it.
    pub async fn delete_snapshot(&self, wanted: &SnapshotRef) -> Result<Deleted, ServiceError> {
        let volume = match wanted {
            SnapshotRef::Named { volume, .. } => Some(self.registry.find(volume)?.id),
            SnapshotRef::Id(_) => None,
        };
        let rows = self.db.run(move |tx| SnapshotRow::all(tx, volume)).await?;
        let is_wanted = |row: &SnapshotRow| match wanted {
            SnapshotRef::Id(id) => row.id == *id,
            SnapshotRef::Named { name, .. } => row.name == *name,
        };
        let row = rows.into_iter().find(|row| !row.internal && is_wanted(row)).ok_or_else(|| {
            ServiceError::refused(ErrorCode::SnapshotNotFound, format!("there is no snapshot {wanted}"))
        })?;
        let entry = self.registry.find(&VolumeRef::Id(row.volume))?;
        let volume = entry.volume()?;
        let id = row.id;
        self.db.run(move |tx| SnapshotRow::set_state(tx, id, SnapshotState::Deleting)).await?;
        entry.hide_snapshot(id);
        if let Err(error) = self.drop_snapshot(volume, id).await {
            let busy = matches!(&error, ServiceError::Volume(error) if error.kind() == VolumeErrorKind::Busy);
            if busy {
                self.db.run(move |tx| SnapshotRow::set_state(tx, id, SnapshotState::Ready)).await?;
                show(&entry, &row).await;
            }
            return Err(error);
        }
        self.forget_intervals(&entry).await;
        tracing::info!(volume = %row.volume, snapshot = %id, name = %row.name, "snapshot deleted");
        Ok(Deleted { id: id.to_string(), name: row.name.to_string() })
    }

    /// Takes a snapshot whose row is `deleting` off its volume, then removes the row.
    pub(crate) async fn drop_snapshot(
        &self,
        volume: Arc<Volume>,
        id: SnapshotId,
    ) -> Result<(), ServiceError> {
        let gone = blocking(move || match volume.delete_snapshot(id) {
            Err(error) if error.kind() == VolumeErrorKind::NotFound => Ok(()),
            other => other,
        });
        gone.await?;
        self.db.run(move |tx| SnapshotRow::remove(tx, id)).await?;
        self.merger.wake();
        Ok(())
    }

    /// Lets a volume forget the block sets that no next incremental needs. A failure costs only space.
    pub(crate) async fn forget_intervals(&self, entry: &Arc<VolumeEntry>) {
        let Ok(volume) = entry.volume() else { return };
        let id = entry.id;
        let running = self.tasks.running();
        let needed = self.db.run(move |tx| -> Result<Option<Epoch>, DbError> {
            // A backup under way will be the base of the next one.
            let tasks = running.into_iter().chain(TaskRow::unfinished(tx)?);
            let running: Vec<SnapshotId> =
                tasks.filter(|task| task.volume == Some(id)).filter_map(|task| task.snapshot).collect();
            let snapshots = SnapshotRow::all(tx, Some(id))?.into_iter();
            let underway = snapshots.filter(|row| running.contains(&row.id)).map(|row| row.epoch);
            Ok(Chain::all(tx, Some(id))?.into_iter().map(|chain| chain.epoch).chain(underway).min())
        });
        let forgotten = match needed.await {
            Ok(needed) => blocking(move || volume.forget_intervals(needed)).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = forgotten {
            tracing::warn!(volume = %id, %error, "block sets that are no longer needed are kept");
        }
    }
}

/// Lets clients see a snapshot. The volume is asked for it, which may have to wait for a freeze and its disk.
async fn show(entry: &Arc<VolumeEntry>, row: &SnapshotRow) {
    let (entry, row) = (Arc::clone(entry), row.clone());
    let (volume, snapshot) = (entry.id, row.id);
    let shown = blocking(move || -> Result<(), ServiceError> {
        entry.show_snapshot(&row);
        Ok(())
    });
    if let Err(error) = shown.await {
        tracing::error!(%volume, %snapshot, %error, "clients do not see the snapshot until the next start");
    }
}

fn to_api(row: &SnapshotRow, entry: &VolumeEntry) -> api::Snapshot {
    let state = match (row.state, entry.view().state) {
        (SnapshotState::Deleting, _) => api::SnapshotState::Deleting,
        (_, EntryState::Failed(_)) => api::SnapshotState::Failed,
        _ => api::SnapshotState::Ready,
    };
    api::Snapshot {
        id: row.id,
        volume: entry.name.clone(),
        volume_id: entry.id,
        name: row.name.clone(),
        created: row.created,
        epoch: row.epoch,
        freeze_stall_micros: row.freeze_stall_micros,
        dirty_bytes: row.dirty_bytes,
        state,
    }
}

/// Whole microseconds, rounded up: a stall that was measured is never shown as none.
fn micros_up(stall: std::time::Duration) -> u64 {
    u64::try_from(stall.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX)
}
