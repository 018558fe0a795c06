//! The tables, from one file, and their version.

use crate::DbError;
use rusqlite::Connection;
use std::path::Path;

const SCHEMA: &str = include_str!("schema.sql");
/// `user_version` of a database with the tables of `schema.sql`; SQLite gives a new file 0. A change of the
/// tables keeps 1 until the first release: earlier data directories are deleted.
const VERSION: i64 = 1;

/// Creates the tables in a new database and refuses one of another version.
pub(crate) fn apply(connection: &mut Connection, path: &Path) -> Result<(), DbError> {
    if version(connection, path)? == VERSION {
        return Ok(());
    }
    let failed = |source| DbError::Create { path: path.to_owned(), source };
    let transaction = connection.transaction().map_err(failed)?;
    transaction.execute_batch(SCHEMA).map_err(failed)?;
    // In the same transaction: a crash leaves either an empty database or a complete one.
    transaction.pragma_update(None, "user_version", VERSION).map_err(failed)?;
    transaction.commit().map_err(failed)
}

/// Refuses a database of another version.
pub(crate) fn check(connection: &Connection, path: &Path) -> Result<(), DbError> {
    version(connection, path).map(drop)
}

/// Returns 0 for a new database, and [`VERSION`] otherwise.
fn version(connection: &Connection, path: &Path) -> Result<i64, DbError> {
    let found: i64 = connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(|source| DbError::Open { path: path.to_owned(), source })?;
    match found {
        0 | VERSION => Ok(found),
        _ => Err(DbError::Newer { path: path.to_owned(), found, known: VERSION }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_other_version_is_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.pragma_update(None, "user_version", 99).unwrap();
        let error = apply(&mut connection, Path::new("x.db")).unwrap_err().to_string();
        assert!(error.contains("version 99") && error.contains("newer blockd"), "{error}");
    }

    #[test]
    fn open_twice_keeps_rows() {
        let mut connection = Connection::open_in_memory().unwrap();
        apply(&mut connection, Path::new("x.db")).unwrap();
        connection.execute("INSERT INTO meta VALUES ('a', 'b')", []).unwrap();
        apply(&mut connection, Path::new("x.db")).unwrap();
        let rows: i64 = connection.query_row("SELECT count(*) FROM meta", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 1);
    }
}
