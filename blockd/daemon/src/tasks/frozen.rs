//! The point in time that a backup holds: the one that an earlier run took, or a new one; of all volumes of a group at once.

use super::LiveTask;
use crate::{
    core::Core,
    db::{Barrier, SnapshotRow, SnapshotState, TaskRow},
    error::ServiceError,
    registry::VolumeEntry,
    snapshots::Wanted,
};
use blockd_api::{ErrorCode, SnapshotName, quiesce::Quiesce, snapshots::SnapshotGroup};
use blockd_extent::{SnapshotId, VolumeId};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};
use uuid::Uuid;

/// Barriers that failed and are remembered. Tasks of one that is older than so many others have ended long ago.
const MAX_FAILED: usize = 256;

/// Barriers that did not come about. Behind the lock that backups freeze under.
#[derive(Debug, Default)]
pub(super) struct FailedBarriers(VecDeque<(Uuid, String)>);

impl FailedBarriers {
    fn note(&mut self, barrier: Uuid, reason: String) {
        if self.0.len() >= MAX_FAILED {
            self.0.pop_front();
        }
        self.0.push_back((barrier, reason));
    }

    fn reason(&self, barrier: Uuid) -> Option<&str> {
        self.0.iter().find(|(failed, _)| *failed == barrier).map(|(_, reason)| reason.as_str())
    }
}

/// The snapshot that is backed up: the one that an earlier run took, or a new one.
pub(super) async fn frozen(
    core: &Core,
    live: &LiveTask,
    entry: &Arc<VolumeEntry>,
    id: SnapshotId,
) -> Result<SnapshotRow, ServiceError> {
    let volume = entry.id;
    let mut failed = core.tasks.freezing.lock().await;
    if core.stopping.is_cancelled() {
        // What another one was about to freeze may be half done; the next start looks after it.
        return Err(ServiceError::Stopping);
    }
    let rows = core.db.run(move |tx| SnapshotRow::all(tx, Some(volume))).await?;
    if let Some(row) = rows.into_iter().find(|row| row.id == id && row.state == SnapshotState::Ready) {
        return Ok(row);
    }
    let Some(barrier) = live.view().detail.barrier else {
        let name: SnapshotName = format!("backup-{}", live.id).parse()?;
        return core.freeze(entry, id, name).await;
    };
    if let Some(reason) = failed.reason(barrier.id) {
        return Err(ServiceError::refused(ErrorCode::VolumeFailed, reason.to_owned()));
    }
    let rows = freeze_all(core, &barrier).await;
    match rows {
        Ok(rows) => rows.into_iter().find(|row| row.id == id).ok_or_else(|| {
            ServiceError::Internal("a barrier without the volume that it was asked for".into())
        }),
        Err(ServiceError::Stopping) => Err(ServiceError::Stopping),
        Err(error) => {
            // The others must not be frozen without this one.
            failed.note(barrier.id, error.to_api().message);
            Err(error)
        }
    }
}

/// Freezes all volumes of a barrier at one instant.
async fn freeze_all(core: &Core, barrier: &Barrier) -> Result<Vec<SnapshotRow>, ServiceError> {
    let of_barrier =
        |task: &TaskRow| task.detail.barrier.as_ref().is_some_and(|other| other.id == barrier.id);
    let mut points: BTreeMap<VolumeId, SnapshotId> = BTreeMap::new();
    for task in core.unfinished_tasks().await?.iter().filter(|task| of_barrier(task)) {
        if let (Some(volume), Some(snapshot)) = (task.volume, task.snapshot) {
            points.insert(volume, snapshot);
        }
    }
    if points.len() as u64 != barrier.volumes {
        let message = format!(
            "{} of the {} volumes of group backup {} are not backed up any more, so that there is no instant of all of them",
            barrier.volumes.saturating_sub(points.len() as u64),
            barrier.volumes,
            barrier.id
        );
        return Err(ServiceError::refused(ErrorCode::VolumeFailed, message));
    }
    let mut members = Vec::with_capacity(points.len());
    for (volume, snapshot) in points {
        let entry = core.registry.by_id(volume).ok_or_else(|| {
            ServiceError::refused(
                ErrorCode::VolumeNotFound,
                format!("no volume was frozen, because there is no volume {volume} any more"),
            )
        })?;
        members.push((entry, snapshot));
    }
    let group =
        SnapshotGroup { group_id: barrier.id, group: None, members: barrier.volumes, group_stall_micros: 0 };
    let wanted = Wanted {
        members,
        name: format!("backup-{}", barrier.id).parse()?,
        internal: true,
        group: Some(group),
        quiesce: Quiesce::default(),
    };
    let rows = core.freeze_together(wanted).await?;
    tracing::info!(group = %barrier.id, members = rows.len(), "volumes frozen at one instant");
    Ok(rows)
}
