//! Crash markers of quiesce operations, from which the next daemon resumes them.
//!
//! A marker is a file in `quiesce/` of the data directory. It is durable before the first command runs or the
//! first filesystem is frozen, and removed after everything is resumed. Its lock is a separate, empty file:
//! the marker is replaced after each post-command, and commands of other users, which hold the lock, must not
//! read it.

use crate::{
    command::Hook,
    filesystems::{Freezer, FreezerError, Thawed},
};
use blockd_api::{
    RuleName,
    quiesce::{QuiesceKind, QuiesceStep},
};
use blockd_files::{self as files, Mount, mounts};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread::Scope,
    time::{Duration, Instant},
};

/// Environment variable that tells post-commands whether the snapshot was taken.
pub(crate) const TAKEN: &str = "BLOCKD_TAKEN";
/// Timeout for a filesystem whose freeze is still in progress.
const FREEZING_TIMEOUT: Duration = Duration::from_secs(600);
/// Polling interval of such a filesystem.
const FREEZING_PAUSE: Duration = Duration::from_millis(100);
/// Timeout of a thaw at the start, after which the post-commands run nevertheless: one hanging filesystem
/// must not block applications and all other freezes.
const THAW_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 30 });
/// Timeout for commands of the previous daemon, which are killed when it dies.
const COMMANDS_TIMEOUT: Duration = Duration::from_secs(60);
/// Polling interval for their end.
const COMMANDS_PAUSE: Duration = Duration::from_millis(10);

/// Marker of a quiesce operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Marker {
    /// Filesystems that are frozen or about to be.
    pub(crate) mounts: Vec<Mounted>,
    /// Post-commands, in order.
    pub(crate) posts: Vec<Post>,
}

/// Post-command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Post {
    /// Rule of the command.
    pub(crate) rule: Option<RuleName>,
    /// Command line.
    pub(crate) command: String,
    /// User.
    pub(crate) user: Option<String>,
    /// Timeout, in seconds.
    pub(crate) timeout_s: u64,
    /// Environment variables.
    pub(crate) env: Vec<(String, String)>,
}

impl Post {
    fn run(&self, lock: Option<&File>) -> QuiesceStep {
        let hook = Hook {
            kind: QuiesceKind::PostCommand,
            rule: self.rule.as_ref(),
            command: &self.command,
            user: self.user.as_deref(),
            timeout: Duration::from_secs(self.timeout_s),
            env: &self.env,
            lock,
            stopping: None,
        };
        hook.run()
    }
}

/// Filesystem that was mounted when the marker was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mounted {
    /// Mount point.
    pub path: PathBuf,
    /// Device number of `stat`, as another filesystem may be mounted at the path later.
    pub device: u64,
}

impl Mounted {
    /// Returns the mount at a path.
    ///
    /// # Errors
    /// The path cannot be read.
    pub fn at(path: PathBuf) -> io::Result<Self> {
        let device = std::fs::metadata(&path)?.dev();
        Ok(Self { path, device })
    }

    /// Returns the mount by a path that leads to it, if there is one.
    pub(crate) fn reachable(&self) -> Self {
        match self.locate(&seen_mounts()) {
            MountLocation::At(place) => place,
            MountLocation::Hidden | MountLocation::Gone => self.clone(),
        }
    }

    /// Locates the mount.
    fn locate(&self, mounts: &[Mount]) -> MountLocation {
        let leads_there = |path: &Path| std::fs::metadata(path).is_ok_and(|found| found.dev() == self.device);
        if leads_there(&self.path) {
            return MountLocation::At(self.clone());
        }
        let places = mount_points_of(mounts, self.device);
        let is_mounted = !places.is_empty();
        match places.into_iter().find(|path| leads_there(path)) {
            Some(path) => MountLocation::At(Self { path, device: self.device }),
            None if is_mounted => MountLocation::Hidden,
            None => MountLocation::Gone,
        }
    }

    /// Returns another path of a mount, or the result if there is none or it is unmounted.
    fn at_other_mount(&self, mounts: &[Mount]) -> Result<Self, ReleaseReason> {
        match self.locate(mounts) {
            MountLocation::At(place) => Ok(place),
            MountLocation::Hidden => Err(ReleaseReason::Hidden),
            MountLocation::Gone => Err(ReleaseReason::Done),
        }
    }

    /// Thaws the filesystem if it is frozen.
    fn thaw(&self, freezer: &dyn Freezer, mounts: &[Mount]) -> ReleaseReason {
        let place = match self.at_other_mount(mounts) {
            Ok(place) => place,
            Err(end) => return end,
        };
        match freezer.thaw(&place) {
            Ok(Thawed::Now) => {
                tracing::warn!(mount = %self.path.display(), "thawed a filesystem that an earlier daemon left frozen");
                ReleaseReason::Done
            }
            Ok(Thawed::Before) => ReleaseReason::NotFrozen,
            // The caller repeats the lookup.
            Err(FreezerError::OtherFilesystem) => ReleaseReason::Hidden,
            Err(error) => {
                tracing::error!(mount = %self.path.display(), %error, "a filesystem may still be frozen: try `fsfreeze --unfreeze`");
                ReleaseReason::Failed
            }
        }
    }

    /// Thaws a filesystem that a killed process may still freeze, since its call hangs in the kernel. Only
    /// one freeze can be in progress: if a freeze succeeds here, no other one is.
    fn make_sure(&self, freezer: &dyn Freezer, mounts: &[Mount]) -> ReleaseReason {
        let place = match self.at_other_mount(mounts) {
            Ok(place) => place,
            Err(end) => return end,
        };
        let Err(error) = freezer.freeze(&place) else { return self.thaw(freezer, mounts) };
        match (&error, error.errno()) {
            (_, Some(Errno::BUSY)) => self.thaw(freezer, mounts),
            (FreezerError::OtherFilesystem, _) => ReleaseReason::NotFrozen,
            (_, Some(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOENT)) => {
                tracing::debug!(mount = %self.path.display(), %error, "the filesystem cannot be frozen, so no other freeze is in progress");
                ReleaseReason::Done
            }
            // These errors say nothing about the filesystem.
            (FreezerError::NoHolder(_) | FreezerError::HolderGone | FreezerError::TooLong { .. }, _) => {
                ReleaseReason::NotFrozen
            }
            (FreezerError::Call(_), _) => {
                tracing::error!(mount = %self.path.display(), %error, "check failed on filesystem: it may still become frozen; try `fsfreeze --unfreeze`");
                ReleaseReason::Failed
            }
        }
    }
}

/// Result of a thaw at the start.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReleaseReason {
    Done,
    NotFrozen,
    /// Mounted, but hidden by other mounts everywhere: it may be frozen.
    Hidden,
    Failed,
}

impl ReleaseReason {
    fn is_waited_for(self) -> bool {
        matches!(self, Self::NotFrozen | Self::Hidden)
    }
}

/// Location of a filesystem.
enum MountLocation {
    /// Reachable by a path.
    At(Mounted),
    /// Mounted, but not reachable.
    Hidden,
    /// Not mounted.
    Gone,
}

/// Returns the mounts visible to this process; none if they cannot be read.
fn seen_mounts() -> Vec<Mount> {
    mounts().unwrap_or_else(|error| {
        tracing::warn!(%error, "reading the mount table failed");
        Vec::new()
    })
}

/// Returns the mount points of a device. Filesystems with several devices have other numbers there and are
/// not found.
fn mount_points_of(mounts: &[Mount], device: u64) -> Vec<PathBuf> {
    let number = (rustix::fs::major(device), rustix::fs::minor(device));
    mounts.iter().filter(|mount| mount.device == number).map(|mount| mount.mount_point.clone()).collect()
}

fn dir(data_dir: &Path) -> PathBuf {
    data_dir.join("quiesce")
}

impl Marker {
    /// Writes the marker durably and returns its path for [`remove`].
    pub(crate) fn write(&self, data_dir: &Path) -> io::Result<PathBuf> {
        let dir = dir(data_dir);
        files::make_dir(&dir)?;
        let path = dir.join(format!("{}.json", uuid::Uuid::new_v4()));
        make_lock(&lock_path(&path))?;
        files::write_atomically(&path, &serde_json::to_vec(self)?)?;
        Ok(path)
    }

    /// Replaces the marker by a shorter one.
    fn rewrite(&self, path: &Path) {
        let written = serde_json::to_vec(self).map_err(io::Error::from);
        if let Err(error) = written.and_then(|bytes| files::write_atomically(path, &bytes)) {
            tracing::warn!(path = %path.display(), %error, "updating the crash marker failed: a post-command may run again after a crash");
        }
    }

    /// Runs each post-command once, also across a crash of this process, and reports each result. A failure
    /// does not stop the others.
    pub(crate) fn run_posts(&mut self, path: &Path, lock: Option<&File>, mut ended: impl FnMut(QuiesceStep)) {
        while !self.posts.is_empty() {
            ended(self.posts[0].run(lock));
            self.posts.remove(0);
            // The marker is removed after the last one, unless a filesystem is still frozen.
            self.rewrite(path);
        }
    }
}

fn lock_path(marker: &Path) -> PathBuf {
    marker.with_extension("lock")
}

fn make_lock(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map(drop)
}

/// Takes the lock of a marker, which commands of this daemon and earlier ones hold. Waits for their end up to
/// a timeout.
pub(crate) fn lock(path: &Path) -> io::Result<File> {
    wait_for_lock(&lock_path(path))
}

fn wait_for_lock(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    let deadline = Instant::now() + COMMANDS_TIMEOUT;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(COMMANDS_PAUSE),
            Err(Errno::WOULDBLOCK) => {
                tracing::warn!(path = %path.display(), "a command of the previous daemon is still running");
                return Ok(file);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Thaws, in the background, filesystems that could not be thawed in time; the post-commands have run.
pub(crate) fn release_later(path: PathBuf, marker: &Marker, freezer: Arc<dyn Freezer>) {
    let ends = marker.mounts.clone().into_iter().map(|mount| (mount, ReleaseReason::NotFrozen)).collect();
    let work = move || settle(vec![Left { path, ends, late: Vec::new() }], &*freezer, &seen_mounts);
    if let Err(error) = std::thread::Builder::new().name("thaw".into()).spawn(work) {
        tracing::error!(%error, "starting the thaw thread failed: the next start of the daemon thaws the frozen filesystems");
    }
}

/// Removes a marker. If that fails, the next start resumes the applications again, which is harmless.
pub(crate) fn remove(path: &Path) {
    remove_file(path);
    // The lock last: the next start removes a lock without a marker.
    remove_file(&lock_path(path));
}

fn remove_file(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "removal failed on crash marker");
    }
}

/// Resumes applications that a dead daemon left quiesced: thaws, then runs the post-commands and reports
/// each. Then it calls `done` and waits for filesystems that cannot be thawed yet. Blocks.
pub(crate) fn release(
    data_dir: &Path,
    freezer: &dyn Freezer,
    ended: &mut dyn FnMut(QuiesceStep),
    done: impl FnOnce(),
) {
    release_among(data_dir, freezer, &seen_mounts, ended, done);
}

fn release_among(
    data_dir: &Path,
    freezer: &dyn Freezer,
    mounts: &dyn Fn() -> Vec<Mount>,
    ended: &mut dyn FnMut(QuiesceStep),
    done: impl FnOnce(),
) {
    let entries = std::fs::read_dir(dir(data_dir)).into_iter().flatten().flatten();
    std::thread::scope(|scope| {
        // Waits come last, so that they do not delay the others.
        let left = entries.filter_map(|entry| Left::release(entry.path(), freezer, &mounts(), scope, ended));
        let (prompt, late): (Vec<Left>, Vec<Left>) = left.partition(|left| left.late.is_empty());
        done();
        settle(prompt, freezer, mounts);
        for mut left in late {
            left.wait_for_thaws();
            settle(vec![left], freezer, mounts);
        }
    });
}

/// Returns true if a dead daemon left markers.
pub(crate) fn is_something_left(data_dir: &Path) -> bool {
    std::fs::read_dir(dir(data_dir)).into_iter().flatten().next().is_some()
}

/// Waits for filesystems that cannot be thawed yet.
fn settle(mut left: Vec<Left>, freezer: &dyn Freezer, seen: &dyn Fn() -> Vec<Mount>) {
    let deadline = Instant::now() + FREEZING_TIMEOUT;
    loop {
        left.retain(|left| !left.is_settled());
        if left.is_empty() || Instant::now() >= deadline {
            return;
        }
        let mounts = seen();
        for (mount, end) in left.iter_mut().flat_map(|left| &mut left.ends) {
            if end.is_waited_for() {
                *end = mount.make_sure(freezer, &mounts);
            }
        }
        if left.iter().any(Left::is_waited_for) {
            std::thread::sleep(FREEZING_PAUSE);
        }
    }
}

/// Returns the step of a hanging thaw at the start.
fn hanging(mount: &Mounted) -> QuiesceStep {
    let timeout_s = THAW_TIMEOUT.as_secs();
    QuiesceStep {
        kind: QuiesceKind::ThawFs,
        target: mount.path.display().to_string(),
        rule_name: None,
        started_at: None,
        duration_micros: timeout_s * 1_000_000,
        exit_status: None,
        error: Some(format!("no response for {timeout_s} s: check the device of the filesystem")),
        output: None,
    }
}

/// Remainder of one marker.
struct Left {
    path: PathBuf,
    ends: Vec<(Mounted, ReleaseReason)>,
    /// Mounts whose thaw hangs, with the channel of its result.
    late: Vec<(Mounted, mpsc::Receiver<ReleaseReason>)>,
}

impl Left {
    /// Thaws, and runs the post-commands. A hanging thaw continues in the background.
    fn release<'scope, 'env>(
        path: PathBuf,
        freezer: &'env dyn Freezer,
        mounts: &[Mount],
        scope: &'scope Scope<'scope, 'env>,
        ended: &mut dyn FnMut(QuiesceStep),
    ) -> Option<Self> {
        if path.extension().is_none_or(|extension| extension != "json") {
            let is_lock = path.extension().is_some_and(|extension| extension == "lock");
            if !is_lock || !path.with_extension("json").exists() {
                remove_file(&path);
            }
            return None;
        }
        let read = std::fs::read(&path);
        let mut marker: Marker = match read
            .and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::from))
        {
            Ok(marker) => marker,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "reading failed on crash marker: quiesced applications and filesystems are unknown");
                return None;
            }
        };
        let (mut ends, mut late) = (Vec::new(), Vec::new());
        for mount in marker.mounts.iter().rev() {
            let (tell, told) = mpsc::channel();
            let (its, mounts) = (mount.clone(), mounts.to_owned());
            let thaw = move || {
                let end = its.thaw(freezer, &mounts);
                if end == ReleaseReason::Hidden {
                    tracing::error!(mount = %its.path.display(), "a filesystem may still be frozen, and another mount hides it: unmount that");
                }
                // Cannot fail: the receiver lives until the end.
                let _ = tell.send(end);
            };
            if let Err(error) = std::thread::Builder::new().name("thaw".into()).spawn_scoped(scope, thaw) {
                tracing::error!(mount = %mount.path.display(), %error, "a filesystem may still be frozen: try `fsfreeze --unfreeze`");
            }
            match told.recv_timeout(THAW_TIMEOUT) {
                Ok(end) => ends.push((mount.clone(), end)),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    ends.push((mount.clone(), ReleaseReason::Failed));
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    tracing::error!(mount = %mount.path.display(), "the thaw of a filesystem hangs: resuming everything else");
                    ended(hanging(mount));
                    late.push((mount.clone(), told));
                }
            }
        }
        if !marker.posts.is_empty() {
            // Waits for commands of the previous daemon.
            let lock = lock(&path);
            for env in marker.posts.iter_mut().map(|post| &mut post.env) {
                // The daemon died before it set the variable for all of them.
                if env.iter().all(|(name, _)| name != TAKEN) {
                    env.push((TAKEN.to_owned(), "unknown".to_owned()));
                }
            }
            let lock = lock.inspect_err(
                |error| tracing::warn!(%error, "locking failed: the post-command runs without its lock"),
            );
            marker.run_posts(&path, lock.as_ref().ok(), ended);
        }
        Some(Self { path, ends, late })
    }

    /// Waits for hanging thaws.
    fn wait_for_thaws(&mut self) {
        for (mount, told) in self.late.drain(..) {
            self.ends.push((mount, told.recv().unwrap_or(ReleaseReason::Failed)));
        }
    }

    fn is_waited_for(&self) -> bool {
        self.ends.iter().any(|(_, end)| end.is_waited_for())
    }

    /// Returns true if there is nothing to wait for; removes the marker if everything is resumed.
    fn is_settled(&self) -> bool {
        if self.ends.iter().all(|(_, end)| *end == ReleaseReason::Done) {
            remove(&self.path);
        }
        !self.is_waited_for()
    }
}

#[cfg(test)]
mod tests;
