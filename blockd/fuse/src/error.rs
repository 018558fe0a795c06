//! Errors of mounts.

use std::{io, path::PathBuf};

/// Error of a mount or unmount.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FuseError {
    /// The mount point cannot be used.
    #[error("{operation} failed on {}: {source}", path.display())]
    Mountpoint {
        /// Operation.
        operation: &'static str,
        /// Mount point.
        path: PathBuf,
        /// System error.
        source: io::Error,
    },
    /// The mount point contains files, which a mount would hide.
    #[error("mount failed on {}: the directory is not empty; use an empty or a new one", path.display())]
    NotEmpty {
        /// Mount point.
        path: PathBuf,
    },
    /// Snapshots are already mounted there.
    #[error("mount failed on {}: snapshots are already mounted there", path.display())]
    Mounted {
        /// Mount point.
        path: PathBuf,
    },
    /// `fusermount3` refused to mount.
    #[error("mount failed on {}: {message}", path.display())]
    Refused {
        /// Mount point.
        path: PathBuf,
        /// Output of `fusermount3`.
        message: String,
    },
    /// The passed descriptor is not `/dev/fuse`.
    #[error("mount failed on the passed descriptor: it is not /dev/fuse")]
    NotFuse,
    /// The passed descriptor has no mount that waits for a server.
    #[error("mount failed on the passed descriptor: no mount waits for a server there")]
    NotMounted,
    /// The passed descriptor does not work.
    #[error("mount failed on the passed descriptor: {0}")]
    Descriptor(io::Error),
    /// The descriptor would share its flags with another user's process, and this process cannot open its
    /// own.
    #[error(
        "mount failed on the passed descriptor: for users other than root, blockd must open /dev/fuse itself ({0}); set DeviceAllow=/dev/fuse rw in its unit, and permit its user to open the device"
    )]
    Shared(io::Error),
    /// The kernel or `fusermount3` refused.
    #[error("mount failed on {}: {source}; fusermount3 (Debian package fuse3) and /dev/fuse are required", path.display())]
    Mount {
        /// Mount point.
        path: PathBuf,
        /// System error.
        source: io::Error,
    },
    /// The mount has open files.
    #[error("unmount failed on {}: it is in use; close its open files, or unmount with --force", path.display())]
    Busy {
        /// Mount point.
        path: PathBuf,
    },
    /// `fusermount3` failed.
    #[error("unmount failed on {}: {message}", path.display())]
    Unmount {
        /// Mount point.
        path: PathBuf,
        /// Output of `fusermount3`.
        message: String,
    },
    /// A thread could not be started.
    #[error("thread creation failed: {0}")]
    Thread(io::Error),
}

impl FuseError {
    /// Returns true if a retry can succeed.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::Thread(_))
    }
}
