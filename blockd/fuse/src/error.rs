//! What can go wrong with a mount.

use std::{io, path::PathBuf};

/// Why a mount was not made, or not taken away.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FuseError {
    /// The directory to mount at cannot be used.
    #[error("cannot {action} {}: {source}", path.display())]
    Mountpoint {
        /// What was being done with it.
        action: &'static str,
        /// The directory.
        path: PathBuf,
        /// What the system said.
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
        /// What it said.
        said: String,
    },
    /// What was handed over is no descriptor of `/dev/fuse`.
    #[error("what was handed over is no descriptor of /dev/fuse")]
    NotFuse,
    /// What was handed over is a descriptor with which nothing is mounted that waits to be served.
    #[error("nothing that waits to be served is mounted with the descriptor that was handed over")]
    NotMounted,
    /// The descriptor that was handed over does not work.
    #[error("the descriptor that was handed over cannot be used: {0}")]
    Descriptor(io::Error),
    /// Whoever handed the descriptor over would share its flags, and this process may not open one of its
    /// own.
    #[error(
        "mounts of other users than root are served only through a descriptor of blockd's own, and it cannot open /dev/fuse ({0}): give its unit DeviceAllow=/dev/fuse rw, and its user the right to open it"
    )]
    Shared(io::Error),
    /// The kernel or `fusermount3` refused.
    #[error("cannot mount at {}: {source}; fusermount3 (Debian package fuse3) and /dev/fuse are needed", path.display())]
    Mount {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody has files open there.
    #[error("{} is in use: close what is open there, or let go of it by force", path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// `fusermount3` failed.
    #[error("cannot unmount {}: {said}", path.display())]
    Unmount {
        /// The directory.
        path: PathBuf,
        /// What it said.
        said: String,
    },
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

impl FuseError {
    /// Whether the same can succeed later without anybody doing anything about it.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::Thread(_))
    }
}
