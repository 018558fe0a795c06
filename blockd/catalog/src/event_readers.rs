//! Positions of the readers of the event log.

use crate::{DbError, number, stored};
use rusqlite::{OptionalExtension, Transaction, params};

/// Reader of events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventReader {
    /// Its name.
    pub name: String,
    /// Id of the last processed event.
    pub processed_until: u64,
}

impl EventReader {
    /// Makes the stored readers match these names, and returns them at their positions. A new reader starts
    /// with future events; other readers are removed.
    ///
    /// # Errors
    /// The database fails.
    pub fn reconcile(tx: &Transaction<'_>, names: &[String]) -> Result<Vec<Self>, DbError> {
        let newest: Option<u64> = tx
            .query_row("SELECT seq FROM sqlite_sequence WHERE name = 'events'", [], |row| number(row, 0))
            .optional()?;
        let newest = newest.unwrap_or(0);
        let known: Vec<String> = tx
            .prepare("SELECT reader FROM event_readers")?
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        for gone in known.iter().filter(|name| !names.contains(name)) {
            tx.execute("DELETE FROM event_readers WHERE reader = ?1", [gone])?;
        }
        let mut readers = Vec::new();
        for name in names {
            tx.execute(
                "INSERT OR IGNORE INTO event_readers (reader, processed_until) VALUES (?1, ?2)",
                params![name, stored(newest)],
            )?;
            let until =
                tx.query_row("SELECT processed_until FROM event_readers WHERE reader = ?1", [name], |row| {
                    number(row, 0)
                })?;
            // A database that was restored from a copy may have fewer events.
            readers.push(Self { name: name.clone(), processed_until: u64::min(until, newest) });
        }
        Ok(readers)
    }

    /// Stores the position.
    ///
    /// # Errors
    /// The database fails.
    pub fn put(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        let until = stored(self.processed_until);
        tx.execute(
            "UPDATE event_readers SET processed_until = ?2 WHERE reader = ?1",
            params![self.name, until],
        )?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Db, NewEvent};
    use super::*;
    use blockd_api::events::{EventKind, Severity};
    use jiff::Timestamp;

    #[test]
    fn event_readers_resume_at_their_cursor() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        let tell = |tx: &Transaction<'_>| {
            NewEvent::new(Timestamp::UNIX_EPOCH, Severity::Info, EventKind::RunFailed, "x").insert(tx)
        };
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        db.transaction::<_, DbError>(|tx| {
            let reader = |name: &str, until| EventReader { name: name.to_owned(), processed_until: until };
            assert_eq!(EventReader::reconcile(tx, &names(&["a"]))?, [reader("a", 0)]);
            tell(tx)?;
            tell(tx)?;
            reader("a", 1).put(tx)?;
            assert_eq!(EventReader::reconcile(tx, &names(&["b", "a"]))?, [reader("b", 2), reader("a", 1)]);
            assert_eq!(EventReader::reconcile(tx, &names(&["b"]))?, [reader("b", 2)]);
            reader("b", 99).put(tx)?;
            assert_eq!(EventReader::reconcile(tx, &names(&["b"]))?, [reader("b", 2)]);
            // The reader was removed, so it is new.
            assert_eq!(EventReader::reconcile(tx, &names(&["a"]))?, [reader("a", 2)]);
            Ok(())
        })
        .unwrap();
    }
}
