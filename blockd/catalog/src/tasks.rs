//! Rows of tasks.

use crate::volumes::UnknownWord;
use crate::{DbError, json, parsed, to_json};
use blockd_api::{
    ApiError, SnapshotName, VolumeName,
    cloudsnaps::BackupOptions,
    tasks::{Findings, TaskKind, TaskLimits, TaskOwner, TaskStage},
};
use blockd_cloud::{BackupType, CloudSnapshotId, VerifyDepth};
use blockd_extent::{SnapshotId, VolumeId};
use blockd_store::RequestCounts;
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction, params, types::Type};
use serde::{Deserialize, Serialize};
use std::str::FromStr;
use uuid::Uuid;

/// In-place restore.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InPlace {
    /// Snapshot of the previous content.
    pub before: SnapshotId,
    /// The snapshot is deleted after the restore.
    pub discard: bool,
    /// All blocks below this one are restored durably.
    pub done_below: u64,
}

/// Barrier shared by backups of several volumes with one point in time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Barrier {
    /// Its id.
    pub id: Uuid,
    /// Number of volumes.
    pub volumes: u64,
}

/// Task state that is reported and needed to resume after a restart.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskDetail {
    /// Name of the volume when the task was created; `None` for a deletion.
    pub volume_name: Option<VolumeName>,
    /// Name of the credential when the task was created.
    pub credential_name: String,
    /// Phase.
    pub phase: String,
    /// Total bytes.
    pub bytes_total: u64,
    /// Processed bytes.
    pub bytes_processed: u64,
    /// Bytes sent to the store.
    pub bytes_uploaded: u64,
    /// Bytes fetched from the store.
    pub bytes_downloaded: u64,
    /// Bytes dirtied since the base backup; the data of the volume for a full backup.
    pub bytes_dirty: u64,
    /// Requests made.
    pub requests: RequestCounts,
    /// The volume of the backup is frozen.
    pub frozen: bool,
    /// Stall time of writes by the freeze, in microseconds.
    pub freeze_stall_micros: u64,
    /// End time.
    pub completed: Option<Timestamp>,
    /// Full or incremental, once it is decided.
    pub backup_type: Option<BackupType>,
    /// Note for the user, such as the reason of a full backup.
    pub note: Option<String>,
    /// Error of a failed task.
    pub error: Option<ApiError>,
    /// Number of resumes after restarts.
    pub resumed: u32,
    /// The task ended without success and can be resumed.
    pub kept: bool,
    /// The commit was started, so its cloud snapshot may exist.
    pub may_be_committed: bool,
    /// Run of the daemon that created it.
    pub run: Option<Uuid>,
    /// Bandwidth limits.
    pub limits: TaskLimits,
    /// The restore skips damaged extents.
    pub skip_damaged: bool,
    /// Scope of a verification.
    pub verify: Option<VerifyWhat>,
    /// Findings of a verification or of a restore that skips damage.
    pub findings: Option<Findings>,
    /// The restore hydrates a lazy volume.
    pub lazy: bool,
    /// In-place restore.
    pub in_place: Option<InPlace>,
    /// Options of the backup.
    pub backup: BackupOptions,
    /// The deletion includes pinned snapshots and damaged manifests.
    pub force: bool,
    /// The manifest was damaged when the deletion was requested.
    pub damaged: bool,
    /// The deletion was requested by retention.
    pub by_retention: bool,
    /// Group barrier of the backup.
    pub barrier: Option<Barrier>,
    /// Quiesce parts of the backup.
    pub quiesce_rules: Vec<blockd_quiesce::QuiescePart>,
    /// Quiesce report.
    pub quiesce: Option<blockd_api::quiesce::QuiesceReport>,
    /// Schedule that started it.
    pub schedule: Option<Uuid>,
    /// Name under which the snapshot stays after the backup.
    pub keep_local: Option<SnapshotName>,
    /// Version, which grows with each change.
    pub version: u64,
}

/// Scope of a verification.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VerifyWhat {
    /// Depth.
    pub depth: VerifyDepth,
    /// All cloud snapshots of the credential instead of the row's one.
    pub all: bool,
    /// Background verification with low priority.
    pub background: bool,
}

impl TaskDetail {
    /// Returns true if its volume existed before or is used before the end: it stays after a failure.
    pub fn is_of_volume_in_use(&self) -> bool {
        self.lazy || self.in_place.is_some()
    }
}

/// A task.
#[derive(Clone, PartialEq, Debug)]
pub struct TaskRow {
    /// Its id.
    pub id: Uuid,
    /// Kind.
    pub kind: TaskKind,
    /// State.
    pub state: TaskStage,
    /// Local volume.
    pub volume: Option<VolumeId>,
    /// Local snapshot.
    pub snapshot: Option<SnapshotId>,
    /// The credential.
    pub credential: Uuid,
    /// Cloud snapshot that it creates, reads or deletes.
    pub cloudsnap: CloudSnapshotId,
    /// Base of an incremental backup.
    pub base: Option<CloudSnapshotId>,
    /// Creation time.
    pub created: Timestamp,
    /// The caller, schedule or daemon that started it.
    pub owner: TaskOwner,
    /// Further state.
    pub detail: TaskDetail,
}

/// Final states.
const ENDED: &str = "'done', 'failed', 'stopped'";
/// Condition for a resumable task.
const KEPT: &str = "state IN ('stopped', 'failed') AND json_extract(detail, '$.kept') = 1";
const COLUMNS: &str =
    "id, kind, state, volume, snapshot, credential, cloudsnap, base, created, owner, detail";

fn optional<T: FromStr>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    match row.get_ref(column)? {
        rusqlite::types::ValueRef::Null => Ok(None),
        _ => parsed(row, column).map(Some),
    }
}

/// Parses a column with one of these words.
fn word<T: Copy, const N: usize>(
    row: &Row<'_>,
    column: usize,
    all: [T; N],
    as_str: impl Fn(T) -> &'static str,
) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    all.into_iter().find(|value| as_str(*value) == text).ok_or_else(|| {
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(UnknownWord(text)))
    })
}

impl TaskRow {
    /// Returns its cloud snapshot, once it is decided.
    pub fn decided_cloudsnap(&self) -> Option<CloudSnapshotId> {
        let is_decided = match self.kind {
            TaskKind::Backup => self.detail.backup_type.is_some(),
            TaskKind::Verify => self.detail.verify.is_some_and(|verify| !verify.all),
            TaskKind::Restore | TaskKind::Delete => true,
        };
        is_decided.then_some(self.cloudsnap)
    }

    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: parsed(row, 0)?,
            kind: word(row, 1, TaskKind::ALL, TaskKind::as_str)?,
            state: word(row, 2, TaskStage::ALL, TaskStage::as_str)?,
            volume: optional(row, 3)?,
            snapshot: optional(row, 4)?,
            credential: parsed(row, 5)?,
            cloudsnap: parsed(row, 6)?,
            base: optional(row, 7)?,
            created: parsed(row, 8)?,
            owner: json(row, 9)?,
            detail: json(row, 10)?,
        })
    }

    /// Returns a task by id.
    ///
    /// # Errors
    /// The database fails.
    pub fn find(tx: &Transaction<'_>, id: Uuid) -> Result<Option<Self>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM tasks WHERE id = ?1");
        Ok(tx.query_row(&sql, [id.to_string()], Self::read).optional()?)
    }

    /// Returns the unfinished tasks, oldest first.
    ///
    /// # Errors
    /// The database fails.
    pub fn unfinished(tx: &Transaction<'_>) -> Result<Vec<Self>, DbError> {
        let sql =
            format!("SELECT {COLUMNS} FROM tasks WHERE state IN ('pending', 'active') ORDER BY created");
        let mut statement = tx.prepare(&sql)?;
        let rows = statement.query_map([], Self::read)?.collect::<Result<_, _>>()?;
        Ok(rows)
    }

    /// Returns the resumable tasks, oldest first.
    ///
    /// # Errors
    /// The database fails.
    pub fn kept(tx: &Transaction<'_>) -> Result<Vec<Self>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM tasks WHERE {KEPT} ORDER BY created");
        let mut statement = tx.prepare(&sql)?;
        let rows = statement.query_map([], Self::read)?.collect::<Result<_, _>>()?;
        Ok(rows)
    }

    /// Returns true if another task needs a local snapshot, now or when it resumes.
    ///
    /// # Errors
    /// The database fails.
    pub fn others_need(tx: &Transaction<'_>, task: Uuid, snapshot: SnapshotId) -> Result<bool, DbError> {
        let sql = format!(
            "SELECT count(*) FROM tasks WHERE snapshot = ?1 AND id <> ?2
             AND (state IN ('pending', 'active') OR ({KEPT}))"
        );
        let others: i64 = tx.query_row(&sql, [snapshot.to_string(), task.to_string()], |row| row.get(0))?;
        Ok(others > 0)
    }

    /// Returns a task that needs a local snapshot, now or when it resumes.
    ///
    /// # Errors
    /// The database fails.
    pub fn task_in_need(tx: &Transaction<'_>, snapshot: SnapshotId) -> Result<Option<Uuid>, DbError> {
        let sql = format!(
            "SELECT id FROM tasks WHERE snapshot = ?1 AND (state IN ('pending', 'active') OR ({KEPT})) LIMIT 1"
        );
        Ok(tx.query_row(&sql, [snapshot.to_string()], |row| parsed(row, 0)).optional()?)
    }

    /// Returns all tasks, newest first.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>) -> Result<Vec<Self>, DbError> {
        let mut statement = tx.prepare(&format!("SELECT {COLUMNS} FROM tasks ORDER BY created DESC, id"))?;
        let rows = statement.query_map([], Self::read)?.collect::<Result<_, _>>()?;
        Ok(rows)
    }

    /// Adds or replaces the row.
    ///
    /// # Errors
    /// The database fails.
    pub fn put(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        tx.execute(
            "INSERT OR REPLACE INTO tasks (id, kind, state, volume, snapshot, credential, cloudsnap, base, created, owner, detail)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            params![
                self.id.to_string(),
                self.kind.as_str(),
                self.state.as_str(),
                self.volume.map(|id| id.to_string()),
                self.snapshot.map(|id| id.to_string()),
                self.credential.to_string(),
                self.cloudsnap.to_string(),
                self.base.as_ref().map(ToString::to_string),
                self.created.to_string(),
                to_json("task", &self.owner)?,
                to_json("task", &self.detail)?
            ],
        )?;
        Ok(())
    }

    /// Replaces the row of an unfinished task: late progress must not revive an ended one.
    ///
    /// # Errors
    /// The database fails.
    pub fn put_progress(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        match Self::find(tx, self.id)? {
            Some(stored) if !stored.state.is_over() => self.put(tx),
            _ => Ok(()),
        }
    }

    /// Removes the oldest finished tasks beyond `keep`. Resumable ones stay.
    ///
    /// # Errors
    /// The database fails.
    pub fn prune(tx: &Transaction<'_>, keep: u32) -> Result<(), DbError> {
        tx.execute(
            &format!(
                "DELETE FROM tasks WHERE state IN ({ENDED}) AND NOT ({KEPT}) AND id NOT IN
                 (SELECT id FROM tasks WHERE state IN ({ENDED}) ORDER BY created DESC LIMIT ?1)"
            ),
            [keep],
        )?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Db;
    use super::*;
    use blockd_api::roles::Role;

    fn task(second: i64, state: TaskStage) -> TaskRow {
        TaskRow {
            id: Uuid::new_v4(),
            kind: TaskKind::Backup,
            state,
            volume: Some(VolumeId::from_u64(1)),
            snapshot: Some(SnapshotId::from_u64(u64::MAX)),
            credential: Uuid::new_v4(),
            cloudsnap: CloudSnapshotId {
                cluster: Uuid::new_v4(),
                volume: VolumeId::from_u64(1),
                snapshot: SnapshotId::from_u64(2),
                incremental: true,
            },
            base: None,
            created: Timestamp::from_second(second).unwrap(),
            owner: TaskOwner::Caller { name: "ops".into(), role: Role::Operator, uid: Some(7) },
            detail: TaskDetail { bytes_total: 7, note: Some("x".into()), ..TaskDetail::default() },
        }
    }

    #[test]
    fn rows_read_back_and_old_ones_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        db.transaction::<_, DbError>(|tx| {
            let tasks: Vec<_> = (0..5).map(|n| task(n, TaskStage::Done)).collect();
            let active = task(0, TaskStage::Active);
            for task in tasks.iter().chain([&active]) {
                task.put(tx)?;
            }
            assert_eq!(TaskRow::find(tx, tasks[0].id)?, Some(tasks[0].clone()));
            TaskRow { state: TaskStage::Active, ..tasks[4].clone() }.put_progress(tx)?;
            let mut stopped = task(0, TaskStage::Stopped);
            stopped.detail.kept = true;
            stopped.put(tx)?;
            TaskRow::prune(tx, 2)?;
            assert_eq!(TaskRow::kept(tx)?, vec![stopped.clone()]);
            assert_eq!(TaskRow::all(tx)?.len(), 4);
            stopped.detail.kept = false;
            stopped.put(tx)?;
            TaskRow::prune(tx, 2)?;
            assert_eq!(TaskRow::all(tx)?, vec![tasks[4].clone(), tasks[3].clone(), active.clone()]);
            assert_eq!(TaskRow::unfinished(tx)?, vec![active]);
            Ok(())
        })
        .unwrap();
    }
}
