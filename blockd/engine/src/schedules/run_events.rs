//! Runs that did not start, and the events of runs that made no backup.

use crate::{
    error::ServiceError,
    schedules::{runner::ScheduleRunner, transactions},
};
use blockd_api::{
    ErrorCode,
    events::{EventKind, Severity},
    schedules::RunState,
};
use blockd_catalog::{CredentialRow, DbError, NewEvent, RunRow, ScheduleRow};
use jiff::Timestamp;
use rusqlite::Transaction;

/// Stores the event of a failed or skipped run.
///
/// # Errors
/// The database fails.
pub fn add_run_event(
    tx: &Transaction<'_>,
    run: &RunRow,
    state: RunState,
    reason: &str,
    now: Timestamp,
) -> Result<(), DbError> {
    run_event(tx, run, state, reason, now)?.insert(tx)
}

/// Stores the event of a failed or skipped run, unless one of the schedule, volume and location whose reason
/// starts with `beginning`, too, is less than a day old: in an outage, each run of a schedule ends so.
///
/// # Errors
/// The database fails.
pub fn add_daily_run_event(
    tx: &Transaction<'_>,
    run: &RunRow,
    state: RunState,
    (beginning, reason): (&str, &str),
    now: Timestamp,
) -> Result<(), DbError> {
    let same = run_event(tx, run, state, beginning, now)?.message;
    run_event(tx, run, state, reason, now)?.insert_daily(&same, tx).map(drop)
}

fn run_event(
    tx: &Transaction<'_>,
    run: &RunRow,
    state: RunState,
    reason: &str,
    now: Timestamp,
) -> Result<NewEvent, DbError> {
    let schedule = ScheduleRow::called(tx, run.schedule)?;
    let (severity, kind, outcome) = match state {
        RunState::Skipped => (Severity::Warning, EventKind::RunSkipped, "is skipped"),
        _ => (Severity::Error, EventKind::RunFailed, "failed"),
    };
    let message = format!("a run of schedule {schedule} {outcome}: {reason}");
    let credential_id = run.credential.filter(|_| !run.is_local());
    let credential = match credential_id {
        Some(uuid) => CredentialRow::names(tx)?.get(&uuid).map(ToString::to_string),
        None => None,
    };
    let event = NewEvent::new(now, severity, kind, message);
    let (volume_id, volume) = (run.volume, run.volume_name.clone());
    Ok(NewEvent { volume_id, volume, credential_id, credential, ..event })
}

/// Returns true if a run waits, for example for a manual backup.
pub(super) fn is_passing(error: &ServiceError) -> bool {
    error.to_api().code == ErrorCode::VolumeInUse || error.is_retryable()
}

impl ScheduleRunner {
    /// Records why runs wait. They are retried in each pass, and the reason is reported once.
    pub(super) async fn record_wait(&self, runs: Vec<RunRow>, reason: String) -> Result<(), ServiceError> {
        if let Some(first) = runs.first().filter(|first| first.reason.as_ref() != Some(&reason)) {
            tracing::warn!(schedule = %first.schedule, run = first.id, %reason, "run waits");
        }
        let waits = move |tx: &rusqlite::Transaction<'_>| {
            runs.iter().try_for_each(|run| transactions::waits(tx, run, reason.clone()))
        };
        Ok(self.db.run(waits).await?)
    }

    /// Records that runs did not start: they wait, or end.
    pub(super) async fn not_started(
        &self,
        runs: Vec<RunRow>,
        error: ServiceError,
        now: Timestamp,
    ) -> Result<(), ServiceError> {
        match error {
            ServiceError::Stopping => Err(ServiceError::Stopping),
            // The schedule was deleted concurrently.
            ServiceError::Db(DbError::NotWaiting(run)) => {
                tracing::info!(run, "run not started: it does not wait any more");
                Ok(())
            }
            error if is_passing(&error) => self.record_wait(runs, error.to_api().message).await,
            error => self.end_runs(runs, error.to_api().message, now).await,
        }
    }

    /// Ends runs that did not start.
    pub(super) async fn end_runs(
        &self,
        runs: Vec<RunRow>,
        reason: String,
        now: Timestamp,
    ) -> Result<(), ServiceError> {
        for run in &runs {
            tracing::error!(schedule = %run.schedule, run = run.id, %reason, "the run failed");
        }
        let ended = move |tx: &rusqlite::Transaction<'_>| {
            runs.iter().try_for_each(|run| {
                if !transactions::end_queued(tx, run, RunState::Failed, reason.clone(), now)? {
                    return Ok(());
                }
                add_run_event(tx, run, RunState::Failed, &reason, now)
            })
        };
        self.db.run(ended).await?;
        self.events.wake();
        Ok(())
    }
}
