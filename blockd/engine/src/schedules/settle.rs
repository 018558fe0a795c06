//! Ends of runs: the results of their tasks and local snapshots.

use crate::schedules::resumption;
use blockd_api::{
    quiesce::QuiesceReport,
    schedules::RunState,
    tasks::{TaskKind, TaskStage},
};
use blockd_catalog::{DbError, RunRow, SnapshotRow, TaskRow};
use blockd_extent::SnapshotId;
use jiff::Timestamp;
use rusqlite::Transaction;
use std::collections::HashSet;

/// Maximum number of ended runs, in addition to those with existing backups.
pub const MAX_ENDED_RUNS: u32 = 10_000;

/// Records the results of the runs' tasks and the existing local snapshots; those in `freezing` are in
/// progress in this daemon. Returns true if one succeeded.
pub fn settle(tx: &Transaction<'_>, freezing: &HashSet<SnapshotId>, now: Timestamp) -> Result<bool, DbError> {
    let mut any_done = false;
    RunRow::expire_lost_snapshots(tx)?;
    for mut run in RunRow::to_settle(tx)? {
        if run.is_local() {
            any_done |= settle_local(tx, run, freezing, now)?;
            continue;
        }
        let task = run.task.map(|task| TaskRow::find(tx, task)).transpose()?.flatten();
        match task {
            Some(task) if task.state == TaskStage::Done => {
                run.state = RunState::Done;
                run.cloudsnap = task.spec.backup().map(|_| task.cloudsnap);
                run.completed = task.detail.completed.or(Some(now));
                run.reason = failures_of(task.detail.quiesce.as_ref());
                any_done = true;
            }
            Some(task) if resumption::will_resume(&task) => match run.state {
                RunState::Retrying => continue,
                _ => resumption::wait(&mut run, &task, now),
            },
            // A later backup has started, or the task is too old.
            Some(task) if task.state == TaskStage::Failed && run.state == RunState::Retrying => {
                resumption::give_up(tx, &run, "its backup cannot be resumed any more", now)?;
                continue;
            }
            Some(task) if task.state == TaskStage::Failed => {
                let is_skipped = task.is_drill_of_deleted();
                run.state = if is_skipped { RunState::Skipped } else { RunState::Failed };
                // The run expires with the cloud snapshot that cannot be restored.
                run.cloudsnap = (task.kind() == TaskKind::Drill).then_some(task.cloudsnap);
                run.completed = task.detail.completed.or(Some(now));
                run.reason = resumption::cause_of(&task);
            }
            Some(task) if task.state == TaskStage::Stopped => {
                run.state = RunState::Failed;
                run.cloudsnap = None;
                run.completed = Some(now);
                run.reason = Some(match task.kind() {
                    TaskKind::Drill => "its drill was stopped".into(),
                    _ => "its backup was stopped: resume it with `cloudsnap resume`".into(),
                });
            }
            Some(_) => continue,
            None => {
                run.state = RunState::Failed;
                run.completed = Some(now);
                run.reason = Some("its task is no longer in the history: see task_history".into());
            }
        }
        if run.state != RunState::Retrying {
            run.retry_at = None;
        }
        run.update(tx)?;
    }
    RunRow::prune(tx, MAX_ENDED_RUNS)?;
    Ok(any_done)
}

/// Returns the failures of a quiesce operation that did not abort it.
pub fn failures_of(report: Option<&QuiesceReport>) -> Option<String> {
    let failures: Vec<String> = report.into_iter().flat_map(QuiesceReport::failures).collect();
    (!failures.is_empty()).then(|| failures.join("; "))
}

/// Ends a completed run of a local snapshot; returns true if it succeeded.
fn settle_local(
    tx: &Transaction<'_>,
    mut run: RunRow,
    freezing: &HashSet<SnapshotId>,
    now: Timestamp,
) -> Result<bool, DbError> {
    let row = run.snapshot.map(|id| SnapshotRow::find_kept(tx, id)).transpose()?.flatten();
    if let Some(row) = row {
        run.state = RunState::Done;
        run.completed = run.completed.or(Some(now));
        run.reason = failures_of(row.quiesce.as_ref());
        run.update(tx)?;
        return Ok(true);
    }
    if run.snapshot.is_some_and(|id| freezing.contains(&id)) {
        return Ok(false);
    }
    let task = run.task.map(|task| TaskRow::find(tx, task)).transpose()?.flatten();
    match (run.task, task) {
        (Some(_), Some(task)) if !task.state.is_over() => return Ok(false),
        // The snapshot was deleted before this check.
        (Some(_), Some(task)) if task.detail.frozen => {
            run.state = RunState::Expired;
            run.reason = Some("its snapshot was deleted".into());
        }
        (Some(_), task) => {
            run.state = RunState::Failed;
            let why = task.and_then(|task| task.detail.error).map(|error| error.message);
            run.reason = why.or_else(|| Some("its backup was stopped before the freeze".into()));
        }
        // The daemon died during the freeze, which is undone: it is repeated.
        (None, _) => {
            tracing::info!(run = run.id, "the local snapshot of the run is taken again");
            let queued = RunRow { state: RunState::Queued, snapshot: None, reason: None, ..run };
            queued.update(tx)?;
            return Ok(false);
        }
    }
    run.completed = Some(now);
    run.update(tx)?;
    Ok(false)
}
