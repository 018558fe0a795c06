//! Tasks that end without being done: stopped by somebody, or failed. What they need to go on is kept where
//! that makes sense, and they are taken up again, or given up.
//!
//! Kept are: of a backup its snapshot, its plan and its journal, so that what is in the store already is not
//! sent again; of a restore the half volume and which blocks of it are in place; of a hydration nothing but
//! its row; of a restore in place that has begun to write, that clients stay out of the mixture; of a delete
//! the manifest. A backup that is kept is given up when a newer one of the same volume to the same credential
//! begins, and when it is too old to commit. What may be listed of it then is looked at (see [`doubts`]).

use super::{LiveTask, backup, clean_files, doubts, restore};
use crate::{
    core::Core,
    db::{DbError, NewEvent, TaskKind, TaskRow, TaskState},
    error::ServiceError,
    lazy::in_place,
};
use blockd_api::{
    ErrorCode,
    tasks::{self as api, StopTask, TaskLimits},
};
use blockd_cloud::{BACKUP_LIFETIME_S, CloudError, CloudsnapId, remove_leftovers_of};
use jiff::Timestamp;
use std::sync::Arc;
use uuid::Uuid;

/// Whether a task that met this may go on from where it was, once somebody has done something about it.
fn can_go_on(error: &ServiceError) -> bool {
    if error.to_api().code == ErrorCode::NoSpace {
        // What would be kept is what the volumes on this host need the room of.
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

/// Refuses limits below which even small requests would take minutes.
pub(crate) fn check_limits(limits: TaskLimits) -> Result<(), ServiceError> {
    const MIN_BYTES_PER_S: u64 = 1 << 10;
    let given = [limits.limit_upload_bytes_per_s, limits.limit_download_bytes_per_s];
    if given.into_iter().flatten().any(|limit| limit < MIN_BYTES_PER_S) {
        let message = "a limit is at least 1 KiB a second";
        return Err(ServiceError::refused(ErrorCode::InvalidRequest, message));
    }
    Ok(())
}

/// Whether what a task needs to go on is worth keeping.
fn is_worth_keeping(row: &TaskRow, error: &ServiceError, stopped: bool) -> bool {
    if row.detail.is_of_volume_in_use() {
        // Whatever it met: it costs nothing, and without it nobody could go on. Before a restore in place has
        // begun, the volume is what it was.
        let is_there = error.to_api().code != ErrorCode::VolumeNotFound;
        return is_there && (row.detail.lazy || in_place::has_begun(row));
    }
    match row.kind {
        // Before that nothing was sent, and the point in time is no more than a moment old.
        TaskKind::Backup => stopped || (row.detail.backup_type.is_some() && can_go_on(error)),
        TaskKind::Restore => stopped || (row.detail.bytes_processed > 0 && can_go_on(error)),
        TaskKind::Delete => stopped || can_go_on(error),
        TaskKind::Verify => stopped,
    }
}

/// `listed` is the name of a backup that may be listed all the same.
fn mark_given_up(
    tx: &rusqlite::Transaction<'_>,
    row: &TaskRow,
    listed: Option<CloudsnapId>,
) -> Result<(), DbError> {
    if let Some(listed) = listed {
        doubts::doubt(row.credential, listed).put(tx)?;
    }
    match row.kind {
        TaskKind::Backup => backup::mark_failed(tx, row),
        TaskKind::Restore if row.detail.is_of_volume_in_use() => Ok(()),
        TaskKind::Restore => restore::mark_failed(tx, row),
        TaskKind::Delete | TaskKind::Verify => Ok(()),
    }
}

async fn clean_up(core: &Arc<Core>, row: &TaskRow) -> Result<(), ServiceError> {
    match row.kind {
        TaskKind::Backup => {
            remove_leftovers(core, row);
            backup::clean_up(core, row).await
        }
        // The volume is in use, with what was fetched.
        TaskKind::Restore if row.detail.is_of_volume_in_use() => {
            in_place::let_go(core, row);
            Ok(())
        }
        TaskKind::Restore => restore::clean_up(core, row).await,
        TaskKind::Delete | TaskKind::Verify => clean_files(core, row.id).await,
    }
}

/// Removes what a backup left in the store, where it is sure that nobody can commit it: it never began to,
/// and this run of the daemon is the only one that ever knew its name. All else waits for the collection of
/// garbage.
fn remove_leftovers(core: &Arc<Core>, row: &TaskRow) {
    if row.detail.run != Some(core.run) || row.detail.may_be_committed || row.detail.backup_type.is_none() {
        return;
    }
    let (core, row) = (Arc::clone(core), row.clone());
    // Only space is lost if this fails, so nobody waits for it.
    tokio::spawn(async move {
        let removed = async {
            let (repository, _) = core.task_repository(row.credential).await?;
            let id = row.cloudsnap;
            Ok::<_, ServiceError>(remove_leftovers_of(&repository, id.cluster, id.volume, id.snapshot).await?)
        };
        let removed = tokio::select! {
            removed = removed => removed,
            () = core.stopping.cancelled() => return,
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

/// Ends a task that is not done: first its rows, then what it leaves behind. Until its rows are stored it
/// counts as running, because the next start would take it up again.
///
/// # Errors
/// The daemon stops before the rows are stored.
pub(super) async fn end_undone(
    core: &Arc<Core>,
    live: &LiveTask,
    error: &ServiceError,
    stopped: bool,
) -> Result<(), ServiceError> {
    let kept = is_worth_keeping(&live.view(), error, stopped);
    let mut row = match stopped {
        true => {
            tracing::info!("task stopped");
            live.final_row(TaskState::Stopped, None)
        }
        false => {
            let error = error.to_api();
            tracing::error!(code = %error.code, error = %error.message, kept, "task failed");
            live.final_row(TaskState::Failed, Some(error))
        }
    };
    row.detail.kept = kept;
    if !kept && row.kind == TaskKind::Restore && !row.detail.is_of_volume_in_use() {
        // The rows may need the room that the half volume takes.
        if let Err(error) = restore::make_room(core, &row).await {
            tracing::warn!(%error, "the half restored volume is removed later");
        }
    }
    let keep = core.config.task_history;
    let listed = match kept {
        true => None,
        false => doubts::may_be_listed(core, &row).await,
    };
    core.until_stored("the end of the task", || {
        let stored = row.clone();
        async move {
            let kept = core.db.run(move |tx| -> Result<(), DbError> {
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
    if !kept && let Err(error) = clean_up(core, &row).await {
        tracing::warn!(%error, "what the failed task left behind is removed at the next start");
    }
    live.set_row(row);
    Ok(())
}

impl Core {
    /// Stops a task and waits until it has come to rest; one that has ended already is given up, if that is
    /// wanted.
    ///
    /// # Errors
    /// There is no such task, or it has ended and there is nothing to stop.
    pub async fn stop_task(self: &Arc<Self>, id: Uuid, request: StopTask) -> Result<api::Task, ServiceError> {
        let live = self.tasks.live.lock().get(&id).cloned();
        let was_live = live.is_some();
        if let Some(live) = live {
            live.stop();
            tokio::select! {
                () = live.ended() => {}
                () = self.stopping.cancelled() => return Err(ServiceError::Stopping),
            }
        }
        let _admission = self.admission.lock().await;
        let mut row = self.task_row(id).await?;
        let is_over = matches!(row.state, TaskState::Done | TaskState::Failed);
        if request.discard && row.detail.kept {
            self.give_up(&mut row).await?;
        } else if is_over && !was_live {
            let message = format!("{} task {id} has ended: there is nothing to stop", row.kind);
            return Err(ServiceError::refused(ErrorCode::TaskEnded, message));
        }
        Ok(self.task_to_api(&row))
    }

    /// Whether a task deletes a cloud snapshot, or takes a volume back to one.
    ///
    /// # Errors
    /// There is no such task.
    pub(crate) async fn overwrites_or_deletes(&self, id: Uuid) -> Result<bool, ServiceError> {
        let row = self.task_row(id).await?;
        Ok(row.kind == TaskKind::Delete || row.detail.in_place.is_some())
    }

    /// Takes up a task again that was stopped or failed.
    ///
    /// # Errors
    /// There is no such task, or nothing of it was kept.
    pub async fn resume_task(self: &Arc<Self>, id: Uuid) -> Result<api::Task, ServiceError> {
        let _admission = self.admission.lock().await;
        if self.stopping.is_cancelled() {
            return Err(ServiceError::Stopping);
        }
        let mut row = self.task_row(id).await?;
        if !row.detail.kept || !matches!(row.state, TaskState::Stopped | TaskState::Failed) {
            let state = match row.state {
                TaskState::Pending | TaskState::Active => "it runs",
                TaskState::Done => "it is done",
                TaskState::Stopped | TaskState::Failed => "nothing of it was kept; start it again",
            };
            let message = format!("{} task {id} cannot be resumed: {state}", row.kind);
            return Err(ServiceError::refused(ErrorCode::TaskEnded, message));
        }
        self.refuse_if_busy(&row).await?;
        // Somebody may have pinned it while nothing deleted it.
        if row.kind == TaskKind::Delete && !row.detail.force {
            self.refuse_if_pinned(&row.cloudsnap, row.credential).await?;
        }
        self.keep_clients_out(&row)?;
        row.state = TaskState::Pending;
        let detail = &mut row.detail;
        (detail.kept, detail.error, detail.completed) = (false, None, None);
        detail.resumed += 1;
        detail.version += 1;
        let stored = row.clone();
        self.db.run(move |tx| stored.put(tx)).await?;
        tracing::info!(task = %row.id, kind = %row.kind, resumed = row.detail.resumed, "task resumed");
        self.launch(row.clone());
        Ok(self.task_to_api(&row))
    }

    /// Changes how much a task may move in a second: at once if it runs, otherwise when it is taken up again.
    ///
    /// # Errors
    /// There is no such task, it is done, or a limit is too low.
    pub async fn limit_task(&self, id: Uuid, limits: TaskLimits) -> Result<api::Task, ServiceError> {
        check_limits(limits)?;
        let _admission = self.admission.lock().await;
        let live = self.tasks.live.lock().get(&id).cloned();
        if let Some(live) = live {
            live.set_limits(limits);
            self.store_progress(&live).await;
            return Ok(self.task_to_api(&live.view()));
        }
        let mut row = self.task_row(id).await?;
        if !row.detail.kept {
            let message = format!("{} task {id} has ended: there is nothing to limit", row.kind);
            return Err(ServiceError::refused(ErrorCode::TaskEnded, message));
        }
        row.detail.limits = limits;
        let stored = row.clone();
        self.db.run(move |tx| stored.put(tx)).await?;
        Ok(self.task_to_api(&row))
    }

    /// Another task may have begun meanwhile that must not run beside this one.
    async fn refuse_if_busy(&self, row: &TaskRow) -> Result<(), ServiceError> {
        let is_of_same_volume = |other: &TaskRow| row.volume.is_some() && other.volume == row.volume;
        let same = |other: &TaskRow| match row.kind {
            // What it would freeze is a mixture.
            TaskKind::Backup if other.detail.in_place.is_some() => is_of_same_volume(other),
            TaskKind::Restore if row.detail.in_place.is_some() => is_of_same_volume(other),
            TaskKind::Restore if row.detail.lazy => {
                other.detail.is_of_volume_in_use() && is_of_same_volume(other)
            }
            TaskKind::Backup => {
                other.kind == TaskKind::Backup
                    && other.volume == row.volume
                    && other.credential == row.credential
            }
            TaskKind::Delete => other.kind == TaskKind::Delete && other.cloudsnap == row.cloudsnap,
            TaskKind::Restore | TaskKind::Verify => false,
        };
        match self.unfinished_tasks().await?.into_iter().find(same) {
            Some(other) => {
                let message = format!("{} task {} is in its way: wait for it to end", other.kind, other.id);
                Err(ServiceError::refused(ErrorCode::VolumeInUse, message))
            }
            None => Ok(()),
        }
    }

    pub(crate) async fn task_row(&self, id: Uuid) -> Result<TaskRow, ServiceError> {
        let row = self.db.run(move |tx| TaskRow::find(tx, id)).await?;
        row.ok_or_else(|| ServiceError::refused(ErrorCode::TaskNotFound, format!("there is no task {id}")))
    }

    /// The tasks that were kept to be taken up again.
    ///
    /// # Errors
    /// The database fails.
    pub(crate) async fn kept_tasks(&self) -> Result<Vec<TaskRow>, ServiceError> {
        Ok(self.db.run(TaskRow::kept).await?)
    }

    /// Gives up kept tasks for which this holds. The caller holds the admission.
    ///
    /// # Errors
    /// The database fails.
    pub(crate) async fn give_up_kept(
        self: &Arc<Self>,
        is_meant: impl Fn(&TaskRow) -> bool,
    ) -> Result<(), ServiceError> {
        for mut row in self.kept_tasks().await? {
            if is_meant(&row) {
                self.give_up(&mut row).await?;
            }
        }
        Ok(())
    }

    /// Gives up the tasks that were kept for so long that they could not be completed any more.
    ///
    /// # Errors
    /// The database fails.
    pub(crate) async fn give_up_expired(self: &Arc<Self>, now: Timestamp) -> Result<(), ServiceError> {
        let _admission = self.admission.lock().await;
        let is_old = |row: &TaskRow| match row.detail.is_of_volume_in_use() {
            // They can be completed as long as there is the volume; clients must not be let into a mixture by
            // themselves.
            true => row.volume.is_none_or(|id| self.registry.by_id(id).is_none()),
            false => now.as_second().saturating_sub(row.created.as_second()) > BACKUP_LIFETIME_S,
        };
        self.give_up_kept(is_old).await
    }

    async fn give_up(self: &Arc<Self>, row: &mut TaskRow) -> Result<(), ServiceError> {
        row.detail.kept = false;
        row.detail.version += 1;
        let listed = doubts::may_be_listed(self, row).await;
        let stored = row.clone();
        self.db
            .run(move |tx| -> Result<(), DbError> {
                mark_given_up(tx, &stored, listed)?;
                stored.put(tx)
            })
            .await?;
        tracing::info!(task = %row.id, kind = %row.kind, "task given up");
        if let Err(error) = clean_up(self, row).await {
            tracing::warn!(task = %row.id, %error, "what the task left behind is removed at the next start");
        }
        Ok(())
    }
}
