//! Real filesystems on images and recorded disks, in a mount namespace of one thread: no mount outlives the
//! test, and loop devices end with their mounts.

use crate::harness::{
    Rng, announce,
    process::{both, die_with_parent},
};
use rustix::thread::UnshareFlags;
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// The least that mkfs.xfs makes is 300 MiB.
const SIZE_BYTES: u64 = 320 << 20;

/// A filesystem under a data directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filesystem {
    /// ext4 as mke2fs makes it.
    Ext4,
    /// XFS as mkfs.xfs makes it.
    Xfs,
}

/// Returns a missing requirement for mounts, if any.
pub fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("root: only it may mount".into());
    }
    for device in ["/dev/fuse", "/dev/loop-control"] {
        if !Path::new(device).exists() {
            return Some(format!("{device}: the kernel or the container has none"));
        }
    }
    let tools =
        [("nbdfuse", "libnbd-bin"), ("mount", "mount"), ("mkfs.ext4", "e2fsprogs"), ("mkfs.xfs", "xfsprogs")];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |tool: &str| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file());
    let missing = tools.into_iter().find(|(tool, _)| !is_there(tool));
    missing.map(|(tool, package)| format!("{tool}: install the Debian package {package}"))
}

/// Gives this thread, and those that it starts, mounts of their own; why not, if that is not allowed.
pub fn private_mounts() -> Result<(), String> {
    // SAFETY: the table of open files stays shared; only what paths mean changes, and for this thread alone.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
        .map_err(|errno| format!("a mount namespace: {errno}"))?;
    run("mount", &["--make-rprivate", "/"])
}

/// Runs a test in a thread with mounts of its own, in a temporary directory, or prints why it cannot.
pub fn with_mounts(name: &str, filesystem: Filesystem, act: impl FnOnce(&Path, &mut Rng) + Send) {
    let skip = |what: String| announce(&format!("{name} is SKIPPED: it wants {what}"));
    if let Some(what) = missing() {
        return skip(what);
    }
    let act = || {
        if let Err(what) = private_mounts() {
            return skip(what);
        }
        // In memory where there is such a place.
        let mut builder = tempfile::Builder::new();
        let dir = builder.prefix("bt").tempdir_in("/dev/shm").or_else(|_| builder.tempdir());
        let dir = dir.expect("a temporary directory");
        if let Some(what) = filesystem.why_not(dir.path()) {
            return skip(what);
        }
        act(dir.path(), &mut Rng::of_test(name));
    };
    if let Err(panic) = std::thread::scope(|scope| scope.spawn(act).join()) {
        std::panic::resume_unwind(panic);
    }
}

/// Takes the folders away in which ext4 and XFS show what is mounted: who wants to tell one mount from the
/// next cannot. For this thread and those that it starts.
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
    let output = output.map_err(|error| format!("cannot start {tool}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{tool} {args:?}: {}: {}", output.status, both(&output).trim())),
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

impl Filesystem {
    /// Returns the reason why this filesystem cannot be mounted here, if any. The thread must have its own
    /// mount namespace.
    pub fn why_not(self, dir: &Path) -> Option<String> {
        let image = dir.join("probe.img");
        self.make(&image);
        let mounted = Mount::of(&image, &dir.join("probe")).and_then(Mount::end);
        // It takes the space of its journal.
        std::fs::remove_file(&image).expect("remove an image");
        mounted.err()
    }

    /// Makes an empty filesystem in a new file.
    pub fn make(self, path: &Path) {
        let file = std::fs::File::create(path).expect("an image");
        file.set_len(SIZE_BYTES).expect("the length of an image");
        match self {
            // A small journal wraps, and its inodes are there from the start, so that nothing is written
            // behind our back.
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
    /// Mounts the filesystem in a file, which replays its journal.
    pub fn of(image: &Path, at: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(at).map_err(|error| error.to_string())?;
        run("mount", &["-o", "loop,noatime", text(image), text(at)])?;
        Ok(Self(at.to_owned()))
    }

    /// Unmounts it.
    pub fn end(self) -> Result<(), String> {
        self.unmount()
    }

    /// The kernel closes the last files of a process that used io_uring a little after its end.
    fn unmount(&self) -> Result<(), String> {
        let mut last = Ok(());
        for _ in 0..500 {
            last = run("umount", &[text(&self.0)]);
            if last.is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        last
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // It was ended, or the test fails for a better reason.
        if rustix::fs::stat(self.0.join(".."))
            .is_ok_and(|above| rustix::fs::stat(&self.0).is_ok_and(|here| here.st_dev != above.st_dev))
        {
            let _ = self.unmount();
        }
    }
}

/// An NBD export as a file.
pub struct ExportFile {
    child: Child,
    dir: PathBuf,
}

impl ExportFile {
    /// Presents the export as `dir/disk`.
    pub fn of(uri: &str, dir: &Path) -> Self {
        std::fs::create_dir_all(dir).expect("a mount point");
        let mut command = Command::new("nbdfuse");
        command.arg(dir.join("disk")).arg(uri).stdin(Stdio::null());
        let mut file =
            Self { child: die_with_parent(&mut command).spawn().expect("nbdfuse"), dir: dir.to_owned() };
        crate::harness::wait_for("nbdfuse to present the disk", || {
            let ended = file.child.try_wait().expect("wait");
            assert!(ended.is_none(), "nbdfuse ended with {ended:?}");
            file.path().exists().then_some(())
        });
        file
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.dir.join("disk")
    }
}

impl Drop for ExportFile {
    fn drop(&mut self) {
        let _ = run("umount", &[text(&self.dir)]);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
