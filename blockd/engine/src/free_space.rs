//! Free space of the data directory.

use crate::{
    error::{ServiceError, blocking},
    events::EventLog,
    health::{ComponentHealth, DATA_DIR},
    host::Host,
};
use blockd_api::{
    ByteSize,
    events::{EventKind, Severity},
    status::DataSpace,
};
use blockd_catalog::{Db, NewEvent};
use jiff::Timestamp;
use std::{path::Path, sync::Arc};

/// Free space below which the data directory is full, except on tiny filesystems.
const FULL_BYTES: u64 = 16 << 20;
/// Minimum free space below which it is nearly full.
const SCARCE_BYTES: u64 = 64 << 20;

/// Watches the free space of the data directory.
pub struct FreeSpace {
    pub(crate) db: Arc<Db>,
    pub(crate) events: Arc<EventLog>,
    pub(crate) health: Arc<ComponentHealth>,
    pub(crate) host: Arc<Host>,
}

/// Level of free space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SpaceLevel {
    /// Enough.
    Enough,
    /// Nearly full.
    Scarce,
    /// Full: writes fail, or will soon.
    Full,
}

impl SpaceLevel {
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
pub(crate) fn space_of(dir: &Path) -> std::io::Result<DataSpace> {
    let found = rustix::fs::statvfs(dir)?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(DataSpace { total_bytes: bytes(found.f_blocks), free_bytes: bytes(found.f_bavail) })
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
            "delete unneeded snapshots, free space on the filesystem of {dir} or enlarge it; then start failed backups and restores again"
        );
        let (severity, what) = match SpaceLevel::of(space) {
            SpaceLevel::Enough => {
                self.health.clear(DATA_DIR, "scarce");
                if self.health.clear(DATA_DIR, "full") {
                    tracing::info!(%free, "the data directory has free space again");
                }
                return;
            }
            SpaceLevel::Scarce => {
                self.health.clear(DATA_DIR, "full");
                (
                    Severity::Warning,
                    format!("the data directory {dir} is nearly full: {free} of {total} are free"),
                )
            }
            SpaceLevel::Full => {
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
            let event = NewEvent::new(Timestamp::now(), severity, EventKind::DataDirectoryFull, what);
            *self.health.pending_event.lock() = Some(event);
        }
    }

    /// Stores the pending event about free space once the database accepts it.
    pub(crate) async fn store_pending_event(&self) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_is_classified_by_filesystem_size() {
        const MIB: u64 = 1 << 20;
        let level = |total_bytes, free_bytes| SpaceLevel::of(DataSpace { total_bytes, free_bytes });
        for (total, free, expected) in [
            (24 * MIB, 24 * MIB, SpaceLevel::Enough),
            (24 * MIB, 3 * MIB, SpaceLevel::Enough),
            (24 * MIB, 2 * MIB, SpaceLevel::Scarce),
            (24 * MIB, 400 << 10, SpaceLevel::Full),
            (24 * MIB, 0, SpaceLevel::Full),
            (10 << 30, 101 * MIB, SpaceLevel::Scarce),
            (10 << 30, 103 * MIB, SpaceLevel::Enough),
            (10 << 30, 15 * MIB, SpaceLevel::Full),
            (1 << 40, 9 << 30, SpaceLevel::Scarce),
            (1 << 40, 11 << 30, SpaceLevel::Enough),
        ] {
            assert_eq!(level(total, free), expected, "{free} of {total}");
        }
    }
}
