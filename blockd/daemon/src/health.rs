//! What keeps the daemon from its work, as far as it notices by itself. It is kept in memory, so that it is
//! told also when the database takes nothing.

use crate::{
    core::Core,
    credentials::cannot_be_opened,
    db::{CredentialRow, NewEvent},
    error::{ServiceError, blocking},
};
use blockd_api::{
    ByteSize,
    events::Severity,
    status::{DataSpace, Problem},
};
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};
use tokio::task::JoinHandle;

/// How often it is looked how much room there is.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// With less than this there is no room, unless the filesystem is tiny.
const FULL_BYTES: u64 = 16 << 20;
/// With less than this there is little.
const SCARCE_BYTES: u64 = 64 << 20;
const DATA_DIR: &str = "data-directory";

/// What may be wrong, in words for programs and for labels.
pub(crate) const KINDS: [&str; 10] = [
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
/// The clocks of this host and of a store differ, or the store's is not known.
pub(crate) const CLOCK: &str = "clock";
/// A start may have discarded acknowledged writes of a volume.
pub(crate) const DISCARDED_WRITES: &str = "discarded-writes";
/// Retention deletes nothing of a volume, because a backup that it would keep may not restore.
pub(crate) const RETENTION: &str = "retention";
/// Garbage is not collected from a store, because its listing has no end.
pub(crate) const GARBAGE: &str = "garbage";
/// The schedules cannot be looked at.
pub(crate) const SCHEDULES: &str = "schedules";
/// Metrics are not served.
pub(crate) const METRICS: &str = "metrics";
/// A control socket for a group is not served.
pub(crate) const CONTROL_SOCKET: &str = "control-socket";
/// The control API is not served over TCP.
pub(crate) const CONTROL_ADDRESS: &str = "control-address";
/// The secrets of a credential cannot be opened.
pub(crate) const CREDENTIAL: &str = "credential";

/// What is wrong now.
#[derive(Debug, Default)]
pub(crate) struct Health {
    problems: Mutex<BTreeMap<(&'static str, String), Problem>>,
    /// What the database has not taken yet.
    untold: Mutex<Option<NewEvent>>,
}

impl Health {
    /// Notes that something is wrong; true if that was not known.
    pub(crate) fn note(
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

    /// Returns whether a problem is known in these words.
    pub(crate) fn is_noted(&self, kind: &'static str, of: &str, what: &str) -> bool {
        self.problems.lock().get(&(kind, of.to_owned())).is_some_and(|problem| problem.what == what)
    }

    /// It is right again; true if it was not.
    pub(crate) fn clear(&self, kind: &'static str, of: &str) -> bool {
        self.problems.lock().remove(&(kind, of.to_owned())).is_some()
    }

    /// All that is wrong.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        self.problems.lock().values().cloned().collect()
    }

    /// How much is wrong, by kind.
    pub(crate) fn counts(&self) -> [(&'static str, usize); KINDS.len()] {
        let problems = self.problems.lock();
        KINDS.map(|kind| (kind, problems.keys().filter(|(of, _)| *of == kind).count()))
    }
}

/// How much room there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Room {
    /// Enough.
    Enough,
    /// Little.
    Scarce,
    /// So little that writes fail, or soon will.
    Full,
}

impl Room {
    /// Of a large filesystem a hundredth is little already; of a tiny one, what it has at most.
    pub(crate) fn of(space: DataSpace) -> Self {
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

/// The room that the filesystem of a directory has for whoever is not root.
fn space_of(dir: &Path) -> std::io::Result<DataSpace> {
    let found = rustix::fs::statvfs(dir)?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(DataSpace { total_bytes: bytes(found.f_blocks), free_bytes: bytes(found.f_bavail) })
}

/// Looks at what can be seen from here until the daemon stops.
pub(crate) fn start(core: &Arc<Core>) -> JoinHandle<()> {
    let core = Arc::clone(core);
    tokio::spawn(async move {
        let work = async {
            core.report_discarded_writes().await;
            if let Err(error) = core.look_at_credentials().await {
                tracing::warn!(%error, "whether all credentials can be opened is not known");
            }
            loop {
                core.look_at_room().await;
                core.tell_of_room().await;
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = core.stopping.cancelled() => {}
        }
    })
}

impl Core {
    /// Looks how much room the data directory has, and notes if it is too little. None if that cannot be
    /// found out.
    pub(crate) async fn look_at_room(&self) -> Option<DataSpace> {
        let dir = self.data_dir.clone();
        match blocking(move || Ok::<_, ServiceError>(space_of(&dir))).await {
            Ok(Ok(space)) => {
                self.note_room(space);
                Some(space)
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "how much room the data directory has is not known");
                None
            }
            Err(error) => {
                tracing::warn!(%error, "how much room the data directory has is not known");
                None
            }
        }
    }

    fn note_room(&self, space: DataSpace) {
        let dir = self.data_dir.display();
        let (free, total) = (ByteSize::from_bytes(space.free_bytes), ByteSize::from_bytes(space.total_bytes));
        let todo = format!(
            "delete snapshots that are not needed, make room on the filesystem of {dir} or enlarge it; tasks that failed are tried again by themselves"
        );
        let (severity, what) = match Room::of(space) {
            Room::Enough => {
                self.health.clear(DATA_DIR, "scarce");
                if self.health.clear(DATA_DIR, "full") {
                    tracing::info!(%free, "the data directory has room again");
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
                    "the data directory {dir} is full: {free} of {total} are free, so that writes of guests fail and nothing is backed up"
                );
                (Severity::Error, what)
            }
        };
        let of = if severity == Severity::Error { "full" } else { "scarce" };
        // Said once, however often it is looked.
        if self.health.note(DATA_DIR, of, what.clone(), todo) {
            match severity {
                Severity::Error => tracing::error!("{what}"),
                _ => tracing::warn!("{what}"),
            }
            let event = NewEvent::new(Timestamp::now(), severity, "data-directory-full", what);
            *self.health.untold.lock() = Some(event);
        }
    }

    /// Stores what is to be told of room, as soon as there is some.
    async fn tell_of_room(&self) {
        let Some(event) = self.health.untold.lock().clone() else { return };
        let stored = event.clone();
        if self.db.run(move |tx| stored.insert(tx)).await.is_ok() {
            let mut untold = self.health.untold.lock();
            if *untold == Some(event) {
                *untold = None;
            }
            self.events.wake();
        }
    }

    /// Notes whose secrets cannot be opened: their backups will fail.
    pub(crate) async fn look_at_credentials(&self) -> Result<(), ServiceError> {
        let rows = self.credential_rows().await?;
        rows.iter().for_each(|row| self.look_at_credential(row));
        let is_there = |of: &String| rows.iter().any(|row| row.uuid.to_string() == *of);
        self.health.problems.lock().retain(|(kind, of), _| *kind != CREDENTIAL || is_there(of));
        Ok(())
    }

    fn look_at_credential(&self, row: &CredentialRow) {
        let of = row.uuid.to_string();
        match cannot_be_opened(&self.secrets, row) {
            None => drop(self.health.clear(CREDENTIAL, &of)),
            Some(error) => {
                let what = format!("credential {} cannot be used: {error}", row.name);
                let todo = format!(
                    "put the key back and restart blockd, or blockctl credentials update {}",
                    row.name
                );
                if self.health.note(CREDENTIAL, &of, what, todo) {
                    tracing::error!(credential = %row.name, %error, "the secrets of a credential cannot be opened: nothing is backed up with it");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_room_is_told_by_size_and_tiny_filesystems_are_not_always_full() {
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
    fn what_is_wrong_is_news_once() {
        let health = Health::default();
        assert!(health.note(SCHEDULES, "begin", "a", "b") && !health.note(SCHEDULES, "begin", "c", "b"));
        assert_eq!(health.problems().first().unwrap().what, "c");
        assert!(health.counts().contains(&(SCHEDULES, 1)) && health.counts().contains(&(METRICS, 0)));
        assert!(health.clear(SCHEDULES, "begin") && !health.clear(SCHEDULES, "begin"));
        assert!(health.problems().is_empty());
    }
}
