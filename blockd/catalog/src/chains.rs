//! Rows of chains: the base of the next incremental backup of a volume with a credential.

use crate::{DbError, number, parsed, rows, stored};
use blockd_cloud::CloudSnapshotId;
use blockd_extent::{Epoch, VolumeId};
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use uuid::Uuid;

/// Newest backup of a volume with a credential.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    /// The volume.
    pub volume: VolumeId,
    /// The credential.
    pub credential: Uuid,
    /// Epoch that the backup's freeze ended: blocks dirtied later belong to the next incremental.
    pub epoch: Epoch,
    /// The backup.
    pub cloudsnap: CloudSnapshotId,
    /// Number of incrementals since the last full backup, or since the backing snapshot of a lazy volume,
    /// including this one.
    pub incrementals: u64,
    /// Point in time of the backup.
    pub point_in_time: Timestamp,
}

const COLUMNS: &str = "volume, credential, epoch, cloudsnap, incrementals, point_in_time";

impl Chain {
    /// Returns true if the backup is the backing snapshot of a lazy volume without a backup of its own.
    pub fn is_backing_snapshot(&self) -> bool {
        self.cloudsnap.volume != self.volume
    }

    /// Returns the [`incrementals`](Self::incrementals) of a backup based on this one. A full backup of a
    /// lazy volume would fetch all of it, so its backing snapshot begins a new cycle.
    pub fn next_incremental(&self) -> u64 {
        if self.is_backing_snapshot() { 1 } else { self.incrementals + 1 }
    }

    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            volume: parsed(row, 0)?,
            credential: parsed(row, 1)?,
            epoch: Epoch(number(row, 2)?),
            cloudsnap: parsed(row, 3)?,
            incrementals: number(row, 4)?,
            point_in_time: parsed(row, 5)?,
        })
    }

    /// Returns the chain of a volume and a credential.
    ///
    /// # Errors
    /// The database fails.
    pub fn find(tx: &Transaction<'_>, volume: VolumeId, credential: Uuid) -> Result<Option<Self>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM chains WHERE volume = ?1 AND credential = ?2");
        Ok(tx.query_row(&sql, params![volume.to_string(), credential.to_string()], Self::read).optional()?)
    }

    /// Returns all chains, or those of one volume.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>, volume: Option<VolumeId>) -> Result<Vec<Self>, DbError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM chains WHERE ?1 IS NULL OR volume = ?1 ORDER BY point_in_time DESC"
        );
        rows(tx, &sql, [volume.map(|id| id.to_string())], Self::read)
    }

    /// Stores the chain, replacing the previous one.
    ///
    /// # Errors
    /// The database fails.
    pub fn put(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        tx.execute(
            "INSERT OR REPLACE INTO chains (volume, credential, epoch, cloudsnap, incrementals, point_in_time)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                self.volume.to_string(),
                self.credential.to_string(),
                stored(self.epoch.0),
                self.cloudsnap.to_string(),
                stored(self.incrementals),
                self.point_in_time.to_string()
            ],
        )?;
        Ok(())
    }

    /// Stores the chain, unless the present one has a later point in time, on which the next backup is based.
    ///
    /// # Errors
    /// The database fails.
    pub fn put_unless_older(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        match Self::find(tx, self.volume, self.credential)? {
            Some(newer) if newer.epoch > self.epoch => Ok(()),
            _ => self.put(tx),
        }
    }

    /// Removes the chains of this credential that end in this backup.
    ///
    /// # Errors
    /// The database fails.
    pub fn remove_tip_at(
        tx: &Transaction<'_>,
        credential: Uuid,
        cloudsnap: &CloudSnapshotId,
    ) -> Result<bool, DbError> {
        let sql = "DELETE FROM chains WHERE credential = ?1 AND cloudsnap = ?2";
        Ok(tx.execute(sql, [credential.to_string(), cloudsnap.to_string()])? > 0)
    }

    /// Removes the chains that end in this backup; returns true if there was one.
    ///
    /// # Errors
    /// The database fails.
    pub fn remove_tip(tx: &Transaction<'_>, cloudsnap: &CloudSnapshotId) -> Result<bool, DbError> {
        // For all credentials: two may have the same repository, and ids are random.
        let rows = tx.execute("DELETE FROM chains WHERE cloudsnap = ?1", [cloudsnap.to_string()])?;
        Ok(rows > 0)
    }
}
