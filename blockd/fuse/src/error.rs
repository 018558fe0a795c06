//! Errors of mounts.

use std::{io, path::PathBuf};

/// Error of a mount or unmount.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FuseError {
    /// The directory to mount at cannot be used.
    #[error("cannot {action} {}: {source}", path.display())]
    Mountpoint {
        /// Operation.
        action: &'static str,
        /// The directory.
        path: PathBuf,
        /// System error.
        source: io::Error,
    },
    /// There are files in the directory, which a mount would hide.
    #[error("{} is not empty: choose an empty directory, or one that does not exist yet", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// Snapshots are mounted there already.
    #[error("snapshots are mounted at {} already", path.display())]
    Mounted {
        /// The directory.
        path: PathBuf,
    },
    /// `fusermount3` refused to mount.
    #[error("cannot mount at {}: {said}", path.display())]
    Refused {
        /// The directory.
        path: PathBuf,
        /// Message.
        said: String,
    },
    /// The descriptor is not of `/dev/fuse`.
    #[error("what was handed over is no descriptor of /dev/fuse")]
    NotFuse,
    /// The descriptor has no mount that waits for a server.
    #[error("nothing that waits to be served is mounted with the descriptor that was handed over")]
    NotMounted,
    /// The descriptor that was handed over does not work.
    #[error("the descriptor that was handed over cannot be used: {0}")]
    Descriptor(io::Error),
    /// The sender of the descriptor would share its flags, and this process may not open its own.
    #[error(
        "mounts of other users than root are served only through a descriptor of blockd's own, and it cannot open /dev/fuse ({0}): give its unit DeviceAllow=/dev/fuse rw, and its user the right to open it"
    )]
    Shared(io::Error),
    /// The kernel or `fusermount3` refused.
    #[error("cannot mount at {}: {source}; fusermount3 (Debian package fuse3) and /dev/fuse are needed", path.display())]
    Mount {
        /// The directory.
        path: PathBuf,
        /// System error.
        source: io::Error,
    },
    /// The mount has open files.
    #[error("{} is in use: close its open files, or unmount with --force", path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// `fusermount3` failed.
    #[error("cannot unmount {}: {said}", path.display())]
    Unmount {
        /// The directory.
        path: PathBuf,
        /// Message.
        said: String,
    },
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

impl FuseError {
    /// Returns true if a retry can succeed.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::Thread(_))
    }
}
