//! Local snapshots of schedules: runs without a backup, and the deletion of surplus ones.
//!
//! The id of the snapshot is recorded in the run before the freeze. So the next daemon knows after a crash
//! whether the snapshot was taken; if not, the run starts again.

use crate::{
    error::ServiceError,
    ids::random_id,
    quiesce::rules::QuiesceRequest,
    schedules::{
        judgement,
        run_events::add_run_event,
        runner::{Delays, ScheduleRunner, snapshot_name},
        settle::failures_of,
        transactions::{self, Batch},
    },
    snapshots::freeze::FreezeRequest,
    volumes::registry::VolumeEntry,
};
use blockd_api::{SnapshotName, SnapshotRef, schedules::RunState, snapshots::SnapshotGroup};
use blockd_catalog::{DbError, LOCAL, RunRow, ScheduleRow, SnapshotRow};
use blockd_extent::SnapshotId;
use blockd_quiesce::QuiescePart;
use jiff::Timestamp;
use std::{collections::HashSet, sync::Arc, time::Instant};
use uuid::Uuid;

/// Snapshots to take now.
struct StartedRun {
    runs: Vec<RunRow>,
    entries: Vec<(Arc<VolumeEntry>, SnapshotId)>,
    name: SnapshotName,
    group: Option<SnapshotGroup>,
    quiesce_rules: Vec<QuiescePart>,
}

/// Guard of snapshots in progress: after any end, the next pass of the scheduler sees their result.
struct Freezing {
    schedule_runner: Arc<ScheduleRunner>,
    ids: Vec<SnapshotId>,
}

impl Freezing {
    fn new(schedule_runner: Arc<ScheduleRunner>, ids: Vec<SnapshotId>) -> Self {
        schedule_runner.scheduler.freezing.lock().extend(&ids);
        Self { schedule_runner, ids }
    }
}

impl Drop for Freezing {
    fn drop(&mut self) {
        self.schedule_runner.scheduler.freezing.lock().retain(|id| !self.ids.contains(id));
    }
}

impl ScheduleRunner {
    /// Starts runs of local snapshots with one point in time.
    pub(super) async fn begin_local(
        self: &Arc<Self>,
        batch: Batch,
        schedule: Option<ScheduleRow>,
        now: Timestamp,
    ) -> Result<(), ServiceError> {
        let (mut runs, mut entries) = (Vec::new(), Vec::new());
        for run in batch.runs {
            match run.volume.and_then(|id| self.registry.by_id(id)) {
                Some(entry) => {
                    entries.push((entry, SnapshotId::from_u64(random_id()?)));
                    runs.push(run);
                }
                None => self.end_runs(vec![run], "its volume no longer exists".to_owned(), now).await?,
            }
        }
        let Some(first) = runs.first() else { return Ok(()) };
        let of = first.schedule;
        let name = snapshot_name(of, now)?;
        let selector = schedule.as_ref().and_then(|row| row.spec.selector.group.clone());
        let rest =
            QuiesceRequest { scheduled: schedule.and_then(|row| row.spec.rule), ..QuiesceRequest::default() };
        let volumes: Vec<_> = entries.iter().map(|(entry, _)| Arc::clone(entry)).collect();
        let quiesce_rules = match self.quiescer.quiesce_for(&rest, &volumes).await {
            Ok(quiesce_rules) => quiesce_rules,
            Err(error) => return self.end_runs(runs, error.to_api().message, now).await,
        };
        let group = batch.is_group.then(|| SnapshotGroup {
            group_id: Uuid::new_v4(),
            group: selector,
            members: entries.len() as u64,
            group_stall_micros: 0,
        });
        let ids: Vec<SnapshotId> = entries.iter().map(|(_, id)| *id).collect();
        // Registered before they are in the database, so that they do not pass for snapshots of a dead
        // daemon.
        let freezing = Freezing::new(Arc::clone(self), ids.clone());
        let (noted, snapshots) = (runs.clone(), ids);
        let stored = self.db.run(move |tx| {
            let mut both = noted.iter().zip(snapshots);
            both.try_for_each(|(run, snapshot)| transactions::record_local_start(tx, run, snapshot, None))
        });
        match stored.await {
            Ok(()) => {}
            // The schedule was deleted concurrently.
            Err(DbError::NotWaiting(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        self.host.failpoints.reached("local run started")?;
        let this = Arc::clone(self);
        let record_start = StartedRun { runs, entries, name, group, quiesce_rules };
        self.tasks.spawn(async move {
            this.take_local(record_start, of).await;
            drop(freezing);
            this.scheduler.wake();
        });
        Ok(())
    }

    /// Takes the snapshots. The next pass of the scheduler sees them.
    async fn take_local(self: &Arc<Self>, record_start: StartedRun, schedule: Uuid) {
        let StartedRun { runs, entries, name, group, quiesce_rules } = record_start;
        let members: Vec<_> = entries.iter().map(|(entry, id)| (Arc::clone(entry), *id)).collect();
        let wanted =
            FreezeRequest { members, name, internal: false, group, quiesce_rules, schedule: Some(schedule) };
        let mut report = None;
        match self.snapshots.freeze_with_report(wanted, &mut report).await {
            Ok(rows) => {
                for (entry, _) in &entries {
                    self.snapshots.drop_unneeded_intervals(entry).await;
                }
                let failures = failures_of(report.as_ref());
                tracing::info!(%schedule, snapshots = rows.len(), ?failures, "local snapshots taken");
                // The runs may have ended before the last commands did.
                if let Some(reason) = failures
                    && let Err(error) = self.set_reason(rows, reason).await
                {
                    tracing::warn!(%error, "storing the failures of a run's commands failed");
                }
            }
            // The next start repeats them.
            Err(ServiceError::Stopping) => {}
            Err(error) => {
                let reason = error.to_api().message;
                tracing::error!(%schedule, %reason, "the runs of local snapshots failed");
                if let Err(error) = self.fail_local(runs, reason).await {
                    tracing::warn!(%error, "storing the failure of the runs failed: they are repeated");
                }
            }
        }
    }

    async fn set_reason(&self, rows: Vec<SnapshotRow>, reason: String) -> Result<(), DbError> {
        self.db.run(move |tx| rows.iter().try_for_each(|row| RunRow::set_reason(tx, row.id, &reason))).await
    }

    async fn fail_local(&self, runs: Vec<RunRow>, reason: String) -> Result<(), ServiceError> {
        let now = Timestamp::now();
        let failed = move |tx: &rusqlite::Transaction<'_>| -> Result<(), DbError> {
            for run in runs {
                add_run_event(tx, &run, RunState::Failed, &reason, now)?;
                let failed = RunRow {
                    state: RunState::Failed,
                    completed: Some(now),
                    reason: Some(reason.clone()),
                    ..run
                };
                failed.update(tx)?;
            }
            Ok(())
        };
        self.db.run(failed).await?;
        self.events.wake();
        Ok(())
    }

    /// Deletes the local snapshots that the retention does not keep. One with readers stays until they end.
    ///
    /// # Errors
    /// The database fails, or the daemon stops.
    pub async fn delete_surplus_snapshots(
        self: &Arc<Self>,
        now: Timestamp,
        delays: &mut Delays,
    ) -> Result<(), ServiceError> {
        let judged = self.db.run(move |tx| -> Result<_, DbError> {
            let mut judged = Vec::new();
            for schedule in ScheduleRow::all(tx)? {
                judged.extend(judgement::judge_local(tx, &schedule, now)?);
            }
            Ok(judged)
        });
        let surplus: Vec<_> =
            judged.await?.into_iter().filter(|judgement| judgement.verdict.is_delete()).collect();
        let key = |id: &SnapshotId| (LOCAL, id.to_string());
        let wanted: HashSet<_> = surplus.iter().map(|judgement| key(&judgement.snapshot)).collect();
        delays.retain(|of, _| of.0 != LOCAL || wanted.contains(of));
        for judgement in surplus {
            let id = judgement.snapshot;
            if delays.get(&key(&id)).is_some_and(|delay| delay.until > Instant::now()) {
                continue;
            }
            // It may be the target of the running rollback: the next pass evaluates it again.
            let entry = judgement.run.volume.and_then(|volume| self.registry.by_id(volume));
            if entry.is_some_and(|entry| entry.is_rolling_back()) {
                continue;
            }
            match self.snapshots.delete_snapshot(&SnapshotRef::Id(id), false).await {
                Ok(_) => {
                    let run = RunRow {
                        state: RunState::Expired,
                        reason: Some("the retention of its schedule".into()),
                        ..judgement.run
                    };
                    tracing::info!(snapshot = %id, run = run.id, verdict = %judgement.verdict, "snapshot deleted by retention");
                    self.db.run(move |tx| run.update(tx)).await?;
                }
                Err(ServiceError::Stopping) => return Err(ServiceError::Stopping),
                Err(error) => {
                    tracing::warn!(snapshot = %id, %error, "deleting a surplus snapshot failed; it is retried later");
                    delays.entry(key(&id)).or_default().lengthen();
                }
            }
        }
        Ok(())
    }
}
