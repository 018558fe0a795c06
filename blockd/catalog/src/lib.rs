//! SQLite database: volumes, snapshots, credentials, chains, tasks, and a cache of manifests.
//!
//! One connection behind a lock, and short transactions only. All functions block: asynchronous code calls
//! [`Db::run`].

mod anomalies;
mod attachments;
mod backup_activity;
mod chains;
mod credentials;
mod doubts;
mod drills;
mod event_readers;
mod events;
mod host_proofs;
mod known_damage;
mod known_proofs;
mod lazy;
mod leases;
mod manifest_cache;
mod newest_backups;
mod proof_ages;
mod proofs;
mod published_proofs;
mod repository_location;
mod retention_overrides;
mod rules;
mod runs;
mod schedules;
mod schema;
mod scrubs;
mod snapshots;
mod tasks;
mod volumes;

pub use anomalies::{AnomalyHolds, AnomalyRow};
pub use attachments::{AttachmentRow, AttachmentState};
pub use backup_activity::ActivityRow;
pub use chains::Chain;
pub use credentials::{CredentialRow, StoreRow};
pub use doubts::Doubt;
pub use drills::DrillRow;
pub use event_readers::EventReader;
pub use events::{NewEvent, count_events_after, events_after, newest_events};
pub use host_proofs::HostProof;
pub use known_damage::{KnownDamage, LaterBackup};
pub use known_proofs::{KnownProofs, LastProof};
pub use lazy::LazyRow;
pub use leases::LeaseRow;
pub use manifest_cache::{DbManifestCache, KnownContent};
pub use newest_backups::NewestBackup;
pub use proof_ages::ProofAge;
pub use proofs::ProofRow;
pub use published_proofs::PublishedProof;
pub use repository_location::{Alias, Aliases};
pub use retention_overrides::{RetentionOverride, RetentionOverrides};
pub use rules::{RuleRow, RuleUses};
pub use runs::{CopyCount, LOCAL, RunRow};
pub use schedules::{PolicyRow, ScheduleRow, ScheduleSpec};
pub use scrubs::ScrubRow;
pub use snapshots::{SnapshotRow, SnapshotState};
pub use tasks::{
    BackupTask, DeleteTask, DrillTask, GroupFreeze, InPlaceRestore, MemberDrill, RepairTask, RestoreTask,
    ScrubTask, TaskDetail, TaskRow, TaskSpec, VerifyTask,
};
pub use volumes::{KnownVolume, UnknownWord, VolumeRow, VolumeState};

use blockd_cloud::MAX_PROOF_AHEAD;
use blockd_extent::{SnapshotId, VolumeId};
use jiff::Timestamp;
use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, types::Type};
use std::{
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};
use tokio::{runtime::Handle, sync::oneshot};
use uuid::Uuid;

/// Database error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DbError {
    /// The file could not be opened.
    #[error("open failed on database {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// SQLite error.
        source: rusqlite::Error,
    },
    /// The database has the schema of a newer blockd.
    #[error("database {} has version {found}, this blockd supports versions up to {known}: use the newer blockd that ran last", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Version found.
        found: i64,
        /// Newest known version.
        known: i64,
    },
    /// The tables could not be created; the database is unchanged.
    #[error("creating the tables failed on database {}: {source}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// A statement failed.
    #[error("database: {0}")]
    Sql(#[from] rusqlite::Error),
    /// The thread of the statement was aborted.
    #[error("database: the transaction was aborted: {0}")]
    Cut(String),
    /// A waiting run was started or ended concurrently.
    #[error("run {0} does not wait any more")]
    NotWaiting(u64),
    /// A value cannot be stored.
    #[error("database: cannot encode {what}: {source}")]
    Encode {
        /// Type of the value.
        what: &'static str,
        /// Cause.
        source: serde_json::Error,
    },
}

impl DbError {
    /// Returns true if a retry can succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Sql(error) => matches!(
                error.sqlite_error_code(),
                Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DiskFull)
            ),
            _ => false,
        }
    }

    /// Returns true for a full filesystem.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Sql(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull))
    }

    /// Returns true for a row with unknown content.
    pub fn is_unreadable(&self) -> bool {
        let is_of_row = |error: &rusqlite::Error| {
            matches!(
                error,
                rusqlite::Error::FromSqlConversionFailure(..)
                    | rusqlite::Error::IntegralValueOutOfRange(..)
                    | rusqlite::Error::InvalidColumnType(..)
            )
        };
        matches!(self, Self::Sql(error) if is_of_row(error))
    }

    /// Returns true for a duplicate name.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Sql(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation))
    }
}

/// Database.
#[derive(Debug)]
pub struct Db {
    connection: Mutex<Connection>,
    /// Runtime that opened the database: its threads hold the lock for callers of any priority.
    runtime: Option<Handle>,
}

impl Db {
    /// Opens the database, or creates it.
    ///
    /// # Errors
    /// It cannot be opened, it has another version, or its tables cannot be created.
    pub fn open(path: &Path) -> Result<Self, DbError> {
        let open = |source| DbError::Open { path: path.to_owned(), source };
        let mut connection = Connection::open(path).map_err(open)?;
        connection.busy_timeout(Duration::from_secs(5)).map_err(open)?;
        let mode: String =
            connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).map_err(open)?;
        if mode != "wal" {
            tracing::warn!(%mode, "the database does not use a write-ahead log");
        }
        connection.execute_batch("PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;").map_err(open)?;
        schema::apply(&mut connection, path)?;
        Ok(Self { connection: Mutex::new(connection), runtime: Handle::try_current().ok() })
    }

    /// Reads the volumes of a database of any version without changing it. No other process may have it open.
    ///
    /// # Errors
    /// It cannot be opened or read.
    pub fn find_volumes(path: &Path) -> Result<Vec<KnownVolume>, DbError> {
        let open = |source| DbError::Open { path: path.to_owned(), source };
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(open)?;
        let mut statement =
            connection.prepare("SELECT id, name, size_bytes, state FROM volumes ORDER BY name")?;
        let rows = statement.query_map([], |row| {
            let (id, name) = (parsed(row, 0)?, parsed(row, 1)?);
            Ok(KnownVolume { id, name, size_bytes: number(row, 2)?, state: parsed(row, 3)? })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Reads the snapshots of a volume by name, without changing the database.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn find_snapshots(path: &Path, volume: VolumeId) -> Result<Vec<(String, SnapshotId)>, DbError> {
        let mut connection = Self::inspect(path)?;
        let rows = SnapshotRow::all(&connection.transaction()?, Some(volume))?;
        Ok(rows.into_iter().map(|row| (row.name.to_string(), row.id)).collect())
    }

    /// Checks that this program can open a database, without changing it. Other processes may have it open.
    ///
    /// # Errors
    /// It is newer than this program, or cannot be read.
    pub fn check_version(path: &Path) -> Result<(), DbError> {
        schema::check(&Self::inspect(path)?, path)
    }

    /// Reads the credentials of a database of this program's version without changing it. Other processes may
    /// have it open.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn find_credentials(path: &Path) -> Result<Vec<CredentialRow>, DbError> {
        let mut connection = Self::inspect(path)?;
        CredentialRow::all(&connection.transaction()?)
    }

    /// Opens a database read-only. Other processes may have it open.
    fn inspect(path: &Path) -> Result<Connection, DbError> {
        let open = |source| DbError::Open { path: path.to_owned(), source };
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        // Without a WAL next to it, the file is complete; a normal open would create files.
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        let connection = match Path::new(&log).exists() {
            true => Connection::open_with_flags(path, flags),
            false => {
                let mut uri = String::from("file:");
                for byte in path.as_os_str().as_encoded_bytes() {
                    match byte {
                        b'/' | b'.' | b'-' | b'_' | b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => {
                            uri.push(char::from(*byte));
                        }
                        byte => uri += &format!("%{byte:02x}"),
                    }
                }
                Connection::open_with_flags(uri + "?immutable=1", flags)
            }
        };
        connection.map_err(open)
    }

    /// Runs `work` in one durable transaction.
    ///
    /// # Errors
    /// Those of `work` and of the commit.
    pub fn transaction<R, E: From<DbError>>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<R, E>,
    ) -> Result<R, E> {
        let mut connection = self.connection.lock();
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(DbError::from)?;
        let result = work(&transaction)?;
        transaction.commit().map_err(DbError::from)?;
        Ok(result)
    }

    /// [`transaction`](Self::transaction) for asynchronous code, on a thread of the runtime that opened the
    /// database, or else of the caller's.
    ///
    /// # Errors
    /// Those of [`transaction`](Self::transaction), or a stop aborted the thread.
    pub async fn run<R, E>(
        self: &Arc<Self>,
        work: impl FnOnce(&Transaction<'_>) -> Result<R, E> + Send + 'static,
    ) -> Result<R, E>
    where
        R: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        let db = Arc::clone(self);
        let (reply, answer) = oneshot::channel();
        // One type for all work: the compiler generates much code for each type of task.
        let work: Box<dyn FnOnce() + Send> = Box::new(move || drop(reply.send(db.transaction(work))));
        let runtime = self.runtime.clone().unwrap_or_else(Handle::current);
        // A new thread of its pool inherits the priority of the one that starts it: not of the caller.
        let running = runtime.spawn(async { tokio::task::spawn_blocking(work).await });
        running.await.flatten().map_err(|error| DbError::Cut(error.to_string()))?;
        answer.await.map_err(|error| DbError::Cut(error.to_string()))?
    }

    /// Returns the cluster id, which is created with the database; a copy of the data directory has the same.
    ///
    /// # Errors
    /// The database fails.
    pub fn cluster_id(&self) -> Result<Uuid, DbError> {
        self.transaction(|tx| {
            let drawn = Uuid::new_v4().to_string();
            tx.execute("INSERT OR IGNORE INTO meta (key, value) VALUES ('cluster_id', ?1)", [drawn])?;
            let id =
                tx.query_row("SELECT value FROM meta WHERE key = 'cluster_id'", [], |row| parsed(row, 0))?;
            Ok(id)
        })
    }

    /// Returns true if this or an earlier start serves clients of other hosts. Recorded permanently: such a
    /// client may reconnect at any time.
    pub fn serves_remote(&self, is_served_now: bool) -> Result<bool, DbError> {
        self.transaction(|tx| {
            if is_served_now {
                tx.execute("INSERT OR IGNORE INTO meta (key, value) VALUES ('served_remote', '1')", [])?;
            }
            let count: i64 =
                tx.query_row("SELECT count(*) FROM meta WHERE key = 'served_remote'", [], |row| row.get(0))?;
            Ok(count > 0)
        })
    }
}

/// Returns the latest time of a credible record: a later one is of a clock that was set back since.
fn latest_credible(now: Timestamp) -> Timestamp {
    now.saturating_add(MAX_PROOF_AHEAD).unwrap_or(Timestamp::MAX)
}

/// Parses a text column.
fn parsed<T: FromStr>(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: String = row.get(column)?;
    text.parse()
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error)))
}

/// Parses an optional text column.
fn parsed_if_there<T: FromStr>(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Option<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    match row.get_ref(column)? {
        rusqlite::types::ValueRef::Null => Ok(None),
        _ => parsed(row, column).map(Some),
    }
}

/// Parses an optional JSON column.
fn json_if_there<T: serde::de::DeserializeOwned>(
    row: &rusqlite::Row<'_>,
    column: usize,
) -> rusqlite::Result<Option<T>> {
    match row.get_ref(column)? {
        rusqlite::types::ValueRef::Null => Ok(None),
        _ => json(row, column).map(Some),
    }
}

/// Returns all rows of a query.
fn rows<T>(
    tx: &Transaction<'_>,
    sql: &str,
    params: impl rusqlite::Params,
    read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, DbError> {
    Ok(tx.prepare_cached(sql)?.query_map(params, read)?.collect::<Result<_, _>>()?)
}

/// Parses a JSON column.
fn json<T: serde::de::DeserializeOwned>(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error)))
}

/// Returns a column with a non-negative number.
fn number(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}

/// Converts a number for SQLite, limited to the maximum.
fn stored(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn to_json<T: serde::Serialize>(what: &'static str, value: &T) -> Result<String, DbError> {
    serde_json::to_string(value).map_err(|source| DbError::Encode { what, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_id_is_created_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blockd.db");
        let id = Db::open(&path).unwrap().cluster_id().unwrap();
        assert_eq!(Db::open(&path).unwrap().cluster_id().unwrap(), id);
    }

    #[test]
    fn remote_clients_are_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        for (now, expected) in [(false, false), (true, true), (false, true)] {
            assert_eq!(db.serves_remote(now).unwrap(), expected);
        }
    }

    #[test]
    fn failed_transaction_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        let result: Result<(), DbError> = db.transaction(|tx| {
            tx.execute("INSERT INTO meta VALUES ('a', 'b')", [])?;
            tx.execute("INSERT INTO meta VALUES ('a', 'c')", [])?;
            Ok(())
        });
        assert!(result.unwrap_err().is_conflict());
        let rows: i64 = db
            .transaction::<_, DbError>(|tx| {
                Ok(tx.query_row("SELECT count(*) FROM meta", [], |row| row.get(0))?)
            })
            .unwrap();
        assert_eq!(rows, 0);
    }

    #[test]
    fn transactions_run_on_the_runtime_that_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blockd.db");
        let named = |name| tokio::runtime::Builder::new_multi_thread().thread_name(name).build().unwrap();
        let (opening, other) = (named("opening"), named("other"));
        let db = Arc::new(opening.block_on(async { Db::open(&path) }).unwrap());
        let thread = |_: &Transaction<'_>| Ok::<_, DbError>(std::thread::current().name().map(str::to_owned));
        assert_eq!(other.block_on(db.run(thread)).unwrap().unwrap(), "opening");
    }
}
