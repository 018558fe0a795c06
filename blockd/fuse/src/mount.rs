//! Mount and unmount of the tree.
//!
//! `fusermount3` does both for an unprivileged process. A mount whose server died returns `ENOTCONN` until it
//! is unmounted, which [`clean_stale`] does for a restarted server.

use crate::{
    Catalog, FuseError, filesystem::BrowseFilesystem, foreign_mount::refuse_second, fusermount,
    mountinfo::resolve, tree::Tree,
};
use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use rustix::io::Errno;
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

/// Subtype of the mount, whose type is `fuse.blockd`.
const SUBTYPE: &str = "blockd";
/// Number of threads that receive requests from the kernel.
pub(crate) const SESSION_THREADS: usize = 2;
/// Readahead of the kernel, if permitted: the size of one request.
const READAHEAD_KIB: u32 = 1024;

/// Mount options.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MountOptions {
    /// Admits other users, according to modes, owners and access lists. Users other than root need
    /// `user_allow_other` in `/etc/fuse.conf`.
    pub allow_other: bool,
    /// Number of threads for requests that wait for a store.
    pub threads: usize,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self { allow_other: false, threads: 8 }
    }
}

/// Mounted tree. Drop unmounts it, even with open files.
#[derive(Debug)]
pub struct Mounted {
    mountpoint: PathBuf,
    session: Option<BackgroundSession>,
    /// [`Mounted::unmount`] succeeded; the session may still have open files.
    is_unmounted: AtomicBool,
}

pub(crate) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FuseError {
    move |source| FuseError::Mountpoint { operation, path: path.to_owned(), source }
}

/// Mounts the tree of a catalog at an empty directory, which is created if missing.
///
/// # Errors
/// The mount point cannot be used, or the mount is refused.
pub fn mount(
    catalog: Arc<dyn Catalog>,
    mountpoint: &Path,
    options: MountOptions,
) -> Result<Mounted, FuseError> {
    let mountpoint = prepare(mountpoint)?;
    let filesystem = BrowseFilesystem::new(Tree::new(catalog), options.threads, options.allow_other);
    let filesystem = filesystem.map_err(FuseError::Thread)?;
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
        MountOption::FSName("blockd".into()),
        MountOption::Subtype(SUBTYPE.into()),
    ];
    if options.allow_other {
        config.acl = SessionACL::All;
        config.mount_options.push(MountOption::DefaultPermissions);
    }
    config.n_threads = Some(SESSION_THREADS);
    config.clone_fd = true;
    // The output of fusermount3 may have several lines.
    let refused = |error: io::Error| {
        let source = io::Error::new(error.kind(), error.to_string().trim().replace('\n', "; "));
        FuseError::Mount { path: mountpoint.clone(), source }
    };
    let session = Session::new(filesystem, &mountpoint, &config).map_err(refused)?;
    let session = session.spawn().map_err(refused)?;
    let mounted = Mounted {
        mountpoint: mountpoint.clone(),
        session: Some(session),
        is_unmounted: AtomicBool::new(false),
    };
    raise_readahead(&mountpoint);
    Ok(mounted)
}

/// Creates the mount point if missing, unmounts a mount there whose server died, checks that the directory is
/// empty, and returns its path without symbolic links.
pub(crate) fn prepare(mountpoint: &Path) -> Result<PathBuf, FuseError> {
    clean_stale(mountpoint)?;
    // Checked before any access to the directory, which could block on a mount without a server.
    refuse_second(&resolve(mountpoint))?;
    fs::create_dir_all(mountpoint).map_err(failed("directory creation", mountpoint))?;
    let mountpoint = mountpoint.canonicalize().map_err(failed("path resolution", mountpoint))?;
    refuse_second(&mountpoint)?;
    if fs::read_dir(&mountpoint).map_err(failed("directory listing", &mountpoint))?.next().is_some() {
        return Err(FuseError::NotEmpty { path: mountpoint });
    }
    Ok(mountpoint)
}

/// Raises the kernel's readahead from its default of 128 KiB, if permitted.
pub(crate) fn raise_readahead(mountpoint: &Path) {
    let Ok(meta) = fs::metadata(mountpoint) else { return };
    let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = fs::write(&path, READAHEAD_KIB.to_string()) {
        tracing::debug!(%path, %error, "setting the kernel's readahead failed");
    }
}

impl Mounted {
    /// Returns the mount point.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Returns true while it is mounted; other processes may unmount it.
    pub fn is_alive(&self) -> bool {
        let ended = |session: &BackgroundSession| session.guard.is_finished();
        !self.is_unmounted.load(Relaxed) && !self.session.as_ref().is_none_or(ended)
    }

    /// Unmounts; with `force` even with open files, whose reads then fail.
    ///
    /// # Errors
    /// [`FuseError::Busy`] with open files, or `fusermount3` failed; the mount stays.
    pub fn unmount(&self, force: bool) -> Result<(), FuseError> {
        if !self.is_alive() {
            return Ok(());
        }
        fusermount::unmount(&self.mountpoint, force)?;
        self.is_unmounted.store(true, Relaxed);
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.is_alive()
            && let Err(error) = fusermount::unmount(&self.mountpoint, true)
        {
            tracing::warn!(%error, "unmount failed at the end of the server; the mount stays");
        }
        // Not joined: the threads of the session end with the last open file.
        drop(self.session.take());
    }
}

/// Unmounts a mount whose server died. Returns true if there was one.
///
/// # Errors
/// The unmount failed.
pub fn clean_stale(mountpoint: &Path) -> Result<bool, FuseError> {
    // Not stat, whose reply the kernel may have cached.
    match rustix::fs::statfs(mountpoint) {
        Err(Errno::NOTCONN) => {
            fusermount::unmount(mountpoint, true)?;
            tracing::info!(mountpoint = %mountpoint.display(), "unmounted the mount of an earlier process");
            Ok(true)
        }
        _ => Ok(false),
    }
}
