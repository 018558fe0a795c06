//! Failed backups of runs that resume: the runs wait, and their tasks resume with the same point in time.

use crate::{
    error::ServiceError,
    schedules::{
        run_events::{add_daily_run_event, add_run_event},
        runner::ScheduleRunner,
    },
};
use blockd_api::{
    events::{EventKind, Severity},
    schedules::RunState,
    tasks::TaskStage,
};
use blockd_catalog::{DbError, NewEvent, RunRow, ScheduleRow, TaskRow};
use blockd_schedule::{MAX_RESUME_PAUSE_S, resume_at};
use jiff::{SignedDuration, Timestamp};
use rusqlite::Transaction;
use std::{collections::HashSet, sync::Arc};

/// Start of the message of a backup that resumes.
const RESUMES: &str = "backup failed, and resumes at";
/// Maximum number of runs among which the one before another is looked for.
const MAX_RUNS_BEFORE: u32 = 100;

/// Returns true for the failed backup of a schedule that the scheduler resumes.
pub fn will_resume(task: &TaskRow) -> bool {
    let is_scheduled = task.spec.backup().is_some_and(|backup| backup.schedule.is_some());
    task.state == TaskStage::Failed && is_scheduled && task.detail.resumable && task.detail.retryable
}

/// Returns the time at which the failed task of a run resumes.
fn time_of(run: &RunRow, task: &TaskRow, now: Timestamp) -> Timestamp {
    resume_at(task.detail.completed.unwrap_or(now), run.retries, task.id.as_u128())
}

/// Returns the cause of a task's failure.
pub(super) fn cause_of(task: &TaskRow) -> Option<String> {
    task.detail.error.as_ref().map(|error| error.message.clone())
}

/// Stores the event of a task that ended without success. Of the attempts of a run, only the first one has an
/// event; the last one has that of the run. Returns false if the task resumes.
///
/// # Errors
/// The database fails.
pub fn insert_end_event(tx: &Transaction<'_>, task: &TaskRow, now: Timestamp) -> Result<bool, DbError> {
    // A user may have resumed the task of a run that had ended: nothing resumes it again.
    let run = if will_resume(task) { RunRow::unfinished_of_task(tx, task.id)? } else { None };
    let Some(run) = run else {
        NewEvent::insert_end_of(task, now, tx)?;
        return Ok(true);
    };
    if run.retries == 0 {
        let cause = cause_of(task).unwrap_or_default();
        let at = time_of(&run, task, now).strftime("%Y-%m-%d %H:%M:%S UTC");
        let message = format!("{RESUMES} {at}: {cause}");
        let (severity, kind) = (Severity::Warning, EventKind::BackupRetrying);
        let event = NewEvent { severity, kind, message, ..NewEvent::of_task(task, now) };
        match follows_failure(tx, &run)? {
            true => drop(event.insert_daily(RESUMES, tx)?),
            false => event.insert(tx)?,
        }
    }
    Ok(false)
}

/// Returns true if the run before this one failed, as in an outage that goes on.
fn follows_failure(tx: &Transaction<'_>, run: &RunRow) -> Result<bool, DbError> {
    let newest = RunRow::history(tx, Some(&run.schedule.to_string()), run.volume, MAX_RUNS_BEFORE)?;
    let is_before = |other: &&RunRow| {
        other.id < run.id && other.credential == run.credential && other.state != RunState::Skipped
    };
    Ok(newest.iter().find(is_before).is_some_and(|before| before.state == RunState::Failed))
}

/// Changes a run whose failed backup resumes.
pub(super) fn wait(run: &mut RunRow, task: &TaskRow, now: Timestamp) {
    run.retry_at = Some(time_of(run, task, now));
    run.state = RunState::Retrying;
    run.reason = cause_of(task);
}

/// Lets a retrying run whose task cannot resume now wait for another pause, so that it does not delay others.
/// A refusal is no attempt of the backup.
///
/// # Errors
/// The database fails.
pub(super) fn postpone(
    tx: &Transaction<'_>,
    run: RunRow,
    reason: String,
    now: Timestamp,
) -> Result<(), DbError> {
    let retry_at = run.task.map(|task| resume_at(now, run.retries, task.as_u128()));
    RunRow { retry_at, reason: Some(reason), ..run }.update_retrying(tx).map(drop)
}

/// Ends a retrying run whose backup did not resume in time.
///
/// # Errors
/// The database fails.
pub fn give_up(tx: &Transaction<'_>, run: &RunRow, why: &str, now: Timestamp) -> Result<(), DbError> {
    let reason = format!("{why}: {}", run.reason.as_deref().unwrap_or_default());
    tracing::error!(schedule = %run.schedule, run = run.id, %reason, "the run failed");
    // The end of each outage is an event, that of each run in it is not.
    match follows_failure(tx, run)? {
        true => add_daily_run_event(tx, run, RunState::Failed, (why, &reason), now)?,
        false => add_run_event(tx, run, RunState::Failed, &reason, now)?,
    }
    let (state, reason) = (RunState::Failed, Some(reason));
    // Its cloud snapshot does not exist.
    RunRow { state, completed: Some(now), reason, retry_at: None, cloudsnap: None, ..run.clone() }.update(tx)
}

/// Runs a step of the scheduler; returns with its result the failed tasks that it gave up. While they were to
/// resume, they did not count as finished.
///
/// # Errors
/// The step or the database fails.
pub(super) fn with_given_up<T, E: From<DbError>>(
    tx: &Transaction<'_>,
    step: impl FnOnce() -> Result<T, E>,
) -> Result<(T, Vec<TaskRow>), E> {
    let before = RunRow::in_state(tx, RunState::Retrying)?;
    let done = step()?;
    let still: HashSet<u64> =
        RunRow::in_state(tx, RunState::Retrying)?.into_iter().map(|run| run.id).collect();
    let mut given_up = Vec::new();
    for task in before.into_iter().filter(|run| !still.contains(&run.id)).filter_map(|run| run.task) {
        given_up.extend(TaskRow::find(tx, task)?.filter(|task| task.state == TaskStage::Failed));
    }
    Ok((done, given_up))
}

/// Returns the runs whose backups resume at `now`, and the time of the next one.
///
/// # Errors
/// The database fails.
pub fn due(tx: &Transaction<'_>, now: Timestamp) -> Result<(Vec<RunRow>, Option<Timestamp>), DbError> {
    // No pause is longer: the clock was set back.
    let latest = now.checked_add(SignedDuration::from_secs(MAX_RESUME_PAUSE_S.into())).unwrap_or(now);
    let schedules = ScheduleRow::all(tx)?;
    let (mut due, mut next) = (Vec::new(), None::<Timestamp>);
    for run in RunRow::in_state(tx, RunState::Retrying)? {
        match schedules.iter().find(|schedule| schedule.uuid == run.schedule) {
            // As for queued runs: manual ones start also while paused.
            Some(schedule) if schedule.paused && run.rule.is_some() => {
                if run.retry_at.is_some() {
                    RunRow { retry_at: None, ..run }.update(tx)?;
                }
                continue;
            }
            None if !ScheduleRow::exists(tx, run.schedule)? => {
                give_up(tx, &run, "its backup does not resume, as the schedule was deleted", now)?;
                continue;
            }
            _ => {}
        }
        match run.retry_at.filter(|at| *at > now && *at <= latest) {
            Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
            None => due.push(run),
        }
    }
    Ok((due, next))
}

impl ScheduleRunner {
    /// Resumes failed backups while there are free slots.
    pub(super) async fn resume_runs(
        self: &Arc<Self>,
        due: Vec<RunRow>,
        free_slots: &mut usize,
        now: Timestamp,
    ) -> Result<(), ServiceError> {
        for run in due {
            if *free_slots == 0 {
                break;
            }
            let Some(task) = run.task else { continue };
            let schedule = run.schedule;
            match self.runner.resume_run(task, run.id).await {
                Ok(_) => {
                    *free_slots -= 1;
                    tracing::info!(%schedule, %task, "failed backup resumed");
                }
                Err(ServiceError::Stopping) => return Err(ServiceError::Stopping),
                Err(ServiceError::Db(DbError::NotWaiting(_))) => {}
                Err(error) => {
                    let reason = error.to_api().message;
                    if run.reason.as_ref() != Some(&reason) {
                        tracing::warn!(%schedule, %task, %reason, "resuming a failed backup failed");
                    }
                    self.db.run(move |tx| postpone(tx, run, reason, now)).await?;
                }
            }
        }
        Ok(())
    }
}
