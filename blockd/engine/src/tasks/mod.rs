//! Background tasks: backups, restores and deletions of cloud snapshots.
//!
//! A task's row is in the database before anything else happens, so that the next start finds and resumes an
//! interrupted task. Each step is idempotent: rows first, then disk or store, then rows.

pub mod backup;
mod backup_type;
mod checkpoint;
mod compare;
pub mod delete;
pub mod doubts;
mod findings;
mod freeze;
mod live;
pub mod plan;
pub mod restore;
mod secrets;
mod shared_reader;
pub mod stop;
pub mod verify;

use crate::browse::Browse;
use crate::credentials::Repositories;
use crate::host::Host;
use crate::tasks::stop::Runner;
use blockd_catalog::Db;
use blockd_secrets::References;
use freeze::FailedPoints;
pub use live::LiveTask;
use shared_reader::Readers;

use crate::{
    error::ServiceError,
    lazy::{hydrate, in_place},
};
use blockd_api::{
    ErrorCode, MAX_WAIT_MS,
    tasks::{self as api, ListTasks, Requests, TaskList, WaitTask},
};
use blockd_catalog::{DbError, NewEvent, TaskKind, TaskRow, TaskState};
use blockd_cloud::CancelToken;
use blockd_extent::SnapshotId;
use blockd_quiesce::KeyedLocks;
use futures::FutureExt;
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::AtomicBool, atomic::AtomicU64, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    task::JoinSet,
};
use tracing::Instrument;
use uuid::Uuid;

/// Polling interval of a task's progress.
const LOOK_MS: u64 = 200;
/// Number of polls per stored progress.
const LOOKS_PER_STORE: u32 = 5;

/// Unfinished tasks.
#[derive(Debug)]
pub struct Tasks {
    pub(crate) browse: Arc<Browse>,
    pub(crate) db: Arc<Db>,
    pub(crate) host: Arc<Host>,
    pub(crate) references: Arc<References>,
    pub(crate) repositories: Arc<Repositories>,
    pub(crate) live: Mutex<HashMap<Uuid, Arc<LiveTask>>>,
    pub(crate) running: Mutex<JoinSet<()>>,
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) closed: AtomicBool,
    /// Snapshots that backups read.
    pub(crate) readers: Arc<Readers>,
    /// Serializes the freezes of backups that share a snapshot.
    pub(crate) freezing: KeyedLocks,
    /// Failed freezes.
    pub(crate) failed: Mutex<FailedPoints>,
    /// Number of ended tasks since the start.
    pub ended: Ended,
}

/// Ended tasks by kind and state.
#[derive(Debug, Default)]
pub struct Ended([[AtomicU64; Ended::STATES.len()]; Ended::KINDS.len()]);

impl Ended {
    const KINDS: [TaskKind; 4] = [TaskKind::Backup, TaskKind::Restore, TaskKind::Delete, TaskKind::Verify];
    const STATES: [TaskState; 3] = [TaskState::Done, TaskState::Failed, TaskState::Stopped];

    fn note(&self, kind: TaskKind, state: TaskState) {
        for (counts, of) in self.0.iter().zip(Self::KINDS) {
            let mut counts = counts.iter().zip(Self::STATES);
            if of == kind
                && let Some((count, _)) = counts.find(|(_, of)| *of == state)
            {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Returns all counts, including zeros.
    pub fn counts(&self) -> impl Iterator<Item = (TaskKind, TaskState, u64)> {
        self.0.iter().zip(Self::KINDS).flat_map(|(counts, kind)| {
            let counts = counts.iter().zip(Self::STATES);
            counts.map(move |(count, state)| (kind, state, count.load(Ordering::Relaxed)))
        })
    }
}

impl Tasks {
    /// Returns the unfinished tasks.
    pub fn running(&self) -> Vec<TaskRow> {
        let live: Vec<_> = self.live.lock().values().cloned().collect();
        live.iter().map(|task| task.view()).collect()
    }

    /// Returns the number of unfinished tasks with a local snapshot.
    fn sharing(&self, snapshot: SnapshotId) -> usize {
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
}

impl Runner {
    /// Starts a task whose row the caller stored.
    pub fn launch(self: &Arc<Self>, row: TaskRow) {
        let span = tracing::info_span!(parent: None, "task", task = %row.id, kind = %row.kind, volume = row.volume.map(tracing::field::display));
        let live = Arc::new(LiveTask::new(row));
        self.tasks.live.lock().insert(live.id, Arc::clone(&live));
        if self.tasks.closed.load(Ordering::SeqCst) {
            // The row is in the database: the next start resumes it.
            return;
        }
        let this = Arc::clone(self);
        let mut running = self.tasks.running.lock();
        while running.try_join_next().is_some() {}
        running.spawn(async move { run(&this, &live).await }.instrument(span));
    }

    /// Resumes the unfinished tasks of an earlier run of the daemon.
    ///
    /// # Errors
    /// The database fails.
    pub async fn resume_tasks(self: &Arc<Self>) -> Result<(), ServiceError> {
        for mut row in self.db.run(TaskRow::unfinished).await? {
            row.detail.resumed += 1;
            row.state = TaskState::Pending;
            tracing::info!(task = %row.id, kind = %row.kind, resumed = row.detail.resumed, "taking the task up again");
            let stored = row.clone();
            self.db.run(move |tx| stored.put(tx)).await?;
            self.launch(row);
        }
        Ok(())
    }
}

impl Tasks {
    /// Returns all unfinished tasks, including those in the database only, which resume at the next start.
    ///
    /// # Errors
    /// The database fails.
    pub async fn unfinished_tasks(&self) -> Result<Vec<TaskRow>, ServiceError> {
        // What runs is newer in memory.
        let mut tasks = self.running();
        let running: HashSet<Uuid> = tasks.iter().map(|task| task.id).collect();
        let stored = self.db.run(TaskRow::unfinished).await?;
        tasks.extend(stored.into_iter().filter(|row| !running.contains(&row.id)));
        Ok(tasks)
    }

    /// Does `attempt` again and again until it succeeds: for what must not be lost because the database fails
    /// for a while.
    ///
    /// # Errors
    /// The daemon stops.
    async fn until_stored<T, F>(
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
            tracing::error!(%error, what, again_ms, "cannot be stored for now");
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
            let time_limit = Duration::from_millis(wait.wait_ms.unwrap_or(0).min(MAX_WAIT_MS));
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
    pub async fn list_tasks(&self, query: &ListTasks) -> Result<TaskList, ServiceError> {
        let mut rows = self.db.run(TaskRow::all).await?;
        // What runs is newer in memory.
        let live = self.live.lock().clone();
        for row in &mut rows {
            if let Some(live) = live.get(&row.id) {
                *row = live.view();
            }
        }
        let prefix = query.name.as_deref().unwrap_or_default();
        // The id of a group snapshot finds all its backups.
        let is_meant = |row: &&TaskRow| {
            let barrier = row.detail.barrier.as_ref().map(|barrier| barrier.id);
            [Some(row.id), barrier].iter().flatten().any(|id| id.to_string().starts_with(prefix))
        };
        let wanted = rows.iter().filter(is_meant);
        Ok(TaskList { tasks: wanted.map(|row| self.task_to_api(row)).collect() })
    }

    pub(crate) fn task_to_api(&self, row: &TaskRow) -> api::Task {
        let kind = match row.kind {
            TaskKind::Backup => api::TaskKind::Backup,
            TaskKind::Restore => api::TaskKind::Restore,
            TaskKind::Delete => api::TaskKind::Delete,
            TaskKind::Verify => api::TaskKind::Verify,
        };
        let stage = match row.state {
            TaskState::Pending => api::TaskStage::Pending,
            TaskState::Active => api::TaskStage::Active,
            TaskState::Done => api::TaskStage::Done,
            TaskState::Failed => api::TaskStage::Failed,
            TaskState::Stopped => api::TaskStage::Stopped,
        };
        let detail = &row.detail;
        let end = detail.completed.unwrap_or_else(Timestamp::now);
        api::Task {
            name: row.id,
            kind,
            source_volume: row.decided_cloudsnap().map(|id| id.to_string()),
            volume: detail.volume_name.clone(),
            state: api::TaskState { kind, stage },
            node: self.host.node.clone(),
            credential: row.credential,
            credential_name: detail.credential_name.parse().ok(),
            phase: detail.phase.clone(),
            bytes_total: detail.bytes_total,
            bytes_processed: detail.bytes_processed,
            bytes_uploaded: detail.bytes_uploaded,
            bytes_downloaded: detail.bytes_downloaded,
            bytes_dirty: detail.bytes_dirty,
            requests: Requests {
                put: detail.requests.put + detail.requests.multipart,
                get: detail.requests.get,
                list: detail.requests.list,
                delete: detail.requests.delete,
                head: 0,
            },
            freeze_stall_micros: (row.kind == TaskKind::Backup && detail.frozen)
                .then_some(detail.freeze_stall_micros),
            quiesce: detail.quiesce.clone(),
            owner: row.owner.clone(),
            started: row.created,
            completed: detail.completed,
            time_elapsed: end.duration_since(row.created).as_secs_f64().max(0.0),
            backup_type: detail.backup_type.map(backup_type),
            error: detail.error.clone(),
            label: detail.backup.name.clone(),
            resumable: detail.kept,
            findings: detail.findings.clone(),
            resumed: detail.resumed.into(),
            version: detail.version,
        }
    }

    /// Stores the progress of a task. A failure is only logged: the stored row is still correct, if older.
    pub async fn store_progress(&self, live: &LiveTask) {
        let view = live.view();
        if let Err(error) = self.db.run(move |tx| view.put_progress(tx)).await {
            tracing::warn!(%error, "the progress of the task is not stored");
        }
    }

    /// Ends a task; `with` runs in the transaction of its final row.
    pub async fn finish(
        &self,
        live: &LiveTask,
        with: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<(), DbError> + Send + 'static,
    ) -> Result<TaskRow, ServiceError> {
        let row = live.final_row(TaskState::Done, None);
        let (stored, keep) = (row.clone(), self.host.settings.task_history);
        self.db
            .run(move |tx| {
                with(tx)?;
                stored.put(tx)?;
                NewEvent::of_task(&stored, Timestamp::now()).insert(tx)?;
                TaskRow::prune(tx, keep)
            })
            .await?;
        if matches!(row.kind, TaskKind::Backup | TaskKind::Delete) {
            self.browse.renew(row.credential);
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

async fn run(runner: &Arc<Runner>, live: &Arc<LiveTask>) {
    let work = async {
        let _busy = runner.pressure.begin();
        match live.kind {
            TaskKind::Backup => backup::run(&runner.backup_work, live).boxed().await,
            TaskKind::Restore if live.view().detail.in_place.is_some() => {
                in_place::run(&runner.in_place_work, live).boxed().await
            }
            TaskKind::Restore if live.view().detail.lazy => {
                hydrate::run(&runner.hydration_work, live).boxed().await
            }
            TaskKind::Restore => restore::run(&runner.restore_work, live).boxed().await,
            TaskKind::Delete => delete::run(&runner.delete_work, live).boxed().await,
            TaskKind::Verify => verify::run(&runner.verify_work, live).boxed().await,
        }
    };
    let relay = async {
        runner.host.stopping.cancelled().await;
        live.cancel.cancel();
        std::future::pending::<()>().await;
    };
    let watch = async {
        let mut looks = 0u32;
        loop {
            tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
            let changed = live.refresh();
            looks += 1;
            if changed && looks >= LOOKS_PER_STORE {
                looks = 0;
                runner.tasks.store_progress(live).await;
            }
        }
    };
    let outcome = tokio::select! {
        outcome = AssertUnwindSafe(work).catch_unwind() => outcome,
        () = watch => return,
        () = relay => return,
    };
    let outcome =
        outcome.unwrap_or_else(|_| Err(ServiceError::Internal("the task panicked; see the log".into())));
    match outcome {
        Ok(row) => {
            let detail = &row.detail;
            tracing::info!(
                cloudsnap = %row.cloudsnap,
                bytes_processed = detail.bytes_processed,
                bytes_uploaded = detail.bytes_uploaded,
                bytes_downloaded = detail.bytes_downloaded,
                requests = detail.requests.total(),
                "task done"
            );
            live.set_row(row);
        }
        Err(error) if error.is_cancelled() && live.is_stop_wanted() => {
            if stop::end_undone(runner, live, &error, true).await.is_err() {
                live.detach();
                return;
            }
        }
        Err(error) if runner.host.stopping.is_cancelled() && error.is_cancelled() => {
            tracing::info!("the task goes on after the next start");
            live.detach();
            runner.tasks.store_progress(live).await;
            return;
        }
        Err(error) => {
            if stop::end_undone(runner, live, &error, false).await.is_err() {
                tracing::info!("the task goes on after the next start: its end could not be stored");
                live.detach();
                return;
            }
        }
    }
    runner.tasks.live.lock().remove(&live.id);
    let row = live.view();
    runner.tasks.ended.note(row.kind, row.state);
    runner.scheduler.wake();
    runner.events.wake();
    live.end();
}

/// Removes the files of a task that has ended.
async fn clean_files(tasks: &Tasks, id: Uuid) -> Result<(), ServiceError> {
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
