//! Layout of the data directory.

use blockd_extent::VolumeId;
use std::{
    fmt,
    ops::Deref,
    path::{Path, PathBuf},
};
use uuid::Uuid;

/// Data directory, absolute.
#[derive(Clone, PartialEq, Eq)]
pub struct DataDir(PathBuf);

impl fmt::Debug for DataDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Deref for DataDir {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl AsRef<Path> for DataDir {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl DataDir {
    /// Creates the layout of a directory, which need not exist.
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Returns the path of the control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.join("blockd.sock")
    }

    /// Returns the path of the default NBD socket.
    pub fn nbd_socket(&self) -> PathBuf {
        self.join("nbd.sock")
    }

    /// Returns the path of the database.
    pub fn database(&self) -> PathBuf {
        self.join("blockd.db")
    }

    /// Returns the directory of a volume.
    pub fn volume_dir(&self, id: VolumeId) -> PathBuf {
        self.volumes_dir().join(id.to_string())
    }

    /// Returns the directory of all volumes.
    pub fn volumes_dir(&self) -> PathBuf {
        self.join("volumes")
    }

    /// Returns the directory with the fingerprints of the blocks that a credential stored.
    pub fn fingerprints_dir(&self, credential: Uuid) -> PathBuf {
        self.all_fingerprints_dir().join(credential.to_string())
    }

    /// Returns the directory with the fingerprints of all credentials.
    pub fn all_fingerprints_dir(&self) -> PathBuf {
        self.join("fingerprints")
    }

    /// Returns the directory of the running drill.
    pub fn drill_dir(&self) -> PathBuf {
        self.join("drill")
    }

    /// Returns the directory of the tasks' files.
    pub fn tasks_dir(&self) -> PathBuf {
        self.join("tasks")
    }

    /// Returns the directory with the resume state of a task.
    pub fn task_dir(&self, id: Uuid) -> PathBuf {
        self.tasks_dir().join(id.to_string())
    }
}
