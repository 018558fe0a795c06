//! Real filesystems on images and recorded disks, mounted in the namespace of one thread: mounts and their
//! loop devices end with the test.

#![allow(unsafe_code, reason = "mount namespace of one thread")]

use crate::harness::{
    Rng, TIMEOUT,
    process::{Process, both, die_with_parent},
    skip,
};
use rustix::thread::UnshareFlags;
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Size of a filesystem; mkfs.xfs requires at least 300 MiB.
const SIZE_BYTES: u64 = 320 << 20;

/// A filesystem under a data directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filesystem {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
}

/// Returns a missing requirement for mounts of this filesystem, if any.
pub fn missing(filesystem: Filesystem) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("root, which may mount".into());
    }
    for device in ["/dev/fuse", "/dev/loop-control"] {
        if !Path::new(device).exists() {
            return Some(format!("{device}, which the kernel or the container lacks"));
        }
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    missing_tool(filesystem, |tool| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file()))
}

fn missing_tool(filesystem: Filesystem, is_there: impl Fn(&str) -> bool) -> Option<String> {
    let mkfs = match filesystem {
        Filesystem::Ext4 => ("mkfs.ext4", "e2fsprogs"),
        Filesystem::Xfs => ("mkfs.xfs", "xfsprogs"),
    };
    let tools = [("nbdfuse", "libnbd-bin"), ("mount", "mount"), mkfs];
    let missing = tools.into_iter().find(|(tool, _)| !is_there(tool));
    missing.map(|(tool, package)| format!("{tool}: install the Debian package {package}"))
}

/// Moves this thread, and the threads that it starts, to a new mount namespace.
fn private_mounts() -> Result<(), String> {
    // SAFETY: the file descriptor table stays shared; only the path lookup of this thread changes.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
        .map_err(|errno| format!("a mount namespace ({errno})"))?;
    run("mount", &["--make-rprivate", "/"])
}

/// Runs a function in a thread with its own mount namespace; fails if the kernel denies that.
pub fn with_private_mounts(act: impl FnOnce() + Send) -> Result<(), String> {
    let thread = || private_mounts().map(|()| act());
    match std::thread::scope(|scope| scope.spawn(thread).join()) {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Runs a test in a temporary directory and a mount namespace of its own, or prints why it is skipped.
pub fn with_mounts(name: &str, filesystem: Filesystem, act: impl FnOnce(&Path, &mut Rng) + Send) {
    if let Some(what) = missing(filesystem) {
        return skip(name, &what);
    }
    let act = || {
        // In memory if possible.
        let mut builder = tempfile::Builder::new();
        let dir = builder.prefix("bt").tempdir_in("/dev/shm").or_else(|_| builder.tempdir());
        let dir = dir.expect("a temporary directory");
        if let Some(what) = filesystem.mount_failure(dir.path()) {
            return skip(name, &what);
        }
        act(dir.path(), &mut Rng::of_test(name));
    };
    if let Err(what) = with_private_mounts(act) {
        skip(name, &what);
    }
}

/// Hides the sysfs directories of mounted ext4 and XFS filesystems from this thread and the threads that it
/// starts, so that blockd cannot distinguish one mount from the next.
pub fn hide_mount_numbers() {
    for dir in ["/sys/fs/ext4", "/sys/fs/xfs"] {
        must("mount", &["-t", "tmpfs", "none", dir]);
    }
}

fn must(tool: &str, args: &[&str]) {
    if let Err(what) = run(tool, args) {
        panic!("{what}");
    }
}

fn run(tool: &str, args: &[&str]) -> Result<(), String> {
    let mut command = Command::new(tool);
    let output = die_with_parent(command.args(args).stdin(Stdio::null())).output();
    let output = output.map_err(|error| format!("start failed on {tool}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{tool} {args:?}: {}: {}", output.status, both(&output).trim())),
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

impl Filesystem {
    /// Mounts this filesystem once; returns the failure, if any. The thread must have its own mount
    /// namespace.
    pub fn mount_failure(self, dir: &Path) -> Option<String> {
        let image = dir.join("probe.img");
        self.make(&image);
        let mounted = Mount::of(&image, &dir.join("probe")).and_then(Mount::end);
        // The image takes the space of its journal.
        std::fs::remove_file(&image).expect("remove an image");
        mounted.err()
    }

    /// Creates an empty filesystem in a new file.
    pub fn make(self, path: &Path) {
        let file = std::fs::File::create(path).expect("an image");
        file.set_len(SIZE_BYTES).expect("the length of an image");
        match self {
            // A small journal wraps soon. With initialized inodes the kernel writes nothing in the
            // background.
            Self::Ext4 => must(
                "mkfs.ext4",
                &["-q", "-F", "-J", "size=4", "-E", "nodiscard,lazy_itable_init=0", "-N", "1024", text(path)],
            ),
            Self::Xfs => must("mkfs.xfs", &["-q", "-f", "-K", text(path)]),
        }
    }
}

/// A mounted filesystem.
pub struct Mount(PathBuf);

impl Mount {
    /// Mounts the filesystem in a file, which replays the journal.
    pub fn of(image: &Path, at: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(at).map_err(|error| error.to_string())?;
        run("mount", &["-o", "loop,noatime", text(image), text(at)])?;
        Ok(Self(at.to_owned()))
    }

    /// Unmounts it.
    pub fn end(self) -> Result<(), String> {
        self.unmount()
    }

    /// Unmounts with retries: the kernel closes files of io_uring shortly after the end of a process.
    fn unmount(&self) -> Result<(), String> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let unmounted = run("umount", &[text(&self.0)]);
            if unmounted.is_ok() || Instant::now() > deadline {
                return unmounted;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // After `end` nothing is mounted; otherwise the test fails already.
        if rustix::fs::stat(self.0.join(".."))
            .is_ok_and(|above| rustix::fs::stat(&self.0).is_ok_and(|here| here.st_dev != above.st_dev))
        {
            let _ = self.unmount();
        }
    }
}

/// An NBD export as a file.
pub struct ExportFile {
    _nbdfuse: Process,
    dir: PathBuf,
}

impl ExportFile {
    /// Mounts the export as `dir/disk` and waits for it.
    pub fn of(uri: &str, dir: &Path) -> Self {
        std::fs::create_dir_all(dir).expect("a mount point");
        let mut command = Command::new("nbdfuse");
        command.arg(dir.join("disk")).arg(uri).stdin(Stdio::null());
        let mut nbdfuse = Process::start(&mut command);
        nbdfuse.wait_until("nbdfuse to mount the export", || dir.join("disk").exists());
        Self { _nbdfuse: nbdfuse, dir: dir.to_owned() }
    }

    /// The path of the file.
    pub fn path(&self) -> PathBuf {
        self.dir.join("disk")
    }
}

impl Drop for ExportFile {
    fn drop(&mut self) {
        let _ = run("umount", &[text(&self.dir)]);
    }
}

#[test]
fn mount_test_requires_mkfs_of_its_filesystem_only() {
    let without = |absent: &'static str| move |tool: &str| tool != absent;
    assert_eq!(missing_tool(Filesystem::Ext4, without("mkfs.xfs")), None);
    assert_eq!(missing_tool(Filesystem::Xfs, without("mkfs.ext4")), None);
    let missing = missing_tool(Filesystem::Xfs, without("mkfs.xfs")).expect("a missing tool");
    assert!(missing.starts_with("mkfs.xfs: "), "{missing}");
}
