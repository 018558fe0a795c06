//! Tasks that end without success: stopped by a user, or failed. Their state for a resume is kept where that
//! is useful, and they are resumed or abandoned.
//!
//! The kept state is: of a backup its snapshot, plan and journal, so that stored packs are not sent again; of
//! a restore the incomplete volume and the record of its blocks; of a hydration only its row; of an in-place
//! restore that has started to write, the fence of clients from the mixture; of a deletion the manifest. A
//! kept backup is abandoned when one of a later point in time of the same volume and credential starts, and
//! when it is too old to commit. Its possible listing is verified then (see [`doubts`]).

use crate::{
    backup::{doubts, task},
    error::ServiceError,
    health::{self},
    restore::{
        full::{self},
        in_place::{self},
    },
    schedules::resumption,
    tasks::{LiveTask, clean_files, runner::Runner},
};
use blockd_api::{ErrorCode, tasks::TaskStage};
use blockd_catalog::{DbError, RestoreTask, TaskRow, TaskSpec};
use blockd_cloud::{BACKUP_LIFETIME_S, CloudError, CloudSnapshotId};
use jiff::Timestamp;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use uuid::Uuid;

/// Timeout of a comparison of clocks.
const CLOCK_CHECK_TIMEOUT: Duration = Duration::from_secs(120);

/// Returns true if a task can resume after the cause of this error is fixed.
fn can_resume(error: &ServiceError) -> bool {
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
                | CloudError::CompareVolume { .. }
                | CloudError::WriteVolume { .. }
                | CloudError::Journal { .. }
                | CloudError::KeySlotMissing { .. }
                | CloudError::WriteKeyMissing { .. }
                | CloudError::WriteKeyNotNewest { .. }
                | CloudError::Unsettled { .. }
                | CloudError::SourceDamaged { .. }
                | CloudError::BaseUnknown { .. }
                | CloudError::CommitNotUndone { .. }
                | CloudError::Internal { .. }
        ),
        _ => false,
    }
}

/// Returns true if the state for a resume is worth keeping.
fn is_worth_keeping(row: &TaskRow, error: &ServiceError, stopped: bool) -> bool {
    let volume_exists = || error.to_api().code != ErrorCode::VolumeNotFound;
    match &row.spec {
        // Its point in time cannot be taken again.
        TaskSpec::Backup(_) => stopped || (row.detail.frozen && can_resume(error)),
        TaskSpec::Restore(RestoreTask::NewVolume { .. }) => {
            let is_budget = error.to_api().code == ErrorCode::BudgetExhausted;
            stopped || ((row.detail.bytes_processed > 0 || is_budget) && can_resume(error))
        }
        // Kept after any error: the row costs nothing, and a resume needs it.
        TaskSpec::Restore(RestoreTask::LazyVolume) => volume_exists(),
        // The volume is unchanged before the restore has started.
        TaskSpec::Restore(RestoreTask::InPlace(_)) => volume_exists() && in_place::has_started(row),
        TaskSpec::Delete(_) => stopped || can_resume(error),
        TaskSpec::Verify(_) => stopped,
        // It begins again: its times are those of one run.
        TaskSpec::Drill(_) | TaskSpec::Repair(_) => false,
        // Its position is kept.
        TaskSpec::Scrub(_) => false,
    }
}

/// Marks an abandoned task; `listed` is the name of its backup if the store may list it.
fn mark_abandoned(
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
        TaskSpec::Delete(_) | TaskSpec::Verify(_) | TaskSpec::Repair(_) => Ok(()),
        TaskSpec::Drill(_) | TaskSpec::Scrub(_) => Ok(()),
    }
}

async fn clean_up(runner: &Arc<Runner>, row: &TaskRow) -> Result<(), ServiceError> {
    match &row.spec {
        TaskSpec::Backup(_) => {
            doubts::remove_leftovers(&runner.backup_work, row);
            task::clean_up(&runner.backup_work, row).await
        }
        TaskSpec::Restore(RestoreTask::NewVolume { .. }) => full::clean_up(&runner.restore_work, row).await,
        // The volume is in use, with the fetched blocks.
        TaskSpec::Restore(RestoreTask::LazyVolume) => Ok(()),
        TaskSpec::Restore(RestoreTask::InPlace(asked)) => {
            in_place::release(&runner.in_place_work, row);
            // Before the first write, the snapshot of the previous content has that of the volume.
            let discard = asked.discard || !in_place::has_started(row);
            in_place::drop_previous(&runner.in_place_work, asked, discard).await;
            Ok(())
        }
        TaskSpec::Scrub(_) => Ok(()),
        TaskSpec::Delete(_) | TaskSpec::Verify(_) | TaskSpec::Drill(_) | TaskSpec::Repair(_) => {
            clean_files(&runner.tasks, row.id).await
        }
    }
}

/// Ends an unsuccessful task: first its rows, then its files and objects. It counts as running until its rows
/// are stored, because the next start would resume it. Returns false for a failed backup that resumes.
///
/// # Errors
/// The daemon stops before the rows are stored.
pub(crate) async fn end_unsuccessful(
    runner: &Arc<Runner>,
    live: &LiveTask,
    error: &ServiceError,
    stopped: bool,
) -> Result<bool, ServiceError> {
    let kept = is_worth_keeping(&live.view(), error, stopped);
    runner.host.failpoints.reached("task failed")?;
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
    row.detail.resumable = kept;
    // A failure at the moment of a stop is the end, too.
    row.detail.retryable = error.is_retryable() && !live.is_stop_wanted();
    // The rows may need the space of the incomplete volume.
    if !kept
        && matches!(row.spec, TaskSpec::Restore(RestoreTask::NewVolume { .. }))
        && let Err(error) = full::remove_files(&runner.restore_work, &row).await
    {
        tracing::warn!(%error, "removing the incomplete volume failed; it is retried later");
    }
    let keep = runner.host.settings.task_history;
    let listed = match kept {
        true => None,
        false => doubts::may_be_listed(&runner.backup_work, &row).await,
    };
    let is_end = runner
        .tasks
        .until_stored("the end of the task", || {
            let stored = row.clone();
            async move {
                let kept = runner.db.run(move |tx| -> Result<bool, DbError> {
                    if !stored.detail.resumable {
                        mark_abandoned(tx, &stored, listed)?;
                    }
                    stored.put(tx)?;
                    let is_end = resumption::insert_end_event(tx, &stored, Timestamp::now())?;
                    TaskRow::prune(tx, keep)?;
                    Ok(is_end)
                });
                Ok(kept.await?)
            }
        })
        .await?;
    runner.host.failpoints.reached("task end stored")?;
    if !kept && let Err(error) = clean_up(runner, &row).await {
        tracing::warn!(%error, "cleanup of the failed task failed; the next start retries");
    }
    live.set_row(row);
    Ok(is_end)
}

/// Resumable task that is abandoned by the transaction that [stores](Self::store) it.
#[derive(Clone)]
pub(crate) struct AbandonedTask {
    row: TaskRow,
    /// Name of its backup if the store may list it.
    listed: Option<CloudSnapshotId>,
}

impl AbandonedTask {
    pub(crate) fn store(&self, tx: &rusqlite::Transaction<'_>) -> Result<(), DbError> {
        mark_abandoned(tx, &self.row, self.listed)?;
        self.row.put(tx)
    }

    /// Removes the state that was kept for a resume, after the transaction.
    pub(crate) async fn clean_up(&self, runner: &Arc<Runner>) {
        let row = &self.row;
        tracing::info!(task = %row.id, kind = %row.kind(), "task abandoned");
        if let Err(error) = clean_up(runner, row).await {
            tracing::warn!(task = %row.id, %error, "cleanup of the abandoned task failed; the next start retries");
        }
    }
}

impl Runner {
    /// Abandons the resumable tasks that match. The caller holds the admission lock.
    ///
    /// # Errors
    /// The database fails.
    pub async fn abandon_matching(
        self: &Arc<Self>,
        is_meant: impl Fn(&TaskRow) -> bool,
    ) -> Result<(), ServiceError> {
        for mut row in self.tasks.resumable_tasks().await? {
            if is_meant(&row) {
                self.abandon(&mut row).await?;
            }
        }
        Ok(())
    }

    /// Prepares to abandon a resumable task.
    pub(crate) async fn to_abandon(&self, mut row: TaskRow) -> AbandonedTask {
        row.detail.resumable = false;
        row.detail.version += 1;
        let listed = doubts::may_be_listed(&self.backup_work, &row).await;
        AbandonedTask { row, listed }
    }

    /// Abandons tasks that were kept too long to be completed, by a clock that their store confirms.
    ///
    /// # Errors
    /// The database fails.
    pub async fn abandon_expired(self: &Arc<Self>, now: Timestamp) -> Result<(), ServiceError> {
        let age_s = |row: &TaskRow| now.as_second().saturating_sub(row.created.as_second());
        let is_aged = |row: &&TaskRow| !row.spec.is_of_volume_in_use() && age_s(row) > BACKUP_LIFETIME_S;
        let kept = self.tasks.resumable_tasks().await?;
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
        self.abandon_matching(is_old).await
    }

    /// Returns the age in seconds at which tasks of a credential are abandoned; `None` if the clocks of this
    /// host and of the store differ, or did when they were last compared. Twice the lifetime if the store
    /// does not answer: its tasks must not stay for ever.
    pub(crate) async fn lifetime_by_store_clock(&self, credential: Uuid) -> Option<i64> {
        match tokio::time::timeout(CLOCK_CHECK_TIMEOUT, self.checks.check_clock_of(credential)).await {
            Ok(Ok(())) => Some(BACKUP_LIFETIME_S),
            Ok(Err(ServiceError::Cloud(error))) if matches!(*error, CloudError::ClockUnknown { .. }) => {
                Some(BACKUP_LIFETIME_S)
            }
            _ if self.health.has(health::CLOCK, &credential.to_string()) => None,
            _ => Some(2 * BACKUP_LIFETIME_S),
        }
    }

    pub(crate) async fn abandon(self: &Arc<Self>, row: &mut TaskRow) -> Result<(), ServiceError> {
        let abandoned = self.to_abandon(row.clone()).await;
        *row = abandoned.row.clone();
        let stored = abandoned.clone();
        self.db.run(move |tx| stored.store(tx)).await?;
        abandoned.clean_up(self).await;
        Ok(())
    }
}
