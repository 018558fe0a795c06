//! Events of runs that made no backup.

use blockd_api::{
    events::{EventKind, Severity},
    schedules::RunState,
};
use blockd_catalog::{DbError, NewEvent, RunRow, ScheduleRow};
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
    let schedule = ScheduleRow::called(tx, run.schedule)?;
    let (severity, kind, outcome) = match state {
        RunState::Skipped => (Severity::Warning, EventKind::RunSkipped, "is skipped"),
        _ => (Severity::Error, EventKind::RunFailed, "failed"),
    };
    let message = format!("a run of schedule {schedule} {outcome}: {reason}");
    let event = NewEvent::new(now, severity, kind, message);
    NewEvent { volume_id: run.volume, volume: run.volume_name.clone(), ..event }.insert(tx)
}
