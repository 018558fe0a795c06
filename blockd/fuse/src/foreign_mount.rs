//! Mounts that this process makes for a server in another process.

use crate::{
    FuseError, fusermount,
    mount::{failed, prepare, raise_readahead},
    mountinfo::find_mount,
};
use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

/// Mount options of [`crate::mount`], in the syntax of `fusermount3`.
const OPTIONS: &str = "ro,nosuid,nodev,noatime,fsname=blockd,subtype=blockd";
const OPTIONS_FOR_OTHERS: &str = "allow_other,default_permissions";

/// Mount without a server: access to it blocks. Drop unmounts it.
#[derive(Debug)]
pub struct UnservedMount {
    mountpoint: PathBuf,
    descriptor: Option<OwnedFd>,
    is_kept: bool,
}

impl UnservedMount {
    /// Mounts at an empty directory, which is created if missing, as the user of this process. A mount there
    /// whose server died is unmounted first.
    ///
    /// # Errors
    /// The mount point cannot be used, or the mount is refused.
    pub fn make(mountpoint: &Path, allow_other: bool) -> Result<Self, FuseError> {
        let mountpoint = prepare(mountpoint)?;
        let options = match allow_other {
            true => format!("{OPTIONS},{OPTIONS_FOR_OTHERS}"),
            false => OPTIONS.to_owned(),
        };
        let descriptor = Some(fusermount::mount(&mountpoint, &options)?);
        Ok(Self { mountpoint, descriptor, is_kept: false })
    }

    /// Returns the mount point without links.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Takes the descriptor for the server. This process keeps no copy, so that the mount ends with its
    /// server.
    pub fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptor.take()
    }

    /// Keeps the mount, which another process serves now.
    pub fn keep(mut self) {
        self.is_kept = true;
        // The server may lack the permission.
        raise_readahead(&self.mountpoint);
    }
}

impl Drop for UnservedMount {
    fn drop(&mut self) {
        // Closed first, so that pending requests fail instead of blocking.
        drop(self.descriptor.take());
        if !self.is_kept
            && let Err(error) = fusermount::unmount(&self.mountpoint, true)
        {
            tracing::warn!(%error, "unmount failed on a mount without a server; it stays");
        }
    }
}

/// Unmounts a mount of [`UnservedMount::make`], with or without a server; with `force` also with open files.
///
/// # Errors
/// [`FuseError::Busy`], or it belongs to another user.
pub fn unmount(mountpoint: &Path, force: bool) -> Result<(), FuseError> {
    fusermount::unmount(mountpoint, force)
}

/// Refuses to mount over a mount of snapshots.
pub(crate) fn refuse_second(mountpoint: &Path) -> Result<(), FuseError> {
    match find_mount(mountpoint).map_err(failed("mount table lookup", mountpoint))? {
        Some(_) => Err(FuseError::Mounted { path: mountpoint.to_owned() }),
        None => Ok(()),
    }
}
