//! Start of backups: of one volume or a consistency group, to one or several backup locations.

mod deduplication;
pub mod doubts;
mod estimate;
mod existing;
pub mod freeze;
pub mod plan;
pub mod planning;
pub mod shared_reader;
pub mod task;
pub mod work;

use crate::{
    costs::check_max_cost,
    error::ServiceError,
    host::{Admission, Host},
    ids::random_id,
    owner,
    quiesce::{Quiescer, rules::QuiesceRequest},
    repositories::Repositories,
    snapshots::Snapshots,
    tasks::{
        Tasks,
        requests::{check_limits, refuse_past},
        runner::Runner,
    },
    volumes::registry::{Registry, VolumeEntry},
};
use blockd_api::{
    ApiError, CredentialRef, ErrorCode, GroupName, List, SnapshotName, VolumeRef,
    cloudsnaps::{BackupOptions, GroupBackupStarted, MemberStarted, StartBackup, StartGroupBackup},
    snapshots::CreateGroupSnapshot,
    tasks::{TaskKind, TaskLimits, TaskOwner, TaskStarted, ways_to_end},
};
use blockd_catalog::{
    BackupTask, CredentialRow, DbError, GroupFreeze, SnapshotRow, SnapshotState, TaskRow, TaskSpec,
};
use blockd_cloud::CloudSnapshotId;
use blockd_extent::{Epoch, SnapshotId, VolumeId};
use blockd_quiesce::QuiescePart;
use jiff::Timestamp;
use std::{collections::HashMap, sync::Arc};
use uuid::Uuid;

/// Starts backups.
pub struct Backups {
    pub(crate) admission: Arc<Admission>,
    pub(crate) host: Arc<Host>,
    pub(crate) quiescer: Arc<Quiescer>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
    pub(crate) runner: Arc<Runner>,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) tasks: Arc<Tasks>,
}

/// Volume, its snapshot, and the credentials of its backup locations.
pub struct Member {
    pub(crate) volume: VolumeRef,
    pub(crate) credentials: Vec<CredentialRef>,
    /// Existing snapshot to back up; a new one is taken by default.
    pub(crate) snapshot: Option<SnapshotId>,
}

/// Options common to all members of a backup request.
#[derive(Clone, Default)]
pub struct BackupRequest {
    /// Options of each backup.
    pub options: BackupOptions,
    /// Id of the consistency group; `None` if members are frozen independently.
    pub together: Option<Uuid>,
    /// Group of volumes, if its members were selected by group.
    pub group: Option<GroupName>,
    /// Limits of each task.
    pub limits: TaskLimits,
    /// Quiesce actions around the freeze.
    pub hooks: QuiesceRequest,
    /// Requesting schedule.
    pub schedule: Option<Uuid>,
    /// Name under which the local snapshots are kept.
    pub keep_local: Option<SnapshotName>,
}

impl BackupRequest {
    /// Returns the owner of the tasks.
    fn owner(&self) -> TaskOwner {
        self.schedule.map_or_else(owner::current, |schedule_id| TaskOwner::Schedule { schedule_id })
    }
}

/// Returns the name of a local snapshot that stays after its backup: the backup's name, or the time.
fn local_name(is_kept: bool, options: &BackupOptions) -> Result<Option<SnapshotName>, ServiceError> {
    Ok(match (is_kept, &options.name) {
        (false, _) => None,
        (true, Some(name)) => Some(name.as_str().parse()?),
        (true, None) => Some(SnapshotName::from_time(Timestamp::now())),
    })
}

/// Refuses contradictory options.
fn check_options(options: &BackupOptions) -> Result<(), ServiceError> {
    if options.reupload && !options.full {
        let message = "only a full backup stores all data again: request a full one too";
        return Err(ServiceError::refused(ErrorCode::InvalidRequest, message));
    }
    Ok(())
}

/// New backup of a volume to its locations.
struct StartedBackup {
    volume: VolumeId,
    credentials: Vec<CredentialRow>,
    /// Existing snapshot; a new one is later than every other.
    snapshot: Option<SnapshotId>,
}

impl StartedBackup {
    /// Returns true for a kept backup of the same volume and location whose point in time is not later.
    /// `frozen` has the epochs of the snapshots that exist.
    fn replaces(&self, kept: &TaskRow, frozen: &HashMap<SnapshotId, Epoch>) -> bool {
        let is_same = kept.volume == Some(self.volume)
            && self.credentials.iter().any(|credential| credential.uuid == kept.credential);
        let epoch = |snapshot: SnapshotId| frozen.get(&snapshot);
        is_same
            && match self.snapshot {
                None => true,
                // A kept backup without a snapshot freezes the volume when it resumes.
                Some(new) => kept.snapshot.and_then(epoch).is_some_and(|kept| Some(kept) <= epoch(new)),
            }
    }
}

/// Attributes common to all tasks of one point in time.
struct PointInTime {
    group_freeze: Option<GroupFreeze>,
    quiesce_rules: Vec<QuiescePart>,
}

impl Backups {
    /// Starts backups of a volume to one or several backup locations: one point in time, one task per
    /// location.
    ///
    /// # Errors
    /// The volume or snapshot cannot be used, or one of these backups is already running.
    pub async fn start_backup(
        self: &Arc<Self>,
        request: &StartBackup,
    ) -> Result<List<TaskStarted>, ServiceError> {
        let credentials = self.resolve_credentials(&request.credentials).await?;
        let snapshot = self.existing_snapshot(request).await?;
        let member = Member { volume: request.volume.clone(), credentials, snapshot };
        refuse_past(request.options.expires_at)?;
        let asked = BackupRequest {
            options: request.options.clone(),
            limits: request.limits,
            hooks: QuiesceRequest { hooks: request.hooks.clone(), scheduled: None },
            keep_local: local_name(request.keep_local, &request.options)?,
            ..BackupRequest::default()
        };
        let tasks = self.start_backups(&[member], &asked, |_, _| Ok(())).await?;
        Ok(tasks.iter().map(|task| TaskStarted { task_id: task.id }).collect())
    }

    /// Starts backups of a consistency group, all from one point in time.
    ///
    /// # Errors
    /// No volumes are selected, or too many; one of them cannot be used, or one of these backups is already
    /// running.
    pub async fn start_group_backup(
        self: &Arc<Self>,
        request: StartGroupBackup,
    ) -> Result<GroupBackupStarted, ServiceError> {
        refuse_past(request.options.expires_at)?;
        let credentials = self.resolve_credentials(&request.credentials).await?;
        let volumes = self.group_members(&request).await?;
        let member = |(entry, snapshot): &(Arc<VolumeEntry>, Option<SnapshotId>)| Member {
            volume: VolumeRef::Id(entry.id),
            credentials: credentials.clone(),
            snapshot: *snapshot,
        };
        let members: Vec<Member> = volumes.iter().map(member).collect();
        let group_id = Uuid::new_v4();
        let asked = BackupRequest {
            keep_local: local_name(request.keep_local, &request.options)?,
            options: request.options,
            together: Some(group_id),
            group: request.group,
            limits: request.limits,
            hooks: QuiesceRequest { hooks: request.hooks, scheduled: None },
            ..BackupRequest::default()
        };
        let tasks = self.start_backups(&members, &asked, |_, _| Ok(())).await?;
        let started = |(entry, _): &(Arc<VolumeEntry>, _)| MemberStarted {
            volume_id: entry.id,
            volume_name: entry.name.clone(),
            task_ids: tasks.iter().filter(|task| task.volume == Some(entry.id)).map(|task| task.id).collect(),
        };
        Ok(GroupBackupStarted { group_id, list: volumes.iter().map(started).collect() })
    }

    /// Returns the volumes of a group backup, with their snapshots if a group snapshot is backed up.
    async fn group_members(
        &self,
        request: &StartGroupBackup,
    ) -> Result<Vec<(Arc<VolumeEntry>, Option<SnapshotId>)>, ServiceError> {
        let snapshots = self.group_snapshot(request).await?;
        let mut volumes = request.volumes.clone();
        volumes.extend(snapshots.iter().map(|(volume, _)| VolumeRef::Id(*volume)));
        let chosen = CreateGroupSnapshot {
            group: request.group.clone(),
            label: request.label.clone(),
            volumes,
            ..CreateGroupSnapshot::default()
        };
        let snapshot_of = |id: VolumeId| snapshots.iter().find(|(volume, _)| *volume == id);
        let with_snapshot = |entry: Arc<VolumeEntry>| {
            let snapshot = snapshot_of(entry.id).map(|(_, snapshot)| *snapshot);
            (entry, snapshot)
        };
        Ok(self.snapshots.members(&chosen)?.into_iter().map(with_snapshot).collect())
    }

    /// Resolves the credentials and refuses duplicates; without a reference, the only credential.
    async fn resolve_credentials(
        &self,
        wanted: &[CredentialRef],
    ) -> Result<Vec<CredentialRef>, ServiceError> {
        let mut found: Vec<CredentialRow> = Vec::new();
        let only = wanted.is_empty().then_some(None);
        for wanted in only.into_iter().chain(wanted.iter().map(Some)) {
            let credential = self.repositories.credential(wanted).await?;
            if found.iter().any(|other| other.uuid == credential.uuid) {
                let message = format!("credential {} is named twice", credential.name);
                return Err(ServiceError::refused(ErrorCode::InvalidRequest, message));
            }
            found.push(credential);
        }
        Ok(found.into_iter().map(|credential| CredentialRef::Id(credential.uuid)).collect())
    }

    /// Starts all backups or none, and runs `and` in the transaction that stores their tasks.
    pub async fn start_backups(
        self: &Arc<Self>,
        members: &[Member],
        asked: &BackupRequest,
        and: impl FnOnce(&rusqlite::Transaction<'_>, &[TaskRow]) -> Result<(), DbError> + Send + 'static,
    ) -> Result<Vec<TaskRow>, ServiceError> {
        check_limits(asked.limits)?;
        check_options(&asked.options)?;
        // Once for all members, and before the lock is taken.
        self.quiescer.check_hooks(&asked.hooks).await?;
        let _admission = self.admission.lock().await;
        let entries = members.iter().map(|member| self.registry.find(&member.volume));
        let entries: Vec<Arc<VolumeEntry>> = entries.collect::<Result<_, _>>()?;
        if let Some(name) = &asked.keep_local {
            let volumes: Vec<VolumeId> = entries.iter().map(|entry| entry.id).collect();
            self.refuse_taken(name, &volumes).await?;
        }
        let group_freeze = asked.together.map(|id| GroupFreeze {
            id,
            name: asked.group.clone(),
            volume_count: members.len() as u64,
        });
        // Members selected by label are frozen independently.
        let together = match &group_freeze {
            Some(group) => {
                let quiesce_rules = self.quiescer.quiesce_for(&asked.hooks, &entries).await?;
                Some(PointInTime { group_freeze: Some(group.clone()), quiesce_rules })
            }
            None => None,
        };
        let (mut rows, mut started) = (Vec::new(), Vec::new());
        for (member, entry) in members.iter().zip(&entries) {
            let mut credentials = Vec::new();
            for wanted in &member.credentials {
                credentials.push(self.repositories.credential(Some(wanted)).await?);
            }
            self.refuse_unless_free(entry, &credentials).await?;
            let alone;
            let point = match &together {
                Some(together) => together,
                None => {
                    let quiesce_rules =
                        self.quiescer.quiesce_for(&asked.hooks, std::slice::from_ref(entry)).await?;
                    alone = PointInTime { group_freeze: None, quiesce_rules };
                    &alone
                }
            };
            rows.extend(self.rows_of(entry, &credentials, member.snapshot, asked, point)?);
            started.push(StartedBackup { volume: entry.id, credentials, snapshot: member.snapshot });
        }
        let mut older = Vec::new();
        for row in self.older_than(&started, &asked.owner()).await? {
            older.push(self.runner.to_abandon(row).await);
        }
        // In one transaction: a backup that does not start discards none.
        let (all, abandoned) = (rows.clone(), older.clone());
        let record = move |tx: &rusqlite::Transaction<'_>| {
            and(tx, &all)?;
            abandoned.iter().try_for_each(|task| task.store(tx))
        };
        self.runner.store_and_launch_all(rows.clone(), record).await?;
        for task in older {
            task.clean_up(&self.runner).await;
        }
        Ok(rows)
    }

    /// Returns the resumable backups that are not later than the new ones of the same volume and location:
    /// resumed, they would create points in time before those. A later one stays: it may be the only copy of
    /// its point in time. Fails if the caller may not discard one of them.
    async fn older_than(
        &self,
        started: &[StartedBackup],
        by: &TaskOwner,
    ) -> Result<Vec<TaskRow>, ServiceError> {
        let snapshots = self.snapshots.db.run(|tx| SnapshotRow::all(tx, None)).await?;
        let ready = snapshots.into_iter().filter(|row| row.state == SnapshotState::Ready);
        let frozen: HashMap<SnapshotId, Epoch> = ready.map(|row| (row.id, row.epoch)).collect();
        let is_older = |task: &TaskRow| {
            task.kind() == TaskKind::Backup && started.iter().any(|new| new.replaces(task, &frozen))
        };
        let mut older = self.tasks.resumable_tasks().await?;
        older.retain(is_older);
        if let Some(task) = older.iter().find(|task| !owner::may_discard(by, &task.owner)) {
            let message = format!(
                "the new backup would discard backup task {} of {}, which only an admin may do",
                task.id, task.owner
            );
            let hint = format!("blockctl cloudsnap resume {}", task.id);
            let error = ApiError { hint: Some(hint), ..ApiError::new(ErrorCode::Forbidden, message) };
            return Err(ServiceError::Refused(error));
        }
        Ok(older)
    }

    /// Refuses a volume that cannot be used, or that another task works on.
    async fn refuse_unless_free(
        &self,
        entry: &VolumeEntry,
        credentials: &[CredentialRow],
    ) -> Result<(), ServiceError> {
        entry.volume()?;
        let is_meant = |task: &TaskRow| {
            task.kind() == TaskKind::Backup
                && task.volume == Some(entry.id)
                && credentials.iter().any(|credential| credential.uuid == task.credential)
        };
        if let Some(task) = self.tasks.unfinished_tasks().await?.into_iter().find(is_meant) {
            let message =
                format!("backup task {} is running on volume {}: wait for it to end", task.id, entry.name);
            return Err(ServiceError::refused(ErrorCode::VolumeInUse, message));
        }
        let is_rollback = |task: &TaskRow| task.volume == Some(entry.id) && task.spec.is_in_place();
        let others =
            self.tasks.unfinished_tasks().await?.into_iter().chain(self.tasks.resumable_tasks().await?);
        if let Some(task) = others.into_iter().find(is_rollback) {
            let (volume, id) = (&entry.name, task.id);
            let message = match task.state.is_over() {
                true => format!("volume {volume} is partially restored by task {id}: {}", ways_to_end(id)),
                false => format!("volume {volume} is being restored by task {id}: wait for it to end"),
            };
            return Err(ServiceError::refused(ErrorCode::VolumeInUse, message));
        }
        Ok(())
    }

    /// Creates the task rows of one volume: one snapshot, one task per location.
    fn rows_of(
        &self,
        entry: &VolumeEntry,
        credentials: &[CredentialRow],
        existing: Option<SnapshotId>,
        asked: &BackupRequest,
        point: &PointInTime,
    ) -> Result<Vec<TaskRow>, ServiceError> {
        let new = || random_id().map(SnapshotId::from_u64);
        let snapshot = existing.map_or_else(new, Ok)?;
        let mut rows = Vec::with_capacity(credentials.len());
        for credential in credentials {
            // One snapshot id per task: two credentials may reach the same repository.
            let own = SnapshotId::from_u64(random_id()?);
            // Full or incremental is decided after the freeze.
            let cloudsnap = CloudSnapshotId {
                cluster: self.host.cluster,
                volume: entry.id,
                snapshot: own,
                incremental: false,
            };
            // A resumed task has the same one, also if that of the location has changed.
            let compression = asked.options.compression.unwrap_or(credential.store.connection.compression);
            let spec = TaskSpec::Backup(BackupTask {
                options: BackupOptions { compression: Some(compression), ..asked.options.clone() },
                group_freeze: point.group_freeze.clone(),
                quiesce_rules: point.quiesce_rules.clone(),
                schedule: asked.schedule,
                keep_local: asked.keep_local.clone(),
                existing: existing.is_some(),
            });
            let mut row = TaskRow::new(spec, credential.uuid, cloudsnap, asked.owner());
            (row.volume, row.snapshot) = (Some(entry.id), Some(snapshot));
            row.detail.volume_name = Some(entry.name.clone());
            row.detail.credential_name = credential.name.to_string();
            row.detail.run = Some(self.host.run);
            check_max_cost(&self.host.settings, &asked.limits, credential.name.as_str())?;
            row.detail.limits = asked.limits;
            rows.push(row);
        }
        Ok(rows)
    }
}
