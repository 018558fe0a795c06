//! Rows of lazy volumes: those that still need their backing snapshot.

use crate::{DbError, parsed, parsed_if_there, rows};
use blockd_api::lazy::StoreLoss;
use blockd_cloud::CloudSnapshotId;
use blockd_extent::VolumeId;
use jiff::Timestamp;
use rusqlite::{Row, Transaction, params};
use uuid::Uuid;

/// Backing of a lazy volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LazyRow {
    /// The volume.
    pub volume: VolumeId,
    /// Credential of the cloud snapshot.
    pub credential: Uuid,
    /// The cloud snapshot.
    pub cloudsnap: CloudSnapshotId,
    /// A task hydrates the volume.
    pub hydrate: bool,
    /// Behavior of reads during an outage of the store.
    pub on_store_loss: StoreLoss,
    /// Last renewal of its lease; `None` without a lease.
    pub leased: Option<Timestamp>,
}

const COLUMNS: &str = "volume, credential, cloudsnap, hydrate, on_store_loss, leased";

impl LazyRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            volume: parsed(row, 0)?,
            credential: parsed(row, 1)?,
            cloudsnap: parsed(row, 2)?,
            hydrate: row.get(3)?,
            on_store_loss: parsed(row, 4)?,
            leased: parsed_if_there(row, 5)?,
        })
    }

    /// Returns all rows.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>) -> Result<Vec<Self>, DbError> {
        rows(tx, &format!("SELECT {COLUMNS} FROM lazy_volumes ORDER BY volume"), [], Self::read)
    }

    /// Adds the row of an existing volume.
    ///
    /// # Errors
    /// The database fails.
    pub fn insert(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        tx.execute(
            "INSERT INTO lazy_volumes (volume, credential, cloudsnap, hydrate, on_store_loss, leased)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                self.volume.to_string(),
                self.credential.to_string(),
                self.cloudsnap.to_string(),
                self.hydrate,
                self.on_store_loss.as_str(),
                self.leased.map(|leased| leased.to_string())
            ],
        )?;
        Ok(())
    }

    /// Records the renewal of a lease.
    ///
    /// # Errors
    /// The database fails.
    pub fn set_leased(tx: &Transaction<'_>, volume: VolumeId, at: Timestamp) -> Result<(), DbError> {
        let row = [volume.to_string(), at.to_string()];
        tx.execute("UPDATE lazy_volumes SET leased = ?2 WHERE volume = ?1", row)?;
        Ok(())
    }

    /// Removes the row of a hydrated volume.
    ///
    /// # Errors
    /// The database fails.
    pub fn remove(tx: &Transaction<'_>, volume: VolumeId) -> Result<(), DbError> {
        tx.execute("DELETE FROM lazy_volumes WHERE volume = ?1", [volume.to_string()])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Db, VolumeRow};
    use super::*;

    #[test]
    fn row_round_trips_and_is_deleted_with_its_volume() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        let volume = VolumeRow::new(VolumeId::from_u64(7), "data".parse().unwrap(), 4096);
        let row = LazyRow {
            volume: volume.id,
            credential: Uuid::from_u128(3),
            cloudsnap: "2e4d4b67-95d7-481e-aec5-14223ac55170/59-61-incr".parse().unwrap(),
            hydrate: true,
            on_store_loss: StoreLoss::Error,
            leased: None,
        };
        db.transaction::<_, DbError>(|tx| {
            volume.insert(tx)?;
            row.insert(tx)?;
            assert_eq!(LazyRow::all(tx)?, [row]);
            LazyRow::set_leased(tx, volume.id, Timestamp::UNIX_EPOCH)?;
            assert_eq!(LazyRow::all(tx)?, [LazyRow { leased: Some(Timestamp::UNIX_EPOCH), ..row }]);
            LazyRow::remove(tx, volume.id)?;
            assert_eq!(LazyRow::all(tx)?, []);
            row.insert(tx)?;
            VolumeRow::remove(tx, volume.id)?;
            assert_eq!(LazyRow::all(tx)?, []);
            Ok(())
        })
        .unwrap();
    }
}
