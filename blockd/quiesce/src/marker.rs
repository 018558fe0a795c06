//! Crash markers of quiesce operations, from which the next daemon resumes them.
//!
//! A marker is a file in `quiesce/` of the data directory. It is durable before the first command runs or the
//! first filesystem is frozen, and removed after everything is resumed. Its lock is a separate, empty file:
//! the marker is replaced after each post-command, and commands of other users, which hold the lock, must not
//! read it.

use crate::{command::Hook, mounted::Mounted};
use blockd_api::{
    RuleName,
    quiesce::{QuiesceKind, QuiesceStep},
};
use blockd_files as files;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Environment variable that tells post-commands whether the snapshot was taken.
pub(crate) const TAKEN: &str = "BLOCKD_TAKEN";
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

pub(crate) fn dir(data_dir: &Path) -> PathBuf {
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

pub(crate) fn lock_path(marker: &Path) -> PathBuf {
    marker.with_extension("lock")
}

pub(crate) fn make_lock(path: &Path) -> io::Result<()> {
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

/// Removes a marker. If that fails, the next start resumes the applications again, which is harmless.
pub(crate) fn remove(path: &Path) {
    remove_file(path);
    // The lock last: the next start removes a lock without a marker.
    remove_file(&lock_path(path));
}

pub(crate) fn remove_file(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "removal failed on crash marker");
    }
}

/// Returns true if a dead daemon left markers.
pub(crate) fn is_something_left(data_dir: &Path) -> bool {
    std::fs::read_dir(dir(data_dir)).into_iter().flatten().next().is_some()
}
