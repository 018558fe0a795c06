//! Mounts made by another process that passed its descriptor of `/dev/fuse`.
//!
//! The sender owns the mount: it is in the sender's mount namespace, the kernel restricts access to the
//! sender or the users that its mount options admit, and the sender unmounts it. The sender may keep a copy
//! of the descriptor and take or answer requests, including `RELEASE` and `FORGET`, so the state of a mount
//! is bounded. The sender also must not be able to block threads of this process or keep them busy.

#![allow(unsafe_code, reason = "ioctl of a passed descriptor")]

use crate::{
    Catalog, FuseError, MountOptions, filesystem::BrowseFilesystem, fusermount, mount::SESSION_THREADS,
    mountinfo::find_mount, tree::Tree,
};
use fuser::{Config, Session, SessionACL};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::{AtFlags, FileType, Mode, OFlags, StatxFlags},
    ioctl::{Opcode, Setter, opcode},
};
use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

/// Device number of `/dev/fuse`; major number 10 is MISC.
const FUSE_DEVICE: (u32, u32) = (10, 229);
/// `FUSE_DEV_IOC_CLONE`.
const CLONE: Opcode = opcode::read::<u32>(229, 0);
/// Timeout of the kernel's `INIT` request, which is pending if the mount exists.
const FIRST_REQUEST_TIMEOUT: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };
/// Timeout of the session's reply to it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Mount whose descriptor was passed by another process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PassedMount {
    /// Mount point as reported by the sender.
    pub mountpoint: PathBuf,
    /// User ID of the sender, who owns all nodes except files inside images.
    pub uid: u32,
    /// Group ID of the sender.
    pub gid: u32,
}

/// Served mount of another process. It is served until it is unmounted or this process ends.
#[derive(Debug)]
pub struct Served {
    mount: PassedMount,
    ended: Arc<AtomicBool>,
}

impl Served {
    /// Returns the mount.
    #[must_use]
    pub fn mount(&self) -> &PassedMount {
        &self.mount
    }

    /// Returns true while it is mounted.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.ended.load(Relaxed)
    }

    /// Returns true if it belongs to the user of this process, who may unmount it.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.mount.uid == rustix::process::geteuid().as_raw()
    }

    /// Unmounts it, even with open files, if it belongs to the user of this process and is in its namespace.
    pub fn unmount_own(&self) {
        let mountpoint = &self.mount.mountpoint;
        let is_seen =
            || find_mount(mountpoint).is_ok_and(|seen| seen.is_some_and(|seen| seen.uid == self.mount.uid));
        if self.is_alive()
            && self.is_own()
            && is_seen()
            && let Err(error) = fusermount::unmount(mountpoint, true)
        {
            tracing::warn!(%error, "unmount failed on a user mount; it stays");
        }
    }
}

/// Callback on drop.
struct OnEnd<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for OnEnd<F> {
    fn drop(&mut self) {
        if let Some(ended) = self.0.take() {
            ended();
        }
    }
}

/// Serves a catalog through a descriptor of a new mount. May block for some seconds. `on_end` is called when
/// all readers of the descriptor have ended, also after an error.
///
/// # Errors
/// The descriptor is not `/dev/fuse`, has no mount, has another server, or would share its flags with a
/// process of another user.
pub fn serve_passed(
    catalog: Arc<dyn Catalog>,
    descriptor: OwnedFd,
    mount: PassedMount,
    options: MountOptions,
    on_end: impl FnOnce() + Send + 'static,
) -> Result<Served, FuseError> {
    let on_end = OnEnd(Some(on_end));
    check_passed(descriptor.as_fd())?;
    wait_for_kernel(&descriptor)?;
    let Description { descriptor, can_clone } = own_description(descriptor, mount.uid)?;
    let tree = Tree::of_owner(catalog, mount.uid, mount.gid);
    let filesystem =
        BrowseFilesystem::new(tree, options.threads, options.allow_other).map_err(FuseError::Thread)?;
    let mut config = Config::default();
    config.n_threads = Some(SESSION_THREADS);
    config.clone_fd = can_clone;

    let ended = Arc::new(AtomicBool::new(false));
    let (send, receive) = mpsc::sync_channel(1);
    let flag = Arc::clone(&ended);
    let run = move || {
        let on_end = on_end;
        let flag = OnEnd(Some(move || flag.store(true, Relaxed)));
        // The kernel checks access by the mount options, which this process does not know.
        let session = match Session::from_fd(filesystem, descriptor, SessionACL::All, config) {
            Ok(session) => session,
            Err(error) => {
                // The caller may have given up.
                let _ = send.send(Err(error));
                return;
            }
        };
        if send.send(Ok(())).is_ok()
            && let Err(error) = session.run()
        {
            tracing::debug!(%error, "session of a user mount ended");
        }
        drop((flag, on_end));
    };
    std::thread::Builder::new().name("browse-handed".into()).spawn(run).map_err(FuseError::Thread)?;
    match receive.recv_timeout(HANDSHAKE_TIMEOUT) {
        Ok(Ok(())) => Ok(Served { mount, ended }),
        Ok(Err(error)) => Err(FuseError::Descriptor(error)),
        // Another process took the INIT request first.
        Err(_) => Err(FuseError::NotMounted),
    }
}

/// Checks that a descriptor is `/dev/fuse`, without a request to the filesystem of the file, which may hang.
///
/// # Errors
/// It is another file.
pub fn check_passed(descriptor: BorrowedFd<'_>) -> Result<(), FuseError> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(descriptor, "", flags, StatxFlags::TYPE)
        .map_err(|error| FuseError::Descriptor(error.into()))?;
    let number = (found.stx_rdev_major, found.stx_rdev_minor);
    let is_fuse =
        FileType::from_raw_mode(found.stx_mode.into()) == FileType::CharacterDevice && number == FUSE_DEVICE;
    if is_fuse { Ok(()) } else { Err(FuseError::NotFuse) }
}

/// Waits for the kernel's `INIT` request.
fn wait_for_kernel(descriptor: &OwnedFd) -> Result<(), FuseError> {
    let mut polled = [PollFd::new(descriptor, PollFlags::IN)];
    let found = rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&FIRST_REQUEST_TIMEOUT)));
    found.map_err(|error| FuseError::Descriptor(error.into()))?;
    let events = polled[0].revents();
    // POLLERR means that the descriptor has no mount, or no longer has one.
    match events.contains(PollFlags::IN) && !events.contains(PollFlags::ERR) {
        true => Ok(()),
        false => Err(FuseError::NotMounted),
    }
}

/// Descriptor that serves a mount.
struct Description {
    descriptor: OwnedFd,
    /// This process can open `/dev/fuse`, so that each thread can have its own descriptor.
    can_clone: bool,
}

/// Returns a descriptor of the same mount that shares no flags with the sender's: if the sender set
/// non-blocking mode, threads here would busy-poll. Opens `/dev/fuse`, or the passed device if that path is
/// not available. If both fail, the passed descriptor itself is used, but only for root and the user of this
/// process, who control this process anyway.
///
/// # Errors
/// The descriptor belongs to another user, or cannot be used.
fn own_description(descriptor: OwnedFd, uid: u32) -> Result<Description, FuseError> {
    let error = match fresh_description("/dev/fuse", &descriptor) {
        Ok(descriptor) => return Ok(Description { descriptor, can_clone: true }),
        Err(error) => error,
    };
    // Safe to open: the caller has checked that it is /dev/fuse.
    let passed = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    if let Ok(descriptor) = fresh_description(&passed, &descriptor) {
        return Ok(Description { descriptor, can_clone: false });
    }
    if uid != 0 && uid != rustix::process::geteuid().as_raw() {
        return Err(FuseError::Shared(error.into()));
    }
    tracing::debug!(%error, "sharing the descriptor of a user mount with its sender");
    let shared = || -> rustix::io::Result<()> {
        let flags = rustix::fs::fcntl_getfl(&descriptor)?;
        rustix::fs::fcntl_setfl(&descriptor, flags - OFlags::NONBLOCK)
    };
    shared().map_err(|error| FuseError::Descriptor(error.into()))?;
    Ok(Description { descriptor, can_clone: false })
}

/// Opens the device at a path, and clones the mount of a descriptor into it.
fn fresh_description(path: &str, descriptor: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let own = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    clone_into(&own, descriptor)?;
    Ok(own)
}

/// Attaches a newly opened descriptor of `/dev/fuse` to the mount of another one (`FUSE_DEV_IOC_CLONE`).
fn clone_into(own: &OwnedFd, descriptor: &OwnedFd) -> rustix::io::Result<()> {
    // An open descriptor is not negative.
    let number = descriptor.as_fd().as_raw_fd().cast_unsigned();
    // SAFETY: FUSE_DEV_IOC_CLONE reads one u32, the number of a descriptor, through its argument pointer, and
    // writes nothing.
    let request = unsafe { Setter::<CLONE, u32>::new(number) };
    // SAFETY: `/dev/fuse`, which `own` refers to, implements the request.
    unsafe { rustix::ioctl::ioctl(own, request) }
}
