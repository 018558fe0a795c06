//! Browse mounts, and their list, by which a start cleans up after a killed daemon.
//!
//! The list is the file `browse-mounts` in the data directory: one path per line. Paths with line breaks
//! are refused.

use crate::browse::{Browser, listing::BrowseCatalog, mount_quota::MountQuota, user_mounts::UserMount};
use blockd_api::{
    CredentialRef, ErrorCode,
    browse::{BrowseMount, BrowseMountList, MountBrowse, UnmountBrowse, Unmounted},
};
use blockd_engine::error::ServiceError;
use blockd_fuse::{FuseError, MountOptions, Mounted, resolve};
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{io::Write, path::Path, sync::Arc};
use tokio::runtime::Handle;

/// Maximum number of mounts.
const MAX_MOUNTS: usize = 64;
const MOUNTS_FILE: &str = "browse-mounts";

struct Mount {
    mounted: Mounted,
    credentials: Vec<CredentialRef>,
    since: Timestamp,
}

impl Mount {
    fn describe(&self) -> BrowseMount {
        BrowseMount {
            mountpoint: self.mounted.mountpoint().to_owned(),
            cred_ids: self.credentials.clone(),
            since: self.since,
            uid: None,
        }
    }
}

/// Mounts created by this daemon, and user mounts.
#[derive(Default)]
pub(super) struct Mounts {
    /// `None` while the daemon starts or stops.
    mounts: Mutex<Option<Vec<Mount>>>,
    /// `None` while the daemon starts or stops.
    pub(super) handed: Mutex<Option<Vec<UserMount>>>,
    pub(super) quota: MountQuota,
}

impl Mounts {
    /// Unmounts all and refuses new mounts. User mounts are unmounted by their users: they end with this
    /// process.
    pub fn stop(&self) {
        let handed = self.handed.lock().take();
        handed.iter().flatten().for_each(UserMount::stop);
        drop(self.mounts.lock().take());
    }

    /// Writes the list.
    pub(super) fn save(&self, browser: &Browser) {
        write_mounts_file(browser, self.mounts.lock().as_deref().unwrap_or_default());
    }
}

/// Converts a failure of a mount.
pub(super) fn mount_failed(error: &FuseError) -> ServiceError {
    let code = match error {
        FuseError::Busy { .. } => ErrorCode::DeviceInUse,
        FuseError::NotEmpty { .. } | FuseError::Mountpoint { .. } | FuseError::Mounted { .. } => {
            ErrorCode::InvalidRequest
        }
        FuseError::NotFuse | FuseError::NotMounted | FuseError::Descriptor(_) => ErrorCode::InvalidRequest,
        FuseError::Mount { .. } | FuseError::Refused { .. } | FuseError::Shared(_) => ErrorCode::NotPermitted,
        _ => ErrorCode::Internal,
    };
    ServiceError::refused(code, error.to_string())
}

/// Writes the list. Lock order: the daemon's own mounts, then the user mounts.
fn write_mounts_file(browser: &Browser, mounts: &[Mount]) {
    let path = browser.host.data_dir.join(MOUNTS_FILE);
    let write = || -> std::io::Result<()> {
        let temp = path.with_extension("tmp");
        let mut file = std::fs::File::create(&temp)?;
        let handed = browser.browse.mounts.handed.lock();
        let own = mounts.iter().map(|mount| mount.mounted.mountpoint());
        for mountpoint in own.chain(handed.iter().flatten().filter_map(UserMount::path_to_save)) {
            use std::os::unix::ffi::OsStrExt;
            file.write_all(mountpoint.as_os_str().as_bytes())?;
            file.write_all(b"\n")?;
        }
        file.sync_all()?;
        std::fs::rename(&temp, &path)
    };
    if let Err(error) = write() {
        tracing::warn!(path = %path.display(), %error, "writing the list of mounts failed: a killed daemon would leave them behind");
    }
}

/// Cleans up the mounts of an earlier daemon, and allows new mounts.
pub(super) fn clean(browser: &Browser) {
    use std::os::unix::ffi::OsStrExt;
    let path = browser.host.data_dir.join(MOUNTS_FILE);
    let note = std::fs::read(&path).unwrap_or_default();
    for line in note.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let mountpoint = Path::new(std::ffi::OsStr::from_bytes(line));
        if let Err(error) = blockd_fuse::clean_stale(mountpoint) {
            tracing::warn!(%error, "cleaning up a mount of an earlier daemon failed");
        }
    }
    *browser.browse.mounts.mounts.lock() = Some(Vec::new());
    *browser.browse.mounts.handed.lock() = Some(Vec::new());
    write_mounts_file(browser, &[]);
}

/// Creates the configured mount, if there is one.
pub(super) fn mount_configured(browser: &Arc<Browser>) {
    let config = &browser.host.settings.browse;
    let Some(mountpoint) = &config.mountpoint else { return };
    if let Err(error) = browser.mount(mountpoint, config.credentials.clone()) {
        tracing::error!(%error, "creating the configured browse mount failed");
    }
}

impl Browser {
    fn mount(
        self: &Arc<Self>,
        mountpoint: &Path,
        credentials: Vec<CredentialRef>,
    ) -> Result<BrowseMount, ServiceError> {
        let runtime = Handle::current();
        for wanted in &credentials {
            runtime.block_on(self.repositories.credential(Some(wanted)))?;
        }
        let invalid = |what: &str| Err(ServiceError::refused(ErrorCode::InvalidRequest, what));
        if !mountpoint.is_absolute() || mountpoint.as_os_str().as_encoded_bytes().contains(&b'\n') {
            return invalid("the mount point must be an absolute path without line breaks");
        }
        let mut mounts = self.browse.mounts.mounts.lock();
        let Some(all) = &mut *mounts else { return Err(ServiceError::Stopping) };
        all.retain(|mount| mount.mounted.is_alive());
        if all.len() >= MAX_MOUNTS {
            return invalid("there are too many mounts: unmount one first (blockctl browse umount)");
        }
        // Checked before any access to the directory: an access to one of the daemon's own mounts would wait
        // for this very thread.
        let taken = |mount: &Mount| mountpoint.starts_with(mount.mounted.mountpoint());
        if all.iter().any(taken) {
            return invalid("snapshots are already mounted there");
        }
        let catalog = Arc::new(BrowseCatalog::new(self, credentials.clone(), runtime));
        let options =
            MountOptions { allow_other: self.host.settings.browse.allow_other, ..MountOptions::default() };
        let mounted =
            blockd_fuse::mount(catalog, mountpoint, options).map_err(|error| mount_failed(&error))?;
        tracing::info!(mountpoint = %mounted.mountpoint().display(), "snapshots can be browsed");
        let mount = Mount { mounted, credentials, since: Timestamp::now() };
        let reply = mount.describe();
        all.push(mount);
        write_mounts_file(self, all);
        Ok(reply)
    }

    /// Mounts snapshots. Blocks.
    ///
    /// # Errors
    /// The directory cannot be used, or the kernel refuses.
    pub fn mount_browse(self: &Arc<Self>, request: &MountBrowse) -> Result<BrowseMount, ServiceError> {
        self.mount(&request.mountpoint, request.cred_ids.clone())
    }

    /// Unmounts a browse mount. Blocks.
    ///
    /// # Errors
    /// There is none, or a process has files open there.
    pub fn unmount_browse(&self, request: &UnmountBrowse) -> Result<Unmounted, ServiceError> {
        let wanted = resolve(&request.mountpoint);
        let mut mounts = self.browse.mounts.mounts.lock();
        let Some(all) = &mut *mounts else { return Err(ServiceError::Stopping) };
        let found = all.iter().position(|mount| mount.mounted.mountpoint() == wanted);
        let Some(at) = found else {
            if let Some(uid) = self.user_of_mount(&wanted) {
                let message = format!(
                    "{} was mounted by user {uid}: only that user and root can unmount it",
                    wanted.display()
                );
                return Err(ServiceError::refused(ErrorCode::NotPermitted, message));
            }
            let message = format!("no snapshots are mounted at {}", wanted.display());
            return Err(ServiceError::refused(ErrorCode::MountNotFound, message));
        };
        all[at].mounted.unmount(request.force).map_err(|error| mount_failed(&error))?;
        let mount = all.remove(at);
        write_mounts_file(self, all);
        Ok(Unmounted { mountpoint: mount.mounted.mountpoint().to_owned() })
    }

    /// Returns the user whose mount is at this path.
    fn user_of_mount(&self, mountpoint: &Path) -> Option<u32> {
        let handed = self.browse.mounts.handed.lock();
        let found = handed.iter().flatten().find(|handed| handed.is_alive() && handed.is_at(mountpoint));
        found.map(UserMount::uid)
    }

    /// Lists the mounts.
    pub fn list_browse(&self) -> BrowseMountList {
        let mut mounts = Vec::new();
        if let Some(own) = &mut *self.browse.mounts.mounts.lock() {
            own.retain(|mount| mount.mounted.is_alive());
            mounts.extend(own.iter().map(Mount::describe));
        }
        if let Some(handed) = &mut *self.browse.mounts.handed.lock() {
            handed.retain(UserMount::is_alive);
            mounts.extend(handed.iter().map(UserMount::describe));
        }
        BrowseMountList { mounts }
    }
}
