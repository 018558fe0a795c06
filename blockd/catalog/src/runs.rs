//! Rows of runs of schedules.

use crate::{DbError, json_if_there, number, parsed, parsed_if_there, rows, stored, to_json};
use blockd_api::{
    CredentialName, ObjectName, VolumeName,
    schedules::{Priority, Run, RunState},
};
use blockd_cloud::CloudSnapshotId;
use blockd_extent::{SnapshotId, VolumeId};
use blockd_schedule::{Recurrence, Retention};
use jiff::Timestamp;
use rusqlite::{Row, Transaction, params};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Placeholder for the credential in runs of local snapshots.
pub const LOCAL: Uuid = Uuid::nil();

/// Kept backups of a schedule in one location.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyCount {
    /// Number of kept backups.
    pub kept: u64,
    /// Start time of the newest.
    pub newest: Option<Timestamp>,
    /// State of the last run.
    pub last_state: Option<RunState>,
}

/// Run of a schedule for one volume and one location.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRow {
    /// Number; 0 before it is stored.
    pub id: u64,
    /// The schedule.
    pub schedule: Uuid,
    /// Rule; `None` for a manual run.
    pub rule: Option<Recurrence>,
    /// Scheduled time.
    pub nominal: Timestamp,
    /// Start time.
    pub started: Timestamp,
    /// Number of missed runs that it replaces.
    pub missed: u32,
    /// Priority in the queue.
    pub priority: Priority,
    /// Full backup.
    pub force_full: bool,
    /// Volume; `None` if none was found.
    pub volume: Option<VolumeId>,
    /// Name of the volume.
    pub volume_name: Option<VolumeName>,
    /// Credential.
    pub credential: Option<Uuid>,
    /// State.
    pub state: RunState,
    /// Task.
    pub task: Option<Uuid>,
    /// Cloud snapshot that it made, or that its drill could not restore.
    pub cloudsnap: Option<CloudSnapshotId>,
    /// End time.
    pub completed: Option<Timestamp>,
    /// Cause of a failure, skip or wait.
    pub reason: Option<String>,
    /// Rule with its own retention; empty if the run counts with all others.
    pub pool: String,
    /// Retention of the rule at that time.
    pub retain: Option<Retention>,
    /// Local snapshot, once its id is known.
    pub snapshot: Option<SnapshotId>,
    /// Number of resumptions of its failed backup.
    pub retries: u32,
    /// Time of the next one, while it waits.
    pub retry_at: Option<Timestamp>,
}

/// Condition for a run with an existing local snapshot.
const THERE: &str = "snapshot IN (SELECT id FROM snapshots WHERE state = 'ready' AND internal = 0)";
/// Condition for a run that made a backup or a local snapshot.
const MADE_BACKUP: &str = "(cloudsnap IS NOT NULL OR snapshot IS NOT NULL)";
const COLUMNS: &str = "id, schedule, rule, nominal, started, missed, priority, force_full, volume, volume_name, credential, state, task, cloudsnap, completed, reason, pool, retain, snapshot, retries, retry_at";

fn state(row: &Row<'_>, column: usize) -> rusqlite::Result<RunState> {
    let text: String = row.get(column)?;
    let found = RunState::ALL.into_iter().find(|state| state.as_str() == text);
    found.ok_or_else(|| {
        let unknown = super::volumes::UnknownWord(text);
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(unknown))
    })
}

impl RunRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let priority = usize::try_from(number(row, 6)?).unwrap_or(usize::MAX);
        Ok(Self {
            id: number(row, 0)?,
            schedule: parsed(row, 1)?,
            // A rule with an unknown time zone must not make the row unreadable.
            rule: parsed_if_there(row, 2).unwrap_or(None),
            nominal: parsed(row, 3)?,
            started: parsed(row, 4)?,
            missed: u32::try_from(number(row, 5)?).unwrap_or(u32::MAX),
            priority: Priority::ALL.get(priority).copied().unwrap_or_default(),
            force_full: row.get(7)?,
            volume: parsed_if_there(row, 8)?,
            volume_name: parsed_if_there(row, 9)?,
            credential: parsed_if_there(row, 10)?,
            state: state(row, 11)?,
            task: parsed_if_there(row, 12)?,
            cloudsnap: parsed_if_there(row, 13)?,
            completed: parsed_if_there(row, 14)?,
            reason: row.get(15)?,
            pool: row.get(16)?,
            // As above; without retention, all are kept.
            retain: json_if_there(row, 17).unwrap_or(None),
            snapshot: parsed_if_there(row, 18)?,
            retries: u32::try_from(number(row, 19)?).unwrap_or(u32::MAX),
            retry_at: parsed_if_there(row, 20)?,
        })
    }

    fn select(tx: &Transaction<'_>, rest: &str, params: impl rusqlite::Params) -> Result<Vec<Self>, DbError> {
        rows(tx, &format!("SELECT {COLUMNS} FROM schedule_runs {rest}"), params, Self::read)
    }

    /// Adds the run unless it exists; returns its number if it was added.
    ///
    /// # Errors
    /// The database fails.
    pub fn insert(&self, tx: &Transaction<'_>) -> Result<Option<u64>, DbError> {
        let priority = Priority::ALL.iter().position(|priority| *priority == self.priority).unwrap_or(1);
        let retain = self.retain.as_ref().map(|retain| to_json("retention", retain)).transpose()?;
        let added = tx.execute(
            "INSERT INTO schedule_runs
             (schedule, rule, nominal, started, missed, priority, force_full, volume, volume_name, credential, state, task, cloudsnap, completed, reason, pool, retain, snapshot)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)
             ON CONFLICT (schedule, rule, nominal, volume, credential) WHERE rule IS NOT NULL AND freed = 0 DO NOTHING",
            params![
                self.schedule.to_string(),
                self.rule.as_ref().map(ToString::to_string),
                self.nominal.to_string(),
                self.started.to_string(),
                self.missed,
                stored(priority as u64),
                self.force_full,
                self.volume.map(|id| id.to_string()),
                self.volume_name.as_ref().map(ToString::to_string),
                self.credential.map(|id| id.to_string()),
                self.state.as_str(),
                self.task.map(|id| id.to_string()),
                self.cloudsnap.as_ref().map(ToString::to_string),
                self.completed.map(|at| at.to_string()),
                self.reason,
                self.pool,
                retain,
                self.snapshot.map(|id| id.to_string()),
            ],
        )?;
        Ok((added > 0).then(|| tx.last_insert_rowid().unsigned_abs()))
    }

    /// Stores the state of the run.
    ///
    /// # Errors
    /// The database fails.
    pub fn update(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        tx.execute(
            "UPDATE schedule_runs SET state = ?2, task = ?3, cloudsnap = ?4, completed = ?5, reason = ?6, snapshot = ?7, retries = ?8, retry_at = ?9
             WHERE id = ?1",
            params![
                stored(self.id),
                self.state.as_str(),
                self.task.map(|id| id.to_string()),
                self.cloudsnap.as_ref().map(ToString::to_string),
                self.completed.map(|at| at.to_string()),
                self.reason,
                self.snapshot.map(|id| id.to_string()),
                self.retries,
                self.retry_at.map(|at| at.to_string()),
            ],
        )?;
        Ok(())
    }

    /// Stores the state of a run that is still queued; returns false otherwise.
    ///
    /// # Errors
    /// The database fails.
    pub fn update_queued(&self, tx: &Transaction<'_>) -> Result<bool, DbError> {
        self.update_if(tx, RunState::Queued)
    }

    /// Stores the state of a run that is still retrying; returns false otherwise.
    ///
    /// # Errors
    /// The database fails.
    pub fn update_retrying(&self, tx: &Transaction<'_>) -> Result<bool, DbError> {
        self.update_if(tx, RunState::Retrying)
    }

    fn update_if(&self, tx: &Transaction<'_>, state: RunState) -> Result<bool, DbError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM schedule_runs WHERE id = ?1 AND state = ?2)";
        let waits: bool = tx.query_row(sql, params![stored(self.id), state.as_str()], |row| row.get(0))?;
        if waits {
            self.update(tx)?;
        }
        Ok(waits)
    }

    /// Stores failures that did not prevent the snapshot of a run.
    ///
    /// # Errors
    /// The database fails.
    pub fn set_reason(tx: &Transaction<'_>, snapshot: SnapshotId, reason: &str) -> Result<(), DbError> {
        tx.execute(
            "UPDATE schedule_runs SET reason = ?2 WHERE snapshot = ?1 AND state IN ('active', 'done')",
            params![snapshot.to_string(), reason],
        )?;
        Ok(())
    }

    /// Excludes the runs of a deleted cloud snapshot from retention.
    ///
    /// # Errors
    /// The database fails.
    pub fn expire(
        tx: &Transaction<'_>,
        credential: Uuid,
        cloudsnap: &CloudSnapshotId,
        reason: &str,
    ) -> Result<(), DbError> {
        // Includes a run whose end is not recorded yet, or that was resumed after a failure.
        tx.execute(
            "UPDATE schedule_runs SET state = 'expired', completed = coalesce(completed, ?4), reason = ?3
             WHERE cloudsnap = ?1 AND credential = ?2 AND state IN ('done', 'active', 'retrying', 'failed')",
            params![cloudsnap.to_string(), credential.to_string(), reason, Timestamp::now().to_string()],
        )?;
        Ok(())
    }

    /// Ends the failures of drills of a cloud snapshot that another host deleted.
    ///
    /// # Errors
    /// The database fails.
    pub fn expire_failed(
        tx: &Transaction<'_>,
        credential: Uuid,
        cloudsnap: &CloudSnapshotId,
    ) -> Result<(), DbError> {
        tx.execute(
            "UPDATE schedule_runs SET state = 'expired', reason = 'its cloud snapshot is no longer in its store'
             WHERE cloudsnap = ?1 AND credential = ?2 AND state = 'failed'",
            [cloudsnap.to_string(), credential.to_string()],
        )?;
        Ok(())
    }

    /// Gives the runs of a damaged cloud snapshot its repaired one, so that retention counts it.
    ///
    /// # Errors
    /// The database fails.
    pub fn replace_cloudsnap(
        tx: &Transaction<'_>,
        credential: Uuid,
        old: &CloudSnapshotId,
        new: &CloudSnapshotId,
    ) -> Result<(), DbError> {
        tx.execute(
            "UPDATE schedule_runs SET cloudsnap = ?3 WHERE cloudsnap = ?1 AND credential = ?2",
            [old.to_string(), credential.to_string(), new.to_string()],
        )?;
        Ok(())
    }

    /// Frees the later scheduled times of a rule after the clock was set back: they occur again.
    ///
    /// # Errors
    /// The database fails.
    pub fn free_later(
        tx: &Transaction<'_>,
        schedule: Uuid,
        rule: &Recurrence,
        now: Timestamp,
    ) -> Result<(), DbError> {
        tx.execute(
            "UPDATE schedule_runs SET freed = 1 WHERE schedule = ?1 AND rule = ?2
             AND CAST(strftime('%s', nominal) AS INTEGER) > ?3",
            params![schedule.to_string(), rule.to_string(), now.as_second()],
        )?;
        Ok(())
    }

    /// Returns the runs of a state in queue order.
    ///
    /// # Errors
    /// The database fails.
    pub fn in_state(tx: &Transaction<'_>, state: RunState) -> Result<Vec<Self>, DbError> {
        Self::select(tx, "WHERE state = ?1 ORDER BY priority DESC, id", [state.as_str()])
    }

    /// Returns runs whose task may have ended: active and retrying ones, and failed ones with a resumed task.
    ///
    /// # Errors
    /// The database fails.
    pub fn to_settle(tx: &Transaction<'_>) -> Result<Vec<Self>, DbError> {
        let sql = format!(
            "WHERE state IN ('active', 'retrying')
             OR (state = 'failed' AND credential <> '{LOCAL}' AND task IN (SELECT id FROM tasks WHERE state = 'done'))
             OR (state = 'failed' AND credential = '{LOCAL}' AND {THERE}) ORDER BY id"
        );
        Self::select(tx, &sql, [])
    }

    /// Returns the unfinished run of a task; `None` for a task without one, or whose run has ended.
    ///
    /// # Errors
    /// The database fails.
    pub fn unfinished_of_task(tx: &Transaction<'_>, task: Uuid) -> Result<Option<Self>, DbError> {
        let sql = format!(
            "WHERE task = ?1 AND credential <> '{LOCAL}' AND state IN ('active', 'retrying') LIMIT 1"
        );
        Ok(Self::select(tx, &sql, [task.to_string()])?.into_iter().next())
    }

    /// Records the resumption of a retrying run's task; returns false if it has no such run.
    ///
    /// # Errors
    /// The database fails.
    pub fn record_resumption(tx: &Transaction<'_>, task: Uuid) -> Result<bool, DbError> {
        let sql = "UPDATE schedule_runs
                   SET state = 'active', retries = retries + 1, retry_at = NULL, reason = NULL
                   WHERE task = ?1 AND state = 'retrying'";
        Ok(tx.execute(sql, [task.to_string()])? > 0)
    }

    /// Returns the unfinished runs of a schedule for a volume and a location.
    ///
    /// # Errors
    /// The database fails.
    pub fn unfinished(
        tx: &Transaction<'_>,
        schedule: Uuid,
        volume: VolumeId,
        credential: Uuid,
    ) -> Result<Vec<Self>, DbError> {
        Self::select(
            tx,
            "WHERE schedule = ?1 AND volume = ?2 AND credential = ?3 AND state IN ('queued', 'active', 'retrying') ORDER BY id",
            params![schedule.to_string(), volume.to_string(), credential.to_string()],
        )
    }

    /// Returns the runs of a schedule whose backups exist. Drills make none.
    ///
    /// # Errors
    /// The database fails.
    pub fn kept(tx: &Transaction<'_>, schedule: Uuid) -> Result<Vec<Self>, DbError> {
        let sql = format!("WHERE state = 'done' AND {MADE_BACKUP} AND schedule = ?1 ORDER BY id DESC");
        Self::select(tx, &sql, [schedule.to_string()])
    }

    /// Excludes runs from retention whose local snapshots were deleted.
    ///
    /// # Errors
    /// The database fails.
    pub fn expire_lost_snapshots(tx: &Transaction<'_>) -> Result<(), DbError> {
        tx.execute(
            &format!(
                "UPDATE schedule_runs SET state = 'expired', reason = coalesce(reason || '; ', '') || 'its snapshot was deleted'
                 WHERE credential = '{LOCAL}' AND state = 'done' AND snapshot NOT IN (SELECT id FROM snapshots)"
            ),
            [],
        )?;
        Ok(())
    }

    /// Returns the kept backups of a schedule by location.
    ///
    /// # Errors
    /// The database fails.
    pub fn copies(tx: &Transaction<'_>, schedule: Uuid) -> Result<BTreeMap<Uuid, CopyCount>, DbError> {
        let mut copies: BTreeMap<Uuid, CopyCount> = BTreeMap::new();
        for run in Self::kept(tx, schedule)? {
            let Some(credential) = run.credential else { continue };
            let copy = copies.entry(credential).or_default();
            copy.kept += 1;
            copy.newest = copy.newest.max(Some(run.started));
        }
        let sql = "WHERE id IN (SELECT max(id) FROM schedule_runs
                   WHERE schedule = ?1 AND credential IS NOT NULL GROUP BY credential)";
        for run in Self::select(tx, sql, [schedule.to_string()])? {
            if let Some(credential) = run.credential {
                copies.entry(credential).or_default().last_state = Some(run.state);
            }
        }
        Ok(copies)
    }

    /// Returns true for the run of a local snapshot.
    pub fn is_local(&self) -> bool {
        self.credential == Some(LOCAL)
    }

    /// Returns the newest runs, of schedules with an id prefix or of one volume if given.
    ///
    /// # Errors
    /// The database fails.
    pub fn history(
        tx: &Transaction<'_>,
        schedule: Option<&str>,
        volume: Option<VolumeId>,
        max: u32,
    ) -> Result<Vec<Self>, DbError> {
        Self::select(
            tx,
            "WHERE (?1 IS NULL OR substr(schedule, 1, length(?1)) = ?1) AND (?2 IS NULL OR volume = ?2) ORDER BY id DESC LIMIT ?3",
            params![schedule, volume.map(|id| id.to_string()), max],
        )
    }

    /// Returns the names of deleted schedules that had one.
    ///
    /// # Errors
    /// The database fails.
    pub fn deleted_schedules(tx: &Transaction<'_>) -> Result<Vec<(Uuid, ObjectName)>, DbError> {
        let sql =
            "SELECT DISTINCT schedule, schedule_name FROM schedule_runs WHERE schedule_name IS NOT NULL";
        rows(tx, sql, [], |row| Ok((parsed(row, 0)?, parsed(row, 1)?)))
    }

    /// Returns the start time of a schedule's last run.
    ///
    /// # Errors
    /// The database fails.
    pub fn last_of(tx: &Transaction<'_>, schedule: Uuid) -> Result<Option<Timestamp>, DbError> {
        let sql = "WHERE schedule = ?1 AND state <> 'skipped' ORDER BY id DESC LIMIT 1";
        Ok(Self::select(tx, sql, [schedule.to_string()])?.first().map(|run| run.started))
    }

    /// Returns true if the newest run of a schedule was skipped for lack of volumes.
    ///
    /// # Errors
    /// The database fails.
    pub fn matched_no_volume(tx: &Transaction<'_>, schedule: Uuid) -> Result<bool, DbError> {
        let newest =
            Self::select(tx, "WHERE schedule = ?1 ORDER BY id DESC LIMIT 1", [schedule.to_string()])?;
        Ok(newest.first().is_some_and(|run| run.state == RunState::Skipped && run.volume.is_none()))
    }

    /// Removes the oldest ended runs beyond `keep`. Runs whose schedule and backup exist stay, as retention
    /// needs them.
    ///
    /// # Errors
    /// The database fails.
    pub fn prune(tx: &Transaction<'_>, keep: u32) -> Result<(), DbError> {
        tx.execute(
            &format!(
                "WITH ended AS (SELECT id FROM schedule_runs WHERE state IN ('failed', 'skipped', 'expired')
                    OR (state = 'done' AND (schedule NOT IN (SELECT uuid FROM schedules) OR NOT {MADE_BACKUP})))
                 DELETE FROM schedule_runs WHERE id IN (SELECT id FROM ended)
                 AND id <= (SELECT id FROM ended ORDER BY id DESC LIMIT 1 OFFSET ?1)"
            ),
            [keep],
        )?;
        Ok(())
    }

    /// Converts to the API type, with the names of the schedule and of all credentials.
    pub fn to_api(
        &self,
        schedule_name: Option<ObjectName>,
        credentials: &BTreeMap<Uuid, CredentialName>,
    ) -> Run {
        let credential_id = self.credential.filter(|credential| *credential != LOCAL);
        Run {
            run_id: self.id,
            schedule_id: self.schedule,
            schedule_name,
            when: self.rule.clone(),
            planned_at: self.nominal,
            started_at: self.started,
            missed: self.missed,
            volume_id: self.volume,
            volume_name: self.volume_name.clone(),
            credential_id,
            credential_name: credential_id.and_then(|uuid| credentials.get(&uuid).cloned()),
            local: self.is_local(),
            snapshot_id: self.snapshot,
            state: self.state,
            task_id: self.task,
            cloud_snapshot_id: self.cloudsnap,
            retry_at: self.retry_at,
            retries: self.retries.into(),
            completed_at: self.completed,
            reason: self.reason.clone(),
        }
    }
}
