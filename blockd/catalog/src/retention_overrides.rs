//! Rows of pins and expiry dates of cloud snapshots.

use crate::{AnomalyHolds, DbError, LeaseRow, parsed, parsed_if_there, repository_location::Aliases};
use blockd_cloud::CloudSnapshotId;
use blockd_extent::VolumeId;
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use std::collections::HashMap;
use uuid::Uuid;

/// Pin and expiry date of a cloud snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RetentionOverride {
    /// The cloud snapshot.
    pub cloudsnap: CloudSnapshotId,
    /// Credential of the listing.
    pub credential: Uuid,
    /// Pinned: retention does not delete it.
    pub pinned: bool,
    /// Expiry date: kept until then, deleted after it.
    pub expires: Option<Timestamp>,
}

const COLUMNS: &str = "cloudsnap, credential, pinned, expires";

/// Returns the key of a cloud snapshot. Without the backup type, which is unknown until the backup decides
/// it.
fn key(id: &CloudSnapshotId) -> String {
    CloudSnapshotId { incremental: false, ..*id }.to_string()
}

/// All pins and expiry dates, the holds of anomalies, and the leases of other hosts.
#[derive(Debug, Default)]
pub struct RetentionOverrides {
    holds: AnomalyHolds,
    leases: HashMap<String, Vec<LeaseRow>>,
    marks: HashMap<(String, Uuid), RetentionOverride>,
    aliases: Aliases,
}

impl RetentionOverrides {
    /// Returns the mark of a cloud snapshot with a credential: its own, and pins and future dates of other
    /// credentials of the repository. Past dates of other credentials delete nothing. The last backup before
    /// an anomaly is pinned, as is one that another host holds.
    pub fn of(&self, id: &CloudSnapshotId, credential: Uuid, now: Timestamp) -> Option<RetentionOverride> {
        let own = self.marks.get(&(key(id), credential)).copied();
        let nothing = RetentionOverride { cloudsnap: *id, credential, pinned: false, expires: None };
        let mut merged = own.unwrap_or(nothing);
        merged.pinned |= self.holds.is_last_normal(id) || self.leases(id, credential, now).next().is_some();
        for alias in self.aliases.of(credential) {
            let Some(other) = self.marks.get(&(key(id), alias.credential)) else { continue };
            merged.pinned |= other.pinned;
            merged.expires = merged.expires.max(other.expires.filter(|expires| *expires > now));
        }
        (merged.pinned || merged.expires.is_some()).then_some(merged)
    }

    /// Returns the valid leases of a cloud snapshot in the repository of a credential.
    pub fn leases(
        &self,
        id: &CloudSnapshotId,
        credential: Uuid,
        now: Timestamp,
    ) -> impl Iterator<Item = &LeaseRow> {
        let held = self.leases.get(&key(id)).into_iter().flatten();
        held.filter(move |lease| {
            lease.is_valid(now) && self.aliases.credentials(credential).any(|one| one == lease.credential)
        })
    }

    /// Returns true if an anomaly without an acknowledgement pins the cloud snapshot.
    pub fn is_pinned_by_anomaly(&self, id: &CloudSnapshotId) -> bool {
        self.holds.is_last_normal(id)
    }

    /// Returns true if an anomaly without an acknowledgement holds all backups of the volume.
    pub fn is_held(&self, volume: VolumeId) -> bool {
        self.holds.is_held(volume)
    }

    /// Returns a credential of the repository with a pin, preferring the given one.
    pub fn pinned_under(&self, id: &CloudSnapshotId, credential: Uuid) -> Option<Uuid> {
        let is_pinned = |of: &Uuid| self.marks.get(&(key(id), *of)).is_some_and(|mark| mark.pinned);
        self.aliases.credentials(credential).find(is_pinned)
    }

    /// Returns the unpinned cloud snapshots past their expiry date.
    pub fn expired(&self, now: Timestamp) -> impl Iterator<Item = &RetentionOverride> {
        self.marks
            .values()
            .filter(move |mark| !mark.pinned && mark.expires.is_some_and(|expires| expires <= now))
    }
}

impl RetentionOverride {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            cloudsnap: parsed(row, 0)?,
            credential: parsed(row, 1)?,
            pinned: row.get(2)?,
            expires: parsed_if_there(row, 3)?,
        })
    }

    /// Returns all rows.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>) -> Result<RetentionOverrides, DbError> {
        let mut statement = tx.prepare(&format!("SELECT {COLUMNS} FROM cloudsnap_marks"))?;
        let marks = statement.query_map([], Self::read)?.collect::<Result<Vec<_>, _>>()?;
        let marks = marks.into_iter().map(|mark| ((key(&mark.cloudsnap), mark.credential), mark)).collect();
        let mut leases: HashMap<String, Vec<LeaseRow>> = HashMap::new();
        for lease in LeaseRow::all(tx)? {
            leases.entry(key(&lease.cloudsnap)).or_default().push(lease);
        }
        Ok(RetentionOverrides { holds: AnomalyHolds::all(tx)?, leases, marks, aliases: Aliases::all(tx)? })
    }

    /// Returns the mark of a cloud snapshot with a credential.
    ///
    /// # Errors
    /// The database fails.
    pub fn find(
        tx: &Transaction<'_>,
        id: &CloudSnapshotId,
        credential: Uuid,
    ) -> Result<Option<Self>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM cloudsnap_marks WHERE cloudsnap = ?1 AND credential = ?2");
        Ok(tx.query_row(&sql, [key(id), credential.to_string()], Self::read).optional()?)
    }

    /// Stores the mark, or removes it if it is empty; does nothing if the credential is gone.
    ///
    /// # Errors
    /// The database fails.
    pub fn put(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        if !self.pinned && self.expires.is_none() {
            return Self::remove(tx, &self.cloudsnap, self.credential);
        }
        tx.execute(
            "INSERT OR REPLACE INTO cloudsnap_marks (cloudsnap, credential, pinned, expires)
             SELECT ?1, ?2, ?3, ?4 WHERE EXISTS (SELECT 1 FROM credentials WHERE uuid = ?2)",
            params![
                key(&self.cloudsnap),
                self.credential.to_string(),
                self.pinned,
                self.expires.map(|expires| expires.to_string())
            ],
        )?;
        Ok(())
    }

    /// Removes the mark of a deleted cloud snapshot.
    ///
    /// # Errors
    /// The database fails.
    pub fn remove(tx: &Transaction<'_>, id: &CloudSnapshotId, credential: Uuid) -> Result<(), DbError> {
        tx.execute(
            "DELETE FROM cloudsnap_marks WHERE cloudsnap = ?1 AND credential = ?2",
            [key(id), credential.to_string()],
        )?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CredentialRow, Db};
    use super::*;

    #[test]
    fn marks_are_of_the_snapshot_whether_incremental_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        let id: CloudSnapshotId = "2e4d4b67-95d7-481e-aec5-14223ac55170/59-61-incr".parse().unwrap();
        let full = CloudSnapshotId { incremental: false, ..id };
        let at = |second| Timestamp::from_second(second).unwrap();
        let (here, elsewhere) = (Uuid::from_u128(7), Uuid::from_u128(8));
        let mark =
            RetentionOverride { cloudsnap: full, credential: here, pinned: false, expires: Some(at(7)) };
        db.transaction::<_, DbError>(|tx| {
            add_credentials(tx, &[here, elsewhere])?;
            mark.put(tx)?;
            assert_eq!(RetentionOverride::find(tx, &id, here)?, Some(mark));
            let all = RetentionOverride::all(tx)?;
            assert_eq!((all.of(&full, here, at(6)), all.expired(at(6)).count()), (Some(mark), 0));
            assert_eq!(all.of(&id, here, at(6)), Some(mark));
            assert_eq!(all.expired(at(7)).collect::<Vec<_>>(), [&mark]);
            RetentionOverride { pinned: true, cloudsnap: id, ..mark }.put(tx)?;
            assert_eq!(
                RetentionOverride::all(tx)?.expired(at(9)).count(),
                0,
                "a pin is stronger than a date"
            );
            RetentionOverride { expires: None, ..mark }.put(tx)?;
            assert_eq!(RetentionOverride::find(tx, &id, here)?, None);
            Ok(())
        })
        .unwrap();
    }

    fn add_credentials(tx: &Transaction<'_>, uuids: &[Uuid]) -> Result<(), DbError> {
        let mut rows =
            uuids.iter().map(|uuid| CredentialRow::sample(*uuid, &format!("/{uuid}"), Uuid::new_v4()));
        rows.try_for_each(|row| row.insert(tx))
    }

    #[test]
    fn marks_of_all_credentials_of_a_repository_protect() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        let id: CloudSnapshotId = "2e4d4b67-95d7-481e-aec5-14223ac55170/59-61".parse().unwrap();
        let [here, spelled, linked, elsewhere] = [7, 8, 9, 10].map(Uuid::from_u128);
        let (key, other_key) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let at = |second| Timestamp::from_second(second).unwrap();
        let mark = |credential, pinned, expires| RetentionOverride {
            cloudsnap: id,
            credential,
            pinned,
            expires: Some(at(expires)),
        };
        db.transaction::<_, DbError>(|tx| {
            CredentialRow::sample(here, "/backup", key).insert(tx)?;
            CredentialRow::sample(spelled, "/backup/", other_key).insert(tx)?;
            CredentialRow::sample(linked, "/link", key).insert(tx)?;
            CredentialRow::sample(elsewhere, "/elsewhere", Uuid::nil()).insert(tx)?;
            mark(here, false, 10).put(tx)?;
            mark(spelled, false, 20).put(tx)?;
            mark(elsewhere, true, 90).put(tx)?;
            let all = RetentionOverride::all(tx)?;
            assert_eq!(all.of(&id, here, at(5)), Some(mark(here, false, 20)));
            assert_eq!(
                all.of(&id, here, at(20)),
                Some(mark(here, false, 10)),
                "dates of others delete nothing"
            );
            assert_eq!(all.of(&id, linked, at(5)), Some(mark(linked, false, 10)));
            assert_eq!(all.of(&id, linked, at(10)), None);
            assert_eq!(all.pinned_under(&id, here), None);
            mark(linked, true, 10).put(tx)?;
            let all = RetentionOverride::all(tx)?;
            assert_eq!(all.of(&id, here, at(5)), Some(mark(here, true, 20)));
            assert_eq!(all.pinned_under(&id, here), Some(linked));
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn pin_is_deleted_with_its_credential() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        let id: CloudSnapshotId = "2e4d4b67-95d7-481e-aec5-14223ac55170/59-61".parse().unwrap();
        let (here, elsewhere) = (Uuid::from_u128(7), Uuid::from_u128(8));
        let mark = |credential| RetentionOverride { cloudsnap: id, credential, pinned: true, expires: None };
        db.transaction::<_, DbError>(|tx| {
            add_credentials(tx, &[here, elsewhere])?;
            mark(here).put(tx)?;
            mark(elsewhere).put(tx)?;
            RetentionOverride::remove(tx, &id, elsewhere)?;
            assert_eq!(
                RetentionOverride::all(tx)?.of(&id, here, Timestamp::UNIX_EPOCH),
                Some(mark(here)),
                "a copy elsewhere was deleted"
            );
            assert_eq!(RetentionOverride::find(tx, &id, elsewhere)?, None);
            CredentialRow::remove(tx, here)?;
            assert_eq!(RetentionOverride::find(tx, &id, here)?, None, "it could not be undone any more");
            // Already deleted.
            mark(here).put(tx)?;
            assert_eq!(RetentionOverride::find(tx, &id, here)?, None);
            Ok(())
        })
        .unwrap();
    }
}
