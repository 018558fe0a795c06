//! Bringing the tables from the version in the file to that of this program, one numbered SQL file at a time.

use super::DbError;
use rusqlite::Connection;
use std::path::Path;

/// `MIGRATIONS[n]` leads from version n to n + 1. Files that were released are never changed.
const MIGRATIONS: &[&str] = &[
    include_str!("../../migrations/0001_initial.sql"),
    include_str!("../../migrations/0002_attachments.sql"),
    include_str!("../../migrations/0003_read_only.sql"),
    include_str!("../../migrations/0004_groups.sql"),
    include_str!("../../migrations/0005_verify.sql"),
    include_str!("../../migrations/0006_lazy.sql"),
    include_str!("../../migrations/0007_schedules.sql"),
    include_str!("../../migrations/0008_events.sql"),
    include_str!("../../migrations/0009_doubts.sql"),
    include_str!("../../migrations/0010_event_readers.sql"),
    include_str!("../../migrations/0011_cloudsnap_marks.sql"),
    include_str!("../../migrations/0012_read_orders.sql"),
    include_str!("../../migrations/0013_rules.sql"),
    include_str!("../../migrations/0014_local_copies.sql"),
    include_str!("../../migrations/0015_secret_references.sql"),
    include_str!("../../migrations/0016_snapshot_pins.sql"),
];

pub(super) fn apply(connection: &mut Connection, path: &Path) -> Result<(), DbError> {
    apply_all(connection, path, MIGRATIONS)
}

/// Refuses a database that is newer than this program.
pub(super) fn check(connection: &Connection, path: &Path) -> Result<(), DbError> {
    let open = |source| DbError::Open { path: path.to_owned(), source };
    let known = MIGRATIONS.len() as i64;
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(open)?;
    if found > known || found < 0 {
        return Err(DbError::Newer { path: path.to_owned(), found, known });
    }
    Ok(())
}

fn apply_all(connection: &mut Connection, path: &Path, migrations: &[&str]) -> Result<(), DbError> {
    let open = |source| DbError::Open { path: path.to_owned(), source };
    let known = migrations.len() as i64;
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(open)?;
    if found > known || found < 0 {
        return Err(DbError::Newer { path: path.to_owned(), found, known });
    }
    for (version, sql) in (1..).zip(migrations).skip(usize::try_from(found).unwrap_or(0)) {
        let failed = |source| DbError::Migration { path: path.to_owned(), version, source };
        let transaction = connection.transaction().map_err(failed)?;
        transaction.execute_batch(sql).map_err(failed)?;
        // The version is in the same transaction: a crash leaves the old one or the new one.
        transaction.pragma_update(None, "user_version", version).map_err(failed)?;
        transaction.commit().map_err(failed)?;
        if found > 0 {
            tracing::info!(version, "database brought up to date");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(connection: &Connection) -> i64 {
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn an_older_database_gets_only_what_it_lacks() {
        let mut connection = Connection::open_in_memory().unwrap();
        let path = Path::new("x.db");
        apply_all(&mut connection, path, &["CREATE TABLE a (x)"]).unwrap();
        connection.execute("INSERT INTO a VALUES (7)", []).unwrap();
        apply_all(&mut connection, path, &["CREATE TABLE a (x)", "ALTER TABLE a ADD COLUMN y"]).unwrap();
        assert_eq!(version(&connection), 2);
        let x: i64 = connection.query_row("SELECT x FROM a WHERE y IS NULL", [], |row| row.get(0)).unwrap();
        assert_eq!(x, 7);
    }

    #[test]
    fn a_failed_migration_leaves_the_old_version_whole() {
        let mut connection = Connection::open_in_memory().unwrap();
        let path = Path::new("x.db");
        let error = apply_all(
            &mut connection,
            path,
            &["CREATE TABLE a (x)", "CREATE TABLE b (x); CREATE TABLE a (x)"],
        );
        assert!(error.unwrap_err().to_string().contains("to version 2"));
        assert_eq!(version(&connection), 1);
        assert!(connection.execute("INSERT INTO b VALUES (1)", []).is_err());
    }

    #[test]
    fn a_newer_database_is_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.pragma_update(None, "user_version", 99).unwrap();
        let error = apply(&mut connection, Path::new("x.db")).unwrap_err().to_string();
        assert!(error.contains("version 99") && error.contains("newer blockd"), "{error}");
    }
}
