//! Mounts that the daemon made or serves, and their persistent list, by which the next start cleans up after
//! a killed daemon.
//!
//! The list is the file `browse-mounts` in the data directory: one path per line. Paths with line breaks are
//! refused.

use blockd_api::{CredentialRef, browse::BrowseMount};
use blockd_engine::quota::Quota;
use blockd_fuse::{Mounted, Served};
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{
    io::Write,
    path::{Path, PathBuf},
};

/// Maximum number of user mounts, per user and in total: each takes threads for as long as its user keeps it.
const MAX_PER_USER: usize = 16;
const MAX_TOTAL: usize = 64;

/// Returns the path of the list.
pub(super) fn list_path(data_dir: &Path) -> PathBuf {
    data_dir.join("browse-mounts")
}

/// Mount that the daemon made.
pub(super) struct Mount {
    pub mounted: Mounted,
    pub credentials: Vec<CredentialRef>,
    pub since: Timestamp,
}

impl Mount {
    pub fn describe(&self) -> BrowseMount {
        BrowseMount {
            mountpoint: self.mounted.mountpoint().to_owned(),
            credentials: self.credentials.clone(),
            mounted_at: self.since,
            uid: None,
        }
    }
}

/// Mounts created by this daemon, and user mounts.
#[derive(Default)]
pub(super) struct Mounts {
    /// `None` while the daemon starts or stops.
    pub own: Mutex<Option<Vec<Mount>>>,
    /// `None` while the daemon starts or stops.
    pub handed: Mutex<Option<Vec<UserMount>>>,
    pub quota: Quota<u32, MAX_PER_USER, MAX_TOTAL>,
}

impl Mounts {
    /// Unmounts all mounts of the daemon's user and refuses new ones. Mounts of other users lose their server
    /// when this process ends.
    pub fn stop(&self) {
        let handed = self.handed.lock().take();
        handed.iter().flatten().for_each(UserMount::stop);
        drop(self.own.lock().take());
    }

    /// Writes the list, with a lock of the daemon's own mounts.
    pub fn save(&self, data_dir: &Path) {
        self.write(data_dir, self.own.lock().as_deref().unwrap_or_default());
    }

    /// Writes the list. Lock order: the daemon's own mounts, then the user mounts.
    pub fn write(&self, data_dir: &Path, own: &[Mount]) {
        let path = list_path(data_dir);
        let write = || -> std::io::Result<()> {
            let temp = path.with_extension("tmp");
            let mut file = std::fs::File::create(&temp)?;
            let handed = self.handed.lock();
            let own = own.iter().map(|mount| mount.mounted.mountpoint());
            for mountpoint in own.chain(handed.iter().flatten().filter_map(UserMount::path_to_save)) {
                use std::os::unix::ffi::OsStrExt;
                file.write_all(mountpoint.as_os_str().as_bytes())?;
                file.write_all(b"\n")?;
            }
            file.sync_all()?;
            std::fs::rename(&temp, &path)
        };
        if let Err(error) = write() {
            tracing::warn!(path = %path.display(), %error, "writing the list of mounts failed; after a kill of the daemon they stay mounted");
        }
    }
}

/// User mount.
pub(super) struct UserMount {
    pub served: Served,
    pub credentials: Vec<CredentialRef>,
    pub since: Timestamp,
}

impl UserMount {
    pub fn describe(&self) -> BrowseMount {
        let mount = self.served.mount();
        BrowseMount {
            mountpoint: mount.mountpoint.clone(),
            credentials: self.credentials.clone(),
            mounted_at: self.since,
            uid: Some(mount.uid),
        }
    }

    pub fn is_alive(&self) -> bool {
        self.served.is_alive()
    }

    /// Returns the mount point if the next start may clean it up after a crash: the daemon never accesses
    /// paths that other users chose.
    pub fn path_to_save(&self) -> Option<&Path> {
        (self.is_alive() && self.served.is_own()).then_some(&self.served.mount().mountpoint)
    }

    /// Unmounts it if it belongs to the daemon's user. Other users unmount theirs.
    pub fn stop(&self) {
        self.served.unmount_own();
    }

    pub fn is_at(&self, mountpoint: &Path) -> bool {
        self.served.mount().mountpoint == mountpoint
    }

    pub fn uid(&self) -> u32 {
        self.served.mount().uid
    }
}
