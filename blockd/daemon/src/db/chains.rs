//! Rows of chains: which backup of a volume to a credential the next incremental builds on.

use super::{DbError, number, parsed, stored};
use blockd_cloud::CloudsnapId;
use blockd_extent::{Epoch, VolumeId};
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use uuid::Uuid;

/// The newest backup of a volume to a credential.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    /// The volume.
    pub volume: VolumeId,
    /// The credential.
    pub credential: Uuid,
    /// The epoch that the backup's freeze ended: blocks dirtied later are the next incremental.
    pub epoch: Epoch,
    /// The backup.
    pub cloudsnap: CloudsnapId,
    /// How many incrementals there are since the last full one, this one included.
    pub incrementals: u64,
    /// When it was done.
    pub finished: Timestamp,
}

const COLUMNS: &str = "volume, credential, epoch, cloudsnap, incrementals, finished";

impl Chain {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            volume: parsed(row, 0)?,
            credential: parsed(row, 1)?,
            epoch: Epoch(number(row, 2)?),
            cloudsnap: parsed(row, 3)?,
            incrementals: number(row, 4)?,
            finished: parsed(row, 5)?,
        })
    }

    /// The chain of a volume to a credential.
    ///
    /// # Errors
    /// The database fails.
    pub fn find(tx: &Transaction<'_>, volume: VolumeId, credential: Uuid) -> Result<Option<Self>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM chains WHERE volume = ?1 AND credential = ?2");
        Ok(tx.query_row(&sql, params![volume.to_string(), credential.to_string()], Self::read).optional()?)
    }

    /// All chains; of one volume, if it is given.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>, volume: Option<VolumeId>) -> Result<Vec<Self>, DbError> {
        let sql =
            format!("SELECT {COLUMNS} FROM chains WHERE ?1 IS NULL OR volume = ?1 ORDER BY finished DESC");
        let mut statement = tx.prepare(&sql)?;
        let rows =
            statement.query_map([volume.map(|id| id.to_string())], Self::read)?.collect::<Result<_, _>>()?;
        Ok(rows)
    }

    /// Makes this the chain of its volume to its credential.
    ///
    /// # Errors
    /// The database fails.
    pub fn put(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        tx.execute(
            "INSERT OR REPLACE INTO chains (volume, credential, epoch, cloudsnap, incrementals, finished)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                self.volume.to_string(),
                self.credential.to_string(),
                stored(self.epoch.0),
                self.cloudsnap.to_string(),
                stored(self.incrementals),
                self.finished.to_string()
            ],
        )?;
        Ok(())
    }

    /// Forgets the chains that end in this backup; true if there was one.
    ///
    /// # Errors
    /// The database fails.
    pub fn remove_tip(tx: &Transaction<'_>, cloudsnap: &CloudsnapId) -> Result<bool, DbError> {
        // Whatever the credential: two of them may lead to one place, and ids are random.
        let rows = tx.execute("DELETE FROM chains WHERE cloudsnap = ?1", [cloudsnap.to_string()])?;
        Ok(rows > 0)
    }
}
