//! Rows of tasks.

use super::volumes::UnknownWord;
use super::{DbError, json, parsed, to_json};
use blockd_api::{
    ApiError, ObjectName, SnapshotName, VolumeName,
    tasks::{Findings, TaskLimits, TaskOwner},
};
use blockd_cloud::{BackupType, CloudsnapId, VerifyDepth, store::RequestCounts};
use blockd_extent::{SnapshotId, VolumeId};
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// What a task does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TaskKind {
    /// Brings a volume's content to a store.
    Backup,
    /// Makes a volume from a cloud snapshot.
    Restore,
    /// Removes a cloud snapshot.
    Delete,
    /// Proves that cloud snapshots can be read.
    Verify,
}

impl TaskKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Restore => "restore",
            Self::Delete => "delete",
            Self::Verify => "verify",
        }
    }
}

impl fmt::Display for TaskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for TaskKind {
    type Err = UnknownWord;
    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        [Self::Backup, Self::Restore, Self::Delete, Self::Verify]
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| UnknownWord(text.to_owned()))
    }
}

/// How far a task has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TaskState {
    /// Not begun, or waiting for others to end.
    Pending,
    /// At work.
    Active,
    /// Ended well.
    Done,
    /// Ended with an error.
    Failed,
    /// Stopped by somebody, and can be taken up again.
    Stopped,
}

impl TaskState {
    /// The word for it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }

    /// Whether nothing more will happen by itself.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Stopped)
    }
}

impl FromStr for TaskState {
    type Err = UnknownWord;
    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        [Self::Pending, Self::Active, Self::Done, Self::Failed, Self::Stopped]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| UnknownWord(text.to_owned()))
    }
}

/// A restore into a volume that is there already.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InPlace {
    /// The snapshot that holds what the volume was before.
    pub before: SnapshotId,
    /// It goes when the restore is done.
    pub discard: bool,
    /// Every block below this one is what it shall be, durably.
    pub done_below: u64,
}

/// What backups of several volumes have in common, which hold one instant.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Barrier {
    /// Its id.
    pub id: Uuid,
    /// How many volumes there are.
    pub volumes: u64,
}

/// What a task tells about itself and needs to go on after a restart.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskDetail {
    /// The volume's name when the task was made; none for a delete.
    pub volume_name: Option<VolumeName>,
    /// The credential's name when the task was made.
    pub credential_name: String,
    /// What it is at.
    pub phase: String,
    /// Bytes that it is about.
    pub bytes_total: u64,
    /// How many of them are behind it.
    pub bytes_processed: u64,
    /// Bytes sent to the store.
    pub bytes_uploaded: u64,
    /// Bytes fetched from the store.
    pub bytes_downloaded: u64,
    /// Bytes dirtied since the backup that this one builds on; the data of the volume for a full one.
    pub bytes_dirty: u64,
    /// Requests made.
    pub requests: RequestCounts,
    /// Whether the point in time that a backup holds is fixed.
    pub frozen: bool,
    /// How long the freeze held writes up.
    pub freeze_stall_micros: u64,
    /// When it ended.
    pub completed: Option<Timestamp>,
    /// Full or incremental, once that is decided.
    pub backup_type: Option<BackupType>,
    /// Something that people should know, such as why a full backup was made.
    pub note: Option<String>,
    /// Why it failed.
    pub error: Option<ApiError>,
    /// How often it was taken up again after a restart.
    pub resumed: u32,
    /// Somebody asked for a full backup.
    pub force_full: bool,
    /// It ended without being done, and what it needs to go on is kept.
    pub kept: bool,
    /// Its commit was begun, so that what it makes may exist.
    pub may_be_committed: bool,
    /// The run of the daemon that it was asked of.
    pub run: Option<Uuid>,
    /// How much it may move in a second.
    pub limits: TaskLimits,
    /// A restore goes on past what is damaged.
    pub skip_damaged: bool,
    /// What a verification is to look at.
    pub verify: Option<VerifyWhat>,
    /// What a verification, or a restore past damage, found.
    pub findings: Option<Findings>,
    /// The restore's volume is there already, and this fetches the rest of it.
    pub lazy: bool,
    /// The restore goes into a volume that was there before.
    pub in_place: Option<InPlace>,
    /// What whoever asked for the backup called it.
    pub label: Option<ObjectName>,
    /// Somebody deletes also what is pinned or has a damaged manifest.
    pub force: bool,
    /// The manifest of what is deleted was damaged when the deletion was asked for.
    pub damaged: bool,
    /// Retention asked for the deletion.
    pub by_retention: bool,
    /// No rule deletes what the backup makes.
    pub pinned: bool,
    /// Until when that is kept in any case, and from when on by no rule.
    pub expires: Option<Timestamp>,
    /// The backup holds the same instant as those of other volumes.
    pub barrier: Option<Barrier>,
    /// What is to be done around the freeze of a backup.
    pub around: Vec<crate::quiesce::Part>,
    /// What was.
    pub quiesce: Option<blockd_api::quiesce::QuiesceReport>,
    /// The schedule that asked for it.
    pub schedule: Option<Uuid>,
    /// The snapshot that is backed up stays when the backup is done, under this name.
    pub keep_local: Option<SnapshotName>,
    /// Grows with each change.
    pub version: u64,
}

/// What a verification looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VerifyWhat {
    /// How thoroughly.
    pub depth: VerifyDepth,
    /// At all cloud snapshots under the credential, or at the one of the row.
    pub all: bool,
    /// Nobody asked for it: it takes its time.
    pub background: bool,
}

impl TaskDetail {
    /// Whether its volume was there before it, or is used before it ends: it stays whatever becomes of the
    /// task.
    pub fn is_of_volume_in_use(&self) -> bool {
        self.lazy || self.in_place.is_some()
    }
}

/// A task.
#[derive(Clone, PartialEq, Debug)]
pub struct TaskRow {
    /// Its id.
    pub id: Uuid,
    /// What it does.
    pub kind: TaskKind,
    /// How far it is.
    pub state: TaskState,
    /// The volume on this host that it works with.
    pub volume: Option<VolumeId>,
    /// The snapshot on this host that it works with.
    pub snapshot: Option<SnapshotId>,
    /// The credential.
    pub credential: Uuid,
    /// The cloud snapshot that it makes, reads or removes.
    pub cloudsnap: CloudsnapId,
    /// The cloud snapshot that an incremental builds on.
    pub base: Option<CloudsnapId>,
    /// When it was asked for.
    pub created: Timestamp,
    /// The caller, schedule or daemon that started it.
    pub owner: TaskOwner,
    /// The rest.
    pub detail: TaskDetail,
}

/// States that are final.
const ENDED: &str = "'done', 'failed', 'stopped'";
/// Of a task that can be taken up again.
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

impl TaskRow {
    /// Its cloud snapshot, once it is decided that there is one.
    pub(crate) fn decided_cloudsnap(&self) -> Option<CloudsnapId> {
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
            kind: parsed(row, 1)?,
            state: parsed(row, 2)?,
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

    /// The task of this id.
    ///
    /// # Errors
    /// The database fails.
    pub fn find(tx: &Transaction<'_>, id: Uuid) -> Result<Option<Self>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM tasks WHERE id = ?1");
        Ok(tx.query_row(&sql, [id.to_string()], Self::read).optional()?)
    }

    /// The tasks that have not ended, oldest first.
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

    /// The tasks that ended without being done and can be taken up again, oldest first.
    ///
    /// # Errors
    /// The database fails.
    pub fn kept(tx: &Transaction<'_>) -> Result<Vec<Self>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM tasks WHERE {KEPT} ORDER BY created");
        let mut statement = tx.prepare(&sql)?;
        let rows = statement.query_map([], Self::read)?.collect::<Result<_, _>>()?;
        Ok(rows)
    }

    /// Whether a task other than this one needs a snapshot on this host, now or when it is taken up again.
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

    /// A task that needs a snapshot on this host, now or when it is taken up again.
    ///
    /// # Errors
    /// The database fails.
    pub fn who_needs(tx: &Transaction<'_>, snapshot: SnapshotId) -> Result<Option<Uuid>, DbError> {
        let sql = format!(
            "SELECT id FROM tasks WHERE snapshot = ?1 AND (state IN ('pending', 'active') OR ({KEPT})) LIMIT 1"
        );
        Ok(tx.query_row(&sql, [snapshot.to_string()], |row| parsed(row, 0)).optional()?)
    }

    /// All tasks, newest first.
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

    /// Replaces the row unless it has ended meanwhile: progress that is stored late must not bring a task
    /// back.
    ///
    /// # Errors
    /// The database fails.
    pub fn put_progress(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        match Self::find(tx, self.id)? {
            Some(stored) if !stored.state.is_final() => self.put(tx),
            _ => Ok(()),
        }
    }

    /// Forgets the oldest finished tasks, so that at most `keep` of them are left. Those that can be taken up
    /// again stay.
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

    fn task(second: i64, state: TaskState) -> TaskRow {
        TaskRow {
            id: Uuid::new_v4(),
            kind: TaskKind::Backup,
            state,
            volume: Some(VolumeId::from_u64(1)),
            snapshot: Some(SnapshotId::from_u64(u64::MAX)),
            credential: Uuid::new_v4(),
            cloudsnap: CloudsnapId {
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
            let tasks: Vec<_> = (0..5).map(|n| task(n, TaskState::Done)).collect();
            let active = task(0, TaskState::Active);
            for task in tasks.iter().chain([&active]) {
                task.put(tx)?;
            }
            assert_eq!(TaskRow::find(tx, tasks[0].id)?, Some(tasks[0].clone()));
            TaskRow { state: TaskState::Active, ..tasks[4].clone() }.put_progress(tx)?;
            let mut stopped = task(0, TaskState::Stopped);
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
