//! Background tasks: backups, restores, deletions and verifications of cloud snapshots.
//!
//! A task's row is in the database before anything else happens, so that the next start finds and resumes an
//! interrupted task. Each step is idempotent: rows first, then disk or store, then rows.

pub mod findings;
mod live;
pub(crate) mod needs;
pub(crate) mod priority;
pub mod requests;
pub mod runner;
pub mod secrets;
pub mod unsuccessful;
pub mod workers;

pub use crate::tasks::live::LiveTask;
use crate::{error::ServiceError, host::Host, readers::SnapshotReaders, repositories::Repositories};
use blockd_api::{
    ErrorCode, List, MAX_WAIT_MILLIS, VolumeName,
    tasks::{self as api, ListTasks, TaskKind, TaskStage, WaitTask},
};
use blockd_catalog::{Db, DbError, NewEvent, TaskRow, TaskSpec};
use blockd_cloud::{CancelToken, CloudSnapshotId};
use blockd_extent::{SnapshotId, VolumeId};
use blockd_secrets::References;
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    task::JoinSet,
};
use uuid::Uuid;

/// Unfinished tasks.
pub struct Tasks {
    pub(crate) readers: Arc<dyn SnapshotReaders>,
    pub(crate) db: Arc<Db>,
    pub(crate) host: Arc<Host>,
    pub(crate) references: Arc<References>,
    pub(crate) repositories: Arc<Repositories>,
    pub(crate) live: Mutex<HashMap<Uuid, Arc<LiveTask>>>,
    pub(crate) running: Mutex<JoinSet<()>>,
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) closed: AtomicBool,
    /// Number of ended tasks since the start.
    pub ended: Ended,
}

/// Ended tasks by kind and state.
#[derive(Debug, Default)]
pub struct Ended([[AtomicU64; Ended::STATES.len()]; TaskKind::ALL.len()]);

impl Ended {
    const STATES: [TaskStage; 3] = [TaskStage::Done, TaskStage::Failed, TaskStage::Stopped];

    pub(crate) fn note(&self, kind: TaskKind, state: TaskStage) {
        for (counts, of) in self.0.iter().zip(TaskKind::ALL) {
            let mut counts = counts.iter().zip(Self::STATES);
            if of == kind
                && let Some((count, _)) = counts.find(|(_, of)| *of == state)
            {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Returns all counts, including zeros.
    pub fn counts(&self) -> impl Iterator<Item = (TaskKind, TaskStage, u64)> {
        self.0.iter().zip(TaskKind::ALL).flat_map(|(counts, kind)| {
            let counts = counts.iter().zip(Self::STATES);
            counts.map(move |(count, state)| (kind, state, count.load(Ordering::Relaxed)))
        })
    }
}

/// Returns the group snapshot of a group backup.
fn group_of(row: &TaskRow) -> Option<Uuid> {
    match &row.spec {
        TaskSpec::Drill(drill) => drill.group,
        spec => spec.backup()?.group_freeze.as_ref().map(|group| group.id),
    }
}

impl Tasks {
    /// Returns the unfinished tasks.
    pub fn running(&self) -> Vec<TaskRow> {
        let live: Vec<_> = self.live.lock().values().cloned().collect();
        live.iter().map(|task| task.view()).collect()
    }

    /// Returns the number of unfinished tasks with a local snapshot.
    pub(crate) fn sharing(&self, snapshot: SnapshotId) -> usize {
        self.live.lock().values().filter(|task| task.view().snapshot == Some(snapshot)).count()
    }

    /// Waits for a slot to move data.
    ///
    /// # Errors
    /// The daemon stops.
    pub async fn slot(&self, stopping: &CancelToken) -> Result<SemaphorePermit<'_>, ServiceError> {
        tokio::select! {
            permit = self.slots.acquire() => permit.map_err(|_| ServiceError::Stopping),
            () = stopping.cancelled() => Err(ServiceError::Stopping),
        }
    }

    /// Runs work without a task; a stop waits for it as well.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        if self.closed.load(Ordering::SeqCst) {
            return;
        }
        let mut running = self.running.lock();
        while running.try_join_next().is_some() {}
        running.spawn(work);
    }

    /// Accepts no more tasks and waits for the end of the running ones; the daemon's stop token must be
    /// cancelled. Returns the number of tasks that did not end in time.
    pub async fn stop(&self, time_limit: Duration) -> usize {
        self.closed.store(true, Ordering::SeqCst);
        let mut running = std::mem::take(&mut *self.running.lock());
        let all = async { while running.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(time_limit, all).await;
        let left = running.len();
        running.abort_all();
        left
    }

    /// Returns all unfinished tasks, including those in the database only, which resume at the next start.
    ///
    /// # Errors
    /// The database fails.
    pub async fn unfinished_tasks(&self) -> Result<Vec<TaskRow>, ServiceError> {
        // A task is over once that is stored. The rows of the others are newer in memory.
        let stored = self.db.run(TaskRow::unfinished).await?;
        let mut running: HashMap<Uuid, TaskRow> =
            self.running().into_iter().map(|task| (task.id, task)).collect();
        Ok(stored.into_iter().map(|row| running.remove(&row.id).unwrap_or(row)).collect())
    }

    /// Repeats `attempt` until it succeeds: for results that must survive a temporary failure of the
    /// database.
    ///
    /// # Errors
    /// The daemon stops.
    pub(crate) async fn until_stored<T, F>(
        &self,
        what: &'static str,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, ServiceError>
    where
        F: Future<Output = Result<T, ServiceError>>,
    {
        loop {
            let error = match attempt().await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let again_ms = self.host.settings.intervals.store_result_again_ms;
            tracing::error!(%error, what, again_ms, "storing a result failed; retrying");
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(again_ms)) => {}
                () = self.host.stopping.cancelled() => return Err(ServiceError::Stopping),
            }
        }
    }

    /// Returns a task, after an optional wait for a change.
    ///
    /// # Errors
    /// There is no task with this id.
    pub async fn task(&self, id: Uuid, wait: &WaitTask) -> Result<api::Task, ServiceError> {
        let live = self.live.lock().get(&id).cloned();
        if let Some(live) = live {
            let time_limit = Duration::from_millis(wait.wait_millis.unwrap_or(0).min(MAX_WAIT_MILLIS));
            tokio::select! {
                () = live.changed_since(wait.since_version.unwrap_or(0)) => {}
                () = tokio::time::sleep(time_limit) => {}
                () = self.host.stopping.cancelled() => {}
            }
            return Ok(self.task_to_api(&live.view()));
        }
        let row = self.db.run(move |tx| TaskRow::find(tx, id)).await?;
        row.map(|row| self.task_to_api(&row))
            .ok_or_else(|| ServiceError::refused(ErrorCode::TaskNotFound, format!("there is no task {id}")))
    }

    /// Returns all stored tasks, newest first.
    ///
    /// # Errors
    /// The database fails.
    pub async fn list_tasks(&self, query: &ListTasks) -> Result<List<api::Task>, ServiceError> {
        let mut rows = self.db.run(TaskRow::all).await?;
        // Rows of running tasks are newer in memory.
        let live = self.live.lock().clone();
        for row in &mut rows {
            if let Some(live) = live.get(&row.id) {
                *row = live.view();
            }
        }
        let prefix = query.id_prefix.as_deref().unwrap_or_default();
        // The id of a group snapshot finds all its backups.
        let is_meant = |row: &&TaskRow| {
            [Some(row.id), group_of(row)].iter().flatten().any(|id| id.to_string().starts_with(prefix))
        };
        let wanted = rows.iter().filter(is_meant);
        Ok(wanted.map(|row| self.task_to_api(row)).collect())
    }

    pub(crate) fn task_to_api(&self, row: &TaskRow) -> api::Task {
        let detail = &row.detail;
        let end = detail.completed.unwrap_or_else(Timestamp::now);
        api::Task {
            task_id: row.id,
            kind: row.kind(),
            cloud_snapshot_id: row.decided_cloudsnap().map(|id| id.to_string()),
            group_id: group_of(row),
            volume_id: row.volume,
            volume_name: detail.volume_name.clone(),
            state: api::TaskState { kind: row.kind(), stage: row.state },
            node: self.host.node.clone(),
            // A scrub reads no location.
            credential_id: (row.kind() != TaskKind::Scrub).then_some(row.credential),
            credential_name: detail.credential_name.parse().ok(),
            phase: detail.phase.clone(),
            total_bytes: detail.bytes_total,
            processed_bytes: detail.bytes_processed,
            uploaded_bytes: detail.bytes_uploaded,
            downloaded_bytes: detail.bytes_downloaded,
            dirty_bytes: detail.bytes_dirty,
            requests: crate::costs::shown(&detail.requests),
            freeze_stall_micros: detail.frozen.then_some(detail.freeze_stall_micros),
            quiesce: detail.quiesce.clone(),
            owner: row.owner.clone(),
            started_at: row.created,
            completed_at: detail.completed,
            elapsed_seconds: end.duration_since(row.created).as_secs_f64().max(0.0),
            backup_type: detail.backup_type.map(backup_type),
            error: detail.error.clone(),
            name: row.spec.backup().and_then(|backup| backup.options.name.clone()),
            resumable: detail.resumable,
            labels: row.spec.in_place().map(|restore| restore.labels.clone()),
            findings: detail.findings.clone(),
            note: detail.note.clone(),
            limits: detail.limits,
            resumed: detail.resumed.into(),
            version: detail.version,
        }
    }

    /// Stores the progress of a task. A failure is only logged: the stored row is still correct, if older.
    pub async fn store_progress(&self, live: &LiveTask) {
        let view = live.view();
        if let Err(error) = self.db.run(move |tx| view.put_progress(tx)).await {
            tracing::warn!(%error, "storing the progress of the task failed");
        }
    }

    /// Ends a task; `with` runs in the transaction of its final row.
    pub async fn finish(
        &self,
        live: &LiveTask,
        with: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<(), DbError> + Send + 'static,
    ) -> Result<TaskRow, ServiceError> {
        let row = live.final_row(TaskStage::Done, None);
        let (stored, keep) = (row.clone(), self.host.settings.task_history);
        self.db
            .run(move |tx| {
                with(tx)?;
                stored.put(tx)?;
                NewEvent::insert_end_of(&stored, Timestamp::now(), tx)?;
                TaskRow::prune(tx, keep)
            })
            .await?;
        if matches!(row.kind(), TaskKind::Backup | TaskKind::Delete | TaskKind::Repair) {
            self.readers.renew(row.credential);
        }
        Ok(row)
    }
}

/// Converts the type of a backup to the API.
pub fn backup_type(from: blockd_cloud::BackupType) -> api::BackupType {
    match from {
        blockd_cloud::BackupType::Full => api::BackupType::Full,
        blockd_cloud::BackupType::Incremental => api::BackupType::Incremental,
    }
}

/// Removes the files of a task that has ended.
pub(crate) async fn clean_files(tasks: &Tasks, id: Uuid) -> Result<(), ServiceError> {
    let path = tasks.host.data_dir.task_dir(id);
    crate::error::blocking(move || {
        blockd_files::remove_dir(&path).map_err(|source| ServiceError::File {
            action: "remove",
            path,
            source,
        })
    })
    .await
}

impl Tasks {
    /// Returns the row of a task.
    ///
    /// # Errors
    /// There is no such task, or the database fails.
    pub async fn task_row(&self, id: Uuid) -> Result<TaskRow, ServiceError> {
        let row = self.db.run(move |tx| TaskRow::find(tx, id)).await?;
        row.ok_or_else(|| ServiceError::refused(ErrorCode::TaskNotFound, format!("there is no task {id}")))
    }

    /// Returns the resumable tasks.
    ///
    /// # Errors
    /// The database fails.
    pub async fn resumable_tasks(&self) -> Result<Vec<TaskRow>, ServiceError> {
        Ok(self.db.run(TaskRow::resumable).await?)
    }

    /// Stops the background scrub of a volume and waits for its end, at most a step; the next one continues
    /// there. It must not hinder requests of users.
    pub(crate) async fn stop_background_scrub(&self, volume: VolumeId) {
        let live: Vec<_> = self.live.lock().values().cloned().collect();
        for task in live {
            let row = task.view();
            if row.volume != Some(volume) || !row.spec.is_background_scrub() {
                continue;
            }
            task.stop();
            tokio::select! {
                () = task.ended() => {}
                () = self.host.stopping.cancelled() => {}
            }
        }
    }

    /// Refuses a change of a volume while a task that matters works on it.
    pub(crate) async fn refuse_if_working(
        &self,
        volume: VolumeId,
        name: &VolumeName,
        matters: impl Fn(&TaskRow) -> bool,
    ) -> Result<(), ServiceError> {
        let hinders = |task: &TaskRow| task.volume == Some(volume) && matters(task);
        match self.unfinished_tasks().await?.into_iter().find(hinders) {
            Some(task) => Err(ServiceError::refused(
                ErrorCode::VolumeInUse,
                format!(
                    "{} task {id} works on volume {name}: wait for it to end, or stop it, `blockctl cloudsnap stop --name {id} --discard`",
                    task.kind(),
                    id = task.id
                ),
            )),
            None => Ok(()),
        }
    }

    pub(crate) async fn refuse_if_deleting(&self, id: &CloudSnapshotId) -> Result<(), ServiceError> {
        let deleting = |task: &TaskRow| task.kind() == TaskKind::Delete && task.cloudsnap == *id;
        match self.unfinished_tasks().await?.into_iter().find(deleting) {
            Some(task) => Err(ServiceError::refused(
                ErrorCode::CloudsnapInUse,
                format!("cloud snapshot {id} is being deleted by task {}", task.id),
            )),
            None => Ok(()),
        }
    }
}
