//! The task that looks at the schedules: adds runs that are due, begins those whose turn it is, and deletes what is
//! not kept any more.

use super::engine::{self, Batch};
use crate::{
    backups::{Asked, Member},
    core::Core,
    db::{DbError, NewEvent, RunRow, ScheduleRow, TaskRow},
    error::ServiceError,
};
use blockd_api::{
    CredentialRef, ErrorCode, VolumeRef, cloudsnaps::StartDelete, events::Severity, schedules::RunState,
};
use blockd_extent::VolumeId;
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Notify, task::JoinHandle};
use uuid::Uuid;

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
        self.events.wake();
        for batch in ready {
            self.begin_batch(batch, now).await?;
        }
        self.delete_surplus(now).await?;
        self.tell_of_degraded_volumes(now).await?;
        Ok(next)
    }

    /// Begins runs from one instant, or ends those that cannot begin.
    async fn begin_batch(self: &Arc<Self>, batch: Batch, now: Timestamp) -> Result<(), ServiceError> {
        let known: HashSet<Uuid> = self.credential_rows().await?.iter().map(|row| row.uuid).collect();
        let is_known = |run: &RunRow| run.credential.is_some_and(|uuid| known.contains(&uuid));
        let (runs, homeless): (Vec<_>, Vec<_>) = batch.runs.into_iter().partition(is_known);
        if !homeless.is_empty() {
            self.end_runs(homeless, "its credential is not there any more".to_owned(), now).await?;
        }
        let mut places: BTreeMap<VolumeId, Vec<CredentialRef>> = BTreeMap::new();
        for run in &runs {
            if let (Some(volume), Some(credential)) = (run.volume, run.credential) {
                places.entry(volume).or_default().push(CredentialRef::Id(credential));
            }
        }
        let Some(first) = runs.first().cloned() else { return Ok(()) };
        let member = |(volume, credentials)| Member { volume: VolumeRef::Id(volume), credentials };
        let members: Vec<Member> = places.into_iter().map(member).collect();
        let together = batch.is_group.then(Uuid::new_v4);
        let begun = runs.clone();
        let asked = Asked { full: first.force_full, together };
        let started = self.start_backups(&members, &asked, move |tx, tasks| {
            begun.iter().try_for_each(|run| {
                let is_its =
                    |task: &&TaskRow| task.volume == run.volume && Some(task.credential) == run.credential;
                tasks.iter().find(is_its).map_or(Ok(()), |task| engine::begun(tx, run, task))
            })
        });
        match started.await {
            Ok(tasks) => {
                tracing::info!(schedule = %first.schedule, run = first.id, tasks = tasks.len(), "run begun");
                Ok(())
            }
            Err(ServiceError::Stopping) => Err(ServiceError::Stopping),
            // A backup that somebody asked for goes first; this one waits.
            Err(error) if error.to_api().code == ErrorCode::VolumeInUse => Ok(()),
            Err(error) if error.is_retryable() => {
                tracing::warn!(schedule = %first.schedule, run = first.id, %error, "the run waits");
                Ok(())
            }
            Err(error) => self.end_runs(runs, error.to_api().message, now).await,
        }
    }

    /// Ends runs that did not begin.
    async fn end_runs(&self, runs: Vec<RunRow>, reason: String, now: Timestamp) -> Result<(), ServiceError> {
        for run in &runs {
            tracing::error!(schedule = %run.schedule, run = run.id, %reason, "the run failed");
        }
        let ended = move |tx: &rusqlite::Transaction<'_>| {
            runs.iter().try_for_each(|run| {
                let message = format!("a run of schedule {} failed: {reason}", run.schedule);
                let event = NewEvent::new(now, Severity::Error, "run-failed", message);
                NewEvent { volume: run.volume_name.clone(), ..event }.insert(tx)?;
                engine::end(tx, run, RunState::Failed, Some(reason.clone()), now)
            })
        };
        self.db.run(ended).await?;
        self.events.wake();
        Ok(())
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
