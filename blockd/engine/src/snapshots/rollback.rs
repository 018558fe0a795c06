//! Snapshot comparison and rollback.
//!
//! A rollback fences clients, takes a snapshot of the current content unless it is discarded, and writes the
//! changed blocks to a new layer. It is one commit of the volume; the database only gets the snapshot of the
//! previous content.

use crate::{
    error::{ServiceError, blocking},
    ids::random_id,
    snapshots::{Snapshots, freeze::FreezeRequest, to_api},
    volumes::registry::{Tags, VolumeEntry},
};
use blockd_api::{
    ErrorCode, List, SnapshotName, SnapshotRef, VolumeRef,
    snapshots::{DiffExtent, DiffKind, DiffSnapshots, RestoreSnapshot, SnapshotDiff, SnapshotRestored},
};
use blockd_catalog::{ActivityRow, SnapshotRow, SnapshotState};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, Extent, SnapshotId};
use blockd_volume::{RolledBack, Volume};
use jiff::Timestamp;
use std::sync::Arc;

/// Maximum number of extents in a reply: some megabytes of JSON.
const MAX_EXTENTS: usize = 1 << 15;

impl Snapshots {
    /// Returns the extents that changed between two snapshots, or since one.
    ///
    /// # Errors
    /// The volume is unusable, a snapshot does not exist, or the second is not newer.
    pub async fn diff_snapshots(
        &self,
        wanted: &VolumeRef,
        query: &DiffSnapshots,
    ) -> Result<SnapshotDiff, ServiceError> {
        let entry = self.registry.find(wanted)?;
        let from = self.snapshot_of(&entry, &query.from).await?;
        let to = match &query.to {
            Some(to) => Some(self.snapshot_of(&entry, to).await?),
            None => None,
        };
        if let Some(to) = &to
            && to.epoch <= from.epoch
        {
            let message =
                format!("snapshot {} is not older than {}: name the older one first", from.name, to.name);
            return Err(ServiceError::refused(ErrorCode::InvalidRequest, message));
        }
        let volume = entry.volume()?;
        let (from_id, to_id) = (from.id, to.as_ref().map(|to| to.id));
        let start = BlockIndex(query.offset_bytes.unwrap_or(0) / BLOCK_SIZE_BYTES);
        let mut diff = SnapshotDiff {
            volume_name: entry.name.clone(),
            from_snapshot_name: from.name,
            to_snapshot_name: to.map(|to| to.name),
            from_size_bytes: 0,
            to_size_bytes: 0,
            data_bytes: 0,
            zero_bytes: 0,
            list: List::default(),
        };
        blocking(move || {
            let found = volume.difference(from_id, to_id)?;
            diff.from_size_bytes = found.from_size_bytes;
            diff.to_size_bytes = found.to_size_bytes;
            diff.data_bytes = found.data_bytes();
            diff.zero_bytes = found.zero_bytes();
            let end = Extent::whole(found.to_size_bytes).end();
            if start < end {
                let mut runs = found.extents_in(Extent::between(start, end));
                diff.list.items.extend(runs.by_ref().take(MAX_EXTENTS).map(|run| DiffExtent {
                    offset_bytes: run.extent.offset_bytes(),
                    len_bytes: run.extent.len_bytes(),
                    kind: if run.has_data { DiffKind::Data } else { DiffKind::Zero },
                }));
                diff.list.next = runs.next().map(|run| run.extent.offset_bytes());
            }
            Ok::<_, blockd_volume::VolumeError>(diff)
        })
        .await
    }

    /// Returns the row of a user snapshot of this volume.
    pub async fn snapshot_of(
        &self,
        entry: &VolumeEntry,
        wanted: &SnapshotRef,
    ) -> Result<SnapshotRow, ServiceError> {
        let is_of_volume = match wanted {
            SnapshotRef::Named { volume, .. } => self.registry.find(volume)?.id == entry.id,
            SnapshotRef::Id(_) => true,
        };
        let id = entry.id;
        let rows = self.db.run(move |tx| SnapshotRow::all(tx, Some(id))).await?;
        let is_wanted = |row: &SnapshotRow| match wanted {
            SnapshotRef::Id(id) => row.id == *id,
            SnapshotRef::Named { name, .. } => row.name == *name,
        };
        let is_there = |row: &SnapshotRow| !row.internal && row.state == SnapshotState::Ready;
        let found = rows.into_iter().find(|row| is_of_volume && is_there(row) && is_wanted(row));
        found.ok_or_else(|| {
            let message = format!("volume {} has no snapshot {wanted}", entry.name);
            ServiceError::refused(ErrorCode::SnapshotNotFound, message)
        })
    }

    /// Rolls a volume back to a snapshot.
    ///
    /// # Errors
    /// The volume is in use or unusable, the snapshot does not exist, or the disk is full or fails: the
    /// volume is unchanged.
    pub async fn restore_snapshot(
        &self,
        wanted: &VolumeRef,
        request: &RestoreSnapshot,
    ) -> Result<SnapshotRestored, ServiceError> {
        let admission = self.admission.lock().await;
        let entry = self.registry.find(wanted)?;
        let snapshot = self.snapshot_of(&entry, &request.snapshot).await?;
        self.attachments.check_delete(entry.id)?;
        self.readers.release(entry.id);
        let (volume, mark) = entry.begin_rollback()?;
        drop(admission);
        let kept = match request.discard {
            true => None,
            false => {
                let id = SnapshotId::from_u64(random_id()?);
                let wanted = FreezeRequest {
                    members: vec![(Arc::clone(&entry), id)],
                    name: SnapshotName::before_restore(Timestamp::now()),
                    internal: false,
                    group: None,
                    quiesce_rules: Vec::new(),
                    schedule: None,
                };
                Some(self.freeze_alone(wanted).await?)
            }
        };
        let id = snapshot.id;
        let done = self.roll_back(&entry, volume, id).await;
        drop(mark);
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                self.forget_kept(&entry, kept.as_ref()).await;
                return Err(error);
            }
        };
        // The change of the content is no anomaly.
        let volume = entry.id;
        if let Err(error) = self.db.run(move |tx| ActivityRow::mark_replaced(tx, volume)).await {
            tracing::warn!(%volume, %error, "marking the content profiles of the volume failed");
        }
        let admission = self.admission.lock().await;
        if let Err(error) = entry.change_tags(&self.db, &admission, Tags::without_origin).await {
            // The rollback is done.
            tracing::warn!(volume = %entry.id, %error, "removing the label of the former content failed");
        }
        drop(admission);
        let restored = SnapshotRestored {
            volume_name: entry.name.clone(),
            snapshot_name: snapshot.name,
            kept_snapshot: kept.map(|row| to_api(&row, &entry, None, &self.host.data_dir.nbd_socket())),
            changed_bytes: done.changed_blocks * BLOCK_SIZE_BYTES,
            copied_bytes: done.copied_blocks * BLOCK_SIZE_BYTES,
        };
        tracing::info!(volume = %entry.id, snapshot = %id, changed_bytes = restored.changed_bytes, "volume rolled back");
        Ok(restored)
    }

    /// Rolls a fenced volume back to one of its snapshots.
    ///
    /// # Errors
    /// There is no such snapshot, the disk is full or fails, or the daemon stops: the volume is unchanged.
    pub(crate) async fn roll_back(
        &self,
        entry: &Arc<VolumeEntry>,
        volume: Arc<Volume>,
        id: SnapshotId,
    ) -> Result<RolledBack, ServiceError> {
        let stopping = self.host.stopping.clone();
        let done = blocking(move || volume.roll_back(id, &|| !stopping.is_cancelled())).await;
        // A merge may have yielded to the rollback.
        self.merger.wake();
        if done.is_ok() {
            self.drop_unneeded_intervals(entry).await;
        }
        done
    }

    /// Deletes the snapshot of the previous content, which the volume still has.
    async fn forget_kept(&self, entry: &Arc<VolumeEntry>, kept: Option<&SnapshotRow>) {
        let Some(kept) = kept else { return };
        if let Err(error) = self.delete_snapshot(&SnapshotRef::Id(kept.id), false).await {
            tracing::warn!(volume = %entry.id, snapshot = %kept.id, %error, "deleting the snapshot of a failed rollback failed");
        }
    }
}
