//! Rows of tasks.

use crate::volumes::UnknownWord;
use crate::{DbError, json, parsed, rows, to_json};
use blockd_api::{
    ApiError, GroupName, Labels, SnapshotName, VolumeName,
    cloudsnaps::BackupOptions,
    drills::DrillStage,
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

mod drill;

pub use drill::{DrillTask, MemberDrill};

/// Freeze of a consistency group, shared by the backups of its volumes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GroupFreeze {
    /// Its id.
    pub id: Uuid,
    /// Group of volumes, if they were selected by group.
    pub name: Option<GroupName>,
    /// Number of volumes.
    pub volume_count: u64,
}

/// Kind of a task, and the request that it serves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum TaskSpec {
    /// Backup of a volume.
    Backup(BackupTask),
    /// Restore of a cloud snapshot.
    Restore(RestoreTask),
    /// Deletion of a cloud snapshot.
    Delete(DeleteTask),
    /// Verification of cloud snapshots.
    Verify(VerifyTask),
    /// Restore drill.
    Drill(DrillTask),
    /// Scrub of the local data of volumes.
    Scrub(ScrubTask),
    /// Repair of a damaged cloud snapshot.
    Repair(RepairTask),
}

/// Request of a backup.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BackupTask {
    /// Options.
    pub options: BackupOptions,
    /// Freeze of its consistency group.
    pub group_freeze: Option<GroupFreeze>,
    /// Quiesce parts.
    pub quiesce_rules: Vec<blockd_quiesce::QuiescePart>,
    /// Schedule that started it.
    pub schedule: Option<Uuid>,
    /// Name under which the snapshot stays after the backup.
    pub keep_local: Option<SnapshotName>,
    /// The snapshot existed before the task, which never takes it.
    pub existing: bool,
}

/// Request of a restore.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "target", rename_all = "kebab-case")]
pub enum RestoreTask {
    /// Restores into a new volume, which is served when it is complete.
    NewVolume {
        /// Damaged extents are skipped.
        skip_damaged: bool,
    },
    /// Hydrates a lazy volume.
    LazyVolume,
    /// Restores an existing volume in place.
    InPlace(InPlaceRestore),
}

/// Request of an in-place restore.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InPlaceRestore {
    /// Snapshot of the previous content.
    pub before: SnapshotId,
    /// The snapshot is deleted after the restore.
    pub discard: bool,
    /// Labels that the volume gets after the restore.
    pub labels: Labels,
}

/// Request of a deletion.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DeleteTask {
    /// The deletion includes pinned snapshots and damaged manifests.
    pub force: bool,
    /// The manifest was damaged at the request.
    pub damaged: bool,
    /// Requested by retention.
    pub by_retention: bool,
}

/// Request of a verification.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VerifyTask {
    /// Depth.
    pub depth: VerifyDepth,
    /// All cloud snapshots of the credential instead of the row's one.
    pub all: bool,
    /// Background verification with low priority.
    pub background: bool,
}

/// Request of a scrub of the row's volume, or of all. Its row has no credential and no cloud snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ScrubTask {
    /// Maximum number of bytes to read; it starts where the last scrub has ended.
    pub budget_bytes: Option<u64>,
    /// Damaged blocks are repaired from cloud snapshots.
    pub repair: bool,
    /// Background scrub: it continues the last one at the rate of the daily budget.
    pub background: bool,
}

/// Request of a repair of the row's cloud snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RepairTask {
    /// Credential of the only location to take blocks from.
    pub from: Option<Uuid>,
    /// Stores nothing.
    pub dry_run: bool,
}

impl TaskSpec {
    /// Returns the kind.
    pub fn kind(&self) -> TaskKind {
        match self {
            Self::Backup(_) => TaskKind::Backup,
            Self::Restore(_) => TaskKind::Restore,
            Self::Delete(_) => TaskKind::Delete,
            Self::Verify(_) => TaskKind::Verify,
            Self::Drill(_) => TaskKind::Drill,
            Self::Scrub(_) => TaskKind::Scrub,
            Self::Repair(_) => TaskKind::Repair,
        }
    }

    /// Returns the request of a backup; `None` for other kinds.
    pub fn backup(&self) -> Option<&BackupTask> {
        match self {
            Self::Backup(backup) => Some(backup),
            Self::Restore(_) | Self::Delete(_) | Self::Verify(_) => None,
            Self::Drill(_) | Self::Scrub(_) | Self::Repair(_) => None,
        }
    }

    /// Returns the request of an in-place restore; `None` for other tasks.
    pub fn in_place(&self) -> Option<&InPlaceRestore> {
        match self {
            Self::Restore(RestoreTask::InPlace(restore)) => Some(restore),
            _ => None,
        }
    }

    /// Returns true for an in-place restore.
    pub fn is_in_place(&self) -> bool {
        self.in_place().is_some()
    }

    /// Returns true if the volume existed before the task or is used during it, so that it stays after a
    /// failure.
    pub fn is_of_volume_in_use(&self) -> bool {
        self.is_hydration() || self.is_in_place()
    }

    /// Returns true for a scrub that no user requested.
    pub fn is_background_scrub(&self) -> bool {
        matches!(self, Self::Scrub(ScrubTask { background: true, .. }))
    }

    /// Returns true for the hydration of a lazy volume.
    pub fn is_hydration(&self) -> bool {
        matches!(self, Self::Restore(RestoreTask::LazyVolume))
    }
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
    /// A run of the task before this one processed bytes.
    pub has_progress: bool,
    /// Bytes sent to the store.
    pub bytes_uploaded: u64,
    /// Bytes fetched from the store.
    pub bytes_downloaded: u64,
    /// Bytes of data and zero blocks that the backup contains.
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
    /// Note, such as the reason of a full backup.
    pub note: Option<String>,
    /// Error of a failed task.
    pub error: Option<ApiError>,
    /// Step at which a drill failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_step: Option<DrillStage>,
    /// Number of resumes after restarts.
    pub resumed: u32,
    /// The task ended without success and can be resumed.
    pub resumable: bool,
    /// It failed for a cause that may pass without an administrator's action.
    pub retryable: bool,
    /// Snapshots besides the base that the references of the backup need.
    pub donors: Vec<CloudSnapshotId>,
    /// The commit was started, so its cloud snapshot may exist.
    pub may_be_committed: bool,
    /// Run of the daemon that created it.
    pub run: Option<Uuid>,
    /// Bandwidth limits.
    pub limits: TaskLimits,
    /// Findings of a verification or of a restore that skips damage.
    pub findings: Option<Findings>,
    /// Quiesce report.
    pub quiesce: Option<blockd_api::quiesce::QuiesceReport>,
    /// All blocks below this one are durably restored, by an in-place restore.
    pub restored_below: u64,
    /// Version, which grows with each change.
    pub version: u64,
}

/// Task.
#[derive(Clone, PartialEq, Debug)]
pub struct TaskRow {
    /// Its id.
    pub id: Uuid,
    /// Kind and request.
    pub spec: TaskSpec,
    /// Stage.
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
const RESUMABLE: &str = "state IN ('stopped', 'failed') AND json_extract(detail, '$.resumable') = 1";
const COLUMNS: &str =
    "id, spec, state, volume, snapshot, credential, cloudsnap, base, created, owner, detail";

fn optional<T: FromStr>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    match row.get_ref(column)? {
        rusqlite::types::ValueRef::Null => Ok(None),
        _ => parsed(row, column).map(Some),
    }
}

fn stage(row: &Row<'_>, column: usize) -> rusqlite::Result<TaskStage> {
    let text: String = row.get(column)?;
    TaskStage::ALL.into_iter().find(|stage| stage.as_str() == text).ok_or_else(|| {
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(UnknownWord(text)))
    })
}

impl TaskRow {
    /// Creates a pending task without a local volume.
    pub fn new(spec: TaskSpec, credential: Uuid, cloudsnap: CloudSnapshotId, owner: TaskOwner) -> Self {
        Self {
            id: Uuid::new_v4(),
            spec,
            state: TaskStage::Pending,
            volume: None,
            snapshot: None,
            credential,
            cloudsnap,
            base: None,
            created: Timestamp::now(),
            owner,
            detail: TaskDetail { phase: "pending".into(), ..TaskDetail::default() },
        }
    }

    /// Returns the kind.
    pub fn kind(&self) -> TaskKind {
        self.spec.kind()
    }

    /// Returns its cloud snapshot, once it is decided.
    pub fn decided_cloudsnap(&self) -> Option<CloudSnapshotId> {
        let is_decided = match &self.spec {
            TaskSpec::Backup(_) => self.detail.backup_type.is_some(),
            TaskSpec::Verify(verify) => !verify.all,
            TaskSpec::Scrub(_) => false,
            TaskSpec::Restore(_) | TaskSpec::Delete(_) | TaskSpec::Drill(_) | TaskSpec::Repair(_) => true,
        };
        is_decided.then_some(self.cloudsnap)
    }

    /// Describes what it works on: one cloud snapshot, all at a location, or volumes.
    pub fn object(&self) -> String {
        match &self.spec {
            TaskSpec::Verify(VerifyTask { all: true, .. }) => {
                format!("all cloud snapshots at {}", self.detail.credential_name)
            }
            TaskSpec::Scrub(_) => match &self.detail.volume_name {
                Some(name) => format!("volume {name}"),
                None => "all volumes".to_owned(),
            },
            _ => self.cloudsnap.to_string(),
        }
    }

    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: parsed(row, 0)?,
            spec: json(row, 1)?,
            state: stage(row, 2)?,
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
        // Polled by clients: its statement is not parsed each time.
        Ok(rows(tx, &sql, [id.to_string()], Self::read)?.into_iter().next())
    }

    /// Returns the unfinished tasks, oldest first.
    ///
    /// # Errors
    /// The database fails.
    pub fn unfinished(tx: &Transaction<'_>) -> Result<Vec<Self>, DbError> {
        let sql =
            format!("SELECT {COLUMNS} FROM tasks WHERE state IN ('pending', 'active') ORDER BY created");
        rows(tx, &sql, [], Self::read)
    }

    /// Returns the resumable tasks, oldest first.
    ///
    /// # Errors
    /// The database fails.
    pub fn resumable(tx: &Transaction<'_>) -> Result<Vec<Self>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM tasks WHERE {RESUMABLE} ORDER BY created");
        rows(tx, &sql, [], Self::read)
    }

    /// Returns true if another task needs a local snapshot, now or when it resumes.
    ///
    /// # Errors
    /// The database fails.
    pub fn others_need(tx: &Transaction<'_>, task: Uuid, snapshot: SnapshotId) -> Result<bool, DbError> {
        let sql = format!(
            "SELECT count(*) FROM tasks WHERE snapshot = ?1 AND id <> ?2
             AND (state IN ('pending', 'active') OR ({RESUMABLE}))"
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
            "SELECT id FROM tasks WHERE snapshot = ?1 AND (state IN ('pending', 'active') OR ({RESUMABLE})) LIMIT 1"
        );
        Ok(tx.query_row(&sql, [snapshot.to_string()], |row| parsed(row, 0)).optional()?)
    }

    /// Returns all tasks, newest first.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>) -> Result<Vec<Self>, DbError> {
        rows(tx, &format!("SELECT {COLUMNS} FROM tasks ORDER BY created DESC, id"), [], Self::read)
    }

    /// Adds or replaces the row.
    ///
    /// # Errors
    /// The database fails.
    pub fn put(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        tx.execute(
            "INSERT OR REPLACE INTO tasks (id, spec, state, volume, snapshot, credential, cloudsnap, base, created, owner, detail)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            params![
                self.id.to_string(),
                to_json("task", &self.spec)?,
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
                "DELETE FROM tasks WHERE state IN ({ENDED}) AND NOT ({RESUMABLE}) AND id NOT IN
                 (SELECT id FROM tasks WHERE state IN ({ENDED}) ORDER BY created DESC LIMIT ?1)"
            ),
            [keep],
        )?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
