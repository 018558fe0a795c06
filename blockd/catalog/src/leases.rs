//! Rows of leases: lazy volumes of other hosts that need a cloud snapshot, as last listed.

use crate::{DbError, parsed, parsed_if_there, rows};
use blockd_cloud::{CloudSnapshotId, LeaseId, ListedLease};
use blockd_extent::VolumeId;
use jiff::Timestamp;
use rusqlite::{Row, Transaction, params};
use uuid::Uuid;

/// Lease of a lazy volume of another host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseRow {
    /// Credential of the location.
    pub credential: Uuid,
    /// The cloud snapshot.
    pub cloudsnap: CloudSnapshotId,
    /// Installation of the host.
    pub host: Uuid,
    /// The lazy volume.
    pub volume: VolumeId,
    /// Name of the host; may be empty.
    pub host_name: String,
    /// Time of the last renewal by the store's clock; `None` if unknown.
    pub stored: Option<Timestamp>,
}

const COLUMNS: &str = "credential, cloudsnap, host, volume, host_name, stored";

impl LeaseRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            credential: parsed(row, 0)?,
            cloudsnap: parsed(row, 1)?,
            host: parsed(row, 2)?,
            volume: parsed(row, 3)?,
            host_name: row.get(4)?,
            stored: parsed_if_there(row, 5)?,
        })
    }

    /// Returns the id of the lease.
    #[must_use]
    pub fn id(&self) -> LeaseId {
        LeaseId { cloudsnap: self.cloudsnap, host: self.host, volume: self.volume }
    }

    /// Returns true if the lease holds its cloud snapshot.
    pub fn is_valid(&self, now: Timestamp) -> bool {
        !ListedLease { id: self.id(), stored: self.stored }.is_expired(now)
    }

    /// Returns all rows.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>) -> Result<Vec<Self>, DbError> {
        rows(
            tx,
            &format!("SELECT {COLUMNS} FROM leases ORDER BY credential, cloudsnap, host"),
            [],
            Self::read,
        )
    }

    /// Replaces the rows of a credential's cloud snapshots in the scope of a listing; does nothing if the
    /// credential is gone.
    ///
    /// # Errors
    /// The database fails.
    pub fn replace(
        tx: &Transaction<'_>,
        credential: Uuid,
        is_in_scope: impl Fn(&CloudSnapshotId) -> bool,
        listed: &[Self],
    ) -> Result<(), DbError> {
        let of_credential = |row: &Self| row.credential == credential && is_in_scope(&row.cloudsnap);
        for row in Self::all(tx)?.into_iter().filter(of_credential) {
            tx.execute(
                "DELETE FROM leases WHERE credential = ?1 AND cloudsnap = ?2 AND host = ?3 AND volume = ?4",
                [
                    credential.to_string(),
                    row.cloudsnap.to_string(),
                    row.host.to_string(),
                    row.volume.to_string(),
                ],
            )?;
        }
        for row in listed {
            tx.execute(
                "INSERT OR REPLACE INTO leases (credential, cloudsnap, host, volume, host_name, stored)
                 SELECT ?1, ?2, ?3, ?4, ?5, ?6 WHERE EXISTS (SELECT 1 FROM credentials WHERE uuid = ?1)",
                params![
                    credential.to_string(),
                    row.cloudsnap.to_string(),
                    row.host.to_string(),
                    row.volume.to_string(),
                    row.host_name,
                    row.stored.map(|stored| stored.to_string())
                ],
            )?;
        }
        Ok(())
    }
}
