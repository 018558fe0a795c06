//! Tasks that end without success: stopped by a user, or failed. Their state for a resume is kept where that
//! is useful, and they are resumed or abandoned.
//!
//! The kept state is: of a backup its snapshot, plan and journal, so that stored packs are not sent again; of
//! a restore the incomplete volume and the record of its blocks; of a hydration only its row; of an in-place
//! restore that has started to write, the fence of clients from the mixture; of a deletion the manifest. A
//! kept backup is abandoned when a newer one of the same volume and credential starts, and when it is too old
//! to commit. Its possible listing is verified then (see [`doubts`]).

use crate::{
    backup::{doubts, task, work::BackupWork},
    cloud_snapshots::delete::{self, DeleteWork},
    error::ServiceError,
    events::EventLog,
    health::{self, Health},
    host::{Admission, Host},
    maintenance::verify::{self, VerifyWork},
    repositories::Repositories,
    restore::{
        full::{self, RestoreWork},
        in_place::{self, InPlaceWork},
        lazy::hydrate::{self, HydrationWork},
    },
    schedules::{retention_checks::RetentionChecks, wake::Scheduler},
    tasks::{LiveTask, Tasks, clean_files, pressure::Pressure, requests::check_limits},
    volumes::registry::Registry,
};
use blockd_api::{
    ErrorCode,
    tasks::{self as api, StopTask, TaskKind, TaskLimits, TaskStage, TaskStarted},
};
use blockd_catalog::{Db, DbError, DeleteTask, NewEvent, RestoreTask, TaskRow, TaskSpec};
use blockd_cloud::{BACKUP_LIFETIME_S, CloudError, CloudSnapshotId, remove_leftovers_of};
use futures::FutureExt;
use jiff::Timestamp;
use std::{
    collections::{HashMap, HashSet},
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tracing::Instrument;
use uuid::Uuid;

/// Polling interval of a task's progress.
const LOOK_MS: u64 = 200;
/// Number of polls per stored progress.
const LOOKS_PER_STORE: u32 = 5;
/// Timeout of a comparison of clocks.
const CLOCK_CHECK_TIMEOUT: Duration = Duration::from_secs(120);

/// Starts, stops and resumes tasks.
pub struct Runner {
    pub(crate) admission: Arc<Admission>,
    pub(crate) backup_work: Arc<BackupWork>,
    pub(crate) checks: Arc<RetentionChecks>,
    pub(crate) db: Arc<Db>,
    pub(crate) delete_work: Arc<DeleteWork>,
    pub(crate) events: Arc<EventLog>,
    pub(crate) health: Arc<Health>,
    pub(crate) host: Arc<Host>,
    pub(crate) hydration_work: Arc<HydrationWork>,
    pub(crate) in_place_work: Arc<InPlaceWork>,
    pub(crate) pressure: Arc<Pressure>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
    pub(crate) restore_work: Arc<RestoreWork>,
    pub(crate) scheduler: Arc<Scheduler>,
    pub(crate) tasks: Arc<Tasks>,
    pub(crate) verify_work: Arc<VerifyWork>,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").finish_non_exhaustive()
    }
}

/// Returns true if a task can resume after the cause of this error is fixed.
fn can_go_on(error: &ServiceError) -> bool {
    if error.to_api().code == ErrorCode::NoSpace {
        // Local volumes need the space that a kept task would occupy.
        return false;
    }
    match error {
        ServiceError::Store(_)
        | ServiceError::Db(_)
        | ServiceError::File { .. }
        | ServiceError::Volume(_)
        | ServiceError::Secrets(_) => true,
        ServiceError::Refused(error) => {
            matches!(error.code, ErrorCode::SecretUnavailable | ErrorCode::SecretUnreachable)
        }
        ServiceError::Cloud(error) => matches!(
            **error,
            CloudError::ReadVolume { .. }
                | CloudError::WriteVolume { .. }
                | CloudError::Journal { .. }
                | CloudError::KeySlotMissing { .. }
                | CloudError::WriteKeyMissing { .. }
                | CloudError::WriteKeyNotNewest { .. }
                | CloudError::Unsettled { .. }
                | CloudError::BaseUnknown { .. }
                | CloudError::NotTakenBack { .. }
                | CloudError::Internal { .. }
        ),
        _ => false,
    }
}

/// Returns true if the state for a resume is worth keeping.
fn is_worth_keeping(row: &TaskRow, error: &ServiceError, stopped: bool) -> bool {
    let volume_exists = || error.to_api().code != ErrorCode::VolumeNotFound;
    match &row.spec {
        // Before that nothing was sent, and the point in time is recent.
        TaskSpec::Backup(_) => stopped || (row.detail.backup_type.is_some() && can_go_on(error)),
        TaskSpec::Restore(RestoreTask::NewVolume { .. }) => {
            stopped || (row.detail.bytes_processed > 0 && can_go_on(error))
        }
        // After any error: it costs nothing, and a resume needs it.
        TaskSpec::Restore(RestoreTask::LazyVolume) => volume_exists(),
        // The volume is unchanged before the restore has started.
        TaskSpec::Restore(RestoreTask::InPlace(_)) => volume_exists() && in_place::has_started(row),
        TaskSpec::Delete(_) => stopped || can_go_on(error),
        TaskSpec::Verify(_) => stopped,
    }
}

/// `listed` is the name of a backup that may be listed nevertheless.
fn mark_given_up(
    tx: &rusqlite::Transaction<'_>,
    row: &TaskRow,
    listed: Option<CloudSnapshotId>,
) -> Result<(), DbError> {
    if let Some(listed) = listed {
        doubts::doubt(row.credential, listed).put(tx)?;
    }
    match &row.spec {
        TaskSpec::Backup(_) => task::mark_failed(tx, row),
        TaskSpec::Restore(RestoreTask::NewVolume { .. }) => full::mark_failed(tx, row),
        TaskSpec::Restore(RestoreTask::LazyVolume | RestoreTask::InPlace(_)) => Ok(()),
        TaskSpec::Delete(_) | TaskSpec::Verify(_) => Ok(()),
    }
}

async fn clean_up(runner: &Arc<Runner>, row: &TaskRow) -> Result<(), ServiceError> {
    match &row.spec {
        TaskSpec::Backup(_) => {
            remove_leftovers(runner, row);
            task::clean_up(&runner.backup_work, row).await
        }
        TaskSpec::Restore(RestoreTask::NewVolume { .. }) => full::clean_up(&runner.restore_work, row).await,
        // The volume is in use, with the fetched blocks.
        TaskSpec::Restore(RestoreTask::LazyVolume) => Ok(()),
        TaskSpec::Restore(RestoreTask::InPlace(_)) => {
            in_place::release(&runner.in_place_work, row);
            Ok(())
        }
        TaskSpec::Delete(_) | TaskSpec::Verify(_) => clean_files(&runner.tasks, row.id).await,
    }
}

/// Deletes the objects of a backup that cannot be committed any more: its commit never started, and only this
/// run of the daemon knows its name. All other objects wait for garbage collection.
fn remove_leftovers(runner: &Arc<Runner>, row: &TaskRow) {
    if row.detail.run != Some(runner.host.run)
        || row.detail.may_be_committed
        || row.detail.backup_type.is_none()
    {
        return;
    }
    let (runner, row) = (Arc::clone(runner), row.clone());
    // A failure loses only space, so it runs in the background.
    tokio::spawn(async move {
        let removed = async {
            let (repository, _) = runner.repositories.task_repository(row.credential).await?;
            let id = row.cloudsnap;
            Ok::<_, ServiceError>(remove_leftovers_of(&repository, id.cluster, id.volume, id.snapshot).await?)
        };
        let removed = tokio::select! {
            removed = removed => removed,
            () = runner.host.stopping.cancelled() => return,
        };
        match removed {
            Ok(objects) => {
                tracing::info!(task = %row.id, objects, "removed what the backup left in the store");
            }
            Err(error) => {
                tracing::warn!(task = %row.id, %error, "what the backup left in the store is garbage until it is collected");
            }
        }
    });
}

/// Ends an unsuccessful task: first its rows, then its files and objects. It counts as running until its rows
/// are stored, because the next start would resume it.
///
/// # Errors
/// The daemon stops before the rows are stored.
pub(crate) async fn end_undone(
    runner: &Arc<Runner>,
    live: &LiveTask,
    error: &ServiceError,
    stopped: bool,
) -> Result<(), ServiceError> {
    let kept = is_worth_keeping(&live.view(), error, stopped);
    let mut row = match stopped {
        true => {
            tracing::info!("task stopped");
            live.final_row(TaskStage::Stopped, None)
        }
        false => {
            let error = error.to_api();
            tracing::error!(code = %error.code, error = %error.message, kept, "task failed");
            live.final_row(TaskStage::Failed, Some(error))
        }
    };
    row.detail.kept = kept;
    // The rows may need the space of the incomplete volume.
    if !kept
        && matches!(row.spec, TaskSpec::Restore(RestoreTask::NewVolume { .. }))
        && let Err(error) = full::make_room(&runner.restore_work, &row).await
    {
        tracing::warn!(%error, "the half restored volume is removed later");
    }
    let keep = runner.host.settings.task_history;
    let listed = match kept {
        true => None,
        false => doubts::may_be_listed(&runner.backup_work, &row).await,
    };
    runner
        .tasks
        .until_stored("the end of the task", || {
            let stored = row.clone();
            async move {
                let kept = runner.db.run(move |tx| -> Result<(), DbError> {
                    if !stored.detail.kept {
                        mark_given_up(tx, &stored, listed)?;
                    }
                    stored.put(tx)?;
                    NewEvent::of_task(&stored, Timestamp::now()).insert(tx)?;
                    TaskRow::prune(tx, keep)
                });
                Ok(kept.await?)
            }
        })
        .await?;
    if !kept && let Err(error) = clean_up(runner, &row).await {
        tracing::warn!(%error, "what the failed task left behind is removed at the next start");
    }
    live.set_row(row);
    Ok(())
}

impl Runner {
    /// Stops a task and waits for its end. With `discard`, a stopped task is abandoned.
    ///
    /// # Errors
    /// There is no such task, or it has ended.
    pub async fn stop_task(self: &Arc<Self>, id: Uuid, request: StopTask) -> Result<api::Task, ServiceError> {
        let live = self.tasks.live.lock().get(&id).cloned();
        let was_live = live.is_some();
        if let Some(live) = live {
            live.stop();
            tokio::select! {
                () = live.ended() => {}
                () = self.host.stopping.cancelled() => return Err(ServiceError::Stopping),
            }
        }
        let _admission = self.admission.lock().await;
        let mut row = self.tasks.task_row(id).await?;
        let is_over = matches!(row.state, TaskStage::Done | TaskStage::Failed);
        if request.discard && row.detail.kept {
            self.give_up(&mut row).await?;
        } else if is_over && !was_live {
            let message = format!("{} task {id} has ended: there is nothing to stop", row.kind());
            return Err(ServiceError::refused(ErrorCode::TaskEnded, message));
        }
        Ok(self.tasks.task_to_api(&row))
    }

    /// Returns true for a deletion or an in-place restore.
    ///
    /// # Errors
    /// There is no such task.
    pub async fn overwrites_or_deletes(&self, id: Uuid) -> Result<bool, ServiceError> {
        let row = self.tasks.task_row(id).await?;
        Ok(match row.spec {
            TaskSpec::Delete(_) | TaskSpec::Restore(RestoreTask::InPlace(_)) => true,
            TaskSpec::Restore(RestoreTask::NewVolume { .. } | RestoreTask::LazyVolume) => false,
            TaskSpec::Backup(_) | TaskSpec::Verify(_) => false,
        })
    }

    /// Resumes a stopped or failed task.
    ///
    /// # Errors
    /// There is no such task, or it cannot be resumed.
    pub async fn resume_task(self: &Arc<Self>, id: Uuid) -> Result<api::Task, ServiceError> {
        let _admission = self.admission.lock().await;
        if self.host.stopping.is_cancelled() {
            return Err(ServiceError::Stopping);
        }
        let mut row = self.tasks.task_row(id).await?;
        if !row.detail.kept || !matches!(row.state, TaskStage::Stopped | TaskStage::Failed) {
            let state = match row.state {
                TaskStage::Pending | TaskStage::Active => "it runs",
                TaskStage::Done => "it is done",
                TaskStage::Stopped | TaskStage::Failed => "nothing of it was kept; start it again",
            };
            let message = format!("{} task {id} cannot be resumed: {state}", row.kind());
            return Err(ServiceError::refused(ErrorCode::TaskEnded, message));
        }
        self.refuse_if_busy(&row).await?;
        // It may have been pinned meanwhile.
        if let TaskSpec::Delete(DeleteTask { force: false, .. }) = row.spec {
            self.checks.refuse_if_pinned(&row.cloudsnap, row.credential).await?;
        }
        self.in_place_work.keep_clients_out(&row)?;
        row.state = TaskStage::Pending;
        let detail = &mut row.detail;
        (detail.kept, detail.error, detail.completed) = (false, None, None);
        detail.resumed += 1;
        detail.version += 1;
        let stored = row.clone();
        self.db.run(move |tx| stored.put(tx)).await?;
        tracing::info!(task = %row.id, kind = %row.kind(), resumed = row.detail.resumed, "task resumed");
        self.launch(row.clone());
        Ok(self.tasks.task_to_api(&row))
    }

    /// Changes the bandwidth limits of a task: at once if it runs, otherwise when it resumes.
    ///
    /// # Errors
    /// There is no such task, it is done, or a limit is too low.
    pub async fn limit_task(&self, id: Uuid, limits: TaskLimits) -> Result<api::Task, ServiceError> {
        check_limits(limits)?;
        let _admission = self.admission.lock().await;
        let live = self.tasks.live.lock().get(&id).cloned();
        if let Some(live) = live {
            live.set_limits(limits);
            self.tasks.store_progress(&live).await;
            return Ok(self.tasks.task_to_api(&live.view()));
        }
        let mut row = self.tasks.task_row(id).await?;
        if !row.detail.kept {
            let message = format!("{} task {id} has ended: there is nothing to limit", row.kind());
            return Err(ServiceError::refused(ErrorCode::TaskEnded, message));
        }
        row.detail.limits = limits;
        let stored = row.clone();
        self.db.run(move |tx| stored.put(tx)).await?;
        Ok(self.tasks.task_to_api(&row))
    }

    /// Refuses a resume next to a conflicting task that was started meanwhile.
    async fn refuse_if_busy(&self, row: &TaskRow) -> Result<(), ServiceError> {
        let is_of_same_volume = |other: &TaskRow| row.volume.is_some() && other.volume == row.volume;
        let conflicts = |other: &TaskRow| match &row.spec {
            TaskSpec::Backup(_) => match &other.spec {
                TaskSpec::Backup(_) => is_of_same_volume(other) && other.credential == row.credential,
                // A freeze would capture a mixture.
                TaskSpec::Restore(RestoreTask::InPlace(_)) => is_of_same_volume(other),
                TaskSpec::Restore(_) | TaskSpec::Delete(_) | TaskSpec::Verify(_) => false,
            },
            TaskSpec::Restore(RestoreTask::InPlace(_)) => is_of_same_volume(other),
            TaskSpec::Restore(RestoreTask::LazyVolume) => {
                other.spec.is_of_volume_in_use() && is_of_same_volume(other)
            }
            TaskSpec::Delete(_) => other.kind() == TaskKind::Delete && other.cloudsnap == row.cloudsnap,
            TaskSpec::Restore(RestoreTask::NewVolume { .. }) | TaskSpec::Verify(_) => false,
        };
        match self.tasks.unfinished_tasks().await?.into_iter().find(conflicts) {
            Some(other) => {
                let message = format!("{} task {} is in its way: wait for it to end", other.kind(), other.id);
                Err(ServiceError::refused(ErrorCode::VolumeInUse, message))
            }
            None => Ok(()),
        }
    }
}

impl Runner {
    /// Abandons the resumable tasks that match. The caller holds the admission lock.
    ///
    /// # Errors
    /// The database fails.
    pub async fn give_up_kept(
        self: &Arc<Self>,
        is_meant: impl Fn(&TaskRow) -> bool,
    ) -> Result<(), ServiceError> {
        for mut row in self.tasks.kept_tasks().await? {
            if is_meant(&row) {
                self.give_up(&mut row).await?;
            }
        }
        Ok(())
    }

    /// Abandons tasks that were kept too long to be completed, by a clock that their store confirms.
    ///
    /// # Errors
    /// The database fails.
    pub async fn give_up_expired(self: &Arc<Self>, now: Timestamp) -> Result<(), ServiceError> {
        let age_s = |row: &TaskRow| now.as_second().saturating_sub(row.created.as_second());
        let is_aged = |row: &&TaskRow| !row.spec.is_of_volume_in_use() && age_s(row) > BACKUP_LIFETIME_S;
        let kept = self.tasks.kept_tasks().await?;
        let mut lifetimes = HashMap::new();
        for credential in kept.iter().filter(is_aged).map(|row| row.credential).collect::<HashSet<_>>() {
            lifetimes.insert(credential, self.lifetime_by_store_clock(credential).await);
        }
        let _admission = self.admission.lock().await;
        let is_old = |row: &TaskRow| match row.spec.is_of_volume_in_use() {
            // They can be completed as long as the volume exists; clients must not see a mixture without a
            // user's decision.
            true => row.volume.is_none_or(|id| self.registry.by_id(id).is_none()),
            // A credential that was not checked waits for the next pass.
            false => lifetimes
                .get(&row.credential)
                .is_some_and(|lifetime_s| lifetime_s.is_some_and(|most_s| age_s(row) > most_s)),
        };
        self.give_up_kept(is_old).await
    }

    /// Returns the age in seconds at which tasks of a credential are abandoned; `None` if the clocks of this
    /// host and of the store differ, or did when they were last compared. Twice the lifetime if the store
    /// does not answer: its tasks must not stay for ever.
    async fn lifetime_by_store_clock(&self, credential: Uuid) -> Option<i64> {
        match tokio::time::timeout(CLOCK_CHECK_TIMEOUT, self.checks.check_clock_of(credential)).await {
            Ok(Ok(())) => Some(BACKUP_LIFETIME_S),
            Ok(Err(ServiceError::Cloud(error))) if matches!(*error, CloudError::ClockUnknown { .. }) => {
                Some(BACKUP_LIFETIME_S)
            }
            _ if self.health.has(health::CLOCK, &credential.to_string()) => None,
            _ => Some(2 * BACKUP_LIFETIME_S),
        }
    }

    async fn give_up(self: &Arc<Self>, row: &mut TaskRow) -> Result<(), ServiceError> {
        row.detail.kept = false;
        row.detail.version += 1;
        let listed = doubts::may_be_listed(&self.backup_work, row).await;
        let stored = row.clone();
        self.db
            .run(move |tx| -> Result<(), DbError> {
                mark_given_up(tx, &stored, listed)?;
                stored.put(tx)
            })
            .await?;
        tracing::info!(task = %row.id, kind = %row.kind(), "task given up");
        if let Err(error) = clean_up(self, row).await {
            tracing::warn!(task = %row.id, %error, "what the task left behind is removed at the next start");
        }
        Ok(())
    }
}

impl Runner {
    /// Starts a task whose row the caller stored.
    pub fn launch(self: &Arc<Self>, row: TaskRow) {
        let span = tracing::info_span!(parent: None, "task", task = %row.id, kind = %row.kind(), volume = row.volume.map(tracing::field::display));
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
            row.state = TaskStage::Pending;
            tracing::info!(task = %row.id, kind = %row.kind(), resumed = row.detail.resumed, "taking the task up again");
            let stored = row.clone();
            self.db.run(move |tx| stored.put(tx)).await?;
            self.launch(row);
        }
        Ok(())
    }
}

impl Runner {
    pub(crate) async fn store_and_launch(
        self: &Arc<Self>,
        mut row: TaskRow,
        with: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<(), DbError> + Send + 'static,
    ) -> Result<TaskStarted, ServiceError> {
        if self.host.stopping.is_cancelled() {
            return Err(ServiceError::Stopping);
        }
        row.detail.run = Some(self.host.run);
        let stored = row.clone();
        self.db
            .run(move |tx| {
                with(tx)?;
                stored.put(tx)
            })
            .await?;
        let task = row.id;
        tracing::info!(task = %task, kind = %row.kind(), cloudsnap = %row.cloudsnap, "task accepted");
        self.launch(row);
        Ok(TaskStarted { task })
    }
}

/// Does the work of a task.
async fn work_on(runner: &Runner, live: &Arc<LiveTask>) -> Result<TaskRow, ServiceError> {
    let _busy = runner.pressure.begin();
    match live.view().spec {
        TaskSpec::Backup(asked) => task::run(&runner.backup_work, live, &asked).boxed().await,
        TaskSpec::Restore(RestoreTask::NewVolume { skip_damaged }) => {
            full::run(&runner.restore_work, live, skip_damaged).boxed().await
        }
        TaskSpec::Restore(RestoreTask::LazyVolume) => {
            hydrate::run(&runner.hydration_work, live).boxed().await
        }
        TaskSpec::Restore(RestoreTask::InPlace(asked)) => {
            in_place::run(&runner.in_place_work, live, asked).boxed().await
        }
        TaskSpec::Delete(asked) => delete::run(&runner.delete_work, live, asked).boxed().await,
        TaskSpec::Verify(asked) => verify::run(&runner.verify_work, live, asked).boxed().await,
    }
}

/// Refreshes and stores the progress of a task until it is dropped.
async fn record_progress(runner: &Runner, live: &LiveTask) {
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
}

async fn run(runner: &Arc<Runner>, live: &Arc<LiveTask>) {
    let relay = async {
        runner.host.stopping.cancelled().await;
        live.cancel.cancel();
        std::future::pending::<()>().await;
    };
    let outcome = tokio::select! {
        outcome = AssertUnwindSafe(work_on(runner, live)).catch_unwind() => outcome,
        () = record_progress(runner, live) => return,
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
            if end_undone(runner, live, &error, true).await.is_err() {
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
            if end_undone(runner, live, &error, false).await.is_err() {
                tracing::info!("the task goes on after the next start: its end could not be stored");
                live.detach();
                return;
            }
        }
    }
    runner.tasks.live.lock().remove(&live.id);
    let row = live.view();
    runner.tasks.ended.note(row.kind(), row.state);
    runner.scheduler.wake();
    runner.events.wake();
    live.end();
}
