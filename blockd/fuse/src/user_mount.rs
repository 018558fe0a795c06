//! Mounts made by another process that passed its descriptor of `/dev/fuse`.
//!
//! The sender owns the mount: it is in the sender's namespace, the kernel restricts access to the sender or
//! those it admits, and the sender unmounts it. The sender may keep a copy of the descriptor and steal or
//! answer requests of the mount, including those that report closed or forgotten files: so the state of a
//! mount is bounded. It must not block threads here for ever or keep them busy either.

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

/// The number of `/dev/fuse`: character devices are of the major number 10, MISC.
const FUSE_DEVICE: (u32, u32) = (10, 229);
/// `FUSE_DEV_IOC_CLONE`.
const CLONE: Opcode = opcode::read::<u32>(229, 0);
/// Timeout of the kernel's first request, which is pending if the mount exists.
const FIRST_REQUEST_TIMEOUT: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };
/// Timeout of its answer.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// A mount that was handed over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HandedMount {
    /// Mount point as given by the maker.
    pub mountpoint: PathBuf,
    /// User who made it and owns all nodes except files inside images.
    pub uid: u32,
    /// Group of the maker.
    pub gid: u32,
}

/// Served mount of another process. It is served until it is unmounted or this process ends.
#[derive(Debug)]
pub struct Served {
    mount: HandedMount,
    ended: Arc<AtomicBool>,
}

impl Served {
    /// The mount.
    #[must_use]
    pub fn mount(&self) -> &HandedMount {
        &self.mount
    }

    /// Returns true while it is mounted.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.ended.load(Relaxed)
    }

    /// Returns true if the user of this process made it and may unmount it.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.mount.uid == rustix::process::geteuid().as_raw()
    }

    /// Unmounts it, also with open files, if it belongs to the own user and is visible to this process.
    pub fn take_away_own(&self) {
        let mountpoint = &self.mount.mountpoint;
        let is_seen =
            || find_mount(mountpoint).is_ok_and(|seen| seen.is_some_and(|seen| seen.uid == self.mount.uid));
        if self.is_alive()
            && self.is_own()
            && is_seen()
            && let Err(error) = fusermount::unmount(mountpoint, true)
        {
            tracing::warn!(%error, "a mount is left behind");
        }
    }
}

/// Callback on drop, at any end of its owner.
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
/// It is no descriptor of `/dev/fuse`, has no mount, has another server, or would have to be shared with a
/// process that could keep threads here busy.
pub fn serve_handed(
    catalog: Arc<dyn Catalog>,
    descriptor: OwnedFd,
    mount: HandedMount,
    options: MountOptions,
    on_end: impl FnOnce() + Send + 'static,
) -> Result<Served, FuseError> {
    let on_end = OnEnd(Some(on_end));
    check_handed(descriptor.as_fd())?;
    wait_for_kernel(&descriptor)?;
    let Description { descriptor, is_at_hand } = own_description(descriptor, mount.uid)?;
    let tree = Tree::of_owner(catalog, mount.uid, mount.gid);
    let filesystem =
        BrowseFilesystem::new(tree, options.threads, options.allow_other).map_err(FuseError::Thread)?;
    let mut config = Config::default();
    config.n_threads = Some(SESSION_THREADS);
    config.clone_fd = is_at_hand;

    let ended = Arc::new(AtomicBool::new(false));
    let (send, receive) = mpsc::sync_channel(1);
    let flag = Arc::clone(&ended);
    let run = move || {
        let on_end = on_end;
        let flag = OnEnd(Some(move || flag.store(true, Relaxed)));
        // Who may look is the kernel's to say: this process does not know whom the mount is for.
        let session = match Session::from_fd(filesystem, descriptor, SessionACL::All, config) {
            Ok(session) => session,
            Err(error) => {
                // No request may wait any more.
                let _ = send.send(Err(error));
                return;
            }
        };
        if send.send(Ok(())).is_ok()
            && let Err(error) = session.run()
        {
            tracing::debug!(%error, "a mount that was handed over ended");
        }
        drop((flag, on_end));
    };
    std::thread::Builder::new().name("browse-handed".into()).spawn(run).map_err(FuseError::Thread)?;
    match receive.recv_timeout(HANDSHAKE_TIMEOUT) {
        Ok(Ok(())) => Ok(Served { mount, ended }),
        Ok(Err(error)) => Err(FuseError::Descriptor(error)),
        // Another server took the request since it was seen.
        Err(_) => Err(FuseError::NotMounted),
    }
}

/// Refuses what is not `/dev/fuse`, without asking the filesystem that it is on, which may never answer.
///
/// # Errors
/// It is something else.
pub fn check_handed(descriptor: BorrowedFd<'_>) -> Result<(), FuseError> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(descriptor, "", flags, StatxFlags::TYPE)
        .map_err(|error| FuseError::Descriptor(error.into()))?;
    let number = (found.stx_rdev_major, found.stx_rdev_minor);
    let is_fuse =
        FileType::from_raw_mode(found.stx_mode.into()) == FileType::CharacterDevice && number == FUSE_DEVICE;
    if is_fuse { Ok(()) } else { Err(FuseError::NotFuse) }
}

/// Waits for the request with which the kernel begins.
fn wait_for_kernel(descriptor: &OwnedFd) -> Result<(), FuseError> {
    let mut polled = [PollFd::new(descriptor, PollFlags::IN)];
    let found = rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&FIRST_REQUEST_TIMEOUT)));
    found.map_err(|error| FuseError::Descriptor(error.into()))?;
    let events = polled[0].revents();
    // An error stands for nothing that is mounted, and for what is mounted no more.
    match events.contains(PollFlags::IN) && !events.contains(PollFlags::ERR) {
        true => Ok(()),
        false => Err(FuseError::NotMounted),
    }
}

/// A descriptor with which a mount is served.
struct Description {
    descriptor: OwnedFd,
    /// This process can open `/dev/fuse`, and so have a description for each thread.
    is_at_hand: bool,
}

/// Returns a descriptor of the same mount that shares no flags with the sender's: in non-blocking mode,
/// threads here would poll without end. It opens `/dev/fuse`, or the passed device if that is not visible. If
/// both are refused, the descriptor is used as it is if its sender has full power over this process anyway.
///
/// # Errors
/// It belongs to another user, or cannot be used.
fn own_description(descriptor: OwnedFd, uid: u32) -> Result<Description, FuseError> {
    let error = match fresh_description("/dev/fuse", &descriptor) {
        Ok(descriptor) => return Ok(Description { descriptor, is_at_hand: true }),
        Err(error) => error,
    };
    // It was seen to be that device, and no other.
    let handed = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    if let Ok(descriptor) = fresh_description(&handed, &descriptor) {
        return Ok(Description { descriptor, is_at_hand: false });
    }
    if uid != 0 && uid != rustix::process::geteuid().as_raw() {
        return Err(FuseError::Shared(error.into()));
    }
    tracing::debug!(%error, "a descriptor that was handed over is shared");
    let shared = || -> rustix::io::Result<()> {
        let flags = rustix::fs::fcntl_getfl(&descriptor)?;
        rustix::fs::fcntl_setfl(&descriptor, flags - OFlags::NONBLOCK)
    };
    shared().map_err(|error| FuseError::Descriptor(error.into()))?;
    Ok(Description { descriptor, is_at_hand: false })
}

/// Opens the device there, and has that belong to the mount of a descriptor.
fn fresh_description(path: &str, descriptor: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let own = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    clone_into(&own, descriptor)?;
    Ok(own)
}

/// Has a fresh descriptor of `/dev/fuse` belong to the mount of another one.
fn clone_into(own: &OwnedFd, descriptor: &OwnedFd) -> rustix::io::Result<()> {
    // A descriptor that is open is not negative.
    let number = descriptor.as_fd().as_raw_fd().cast_unsigned();
    // SAFETY: FUSE_DEV_IOC_CLONE reads one u32, the number of a descriptor, from where its argument points,
    // and writes nothing.
    let request = unsafe { Setter::<CLONE, u32>::new(number) };
    // SAFETY: the request is one that `/dev/fuse` understands, which `own` was opened as.
    unsafe { rustix::ioctl::ioctl(own, request) }
}
