//! Drills of the newest cloud snapshots: of a volume, or of all volumes of a group at one point in time.

use super::{Drills, drill_task, probe_step::volume_of};
use crate::{error::ServiceError, repositories::preflight::check_cancelled};
use blockd_api::{
    CredentialRef, ErrorCode, VolumeName, VolumeRef,
    cloudsnaps::{Cloudsnap, ListCloudsnaps},
    drills::{DrillOptions, GroupDrillStarted, MemberDrill, StartGroupDrill},
    snapshots::CreateGroupSnapshot,
    tasks::{TaskKind, TaskOwner},
};
use blockd_catalog::{self as catalog, CredentialRow, DbError, DrillTask, RunRow, TaskRow, TaskSpec};
use blockd_cloud::CloudSnapshotId;
use blockd_extent::VolumeId;
use jiff::Timestamp;
use rusqlite::Transaction;
use std::{collections::BTreeMap, sync::Arc};
use uuid::Uuid;

/// Volume with its name.
pub(crate) type DrilledVolume = (VolumeId, VolumeName);

/// Drills of a group before their start.
pub(super) struct GroupDrill {
    /// Task of each volume.
    pub(super) task: DrillTask,
    volumes: Vec<DrilledVolume>,
    /// Newest cloud snapshots of one point in time.
    pub(super) point: Vec<CloudSnapshotId>,
    pub(super) credential: CredentialRow,
}

impl Drills {
    /// Starts drills for the runs of a schedule at one location, all of one point in time, or none. Their
    /// tasks are recorded by `and` in the same transaction.
    ///
    /// # Errors
    /// No point in time is complete at the location; a run is no longer queued.
    pub(crate) async fn start_scheduled(
        self: &Arc<Self>,
        runs: &[RunRow],
        credential: Uuid,
        options: &DrillOptions,
        is_group: bool,
        and: impl Fn(&Transaction<'_>, &RunRow, &TaskRow) -> Result<(), DbError> + Send + 'static,
    ) -> Result<(), ServiceError> {
        let probe = self.checked_probe(&options.probe).await?;
        let credential = self.repositories.credential(Some(&CredentialRef::Id(credential))).await?;
        let named = |run: &RunRow| Some((run.volume?, run.volume_name.clone()?));
        let volumes: Vec<DrilledVolume> = runs.iter().filter_map(named).collect();
        let point = self.newest_point(&volumes, &credential).await?;
        let Some(schedule) = runs.first().map(|run| run.schedule) else { return Ok(()) };
        let task = drill_task(options.files, None, options.timeout_seconds, &format!("schedule {schedule}"))?;
        let task = DrillTask { group: is_group.then(Uuid::new_v4), probe, ..task };
        let rows = point
            .iter()
            .map(|id| self.row(id, &credential, task.clone(), TaskOwner::Schedule { schedule_id: schedule }));
        let (rows, runs) = (with_others(rows.collect()), runs.to_vec());
        let tasks = rows.clone();
        let _admission = self.admission.lock().await;
        let record = move |tx: &Transaction<'_>| {
            runs.iter().try_for_each(|run| {
                let mut tasks = tasks.iter();
                let task = tasks.find(|task| Some(task.cloudsnap.volume) == run.volume);
                task.map_or(Ok(()), |task| and(tx, run, task))
            })
        };
        self.runner.store_and_launch_all(rows, record).await
    }

    /// Starts drills of all volumes of a group, all of their newest point in time at a location.
    ///
    /// # Errors
    /// The group has no volume; a limit is out of range; no point in time is complete at the location.
    pub async fn start_group(
        self: &Arc<Self>,
        request: &StartGroupDrill,
    ) -> Result<GroupDrillStarted, ServiceError> {
        let GroupDrill { task, volumes, point, credential } = self.checked_group(request).await?;
        let group_id = Uuid::new_v4();
        let task = DrillTask { group: Some(group_id), ..task };
        let rows = point.iter().map(|id| self.row(id, &credential, task.clone(), crate::owner::current()));
        let rows = with_others(rows.collect());
        let started = volumes.into_iter().filter_map(|(volume, volume_name)| {
            let row = rows.iter().find(|row| row.cloudsnap.volume == volume)?;
            Some(MemberDrill { volume_name, cloud_snapshot_id: row.cloudsnap, task_id: row.id })
        });
        let list = started.collect::<Vec<_>>().into();
        let _admission = self.admission.lock().await;
        check_cancelled()?;
        self.runner.store_and_launch_all(rows, |_| Ok(())).await?;
        Ok(GroupDrillStarted { group_id, list })
    }

    /// Checks the request of the drills of a group.
    ///
    /// # Errors
    /// Those of [`start_group`](Self::start_group).
    pub(super) async fn checked_group(&self, request: &StartGroupDrill) -> Result<GroupDrill, ServiceError> {
        let object = format!("group {}", request.group);
        let task = drill_task(request.files, request.seed, request.timeout_seconds, &object)?;
        let (probe, accept_layout) = (self.checked_probe(&request.probe).await?, request.accept_layout);
        let task = DrillTask { probe, accept_layout, ..task };
        let group = Some(request.group.clone());
        let members = self.snapshots.members(&CreateGroupSnapshot { group, ..Default::default() })?;
        let volumes: Vec<_> = members.iter().map(|entry| (entry.id, entry.name.clone())).collect();
        let credential = self.repositories.credential(request.credential.as_ref()).await?;
        let point = self.newest_point(&volumes, &credential).await?;
        Ok(GroupDrill { task, volumes, point, credential })
    }

    /// Returns the newest cloud snapshots of volumes of this host at a location: one of each, and all of one
    /// point in time. A point of only one of several volumes is that of a backup of its own.
    ///
    /// # Errors
    /// There is none, or the newest one lacks a volume; the location cannot be listed.
    pub(crate) async fn newest_point(
        &self,
        volumes: &[DrilledVolume],
        credential: &CredentialRow,
    ) -> Result<Vec<CloudSnapshotId>, ServiceError> {
        let query = ListCloudsnaps {
            credential: Some(CredentialRef::Id(credential.uuid)),
            cluster_id: Some(self.host.cluster),
            volume: match volumes {
                [(only, _)] => Some(VolumeRef::Id(*only)),
                _ => None,
            },
            ..ListCloudsnaps::default()
        };
        let listed = self.cloud_snapshots.list_cloudsnaps(&query).await?.list.items;
        let (at, found) = newest_of(&listed, volumes).ok_or_else(|| {
            let (names, location) = (names(volumes.iter()), &credential.name);
            let message = format!("there is no cloud snapshot of {names} at {location} to drill");
            ServiceError::refused(ErrorCode::CloudsnapNotFound, message)
        })?;
        let missing: Vec<_> = volumes.iter().filter(|(id, _)| !found.contains_key(id)).collect();
        if missing.is_empty() {
            return Ok(found.into_values().collect());
        }
        let is_missing = |task: &TaskRow| {
            task.kind() == TaskKind::Backup && missing.iter().any(|(id, _)| task.volume == Some(*id))
        };
        let is_running = self.db.run(TaskRow::unfinished).await?.iter().any(is_missing);
        let names = names(missing.into_iter());
        let message = format!("the newest point of the group at {}, {at}, lacks {names}", credential.name);
        Err(match is_running {
            true => ServiceError::refused(ErrorCode::VolumeInUse, format!("{message}: its backup runs")),
            false => ServiceError::refused(
                ErrorCode::CloudsnapNotFound,
                format!("{message}: back up the group again"),
            ),
        })
    }
}

/// Gives each drill of a group the other ones.
fn with_others(mut rows: Vec<TaskRow>) -> Vec<TaskRow> {
    let member = |row: &TaskRow| catalog::MemberDrill { id: row.id, volume: volume_of(row) };
    let members: Vec<_> = rows.iter().map(member).collect();
    for row in &mut rows {
        if let TaskSpec::Drill(drill) = &mut row.spec {
            let others = members.iter().filter(|other| drill.group.is_some() && other.id != row.id);
            drill.others = others.cloned().collect();
        }
    }
    rows
}

fn names<'a>(volumes: impl Iterator<Item = &'a DrilledVolume>) -> String {
    volumes.map(|(_, name)| name.to_string()).collect::<Vec<_>>().join(", ")
}

/// Returns the newest point in time with at least two of these volumes, or with the only one.
fn newest_of(
    listed: &[Cloudsnap],
    volumes: &[DrilledVolume],
) -> Option<(Timestamp, BTreeMap<VolumeId, CloudSnapshotId>)> {
    let mut points: BTreeMap<Timestamp, BTreeMap<VolumeId, CloudSnapshotId>> = BTreeMap::new();
    for one in listed.iter().filter(|one| volumes.iter().any(|(id, _)| *id == one.volume_id)) {
        points.entry(one.created_at).or_default().insert(one.volume_id, one.cloud_snapshot_id);
    }
    points.into_iter().rfind(|(_, found)| found.len() >= volumes.len().min(2))
}
