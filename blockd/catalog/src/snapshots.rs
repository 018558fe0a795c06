//! Rows of snapshots.

use crate::volumes::UnknownWord;
use crate::{DbError, json_if_there, number, parsed, rows, stored, to_json};
use blockd_api::{SnapshotName, quiesce::QuiesceReport, snapshots::SnapshotGroup};
use blockd_extent::{Epoch, SnapshotId, VolumeId};
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use std::str::FromStr;

/// State of a snapshot's row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SnapshotState {
    /// In creation: the volume may or may not have it; the client has no response yet.
    Creating,
    /// Ready.
    Ready,
    /// In deletion: the volume may still have it.
    Deleting,
}

impl SnapshotState {
    /// Returns the word in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Deleting => "deleting",
        }
    }
}

impl FromStr for SnapshotState {
    type Err = UnknownWord;
    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        [Self::Creating, Self::Ready, Self::Deleting]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| UnknownWord(text.to_owned()))
    }
}

/// A snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotRow {
    /// Its id.
    pub id: SnapshotId,
    /// Its volume.
    pub volume: VolumeId,
    /// Its name, unique in its volume.
    pub name: SnapshotName,
    /// Point in time.
    pub created: Timestamp,
    /// State.
    pub state: SnapshotState,
    /// Internal snapshot of a backup, which is not listed.
    pub internal: bool,
    /// Epoch that its freeze ended; 0 in creation.
    pub epoch: Epoch,
    /// Bytes dirtied since the previous freeze.
    pub dirty_bytes: u64,
    /// Stall time of writes, in microseconds.
    pub freeze_stall_micros: u64,
    /// Group snapshot of the same point in time.
    pub taken_with: Option<SnapshotGroup>,
    /// Quiesce report.
    pub quiesce: Option<QuiesceReport>,
    /// Pinned: it stays until it is unpinned. Only [`set_pinned`](Self::set_pinned) changes it.
    pub pinned: bool,
}

const COLUMNS: &str = "id, volume, name, created, state, internal, epoch, dirty_bytes, freeze_stall_micros, taken_with, quiesce, pinned";

impl SnapshotRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: parsed(row, 0)?,
            volume: parsed(row, 1)?,
            name: parsed(row, 2)?,
            created: parsed(row, 3)?,
            state: parsed(row, 4)?,
            internal: row.get(5)?,
            epoch: Epoch(number(row, 6)?),
            dirty_bytes: number(row, 7)?,
            freeze_stall_micros: number(row, 8)?,
            taken_with: json_if_there(row, 9)?,
            quiesce: json_if_there(row, 10)?,
            pinned: row.get(11)?,
        })
    }

    /// Returns all snapshots, or those of one volume, oldest first.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>, volume: Option<VolumeId>) -> Result<Vec<Self>, DbError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM snapshots WHERE ?1 IS NULL OR volume = ?1 ORDER BY volume, epoch, created, id"
        );
        rows(tx, &sql, [volume.map(|id| id.to_string())], Self::read)
    }

    /// Adds the row.
    ///
    /// # Errors
    /// The database fails; a conflict if the volume has a snapshot of that name.
    pub fn insert(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        tx.execute(
            "INSERT INTO snapshots (id, volume, name, created, state, internal, epoch, dirty_bytes, freeze_stall_micros, taken_with, quiesce)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            params![
                self.id.to_string(),
                self.volume.to_string(),
                self.name.as_str(),
                self.created.to_string(),
                self.state.as_str(),
                self.internal,
                stored(self.epoch.0),
                stored(self.dirty_bytes),
                stored(self.freeze_stall_micros),
                self.taken_with.as_ref().map(|group| to_json("group", group)).transpose()?,
                self.quiesce.as_ref().map(|report| to_json("report", report)).transpose()?
            ],
        )?;
        Ok(())
    }

    /// Stores the fields that the freeze determines.
    ///
    /// # Errors
    /// The database fails.
    pub fn update(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        tx.execute(
            "UPDATE snapshots SET created = ?2, state = ?3, epoch = ?4, dirty_bytes = ?5, freeze_stall_micros = ?6,
             taken_with = ?7, quiesce = ?8 WHERE id = ?1",
            params![
                self.id.to_string(),
                self.created.to_string(),
                self.state.as_str(),
                stored(self.epoch.0),
                stored(self.dirty_bytes),
                stored(self.freeze_stall_micros),
                self.taken_with.as_ref().map(|group| to_json("group", group)).transpose()?,
                self.quiesce.as_ref().map(|report| to_json("report", report)).transpose()?
            ],
        )?;
        Ok(())
    }

    /// Sets the state of a snapshot.
    ///
    /// # Errors
    /// The database fails.
    pub fn set_state(tx: &Transaction<'_>, id: SnapshotId, state: SnapshotState) -> Result<(), DbError> {
        tx.execute("UPDATE snapshots SET state = ?2 WHERE id = ?1", params![id.to_string(), state.as_str()])?;
        Ok(())
    }

    /// Pins or unpins a snapshot; returns false if there is none.
    ///
    /// # Errors
    /// The database fails.
    pub fn set_pinned(tx: &Transaction<'_>, id: SnapshotId, pinned: bool) -> Result<bool, DbError> {
        let sql = "UPDATE snapshots SET pinned = ?2 WHERE id = ?1 AND internal = 0 AND state = 'ready'";
        Ok(tx.execute(sql, params![id.to_string(), pinned])? > 0)
    }

    /// Returns true for a pinned snapshot.
    ///
    /// # Errors
    /// The database fails.
    pub fn is_pinned(tx: &Transaction<'_>, id: SnapshotId) -> Result<bool, DbError> {
        let sql = "SELECT pinned FROM snapshots WHERE id = ?1";
        Ok(tx.query_row(sql, [id.to_string()], |row| row.get(0)).optional()?.unwrap_or(false))
    }

    /// Marks an internal snapshot of a backup for deletion; others stay.
    ///
    /// # Errors
    /// The database fails.
    pub fn release(tx: &Transaction<'_>, id: SnapshotId) -> Result<(), DbError> {
        let sql = "UPDATE snapshots SET state = 'deleting' WHERE id = ?1 AND internal = 1";
        tx.execute(sql, [id.to_string()])?;
        Ok(())
    }

    /// Returns a snapshot, unless it is internal to a backup.
    ///
    /// # Errors
    /// The database fails.
    pub fn find_kept(tx: &Transaction<'_>, id: SnapshotId) -> Result<Option<Self>, DbError> {
        let sql =
            format!("SELECT {COLUMNS} FROM snapshots WHERE id = ?1 AND internal = 0 AND state = 'ready'");
        Ok(tx.query_row(&sql, [id.to_string()], Self::read).optional()?)
    }

    /// Removes the row.
    ///
    /// # Errors
    /// The database fails.
    pub fn remove(tx: &Transaction<'_>, id: SnapshotId) -> Result<(), DbError> {
        tx.execute("DELETE FROM snapshots WHERE id = ?1", [id.to_string()])?;
        Ok(())
    }
}
