//! Snapshot of a backup: that of an earlier run, or a new one; for all volumes of a group at once.

use crate::{
    backup::work::BackupWork, error::ServiceError, snapshots::freeze::Wanted, tasks::LiveTask,
    volumes::registry::VolumeEntry,
};
use blockd_api::{ApiError, ErrorCode, SnapshotName, quiesce::QuiesceReport, snapshots::SnapshotGroup};
use blockd_catalog::{BackupTask, Barrier, SnapshotRow, SnapshotState, TaskRow};
use blockd_extent::{SnapshotId, VolumeId};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};
use uuid::Uuid;

/// Maximum number of remembered failed freezes. Tasks of older ones ended long ago.
const MAX_FAILED: usize = 256;

/// Failed freezes, each shared by several backups.
#[derive(Debug, Default)]
pub(crate) struct FailedFreezes(VecDeque<(String, ApiError, Option<QuiesceReport>)>);

impl FailedFreezes {
    fn note(&mut self, point: String, why: ApiError, report: Option<QuiesceReport>) {
        if self.0.len() >= MAX_FAILED {
            self.0.pop_front();
        }
        self.0.push_back((point, why, report));
    }

    fn find(&self, point: &str) -> Option<(ApiError, Option<QuiesceReport>)> {
        let found = self.0.iter().find(|(failed, ..)| *failed == point);
        found.map(|(_, why, report)| (why.clone(), report.clone()))
    }
}

/// Returns the snapshot to back up: that of an earlier run, or a new one.
pub(crate) async fn snapshot_for_backup(
    work: &BackupWork,
    live: &LiveTask,
    entry: &Arc<VolumeEntry>,
    id: SnapshotId,
    asked: &BackupTask,
) -> Result<SnapshotRow, ServiceError> {
    let volume = entry.id;
    let point = match &asked.barrier {
        Some(barrier) => format!("barrier {}", barrier.id),
        None => format!("snapshot {id}"),
    };
    // Other freezes do not wait for the hooks of this one.
    let _guard = work.freezing.take([point.clone()]).await;
    if work.host.stopping.is_cancelled() {
        // A concurrent freeze may be incomplete; the next start handles it.
        return Err(ServiceError::Stopping);
    }
    let rows = work.db.run(move |tx| SnapshotRow::all(tx, Some(volume))).await?;
    if let Some(row) = rows.into_iter().find(|row| row.id == id && row.state == SnapshotState::Ready) {
        return Ok(row);
    }
    let failed_before = work.failed.lock().find(&point);
    if let Some((why, report)) = failed_before {
        live.detail(|detail| detail.quiesce = report);
        return Err(ServiceError::Refused(why));
    }
    let wanted = match &asked.barrier {
        Some(barrier) => group_freeze(work, barrier, asked).await,
        None => volume_freeze(live, entry, id, asked),
    };
    let mut report = None;
    let rows = match wanted {
        Ok(wanted) => work.snapshots.freeze_with_report(wanted, &mut report).await,
        Err(error) => Err(error),
    };
    match rows {
        Ok(rows) => {
            if let Some(barrier) = &asked.barrier {
                tracing::info!(group = %barrier.id, members = rows.len(), "consistency group frozen");
            }
            rows.into_iter()
                .find(|row| row.id == id)
                .ok_or_else(|| ServiceError::Internal("the barrier lacks the volume of the backup".into()))
        }
        Err(ServiceError::Stopping) => Err(ServiceError::Stopping),
        Err(error) => {
            live.detail(|detail| detail.quiesce.clone_from(&report));
            // The other members of a group must not be frozen without this one.
            let why = error.to_api();
            let code = match asked.barrier {
                Some(_) if report.is_none() => ErrorCode::VolumeFailed,
                _ => why.code,
            };
            work.failed.lock().note(point, ApiError { code, ..why }, report);
            Err(error)
        }
    }
}

/// Returns the name of the snapshot: the requested one if the snapshot is kept.
fn name_of(asked: &BackupTask, id: Uuid) -> Result<SnapshotName, ServiceError> {
    match &asked.keep_local {
        Some(name) => Ok(name.clone()),
        None => Ok(format!("backup-{id}").parse()?),
    }
}

/// Returns the freeze of one volume.
fn volume_freeze(
    live: &LiveTask,
    entry: &Arc<VolumeEntry>,
    id: SnapshotId,
    asked: &BackupTask,
) -> Result<Wanted, ServiceError> {
    Ok(Wanted {
        members: vec![(Arc::clone(entry), id)],
        name: name_of(asked, live.id)?,
        internal: asked.keep_local.is_none(),
        group: None,
        quiesce_rules: asked.quiesce_rules.clone(),
        schedule: asked.schedule,
    })
}

/// Returns the freeze of all volumes of a barrier.
async fn group_freeze(
    work: &BackupWork,
    barrier: &Barrier,
    asked: &BackupTask,
) -> Result<Wanted, ServiceError> {
    let of_barrier = |task: &TaskRow| {
        let other = task.spec.backup().and_then(|backup| backup.barrier.as_ref());
        other.is_some_and(|other| other.id == barrier.id)
    };
    let mut points: BTreeMap<VolumeId, SnapshotId> = BTreeMap::new();
    for task in work.tasks.unfinished_tasks().await?.iter().filter(|task| of_barrier(task)) {
        if let (Some(volume), Some(snapshot)) = (task.volume, task.snapshot) {
            points.insert(volume, snapshot);
        }
    }
    if points.len() as u64 != barrier.volumes {
        let message = format!(
            "freeze failed on group backup {}: {} of its {} volumes have no unfinished backup task",
            barrier.id,
            barrier.volumes.saturating_sub(points.len() as u64),
            barrier.volumes
        );
        return Err(ServiceError::refused(ErrorCode::VolumeFailed, message));
    }
    let mut members = Vec::with_capacity(points.len());
    for (volume, snapshot) in points {
        let entry = work.registry.by_id(volume).ok_or_else(|| {
            ServiceError::refused(
                ErrorCode::VolumeNotFound,
                format!("freeze failed on group backup {}: volume {volume} no longer exists", barrier.id),
            )
        })?;
        members.push((entry, snapshot));
    }
    // Order of the names in the environment of hook commands.
    members.sort_unstable_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    let group =
        SnapshotGroup { group_id: barrier.id, group: None, members: barrier.volumes, group_stall_micros: 0 };
    Ok(Wanted {
        members,
        name: name_of(asked, barrier.id)?,
        internal: asked.keep_local.is_none(),
        group: Some(group),
        quiesce_rules: asked.quiesce_rules.clone(),
        schedule: asked.schedule,
    })
}
