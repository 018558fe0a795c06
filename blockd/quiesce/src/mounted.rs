//! Filesystems of crash markers, found by their device, and their thaw after the death of a daemon.
//!
//! The states that a call can find are in `kernel-notes/nbd.md`, "Freezing a filesystem on the daemon's own
//! volume": the kernel may complete a freeze whose process was killed.

use crate::filesystems::{Freezer, FreezerError, Thawed};
use blockd_files::{Mount, mounts};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::{
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

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
    fn at_other_mount(&self, mounts: &[Mount]) -> Result<Self, ThawOutcome> {
        match self.locate(mounts) {
            MountLocation::At(place) => Ok(place),
            MountLocation::Hidden => Err(ThawOutcome::Hidden),
            MountLocation::Gone => Err(ThawOutcome::Done),
        }
    }

    /// Thaws the filesystem if it is frozen.
    pub(crate) fn thaw(&self, freezer: &dyn Freezer, mounts: &[Mount]) -> ThawOutcome {
        let place = match self.at_other_mount(mounts) {
            Ok(place) => place,
            Err(end) => return end,
        };
        match freezer.thaw(&place) {
            Ok(Thawed::Now) => {
                tracing::warn!(mount = %self.path.display(), "thawed a filesystem that an earlier daemon left frozen");
                ThawOutcome::Done
            }
            Ok(Thawed::Before) => ThawOutcome::NotFrozen,
            // The caller repeats the lookup.
            Err(FreezerError::OtherFilesystem) => ThawOutcome::Hidden,
            Err(error) => {
                tracing::error!(mount = %self.path.display(), %error, "a filesystem may still be frozen: try `fsfreeze --unfreeze`");
                ThawOutcome::Failed
            }
        }
    }

    /// Thaws a filesystem that a killed process may still freeze, since its call hangs in the kernel. Only
    /// one freeze can be in progress: if a freeze succeeds here, no other one is.
    pub(crate) fn make_sure(&self, freezer: &dyn Freezer, mounts: &[Mount]) -> ThawOutcome {
        let place = match self.at_other_mount(mounts) {
            Ok(place) => place,
            Err(end) => return end,
        };
        let Err(error) = freezer.freeze(&place) else { return self.thaw(freezer, mounts) };
        match (&error, error.errno()) {
            (_, Some(Errno::BUSY)) => self.thaw(freezer, mounts),
            (FreezerError::OtherFilesystem, _) => ThawOutcome::NotFrozen,
            (_, Some(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOENT)) => {
                tracing::debug!(mount = %self.path.display(), %error, "the filesystem cannot be frozen, so no other freeze is in progress");
                ThawOutcome::Done
            }
            // These errors say nothing about the filesystem.
            (FreezerError::NoHolder(_) | FreezerError::HolderGone | FreezerError::TooLong { .. }, _) => {
                ThawOutcome::NotFrozen
            }
            (FreezerError::Call(_), _) => {
                tracing::error!(mount = %self.path.display(), %error, "check failed on filesystem: it may still become frozen; try `fsfreeze --unfreeze`");
                ThawOutcome::Failed
            }
        }
    }
}

/// Outcome of a thaw at the start.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ThawOutcome {
    /// Thawed, unmounted, or never frozen again.
    Done,
    /// Not frozen now; a freeze may still be in progress.
    NotFrozen,
    /// Mounted, but hidden by other mounts everywhere: it may be frozen.
    Hidden,
    /// Perhaps frozen; nothing more can be done.
    Failed,
}

impl ThawOutcome {
    /// Returns true if a later attempt may have another outcome.
    pub(crate) fn is_waited_for(self) -> bool {
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
pub(crate) fn seen_mounts() -> Vec<Mount> {
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
