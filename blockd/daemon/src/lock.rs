//! Lock that prevents two daemons from using one data directory.
//!
//! It is an advisory lock on `DIR/blockd.lock`: the kernel releases it when the process ends for any reason.
//! The file also holds the owner's process id, for the error message of a second daemon.

use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// Number of further attempts on a held lock, and the delay between them: a child process of a daemon that
/// died between fork and exec holds the lock for a moment.
const MAX_RETRIES: u32 = 20;
const RETRY_DELAY: Duration = Duration::from_millis(10);

/// Reasons why the data directory could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon holds the lock.
    #[error("data directory {} is in use by another blockd{}: stop that one or use another --data-dir", dir.display(), pid_text(.pid))]
    Held {
        /// Data directory.
        dir: PathBuf,
        /// Process id of the other daemon, if known.
        pid: Option<u32>,
    },
    /// The lock file cannot be used.
    #[error("cannot lock {}: {source}", path.display())]
    Io {
        /// Lock file.
        path: PathBuf,
        /// Cause reported by the system.
        source: std::io::Error,
    },
}

impl LockError {
    /// Returns true if a retry can succeed.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Held { .. })
    }
}

fn pid_text(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// Held lock; released when it is dropped or the process ends.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

impl DirLock {
    /// Takes the lock of a data directory.
    ///
    /// # Errors
    /// Another daemon holds it, or the file cannot be created.
    pub fn take(dir: &Path) -> Result<Self, LockError> {
        let path = dir.join("blockd.lock");
        let io = |source: std::io::Error| LockError::Io { path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io)?;
        let mut tries = 0;
        let locked = loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) if tries < MAX_RETRIES => {
                    tries += 1;
                    std::thread::sleep(RETRY_DELAY);
                }
                other => break other,
            }
        };
        match locked {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                // Only for the message: without a readable number the process id is omitted.
                let _ = file.take(32).read_to_string(&mut text);
                return Err(LockError::Held { dir: dir.to_owned(), pid: text.trim().parse().ok() });
            }
            Err(errno) => return Err(io(errno.into())),
        }
        file.set_len(0).map_err(io)?;
        file.rewind().map_err(io)?;
        writeln!(file, "{}", std::process::id()).map_err(io)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_lock_is_refused_and_names_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirLock::take(dir.path()).unwrap();
        let error = DirLock::take(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        assert!(error.contains(dir.path().to_str().unwrap()), "{error}");
        drop(first);
        DirLock::take(dir.path()).unwrap();
    }
}
