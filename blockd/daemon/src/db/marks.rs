//! Rows of marks: what people said of how long cloud snapshots stay.

use super::{DbError, parsed, parsed_if_there};
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
pub struct Marks(HashMap<String, Mark>);

impl Marks {
    /// What was said of a cloud snapshot.
    pub fn of(&self, id: &CloudsnapId) -> Option<&Mark> {
        self.0.get(&key(id))
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
        Ok(Marks(marks.into_iter().map(|mark| (key(&mark.cloudsnap), mark)).collect()))
    }

    /// The mark of a cloud snapshot.
    ///
    /// # Errors
    /// The database fails.
    pub fn find(tx: &Transaction<'_>, id: &CloudsnapId) -> Result<Option<Self>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM cloudsnap_marks WHERE cloudsnap = ?1");
        Ok(tx.query_row(&sql, [key(id)], Self::read).optional()?)
    }

    /// Stores it, or removes it if it says nothing.
    ///
    /// # Errors
    /// The database fails.
    pub fn put(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        if !self.pinned && self.expires.is_none() {
            return Self::remove(tx, &self.cloudsnap);
        }
        tx.execute(
            "INSERT OR REPLACE INTO cloudsnap_marks (cloudsnap, credential, pinned, expires) VALUES (?1, ?2, ?3, ?4)",
            params![
                key(&self.cloudsnap),
                self.credential.to_string(),
                self.pinned,
                self.expires.map(|expires| expires.to_string())
            ],
        )?;
        Ok(())
    }

    /// Forgets the mark of a cloud snapshot that is gone.
    ///
    /// # Errors
    /// The database fails.
    pub fn remove(tx: &Transaction<'_>, id: &CloudsnapId) -> Result<(), DbError> {
        tx.execute("DELETE FROM cloudsnap_marks WHERE cloudsnap = ?1", [key(id)])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Db;
    use super::*;

    #[test]
    fn marks_are_of_the_snapshot_whether_incremental_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        let id: CloudsnapId = "2e4d4b67-95d7-481e-aec5-14223ac55170/59-61-incr".parse().unwrap();
        let full = CloudsnapId { incremental: false, ..id };
        let at = |second| Timestamp::from_second(second).unwrap();
        let mark = Mark { cloudsnap: full, credential: Uuid::nil(), pinned: false, expires: Some(at(7)) };
        db.transaction::<_, DbError>(|tx| {
            mark.put(tx)?;
            assert_eq!(Mark::find(tx, &id)?, Some(mark));
            let all = Mark::all(tx)?;
            assert_eq!((all.of(&id), all.expired(at(6)).count()), (Some(&mark), 0));
            assert_eq!(all.expired(at(7)).collect::<Vec<_>>(), [&mark]);
            Mark { pinned: true, cloudsnap: id, ..mark }.put(tx)?;
            assert_eq!(Mark::all(tx)?.expired(at(9)).count(), 0, "a pin is stronger than a date");
            Mark { expires: None, ..mark }.put(tx)?;
            assert_eq!(Mark::find(tx, &id)?, None);
            Ok(())
        })
        .unwrap();
    }
}
