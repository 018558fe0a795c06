//! User mounts: a local user mounts and passes the FUSE descriptor to the daemon, which needs no privilege to
//! mount. The mount is in the mount namespace of its user.

use super::{browser::Browser, listing::BrowseCatalog, mount_table::UserMount, mounts::mount_failed};
use crate::foreign_fd::ForeignFd;
use blockd_api::{
    ErrorCode,
    browse::{BrowseMount, HandMount},
};
use blockd_engine::{error::ServiceError, owner::User};
use blockd_fuse::{FuseError, MountOptions, PassedMount};
use jiff::Timestamp;
use std::{path::Path, sync::Arc};
use tokio::runtime::Handle;

/// Maximum length of a mount path, in bytes.
const MAX_PATH_LEN: usize = 4096;

/// Refuses a path that is relative, too long, or not printable.
fn check_mount_path(mountpoint: &Path) -> Result<(), ServiceError> {
    let is_plain = |text: &str| text.len() <= MAX_PATH_LEN && !text.chars().any(char::is_control);
    match mountpoint.is_absolute() && mountpoint.to_str().is_some_and(is_plain) {
        true => Ok(()),
        false => Err(ServiceError::refused(
            ErrorCode::InvalidRequest,
            "mount failed: the mount point must be an absolute path of at most 4096 bytes without control characters",
        )),
    }
}

impl Browser {
    /// Serves a mount that a local user created. Blocks.
    ///
    /// # Errors
    /// The descriptor is not a FUSE mount that waits for its server, a credential is unknown, or there are
    /// too many mounts.
    pub fn serve_passed(
        self: &Arc<Self>,
        request: HandMount,
        descriptor: ForeignFd,
        user: Option<User>,
    ) -> Result<BrowseMount, ServiceError> {
        check_mount_path(&request.mountpoint)?;
        // Checked before any other use: the descriptor may be a file of a filesystem that hangs.
        descriptor
            .as_fd()
            .map_or(Err(FuseError::NotFuse), blockd_fuse::check_passed)
            .map_err(|error| mount_failed(&error))?;
        let descriptor =
            descriptor.into_owned().ok_or(FuseError::NotFuse).map_err(|error| mount_failed(&error))?;
        let Some(User { uid, gid }) = user else {
            return Err(ServiceError::Internal(
                "mount failed: the kernel does not report the user of the connection".to_owned(),
            ));
        };
        let runtime = Handle::current();
        for wanted in &request.credentials {
            runtime.block_on(self.repositories.credential(Some(wanted)))?;
        }
        let mounts = &self.browse.mounts;
        if mounts.handed.lock().is_none() {
            return Err(ServiceError::Stopping);
        }
        let Some(slot) = mounts.quota.take(uid) else {
            let message = "mount failed: too many mounts; unmount one first (blockctl browse umount)";
            return Err(ServiceError::refused(ErrorCode::InvalidRequest, message));
        };
        let catalog = Arc::new(BrowseCatalog::new(self, request.credentials.clone(), runtime));
        let mount = PassedMount { mountpoint: request.mountpoint, uid, gid };
        let shown = mount.mountpoint.display().to_string();
        let on_end = move || {
            drop(slot);
            tracing::info!(mountpoint = shown, uid, "user mount ended");
        };
        let options = MountOptions { allow_other: request.allow_other, ..MountOptions::default() };
        let served = blockd_fuse::serve_passed(catalog, descriptor, mount, options, on_end)
            .map_err(|error| mount_failed(&error))?;
        tracing::info!(mountpoint = %served.mount().mountpoint.display(), uid, "serving a user mount");
        let handed = UserMount { served, credentials: request.credentials, since: Timestamp::now() };
        let reply = handed.describe();
        {
            let mut open = mounts.handed.lock();
            let Some(open) = open.as_mut() else { return Err(ServiceError::Stopping) };
            open.retain(UserMount::is_alive);
            open.push(handed);
        }
        mounts.save(&self.host.data_dir);
        Ok(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_path_with_control_characters_is_refused() {
        let long = format!("/{}", "x".repeat(MAX_PATH_LEN));
        for (path, is_good) in
            [("/home/a/ä b", true), ("a", false), ("/a\nb", false), ("/\u{1b}[2J", false), (&long, false)]
        {
            assert_eq!(check_mount_path(Path::new(path)).is_ok(), is_good, "{path:?}");
        }
    }
}
