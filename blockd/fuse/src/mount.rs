//! Mount and unmount of the tree.
//!
//! `fusermount3` does both for an unprivileged process. A mount whose server died returns `ENOTCONN` until it
//! is unmounted: a restarted server calls [`clean_stale`].

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

/// Subtype of the mount: its type is `fuse.` and this.
const SUBTYPE: &str = "blockd";
/// Threads that take requests from the kernel.
pub(crate) const SESSION_THREADS: usize = 2;
/// Readahead of the kernel, where it can be set: the size of one request.
const READAHEAD_KIB: u32 = 1024;

/// Mount options.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MountOptions {
    /// Other users may access it, by the shown modes and owners. Except for root, this needs
    /// `user_allow_other` in `/etc/fuse.conf`.
    pub allow_other: bool,
    /// Threads for requests that wait for a store.
    pub threads: usize,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self { allow_other: false, threads: 8 }
    }
}

/// Mounted tree. Drop unmounts it, also with open files.
#[derive(Debug)]
pub struct Mounted {
    mountpoint: PathBuf,
    session: Option<BackgroundSession>,
    /// It is unmounted already, perhaps with open files.
    gone: AtomicBool,
}

pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FuseError {
    move |source| FuseError::Mountpoint { action, path: path.to_owned(), source }
}

/// Mounts the tree of a catalog at an empty directory, which is made if it is not there.
///
/// # Errors
/// The directory cannot be used, or the mount is refused.
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
    // What fusermount3 says ends with the line.
    let refused = |error: io::Error| {
        let source = io::Error::new(error.kind(), error.to_string().trim().replace('\n', "; "));
        FuseError::Mount { path: mountpoint.clone(), source }
    };
    let session = Session::new(filesystem, &mountpoint, &config).map_err(refused)?;
    let session = session.spawn().map_err(refused)?;
    let mounted =
        Mounted { mountpoint: mountpoint.clone(), session: Some(session), gone: AtomicBool::new(false) };
    raise_readahead(&mountpoint);
    Ok(mounted)
}

/// Makes sure of an empty directory to mount at, and says where it is without links. A mount there whose
/// process died is taken away.
pub(crate) fn prepare(mountpoint: &Path) -> Result<PathBuf, FuseError> {
    clean_stale(mountpoint)?;
    // First, as it may be one that is not to be looked into.
    refuse_second(&resolve(mountpoint))?;
    fs::create_dir_all(mountpoint).map_err(failed("make", mountpoint))?;
    let mountpoint = mountpoint.canonicalize().map_err(failed("find", mountpoint))?;
    refuse_second(&mountpoint)?;
    if fs::read_dir(&mountpoint).map_err(failed("list", &mountpoint))?.next().is_some() {
        return Err(FuseError::NotEmpty { path: mountpoint });
    }
    Ok(mountpoint)
}

/// Has the kernel ask for more at once, where that may be set: it begins with 128 KiB.
pub(crate) fn raise_readahead(mountpoint: &Path) {
    let Ok(meta) = fs::metadata(mountpoint) else { return };
    let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = fs::write(&path, READAHEAD_KIB.to_string()) {
        tracing::debug!(%path, %error, "the kernel's readahead stays as it is");
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
        !self.gone.load(Relaxed) && !self.session.as_ref().is_none_or(ended)
    }

    /// Unmounts it; with `force` also with open files, which return errors then.
    ///
    /// # Errors
    /// [`FuseError::Busy`]; the mount is unchanged then.
    pub fn unmount(&self, force: bool) -> Result<(), FuseError> {
        if !self.is_alive() {
            return Ok(());
        }
        fusermount::unmount(&self.mountpoint, force)?;
        self.gone.store(true, Relaxed);
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.is_alive()
            && let Err(error) = fusermount::unmount(&self.mountpoint, true)
        {
            tracing::warn!(%error, "a mount is left behind");
        }
        // Not joined: its threads end with the last open file.
        drop(self.session.take());
    }
}

/// Takes away a mount whose process died; says whether there was one.
///
/// # Errors
/// It cannot be taken away.
pub fn clean_stale(mountpoint: &Path) -> Result<bool, FuseError> {
    // Not stat: the kernel may still know the answer to that.
    match rustix::fs::statfs(mountpoint) {
        Err(Errno::NOTCONN) => {
            fusermount::unmount(mountpoint, true)?;
            tracing::info!(mountpoint = %mountpoint.display(), "a mount that an earlier process left was taken away");
            Ok(true)
        }
        _ => Ok(false),
    }
}
