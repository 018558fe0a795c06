//! Rows of marks: what people said of how long cloud snapshots stay.

use super::{DbError, parsed, parsed_if_there, repository_place::RepositoryPlace};
use blockd_cloud::CloudsnapId;
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use std::collections::HashMap;
use uuid::Uuid;

/// What somebody said of how long a cloud snapshot stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// The cloud snapshot.
    pub cloudsnap: CloudsnapId,
    /// The credential under which it was found.
    pub credential: Uuid,
    /// No rule deletes it.
    pub pinned: bool,
    /// Until when it is kept in any case, and from when on by no rule.
    pub expires: Option<Timestamp>,
}

const COLUMNS: &str = "cloudsnap, credential, pinned, expires";

/// The name of a cloud snapshot here. Whether it is incremental is decided after its name is.
fn key(id: &CloudsnapId) -> String {
    CloudsnapId { incremental: false, ..*id }.to_string()
}

/// All marks.
#[derive(Debug, Default)]
pub struct Marks(HashMap<(String, Uuid), Mark>);

impl Marks {
    /// What was said of a cloud snapshot under a credential.
    pub fn of(&self, id: &CloudsnapId, credential: Uuid) -> Option<&Mark> {
        self.0.get(&(key(id), credential))
    }

    /// Those whose date has come and that are not pinned.
    pub fn expired(&self, now: Timestamp) -> impl Iterator<Item = &Mark> {
        self.0.values().filter(move |mark| !mark.pinned && mark.expires.is_some_and(|expires| expires <= now))
    }
}

impl Mark {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            cloudsnap: parsed(row, 0)?,
            credential: parsed(row, 1)?,
            pinned: row.get(2)?,
            expires: parsed_if_there(row, 3)?,
        })
    }

    /// All of them.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>) -> Result<Marks, DbError> {
        let mut statement = tx.prepare(&format!("SELECT {COLUMNS} FROM cloudsnap_marks"))?;
        let marks = statement.query_map([], Self::read)?.collect::<Result<Vec<_>, _>>()?;
        Ok(Marks(marks.into_iter().map(|mark| ((key(&mark.cloudsnap), mark.credential), mark)).collect()))
    }

    /// The mark of a cloud snapshot under a credential.
    ///
    /// # Errors
    /// The database fails.
    pub fn find(tx: &Transaction<'_>, id: &CloudsnapId, credential: Uuid) -> Result<Option<Self>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM cloudsnap_marks WHERE cloudsnap = ?1 AND credential = ?2");
        Ok(tx.query_row(&sql, [key(id), credential.to_string()], Self::read).optional()?)
    }

    /// Whether a cloud snapshot is pinned under a credential, or under another one that leads to the same place.
    ///
    /// # Errors
    /// The database fails.
    pub fn is_pinned(tx: &Transaction<'_>, id: &CloudsnapId, credential: Uuid) -> Result<bool, DbError> {
        for same_place in RepositoryPlace::credentials(tx, credential)? {
            if Self::find(tx, id, same_place)?.is_some_and(|mark| mark.pinned) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Stores it, or removes it if it says nothing; does nothing if the credential is gone.
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

    /// Forgets the mark of a cloud snapshot that is gone from where the credential leads.
    ///
    /// # Errors
    /// The database fails.
    pub fn remove(tx: &Transaction<'_>, id: &CloudsnapId, credential: Uuid) -> Result<(), DbError> {
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
        let id: CloudsnapId = "2e4d4b67-95d7-481e-aec5-14223ac55170/59-61-incr".parse().unwrap();
        let full = CloudsnapId { incremental: false, ..id };
        let at = |second| Timestamp::from_second(second).unwrap();
        let (here, elsewhere) = (Uuid::from_u128(7), Uuid::from_u128(8));
        let mark = Mark { cloudsnap: full, credential: here, pinned: false, expires: Some(at(7)) };
        db.transaction::<_, DbError>(|tx| {
            add_credentials(tx, &[here, elsewhere])?;
            mark.put(tx)?;
            assert_eq!(Mark::find(tx, &id, here)?, Some(mark));
            let all = Mark::all(tx)?;
            assert_eq!((all.of(&id, here), all.expired(at(6)).count()), (Some(&mark), 0));
            assert_eq!(all.expired(at(7)).collect::<Vec<_>>(), [&mark]);
            Mark { pinned: true, cloudsnap: id, ..mark }.put(tx)?;
            assert_eq!(Mark::all(tx)?.expired(at(9)).count(), 0, "a pin is stronger than a date");
            Mark { expires: None, ..mark }.put(tx)?;
            assert_eq!(Mark::find(tx, &id, here)?, None);
            Ok(())
        })
        .unwrap();
    }

    fn add_credentials(tx: &Transaction<'_>, uuids: &[Uuid]) -> Result<(), DbError> {
        for uuid in uuids {
            tx.execute(
                "INSERT INTO credentials VALUES (?1, ?1, '', '', NULL, x'00', 0, '', NULL, NULL, x'', '', 0)",
                [uuid.to_string()],
            )?;
        }
        Ok(())
    }

    #[test]
    fn a_mark_is_of_one_place_and_goes_with_its_credential() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        let id: CloudsnapId = "2e4d4b67-95d7-481e-aec5-14223ac55170/59-61".parse().unwrap();
        let (here, elsewhere) = (Uuid::from_u128(7), Uuid::from_u128(8));
        let mark = |credential| Mark { cloudsnap: id, credential, pinned: true, expires: None };
        db.transaction::<_, DbError>(|tx| {
            add_credentials(tx, &[here, elsewhere])?;
            mark(here).put(tx)?;
            mark(elsewhere).put(tx)?;
            Mark::remove(tx, &id, elsewhere)?;
            assert_eq!(Mark::all(tx)?.of(&id, here), Some(&mark(here)), "a copy elsewhere was deleted");
            assert_eq!(Mark::find(tx, &id, elsewhere)?, None);
            CredentialRow::remove(tx, here)?;
            assert_eq!(Mark::find(tx, &id, here)?, None, "nobody could take it back any more");
            // One that is gone already.
            mark(here).put(tx)?;
            assert_eq!(Mark::find(tx, &id, here)?, None);
            Ok(())
        })
        .unwrap();
    }
}
