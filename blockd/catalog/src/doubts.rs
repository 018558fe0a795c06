//! Rows of doubts: cloud snapshots of this host that may be listed but incomplete.

use crate::{DbError, parsed, rows};
use blockd_cloud::CloudSnapshotId;
use jiff::Timestamp;
use rusqlite::{Row, Transaction, params};
use uuid::Uuid;

/// Cloud snapshot in doubt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Doubt {
    /// Credential of the possible location.
    pub credential: Uuid,
    /// The cloud snapshot.
    pub cloudsnap: CloudSnapshotId,
    /// Time since when no task works on it.
    pub since: Timestamp,
    /// The backup was abandoned; only the state of its cloud snapshot is unknown. Otherwise it is done, but
    /// an earlier attempt may have committed it.
    pub abandoned: bool,
    /// It was verified once.
    pub checked: bool,
}

const COLUMNS: &str = "credential, cloudsnap, since, is_abandoned, is_checked";

impl Doubt {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            credential: parsed(row, 0)?,
            cloudsnap: parsed(row, 1)?,
            since: parsed(row, 2)?,
            abandoned: row.get(3)?,
            checked: row.get(4)?,
        })
    }

    /// Returns all rows.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>) -> Result<Vec<Self>, DbError> {
        rows(tx, &format!("SELECT {COLUMNS} FROM doubts"), [], Self::read)
    }

    /// Returns the doubts of abandoned backups.
    ///
    /// # Errors
    /// The database fails.
    pub fn abandoned(tx: &Transaction<'_>) -> Result<Vec<Self>, DbError> {
        rows(
            tx,
            &format!("SELECT {COLUMNS} FROM doubts WHERE is_abandoned = 1 ORDER BY since"),
            [],
            Self::read,
        )
    }

    /// Returns true for a doubt about this cloud snapshot in any location.
    ///
    /// # Errors
    /// The database fails.
    pub fn is_of(tx: &Transaction<'_>, cloudsnap: &CloudSnapshotId) -> Result<bool, DbError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM doubts WHERE cloudsnap = ?1)";
        Ok(tx.query_row(sql, [cloudsnap.to_string()], |row| row.get(0))?)
    }

    /// Adds or replaces the row; does nothing if the credential is gone.
    ///
    /// # Errors
    /// The database fails.
    pub fn put(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        tx.execute(
            &format!(
                "INSERT OR REPLACE INTO doubts ({COLUMNS})
                 SELECT ?1, ?2, ?3, ?4, ?5 WHERE EXISTS (SELECT 1 FROM credentials WHERE uuid = ?1)"
            ),
            params![
                self.credential.to_string(),
                self.cloudsnap.to_string(),
                self.since.to_string(),
                self.abandoned,
                self.checked
            ],
        )?;
        Ok(())
    }

    /// Removes the row.
    ///
    /// # Errors
    /// The database fails.
    pub fn remove(
        tx: &Transaction<'_>,
        credential: Uuid,
        cloudsnap: &CloudSnapshotId,
    ) -> Result<(), DbError> {
        tx.execute(
            "DELETE FROM doubts WHERE credential = ?1 AND cloudsnap = ?2",
            params![credential.to_string(), cloudsnap.to_string()],
        )?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Db;
    use super::*;
    use blockd_extent::{SnapshotId, VolumeId};

    #[test]
    fn rows_read_back_and_need_a_credential() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        let cloudsnap = CloudSnapshotId {
            cluster: Uuid::from_u128(3),
            volume: VolumeId::from_u64(1),
            snapshot: SnapshotId::from_u64(u64::MAX),
            incremental: true,
        };
        let credential = Uuid::from_u128(7);
        let doubt =
            Doubt { credential, cloudsnap, since: Timestamp::UNIX_EPOCH, abandoned: true, checked: false };
        db.transaction::<_, DbError>(|tx| {
            doubt.put(tx)?;
            assert!(!Doubt::is_of(tx, &cloudsnap)?);
            crate::CredentialRow::sample(credential, "/backup", Uuid::nil()).insert(tx)?;
            doubt.put(tx)?;
            assert!(Doubt::is_of(tx, &cloudsnap)?);
            assert_eq!(Doubt::abandoned(tx)?, vec![doubt.clone()]);
            Doubt { abandoned: false, checked: true, ..doubt.clone() }.put(tx)?;
            assert!(Doubt::is_of(tx, &cloudsnap)? && Doubt::abandoned(tx)?.is_empty());
            Doubt::remove(tx, credential, &cloudsnap)?;
            assert!(!Doubt::is_of(tx, &cloudsnap)?);
            Ok(())
        })
        .unwrap();
    }
}
