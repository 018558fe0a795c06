//! Rows of runs of schedules.

use super::{DbError, json_if_there, number, parsed, parsed_if_there, stored, to_json};
use blockd_api::{
    VolumeName,
    schedules::{Priority, Run, RunState},
};
use blockd_cloud::CloudsnapId;
use blockd_extent::{SnapshotId, VolumeId};
use blockd_schedule::{Recurrence, Retention};
use jiff::Timestamp;
use rusqlite::{Row, Transaction, params};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Stands in place of the credential of a run that makes a local snapshot.
pub const LOCAL: Uuid = Uuid::nil();

/// What there is of one copy that a schedule makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyCount {
    /// How many there are.
    pub kept: u64,
    /// When the newest was begun.
    pub newest: Option<Timestamp>,
    /// How the last run is.
    pub last_state: Option<RunState>,
}

/// A run for one volume and one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRow {
    /// Its number; 0 until it is stored.
    pub id: u64,
    /// The schedule.
    pub schedule: Uuid,
    /// The rule by which it came; none for one that was asked for.
    pub rule: Option<Recurrence>,
    /// The instant that the schedule means.
    pub nominal: Timestamp,
    /// When it was begun.
    pub started: Timestamp,
    /// How many earlier ones it stands for as well.
    pub missed: u32,
    /// Which of several that wait goes first.
    pub priority: Priority,
    /// A full backup is wanted.
    pub force_full: bool,
    /// The volume; none if no volume was found.
    pub volume: Option<VolumeId>,
    /// Its name.
    pub volume_name: Option<VolumeName>,
    /// Where to.
    pub credential: Option<Uuid>,
    /// How it is.
    pub state: RunState,
    /// Its task.
    pub task: Option<Uuid>,
    /// What it made.
    pub cloudsnap: Option<CloudsnapId>,
    /// When it ended.
    pub completed: Option<Timestamp>,
    /// Why it failed, was left out or has to wait.
    pub reason: Option<String>,
    /// Its rule, if that had a retention of its own; else nothing, and it counts with all others.
    pub pool: String,
    /// That retention, as it was then.
    pub retain: Option<Retention>,
    /// The local snapshot that it makes, once that is decided.
    pub snapshot: Option<SnapshotId>,
}

/// Of a run whose local snapshot is there.
const THERE: &str = "snapshot IN (SELECT id FROM snapshots WHERE state = 'ready' AND internal = 0)";
const COLUMNS: &str = "id, schedule, rule, nominal, started, missed, priority, force_full, volume, volume_name, credential, state, task, cloudsnap, completed, reason, pool, retain, snapshot";

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
            // A rule whose time zone is gone from this host is not worth losing the row for.
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
            // As above; without it, all are kept.
            retain: json_if_there(row, 17).unwrap_or(None),
            snapshot: parsed_if_there(row, 18)?,
        })
    }

    fn select(tx: &Transaction<'_>, rest: &str, params: impl rusqlite::Params) -> Result<Vec<Self>, DbError> {
        let mut statement = tx.prepare(&format!("SELECT {COLUMNS} FROM schedule_runs {rest}"))?;
        let rows = statement.query_map(params, Self::read)?.collect::<Result<_, _>>()?;
        Ok(rows)
    }

    /// Adds the run, unless the same one is there already; returns its number if it was added.
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

    /// Stores how the run is now.
    ///
    /// # Errors
    /// The database fails.
    pub fn update(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        tx.execute(
            "UPDATE schedule_runs SET state = ?2, task = ?3, cloudsnap = ?4, completed = ?5, reason = ?6, snapshot = ?7
             WHERE id = ?1",
            params![
                stored(self.id),
                self.state.as_str(),
                self.task.map(|id| id.to_string()),
                self.cloudsnap.as_ref().map(ToString::to_string),
                self.completed.map(|at| at.to_string()),
                self.reason,
                self.snapshot.map(|id| id.to_string()),
            ],
        )?;
        Ok(())
    }

    /// Stores how the run is now, if it still waits; false if it does not.
    ///
    /// # Errors
    /// The database fails.
    pub fn update_queued(&self, tx: &Transaction<'_>) -> Result<bool, DbError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM schedule_runs WHERE id = ?1 AND state = 'queued')";
        let waits: bool = tx.query_row(sql, [stored(self.id)], |row| row.get(0))?;
        if waits {
            self.update(tx)?;
        }
        Ok(waits)
    }

    /// A cloud snapshot is out of its store: the runs that made it count as backups no more, whoever deleted
    /// it.
    ///
    /// # Errors
    /// The database fails.
    pub fn expire(
        tx: &Transaction<'_>,
        credential: Uuid,
        cloudsnap: &CloudsnapId,
        reason: &str,
    ) -> Result<(), DbError> {
        // One whose end was not noted yet, or that was taken up again after it failed, made it too.
        tx.execute(
            "UPDATE schedule_runs SET state = 'expired', completed = coalesce(completed, ?4), reason = ?3
             WHERE cloudsnap = ?1 AND credential = ?2 AND state IN ('done', 'active', 'failed')",
            params![cloudsnap.to_string(), credential.to_string(), reason, Timestamp::now().to_string()],
        )?;
        Ok(())
    }

    /// The clock was set back to `now`: the instants of a rule that are later come again, for other runs.
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

    /// Those in a state, in the order in which they are to go.
    ///
    /// # Errors
    /// The database fails.
    pub fn in_state(tx: &Transaction<'_>, state: RunState) -> Result<Vec<Self>, DbError> {
        Self::select(tx, "WHERE state = ?1 ORDER BY priority DESC, id", [state.as_str()])
    }

    /// Those whose task may have ended: the active ones, and those that failed and whose task was taken up
    /// again.
    ///
    /// # Errors
    /// The database fails.
    pub fn to_settle(tx: &Transaction<'_>) -> Result<Vec<Self>, DbError> {
        let sql = format!(
            "WHERE state = 'active'
             OR (state = 'failed' AND credential <> '{LOCAL}' AND task IN (SELECT id FROM tasks WHERE state = 'done'))
             OR (state = 'failed' AND credential = '{LOCAL}' AND {THERE}) ORDER BY id"
        );
        Self::select(tx, &sql, [])
    }

    /// The run of a schedule for a volume and a place that has not ended.
    ///
    /// # Errors
    /// The database fails.
    pub fn unfinished(
        tx: &Transaction<'_>,
        schedule: Uuid,
        volume: VolumeId,
        credential: Uuid,
    ) -> Result<Option<Self>, DbError> {
        let found = Self::select(
            tx,
            "WHERE schedule = ?1 AND volume = ?2 AND credential = ?3 AND state IN ('queued', 'active') LIMIT 1",
            params![schedule.to_string(), volume.to_string(), credential.to_string()],
        )?;
        Ok(found.into_iter().next())
    }

    /// What a schedule made that is there still.
    ///
    /// # Errors
    /// The database fails.
    pub fn kept(tx: &Transaction<'_>, schedule: Uuid) -> Result<Vec<Self>, DbError> {
        Self::select(tx, "WHERE state = 'done' AND schedule = ?1 ORDER BY id DESC", [schedule.to_string()])
    }

    /// Local snapshots that are gone, because people deleted them or their volume: the runs that made them
    /// count no more.
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

    /// What there is of each copy that a schedule makes, by its place.
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

    /// Whether it makes a local snapshot.
    pub fn is_local(&self) -> bool {
        self.credential == Some(LOCAL)
    }

    /// The newest so many, of schedules whose ids begin so or of one volume if that is given.
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

    /// When a schedule began its last run.
    ///
    /// # Errors
    /// The database fails.
    pub fn last_of(tx: &Transaction<'_>, schedule: Uuid) -> Result<Option<Timestamp>, DbError> {
        let sql = "WHERE schedule = ?1 AND state <> 'skipped' ORDER BY id DESC LIMIT 1";
        Ok(Self::select(tx, sql, [schedule.to_string()])?.first().map(|run| run.started))
    }

    /// Whether the newest run of a schedule was left out because there was no volume.
    ///
    /// # Errors
    /// The database fails.
    pub fn found_no_volume(tx: &Transaction<'_>, schedule: Uuid) -> Result<bool, DbError> {
        let newest =
            Self::select(tx, "WHERE schedule = ?1 ORDER BY id DESC LIMIT 1", [schedule.to_string()])?;
        Ok(newest.first().is_some_and(|run| run.state == RunState::Skipped && run.volume.is_none()))
    }

    /// Forgets the oldest ended runs, so that at most `keep` of them are left. What a schedule made is not
    /// forgotten while both are there: its retention goes by that.
    ///
    /// # Errors
    /// The database fails.
    pub fn prune(tx: &Transaction<'_>, keep: u32) -> Result<(), DbError> {
        tx.execute(
            "WITH ended AS (SELECT id FROM schedule_runs WHERE state IN ('failed', 'skipped', 'expired')
                OR (state = 'done' AND schedule NOT IN (SELECT uuid FROM schedules)))
             DELETE FROM schedule_runs WHERE id IN (SELECT id FROM ended)
             AND id <= (SELECT id FROM ended ORDER BY id DESC LIMIT 1 OFFSET ?1)",
            [keep],
        )?;
        Ok(())
    }

    /// As replies have it.
    pub fn to_api(&self) -> Run {
        Run {
            id: self.id,
            schedule: self.schedule,
            rule: self.rule.clone(),
            nominal: self.nominal,
            started: self.started,
            missed: self.missed,
            volume_id: self.volume,
            volume: self.volume_name.clone(),
            credential: self.credential.filter(|credential| *credential != LOCAL),
            local: self.is_local(),
            snapshot: self.snapshot,
            state: self.state,
            task: self.task,
            cloudsnap: self.cloudsnap.as_ref().map(crate::cloudsnaps::to_api_id),
            completed: self.completed,
            reason: self.reason.clone(),
        }
    }
}
