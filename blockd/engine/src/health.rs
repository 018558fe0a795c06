//! Problems that the daemon detects itself. They are kept in memory, so that they are reported even when the
//! database cannot be written.

use crate::{
    error::{ServiceError, blocking},
    events::EventLog,
    host::Host,
    monitor::Monitor,
    repositories::{Repositories, cannot_be_opened},
};
use blockd_api::{
    ByteSize,
    events::Severity,
    status::{DataSpace, Problem},
};
use blockd_catalog::{CredentialRow, Db, NewEvent};
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

/// Interval between checks of the free space.
const CHECK_INTERVAL: Duration = Duration::from_secs(15);
/// Free space below which the data directory is full, except on tiny filesystems.
const FULL_BYTES: u64 = 16 << 20;
/// Minimum free space below which it is nearly full.
const SCARCE_BYTES: u64 = 64 << 20;
const DATA_DIR: &str = "data-directory";

/// Kinds of problems, as shown by the API and in metric labels.
pub const KINDS: [&str; 10] = [
    DATA_DIR,
    CLOCK,
    DISCARDED_WRITES,
    RETENTION,
    GARBAGE,
    SCHEDULES,
    METRICS,
    CONTROL_SOCKET,
    CONTROL_ADDRESS,
    CREDENTIAL,
];
/// The clocks of this host and of a store differ, or the store's clock is unknown.
pub const CLOCK: &str = "clock";
/// A start may have discarded acknowledged writes of a volume.
pub const DISCARDED_WRITES: &str = "discarded-writes";
/// Retention is suspended for a volume, because a backup that it would keep may not be restorable.
pub const RETENTION: &str = "retention";
/// Garbage collection of a store failed, because its listing has no end.
pub const GARBAGE: &str = "garbage";
/// The schedules cannot be evaluated.
pub const SCHEDULES: &str = "schedules";
/// The metrics endpoint is not served.
pub const METRICS: &str = "metrics";
/// A control socket for a group is not served.
pub const CONTROL_SOCKET: &str = "control-socket";
/// The control API is not served over TCP.
pub const CONTROL_ADDRESS: &str = "control-address";
/// The secrets of a credential cannot be unsealed.
pub const CREDENTIAL: &str = "credential";

/// Watches the free space of the data directory.
pub struct FreeSpace {
    pub(crate) db: Arc<Db>,
    pub(crate) events: Arc<EventLog>,
    pub(crate) health: Arc<Health>,
    pub(crate) host: Arc<Host>,
}

impl std::fmt::Debug for FreeSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FreeSpace").finish_non_exhaustive()
    }
}

/// Current problems.
#[derive(Debug, Default)]
pub struct Health {
    problems: Mutex<BTreeMap<(&'static str, String), Problem>>,
    /// Event that is not stored in the database yet.
    pending_event: Mutex<Option<NewEvent>>,
}

impl Health {
    /// Records a problem; returns true if it is new.
    pub fn note(
        &self,
        kind: &'static str,
        of: &str,
        what: impl Into<String>,
        todo: impl Into<String>,
    ) -> bool {
        let mut problems = self.problems.lock();
        let key = (kind, of.to_owned());
        let since = problems.get(&key).map_or_else(Timestamp::now, |known| known.since);
        let problem = Problem { kind: kind.to_owned(), what: what.into(), todo: todo.into(), since };
        problems.insert(key, problem).is_none()
    }

    /// Returns true if the problem is recorded with this text.
    pub fn is_noted(&self, kind: &'static str, of: &str, what: &str) -> bool {
        self.problems.lock().get(&(kind, of.to_owned())).is_some_and(|problem| problem.what == what)
    }

    /// Returns true if a problem of this kind is recorded.
    pub fn has(&self, kind: &'static str, of: &str) -> bool {
        self.problems.lock().contains_key(&(kind, of.to_owned()))
    }

    /// Removes a problem; returns true if it was recorded.
    pub fn clear(&self, kind: &'static str, of: &str) -> bool {
        self.problems.lock().remove(&(kind, of.to_owned())).is_some()
    }

    /// Returns all problems.
    pub fn problems(&self) -> Vec<Problem> {
        self.problems.lock().values().cloned().collect()
    }

    /// Returns the number of problems by kind.
    pub fn counts(&self) -> [(&'static str, usize); KINDS.len()] {
        let problems = self.problems.lock();
        KINDS.map(|kind| (kind, problems.keys().filter(|(of, _)| *of == kind).count()))
    }
}

/// Level of free space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// Enough.
    Enough,
    /// Nearly full.
    Scarce,
    /// Full: writes fail, or will soon.
    Full,
}

impl Room {
    /// Classifies free space: nearly full below one percent of a large filesystem, or ten percent of a tiny
    /// one.
    pub fn of(space: DataSpace) -> Self {
        let DataSpace { total_bytes, free_bytes } = space;
        if free_bytes < FULL_BYTES.min(total_bytes / 50) {
            Self::Full
        } else if free_bytes < (total_bytes / 100).max(SCARCE_BYTES).min(total_bytes / 10) {
            Self::Scarce
        } else {
            Self::Enough
        }
    }
}

/// Returns the space of a directory's filesystem that unprivileged users can use.
fn space_of(dir: &Path) -> std::io::Result<DataSpace> {
    let found = rustix::fs::statvfs(dir)?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(DataSpace { total_bytes: bytes(found.f_blocks), free_bytes: bytes(found.f_bavail) })
}

/// Runs the periodic checks.
pub async fn run(monitor: Arc<Monitor>) {
    monitor.volumes.report_discarded_writes().await;
    if let Err(error) = monitor.repositories.check_credentials().await {
        tracing::warn!(%error, "checking whether all credentials can be unsealed failed");
    }
    loop {
        monitor.free_space.check_free_space().await;
        monitor.free_space.store_pending_event().await;
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}

impl FreeSpace {
    /// Checks the free space of the data directory and records a problem if there is too little. `None` if it
    /// cannot be determined.
    pub async fn check_free_space(&self) -> Option<DataSpace> {
        let dir = self.host.data_dir.clone();
        match blocking(move || Ok::<_, ServiceError>(space_of(&dir))).await {
            Ok(Ok(space)) => {
                self.note_room(space);
                Some(space)
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "determining the free space of the data directory failed");
                None
            }
            Err(error) => {
                tracing::warn!(%error, "determining the free space of the data directory failed");
                None
            }
        }
    }

    fn note_room(&self, space: DataSpace) {
        let dir = self.host.data_dir.display();
        let (free, total) = (ByteSize::from_bytes(space.free_bytes), ByteSize::from_bytes(space.total_bytes));
        let todo = format!(
            "delete unneeded snapshots, free space on the filesystem of {dir} or enlarge it; failed tasks are retried automatically"
        );
        let (severity, what) = match Room::of(space) {
            Room::Enough => {
                self.health.clear(DATA_DIR, "scarce");
                if self.health.clear(DATA_DIR, "full") {
                    tracing::info!(%free, "the data directory has free space again");
                }
                return;
            }
            Room::Scarce => {
                self.health.clear(DATA_DIR, "full");
                (
                    Severity::Warning,
                    format!("the data directory {dir} is nearly full: {free} of {total} are free"),
                )
            }
            Room::Full => {
                self.health.clear(DATA_DIR, "scarce");
                let what = format!(
                    "the data directory {dir} is full: {free} of {total} are free; writes of guests and backups fail"
                );
                (Severity::Error, what)
            }
        };
        let of = if severity == Severity::Error { "full" } else { "scarce" };
        // Reported once per change of level.
        if self.health.note(DATA_DIR, of, what.clone(), todo) {
            match severity {
                Severity::Error => tracing::error!("{what}"),
                _ => tracing::warn!("{what}"),
            }
            let event = NewEvent::new(Timestamp::now(), severity, "data-directory-full", what);
            *self.health.pending_event.lock() = Some(event);
        }
    }

    /// Stores the pending event about free space once the database accepts it.
    async fn store_pending_event(&self) {
        let Some(event) = self.health.pending_event.lock().clone() else { return };
        let stored = event.clone();
        if self.db.run(move |tx| stored.insert(tx)).await.is_ok() {
            let mut pending_event = self.health.pending_event.lock();
            if *pending_event == Some(event) {
                *pending_event = None;
            }
            self.events.wake();
        }
    }
}

impl Repositories {
    /// Records a problem for each credential whose secrets cannot be unsealed: its backups will fail.
    pub async fn check_credentials(&self) -> Result<(), ServiceError> {
        let rows = self.credential_rows().await?;
        rows.iter().for_each(|row| self.check_credential(row));
        let is_there = |of: &String| rows.iter().any(|row| row.uuid.to_string() == *of);
        self.health.problems.lock().retain(|(kind, of), _| *kind != CREDENTIAL || is_there(of));
        Ok(())
    }

    fn check_credential(&self, row: &CredentialRow) {
        let of = row.uuid.to_string();
        match cannot_be_opened(&self.secrets, row) {
            None => drop(self.health.clear(CREDENTIAL, &of)),
            Some(error) => {
                let what = format!("credential {} cannot be used: {error}", row.name);
                let todo = format!(
                    "restore the key and restart blockd, or run blockctl credentials update {}",
                    row.name
                );
                if self.health.note(CREDENTIAL, &of, what, todo) {
                    tracing::error!(credential = %row.name, %error, "unsealing the secrets of a credential failed: its backups fail");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_is_classified_by_filesystem_size() {
        const MIB: u64 = 1 << 20;
        let room = |total_bytes, free_bytes| Room::of(DataSpace { total_bytes, free_bytes });
        for (total, free, expected) in [
            (24 * MIB, 24 * MIB, Room::Enough),
            (24 * MIB, 3 * MIB, Room::Enough),
            (24 * MIB, 2 * MIB, Room::Scarce),
            (24 * MIB, 400 << 10, Room::Full),
            (24 * MIB, 0, Room::Full),
            (10 << 30, 101 * MIB, Room::Scarce),
            (10 << 30, 103 * MIB, Room::Enough),
            (10 << 30, 15 * MIB, Room::Full),
            (1 << 40, 9 << 30, Room::Scarce),
            (1 << 40, 11 << 30, Room::Enough),
        ] {
            assert_eq!(room(total, free), expected, "{free} of {total}");
        }
    }

    #[test]
    fn recorded_problem_is_new_only_once() {
        let health = Health::default();
        assert!(health.note(SCHEDULES, "begin", "a", "b") && !health.note(SCHEDULES, "begin", "c", "b"));
        assert_eq!(health.problems().first().unwrap().what, "c");
        assert!(health.counts().contains(&(SCHEDULES, 1)) && health.counts().contains(&(METRICS, 0)));
        assert!(health.clear(SCHEDULES, "begin") && !health.clear(SCHEDULES, "begin"));
        assert!(health.problems().is_empty());
    }
}
