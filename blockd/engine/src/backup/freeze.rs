//! Snapshot of a backup: that of an earlier run, or a new one; for all volumes of a group at once.

use crate::{
    backup::work::BackupWork, error::ServiceError, snapshots::freeze::FreezeRequest, tasks::LiveTask,
    volumes::registry::VolumeEntry,
};
use blockd_api::{ApiError, ErrorCode, SnapshotName, snapshots::SnapshotGroup};
use blockd_catalog::{BackupTask, GroupFreeze, SnapshotRow, SnapshotState, TaskRow};
use blockd_extent::{SnapshotId, VolumeId};
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};
use uuid::Uuid;

/// Returns the key of a freeze, which the backups of a group or of several locations share.
fn freeze_key(group: Option<&GroupFreeze>, id: SnapshotId) -> String {
    match group {
        Some(group) => format!("group {}", group.id),
        None => format!("snapshot {id}"),
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
    let key = freeze_key(asked.group_freeze.as_ref(), id);
    // Other freezes do not wait for the hooks of this one.
    let _guard = work.freezing.take([key.clone()]).await;
    if work.host.stopping.is_cancelled() {
        // A concurrent freeze may be incomplete; the next start handles it.
        return Err(ServiceError::Stopping);
    }
    let rows = work.db.run(move |tx| SnapshotRow::all(tx, Some(volume))).await?;
    if let Some(row) = rows.into_iter().find(|row| row.id == id && row.state == SnapshotState::Ready) {
        return Ok(row);
    }
    if asked.existing {
        let message = format!("snapshot {id} of volume {} no longer exists", entry.name);
        return Err(ServiceError::refused(ErrorCode::SnapshotNotFound, message));
    }
    let failed_before = work.failed.lock().find(&key);
    // A resumed backup of one volume tries again. One of a group cannot: its members are frozen together.
    let tries_again = asked.group_freeze.is_none() && live.view().detail.resumed > 0;
    if let Some((why, report)) = failed_before.filter(|_| !tries_again) {
        live.detail(|detail| detail.quiesce = report);
        return Err(ServiceError::Refused(why));
    }
    let wanted = match &asked.group_freeze {
        Some(group) => group_freeze(work, group, asked).await,
        None => volume_freeze(live, entry, id, asked),
    };
    let mut report = None;
    let rows = match wanted {
        Ok(wanted) => work.snapshots.freeze_with_report(wanted, &mut report).await,
        Err(error) => Err(error),
    };
    match rows {
        Ok(rows) => {
            if let Some(group) = &asked.group_freeze {
                tracing::info!(group = %group.id, members = rows.len(), "consistency group frozen");
            }
            rows.into_iter().find(|row| row.id == id).ok_or_else(|| {
                ServiceError::Internal("the group freeze lacks the volume of the backup".into())
            })
        }
        Err(ServiceError::Stopping) => Err(ServiceError::Stopping),
        Err(error) => {
            live.detail(|detail| detail.quiesce.clone_from(&report));
            // The other members of a group must not be frozen without this one.
            let why = error.to_api();
            let code = match asked.group_freeze {
                Some(_) if report.is_none() => ErrorCode::VolumeFailed,
                _ => why.code,
            };
            let ended = ended_failures(work).await;
            work.failed.lock().note(key, ApiError { code, ..why }, report, &ended);
            Err(error)
        }
    }
}

/// Returns the keys of the failed freezes whose backups have ended; none if the database fails.
async fn ended_failures(work: &BackupWork) -> Vec<String> {
    // Before the tasks: those of a later failure may be missing among them.
    let mut keys: Vec<_> = work.failed.lock().0.keys().cloned().collect();
    let Ok(unfinished) = work.tasks.unfinished_tasks().await else { return Vec::new() };
    let Ok(resumable) = work.tasks.resumable_tasks().await else { return Vec::new() };
    let key_of = |task: &TaskRow| Some(freeze_key(task.spec.backup()?.group_freeze.as_ref(), task.snapshot?));
    let needed: HashSet<_> = unfinished.iter().chain(&resumable).filter_map(key_of).collect();
    keys.retain(|key| !needed.contains(key));
    keys
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
) -> Result<FreezeRequest, ServiceError> {
    Ok(FreezeRequest {
        members: vec![(Arc::clone(entry), id)],
        name: name_of(asked, live.id)?,
        internal: asked.keep_local.is_none(),
        group: None,
        quiesce_rules: asked.quiesce_rules.clone(),
        schedule: asked.schedule,
    })
}

/// Returns the freeze of all volumes of a group.
async fn group_freeze(
    work: &BackupWork,
    group: &GroupFreeze,
    asked: &BackupTask,
) -> Result<FreezeRequest, ServiceError> {
    let is_of_group = |task: &TaskRow| {
        let other = task.spec.backup().and_then(|backup| backup.group_freeze.as_ref());
        other.is_some_and(|other| other.id == group.id)
    };
    let mut points: BTreeMap<VolumeId, SnapshotId> = BTreeMap::new();
    for task in work.tasks.unfinished_tasks().await?.iter().filter(|task| is_of_group(task)) {
        if let (Some(volume), Some(snapshot)) = (task.volume, task.snapshot) {
            points.insert(volume, snapshot);
        }
    }
    if points.len() as u64 != group.volume_count {
        let message = format!(
            "freeze failed on group backup {}: {} of its {} volumes have no unfinished backup task",
            group.id,
            group.volume_count.saturating_sub(points.len() as u64),
            group.volume_count
        );
        return Err(ServiceError::refused(ErrorCode::VolumeFailed, message));
    }
    let mut members = Vec::with_capacity(points.len());
    for (volume, snapshot) in points {
        let entry = work.registry.by_id(volume).ok_or_else(|| {
            ServiceError::refused(
                ErrorCode::VolumeNotFound,
                format!("freeze failed on group backup {}: volume {volume} no longer exists", group.id),
            )
        })?;
        members.push((entry, snapshot));
    }
    // Order of the names in the environment of hook commands.
    members.sort_unstable_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    let group = SnapshotGroup {
        group_id: group.id,
        group: group.name.clone(),
        members: group.volume_count,
        group_stall_micros: 0,
    };
    Ok(FreezeRequest {
        members,
        name: name_of(asked, group.group_id)?,
        internal: asked.keep_local.is_none(),
        group: Some(group),
        quiesce_rules: asked.quiesce_rules.clone(),
        schedule: asked.schedule,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::work::FailedFreezes;

    #[test]
    fn failed_freezes_are_kept_until_their_backups_end() {
        let group = GroupFreeze { id: Uuid::from_u128(1), name: None, volume_count: 2 };
        let keys: Vec<_> =
            (0..1000).map(|id| freeze_key((id == 0).then_some(&group), SnapshotId::from_u64(id))).collect();
        let mut failed = FailedFreezes::default();
        for key in &keys {
            failed.note(key.clone(), ApiError::new(ErrorCode::VolumeFailed, key), None, &[]);
        }
        assert!(keys.iter().all(|key| failed.find(key).is_some_and(|(why, _)| why.message == *key)));
        let last = ApiError::new(ErrorCode::VolumeFailed, "last");
        failed.note(keys[999].clone(), last.clone(), None, &keys[2..]);
        let left: Vec<_> = keys.iter().filter(|key| failed.find(key).is_some()).collect();
        assert_eq!(left, [&keys[0], &keys[1], &keys[999]]);
        assert_eq!(failed.find(&keys[999]), Some((last, None)));
    }
}
