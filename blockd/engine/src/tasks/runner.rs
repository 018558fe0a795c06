//! Starts, stops and resumes tasks.

use crate::{
    backup::{task, work::BackupWork},
    cloud_snapshots::delete_task::{self, DeleteWork},
    costs::{check_max_cost, prices_of},
    drills::task::{self as task_of_drill, DrillWork},
    error::ServiceError,
    events::EventLog,
    fingerprints,
    health::ComponentHealth,
    host::{Admission, Host},
    maintenance::verify_task::{self, VerifyWork},
    repair::{self, task::RepairWork},
    restore::{
        full::{self, RestoreWork},
        in_place::{self, InPlaceWork},
        lazy::hydrate::{self, HydrationWork},
    },
    schedules::{resumption, retention_checks::RetentionChecks, wake::Scheduler},
    scrub::{self, task::ScrubWork},
    tasks::{
        LiveTask, Tasks,
        requests::{check_limits, refuse_budget_of},
        unsuccessful::end_unsuccessful,
        workers::TaskWorkers,
    },
    volumes::registry::Registry,
};
use blockd_api::{
    ErrorCode,
    tasks::{self as api, StopTask, TaskKind, TaskLimits, TaskStage, TaskStarted},
};
use blockd_catalog::{Db, DbError, DeleteTask, NewEvent, RestoreTask, RunRow, TaskRow, TaskSpec};
use futures::FutureExt;
use jiff::Timestamp;
use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tracing::Instrument;
use uuid::Uuid;

/// Polling interval of a task's progress.
const POLL_MS: u64 = 200;
/// Number of polls per stored progress.
const POLLS_PER_STORE: u32 = 5;
/// Starts, stops and resumes tasks.
pub struct Runner {
    pub(crate) admission: Arc<Admission>,
    pub(crate) backup_work: Arc<BackupWork>,
    pub(crate) checks: Arc<RetentionChecks>,
    pub(crate) db: Arc<Db>,
    pub(crate) delete_work: Arc<DeleteWork>,
    pub(crate) drill_work: Arc<DrillWork>,
    pub(crate) events: Arc<EventLog>,
    pub(crate) health: Arc<ComponentHealth>,
    pub(crate) host: Arc<Host>,
    pub(crate) hydration_work: Arc<HydrationWork>,
    pub(crate) in_place_work: Arc<InPlaceWork>,
    pub(crate) task_workers: Arc<TaskWorkers>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repair_work: Arc<RepairWork>,
    pub(crate) restore_work: Arc<RestoreWork>,
    pub(crate) scheduler: Arc<Scheduler>,
    pub(crate) scrub_work: Arc<ScrubWork>,
    pub(crate) tasks: Arc<Tasks>,
    pub(crate) verify_work: Arc<VerifyWork>,
}

impl Runner {
    /// Stops a task and waits for its end. With `discard`, a stopped task is abandoned: an in-place restore
    /// after its volume is rolled back to the content before it.
    ///
    /// # Errors
    /// There is no such task, it has ended, or the rollback failed.
    pub async fn stop_task(self: &Arc<Self>, id: Uuid, request: StopTask) -> Result<api::Task, ServiceError> {
        let mut was_live = false;
        loop {
            let live = self.tasks.live.lock().get(&id).cloned();
            if let Some(live) = live {
                was_live = true;
                live.stop();
                tokio::select! {
                    () = live.ended() => {}
                    () = self.host.stopping.cancelled() => return Err(ServiceError::Stopping),
                }
            }
            let row = self.tasks.task_row(id).await?;
            // Other requests do not wait for the rollback.
            let _fence = match row.spec.in_place().filter(|_| request.discard && row.detail.resumable) {
                Some(asked) => in_place::undo(&self.in_place_work, &row, asked).await?,
                None => None,
            };
            let _admission = self.admission.lock().await;
            // The scheduler may have resumed it concurrently.
            if !self.tasks.live.lock().contains_key(&id) {
                return self.stop_ended(id, request.discard, was_live).await;
            }
        }
    }

    /// Completes the stop of a task that does not run; `was_live` is true if the stop ended it. The caller
    /// holds the admission lock.
    async fn stop_ended(
        self: &Arc<Self>,
        id: Uuid,
        discard: bool,
        was_live: bool,
    ) -> Result<api::Task, ServiceError> {
        let mut row = self.tasks.task_row(id).await?;
        let is_over = matches!(row.state, TaskStage::Done | TaskStage::Failed);
        let is_stopped = is_over && self.stop_retrying(&mut row).await?;
        if discard && row.detail.resumable {
            self.abandon(&mut row).await?;
        } else if is_over && !is_stopped && !was_live {
            let message = format!("{} task {id} has ended: there is nothing to stop", row.kind());
            return Err(ServiceError::refused(ErrorCode::TaskEnded, message));
        }
        Ok(self.tasks.task_to_api(&row))
    }

    /// Stops the failed backup of a retrying run, which would resume; returns false for other tasks.
    async fn stop_retrying(&self, row: &mut TaskRow) -> Result<bool, ServiceError> {
        if !resumption::will_resume(row) {
            return Ok(false);
        }
        let mut stopped = TaskRow { state: TaskStage::Stopped, ..row.clone() };
        stopped.detail.error = None;
        stopped.detail.version += 1;
        let stored = stopped.clone();
        let stop = move |tx: &rusqlite::Transaction<'_>| -> Result<bool, DbError> {
            if RunRow::unfinished_of_task(tx, stored.id)?.is_none() {
                return Ok(false);
            }
            stored.put(tx)?;
            NewEvent::insert_end_of(&stored, Timestamp::now(), tx)?;
            Ok(true)
        };
        let is_stopped = self.db.run(stop).await?;
        if is_stopped {
            *row = stopped;
            self.tasks.ended.note(row.kind(), row.state);
            self.scheduler.wake();
            self.events.wake();
        }
        Ok(is_stopped)
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
            TaskSpec::Backup(_) | TaskSpec::Verify(_) | TaskSpec::Repair(_) => false,
            TaskSpec::Drill(_) | TaskSpec::Scrub(_) => false,
        })
    }

    /// Resumes a stopped or failed task.
    ///
    /// # Errors
    /// There is no such task, or it cannot be resumed.
    pub async fn resume_task(self: &Arc<Self>, id: Uuid) -> Result<api::Task, ServiceError> {
        self.resume(id, None).await
    }

    /// Resumes the failed task of a retrying run.
    ///
    /// # Errors
    /// Those of [`resume_task`](Self::resume_task); the run is no longer retrying.
    pub async fn resume_run(self: &Arc<Self>, task: Uuid, run: u64) -> Result<api::Task, ServiceError> {
        self.resume(task, Some(run)).await
    }

    async fn resume(self: &Arc<Self>, id: Uuid, run: Option<u64>) -> Result<api::Task, ServiceError> {
        let _admission = self.admission.lock().await;
        if self.host.stopping.is_cancelled() {
            return Err(ServiceError::Stopping);
        }
        let mut row = self.tasks.task_row(id).await?;
        if !row.detail.resumable || !matches!(row.state, TaskStage::Stopped | TaskStage::Failed) {
            let state = match row.state {
                TaskStage::Pending | TaskStage::Active => "it runs",
                TaskStage::Done => "it is done",
                TaskStage::Stopped | TaskStage::Failed => "it has no state to resume from; start it again",
            };
            let message = format!("{} task {id} cannot be resumed: {state}", row.kind());
            return Err(ServiceError::refused(ErrorCode::TaskEnded, message));
        }
        self.refuse_if_busy(&row).await?;
        // The cloud snapshot may have been pinned since, or be in use.
        if let TaskSpec::Delete(DeleteTask { force, .. }) = row.spec {
            if !force {
                self.checks.refuse_if_pinned(&row.cloudsnap, row.credential).await?;
            }
            self.delete_work.refuse_if_used(&row.cloudsnap).await?;
        }
        self.in_place_work.fence_volume(&row)?;
        row.state = TaskStage::Pending;
        let detail = &mut row.detail;
        (detail.resumable, detail.error, detail.completed) = (false, None, None);
        detail.resumed += 1;
        detail.version += 1;
        let stored = row.clone();
        let resumed = move |tx: &rusqlite::Transaction<'_>| {
            // In the same transaction: the next failure of the task must find this attempt.
            let is_retrying = RunRow::record_resumption(tx, stored.id)?;
            match run {
                Some(run) if !is_retrying => Err(DbError::NotWaiting(run)),
                _ => stored.put(tx),
            }
        };
        self.db.run(resumed).await?;
        tracing::info!(task = %row.id, kind = %row.kind(), resumed = row.detail.resumed, "task resumed");
        self.launch(row.clone());
        Ok(self.tasks.task_to_api(&row))
    }

    /// Changes the limits of a task: at once if it runs, otherwise when it resumes.
    ///
    /// # Errors
    /// There is no such task, it is done, or a limit is too low.
    pub async fn limit_task(&self, id: Uuid, limits: TaskLimits) -> Result<api::Task, ServiceError> {
        check_limits(limits)?;
        let _admission = self.admission.lock().await;
        let live = self.tasks.live.lock().get(&id).cloned();
        let known = match &live {
            Some(live) => live.view(),
            None => self.tasks.task_row(id).await?,
        };
        check_max_cost(&self.host.settings, &limits, &known.detail.credential_name)?;
        refuse_budget_of(&known, &limits)?;
        if let Some(live) = live {
            live.set_limits(limits);
            self.tasks.store_progress(&live).await;
            return Ok(self.tasks.task_to_api(&live.view()));
        }
        let mut row = known;
        if !row.detail.resumable {
            let message = format!("{} task {id} has ended: there is nothing to limit", row.kind());
            return Err(ServiceError::refused(ErrorCode::TaskEnded, message));
        }
        row.detail.limits = limits;
        let stored = row.clone();
        self.db.run(move |tx| stored.put(tx)).await?;
        Ok(self.tasks.task_to_api(&row))
    }

    /// Refuses a resume next to a conflicting task that was started since the stop.
    async fn refuse_if_busy(&self, row: &TaskRow) -> Result<(), ServiceError> {
        let is_of_same_volume = |other: &TaskRow| row.volume.is_some() && other.volume == row.volume;
        let conflicts = |other: &TaskRow| match &row.spec {
            TaskSpec::Backup(_) => match &other.spec {
                TaskSpec::Backup(_) => is_of_same_volume(other) && other.credential == row.credential,
                // A freeze would capture a mixture.
                TaskSpec::Restore(RestoreTask::InPlace(_)) => is_of_same_volume(other),
                TaskSpec::Restore(_)
                | TaskSpec::Delete(_)
                | TaskSpec::Verify(_)
                | TaskSpec::Drill(_)
                | TaskSpec::Repair(_)
                | TaskSpec::Scrub(_) => false,
            },
            TaskSpec::Restore(RestoreTask::InPlace(_)) => is_of_same_volume(other),
            TaskSpec::Restore(RestoreTask::LazyVolume) => {
                other.spec.is_of_volume_in_use() && is_of_same_volume(other)
            }
            TaskSpec::Delete(_) => other.kind() == TaskKind::Delete && other.cloudsnap == row.cloudsnap,
            TaskSpec::Restore(RestoreTask::NewVolume { .. })
            | TaskSpec::Verify(_)
            | TaskSpec::Drill(_)
            | TaskSpec::Repair(_)
            | TaskSpec::Scrub(_) => false,
        };
        match self.tasks.unfinished_tasks().await?.into_iter().find(conflicts) {
            Some(other) => {
                let message = format!(
                    "{} task {} conflicts with it: wait for that task to end",
                    other.kind(),
                    other.id
                );
                Err(ServiceError::refused(ErrorCode::VolumeInUse, message))
            }
            None => Ok(()),
        }
    }

    /// Starts a task whose row the caller stored.
    pub fn launch(self: &Arc<Self>, row: TaskRow) {
        let span = tracing::info_span!(parent: None, "task", task = %row.id, kind = %row.kind(), volume = row.volume.map(tracing::field::display));
        let prices = prices_of(&self.host.settings, &row.detail.credential_name).cloned();
        let live = Arc::new(LiveTask::new(row, prices));
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
            tracing::info!(task = %row.id, kind = %row.kind(), resumed = row.detail.resumed, "resuming the task");
            let stored = row.clone();
            self.db.run(move |tx| stored.put(tx)).await?;
            self.launch(row);
        }
        Ok(())
    }

    pub(crate) async fn store_and_launch(
        self: &Arc<Self>,
        row: TaskRow,
        with: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<(), DbError> + Send + 'static,
    ) -> Result<TaskStarted, ServiceError> {
        let task_id = row.id;
        self.store_and_launch_all(vec![row], with).await.map(|()| TaskStarted { task_id })
    }

    /// Stores tasks in one transaction with further changes, and starts them.
    pub(crate) async fn store_and_launch_all(
        self: &Arc<Self>,
        mut rows: Vec<TaskRow>,
        with: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<(), DbError> + Send + 'static,
    ) -> Result<(), ServiceError> {
        if self.host.stopping.is_cancelled() {
            return Err(ServiceError::Stopping);
        }
        rows.iter_mut().for_each(|row| row.detail.run = Some(self.host.run));
        let stored = rows.clone();
        self.db
            .run(move |tx| {
                with(tx)?;
                stored.iter().try_for_each(|row| row.put(tx))
            })
            .await?;
        for row in rows {
            tracing::info!(task = %row.id, kind = %row.kind(), cloudsnap = row.object(), "task accepted");
            self.launch(row);
        }
        Ok(())
    }
}

/// Runs a task according to its type.
async fn work_on(runner: &Runner, live: &Arc<LiveTask>) -> Result<TaskRow, ServiceError> {
    let _active = runner.task_workers.begin();
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
        TaskSpec::Delete(asked) => delete_task::run(&runner.delete_work, live, asked).boxed().await,
        TaskSpec::Verify(asked) => verify_task::run(&runner.verify_work, live, asked).boxed().await,
        TaskSpec::Drill(asked) => {
            let drill = task_of_drill::run(Arc::clone(&runner.drill_work), Arc::clone(live), asked).boxed();
            runner.task_workers.in_background(drill).await?.map_err(task_of_drill::with_hint)
        }
        TaskSpec::Repair(asked) => repair::task::run(&runner.repair_work, live, asked).boxed().await,
        TaskSpec::Scrub(asked) => scrub::task::run(&runner.scrub_work, live, asked).boxed().await,
    }
}

/// Refreshes and stores the progress of a task until it is dropped.
async fn record_progress(runner: &Runner, live: &LiveTask) {
    let mut polls = 0u32;
    loop {
        tokio::time::sleep(Duration::from_millis(POLL_MS)).await;
        let changed = live.refresh();
        polls += 1;
        if changed && polls >= POLLS_PER_STORE {
            polls = 0;
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
    if let Err(error) = &outcome {
        fingerprints::forget_failed(&runner.host.data_dir, error);
    }
    let mut is_end = true;
    match outcome {
        Ok(row) => {
            let detail = &row.detail;
            tracing::info!(
                cloudsnap = row.object(),
                bytes_processed = detail.bytes_processed,
                bytes_uploaded = detail.bytes_uploaded,
                bytes_downloaded = detail.bytes_downloaded,
                requests = detail.requests.total(),
                "task done"
            );
            live.set_row(row);
        }
        // A hydration stops with its volume.
        Err(error)
            if live.is_stop_wanted()
                && (error.is_cancelled() || error.to_api().code == ErrorCode::VolumeNotFound) =>
        {
            if end_unsuccessful(runner, live, &error, true).await.is_err() {
                live.detach();
                return;
            }
        }
        Err(error) if runner.host.stopping.is_cancelled() && error.is_cancelled() => {
            tracing::info!("task interrupted; the next start resumes it");
            live.detach();
            runner.tasks.store_progress(live).await;
            return;
        }
        Err(error) => match end_unsuccessful(runner, live, &error, false).await {
            Ok(is_last) => is_end = is_last,
            Err(_) => {
                tracing::info!("storing the end of the task failed; the next start resumes it");
                live.detach();
                return;
            }
        },
    }
    runner.tasks.live.lock().remove(&live.id);
    let row = live.view();
    if is_end {
        runner.tasks.ended.note(row.kind(), row.state);
    }
    runner.scheduler.wake();
    runner.events.wake();
    live.end();
}
