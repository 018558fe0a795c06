//! The task that looks at the schedules: adds runs that are due, begins those whose turn it is, and deletes what is
//! not kept any more.

use super::engine;
use crate::{
    core::Core,
    db::{DbError, RunRow, ScheduleRow},
    error::ServiceError,
};
use blockd_api::{
    CredentialRef, ErrorCode, VolumeRef,
    cloudsnaps::{StartBackup, StartDelete},
    schedules::RunState,
};
use jiff::Timestamp;
use std::{sync::Arc, time::Duration};
use tokio::{sync::Notify, task::JoinHandle};

/// The longest time between two looks: clocks are set, and hosts sleep, without anybody being told.
const MAX_WAIT_MS: u64 = 20_000;
/// The shortest time between two looks.
const MIN_WAIT_MS: u64 = 50;

/// Wakes the scheduler.
#[derive(Debug, Default)]
pub(crate) struct Scheduler {
    wake: Notify,
}

impl Scheduler {
    /// Something has changed: a schedule, or a task has ended.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }
}

/// Looks at the schedules until the daemon stops.
pub(crate) fn start(core: Arc<Core>) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let wait_ms = match core.scheduler_pass(Timestamp::now()).await {
                Ok(Some(due)) => {
                    let until_ms = due.as_millisecond().saturating_sub(Timestamp::now().as_millisecond());
                    u64::try_from(until_ms).unwrap_or(0).clamp(MIN_WAIT_MS, MAX_WAIT_MS)
                }
                Ok(None) => MAX_WAIT_MS,
                Err(ServiceError::Stopping) => return,
                Err(error) => {
                    tracing::error!(%error, "the schedules could not be looked at");
                    MAX_WAIT_MS
                }
            };
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(wait_ms)) => {}
                () = core.scheduler.wake.notified() => {}
                () = core.stopping.cancelled() => return,
            }
        }
    })
}

impl Core {
    /// One look at the schedules; says when the next one is needed.
    pub(crate) async fn scheduler_pass(
        self: &Arc<Self>,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, ServiceError> {
        let volumes = self.candidates();
        let concurrency = self.config.task_concurrency;
        let (next, ready) = self
            .db
            .run(move |tx| -> Result<_, DbError> {
                engine::settle(tx, now)?;
                let next = engine::fire(tx, &volumes, now)?;
                Ok((next, engine::ready(tx, concurrency)?))
            })
            .await?;
        for run in ready {
            self.begin_run(run, now).await?;
        }
        self.delete_surplus(now).await?;
        Ok(next)
    }

    async fn begin_run(self: &Arc<Self>, run: RunRow, now: Timestamp) -> Result<(), ServiceError> {
        let (Some(volume), Some(credential)) = (run.volume, run.credential) else { return Ok(()) };
        let request = StartBackup {
            volume: VolumeRef::Id(volume),
            full: run.force_full,
            cred_id: Some(CredentialRef::Id(credential)),
            also: Vec::new(),
        };
        let begun = run.clone();
        let started = self.start_backup_with(&request, move |tx, task| engine::begun(tx, &begun, task)).await;
        match started {
            Ok(started) => {
                tracing::info!(schedule = %run.schedule, run = run.id, task = %started.task, "run begun");
                Ok(())
            }
            Err(ServiceError::Stopping) => Err(ServiceError::Stopping),
            // A backup that somebody asked for goes first; this one waits.
            Err(error) if error.to_api().code == ErrorCode::VolumeInUse => Ok(()),
            Err(error) if error.is_retryable() => {
                tracing::warn!(schedule = %run.schedule, run = run.id, %error, "the run waits");
                Ok(())
            }
            Err(error) => {
                tracing::error!(schedule = %run.schedule, run = run.id, %error, "the run failed");
                let reason = error.to_api().message;
                let ended = move |tx: &rusqlite::Transaction<'_>| {
                    engine::end(tx, &run, RunState::Failed, Some(reason), now)
                };
                Ok(self.db.run(ended).await?)
            }
        }
    }

    /// Starts the deletion of what the retention of the schedules does not keep. A backup counts as deleted once its
    /// deletion is a task, which goes on by itself; one that is gone already counts too.
    async fn delete_surplus(self: &Arc<Self>, now: Timestamp) -> Result<(), ServiceError> {
        let surplus = self.db.run(move |tx| -> Result<_, DbError> {
            let mut surplus = Vec::new();
            for schedule in ScheduleRow::all(tx)? {
                let judged = engine::judge(tx, &schedule, now)?.into_iter();
                surplus.extend(judged.filter(|judgement| judgement.verdict.is_delete()));
            }
            Ok(surplus)
        });
        for judgement in surplus.await? {
            let request = StartDelete {
                snap: crate::cloudsnaps::to_api_id(&judgement.cloudsnap),
                cred_id: Some(CredentialRef::Id(judgement.credential)),
            };
            let reason = match self.start_delete(&request).await {
                Ok(started) => format!("deleted by task {}: {}", started.task, judgement.verdict),
                Err(ServiceError::Stopping) => return Err(ServiceError::Stopping),
                Err(error) if error.to_api().code == ErrorCode::CloudsnapNotFound => "it is gone".to_owned(),
                Err(error) => {
                    // The store may be away, or the backup in use: the next look tries again.
                    tracing::warn!(cloudsnap = %judgement.cloudsnap, %error, "not deleted yet");
                    continue;
                }
            };
            tracing::info!(cloudsnap = %judgement.cloudsnap, %reason, "not kept any more");
            let run = judgement.run;
            self.db.run(move |tx| engine::end(tx, &run, RunState::Expired, Some(reason), now)).await?;
        }
        Ok(())
    }
}
