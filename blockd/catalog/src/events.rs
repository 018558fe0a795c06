//! Rows of events.

use crate::{
    DbError, TaskRow, TaskSpec, json_if_there, number, parsed, parsed_if_there, rows, stored, to_json,
};
use blockd_api::{
    ErrorCode, VolumeName,
    drills::DrillStage,
    events::{Event, EventKind, Severity},
    tasks::{TaskKind, TaskStage},
};
use blockd_cloud::CloudSnapshotId;
use blockd_extent::VolumeId;
use jiff::{SignedDuration, Timestamp};
use rusqlite::{Row, Transaction, params};
use uuid::Uuid;

/// Maximum number of stored events.
pub const MAX_KEPT: u64 = 10_000;

/// Event that is not stored yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEvent {
    /// Time.
    pub at: Timestamp,
    /// Severity.
    pub severity: Severity,
    /// Kind.
    pub kind: EventKind,
    /// The volume.
    pub volume_id: Option<VolumeId>,
    /// The name of the volume.
    pub volume: Option<VolumeName>,
    /// The credential.
    pub credential_id: Option<Uuid>,
    /// The name of the credential.
    pub credential: Option<String>,
    /// The task.
    pub task: Option<Uuid>,
    /// The cloud snapshot of the task.
    pub cloudsnap: Option<CloudSnapshotId>,
    /// Step at which a drill failed.
    pub failed_step: Option<DrillStage>,
    /// Message.
    pub message: String,
}

impl NewEvent {
    /// Creates an event without an object.
    pub fn new(at: Timestamp, severity: Severity, kind: EventKind, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            at,
            severity,
            kind,
            volume_id: None,
            volume: None,
            credential_id: None,
            credential: None,
            task: None,
            cloudsnap: None,
            failed_step: None,
            message,
        }
    }

    /// Adds a volume, with its name if this host has it.
    #[must_use]
    pub fn of_volume(self, id: VolumeId, name: Option<VolumeName>) -> Self {
        Self { volume_id: Some(id), volume: name, ..self }
    }

    /// Creates the event of a finished task.
    pub fn of_task(task: &TaskRow, at: Timestamp) -> Self {
        let name = task.kind();
        let damage = task.detail.findings.as_ref().map_or(0, |findings| findings.damage_total);
        let error = task.detail.error.as_ref();
        // The deletion or the budget was intended.
        let is_budget = error.is_some_and(|error| error.code == ErrorCode::BudgetExhausted);
        let is_stopped = task.is_drill_of_deleted() || (is_budget && name == TaskKind::Drill);
        let (severity, message) = match task.state {
            TaskStage::Failed if is_stopped => {
                let why = error.map_or("", |error| error.message.as_str());
                (Severity::Warning, format!("{name} was stopped: {why}"))
            }
            TaskStage::Failed => {
                let why = error.map_or("blockd gave no reason", |error| error.message.as_str());
                (Severity::Error, format!("{name} failed: {why}"))
            }
            TaskStage::Stopped => (Severity::Warning, format!("{name} was stopped")),
            _ => (Severity::Info, format!("{name} of {} done", task.object())),
        };
        let kind = match (task.state, error.map(|error| error.code)) {
            (TaskStage::Failed, _) if damage > 0 && name == TaskKind::Verify => EventKind::DamageFound,
            (TaskStage::Failed, Some(ErrorCode::CloudsnapDamaged)) if name == TaskKind::Drill => {
                EventKind::DamageFound
            }
            (TaskStage::Failed, _) if is_stopped => EventKind::DrillStopped,
            (TaskStage::Failed, Some(ErrorCode::StoreUnreachable)) => EventKind::StoreUnreachable,
            _ => kind_of_end(name, task.state),
        };
        Self {
            volume_id: task.volume,
            volume: task.detail.volume_name.clone(),
            credential_id: (name != TaskKind::Scrub).then_some(task.credential),
            credential: (name != TaskKind::Scrub).then(|| task.detail.credential_name.clone()),
            task: Some(task.id),
            cloudsnap: task.decided_cloudsnap(),
            failed_step: task.detail.failed_step,
            ..Self::new(at, severity, kind, message)
        }
    }

    /// Stores the event of a finished task. A dry run changes nothing, and has none.
    ///
    /// # Errors
    /// The database fails.
    pub fn insert_end_of(task: &TaskRow, at: Timestamp, tx: &Transaction<'_>) -> Result<(), DbError> {
        match &task.spec {
            TaskSpec::Repair(repair) if repair.dry_run => Ok(()),
            _ => Self::of_task(task, at).insert(tx),
        }
    }

    /// Stores the event, unless one of its kind about its volume and credential, whose message starts with
    /// `beginning`, too, is less than a day old; returns true if it was stored.
    ///
    /// # Errors
    /// The database fails.
    pub fn insert_daily(&self, beginning: &str, tx: &Transaction<'_>) -> Result<bool, DbError> {
        // Later ones are of a clock that was set back since.
        let sql =
            "SELECT EXISTS (SELECT 1 FROM events WHERE kind = ?1 AND volume_id IS ?2 AND credential_id IS ?3
                   AND substr(message, 1, length(?4)) = ?4 AND at > ?5 AND at <= ?6)";
        let day_before = self.at.saturating_sub(SignedDuration::from_hours(24)).unwrap_or(Timestamp::MIN);
        let (volume, credential) = (self.volume_id, self.credential_id);
        let params = params![
            self.kind.as_str(),
            volume.map(|id| id.to_string()),
            credential.map(|id| id.to_string()),
            beginning,
            day_before.to_string(),
            self.at.to_string(),
        ];
        let is_known: bool = tx.query_row(sql, params, |row| row.get(0))?;
        if !is_known {
            self.insert(tx)?;
        }
        Ok(!is_known)
    }

    /// Stores the event, and removes the oldest ones beyond the limit.
    ///
    /// # Errors
    /// The database fails.
    pub fn insert(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        tx.execute(
            "INSERT INTO events (at, severity, kind, volume, credential, task, cloudsnap, message, volume_id, credential_id, failed_step) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            params![
                self.at.to_string(),
                self.severity.as_str(),
                self.kind.as_str(),
                self.volume.as_ref().map(ToString::to_string),
                self.credential,
                self.task.map(|id| id.to_string()),
                self.cloudsnap.map(|id| id.to_string()),
                self.message,
                self.volume_id.map(|id| id.to_string()),
                self.credential_id.map(|id| id.to_string()),
                self.failed_step.map(|step| to_json("event", &step)).transpose()?,
            ],
        )?;
        let id = tx.last_insert_rowid().unsigned_abs();
        tx.execute("DELETE FROM events WHERE id <= ?1", [stored(id.saturating_sub(MAX_KEPT))])?;
        Ok(())
    }
}

/// Returns the kind of a task's end without a special cause.
fn kind_of_end(task: TaskKind, stage: TaskStage) -> EventKind {
    let [done, failed, stopped] = match task {
        TaskKind::Backup => [EventKind::BackupDone, EventKind::BackupFailed, EventKind::BackupStopped],
        TaskKind::Restore => [EventKind::RestoreDone, EventKind::RestoreFailed, EventKind::RestoreStopped],
        TaskKind::Delete => [EventKind::DeleteDone, EventKind::DeleteFailed, EventKind::DeleteStopped],
        TaskKind::Verify => [EventKind::VerifyDone, EventKind::VerifyFailed, EventKind::VerifyStopped],
        TaskKind::Drill => [EventKind::DrillDone, EventKind::DrillFailed, EventKind::DrillStopped],
        TaskKind::Repair => [EventKind::RepairDone, EventKind::RepairFailed, EventKind::RepairStopped],
        TaskKind::Scrub => [EventKind::ScrubDone, EventKind::ScrubFailed, EventKind::ScrubStopped],
    };
    match stage {
        TaskStage::Failed => failed,
        TaskStage::Stopped => stopped,
        TaskStage::Pending | TaskStage::Active | TaskStage::Done => done,
    }
}

/// The table accepts no other words.
fn severity(word: &str) -> Severity {
    Severity::ALL.into_iter().find(|known| known.as_str() == word).unwrap_or(Severity::Error)
}

fn read(row: &Row<'_>) -> rusqlite::Result<Event> {
    Ok(Event {
        event_id: number(row, 0)?,
        occurred_at: parsed(row, 1)?,
        severity: severity(&row.get::<_, String>(2)?),
        kind: row.get(3)?,
        volume_id: parsed_if_there(row, 9)?,
        volume_name: parsed_if_there(row, 4)?,
        credential_id: parsed_if_there(row, 10)?,
        credential_name: row.get(5)?,
        task_id: parsed_if_there(row, 6)?,
        cloud_snapshot_id: row.get(7)?,
        failed_step: json_if_there(row, 11)?,
        message: row.get(8)?,
    })
}

const COLUMNS: &str = "id, at, severity, kind, volume, credential, task, cloudsnap, message, volume_id, credential_id, failed_step";

/// Returns the next events after a number, oldest first.
///
/// # Errors
/// The database fails.
pub fn events_after(tx: &Transaction<'_>, since: u64, max: u32) -> Result<Vec<Event>, DbError> {
    let sql = format!("SELECT {COLUMNS} FROM events WHERE id > ?1 ORDER BY id LIMIT ?2");
    rows(tx, &sql, params![stored(since), max], read)
}

/// Counts the events after a number by kind and severity.
///
/// # Errors
/// The database fails.
pub fn count_events_after(tx: &Transaction<'_>, since: u64) -> Result<Vec<(String, Severity, u64)>, DbError> {
    let sql = "SELECT kind, severity, count(*) FROM events WHERE id > ?1 GROUP BY kind, severity";
    let mut statement = tx.prepare(sql)?;
    let rows = statement
        .query_map([stored(since)], |row| {
            Ok((row.get(0)?, severity(&row.get::<_, String>(1)?), number(row, 2)?))
        })?
        .collect::<Result<_, _>>()?;
    Ok(rows)
}

/// Returns the newest events, oldest first.
///
/// # Errors
/// The database fails.
pub fn newest_events(tx: &Transaction<'_>, max: u32) -> Result<Vec<Event>, DbError> {
    let mut statement = tx.prepare(&format!("SELECT {COLUMNS} FROM events ORDER BY id DESC LIMIT ?1"))?;
    let mut rows: Vec<Event> = statement.query_map([max], read)?.collect::<Result<_, _>>()?;
    rows.reverse();
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::super::Db;
    use super::*;

    #[test]
    fn newest_events_are_kept_in_order() {
        // In memory: each of the many commits would be synced.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        db.transaction::<_, DbError>(|tx| {
            for number in 1..=MAX_KEPT + 3 {
                let at = Timestamp::from_second(i64::try_from(number).unwrap()).unwrap();
                NewEvent::new(at, Severity::Warning, EventKind::RunSkipped, number.to_string()).insert(tx)?;
            }
            let all = events_after(tx, 0, u32::MAX >> 1)?;
            assert_eq!((all.len() as u64, all[0].event_id), (MAX_KEPT, 4));
            let ids = |events: Vec<Event>| events.iter().map(|event| event.event_id).collect::<Vec<_>>();
            assert_eq!(ids(newest_events(tx, 2)?), [MAX_KEPT + 2, MAX_KEPT + 3]);
            assert_eq!(ids(events_after(tx, 7, 2)?), [8, 9]);
            assert_eq!(count_events_after(tx, MAX_KEPT)?, [("run-skipped".to_owned(), Severity::Warning, 3)]);
            assert_eq!((all[0].severity, all[0].message.as_str()), (Severity::Warning, "4"));
            Ok(())
        })
        .unwrap();
    }
}
