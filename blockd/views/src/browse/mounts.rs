//! The browse mount of the configuration, created at the start, and the list of all mounts.

use super::{
    browser::Browser,
    images,
    listing::BrowseCatalog,
    mount_table::{Mount, UserMount, list_path},
};
use blockd_api::{
    ErrorCode, List,
    browse::{BrowseMount, UnmountBrowse, Unmounted},
};
use blockd_engine::{error::ServiceError, settings::BrowseConfig};
use blockd_fuse::{FuseError, MountOptions, resolve};
use jiff::Timestamp;
use std::{path::Path, sync::Arc};
use tokio::runtime::Handle;

/// Converts an error of a mount.
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

/// Cleans up the mounts of an earlier daemon, and allows new mounts.
fn clean(browser: &Browser) {
    use std::os::unix::ffi::OsStrExt;
    let path = list_path(&browser.host.data_dir);
    let list = std::fs::read(&path).unwrap_or_default();
    for line in list.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let mountpoint = Path::new(std::ffi::OsStr::from_bytes(line));
        if let Err(error) = blockd_fuse::clean_stale(mountpoint) {
            tracing::warn!(%error, "cleaning up a mount of an earlier daemon failed");
        }
    }
    *browser.browse.mounts.own.lock() = Some(Vec::new());
    *browser.browse.mounts.handed.lock() = Some(Vec::new());
    browser.browse.mounts.write(&browser.host.data_dir, &[]);
}

/// Creates the configured mount, if there is one.
fn mount_configured(browser: &Arc<Browser>) {
    let config = &browser.host.settings.browse;
    let Some(mountpoint) = &config.mountpoint else { return };
    if let Err(error) = browser.mount(mountpoint, config) {
        tracing::error!(%error, "creating the configured browse mount failed");
    }
}

impl Browser {
    /// Starts the background work: the configured mount, and closing idle snapshots.
    pub fn start_browsing(self: &Arc<Self>) {
        clean(self);
        let this = Arc::clone(self);
        let mounted = tokio::task::spawn_blocking(move || mount_configured(&this));
        let this = Arc::downgrade(self);
        tokio::spawn(async move {
            // Failures are logged by the function itself.
            let _ = mounted.await;
            loop {
                tokio::time::sleep(images::IDLE).await;
                match this.upgrade() {
                    Some(this) => this.browse.tidy(),
                    None => return,
                }
            }
        });
    }

    /// Unmounts everything. Blocks.
    pub fn stop_browsing(&self) {
        self.browse.mounts.stop();
        self.browse.clear();
    }

    fn mount(self: &Arc<Self>, mountpoint: &Path, config: &BrowseConfig) -> Result<(), ServiceError> {
        let runtime = Handle::current();
        let credentials = config.credentials.clone();
        for wanted in &credentials {
            runtime.block_on(self.repositories.credential(Some(wanted)))?;
        }
        if mountpoint.as_os_str().as_encoded_bytes().contains(&b'\n') {
            let message = "mount failed: the mount point must be a path without line breaks";
            return Err(ServiceError::refused(ErrorCode::InvalidRequest, message));
        }
        let mut mounts = self.browse.mounts.own.lock();
        let Some(all) = &mut *mounts else { return Err(ServiceError::Stopping) };
        let catalog = Arc::new(BrowseCatalog::new(self, credentials.clone(), runtime));
        let options = MountOptions { allow_other: config.allow_other, ..MountOptions::default() };
        let mounted =
            blockd_fuse::mount(catalog, mountpoint, options).map_err(|error| mount_failed(&error))?;
        tracing::info!(mountpoint = %mounted.mountpoint().display(), "snapshots mounted");
        all.push(Mount { mounted, credentials, since: Timestamp::now() });
        self.browse.mounts.write(&self.host.data_dir, all);
        Ok(())
    }

    /// Unmounts a browse mount. Blocks.
    ///
    /// # Errors
    /// No snapshots are mounted there, the mount belongs to another user, or a process has open files in it.
    pub fn unmount_browse(&self, request: &UnmountBrowse) -> Result<Unmounted, ServiceError> {
        let wanted = resolve(&request.mountpoint);
        let mut mounts = self.browse.mounts.own.lock();
        let Some(all) = &mut *mounts else { return Err(ServiceError::Stopping) };
        let found = all.iter().position(|mount| mount.mounted.mountpoint() == wanted);
        let Some(at) = found else {
            if let Some(uid) = self.user_of_mount(&wanted) {
                let message = format!(
                    "unmount failed on {}: it belongs to user {uid}; only that user and root can unmount it",
                    wanted.display()
                );
                return Err(ServiceError::refused(ErrorCode::NotPermitted, message));
            }
            let message = format!("unmount failed on {}: no snapshots are mounted there", wanted.display());
            return Err(ServiceError::refused(ErrorCode::MountNotFound, message));
        };
        all[at].mounted.unmount(request.force).map_err(|error| mount_failed(&error))?;
        let mount = all.remove(at);
        self.browse.mounts.write(&self.host.data_dir, all);
        Ok(Unmounted { mountpoint: mount.mounted.mountpoint().to_owned() })
    }

    /// Returns the user whose mount is at this path.
    fn user_of_mount(&self, mountpoint: &Path) -> Option<u32> {
        let handed = self.browse.mounts.handed.lock();
        let found = handed.iter().flatten().find(|handed| handed.is_alive() && handed.is_at(mountpoint));
        found.map(UserMount::uid)
    }

    /// Lists the mounts.
    pub fn list_browse(&self) -> List<BrowseMount> {
        let mut mounts = Vec::new();
        if let Some(own) = &mut *self.browse.mounts.own.lock() {
            own.retain(|mount| mount.mounted.is_alive());
            mounts.extend(own.iter().map(Mount::describe));
        }
        if let Some(handed) = &mut *self.browse.mounts.handed.lock() {
            handed.retain(UserMount::is_alive);
            mounts.extend(handed.iter().map(UserMount::describe));
        }
        mounts.into()
    }
}
