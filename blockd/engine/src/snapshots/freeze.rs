//! Freezes of one or several volumes, with the quiesce actions of their rules.

use crate::{
    error::{ServiceError, blocking},
    quiesce::events_of_failures,
    snapshots::{Snapshots, micros_up},
    volumes::registry::VolumeEntry,
};
use blockd_api::{
    ErrorCode, SnapshotName,
    quiesce::{QuiesceKind, QuiesceReport},
    snapshots::SnapshotGroup,
};
use blockd_catalog::{DbError, SnapshotRow, SnapshotState};
use blockd_extent::{Epoch, SnapshotId, VolumeId};
use blockd_quiesce::{FreezeError, Members, QuiesceOperation, QuiescePart, Returned};
use blockd_volume::{GroupFrozen, Volume};
use jiff::Timestamp;
use std::sync::Arc;
use uuid::Uuid;

/// Request of snapshots of one point in time.
pub struct FreezeRequest {
    /// Volumes with the ids of their snapshots.
    pub members: Vec<(Arc<VolumeEntry>, SnapshotId)>,
    /// Name of each snapshot.
    pub name: SnapshotName,
    /// Internal snapshots of a backup.
    pub internal: bool,
    /// Group snapshot, if any.
    pub group: Option<SnapshotGroup>,
    /// Quiesce parts.
    pub quiesce_rules: Vec<QuiescePart>,
    /// Requesting schedule.
    pub schedule: Option<Uuid>,
}

impl FreezeRequest {
    fn row(&self, entry: &VolumeEntry, id: SnapshotId) -> SnapshotRow {
        SnapshotRow {
            id,
            volume: entry.id,
            name: self.name.clone(),
            created: Timestamp::now(),
            state: SnapshotState::Creating,
            internal: self.internal,
            epoch: Epoch(0),
            dirty_bytes: 0,
            freeze_stall_micros: 0,
            taken_with: self.group.clone(),
            quiesce: None,
            pinned: false,
        }
    }

    /// Returns the environment of all hooks. `QuiescePart` adds phase and rule, a post-command gets the
    /// outcome; the help of `rule create` lists all variables.
    fn env(&self) -> Vec<(String, String)> {
        let volumes: Vec<_> = self.members.iter().map(|(entry, _)| entry.name.as_str()).collect();
        let ids: Vec<_> = self.members.iter().map(|(entry, _)| entry.id.to_string()).collect();
        let mut env = vec![
            ("BLOCKD_VOLUMES".to_owned(), volumes.join(" ")),
            ("BLOCKD_VOLUME_IDS".to_owned(), ids.join(" ")),
            ("BLOCKD_SNAPSHOT".to_owned(), self.name.to_string()),
        ];
        if let Some(group) = &self.group {
            env.push(("BLOCKD_GROUP_ID".to_owned(), group.group_id.to_string()));
            if let Some(name) = &group.group {
                env.push(("BLOCKD_GROUP".to_owned(), name.to_string()));
            }
        }
        if let Some(schedule) = self.schedule {
            env.push(("BLOCKD_SCHEDULE".to_owned(), schedule.to_string()));
        }
        env
    }

    /// Stores the results of the freeze in the rows.
    fn note(
        &self,
        rows: &mut [SnapshotRow],
        frozen: &GroupFrozen,
        now: Timestamp,
        report: Option<&QuiesceReport>,
    ) {
        for (row, member) in rows.iter_mut().zip(&frozen.members) {
            row.state = SnapshotState::Ready;
            row.created = now;
            row.epoch = member.epoch;
            row.dirty_bytes = member.dirty_blocks * blockd_extent::BLOCK_SIZE_BYTES;
            row.freeze_stall_micros = micros_up(member.stall);
            row.taken_with = self
                .group
                .clone()
                .map(|group| SnapshotGroup { group_stall_micros: micros_up(frozen.stall), ..group });
            row.quiesce = report.cloned();
        }
    }

    /// Converts the error of a freeze; that of a group names the failed volume.
    fn with_volume_name(&self, failed: FreezeError) -> ServiceError {
        let (volume, source) = match failed {
            FreezeError::Quiesce(error) => return error.into(),
            FreezeError::Volume { volume, source } => (volume, source),
            other => return ServiceError::Internal(other.to_string()),
        };
        let found = self.members.iter().find(|(entry, _)| entry.id == volume);
        let (Some((entry, _)), Some(_)) = (found, &self.group) else { return source.into() };
        let mut error = ServiceError::from(source).to_api();
        error.message = format!("group freeze failed on volume {}: {}", entry.name, error.message);
        ServiceError::Refused(error)
    }
}

impl Snapshots {
    /// Takes an internal snapshot of one volume, without quiescing.
    pub async fn freeze(
        &self,
        entry: &Arc<VolumeEntry>,
        id: SnapshotId,
        name: SnapshotName,
    ) -> Result<SnapshotRow, ServiceError> {
        let (members, quiesce_rules) = (vec![(Arc::clone(entry), id)], Vec::new());
        let wanted =
            FreezeRequest { members, name, internal: true, group: None, quiesce_rules, schedule: None };
        self.freeze_alone(wanted).await
    }

    /// Takes a snapshot of the only member.
    pub async fn freeze_alone(&self, wanted: FreezeRequest) -> Result<SnapshotRow, ServiceError> {
        assert!(wanted.members.len() == 1, "a snapshot of {} volumes", wanted.members.len());
        Ok(self.freeze_together(wanted).await?.swap_remove(0))
    }

    /// Takes snapshots of one point in time.
    ///
    /// Rows, then freeze, then rows, each time in one transaction: a crash in between leaves rows that tell
    /// what to undo, and after the last transaction all snapshots exist.
    pub async fn freeze_together(&self, wanted: FreezeRequest) -> Result<Vec<SnapshotRow>, ServiceError> {
        self.freeze_with_report(wanted, &mut None).await
    }

    /// [`freeze_together`](Self::freeze_together), with the quiesce report also after a failure.
    pub async fn freeze_with_report(
        &self,
        wanted: FreezeRequest,
        report: &mut Option<QuiesceReport>,
    ) -> Result<Vec<SnapshotRow>, ServiceError> {
        let mut volumes = Vec::with_capacity(wanted.members.len());
        for (entry, id) in &wanted.members {
            volumes.push((entry.volume()?, *id));
        }
        let ids = volumes.iter().map(|(volume, _)| volume.id());
        let _admitted = tokio::select! {
            biased;
            admitted = self.quiescing.admit(&wanted.quiesce_rules, ids) => admitted,
            () = self.host.stopping.cancelled() => return Err(ServiceError::Stopping),
        };
        if !wanted.quiesce_rules.is_empty() && self.host.stopping.is_cancelled() {
            // A stop resumes all quiesced applications: no more may be quiesced.
            return Err(ServiceError::Stopping);
        }
        let mut rows: Vec<_> = wanted.members.iter().map(|(entry, id)| wanted.row(entry, *id)).collect();
        let found = self.quiescer.filesystems_for(&wanted.quiesce_rules, &volumes);
        let (to_freeze, not_frozen) =
            found.inspect_err(|_| self.quiescing.failures.note_one(QuiesceKind::FreezeFs))?;
        // Only admins give commands in requests, but all roles see the results of tasks.
        let tells_all = !wanted.internal && wanted.quiesce_rules.iter().all(|part| part.rule.is_none());
        let mut operation =
            QuiesceOperation::new(wanted.quiesce_rules.clone(), to_freeze, wanted.env(), tells_all);
        operation.stop_with(&self.host.stopping, &self.quiescing);
        operation.add_steps(not_frozen);
        self.undo_leftovers(&volumes).await;
        self.insert_snapshots(&wanted, rows.clone()).await?;
        let (frozen, operation) = self.freeze_quiesced(&volumes, operation).await?;
        let taken = match frozen {
            Ok((frozen, now)) => {
                wanted.note(&mut rows, &frozen, now, operation.report().as_ref());
                self.host.failpoints.reached("group frozen")?;
                let ready = rows.clone();
                let noted = self.db.run(move |tx| ready.iter().try_for_each(|row| row.update(tx))).await;
                noted.map_err(ServiceError::from)
            }
            Err(error) => Err(wanted.with_volume_name(error)),
        };
        let is_taken = taken.is_ok();
        let operation = blocking(move || {
            let mut operation = operation;
            operation.resume(is_taken);
            Ok::<_, ServiceError>(operation)
        });
        *report = operation.await.ok().and_then(|operation| operation.report());
        self.report_failures(&wanted, report.as_ref(), is_taken).await;
        if let Err(error) = taken {
            // No client knows of the snapshots yet.
            self.undo_snapshots(volumes).await;
            return Err(error);
        }
        if report.is_some() {
            rows.iter_mut().for_each(|row| row.quiesce.clone_from(report));
            let ready = rows.clone();
            // The snapshots exist, regardless of their rows.
            if let Err(error) = self.db.run(move |tx| ready.iter().try_for_each(|row| row.update(tx))).await {
                tracing::warn!(%error, "storing the quiesce report of a snapshot failed");
            }
        }
        for ((entry, _), row) in wanted.members.iter().zip(&rows) {
            show(entry, row).await;
        }
        Ok(rows)
    }

    /// Reports failures around a freeze.
    pub(crate) async fn report_failures(
        &self,
        wanted: &FreezeRequest,
        report: Option<&QuiesceReport>,
        is_taken: bool,
    ) {
        let Some(report) = report.filter(|report| report.failures().next().is_some()) else { return };
        self.quiescing.failures.note(report.steps.iter());
        let volumes: Vec<_> = wanted.members.iter().map(|(entry, _)| entry.name.clone()).collect();
        let events = events_of_failures(report.steps.iter(), &volumes, is_taken);
        let stored = self.db.run(move |tx| events.iter().try_for_each(|event| event.insert(tx))).await;
        if let Err(error) = stored {
            tracing::warn!(%error, "storing the events of quiesce failures failed");
        }
        self.events.wake();
    }

    /// Freezes volumes on a blocking thread, with quiescing.
    pub(crate) async fn freeze_quiesced(
        &self,
        volumes: &Members,
        mut operation: QuiesceOperation,
    ) -> Result<(Result<(GroupFrozen, Timestamp), FreezeError>, QuiesceOperation), ServiceError> {
        let (data_dir, volumes) = (self.host.data_dir.clone(), volumes.clone());
        let work = blocking(move || {
            let frozen = operation.freeze(&data_dir, &volumes);
            Ok::<_, ServiceError>((frozen, Returned::new(operation)))
        });
        let (frozen, operation) = work.await?;
        let operation = operation
            .take()
            .ok_or_else(|| ServiceError::Internal("the quiesce operation was lost".to_owned()))?;
        Ok((frozen, operation))
    }

    /// Adds the rows of snapshots that are about to be taken: all of them, or none.
    pub(crate) async fn insert_snapshots(
        &self,
        wanted: &FreezeRequest,
        rows: Vec<SnapshotRow>,
    ) -> Result<(), ServiceError> {
        let names: Vec<_> = wanted.members.iter().map(|(entry, _)| entry.name.clone()).collect();
        let inserted = self.db.run(move |tx| -> Result<(), ServiceError> {
            for (row, volume) in rows.iter().zip(names) {
                row.insert(tx).map_err(|error: DbError| {
                    if error.is_conflict() {
                        let message = format!(
                            "volume {volume} has a snapshot {} already: choose another name",
                            row.name
                        );
                        return ServiceError::refused(ErrorCode::SnapshotExists, message);
                    }
                    error.into()
                })?;
            }
            Ok(())
        });
        inserted.await
    }

    /// Undoes a failed freeze. If the undo fails, as on a full disk, it is retried before the next snapshot
    /// and by the next start.
    pub(crate) async fn undo_snapshots(&self, volumes: Members) {
        for (volume, id) in volumes {
            let volume_id = volume.id();
            if let Err(error) = self.drop_snapshot(volume, id).await {
                tracing::warn!(volume = %volume_id, snapshot = %id, %error, "removing a failed snapshot failed; it is retried before the next one");
                self.to_undo.lock().push((volume_id, id));
            }
        }
    }

    /// Retries the undo of failed snapshots of these volumes, whose rows still occupy names.
    pub(crate) async fn undo_leftovers(&self, volumes: &[(Arc<Volume>, SnapshotId)]) {
        let is_meant =
            |&mut (id, _): &mut (VolumeId, SnapshotId)| volumes.iter().any(|(volume, _)| volume.id() == id);
        let leftovers: Vec<_> = self.to_undo.lock().extract_if(.., is_meant).collect();
        for (volume, id) in leftovers {
            // A deleted volume takes its snapshots along; one that cannot be opened leaves them to the next
            // start.
            let Some(volume) = self.registry.by_id(volume).and_then(|entry| entry.volume().ok()) else {
                continue;
            };
            self.undo_snapshots(vec![(volume, id)]).await;
        }
    }
}

/// Makes a snapshot visible to clients. This may wait for a freeze and the disk.
pub(crate) async fn show(entry: &Arc<VolumeEntry>, row: &SnapshotRow) {
    let (entry, row) = (Arc::clone(entry), row.clone());
    let (volume, snapshot) = (entry.id, row.id);
    let shown = blocking(move || -> Result<(), ServiceError> {
        entry.show_snapshot(&row);
        Ok(())
    });
    if let Err(error) = shown.await {
        tracing::error!(%volume, %snapshot, %error, "publishing the snapshot failed: clients see it after the next start");
    }
}
