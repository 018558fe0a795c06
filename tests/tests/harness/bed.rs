//! Test bed: a directory for the daemons and stores of one test.

use crate::harness::{Setup, Store};
use std::path::{Path, PathBuf};

/// A directory that is removed on drop.
pub struct Bed {
    dir: tempfile::TempDir,
}

impl Default for Bed {
    fn default() -> Self {
        Self::new()
    }
}

impl Bed {
    /// Creates a directory with a short path, as the length of socket paths is limited.
    pub fn new() -> Self {
        Self { dir: tempfile::Builder::new().prefix("bt").tempdir().expect("a temporary directory") }
    }

    /// As [`new`](Self::new), but on a disk, where reads can be counted.
    pub fn on_disk() -> Self {
        let dir = tempfile::Builder::new().prefix("bt").tempdir_in("/var/tmp");
        Self { dir: dir.expect("a temporary directory in /var/tmp") }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The setup of a daemon in the directory.
    pub fn daemon(&self, name: &str) -> Setup {
        Setup::new(&self.path(name))
    }

    /// Creates an object store in the directory.
    pub fn store(&self, name: &str) -> Store {
        Store::create(&self.path(name))
    }
}
